//! The lane layer: what a vector unit must offer, as traits over a token that proves the CPU has it.
//!
//! A vector is always sixteen lanes, however many registers that takes. Every operation is exactly rounded or exact, and
//! reductions have a fixed order, so an algorithm written once over `Lanes` gives the same bits on every instance. An
//! instance implements these methods and no loop over a problem; an algorithm holds the loops and no instruction.
//!
//! An algorithm gives no vector to a closure (`array::map`, `from_fn`): that is a function of its own, which the compiler
//! may leave standing without the instructions of the instance, each of them a call.

use half::{bf16, f16};

/// Lanes of a vector, and outputs of a weight panel.
pub(crate) const LANES: usize = 16;

/// Sixteen lanes of single precision.
pub(crate) trait Lanes: Copy + Send + Sync + 'static {
    /// Sixteen `f32`.
    type F32: Copy;
    /// Sixteen `i32`.
    type I32: Copy;

    /// Rows of a register block in a float matrix product; it holds this many accumulators per panel.
    const ROWS: usize;
    /// Panels of a register block of several rows: 1 or 2.
    const PANELS: usize = 2;
    /// Accumulators that fit in registers beside what they are computed from.
    const ACCUMULATORS: usize;

    fn splat(self, x: f32) -> Self::F32;
    fn load(self, from: &[f32; LANES]) -> Self::F32;
    fn load_f16(self, from: &[f16; LANES]) -> Self::F32;
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F32;
    /// Bytes 0 to 255 as numbers.
    fn load_u8(self, from: &[u8; LANES]) -> Self::F32;
    /// Bytes -128 to 127 as numbers.
    fn load_i8(self, from: &[u8; LANES]) -> Self::F32;
    fn store(self, x: Self::F32, to: &mut [f32; LANES]);
    /// Rounds to nearest, ties to even.
    fn store_f16(self, x: Self::F32, to: &mut [f16; LANES]);
    /// Rounds to nearest, ties to even; what is not a number stays so.
    fn store_bf16(self, x: Self::F32, to: &mut [bf16; LANES]);
    /// Rounds to nearest, ties to even. Lanes are within -128 to 127; others give any byte.
    fn store_i8(self, x: Self::F32, to: &mut [i8; LANES]);
    /// Rounds to nearest, ties to even: byte `4 lane + j` is the lane of vector `j`. Lanes are within 0 to 255; others give
    /// any byte.
    #[inline(always)]
    fn store_quads(self, x: [Self::F32; 4], to: &mut [u8; 4 * LANES]) {
        for (j, x) in x.into_iter().enumerate() {
            let mut whole = [0.0; LANES];
            self.store(self.round(x), &mut whole);
            for (lane, x) in whole.into_iter().enumerate() {
                to[4 * lane + j] = x as u8;
            }
        }
    }

    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The larger; `b` if one is not a number.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller; `b` if one is not a number.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn abs(self, x: Self::F32) -> Self::F32;
    /// To the nearest integer, ties to even.
    fn round(self, x: Self::F32) -> Self::F32;
    /// `x · 2^n`, rounded once, for an integral `n` of -126 to 127.
    fn scale_by_power(self, x: Self::F32, n: Self::F32) -> Self::F32;
    /// The number whose bits are those of `minuend` less those of `x`: where a power is approximated by its logarithm.
    fn subtract_bits(self, minuend: i32, x: Self::F32) -> Self::F32;
    /// `2^n` for an integral `n` of -126 to 127.
    fn power_of_two(self, n: Self::F32) -> Self::F32;
    /// Where `a < b`, `yes`, else `no`.
    fn select_less(self, a: Self::F32, b: Self::F32, yes: Self::F32, no: Self::F32) -> Self::F32;
    /// Is `a < b` in any lane?
    fn any_less(self, a: Self::F32, b: Self::F32) -> bool;
    /// Exchanges lanes `2 i` and `2 i + 1`.
    fn swap_pairs(self, x: Self::F32) -> Self::F32;
    /// Sum in the order of a tree: lanes `i` and `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    fn sum(self, x: Self::F32) -> f32;
    /// The largest lane.
    fn max_lane(self, x: Self::F32) -> f32;

    /// Sixteen groups of four bytes, each a little-endian integer.
    fn load_quads(self, from: &[u8; 4 * LANES]) -> Self::I32;
    /// Bits from `SHIFT` on of each lane, and-ed with `mask`, as a number.
    fn field<const SHIFT: i32>(self, x: Self::I32, mask: u8) -> Self::F32;
    /// `2^BITS` plus the `BITS` bits from `SHIFT` on of each lane: such a number is made without a conversion.
    fn raised_field<const SHIFT: i32, const BITS: i32>(self, x: Self::I32) -> Self::F32;
    /// The entry of `table` that the four bits from `SHIFT` on of each lane number.
    fn lookup<const SHIFT: i32>(self, table: &[f32; LANES], x: Self::I32) -> Self::F32;
    /// Exact up to 2^24.
    fn to_f32(self, x: Self::I32) -> Self::F32;

    /// Hints that the cache line at `bytes` after the start of `from` will be read; any distance is allowed.
    fn prefetch<T>(self, from: &T, bytes: usize);

    /// As [`prefetch`](Self::prefetch), into the second-level cache at the nearest: for what is far ahead, or too much to
    /// wait for at a time. By default no different.
    #[inline(always)]
    fn prefetch_second<T>(self, from: &T, bytes: usize) {
        self.prefetch(from, bytes);
    }

    /// Hints that as many bytes as a `T` has will be read `bytes` after the start of `from`.
    #[inline(always)]
    fn prefetch_all<T>(self, from: &T, bytes: usize) {
        for line in (0..size_of::<T>()).step_by(64) {
            self.prefetch(from, bytes + line);
        }
    }
}

