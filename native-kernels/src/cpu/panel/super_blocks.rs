//! Panels of the formats with super-blocks of 256.

use super::integers::{Dots, Halves, Integers, Joined3, Joined5, Joined6, Loosen, Nibbles, Pairs};
use super::scaling::{accumulate, accumulate_ranged, centre, range};
use super::{F32Of, Multiplier, PanelBlock, QuantBlock};
use crate::cpu::vector::{Int8, LANES, Lanes};
use crate::memory::Pod;
use crate::quant::{SuperBlock, SuperBlock2, SuperBlock16};
use half::f16;

/// Q4_K, Q5_K: in group `g`, `(scale * scales[g]) * q + (min * mins[g])`; `min` is negated when packed.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Super<Q> {
    scale: [f16; LANES],
    min: [f16; LANES],
    groups: [SuperGroup<Q>; 8],
}

#[derive(Clone, Copy)]
#[repr(C)]
struct SuperGroup<Q> {
    scales: [u8; LANES],
    mins: [u8; LANES],
    q: Q,
}

pub(crate) type Q4K = Super<Nibbles>;
pub(crate) type Q5K = Super<Joined5>;

// SAFETY: `repr(C)` of arrays of bytes and, before them, an even number of `f16`; the size of a group is even: no
// padding, all bits are values.
unsafe impl<Q: Dots> Pod for Super<Q> {}

fn read_super_block(block: &[u8]) -> SuperBlock {
    match block.len() {
        144 => SuperBlock::read_q4_k(block.try_into().expect("144 bytes")),
        176 => SuperBlock::read_q5_k(block.try_into().expect("176 bytes")),
        len => unreachable!("no format has super-blocks of {len} bytes"),
    }
}

impl<Q: Integers> PanelBlock for Super<Q> {
    type Loose = Super<Q::Loose>;

    const TIGHT: bool = Q::TIGHT;
    const RAISE: f32 = Q::RAISE;
    const RANGE: [f32; 2] = [0.0, Q::LARGEST];

    fn pack(&mut self, lane: usize, block: &[u8]) {
        let block = read_super_block(block);
        self.scale[lane] = block.scale;
        self.min[lane] = -block.min;
        for (g, group) in self.groups.iter_mut().enumerate() {
            group.scales[lane] = block.scales[g];
            group.mins[lane] = block.mins[g];
            group.q.set(lane, &block.q[32 * g..][..32]);
        }
    }

    fn element(&self, lane: usize, k: usize) -> f32 {
        let group = &self.groups[k / 32];
        let scale = self.scale[lane].to_f32() * f32::from(group.scales[lane]);
        let min = self.min[lane].to_f32() * f32::from(group.mins[lane]);
        scale * f32::from(group.q.get(lane, k % 32)) + min
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]]) {
        let (scale, min) = (lanes.load_f16(&self.scale), lanes.load_f16(&self.min));
        for (group, to) in self.groups.iter().zip(to.as_chunks_mut().0) {
            group.q.widen(lanes, to);
            let scale = lanes.mul(scale, lanes.load_u8(&group.scales));
            let min = lanes.mul(min, lanes.load_u8(&group.mins));
            range(lanes, scale, min, to);
        }
    }

    #[inline(always)]
    fn factors<L: Lanes>(&self, lanes: L, group: usize) -> [[L::F32; 2]; 2] {
        let (scale, min) = (lanes.load_f16(&self.scale), lanes.load_f16(&self.min));
        let group = &self.groups[group];
        let scale = lanes.mul(scale, lanes.load_u8(&group.scales));
        [[scale, lanes.mul(min, lanes.load_u8(&group.mins))]; 2]
    }

    #[inline(always)]
    fn raised<L: Lanes>(&self, lanes: L, group: usize, four: usize) -> [L::F32; 4] {
        self.groups[group].q.raised(lanes, four)
    }

    #[inline(always)]
    fn loosen<I: Int8>(&self, int8: I, to: &mut Self::Loose) {
        (to.scale, to.min) = (self.scale, self.min);
        for (from, to) in self.groups.iter().zip(&mut to.groups) {
            from.q.loosen(int8, &mut to.q);
            (to.scales, to.mins) = (from.scales, from.mins);
        }
    }
}

