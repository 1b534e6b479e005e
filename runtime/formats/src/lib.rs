//! Model files as checked configuration and tensors: GGUF, and Hugging Face folders with safetensors.
//!
//! A file is judged whole when it is opened: every tensor that the architecture needs is there, with the right shape,
//! inside the file. What is read is read, not mapped: a file that shrinks under a running process is an error that
//! names it, not a signal that ends it, and no page of it stays resident. One file may be mapped: that of packed weights,
//! which this program alone writes, and never twice (`packed`).

#![forbid(unsafe_code)]

pub mod config;
pub mod convert;
mod error;
mod gguf;
mod huggingface;
mod identity;
mod int4;
mod interleaved;
mod model_file;
mod packed;
mod positioned;
pub mod synthetic;
mod tensors;
mod vocabulary;

pub use config::{
    Activation, ExpertsConfig, LayerConfig, LongRope, ModelConfig, Reach, RopeConfig, RopeKind,
    RopeLayout, RopeScaling, Sizes,
};
pub use error::FormatError;
pub use identity::FileStamp;
pub use model_file::{ModelFile, open};
pub use packed::{Packed, PackedError, PackedFile, PackedKey, PackedWriter};
pub use tensors::TensorInfo;
pub use vocabulary::{GgufVocab, HuggingFaceTokenizer, TokenizerSource};
