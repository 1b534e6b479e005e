//! The metadata of a GGUF file that is going to be written.

use crate::config::{ModelConfig, Reach, RopeScaling, yarn_magnitude};
use crate::error::{Checked, FormatError, Problem, shown};
use crate::gguf::{self, Array, Metadata, Value};
use crate::model_file::{ModelFile, Source};
use plinth_kernels::Format;
use serde_json::Value as Json;

/// That of a GGUF input as it is, but for what the new type changes; that of a folder made from its JSON files.
pub(super) fn of(input: &ModelFile, target: Format) -> Result<Metadata, FormatError> {
    let mut metadata = match &input.source {
        Source::Gguf(gguf) => {
            let kept = gguf.metadata.0.iter().filter(|(key, _)| !is_replaced(key));
            Metadata(kept.cloned().collect())
        }
        Source::HuggingFace(_) => from_folder(input)?,
    };
    metadata.0.push((
        "general.file_type".to_owned(),
        Value::U32(file_type(target)),
    ));
    if !target.is_float() {
        metadata
            .0
            .push(("general.quantization_version".to_owned(), Value::U32(2)));
    }
    Ok(metadata)
}

fn is_replaced(key: &str) -> bool {
    [
        "general.file_type",
        "general.quantization_version",
        "general.alignment",
    ]
    .contains(&key)
        || key.starts_with("split.")
}

/// The number that GGUF files give the type of most of their tensors.
fn file_type(target: Format) -> u32 {
    match target {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q8_0 => 7,
        Format::BF16 => 32,
        _ => unreachable!("convert refuses formats that cannot be written"),
    }
}

fn from_folder(input: &ModelFile) -> Result<Metadata, FormatError> {
    let at = |problem: Problem| problem.at(input.path());
    let mut list = model(input.config()).map_err(at)?;
    list.extend(vocabulary(input)?);
    if let Some(template) = input.chat_template()? {
        list.push((
            "tokenizer.chat_template".to_owned(),
            Value::String(template),
        ));
    }
    Ok(Metadata(list))
}

/// What `gguf::model_config` reads.
pub(crate) fn model(config: &ModelConfig) -> Checked<Vec<(String, Value)>> {
    can_be_said(config)?;
    let key = |key: &str| format!("{}.{key}", config.architecture);
    let size = |name: &str, n: usize| (key(name), Value::U32(n as u32));
    let number = |name: &str, x: f32| (key(name), Value::F32(x));
    // Mixtral's experts have the width that a feed-forward part of its architecture would have.
    let inner = match config.experts {
        Some(experts) if config.architecture == "llama" => experts.intermediate_size,
        _ => config.intermediate_size,
    };
    let mut list = vec![
        (
            "general.architecture".to_owned(),
            Value::String(config.architecture.clone()),
        ),
        (
            "general.name".to_owned(),
            Value::String(config.name.clone().unwrap_or_else(|| "unnamed".to_owned())),
        ),
        size("block_count", config.num_layers),
        size("context_length", config.context_length),
        size("embedding_length", config.hidden_size),
        size("feed_forward_length", inner),
        size("attention.head_count", config.num_heads),
        size("attention.head_count_kv", config.num_kv_heads),
        size("attention.key_length", config.head_dim),
        size("attention.value_length", config.head_dim),
        number("attention.layer_norm_rms_epsilon", config.rms_norm_eps),
        size("rope.dimension_count", config.rope.dims),
        number("rope.freq_base", config.rope.base),
        size("vocab_size", config.vocab_size),
    ];
    if let Some(window) = config.sliding_window {
        list.push(size("attention.sliding_window", window));
    }
    if let Some(local) = &config.local_rope {
        list.push(number("rope.freq_base_swa", local.base));
    }
    if has_both_reaches(config) {
        let windows = config
            .reach
            .iter()
            .map(|&reach| Value::Bool(reach == Reach::Window));
        const BOOL: u32 = 7;
        list.push((
            key("attention.sliding_window_pattern"),
            Value::Array(Array::Other(BOOL, windows.collect())),
        ));
    }
    if let Some(cap) = config.attention_softcap {
        list.push(number("attn_logit_softcapping", cap));
    }
    if let Some(cap) = config.final_softcap {
        list.push(number("final_logit_softcapping", cap));
    }
    if let Some(experts) = config.experts {
        list.push(size("expert_count", experts.count));
        list.push(size("expert_used_count", experts.used));
        if config.architecture != "llama" {
            list.push(size(
                "expert_feed_forward_length",
                experts.intermediate_size,
            ));
        }
    }
    let scaling = |kind: &str| (key("rope.scaling.type"), Value::String(kind.to_owned()));
    match config.rope.scaling {
        RopeScaling::Linear { factor } => {
            list.push(scaling("linear"));
            list.push(number("rope.scaling.factor", factor));
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context,
            ..
        } => {
            list.push(scaling("yarn"));
            list.push(size(
                "rope.scaling.original_context_length",
                original_context as usize,
            ));
            for (name, x) in [
                ("rope.scaling.factor", factor),
                ("rope.scaling.yarn_beta_fast", beta_fast),
                ("rope.scaling.yarn_beta_slow", beta_slow),
            ] {
                list.push(number(name, x));
            }
            if config.rope_magnitude != yarn_magnitude(factor) {
                let magnitude = config.rope_magnitude;
                list.push(number("rope.scaling.yarn_attn_factor", magnitude));
            }
        }
        _ => {}
    }
    if let Some(long) = &config.long_rope {
        list.push(scaling("longrope"));
        list.push(size(
            "rope.scaling.original_context_length",
            long.original_context,
        ));
        list.push(number("rope.scaling.attn_factor", config.rope_magnitude));
    }
    Ok(list)
}

