//! Byte-level byte-pair encoding.

use super::merge::{Merger, NONE};
use super::pieces::Pieces;
use super::pre_tokenizer::{PreTokenizer, Rules};
use crate::error::TokenizerError;
use crate::vocabulary::Kind;
use std::collections::HashMap;

/// Two neighbours to the rank of their merge and the token that they make.
type Merges = HashMap<(u32, u32), (u32, u32)>;

/// Merges, and the cutter of words.
pub(super) struct Bpe {
    pre_tokenizer: PreTokenizer,
    /// The token of each byte.
    bytes: [u32; 256],
    merges: Merges,
    /// Words that are tokens, where the rules say that they are taken whole.
    words: Option<HashMap<Box<[u8]>, u32>>,
}

/// What the merge loop is built from.
pub(super) struct Source<'v> {
    pub(super) rules: Rules,
    pub(super) pieces: &'v Pieces,
    pub(super) tokens: &'v [String],
    pub(super) kinds: &'v [Kind],
    pub(super) merges: &'v [String],
    /// Stands for bytes without a token.
    pub(super) unknown: Option<u32>,
}

impl Bpe {
    pub(super) fn new(source: &Source<'_>) -> Result<Self, TokenizerError> {
        let plain = |id: u32| {
            matches!(
                source.kinds[id as usize],
                Kind::Normal | Kind::UserDefined | Kind::Byte
            )
        };
        let ids = || (0..source.kinds.len() as u32).filter(|&id| plain(id));
        let mut bytes = [NONE; 256];
        for id in ids() {
            if let (&[byte], Kind::Normal | Kind::Byte) =
                (source.pieces.get(id), source.kinds[id as usize])
            {
                bytes[usize::from(byte)] = id;
            }
        }
        fill_missing(&mut bytes, source.unknown)?;
        let words = source.rules.ignore_merges.then(|| {
            let pieces = ids().map(|id| (Box::from(source.pieces.get(id)), id));
            pieces.collect()
        });
        Ok(Self {
            pre_tokenizer: PreTokenizer::new(source.rules),
            bytes,
            merges: merges(source, plain)?,
            words,
        })
    }

    pub(super) fn encode(&self, text: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        self.pre_tokenizer
            .split(text, |word| self.encode_word(word, merger, out));
    }

    fn encode_word(&self, word: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        if let Some(&id) = self
            .words
            .as_ref()
            .and_then(|words| words.get(word.as_bytes()))
        {
            return out.push(id);
        }
        merger.clear();
        for (at, byte) in word.bytes().enumerate() {
            merger.push(at, at + 1, self.bytes[usize::from(byte)]);
        }
        merger.merge(|left, right| self.merges.get(&(left.id, right.id)).copied());
        out.extend(
            merger
                .symbols()
                .map(|symbol| symbol.id)
                .filter(|&id| id != NONE),
        );
    }
}

/// Published vocabularies lack some control characters, which encode to nothing; one that lacks printable ASCII is none.
fn fill_missing(bytes: &mut [u32; 256], unknown: Option<u32>) -> Result<(), TokenizerError> {
    for (byte, id) in (0..=u8::MAX).zip(bytes).filter(|(_, id)| **id == NONE) {
        match unknown {
            Some(unknown) => *id = unknown,
            None if matches!(byte, b' '..=b'~') => return Err(TokenizerError::Byte { byte }),
            None => {}
        }
    }
    Ok(())
}

/// Parses the merges. One whose parts or outcome are no tokens of text can never apply, and is left out.
fn merges(source: &Source<'_>, plain: impl Fn(u32) -> bool) -> Result<Merges, TokenizerError> {
    let texts = source.tokens.iter().map(String::as_str).zip(0u32..);
    let by_text: HashMap<&str, u32> = texts.filter(|&(_, id)| plain(id)).collect();
    let mut merges = HashMap::with_capacity(source.merges.len());
    let mut joined = String::new();
    for (index, merge) in source.merges.iter().enumerate() {
        // A part may itself begin with the separator only in vocabularies that are not byte-level.
        let Some((left, right)) = merge.split_once(' ') else {
            return Err(TokenizerError::Entry {
                field: "merges",
                index,
                found: format!("'{merge}'"),
                expected: "two parts with a space between them",
            });
        };
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let ids = (
            by_text.get(left),
            by_text.get(right),
            by_text.get(joined.as_str()),
        );
        if let (Some(&left), Some(&right), Some(&whole)) = ids {
            merges.entry((left, right)).or_insert((index as u32, whole));
        }
    }
    Ok(merges)
}
