//! Panels of the formats with blocks of 32.

use super::integers::{Bytes, Dots, Integers, Joined5, Loosen, Nibbles};
use super::scaling::{accumulate, accumulate_ranged, centre, range};
use super::{F32Of, Multiplier, PanelBlock, QuantBlock};
use crate::cpu::vector::{Int8, LANES, Lanes};
use crate::memory::Pod;
use crate::quant::Block;
use half::f16;

/// Q4_0, Q5_0, Q8_0: `scale * (q - ZERO)`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Centred<Q, const ZERO: i32> {
    q: Q,
    scale: [f16; LANES],
}

/// Q4_1, Q5_1: `scale * q + min`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Ranged<Q> {
    q: Q,
    scale: [f16; LANES],
    min: [f16; LANES],
}

/// Int4: `scale * (q - zero)`, with a zero of its own for each output.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ZeroEach<Q> {
    q: Q,
    scale: [f16; LANES],
    zero: [u8; LANES],
}

pub(crate) type Q4_0 = Centred<Nibbles, 8>;
pub(crate) type Q5_0 = Centred<Joined5, 16>;
pub(crate) type Q8_0 = Centred<Bytes<8>, 128>;
pub(crate) type Q4_1 = Ranged<Nibbles>;
pub(crate) type Q5_1 = Ranged<Joined5>;
pub(crate) type Int4 = ZeroEach<Nibbles>;

// SAFETY: `repr(C)` of byte arrays of a multiple of 64 and an array of 16 `f16`: no padding, all bits are values.
unsafe impl<Q: Dots, const ZERO: i32> Pod for Centred<Q, ZERO> {}
// SAFETY: as above, with two arrays.
unsafe impl<Q: Dots> Pod for Ranged<Q> {}
// SAFETY: `repr(C)` of bytes, sixteen `f16` and sixteen bytes: no padding, all bits are values.
unsafe impl<Q: Dots> Pod for ZeroEach<Q> {}

/// Reads a block of 32 of the file; its length tells the formats of a panel type apart.
fn read_block(block: &[u8], zero: u8) -> Block {
    fn array<const N: usize>(block: &[u8]) -> &[u8; N] {
        block.try_into().expect("the length was just matched")
    }
    match (block.len(), zero) {
        (18, 8) => Block::read_q4_0(array(block)),
        (20, 0) => Block::read_q4_1(array(block)),
        (22, 16) => Block::read_q5_0(array(block)),
        (24, 0) => Block::read_q5_1(array(block)),
        (34, 128) => Block::read_q8_0(array(block)),
        (len, _) => unreachable!("no format has blocks of {len} bytes around {zero}"),
    }
}

impl<Q: Integers, const ZERO: i32> PanelBlock for Centred<Q, ZERO> {
    type Loose = Centred<Q::Loose, ZERO>;

    const TIGHT: bool = Q::TIGHT;
    const RAISE: f32 = Q::RAISE;
    const RANGE: [f32; 2] = [0.0, Q::LARGEST];

    fn pack(&mut self, lane: usize, block: &[u8]) {
        let block = read_block(block, ZERO as u8);
        self.q.set(lane, &block.q);
        self.scale[lane] = block.scale;
    }

    fn element(&self, lane: usize, k: usize) -> f32 {
        let q = i32::from(self.q.get(lane, k)) - ZERO;
        self.scale[lane].to_f32() * q as f32
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]]) {
        let to = to.first_chunk_mut().expect("a block is 32 inputs");
        self.q.widen(lanes, to);
        let scale = lanes.load_f16(&self.scale);
        let zero = lanes.splat(ZERO as f32);
        centre(lanes, scale, zero, to);
    }

    #[inline(always)]
    fn factors<L: Lanes>(&self, lanes: L, _: usize) -> [[L::F32; 2]; 2] {
        let scale = lanes.load_f16(&self.scale);
        [[scale, lanes.mul(scale, lanes.splat(-ZERO as f32))]; 2]
    }

    #[inline(always)]
    fn raised<L: Lanes>(&self, lanes: L, _: usize, four: usize) -> [L::F32; 4] {
        self.q.raised(lanes, four)
    }

    #[inline(always)]
    fn loosen<I: Int8>(&self, int8: I, to: &mut Self::Loose) {
        self.q.loosen(int8, &mut to.q);
        to.scale = self.scale;
    }
}

impl<Q: Dots, const ZERO: i32> Multiplier for Centred<Q, ZERO> {
    const GROUPS: usize = 1;

    #[inline(always)]
    fn accumulate<I: Int8, const R: usize>(
        &self,
        int8: I,
        x: &[[QuantBlock; R]],
        sum: &mut [F32Of<I>; R],
    ) {
        let lanes = int8.lanes();
        let scale = lanes.load_f16(&self.scale);
        for x in x {
            let dot = self.q.dot::<I, R, ZERO>(int8, x);
            accumulate(int8, scale, x, dot, sum);
        }
    }
}

impl<Q: Integers> PanelBlock for Ranged<Q> {
    type Loose = Ranged<Q::Loose>;

