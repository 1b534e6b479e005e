//! Integer dot products out of the instructions that CPUs have for them.
//!
//! A register of 64 bytes (or several that are as many) holds four inputs of each of sixteen outputs; four activations are
//! repeated in all its lanes.
//!
//! * `dpbusd` (AVX-VNNI, AVX-512 VNNI; ARM's `usdot`) multiplies unsigned by signed bytes and adds four products to an
//!   `i32`: exact.
//! * `sdot` (ARM) does so with signed bytes on both sides. Weights below 128 are the same bytes either way. Those of 8 bits
//!   are made signed by taking 128 from them, which takes 128 times the sum of the activations from the result; that sum is
//!   known, and the result begins with what is missing.
//! * `maddubs` (AVX2) multiplies unsigned by signed bytes but adds two products to an `i16` that **saturates** at 32767. So:
//!   - weights of 4 bits: a pair is at most 2 * 15 * 127 = 3810, and all eight pairs of a block fit (30480);
//!   - of 5 bits: 7874, four fit; of 6 bits: 16002, two fit;
//!   - of 8 bits a pair may be 64770. There the weight's sign moves to the activation (`|w| * sign(w) q`), which bounds
//!     a pair by 2 * 128 * 127 = 32512.

use crate::cpu::vector::{Int8, Quads, SumOf, Unpack};

/// Quads with the instruction `dpbusd`, or one that does the same with signed weights.
pub(crate) trait Dpbusd: Quads + Send + Sync + 'static {
    /// Rows of a register block in a quantised matrix product.
    const ROWS: usize;
    /// As [`Int8::LOOSE_ROWS`].
    const LOOSE_ROWS: Option<usize> = None;
    /// What [`centred`](Self::centred) takes from weights: 128 where the instruction wants them signed.
    const CENTRE: i32 = 0;

    /// Weights of 8 bits as the instruction wants them. Smaller ones are so already.
    fn centred(self, w: Self::Bytes) -> Self::Bytes {
        w
    }
    /// Adds the four products of `w`, below 128 or [`centred`](Self::centred), and signed `q` to each lane.
    fn dpbusd(self, sum: SumOf<Self>, w: Self::Bytes, q: Self::Bytes) -> SumOf<Self>;
}

/// Quads with the instruction `maddubs`.
pub(crate) trait Maddubs: Quads {
    /// 32 `i16`.
    type Pairs: Copy;

    /// The sums of two products of unsigned `w` and signed `q`, saturated.
    fn maddubs(self, w: Self::Bytes, q: Self::Bytes) -> Self::Pairs;
    /// Wraps.
    fn add_pairs(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    /// The sums of two neighbours.
    fn widen(self, x: Self::Pairs) -> SumOf<Self>;
    /// Sums so far, of which a compiler must not put off any: else it works row by row, and weights that it has in registers
    /// go through memory once for each. For sums that fit in registers with nothing else that has to.
    fn hold<const R: usize>(self, _sums: &mut [Self::Pairs; R]) {}
    /// Flips the sign bit of each byte.
    fn flip(self, x: Self::Bytes) -> Self::Bytes;
    /// Magnitudes, 128 for -128.
    fn magnitude(self, x: Self::Bytes) -> Self::Bytes;
    /// `q` with the sign of `w` applied; zero where `w` is.
    fn with_sign(self, q: Self::Bytes, w: Self::Bytes) -> Self::Bytes;
}

/// The body once for each number, with the number known to the compiler: an [`Unpack`] shifts by it. A loop of this size
/// may stay one, and then every shift is by a variable.
macro_rules! unrolled {
    ($p:ident in 0..$end:ident $body:block) => {
        unrolled!($p, $end, $body, 0 1 2 3 4 5 6 7);
    };
    ($p:ident, $end:ident, $body:block, $($n:literal)*) => {
        const { assert!($end <= 8) };
        $(
            if $n < $end {
                let $p = $n;
                $body
            }
        )*
    };
}

impl<D: Dpbusd> Int8 for D {
    const ROWS: usize = D::ROWS;
    const LOOSE_ROWS: Option<usize> = D::LOOSE_ROWS;

    #[inline(always)]
    fn dot_nibbles<const R: usize, const ZERO: i32>(
        self,
        weights: &[[u8; 64]; 4],
        q: [&[[i8; 4]; 8]; R],
        sums: [i32; R],
    ) -> [SumOf<D>; R] {
        nibbles_by_dpbusd::<D, R, ZERO>(self, weights, q, sums)
    }

