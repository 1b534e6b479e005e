//! Panels of the formats whose nibbles number the values of a table: IQ4_NL, IQ4_XS, MXFP4.
//!
//! The nibbles stay nibbles, half of what the values would take, and become values on their way into the product.

use super::integers::{Bytes, Dots, Loosen, dot, loosen};
use super::scaling::accumulate;
use super::{F32Of, Multiplier, PanelBlock, QuantBlock};
use crate::cpu::vector::{Int8, LANES, Lanes, Quads, SumOf, Unpack};
use crate::memory::Pod;
use crate::quant::{CodedBlock, CodedSuperBlock, E2M1, E8M0, IQ4};
use half::f16;
use std::marker::PhantomData;

/// The values that nibbles stand for.
pub(crate) trait Table: Copy + Send + Sync + 'static {
    const VALUES: [i8; 16];
}

/// [`IQ4`].
#[derive(Clone, Copy)]
pub(crate) struct Iq4;

/// [`E2M1`].
#[derive(Clone, Copy)]
pub(crate) struct Mxfp;

impl Table for Iq4 {
    const VALUES: [i8; 16] = IQ4;
}

impl Table for Mxfp {
    const VALUES: [i8; 16] = E2M1;
}

/// Nibbles of 16 outputs x 32 inputs in the layout of [`Int8::dot_nibbles`]. `ZERO` makes the values unsigned, below
/// `1 << BITS`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Codes<T, const BITS: u32, const ZERO: i32> {
    codes: [[u8; 64]; 4],
    table: PhantomData<T>,
}

// SAFETY: `repr(C)` of an array of bytes and a type without size or alignment.
unsafe impl<T: Table, const BITS: u32, const ZERO: i32> Pod for Codes<T, BITS, ZERO> {}

impl<T: Table, const BITS: u32, const ZERO: i32> Codes<T, BITS, ZERO> {
    const FLOATS: [f32; 16] = {
        let mut floats = [0.0; 16];
        let mut i = 0;
        while i < 16 {
            floats[i] = T::VALUES[i] as f32;
            i += 1;
        }
        floats
    };

    /// The least and the largest value.
    const RANGE: [f32; 2] = {
        let mut range = [0.0f32; 2];
        let mut i = 0;
        while i < 16 {
            range[0] = range[0].min(Self::FLOATS[i]);
            range[1] = range[1].max(Self::FLOATS[i]);
            i += 1;
        }
        range
    };

    const UNSIGNED: [u8; 16] = {
        let mut bytes = [0; 16];
        let mut i = 0;
        while i < 16 {
            let value = T::VALUES[i] as i32 + ZERO;
            assert!(0 <= value && value < 1 << BITS);
            bytes[i] = value as u8;
            i += 1;
        }
        bytes
    };

    fn set(&mut self, lane: usize, codes: &[u8]) {
        for k in 0..16 {
            self.codes[k / 4][4 * lane + k % 4] = codes[k] | codes[16 + k] << 4;
        }
    }

    fn value(&self, lane: usize, k: usize) -> f32 {
        let byte = self.codes[k % 16 / 4][4 * lane + k % 4];
        Self::FLOATS[usize::from(if k < 16 { byte & 0x0f } else { byte >> 4 })]
    }

    /// Inputs `4 four` to `4 four + 3`.
    #[inline(always)]
    fn values<L: Lanes>(&self, lanes: L, four: usize) -> [L::F32; 4] {
        let (table, quads) = (&Self::FLOATS, lanes.load_quads(&self.codes[four % 4]));
        match four {
            0..4 => [
                lanes.lookup::<0>(table, quads),
                lanes.lookup::<8>(table, quads),
                lanes.lookup::<16>(table, quads),
                lanes.lookup::<24>(table, quads),
            ],
            _ => [
                lanes.lookup::<4>(table, quads),
                lanes.lookup::<12>(table, quads),
                lanes.lookup::<20>(table, quads),
                lanes.lookup::<28>(table, quads),
            ],
        }
    }

    /// All values times `scale`.
    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, scale: L::F32, to: &mut [[f32; LANES]; 32]) {
        for (four, to) in to.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            for (value, to) in self.values(lanes, four).into_iter().zip(to) {
                lanes.store(lanes.mul(scale, value), to);
            }
        }
    }
}

impl<T: Table, const BITS: u32, const ZERO: i32> Dots for Codes<T, BITS, ZERO> {
    #[inline(always)]
    fn dot<I: Int8, const R: usize, const Z: i32>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [SumOf<I>; R] {
        dot::<I, R, BITS, Z>(int8, self, x)
    }
}