impl<Q: Dots> Multiplier for Super<Q> {
    const GROUPS: usize = 8;

    #[inline(always)]
    fn accumulate<I: Int8, const R: usize>(
        &self,
        int8: I,
        x: &[[QuantBlock; R]],
        sum: &mut [F32Of<I>; R],
    ) {
        let lanes = int8.lanes();
        let (scale, min) = (lanes.load_f16(&self.scale), lanes.load_f16(&self.min));
        for (group, x) in self.groups.iter().zip(x) {
            let scale = lanes.mul(scale, lanes.load_u8(&group.scales));
            let min = lanes.mul(min, lanes.load_u8(&group.mins));
            let dot = group.q.dot::<I, R, 0>(int8, x);
            let xs = x.each_ref().map(|x| x.sum);
            accumulate_ranged(int8, [scale, min], x, xs, dot, sum);
        }
    }
}

/// Q3_K, Q6_K: in group `g` of 16, `(scale * scales[g]) * (q - ZERO)`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Halved<Q, const ZERO: i32> {
    scale: [f16; LANES],
    groups: [HalvedGroup<Q>; 8],
}

/// 32 inputs with a scale (a signed byte) for each 16.
#[derive(Clone, Copy)]
#[repr(C)]
struct HalvedGroup<Q> {
    scales: [[u8; LANES]; 2],
    q: Q,
}

pub(crate) type Q3K = Halved<Joined3, 4>;
pub(crate) type Q6K = Halved<Joined6, 32>;

// SAFETY: `repr(C)` of sixteen `f16` and arrays of an even number of bytes: no padding, all bits are values.
unsafe impl<Q: Halves, const ZERO: i32> Pod for Halved<Q, ZERO> {}

fn read_halved(block: &[u8]) -> SuperBlock16 {
    match block.len() {
        110 => SuperBlock16::read_q3_k(block.try_into().expect("110 bytes")),
        210 => SuperBlock16::read_q6_k(block.try_into().expect("210 bytes")),
        len => unreachable!("no format has such super-blocks of {len} bytes"),
    }
}

impl<Q: Integers + Halves, const ZERO: i32> PanelBlock for Halved<Q, ZERO> {
    type Loose = Halved<Q::Loose, ZERO>;

    const TIGHT: bool = Q::TIGHT;
    const RAISE: f32 = Q::RAISE;
    const RANGE: [f32; 2] = [0.0, Q::LARGEST];

    fn pack(&mut self, lane: usize, block: &[u8]) {
        let block = read_halved(block);
        self.scale[lane] = block.scale;
        for (g, group) in self.groups.iter_mut().enumerate() {
            group.scales[0][lane] = block.scales[2 * g] as u8;
            group.scales[1][lane] = block.scales[2 * g + 1] as u8;
            group.q.set(lane, &block.q[32 * g..][..32]);
        }
    }

