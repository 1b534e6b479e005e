//! Matrix products in tiles of small integers, for many rows: weights of any quantised format become bytes again, with one
//! scale for 256 inputs, once for all rows; activations have one for 64. So the inner loop scales little.
//!
//! ```text
//! for each span of 256 inputs in order:
//!     part[16][16] = 0
//!     for each tile of 64 inputs in order:
//!         dot[16][16] = integer dot products of 16 rows and 16 outputs      exact
//!         part += dot * row scale
//!     sum += part * weight scale + sum of row's activations * least weight
//! ```
//! A weight is about `least + scale * byte` with bytes of 0 to 255, an activation about `scale * byte` with bytes of -127
//! to 127. Activations need the finer scale, for a few of them are many times as large as the others: with one for 256
//! inputs the perplexity of SmolLM2-135M in Q4_1 rose by 0.8 % (over 16,000 tokens, against
//! [`int8_matmul`](super::int8_matmul)), with one for 128 by 0.4 %, with one for 64 by 0.13 %; spans of weights of 64, 128
//! or 256 inputs made no difference.
//!
//! **Invariant:** the integers are exact and the float steps of an output are the same, in the same order, on every unit: so
//! a row has the same bits on each of them, whatever rows are beside it.
//!
//! **Error**: in a span, a weight is within `scale / 2` of what the file says, where `scale` is 1/255 of the range that the
//! scales and minima of the span's blocks allow (where that is below the normal numbers, within 255 of the least of them);
//! an activation is within 1/254 of the largest of its tile.

use super::dot::Dpbusd;
use super::float_matmul::Blocks;
use super::tile_matmul::{AHEAD, ROW_TILE, TileKind, TileMatmul, TileProduct, TileSums};
use crate::cpu::panel::PanelBlock;
use crate::cpu::vector::{LANES, LaneKernel, Lanes, Quads};
use crate::tensor::Rows;

/// Inputs of a span: those of a super-block.
pub(crate) const SPAN: usize = 256;

/// Inputs of a tile: as many bytes as a tile register has in a row.
pub(crate) const TILE_INPUTS: usize = 64;

/// Tiles of a span.
const TILES: usize = SPAN / TILE_INPUTS;

/// Up to 256 inputs of sixteen rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct RowSpan {
    /// `[tile][row][input]`. Inputs and rows that are not there are zero in a tile that is used at all.
    pub q: [[[i8; TILE_INPUTS]; ROW_TILE]; TILES],
    /// Of each tile and row: largest magnitude / 127.
    pub scale: [[f32; ROW_TILE]; TILES],
    /// Sum of the bytes times their scales, of each row.
    pub sum: [f32; ROW_TILE],
}

/// Up to 256 inputs of sixteen outputs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct WeightSpan {
    /// `[tile][four inputs][4 output + input]`.
    pub q: [[[u8; 4 * LANES]; ROW_TILE]; TILES],
    pub scale: [f32; LANES],
    pub least: [f32; LANES],
}

/// Spans of both sides.
pub(crate) struct Spans;

impl TileKind for Spans {
    type Rows = RowSpan;
    type Weights = WeightSpan;

    const INPUTS: usize = SPAN;
    const NO_WEIGHTS: WeightSpan = WeightSpan {
        q: [[[0; 4 * LANES]; ROW_TILE]; TILES],
        scale: [0.0; LANES],
        least: [0.0; LANES],
    };
}

impl RowSpan {
    pub const ZERO: Self = Self {
        q: [[[0; TILE_INPUTS]; ROW_TILE]; TILES],
        scale: [[0.0; ROW_TILE]; TILES],
        sum: [0.0; ROW_TILE],
    };
}

/// Tiles that the inputs of span `span` of `k` inputs take.
#[inline(always)]
pub(crate) fn tiles_of(span: usize, k: usize) -> usize {
    (k - span * SPAN).min(SPAN).div_ceil(TILE_INPUTS)
}

/// An algorithm over a unit that multiplies spans. As [`LaneKernel`].
pub(crate) trait SpanKernel {
    fn run<U: TileProduct<Spans>>(self, unit: U);
}

impl SpanKernel for TileMatmul<'_, Spans> {
    #[inline(always)]
    fn run<U: TileProduct<Spans>>(self, unit: U) {
        self.run_on(unit);
    }
}