    #[inline(always)]
    fn dot_bytes<const R: usize, const P: usize, const BITS: u32, const ZERO: i32>(
        self,
        weights: &impl Unpack<P>,
        q: [&[[i8; 4]; P]; R],
        sums: [i32; R],
    ) -> [SumOf<D>; R] {
        bytes_by_dpbusd::<D, R, P, BITS, ZERO>(self, weights, q, sums)
    }
}

#[inline(always)]
fn nibbles_by_dpbusd<D: Dpbusd, const R: usize, const ZERO: i32>(
    d: D,
    weights: &[[u8; 64]; 4],
    q: [&[[i8; 4]; 8]; R],
    sums: [i32; R],
) -> [SumOf<D>; R] {
    let mut dots = [d.splat(0); R];
    for r in 0..R {
        dots[r] = d.splat(-ZERO * sums[r]);
    }
    for p in 0..4 {
        let bytes = d.load(&weights[p]);
        let (low, high) = (d.low_nibbles(bytes), d.high_nibbles(bytes));
        for r in 0..R {
            dots[r] = d.dpbusd(dots[r], low, d.repeat(&q[r][p]));
            dots[r] = d.dpbusd(dots[r], high, d.repeat(&q[r][4 + p]));
        }
    }
    dots
}

#[inline(always)]
fn bytes_by_dpbusd<D: Dpbusd, const R: usize, const P: usize, const BITS: u32, const ZERO: i32>(
    d: D,
    weights: &impl Unpack<P>,
    q: [&[[i8; 4]; P]; R],
    sums: [i32; R],
) -> [SumOf<D>; R] {
    let centre = if BITS == 8 { D::CENTRE } else { 0 };
    let mut dots = [d.splat(0); R];
    for r in 0..R {
        dots[r] = d.splat((centre - ZERO) * sums[r]);
    }
    unrolled!(p in 0..P {
        let mut weights = weights.quad(d, p);
        if BITS == 8 {
            weights = d.centred(weights);
        }
        for r in 0..R {
            dots[r] = d.dpbusd(dots[r], weights, d.repeat(&q[r][p]));
        }
    });
    dots
}

#[inline(always)]
pub(crate) fn nibbles_by_maddubs<M: Maddubs, const R: usize, const ZERO: i32>(
    m: M,
    weights: &[[u8; 64]; 4],
    q: [&[[i8; 4]; 8]; R],
    sums: [i32; R],
) -> [SumOf<M>; R] {
    let zero = m.repeat(&[0; 4]);
    let mut pairs = [m.maddubs(zero, zero); R];
    for p in 0..4 {
        let bytes = m.load(&weights[p]);
        let (low, high) = (m.low_nibbles(bytes), m.high_nibbles(bytes));
        for r in 0..R {
            let products = m.maddubs(low, m.repeat(&q[r][p]));
            pairs[r] = if p == 0 {
                products
            } else {
                m.add_pairs(pairs[r], products)
            };
            let products = m.maddubs(high, m.repeat(&q[r][4 + p]));
            pairs[r] = m.add_pairs(pairs[r], products);
        }
        m.hold(&mut pairs);
    }
    let mut dots = [m.splat(0); R];
    for r in 0..R {
        dots[r] = m.add(m.widen(pairs[r]), m.splat(-ZERO * sums[r]));
    }
    dots
}

#[inline(always)]
pub(crate) fn bytes_by_maddubs<
    M: Maddubs,
    const R: usize,
    const P: usize,
    const BITS: u32,
    const ZERO: i32,
>(
    m: M,
    weights: &impl Unpack<P>,
    q: [&[[i8; 4]; P]; R],
    sums: [i32; R],
) -> [SumOf<M>; R] {
    if BITS == 8 {
        signed_bytes_by_maddubs::<M, R, P, ZERO>(m, weights, q, sums)
    } else {
        small_bytes_by_maddubs::<M, R, P, BITS, ZERO>(m, weights, q, sums)
    }
}

/// Weights of up to 6 bits: as many pairs are added in 16 bits as fit.
#[inline(always)]
fn small_bytes_by_maddubs<
    M: Maddubs,
    const R: usize,
    const P: usize,
    const BITS: u32,
    const ZERO: i32,
>(
    m: M,
    weights: &impl Unpack<P>,
    q: [&[[i8; 4]; P]; R],
    sums: [i32; R],
) -> [SumOf<M>; R] {
    let fit = 32767 / (2 * 127 * ((1 << BITS) - 1));
    let mut dots = [m.splat(0); R];
    for r in 0..R {
        dots[r] = m.splat(-ZERO * sums[r]);
    }
    let zero = m.repeat(&[0; 4]);
    let mut pairs = [m.maddubs(zero, zero); R];
    unrolled!(p in 0..P {
        let weights = weights.quad(m, p);
        for r in 0..R {
            let products = m.maddubs(weights, m.repeat(&q[r][p]));
            pairs[r] = if p % fit == 0 { products } else { m.add_pairs(pairs[r], products) };
        }
        if (p + 1) % fit == 0 || p + 1 == P {
            for r in 0..R {
                dots[r] = m.add(dots[r], m.widen(pairs[r]));
            }
        } else if fit >= P {
            m.hold(&mut pairs);
        }
    });
    dots
}

/// Weights of 8 bits: centred around 128 they are signed, and the sign moves to the activation.
#[inline(always)]
fn signed_bytes_by_maddubs<M: Maddubs, const R: usize, const P: usize, const ZERO: i32>(
    m: M,
    weights: &impl Unpack<P>,
    q: [&[[i8; 4]; P]; R],
    sums: [i32; R],
) -> [SumOf<M>; R] {
    let mut dots = [m.splat(0); R];
    for r in 0..R {
        dots[r] = m.splat((128 - ZERO) * sums[r]);
    }
    unrolled!(p in 0..P {
        let weights = m.flip(weights.quad(m, p));
        let magnitudes = m.magnitude(weights);
        for r in 0..R {
            let signed = m.with_sign(m.repeat(&q[r][p]), weights);
            let products = m.maddubs(magnitudes, signed);
            dots[r] = m.add(dots[r], m.widen(products));
        }
    });
    dots
}

#[cfg(test)]
mod tests {
    use crate::cpu::emulated::{EmulatedMaddubs, EmulatedSdot, EmulatedVnni};
    use crate::cpu::isa::Int8Isa;
    use crate::cpu::portable::Portable;
    use crate::cpu::vector::{Int8, Int8Kernel, LANES, Lanes, SumOf};

