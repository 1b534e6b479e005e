//! Lanes on AVX2 with FMA and F16C: sixteen lanes are two registers of eight.

use super::generic::dot::{Maddubs, bytes_by_maddubs, nibbles_by_maddubs};
use super::vector::{Int8, Int8Kernel, LANES, LaneKernel, Lanes, Quads, SumOf, Unpack};
use half::{bf16, f16};
use std::arch::{asm, x86_64::*};

/// Proof that the CPU has AVX2, FMA and F16C: only [`Avx2::detect`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }

    /// Runs a kernel compiled with these instructions.
    pub fn run<K: LaneKernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: LaneKernel>(lanes: Avx2, kernel: K) -> K::Output {
            kernel.run(lanes)
        }
        // SAFETY: the token proves that the CPU has the features.
        unsafe { compiled(self, kernel) }
    }

    /// Runs a kernel compiled with these instructions.
    pub fn run_int8<K: Int8Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: Int8Kernel>(int8: Avx2, kernel: K) -> K::Output {
            kernel.run(int8)
        }
        // SAFETY: the token proves that the CPU has the features.
        unsafe { compiled(self, kernel) }
    }
}

/// An intrinsic, or a few, in a method of the token.
macro_rules! avx2 {
    ($intrinsics:expr) => {{
        // SAFETY: every method takes the token, which proves that the CPU has AVX2, FMA and F16C; what is loaded or
        // stored is a reference to exactly the bytes of the vector, and the unaligned forms are used.
        #[allow(unused_unsafe, reason = "some of the intrinsics only compute")]
        unsafe {
            $intrinsics
        }
    }};
}

type F = [__m256; 2];
type I = [__m256i; 2];

impl Lanes for Avx2 {
    type F32 = F;
    type I32 = I;

