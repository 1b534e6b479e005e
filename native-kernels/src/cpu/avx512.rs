//! Lanes on AVX-512 (F, BW, VL), and integer dot products by VNNI: sixteen lanes are one register.

use super::avx2;
use super::generic::dot::Dpbusd;
use super::generic::span_matmul::{ByDpbusd, SpanKernel};
use super::isa;
use super::vector::{Int8Kernel, LANES, LaneKernel, Lanes, Quads};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX-512 F, BW and VL, and what [`avx2::Avx2`] stands for: only [`Avx512::detect`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512 {
    near: Near,
}

/// The cache that lines are brought into before they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Near {
    First,
    Second,
}

/// Intel's first-level cache has too few buffers to keep as many lines on their way as memory is far. On an EPYC (Zen 4),
/// one thread multiplied a row with 97 MB of `q4_1` weights in 4.1 ms with lines brought into the first level, and in
/// 5.5 ms with the second.
fn near() -> Near {
    match isa::is_intel() {
        true => Near::Second,
        false => Near::First,
    }
}

impl Avx512 {
    pub fn detect() -> Option<Self> {
        let has = avx2::Avx2::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
        has.then(|| Self { near: near() })
    }

    /// Runs a kernel compiled with these instructions.
    pub fn run<K: LaneKernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
        fn compiled<K: LaneKernel>(lanes: Avx512, kernel: K) -> K::Output {
            kernel.run(lanes)
        }
        // SAFETY: the token proves that the CPU has the features.
        unsafe { compiled(self, kernel) }
    }
}

/// Proof that the CPU has AVX-512 VNNI besides: only [`Avx512Vnni::detect`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Vnni(Avx512);

impl Avx512Vnni {
    pub fn detect() -> Option<Self> {
        let lanes = Avx512::detect()?;
        is_x86_feature_detected!("avx512vnni").then_some(Self(lanes))
    }

    /// Runs a product in spans compiled with these instructions.
    pub fn run_spans<K: SpanKernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
        fn compiled<K: SpanKernel>(unit: Avx512Vnni, kernel: K) {
            kernel.run(ByDpbusd(unit));
        }
        // SAFETY: the token proves that the CPU has the features.
        unsafe { compiled(self, kernel) }
    }

    /// The float lanes that go with it.
    pub fn float_lanes(self) -> Avx512 {
        self.0
    }

    /// Runs a kernel compiled with these instructions.
    pub fn run<K: Int8Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
        fn compiled<K: Int8Kernel>(int8: Avx512Vnni, kernel: K) -> K::Output {
            kernel.run(int8)
        }
        // SAFETY: the token proves that the CPU has the features.
        unsafe { compiled(self, kernel) }
    }
}

/// An intrinsic, or a few, in a method of a token.
macro_rules! avx512 {
    ($intrinsics:expr) => {{
        // SAFETY: every method takes the token, which proves that the CPU has the instructions; what is loaded or
        // stored is a reference to exactly the bytes of the vector, and the unaligned forms are used.
        #[allow(unused_unsafe, reason = "some of the intrinsics only compute")]
        unsafe {
            $intrinsics
        }
    }};
}

impl Lanes for Avx512 {
    type F32 = __m512;
    type I32 = __m512i;

