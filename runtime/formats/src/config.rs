//! What a model is, as numbers: the same for every file format and every architecture. A forward pass follows these
//! fields and asks for no name.

mod rope;

pub use rope::{LongRope, RopeConfig, RopeKind, RopeLayout, RopeScaling};

pub(crate) use rope::yarn_magnitude;

use crate::error::{Checked, Problem};

/// A decoder: embedding, layers of attention and feed-forward part, norm, head.
///
/// A layer is `x += post(attention(norm(x)))`, then `x += post(feed_forward(norm(x)))`, where `post` is a norm if
/// [`ModelConfig::post_norms`] and nothing otherwise. Every norm is that of the root mean square (arXiv 1910.07467),
/// times its weight.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// As GGUF files name it: one of [`ARCHITECTURES`]. For people and for file formats; all that follows from it is in
    /// the other fields.
    pub architecture: String,
    /// The name that the file gives itself.
    pub name: Option<String>,
    /// Layers.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward part where it is one; of no meaning where there are [`ModelConfig::experts`].
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
    /// That of the layers which look back no further than the window, where it is another one.
    pub local_rope: Option<RopeConfig>,
    /// Other factors of `rope`, where sequences can be longer than those of the first training.
    pub long_rope: Option<LongRope>,
    /// The rotated elements of queries and keys are multiplied by this: 1, but for LongRoPE and YaRN.
    pub rope_magnitude: f32,
    /// Tokens that a query sees in layers of [`Reach::Window`], itself among them. Present where there is such a layer.
    pub sliding_window: Option<usize>,
    /// How far each layer looks back, from the first on: `num_layers` of them.
    pub reach: Vec<Reach>,
    /// Each head of queries and keys is normed before it is rotated.
    pub qk_norm: bool,
    /// Attention and feed-forward part end with a norm of their own.
    pub post_norms: bool,
    /// Between the two halves of the feed-forward part: `down(activation(gate(x)) * up(x))`.
    pub activation: Activation,
    /// Embedded tokens are multiplied by this: 1, or Gemma's square root of the hidden size. It is not rounded, as in
    /// llama.cpp and in transformers when it computes in f32; in bf16 the latter rounds it to bf16.
    pub embedding_scale: f32,
    /// Products of query and key are multiplied by this: 1 over the root of the head size, unless the model says
    /// otherwise.
    pub attention_scale: f32,
    /// Every query head has a score of its own beside those of the keys, which takes its share of the softmax and adds
    /// no value (`blk.N.attn_sinks.weight`).
    pub attention_sinks: bool,
    /// Scaled products x of query and key become `cap * tanh(x / cap)`, before the mask.
    pub attention_softcap: Option<f32>,
    /// Logits x become `cap * tanh(x / cap)`.
    pub final_softcap: Option<f32>,
    /// The feed-forward part of every layer is a mixture of these.
    pub experts: Option<ExpertsConfig>,
}

/// The architectures that are read, as GGUF files name them. Llama 2 and 3, SmolLM2, TinyLlama, Mistral and Mixtral are
/// all `llama`.
pub const ARCHITECTURES: [&str; 8] = [
    "llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "gpt-oss",
];

/// The sizes of a decoder; see [`ModelConfig`] for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the fields of ModelConfig, where they are documented"
)]
pub struct Sizes {
    pub num_layers: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub context_length: usize,
}

/// How far the queries of a layer look back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// To the beginning.
    All,
    /// As far as `ModelConfig::sliding_window` says.
    Window,
}

