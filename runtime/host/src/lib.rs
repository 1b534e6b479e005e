//! Sandboxed platform components on Wasmtime: the only crate that knows it.
//!
//! A component is loaded (`load`), which refuses whatever is not exactly a platform plugin; compiled, or taken from the
//! cache of this installation (`cache`, `aot`); and seen as a [`plinth_platform::policy::Platform`] (`guest`), every call
//! of which is bounded (`sandbox`). Nothing is linked but `log`.

#![deny(unsafe_code)]

mod guest;
mod host;
mod inspect;
mod load;
mod sandbox;

mod aot;
mod cache;
mod trust;

mod bindings;
mod convert;

pub use guest::Guest;
pub use host::{Host, HostOptions, LogSink};
pub use inspect::{Inspection, inspect};
pub use load::LoadError;
pub use sandbox::Limits;
pub use trust::digest;
