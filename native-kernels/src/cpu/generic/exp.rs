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
    let power = lanes.scale_by_power(p, n);
    lanes.select_less(x, lanes.splat(SMALLEST), lanes.splat(0.0), power)
}

/// `2^x` for `x` up to 127, where the result is rounded to eight bits; 2^-126 comes out below -126.
///
/// **Error**: within 2^-13 of the true power, relatively. The polynomial is the minimax of degree 3 with the constant term
/// 1.
#[inline(always)]
pub(crate) fn coarse_exp2<L: Lanes>(lanes: L, x: L::F32) -> L::F32 {
    let bounded = lanes.max(x, lanes.splat(SMALLEST));
    let n = lanes.round(bounded);
    let f = lanes.sub(bounded, n);
    let mut p = lanes.splat(0.055_008_933);
    for c in [0.242_210_98, 0.693_282_9, 1.0] {
        p = lanes.fma(p, f, lanes.splat(c));
    }
    lanes.scale_by_power(p, n)
}

/// `1 / x` for `x` from 1 to 2^126, within 1.2e-7, relatively; of 1 it is exactly 1. A division takes the place of more
/// than thirty operations in the pipelines of x86, and this is seven.
///
/// **Method**: the negated logarithm, which is nearly the bits, then three steps of Newton's iteration.
#[inline(always)]
fn reciprocal<L: Lanes>(lanes: L, x: L::F32) -> L::F32 {
    let mut y = lanes.subtract_bits(0x7EF3_11C7, x);
    let (one, negated) = (lanes.splat(1.0), lanes.sub(lanes.splat(0.0), x));
    for _ in 0..3 {
        y = lanes.fma(y, lanes.fma(negated, y, one), y);
    }
    y
}

/// `1 / (1 + e^x)`.
#[inline(always)]
fn falling<L: Lanes>(lanes: L, x: L::F32) -> L::F32 {
    // Beyond that the result is zero but for 2^-125.
    let bounded = lanes.min(lanes.mul(x, lanes.splat(LOG2_E)), lanes.splat(125.0));
    reciprocal(lanes, lanes.add(lanes.splat(1.0), exp2(lanes, bounded)))
}

/// The logistic function: `1 / (1 + e^-x)`.
///
/// **Error**: within `1.5e-7 (1 + |x|)` of the true value, relatively, or 2^-125, absolutely.
#[inline(always)]
pub(crate) fn sigmoid<L: Lanes>(lanes: L, x: L::F32) -> L::F32 {
    falling(lanes, lanes.sub(lanes.splat(0.0), x))
}

/// The hyperbolic tangent, as `1 - 2 / (1 + e^2x)`.
///
/// **Error**: within 2e-7 of the true value, absolutely.
#[inline(always)]
pub(crate) fn tanh<L: Lanes>(lanes: L, x: L::F32) -> L::F32 {
    let (one, minus_two) = (lanes.splat(1.0), lanes.splat(-2.0));
    lanes.fma(minus_two, falling(lanes, lanes.add(x, x)), one)
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
    fn coarse_powers_are_within_the_stated_error() {
        for i in 0..200_000 {
            let x = -126.0 + i as f32 * 0.001_264_9;
            let found = f64::from(coarse_exp2(Portable, [x; LANES])[0]);
            let error = (found / f64::from(x).exp2() - 1.0).abs();
            assert!(error < 2f64.powi(-13), "{x}: {error}");
        }
        let power = |x: f32| coarse_exp2(Portable, [x; LANES])[0];
        assert_eq!(
            (power(0.0), power(8.0), power(f32::NEG_INFINITY)),
            (1.0, 256.0, f32::MIN_POSITIVE)
        );
    }

    #[test]
    fn reciprocals_are_within_the_stated_error() {
        for i in 0..400_000 {
            let x = 1.0 + i as f32 * 0.000_013;
            for x in [x, x * 2f32.powi(60), x * 2f32.powi(123)] {
                let error = f64::from(reciprocal(Portable, [x; LANES])[0]) * f64::from(x) - 1.0;
                assert!(error.abs() < 1.2e-7, "{x}: {error}");
            }
        }
        assert_eq!(reciprocal(Portable, [1.0; LANES])[0], 1.0);
    }

    #[test]
    fn logistic_values_are_within_the_stated_error() {
        let logistic = |x: f32| sigmoid(Portable, [x; LANES])[0];
        for i in -86_000..100_000 {
            let x = i as f32 * 0.001;
            let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
            let error = (f64::from(logistic(x)) / exact - 1.0).abs();
            assert!(error < 1.5e-7 * f64::from(1.0 + x.abs()), "{x}: {error}");
        }
        assert_eq!((logistic(0.0), logistic(f32::INFINITY)), (0.5, 1.0));
        assert!(logistic(f32::NEG_INFINITY) <= 2f32.powi(-125));
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
