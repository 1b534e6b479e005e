//! What a cache consists of: floats, or bytes whose token and head share a scale.

use super::KvDtype;
use crate::cpu::panel::FloatElement;
use crate::cpu::vector::{LANES, Lanes, load_part};
use crate::memory::{Pod, cast, cast_mut};
use half::{bf16, f16};

/// An element of the cache.
pub(crate) trait KvElement: Pod {
    /// Rows of sixteen elements after those of a tile, in which the scales of its sixteen tokens are kept.
    const SCALE_ROWS: usize;

    /// The lanes, to be multiplied by the scale if there is one.
    fn load<L: Lanes>(lanes: L, from: &[Self; LANES]) -> L::F32;

    /// Rounds lanes that were divided by the scale if there is one.
    fn store<L: Lanes>(lanes: L, x: L::F32, to: &mut [Self; LANES]);

    /// The scale of a token and head: what its elements are divided by before they are rounded.
    fn scale<L: Lanes>(lanes: L, x: &[f32]) -> f32;

    /// The scales of a tile, out of its `SCALE_ROWS`.
    fn scales(rows: &[[Self; LANES]]) -> Option<&[f32; LANES]>;

    /// As [`scales`](Self::scales), to write.
    fn scales_mut(rows: &mut [[Self; LANES]]) -> Option<&mut [f32; LANES]>;
}

impl<E: FloatElement> KvElement for E {
    const SCALE_ROWS: usize = 0;

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[E; LANES]) -> L::F32 {
        <E as FloatElement>::load(lanes, from)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, x: L::F32, to: &mut [E; LANES]) {
        <E as FloatElement>::store(lanes, x, to);
    }

    #[inline(always)]
    fn scale<L: Lanes>(_: L, _: &[f32]) -> f32 {
        1.0
    }

    #[inline(always)]
    fn scales(_: &[[E; LANES]]) -> Option<&[f32; LANES]> {
        None
    }

    #[inline(always)]
    fn scales_mut(_: &mut [[E; LANES]]) -> Option<&mut [f32; LANES]> {
        None
    }
}

/// The byte of an `i8` of -127 to 127. **Error**: half a scale, so `2^-7.99` of the largest of the token and head.
impl KvElement for u8 {
    const SCALE_ROWS: usize = size_of::<f32>();

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[u8; LANES]) -> L::F32 {
        lanes.load_i8(from)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, x: L::F32, to: &mut [u8; LANES]) {
        let mut rounded = [0; LANES];
        lanes.store_i8(x, &mut rounded);
        for (to, rounded) in to.iter_mut().zip(rounded) {
            *to = rounded as u8;
        }
    }

    #[inline(always)]
    fn scale<L: Lanes>(lanes: L, x: &[f32]) -> f32 {
        let zero = lanes.splat(0.0);
        let (mut most, mut broken) = (zero, zero);
        for x in x.chunks(LANES) {
            let x = load_part(lanes, x);
            most = lanes.max(most, lanes.abs(x));
            // Zero, or no number where `x` is none or is infinite, which must not become one.
            broken = lanes.fma(x, zero, broken);
        }
        lanes.max_lane(most) / 127.0 + lanes.sum(broken)
    }

    #[inline(always)]
    fn scales(rows: &[[u8; LANES]]) -> Option<&[f32; LANES]> {
        cast(rows.as_flattened()).as_array()
    }

    #[inline(always)]
    fn scales_mut(rows: &mut [[u8; LANES]]) -> Option<&mut [f32; LANES]> {
        cast_mut(rows.as_flattened_mut()).as_mut_array()
    }
}

/// Calls `f` for the element type of `dtype`, as a generic parameter.
pub(crate) trait WithElement {
    type Output;
    fn with<E: KvElement>(self) -> Self::Output;
}

pub(crate) fn with_element<W: WithElement>(dtype: KvDtype, w: W) -> W::Output {
    match dtype {
        KvDtype::F32 => w.with::<f32>(),
        KvDtype::F16 => w.with::<f16>(),
        KvDtype::BF16 => w.with::<bf16>(),
        KvDtype::Q8 => w.with::<u8>(),
    }
}

impl KvDtype {
    /// [`KvElement::SCALE_ROWS`] of its elements.
    pub(super) fn scale_rows(self) -> usize {
        struct ScaleRows;
        impl WithElement for ScaleRows {
            type Output = usize;
            fn with<E: KvElement>(self) -> usize {
                E::SCALE_ROWS
            }
        }
        with_element(self, ScaleRows)
    }
}
