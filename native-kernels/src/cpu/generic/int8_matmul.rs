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
//! Panels are taken one after the other, so that weights are one stream. Several panels side by side were slower (Zen 4,
//! all products of a 135M step, one row, two threads: one panel 2.9 to 3.3 ms, two 5.2 ms, four 3.5 to 5.3 ms): blocks are
//! independent up to the float sum, so one panel has parallelism enough.

use super::float_matmul::Finish;
use super::row_groups::RowGroups;
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
    /// Bytes ahead of their use at which weights are asked for.
    pub prefetch: usize,
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
        for panel in self.panels.clone() {
            for (row, group) in RowGroups::new(rows.clone(), I::ROWS) {
                match group {
                    8 => self.block::<I, 8>(int8, panel, row),
                    4 => self.block::<I, 4>(int8, panel, row),
                    2 => self.block::<I, 2>(int8, panel, row),
                    _ => self.block::<I, 1>(int8, panel, row),
                }
            }
        }
    }

    #[inline(always)]
    fn block<I: Int8, const R: usize>(&mut self, int8: I, panel: usize, row: usize) {
        let groups = self.k / 32;
        let blocks = groups / B::GROUPS;
        let x = self.x[row * groups..][..R * groups].as_chunks::<R>().0;
        let weights = &self.weights[panel * blocks..][..blocks];
        let sums = multiply::<I, B, R>(int8, weights, x, self.prefetch);
        let (output, first) = (panel * LANES, self.panels.start * LANES);
        for (r, sum) in sums.into_iter().enumerate() {
            let to = &mut self.out.row_mut(row + r)[output - first..];
            let to = to.chunks_mut(LANES).next().expect("a panel has outputs");
            self.finish.write(int8.lanes(), sum, output, to);
        }
    }
}

#[inline(always)]
fn multiply<I: Int8, B: PanelBlock, const R: usize>(
    int8: I,
    weights: &[B],
    x: &[[QuantBlock; R]],
    prefetch: usize,
) -> [F32Of<I>; R] {
    let lanes = int8.lanes();
    let mut sums = [lanes.splat(0.0); R];
    for (block, x) in weights.iter().zip(x.chunks_exact(B::GROUPS)) {
        for line in (0..size_of::<B>()).step_by(64) {
            lanes.prefetch(block, prefetch + line);
        }
        block.accumulate(int8, x, &mut sums);
    }
    sums
}
