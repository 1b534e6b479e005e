//! The kernels of a plan, bound: the operations that a model consists of.
//!
//! Shapes are checked here, once for each call; what is wrong with them is the caller's bug and a panic that names both
//! sides. Which instructions run was decided when the set was bound.

use crate::bind::{BindError, Bound, MatmulKernel, Selection};
use crate::cpu::generic::attention::Attention;
use crate::cpu::generic::elementwise::{RmsNorm, Rope, SiluMul};
use crate::cpu::generic::float_matmul::Finish;
use crate::cpu::panel::FloatElement;
use crate::kv_cache::{KvCache, Slot, WithElement, with_element};
use crate::matmul::Matmul;
use crate::matrix::{Matrix, PackError};
use crate::memory::Arena;
use crate::parallel::{for_rows, rows_per_chunk};
use crate::rope::RopeTable;
use crate::tensor::{Rows, RowsMut};
use crate::workers::Workers;
use crate::{Format, kv_write};
use std::sync::{Mutex, PoisonError};

/// Kernels bound to a plan: immutable, and used from any thread.
#[derive(Debug)]
pub struct KernelSet {
    bound: Bound,
    /// Where packed matrices come from: many small ones share huge pages.
    arena: Mutex<Arena>,
}

/// Sequences whose queries are answered in one call.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBatch<'a> {
    /// The sequences, in the order of their rows in `q`.
    pub sequences: &'a [AttentionSequence<'a>],
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Keys that a query sees at most, itself included; `None`: all.
    pub window: Option<u32>,
}

/// The queries of one sequence: row `i` attends to keys `0 ..= context_len - query_len + i`.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSequence<'a> {
    /// First row in `q`.
    pub query_start: usize,
    /// Rows in `q`.
    pub query_len: usize,
    /// Keys in the cache, those of these queries included.
    pub context_len: usize,
    /// Blocks of the cache, by position.
    pub block_table: &'a [u32],
}

impl KernelSet {
    /// Binds a kernel for every purpose.
    ///
    /// **Errors**: an id that this build does not have, that does something else, or whose requirement this CPU lacks.
    pub fn bind(selection: &Selection) -> Result<Self, BindError> {
        Ok(Self {
            bound: Bound::new(selection)?,
            arena: Mutex::default(),
        })
    }

    /// Packs a row-major weight matrix, `[rows = outputs][cols = inputs]`, into the layout that the kernels read.
    ///
    /// **Errors**: `bytes` is not exactly such a matrix; no kernel was bound for the format; no memory.
    pub fn pack(
        &self,
        workers: &Workers,
        format: Format,
        rows: usize,
        cols: usize,
        bytes: &[u8],
    ) -> Result<Matrix, PackError> {
        if self.matmul_kernel(format).is_none() {
            return Err(PackError::NoKernel { format });
        }
        // A panic while the arena was locked leaves it with memory that nobody uses.
        let mut arena = self.arena.lock().unwrap_or_else(PoisonError::into_inner);
        Matrix::pack(workers, &mut arena, format, (rows, cols), bytes)
    }

    /// `out = x · wᵀ + bias`.
    ///
    /// **Shapes**: `x: [m, k]`, `w: [n, k]`, `bias: [n]`, `out: [m, n]`.
    pub fn matmul(
        &self,
        workers: &Workers,
        x: Rows<'_>,
        w: &Matrix,
        bias: Option<&[f32]>,
        out: RowsMut<'_>,
    ) {
        self.multiply(workers, x, w, Finish { bias, add: false }, out);
    }

    /// `out += x · wᵀ + bias`, for a residual stream.
    ///
    /// **Shapes**: as [`KernelSet::matmul`].
    pub fn matmul_add(
        &self,
        workers: &Workers,
        x: Rows<'_>,
        w: &Matrix,
        bias: Option<&[f32]>,
        out: RowsMut<'_>,
    ) {
        self.multiply(workers, x, w, Finish { bias, add: true }, out);
    }

    fn multiply(
        &self,
        workers: &Workers,
        x: Rows<'_>,
        w: &Matrix,
        finish: Finish<'_>,
        out: RowsMut<'_>,
    ) {
        let (m, n, k) = (x.rows(), w.rows(), w.cols());
        assert!(x.cols() == k, "x: [{m}, {}] by w: [{n}, {k}]", x.cols());
        assert_shape("out", (out.rows(), out.cols()), (m, n));
        let bias = finish.bias.map_or(n, <[f32]>::len);
        assert!(bias == n, "bias: [{bias}] for w: [{n}, {k}]");
        if m == 0 || n == 0 {
            return;
        }
        let kernel = self.matmul_kernel(w.format());
        Matmul {
            kernel: kernel.expect("`pack` refuses a format without a kernel"),
            workers,
            x,
            w,
            finish,
            prefetch: self.bound.prefetch,
        }
        .run(out);
    }