    fn element(&self, lane: usize, k: usize) -> f32 {
        let group = &self.groups[k / 32];
        let scale = group.scales[k % 32 / 16][lane] as i8;
        let q = i32::from(group.q.get(lane, k % 32)) - ZERO;
        self.scale[lane].to_f32() * f32::from(scale) * q as f32
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]]) {
        let scale = lanes.load_f16(&self.scale);
        let zero = lanes.splat(ZERO as f32);
        for (group, to) in self.groups.iter().zip(to.as_chunks_mut().0) {
            group.q.widen(lanes, to);
            for (scales, to) in group.scales.iter().zip(to.chunks_exact_mut(16)) {
                let scale = lanes.mul(scale, lanes.load_i8(scales));
                centre(lanes, scale, zero, to);
            }
        }
    }

    #[inline(always)]
    fn factors<L: Lanes>(&self, lanes: L, group: usize) -> [[L::F32; 2]; 2] {
        let scale = lanes.load_f16(&self.scale);
        let zero = lanes.splat(-ZERO as f32);
        let [first, second] = &self.groups[group].scales;
        let first = lanes.mul(scale, lanes.load_i8(first));
        let second = lanes.mul(scale, lanes.load_i8(second));
        [
            [first, lanes.mul(first, zero)],
            [second, lanes.mul(second, zero)],
        ]
    }

    #[inline(always)]
    fn raised<L: Lanes>(&self, lanes: L, group: usize, four: usize) -> [L::F32; 4] {
        self.groups[group].q.raised(lanes, four)
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

impl<Q: Halves, const ZERO: i32> Multiplier for Halved<Q, ZERO> {
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
            group.accumulate::<I, R, ZERO, 0>(int8, scale, x, sum);
            group.accumulate::<I, R, ZERO, 1>(int8, scale, x, sum);
        }
    }
}

impl<Q: Halves> HalvedGroup<Q> {
    /// Adds the products of one half; `scale` is that of the scales.
    #[inline(always)]
    fn accumulate<I: Int8, const R: usize, const ZERO: i32, const HALF: usize>(
        &self,
        int8: I,
        scale: F32Of<I>,
        x: &[QuantBlock; R],
        sum: &mut [F32Of<I>; R],
    ) {
        let lanes = int8.lanes();
        let scale = lanes.mul(scale, lanes.load_i8(&self.scales[HALF]));
        let dot = self.q.dot_half::<I, R, ZERO, HALF>(int8, x);
        accumulate(int8, scale, x, dot, sum);
    }
}

/// Q2_K: in group `g` of 16, `(scale * scales[g]) * q + (min * mins[g])`; `min` is negated when packed.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Halved2<Q> {
    scale: [f16; LANES],
    min: [f16; LANES],
    /// Byte `4 lane + j` of row `s` belongs to group `4 s + j`: its scale in the low nibble, its minimum in the high one.
    factors: [[u8; 64]; 4],
    q: [Q; 8],
}

pub(crate) type Q2K = Halved2<Pairs>;

// SAFETY: `repr(C)` of two arrays of sixteen `f16` and arrays of an even number of bytes: no padding, all bits are
// values.
unsafe impl<Q: Halves> Pod for Halved2<Q> {}

/// Scales and minima of four groups.
#[inline(always)]
fn factors<L: Lanes>(lanes: L, row: &[u8; 64], scale: L::F32, min: L::F32) -> [[L::F32; 2]; 4] {
    let quads = lanes.load_quads(row);
    let mut factors = [
        [lanes.field::<0>(quads, 15), lanes.field::<4>(quads, 15)],
        [lanes.field::<8>(quads, 15), lanes.field::<12>(quads, 15)],
        [lanes.field::<16>(quads, 15), lanes.field::<20>(quads, 15)],
        [lanes.field::<24>(quads, 15), lanes.field::<28>(quads, 15)],
    ];
    for group in &mut factors {
        *group = [lanes.mul(scale, group[0]), lanes.mul(min, group[1])];
    }
    factors
}

impl PanelBlock for Q2K {
    type Loose = Halved2<<Pairs as Loosen>::Loose>;

    const TIGHT: bool = true;
    const RAISE: f32 = Pairs::RAISE;
    const RANGE: [f32; 2] = [0.0, Pairs::LARGEST];

