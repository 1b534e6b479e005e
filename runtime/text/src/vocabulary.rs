//! What a tokenizer is built from: the vocabulary as a model file holds it.

/// How a vocabulary cuts text into tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Byte-level byte-pair encoding: a list of merges, and a pre-tokenizer that is known by name (`gpt2` in GGUF).
    #[default]
    Bpe,
    /// SentencePiece: merges by score, unknown characters as bytes (`llama` in GGUF).
    SentencePiece,
}

/// A vocabulary; the fields are named after the keys `tokenizer.ggml.*` of a GGUF file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocabulary {
    /// How text is cut.
    pub model: Algorithm,
    /// Name of the pre-tokenizer, for BPE; none means `default`.
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
    /// Is `bos` put before a text? None: as the pre-tokenizer or the algorithm has it.
    pub add_bos: Option<bool>,
    /// Is `eos` put after a text?
    pub add_eos: Option<bool>,
    /// Is a space put before a text, for SentencePiece? None means yes.
    pub add_space_prefix: Option<bool>,
}

/// What a token is, beside its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A piece of text.
    Normal,
    /// Stands for what the vocabulary lacks.
    Unknown,
    /// Steers the model; never the outcome of plain text.
    Control,
    /// A piece of text that is never cut, found before all others.
    UserDefined,
    /// Reserved.
    Unused,
    /// One byte, spelled `<0xNN>`.
    Byte,
}

impl Kind {
    /// The kind that GGUF writes as this number.
    pub(crate) fn from_number(number: u32) -> Option<Kind> {
        Some(match number {
            1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => return None,
        })
    }
}
