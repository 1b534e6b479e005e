//! Model files as checked configuration and tensors.

#![forbid(unsafe_code)]
