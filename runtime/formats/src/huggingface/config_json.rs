//! The configuration of a model out of `config.json`.
//!
//! **Source** of the fields, of their defaults and of what a model type implies without saying it: transformers 5.19,
//! `models/*/configuration_*.py` and `modeling_*.py`, which read files of version 4 as well.

mod fields;
mod rope;

use crate::config::{Activation, ExpertsConfig, ModelConfig, Reach, Sizes};
use crate::error::{Checked, Problem, shown};
use fields::{needed, needed_size, number, positive, size, text, truth};
use serde_json::Value;

/// The model types that are read, and the architecture that each is in GGUF.
const MODEL_TYPES: [(&str, &str); 10] = [
    ("llama", "llama"),
    ("mistral", "llama"),
    ("mixtral", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("qwen3_moe", "qwen3moe"),
    ("gemma2", "gemma2"),
    ("gemma3_text", "gemma3"),
    ("phi3", "phi3"),
    ("gpt_oss", "gpt-oss"),
];

/// Reads and checks it.
pub(super) fn model_config(json: &Value) -> Checked<ModelConfig> {
    let model_type = text(json, "model_type")?.unwrap_or_default();
    let Some((_, architecture)) = MODEL_TYPES.iter().find(|(name, _)| *name == model_type) else {
        let known: Vec<_> = MODEL_TYPES.iter().map(|(name, _)| *name).collect();
        let expected = format!("one of {}", known.join(", "));
        let problem = Problem::field("model_type", shown(model_type), expected);
        return Err(problem.fix("this architecture is not supported"));
    };
    let sizes = sizes(json)?;
    let rope = rope::of(json, &sizes)?;
    let plain = ModelConfig {
        architecture: (*architecture).to_owned(),
        name: text(json, "_name_or_path")?
            .filter(|name| !name.is_empty())
            .map(str::to_owned),
        activation: activation(json)?,
        experts: experts(json, model_type)?,
        qk_norm: ["qwen3", "qwen3_moe"].contains(&model_type),
        local_rope: rope.local,
        long_rope: rope.long,
        rope_magnitude: rope.magnitude,
        ..ModelConfig::llama(sizes, needed(json, "rms_norm_eps", number)?, rope.main)
    };
    let config = match model_type {
        "gemma2" => gemma(json, plain, 2)?,
        "gemma3_text" => gemma(json, plain, 6)?,
        "gpt_oss" => gpt_oss(json, plain)?,
        "qwen2" | "qwen3" => qwen(json, plain)?,
        "qwen3_moe" => {
            let window = window_if_used(json)?;
            plain.with_window(window)
        }
        _ => plain.with_window(size(json, "sliding_window")?),
    };
    config.check()?;
    Ok(config)
}

fn sizes(json: &Value) -> Checked<Sizes> {
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
    Ok(Sizes {
        num_layers: needed_size(json, "num_hidden_layers")?,
        hidden_size,
        intermediate_size: needed_size(json, "intermediate_size")?,
        num_heads,
        num_kv_heads: size(json, "num_key_value_heads")?.unwrap_or(num_heads),
        head_dim,
        vocab_size: needed_size(json, "vocab_size")?,
        context_length: needed_size(json, "max_position_embeddings")?,
    })
}

fn activation(json: &Value) -> Checked<Activation> {
    // Gemma has its own name for the field.
    for field in ["hidden_activation", "hidden_act"] {
        return match text(json, field)? {
            None => continue,
            Some("silu") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            Some(other) => {
                let expected = "'silu' or 'gelu_pytorch_tanh'";
                Err(Problem::field(field, shown(other), expected))
            }
        };
    }
    Ok(Activation::Silu)
}

fn experts(json: &Value, model_type: &str) -> Checked<Option<ExpertsConfig>> {
    let used = || needed_size(json, "num_experts_per_tok");
    Ok(match model_type {
        "mixtral" | "gpt_oss" => Some(ExpertsConfig {
            count: needed_size(json, "num_local_experts")?,
            used: used()?,
            intermediate_size: needed_size(json, "intermediate_size")?,
            normalize: true,
            biases: model_type == "gpt_oss",
        }),
        "qwen3_moe" => {
            every_layer_is_a_mixture(json)?;
            let count = match size(json, "num_experts")? {
                Some(count) => count,
                None => needed_size(json, "num_local_experts")?,
            };
            Some(ExpertsConfig {
                count,
                used: used()?,
                intermediate_size: needed_size(json, "moe_intermediate_size")?,
                normalize: truth(json, "norm_topk_prob")?.unwrap_or(false),
                biases: false,
            })
        }
        _ => None,
    })
}

fn every_layer_is_a_mixture(json: &Value) -> Checked<()> {
    let step = size(json, "decoder_sparse_step")?.unwrap_or(1);
    let dense = json.get("mlp_only_layers").and_then(Value::as_array);
    let dense = dense.map_or(0, Vec::len);
    let problem = match (step, dense) {
        (1, 0) => return Ok(()),
        (1, _) => Problem::field("mlp_only_layers", format!("{dense} layers"), "none"),
        _ => Problem::field("decoder_sparse_step", step, "1"),
    };
    Err(problem.fix("models in which some layers are mixtures and some are not are not supported"))
}

/// `sliding_window`, where `use_sliding_window` says that it counts.
fn window_if_used(json: &Value) -> Checked<Option<usize>> {
    match truth(json, "use_sliding_window")? {
        Some(true) => size(json, "sliding_window"),
        _ => Ok(None),
    }
}

/// Qwen 2 and 3 can have a window in their upper layers.
fn qwen(json: &Value, plain: ModelConfig) -> Checked<ModelConfig> {
    let Some(window) = window_if_used(json)? else {
        return Ok(plain);
    };
    let reach = match layer_types(json)? {
        Some(reach) => reach,
        None => {
            let first = size(json, "max_window_layers")?.unwrap_or(28);
            let all = plain.reach.iter().enumerate();
            all.map(|(layer, _)| match layer >= first {
                true => Reach::Window,
                false => Reach::All,
            })
            .collect()
        }
    };
    Ok(ModelConfig {
        sliding_window: reach.contains(&Reach::Window).then_some(window),
        reach,
        ..plain
    })
}

/// What Gemma 2 and 3 do otherwise than a Llama. The last of every `period` layers sees everything, if nothing is said.
fn gemma(json: &Value, plain: ModelConfig, period: usize) -> Checked<ModelConfig> {
    if truth(json, "use_bidirectional_attention")? == Some(true) {
        let problem = Problem::field("use_bidirectional_attention", "true", "false");
        return Err(problem.fix("models that make embeddings, not text, are not supported"));
    }
    let reach = match layer_types(json)? {
        Some(reach) => reach,
        None => {
            let period = size(json, "sliding_window_pattern")?.unwrap_or(period);
            ModelConfig::every_nth_sees_all(period, plain.num_layers)
        }
    };
    let windows = reach.contains(&Reach::Window);
    let scaled_width = number(json, "query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok(ModelConfig {
        sliding_window: match windows {
            true => Some(needed_size(json, "sliding_window")?),
            false => None,
        },
        local_rope: plain.local_rope.clone().filter(|_| windows),
        reach,
        attention_scale: 1.0 / scaled_width.sqrt(),
        attention_softcap: positive(json, "attn_logit_softcapping")?,
        final_softcap: positive(json, "final_logit_softcapping")?,
        ..plain.into_gemma()
    })
}

