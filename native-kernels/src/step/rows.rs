//! Operations on rows without a matrix product.

use super::{Buffer, Lowering, Part, Phase, Running, Scratch, rows_of_chunk};
use crate::cpu::generic::elementwise::{Add, Cap, RmsNorm};
use crate::matrix::Matrix;
use crate::tensor::{Rows, RowsMut};
use std::sync::Arc;

/// Root mean square normalisation: `x / sqrt(mean(x²) + eps) · weight`.
#[derive(Clone, Debug)]
pub struct Norm {
    /// One for each element of a row.
    pub weight: Vec<f32>,
    /// Added to the mean square.
    pub eps: f32,
}

/// Pushes a phase: part, chunks, size.
pub(super) type Push<'a> = dyn FnMut(Part, usize, usize) + 'a;

/// One phase over rows, each of which costs `bytes` bytes of traffic.
fn over_rows(lowering: &Lowering<'_>, m: usize, bytes: usize, push: &mut Push<'_>) {
    let size = rows_per_chunk(lowering.workers, m, bytes);
    push(Part::Whole, m.div_ceil(size), size);
}

/// Rows for one chunk when `rows` of `cost` bytes each are spread over the workers: a few chunks for each worker, each
/// worth dispatching.
pub(super) fn rows_per_chunk(workers: usize, rows: usize, cost: usize) -> usize {
    /// Work over fewer bytes ends before another thread has seen it. Measured: 0.3 µs for a dispatch, 10 bytes and more
    /// a nanosecond.
    const WORTH: usize = 16 << 10;
    let spread = rows.div_ceil(4 * workers);
    spread.max(WORTH / cost.max(1)).max(1)
}

pub(super) struct Embed {
    pub table: Arc<Matrix>,
    pub scale: f32,
    pub to: Buffer,
}

impl Embed {
    pub fn phases(&self, lowering: &Lowering<'_>, m: usize, push: &mut Push<'_>) {
        // A row is gathered element by element out of its panel.
        over_rows(lowering, m, self.table.cols() * 64, push);
    }

    pub fn run(&self, running: &Running<'_>, phase: &Phase, chunk: usize) {
        let rows = rows_of_chunk(chunk, phase.size, running.rows_of(self.to));
        let cols = 0..self.table.cols();
        // SAFETY: each chunk has rows of its own.
        let mut to = unsafe { running.part(self.to, rows.clone(), cols) };
        for (i, &token) in running.step.tokens[rows].iter().enumerate() {
            let to = to.row_mut(i);
            self.table.row(token as usize, to);
            if self.scale != 1.0 {
                to.iter_mut().for_each(|x| *x *= self.scale);
            }
        }
    }
}

pub(super) struct Gather {
    pub from: Buffer,
    pub to: Buffer,
}

impl Gather {
    pub fn phases(&self, lowering: &Lowering<'_>, m: usize, push: &mut Push<'_>) {
        over_rows(lowering, m, 4096, push);
    }

    pub fn run(&self, running: &Running<'_>, phase: &Phase, chunk: usize) {
        let rows = rows_of_chunk(chunk, phase.size, running.wanted.len());
        // SAFETY: the phase writes `to` and nothing else.
        let from = unsafe { running.read(self.from) };
        // SAFETY: each chunk has rows of its own.
        let mut to = unsafe { running.part(self.to, rows.clone(), 0..from.cols()) };
        for (i, &row) in running.wanted[rows].iter().enumerate() {
            to.row_mut(i).copy_from_slice(from.row(row));
        }
    }
}

pub(super) struct AddNormed {
    pub from: Buffer,
    pub norm: Norm,
    pub to: Buffer,
}

impl AddNormed {
    pub fn phases(&self, lowering: &Lowering<'_>, m: usize, push: &mut Push<'_>) {
        over_rows(lowering, m, self.norm.weight.len() * 20, push);
    }

    pub fn run(&self, running: &Running<'_>, phase: &Phase, chunk: usize, scratch: &mut Scratch) {
        let rows = rows_of_chunk(chunk, phase.size, running.rows_of(self.to));
        let cols = self.norm.weight.len();
        // SAFETY: the phase writes `to` and nothing else.
        let from = unsafe { running.read(self.from) }.slice(rows.clone());
        // SAFETY: each chunk has rows of its own.
        let to = unsafe { running.part(self.to, rows.clone(), 0..cols) };
        let normed = resized(&mut scratch.rows, rows.len() * cols);
        running.bound.elementwise.run(RmsNorm {
            x: from,
            weight: &self.norm.weight,
            eps: self.norm.eps,
            out: RowsMut::new(normed, rows.len(), cols),
        });
        running.bound.elementwise.run(Add {
            x: Rows::new(normed, rows.len(), cols),
            to,
        });
    }
}

pub(super) struct SoftCap {
    pub x: Buffer,
    pub cap: f32,
}

impl SoftCap {
    /// Logits are long rows, often a single one: cut by columns, into so many pieces.
    const PIECES: usize = 16;

    pub fn phases(&self, push: &mut Push<'_>) {
        push(Part::Whole, Self::PIECES, 1);
    }

    pub fn run(&self, running: &Running<'_>, chunk: usize) {
        let view = &running.views[self.x.0];
        let width = view.cols().div_ceil(Self::PIECES).next_multiple_of(16);
        let cols = rows_of_chunk(chunk, width, view.cols());
        // SAFETY: each chunk has columns of its own.
        let x = unsafe { running.part(self.x, 0..view.rows(), cols) };
        running.bound.elementwise.run(Cap { x, cap: self.cap });
    }
}

/// The first `len` elements, of a vector that grows as needed.
pub(super) fn resized(scratch: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    &mut scratch[..len]
}
