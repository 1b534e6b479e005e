//! Products of tiles of bytes by AMX, with AVX-512 beside it.
//!
//! **Source**: Intel, "Architecture Instruction Set Extensions Programming Reference", chapter 3, `TDPBSUD`.

use super::amx::{self, AMX_INT8, Configured};
use super::avx512::Avx512;
use super::generic::span_matmul::{
    RowSpan, SPAN, SpanKernel, Spans, WeightSpan, add_part, tiles_of,
};
use super::generic::tile_matmul::{ROW_TILE, TileProduct, TileSums};
use super::vector::{LANES, Lanes};
use std::arch::asm;

/// Proof that the CPU has AMX with bytes and AVX-512, and that the system lets this process use it: only
/// [`AmxInt8::detect`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AmxInt8(Avx512);

impl AmxInt8 {
    pub fn detect() -> Option<Self> {
        let lanes = Avx512::detect()?;
        usable().then_some(Self(lanes))
    }

    /// Runs a product with the tile registers configured.
    pub fn run<K: SpanKernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
        fn compiled<K: SpanKernel>(unit: ByteTiles, kernel: K) {
            kernel.run(unit);
        }
        // SAFETY: the token proves that the tiles can be used; a product runs no other.
        let _configured = unsafe { Configured::new() };
        // SAFETY: the token proves that the CPU has the features.
        unsafe { compiled(ByteTiles(self.0), kernel) }
    }

    /// The float lanes that go with it.
    pub fn float_lanes(self) -> Avx512 {
        self.0
    }
}

/// Whether the instruction is there and the system has given permission for the tiles.
pub(crate) fn usable() -> bool {
    amx::usable() && amx::has(AMX_INT8)
}

/// Proof that the tile registers of this thread are configured: only [`AmxInt8::run`] makes one, for the product that it
/// runs.
#[derive(Clone, Copy)]
struct ByteTiles(Avx512);

/// Sums of a span: `[16 rows][16 outputs]`, each an `i32`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Dots([[u8; 4 * LANES]; ROW_TILE]);

impl TileProduct<Spans> for ByteTiles {
    type Lanes = Avx512;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.0
    }

    #[inline(always)]
    fn multiply<const A: usize>(
        self,
        k: usize,
        a: [&[RowSpan]; A],
        b: [&[WeightSpan]; 2],
        sums: &mut [[TileSums; 2]; A],
    ) {
        let lanes = self.0;
        *sums = [[TileSums::ZERO; 2]; A];
        let mut dots = [[Dots([[0; 4 * LANES]; ROW_TILE]); 2]; A];
        for span in 0..k.div_ceil(SPAN) {
            let mut rows = [&a[0][span]; A];
            for i in 0..A {
                rows[i] = &a[i][span];
            }
            let weights = [&b[0][span], &b[1][span]];
            let mut parts = [[TileSums::ZERO; 2]; A];
            for t in 0..tiles_of(span, k) {
                self.dots(t, rows, weights, &mut dots);
                for i in 0..A {
                    for r in 0..ROW_TILE {
                        let scale = lanes.splat(rows[i].scale[t][r]);
                        for j in 0..2 {
                            let dots = lanes.to_f32(lanes.load_quads(&dots[i][j].0[r]));
                            let part = &mut parts[i][j].0[r];
                            lanes.store(lanes.fma(dots, scale, lanes.load(part)), part);
                        }
                    }
                }
            }
            for i in 0..A {
                for r in 0..ROW_TILE {
                    for j in 0..2 {
                        let part = lanes.load(&parts[i][j].0[r]);
                        add_part(
                            lanes,
                            part,
                            rows[i].sum[r],
                            weights[j],
                            &mut sums[i][j].0[r],
                        );
                    }
                }
            }
        }
    }
}

impl ByteTiles {
    /// `to[i][j] = a[i] · b[j]`, over tile `t` of a span.
    #[inline(always)]
    fn dots<const A: usize>(
        self,
        t: usize,
        a: [&RowSpan; A],
        b: [&WeightSpan; 2],
        to: &mut [[Dots; 2]; A],
    ) {
        let b = [&b[0].q[t], &b[1].q[t]];
        // SAFETY: the token proves that the instructions are there and the tiles configured as 16 rows of 64 bytes. What
        // is read are one whole tile (1 KiB, rows 64 bytes apart) of every operand, and what is written two for each of
        // `a`.
        unsafe {
            for (a, to) in a.iter().zip(to) {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tileloadd tmm4, [{a} + {stride}]",
                    "tileloadd tmm6, [{b0} + {stride}]",
                    "tdpbsud tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b1} + {stride}]",
                    "tdpbsud tmm1, tmm4, tmm7",
                    "tilestored [{to} + {stride}], tmm0",
                    "tilestored [{to} + {stride} + 1024], tmm1",
                    a = in(reg) a.q[t].as_ptr(),
                    b0 = in(reg) b[0].as_ptr(),
                    b1 = in(reg) b[1].as_ptr(),
                    stride = in(reg) 64usize,
                    to = in(reg) to.as_mut_ptr(),
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }
}
