//! Products of activations with weight matrices.
//!
//! The activations are normalised, if so wanted, and brought into the form that the kernel reads once, whatever number of
//! matrices they are multiplied with. For few rows every worker does that for itself, which costs less than waiting for
//! each other; for many there is a phase of its own.

use super::activations::{self, Form, RUN, Ready};
use super::rows::{Norm, Push, resized};
use super::{Buffer, Lowering, Part, Phase, Program, Running, Scratch, assert_width};
use crate::bind::{Bound, MatmulKernel};
use crate::cpu::generic::elementwise::{Activation, Gated};
use crate::cpu::generic::float_matmul::{
    Blocks, Finish, FloatMatmul, Packed, Panels, WidenPanel, Widened,
};
use crate::cpu::generic::int8_matmul::Int8Matmul;
use crate::cpu::generic::tile_matmul::{
    ROW_TILE, TileMatmul, TileOutput, TilePanels, TileScratch, TileWords, WriteTiles,
};
use crate::cpu::isa::{Int8Isa, LaneIsa, Streaming, TileIsa};
use crate::cpu::panel::{FloatElement, PanelBlock};
use crate::cpu::vector::LANES;
use crate::matrix::{Matrix, WithPanels, with_panels};
use crate::tensor::{Rows, RowsMut};
use crate::workers::Nodes;
use std::ops::Range;
use std::sync::Arc;

/// A matrix and what is added to its product.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[outputs][inputs]`.
    pub matrix: Arc<Matrix>,
    /// One for each output.
    pub bias: Option<Vec<f32>>,
}

/// What becomes of a product.
#[derive(Clone, Debug)]
pub enum Output {
    /// `to = x · wᵀ + bias`.
    Store {
        /// `w`.
        weights: Weights,
        /// Rows of as many elements as there are outputs.
        to: Buffer,
    },
    /// `to += x · wᵀ + bias`, for a residual stream.
    Add {
        /// `w`.
        weights: Weights,
        /// Rows of as many elements as there are outputs.
        to: Buffer,
    },
    /// `to = activation(x · gateᵀ) · (x · upᵀ)`.
    Gated {
        /// Goes through the activation.
        gate: Weights,
        /// Is multiplied with it.
        up: Weights,
        /// Function of the gate.
        activation: Activation,
        /// Rows of as many elements as there are outputs.
        to: Buffer,
    },
}

/// Products of the same activations with one or several matrices.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The activations.
    pub from: Buffer,
    /// Applied to each row first.
    pub norm: Option<Norm>,
    /// The matrices, and where the products go.
    pub outputs: Vec<Output>,
}

/// What a chunk computes: an output without the buffer that it goes to.
#[derive(Clone, Copy)]
pub(super) enum Parts<'a> {
    Store(&'a Weights),
    Add(&'a Weights),
    Gated {
        gate: &'a Weights,
        up: &'a Weights,
        activation: Activation,
    },
}

impl<'a> Parts<'a> {
    fn weights(self) -> (&'a Weights, Option<&'a Weights>) {
        match self {
            Parts::Store(weights) | Parts::Add(weights) => (weights, None),
            Parts::Gated { gate, up, .. } => (gate, Some(up)),
        }
    }
}

impl Output {
    fn parts(&self) -> Parts<'_> {
        match self {
            Output::Store { weights, .. } => Parts::Store(weights),
            Output::Add { weights, .. } => Parts::Add(weights),
            Output::Gated {
                gate,
                up,
                activation,
                ..
            } => Parts::Gated {
                gate,
                up,
                activation: *activation,
            },
        }
    }

    fn weights(&self) -> (&Weights, Option<&Weights>) {
        self.parts().weights()
    }

    pub(super) fn to(&self) -> Buffer {
        match self {
            Output::Store { to, .. } | Output::Add { to, .. } | Output::Gated { to, .. } => *to,
        }
    }

    fn panels(&self) -> usize {
        self.weights().0.matrix.panels()
    }

    /// Bytes of weights that make sixteen outputs.
    fn panel_bytes(&self) -> usize {
        let (first, second) = self.weights();
        first.matrix.panel_bytes() + second.map_or(0, |second| second.matrix.panel_bytes())
    }
}

/// Rows up to which each worker prepares activations for itself.
const OWN_ROWS: usize = 16;

/// Rows of a gated product whose two halves are kept until they are combined.
const GATED_ROWS: usize = 4 * RUN;

/// Panels that are worth a chunk, `spread` and more, in pairs (which is how tiles take them). `cost` is what one of them
/// costs, in bytes of weights times pairs of rows.
pub(super) fn panels_per_chunk(panels: usize, spread: usize, cost: usize) -> usize {
    /// What is worth another thread.
    const WORTH: usize = 24 << 10;
    spread
        .max(WORTH / cost.max(1))
        .next_multiple_of(2)
        .clamp(2, panels.next_multiple_of(2).max(2))
}

