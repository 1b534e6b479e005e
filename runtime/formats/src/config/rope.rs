//! Rotary position embedding, as numbers.

use crate::error::{Checked, Problem};

/// Rotary position embedding (Su et al., arXiv 2104.09864, section 3.2).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies: 10,000 or more.
    pub base: f32,
    /// Elements of a head that are rotated, from the first.
    pub dims: usize,
    /// Which elements form a pair.
    pub layout: RopeLayout,
    /// How the frequencies are changed for long contexts.
    pub scaling: RopeScaling,
}

/// Which two elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// 2i and 2i + 1: GGUF files of the Llama family, whose query and key rows were permuted for it.
    Interleaved,
    /// i and i + dims / 2: Hugging Face files, and GGUF files of every other architecture.
    HalfSplit,
}

/// Which of the rotary embeddings of a model a layer uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeKind {
    /// `ModelConfig::rope`.
    Main,
    /// `ModelConfig::local_rope`.
    Local,
}

/// The second set of factors of a model whose frequencies depend on how long sequences get (LongRoPE, arXiv 2402.13753).
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// Each frequency is divided by a factor of its own, in place of those in `ModelConfig::rope`: `dims / 2` of them.
    pub factors: Vec<f32>,
    /// They hold where a sequence can be longer than this, in tokens.
    pub original_context: usize,
}

/// How the rotary frequencies are changed for contexts longer than those of the first training.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor` (position interpolation, arXiv 2306.15595).
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between blended (Llama 3.1).
    Llama3 {
        /// For low frequencies.
        factor: f32,
        /// Wavelengths over `original_context / low_freq_factor` are low frequencies.
        low_freq_factor: f32,
        /// Wavelengths under `original_context / high_freq_factor` are high frequencies.
        high_freq_factor: f32,
        /// Context of the first training, in tokens.
        original_context: f32,
    },
    /// As `Llama3`, blended over pairs instead of wavelengths (YaRN, arXiv 2309.00071, section 3.2).
    Yarn {
        /// For low frequencies.
        factor: f32,
        /// Pairs that turn this often or more within `original_context` are kept.
        beta_fast: f32,
        /// Pairs that turn this often or less there are divided.
        beta_slow: f32,
        /// Context of the first training, in tokens.
        original_context: f32,
        /// The two ends of the blend are moved apart to whole pairs.
        truncate: bool,
    },
    /// Each frequency divided by a factor of its own: `dims / 2` of them (the tensor `rope_freqs.weight` of GGUF).
    Factors(Vec<f32>),
}

impl RopeConfig {
    pub(super) fn check(&self, head_dim: usize) -> Checked<()> {
        if !(self.base.is_finite() && self.base > 1.0) {
            return Err(Problem::field(
                "rotary base",
                self.base,
                "a number over 1, such as 10000",
            ));
        }
        if self.dims == 0 || self.dims > head_dim || !self.dims.is_multiple_of(2) {
            let expected = format!("an even number from 2 to the head size {head_dim}");
            return Err(Problem::field("rotary dimensions", self.dims, expected));
        }
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", *factor),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("original_max_position_embeddings", *original_context)?;
                if high_freq_factor > low_freq_factor {
                    return Ok(());
                }
                let expected = format!("more than low_freq_factor, which is {low_freq_factor}");
                Err(Problem::field(
                    "rotary scaling: high_freq_factor",
                    high_freq_factor,
                    expected,
                ))
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_context,
                ..
            } => {
                positive("factor", *factor)?;
                positive("beta_slow", *beta_slow)?;
                positive("original_max_position_embeddings", *original_context)?;
                if beta_fast > beta_slow {
                    return Ok(());
                }
                let expected = format!("more than beta_slow, which is {beta_slow}");
                Err(Problem::field(
                    "rotary scaling: beta_fast",
                    beta_fast,
                    expected,
                ))
            }
            RopeScaling::Factors(factors) => check_factors(factors, self.dims),
        }
    }
}

/// The magnitude that YaRN has if nothing else is said (arXiv 2309.00071, section 3.4).
pub(crate) fn yarn_magnitude(factor: f32) -> f32 {
    if factor <= 1.0 {
        return 1.0;
    }
    (0.1 * f64::from(factor).ln() + 1.0) as f32
}

impl LongRope {
    pub(super) fn check(&self, dims: usize) -> Checked<()> {
        if self.original_context == 0 {
            return Err(Problem::field(
                "context of the first training",
                0,
                "at least 1 token",
            ));
        }
        check_factors(&self.factors, dims)
    }
}

fn check_factors(factors: &[f32], dims: usize) -> Checked<()> {
    if factors.len() != dims / 2 {
        let expected = format!("{} elements, one a rotated pair", dims / 2);
        let found = format!("{} elements", factors.len());
        return Err(Problem::field("rotary factors", found, expected));
    }
    factors
        .iter()
        .try_for_each(|&factor| positive("a factor", factor))
}

fn positive(field: &str, found: f32) -> Checked<()> {
    if found.is_finite() && found > 0.0 {
        return Ok(());
    }
    Err(Problem::field(
        format!("rotary scaling: {field}"),
        found,
        "a number over 0",
    ))
}
