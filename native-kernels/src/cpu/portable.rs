//! Lanes in plain Rust: runs everywhere, and is the meaning of the lane layer that the other instances must equal.

use super::vector::{Int8, LANES, Lanes, Quads, SumOf, Unpack};
use half::{bf16, f16};
use std::array::from_fn;

/// Needs nothing of the CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl Lanes for Portable {
    type F32 = [f32; LANES];
    type I32 = [i32; LANES];

    const ROWS: usize = 4;
    const ACCUMULATORS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F32 {
        *from
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::F32 {
        from.map(f16::to_f32)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F32 {
        from.map(bf16::to_f32)
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Self::F32 {
        from.map(f32::from)
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> Self::F32 {
        from.map(|byte| f32::from(byte as i8))
    }

    #[inline(always)]
    fn store(self, x: Self::F32, to: &mut [f32; LANES]) {
        *to = x;
    }

    #[inline(always)]
    fn store_f16(self, x: Self::F32, to: &mut [f16; LANES]) {
        *to = x.map(f16::from_f32);
    }

    #[inline(always)]
    fn store_bf16(self, x: Self::F32, to: &mut [bf16; LANES]) {
        *to = x.map(bf16::from_f32);
    }

    #[inline(always)]
    fn store_i8(self, x: Self::F32, to: &mut [i8; LANES]) {
        *to = x.map(|x| x.round_ties_even() as i8);
    }

    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn abs(self, x: Self::F32) -> Self::F32 {
        x.map(f32::abs)
    }

    #[inline(always)]
    fn round(self, x: Self::F32) -> Self::F32 {
        x.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn power_of_two(self, n: Self::F32) -> Self::F32 {
        n.map(|n| f32::from_bits((n as i32 + 127).clamp(0, 255) as u32 * (1 << 23)))
    }

    #[inline(always)]
    fn scale_by_power(self, x: Self::F32, n: Self::F32) -> Self::F32 {
        let power = self.power_of_two(n);
        from_fn(|i| x[i] * power[i])
    }

    #[inline(always)]
    fn subtract_bits(self, minuend: i32, x: Self::F32) -> Self::F32 {
        x.map(|x| f32::from_bits(minuend.wrapping_sub(x.to_bits() as i32) as u32))
    }

    #[inline(always)]
    fn select_less(self, a: Self::F32, b: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32 {
        from_fn(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    fn any_less(self, a: Self::F32, b: Self::F32) -> bool {
        a.iter().zip(&b).any(|(a, b)| a < b)
    }

    #[inline(always)]
    fn swap_pairs(self, x: Self::F32) -> Self::F32 {
        from_fn(|i| x[i ^ 1])
    }

    #[inline(always)]
    fn sum(self, mut x: Self::F32) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                x[i] += x[i + half];
            }
        }
        x[0]
    }

    #[inline(always)]
    fn max_lane(self, x: Self::F32) -> f32 {
        x.iter()
            .fold(f32::NEG_INFINITY, |a, &b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn load_quads(self, from: &[u8; 4 * LANES]) -> Self::I32 {
        from_fn(|i| i32::from_le_bytes(from_fn(|j| from[4 * i + j])))
    }

    #[inline(always)]
    fn field<const SHIFT: i32>(self, x: Self::I32, mask: u8) -> Self::F32 {
        x.map(|x| f32::from((x >> SHIFT) as u8 & mask))
    }

    #[inline(always)]
    fn raised_field<const SHIFT: i32, const BITS: i32>(self, x: Self::I32) -> Self::F32 {
        let field = |x: i32| x as u32 >> SHIFT & ((1 << BITS) - 1);
        x.map(|x| ((1 << BITS) + field(x)) as f32)
    }

    #[inline(always)]
    fn lookup<const SHIFT: i32>(self, table: &[f32; LANES], x: Self::I32) -> Self::F32 {
        x.map(|x| table[(x >> SHIFT & 15) as usize])
    }

    #[inline(always)]
    fn to_f32(self, x: Self::I32) -> Self::F32 {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    fn prefetch<T>(self, _: &T, _: usize) {}
}

impl Quads for Portable {
    type Lanes = Self;
    type Bytes = [u8; 64];

    #[inline(always)]
    fn lanes(self) -> Self {
        self
    }

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> [u8; 64] {
        *from
    }

    #[inline(always)]
    fn store(self, x: [u8; 64], to: &mut [u8; 64]) {
        *to = x;
    }

    #[inline(always)]
    fn repeat(self, q: &[i8; 4]) -> [u8; 64] {
        from_fn(|i| q[i % 4] as u8)
    }

    #[inline(always)]
    fn low_nibbles(self, x: [u8; 64]) -> [u8; 64] {
        x.map(|x| x & 0x0f)
    }

    #[inline(always)]
    fn high_nibbles(self, x: [u8; 64]) -> [u8; 64] {
        x.map(|x| x >> 4)
    }

    #[inline(always)]
    fn bits(self, x: [u8; 64], shift: i32, mask: u8) -> [u8; 64] {
        x.map(|x| {
            let moved = if shift < 0 { x << -shift } else { x >> shift };
            moved & mask
        })
    }

    #[inline(always)]
    fn or(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], x: [u8; 64]) -> [u8; 64] {
        x.map(|x| table[usize::from(x & 0x0f)])
    }

    #[inline(always)]
    fn splat(self, x: i32) -> [i32; LANES] {
        [x; LANES]
    }

    #[inline(always)]
    fn add(self, a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
}

impl Int8 for Portable {
    const ROWS: usize = 4;

    #[inline(always)]
    fn dot_nibbles<const R: usize, const ZERO: i32>(
        self,
        weights: &[[u8; 64]; 4],
        q: [&[[i8; 4]; 8]; R],
        _: [i32; R],
    ) -> [SumOf<Self>; R] {
        let mut dots = [[0; LANES]; R];
        for (p, weights) in weights.iter().enumerate() {
            let low = weights.map(|byte| (byte & 0x0f) as i8 - ZERO as i8);
            let high = weights.map(|byte| (byte >> 4) as i8 - ZERO as i8);
            for r in 0..R {
                add_products(&mut dots[r], &low, &q[r][p]);
                add_products(&mut dots[r], &high, &q[r][4 + p]);
            }
        }
        dots
    }

    #[inline(always)]
    fn dot_bytes<const R: usize, const P: usize, const BITS: u32, const ZERO: i32>(
        self,
        weights: &impl Unpack<P>,
        q: [&[[i8; 4]; P]; R],
        _: [i32; R],
    ) -> [SumOf<Self>; R] {
        let mut dots = [[0; LANES]; R];
        #[allow(
            clippy::needless_range_loop,
            reason = "the activations are not all that is numbered by it"
        )]
        for p in 0..P {
            let weights = weights.quad(self, p);
            let weights = weights.map(|byte| byte.wrapping_sub(ZERO as u8) as i8);
            for r in 0..R {
                add_products(&mut dots[r], &weights, &q[r][p]);
            }
        }
        dots
    }
}

/// Adds four products to each lane.
#[inline(always)]
fn add_products(dots: &mut [i32; LANES], weights: &[i8; 4 * LANES], q: &[i8; 4]) {
    let q = q.map(i32::from);
    for (dot, w) in dots.iter_mut().zip(weights.as_chunks::<4>().0) {
        let w = w.map(i32::from);
        *dot += w[0] * q[0] + w[1] * q[1] + w[2] * q[2] + w[3] * q[3];
    }
}
