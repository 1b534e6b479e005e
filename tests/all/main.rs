//! The integration tests, one binary.

mod answers;
mod input;
mod plans;
mod readme;
mod reference;
mod replay;
mod support;
mod tidy;
