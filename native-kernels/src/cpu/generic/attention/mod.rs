//! Attention over a paged KV cache, with the softmax computed as keys pass by.
//!
//! ```text
//! for each query, m = -inf, l[16] = 0, o = 0
//! for each tile of 16 keys that the query sees, in order of position:
//!     s[16]  = scale * q . k                       one lane a key, dimensions in order
//!     m'     = max(s) if that is more than m + 8, else m
//!     p[16]  = 2^(s - m')                          the scale contains log2(e)
//!     l[16]  = l * 2^(m - m') + p                  one lane a key modulo 16, summed at the end
//!     o      = o * 2^(m - m') + sum of p * v       keys in order
//! out = o / (sum(l) + 2^(sink - m))                the last term only of heads with a sink
//! ```
//! A head's sink is one score more, of a key without a value (Xiao et al., "Efficient Streaming Language Models with
//! Attention Sinks", arXiv 2309.17453, section 3.3). It belongs to no segment and comes once, after the last merge.
//!
//! Keys are cut into segments of [`SEGMENT`], each computed from the beginning; their results are merged in order of
//! position, `(m, l, o)` with `(m', l', o')` to the larger `m`. So segments may be computed by different workers.
//!
//! Scores are relative to a recent largest one and not to the largest: weights up to 2^8 do no harm to sums of `f32`,
//! and neither the largest of sixteen lanes nor a factor is needed for most tiles.
//! **Source**: Milakov and Gimelshein, "Online normalizer calculation for softmax", algorithm 3; Dao et al.,
//! "FlashAttention", algorithm 1.
//!
//! **Invariant:** tiles and segments are cut at absolute positions, and a query meets the same keys in the same order
//! with the same operations whatever other queries share the tile and whoever computes a segment. So the result is the
//! same bits however a prompt was chunked and whatever else is in the batch. Queries that share a tile only share its
//! loads: the heads of one KV head, and in a prompt neighbouring positions.
//!
//! **Error** where products are made in pairs of `bf16`: queries and weights are rounded to it, so a score is within `2^-8`
//! of the sum of magnitudes it consists of, and the result by `2^-8` of the largest value more. The normaliser sums weights
//! that are not rounded.

mod merge;
mod products;

pub(super) use merge::sink_weight;
pub(crate) use merge::{Merge, partial_len};
pub(crate) use products::{PairsKernel, Products};

use super::exp::{LOG2_E, exp2, tanh};
use crate::cpu::vector::{LANES, LaneKernel, Lanes};
use crate::kv_cache::{KvElement, KvLayer, KvTile};
use crate::tensor::{Rows, RowsMut};
use half::bf16;
use merge::{finish, merge};
use products::{Seen, Single, add_values, scores};
use std::ops::Range;

/// How far a score may be above the reference, in powers of two.
pub(super) const SLACK: f32 = 8.0;

/// Tiles after that which is worked on at which the one lies that is asked for meanwhile.
const AHEAD: usize = 2;

/// Keys of a segment, a multiple of a tile.
pub(crate) const SEGMENT: usize = 512;

/// Where results go.
pub(crate) enum Into<'a> {
    /// All keys that the queries see were asked for: `[queries][heads * head_dim]`.
    Out(RowsMut<'a>),
    /// Sums over one segment: `[queries * heads][partial_len]`.
    Partial(&'a mut [f32]),
}

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
    /// Scores are kept within this by a hyperbolic tangent.
    pub soft_cap: Option<f32>,
    /// Scores of the heads' sinks, which are neither scaled nor capped: `[heads]`. Partial sums are without.
    pub sinks: Option<&'a [f32]>,
    /// `[queries][heads * head_dim]`.
    pub q: Rows<'a>,
    /// Segments to look at; those beyond the last key count for nothing.
    pub segments: Range<usize>,
    pub into: Into<'a>,
}

/// Queries that are worked on together.
struct Group<F, const R: usize> {
    /// `[head_dim / depth of a factor][R]`, scaled.
    q: Vec<[F; R]>,
    /// Positions of the first and last key that each query sees, the last exclusive.
    first: [usize; R],
    end: [usize; R],
    /// What scores are relative to: within `SLACK` below the largest so far.
    reference: [f32; R],
    /// `[R][16]`.
    normaliser: [[f32; LANES]; R],
    /// `[padded head_dim / 16][R]` vectors.
    out: Vec<[[f32; LANES]; R]>,
}

impl<E: KvElement> LaneKernel for Attention<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        self.answer(Single(lanes));
    }
}

impl PairsKernel for Attention<'_, bf16> {
    #[inline(always)]
    fn run<P: Products<bf16>>(self, products: P) {
        self.answer(products);
    }
}

