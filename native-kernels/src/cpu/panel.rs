//! Weights in the layout that the kernels read: panels of sixteen outputs, packed once.
//!
//! A lane of a vector is an output, so products need no sum across lanes. A quantised panel is a run of blocks along the
//! inputs, each with the integers of 16 outputs x 32 (or 256) inputs and their scales beside them; a float panel is
//! `[inputs][16]`. Scales keep the precision they have in the file, and no integer is rounded again: widening a panel
//! gives exactly the numbers that `Format::dequantize` gives.

use super::vector::{I32Of, Int8, LANES, Lanes};
use crate::memory::Pod;
use crate::quant::{Block, SuperBlock, SuperBlock6};
use half::{bf16, f16};

/// Elements of a float panel, widened as they are loaded.
pub(crate) trait FloatElement: Pod {
    fn from_le(bytes: &[u8]) -> Self;
    fn to_f32(self) -> f32;
    fn load<L: Lanes>(lanes: L, from: &[Self; LANES]) -> L::F32;
    fn store<L: Lanes>(lanes: L, x: L::F32, to: &mut [Self; LANES]);
}

impl FloatElement for f32 {
    fn from_le(bytes: &[u8]) -> Self {
        f32::from_le_bytes(bytes.try_into().expect("4 bytes an element"))
    }

    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[f32; LANES]) -> L::F32 {
        lanes.load(from)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, x: L::F32, to: &mut [f32; LANES]) {
        lanes.store(x, to);
    }
}

impl FloatElement for f16 {
    fn from_le(bytes: &[u8]) -> Self {
        f16::from_le_bytes(bytes.try_into().expect("2 bytes an element"))
    }

    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[f16; LANES]) -> L::F32 {
        lanes.load_f16(from)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, x: L::F32, to: &mut [f16; LANES]) {
        lanes.store_f16(x, to);
    }
}

impl FloatElement for bf16 {
    fn from_le(bytes: &[u8]) -> Self {
        bf16::from_le_bytes(bytes.try_into().expect("2 bytes an element"))
    }

    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[bf16; LANES]) -> L::F32 {
        lanes.load_bf16(from)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, x: L::F32, to: &mut [bf16; LANES]) {
        lanes.store_bf16(x, to);
    }
}

/// 32 activations of one row as signed bytes: `x[k]` is about `scale * q[k]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuantBlock {
    /// The integers, -127 to 127.
    pub q: [[i8; 4]; 8],
    /// Largest magnitude / 127.
    pub scale: f32,
    /// Sums of the first and the last 16 integers.
    pub sums: [i16; 2],
}

impl QuantBlock {
    pub const ZERO: Self = Self {
        q: [[0; 4]; 8],
        scale: 0.0,
        sums: [0; 2],
    };

    /// Sum of all 32 integers.
    #[inline(always)]
    pub fn sum(&self) -> i32 {
        i32::from(self.sums[0]) + i32::from(self.sums[1])
    }
}

/// A block of a quantised panel: 16 outputs x `32 * GROUPS` inputs.
pub(crate) trait PanelBlock: Pod {
    /// Blocks of 32 inputs in it.
    const GROUPS: usize;

    /// Puts one block of a row of the file into `lane`.
    fn pack(&mut self, lane: usize, block: &[u8]);

    /// The weight of an output and an input, as `Format::dequantize` gives it.
    fn element(&self, lane: usize, k: usize) -> f32;

    /// All weights, `[32 * GROUPS][16]`, each as `Format::dequantize` gives it.
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]]);

    /// Adds, for each of `R` rows, the products of the weights with `x` (`GROUPS` blocks of each row).
    ///
    /// The order is fixed: group by group, the scaled dot product first, then the minimum. It does not depend on `R`.
    fn accumulate<I: Int8, const R: usize>(
        &self,
        int8: I,
        x: &[[QuantBlock; R]],
        sum: &mut [F32Of<I>; R],
    );
}

/// The float vector of an [`Int8`] instance.
pub(crate) type F32Of<I> = <<I as Int8>::Lanes as Lanes>::F32;

/// Unsigned integers of 16 outputs x 32 inputs.
pub(crate) trait Integers: Pod {
    fn set(&mut self, lane: usize, q: &[u8]);
    fn get(&self, lane: usize, k: usize) -> u8;
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]; 32]);
    /// Dot products of the integers less `ZERO`.
    fn dot<I: Int8, const R: usize, const ZERO: i32>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [I32Of<I>; R];
}

/// Integers of 4 bits in the layout of [`Int8::dot_nibbles`].
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Nibbles([[u8; 64]; 4]);

/// Integers of `BITS` bits, one a byte, in the layout of [`Int8::dot_bytes`].
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Bytes<const BITS: u32>([[u8; 64]; 8]);

// SAFETY: transparent wrappers of arrays of bytes.
unsafe impl Pod for Nibbles {}
// SAFETY: as above.
unsafe impl<const BITS: u32> Pod for Bytes<BITS> {}

impl Integers for Nibbles {
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
    fn dot<I: Int8, const R: usize, const ZERO: i32>(
        &self,
        int8: I,
        x: &[QuantBlock; R],
    ) -> [I32Of<I>; R] {
        let (q, sums) = (
            x.each_ref().map(|x| &x.q),
            x.each_ref().map(QuantBlock::sum),
        );
        int8.dot_bytes::<R, 8, BITS, ZERO>(&self.0, q, sums)
    }
}

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

