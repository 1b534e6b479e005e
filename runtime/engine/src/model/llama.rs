//! The forward pass (Touvron et al., arXiv 2302.13971, section 2.2): pre-norm attention with rotary positions, then a
//! gated feed-forward part, each added to the residual stream.

use super::weights::{Layer, Linear, Weights};
use super::{Batch, OnLogits, Wanted};
use plinth_formats::ModelConfig;
use plinth_kernels::{
    AttentionBatch, AttentionSequence, KernelSet, KvCache, RopeTable, Rows, RowsMut, Workers,
};

/// Rows whose logits are computed together: enough to share the head's weights, few enough to stay small.
const LOGIT_ROWS: usize = 32;

/// Room for the activations of one step: `[max_batched_tokens, width]` each. Pages are touched when a step first needs
/// them.
pub(super) struct Buffers {
    residual: Vec<f32>,
    normed: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    product: Vec<f32>,
    /// `[LOGIT_ROWS, hidden]`.
    last: Vec<f32>,
    /// `[LOGIT_ROWS, vocabulary]`.
    logits: Vec<f32>,
}

impl Buffers {
    pub fn new(config: &ModelConfig, max_batched_tokens: usize) -> Self {
        let rows = |width: usize| vec![0.0; max_batched_tokens * width];
        let queries = config.num_heads * config.head_dim;
        let keys = config.num_kv_heads * config.head_dim;
        Self {
            residual: rows(config.hidden_size),
            normed: rows(config.hidden_size),
            query: rows(queries),
            key: rows(keys),
            value: rows(keys),
            attended: rows(queries),
            gate: rows(config.intermediate_size),
            up: rows(config.intermediate_size),
            product: rows(config.intermediate_size),
            last: vec![0.0; LOGIT_ROWS * config.hidden_size],
            logits: vec![0.0; LOGIT_ROWS * config.vocab_size],
        }
    }
}

/// What a pass reads.
pub(super) struct Pass<'a> {
    pub config: &'a ModelConfig,
    pub kernels: &'a KernelSet,
    pub workers: &'a Workers,
    pub weights: &'a Weights,
    pub rope: &'a RopeTable,
}

/// The first `m` rows of a buffer.
fn rows(buffer: &[f32], m: usize, width: usize) -> Rows<'_> {
    Rows::new(&buffer[..m * width], m, width)
}

/// The first `m` rows of a buffer, to write.
fn rows_mut(buffer: &mut [f32], m: usize, width: usize) -> RowsMut<'_> {
    RowsMut::new(&mut buffer[..m * width], m, width)
}

