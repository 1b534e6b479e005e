//! The configuration of a model out of GGUF metadata.
//!
//! **Source** of the keys, of their defaults and of what an architecture implies without saying it: llama.cpp, release
//! 11434, `src/models/*.cpp`, `src/llama-model.cpp` and `conversion/*.py`.

mod rope;

pub(crate) use rope::{Factors, rope_layout, yarn_is_truncated};

use super::reader::Gguf;
use super::value::Metadata;
use crate::config::{
    ARCHITECTURES, ExpertsConfig, ModelConfig, Reach, RopeConfig, RopeScaling, Sizes,
};
use crate::error::{Checked, Problem, shown};

/// Reads and checks it.
pub(crate) fn model_config(gguf: &Gguf, factors: Factors) -> Checked<ModelConfig> {
    let metadata = &gguf.metadata;
    let key = "general.architecture";
    let architecture = metadata.required(key, metadata.text(key), "the model's architecture")?;
    if !ARCHITECTURES.contains(&architecture) {
        let expected = format!("one of {}", ARCHITECTURES.join(", "));
        let problem = Problem::field(format!("metadata '{key}'"), shown(architecture), expected);
        return Err(problem.fix("this architecture is not supported"));
    }
    let keys = Keys {
        metadata,
        architecture,
    };
    let hidden_size = keys.needed("embedding_length")?;
    let num_heads = keys.needed("attention.head_count")?;
    let head_dim = head_dim(&keys, hidden_size, num_heads)?;
    let sizes = Sizes {
        num_layers: keys.needed("block_count")?,
        hidden_size,
        intermediate_size: keys.needed("feed_forward_length")?,
        num_heads,
        num_kv_heads: keys.size("attention.head_count_kv")?.unwrap_or(num_heads),
        head_dim,
        vocab_size: vocab_size(gguf)?,
        context_length: keys.needed("context_length")?,
    };
    let epsilon = "attention.layer_norm_rms_epsilon";
    let rms_norm_eps = metadata.required(
        &keys.name(epsilon),
        keys.number(epsilon),
        "a number such as 1e-5",
    )?;
    let (rope, long_rope) = rope::of(&keys, factors, head_dim)?;
    let window = keys.size("attention.sliding_window")?.filter(|&n| n > 0);
    let plain = ModelConfig {
        architecture: architecture.to_owned(),
        name: metadata.text("general.name")?.map(str::to_owned),
        long_rope,
        rope_magnitude: rope::magnitude(&keys, &rope.scaling)?,
        experts: experts(&keys, &sizes)?,
        attention_softcap: keys.softcap("attn_logit_softcapping")?,
        final_softcap: keys.softcap("final_logit_softcapping")?,
        ..ModelConfig::llama(sizes, rms_norm_eps, rope)
    };
    let config = match architecture {
        "gemma2" => gemma2(&keys, plain, window.unwrap_or(4096))?,
        "gemma3" => gemma3(&keys, plain, window)?,
        "gpt-oss" => gpt_oss(&keys, plain, window)?,
        _ => ModelConfig {
            qk_norm: ["qwen3", "qwen3moe"].contains(&architecture),
            ..plain.with_window(window)
        },
    };
    config.check()?;
    Ok(config)
}

/// The scale of attention, which no key says.
pub(crate) fn attention_scale(config: &ModelConfig) -> f32 {
    // Of Gemma's published sizes, the largest of either generation, told by their layers, have another scale than the
    // size of a head gives (`query_pre_attn_scalar` 144 and 168 for heads of 128).
    let width = match (config.architecture.as_str(), config.num_layers) {
        ("gemma2", 46) | ("gemma3", 62) => config.hidden_size / config.num_heads.max(1),
        _ => config.head_dim,
    };
    1.0 / (width as f32).sqrt()
}

/// What Gemma 2 does otherwise than a Llama: every other layer has a window, and soft caps are there if not denied.
fn gemma2(keys: &Keys<'_>, plain: ModelConfig, window: usize) -> Checked<ModelConfig> {
    let or = |cap: Option<f32>, key: &str, default| match keys.number(key)? {
        None => Ok(Some(default)),
        Some(_) => Ok(cap),
    };
    Ok(ModelConfig {
        sliding_window: Some(window),
        reach: pattern(keys, plain.num_layers, 2)?,
        attention_scale: attention_scale(&plain),
        attention_softcap: or(plain.attention_softcap, "attn_logit_softcapping", 50.0)?,
        final_softcap: or(plain.final_softcap, "final_logit_softcapping", 30.0)?,
        ..plain.into_gemma()
    })
}