/// What gpt-oss does otherwise than a Llama. Its gates are of one kind, whose numbers newer files hold.
fn gpt_oss(json: &Value, plain: ModelConfig) -> Checked<ModelConfig> {
    for (field, only) in [("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)] {
        let found = number(json, field)?.unwrap_or(only);
        if found != only {
            return Err(Problem::field(field, found, only).fix("such gates are not supported"));
        }
    }
    if !["rope_parameters", "rope_scaling"]
        .iter()
        .any(|field| json[field].is_object())
    {
        let problem = Problem::field("rope_scaling", "nothing", "that of the model, such as YaRN");
        return Err(problem.fix("the file is incomplete"));
    }
    let reach = match layer_types(json)? {
        Some(reach) => reach,
        None => ModelConfig::every_nth_sees_all(2, plain.num_layers),
    };
    Ok(ModelConfig {
        sliding_window: match reach.contains(&Reach::Window) {
            true => Some(needed_size(json, "sliding_window")?),
            false => None,
        },
        reach,
        ..plain.into_gpt_oss()
    })
}

/// `layer_types`, where the file lists them.
fn layer_types(json: &Value) -> Checked<Option<Vec<Reach>>> {
    let Some(list) = json.get("layer_types").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let reach = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(Reach::All),
        Some("sliding_attention") => Ok(Reach::Window),
        _ => {
            let expected = "'full_attention' or 'sliding_attention'";
            Err(Problem::field(
                "layer_types",
                shown(&kind.to_string()),
                expected,
            ))
        }
    };
    let list = list
        .as_array()
        .ok_or_else(|| Problem::field("layer_types", "no list", "one kind a layer"))?;
    list.iter().map(reach).collect::<Checked<_>>().map(Some)
}

/// Is the output head the embedding? Gemma's configuration does not say so where it is.
pub(super) fn is_tied(json: &Value) -> Checked<bool> {
    Ok(truth(json, "tie_word_embeddings")?.unwrap_or(is_gemma(json)?))
}

/// Do the norms hold what is added to 1?
pub(super) fn norms_are_less_one(json: &Value) -> Checked<bool> {
    is_gemma(json)
}

fn is_gemma(json: &Value) -> Checked<bool> {
    let model_type = text(json, "model_type")?;
    Ok(model_type.is_some_and(|name| name.starts_with("gemma")))
}
