//! Attention over a paged KV cache, with the softmax computed as keys pass by.
//!
//! ```text
//! for each query, m = -inf, l = 0, o = 0
//! for each tile of 16 keys that the query sees, in order of position:
//!     s[16]  = scale * q . k                       one lane a key, dimensions in order
//!     m'     = max(m, s)
//!     p[16]  = 2^(s - m')                          the scale contains log2(e)
//!     l[16]  = l * 2^(m - m') + p                  one lane a key modulo 16, summed at the end
//!     o      = o * 2^(m - m') + sum of p * v       keys in order
//! out = o / l
//! ```
//! **Source**: Milakov and Gimelshein, "Online normalizer calculation for softmax", algorithm 3; Dao et al.,
//! "FlashAttention", algorithm 1.
//!
//! **Invariant:** tiles are cut at absolute positions, and a query meets the same keys in the same order with the same
//! operations whatever other queries share the tile. So the result is the same bits however a prompt was chunked and
//! whatever else is in the batch. Queries that share a tile only share its loads: the heads of one KV head, and in a
//! prompt neighbouring positions.
//!
//! Not done: splitting the keys of one query over workers.

use super::exp::{LOG2_E, exp2};
use crate::cpu::panel::FloatElement;
use crate::cpu::vector::{LANES, LaneKernel, Lanes};
use crate::kv_cache::KvLayer;
use crate::tensor::{Rows, RowsMut};

/// A run of queries of one sequence and the heads of one KV head.
pub(crate) struct Attention<'a, E> {
    pub layer: KvLayer<'a, E>,
    pub kv_head: usize,
    /// Blocks of the sequence, by position.
    pub block_table: &'a [u32],
    /// Position of the first query.
    pub position: usize,
    /// Query heads that share the KV head.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Keys that a query sees at most, itself included.
    pub window: Option<usize>,
    /// `[queries][heads * head_dim]`.
    pub q: Rows<'a>,
    /// As `q`.
    pub out: RowsMut<'a>,
}

/// Queries that are worked on together.
struct Group<const R: usize> {
    /// `[head_dim][R]`, scaled.
    q: Vec<[f32; R]>,
    /// Positions of the first and last key that each query sees, the last exclusive.
    first: [usize; R],
    end: [usize; R],
    largest: [f32; R],
    /// `[R][16]`.
    normaliser: [[f32; LANES]; R],
    /// `[padded head_dim / 16][R]` vectors.
    out: Vec<[[f32; LANES]; R]>,
}

impl<E: FloatElement> LaneKernel for Attention<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, lanes: L) {
        let queries = self.q.rows() * self.heads;
        let mut next = 0;
        while next < queries {
            // The widths that heads per KV head usually are, so that a decoding sequence is one group.
            let left = queries - next;
            next += match left.min(L::ROWS) {
                8.. => self.group::<L, 8>(lanes, next),
                6 | 7 => self.group::<L, 6>(lanes, next),
                4 | 5 => self.group::<L, 4>(lanes, next),
                3 => self.group::<L, 3>(lanes, next),
                2 => self.group::<L, 2>(lanes, next),
                _ => self.group::<L, 1>(lanes, next),
            };
        }
    }
}

