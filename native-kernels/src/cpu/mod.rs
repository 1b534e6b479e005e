//! Kernels of the processor: one algorithm each (`generic`), over vectors (`vector`) that every instruction set
//! provides in a file of its own, chosen once (`isa`).

pub(crate) mod isa;

pub(crate) mod generic;
pub(crate) mod panel;

pub(crate) mod vector;

pub(crate) mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx_int8;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx_vnni;
#[cfg(test)]
mod conformance;
#[cfg(test)]
pub(crate) mod emulated;
#[cfg(test)]
pub(crate) mod emulated_tiles;
#[cfg(all(test, unix))]
mod guard_pages;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon_dot;
#[cfg(test)]
mod rows_tests;
#[cfg(test)]
mod span_tests;
