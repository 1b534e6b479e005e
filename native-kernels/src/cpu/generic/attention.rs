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

use super::exp::{LOG2_E, exp2, tanh};
use crate::cpu::vector::{LANES, LaneKernel, Lanes};
use crate::kv_cache::{KvElement, KvLayer, KvTile};
use crate::tensor::{Rows, RowsMut};
use std::ops::Range;

/// How far a score may be above the reference, in powers of two.
pub(super) const SLACK: f32 = 8.0;

/// Keys of a segment, a multiple of a tile.
pub(crate) const SEGMENT: usize = 512;

/// Sums over a range of keys for one query and head: `reference, normaliser, out[padded head_dim]`.
pub(crate) fn partial_len(head_dim: usize) -> usize {
    2 + head_dim.next_multiple_of(LANES)
}

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
struct Group<const R: usize> {
    /// `[head_dim][R]`, scaled.
    q: Vec<[f32; R]>,
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

impl<E: KvElement> Attention<'_, E> {
    /// Works on `R` queries (numbered by position, then head) and says how many those were.
    #[inline(always)]
    fn group<L: Lanes, const R: usize>(&mut self, lanes: L, query: usize) -> usize {
        let mut group = self.start::<R>(query);
        let (first, end) = (group.first, group.end);
        let len = partial_len(self.layer.head_dim());
        // Sums over the segments so far.
        let mut sums = vec![0.0; R * len];
        for segment in self.segments.clone() {
            let keys = segment * SEGMENT..(segment + 1) * SEGMENT;
            group.first = first.map(|first| first.clamp(keys.start, keys.end));
            group.end = end.map(|end| end.clamp(keys.start, keys.end));
            group.clear();
            self.segment(lanes, &mut group);
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
    fn segment<L: Lanes, const R: usize>(&self, lanes: L, group: &mut Group<R>) {
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
        if 2 * R <= L::ACCUMULATORS && R < 4 {
            while tile + 2 <= end {
                self.tiles::<L, R, 2>(lanes, group, tile, end);
                tile += 2;
            }
        }
        while tile < end {
            self.tiles::<L, R, 1>(lanes, group, tile, end);
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

    fn start<const R: usize>(&self, query: usize) -> Group<R> {
        let head_dim = self.layer.head_dim();
        let mut group = Group {
            q: vec![[0.0; R]; head_dim],
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
            for (to, q) in group.q.iter_mut().zip(q) {
                to[r] = q * (self.scale * LOG2_E);
            }
        }
        group
    }

    /// Works on `T` tiles from `tile` on: scores side by side, the rest in order. Tiles before `end` come next.
    #[inline(always)]
    fn tiles<L: Lanes, const R: usize, const T: usize>(
        &self,
        lanes: L,
        group: &mut Group<R>,
        tile: usize,
        end: usize,
    ) {
        let mut keys = [KvTile::NONE; T];
        let mut values = keys;
        let mut next = [[KvTile::NONE; 2]; T];
        for t in 0..T {
            [keys[t], values[t]] = self.tile(tile + t);
            next[t] = self.tile((tile + T + t).min(end - 1));
        }
        let mut scores = scores::<L, E, R, T>(lanes, keys, &group.q, next);
        if let Some(cap) = self.soft_cap {
            for score in scores.as_flattened_mut() {
                *score = soft_cap(lanes, *score, cap);
            }
        }
        for t in 0..T {
            let mut weights = [[0.0; LANES]; R];
            let seen = group.softmax(lanes, tile + t, scores[t], &mut weights);
            if let Some(scales) = values[t].scales {
                for weights in &mut weights {
                    let scaled = lanes.mul(lanes.load(weights), lanes.load(scales));
                    lanes.store(scaled, weights);
                }
            }
            group.add(lanes, values[t].rows, &weights, &seen);
        }
    }
}

/// Adds the sums `(reference, normaliser)` and `out[..][r]` over a range of keys to those over earlier ones.
#[inline(always)]
fn merge<L: Lanes, const R: usize>(
    lanes: L,
    sums: &mut [f32],
    (reference, normaliser): (f32, f32),
    out: &[[[f32; LANES]; R]],
    r: usize,
) {
    if normaliser == 0.0 {
        return;
    }
    let (head, to) = sums.split_at_mut(2);
    let (mine, theirs) = weigh(lanes, head, reference, normaliser);
    for (to, out) in to.as_chunks_mut().0.iter_mut().zip(out) {
        let kept = lanes.mul(lanes.load(to), lanes.splat(mine));
        lanes.store(
            lanes.fma(lanes.load(&out[r]), lanes.splat(theirs), kept),
            to,
        );
    }
}

/// Brings `[reference, normaliser]` and another pair to one reference and adds them. Returns the factors of the two.
#[inline(always)]
fn weigh<L: Lanes>(lanes: L, head: &mut [f32], reference: f32, normaliser: f32) -> (f32, f32) {
    let first = head[1] == 0.0;
    let largest = if first {
        reference
    } else {
        head[0].max(reference)
    };
    let mut factors = [0.0; LANES];
    if !first {
        factors[0] = head[0] - largest;
    }
    factors[1] = reference - largest;
    let mut powers = [0.0; LANES];
    lanes.store(exp2(lanes, lanes.load(&factors)), &mut powers);
    let mine = if first { 0.0 } else { powers[0] };
    head[0] = largest;
    head[1] = head[1] * mine + normaliser * powers[1];
    (mine, powers[1])
}

/// Divides the sums by their normaliser, to which the sink is added.
#[inline(always)]
fn finish<L: Lanes>(lanes: L, sums: &[f32], sink: Option<f32>, to: &mut [f32]) {
    let (head, out) = sums.split_at(2);
    let mut normaliser = lanes.splat(head[1]);
    if let Some(sink) = sink {
        normaliser = lanes.add(normaliser, sink_weight(lanes, sink, head[0]));
    }
    for (to, out) in to.chunks_mut(LANES).zip(out.as_chunks().0) {
        let mut whole = [0.0; LANES];
        lanes.store(lanes.div(lanes.load(out), normaliser), &mut whole);
        to.copy_from_slice(&whole[..to.len()]);
    }
}

/// What a sink adds to a normaliser whose weights are relative to `reference`, in every lane. One that is more than 127
/// powers of two above it counts as 127 above, which leaves nothing of the values either way.
#[inline(always)]
pub(super) fn sink_weight<L: Lanes>(lanes: L, sink: f32, reference: f32) -> L::F32 {
    exp2(lanes, lanes.splat(sink * LOG2_E - reference))
}

/// Merges the sums of one query and head over all segments, in order, into its result.
pub(crate) struct Merge<'a> {
    /// Sums of the segments: slices of [`partial_len`].
    pub partials: &'a [&'a [f32]],
    /// Score of the head's sink.
    pub sink: Option<f32>,
    /// `[head_dim]`.
    pub out: &'a mut [f32],
}

impl LaneKernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let len = partial_len(self.out.len());
        let mut sums = vec![0.0; len];
        for partial in self.partials {
            let (head, out) = partial.split_at(2);
            let out = out.as_chunks::<LANES>().0;
            // One query: the shape that `merge` takes.
            let out = out.as_chunks::<1>().0;
            merge(lanes, &mut sums, (head[0], head[1]), out, 0);
        }
        finish(lanes, &sums, self.sink, self.out);
    }
}