/// The first tail of a slice in a whole vector: the lanes after its end are zero.
#[inline(always)]
pub(crate) fn load_part<L: Lanes>(lanes: L, from: &[f32]) -> L::F32 {
    let mut whole = [0.0; LANES];
    whole[..from.len()].copy_from_slice(from);
    lanes.load(&whole)
}

/// As many lanes as the slice holds.
#[inline(always)]
pub(crate) fn store_part<L: Lanes>(lanes: L, x: L::F32, to: &mut [f32]) {
    let mut whole = [0.0; LANES];
    lanes.store(x, &mut whole);
    to.copy_from_slice(&whole[..to.len()]);
}

/// Dot products of small integers: sixteen outputs side by side, four inputs in each lane.
pub(crate) trait Int8: Quads + Send + Sync + 'static {
    /// Rows of a register block in a quantised matrix product.
    const ROWS: usize;
    /// Rows from which on it pays to take integers apart once for all of them, where it was seen to pay.
    const LOOSE_ROWS: Option<usize> = None;

    /// `sum over k of (weight[k] - ZERO) * q[r][k]` for sixteen outputs and 32 inputs.
    ///
    /// `q` are -127 to 127 and `sums[r]` is the sum of `q[r]`.
    ///
    /// **Layout**: byte `64 p + 4 lane + j` holds input `4 p + j` of the output `lane` in its low nibble and input
    /// `16 + 4 p + j` in its high one.
    fn dot_nibbles<const R: usize, const ZERO: i32>(
        self,
        weights: &[[u8; 64]; 4],
        q: [&[[i8; 4]; 8]; R],
        sums: [i32; R],
    ) -> [SumOf<Self>; R];

    /// `sum over k of (weight[k] - ZERO) * q[r][k]` for sixteen outputs and `4 * P` inputs (16 or 32), with weights
    /// below `1 << BITS`.
    ///
    /// `weight - ZERO` fits in a signed byte, `q` are -127 to 127, and `sums[r]` is the sum of `q[r]`.
    fn dot_bytes<const R: usize, const P: usize, const BITS: u32, const ZERO: i32>(
        self,
        weights: &impl Unpack<P>,
        q: [&[[i8; 4]; P]; R],
        sums: [i32; R],
    ) -> [SumOf<Self>; R];
}

