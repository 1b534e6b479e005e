//! The products of a chunk, each on the kernel that the plan has for its format and number of rows.

use super::activations::{Form, RUN, Ready};
use super::linear::{Parts, Weights};
use super::rows::resized;
use super::tiled::{Tiled, Tiles};
use crate::bind::{Bound, MatmulKernel};
use crate::cpu::generic::elementwise::Gated;
use crate::cpu::generic::float_matmul::{
    Blocks, Finish, FloatMatmul, Packed, Panels, WidenPanel, Widened,
};
use crate::cpu::generic::int8_matmul::Int8Matmul;
use crate::cpu::generic::tile_matmul::{ROW_TILE, TileKind, TileMatmul, TileOutput};
use crate::cpu::isa::{Int8Isa, LaneIsa, Streaming};
use crate::cpu::panel::{FloatElement, PanelBlock};
use crate::cpu::vector::LANES;
use crate::matrix::{Matrix, WithPanels, with_panels};
use crate::tensor::{Rows, RowsMut};
use std::ops::Range;

/// Rows of a gated product whose two halves are kept until they are combined.
const GATED_ROWS: usize = 4 * RUN;

type WeightsOf<I> = <<I as Tiled>::Kind as TileKind>::Weights;

/// The products of a chunk.
pub(super) struct Multiply<'a> {
    pub bound: &'a Bound,
    /// Rows.
    pub m: usize,
    pub panels: Range<usize>,
    pub ready: &'a dyn Fn(Form) -> Ready<'a>,
}

impl Multiply<'_> {
    pub fn output(
        &self,
        parts: Parts<'_>,
        out: RowsMut<'_>,
        (first, second): (&mut Vec<f32>, &mut Vec<f32>),
        tiles: &mut Tiles,
    ) {
        let (a, b) = parts.weights();
        let kernel = |weights: &Weights| self.bound.matmul_of(weights.matrix.format(), self.m);
        match (kernel(a), b.map(kernel)) {
            (MatmulKernel::Tiles(isa), None | Some(MatmulKernel::Tiles(_))) => {
                return self.tiles(isa, parts, out, tiles);
            }
            (MatmulKernel::Spans(isa), None | Some(MatmulKernel::Spans(_))) => {
                return self.tiles(isa, parts, out, tiles);
            }
            _ => {}
        }
        match parts {
            Parts::Store(weights) => self.product(weights, 0..self.m, false, out, tiles),
            Parts::Add(weights) => self.product(weights, 0..self.m, true, out, tiles),
            Parts::Gated {
                gate,
                up,
                activation,
            } => {
                let cols = out.cols();
                for start in (0..self.m).step_by(GATED_ROWS) {
                    let rows = start..self.m.min(start + GATED_ROWS);
                    let len = rows.len() * cols;
                    let (a, b) = (resized(first, len), resized(second, len));
                    for (weights, to) in [(gate, &mut *a), (up, &mut *b)] {
                        let to = RowsMut::new(to, rows.len(), cols);
                        self.product(weights, rows.clone(), false, to, tiles);
                    }
                    // SAFETY: these rows of the chunk's own part, which is not used but for such parts.
                    let out = unsafe { out.part(rows.clone(), 0..cols) };
                    self.bound.elementwise.run(Gated {
                        gate: Rows::new(a, rows.len(), cols),
                        up: Rows::new(b, rows.len(), cols),
                        activation,
                        out,
                    });
                }
            }
        }
    }

    /// All of it in tiles: a gated pair side by side, so that its halves need not be kept.
    fn tiles<I: Tiled>(&self, isa: I, parts: Parts<'_>, out: RowsMut<'_>, scratch: &mut Tiles) {
        let (a, b) = parts.weights();
        let first = |panel: usize, to: &mut [WeightsOf<I>]| isa.write(&a.matrix, panel, to);
        let second = |panel: usize, to: &mut [WeightsOf<I>]| {
            isa.write(&b.unwrap_or(a).matrix, panel, to);
        };
        let finish = |add| Finish {
            bias: a.bias.as_deref(),
            add,
        };
        let output = match parts {
            Parts::Store(_) => TileOutput::Product(&first, finish(false)),
            Parts::Add(_) => TileOutput::Product(&first, finish(true)),
            Parts::Gated { up, activation, .. } => TileOutput::Gated {
                gate: &first,
                up: &second,
                bias: [a.bias.as_deref(), up.bias.as_deref()],
                activation,
            },
        };
        self.tile_rows(isa, output, (a.matrix.cols(), 0), out, scratch);
    }

    /// One product in tiles.
    fn tiled_product<I: Tiled>(
        &self,
        isa: I,
        (weights, first): (&Weights, usize),
        finish: Finish<'_>,
        out: RowsMut<'_>,
        scratch: &mut Tiles,
    ) {
        let source = |panel: usize, to: &mut [WeightsOf<I>]| isa.write(&weights.matrix, panel, to);
        let output = TileOutput::Product(&source, finish);
        self.tile_rows(isa, output, (weights.matrix.cols(), first), out, scratch);
    }

    /// Rows from `first` on.
    fn tile_rows<I: Tiled>(
        &self,
        isa: I,
        output: TileOutput<'_, I::Kind>,
        (k, first): (usize, usize),
        out: RowsMut<'_>,
        scratch: &mut Tiles,
    ) {
        let x = I::rows((self.ready)(isa.form()));
        isa.run(TileMatmul {
            output,
            panels: self.panels.clone(),
            k,
            x: &x[first / ROW_TILE * k.div_ceil(I::Kind::INPUTS)..],
            scratch: I::scratch(scratch),
            out,
        });
    }

    /// `out = x[rows] · wᵀ + bias`, or added to what is there. `rows` begin at a multiple of [`RUN`].
    fn product(
        &self,
        weights: &Weights,
        rows: Range<usize>,
        add: bool,
        out: RowsMut<'_>,
        tiles: &mut Tiles,
    ) {
        let kernel = self.bound.matmul_of(weights.matrix.format(), self.m);
        let bias = weights.bias.as_deref();
        let finish = Finish { bias, add };
        let place = (weights, rows.start);
        match kernel {
            MatmulKernel::Tiles(isa) => return self.tiled_product(isa, place, finish, out, tiles),
            MatmulKernel::Spans(isa) => return self.tiled_product(isa, place, finish, out, tiles),
            _ => {}
        }
        let run = Product {
            kernel,
            matrix: &weights.matrix,
            panels: self.panels.clone(),
            first: rows.start,
            ready: (self.ready)(Form::of(kernel)),
            finish,
            streaming: self.bound.streaming,
            out,
        };
        with_panels(weights.matrix.format(), run);
    }
}

