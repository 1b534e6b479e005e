//! The four words in Rust: facts, policy, plan, and the resolver between them.
//!
//! Plain data and pure functions. This crate reads no file, no environment and no clock, holds no `unsafe`, and knows
//! neither WebAssembly nor the engine.

#![forbid(unsafe_code)]

pub mod facts;
pub mod policy;
pub mod requirement;

pub mod floor;
pub mod registry;
pub mod resolve;

pub mod decisions;
pub mod exchange;
pub mod plan;
pub mod render;
pub mod rule;

mod check;
mod costs;
mod digest;
mod memory;
mod needs;
mod settings;
pub mod text;