/// The attention of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// Tokens that a query sees, itself among them; none means all up to itself.
    pub window: Option<usize>,
    /// Its rotary embedding: [`ModelConfig::rope_of`] has it.
    pub rope: RopeKind,
}

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))` (arXiv 1606.08415).
    GeluTanh,
    /// `g * sigmoid(1.702 * g)` with `g = min(x, 7)`, and the other factor y counts as `clamp(y, -7, 7) + 1`: gpt-oss.
    ClampedSwiglu,
}

/// A mixture of experts: each token goes through the few that a router ranks highest.
///
/// The router's products `ffn_gate_inp · x`, one an expert, go through a softmax over all experts; the outputs of the
/// `used` highest are added, each times its probability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// How many there are.
    pub count: usize,
    /// How many a token goes through.
    pub used: usize,
    /// Width of the feed-forward part of one.
    pub intermediate_size: usize,
    /// The probabilities of those that are used are divided by their sum.
    pub normalize: bool,
    /// The router and every matrix of an expert have biases.
    pub biases: bool,
}

/// Largest sizes that make sense: far above any model there is, far below what would make a product wrap.
mod limits {
    pub const LAYERS: usize = 4096;
    pub const WIDTH: usize = 1 << 24;
    pub const HEADS: usize = 1 << 16;
    pub const CONTEXT: usize = 1 << 30;
    pub const EXPERTS: usize = 1 << 16;
}

impl ModelConfig {
    /// A model of the Llama family: every layer sees everything, and nothing is special.
    pub fn llama(sizes: Sizes, rms_norm_eps: f32, rope: RopeConfig) -> Self {
        let Sizes {
            num_layers,
            hidden_size,
            intermediate_size,
            num_heads,
            num_kv_heads,
            head_dim,
            vocab_size,
            context_length,
        } = sizes;
        Self {
            architecture: "llama".to_owned(),
            name: None,
            num_layers,
            hidden_size,
            intermediate_size,
            num_heads,
            num_kv_heads,
            head_dim,
            vocab_size,
            context_length,
            rms_norm_eps,
            rope,
            local_rope: None,
            long_rope: None,
            rope_magnitude: 1.0,
            sliding_window: None,
            // A broken file may announce any number of layers, which `check` has not seen yet.
            reach: vec![Reach::All; num_layers.min(limits::LAYERS)],
            qk_norm: false,
            post_norms: false,
            activation: Activation::Silu,
            embedding_scale: 1.0,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            attention_sinks: false,
            attention_softcap: None,
            final_softcap: None,
            experts: None,
        }
    }

    /// The same with this window in every layer, if there is one.
    pub(crate) fn with_window(self, window: Option<usize>) -> Self {
        let reach = match window {
            Some(_) => Reach::Window,
            None => Reach::All,
        };
        Self {
            sliding_window: window,
            reach: vec![reach; self.reach.len()],
            ..self
        }
    }

    /// The same with what every Gemma 2 and 3 has, whatever its size.
    pub(crate) fn into_gemma(self) -> Self {
        Self {
            qk_norm: self.architecture == "gemma3",
            post_norms: true,
            activation: Activation::GeluTanh,
            embedding_scale: (self.hidden_size as f32).sqrt(),
            ..self
        }
    }

    /// The same with what every gpt-oss has, whatever its size.
    pub(crate) fn into_gpt_oss(self) -> Self {
        Self {
            attention_sinks: true,
            activation: Activation::ClampedSwiglu,
            ..self
        }
    }

    /// Layers of which the last of every `period` sees everything, and the others what the window allows.
    pub(crate) fn every_nth_sees_all(period: usize, num_layers: usize) -> Vec<Reach> {
        let sees_all = |layer: usize| period > 0 && (layer + 1).is_multiple_of(period);
        (0..num_layers.min(limits::LAYERS))
            .map(|layer| {
                if sees_all(layer) {
                    Reach::All
                } else {
                    Reach::Window
                }
            })
            .collect()
    }

    /// The attention of a layer.
    ///
    /// **Panics** if there is no such layer.
    pub fn layer(&self, layer: usize) -> LayerConfig {
        match self.reach[layer] {
            Reach::All => LayerConfig {
                window: None,
                rope: RopeKind::Main,
            },
            Reach::Window => LayerConfig {
                window: self.sliding_window,
                rope: match self.local_rope {
                    Some(_) => RopeKind::Local,
                    None => RopeKind::Main,
                },
            },
        }
    }

    /// The rotary embedding of this kind.
    pub fn rope_of(&self, kind: RopeKind) -> &RopeConfig {
        match kind {
            RopeKind::Main => &self.rope,
            RopeKind::Local => self.local_rope.as_ref().unwrap_or(&self.rope),
        }
    }

    /// Every size in its range, and all of them in agreement.
    pub(crate) fn check(&self) -> Checked<()> {
        self.check_sizes()?;
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(Problem::field(
                "norm epsilon",
                self.rms_norm_eps,
                "a number between 0 and 1, such as 1e-5",
            ));
        }
        self.check_factors()?;
        self.check_reach()?;
        self.rope.check(self.head_dim)?;
        if let Some(rope) = &self.local_rope {
            rope.check(self.head_dim)?;
        }
        if let Some(long) = &self.long_rope {
            long.check(self.rope.dims)?;
        }
        self.experts.map_or(Ok(()), |experts| experts.check())
    }

    fn check_sizes(&self) -> Checked<()> {
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
            in_range(field, found, limit)?;
        }
        if self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Ok(());
        }
        let expected = format!("a divisor of the {} attention heads", self.num_heads);
        Err(Problem::field(
            "key/value heads",
            self.num_kv_heads,
            expected,
        ))
    }

    fn check_factors(&self) -> Checked<()> {
        let factors = [
            ("embedding scale", Some(self.embedding_scale)),
            ("attention scale", Some(self.attention_scale)),
            ("rotary magnitude", Some(self.rope_magnitude)),
            ("attention soft cap", self.attention_softcap),
            ("logit soft cap", self.final_softcap),
        ];
        for (field, factor) in factors {
            if let Some(found) = factor.filter(|factor| !(factor.is_finite() && *factor > 0.0)) {
                return Err(Problem::field(field, found, "a number over 0"));
            }
        }
        Ok(())
    }

    fn check_reach(&self) -> Checked<()> {
        if self.sliding_window == Some(0) {
            let problem = Problem::field("sliding window", 0, "at least 1 token, or none");
            return Err(problem);
        }
        if self.reach.len() != self.num_layers {
            let expected = format!("{}, one a layer", self.num_layers);
            let found = format!("{} of them", self.reach.len());
            return Err(Problem::field("kinds of attention", found, expected));
        }
        let windows = self.reach.contains(&Reach::Window);
        match self.sliding_window {
            None if windows => {
                let expected = "a number of tokens, for the layers that look back no further";
                Err(Problem::field("sliding window", "none", expected))
            }
            Some(window) if !windows => {
                let expected = "none, since every layer sees all tokens";
                Err(Problem::field("sliding window", window, expected))
            }
            _ => Ok(()),
        }
    }
}

impl ExpertsConfig {
    fn check(&self) -> Checked<()> {
        in_range("experts", self.count, limits::EXPERTS)?;
        in_range("experts used a token", self.used, self.count)?;
        in_range(
            "feed-forward size of an expert",
            self.intermediate_size,
            limits::WIDTH,
        )
    }
}

fn in_range(field: &str, found: usize, limit: usize) -> Checked<()> {
    if (1..=limit).contains(&found) {
        return Ok(());
    }
    Err(Problem::field(field, found, format!("1 to {limit}")))
}