/// One product with the panels of one matrix.
struct Product<'a, 'b> {
    kernel: MatmulKernel,
    matrix: &'a Matrix,
    panels: Range<usize>,
    /// First row.
    first: usize,
    ready: Ready<'a>,
    finish: Finish<'a>,
    streaming: Streaming,
    out: RowsMut<'b>,
}

impl Product<'_, '_> {
    fn float<P: Panels>(self, isa: LaneIsa, weights: P) {
        let k = self.matrix.cols();
        isa.run(FloatMatmul {
            weights,
            panels: self.panels,
            k,
            x: &self.ready.floats[self.first * k..],
            finish: self.finish,
            streaming: self.streaming,
            out: self.out,
        });
    }

    fn int8<B: PanelBlock>(self, isa: Int8Isa, weights: &[B]) {
        let k = self.matrix.cols();
        isa.run(Int8Matmul {
            weights,
            panels: self.panels,
            k,
            x: &self.ready.quants[self.first * (k / 32)..],
            finish: self.finish,
            streaming: self.streaming,
            out: self.out,
        });
    }
}

impl WithPanels for Product<'_, '_> {
    type Output = ();

    fn floats<E: FloatElement>(self) {
        let weights = Packed::<E>(self.matrix.floats());
        match self.kernel {
            MatmulKernel::Float(isa) => self.float(isa, weights),
            MatmulKernel::Tiles(_) | MatmulKernel::Spans(_) => {
                unreachable!("tiles have a way of their own")
            }
            MatmulKernel::Int8(_) => unreachable!("no int8 kernel has a float format"),
        }
    }

    fn blocks<B: PanelBlock>(self) {
        let weights = self.matrix.blocks::<B>();
        match self.kernel {
            MatmulKernel::Float(isa) => {
                let blocks = Blocks(weights);
                let widen = |panel, to: &mut [[f32; LANES]]| {
                    isa.run(WidenPanel { blocks, panel, to });
                };
                self.float(isa, Widened(&widen));
            }
            MatmulKernel::Int8(isa) => self.int8(isa, weights),
            MatmulKernel::Tiles(_) | MatmulKernel::Spans(_) => {
                unreachable!("tiles have a way of their own")
            }
        }
    }
}