impl<T: Table, const BITS: u32, const ZERO: i32> Loosen for Codes<T, BITS, ZERO> {
    type Loose = Bytes<BITS>;

    #[inline(always)]
    fn loosen<Q: Quads>(&self, quads: Q, to: &mut Bytes<BITS>) {
        loosen(self, quads, to);
    }
}

impl<T: Table, const BITS: u32, const ZERO: i32> Unpack<8> for Codes<T, BITS, ZERO> {
    #[inline(always)]
    fn quad<Q: Quads>(&self, quads: Q, p: usize) -> Q::Bytes {
        let bytes = quads.load(&self.codes[p % 4]);
        let codes = if p < 4 {
            quads.low_nibbles(bytes)
        } else {
            quads.high_nibbles(bytes)
        };
        quads.lookup(&Self::UNSIGNED, codes)
    }
}

/// The scale of a block of 32.
pub(crate) trait Scale: Pod {
    /// Takes a block of the file apart.
    fn read(block: &[u8]) -> CodedBlock<Self>;
    fn to_f32(self) -> f32;
    fn load<L: Lanes>(lanes: L, from: &[Self; LANES]) -> L::F32;
}

impl Scale for f16 {
    fn read(block: &[u8]) -> CodedBlock<f16> {
        CodedBlock::read_iq4_nl(block.try_into().expect("an IQ4_NL block is 18 bytes"))
    }

    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[f16; LANES]) -> L::F32 {
        lanes.load_f16(from)
    }
}

// SAFETY: a transparent wrapper of a byte, of which every pattern is a value.
unsafe impl Pod for E8M0 {}

impl Scale for E8M0 {
    fn read(block: &[u8]) -> CodedBlock<E8M0> {
        CodedBlock::read_mxfp4(block.try_into().expect("an MXFP4 block is 17 bytes"))
    }

    fn to_f32(self) -> f32 {
        self.half()
    }

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[E8M0; LANES]) -> L::F32 {
        // The exponent reaches down to -128, where a power of two is a subnormal number: it takes two factors.
        let exponent = lanes.sub(
            lanes.load_u8(&from.map(|scale| scale.0)),
            lanes.splat(128.0),
        );
        let least = lanes.splat(-126.0);
        let below = lanes.min(lanes.sub(exponent, least), lanes.splat(0.0));
        let normal = lanes.power_of_two(lanes.max(exponent, least));
        lanes.mul(normal, lanes.power_of_two(below))
    }
}

/// IQ4_NL, MXFP4: `scale * value`, where a value is its integer less `ZERO`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Coded<Q, S, const ZERO: i32> {
    q: Q,
    scale: [S; LANES],
}

pub(crate) type Iq4Nl = Coded<Codes<Iq4, 8, 128>, f16, 128>;
pub(crate) type Mxfp4 = Coded<Codes<Mxfp, 5, 12>, E8M0, 12>;

// SAFETY: `repr(C)` of 256 bytes and sixteen scales, which are `Pod` and aligned to at most 64: no padding, all bits are
// values.
unsafe impl<Q: Dots, S: Scale, const ZERO: i32> Pod for Coded<Q, S, ZERO> {}

impl<T, S, const BITS: u32, const ZERO: i32> PanelBlock for Coded<Codes<T, BITS, ZERO>, S, ZERO>
where
    T: Table,
    S: Scale,
{
    type Loose = Coded<Bytes<BITS>, S, ZERO>;

    const TIGHT: bool = true;
    const RAISE: f32 = 0.0;
    const RANGE: [f32; 2] = Codes::<T, BITS, ZERO>::RANGE;

    fn pack(&mut self, lane: usize, block: &[u8]) {
        let block = S::read(block);
        self.q.set(lane, &block.codes);
        self.scale[lane] = block.scale;
    }

    fn element(&self, lane: usize, k: usize) -> f32 {
        self.scale[lane].to_f32() * self.q.value(lane, k)
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]]) {
        let to = to.first_chunk_mut().expect("a block is 32 inputs");
        self.q.widen(lanes, S::load(lanes, &self.scale), to);
    }

    #[inline(always)]
    fn factors<L: Lanes>(&self, lanes: L, _: usize) -> [[L::F32; 2]; 2] {
        [[S::load(lanes, &self.scale), lanes.splat(0.0)]; 2]
    }

    #[inline(always)]
    fn raised<L: Lanes>(&self, lanes: L, _: usize, four: usize) -> [L::F32; 4] {
        self.q.values(lanes, four)
    }

    #[inline(always)]
    fn loosen<I: Int8>(&self, int8: I, to: &mut Self::Loose) {
        self.q.loosen(int8, &mut to.q);
        to.scale = self.scale;
    }
}

