//! Sandboxed platform components on Wasmtime.

#![forbid(unsafe_code)]
