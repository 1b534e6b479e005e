//! Products of `bf16` tiles by AVX-512 BF16, whose instruction multiplies pairs: for CPUs that have no tile registers.
//!
//! A tile of sums is sixteen registers, so it is made in parts: eight rows of two tiles at a time.
//! **Source**: Intel, "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 2, `VDPBF16PS`.

use super::avx512::Avx512;
use super::generic::attention::{PairsKernel, Products};
use super::generic::tile_matmul::{
    PairKernel, PairUnit, ROW_TILE, TileKernel, TileSums, TileUnit, TileWords,
};
use super::vector::{LANES, Lanes};
use half::bf16;
use std::arch::x86_64::*;

/// Proof that the CPU has AVX-512 BF16: only [`Avx512Bf16::detect`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512Bf16(Avx512);

/// Where lane `i` of one vector of `bf16` and of another stand, one after the other, when they are to be pairs.
static SIDE_BY_SIDE: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 16 {
        order[2 * i] = i as u16;
        order[2 * i + 1] = 16 + i as u16;
        i += 1;
    }
    order
};

/// Rows of a tile of activations whose sums are in registers at a time, for two tiles of weights: 16 accumulators, which
/// hide how long an instruction takes.
const ROWS: usize = 8;

impl Avx512Bf16 {
    pub fn detect() -> Option<Self> {
        let lanes = Avx512::detect()?;
        is_x86_feature_detected!("avx512bf16").then_some(Self(lanes))
    }

    /// The float lanes that go with it.
    pub fn float_lanes(self) -> Avx512 {
        self.0
    }

    /// Runs a kernel compiled with these instructions.
    pub fn run<K: TileKernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512bf16")]
        fn compiled<K: TileKernel>(unit: Avx512Bf16, kernel: K) {
            kernel.run(unit);
        }
        // SAFETY: the token proves that the CPU has the features.
        unsafe { compiled(self, kernel) }
    }

    /// Runs a kernel that only writes tiles, compiled with these instructions.
    pub fn widen<K: PairKernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512bf16")]
        fn compiled<K: PairKernel>(unit: Avx512Bf16, kernel: K) {
            kernel.run(unit);
        }
        // SAFETY: the token proves that the CPU has the features.
        unsafe { compiled(self, kernel) }
    }

    /// Runs attention compiled with these instructions.
    pub fn run_pairs<K: PairsKernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512bf16")]
        fn compiled<K: PairsKernel>(unit: Avx512Bf16, kernel: K) {
            kernel.run(unit);
        }
        // SAFETY: the token proves that the CPU has the features.
        unsafe { compiled(self, kernel) }
    }

    /// Adds to each lane the products of its pair of `a` and of `b`.
    #[inline(always)]
    fn add_pairs(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: the token proves that the CPU has the instruction; the types are the same 64 bytes.
        unsafe {
            let a = std::mem::transmute::<__m512i, __m512bh>(a);
            let b = std::mem::transmute::<__m512i, __m512bh>(b);
            _mm512_dpbf16_ps(sum, a, b)
        }
    }

    /// The pairs of one row of a tile of weights.
    #[inline(always)]
    fn load(self, row: &[bf16; 2 * LANES]) -> __m512i {
        // SAFETY: the token proves that the CPU has the instruction; it loads exactly the bytes of the row.
        unsafe { _mm512_loadu_si512(row.as_ptr().cast()) }
    }

    /// A pair in all lanes.
    #[inline(always)]
    fn repeat(self, pair: &[bf16; 2]) -> __m512i {
        let bits = u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16;
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { _mm512_set1_epi32(bits.cast_signed()) }
    }

    /// Sums of rows `first` to `first + ROWS` of a tile of activations and two of weights.
    #[inline(always)]
    fn rows(self, a: &[TileWords], b: [&[TileWords]; 2], first: usize, to: &mut [TileSums; 2]) {
        let mut sums = [[self.0.splat(0.0); 2]; ROWS];
        for ((a, b0), b1) in a.iter().zip(b[0]).zip(b[1]) {
            let a: &[[bf16; 2 * LANES]; ROWS] =
                a.0[first..].first_chunk().expect("a part of a tile");
            for p in 0..LANES {
                let (b0, b1) = (self.load(&b0.0[p]), self.load(&b1.0[p]));
                for r in 0..ROWS {
                    let pair = self.repeat(&a[r].as_chunks().0[p]);
                    sums[r][0] = self.add_pairs(sums[r][0], pair, b0);
                    sums[r][1] = self.add_pairs(sums[r][1], pair, b1);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            self.0.store(sums[0], &mut to[0].0[first + r]);
            self.0.store(sums[1], &mut to[1].0[first + r]);
        }
    }
}

impl TileUnit for Avx512Bf16 {
    #[inline(always)]
    fn multiply<const A: usize>(
        self,
        a: [&[TileWords]; A],
        b: [&[TileWords]; 2],
        sums: &mut [[TileSums; 2]; A],
    ) {
        for i in 0..A {
            for first in (0..ROW_TILE).step_by(ROWS) {
                self.rows(a[i], b, first, &mut sums[i]);
            }
        }
    }
}

impl PairUnit for Avx512Bf16 {
    type Lanes = Avx512;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn store_pairs(self, a: __m512, b: __m512, to: &mut [bf16; 2 * LANES]) {
        // SAFETY: the token proves that the CPU has the instructions; what is loaded and stored are arrays of exactly the
        // bytes of a vector, and the unaligned forms are used.
        unsafe {
            let rounded = _mm512_cvtne2ps_pbh(b, a);
            let rounded = std::mem::transmute::<__m512bh, __m512i>(rounded);
            let order = _mm512_loadu_si512((&raw const SIDE_BY_SIDE).cast());
            let pairs = _mm512_permutexvar_epi16(order, rounded);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
        }
    }

    #[inline(always)]
    fn store_row(self, a: __m512, b: __m512, to: &mut [bf16; 2 * LANES]) {
        // SAFETY: as in `store_pairs`.
        unsafe {
            let rounded = _mm512_cvtne2ps_pbh(b, a);
            let rounded = std::mem::transmute::<__m512bh, __m512i>(rounded);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), rounded);
        }
    }
}

