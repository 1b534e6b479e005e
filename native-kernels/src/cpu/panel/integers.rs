//! How a quantised panel holds its integers.

use super::QuantBlock;
use crate::cpu::vector::{I32Of, Int8, LANES, Lanes, Quads, Unpack};
use crate::memory::Pod;

/// Unsigned integers of 16 outputs x 32 inputs.
pub(crate) trait Integers: Pod {
    /// What [`raised`](Self::raised) adds.
    const RAISE: f32;
    /// The largest that there may be.
    const LARGEST: f32;

    fn set(&mut self, lane: usize, q: &[u8]);
    fn get(&self, lane: usize, k: usize) -> u8;
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]; 32]);
    /// Inputs `4 four` to `4 four + 3`, each raised by [`RAISE`](Self::RAISE): what is cheapest to make.
    fn raised<L: Lanes>(&self, lanes: L, four: usize) -> [L::F32; 4];
    /// Dot products of the integers less `ZERO`.
    fn dot<I: Int8, const R: usize, const ZERO: i32>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [I32Of<I>; R];
}

/// Integers whose halves, 16 inputs each, can be multiplied by themselves.
pub(crate) trait Halves: Integers {
    /// Dot products of the integers of half `HALF` (0 or 1) less `ZERO`.
    fn dot_half<I: Int8, const R: usize, const ZERO: i32, const HALF: usize>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [I32Of<I>; R];
}

/// Integers of 4 bits in the layout of [`Int8::dot_nibbles`].
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Nibbles([[u8; 64]; 4]);

/// Integers of `BITS` bits, one a byte, in the layout of [`Unpack::quad`].
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Bytes<const BITS: u32>([[u8; 64]; 8]);

/// Integers of 2 bits: byte `64 p + 4 lane + j` holds, from its lowest bits on, the inputs `4 p + j`, `8 + 4 p + j`,
/// `16 + 4 p + j` and `24 + 4 p + j`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Pairs([[u8; 64]; 2]);

/// Integers of 3 bits: the two low ones as in [`Pairs`], and bit `p` of byte `4 lane + j` is the high one of input
/// `4 p + j`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Triples {
    low: Pairs,
    high: [u8; 64],
}

// SAFETY: transparent wrappers of arrays of bytes.
unsafe impl Pod for Nibbles {}
// SAFETY: as above.
unsafe impl<const BITS: u32> Pod for Bytes<BITS> {}
// SAFETY: as above.
unsafe impl Pod for Pairs {}
// SAFETY: `repr(C)` of arrays of bytes: no padding, all bits are values.
unsafe impl Pod for Triples {}

impl Integers for Nibbles {
    const RAISE: f32 = 16.0;
    const LARGEST: f32 = 15.0;

    fn set(&mut self, lane: usize, q: &[u8]) {
        for k in 0..16 {
            self.0[k / 4][4 * lane + k % 4] = q[k] | q[16 + k] << 4;
        }
    }

    fn get(&self, lane: usize, k: usize) -> u8 {
        let byte = self.0[k % 16 / 4][4 * lane + k % 4];
        if k < 16 { byte & 0x0f } else { byte >> 4 }
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]; 32]) {
        for p in 0..4 {
            let quads = lanes.load_quads(&self.0[p]);
            lanes.store(lanes.field::<0>(quads, 15), &mut to[4 * p]);
            lanes.store(lanes.field::<8>(quads, 15), &mut to[4 * p + 1]);
            lanes.store(lanes.field::<16>(quads, 15), &mut to[4 * p + 2]);
            lanes.store(lanes.field::<24>(quads, 15), &mut to[4 * p + 3]);
            lanes.store(lanes.field::<4>(quads, 15), &mut to[16 + 4 * p]);
            lanes.store(lanes.field::<12>(quads, 15), &mut to[16 + 4 * p + 1]);
            lanes.store(lanes.field::<20>(quads, 15), &mut to[16 + 4 * p + 2]);
            lanes.store(lanes.field::<28>(quads, 15), &mut to[16 + 4 * p + 3]);
        }
    }

    #[inline(always)]
    fn raised<L: Lanes>(&self, lanes: L, four: usize) -> [L::F32; 4] {
        let quads = lanes.load_quads(&self.0[four % 4]);
        match four {
            0..4 => [
                lanes.raised_field::<0, 4>(quads),
                lanes.raised_field::<8, 4>(quads),
                lanes.raised_field::<16, 4>(quads),
                lanes.raised_field::<24, 4>(quads),
            ],
            _ => [
                lanes.raised_field::<4, 4>(quads),
                lanes.raised_field::<12, 4>(quads),
                lanes.raised_field::<20, 4>(quads),
                lanes.raised_field::<28, 4>(quads),
            ],
        }
    }

    #[inline(always)]
    fn dot<I: Int8, const R: usize, const ZERO: i32>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [I32Of<I>; R] {
        let (q, sums) = (
            x.each_ref().map(|x| &x.q),
            x.each_ref().map(QuantBlock::sum),
        );
        int8.dot_nibbles::<R, ZERO>(&self.0, q, sums)
    }
}