impl<E: FloatElement> Attention<'_, E> {
    /// Works on `R` queries (numbered by position, then head) and says how many those were.
    #[inline(always)]
    fn group<L: Lanes, const R: usize>(&mut self, lanes: L, query: usize) -> usize {
        let mut group = self.start::<R>(query);
        let first = group.first.iter().min().expect("R > 0") / LANES;
        let end = group.end.iter().max().expect("R > 0").div_ceil(LANES);
        for tile in first..end {
            self.tile(lanes, &mut group, tile);
        }
        self.finish(lanes, &group, query);
        R
    }

    fn start<const R: usize>(&self, query: usize) -> Group<R> {
        let head_dim = self.layer.head_dim();
        let mut group = Group {
            q: vec![[0.0; R]; head_dim],
            first: [0; R],
            end: [0; R],
            largest: [f32::NEG_INFINITY; R],
            normaliser: [[0.0; LANES]; R],
            out: vec![[[0.0; LANES]; R]; head_dim.div_ceil(LANES)],
        };
        for r in 0..R {
            let (row, head) = ((query + r) / self.heads, (query + r) % self.heads);
            let end = self.position + row + 1;
            group.end[r] = end;
            group.first[r] = self.window.map_or(0, |window| end.saturating_sub(window));
            let q = &self.q.row(row)[head * head_dim..][..head_dim];
            for (to, q) in group.q.iter_mut().zip(q) {
                to[r] = q * (self.scale * LOG2_E);
            }
        }
        group
    }

    #[inline(always)]
    fn tile<L: Lanes, const R: usize>(&self, lanes: L, group: &mut Group<R>, tile: usize) {
        let block = self.block_table[tile / self.layer.tiles_per_block()];
        let in_block = tile % self.layer.tiles_per_block();
        let keys = self.layer.keys(block, self.kv_head, in_block);
        let values = self.layer.values(block, self.kv_head, in_block);

        let scores = scores::<L, E, R>(lanes, keys, &group.q);
        let mut weights = [[0.0; LANES]; R];
        let seen = group.softmax(lanes, tile, scores, &mut weights);
        let vectors = group.out.len();
        for (c, out) in group.out.iter_mut().enumerate() {
            if seen.iter().all(|seen| *seen == (0, LANES)) {
                add_all::<L, E, R>(lanes, values, vectors, c, &weights, out);
            } else {
                for r in 0..R {
                    let (weights, out) = (&weights[r], &mut out[r]);
                    add_some(lanes, values, vectors, c, seen[r], weights, out);
                }
            }
        }
    }

    #[inline(always)]
    fn finish<L: Lanes, const R: usize>(&mut self, lanes: L, group: &Group<R>, query: usize) {
        let head_dim = self.layer.head_dim();
        for r in 0..R {
            let (row, head) = ((query + r) / self.heads, (query + r) % self.heads);
            let normaliser = lanes.splat(lanes.sum(lanes.load(&group.normaliser[r])));
            let to = &mut self.out.row_mut(row)[head * head_dim..][..head_dim];
            for (to, out) in to.chunks_mut(LANES).zip(&group.out) {
                let mut whole = [0.0; LANES];
                lanes.store(lanes.div(lanes.load(&out[r]), normaliser), &mut whole);
                to.copy_from_slice(&whole[..to.len()]);
            }
        }
    }
}

impl<const R: usize> Group<R> {
    /// Turns the scores of a tile into weights and rescales what was gathered so far. Returns the lanes that each query
    /// sees; weights of the others are zero.
    #[inline(always)]
    fn softmax<L: Lanes>(
        &mut self,
        lanes: L,
        tile: usize,
        scores: [L::F32; R],
        weights: &mut [[f32; LANES]; R],
    ) -> [(usize, usize); R] {
        let mut seen = [(0, LANES); R];
        let mut masked = scores;
        let mut drop = [0.0; LANES];
        for r in 0..R {
            let first = tile * LANES;
            seen[r] = (
                self.first[r].clamp(first, first + LANES) - first,
                self.end[r].clamp(first, first + LANES) - first,
            );
            if seen[r] != (0, LANES) {
                masked[r] = mask(lanes, scores[r], seen[r]);
            }
            let largest = lanes.max_lane(masked[r]);
            if largest > self.largest[r] {
                drop[r] = self.largest[r] - largest;
                self.largest[r] = largest;
            }
        }
        if drop != [0.0; LANES] {
            self.rescale(lanes, &drop);
        }
        for r in 0..R {
            if seen[r].0 < seen[r].1 {
                let largest = lanes.splat(self.largest[r]);
                let p = exp2(lanes, lanes.sub(masked[r], largest));
                lanes.store(p, &mut weights[r]);
                let sum = lanes.add(lanes.load(&self.normaliser[r]), p);
                lanes.store(sum, &mut self.normaliser[r]);
            }
        }
        seen
    }

