//! Products of activations with weight matrices.
//!
//! The activations are normalised, if so wanted, and brought into the form that the kernel reads once, whatever number of
//! matrices they are multiplied with. For few rows every worker does that for itself, which costs less than waiting for
//! each other; for many there is a phase of its own.

use super::activations::{self, Form, RUN};
use super::products::Multiply;
use super::rows::{Norm, Push};
use super::{Buffer, Lowering, Part, Phase, Program, Running, Scratch, assert_width};
use crate::bind::Bound;
use crate::cpu::generic::elementwise::Activation;
use crate::cpu::vector::LANES;
use crate::matrix::Matrix;
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
    pub(super) fn weights(self) -> (&'a Weights, Option<&'a Weights>) {
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
