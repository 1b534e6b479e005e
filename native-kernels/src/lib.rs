//! Native kernels, what they are and the machine they run on.
//!
//! The only crate with `unsafe`. It decides nothing: which kernel runs is in the plan that it is bound to.

pub mod detect;
pub mod format;
mod quant;

pub use format::Format;