impl Pass<'_> {
    pub fn run(
        &self,
        buffers: &mut Buffers,
        batch: &Batch,
        cache: &mut KvCache,
        on_logits: &mut OnLogits<'_>,
    ) {
        let m = batch.tokens.len();
        let residual = rows_mut(&mut buffers.residual, m, self.config.hidden_size);
        self.kernels
            .embed(&self.weights.embedding, &batch.tokens, residual);
        let sequences = batch.sequences();
        for (n, layer) in self.weights.layers.iter().enumerate() {
            self.attention((n, layer), buffers, batch, &sequences, cache);
            self.feed_forward(layer, buffers, m);
        }
        for wanted in batch.wanted.chunks(LOGIT_ROWS) {
            self.logits(wanted, buffers);
            let logits = &mut buffers.logits[..wanted.len() * self.config.vocab_size];
            on_logits(wanted, logits, self.workers);
        }
    }

    fn attention(
        &self,
        (n, layer): (usize, &Layer),
        buffers: &mut Buffers,
        batch: &Batch,
        sequences: &[AttentionSequence<'_>],
        cache: &mut KvCache,
    ) {
        let Self {
            config,
            kernels,
            workers,
            ..
        } = *self;
        let m = batch.tokens.len();
        let hidden = config.hidden_size;
        let queries = config.num_heads * config.head_dim;
        let keys = config.num_kv_heads * config.head_dim;
        self.norm(&layer.attention_norm, buffers, m);
        let normed = rows(&buffers.normed, m, hidden);
        self.project(
            &layer.query,
            normed,
            rows_mut(&mut buffers.query, m, queries),
        );
        self.project(&layer.key, normed, rows_mut(&mut buffers.key, m, keys));
        self.project(&layer.value, normed, rows_mut(&mut buffers.value, m, keys));
        for (buffer, width) in [(&mut buffers.query, queries), (&mut buffers.key, keys)] {
            kernels.rope(
                workers,
                rows_mut(buffer, m, width),
                config.head_dim,
                self.rope,
                &batch.positions,
            );
        }
        let (key, value) = (rows(&buffers.key, m, keys), rows(&buffers.value, m, keys));
        kernels.kv_write(workers, cache, n, key, value, &batch.slots);
        let heads = AttentionBatch {
            sequences,
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            window: config.sliding_window.map(|window| window as u32),
        };
        let attended = rows_mut(&mut buffers.attended, m, queries);
        kernels.attention(
            workers,
            cache,
            n,
            rows(&buffers.query, m, queries),
            &heads,
            attended,
        );
        let residual = rows_mut(&mut buffers.residual, m, hidden);
        self.project_onto(&layer.output, rows(&buffers.attended, m, queries), residual);
    }

    fn feed_forward(&self, layer: &Layer, buffers: &mut Buffers, m: usize) {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        self.norm(&layer.feed_forward_norm, buffers, m);
        let normed = rows(&buffers.normed, m, hidden);
        self.project(&layer.gate, normed, rows_mut(&mut buffers.gate, m, inner));
        self.project(&layer.up, normed, rows_mut(&mut buffers.up, m, inner));
        let product = rows_mut(&mut buffers.product, m, inner);
        let (gate, up) = (rows(&buffers.gate, m, inner), rows(&buffers.up, m, inner));
        self.kernels.silu_mul(self.workers, gate, up, product);
        let residual = rows_mut(&mut buffers.residual, m, hidden);
        self.project_onto(&layer.down, rows(&buffers.product, m, inner), residual);
    }

    /// Logits of the rows in `wanted`, in their order.
    fn logits(&self, wanted: &[Wanted], buffers: &mut Buffers) {
        let (hidden, vocab, m) = (
            self.config.hidden_size,
            self.config.vocab_size,
            wanted.len(),
        );
        // A batch has at least as many rows as wanted ones, so that they fit where the last norm went.
        let normed = &mut buffers.normed[..m * hidden];
        for (to, wanted) in normed.chunks_exact_mut(hidden).zip(wanted) {
            to.copy_from_slice(&buffers.residual[wanted.row * hidden..][..hidden]);
        }
        let last = rows_mut(&mut buffers.last, m, hidden);
        let eps = self.config.rms_norm_eps;
        self.kernels.rms_norm(
            self.workers,
            rows(&buffers.normed, m, hidden),
            &self.weights.norm,
            eps,
            last,
        );
        let logits = rows_mut(&mut buffers.logits, m, vocab);
        self.kernels.matmul(
            self.workers,
            rows(&buffers.last, m, hidden),
            self.weights.head(),
            None,
            logits,
        );
    }

    fn norm(&self, weight: &[f32], buffers: &mut Buffers, m: usize) {
        let hidden = self.config.hidden_size;
        let (x, out) = (
            rows(&buffers.residual, m, hidden),
            rows_mut(&mut buffers.normed, m, hidden),
        );
        self.kernels
            .rms_norm(self.workers, x, weight, self.config.rms_norm_eps, out);
    }

    fn project(&self, linear: &Linear, x: Rows<'_>, out: RowsMut<'_>) {
        self.kernels
            .matmul(self.workers, x, &linear.matrix, linear.bias.as_deref(), out);
    }

    fn project_onto(&self, linear: &Linear, x: Rows<'_>, residual: RowsMut<'_>) {
        self.kernels.matmul_add(
            self.workers,
            x,
            &linear.matrix,
            linear.bias.as_deref(),
            residual,
        );
    }
}
