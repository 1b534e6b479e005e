//! Integer dot products on 64-bit ARM: by the instructions that all cores have, by those of the extension for dot
//! products (`sdot`), and by those of the extension for matrices of bytes (`usdot`).

use super::generic::dot::Dpbusd;
use super::neon::{I, Neon, neon};
use super::vector::{Int8Kernel, Quads, quads_of};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

/// Proof that the CPU has the dot product of signed bytes: only [`NeonDotprod::detect`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NeonDotprod(Neon);

/// Proof that the CPU has the dot product of unsigned and signed bytes: only [`NeonI8mm::detect`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NeonI8mm(Neon);

impl Neon {
    /// Runs a kernel compiled with these instructions.
    pub fn run_int8<K: Int8Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn compiled<K: Int8Kernel>(int8: Neon, kernel: K) -> K::Output {
            kernel.run(int8)
        }
        // SAFETY: the token proves that the CPU has the feature.
        #[allow(unused_unsafe, reason = "most targets have the feature anyway")]
        unsafe {
            compiled(self, kernel)
        }
    }
}

impl NeonDotprod {
    pub fn detect() -> Option<Self> {
        let lanes = Neon::detect()?;
        is_aarch64_feature_detected!("dotprod").then_some(Self(lanes))
    }

    /// Runs a kernel compiled with these instructions.
    pub fn run<K: Int8Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod")]
        fn compiled<K: Int8Kernel>(int8: NeonDotprod, kernel: K) -> K::Output {
            kernel.run(int8)
        }
        // SAFETY: the token proves that the CPU has the features.
        unsafe { compiled(self, kernel) }
    }
}

impl NeonI8mm {
    pub fn detect() -> Option<Self> {
        let lanes = NeonDotprod::detect()?.0;
        is_aarch64_feature_detected!("i8mm").then_some(Self(lanes))
    }

    /// Runs a kernel compiled with these instructions.
    pub fn run<K: Int8Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod,i8mm")]
        fn compiled<K: Int8Kernel>(int8: NeonI8mm, kernel: K) -> K::Output {
            kernel.run(int8)
        }
        // SAFETY: the token proves that the CPU has the features.
        unsafe { compiled(self, kernel) }
    }
}

type Bytes = [uint8x16_t; 4];

impl Quads for Neon {
    type Lanes = Self;
    type Bytes = Bytes;

    #[inline(always)]
    fn lanes(self) -> Self {
        self
    }

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> Bytes {
        let at = from.as_ptr();
        neon!(i => vld1q_u8(at.add(16 * i)))
    }

    #[inline(always)]
    fn store(self, x: Bytes, to: &mut [u8; 64]) {
        let to = to.as_mut_ptr();
        neon!(i => vst1q_u8(to.add(16 * i), x[i]));
    }

    #[inline(always)]
    fn repeat(self, q: &[i8; 4]) -> Bytes {
        let quad = u32::from_ne_bytes(q.map(|q| q as u8));
        neon!([vreinterpretq_u8_u32(vdupq_n_u32(quad)); 4])
    }

    #[inline(always)]
    fn low_nibbles(self, x: Bytes) -> Bytes {
        neon!(i => vandq_u8(x[i], vdupq_n_u8(0x0f)))
    }

    #[inline(always)]
    fn high_nibbles(self, x: Bytes) -> Bytes {
        neon!(i => vshrq_n_u8::<4>(x[i]))
    }

    #[inline(always)]
    fn bits(self, x: Bytes, shift: i32, mask: u8) -> Bytes {
        // By a number that is known, so it becomes an immediate.
        neon!(i => vandq_u8(vshlq_u8(x[i], vdupq_n_s8(-shift as i8)), vdupq_n_u8(mask)))
    }

    #[inline(always)]
    fn or(self, a: Bytes, b: Bytes) -> Bytes {
        neon!(i => vorrq_u8(a[i], b[i]))
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], x: Bytes) -> Bytes {
        neon!(i => vqtbl1q_u8(vld1q_u8(table.as_ptr()), x[i]))
    }

    #[inline(always)]
    fn splat(self, x: i32) -> I {
        neon!([vdupq_n_s32(x); 4])
    }

    #[inline(always)]
    fn add(self, a: I, b: I) -> I {
        neon!(i => vaddq_s32(a[i], b[i]))
    }
}

quads_of!(NeonDotprod, Neon);
quads_of!(NeonI8mm, Neon);

/// Flips the sign bit of each byte: unsigned bytes become signed ones, 128 less.
#[inline(always)]
fn flip(x: Bytes) -> Bytes {
    neon!(i => veorq_u8(x[i], vdupq_n_u8(0x80)))
}

/// Products of 16 bits, two of which fit in 16 bits: `2 * 128 * 127` is less than `2^15`.
impl Dpbusd for Neon {
    const ROWS: usize = 4;
    const CENTRE: i32 = 128;

    #[inline(always)]
    fn centred(self, w: Bytes) -> Bytes {
        flip(w)
    }

    #[inline(always)]
    fn dpbusd(self, sum: I, w: Bytes, q: Bytes) -> I {
        neon!(i => {
            let (w, q) = (vreinterpretq_s8_u8(w[i]), vreinterpretq_s8_u8(q[i]));
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(q));
            let high = vmull_high_s8(w, q);
            vpadalq_s16(sum[i], vpaddq_s16(low, high))
        })
    }
}

impl Dpbusd for NeonDotprod {
    const ROWS: usize = 4;
    const CENTRE: i32 = 128;

    #[inline(always)]
    fn centred(self, w: Bytes) -> Bytes {
        flip(w)
    }

    #[inline(always)]
    fn dpbusd(self, mut sum: I, w: Bytes, q: Bytes) -> I {
        // SAFETY: the token proves that the CPU has the instruction, which only computes. Its intrinsic is unstable.
        neon!(i => asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {q:v}.16b",
            sum = inout(vreg) sum[i],
            w = in(vreg) w[i],
            q = in(vreg) q[i],
            options(pure, nomem, nostack, preserves_flags),
        ));
        sum
    }
}

impl Dpbusd for NeonI8mm {
    const ROWS: usize = 4;

    #[inline(always)]
    fn dpbusd(self, mut sum: I, w: Bytes, q: Bytes) -> I {
        // SAFETY: as above.
        neon!(i => asm!(
            "usdot {sum:v}.4s, {w:v}.16b, {q:v}.16b",
            sum = inout(vreg) sum[i],
            w = in(vreg) w[i],
            q = in(vreg) q[i],
            options(pure, nomem, nostack, preserves_flags),
        ));
        sum
    }
}