impl<Q: Dots, S: Scale, const ZERO: i32> Multiplier for Coded<Q, S, ZERO> {
    const GROUPS: usize = 1;

    #[inline(always)]
    fn accumulate<I: Int8, const R: usize>(
        &self,
        int8: I,
        x: &[[QuantBlock; R]],
        sum: &mut [F32Of<I>; R],
    ) {
        let scale = S::load(int8.lanes(), &self.scale);
        for x in x {
            accumulate(int8, scale, x, self.q.dot::<I, R, ZERO>(int8, x), sum);
        }
    }
}

/// IQ4_XS: in group `g` of 32, `(scale * scales[g]) * value`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct CodedSuper<Q> {
    scale: [f16; LANES],
    groups: [CodedGroup<Q>; 8],
}

pub(crate) type Iq4Xs = CodedSuper<Codes<Iq4, 8, 128>>;

/// 32 inputs with a scale (a signed byte).
#[derive(Clone, Copy)]
#[repr(C)]
struct CodedGroup<Q> {
    scales: [u8; LANES],
    q: Q,
}

// SAFETY: `repr(C)` of sixteen `f16` and arrays of an even number of bytes: no padding, all bits are values.
unsafe impl<Q: Dots> Pod for CodedSuper<Q> {}

impl PanelBlock for Iq4Xs {
    type Loose = CodedSuper<Bytes<8>>;

    const TIGHT: bool = true;
    const RAISE: f32 = 0.0;
    const RANGE: [f32; 2] = Codes::<Iq4, 8, 128>::RANGE;

    fn pack(&mut self, lane: usize, block: &[u8]) {
        let block = CodedSuperBlock::read(block.try_into().expect("an IQ4_XS block is 136 bytes"));
        self.scale[lane] = block.scale;
        for (g, group) in self.groups.iter_mut().enumerate() {
            group.scales[lane] = block.scales[g] as u8;
            group.q.set(lane, &block.codes[32 * g..][..32]);
        }
    }

    fn element(&self, lane: usize, k: usize) -> f32 {
        let group = &self.groups[k / 32];
        let scale = self.scale[lane].to_f32() * f32::from(group.scales[lane] as i8);
        scale * group.q.value(lane, k % 32)
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]]) {
        let scale = lanes.load_f16(&self.scale);
        for (group, to) in self.groups.iter().zip(to.as_chunks_mut().0) {
            let scale = lanes.mul(scale, lanes.load_i8(&group.scales));
            group.q.widen(lanes, scale, to);
        }
    }

    #[inline(always)]
    fn factors<L: Lanes>(&self, lanes: L, group: usize) -> [[L::F32; 2]; 2] {
        let scales = lanes.load_i8(&self.groups[group].scales);
        let scale = lanes.mul(lanes.load_f16(&self.scale), scales);
        [[scale, lanes.splat(0.0)]; 2]
    }

    #[inline(always)]
    fn raised<L: Lanes>(&self, lanes: L, group: usize, four: usize) -> [L::F32; 4] {
        self.groups[group].q.values(lanes, four)
    }

    #[inline(always)]
    fn loosen<I: Int8>(&self, int8: I, to: &mut Self::Loose) {
        to.scale = self.scale;
        for (from, to) in self.groups.iter().zip(&mut to.groups) {
            from.q.loosen(int8, &mut to.q);
            to.scales = from.scales;
        }
    }
}

impl<Q: Dots> Multiplier for CodedSuper<Q> {
    const GROUPS: usize = 8;

    #[inline(always)]
    fn accumulate<I: Int8, const R: usize>(
        &self,
        int8: I,
        x: &[[QuantBlock; R]],
        sum: &mut [F32Of<I>; R],
    ) {
        let lanes = int8.lanes();
        let scale = lanes.load_f16(&self.scale);
        for (group, x) in self.groups.iter().zip(x) {
            let scale = lanes.mul(scale, lanes.load_i8(&group.scales));
            let dot = group.q.dot::<I, R, 128>(int8, x);
            accumulate(int8, scale, x, dot, sum);
        }
    }
}