/// Lanes of a tile that each query sees: first and end.
type Seen<const R: usize> = [(usize, usize); R];

impl<const R: usize> Group<R> {
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

    /// Turns the scores of a tile into weights and rescales what was gathered so far. Returns the lanes that each query
    /// sees; weights of the others are zero.
    #[inline(always)]
    fn softmax<L: Lanes>(
        &mut self,
        lanes: L,
        tile: usize,
        scores: [L::F32; R],
        weights: &mut [[f32; LANES]; R],
    ) -> Seen<R> {
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
                lanes.store(p, &mut weights[r]);
                let sum = lanes.add(lanes.load(&self.normaliser[r]), p);
                lanes.store(sum, &mut self.normaliser[r]);
            }
        }
        seen
    }

    /// Adds the values of a tile times their weights.
    #[inline(always)]
    fn add<L: Lanes, E: KvElement>(
        &mut self,
        lanes: L,
        values: &[[E; LANES]],
        weights: &[[f32; LANES]; R],
        seen: &Seen<R>,
    ) {
        let vectors = self.out.len();
        let mut c = 0;
        if 4 * R <= L::ACCUMULATORS {
            while c + 4 <= vectors {
                add_values::<L, E, R, 4>(lanes, values, vectors, c, weights, seen, &mut self.out);
                c += 4;
            }
        }
        if 2 * R <= L::ACCUMULATORS {
            while c + 2 <= vectors {
                add_values::<L, E, R, 2>(lanes, values, vectors, c, weights, seen, &mut self.out);
                c += 2;
            }
        }
        while c < vectors {
            add_values::<L, E, R, 1>(lanes, values, vectors, c, weights, seen, &mut self.out);
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

/// Scores of `R` queries and sixteen keys in each of `T` tiles. Asks for the keys and values of the tiles that come `next`:
/// they lie a few KiB here and there, which is too short for the prefetcher of a CPU to notice. Measured on a Xeon (Emerald
/// Rapids) at a context of 8,000 tokens: a model decodes 1.5 times as fast as without.
#[inline(always)]
fn scores<L: Lanes, E: KvElement, const R: usize, const T: usize>(
    lanes: L,
    tiles: [KvTile<'_, E>; T],
    q: &[[f32; R]],
    next: [[KvTile<'_, E>; 2]; T],
) -> [[L::F32; R]; T] {
    /// A line of cache.
    const LINE: usize = 64;
    let keys = tiles.map(|keys| &keys.rows[..q.len()]);
    let mut scores = [[lanes.splat(0.0); R]; T];
    for (d, q) in q.iter().enumerate() {
        for t in 0..T {
            if (d * size_of::<[E; LANES]>()).is_multiple_of(LINE) {
                // There are as many rows of values as of keys, but for padding.
                let [keys, values] = next[t];
                lanes.prefetch(&keys.rows[0], d * size_of::<[E; LANES]>());
                lanes.prefetch(&values.rows[0], d * size_of::<[E; LANES]>());
            }
            let key = E::load(lanes, &keys[t][d]);
            for r in 0..R {
                scores[t][r] = lanes.fma(lanes.splat(q[r]), key, scores[t][r]);
            }
        }
    }
    for t in 0..T {
        if let Some(scales) = tiles[t].scales {
            let scales = lanes.load(scales);
            for score in &mut scores[t] {
                *score = lanes.mul(*score, scales);
            }
        }
    }
    scores
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

/// Adds the values of a tile times the weights of each query, for the `C` vectors of dimensions from `c` on. Values that
/// a query does not see may hold anything, even what is not a number, so they are not multiplied by zero but left out.
#[inline(always)]
fn add_values<L: Lanes, E: KvElement, const R: usize, const C: usize>(
    lanes: L,
    values: &[[E; LANES]],
    vectors: usize,
    c: usize,
    weights: &[[f32; LANES]; R],
    seen: &Seen<R>,
    out: &mut [[[f32; LANES]; R]],
) {
    let out: &mut [[[f32; LANES]; R]; C] = out[c..].first_chunk_mut().expect("C vectors are left");
    let mut sums = [[lanes.splat(0.0); C]; R];
    for r in 0..R {
        for i in 0..C {
            sums[r][i] = lanes.load(&out[i][r]);
        }
    }
    let together = seen.iter().all(|s| *s == seen[0]);
    let first = seen.iter().map(|s| s.0).min().unwrap_or(0);
    let end = seen.iter().map(|s| s.1).max().unwrap_or(0);
    let rows = values.chunks_exact(vectors).enumerate();
    for (t, values) in rows.skip(first).take(end - first) {
        let values: &[[E; LANES]; C] = values[c..].first_chunk().expect("C vectors are left");
        let mut value = [lanes.splat(0.0); C];
        for i in 0..C {
            value[i] = E::load(lanes, &values[i]);
        }
        for r in 0..R {
            if together || (seen[r].0..seen[r].1).contains(&t) {
                let weight = lanes.splat(weights[r][t]);
                for i in 0..C {
                    sums[r][i] = lanes.fma(weight, value[i], sums[r][i]);
                }
            }
        }
    }
    for r in 0..R {
        for i in 0..C {
            lanes.store(sums[r][i], &mut out[i][r]);
        }
    }
}