    const ROWS: usize = 4;
    const ACCUMULATORS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        avx2!([_mm256_set1_ps(x); 2])
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F {
        let at = from.as_ptr();
        avx2!([_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))])
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> F {
        let at = from.as_ptr().cast::<__m128i>();
        avx2!([
            _mm256_cvtph_ps(_mm_loadu_si128(at)),
            _mm256_cvtph_ps(_mm_loadu_si128(at.add(1))),
        ])
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> F {
        let at = from.as_ptr().cast::<__m128i>();
        avx2!([
            bf16_to_f32(_mm_loadu_si128(at)),
            bf16_to_f32(_mm_loadu_si128(at.add(1))),
        ])
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> F {
        avx2!({
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let upper = _mm_unpackhi_epi64(bytes, bytes);
            [
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(upper)),
            ]
        })
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> F {
        avx2!({
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let upper = _mm_unpackhi_epi64(bytes, bytes);
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(upper)),
            ]
        })
    }

    #[inline(always)]
    fn store(self, x: F, to: &mut [f32; LANES]) {
        let at = to.as_mut_ptr();
        avx2!({
            _mm256_storeu_ps(at, x[0]);
            _mm256_storeu_ps(at.add(8), x[1]);
        });
    }

    #[inline(always)]
    fn store_f16(self, x: F, to: &mut [f16; LANES]) {
        let at = to.as_mut_ptr().cast::<__m128i>();
        avx2!({
            _mm_storeu_si128(at, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
            _mm_storeu_si128(
                at.add(1),
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]),
            );
        });
    }

    #[inline(always)]
    fn store_bf16(self, x: F, to: &mut [bf16; LANES]) {
        avx2!({
            let packed = _mm256_packus_epi32(f32_to_bf16(x[0]), f32_to_bf16(x[1]));
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), ordered);
        });
    }

    #[inline(always)]
    fn store_i8(self, x: F, to: &mut [i8; LANES]) {
        avx2!({
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1]));
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let (low, high) = (
                _mm256_castsi256_si128(ordered),
                _mm256_extracti128_si256::<1>(ordered),
            );
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_packs_epi16(low, high));
        });
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        avx2!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        avx2!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        avx2!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        avx2!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        avx2!([
            _mm256_fmadd_ps(a[0], b[0], c[0]),
            _mm256_fmadd_ps(a[1], b[1], c[1]),
        ])
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        avx2!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        avx2!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn abs(self, x: F) -> F {
        avx2!({
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, x[0]), _mm256_andnot_ps(sign, x[1])]
        })
    }

    #[inline(always)]
    fn round(self, x: F) -> F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        avx2!([
            _mm256_round_ps::<NEAREST>(x[0]),
            _mm256_round_ps::<NEAREST>(x[1]),
        ])
    }

    #[inline(always)]
    fn power_of_two(self, n: F) -> F {
        avx2!([power_of_two(n[0]), power_of_two(n[1])])
    }

    #[inline(always)]
    fn scale_by_power(self, x: F, n: F) -> F {
        self.mul(x, self.power_of_two(n))
    }

    #[inline(always)]
    fn subtract_bits(self, minuend: i32, x: F) -> F {
        avx2!({
            let minuend = _mm256_set1_epi32(minuend);
            let bits = |x| _mm256_sub_epi32(minuend, _mm256_castps_si256(x));
            [
                _mm256_castsi256_ps(bits(x[0])),
                _mm256_castsi256_ps(bits(x[1])),
            ]
        })
    }

    #[inline(always)]
    fn select_less(self, a: F, b: F, yes: F, no: F) -> F {
        avx2!([
            _mm256_blendv_ps(no[0], yes[0], _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
            _mm256_blendv_ps(no[1], yes[1], _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])),
        ])
    }

    #[inline(always)]
    fn any_less(self, a: F, b: F) -> bool {
        avx2!({
            let less = _mm256_or_ps(
                _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]),
                _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1]),
            );
            _mm256_movemask_ps(less) != 0
        })
    }

    #[inline(always)]
    fn swap_pairs(self, x: F) -> F {
        avx2!([
            _mm256_permute_ps::<0b10_11_00_01>(x[0]),
            _mm256_permute_ps::<0b10_11_00_01>(x[1]),
        ])
    }

    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        avx2!(sum(_mm256_add_ps(x[0], x[1])))
    }

    #[inline(always)]
    fn max_lane(self, x: F) -> f32 {
        avx2!(max_lane(_mm256_max_ps(x[0], x[1])))
    }

    #[inline(always)]
    fn load_quads(self, from: &[u8; 4 * LANES]) -> I {
        let at = from.as_ptr().cast::<__m256i>();
        avx2!([_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))])
    }

    #[inline(always)]
    fn field<const SHIFT: i32>(self, x: I, mask: u8) -> F {
        avx2!({
            let mask = _mm256_set1_epi32(mask.into());
            [
                _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32::<SHIFT>(x[0]), mask)),
                _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32::<SHIFT>(x[1]), mask)),
            ]
        })
    }

    #[inline(always)]
    fn raised_field<const SHIFT: i32, const BITS: i32>(self, x: I) -> F {
        let place = 23 - BITS - SHIFT;
        avx2!({
            let mask = _mm256_set1_epi32(((1 << BITS) - 1) << (23 - BITS));
            let exponent = _mm256_set1_epi32((127 + BITS) << 23);
            // By a number that is known, so it becomes an immediate.
            let count = _mm_cvtsi32_si128(place.abs());
            let raised = |x| {
                let placed = match place {
                    0.. => _mm256_sll_epi32(x, count),
                    _ => _mm256_srl_epi32(x, count),
                };
                _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(placed, mask), exponent))
            };
            [raised(x[0]), raised(x[1])]
        })
    }

    #[inline(always)]
    fn lookup<const SHIFT: i32>(self, table: &[f32; LANES], x: I) -> F {
        let [low, high] = Lanes::load(self, table);
        avx2!([
            lookup::<SHIFT>(low, high, x[0]),
            lookup::<SHIFT>(low, high, x[1]),
        ])
    }

    #[inline(always)]
    fn to_f32(self, x: I) -> F {
        avx2!([_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])])
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &T, bytes: usize) {
        let at = std::ptr::from_ref(from).cast::<i8>().wrapping_add(bytes);
        // A prefetch of any address, mapped or not, is without effect but on caches.
        avx2!(_mm_prefetch::<_MM_HINT_T0>(at));
    }

    #[inline(always)]
    fn prefetch_second<T>(self, from: &T, bytes: usize) {
        let at = std::ptr::from_ref(from).cast::<i8>().wrapping_add(bytes);
        // As above.
        avx2!(_mm_prefetch::<_MM_HINT_T1>(at));
    }
}