impl Products<bf16> for Avx512Bf16 {
    type Lanes = Avx512;
    type Factor = [bf16; 2];
    type Factors = [[bf16; 2]; LANES / 2];
    type Elements = __m512i;

    const DEPTH: usize = 2;
    const SUMS: usize = 8;
    const ZERO: Self::Factors = [[bf16::ZERO; 2]; LANES / 2];

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn factor(self, x: &[f32]) -> [bf16; 2] {
        [bf16::from_f32(x[0]), bf16::from_f32(x[1])]
    }

    #[inline(always)]
    fn store(self, x: __m512, to: &mut Self::Factors) {
        // SAFETY: the token proves that the CPU has the instruction; the factors are exactly the 32 bytes that it gives.
        unsafe {
            let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), rounded);
        }
    }

    #[inline(always)]
    fn get(self, factors: &Self::Factors, i: usize) -> [bf16; 2] {
        factors[i]
    }

    #[inline(always)]
    fn load(self, first: &[bf16; LANES], last: &[bf16; LANES]) -> __m512i {
        // SAFETY: the token proves that the CPU has the instructions; what is loaded are arrays of exactly the bytes of a
        // vector, and the unaligned forms are used.
        unsafe {
            let first = _mm256_loadu_si256(first.as_ptr().cast());
            let last = _mm256_loadu_si256(last.as_ptr().cast());
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), last);
            let order = _mm512_loadu_si512((&raw const SIDE_BY_SIDE).cast());
            _mm512_permutexvar_epi16(order, both)
        }
    }

    #[inline(always)]
    fn only(self, elements: __m512i, row: usize) -> __m512i {
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe { _mm512_and_si512(elements, _mm512_set1_epi32(0xffff << (16 * row))) }
    }

    #[inline(always)]
    fn add(self, sum: __m512, factor: [bf16; 2], elements: __m512i) -> __m512 {
        self.add_pairs(sum, self.repeat(&factor), elements)
    }
}
