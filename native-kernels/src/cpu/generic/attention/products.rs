//! How queries meet keys, and weights meet values: number by number, or in pairs of `bf16`.

use crate::cpu::vector::{LANES, Lanes};
use crate::kv_cache::{KvElement, KvTile};
use half::bf16;

/// What multiplies numbers of queries, or weights of keys, with elements of a cache: one number or two at a time.
pub(crate) trait Products<E>: Copy {
    /// The float lanes that go with it.
    type Lanes: Lanes;
    /// The numbers that are multiplied at a time.
    type Factor: Copy + Default;
    /// Factors of a tile of sixteen.
    type Factors: Copy;
    /// The elements that a factor is multiplied with, sixteen times.
    type Elements: Copy;

    /// Numbers of a factor: 1 or 2.
    const DEPTH: usize;
    /// Sums that hide how long a product takes.
    const SUMS: usize;
    /// Factors of zeros.
    const ZERO: Self::Factors;

    /// The float lanes that go with it.
    fn lanes(self) -> Self::Lanes;

    /// A factor of `DEPTH` numbers.
    fn factor(self, x: &[f32]) -> Self::Factor;

    /// Sixteen numbers as factors.
    fn store(self, x: <Self::Lanes as Lanes>::F32, to: &mut Self::Factors);

    /// The factor of the numbers from `DEPTH * i` on.
    fn get(self, factors: &Self::Factors, i: usize) -> Self::Factor;

    /// `DEPTH` rows side by side: the first, and the last.
    fn load(self, first: &[E; LANES], last: &[E; LANES]) -> Self::Elements;

    /// Those of one of the `DEPTH` rows; zeros for the others, whatever they were.
    fn only(self, elements: Self::Elements, row: usize) -> Self::Elements;

    /// Adds the products of a factor and its elements.
    fn add(
        self,
        sum: <Self::Lanes as Lanes>::F32,
        factor: Self::Factor,
        elements: Self::Elements,
    ) -> <Self::Lanes as Lanes>::F32;
}

/// An algorithm over products with a cache of `bf16`. As [`LaneKernel`](crate::cpu::vector::LaneKernel).
pub(crate) trait PairsKernel {
    fn run<P: Products<bf16>>(self, products: P);
}

/// Number by number, in single precision.
#[derive(Clone, Copy)]
pub(super) struct Single<L>(pub L);

impl<L: Lanes, E: KvElement> Products<E> for Single<L> {
    type Lanes = L;
    type Factor = f32;
    type Factors = [f32; LANES];
    type Elements = L::F32;

    const DEPTH: usize = 1;
    const SUMS: usize = 4;
    const ZERO: [f32; LANES] = [0.0; LANES];

    #[inline(always)]
    fn lanes(self) -> L {
        self.0
    }

    #[inline(always)]
    fn factor(self, x: &[f32]) -> f32 {
        x[0]
    }

    #[inline(always)]
    fn store(self, x: L::F32, to: &mut [f32; LANES]) {
        self.0.store(x, to);
    }

    #[inline(always)]
    fn get(self, factors: &[f32; LANES], i: usize) -> f32 {
        factors[i]
    }

    #[inline(always)]
    fn load(self, first: &[E; LANES], _: &[E; LANES]) -> L::F32 {
        E::load(self.0, first)
    }

    #[inline(always)]
    fn only(self, elements: L::F32, _: usize) -> L::F32 {
        elements
    }

    #[inline(always)]
    fn add(self, sum: L::F32, factor: f32, elements: L::F32) -> L::F32 {
        self.0.fma(self.0.splat(factor), elements, sum)
    }
}

/// Asks for the lines of a tile that begin within `bytes` from `start` on. Tiles lie a few KiB here and there, which is too
/// short for the prefetcher of a CPU to notice, and are asked for a few lines at a time, into the second-level cache: the
/// first has too few buffers for all that is on its way. Measured on an EPYC (Zen 4) with a loop of nothing else, two threads
/// that read 185 MB of `bf16` in blocks of 16 tokens, eight queries a head: 18 ms without, 12 ms where the next tile was asked
/// for into the first level, 9 ms into the second; 7.5 ms with keys and values side by side and two tiles ahead.
///
/// `bytes` is what a step of a loop is about, a power of two that the compiler knows, and `start` a multiple of it: so all
/// of this is a few requests or a comparison. (As a loop over a range it took longer than the products, where the cache is
/// near.)
#[inline(always)]
fn ask_for<L: Lanes, E: KvElement>(lanes: L, tile: KvTile<'_, E>, start: usize, bytes: usize) {
    const LINE: usize = 64;
    if bytes >= LINE {
        for line in 0..bytes / LINE {
            lanes.prefetch_second(&tile.rows[0], start + line * LINE);
        }
    } else if start.is_multiple_of(LINE) {
        lanes.prefetch_second(&tile.rows[0], start);
    }
}

