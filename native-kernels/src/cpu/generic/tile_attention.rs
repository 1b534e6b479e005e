//! Attention of many queries in tiles of `bf16`: keys and values of a sequence are brought into tiles once, for all
//! queries of the step.
//!
//! ```text
//! for each 32 queries (rows and heads of one KV head), m = -inf, l[16] = 0, o = 0
//!     for each run of 256 keys that one of them sees:
//!         s[32][256] = q · k, scaled by log2(e)       tiles
//!         m' = max(s) if that is more than m + 8, else m
//!         p = 2^(s - m')                              rounded to bf16 for the products, summed as f32
//!         l = l * 2^(m - m') + p                      one lane a key modulo 16, summed at the end
//!         o = o * 2^(m - m') + p · v                  tiles
//! out = o / (sum(l) + 2^(sink - m))               the last term only of heads with a sink
//! ```
//! **Source**: as `attention`. **Error**: queries, keys, values and weights are each rounded to `bf16`, so a score is
//! within `2^-6.99` of the sum of magnitudes it consists of, and the result within `2^-6.94` of the largest value
//! more: the powers add `2^-13`, above and below the line.

use super::attention::{SLACK, mask, sink_weight, soft_cap};
use super::exp::{LOG2_E, coarse_exp2, exp2};
use super::tile_matmul::{
    PairKernel, PairUnit, ROW_TILE, TileKernel, TileSums, TileUnit, TileWords,
};
use crate::cpu::vector::{LANES, Lanes};
use crate::kv_cache::{KvElement, KvLayer};
use crate::tensor::{Rows, RowsMut};
use half::bf16;
use std::ops::Range;

/// Keys that are worked on together.
pub(crate) const RUN: usize = 256;

/// Tiles of 32 keys in a run.
const STEPS: usize = RUN / 32;

/// Queries that are worked on together.
const QUERIES: usize = 2 * ROW_TILE;

/// How keys and values of a KV head lie in tiles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileLayout {
    pub head_dim: usize,
    /// Runs of [`RUN`] keys.
    pub runs: usize,
}

impl TileLayout {
    /// Tiles of 32 dimensions.
    fn dims(&self) -> usize {
        self.head_dim.div_ceil(32)
    }

    /// Tiles of keys in a run, `[RUN / 16][dims]`.
    pub fn key_tiles(&self) -> usize {
        RUN / LANES * self.dims()
    }

    /// Tiles of values in a run, `[2 * dims][RUN / 32]`.
    pub fn value_tiles(&self) -> usize {
        2 * self.dims() * STEPS
    }

    /// Tiles of a run: keys, then values.
    pub fn run_tiles(&self) -> usize {
        self.key_tiles() + self.value_tiles()
    }
}

/// Brings one run of keys and values into tiles.
pub(crate) struct PackRun<'a, E> {
    pub layer: KvLayer<'a, E>,
    pub kv_head: usize,
    /// Blocks of the sequence, by position.
    pub block_table: &'a [u32],
    /// Number of the run among those of the sequence.
    pub run: usize,
    /// Keys of the sequence; what comes after them is zero.
    pub context_len: usize,
    /// [`TileLayout::run_tiles`].
    pub to: &'a mut [TileWords],
}

impl<E: KvElement> PairKernel for PackRun<'_, E> {
    #[inline(always)]
    fn run<U: PairUnit>(self, unit: U) {
        let lanes = unit.lanes();
        let zero = lanes.splat(0.0);
        let head_dim = self.layer.head_dim();
        let layout = TileLayout { head_dim, runs: 1 };
        let (dims, vectors) = (layout.dims(), head_dim.div_ceil(LANES));
        let (keys, values) = self.to.split_at_mut(layout.key_tiles());
        let per_block = self.layer.tiles_per_block();
        for (t, keys) in keys.chunks_exact_mut(dims).enumerate() {
            let tile = self.run * (RUN / LANES) + t;
            let seen = self.context_len.saturating_sub(tile * LANES).min(LANES);
            if seen == 0 {
                keys.fill(TileWords::ZERO);
                for c in 0..2 * dims {
                    let to = &mut values[c * STEPS + t / 2].0[t % 2 * 8..][..8];
                    to.fill([bf16::ZERO; 2 * LANES]);
                }
                continue;
            }
            let (block, in_block) = (self.block_table[tile / per_block], tile % per_block);
            let from = self.layer.keys(block, self.kv_head, in_block);
            let scales = lanes.load(from.scales.unwrap_or(&[1.0; LANES]));
            for (d, to) in keys.iter_mut().enumerate() {
                for (p, to) in to.0.iter_mut().enumerate() {
                    let load = |i: usize| match from.rows.get(i) {
                        Some(row) if from.scales.is_none() => E::load(lanes, row),
                        Some(row) => lanes.mul(E::load(lanes, row), scales),
                        None => zero,
                    };
                    let first = 32 * d + 2 * p;
                    unit.store_pairs(load(first), load(first + 1), to);
                }
            }
            let from = self.layer.values(block, self.kv_head, in_block);
            for c in 0..2 * dims {
                let to = &mut values[c * STEPS + t / 2].0[t % 2 * 8..][..8];
                for (p, to) in to.iter_mut().enumerate() {
                    let load = |token: usize| {
                        if c >= vectors || token >= seen {
                            return zero;
                        }
                        let value = E::load(lanes, &from.rows[token * vectors + c]);
                        match from.scales {
                            Some(scales) => lanes.mul(value, lanes.splat(scales[token])),
                            None => value,
                        }
                    };
                    unit.store_pairs(load(2 * p), load(2 * p + 1), to);
                }
            }
        }
    }
}