pub(crate) type Q4_0 = Centred<Nibbles, 8>;
pub(crate) type Q5_0 = Centred<Bytes<5>, 16>;
pub(crate) type Q8_0 = Centred<Bytes<8>, 128>;
pub(crate) type Q4_1 = Ranged<Nibbles>;
pub(crate) type Q5_1 = Ranged<Bytes<5>>;

// SAFETY: `repr(C)` of byte arrays of a multiple of 64 and an array of 16 `f16`: no padding, all bits are values.
unsafe impl<Q: Integers, const ZERO: i32> Pod for Centred<Q, ZERO> {}
// SAFETY: as above, with two arrays.
unsafe impl<Q: Integers> Pod for Ranged<Q> {}

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
    const GROUPS: usize = 1;

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
        for w in to {
            let q = lanes.sub(lanes.load(w), zero);
            lanes.store(lanes.mul(scale, q), w);
        }
    }

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
            for r in 0..R {
                let scale = lanes.mul(scale, lanes.splat(x[r].scale));
                sum[r] = lanes.fma(lanes.to_f32(dot[r]), scale, sum[r]);
            }
        }
    }
}

impl<Q: Integers> PanelBlock for Ranged<Q> {
    const GROUPS: usize = 1;

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
        for w in to {
            let scaled = lanes.mul(scale, lanes.load(w));
            lanes.store(lanes.add(scaled, min), w);
        }
    }

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
            accumulate_ranged(int8, scale, min, x, dot, sum);
        }
    }
}

#[inline(always)]
fn accumulate_ranged<I: Int8, const R: usize>(
    int8: I,
    scale: F32Of<I>,
    min: F32Of<I>,
    x: &[QuantBlock; R],
    dot: [I32Of<I>; R],
    sum: &mut [F32Of<I>; R],
) {
    let lanes = int8.lanes();
    for r in 0..R {
        let scale = lanes.mul(scale, lanes.splat(x[r].scale));
        sum[r] = lanes.fma(lanes.to_f32(dot[r]), scale, sum[r]);
        let all = lanes.splat(x[r].scale * x[r].sum() as f32);
        sum[r] = lanes.fma(min, all, sum[r]);
    }
}

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
pub(crate) type Q5K = Super<Bytes<5>>;

// SAFETY: `repr(C)` of arrays of bytes and, before them, an even number of `f16`; the size of a group is even: no
// padding, all bits are values.
unsafe impl<Q: Integers> Pod for Super<Q> {}

fn read_super_block(block: &[u8]) -> SuperBlock {
    match block.len() {
        144 => SuperBlock::read_q4_k(block.try_into().expect("144 bytes")),
        176 => SuperBlock::read_q5_k(block.try_into().expect("176 bytes")),
        len => unreachable!("no format has super-blocks of {len} bytes"),
    }
}

impl<Q: Integers> PanelBlock for Super<Q> {
    const GROUPS: usize = 8;

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
            for w in to {
                let scaled = lanes.mul(scale, lanes.load(w));
                lanes.store(lanes.add(scaled, min), w);
            }
        }
    }

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
            accumulate_ranged(int8, scale, min, x, dot, sum);
        }
    }
}

/// Q6_K: in group `g` of 16, `(scale * scales[g]) * (q - 32)`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Q6K {
    scale: [f16; LANES],
    groups: [SixGroup; 8],
}

/// 32 inputs with a scale (a signed byte) for each 16.
#[derive(Clone, Copy)]
#[repr(C)]
struct SixGroup {
    scales: [[u8; LANES]; 2],
    q: Bytes<6>,
}

// SAFETY: `repr(C)` of sixteen `f16` and arrays of an even number of bytes: no padding, all bits are values.
unsafe impl Pod for Q6K {}

impl PanelBlock for Q6K {
    const GROUPS: usize = 8;

    fn pack(&mut self, lane: usize, block: &[u8]) {
        let block = SuperBlock6::read(block.try_into().expect("a Q6_K block is 210 bytes"));
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
        let q = i32::from(group.q.get(lane, k % 32)) - 32;
        self.scale[lane].to_f32() * f32::from(scale) * q as f32
    }

    #[inline(always)]
    fn widen<L: Lanes>(&self, lanes: L, to: &mut [[f32; LANES]]) {
        let scale = lanes.load_f16(&self.scale);
        let zero = lanes.splat(32.0);
        for (group, to) in self.groups.iter().zip(to.as_chunks_mut().0) {
            group.q.widen(lanes, to);
            for (scales, to) in group.scales.iter().zip(to.chunks_exact_mut(16)) {
                let scale = lanes.mul(scale, lanes.load_i8(scales));
                for w in to {
                    let q = lanes.sub(lanes.load(w), zero);
                    lanes.store(lanes.mul(scale, q), w);
                }
            }
        }
    }

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
            for half in 0..2 {
                let scale = lanes.mul(scale, lanes.load_i8(&group.scales[half]));
                let sums = x.each_ref().map(|x| i32::from(x.sums[half]));
                let q = x.each_ref().map(|x| &x.q.as_chunks::<4>().0[half]);
                let weights = &group.q.0.as_chunks::<4>().0[half];
                let dot = int8.dot_bytes::<R, 4, 6, 32>(weights, q, sums);
                for r in 0..R {
                    let scale = lanes.mul(scale, lanes.splat(x[r].scale));
                    sum[r] = lanes.fma(lanes.to_f32(dot[r]), scale, sum[r]);
                }
            }
        }
    }
}
