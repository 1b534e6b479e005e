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
        if rows.len() <= 2 {
            let streams = self.streaming.streams;
            let length = panels.len() / streams;
            for panel in panels.start..panels.start + length {
                match streams {
                    4 => self.panel_set::<I, 4>(
                        int8,
                        [0, 1, 2, 3].map(|s| panel + s * length),
                        &rows,
                    ),
                    2 => self.panel_set::<I, 2>(int8, [0, 1].map(|s| panel + s * length), &rows),
                    _ => self.panel_set::<I, 1>(int8, [panel], &rows),
                }
            }
            panels.start += streams * length;
        }
        for panel in panels {
            self.panel_set::<I, 1>(int8, [panel], &rows);
        }
    }

    #[inline(always)]
    fn panel_set<I: Int8, const N: usize>(
        &mut self,
        int8: I,
        panels: [usize; N],
        rows: &Range<usize>,
    ) {
        for (row, group) in RowGroups::new(rows.clone(), I::ROWS) {
            match group {
                8 => self.block::<I, 8, N>(int8, panels, row),
                4 => self.block::<I, 4, N>(int8, panels, row),
                2 => self.block::<I, 2, N>(int8, panels, row),
                _ => self.block::<I, 1, N>(int8, panels, row),
            }
        }
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
            for line in (0..size_of::<B>()).step_by(64) {
                lanes.prefetch(block, ahead + line);
            }
            block.accumulate(int8, x, &mut sums[n]);
        }
    }
    sums
}