impl<const BITS: u32> Integers for Bytes<BITS> {
    const RAISE: f32 = 256.0;
    const LARGEST: f32 = ((1 << BITS) - 1) as f32;

    fn set(&mut self, lane: usize, q: &[u8]) {
        for (k, &q) in q.iter().enumerate() {
            self.0[k / 4][4 * lane + k % 4] = q;
        }
    }

    fn get(&self, lane: usize, k: usize) -> u8 {
        self.0[k / 4][4 * lane + k % 4]
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]; 32]) {
        for p in 0..8 {
            let quads = lanes.load_quads(&self.0[p]);
            lanes.store(lanes.field::<0>(quads, 255), &mut to[4 * p]);
            lanes.store(lanes.field::<8>(quads, 255), &mut to[4 * p + 1]);
            lanes.store(lanes.field::<16>(quads, 255), &mut to[4 * p + 2]);
            lanes.store(lanes.field::<24>(quads, 255), &mut to[4 * p + 3]);
        }
    }

    #[inline(always)]
    fn raised<L: Lanes>(&self, lanes: L, four: usize) -> [L::F32; 4] {
        let quads = lanes.load_quads(&self.0[four]);
        [
            lanes.raised_field::<0, 8>(quads),
            lanes.raised_field::<8, 8>(quads),
            lanes.raised_field::<16, 8>(quads),
            lanes.raised_field::<24, 8>(quads),
        ]
    }

    #[inline(always)]
    fn dot<I: Int8, const R: usize, const ZERO: i32>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [I32Of<I>; R] {
        dot::<I, R, BITS, ZERO>(int8, &self.0, x)
    }
}

impl<const BITS: u32> Halves for Bytes<BITS> {
    #[inline(always)]
    fn dot_half<I: Int8, const R: usize, const ZERO: i32, const HALF: usize>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [I32Of<I>; R] {
        dot_half::<I, R, BITS, ZERO, HALF>(int8, &self.0, x)
    }
}

impl Pairs {
    fn set_all(&mut self, lane: usize, q: impl Fn(usize) -> u8) {
        for k in 0..8 {
            self.0[k / 4][4 * lane + k % 4] =
                q(k) | q(8 + k) << 2 | q(16 + k) << 4 | q(24 + k) << 6;
        }
    }
}

impl Unpack<8> for Pairs {
    #[inline(always)]
    fn quad<Q: Quads>(&self, quads: Q, p: usize) -> Q::Bytes {
        quads.bits(quads.load(&self.0[p % 2]), 2 * (p / 2) as i32, 3)
    }
}

impl Integers for Pairs {
    const RAISE: f32 = 0.0;
    const LARGEST: f32 = 3.0;

    fn set(&mut self, lane: usize, q: &[u8]) {
        self.set_all(lane, |k| q[k]);
    }

    fn get(&self, lane: usize, k: usize) -> u8 {
        self.0[k % 8 / 4][4 * lane + k % 4] >> (2 * (k / 8)) & 3
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]; 32]) {
        for p in 0..8 {
            for (to, x) in to[4 * p..].iter_mut().zip(self.raised(lanes, p)) {
                lanes.store(x, to);
            }
        }
    }

    #[inline(always)]
    fn raised<L: Lanes>(&self, lanes: L, four: usize) -> [L::F32; 4] {
        let place = 1 << (2 * (four / 2));
        masked(lanes, &self.0[four % 2], 3 * place, 1.0 / f32::from(place))
    }

    #[inline(always)]
    fn dot<I: Int8, const R: usize, const ZERO: i32>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [I32Of<I>; R] {
        dot::<I, R, 2, ZERO>(int8, self, x)
    }
}

