//! A matrix product spread over the workers: activations prepared once, then panels in runs.

use crate::bind::MatmulKernel;
use crate::cpu::generic::float_matmul::{Finish, FloatMatmul, Packed, Panels, Widened};
use crate::cpu::generic::int8_matmul::Int8Matmul;
use crate::cpu::generic::row_groups::{PackRows, QuantizeRows};
use crate::cpu::isa::{Int8Isa, LaneIsa};
use crate::cpu::panel::{FloatElement, PanelBlock, QuantBlock};
use crate::cpu::vector::LANES;
use crate::matrix::{Matrix, WithPanels, with_panels};
use crate::parallel::{for_columns, for_pieces};
use crate::tensor::{Rows, RowsMut};
use crate::workers::Workers;
use std::ops::Range;

/// A product, ready to run. Shapes agree and nothing is empty but perhaps the inputs.
pub(crate) struct Matmul<'a> {
    pub kernel: MatmulKernel,
    pub workers: &'a Workers,
    pub x: Rows<'a>,
    pub w: &'a Matrix,
    pub finish: Finish<'a>,
    /// Bytes ahead of their use at which weights are asked for.
    pub prefetch: usize,
}

impl Matmul<'_> {
    pub fn run(self, out: RowsMut<'_>) {
        with_panels(self.w.format(), WithOut { matmul: &self, out });
    }

    fn float<P: Panels>(&self, isa: LaneIsa, weights: P, out: RowsMut<'_>) {
        let x = self.pack_rows(isa);
        let k = self.w.cols();
        self.each_run(out, |panels, finish, out| {
            isa.run(FloatMatmul {
                weights,
                panels,
                k,
                x: &x,
                finish,
                prefetch: self.prefetch,
                out,
            });
        });
    }

    fn int8<B: PanelBlock>(&self, isa: Int8Isa, weights: &[B], out: RowsMut<'_>) {
        let x = self.quantize_rows(isa);
        let k = self.w.cols();
        self.each_run(out, |panels, finish, out| {
            isa.run(Int8Matmul {
                weights,
                panels,
                k,
                x: &x,
                finish,
                prefetch: self.prefetch,
                out,
            });
        });
    }

    /// Calls `f` for runs of panels, each with its columns of the output.
    fn each_run(&self, out: RowsMut<'_>, f: impl Fn(Range<usize>, Finish<'_>, RowsMut<'_>) + Sync) {
        let width = self.panels_per_run() * LANES;
        for_columns(self.workers, out, width, |columns, out| {
            let panels = columns.start / LANES..columns.end.div_ceil(LANES);
            f(panels, self.finish, out);
        });
    }

    /// Runs of panels that are worth a dispatch, a few for each worker, in fours (which is how a single row takes them).
    fn panels_per_run(&self) -> usize {
        /// Bytes of weights times rows that are worth another thread.
        const WORTH: usize = 24 << 10;
        let panels = self.w.panels();
        let cost = self.w.panel_bytes() * self.x.rows().div_ceil(2);
        let spread = panels.div_ceil(4 * self.workers.len());
        spread
            .max(WORTH / cost.max(1))
            .next_multiple_of(4)
            .clamp(1, panels.next_multiple_of(4))
    }

    fn pack_rows(&self, isa: LaneIsa) -> Vec<f32> {
        let (largest, cols) = (isa.rows(), self.x.cols());
        let mut packed = vec![0.0; self.x.rows() * cols];
        self.each_row_run(&mut packed, cols, |x, to| PackRows { x, largest, to }.run());
        packed
    }

    fn quantize_rows(&self, isa: Int8Isa) -> Vec<QuantBlock> {
        let (largest, blocks) = (isa.rows(), self.x.cols() / 32);
        let mut quantized = vec![QuantBlock::ZERO; self.x.rows() * blocks];
        self.each_row_run(&mut quantized, blocks, |x, to| {
            isa.lanes().run(QuantizeRows { x, largest, to });
        });
        quantized
    }

    /// Calls `f` for runs of rows that begin at a group (see `row_groups`), with their pieces of `to`.
    fn each_row_run<T: Send>(
        &self,
        to: &mut [T],
        row_len: usize,
        f: impl Fn(Rows<'_>, &mut [T]) + Sync,
    ) {
        /// A multiple of every group.
        const ROWS: usize = 16;
        if to.is_empty() {
            return;
        }
        for_pieces(self.workers, to, ROWS * row_len, |i, to| {
            let rows = i * ROWS..self.x.rows().min((i + 1) * ROWS);
            f(self.x.slice(rows), to);
        });
    }
}

struct WithOut<'a, 'b> {
    matmul: &'a Matmul<'a>,
    out: RowsMut<'b>,
}

impl WithPanels for WithOut<'_, '_> {
    type Output = ();

    fn floats<E: FloatElement>(self) {
        match self.matmul.kernel {
            MatmulKernel::Float(isa) => {
                let weights = Packed::<E>(self.matmul.w.floats());
                self.matmul.float(isa, weights, self.out);
            }
            MatmulKernel::Int8(_) => unreachable!("no int8 kernel has a float format"),
        }
    }

    fn blocks<B: PanelBlock>(self) {
        let weights = self.matmul.w.blocks::<B>();
        match self.matmul.kernel {
            MatmulKernel::Float(isa) => self.matmul.float(isa, Widened(weights), self.out),
            MatmulKernel::Int8(isa) => self.matmul.int8(isa, weights, self.out),
        }
    }
}
