//! The integration tests, one binary.

mod answers;
mod calibration;
mod compare;
mod foresight;
mod input;
mod machines;
mod out_of_tree;
mod pack_cache;
mod plans;
mod readme;
mod reference;
mod replay;
mod roofline;
mod support;
mod tidy;
