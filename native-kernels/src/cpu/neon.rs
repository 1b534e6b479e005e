//! Lanes on the vector unit that every 64-bit ARM core has (NEON, as Linux calls it ASIMD): sixteen lanes are four
//! registers of four.

use super::vector::{LANES, LaneKernel, Lanes};
use half::{bf16, f16};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

/// Proof that the CPU has NEON: only [`Neon::detect`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

impl Neon {
    pub fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    /// Runs a kernel compiled with these instructions.
    pub fn run<K: LaneKernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn compiled<K: LaneKernel>(lanes: Neon, kernel: K) -> K::Output {
            kernel.run(lanes)
        }
        // SAFETY: the token proves that the CPU has the feature.
        #[allow(unused_unsafe, reason = "most targets have the feature anyway")]
        unsafe {
            compiled(self, kernel)
        }
    }
}

/// Intrinsics in a method of the token, or the same ones for each of the four registers.
macro_rules! neon {
    ($i:ident => $intrinsics:expr) => {
        neon!([
            neon!(@ $i = 0, $intrinsics),
            neon!(@ $i = 1, $intrinsics),
            neon!(@ $i = 2, $intrinsics),
            neon!(@ $i = 3, $intrinsics),
        ])
    };
    (@ $i:ident = $n:literal, $intrinsics:expr) => {{
        let $i = $n;
        $intrinsics
    }};
    ($intrinsics:expr) => {{
        // SAFETY: every method takes the token, which proves that the CPU has NEON; what is loaded or stored is a
        // reference to exactly the bytes of the vector, and these loads and stores need no alignment.
        #[allow(unused_unsafe, reason = "some of the intrinsics only compute")]
        unsafe {
            $intrinsics
        }
    }};
}
pub(super) use neon;

pub(super) type F = [float32x4_t; 4];
pub(super) type I = [int32x4_t; 4];

impl Lanes for Neon {
    type F32 = F;
    type I32 = I;

