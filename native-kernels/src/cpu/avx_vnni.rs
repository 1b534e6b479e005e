//! Integer dot products by AVX-VNNI: the instruction of AVX-512 VNNI on the registers of AVX2, for CPUs without AVX-512.

use super::avx2::Avx2;
use super::generic::dot::Dpbusd;
use super::vector::{Int8Kernel, Lanes, quads_of};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX-VNNI, and what [`Avx2`] stands for: only [`AvxVnni::detect`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AvxVnni(Avx2);

impl AvxVnni {
    pub fn detect() -> Option<Self> {
        let lanes = Avx2::detect()?;
        is_x86_feature_detected!("avxvnni").then_some(Self(lanes))
    }

    /// Runs a kernel compiled with these instructions.
    pub fn run<K: Int8Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
        fn compiled<K: Int8Kernel>(int8: AvxVnni, kernel: K) -> K::Output {
            kernel.run(int8)
        }
        // SAFETY: the token proves that the CPU has the features.
        unsafe { compiled(self, kernel) }
    }
}

type I = <Avx2 as Lanes>::I32;

quads_of!(AvxVnni, Avx2);

impl Dpbusd for AvxVnni {
    const ROWS: usize = 4;
    const LOOSE_ROWS: Option<usize> = Some(12);

    #[inline(always)]
    fn dpbusd(self, sum: I, w: I, q: I) -> I {
        // SAFETY: the token proves that the CPU has the instruction, which only computes.
        unsafe {
            [
                _mm256_dpbusd_avx_epi32(sum[0], w[0], q[0]),
                _mm256_dpbusd_avx_epi32(sum[1], w[1], q[1]),
            ]
        }
    }
}