impl<E: KvElement> Attention<'_, E> {
    #[inline(always)]
    fn answer<P: Products<E>>(mut self, products: P) {
        let queries = self.q.rows() * self.heads;
        let mut next = 0;
        while next < queries {
            // The widths that heads per KV head usually are, so that a decoding sequence is one group.
            let left = queries - next;
            next += match left.min(P::Lanes::ACCUMULATORS) {
                8.. => self.group::<P, 8>(products, next),
                6 | 7 => self.group::<P, 6>(products, next),
                4 | 5 => self.group::<P, 4>(products, next),
                3 => self.group::<P, 3>(products, next),
                2 => self.group::<P, 2>(products, next),
                _ => self.group::<P, 1>(products, next),
            };
        }
    }

    /// Works on `R` queries (numbered by position, then head) and says how many those were.
    #[inline(always)]
    fn group<P: Products<E>, const R: usize>(&mut self, products: P, query: usize) -> usize {
        let lanes = products.lanes();
        let mut group = self.start::<P, R>(products, query);
        let (first, end) = (group.first, group.end);
        let len = partial_len(self.layer.head_dim());
        // Sums over the segments so far.
        let mut sums = vec![0.0; R * len];
        for segment in self.segments.clone() {
            let keys = segment * SEGMENT..(segment + 1) * SEGMENT;
            group.first = first.map(|first| first.clamp(keys.start, keys.end));
            group.end = end.map(|end| end.clamp(keys.start, keys.end));
            group.clear();
            self.segment(products, &mut group);
            for r in 0..R {
                let part = group.partial(lanes, r);
                merge(lanes, &mut sums[r * len..][..len], part, &group.out, r);
            }
        }
        match &mut self.into {
            Into::Partial(to) => to[query * len..][..R * len].copy_from_slice(&sums),
            Into::Out(out) => {
                let head_dim = self.layer.head_dim();
                for r in 0..R {
                    let (row, head) = ((query + r) / self.heads, (query + r) % self.heads);
                    let to = &mut out.row_mut(row)[head * head_dim..][..head_dim];
                    let sink = self.sinks.map(|sinks| sinks[head]);
                    finish(lanes, &sums[r * len..][..len], sink, to);
                }
            }
        }
        R
    }

    #[inline(always)]
    fn segment<P: Products<E>, const R: usize>(
        &self,
        products: P,
        group: &mut Group<P::Factor, R>,
    ) {
        let seen = (0..R).filter(|&r| group.first[r] < group.end[r]);
        let Some(first) = seen.clone().map(|r| group.first[r]).min() else {
            return;
        };
        let mut tile = first / LANES;
        let end = seen
            .map(|r| group.end[r])
            .max()
            .unwrap_or(0)
            .div_ceil(LANES);
        // Few queries are too few sums at a time for the multiply-add units; two tiles are twice as many.
        if 2 * R <= P::Lanes::ACCUMULATORS && R < P::SUMS {
            while tile + 2 <= end {
                self.tiles::<P, R, 2>(products, group, tile, end);
                tile += 2;
            }
        }
        while tile < end {
            self.tiles::<P, R, 1>(products, group, tile, end);
            tile += 1;
        }
    }

    /// Keys and values of a tile.
    #[inline(always)]
    fn tile(&self, tile: usize) -> [KvTile<'_, E>; 2] {
        let per_block = self.layer.tiles_per_block();
        let (block, in_block) = (self.block_table[tile / per_block], tile % per_block);
        [
            self.layer.keys(block, self.kv_head, in_block),
            self.layer.values(block, self.kv_head, in_block),
        ]
    }

    #[inline(always)]
    fn start<P: Products<E>, const R: usize>(
        &self,
        products: P,
        query: usize,
    ) -> Group<P::Factor, R> {
        let head_dim = self.layer.head_dim();
        let mut group = Group {
            q: vec![[P::Factor::default(); R]; head_dim / P::DEPTH],
            first: [0; R],
            end: [0; R],
            reference: [f32::NEG_INFINITY; R],
            normaliser: [[0.0; LANES]; R],
            out: vec![[[0.0; LANES]; R]; head_dim.div_ceil(LANES)],
        };
        for r in 0..R {
            let (row, head) = ((query + r) / self.heads, (query + r) % self.heads);
            let end = self.position + row + 1;
            group.end[r] = end;
            group.first[r] = self.window.map_or(0, |window| end.saturating_sub(window));
            let q = &self.q.row(row)[head * head_dim..][..head_dim];
            for (to, q) in group.q.iter_mut().zip(q.chunks_exact(P::DEPTH)) {
                let mut scaled = [0.0; 2];
                for (to, q) in scaled.iter_mut().zip(q) {
                    *to = q * (self.scale * LOG2_E);
                }
                to[r] = products.factor(&scaled[..P::DEPTH]);
            }
        }
        group
    }

    /// Works on `T` tiles from `tile` on: scores side by side, the rest in order. Tiles before `end` come next.
    #[inline(always)]
    fn tiles<P: Products<E>, const R: usize, const T: usize>(
        &self,
        products: P,
        group: &mut Group<P::Factor, R>,
        tile: usize,
        end: usize,
    ) {
        let lanes = products.lanes();
        let mut keys = [KvTile::NONE; T];
        let mut values = [[KvTile::NONE; 2]; T];
        let mut next = keys;
        for t in 0..T {
            [keys[t], values[t][0]] = self.tile(tile + t);
            [next[t], values[t][1]] = self.tile((tile + AHEAD + t).min(end - 1));
        }
        let mut scores = scores::<P, E, R, T>(products, keys, &group.q, next);
        if let Some(cap) = self.soft_cap {
            for score in scores.as_flattened_mut() {
                *score = soft_cap(lanes, *score, cap);
            }
        }
        for t in 0..T {
            let (mut weights, seen) = group.softmax(lanes, tile + t, scores[t]);
            if let Some(scales) = values[t][0].scales {
                let scales = lanes.load(scales);
                for weights in &mut weights {
                    *weights = lanes.mul(*weights, scales);
                }
            }
            let mut factors = [P::ZERO; R];
            for r in 0..R {
                products.store(weights[r], &mut factors[r]);
            }
            group.add(products, values[t], &factors, &seen);
        }
    }
}

