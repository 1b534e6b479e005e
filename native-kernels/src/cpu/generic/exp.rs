//! Powers of two on sixteen lanes, from which softmax and the logistic function are made.

use crate::cpu::vector::Lanes;

/// log2(e), to turn powers of e into powers of two.
pub(crate) const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// Below this the result is zero: `2^x` would be less than the smallest normal number.
const SMALLEST: f32 = -126.0;

/// `2^x` for `x` up to 127; larger ones count as 127, and zero comes out below -126.
///
/// **Error**: within 1.5e-7 of the true power, relatively (the test sweeps it). `2^0` is exactly 1, and the result of a
/// lane depends on that lane alone, on every instance bit for bit.
///
/// `x = n + f` with `n` the nearest integer, so `2^x = 2^n 2^f` and `|f| <= 1/2`. The polynomial is the minimax of
/// degree 6 for `2^f` with the constant term 1 (relative error 2e-9, far below the rounding).
#[inline(always)]
pub(crate) fn exp2<L: Lanes>(lanes: L, x: L::F32) -> L::F32 {
    const COEFFICIENTS: [f32; 6] = [
        0.000_153_533_62,
        0.001_339_887_5,
        0.009_618_437,
        0.055_503_324,
        0.240_226_48,
        std::f32::consts::LN_2,
    ];
    let bounded = lanes.max(lanes.min(x, lanes.splat(127.0)), lanes.splat(SMALLEST));
    let n = lanes.round(bounded);
    let f = lanes.sub(bounded, n);
    let mut p = lanes.splat(COEFFICIENTS[0]);
    for c in &COEFFICIENTS[1..] {
        p = lanes.fma(p, f, lanes.splat(*c));
    }
    p = lanes.fma(p, f, lanes.splat(1.0));
    let power = lanes.mul(p, lanes.power_of_two(n));
    lanes.select_less(x, lanes.splat(SMALLEST), lanes.splat(0.0), power)
}

/// The logistic function: `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<L: Lanes>(lanes: L, x: L::F32) -> L::F32 {
    let one = lanes.splat(1.0);
    let power = exp2(lanes, lanes.mul(x, lanes.splat(-LOG2_E)));
    lanes.div(one, lanes.add(one, power))
}

/// The hyperbolic tangent, as `1 - 2 / (1 + e^2x)`.
///
/// **Error**: within 2e-7 of the true value, absolutely.
#[inline(always)]
pub(crate) fn tanh<L: Lanes>(lanes: L, x: L::F32) -> L::F32 {
    let (one, two) = (lanes.splat(1.0), lanes.splat(2.0));
    let power = exp2(lanes, lanes.mul(x, lanes.splat(2.0 * LOG2_E)));
    lanes.sub(one, lanes.div(two, lanes.add(one, power)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::portable::Portable;
    use crate::cpu::vector::LANES;

    #[test]
    fn powers_are_within_the_stated_error() {
        let mut worst = 0.0f64;
        // A step that no binary fraction divides, so that all of the polynomial's interval is met.
        for i in 0..200_000 {
            let x = -126.0 + i as f32 * 0.001_264_9;
            let exact = f64::from(x).exp2();
            let found = f64::from(exp2(Portable, [x; LANES])[0]);
            worst = worst.max((found / exact - 1.0).abs());
        }
        assert!(worst < 1.5e-7, "{worst}");
    }

    #[test]
    fn tangents_are_within_the_stated_error() {
        for i in -40_000..40_000 {
            let x = i as f32 * 0.000_513;
            let error = (f64::from(tanh(Portable, [x; LANES])[0]) - f64::from(x).tanh()).abs();
            assert!(error < 2e-7, "{x}: {error}");
        }
        assert_eq!(tanh(Portable, [f32::INFINITY; LANES])[0], 1.0);
        assert_eq!(tanh(Portable, [f32::NEG_INFINITY; LANES])[0], -1.0);
    }

    #[test]
    fn the_ends_are_exact() {
        let power = |x: f32| exp2(Portable, [x; LANES])[0];
        assert_eq!(power(0.0), 1.0);
        assert_eq!(power(-1.0), 0.5);
        assert_eq!(power(-126.0), f32::MIN_POSITIVE);
        assert_eq!(power(-126.1), 0.0);
        assert_eq!(power(f32::NEG_INFINITY), 0.0);
        assert_eq!(power(1000.0), 2f32.powi(127));
    }
}
