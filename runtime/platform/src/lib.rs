//! The four words in Rust: facts, policy, plan, and the resolver between them.
//!
//! Plain data and pure functions. This crate reads no file, no environment and no clock, holds no `unsafe`, and knows
//! neither WebAssembly nor the engine.

#![forbid(unsafe_code)]

pub mod facts;
pub mod policy;