impl<F, const R: usize> Group<F, R> {
    /// Forgets the keys so far.
    fn clear(&mut self) {
        self.reference = [f32::NEG_INFINITY; R];
        self.normaliser = [[0.0; LANES]; R];
        self.out.fill([[0.0; LANES]; R]);
    }

    /// Reference and normaliser of query `r`.
    #[inline(always)]
    fn partial<L: Lanes>(&self, lanes: L, r: usize) -> (f32, f32) {
        let normaliser = lanes.sum(lanes.load(&self.normaliser[r]));
        (self.reference[r], normaliser)
    }

    /// Turns the scores of a tile into weights and rescales what was gathered so far. Returns the weights and the lanes that
    /// each query sees; weights of the others are zero.
    #[inline(always)]
    fn softmax<L: Lanes>(
        &mut self,
        lanes: L,
        tile: usize,
        scores: [L::F32; R],
    ) -> ([L::F32; R], Seen<R>) {
        let mut weights = [lanes.splat(0.0); R];
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
            let bound = lanes.splat(self.reference[r] + SLACK);
            if lanes.any_less(bound, masked[r]) {
                let largest = lanes.max_lane(masked[r]);
                drop[r] = self.reference[r] - largest;
                self.reference[r] = largest;
            }
        }
        if drop != [0.0; LANES] {
            self.rescale(lanes, &drop);
        }
        for r in 0..R {
            if seen[r].0 < seen[r].1 {
                let reference = lanes.splat(self.reference[r]);
                let p = exp2(lanes, lanes.sub(masked[r], reference));
                weights[r] = p;
                let sum = lanes.add(lanes.load(&self.normaliser[r]), p);
                lanes.store(sum, &mut self.normaliser[r]);
            }
        }
        (weights, seen)
    }

    /// Adds the values of a tile times their weights. Asks for the second tile.
    #[inline(always)]
    fn add<P: Products<E>, E: KvElement>(
        &mut self,
        products: P,
        values: [KvTile<'_, E>; 2],
        weights: &[P::Factors; R],
        seen: &Seen<R>,
    ) {
        let vectors = self.out.len();
        let mut c = 0;
        if 4 * R <= P::Lanes::ACCUMULATORS {
            while c + 4 <= vectors {
                add_values::<P, E, R, 4>(
                    products,
                    values,
                    vectors,
                    c,
                    weights,
                    seen,
                    &mut self.out,
                );
                c += 4;
            }
        }
        if 2 * R <= P::Lanes::ACCUMULATORS {
            while c + 2 <= vectors {
                add_values::<P, E, R, 2>(
                    products,
                    values,
                    vectors,
                    c,
                    weights,
                    seen,
                    &mut self.out,
                );
                c += 2;
            }
        }
        while c < vectors {
            add_values::<P, E, R, 1>(products, values, vectors, c, weights, seen, &mut self.out);
            c += 1;
        }
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

/// Keeps scores, which contain log2(e), within `cap` by a hyperbolic tangent.
#[inline(always)]
pub(super) fn soft_cap<L: Lanes>(lanes: L, scores: L::F32, cap: f32) -> L::F32 {
    let cap = cap * LOG2_E;
    let part = lanes.mul(scores, lanes.splat(1.0 / cap));
    lanes.mul(lanes.splat(cap), tanh(lanes, part))
}

/// Minus infinity in the lanes outside of `seen`.
#[inline(always)]
pub(super) fn mask<L: Lanes>(lanes: L, scores: L::F32, seen: (usize, usize)) -> L::F32 {
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
