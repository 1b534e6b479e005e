//! The forward pass of a decoder as a program (Touvron et al., arXiv 2302.13971, section 2.2): attention with rotary
//! positions, then a gated feed-forward part, each normalised first and added to the residual stream. What else a family
//! of models does is in its configuration.

use super::rope::{self, Ropes};
use super::weights::{FeedForward, Layer, Weights};
use plinth_formats::{Activation, ModelConfig};
use plinth_kernels::{
    Attention, Buffer, Expert, Linear, Mixture, Norm, Output, Program, Weights as Projection,
};

/// The program of a decoder, and where it leaves the logits of the rows that are wanted.
pub(super) struct Decoder {
    pub program: Program,
    pub logits: Buffer,
}

impl Decoder {
    /// The program for sequences of up to `max_len` tokens.
    pub fn new(config: &ModelConfig, weights: Weights, max_len: usize) -> Self {
        let mut program = Program::new();
        let buffers = Buffers::new(&mut program, config);
        let Weights {
            embedding,
            layers,
            norm,
            head,
        } = weights;
        let head = head.unwrap_or_else(|| embedding.clone());
        program.label("embed");
        program.embed(embedding, config.embedding_scale, buffers.residual);
        let ropes = rope::tables(config, max_len);
        for (n, layer) in layers.into_iter().enumerate() {
            buffers.layer(&mut program, config, (n, layer), &ropes);
        }
        let last = program.wanted_buffer(config.hidden_size);
        let logits = program.wanted_buffer(config.vocab_size);
        program.label("gather");
        program.gather(buffers.residual, last);
        program.label("head");
        program.linear(Linear {
            from: last,
            norm: Some(normed(config, norm)),
            outputs: vec![Output::Store {
                weights: Projection {
                    matrix: head,
                    bias: None,
                },
                to: logits,
            }],
        });
        if let Some(cap) = config.final_softcap {
            program.soft_cap(logits, cap);
        }
        Self { program, logits }
    }
}

fn normed(config: &ModelConfig, weight: Vec<f32>) -> Norm {
    Norm {
        weight,
        eps: config.rms_norm_eps,
    }
}

/// Buffers that all layers use in turn.
struct Buffers {
    residual: Buffer,
    query: Buffer,
    key: Buffer,
    value: Buffer,
    attended: Buffer,
    product: Buffer,
    /// What a part of a layer adds, where a norm comes before.
    addend: Option<Buffer>,
    /// Logits of the experts.
    router: Option<Buffer>,
}

impl Buffers {
    fn new(program: &mut Program, config: &ModelConfig) -> Self {
        let queries = config.num_heads * config.head_dim;
        let keys = config.num_kv_heads * config.head_dim;
        Self {
            residual: program.buffer(config.hidden_size),
            query: program.buffer(queries),
            key: program.buffer(keys),
            value: program.buffer(keys),
            attended: program.buffer(queries),
            product: program.buffer(config.intermediate_size),
            router: (config.experts).map(|experts| program.buffer(experts.count)),
            addend: (config.post_norms).then(|| program.buffer(config.hidden_size)),
        }
    }

    fn layer(
        &self,
        program: &mut Program,
        config: &ModelConfig,
        (n, layer): (usize, Layer),
        ropes: &Ropes,
    ) {
        let store = |weights, to| Output::Store { weights, to };
        program.label("qkv");
        program.linear(Linear {
            from: self.residual,
            norm: Some(normed(config, layer.attention_norm)),
            outputs: vec![
                store(layer.query, self.query),
                store(layer.key, self.key),
                store(layer.value, self.value),
            ],
        });
        let of_layer = config.layer(n);
        program.label("attention");
        program.attention(Attention {
            layer: n,
            query: self.query,
            key: self.key,
            value: self.value,
            out: self.attended,
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            window: of_layer.window,
            soft_cap: config.attention_softcap,
            sinks: layer.sinks,
            query_norm: layer.query_norm.map(|weight| normed(config, weight)),
            key_norm: layer.key_norm.map(|weight| normed(config, weight)),
            rope: Some(ropes.of(of_layer.rope)),
        });
        let post_norm = layer.post_attention_norm;
        program.label("o");
        self.add(program, config, (self.attended, layer.output), post_norm);
        let norm = normed(config, layer.feed_forward_norm);
        let activation = match config.activation {
            Activation::Silu => plinth_kernels::Activation::Silu,
            Activation::GeluTanh => plinth_kernels::Activation::GeluTanh,
            Activation::ClampedSwiglu => plinth_kernels::Activation::ClampedSwiglu,
        };
        match layer.feed_forward {
            FeedForward::Dense(Expert { gate, up, down }) => {
                program.label("gate-up");
                program.linear(Linear {
                    from: self.residual,
                    norm: Some(norm),
                    outputs: vec![Output::Gated {
                        gate,
                        up,
                        activation,
                        to: self.product,
                    }],
                });
                let post_norm = layer.post_feed_forward_norm;
                program.label("down");
                self.add(program, config, (self.product, down), post_norm);
            }
            FeedForward::Mixture { router, experts } => {
                self.mixture(program, config, (norm, router, experts), activation);
            }
        }
    }

    fn mixture(
        &self,
        program: &mut Program,
        config: &ModelConfig,
        (norm, router, experts): (Norm, Projection, Vec<Expert>),
        activation: plinth_kernels::Activation,
    ) {
        let (Some(of), Some(logits)) = (config.experts, self.router) else {
            unreachable!("a layer has experts where its model does")
        };
        program.label("router");
        program.linear(Linear {
            from: self.residual,
            norm: Some(norm.clone()),
            outputs: vec![Output::Store {
                weights: router,
                to: logits,
            }],
        });
        program.label("mixture");
        program.mixture(Mixture {
            from: self.residual,
            norm: Some(norm),
            logits,
            experts,
            used: of.used,
            normalize: of.normalize,
            activation,
            to: self.residual,
        });
    }

    /// Adds the product of a buffer to the residual stream, normalised if there is a norm.
    fn add(
        &self,
        program: &mut Program,
        config: &ModelConfig,
        (from, weights): (Buffer, Projection),
        post_norm: Option<Vec<f32>>,
    ) {
        let to = self.residual;
        let (output, addend) = match (post_norm, self.addend) {
            (Some(weight), Some(addend)) => {
                let output = Output::Store {
                    weights,
                    to: addend,
                };
                (output, Some((addend, normed(config, weight))))
            }
            _ => (Output::Add { weights, to }, None),
        };
        program.linear(Linear {
            from,
            norm: None,
            outputs: vec![output],
        });
        if let Some((addend, norm)) = addend {
            program.label("post-norm");
            program.add_normed(addend, norm, to);
        }
    }
}
