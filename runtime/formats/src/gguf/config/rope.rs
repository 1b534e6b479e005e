//! The rotary embedding out of GGUF metadata and tensors of factors.

use super::Keys;
use crate::config::{LongRope, RopeConfig, RopeLayout, RopeScaling, yarn_magnitude};
use crate::error::{Checked, Problem, shown};

/// Contents of the tensors that are a part of the configuration, where the file has them.
#[derive(Default)]
pub(crate) struct Factors {
    /// `rope_freqs.weight`.
    pub plain: Option<Vec<f32>>,
    /// `rope_factors_short.weight`.
    pub short: Option<Vec<f32>>,
    /// `rope_factors_long.weight`.
    pub long: Option<Vec<f32>>,
}

/// The layout that the rotated pairs of an architecture have in a GGUF file: rows of queries and keys were permuted for
/// `llama` alone (`llama_model_rope_type` in llama.cpp).
pub(crate) fn rope_layout(architecture: &str) -> RopeLayout {
    match architecture {
        "llama" => RopeLayout::Interleaved,
        _ => RopeLayout::HalfSplit,
    }
}

/// The rotary embedding, with the other factors that long sequences have.
pub(super) fn of(
    keys: &Keys<'_>,
    factors: Factors,
    head_dim: usize,
) -> Checked<(RopeConfig, Option<LongRope>)> {
    let (scaling, long) = match (factors.short, factors.long, factors.plain) {
        (Some(short), Some(long), _) => (RopeScaling::Factors(short), Some(long)),
        (None, None, Some(plain)) => (RopeScaling::Factors(plain), None),
        (None, None, None) => (scaling(keys)?, None),
        (short, ..) => {
            let (there, missing) = match short {
                Some(_) => ("short", "long"),
                None => ("long", "short"),
            };
            let field = format!("tensor 'rope_factors_{missing}.weight'");
            let expected = format!("the counterpart of 'rope_factors_{there}.weight'");
            return Err(Problem::field(field, "none", expected)
                .fix("the file is incomplete: fetch it again"));
        }
    };
    let rope = RopeConfig {
        base: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
        dims: keys.size("rope.dimension_count")?.unwrap_or(head_dim),
        layout: rope_layout(keys.architecture),
        scaling,
    };
    let long_rope = match long {
        None => None,
        Some(factors) => Some(LongRope {
            factors,
            original_context: keys.needed("rope.scaling.original_context_length")?,
        }),
    };
    Ok((rope, long_rope))
}

fn scaling(keys: &Keys<'_>) -> Checked<RopeScaling> {
    let factor = keys.number("rope.scaling.factor")?.unwrap_or(1.0);
    let key = keys.name("rope.scaling.type");
    match keys.metadata.text(&key)? {
        None | Some("none") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor }),
        Some("yarn") => yarn(keys, factor),
        Some("longrope") => {
            let field = "tensors 'rope_factors_short.weight' and 'rope_factors_long.weight'";
            let problem = Problem::field(field, "none", "the factors that 'longrope' stands for");
            Err(problem.fix("the file is incomplete: fetch it again"))
        }
        Some(other) => {
            let problem = Problem::field(
                format!("metadata '{key}'"),
                shown(other),
                "'none', 'linear', 'yarn' or 'longrope'",
            );
            Err(problem.fix("this kind of rotary scaling is not supported"))
        }
    }
}

fn yarn(keys: &Keys<'_>, factor: f32) -> Checked<RopeScaling> {
    // Negative: as usual. Anything but the whole blend, and DeepSeek's magnitude, belong to models that are not read.
    for (key, usual) in [("yarn_ext_factor", 1.0), ("yarn_log_multiplier", 0.0)] {
        let key = format!("rope.scaling.{key}");
        let found = keys.number(&key)?.filter(|&found| found >= 0.0);
        if let Some(found) = found.filter(|&found| found != usual) {
            let field = format!("metadata '{}'", keys.name(&key));
            let problem = Problem::field(field, found, usual);
            return Err(problem.fix("this kind of YaRN is not supported"));
        }
    }
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: keys.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        original_context: keys.needed("rope.scaling.original_context_length")? as f32,
        truncate: yarn_is_truncated(keys.architecture),
    })
}

/// Does YaRN end its blend at whole pairs? No key says it. gpt-oss was trained without; llama.cpp rounds there too, so
/// that its results for this model differ a little.
pub(crate) fn yarn_is_truncated(architecture: &str) -> bool {
    architecture != "gpt-oss"
}

/// What the rotated elements are multiplied by.
pub(super) fn magnitude(keys: &Keys<'_>, scaling: &RopeScaling) -> Checked<f32> {
    let found = match scaling {
        // The converter writes what transformers calls `attention_factor`, if it is there.
        RopeScaling::Yarn { factor, .. } => {
            let said = keys.number("rope.scaling.yarn_attn_factor")?;
            said.unwrap_or(yarn_magnitude(*factor))
        }
        _ => 1.0,
    };
    Ok(found * keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0))
}
