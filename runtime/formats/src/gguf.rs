//! GGUF files, versions 2 and 3 (source: `docs/gguf.md` of ggml).

mod config;
mod reader;
mod value;
mod vocab;
pub(crate) mod write;

pub(crate) use config::{Factors, attention_scale, model_config, rope_layout, yarn_is_truncated};
pub(crate) use reader::{Gguf, read};
pub(crate) use value::{Array, Metadata, Value};
pub(crate) use vocab::vocabulary;

/// The first four bytes of a file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";

/// Tensor data begins at, and each tensor lies at, a multiple of this unless the file says otherwise.
pub(crate) const DEFAULT_ALIGNMENT: u64 = 32;
