//! Native kernels, what they are and the machine they run on.
//!
//! The only crate with `unsafe`. It decides nothing: which kernel runs is in the plan that it is bound to.

#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(
        dead_code,
        reason = "only x86 has an instance of tiles and of sums that saturate"
    )
)]

pub mod detect;

mod catalog;

mod bind;
mod kernel_set;

pub mod format;
mod kv_cache;
mod matrix;
mod quant;
mod rope;
mod step;

mod memory;
mod panel_file;
mod parallel;
mod tensor;
mod workers;

mod cpu;
pub mod reference;

pub mod calibrate;

pub use bind::{BindError, MANY_ROWS, Selection};
pub use catalog::catalog;
pub use cpu::generic::logits::Largest;
pub use format::Format;
pub use kernel_set::KernelSet;
pub use kv_cache::{KvCache, KvCacheError, KvDtype, KvLayout};
pub use matrix::{Matrix, PackError, ReadPiece, packed_bytes, panel_layout};
pub use panel_file::{PanelFile, is_private};
pub use rope::{RopeLayout, RopeTable};
pub use step::{
    Activation, Attention, Buffer, ClassCost, Expert, LOGIT_ROWS, Linear, Mixture, Norm, ON_WANTED,
    Output, PREPARE, Program, Record, Sequence, Step, Unit, WRITE_CACHE, Weights,
};
pub use tensor::{Rows, RowsMut};
pub use workers::Workers;