    const TIGHT: bool = Q::TIGHT;
    const RAISE: f32 = Q::RAISE;
    const RANGE: [f32; 2] = [0.0, Q::LARGEST];

    fn pack(&mut self, lane: usize, block: &[u8]) {
        let block = read_block(block, 0);
        self.q.set(lane, &block.q);
        self.scale[lane] = block.scale;
        self.min[lane] = block.min;
    }

    fn element(&self, lane: usize, k: usize) -> f32 {
        let q = f32::from(self.q.get(lane, k));
        self.scale[lane].to_f32() * q + self.min[lane].to_f32()
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]]) {
        let to = to.first_chunk_mut().expect("a block is 32 inputs");
        self.q.widen(lanes, to);
        let (scale, min) = (lanes.load_f16(&self.scale), lanes.load_f16(&self.min));
        range(lanes, scale, min, to);
    }

    #[inline(always)]
    fn factors<L: Lanes>(&self, lanes: L, _: usize) -> [[L::F32; 2]; 2] {
        [[lanes.load_f16(&self.scale), lanes.load_f16(&self.min)]; 2]
    }

    #[inline(always)]
    fn raised<L: Lanes>(&self, lanes: L, _: usize, four: usize) -> [L::F32; 4] {
        self.q.raised(lanes, four)
    }

    #[inline(always)]
    fn loosen<I: Int8>(&self, int8: I, to: &mut Self::Loose) {
        self.q.loosen(int8, &mut to.q);
        (to.scale, to.min) = (self.scale, self.min);
    }
}

impl<Q: Dots> Multiplier for Ranged<Q> {
    const GROUPS: usize = 1;

    #[inline(always)]
    fn accumulate<I: Int8, const R: usize>(
        &self,
        int8: I,
        x: &[[QuantBlock; R]],
        sum: &mut [F32Of<I>; R],
    ) {
        let lanes = int8.lanes();
        let (scale, min) = (lanes.load_f16(&self.scale), lanes.load_f16(&self.min));
        for x in x {
            let dot = self.q.dot::<I, R, 0>(int8, x);
            let xs = x.each_ref().map(|x| x.sum);
            accumulate_ranged(int8, [scale, min], x, xs, dot, sum);
        }
    }
}

impl PanelBlock for Int4 {
    type Loose = ZeroEach<<Nibbles as Loosen>::Loose>;

    const TIGHT: bool = true;
    const RAISE: f32 = Nibbles::RAISE;
    const RANGE: [f32; 2] = [0.0, Nibbles::LARGEST];

    fn pack(&mut self, lane: usize, block: &[u8]) {
        let block = Block::read_int4(block.try_into().expect("an Int4 block is 19 bytes"));
        self.q.set(lane, &block.q);
        self.scale[lane] = block.scale;
        self.zero[lane] = block.zero;
    }

    fn element(&self, lane: usize, k: usize) -> f32 {
        let q = i32::from(self.q.get(lane, k)) - i32::from(self.zero[lane]);
        self.scale[lane].to_f32() * q as f32
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]]) {
        let to = to.first_chunk_mut().expect("a block is 32 inputs");
        self.q.widen(lanes, to);
        let (scale, zero) = (lanes.load_f16(&self.scale), lanes.load_u8(&self.zero));
        centre(lanes, scale, zero, to);
    }

    #[inline(always)]
    fn factors<L: Lanes>(&self, lanes: L, _: usize) -> [[L::F32; 2]; 2] {
        let (scale, zero) = (lanes.load_f16(&self.scale), lanes.load_u8(&self.zero));
        [[scale, lanes.mul(scale, lanes.sub(lanes.splat(0.0), zero))]; 2]
    }

    #[inline(always)]
    fn raised<L: Lanes>(&self, lanes: L, _: usize, four: usize) -> [L::F32; 4] {
        self.q.raised(lanes, four)
    }

    #[inline(always)]
    fn loosen<I: Int8>(&self, int8: I, to: &mut Self::Loose) {
        self.q.loosen(int8, &mut to.q);
        (to.scale, to.zero) = (self.scale, self.zero);
    }
}

impl<Q: Dots> Multiplier for ZeroEach<Q> {
    const GROUPS: usize = 1;

    #[inline(always)]
    fn accumulate<I: Int8, const R: usize>(
        &self,
        int8: I,
        x: &[[QuantBlock; R]],
        sum: &mut [F32Of<I>; R],
    ) {
        let lanes = int8.lanes();
        let (scale, zero) = (lanes.load_f16(&self.scale), lanes.load_u8(&self.zero));
        for x in x {
            let dot = self.q.dot::<I, R, 0>(int8, x);
            for r in 0..R {
                // Both terms are integers of at most 21 bits: still exact.
                let zeros = lanes.mul(zero, lanes.splat(x[r].total() as f32));
                let dot = lanes.sub(lanes.to_f32(dot[r]), zeros);
                let scale = lanes.mul(scale, lanes.splat(x[r].scale));
                sum[r] = lanes.fma(dot, scale, sum[r]);
            }
        }
    }
}
