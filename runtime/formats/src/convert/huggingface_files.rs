//! The JSON files of a Hugging Face folder that is going to be written.

use crate::config::{ModelConfig, RopeScaling};
use crate::error::{Checked, FormatError, Problem, shown};
use crate::huggingface::QUANTIZATION;
use crate::model_file::{ModelFile, Source};
use crate::vocabulary::{GgufVocab, TokenizerSource};
use plinth_kernels::Format;
use serde_json::{Value as Json, json};
use std::path::Path;

pub(super) fn write(input: &ModelFile, folder: &Path, target: Format) -> Result<(), FormatError> {
    is_llama(input.config()).map_err(|problem| problem.at(input.path()))?;
    match &input.source {
        Source::HuggingFace(source) => {
            let mut config = source.config.clone();
            config["torch_dtype"] = json!(torch_dtype(target));
            if let Some(fields) = config.as_object_mut() {
                // The weights are floats now.
                fields.remove(QUANTIZATION);
            }
            put(folder, "config.json", &config)?;
            for name in [
                "tokenizer.json",
                "tokenizer_config.json",
                "generation_config.json",
                "chat_template.jinja",
            ] {
                copy(input.path(), folder, name)?;
            }
            Ok(())
        }
        Source::Gguf(_) => {
            let TokenizerSource::Gguf(vocab) = input.tokenizer()? else {
                return Ok(());
            };
            let at = |problem: Problem| problem.at(input.path());
            let config = config_json(input, &vocab, target).map_err(at)?;
            put(folder, "config.json", &config)?;
            let end = vocab.eot.or(vocab.eos);
            put(
                folder,
                "generation_config.json",
                &json!({"bos_token_id": vocab.bos, "eos_token_id": end}),
            )?;
            put(
                folder,
                "tokenizer.json",
                &tokenizer_json(&vocab).map_err(at)?,
            )?;
            put(
                folder,
                "tokenizer_config.json",
                &tokenizer_config(&vocab, input.chat_template()?.as_deref()),
            )
        }
    }
}

/// Other architectures have names, norms and fused tensors of their own in a folder, which are read but not written.
fn is_llama(config: &ModelConfig) -> Checked<()> {
    let found = match config.experts {
        None if config.architecture == "llama" => return Ok(()),
        None => config.architecture.as_str(),
        Some(_) => "a mixture of experts",
    };
    let problem = Problem::field("architecture", found, "a Llama without experts");
    Err(problem
        .fix("a folder with such a model cannot be written yet: give an output that ends in .gguf"))
}

fn put(folder: &Path, name: &str, value: &Json) -> Result<(), FormatError> {
    let path = folder.join(name);
    let text = format!("{value:#}\n");
    std::fs::write(&path, text).map_err(|error| Problem::io("write it")(error).at(&path))
}

fn copy(from: &Path, to: &Path, name: &str) -> Result<(), FormatError> {
    let source = from.join(name);
    if !source.is_file() {
        return Ok(());
    }
    let copied = std::fs::copy(&source, to.join(name)).map(|_| ());
    copied.map_err(|error| Problem::io("copy it")(error).at(&source))
}

fn torch_dtype(target: Format) -> &'static str {
    match target {
        Format::F32 => "float32",
        Format::F16 => "float16",
        _ => "bfloat16",
    }
}

fn config_json(input: &ModelFile, vocab: &GgufVocab, target: Format) -> Checked<Json> {
    let ModelConfig { rope, .. } = input.config();
    let config = input.config();
    let bias = |part: &str| input.tensor(&format!("blk.0.{part}.bias")).is_some();
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": shortest(config.rms_norm_eps),
        "rope_theta": shortest(rope.base),
        "rope_scaling": rope_scaling(config)?,
        "tie_word_embeddings": input.has_tied_head(),
        "attention_bias": bias("attn_q"),
        "mlp_bias": bias("ffn_up"),
        "bos_token_id": vocab.bos,
        "eos_token_id": vocab.eot.or(vocab.eos),
        "torch_dtype": torch_dtype(target),
    }))
}

