//! Text to tokens and back.
//!
//! Encoding has two steps: tokens that are found by their spelling (control tokens, and those that the vocabulary never
//! cuts) are taken out, then what is between them is cut by the vocabulary's algorithm. **Invariant:** the second step
//! never gives a control token, so what the first step does not accept cannot steer the model.

mod bpe;
mod build;
mod char_class;
mod guard;
mod hugging_face;
mod merge;
mod pieces;
mod pre_tokenizer;
mod sentence_piece;
mod special;

use crate::vocabulary::Kind;
use guard::overlaps;
pub(crate) use guard::{Guard, Guarded};
use merge::Merger;
use pieces::Pieces;
use special::{Added, AddedTokens, Part};

/// What becomes of text that spells a control token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// It becomes that token.
    Parse,
    /// It is text as any other.
    Plain,
}

/// A vocabulary, ready to encode and decode.
pub struct Tokenizer {
    pieces: Pieces,
    kinds: Vec<Kind>,
    added: AddedTokens,
    encoder: Encoder,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    eog: Vec<u32>,
    /// Decoding drops the space that encoding put before the text.
    strip_space: bool,
}

enum Encoder {
    Bpe(bpe::Bpe),
    SentencePiece(sentence_piece::SentencePiece),
    HuggingFace(Box<hugging_face::HuggingFace>),
}

impl Tokenizer {
    /// The tokens of `text`, without any that stand before or after a text.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        let parts = self.added.split(text, |token, _| {
            special == Special::Parse || token.kind == Kind::UserDefined
        });
        self.encode_parts(text, &parts)
    }

    /// The tokens of `text`; control tokens are recognised outside of the guarded ranges alone.
    pub(crate) fn encode_guarded(&self, text: &str, guard: Guard<'_>) -> Vec<u32> {
        let parts = self.added.split(text, |token, range| {
            !(guard.guarded.contains(token.id) && overlaps(guard.ranges, &range))
        });
        self.encode_parts(text, &parts)
    }

    fn encode_parts(&self, text: &str, parts: &[Part]) -> Vec<u32> {
        if let Encoder::HuggingFace(encoder) = &self.encoder {
            let plain = |id: u32| !matches!(self.kinds.get(id as usize), Some(Kind::Control));
            return encoder.encode(text, parts, plain);
        }
        let mut merger = Merger::default();
        let mut out = Vec::new();
        let mut first = true;
        for part in parts {
            let (text, id) = match part {
                Part::Text(range) => (&text[range.clone()], None),
                Part::Token { id, .. } => ("", Some(*id)),
            };
            let steers = id.is_some_and(|id| self.is_special(id));
            match &self.encoder {
                Encoder::SentencePiece(pieces) if !steers => {
                    pieces.encode(text, first, &mut merger, &mut out)
                }
                Encoder::Bpe(bpe) => bpe.encode(text, &mut merger, &mut out),
                _ => {}
            }
            out.extend(id);
            first = steers;
        }
        out
    }

    /// `ids` with the token that begins a text before them, where the vocabulary asks for one and it is not there.
    pub fn with_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(bos) = self.bos
            && self.add_bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    /// The text of `ids`. Bytes that are no UTF-8 become U+FFFD; ids beyond the vocabulary give nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(self.decoded_bytes(id, skip_special));
        }
        let text = bytes.strip_prefix(b" ").filter(|_| self.strip_space);
        String::from_utf8_lossy(text.unwrap_or(&bytes)).into_owned()
    }

    /// The bytes that a token adds to a text: none for a control token that is skipped.
    pub(crate) fn decoded_bytes(&self, id: u32, skip_special: bool) -> &[u8] {
        if skip_special && self.is_special(id) {
            return &[];
        }
        self.pieces.get(id)
    }

    /// Does decoding drop a space at the start of a text?
    pub(crate) fn strips_space(&self) -> bool {
        self.strip_space
    }

    /// The text of one token alone; bytes that are no UTF-8 become U+FFFD.
    pub fn piece(&self, id: u32) -> String {
        String::from_utf8_lossy(self.pieces.get(id)).into_owned()
    }

    /// The bytes of one token alone; none for an id beyond the vocabulary.
    pub fn piece_bytes(&self, id: u32) -> &[u8] {
        self.pieces.get(id)
    }

    /// Is it a control token?
    pub fn is_special(&self, id: u32) -> bool {
        matches!(
            self.kinds.get(id as usize),
            Some(Kind::Control | Kind::Unknown)
        )
    }

    /// The spelling of a control token.
    pub fn special_text(&self, id: u32) -> Option<String> {
        self.is_special(id).then(|| self.piece(id))
    }

    /// The tokens that end an answer, sorted.
    pub fn eog_ids(&self) -> &[u32] {
        &self.eog
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Does a text begin with [`Tokenizer::bos`]?
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Does the vocabulary ask for [`Tokenizer::eos`] after a text? A prompt never ends with it.
    pub fn adds_eos(&self) -> bool {
        self.add_eos
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The tokens that must not come out of guarded text: control tokens, and of those that the vocabulary never cuts
    /// the ones that a template writes.
    pub(crate) fn guarded(&self, writes: impl Fn(&str) -> bool) -> Guarded {
        let turns = |token: &&Added| {
            let text = token.text.as_str();
            token.kind != Kind::UserDefined || (!text.trim().is_empty() && writes(text))
        };
        Guarded::new(self.added.iter().filter(turns).cloned().collect())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eog", &self.eog)
            .finish_non_exhaustive()
    }
}
