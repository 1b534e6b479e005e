//! Matrix products of quantised panels with activations as signed bytes.
//!
//! ```text
//! for each set of N panels (16 outputs each), for each group of R rows:
//!     sum[R][N] = 0
//!     for each block of 32 inputs in order:
//!         dot[r][n] = integer dot product            exact
//!         sum[r][n] += dot * (weight scale * activation scale) [+ minimum * activation sum]
//! ```
//! **Invariant:** the float steps of an output element are the same, in the same order, whatever R and N are; and since
//! the integers are exact, on every instance. So these kernels, too, give a row the same bits in any batch.

use super::float_matmul::Finish;
use super::row_groups::RowGroups;
use crate::cpu::panel::{F32Of, PanelBlock, QuantBlock};
use crate::cpu::vector::{Int8, Int8Kernel, LANES, Lanes};
use crate::tensor::RowsMut;
use std::ops::Range;

/// Bytes of quantised activations that stay in a core's second-level cache while panels pass by.
const RESIDENT_BYTES: usize = 256 << 10;

/// How far ahead of their use weights are asked for.
const PREFETCH_BYTES: usize = 1 << 10;

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
        let mut panel = self.panels.start;
        if rows.len() == 1 {
            while panel + 4 <= self.panels.end {
                self.block::<I, 1, 4>(int8, panel, rows.start);
                panel += 4;
            }
        }
        for panel in panel..self.panels.end {
            for (row, group) in RowGroups::new(rows.clone(), I::ROWS) {
                match group {
                    8 => self.block::<I, 8, 1>(int8, panel, row),
                    4 => self.block::<I, 4, 1>(int8, panel, row),
                    2 => self.block::<I, 2, 1>(int8, panel, row),
                    _ => self.block::<I, 1, 1>(int8, panel, row),
                }
            }
        }
    }

    #[inline(always)]
    fn block<I: Int8, const R: usize, const N: usize>(
        &mut self,
        int8: I,
        panel: usize,
        row: usize,
    ) {
        let groups = self.k / 32;
        let blocks = groups / B::GROUPS;
        let x = self.x[row * groups..][..R * groups].as_chunks::<R>().0;
        let mut panels = [&[][..]; N];
        for (n, panels) in panels.iter_mut().enumerate() {
            *panels = &self.weights[(panel + n) * blocks..][..blocks];
        }
        let sums = multiply::<I, B, R, N>(int8, panels, x);
        let (output, first) = (panel * LANES, self.panels.start * LANES);
        self.finish
            .write_block(int8.lanes(), &sums, row, output, first, &mut self.out);
    }
}

#[inline(always)]
fn multiply<I: Int8, B: PanelBlock, const R: usize, const N: usize>(
    int8: I,
    panels: [&[B]; N],
    x: &[[QuantBlock; R]],
) -> [[F32Of<I>; N]; R] {
    let lanes = int8.lanes();
    let mut sums = [[lanes.splat(0.0); R]; N];
    for (b, x) in x.chunks_exact(B::GROUPS).enumerate() {
        for n in 0..N {
            let block = &panels[n][b];
            for line in (0..size_of::<B>()).step_by(64) {
                lanes.prefetch(block, PREFETCH_BYTES + line);
            }
            block.accumulate(int8, x, &mut sums[n]);
        }
    }
    let mut by_row = [[lanes.splat(0.0); N]; R];
    for r in 0..R {
        for n in 0..N {
            by_row[r][n] = sums[n][r];
        }
    }
    by_row
}