/// Small unsigned integers of sixteen outputs x `4 * P` inputs, in whatever layout, that become bytes on their way into
/// a dot product.
pub(crate) trait Unpack<const P: usize> {
    /// Inputs `4 p` to `4 p + 3`: byte `4 lane + j` is input `4 p + j` of the output `lane`.
    fn quad<Q: Quads>(&self, quads: Q, p: usize) -> Q::Bytes;
}

/// One integer a byte.
impl<const P: usize> Unpack<P> for [[u8; 64]; P] {
    #[inline(always)]
    fn quad<Q: Quads>(&self, quads: Q, p: usize) -> Q::Bytes {
        quads.load(&self[p])
    }
}

/// Bytes of sixteen outputs x 4 inputs, and how to take them apart.
pub(crate) trait Quads: Copy {
    /// The float lanes that go with it, whose integers the sums are.
    type Lanes: Lanes;
    /// 64 bytes.
    type Bytes: Copy;

    fn lanes(self) -> Self::Lanes;
    fn load(self, from: &[u8; 64]) -> Self::Bytes;
    fn store(self, x: Self::Bytes, to: &mut [u8; 64]);
    /// The same four bytes sixteen times.
    fn repeat(self, q: &[i8; 4]) -> Self::Bytes;
    fn low_nibbles(self, x: Self::Bytes) -> Self::Bytes;
    fn high_nibbles(self, x: Self::Bytes) -> Self::Bytes;
    /// Each byte moved down by `shift` bits (up, if it is negative), -7 to 7, and and-ed with `mask`, which keeps none
    /// of the bits that came from a neighbour.
    fn bits(self, x: Self::Bytes, shift: i32, mask: u8) -> Self::Bytes;
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// The entry of `table` that each byte (below 16) numbers.
    fn lookup(self, table: &[u8; 16], x: Self::Bytes) -> Self::Bytes;
    fn splat(self, x: i32) -> SumOf<Self>;
    /// Wraps.
    fn add(self, a: SumOf<Self>, b: SumOf<Self>) -> SumOf<Self>;
}

/// The quads of `$base` for a token that holds one.
macro_rules! quads_of {
    ($token:ty, $base:ty) => {
        impl $crate::cpu::vector::Quads for $token {
            type Lanes = <$base as $crate::cpu::vector::Quads>::Lanes;
            type Bytes = <$base as $crate::cpu::vector::Quads>::Bytes;
            quads_of! {
                @ $base:
                lanes() -> Self::Lanes,
                load(from: &[u8; 64]) -> Self::Bytes,
                store(x: Self::Bytes, to: &mut [u8; 64]) -> (),
                repeat(q: &[i8; 4]) -> Self::Bytes,
                low_nibbles(x: Self::Bytes) -> Self::Bytes,
                high_nibbles(x: Self::Bytes) -> Self::Bytes,
                bits(x: Self::Bytes, shift: i32, mask: u8) -> Self::Bytes,
                or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes,
                lookup(table: &[u8; 16], x: Self::Bytes) -> Self::Bytes,
                splat(x: i32) -> $crate::cpu::vector::SumOf<Self>,
                add(
                    a: $crate::cpu::vector::SumOf<Self>,
                    b: $crate::cpu::vector::SumOf<Self>
                ) -> $crate::cpu::vector::SumOf<Self>,
            }
        }
    };
    (@ $base:ty: $($name:ident($($arg:ident: $type:ty),*) -> $result:ty,)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($arg: $type),*) -> $result {
                <$base as $crate::cpu::vector::Quads>::$name(self.0, $($arg),*)
            }
        )*
    };
}
pub(crate) use quads_of;

/// Sixteen `i32`.
pub(crate) type SumOf<Q> = <<Q as Quads>::Lanes as Lanes>::I32;

/// An algorithm over float lanes, with its arguments. `run` is `inline(always)` in every implementation, so that it is
/// compiled with the instructions of the instance that calls it.
pub(crate) trait LaneKernel {
    type Output;
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// An algorithm over integer dot products, with its arguments. As [`LaneKernel`].
pub(crate) trait Int8Kernel {
    type Output;
    fn run<I: Int8>(self, int8: I) -> Self::Output;
}