/// The permutation reads three bits of an index; the fourth, moved to the sign, chooses between the halves of the table.
#[target_feature(enable = "avx2")]
#[inline]
fn lookup<const SHIFT: i32>(low: __m256, high: __m256, x: __m256i) -> __m256 {
    let index = _mm256_srli_epi32::<SHIFT>(x);
    let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
    _mm256_blendv_ps(
        _mm256_permutevar8x32_ps(low, index),
        _mm256_permutevar8x32_ps(high, index),
        is_high,
    )
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn bf16_to_f32(x: __m128i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x)))
}

/// In the lower half of each lane. What is not a number keeps its upper bits and becomes quiet.
#[target_feature(enable = "avx2")]
#[inline]
fn f32_to_bf16(x: __m256) -> __m256i {
    let bits = _mm256_castps_si256(x);
    let upper = _mm256_srli_epi32::<16>(bits);
    let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    let number = _mm256_srli_epi32::<16>(rounded);
    let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    _mm256_blendv_epi8(number, quiet, is_nan)
}

#[target_feature(enable = "avx2")]
#[inline]
fn power_of_two(n: __m256) -> __m256 {
    let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
}

/// The last three steps of the tree.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn sum(x: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn max_lane(x: __m256) -> f32 {
    let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}

impl Quads for Avx2 {
    type Lanes = Self;
    type Bytes = I;

    #[inline(always)]
    fn lanes(self) -> Self {
        self
    }

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> I {
        self.load_quads(from)
    }

    #[inline(always)]
    fn store(self, x: I, to: &mut [u8; 64]) {
        let to = to.as_mut_ptr();
        avx2!({
            _mm256_storeu_si256(to.cast(), x[0]);
            _mm256_storeu_si256(to.add(32).cast(), x[1]);
        })
    }

    #[inline(always)]
    fn repeat(self, q: &[i8; 4]) -> I {
        let quad = i32::from_ne_bytes(q.map(|q| q as u8));
        avx2!([_mm256_set1_epi32(quad); 2])
    }

    #[inline(always)]
    fn low_nibbles(self, x: I) -> I {
        avx2!({
            let mask = _mm256_set1_epi8(0x0f);
            [_mm256_and_si256(x[0], mask), _mm256_and_si256(x[1], mask)]
        })
    }

    #[inline(always)]
    fn high_nibbles(self, x: I) -> I {
        avx2!({
            let mask = _mm256_set1_epi8(0x0f);
            [
                _mm256_and_si256(_mm256_srli_epi16::<4>(x[0]), mask),
                _mm256_and_si256(_mm256_srli_epi16::<4>(x[1]), mask),
            ]
        })
    }