    /// Multiplies the sums of query `r` by `2^drop[r]`. A factor of one changes no bit, so it does not matter that the
    /// other queries of the group decide whether this is called.
    #[inline(always)]
    fn rescale<L: Lanes>(&mut self, lanes: L, drop: &[f32; LANES]) {
        let mut factors = [0.0; LANES];
        lanes.store(exp2(lanes, lanes.load(drop)), &mut factors);
        for r in 0..R {
            let factor = lanes.splat(factors[r]);
            let sum = lanes.mul(lanes.load(&self.normaliser[r]), factor);
            lanes.store(sum, &mut self.normaliser[r]);
            for out in &mut self.out {
                lanes.store(lanes.mul(lanes.load(&out[r]), factor), &mut out[r]);
            }
        }
    }
}

/// Scores of `R` queries and sixteen keys.
#[inline(always)]
fn scores<L: Lanes, E: FloatElement, const R: usize>(
    lanes: L,
    keys: &[[E; LANES]],
    q: &[[f32; R]],
) -> [L::F32; R] {
    let mut scores = [lanes.splat(0.0); R];
    for (key, q) in keys.iter().zip(q) {
        let key = E::load(lanes, key);
        for r in 0..R {
            scores[r] = lanes.fma(lanes.splat(q[r]), key, scores[r]);
        }
    }
    scores
}

/// Minus infinity in the lanes outside of `seen`.
#[inline(always)]
fn mask<L: Lanes>(lanes: L, scores: L::F32, seen: (usize, usize)) -> L::F32 {
    const NUMBERS: [f32; LANES] = {
        let mut numbers = [0.0; LANES];
        let mut i = 0;
        while i < LANES {
            numbers[i] = i as f32;
            i += 1;
        }
        numbers
    };
    let numbers = lanes.load(&NUMBERS);
    let never = lanes.splat(f32::NEG_INFINITY);
    let scores = lanes.select_less(numbers, lanes.splat(seen.0 as f32), never, scores);
    lanes.select_less(numbers, lanes.splat(seen.1 as f32), scores, never)
}

/// Adds all sixteen values times the weights of each query, for one vector of dimensions.
#[inline(always)]
fn add_all<L: Lanes, E: FloatElement, const R: usize>(
    lanes: L,
    values: &[[E; LANES]],
    vectors: usize,
    c: usize,
    weights: &[[f32; LANES]; R],
    out: &mut [[f32; LANES]; R],
) {
    let mut sums = [lanes.splat(0.0); R];
    for r in 0..R {
        sums[r] = lanes.load(&out[r]);
    }
    for (t, values) in values.chunks_exact(vectors).enumerate().take(LANES) {
        let value = E::load(lanes, &values[c]);
        for r in 0..R {
            sums[r] = lanes.fma(lanes.splat(weights[r][t]), value, sums[r]);
        }
    }
    for r in 0..R {
        lanes.store(sums[r], &mut out[r]);
    }
}

/// Adds the values that a query sees times its weights: the others may hold anything, even what is not a number.
#[inline(always)]
fn add_some<L: Lanes, E: FloatElement>(
    lanes: L,
    values: &[[E; LANES]],
    vectors: usize,
    c: usize,
    seen: (usize, usize),
    weights: &[f32; LANES],
    out: &mut [f32; LANES],
) {
    let mut sum = lanes.load(out);
    for t in seen.0..seen.1 {
        let value = E::load(lanes, &values[t * vectors + c]);
        sum = lanes.fma(lanes.splat(weights[t]), value, sum);
    }
    lanes.store(sum, out);
}
