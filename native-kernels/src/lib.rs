//! Native kernels, what they are and the machine they run on.
//!
//! The only crate with `unsafe`. It decides nothing: which kernel runs is in the plan that it is bound to.

pub mod detect;

mod catalog;

mod bind;
mod kernel_set;
mod matmul;

pub mod format;
mod kv_cache;
mod kv_write;
mod matrix;
mod quant;
mod rope;

mod memory;
mod parallel;
mod tensor;
mod workers;

mod cpu;
pub mod reference;

pub use bind::{BindError, Selection};
pub use catalog::catalog;
pub use format::Format;
pub use kernel_set::{AttentionBatch, AttentionSequence, KernelSet};
pub use kv_cache::{KvCache, KvCacheError, KvDtype, KvLayout, Slot};
pub use matrix::{Matrix, PackError};
pub use rope::{RopeLayout, RopeTable};
pub use tensor::{Rows, RowsMut};
pub use workers::Workers;