/// The number as a person would write it: 1e-5, not the nearest `f64` of its `f32`.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn rope_scaling(config: &ModelConfig) -> Checked<Json> {
    match &config.rope.scaling {
        RopeScaling::None => Ok(Json::Null),
        RopeScaling::Linear { factor } => {
            Ok(json!({"rope_type": "linear", "factor": shortest(*factor)}))
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => Ok(json!({
            "rope_type": "llama3",
            "factor": shortest(*factor),
            "low_freq_factor": shortest(*low_freq_factor),
            "high_freq_factor": shortest(*high_freq_factor),
            "original_max_position_embeddings": *original_context as u64,
        })),
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context,
            truncate,
        } => Ok(json!({
            "rope_type": "yarn",
            "factor": shortest(*factor),
            "beta_fast": shortest(*beta_fast),
            "beta_slow": shortest(*beta_slow),
            "original_max_position_embeddings": *original_context as u64,
            "truncate": truncate,
            "attention_factor": shortest(config.rope_magnitude),
        })),
        RopeScaling::Factors(_) => {
            let problem = Problem::field("tensor 'rope_freqs.weight'", "factors", "none");
            Err(problem.fix("a folder says this as the numbers that the factors were made from, which the file lacks"))
        }
    }
}

fn tokenizer_config(vocab: &GgufVocab, template: Option<&str>) -> Json {
    let token = |id: Option<u32>| id.map(|id| vocab.tokens[id as usize].clone());
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token(vocab.bos),
        "eos_token": token(vocab.eot.or(vocab.eos)),
        "unk_token": token(vocab.unk),
        "add_bos_token": vocab.add_bos.unwrap_or(vocab.model == "llama"),
        "clean_up_tokenization_spaces": false,
        "chat_template": template,
    })
}

/// `tokenizer.json` of a byte-level BPE vocabulary.
fn tokenizer_json(vocab: &GgufVocab) -> Checked<Json> {
    if vocab.model != "gpt2" {
        let problem = Problem::field(
            "metadata 'tokenizer.ggml.model'",
            shown(&vocab.model),
            "'gpt2'",
        );
        return Err(problem.fix("a folder with a SentencePiece tokenizer cannot be written yet"));
    }
    let kind = |id: usize| vocab.types.get(id).copied().unwrap_or(1);
    let added = (0..vocab.tokens.len())
        .filter(|&id| matches!(kind(id), 3 | 4))
        .map(|id| {
            json!({
                "id": id, "content": vocab.tokens[id], "special": kind(id) == 3,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        });
    let tokens: serde_json::Map<_, _> = vocab
        .tokens
        .iter()
        .enumerate()
        .map(|(id, token)| (token.clone(), json!(id)))
        .collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer(vocab.pre.as_deref())?,
        "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": tokens, "merges": vocab.merges,
        },
    }))
}

fn pre_tokenizer(pre: Option<&str>) -> Checked<Json> {
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}, bytes(false),
        ]})
    };
    // Words with the apostrophe endings of English, letters, digits, and the rest, each with a space before it.
    let modern = |digits: &str| {
        format!(
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|{digits}| ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
        )
    };
    match pre {
        Some("smollm") => Ok(
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, bytes(true)]}),
        ),
        Some("llama-bpe") => Ok(split(&modern("\\p{N}{1,3}"))),
        Some("qwen2") => Ok(split(&modern("\\p{N}"))),
        None | Some("gpt-2" | "default") => Ok(bytes(true)),
        Some(other) => {
            let expected = "'smollm', 'llama-bpe', 'qwen2' or 'gpt-2'";
            Err(Problem::field(
                "metadata 'tokenizer.ggml.pre'",
                shown(other),
                expected,
            ))
        }
    }
}
