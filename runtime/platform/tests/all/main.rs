//! The resolver, with platforms that are made up, machines that are on file, and no WebAssembly.

mod choice;
mod fake;
mod memory;
mod registry;
mod threads;
mod totality;
mod wishes;
