//! What a sampler wants to know of a row of logits, in a pass over it: the largest, sums of exponentials, and which are
//! large.

use super::exp::{LOG2_E, exp2};
use crate::cpu::vector::{LANES, LaneKernel, Lanes};
use std::ops::Range;

/// A number and where it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Largest {
    /// Position in the slice.
    pub index: usize,
    /// The number.
    pub value: f32,
}

/// The largest number, of equals the first. `None` if there is none, or something is not a number.
pub(crate) struct FindLargest<'a> {
    pub x: &'a [f32],
}

impl LaneKernel for FindLargest<'_> {
    type Output = Option<Largest>;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Option<Largest> {
        let (chunks, tail) = self.x.as_chunks::<LANES>();
        let (zero, one) = (lanes.splat(0.0), lanes.splat(1.0));
        let minus_one = lanes.splat(-1.0);
        let mut largest = lanes.splat(f32::NEG_INFINITY);
        let mut strange = zero;
        for chunk in chunks {
            let x = lanes.load(chunk);
            largest = lanes.max(x, largest);
            // Neither negative nor more than -1: not a number.
            let above = lanes.select_less(minus_one, x, zero, one);
            strange = lanes.max(lanes.select_less(x, zero, zero, above), strange);
        }
        let mut value = lanes.max_lane(largest);
        let mut broken = lanes.max_lane(strange) > 0.0;
        for &x in tail {
            broken |= x.is_nan();
            value = if x > value { x } else { value };
        }
        if broken || self.x.is_empty() {
            return None;
        }
        // If nothing is more than minus infinity, the first is as large as any.
        let index = first_at_least(lanes, self.x, value).unwrap_or(0);
        Some(Largest {
            index,
            value: self.x[index],
        })
    }
}

/// First position of a number that is at least `least` and more than minus infinity.
#[inline(always)]
fn first_at_least<L: Lanes>(lanes: L, x: &[f32], least: f32) -> Option<usize> {
    let below = lanes.splat(least.next_down());
    let (chunks, tail) = x.as_chunks::<LANES>();
    let is = |&x: &f32| x >= least && x > f32::NEG_INFINITY;
    for (i, chunk) in chunks.iter().enumerate() {
        if lanes.any_less(below, lanes.load(chunk)) {
            let lane = chunk.iter().position(is);
            return lane.map(|lane| i * LANES + lane);
        }
    }
    let lane = tail.iter().position(is)?;
    Some(chunks.len() * LANES + lane)
}

/// The sum of `e^((x - origin) * rate)` over the numbers that are at least `from` and less than `to`.
///
/// **Error**: relatively within 1.4e-6, since sixteen vectors are summed in single precision (their sums in double), and
/// 1.8e-7 more for every unit of the exponents that make the sum: difference, rate and product are rounded.
pub(crate) struct SumExp<'a> {
    pub x: &'a [f32],
    pub origin: f32,
    pub rate: f32,
    pub from: f32,
    pub to: f32,
}

/// Vectors that are summed in single precision.
const BLOCK: usize = 16;

impl LaneKernel for SumExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f64 {
        let (chunks, tail) = self.x.as_chunks::<LANES>();
        let mut whole = [f32::NEG_INFINITY; LANES];
        whole[..tail.len()].copy_from_slice(tail);
        let mut total = 0.0;
        for block in chunks.chunks(BLOCK) {
            let mut sum = lanes.splat(0.0);
            for chunk in block {
                sum = lanes.add(sum, self.powers(lanes, chunk));
            }
            total += f64::from(lanes.sum(sum));
        }
        total + f64::from(lanes.sum(self.powers(lanes, &whole)))
    }
}

impl SumExp<'_> {
    #[inline(always)]
    fn powers<L: Lanes>(&self, lanes: L, x: &[f32; LANES]) -> L::F32 {
        let (x, zero) = (lanes.load(x), lanes.splat(0.0));
        let exponent = lanes.mul(
            lanes.sub(x, lanes.splat(self.origin)),
            lanes.splat(self.rate * LOG2_E),
        );
        let power = exp2(lanes, exponent);
        let power = lanes.select_less(x, lanes.splat(self.to), power, zero);
        lanes.select_less(x, lanes.splat(self.from), zero, power)
    }
}

/// Positions of the numbers in a range of values, ascending, added to `found`. Minus infinity is in no range.
pub(crate) struct FindWithin<'a> {
    pub x: &'a [f32],
    /// From the first, up to but not including the last.
    pub values: Range<f32>,
    pub found: &'a mut Vec<u32>,
}

impl LaneKernel for FindWithin<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Range { start, end } = self.values;
        let below = lanes.splat(start.next_down());
        let is = |x: f32| x >= start && x < end && x > f32::NEG_INFINITY;
        let (chunks, tail) = self.x.as_chunks::<LANES>();
        for (i, chunk) in chunks.iter().enumerate() {
            // Most vectors hold none.
            if lanes.any_less(below, lanes.load(chunk)) {
                for (lane, &x) in chunk.iter().enumerate() {
                    if is(x) {
                        self.found.push((i * LANES + lane) as u32);
                    }
                }
            }
        }
        for (lane, &x) in tail.iter().enumerate() {
            if is(x) {
                self.found.push((chunks.len() * LANES + lane) as u32);
            }
        }
    }
}
