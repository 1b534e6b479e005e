//! What a model is, as numbers: the same for every file format.

use crate::error::{Checked, Problem};

/// A Llama-family decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `llama`: the only architecture so far. Llama 2 and 3, SmolLM2, Mistral and TinyLlama are all of it.
    pub architecture: String,
    /// The name that the file gives itself.
    pub name: Option<String>,
    /// Layers.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context that the model was made for, in tokens.
    pub context_length: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Tokens that a query looks back at most; absent means all.
    pub sliding_window: Option<usize>,
}

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
    /// i and i + dims / 2: Hugging Face files.
    HalfSplit,
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
    /// Each frequency divided by a factor of its own: `dims / 2` of them (the tensor `rope_freqs.weight` of GGUF).
    Factors(Vec<f32>),
}

/// Largest sizes that make sense: far above any model there is, far below what would make a product wrap.
mod limits {
    pub const LAYERS: usize = 4096;
    pub const WIDTH: usize = 1 << 24;
    pub const HEADS: usize = 1 << 16;
    pub const CONTEXT: usize = 1 << 30;
}

impl ModelConfig {
    /// Every size in its range, and all of them in agreement.
    pub(crate) fn check(&self) -> Checked<()> {
        let sizes = [
            ("layers", self.num_layers, limits::LAYERS),
            ("hidden size", self.hidden_size, limits::WIDTH),
            ("feed-forward size", self.intermediate_size, limits::WIDTH),
            ("attention heads", self.num_heads, limits::HEADS),
            ("key/value heads", self.num_kv_heads, limits::HEADS),
            ("head size", self.head_dim, limits::HEADS),
            ("vocabulary size", self.vocab_size, limits::WIDTH),
            ("context length", self.context_length, limits::CONTEXT),
        ];
        for (field, found, limit) in sizes {
            if !(1..=limit).contains(&found) {
                return Err(Problem::field(field, found, format!("1 to {limit}")));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let expected = format!("a divisor of the {} attention heads", self.num_heads);
            return Err(Problem::field(
                "key/value heads",
                self.num_kv_heads,
                expected,
            ));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(Problem::field(
                "norm epsilon",
                self.rms_norm_eps,
                "a number between 0 and 1, such as 1e-5",
            ));
        }
        if self.sliding_window == Some(0) {
            return Err(Problem::field(
                "sliding window",
                0,
                "at least 1 token, or none",
            ));
        }
        self.rope.check(self.head_dim)
    }
}

impl RopeConfig {
    fn check(&self, head_dim: usize) -> Checked<()> {
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
        let positive = |field: &str, found: f32| match found.is_finite() && found > 0.0 {
            true => Ok(()),
            false => Err(Problem::field(
                format!("rotary scaling: {field}"),
                found,
                "a number over 0",
            )),
        };
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
            RopeScaling::Factors(factors) => {
                if factors.len() != self.dims / 2 {
                    let expected = format!("{} elements, one a rotated pair", self.dims / 2);
                    return Err(Problem::field(
                        "rotary factors",
                        format!("{} elements", factors.len()),
                        expected,
                    ));
                }
                factors
                    .iter()
                    .try_for_each(|&factor| positive("a factor", factor))
            }
        }
    }
}