/// What Gemma 3 does otherwise than a Llama, and where the keys leave it open.
fn gemma3(keys: &Keys<'_>, plain: ModelConfig, window: Option<usize>) -> Checked<ModelConfig> {
    let local_rope = RopeConfig {
        base: keys.number("rope.freq_base_swa")?.unwrap_or(10_000.0),
        scaling: RopeScaling::None,
        ..plain.rope.clone()
    };
    Ok(ModelConfig {
        local_rope: window.map(|_| local_rope),
        reach: match window {
            Some(_) => pattern(keys, plain.num_layers, 6)?,
            None => plain.reach.clone(),
        },
        sliding_window: window,
        attention_scale: attention_scale(&plain),
        ..plain.into_gemma()
    })
}

/// What gpt-oss does otherwise than a Llama: sinks, and a window in every other layer.
fn gpt_oss(keys: &Keys<'_>, plain: ModelConfig, window: Option<usize>) -> Checked<ModelConfig> {
    Ok(ModelConfig {
        sliding_window: window,
        reach: pattern(keys, plain.num_layers, 2)?,
        ..plain.into_gpt_oss()
    })
}

/// Which layers look back no further than the window: a list, or a period whose last layer sees everything. `period` is
/// that of the architecture.
fn pattern(keys: &Keys<'_>, num_layers: usize, period: usize) -> Checked<Vec<Reach>> {
    let key = keys.name("attention.sliding_window_pattern");
    let listed = keys.metadata.truths(&key)?;
    let reach = |window| if window { Reach::Window } else { Reach::All };
    if let Some(windows) = listed {
        return Ok(windows.into_iter().map(reach).collect());
    }
    let period = keys
        .size("attention.sliding_window_pattern")?
        .unwrap_or(period);
    Ok(ModelConfig::every_nth_sees_all(period, num_layers))
}

fn experts(keys: &Keys<'_>, sizes: &Sizes) -> Checked<Option<ExpertsConfig>> {
    let count = keys.size("expert_count")?.unwrap_or(0);
    if count == 0 && !["qwen3moe", "gpt-oss"].contains(&keys.architecture) {
        return Ok(None);
    }
    if !["llama", "qwen3moe", "gpt-oss"].contains(&keys.architecture) {
        let found = format!("{count}");
        let problem = Problem::field(
            format!("metadata '{}'", keys.name("expert_count")),
            found,
            "0",
        );
        return Err(problem.fix("mixtures of experts of this architecture are not supported"));
    }
    Ok(Some(ExpertsConfig {
        count,
        used: keys.needed("expert_used_count")?,
        intermediate_size: keys
            .size("expert_feed_forward_length")?
            .unwrap_or(sizes.intermediate_size),
        // All of them do, and the file does not say it.
        normalize: true,
        biases: keys.architecture == "gpt-oss",
    }))
}

/// The keys of an architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn size(&self, key: &str) -> Checked<Option<usize>> {
        self.metadata.size(&self.name(key))
    }

    fn needed(&self, key: &str) -> Checked<usize> {
        self.metadata
            .required(&self.name(key), self.size(key), "a size")
    }

    fn number(&self, key: &str) -> Checked<Option<f32>> {
        self.metadata.number(&self.name(key))
    }

    /// A soft cap, where 0 says that there is none.
    fn softcap(&self, key: &str) -> Checked<Option<f32>> {
        Ok(self.number(key)?.filter(|&cap| cap != 0.0))
    }
}

fn head_dim(keys: &Keys<'_>, hidden_size: usize, num_heads: usize) -> Checked<usize> {
    let Some(head_dim) = keys.size("attention.key_length")? else {
        if num_heads == 0 || !hidden_size.is_multiple_of(num_heads) {
            let expected = format!("a divisor of the hidden size {hidden_size}");
            let field = format!("metadata '{}'", keys.name("attention.head_count"));
            return Err(Problem::field(field, num_heads, expected));
        }
        return Ok(hidden_size / num_heads);
    };
    let values = keys.size("attention.value_length")?.unwrap_or(head_dim);
    if values != head_dim {
        let expected = format!(
            "{head_dim}, as '{}' says",
            keys.name("attention.key_length")
        );
        let field = format!("metadata '{}'", keys.name("attention.value_length"));
        return Err(Problem::field(field, values, expected));
    }
    Ok(head_dim)
}

/// Rows of the embedding; where the file has a vocabulary, it must be as long.
fn vocab_size(gguf: &Gguf) -> Checked<usize> {
    let embedding = gguf.tensor("token_embd.weight");
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
