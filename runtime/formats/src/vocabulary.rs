//! What a tokenizer is made from, as the file holds it. Making one is another crate's work.

use std::path::PathBuf;

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizerSource {
    /// The metadata of a GGUF file.
    Gguf(GgufVocab),
    /// The files of a Hugging Face folder.
    HuggingFace(HuggingFaceTokenizer),
}

/// The vocabulary of a GGUF file (keys `tokenizer.ggml.*`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocab {
    /// `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// Name of the pre-tokenizer, for BPE.
    pub pre: Option<String>,
    /// Text of each token, in order of id.
    pub tokens: Vec<String>,
    /// Score of each token, for SentencePiece; otherwise empty.
    pub scores: Vec<f32>,
    /// Type of each token (1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte); empty means all normal.
    pub types: Vec<u32>,
    /// Merges in order of rank, each "left right", for BPE; otherwise empty.
    pub merges: Vec<String>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<u32>,
    /// Ends a turn of a chat.
    pub eot: Option<u32>,
    /// Is `bos` put before a text?
    pub add_bos: Option<bool>,
    /// Is `eos` put after a text?
    pub add_eos: Option<bool>,
    /// Is a space put before a text, for SentencePiece?
    pub add_space_prefix: Option<bool>,
}

/// The tokenizer files of a Hugging Face folder.
#[derive(Clone, Debug, PartialEq)]
pub struct HuggingFaceTokenizer {
    /// `tokenizer.json`.
    pub tokenizer_json: PathBuf,
    /// Contents of `tokenizer_config.json`, where there is one.
    pub config: Option<serde_json::Value>,
    /// Ids that end an answer, from `generation_config.json` and `config.json`.
    pub eos_ids: Vec<u32>,
}