/// Adds the products of a row and sixteen outputs to their sums: `part`, and the sum of the row's activations.
#[inline(always)]
pub(crate) fn add_part<L: Lanes>(
    lanes: L,
    part: L::F32,
    sum: f32,
    weights: &WeightSpan,
    to: &mut [f32; LANES],
) {
    let there = lanes.fma(part, lanes.load(&weights.scale), lanes.load(to));
    let least = lanes.load(&weights.least);
    lanes.store(lanes.fma(least, lanes.splat(sum), there), to);
}

/// Rows whose sums are in registers at a time, for two panels: 16 accumulators, which hide how long an instruction takes.
const ROWS: usize = 8;

/// The instruction `dpbusd` in a product: by registers of four inputs, eight rows and two panels at a time.
#[derive(Clone, Copy)]
pub(crate) struct ByDpbusd<D>(pub D);

impl<D: Dpbusd> TileProduct<Spans> for ByDpbusd<D> {
    type Lanes = <D as Quads>::Lanes;

    #[inline(always)]
    fn lanes(self) -> Self::Lanes {
        self.0.lanes()
    }

    #[inline(always)]
    fn multiply<const A: usize>(
        self,
        k: usize,
        a: [&[RowSpan]; A],
        b: [&[WeightSpan]; 2],
        sums: &mut [[TileSums; 2]; A],
    ) {
        const { assert!(D::CENTRE == 0, "weights are unsigned") };
        *sums = [[TileSums::ZERO; 2]; A];
        for span in 0..k.div_ceil(SPAN) {
            let tiles = tiles_of(span, k);
            let b = [&b[0][span], &b[1][span]];
            for i in 0..A {
                for first in (0..ROW_TILE).step_by(ROWS) {
                    add_rows(self.0, (&a[i][span], first), b, tiles, &mut sums[i]);
                }
            }
        }
    }
}

/// Adds the products of [`ROWS`] rows from `first` on, for two panels and the first `tiles` tiles of a span.
#[inline(always)]
fn add_rows<D: Dpbusd>(
    d: D,
    (a, first): (&RowSpan, usize),
    b: [&WeightSpan; 2],
    tiles: usize,
    sums: &mut [TileSums; 2],
) {
    let lanes = d.lanes();
    let mut parts = [[lanes.splat(0.0); 2]; ROWS];
    for t in 0..tiles {
        let (q, b0, b1) = (&a.q[t], &b[0].q[t], &b[1].q[t]);
        let q: &[[i8; TILE_INPUTS]; ROWS] = q[first..].first_chunk().expect("a part of a tile");
        let mut dots = [[d.splat(0); 2]; ROWS];
        for p in 0..ROW_TILE {
            let (b0, b1) = (d.load(&b0[p]), d.load(&b1[p]));
            for r in 0..ROWS {
                let quad = d.repeat(&q[r].as_chunks().0[p]);
                dots[r][0] = d.dpbusd(dots[r][0], b0, quad);
                dots[r][1] = d.dpbusd(dots[r][1], b1, quad);
            }
        }
        for r in 0..ROWS {
            let scale = lanes.splat(a.scale[t][first + r]);
            for j in 0..2 {
                parts[r][j] = lanes.fma(lanes.to_f32(dots[r][j]), scale, parts[r][j]);
            }
        }
    }
    for (r, parts) in parts.iter().enumerate() {
        let row = first + r;
        for (j, part) in parts.iter().enumerate() {
            add_part(lanes, *part, a.sum[row], b[j], &mut sums[j].0[row]);
        }
    }
}

/// Brings one panel into spans.
pub(crate) struct WriteSpans<'a, B> {
    pub weights: Blocks<'a, B>,
    pub panel: usize,
    /// Inputs.
    pub k: usize,
    /// `[k / SPAN, rounded up]`.
    pub to: &'a mut [WeightSpan],
}

impl<B: PanelBlock> LaneKernel for WriteSpans<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let blocks = self.weights.of(self.panel, self.k);
        for (blocks, to) in blocks.chunks(SPAN / (32 * B::GROUPS)).zip(self.to) {
            write_span(lanes, blocks, to);
        }
    }
}

