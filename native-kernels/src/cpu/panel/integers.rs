//! How a quantised panel holds its integers.

use super::QuantBlock;
use crate::cpu::vector::{Int8, LANES, Lanes, Quads, SumOf, Unpack};
use crate::memory::Pod;

/// Integers of 16 outputs x 32 inputs to multiply with.
pub(crate) trait Dots: Pod {
    /// Dot products of the integers less `ZERO`.
    fn dot<I: Int8, const R: usize, const ZERO: i32>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [SumOf<I>; R];
}

/// Integers that can be taken apart.
pub(crate) trait Loosen: Dots {
    /// As bytes.
    type Loose: Halves;

    /// Whether they have less than a byte.
    const TIGHT: bool = true;

    fn loosen<Q: Quads>(&self, quads: Q, to: &mut Self::Loose);
}

/// Unsigned integers of 16 outputs x 32 inputs.
pub(crate) trait Integers: Loosen {
    /// What [`raised`](Self::raised) adds.
    const RAISE: f32;
    /// The largest that there may be.
    const LARGEST: f32;

    fn set(&mut self, lane: usize, q: &[u8]);
    fn get(&self, lane: usize, k: usize) -> u8;
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]; 32]);
    /// Inputs `4 four` to `4 four + 3`, each raised by [`RAISE`](Self::RAISE): what is cheapest to make.
    fn raised<L: Lanes>(&self, lanes: L, four: usize) -> [L::F32; 4];
}

/// Integers whose halves, 16 inputs each, can be multiplied by themselves.
pub(crate) trait Halves: Dots {
    /// Dot products of the integers of half `HALF` (0 or 1) less `ZERO`.
    fn dot_half<I: Int8, const R: usize, const ZERO: i32, const HALF: usize>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [SumOf<I>; R];
}

/// Integers of 4 bits in the layout of [`Int8::dot_nibbles`].
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Nibbles([[u8; 64]; 4]);

/// Integers of `BITS` bits, a byte each, in the layout of [`Unpack::quad`].
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Bytes<const BITS: u32>([[u8; 64]; 8]);

/// Integers of 2 bits: byte `64 p + 4 lane + j` holds, from its lowest bits on, the inputs `4 p + j`, `8 + 4 p + j`,
/// `16 + 4 p + j` and `24 + 4 p + j`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Pairs([[u8; 64]; 2]);

/// Integers of 1 bit: bit `p` of byte `4 lane + j` is input `4 p + j`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Bits([u8; 64]);

/// Integers of `BITS` bits, of which the lowest `LOW` lie in one layout and those above in another, so that they take no
/// more memory than in the file.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Joined<L, H, const LOW: u32, const BITS: u32> {
    low: L,
    high: H,
}

pub(crate) type Joined3 = Joined<Pairs, Bits, 2, 3>;
pub(crate) type Joined5 = Joined<Nibbles, Bits, 4, 5>;
pub(crate) type Joined6 = Joined<Nibbles, Pairs, 4, 6>;

/// The highest bits of integers.
pub(crate) trait High: Pod {
    fn set(&mut self, lane: usize, q: impl Fn(usize) -> u8);
    fn get(&self, lane: usize, k: usize) -> u8;
    /// Inputs `4 p` to `4 p + 3`, as [`Unpack::quad`] has them, each moved up by `shift` bits.
    fn quad<Q: Quads>(&self, quads: Q, p: usize, shift: u32) -> Q::Bytes;
    /// Adds the inputs `4 four` to `4 four + 3`, each times `unit`, a power of two.
    fn add<L: Lanes>(&self, lanes: L, four: usize, unit: f32, to: &mut [L::F32; 4]);
}

// SAFETY: transparent wrappers of arrays of bytes.
unsafe impl Pod for Nibbles {}
// SAFETY: as above.
unsafe impl<const BITS: u32> Pod for Bytes<BITS> {}
// SAFETY: as above.
unsafe impl Pod for Pairs {}
// SAFETY: as above.
unsafe impl Pod for Bits {}
// SAFETY: `repr(C)` of wrappers of arrays of bytes, as all integers are: no padding, all bits are values.
unsafe impl<L: Integers, H: High, const LOW: u32, const BITS: u32> Pod for Joined<L, H, LOW, BITS> {}

impl Dots for Nibbles {
    #[inline(always)]
    fn dot<I: Int8, const R: usize, const ZERO: i32>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [SumOf<I>; R] {
        let (q, sums) = (
            x.each_ref().map(|x| &x.q),
            x.each_ref().map(QuantBlock::total),
        );
        int8.dot_nibbles::<R, ZERO>(&self.0, q, sums)
    }
}

impl Loosen for Nibbles {
    type Loose = Bytes<4>;

    #[inline(always)]
    fn loosen<Q: Quads>(&self, quads: Q, to: &mut Self::Loose) {
        loosen(self, quads, to);
    }
}

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
}

