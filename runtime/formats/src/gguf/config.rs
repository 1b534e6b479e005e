//! The configuration of a Llama-family model out of GGUF metadata.

use super::reader::Gguf;
use super::value::Metadata;
use crate::config::{ModelConfig, RopeConfig, RopeLayout, RopeScaling};
use crate::error::{Checked, Problem, shown};

/// Reads and checks it. `factors` are the contents of the tensor `rope_freqs.weight`, where the file has one.
pub(crate) fn model_config(gguf: &Gguf, factors: Option<Vec<f32>>) -> Checked<ModelConfig> {
    let metadata = &gguf.metadata;
    let key = "general.architecture";
    let architecture = metadata.required(key, metadata.text(key), "the model's architecture")?;
    if architecture != "llama" {
        let problem = Problem::field(format!("metadata '{key}'"), shown(architecture), "'llama'");
        return Err(problem.fix(
            "this architecture is not supported: Llama 2 and 3, SmolLM2, Mistral and TinyLlama are",
        ));
    }
    let experts = metadata.count("llama.expert_count")?.unwrap_or(0);
    if experts > 0 {
        let problem = Problem::field("metadata 'llama.expert_count'", experts, "0");
        return Err(problem.fix("mixtures of experts are not supported"));
    }
    let size = |name: &str| metadata.size(&format!("llama.{name}"));
    let needed = |name: &str| metadata.required(&format!("llama.{name}"), size(name), "a size");
    let hidden_size = needed("embedding_length")?;
    let num_heads = needed("attention.head_count")?;
    let num_kv_heads = size("attention.head_count_kv")?.unwrap_or(num_heads);
    let head_dim = head_dim(metadata, hidden_size, num_heads)?;
    let config = ModelConfig {
        architecture: architecture.to_owned(),
        name: metadata.text("general.name")?.map(str::to_owned),
        num_layers: needed("block_count")?,
        hidden_size,
        intermediate_size: needed("feed_forward_length")?,
        num_heads,
        num_kv_heads,
        head_dim,
        vocab_size: vocab_size(gguf)?,
        context_length: needed("context_length")?,
        rms_norm_eps: metadata.required(
            "llama.attention.layer_norm_rms_epsilon",
            metadata.number("llama.attention.layer_norm_rms_epsilon"),
            "a number such as 1e-5",
        )?,
        rope: RopeConfig {
            base: metadata.number("llama.rope.freq_base")?.unwrap_or(10_000.0),
            dims: size("rope.dimension_count")?.unwrap_or(head_dim),
            layout: RopeLayout::Interleaved,
            scaling: scaling(metadata, factors)?,
        },
        sliding_window: size("attention.sliding_window")?,
    };
    config.check()?;
    Ok(config)
}

fn head_dim(metadata: &Metadata, hidden_size: usize, num_heads: usize) -> Checked<usize> {
    let key = "llama.attention.key_length";
    let Some(head_dim) = metadata.size(key)? else {
        if num_heads == 0 || !hidden_size.is_multiple_of(num_heads) {
            let expected = format!("a divisor of the hidden size {hidden_size}");
            return Err(Problem::field(
                "metadata 'llama.attention.head_count'",
                num_heads,
                expected,
            ));
        }
        return Ok(hidden_size / num_heads);
    };
    let values = metadata
        .size("llama.attention.value_length")?
        .unwrap_or(head_dim);
    if values != head_dim {
        let expected = format!("{head_dim}, as '{key}' says");
        return Err(Problem::field(
            "metadata 'llama.attention.value_length'",
            values,
            expected,
        ));
    }
    Ok(head_dim)
}

/// Rows of the embedding; where the file has a vocabulary, it must be as long.
fn vocab_size(gguf: &Gguf) -> Checked<usize> {
    let embedding = gguf.tensors.get("token_embd.weight");
    let rows = embedding.map(|info| info.rows).ok_or_else(|| {
        Problem::field("tensor 'token_embd.weight'", "none", "the embedding")
            .fix("the file is incomplete: fetch it again")
    })?;
    let key = "tokenizer.ggml.tokens";
    match gguf.metadata.get(key) {
        Some(super::Value::Array(tokens)) if tokens.len() != rows => {
            let expected = format!("{rows}, one a row of 'token_embd.weight'");
            Err(Problem::field(
                format!("metadata '{key}'"),
                format!("{} tokens", tokens.len()),
                expected,
            ))
        }
        _ => Ok(rows),
    }
}

fn scaling(metadata: &Metadata, factors: Option<Vec<f32>>) -> Checked<RopeScaling> {
    if let Some(factors) = factors {
        return Ok(RopeScaling::Factors(factors));
    }
    let factor = metadata.number("llama.rope.scaling.factor")?.unwrap_or(1.0);
    let key = "llama.rope.scaling.type";
    match metadata.text(key)? {
        None | Some("none") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor }),
        Some(other) => {
            let problem = Problem::field(
                format!("metadata '{key}'"),
                shown(other),
                "'none' or 'linear'",
            );
            Err(problem.fix("this kind of rotary scaling is not supported"))
        }
    }
}