/// Scores of `R` queries and sixteen keys in each of `T` tiles. Asks for the keys of the tiles that come `next`.
#[inline(always)]
pub(super) fn scores<P: Products<E>, E: KvElement, const R: usize, const T: usize>(
    products: P,
    tiles: [KvTile<'_, E>; T],
    q: &[[P::Factor; R]],
    next: [KvTile<'_, E>; T],
) -> [[<P::Lanes as Lanes>::F32; R]; T] {
    let lanes = products.lanes();
    let keys = tiles.map(|keys| &keys.rows[..q.len() * P::DEPTH]);
    let mut scores = [[lanes.splat(0.0); R]; T];
    for (d, q) in q.iter().enumerate() {
        let row = d * P::DEPTH;
        for t in 0..T {
            let bytes = P::DEPTH * size_of::<[E; LANES]>();
            ask_for(lanes, next[t], d * bytes, bytes);
            let key = products.load(&keys[t][row], &keys[t][row + P::DEPTH - 1]);
            for r in 0..R {
                scores[t][r] = products.add(scores[t][r], q[r], key);
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

/// Lanes of a tile that each query sees: first and end.
pub(super) type Seen<const R: usize> = [(usize, usize); R];

/// `C` vectors from vector `c` on of the rows of one factor, which have `vectors` each.
#[inline(always)]
fn load_values<P: Products<E>, E: KvElement, const C: usize>(
    products: P,
    rows: &[[E; LANES]],
    vectors: usize,
    c: usize,
) -> [P::Elements; C] {
    let (one, last) = (&rows[c..], &rows[(P::DEPTH - 1) * vectors + c..]);
    let mut elements = [products.load(&one[0], &last[0]); C];
    for i in 1..C {
        elements[i] = products.load(&one[i], &last[i]);
    }
    elements
}

/// Adds the values of a tile times the weights of each query, for the `C` vectors of dimensions from `c` on. Values that
/// a query does not see may hold anything, even what is not a number, so they are not multiplied by zero but left out.
/// Asks for as much of the values that come `next`.
#[inline(always)]
pub(super) fn add_values<P: Products<E>, E: KvElement, const R: usize, const C: usize>(
    products: P,
    [values, next]: [KvTile<'_, E>; 2],
    vectors: usize,
    c: usize,
    weights: &[P::Factors; R],
    seen: &Seen<R>,
    out: &mut [[[f32; LANES]; R]],
) {
    let lanes = products.lanes();
    let out: &mut [[[f32; LANES]; R]; C] = out[c..].first_chunk_mut().expect("C vectors are left");
    let mut sums = [[lanes.splat(0.0); C]; R];
    for r in 0..R {
        for i in 0..C {
            sums[r][i] = lanes.load(&out[i][r]);
        }
    }
    let bytes = P::DEPTH * C * size_of::<[E; LANES]>();
    let part = c * size_of::<[[E; LANES]; LANES]>();
    let rows = values.rows.chunks_exact(P::DEPTH * vectors);
    if seen.iter().all(|seen| *seen == (0, LANES)) {
        for (step, rows) in rows.take(LANES / P::DEPTH).enumerate() {
            ask_for(lanes, next, part + step * bytes, bytes);
            let values = load_values::<P, E, C>(products, rows, vectors, c);
            for r in 0..R {
                let weight = products.get(&weights[r], step);
                for i in 0..C {
                    sums[r][i] = products.add(sums[r][i], weight, values[i]);
                }
            }
        }
    } else {
        let first = seen.iter().map(|s| s.0).min().unwrap_or(0);
        let end = seen.iter().map(|s| s.1).max().unwrap_or(0);
        let steps = first / P::DEPTH..end.div_ceil(P::DEPTH);
        for (step, rows) in rows.enumerate().skip(steps.start).take(steps.len()) {
            ask_for(lanes, next, part + step * bytes, bytes);
            let values = load_values::<P, E, C>(products, rows, vectors, c);
            for r in 0..R {
                let weight = products.get(&weights[r], step);
                let keys = step * P::DEPTH..(step + 1) * P::DEPTH;
                let whole = seen[r].0 <= keys.start && keys.end <= seen[r].1;
                for i in 0..C {
                    if whole {
                        sums[r][i] = products.add(sums[r][i], weight, values[i]);
                        continue;
                    }
                    for (j, key) in keys.clone().enumerate() {
                        if (seen[r].0..seen[r].1).contains(&key) {
                            let value = products.only(values[i], j);
                            sums[r][i] = products.add(sums[r][i], weight, value);
                        }
                    }
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