    const ROWS: usize = 8;
    const ACCUMULATORS: usize = 24;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        avx512!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        avx512!(_mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> __m512 {
        avx512!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> __m512 {
        avx512!({
            let words = _mm256_loadu_si256(from.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(words)))
        })
    }

    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> __m512 {
        avx512!({
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
        })
    }

    #[inline(always)]
    fn load_i8(self, from: &[u8; LANES]) -> __m512 {
        avx512!({
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
        })
    }

    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; LANES]) {
        avx512!(_mm512_storeu_ps(to.as_mut_ptr(), x));
    }

    #[inline(always)]
    fn store_f16(self, x: __m512, to: &mut [f16; LANES]) {
        avx512!({
            let rounded = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), rounded);
        });
    }

    #[inline(always)]
    fn store_bf16(self, x: __m512, to: &mut [bf16; LANES]) {
        avx512!({
            let rounded = _mm512_cvtepi32_epi16(f32_to_bf16(x));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), rounded);
        });
    }

    #[inline(always)]
    fn store_i8(self, x: __m512, to: &mut [i8; LANES]) {
        avx512!({
            let bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        });
    }

    #[inline(always)]
    fn store_quads(self, [a, b, c, d]: [__m512; 4], to: &mut [u8; 4 * LANES]) {
        avx512!({
            let b = _mm512_slli_epi32::<8>(_mm512_cvtps_epi32(b));
            let c = _mm512_slli_epi32::<16>(_mm512_cvtps_epi32(c));
            let d = _mm512_slli_epi32::<24>(_mm512_cvtps_epi32(d));
            // a | b | c.
            let quads = _mm512_ternarylogic_epi32::<0xFE>(_mm512_cvtps_epi32(a), b, c);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_or_si512(quads, d));
        });
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        avx512!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn abs(self, x: __m512) -> __m512 {
        avx512!(_mm512_abs_ps(x))
    }

    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        avx512!(_mm512_roundscale_ps::<NEAREST>(x))
    }

    #[inline(always)]
    fn power_of_two(self, n: __m512) -> __m512 {
        avx512!({
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        })
    }

    #[inline(always)]
    fn scale_by_power(self, x: __m512, n: __m512) -> __m512 {
        avx512!(_mm512_scalef_ps(x, n))
    }

    #[inline(always)]
    fn subtract_bits(self, minuend: i32, x: __m512) -> __m512 {
        avx512!({
            let bits = _mm512_sub_epi32(_mm512_set1_epi32(minuend), _mm512_castps_si512(x));
            _mm512_castsi512_ps(bits)
        })
    }

    #[inline(always)]
    fn select_less(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        avx512!({
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b);
            _mm512_mask_blend_ps(less, no, yes)
        })
    }

    #[inline(always)]
    fn any_less(self, a: __m512, b: __m512) -> bool {
        avx512!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) != 0)
    }

    #[inline(always)]
    fn swap_pairs(self, x: __m512) -> __m512 {
        avx512!(_mm512_permute_ps::<0b10_11_00_01>(x))
    }

    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        avx512!(avx2::sum(_mm256_add_ps(lower(x), upper(x))))
    }

    #[inline(always)]
    fn max_lane(self, x: __m512) -> f32 {
        avx512!(avx2::max_lane(_mm256_max_ps(lower(x), upper(x))))
    }

    #[inline(always)]
    fn load_quads(self, from: &[u8; 4 * LANES]) -> __m512i {
        avx512!(_mm512_loadu_si512(from.as_ptr().cast()))
    }

    #[inline(always)]
    fn field<const SHIFT: i32>(self, x: __m512i, mask: u8) -> __m512 {
        avx512!({
            let shifted = _mm512_srl_epi32(x, _mm_cvtsi32_si128(SHIFT));
            let masked = _mm512_and_si512(shifted, _mm512_set1_epi32(mask.into()));
            _mm512_cvtepi32_ps(masked)
        })
    }

    #[inline(always)]
    fn raised_field<const SHIFT: i32, const BITS: i32>(self, x: __m512i) -> __m512 {
        let place = 23 - BITS - SHIFT;
        let mask = ((1 << BITS) - 1) << (23 - BITS);
        avx512!({
            // By a number that is known, so it becomes an immediate.
            let placed = match place {
                0.. => _mm512_sll_epi32(x, _mm_cvtsi32_si128(place)),
                _ => _mm512_srl_epi32(x, _mm_cvtsi32_si128(-place)),
            };
            let exponent = _mm512_set1_epi32((127 + BITS) << 23);
            // (a & b) | c.
            let bits = _mm512_ternarylogic_epi32::<0xEA>(placed, _mm512_set1_epi32(mask), exponent);
            _mm512_castsi512_ps(bits)
        })
    }

    #[inline(always)]
    fn lookup<const SHIFT: i32>(self, table: &[f32; LANES], x: __m512i) -> __m512 {
        let table = self.load(table);
        avx512!({
            // The permutation reads the lowest four bits of an index.
            let index = _mm512_srl_epi32(x, _mm_cvtsi32_si128(SHIFT));
            _mm512_permutexvar_ps(index, table)
        })
    }

    #[inline(always)]
    fn to_f32(self, x: __m512i) -> __m512 {
        avx512!(_mm512_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &T, bytes: usize) {
        let at = std::ptr::from_ref(from).cast::<i8>().wrapping_add(bytes);
        // A prefetch of any address, mapped or not, is without effect but on caches.
        match self.near {
            Near::First => avx512!(_mm_prefetch::<_MM_HINT_T0>(at)),
            Near::Second => avx512!(_mm_prefetch::<_MM_HINT_T1>(at)),
        }
    }

    #[inline(always)]
    fn prefetch_second<T>(self, from: &T, bytes: usize) {
        let at = std::ptr::from_ref(from).cast::<i8>().wrapping_add(bytes);
        // As above.
        avx512!(_mm_prefetch::<_MM_HINT_T1>(at));
    }

    #[inline(always)]
    fn prefetch_all<T>(self, from: &T, bytes: usize) {
        // One decision for all lines.
        let lines = (0..size_of::<T>()).step_by(64);
        let at = std::ptr::from_ref(from).cast::<i8>().wrapping_add(bytes);
        match self.near {
            Near::First => {
                for line in lines {
                    avx512!(_mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line)));
                }
            }
            Near::Second => {
                for line in lines {
                    avx512!(_mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(line)));
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn lower(x: __m512) -> __m256 {
    _mm512_castps512_ps256(x)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn upper(x: __m512) -> __m256 {
    _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(x)))
}

/// In the lower half of each lane. What is not a number keeps its upper bits and becomes quiet. (The instruction of
/// AVX-512 BF16 would take subnormal numbers for zero.)
#[target_feature(enable = "avx512f")]
#[inline]
fn f32_to_bf16(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let upper = _mm512_srli_epi32::<16>(bits);
    let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    let number = _mm512_srli_epi32::<16>(rounded);
    let quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
    let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_blend_epi32(is_nan, number, quiet)
}

impl Quads for Avx512Vnni {
    type Lanes = Avx512;
    type Bytes = __m512i;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> __m512i {
        self.0.load_quads(from)
    }

    #[inline(always)]
    fn store(self, x: __m512i, to: &mut [u8; 64]) {
        avx512!(_mm512_storeu_si512(to.as_mut_ptr().cast(), x))
    }

    #[inline(always)]
    fn repeat(self, q: &[i8; 4]) -> __m512i {
        let quad = i32::from_ne_bytes(q.map(|q| q as u8));
        avx512!(_mm512_set1_epi32(quad))
    }

    #[inline(always)]
    fn low_nibbles(self, x: __m512i) -> __m512i {
        avx512!(_mm512_and_si512(x, _mm512_set1_epi8(0x0f)))
    }

    #[inline(always)]
    fn high_nibbles(self, x: __m512i) -> __m512i {
        avx512!(_mm512_and_si512(
            _mm512_srli_epi16::<4>(x),
            _mm512_set1_epi8(0x0f)
        ))
    }

    #[inline(always)]
    fn bits(self, x: __m512i, shift: i32, mask: u8) -> __m512i {
        avx512!({
            let count = _mm_cvtsi32_si128(shift.abs());
            let moved = if shift < 0 {
                _mm512_sll_epi16(x, count)
            } else {
                _mm512_srl_epi16(x, count)
            };
            _mm512_and_si512(moved, _mm512_set1_epi8(mask as i8))
        })
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        avx512!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], x: __m512i) -> __m512i {
        avx512!({
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, x)
        })
    }

    #[inline(always)]
    fn splat(self, x: i32) -> __m512i {
        avx512!(_mm512_set1_epi32(x))
    }

    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        avx512!(_mm512_add_epi32(a, b))
    }
}

impl Dpbusd for Avx512Vnni {
    const ROWS: usize = 8;

    #[inline(always)]
    fn dpbusd(self, sum: __m512i, w: __m512i, q: __m512i) -> __m512i {
        avx512!(_mm512_dpbusd_epi32(sum, w, q))
    }
}