/// Memory of one worker.
pub(crate) struct AttentionScratch {
    q: Vec<TileWords>,
    scores: Box<[[[TileSums; 2]; 2]; STEPS]>,
    /// `[2][STEPS]`.
    weights: Box<[[TileWords; STEPS]; 2]>,
    products: Box<[[TileSums; 2]; 2]>,
    /// `[2 * dims][QUERIES]` vectors.
    out: Vec<[[f32; LANES]; QUERIES]>,
}

impl Default for AttentionScratch {
    fn default() -> Self {
        Self {
            q: Vec::new(),
            scores: Box::new([[[TileSums::ZERO; 2]; 2]; STEPS]),
            weights: Box::new([[TileWords::ZERO; STEPS]; 2]),
            products: Box::new([[TileSums::ZERO; 2]; 2]),
            out: Vec::new(),
        }
    }
}

/// A run of queries of one sequence and the heads of one KV head.
pub(crate) struct TileAttention<'a> {
    /// Runs from `first_run` on, one after the other.
    pub packed: &'a [TileWords],
    pub layout: TileLayout,
    /// Number of the first run in `packed`.
    pub first_run: usize,
    /// Position of the first query.
    pub position: usize,
    /// Query heads that share the KV head.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Keys that a query sees at most, itself included.
    pub window: Option<usize>,
    /// Scores are kept within this by a hyperbolic tangent.
    pub soft_cap: Option<f32>,
    /// Scores of the heads' sinks, which are neither scaled nor capped: `[heads]`.
    pub sinks: Option<&'a [f32]>,
    /// `[queries][heads * head_dim]`.
    pub q: Rows<'a>,
    pub scratch: &'a mut AttentionScratch,
    /// As `q`.
    pub out: RowsMut<'a>,
}

impl TileKernel for TileAttention<'_> {
    #[inline(always)]
    fn run<U: TileUnit>(mut self, unit: U) {
        let queries = self.q.rows() * self.heads;
        for first in (0..queries).step_by(QUERIES) {
            self.group(unit, first..queries.min(first + QUERIES));
        }
    }
}