/// Is there a key for all that the configuration says? What has none follows from the architecture, and must be that.
fn can_be_said(config: &ModelConfig) -> Checked<()> {
    let fix = "a GGUF file of such a model cannot be written";
    let implied = gguf::attention_scale(config);
    if (config.attention_scale - implied).abs() > 1e-6 * implied {
        let problem = Problem::field("attention scale", config.attention_scale, implied);
        return Err(problem.fix(fix));
    }
    if config.experts.is_some_and(|experts| !experts.normalize) {
        let problem = Problem::field("norm_topk_prob", false, true);
        return Err(problem.fix(fix));
    }
    if let RopeScaling::Yarn { truncate, .. } = config.rope.scaling
        && truncate != gguf::yarn_is_truncated(&config.architecture)
    {
        let problem = Problem::field("rotary scaling: truncate", truncate, !truncate);
        return Err(problem.fix(fix));
    }
    let can_mix = ["gemma2", "gemma3", "gpt-oss"].contains(&config.architecture.as_str());
    if has_both_reaches(config) && !can_mix {
        let problem = Problem::field("sliding window", "in some layers", "in all of them or none");
        return Err(problem.fix(fix));
    }
    Ok(())
}

/// Do some layers see everything and others not?
fn has_both_reaches(config: &ModelConfig) -> bool {
    config.reach.contains(&Reach::All) && config.reach.contains(&Reach::Window)
}

fn vocabulary(input: &ModelFile) -> Result<Vec<(String, Value)>, FormatError> {
    let crate::TokenizerSource::HuggingFace(source) = input.tokenizer()? else {
        return Ok(Vec::new());
    };
    let path = &source.tokenizer_json;
    let bytes = std::fs::read(path).map_err(|error| Problem::io("read it")(error).at(path))?;
    let json: Json = serde_json::from_slice(&bytes)
        .map_err(|error| Problem::field("the file", format!("'{error}'"), "JSON").at(path))?;
    byte_level_bpe(&json, &source, input.config().vocab_size).map_err(|problem| problem.at(path))
}

