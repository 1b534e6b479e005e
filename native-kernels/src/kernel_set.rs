//! The kernels of a plan, bound.

use crate::Format;
use crate::bind::{BindError, Bound, Selection};
use crate::matrix::{Matrix, PackError};
use crate::memory::Arena;
use crate::workers::Workers;
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

    pub(crate) fn bound(&self) -> &Bound {
        &self.bound
    }
}