impl Halves for Pairs {
    #[inline(always)]
    fn dot_half<I: Int8, const R: usize, const ZERO: i32, const HALF: usize>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [I32Of<I>; R] {
        dot_half::<I, R, 2, ZERO, HALF>(int8, self, x)
    }
}

impl Unpack<8> for Triples {
    #[inline(always)]
    fn quad<Q: Quads>(&self, quads: Q, p: usize) -> Q::Bytes {
        let high = quads.bits(quads.load(&self.high), p as i32 - 2, 4);
        quads.or(self.low.quad(quads, p), high)
    }
}

impl Integers for Triples {
    const RAISE: f32 = 0.0;
    const LARGEST: f32 = 7.0;

    fn set(&mut self, lane: usize, q: &[u8]) {
        self.low.set_all(lane, |k| q[k] & 3);
        for j in 0..4 {
            self.high[4 * lane + j] = (0..8).map(|p| (q[4 * p + j] >> 2) << p).sum();
        }
    }

    fn get(&self, lane: usize, k: usize) -> u8 {
        let high = self.high[4 * lane + k % 4] >> (k / 4) & 1;
        self.low.get(lane, k) | high << 2
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]; 32]) {
        for p in 0..8 {
            for (to, x) in to[4 * p..].iter_mut().zip(self.raised(lanes, p)) {
                lanes.store(x, to);
            }
        }
    }

    #[inline(always)]
    fn raised<L: Lanes>(&self, lanes: L, four: usize) -> [L::F32; 4] {
        let place = 1 << four;
        let high = masked(lanes, &self.high, place, 4.0 / f32::from(place));
        let mut sum = self.low.raised(lanes, four);
        for i in 0..4 {
            sum[i] = lanes.add(sum[i], high[i]);
        }
        sum
    }

    #[inline(always)]
    fn dot<I: Int8, const R: usize, const ZERO: i32>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [I32Of<I>; R] {
        dot::<I, R, 3, ZERO>(int8, self, x)
    }
}

impl Halves for Triples {
    #[inline(always)]
    fn dot_half<I: Int8, const R: usize, const ZERO: i32, const HALF: usize>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [I32Of<I>; R] {
        dot_half::<I, R, 3, ZERO, HALF>(int8, self, x)
    }
}

/// The four inputs of a row of bytes, and-ed with `mask` where they stand and multiplied by `scale`.
#[inline(always)]
fn masked<L: Lanes>(lanes: L, bytes: &[u8; 64], mask: u8, scale: f32) -> [L::F32; 4] {
    let (quads, scale) = (lanes.load_quads(bytes), lanes.splat(scale));
    [
        lanes.mul(lanes.field::<0>(quads, mask), scale),
        lanes.mul(lanes.field::<8>(quads, mask), scale),
        lanes.mul(lanes.field::<16>(quads, mask), scale),
        lanes.mul(lanes.field::<24>(quads, mask), scale),
    ]
}

#[inline(always)]
pub(super) fn dot<I: Int8, const R: usize, const BITS: u32, const ZERO: i32>(
    int8: I,
    weights: &impl Unpack<8>,
    x: &[QuantBlock; R],
) -> [I32Of<I>; R] {
    let (q, sums) = (
        x.each_ref().map(|x| &x.q),
        x.each_ref().map(QuantBlock::sum),
    );
    int8.dot_bytes::<R, 8, BITS, ZERO>(weights, q, sums)
}

#[inline(always)]
fn dot_half<I: Int8, const R: usize, const BITS: u32, const ZERO: i32, const HALF: usize>(
    int8: I,
    weights: &impl Unpack<8>,
    x: &[QuantBlock; R],
) -> [I32Of<I>; R] {
    let q = x.each_ref().map(|x| &x.q.as_chunks::<4>().0[HALF]);
    let sums = x.each_ref().map(|x| i32::from(x.sums[HALF]));
    int8.dot_bytes::<R, 4, BITS, ZERO>(&Half::<_, HALF>(weights), q, sums)
}

/// The first or the last 16 inputs of 32. Which is known to the compiler, as shifts depend on it.
struct Half<'a, U, const HALF: usize>(&'a U);

impl<U: Unpack<8>, const HALF: usize> Unpack<4> for Half<'_, U, HALF> {
    #[inline(always)]
    fn quad<Q: Quads>(&self, quads: Q, p: usize) -> Q::Bytes {
        self.0.quad(quads, 4 * HALF + p)
    }
}
