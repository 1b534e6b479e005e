//! The kernels of a plan, bound.

use crate::Format;
use crate::bind::{BindError, Bound, Selection};
use crate::cpu::generic::logits::{FindLargest, FindWithin, Largest, SumExp};
use crate::matrix::{Matrix, PackError, ReadPiece};
use crate::memory::Arena;
use crate::panel_file::PanelFile;
use crate::workers::Workers;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Kernels bound to a plan: immutable, and used from any thread. [`crate::Program::run`] runs them.
#[derive(Debug)]
pub struct KernelSet {
    bound: Bound,
    /// Where packed matrices come from: many small ones share huge pages.
    arena: Mutex<Arena>,
}

impl KernelSet {
    /// Binds a kernel for every purpose.
    ///
    /// **Errors**: an id that this build does not have, that does something else, or whose requirement this CPU lacks.
    pub fn bind(selection: &Selection) -> Result<Self, BindError> {
        Ok(Self {
            bound: Bound::new(selection)?,
            arena: Mutex::default(),
        })
    }

    /// Rows of a step up to which every product runs on the kernel of few rows: a row's result does not depend on how many
    /// there are.
    pub fn few_rows(&self) -> usize {
        self.bound.few_rows()
    }

    /// Packs a row-major weight matrix, `[rows = outputs][cols = inputs]`, into the layout that the kernels read.
    ///
    /// **Errors**: `bytes` is not exactly such a matrix; no kernel was bound for the format; no memory.
    pub fn pack(
        &self,
        workers: &Workers,
        format: Format,
        rows: usize,
        cols: usize,
        bytes: &[u8],
    ) -> Result<Matrix, PackError> {
        if !self.bound.multiplies(format) {
            return Err(PackError::NoKernel { format });
        }
        // A panic while the arena was locked leaves it with memory that nobody uses.
        let mut arena = self.arena.lock().unwrap_or_else(PoisonError::into_inner);
        Matrix::pack(workers, &mut arena, format, (rows, cols), bytes)
    }

    /// Takes a matrix `[rows = outputs][cols = inputs]` that was packed before and kept as [`Matrix::as_bytes`].
    ///
    /// `read(offset, piece)` fills it in pieces of `piece` bytes, of which the last may be shorter, on all workers at the
    /// same time. What is in the bytes does not matter to memory's safety; that they are the right ones is the caller's
    /// to know.
    ///
    /// **Errors**: one that `read` gave; no kernel was bound for the format; no memory.
    pub fn restore<E: From<PackError> + Send + Sync>(
        &self,
        workers: &Workers,
        format: Format,
        shape: (usize, usize),
        (piece, read): (usize, &ReadPiece<'_, E>),
    ) -> Result<Matrix, E> {
        if !self.bound.multiplies(format) {
            return Err(PackError::NoKernel { format }.into());
        }
        let mut arena = self.arena.lock().unwrap_or_else(PoisonError::into_inner);
        Matrix::restore(workers, &mut arena, format, shape, (piece, read))
    }

    /// As [`KernelSet::restore`], where the panels lie in a mapped file: from `offset`, a multiple of 64.
    ///
    /// **Errors**: no kernel was bound for the format; a row is no whole number of blocks.
    ///
    /// **Panics** if the file ends before the panels do, or `offset` is no such multiple.
    pub fn map(
        &self,
        format: Format,
        shape: (usize, usize),
        file: &PanelFile,
        offset: usize,
    ) -> Result<Matrix, PackError> {
        if !self.bound.multiplies(format) {
            return Err(PackError::NoKernel { format });
        }
        Matrix::of_file(format, shape, file, offset)
    }

    /// The largest of `x`, of equals the first. `None` if there is none, or something is not a number.
    pub fn largest(&self, x: &[f32]) -> Option<Largest> {
        self.bound.elementwise.run(FindLargest { x })
    }

    /// The sum of `e^((x - origin) * rate)` over the numbers of `x` within `values`: from the first, up to but not
    /// including the last. The same bits on every instruction set.
    ///
    /// **Error**: relatively within 1.4e-6, and 1.8e-7 more for every unit of the exponents that make the sum.
    pub fn sum_exp(&self, x: &[f32], (origin, rate): (f32, f32), values: Range<f32>) -> f64 {
        self.bound.elementwise.run(SumExp {
            x,
            origin,
            rate,
            from: values.start,
            to: values.end,
        })
    }

    /// Positions of the numbers of `x` within `values`, ascending: from the first, up to but not including the last.
    /// Minus infinity is in no range.
    pub fn find_within(&self, x: &[f32], values: Range<f32>) -> Vec<u32> {
        let mut found = Vec::new();
        self.bound.elementwise.run(FindWithin {
            x,
            values,
            found: &mut found,
        });
        found
    }

    pub(crate) fn bound(&self) -> &Bound {
        &self.bound
    }
}