/// A byte-level BPE tokenizer as the keys `tokenizer.ggml.*`.
fn byte_level_bpe(
    json: &Json,
    source: &crate::HuggingFaceTokenizer,
    vocab_size: usize,
) -> Checked<Vec<(String, Value)>> {
    let vocab = json.pointer("/model/vocab").and_then(Json::as_object);
    let merges = json.pointer("/model/merges").and_then(Json::as_array);
    let (Some(vocab), Some(merges)) = (vocab, merges) else {
        let problem = Problem::field(
            "model",
            "another kind of tokenizer",
            "byte-level BPE with vocab and merges",
        );
        return Err(problem.fix("a GGUF file with this tokenizer cannot be written yet"));
    };
    const UNUSED: i32 = 5;
    let mut tokens: Vec<_> = (0..vocab_size).map(|id| format!("[unused{id}]")).collect();
    let mut types = vec![UNUSED; vocab_size];
    let mut set = |id: Option<u64>, text: &str, kind: i32| {
        let id = id
            .and_then(|id| usize::try_from(id).ok())
            .filter(|&id| id < vocab_size);
        let Some(id) = id else {
            let field = format!("token {}", shown(text));
            return Err(Problem::field(
                field,
                "an id outside the vocabulary",
                format!("an id under {vocab_size}"),
            ));
        };
        tokens[id] = text.to_owned();
        types[id] = kind;
        Ok(())
    };
    for (text, id) in vocab {
        set(id.as_u64(), text, 1)?;
    }
    let added = json
        .get("added_tokens")
        .and_then(Json::as_array)
        .into_iter()
        .flatten();
    for token in added {
        let text = token
            .get("content")
            .and_then(Json::as_str)
            .unwrap_or_default();
        let special = token
            .get("special")
            .and_then(Json::as_bool)
            .unwrap_or(false);
        set(
            token.get("id").and_then(Json::as_u64),
            text,
            if special { 3 } else { 4 },
        )?;
    }
    let merges: Option<Vec<_>> = merges.iter().map(merge).collect();
    let merges =
        merges.ok_or_else(|| Problem::field("model.merges", "another shape", "pairs of texts"))?;
    let named = |name: &str| {
        let text = source.config.as_ref()?.get(name)?;
        let text = text.as_str().or_else(|| text.get("content")?.as_str())?;
        tokens
            .iter()
            .position(|token| token == text)
            .map(|id| id as u32)
    };
    let ids = [
        ("bos_token_id", named("bos_token")),
        (
            "eos_token_id",
            source.eos_ids.first().copied().or(named("eos_token")),
        ),
    ];
    let mut list = vec![
        text_value("model", "gpt2"),
        text_value("pre", pre_tokenizer(json)?),
        array("tokens", Array::String(tokens.clone())),
        array("token_type", Array::I32(types)),
        array("merges", Array::String(merges)),
    ];
    for (name, id) in ids {
        list.extend(id.map(|id| (format!("tokenizer.ggml.{name}"), Value::U32(id))));
    }
    if let Some(add) = source
        .config
        .as_ref()
        .and_then(|config| config.get("add_bos_token")?.as_bool())
    {
        list.push(("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(add)));
    }
    Ok(list)
}

fn text_value(name: &str, text: &str) -> (String, Value) {
    (
        format!("tokenizer.ggml.{name}"),
        Value::String(text.to_owned()),
    )
}

fn array(name: &str, array: Array) -> (String, Value) {
    (format!("tokenizer.ggml.{name}"), Value::Array(array))
}

/// Old files hold "left right", newer ones [left, right].
fn merge(merge: &Json) -> Option<String> {
    match merge {
        Json::String(text) => Some(text.clone()),
        Json::Array(pair) => match pair.as_slice() {
            [left, right] => Some(format!("{} {}", left.as_str()?, right.as_str()?)),
            _ => None,
        },
        _ => None,
    }
}

/// The name that GGUF gives the way the text is split before merging. It is told by the steps of the pre-tokenizer.
fn pre_tokenizer(json: &Json) -> Checked<&'static str> {
    let pre = json.get("pre_tokenizer").unwrap_or(&Json::Null).to_string();
    if pre.contains("\"Digits\"") && pre.contains("ByteLevel") {
        return Ok("smollm");
    }
    if pre.contains("\\\\p{Lu}") && pre.contains("\\\\p{N}{1,3}") {
        return Ok("gpt-4o");
    }
    if pre.contains("\\\\p{N}{1,3}") {
        return Ok("llama-bpe");
    }
    if pre.contains("\"Split\"") && pre.contains("\\\\p{N}") {
        return Ok("qwen2");
    }
    if pre.contains("ByteLevel") && !pre.contains("\"Split\"") {
        return Ok("gpt-2");
    }
    let problem = Problem::field(
        "pre_tokenizer",
        shown(&pre),
        "the steps of SmolLM, Llama 3, Qwen 2, GPT-4o or GPT-2",
    );
    Err(problem.fix("a GGUF file with this tokenizer cannot be written yet"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What tells the patterns apart, as `tokenizer.json` has them.
    #[test]
    fn ways_to_split_are_told_by_their_patterns() {
        let split = |pattern: &str| {
            let split = json!({"type": "Split", "pattern": {"Regex": pattern}});
            json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"}]}})
        };
        for (pattern, name) in [
            (r"\p{L}+|\p{N}{1,3}", "llama-bpe"),
            (r"[\p{Lu}\p{Lt}]*[\p{Ll}]+|\p{N}{1,3}", "gpt-4o"),
            (r"\p{L}+|\p{N}", "qwen2"),
        ] {
            assert_eq!(pre_tokenizer(&split(pattern)).ok(), Some(name));
        }
    }
}
