//! The text layer against other libraries' results, and its promises as properties.

mod chat;
mod errors;
mod stream;
mod support;
mod tokenizer;