impl Unpack<8> for Nibbles {
    #[inline(always)]
    fn quad<Q: Quads>(&self, quads: Q, p: usize) -> Q::Bytes {
        let bytes = quads.load(&self.0[p % 4]);
        if p < 4 {
            quads.low_nibbles(bytes)
        } else {
            quads.high_nibbles(bytes)
        }
    }
}

impl<const BITS: u32> Unpack<8> for Bytes<BITS> {
    #[inline(always)]
    fn quad<Q: Quads>(&self, quads: Q, p: usize) -> Q::Bytes {
        quads.load(&self.0[p])
    }
}

impl<const BITS: u32> Dots for Bytes<BITS> {
    #[inline(always)]
    fn dot<I: Int8, const R: usize, const ZERO: i32>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [SumOf<I>; R] {
        dot::<I, R, BITS, ZERO>(int8, self, x)
    }
}

impl<const BITS: u32> Halves for Bytes<BITS> {
    #[inline(always)]
    fn dot_half<I: Int8, const R: usize, const ZERO: i32, const HALF: usize>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [SumOf<I>; R] {
        dot_half::<I, R, BITS, ZERO, HALF>(int8, self, x)
    }
}

impl Loosen for Bytes<8> {
    type Loose = Self;

    const TIGHT: bool = false;

    #[inline(always)]
    fn loosen<Q: Quads>(&self, _: Q, to: &mut Self::Loose) {
        *to = *self;
    }
}

impl Integers for Bytes<8> {
    const RAISE: f32 = 256.0;
    const LARGEST: f32 = 255.0;

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
}

impl Unpack<8> for Pairs {
    #[inline(always)]
    fn quad<Q: Quads>(&self, quads: Q, p: usize) -> Q::Bytes {
        High::quad(self, quads, p, 0)
    }
}

impl Dots for Pairs {
    #[inline(always)]
    fn dot<I: Int8, const R: usize, const ZERO: i32>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [SumOf<I>; R] {
        dot::<I, R, 2, ZERO>(int8, self, x)
    }
}

impl Loosen for Pairs {
    type Loose = Bytes<2>;

    #[inline(always)]
    fn loosen<Q: Quads>(&self, quads: Q, to: &mut Self::Loose) {
        loosen(self, quads, to);
    }
}

impl Integers for Pairs {
    const RAISE: f32 = 0.0;
    const LARGEST: f32 = 3.0;

    fn set(&mut self, lane: usize, q: &[u8]) {
        High::set(self, lane, |k| q[k]);
    }

    fn get(&self, lane: usize, k: usize) -> u8 {
        High::get(self, lane, k)
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
        let mut fields = [lanes.splat(0.0); 4];
        High::add(self, lanes, four, 1.0, &mut fields);
        fields
    }
}

impl Halves for Pairs {
    #[inline(always)]
    fn dot_half<I: Int8, const R: usize, const ZERO: i32, const HALF: usize>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [SumOf<I>; R] {
        dot_half::<I, R, 2, ZERO, HALF>(int8, self, x)
    }
}

impl High for Pairs {
    fn set(&mut self, lane: usize, q: impl Fn(usize) -> u8) {
        for k in 0..8 {
            self.0[k / 4][4 * lane + k % 4] =
                q(k) | q(8 + k) << 2 | q(16 + k) << 4 | q(24 + k) << 6;
        }
    }

    fn get(&self, lane: usize, k: usize) -> u8 {
        self.0[k % 8 / 4][4 * lane + k % 4] >> (2 * (k / 8)) & 3
    }

    #[inline(always)]
    fn quad<Q: Quads>(&self, quads: Q, p: usize, shift: u32) -> Q::Bytes {
        let place = 2 * (p / 2) as i32;
        quads.bits(quads.load(&self.0[p % 2]), place - shift as i32, 3 << shift)
    }

    #[inline(always)]
    fn add<L: Lanes>(&self, lanes: L, four: usize, unit: f32, to: &mut [L::F32; 4]) {
        let place = 1 << (2 * (four / 2));
        add_masked(
            lanes,
            &self.0[four % 2],
            3 * place,
            unit / f32::from(place),
            to,
        );
    }
}

impl High for Bits {
    fn set(&mut self, lane: usize, q: impl Fn(usize) -> u8) {
        for j in 0..4 {
            self.0[4 * lane + j] = (0..8).map(|p| q(4 * p + j) << p).sum();
        }
    }

    fn get(&self, lane: usize, k: usize) -> u8 {
        self.0[4 * lane + k % 4] >> (k / 4) & 1
    }

    #[inline(always)]
    fn quad<Q: Quads>(&self, quads: Q, p: usize, shift: u32) -> Q::Bytes {
        quads.bits(quads.load(&self.0), p as i32 - shift as i32, 1 << shift)
    }