impl Linear {
    pub(super) fn check(&self, program: &Program) {
        let k = program.width(self.from);
        if let Some(norm) = &self.norm {
            assert_width("norm", norm.weight.len(), k);
        }
        for output in &self.outputs {
            assert!(output.to() != self.from, "a product goes to another buffer");
            let n = program.width(output.to());
            let (first, second) = output.weights();
            for weights in std::iter::once(first).chain(second) {
                assert_width("inputs of w", weights.matrix.cols(), k);
                assert_width("outputs of w", weights.matrix.rows(), n);
                let bias = weights.bias.as_ref().map_or(n, Vec::len);
                assert_width("bias", bias, n);
            }
        }
    }

    pub(super) fn matrices(&self) -> impl Iterator<Item = &Arc<Matrix>> {
        self.outputs.iter().flat_map(|output| {
            let (first, second) = output.weights();
            std::iter::once(&first.matrix).chain(second.map(|second| &second.matrix))
        })
    }

    /// Width of the activations.
    pub(super) fn inputs(&self) -> usize {
        self.matrices().next().map_or(0, |matrix| matrix.cols())
    }

    /// The forms of activations that `m` rows are needed in.
    pub(super) fn forms(&self, bound: &Bound, m: usize) -> Vec<Form> {
        let mut forms = Vec::new();
        for matrix in self.matrices() {
            let form = Form::of(bound.matmul_of(matrix.format(), m));
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
        forms
    }

    pub(super) fn phases(&self, lowering: &Lowering<'_>, m: usize, push: &mut Push<'_>) {
        let own = m <= OWN_ROWS;
        if !own {
            push(Part::Prepare, m.div_ceil(RUN), RUN);
        }
        let size = self.panels_per_chunk(lowering.workers, m);
        let nodes = 0..lowering.nodes.len();
        let chunks = nodes
            .map(|node| self.chunks_of(lowering.nodes, node, size))
            .sum();
        let part = match own {
            true => Part::MultiplyOwn,
            false => Part::MultiplyShared,
        };
        push(part, chunks, size);
    }

    fn panels_per_chunk(&self, workers: usize, m: usize) -> usize {
        let panels: usize = self.outputs.iter().map(Output::panels).sum();
        let bytes = self.outputs.iter().map(Output::panel_bytes).max();
        let spread = panels.div_ceil(4 * workers);
        panels_per_chunk(panels, spread, bytes.unwrap_or(0) * m.div_ceil(2))
    }

    pub(super) fn run(
        &self,
        running: &Running<'_>,
        phase: &Phase,
        chunk: usize,
        scratch: &mut Scratch,
    ) {
        let m = running.rows_of(self.from);
        let lanes = running.bound.elementwise;
        // SAFETY: no phase of this operation writes `from` (see `check`).
        let x = unsafe { running.read(self.from) };
        if phase.part == Part::Prepare {
            let rows = super::rows_of_chunk(chunk, phase.size, m);
            let norm = self.norm.as_ref();
            // SAFETY: each chunk has rows of its own, and nobody reads them in this phase.
            unsafe {
                activations::prepare_shared(
                    lanes,
                    &self.forms(running.bound, m),
                    (x, rows),
                    norm,
                    &mut scratch.rows,
                    &running.shared,
                );
            }
            return;
        }
        if phase.part == Part::MultiplyOwn && scratch.prepared != (scratch.serial, 0) {
            let forms = self.forms(running.bound, m);
            activations::prepare_own(lanes, &forms, x, self.norm.as_ref(), scratch);
            scratch.prepared = (scratch.serial, 0);
        }
        let (output, panels) = self.locate(running.nodes, chunk, phase.size);
        let n = output.weights().0.matrix.rows();
        let cols = panels.start * LANES..n.min(panels.end * LANES);
        // SAFETY: each chunk has columns of an output of its own.
        let out = unsafe { running.part(output.to(), 0..m, cols) };
        let Scratch {
            own,
            rows,
            more,
            tiles,
            ..
        } = scratch;
        let ready = |form| match phase.part {
            Part::MultiplyOwn => own.ready(form),
            // SAFETY: written in the phase before, and by nobody in this one.
            _ => unsafe { running.shared.ready(form) },
        };
        let multiply = Multiply {
            bound: running.bound,
            m,
            panels,
            ready: &ready,
        };
        multiply.output(output.parts(), out, (rows, more), tiles);
    }

    /// Chunks of `size` panels and less whose panels lie on a node.
    pub(super) fn chunks_of(&self, nodes: &Nodes, node: usize, size: usize) -> usize {
        let panels = |output: &Output| nodes.panels(output.panels(), node);
        let chunks = |output| panels(output).len().div_ceil(size);
        self.outputs.iter().map(chunks).sum()
    }

    /// The output and the panels of a chunk. Chunks are numbered node by node, those of a node output by output: each
    /// node has a part of every matrix.
    ///
    /// ```text
    /// panels  q: 0 1 2 3 4 5 6 7   k: 0 1 2 3   v: 0 1 2 3      two nodes, chunks of two panels
    ///            └ 0 ┘└ 1 ┘  │        └ 2 ┘│       └ 3 ┘│       chunks of the first node
    ///                    └ 4 ┘└ 5 ┘        └ 6 ┘        └ 7 ┘   chunks of the second
    /// ```
    fn locate(&self, nodes: &Nodes, mut chunk: usize, size: usize) -> (&Output, Range<usize>) {
        for node in 0..nodes.len() {
            for output in &self.outputs {
                let panels = nodes.panels(output.panels(), node);
                let chunks = panels.len().div_ceil(size);
                if chunk < chunks {
                    let first = panels.start + chunk * size;
                    return (output, first..panels.end.min(first + size));
                }
                chunk -= chunks;
            }
        }
        unreachable!("the chunks of a phase are those of its outputs")
    }
}

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
        tiles: &mut TileScratch,
    ) {
        let (a, b) = parts.weights();
        let kernel = |weights: &Weights| self.bound.matmul_of(weights.matrix.format(), self.m);
        if let MatmulKernel::Tiles(isa) = kernel(a)
            && b.is_none_or(|b| matches!(kernel(b), MatmulKernel::Tiles(_)))
        {
            return self.tiles(isa, parts, out, tiles);
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
    fn tiles(&self, isa: TileIsa, parts: Parts<'_>, out: RowsMut<'_>, scratch: &mut TileScratch) {
        let (a, b) = parts.weights();
        let first = |panel: usize, to: &mut [TileWords]| write_tiles(isa, a, panel, to);
        let second = |panel: usize, to: &mut [TileWords]| {
            write_tiles(isa, b.unwrap_or(a), panel, to);
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

    /// Rows from `first` on.
    fn tile_rows(
        &self,
        isa: TileIsa,
        output: TileOutput<'_>,
        (k, first): (usize, usize),
        out: RowsMut<'_>,
        scratch: &mut TileScratch,
    ) {
        let x = (self.ready)(Form::Tiles(isa)).tiles;
        isa.run(TileMatmul {
            output,
            panels: self.panels.clone(),
            k,
            x: &x[first / ROW_TILE * k.div_ceil(32)..],
            scratch,
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
        tiles: &mut TileScratch,
    ) {
        let kernel = self.bound.matmul_of(weights.matrix.format(), self.m);
        let bias = weights.bias.as_deref();
        let finish = Finish { bias, add };
        if let MatmulKernel::Tiles(isa) = kernel {
            let source = |panel: usize, to: &mut [TileWords]| write_tiles(isa, weights, panel, to);
            let output = TileOutput::Product(&source, finish);
            let place = (weights.matrix.cols(), rows.start);
            return self.tile_rows(isa, output, place, out, tiles);
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

/// Brings one panel into tiles.
fn write_tiles(isa: TileIsa, weights: &Weights, panel: usize, to: &mut [TileWords]) {
    let matrix = &*weights.matrix;
    let format = matrix.format();
    with_panels(
        format,
        Tiles {
            isa,
            matrix,
            panel,
            to,
        },
    );
}

struct Tiles<'a> {
    isa: TileIsa,
    matrix: &'a Matrix,
    panel: usize,
    to: &'a mut [TileWords],
}

impl Tiles<'_> {
    fn write<P: TilePanels>(self, weights: P) {
        self.isa.widen(WriteTiles {
            weights,
            panel: self.panel,
            k: self.matrix.cols(),
            to: self.to,
        });
    }
}

impl WithPanels for Tiles<'_> {
    type Output = ();

    fn floats<E: FloatElement>(self) {
        let matrix = self.matrix;
        self.write(Packed::<E>(matrix.floats()));
    }

    fn blocks<B: PanelBlock>(self) {
        let matrix = self.matrix;
        self.write(Blocks::<B>(matrix.blocks()));
    }
}

impl WithPanels for Product<'_, '_> {
    type Output = ();

    fn floats<E: FloatElement>(self) {
        let weights = Packed::<E>(self.matrix.floats());
        match self.kernel {
            MatmulKernel::Float(isa) => self.float(isa, weights),
            MatmulKernel::Tiles(_) => unreachable!("tiles have a way of their own"),
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
            MatmulKernel::Tiles(_) => unreachable!("tiles have a way of their own"),
        }
    }
}