impl TileAttention<'_> {
    /// Works on up to 32 queries, numbered by row, then head.
    #[inline(always)]
    fn group<U: TileUnit>(&mut self, unit: U, queries: Range<usize>) {
        let lanes = unit.lanes();
        let (dims, head_dim) = (self.layout.dims(), self.layout.head_dim);
        self.load_queries(unit, &queries);
        let scratch = &mut *self.scratch;
        scratch.out.clear();
        scratch.out.resize(2 * dims, [[0.0; LANES]; QUERIES]);
        let mut seen = [(0, 0); QUERIES];
        for (r, query) in queries.clone().enumerate() {
            let end = self.position + query / self.heads + 1;
            let first = self.window.map_or(0, |window| end.saturating_sub(window));
            seen[r] = (first, end);
        }
        let count = queries.len();
        let first = seen[..count].iter().map(|s| s.0).min().unwrap_or(0);
        let end = seen[..count].iter().map(|s| s.1).max().unwrap_or(0);
        let mut reference = [f32::NEG_INFINITY; QUERIES];
        let mut normaliser = [[0.0; LANES]; QUERIES];
        for run in first / RUN..end.div_ceil(RUN) {
            let packed = (run - self.first_run) * self.layout.run_tiles();
            let packed = &self.packed[packed..][..self.layout.run_tiles()];
            let (keys, values) = packed.split_at(self.layout.key_tiles());
            let steps = (end - run * RUN).div_ceil(32).min(STEPS);
            let a = scratch.q.split_at(dims);
            for (step, keys) in keys.chunks_exact(2 * dims).take(steps).enumerate() {
                let b = keys.split_at(dims);
                unit.multiply([a.0, a.1], [b.0, b.1], &mut scratch.scores[step]);
            }
            let mut factors = [1.0; QUERIES];
            for r in 0..QUERIES {
                let (tile, row) = (r / ROW_TILE, r % ROW_TILE);
                let keys = (
                    seen[r].0.clamp(run * RUN, (run + 1) * RUN) - run * RUN,
                    seen[r].1.clamp(run * RUN, (run + 1) * RUN) - run * RUN,
                );
                let scores = &mut scratch.scores[..steps];
                let weights = &mut scratch.weights[tile][..steps];
                if keys.0 >= keys.1 {
                    weights.iter_mut().for_each(|w| w.0[row] = [bf16::ZERO; 32]);
                    continue;
                }
                let mut top = lanes.splat(f32::NEG_INFINITY);
                for (step, scores) in scores.iter_mut().enumerate() {
                    for (half, scores) in scores[tile].iter_mut().enumerate() {
                        let mut score = lanes.load(&scores.0[row]);
                        let at = 32 * step + LANES * half;
                        let masked = keys.0 > at || keys.1 < at + LANES;
                        if let Some(cap) = self.soft_cap {
                            score = soft_cap(lanes, score, cap);
                        }
                        if masked {
                            let of_tile = |key: usize| key.clamp(at, at + LANES) - at;
                            score = mask(lanes, score, (of_tile(keys.0), of_tile(keys.1)));
                        }
                        if masked || self.soft_cap.is_some() {
                            lanes.store(score, &mut scores.0[row]);
                        }
                        top = lanes.max(top, score);
                    }
                }
                if lanes.any_less(lanes.splat(reference[r] + SLACK), top) {
                    let new = lanes.max_lane(top);
                    let factor = exp2(lanes, lanes.splat(reference[r] - new));
                    reference[r] = new;
                    factors[r] = first_lane(lanes, factor);
                    let kept = lanes.mul(lanes.load(&normaliser[r]), factor);
                    lanes.store(kept, &mut normaliser[r]);
                }
                let reference = lanes.splat(reference[r]);
                let mut sum = lanes.load(&normaliser[r]);
                for (scores, weights) in scores.iter().zip(weights) {
                    let [first, second] = &scores[tile];
                    let first = lanes.sub(lanes.load(&first.0[row]), reference);
                    let second = lanes.sub(lanes.load(&second.0[row]), reference);
                    let (first, second) = (coarse_exp2(lanes, first), coarse_exp2(lanes, second));
                    sum = lanes.add(lanes.add(sum, first), second);
                    unit.store_row(first, second, &mut weights.0[row]);
                }
                lanes.store(sum, &mut normaliser[r]);
            }
            let a = [&scratch.weights[0][..steps], &scratch.weights[1][..steps]];
            for (c, values) in values.chunks_exact(2 * STEPS).enumerate() {
                let b = values.split_at(STEPS);
                unit.multiply(a, [&b.0[..steps], &b.1[..steps]], &mut scratch.products);
                for half in 0..2 {
                    let out = &mut scratch.out[2 * c + half];
                    for (r, out) in out.iter_mut().enumerate() {
                        let product = &scratch.products[r / ROW_TILE][half].0[r % ROW_TILE];
                        let kept = lanes.splat(factors[r]);
                        let sum = lanes.fma(lanes.load(out), kept, lanes.load(product));
                        lanes.store(sum, out);
                    }
                }
            }
        }
        for (r, query) in queries.enumerate() {
            let (row, head) = (query / self.heads, query % self.heads);
            let mut normaliser = lanes.splat(lanes.sum(lanes.load(&normaliser[r])));
            if let Some(sinks) = self.sinks {
                let sink = sink_weight(lanes, sinks[head], reference[r]);
                normaliser = lanes.add(normaliser, sink);
            }
            let to = &mut self.out.row_mut(row)[head * head_dim..][..head_dim];
            for (to, out) in to.chunks_mut(LANES).zip(&scratch.out) {
                let mut whole = [0.0; LANES];
                lanes.store(lanes.div(lanes.load(&out[r]), normaliser), &mut whole);
                to.copy_from_slice(&whole[..to.len()]);
            }
        }
    }

    /// Scaled queries into tiles; rows and dimensions that are not there are zero.
    #[inline(always)]
    fn load_queries<U: TileUnit>(&mut self, unit: U, queries: &Range<usize>) {
        let lanes = unit.lanes();
        let (dims, head_dim) = (self.layout.dims(), self.layout.head_dim);
        let tiles = &mut self.scratch.q;
        tiles.clear();
        tiles.resize(2 * dims, TileWords::ZERO);
        let scale = lanes.splat(self.scale * LOG2_E);
        for (r, query) in queries.clone().enumerate() {
            let (row, head) = (query / self.heads, query % self.heads);
            let q = &self.q.row(row)[head * head_dim..][..head_dim];
            let tiles = &mut tiles[r / ROW_TILE * dims..][..dims];
            for (q, tile) in q.chunks(32).zip(tiles) {
                let mut whole = [[0.0; LANES]; 2];
                whole.as_flattened_mut()[..q.len()].copy_from_slice(q);
                let a = lanes.mul(lanes.load(&whole[0]), scale);
                let b = lanes.mul(lanes.load(&whole[1]), scale);
                unit.store_row(a, b, &mut tile.0[r % ROW_TILE]);
            }
        }
    }
}

#[inline(always)]
fn first_lane<L: Lanes>(lanes: L, x: L::F32) -> f32 {
    let mut all = [0.0; LANES];
    lanes.store(x, &mut all);
    all[0]
}