    #[inline(always)]
    fn add<L: Lanes>(&self, lanes: L, four: usize, unit: f32, to: &mut [L::F32; 4]) {
        let place = 1 << four;
        add_masked(lanes, &self.0, place, unit / f32::from(place), to);
    }
}

impl<L: Unpack<8>, H: High, const LOW: u32, const BITS: u32> Unpack<8> for Joined<L, H, LOW, BITS> {
    #[inline(always)]
    fn quad<Q: Quads>(&self, quads: Q, p: usize) -> Q::Bytes {
        quads.or(self.low.quad(quads, p), self.high.quad(quads, p, LOW))
    }
}

impl<L, H, const LOW: u32, const BITS: u32> Dots for Joined<L, H, LOW, BITS>
where
    L: Integers + Unpack<8>,
    H: High,
{
    #[inline(always)]
    fn dot<I: Int8, const R: usize, const ZERO: i32>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [SumOf<I>; R] {
        dot::<I, R, BITS, ZERO>(int8, self, x)
    }
}

impl<L, H, const LOW: u32, const BITS: u32> Loosen for Joined<L, H, LOW, BITS>
where
    L: Integers + Unpack<8>,
    H: High,
{
    type Loose = Bytes<BITS>;

    #[inline(always)]
    fn loosen<Q: Quads>(&self, quads: Q, to: &mut Self::Loose) {
        loosen(self, quads, to);
    }
}

impl<Low, H, const LOW: u32, const BITS: u32> Integers for Joined<Low, H, LOW, BITS>
where
    Low: Integers + Unpack<8>,
    H: High,
{
    const RAISE: f32 = Low::RAISE;
    const LARGEST: f32 = ((1 << BITS) - 1) as f32;

    fn set(&mut self, lane: usize, q: &[u8]) {
        let low: [u8; 32] = std::array::from_fn(|k| q[k] & ((1 << LOW) - 1));
        self.low.set(lane, &low);
        self.high.set(lane, |k| q[k] >> LOW);
    }

    fn get(&self, lane: usize, k: usize) -> u8 {
        self.low.get(lane, k) | self.high.get(lane, k) << LOW
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]; 32]) {
        let raise = lanes.splat(Self::RAISE);
        for p in 0..8 {
            for (to, x) in to[4 * p..].iter_mut().zip(self.raised(lanes, p)) {
                lanes.store(lanes.sub(x, raise), to);
            }
        }
    }

    #[inline(always)]
    fn raised<L: Lanes>(&self, lanes: L, four: usize) -> [L::F32; 4] {
        let mut raised = self.low.raised(lanes, four);
        self.high
            .add(lanes, four, f32::from(1u8 << LOW), &mut raised);
        raised
    }
}

impl<L, H, const LOW: u32, const BITS: u32> Halves for Joined<L, H, LOW, BITS>
where
    L: Integers + Unpack<8>,
    H: High,
{
    #[inline(always)]
    fn dot_half<I: Int8, const R: usize, const ZERO: i32, const HALF: usize>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [SumOf<I>; R] {
        dot_half::<I, R, BITS, ZERO, HALF>(int8, self, x)
    }
}

/// Adds the four inputs of a row of bytes, and-ed with `mask` where they stand, times `scale`. All are small integers times
/// a power of two, so this is exact.
#[inline(always)]
fn add_masked<L: Lanes>(lanes: L, bytes: &[u8; 64], mask: u8, scale: f32, to: &mut [L::F32; 4]) {
    let (quads, scale) = (lanes.load_quads(bytes), lanes.splat(scale));
    let fields = [
        lanes.field::<0>(quads, mask),
        lanes.field::<8>(quads, mask),
        lanes.field::<16>(quads, mask),
        lanes.field::<24>(quads, mask),
    ];
    for i in 0..4 {
        to[i] = lanes.fma(fields[i], scale, to[i]);
    }
}

/// One integer a byte.
#[inline(always)]
pub(super) fn loosen<Q: Quads, const BITS: u32>(
    from: &impl Unpack<8>,
    quads: Q,
    to: &mut Bytes<BITS>,
) {
    for (p, to) in to.0.iter_mut().enumerate() {
        quads.store(from.quad(quads, p), to);
    }
}

#[inline(always)]
pub(super) fn dot<I: Int8, const R: usize, const BITS: u32, const ZERO: i32>(
    int8: I,
    weights: &impl Unpack<8>,
    x: &[QuantBlock; R],
) -> [SumOf<I>; R] {
    let (q, sums) = (
        x.each_ref().map(|x| &x.q),
        x.each_ref().map(QuantBlock::total),
    );
    int8.dot_bytes::<R, 8, BITS, ZERO>(weights, q, sums)
}

#[inline(always)]
fn dot_half<I: Int8, const R: usize, const BITS: u32, const ZERO: i32, const HALF: usize>(
    int8: I,
    weights: &impl Unpack<8>,
    x: &[QuantBlock; R],
) -> [SumOf<I>; R] {
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