    /// All dot products of one set of weights and activations.
    #[derive(Clone)]
    struct Dots {
        weights: [[u8; 64]; 8],
        q: [[[i8; 4]; 8]; 4],
    }

    impl Int8Kernel for Dots {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<I: Int8>(self, int8: I) -> Vec<f32> {
            let mut out = Vec::new();
            let q = self.q.each_ref();
            let sums = self
                .q
                .map(|q| q.as_flattened().iter().map(|&q| i32::from(q)).sum());
            let nibbles = self.weights.first_chunk().unwrap();
            let below = |bits: u32| self.weights.map(|w| w.map(|w| w & ((1 << bits) - 1) as u8));
            push(int8, int8.dot_nibbles::<4, 8>(nibbles, q, sums), &mut out);
            push(int8, int8.dot_nibbles::<4, 0>(nibbles, q, sums), &mut out);
            push(
                int8,
                int8.dot_bytes::<4, 8, 5, 0>(&below(5), q, sums),
                &mut out,
            );
            push(
                int8,
                int8.dot_bytes::<4, 8, 5, 16>(&below(5), q, sums),
                &mut out,
            );
            push(
                int8,
                int8.dot_bytes::<4, 8, 8, 128>(&self.weights, q, sums),
                &mut out,
            );
            let half = below(6);
            let q = self.q.each_ref().map(|q| q.last_chunk::<4>().unwrap());
            let sums = q.map(|q| q.as_flattened().iter().map(|&q| i32::from(q)).sum());
            let half = half.first_chunk().unwrap();
            push(int8, int8.dot_bytes::<4, 4, 6, 32>(half, q, sums), &mut out);
            out
        }
    }

    #[inline(always)]
    fn push<I: Int8>(int8: I, dots: [SumOf<I>; 4], out: &mut Vec<f32>) {
        for dot in dots {
            let mut lanes = [0.0; LANES];
            int8.lanes().store(int8.lanes().to_f32(dot), &mut lanes);
            out.extend(lanes);
        }
    }

    fn check(dots: &Dots) {
        let expected = dots.clone().run(Portable);
        assert_eq!(
            dots.clone().run(EmulatedMaddubs),
            expected,
            "maddubs, emulated"
        );
        assert_eq!(dots.clone().run(EmulatedVnni), expected, "vnni, emulated");
        assert_eq!(dots.clone().run(EmulatedSdot), expected, "sdot, emulated");
        for isa in Int8Isa::all() {
            assert_eq!(isa.run(dots.clone()), expected, "{}", isa.name());
        }
    }

    #[test]
    fn extremes_do_not_saturate() {
        for weight in [0, 1, 127, 128, 255] {
            for q in [-127, 0, 127] {
                check(&Dots {
                    weights: [[weight; 64]; 8],
                    q: [[[q; 4]; 8]; 4],
                });
            }
        }
    }

    #[test]
    fn every_instruction_gives_the_plain_sum() {
        let mut state = 1u64;
        let mut random = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as u8
        };
        for _ in 0..200 {
            let weights = [(); 8].map(|()| [(); 64].map(|()| random()));
            let q =
                [(); 4].map(|()| [(); 8].map(|()| [(); 4].map(|()| (random() as i8).max(-127))));
            check(&Dots { weights, q });
        }
    }
}
