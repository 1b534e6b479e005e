//! The rotary embeddings of `config.json`. Version 5 of transformers holds base and scaling together in
//! `rope_parameters`, by kind of layer where there are two; earlier ones hold them side by side.

use super::fields::{needed, needed_size, number, numbers, positive, size, text, truth};
use crate::config::{LongRope, RopeConfig, RopeLayout, RopeScaling, Sizes, yarn_magnitude};
use crate::error::{Checked, Problem, shown};
use serde_json::Value;

/// Everything about rotary embeddings.
pub(super) struct Ropes {
    pub main: RopeConfig,
    pub local: Option<RopeConfig>,
    pub long: Option<LongRope>,
    pub magnitude: f32,
}

pub(super) fn of(json: &Value, sizes: &Sizes) -> Checked<Ropes> {
    let parameters = json
        .get("rope_parameters")
        .filter(|value| value.is_object());
    let kind = |kind: &str| parameters.and_then(|parameters| parameters.get(kind));
    let model_type = text(json, "model_type")?;
    let gemma = model_type == Some("gemma3_text");
    let default_base = match model_type {
        Some("gemma3_text") => 1_000_000.0,
        Some("gpt_oss") => 150_000.0,
        _ => 10_000.0,
    };

    // Of layers that see everything.
    let main = kind("full_attention").or(parameters).unwrap_or(json);
    let part = match positive(main, "partial_rotary_factor")? {
        Some(part) => part,
        None => positive(json, "partial_rotary_factor")?.unwrap_or(1.0),
    };
    let scaling = match parameters {
        Some(_) => Some(main),
        None => json.get("rope_scaling").filter(|value| !value.is_null()),
    };
    let (scaling, long, magnitude) = scaled(json, scaling, sizes)?;
    let main = RopeConfig {
        base: number(main, "rope_theta")?.unwrap_or(default_base),
        // As transformers cuts it off.
        dims: (sizes.head_dim as f32 * part) as usize,
        layout: RopeLayout::HalfSplit,
        scaling,
    };
    let local = match gemma {
        false => None,
        true => Some(RopeConfig {
            base: match kind("sliding_attention") {
                Some(local) => number(local, "rope_theta")?,
                None => number(json, "rope_local_base_freq")?,
            }
            .unwrap_or(10_000.0),
            scaling: scaled(json, kind("sliding_attention"), sizes)?.0,
            ..main.clone()
        }),
    };
    Ok(Ropes {
        main,
        local,
        long,
        magnitude,
    })
}

/// The scaling that `json`, a part of `config`, asks for; other factors for long sequences; and the magnitude.
fn scaled(
    config: &Value,
    json: Option<&Value>,
    sizes: &Sizes,
) -> Checked<(RopeScaling, Option<LongRope>, f32)> {
    let plain = |scaling| (scaling, None, 1.0);
    let Some(json) = json else {
        return Ok(plain(RopeScaling::None));
    };
    let kind = match text(json, "rope_type")? {
        Some(kind) => Some(kind),
        None => text(json, "type")?,
    };
    let number = |name: &str| needed(json, name, number);
    Ok(match kind {
        None | Some("default") => plain(RopeScaling::None),
        Some("linear") => plain(RopeScaling::Linear {
            factor: number("factor")?,
        }),
        Some("llama3") => plain(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context: number("original_max_position_embeddings")?,
        }),
        Some("yarn") => {
            let (scaling, magnitude) = yarn(json, sizes)?;
            (scaling, None, magnitude)
        }
        Some("longrope" | "su") => {
            let short = needed(json, "short_factor", numbers)?;
            let original = match size(json, "original_max_position_embeddings")? {
                Some(original) => original,
                None => needed_size(config, "original_max_position_embeddings")?,
            };
            let long = LongRope {
                factors: needed(json, "long_factor", numbers)?,
                original_context: original,
            };
            let magnitude = magnitude(json, sizes.context_length, original)?;
            (RopeScaling::Factors(short), Some(long), magnitude)
        }
        Some(other) => {
            let problem = Problem::field(
                "rope_scaling: rope_type",
                shown(other),
                "'default', 'linear', 'llama3', 'yarn' or 'longrope'",
            );
            return Err(problem.fix("this kind of rotary scaling is not supported"));
        }
    })
}

/// The scaling and the magnitude of YaRN.
fn yarn(json: &Value, sizes: &Sizes) -> Checked<(RopeScaling, f32)> {
    for field in ["mscale", "mscale_all_dim"] {
        if let Some(found) = positive(json, field)? {
            let problem = Problem::field(format!("rope_scaling: {field}"), found, "none");
            return Err(problem.fix("this kind of YaRN is not supported"));
        }
    }
    let factor = needed(json, "factor", number)?;
    let original = size(json, "original_max_position_embeddings")?;
    let scaling = RopeScaling::Yarn {
        factor,
        beta_fast: positive(json, "beta_fast")?.unwrap_or(32.0),
        beta_slow: positive(json, "beta_slow")?.unwrap_or(1.0),
        original_context: original.unwrap_or(sizes.context_length) as f32,
        truncate: truth(json, "truncate")?.unwrap_or(true),
    };
    let magnitude = number(json, "attention_factor")?;
    Ok((scaling, magnitude.unwrap_or(yarn_magnitude(factor))))
}

/// `sqrt(1 + ln(factor) / ln(original context))` unless the file says otherwise (LongRoPE, arXiv 2402.13753, section 3).
fn magnitude(json: &Value, context: usize, original: usize) -> Checked<f32> {
    if let Some(magnitude) = positive(json, "attention_factor")? {
        return Ok(magnitude);
    }
    let factor = match positive(json, "factor")? {
        Some(factor) => f64::from(factor),
        None => context as f64 / original as f64,
    };
    if factor <= 1.0 {
        return Ok(1.0);
    }
    Ok((1.0 + factor.ln() / (original as f64).ln()).sqrt() as f32)
}
