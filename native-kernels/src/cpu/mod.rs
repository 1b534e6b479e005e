//! Kernels of the processor: one algorithm each (`generic`), over vectors (`vector`) that every instruction set
//! provides in a file of its own, chosen once (`isa`).

pub(crate) mod generic;
pub(crate) mod isa;
pub(crate) mod panel;
pub(crate) mod portable;
pub(crate) mod vector;