    // Of the 32 registers four rows take 16 for their sums and four for the weights of an input; a second panel beside
    // the first would need more than there are.
    const ROWS: usize = 4;
    const PANELS: usize = 1;
    const ACCUMULATORS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        neon!([vdupq_n_f32(x); 4])
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        let at = from.as_ptr();
        neon!(i => vld1q_f32(at.add(4 * i)))
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> F {
        let at = from.as_ptr().cast::<u16>();
        neon!(i => vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at.add(4 * i)))))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> F {
        let at = from.as_ptr().cast::<u16>();
        neon!(i => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(at.add(4 * i)))))
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> F {
        neon!({
            let bytes = vld1q_u8(from.as_ptr());
            let words = [vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes)];
            [
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(words[0]))),
                vcvtq_f32_u32(vmovl_high_u16(words[0])),
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(words[1]))),
                vcvtq_f32_u32(vmovl_high_u16(words[1])),
            ]
        })
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> F {
        neon!({
            let bytes = vreinterpretq_s8_u8(vld1q_u8(from.as_ptr()));
            let words = [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)];
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(words[0]))),
                vcvtq_f32_s32(vmovl_high_s16(words[0])),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(words[1]))),
                vcvtq_f32_s32(vmovl_high_s16(words[1])),
            ]
        })
    }

    #[inline(always)]
    fn store(self, x: F, to: &mut [f32; LANES]) {
        let at = to.as_mut_ptr();
        neon!(i => vst1q_f32(at.add(4 * i), x[i]));
    }

    #[inline(always)]
    fn store_f16(self, x: F, to: &mut [f16; LANES]) {
        let at = to.as_mut_ptr().cast::<u16>();
        neon!(i => vst1_u16(at.add(4 * i), vreinterpret_u16_f16(vcvt_f16_f32(x[i]))));
    }

    #[inline(always)]
    fn store_bf16(self, x: F, to: &mut [bf16; LANES]) {
        let at = to.as_mut_ptr().cast::<u16>();
        neon!(i => vst1_u16(at.add(4 * i), f32_to_bf16(x[i])));
    }

    #[inline(always)]
    fn store_i8(self, x: F, to: &mut [i8; LANES]) {
        neon!({
            let low = vmovn_high_s32(vmovn_s32(vcvtnq_s32_f32(x[0])), vcvtnq_s32_f32(x[1]));
            let high = vmovn_high_s32(vmovn_s32(vcvtnq_s32_f32(x[2])), vcvtnq_s32_f32(x[3]));
            vst1q_s8(to.as_mut_ptr(), vmovn_high_s16(vmovn_s16(low), high));
        });
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        neon!(i => vaddq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        neon!(i => vsubq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        neon!(i => vmulq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        neon!(i => vdivq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        // The intrinsic takes the summand first.
        neon!(i => vfmaq_f32(c[i], a[i], b[i]))
    }

    // The instructions for the larger and the smaller give what is not a number whichever side it is on.
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        neon!(i => vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]))
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        neon!(i => vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]))
    }

    #[inline(always)]
    fn abs(self, x: F) -> F {
        neon!(i => vabsq_f32(x[i]))
    }

    #[inline(always)]
    fn round(self, x: F) -> F {
        neon!(i => vrndnq_f32(x[i]))
    }

    #[inline(always)]
    fn power_of_two(self, n: F) -> F {
        neon!(i => {
            let exponent = vaddq_s32(vcvtnq_s32_f32(n[i]), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        })
    }

    #[inline(always)]
    fn scale_by_power(self, x: F, n: F) -> F {
        self.mul(x, self.power_of_two(n))
    }

    #[inline(always)]
    fn subtract_bits(self, minuend: i32, x: F) -> F {
        neon!(i => {
            let bits = vsubq_s32(vdupq_n_s32(minuend), vreinterpretq_s32_f32(x[i]));
            vreinterpretq_f32_s32(bits)
        })
    }

    #[inline(always)]
    fn select_less(self, a: F, b: F, yes: F, no: F) -> F {
        neon!(i => vbslq_f32(vcltq_f32(a[i], b[i]), yes[i], no[i]))
    }

    #[inline(always)]
    fn any_less(self, a: F, b: F) -> bool {
        neon!({
            let low = vorrq_u32(vcltq_f32(a[0], b[0]), vcltq_f32(a[1], b[1]));
            let high = vorrq_u32(vcltq_f32(a[2], b[2]), vcltq_f32(a[3], b[3]));
            vmaxvq_u32(vorrq_u32(low, high)) != 0
        })
    }

    #[inline(always)]
    fn swap_pairs(self, x: F) -> F {
        neon!(i => vrev64q_f32(x[i]))
    }

    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        neon!({
            let four = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        })
    }

    #[inline(always)]
    fn max_lane(self, x: F) -> f32 {
        neon!(vmaxvq_f32(vmaxq_f32(
            vmaxq_f32(x[0], x[1]),
            vmaxq_f32(x[2], x[3]),
        )))
    }

    #[inline(always)]
    fn load_quads(self, from: &[u8; 4 * LANES]) -> I {
        let at = from.as_ptr();
        neon!(i => vreinterpretq_s32_u8(vld1q_u8(at.add(16 * i))))
    }

    #[inline(always)]
    fn field<const SHIFT: i32>(self, x: I, mask: u8) -> F {
        neon!(i => {
            let field = vandq_u32(moved_up(x[i], -SHIFT), vdupq_n_u32(mask.into()));
            vcvtq_f32_u32(field)
        })
    }

    #[inline(always)]
    fn raised_field<const SHIFT: i32, const BITS: i32>(self, x: I) -> F {
        let mask = ((1 << BITS) - 1) << (23 - BITS);
        let exponent = (127 + BITS as u32) << 23;
        neon!(i => {
            let placed = vandq_u32(moved_up(x[i], 23 - BITS - SHIFT), vdupq_n_u32(mask));
            vreinterpretq_f32_u32(vorrq_u32(placed, vdupq_n_u32(exponent)))
        })
    }

    #[inline(always)]
    fn lookup<const SHIFT: i32>(self, table: &[f32; LANES], x: I) -> F {
        let [a, b, c, d] = Lanes::load(self, table);
        neon!({
            let table = uint8x16x4_t(
                vreinterpretq_u8_f32(a),
                vreinterpretq_u8_f32(b),
                vreinterpretq_u8_f32(c),
                vreinterpretq_u8_f32(d),
            );
            neon!(i => {
                // The lookup is of bytes: entry `n` is those from `4 n` on.
                let index = vandq_u32(moved_up(x[i], -SHIFT), vdupq_n_u32(15));
                let first = vmulq_u32(index, vdupq_n_u32(0x0404_0404));
                let bytes = vorrq_u32(first, vdupq_n_u32(0x0302_0100));
                vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)))
            })
        })
    }

    #[inline(always)]
    fn to_f32(self, x: I) -> F {
        neon!(i => vcvtq_f32_s32(x[i]))
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &T, bytes: usize) {
        let at = std::ptr::from_ref(from).cast::<u8>().wrapping_add(bytes);
        // SAFETY: a prefetch of any address, mapped or not, is without effect but on caches. (Its intrinsic is unstable.)
        unsafe {
            asm!(
                "prfm pldl1keep, [{at}]",
                at = in(reg) at.addr(),
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}

/// Each lane moved up by `count` bits (down, if it is negative); by a number that is known it becomes an immediate.
#[target_feature(enable = "neon")]
#[inline]
fn moved_up(x: int32x4_t, count: i32) -> uint32x4_t {
    vshlq_u32(vreinterpretq_u32_s32(x), vdupq_n_s32(count))
}

/// What is not a number keeps its upper bits and becomes quiet.
#[target_feature(enable = "neon")]
#[inline]
fn f32_to_bf16(x: float32x4_t) -> uint16x4_t {
    let bits = vreinterpretq_u32_f32(x);
    let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
    let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
    let is_number = vceqq_f32(x, x);
    vshrn_n_u32::<16>(vbslq_u32(is_number, rounded, quiet))
}