    /// `out = x / sqrt(mean(x²) + eps) · weight`, row by row.
    ///
    /// **Shapes**: `x, out: [m, n]`, `weight: [n]`.
    pub fn rms_norm(
        &self,
        workers: &Workers,
        x: Rows<'_>,
        weight: &[f32],
        eps: f32,
        out: RowsMut<'_>,
    ) {
        assert_shape("out", (out.rows(), out.cols()), (x.rows(), x.cols()));
        assert!(
            weight.len() == x.cols(),
            "weight: [{}] for rows of {}",
            weight.len(),
            x.cols()
        );
        let height = rows_per_chunk(workers, x.rows(), x.cols() * 12);
        for_rows(workers, out, height, |rows, out| {
            let x = x.slice(rows);
            self.bound.elementwise.run(RmsNorm {
                x,
                weight,
                eps,
                out,
            });
        });
    }

    /// Turns every head of every row by the angles of its position.
    ///
    /// **Shapes**: `x: [m, heads * head_dim]`, `positions: [m]`.
    ///
    /// **Panics** also if a position is beyond the table.
    pub fn rope(
        &self,
        workers: &Workers,
        x: RowsMut<'_>,
        head_dim: usize,
        table: &RopeTable,
        positions: &[u32],
    ) {
        assert!(
            head_dim > 0 && x.cols().is_multiple_of(head_dim) && table.rotary_dims() <= head_dim,
            "x: [{}, {}] in heads of {head_dim}, {} of which turn",
            x.rows(),
            x.cols(),
            table.rotary_dims()
        );
        assert!(
            positions.len() == x.rows(),
            "{} positions for {} rows",
            positions.len(),
            x.rows()
        );
        let height = rows_per_chunk(workers, x.rows(), x.cols() * 8);
        for_rows(workers, x, height, |rows, x| {
            let positions = &positions[rows];
            self.bound.elementwise.run(Rope {
                x,
                head_dim,
                table,
                positions,
            });
        });
    }

    /// `out = gate · sigmoid(gate) · up`, element by element.
    ///
    /// **Shapes**: all `[m, n]`.
    pub fn silu_mul(&self, workers: &Workers, gate: Rows<'_>, up: Rows<'_>, out: RowsMut<'_>) {
        let shape = (gate.rows(), gate.cols());
        assert_shape("up", (up.rows(), up.cols()), shape);
        assert_shape("out", (out.rows(), out.cols()), shape);
        let height = rows_per_chunk(workers, gate.rows(), gate.cols() * 24);
        for_rows(workers, out, height, |rows, out| {
            let (gate, up) = (gate.slice(rows.clone()), up.slice(rows));
            self.bound.elementwise.run(SiluMul { gate, up, out });
        });
    }

    /// `out[i] = w[tokens[i]]`, dequantised from the packed panels, so that one copy serves an embedding and a tied head.
    ///
    /// **Shapes**: `w: [vocabulary, n]`, `tokens: [m]`, `out: [m, n]`.
    ///
    /// **Panics** also if a token is beyond the vocabulary.
    pub fn embed(&self, w: &Matrix, tokens: &[u32], mut out: RowsMut<'_>) {
        assert_shape("out", (out.rows(), out.cols()), (tokens.len(), w.cols()));
        for (row, &token) in tokens.iter().enumerate() {
            w.row(token as usize, out.row_mut(row));
        }
    }

    /// Puts keys and values of new tokens into the cache.
    ///
    /// **Shapes**: `k, v: [m, num_kv_heads * head_dim]`, `slots: [m]`.
    ///
    /// **Panics** also if there is no such layer or slot.
    pub fn kv_write(
        &self,
        workers: &Workers,
        cache: &mut KvCache,
        layer: usize,
        k: Rows<'_>,
        v: Rows<'_>,
        slots: &[Slot],
    ) {
        let layout = *cache.layout();
        let shape = (slots.len(), layout.num_kv_heads * layout.head_dim);
        assert_shape("k", (k.rows(), k.cols()), shape);
        assert_shape("v", (v.rows(), v.cols()), shape);
        assert!(layer < layout.layers, "layer {layer} of {}", layout.layers);
        for slot in slots {
            let within = (slot.block as usize) < layout.num_blocks
                && (slot.offset as usize) < layout.block_size;
            assert!(within, "{slot:?} in {layout:?}");
        }
        kv_write::write(self.bound.elementwise, workers, cache, layer, (k, v), slots);
    }

    /// Softmax attention of every query over the keys that its sequence has in the cache, causal.
    ///
    /// **Shapes**: `q, out: [m, num_heads * head_dim]`. Rows that belong to no sequence are left alone.
    ///
    /// **Panics** also if the sequences' rows overlap, or are not in order, or a block table is too short or names a
    /// block that the cache does not have.
    pub fn attention(
        &self,
        workers: &Workers,
        cache: &KvCache,
        layer: usize,
        q: Rows<'_>,
        batch: &AttentionBatch<'_>,
        out: RowsMut<'_>,
    ) {
        check_attention(cache, q, batch, &out);
        let run = RunAttention {
            kernels: self,
            workers,
            cache,
            layer,
            q,
            batch,
            out,
        };
        with_element(cache.layout().dtype, run);
    }

