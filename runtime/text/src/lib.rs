//! The text layer: text to tokens and back, chats to prompts, stop strings.
//!
//! It knows neither model files nor the engine: a vocabulary comes in as plain data, token ids go out. Text of a message
//! can never forge a turn: see [`ChatTemplate`].

#![forbid(unsafe_code)]

mod chat;
mod detokenizer;
mod error;
mod stop_strings;
mod tokenizer;
mod vocabulary;

pub use chat::{ChatOptions, ChatTemplate, Message, Segment, SegmentKind};
pub use detokenizer::Detokenizer;
pub use error::{TemplateError, TokenizerError};
pub use stop_strings::{StopStrings, Stopped};
pub use tokenizer::{Special, Tokenizer};
pub use vocabulary::{Algorithm, Vocabulary};
