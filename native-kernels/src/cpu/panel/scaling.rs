//! What becomes of integers: weights by a scale and a zero or a minimum, and dot products by the scales of both sides.

use super::{F32Of, PanelBlock, QuantBlock};
use crate::cpu::generic::tile_matmul::{PairUnit, TileWords};
use crate::cpu::vector::{Int8, LANES, Lanes, SumOf};

/// `w = scale * (w - zero)`.
#[inline(always)]
pub(super) fn centre<L: Lanes>(
    lanes: L,
    scale: L::F32,
    zero: L::F32,
    weights: &mut [[f32; LANES]],
) {
    for w in weights {
        let q = lanes.sub(lanes.load(w), zero);
        lanes.store(lanes.mul(scale, q), w);
    }
}

/// `w = scale * w + min`.
#[inline(always)]
pub(super) fn range<L: Lanes>(lanes: L, scale: L::F32, min: L::F32, weights: &mut [[f32; LANES]]) {
    for w in weights {
        let scaled = lanes.mul(scale, lanes.load(w));
        lanes.store(lanes.add(scaled, min), w);
    }
}

/// Writes all weights of a block to tiles of 32 inputs, `[GROUPS]`, rounded to `bf16`.
///
/// **Error**: the minimum is joined with what the integers are raised by, so a weight is within `2^-15 |scale|` of the
/// exact one before it is rounded to eight bits.
#[inline(always)]
pub(crate) fn write_tiles<B: PanelBlock, U: PairUnit>(unit: U, block: &B, to: &mut [TileWords]) {
    let lanes = unit.lanes();
    let lowered = lanes.splat(-B::RAISE);
    for (group, to) in to.iter_mut().enumerate() {
        for (half, [scale, min]) in block.factors(lanes, group).into_iter().enumerate() {
            let min = lanes.fma(scale, lowered, min);
            for four in 4 * half..4 * half + 4 {
                let mut w = block.raised(lanes, group, four);
                for w in &mut w {
                    *w = lanes.fma(scale, *w, min);
                }
                unit.store_pairs(w[0], w[1], &mut to.0[2 * four]);
                unit.store_pairs(w[2], w[3], &mut to.0[2 * four + 1]);
            }
        }
    }
}

/// Adds `scale * x.scale * dot` for each row.
#[inline(always)]
pub(super) fn accumulate<I: Int8, const R: usize>(
    int8: I,
    scale: F32Of<I>,
    x: &[QuantBlock; R],
    dot: [SumOf<I>; R],
    sum: &mut [F32Of<I>; R],
) {
    let lanes = int8.lanes();
    for r in 0..R {
        let scale = lanes.mul(scale, lanes.splat(x[r].scale));
        sum[r] = lanes.fma(lanes.to_f32(dot[r]), scale, sum[r]);
    }
}

/// Adds `x.scale * scale * dot + min * xs` for each row, where `xs` is the sum of the activations that `dot` is over.
#[inline(always)]
pub(super) fn accumulate_ranged<I: Int8, const R: usize>(
    int8: I,
    [scale, min]: [F32Of<I>; 2],
    x: &[QuantBlock; R],
    xs: [f32; R],
    dot: [SumOf<I>; R],
    sum: &mut [F32Of<I>; R],
) {
    let lanes = int8.lanes();
    for r in 0..R {
        let scale = lanes.mul(scale, lanes.splat(x[r].scale));
        sum[r] = lanes.fma(lanes.to_f32(dot[r]), scale, sum[r]);
        sum[r] = lanes.fma(min, lanes.splat(xs[r]), sum[r]);
    }
}