    fn matmul_kernel(&self, format: Format) -> Option<MatmulKernel> {
        let index = Format::ALL.iter().position(|f| *f == format);
        self.bound.matmul[index.expect("`ALL` has every format")]
    }
}

/// Queries of a sequence that one chunk of work answers: enough to share the loads of keys, few enough to spread.
const QUERY_BLOCK: usize = 16;

struct RunAttention<'a> {
    kernels: &'a KernelSet,
    workers: &'a Workers,
    cache: &'a KvCache,
    layer: usize,
    q: Rows<'a>,
    batch: &'a AttentionBatch<'a>,
    out: RowsMut<'a>,
}

/// One chunk of work: some queries of a sequence, and a KV head.
#[derive(Clone, Copy)]
struct Item {
    sequence: usize,
    kv_head: usize,
    query: usize,
}

impl WithElement for RunAttention<'_> {
    type Output = ();

    fn with<E: FloatElement>(self) {
        let items = self.items();
        let layer = self.cache.layer::<E>(self.layer);
        self.workers.run(items.len(), &|chunk, _| {
            let Item {
                sequence,
                kv_head,
                query,
            } = items[chunk];
            let batch = self.batch;
            let sequence = &batch.sequences[sequence];
            let heads = batch.num_heads / batch.num_kv_heads;
            let queries = query..sequence.query_len.min(query + QUERY_BLOCK);
            let rows = sequence.query_start + queries.start..sequence.query_start + queries.end;
            let width = heads * batch.head_dim;
            let cols = kv_head * width..(kv_head + 1) * width;
            // SAFETY: the items are different pairs of KV head and rows (sequences do not overlap, as was checked), so
            // their parts have no common element; `out` is not used but for parts.
            let out = unsafe { self.out.part(rows.clone(), cols.clone()) };
            let isa = match sequence.query_len {
                1 => self.kernels.bound.attention_decode,
                _ => self.kernels.bound.attention_prefill,
            };
            isa.run(Attention {
                layer,
                kv_head,
                block_table: sequence.block_table,
                position: sequence.context_len - sequence.query_len + queries.start,
                heads,
                scale: batch.scale,
                window: batch.window.map(|window| window as usize),
                q: self.q.slice(rows).columns(cols),
                out,
            });
        });
    }
}

impl RunAttention<'_> {
    /// All chunks of work. Late queries see more keys and come first, so that no long chunk is left for the end.
    fn items(&self) -> Vec<Item> {
        let mut items = Vec::new();
        for (sequence, s) in self.batch.sequences.iter().enumerate() {
            for query in (0..s.query_len).step_by(QUERY_BLOCK) {
                for kv_head in 0..self.batch.num_kv_heads {
                    items.push(Item {
                        sequence,
                        kv_head,
                        query,
                    });
                }
            }
        }
        items.reverse();
        items
    }
}

fn check_attention(cache: &KvCache, q: Rows<'_>, batch: &AttentionBatch<'_>, out: &RowsMut<'_>) {
    let layout = cache.layout();
    let width = batch.num_heads * batch.head_dim;
    assert_shape("q", (q.rows(), q.cols()), (q.rows(), width));
    assert_shape("out", (out.rows(), out.cols()), (q.rows(), width));
    assert_shape(
        "kv heads",
        (batch.num_kv_heads, batch.head_dim),
        (layout.num_kv_heads, layout.head_dim),
    );
    assert!(
        batch.num_heads.is_multiple_of(batch.num_kv_heads),
        "{} heads share {} kv heads",
        batch.num_heads,
        batch.num_kv_heads
    );
    assert!(batch.window != Some(0), "a window of no keys");
    let mut rows = 0;
    for (i, s) in batch.sequences.iter().enumerate() {
        assert!(
            s.query_start >= rows
                && s.query_len <= q.rows()
                && s.query_start <= q.rows() - s.query_len,
            "sequence {i}: {} rows from {} on, after {rows} and within {}",
            s.query_len,
            s.query_start,
            q.rows()
        );
        rows = s.query_start + s.query_len;
        assert!(
            s.query_len <= s.context_len,
            "sequence {i}: {} queries in a context of {}",
            s.query_len,
            s.context_len
        );
        let blocks = s.context_len.div_ceil(layout.block_size);
        let table = s
            .block_table
            .get(..blocks)
            .unwrap_or_else(|| panic!("sequence {i}: {} blocks of {blocks}", s.block_table.len()));
        let beyond = table.iter().find(|b| **b as usize >= layout.num_blocks);
        assert!(
            beyond.is_none(),
            "sequence {i}: block {beyond:?} of {}",
            layout.num_blocks
        );
    }
}

fn assert_shape(what: &str, found: (usize, usize), expected: (usize, usize)) {
    assert!(
        found == expected,
        "{what}: {found:?}, expected {expected:?}"
    );
}
