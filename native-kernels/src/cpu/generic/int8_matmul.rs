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
//! For many rows a panel's integers are taken apart into bytes once and for all of them ([`PanelBlock::loosen`]); what is
//! multiplied is the same.
//!
//! For up to two rows, which wait for memory, panels are taken from several places of the range side by side, each a stream
//! of its own (see [`Streaming`]).

use super::float_matmul::Finish;
use super::row_groups::RowGroups;
use crate::cpu::isa::Streaming;
use crate::cpu::panel::{F32Of, Multiplier, PanelBlock, QuantBlock};
use crate::cpu::vector::{Int8, Int8Kernel, LANES, Lanes};
use crate::memory;
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
        let mut loose = Vec::new();
        let mut row = 0;
        while row < self.out.rows() {
            let rows = row..self.out.rows().min(row + resident);
            row = rows.end;
            match I::LOOSE_ROWS {
                Some(least) if B::TIGHT && rows.len() >= least => {
                    loose.resize(self.blocks(), memory::zeroed());
                    self.loose_rows(int8, rows, &mut loose);
                }
                _ => self.rows(int8, rows),
            }
        }
    }
}

impl<'a, B: PanelBlock> Int8Matmul<'a, B> {
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
            self.groups(
                int8,
                rows.clone(),
                panel,
                self.panel(panel),
                self.streaming.ahead,
            );
        }
    }

    /// As [`rows`](Self::rows), by way of bytes.
    #[inline(always)]
    fn loose_rows<I: Int8>(&mut self, int8: I, rows: Range<usize>, loose: &mut [B::Loose]) {
        for panel in self.panels.clone() {
            for (block, to) in self.panel(panel).iter().zip(&mut *loose) {
                int8.lanes().prefetch_all(block, self.streaming.ahead);
                block.loosen(int8, to);
            }
            self.groups(int8, rows.clone(), panel, loose, 0);
        }
    }

    /// Blocks of a panel.
    #[inline(always)]
    fn blocks(&self) -> usize {
        self.k / (32 * B::GROUPS)
    }

    #[inline(always)]
    fn panel(&self, panel: usize) -> &'a [B] {
        &self.weights[panel * self.blocks()..][..self.blocks()]
    }

    /// One panel, whose blocks are `weights`, in groups of rows.
    #[inline(always)]
    fn groups<I: Int8, W: Multiplier>(
        &mut self,
        int8: I,
        rows: Range<usize>,
        panel: usize,
        weights: &[W],
        ahead: usize,
    ) {
        for (row, group) in RowGroups::new(rows, I::ROWS) {
            match group {
                8 if I::ROWS >= 8 => self.block::<I, W, 8, 1>(int8, [(panel, weights)], row, ahead),
                4 => self.block::<I, W, 4, 1>(int8, [(panel, weights)], row, ahead),
                2 => self.block::<I, W, 2, 1>(int8, [(panel, weights)], row, ahead),
                _ => self.block::<I, W, 1, 1>(int8, [(panel, weights)], row, ahead),
            }
        }
    }

    /// Works on panels from several places side by side, and says on how many.
    #[inline(always)]
    fn streams<I: Int8, const R: usize>(&mut self, int8: I, row: usize) -> usize {
        let length = self.panels.len() / STREAMS;
        for panel in self.panels.start..self.panels.start + length {
            let mut panels = [(0, &[][..]); STREAMS];
            for (s, to) in panels.iter_mut().enumerate() {
                let panel = panel + s * length;
                *to = (panel, self.panel(panel));
            }
            self.block::<I, B, R, STREAMS>(int8, panels, row, self.streaming.ahead);
        }
        STREAMS * length
    }

    #[inline(always)]
    fn block<I: Int8, W: Multiplier, const R: usize, const N: usize>(
        &mut self,
        int8: I,
        panels: [(usize, &[W]); N],
        row: usize,
        ahead: usize,
    ) {
        let groups = self.k / 32;
        let x = self.x[row * groups..][..R * groups].as_chunks::<R>().0;
        let sums = multiply::<I, W, R, N>(int8, panels, x, ahead);
        let first = self.panels.start * LANES;
        for n in 0..N {
            let output = panels[n].0 * LANES;
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
fn multiply<I: Int8, W: Multiplier, const R: usize, const N: usize>(
    int8: I,
    panels: [(usize, &[W]); N],
    x: &[[QuantBlock; R]],
    ahead: usize,
) -> [[F32Of<I>; R]; N] {
    let lanes = int8.lanes();
    let mut sums = [[lanes.splat(0.0); R]; N];
    for (b, x) in x.chunks_exact(W::GROUPS).enumerate() {
        for n in 0..N {
            let block = &panels[n].1[b];
            if ahead > 0 {
                lanes.prefetch_all(block, ahead);
            }
            block.accumulate(int8, x, &mut sums[n]);
        }
    }
    sums
}
