//! The configuration of a Llama-family model out of `config.json`.

use crate::config::{ModelConfig, RopeConfig, RopeLayout, RopeScaling};
use crate::error::{Checked, Problem, shown};
use serde_json::Value;

/// Reads and checks it.
pub(super) fn model_config(json: &Value) -> Checked<ModelConfig> {
    let model_type = json
        .get("model_type")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !["llama", "mistral"].contains(&model_type) {
        let problem = Problem::field("model_type", shown(model_type), "'llama' or 'mistral'");
        return Err(problem.fix(
            "this architecture is not supported: Llama 2 and 3, SmolLM2, Mistral and TinyLlama are",
        ));
    }
    let activation = json
        .get("hidden_act")
        .and_then(Value::as_str)
        .unwrap_or("silu");
    if activation != "silu" {
        return Err(Problem::field("hidden_act", shown(activation), "'silu'"));
    }
    let hidden_size = needed_size(json, "hidden_size")?;
    let num_heads = needed_size(json, "num_attention_heads")?;
    let head_dim = match size(json, "head_dim")? {
        Some(head_dim) => head_dim,
        None if num_heads > 0 && hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            let expected = format!("a divisor of hidden_size, which is {hidden_size}");
            return Err(Problem::field("num_attention_heads", num_heads, expected));
        }
    };
    // Newer files hold the base and the scaling together in "rope_parameters".
    let rope = json
        .get("rope_parameters")
        .filter(|value| value.is_object());
    let config = ModelConfig {
        architecture: "llama".to_owned(),
        name: json
            .get("_name_or_path")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
            .map(str::to_owned),
        num_layers: needed_size(json, "num_hidden_layers")?,
        hidden_size,
        intermediate_size: needed_size(json, "intermediate_size")?,
        num_heads,
        num_kv_heads: size(json, "num_key_value_heads")?.unwrap_or(num_heads),
        head_dim,
        vocab_size: needed_size(json, "vocab_size")?,
        context_length: needed_size(json, "max_position_embeddings")?,
        rms_norm_eps: needed(json, "rms_norm_eps", number)?,
        rope: RopeConfig {
            base: number(rope.unwrap_or(json), "rope_theta")?.unwrap_or(10_000.0),
            dims: head_dim,
            layout: RopeLayout::HalfSplit,
            scaling: scaling(rope.or_else(|| json.get("rope_scaling")))?,
        },
        sliding_window: size(json, "sliding_window")?,
    };
    config.check()?;
    Ok(config)
}

/// Is the output head the embedding?
pub(super) fn is_tied(json: &Value) -> Checked<bool> {
    match json.get("tie_word_embeddings") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(tied)) => Ok(*tied),
        Some(other) => Err(Problem::field(
            "tie_word_embeddings",
            other,
            "true or false",
        )),
    }
}

fn scaling(json: Option<&Value>) -> Checked<RopeScaling> {
    let Some(json) = json.filter(|value| !value.is_null()) else {
        return Ok(RopeScaling::None);
    };
    let kind = json.get("rope_type").or_else(|| json.get("type"));
    let needed = |name: &str| needed(json, name, number);
    match kind.and_then(Value::as_str) {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: needed("factor")?,
        }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: needed("factor")?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_context: needed("original_max_position_embeddings")?,
        }),
        Some(other) => {
            let problem = Problem::field(
                "rope_scaling: rope_type",
                shown(other),
                "'default', 'linear' or 'llama3'",
            );
            Err(problem.fix("this kind of rotary scaling is not supported"))
        }
    }
}

fn size(json: &Value, name: &str) -> Checked<Option<usize>> {
    match json.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(size) => Ok(Some(size)),
            None => Err(Problem::field(
                name,
                value,
                "an integer that is not negative",
            )),
        },
    }
}

fn number(json: &Value, name: &str) -> Checked<Option<f32>> {
    match json.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number as f32)),
            None => Err(Problem::field(name, value, "a number")),
        },
    }
}

fn needed<T>(
    json: &Value,
    name: &str,
    read: impl Fn(&Value, &str) -> Checked<Option<T>>,
) -> Checked<T> {
    read(json, name)?
        .ok_or_else(|| Problem::field(name, "nothing", "a number").fix("the file is incomplete"))
}

fn needed_size(json: &Value, name: &str) -> Checked<usize> {
    needed(json, name, size)
}