    fn pack(&mut self, lane: usize, block: &[u8]) {
        let block = SuperBlock2::read(block.try_into().expect("a Q2_K block is 84 bytes"));
        self.scale[lane] = block.scale;
        self.min[lane] = -block.min;
        for (g, factors) in block.factors.into_iter().enumerate() {
            self.factors[g / 4][4 * lane + g % 4] = factors;
        }
        for (q, from) in self.q.iter_mut().zip(block.q.chunks_exact(32)) {
            q.set(lane, from);
        }
    }

    fn element(&self, lane: usize, k: usize) -> f32 {
        let group = k / 16;
        let factors = self.factors[group / 4][4 * lane + group % 4];
        let scale = self.scale[lane].to_f32() * f32::from(factors & 0x0f);
        let min = self.min[lane].to_f32() * f32::from(factors >> 4);
        scale * f32::from(self.q[k / 32].get(lane, k % 32)) + min
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]]) {
        for (q, to) in self.q.iter().zip(to.as_chunks_mut().0) {
            q.widen(lanes, to);
        }
        let (scale, min) = (lanes.load_f16(&self.scale), lanes.load_f16(&self.min));
        for (row, to) in self.factors.iter().zip(to.as_chunks_mut::<64>().0) {
            let factors = factors(lanes, row, scale, min);
            for ([scale, min], to) in factors.into_iter().zip(to.as_chunks_mut::<16>().0) {
                range(lanes, scale, min, to);
            }
        }
    }

    #[inline(always)]
    fn factors<L: Lanes>(&self, lanes: L, group: usize) -> [[L::F32; 2]; 2] {
        let (scale, min) = (lanes.load_f16(&self.scale), lanes.load_f16(&self.min));
        let [a, b, c, d] = factors(lanes, &self.factors[group / 2], scale, min);
        if group.is_multiple_of(2) {
            [a, b]
        } else {
            [c, d]
        }
    }

    #[inline(always)]
    fn raised<L: Lanes>(&self, lanes: L, group: usize, four: usize) -> [L::F32; 4] {
        self.q[group].raised(lanes, four)
    }

    #[inline(always)]
    fn loosen<I: Int8>(&self, int8: I, to: &mut Self::Loose) {
        (to.scale, to.min, to.factors) = (self.scale, self.min, self.factors);
        for (from, to) in self.q.iter().zip(&mut to.q) {
            from.loosen(int8, to);
        }
    }
}

impl<Q: Halves> Multiplier for Halved2<Q> {
    const GROUPS: usize = 8;

    #[inline(always)]
    fn accumulate<I: Int8, const R: usize>(
        &self,
        int8: I,
        x: &[[QuantBlock; R]],
        sum: &mut [F32Of<I>; R],
    ) {
        let lanes = int8.lanes();
        let (scale, min) = (lanes.load_f16(&self.scale), lanes.load_f16(&self.min));
        let pairs = self.q.as_chunks::<2>().0.iter().zip(x.as_chunks::<2>().0);
        for (row, (q, x)) in self.factors.iter().zip(pairs) {
            let factors = factors(lanes, row, scale, min);
            accumulate_half::<I, R, 0>(int8, &q[0], factors[0], &x[0], sum);
            accumulate_half::<I, R, 1>(int8, &q[0], factors[1], &x[0], sum);
            accumulate_half::<I, R, 0>(int8, &q[1], factors[2], &x[1], sum);
            accumulate_half::<I, R, 1>(int8, &q[1], factors[3], &x[1], sum);
        }
    }
}

/// Adds the products of 16 inputs with their scale and minimum.
#[inline(always)]
fn accumulate_half<I: Int8, const R: usize, const HALF: usize>(
    int8: I,
    q: &impl Halves,
    factors: [F32Of<I>; 2],
    x: &[QuantBlock; R],
    sum: &mut [F32Of<I>; R],
) {
    let dot = q.dot_half::<I, R, 0, HALF>(int8, x);
    let xs = x.each_ref().map(|x| x.scale * f32::from(x.sums[HALF]));
    accumulate_ranged(int8, factors, x, xs, dot, sum);
}
