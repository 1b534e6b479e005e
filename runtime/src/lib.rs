//! Plinth as a library: what the `plinth` command is made of.
//!
//! `cli` is what the user wrote, `startup` puts the rooms together, `commands` are the verbs.

#![forbid(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod error;

mod answer;
mod builtin;
mod calibration;
mod catalogue;
mod library;
mod pack_cache;
mod platforms;
mod session;
pub mod startup;

mod progress;