    #[inline(always)]
    fn bits(self, x: I, shift: i32, mask: u8) -> I {
        avx2!({
            let mask = _mm256_set1_epi8(mask as i8);
            let count = _mm_cvtsi32_si128(shift.abs());
            let moved = if shift < 0 {
                [_mm256_sll_epi16(x[0], count), _mm256_sll_epi16(x[1], count)]
            } else {
                [_mm256_srl_epi16(x[0], count), _mm256_srl_epi16(x[1], count)]
            };
            [
                _mm256_and_si256(moved[0], mask),
                _mm256_and_si256(moved[1], mask),
            ]
        })
    }

    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        avx2!([_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])])
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], x: I) -> I {
        avx2!({
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [
                _mm256_shuffle_epi8(table, x[0]),
                _mm256_shuffle_epi8(table, x[1]),
            ]
        })
    }

    #[inline(always)]
    fn splat(self, x: i32) -> I {
        avx2!([_mm256_set1_epi32(x); 2])
    }

    #[inline(always)]
    fn add(self, a: I, b: I) -> I {
        avx2!([_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])])
    }
}

/// No instruction at all, but one that the sums of four rows have to be ready for.
#[inline]
#[target_feature(enable = "avx2")]
fn hold([a, b, c, d]: &mut [I; 4]) {
    // SAFETY: does nothing.
    unsafe {
        asm!(
            "/* {0} {1} {2} {3} {4} {5} {6} {7} */",
            inout(ymm_reg) a[0], inout(ymm_reg) a[1],
            inout(ymm_reg) b[0], inout(ymm_reg) b[1],
            inout(ymm_reg) c[0], inout(ymm_reg) c[1],
            inout(ymm_reg) d[0], inout(ymm_reg) d[1],
            options(pure, nomem, nostack, preserves_flags),
        );
    }
}

impl Maddubs for Avx2 {
    type Pairs = I;

    #[inline(always)]
    fn maddubs(self, w: I, q: I) -> I {
        avx2!([
            _mm256_maddubs_epi16(w[0], q[0]),
            _mm256_maddubs_epi16(w[1], q[1]),
        ])
    }

    #[inline(always)]
    fn add_pairs(self, a: I, b: I) -> I {
        avx2!([_mm256_add_epi16(a[0], b[0]), _mm256_add_epi16(a[1], b[1])])
    }

    #[inline(always)]
    fn widen(self, x: I) -> I {
        avx2!({
            let ones = _mm256_set1_epi16(1);
            [_mm256_madd_epi16(x[0], ones), _mm256_madd_epi16(x[1], ones)]
        })
    }

    #[inline(always)]
    fn hold<const R: usize>(self, sums: &mut [I; R]) {
        if let Some(sums) = sums.as_mut_array() {
            avx2!(hold(sums));
        }
    }

    #[inline(always)]
    fn flip(self, x: I) -> I {
        avx2!({
            let sign = _mm256_set1_epi8(i8::MIN);
            [_mm256_xor_si256(x[0], sign), _mm256_xor_si256(x[1], sign)]
        })
    }

    #[inline(always)]
    fn magnitude(self, x: I) -> I {
        avx2!([_mm256_abs_epi8(x[0]), _mm256_abs_epi8(x[1])])
    }

    #[inline(always)]
    fn with_sign(self, q: I, w: I) -> I {
        avx2!([_mm256_sign_epi8(q[0], w[0]), _mm256_sign_epi8(q[1], w[1])])
    }
}

impl Int8 for Avx2 {
    const ROWS: usize = 4;
    const LOOSE_ROWS: Option<usize> = Some(12);

    #[inline(always)]
    fn dot_nibbles<const R: usize, const ZERO: i32>(
        self,
        weights: &[[u8; 64]; 4],
        q: [&[[i8; 4]; 8]; R],
        sums: [i32; R],
    ) -> [SumOf<Self>; R] {
        nibbles_by_maddubs::<Self, R, ZERO>(self, weights, q, sums)
    }

    #[inline(always)]
    fn dot_bytes<const R: usize, const P: usize, const BITS: u32, const ZERO: i32>(
        self,
        weights: &impl Unpack<P>,
        q: [&[[i8; 4]; P]; R],
        sums: [i32; R],
    ) -> [SumOf<Self>; R] {
        bytes_by_maddubs::<Self, R, P, BITS, ZERO>(self, weights, q, sums)
    }
}
