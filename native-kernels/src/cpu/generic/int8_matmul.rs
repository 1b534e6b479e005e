//! Matrix products of quantised panels with activations as signed bytes.
//!
//! ```text
//! for each run of rows that stays in the second-level cache, for each panel (16 outputs), for each group of R rows:
//!     sum[R] = 0
//!     for each block of 32 inputs in order:
//!         dot[r] = integer dot product               exact
//!         sum[r] += dot * (weight scale * activation scale) [+ minimum * activation sum]
//! ```
//! **Invariant:** the float steps of an output element are the same, in the same order, whatever R is; and since the
//! integers are exact, on every instance. So these kernels, too, give a row the same bits in any batch.
//!
//! For up to two rows, which wait for memory, panels are taken from several places of the range side by side, each a stream
//! of its own (see [`Streaming`]).

use super::float_matmul::Finish;
use super::row_groups::RowGroups;
use crate::cpu::isa::Streaming;
use crate::cpu::panel::{F32Of, PanelBlock, QuantBlock};
use crate::cpu::vector::{Int8, Int8Kernel, LANES, Lanes};
use crate::tensor::RowsMut;
use std::ops::Range;

/// Bytes of quantised activations that stay in a core's second-level cache while panels pass by.
const RESIDENT_BYTES: usize = 256 << 10;

/// Places that panels are taken from side by side, where that is wanted.
const STREAMS: usize = 4;

/// The product for the panels in a range, all rows.
pub(crate) struct Int8Matmul<'a, B> {
    /// All panels of the matrix, `[panels][k / (32 * GROUPS)]`.
    pub weights: &'a [B],
    /// Panels to multiply with.
    pub panels: Range<usize>,
    /// Inputs.
    pub k: usize,
    /// Rows in groups of at most `I::ROWS`, `[groups][k / 32][R]`.
    pub x: &'a [QuantBlock],
    pub finish: Finish<'a>,
    /// How weights are read.
    pub streaming: Streaming,
    /// `[rows][16 * panels.len()]`, or less for the last panel.
    pub out: RowsMut<'a>,
}

impl<B: PanelBlock> Int8Kernel for Int8Matmul<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<I: Int8>(mut self, int8: I) {
        let row_bytes = self.k / 32 * size_of::<QuantBlock>();
        let resident = (RESIDENT_BYTES / row_bytes.max(1)).max(1);
        let resident = resident.next_multiple_of(I::ROWS);
        let mut row = 0;
        while row < self.out.rows() {
            let rows = row..self.out.rows().min(row + resident);
            row = rows.end;
            self.rows(int8, rows);
        }
    }
}

impl<B: PanelBlock> Int8Matmul<'_, B> {
    #[inline(always)]
    fn rows<I: Int8>(&mut self, int8: I, rows: Range<usize>) {
        let mut panels = self.panels.clone();
        if self.streaming.streams == STREAMS {
            let streamed = match rows.len() {
                1 => self.streams::<I, 1>(int8, rows.start),
                2 => self.streams::<I, 2>(int8, rows.start),
                _ => 0,
            };
            panels.start += streamed;
        }
        for panel in panels {
            for (row, group) in RowGroups::new(rows.clone(), I::ROWS) {
                match group {
                    8 if I::ROWS >= 8 => self.block::<I, 8, 1>(int8, [panel], row),
                    4 => self.block::<I, 4, 1>(int8, [panel], row),
                    2 => self.block::<I, 2, 1>(int8, [panel], row),
                    _ => self.block::<I, 1, 1>(int8, [panel], row),
                }
            }
        }
    }

    /// Works on panels from several places side by side, and says on how many.
    #[inline(always)]
    fn streams<I: Int8, const R: usize>(&mut self, int8: I, row: usize) -> usize {
        let length = self.panels.len() / STREAMS;
        for panel in self.panels.start..self.panels.start + length {
            let panels: [usize; STREAMS] = std::array::from_fn(|s| panel + s * length);
            self.block::<I, R, STREAMS>(int8, panels, row);
        }
        STREAMS * length
    }

    #[inline(always)]
    fn block<I: Int8, const R: usize, const N: usize>(
        &mut self,
        int8: I,
        panels: [usize; N],
        row: usize,
    ) {
        let groups = self.k / 32;
        let blocks = groups / B::GROUPS;
        let x = self.x[row * groups..][..R * groups].as_chunks::<R>().0;
        let mut weights = [&[][..]; N];
        for n in 0..N {
            weights[n] = &self.weights[panels[n] * blocks..][..blocks];
        }
        let sums = multiply::<I, B, R, N>(int8, weights, x, self.streaming.ahead);
        let first = self.panels.start * LANES;
        for n in 0..N {
            let output = panels[n] * LANES;
            for (r, sum) in sums[n].into_iter().enumerate() {
                let to = &mut self.out.row_mut(row + r)[output - first..];
                let to = to.chunks_mut(LANES).next().expect("a panel has outputs");
                self.finish.write(int8.lanes(), sum, output, to);
            }
        }
    }
}

/// Sums of `N` panels and `R` rows.
#[inline(always)]
fn multiply<I: Int8, B: PanelBlock, const R: usize, const N: usize>(
    int8: I,
    weights: [&[B]; N],
    x: &[[QuantBlock; R]],
    ahead: usize,
) -> [[F32Of<I>; R]; N] {
    let lanes = int8.lanes();
    let mut sums = [[lanes.splat(0.0); R]; N];
    for (b, x) in x.chunks_exact(B::GROUPS).enumerate() {
        for n in 0..N {
            let block = &weights[n][b];
            lanes.prefetch_all(block, ahead);
            block.accumulate(int8, x, &mut sums[n]);
        }
    }
    sums
}