#[inline(always)]
fn write_span<L: Lanes, B: PanelBlock>(lanes: L, blocks: &[B], to: &mut WeightSpan) {
    let [least, largest] = B::RANGE;
    let (least, largest) = (lanes.splat(least), lanes.splat(largest));
    let (mut low, mut high) = (lanes.splat(f32::INFINITY), lanes.splat(f32::NEG_INFINITY));
    for block in blocks {
        lanes.prefetch_all(block, AHEAD);
        for group in 0..B::GROUPS {
            for [scale, min] in block.factors(lanes, group) {
                let (a, b) = (lanes.fma(scale, least, min), lanes.fma(scale, largest, min));
                low = lanes.min(low, lanes.min(a, b));
                high = lanes.max(high, lanes.max(a, b));
            }
        }
    }
    let scale = lanes.mul(lanes.sub(high, low), lanes.splat(1.0 / 255.0));
    lanes.store(scale, &mut to.scale);
    lanes.store(low, &mut to.least);
    // Below that a scale has no finite inverse worth the name: such weights are all the least.
    let (zero, one) = (lanes.splat(0.0), lanes.splat(1.0));
    let normal = lanes.splat(f32::MIN_POSITIVE);
    let inverse = lanes.select_less(scale, normal, zero, lanes.div(one, scale));
    let lowered = lanes.splat(-B::RAISE);
    let quads = to.q.as_flattened_mut().as_chunks_mut::<8>().0;
    for (i, block) in blocks.iter().enumerate() {
        for group in 0..B::GROUPS {
            let quads = &mut quads[i * B::GROUPS + group];
            for (half, [scale, min]) in block.factors(lanes, group).into_iter().enumerate() {
                let min = lanes.mul(lanes.sub(lanes.fma(scale, lowered, min), low), inverse);
                let scale = lanes.mul(scale, inverse);
                let quads = quads.as_chunks_mut::<4>().0[half].iter_mut();
                for (i, quads) in quads.enumerate() {
                    let mut w = block.raised(lanes, group, 4 * half + i);
                    for w in &mut w {
                        *w = lanes.fma(scale, *w, min);
                    }
                    lanes.store_quads(w, quads);
                }
            }
        }
    }
    // A tile that is not full: what is left from another panel is multiplied with zeros, so it may be anything.
}

/// Quantises up to sixteen rows to spans. A scale for each tile of each row, so a row's result depends on that row alone.
pub(crate) struct QuantizeSpans<'a> {
    pub x: Rows<'a>,
    /// `[x.cols() / SPAN, rounded up]`.
    pub to: &'a mut [RowSpan],
}

impl LaneKernel for QuantizeSpans<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let cols = self.x.cols();
        for (span, to) in self.to.iter_mut().enumerate() {
            let tiles = tiles_of(span, cols);
            for r in 0..ROW_TILE {
                if r < self.x.rows() {
                    let row = &self.x.row(r)[span * SPAN..];
                    let row = &row[..row.len().min(SPAN)];
                    to.sum[r] = 0.0;
                    for (t, x) in row.chunks(TILE_INPUTS).enumerate() {
                        let (scale, sum) = quantize(lanes, x.as_chunks().0, &mut to.q[t][r]);
                        to.scale[t][r] = scale;
                        to.sum[r] += scale * sum;
                    }
                } else {
                    to.scale.iter_mut().for_each(|scale| scale[r] = 0.0);
                    to.sum[r] = 0.0;
                    to.q[..tiles]
                        .iter_mut()
                        .for_each(|tile| tile[r] = [0; TILE_INPUTS]);
                }
            }
        }
    }
}

/// Quantises up to four vectors. Returns the scale and the sum of the bytes.
#[inline(always)]
fn quantize<L: Lanes>(lanes: L, x: &[[f32; LANES]], to: &mut [i8; TILE_INPUTS]) -> (f32, f32) {
    const VECTORS: usize = TILE_INPUTS / LANES;
    let mut vectors = [lanes.splat(0.0); VECTORS];
    for (vector, x) in vectors.iter_mut().zip(x) {
        *vector = lanes.load(x);
    }
    let mut largest = lanes.splat(0.0);
    for vector in &vectors {
        largest = lanes.max(lanes.abs(*vector), largest);
    }
    let scale = lanes.max_lane(largest) / 127.0;
    // A subnormal scale has no finite inverse worth the name; numbers that small are zero here.
    let inverse = lanes.splat(if scale.is_normal() { 1.0 / scale } else { 0.0 });
    let mut sum = lanes.splat(0.0);
    for (i, to) in to.as_chunks_mut().0.iter_mut().enumerate() {
        let q = lanes.round(lanes.mul(vectors[i], inverse));
        lanes.store_i8(q, to);
        sum = lanes.add(sum, q);
    }
    (scale, lanes.sum(sum))
}
