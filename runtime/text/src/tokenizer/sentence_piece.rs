//! SentencePiece with scores: characters merge to the token of the highest score; what is no token becomes bytes.

use super::merge::{Merger, NONE, Symbol};
use super::pieces::byte_token;
use crate::error::TokenizerError;
use crate::vocabulary::{Kind, Vocabulary};
use std::collections::HashMap;

/// What SentencePiece writes for a space.
const SPACE: &str = "▁";

/// Tokens by text, with their scores.
pub(super) struct SentencePiece {
    tokens: HashMap<Box<str>, (u32, u32)>,
    /// The token of each byte.
    bytes: [u32; 256],
    /// Where not every byte has a token: what stands for a character.
    unknown: Option<u32>,
    pub(super) space_prefix: bool,
}

impl SentencePiece {
    pub(super) fn new(
        vocabulary: &Vocabulary,
        kinds: &[Kind],
        unknown: Option<u32>,
    ) -> Result<Self, TokenizerError> {
        let mut tokens = HashMap::with_capacity(kinds.len());
        let mut bytes = [NONE; 256];
        for (index, (text, kind)) in vocabulary.tokens.iter().zip(kinds).enumerate() {
            let score = vocabulary.scores[index];
            if score.is_nan() {
                return Err(TokenizerError::Entry {
                    field: "scores",
                    index,
                    found: "NaN".to_owned(),
                    expected: "a number",
                });
            }
            match kind {
                Kind::Normal | Kind::UserDefined => {
                    tokens.insert(text.as_str().into(), (preference(score), index as u32));
                }
                Kind::Byte => match byte_token(text) {
                    Some(byte) => bytes[usize::from(byte)] = index as u32,
                    None => {
                        return Err(TokenizerError::Entry {
                            field: "tokens",
                            index,
                            found: format!("'{text}'"),
                            expected: "'<0xNN>', as its type says that it is a byte",
                        });
                    }
                },
                _ => {}
            }
        }
        let missing = (0..=u8::MAX).find(|&byte| bytes[usize::from(byte)] == NONE);
        if let (Some(byte), None) = (missing, unknown) {
            return Err(TokenizerError::Byte { byte });
        }
        Ok(Self {
            tokens,
            bytes,
            unknown: missing.and(unknown),
            space_prefix: vocabulary.add_space_prefix.unwrap_or(true),
        })
    }

    /// `first`: nothing stands before this text, or a control token does. Then a space is put before it, even where it is
    /// empty, as it is before a token that is never cut.
    pub(super) fn encode(&self, text: &str, first: bool, merger: &mut Merger, out: &mut Vec<u32>) {
        let prefix = if first && self.space_prefix {
            SPACE
        } else {
            ""
        };
        let text = format!("{prefix}{}", text.replace(' ', SPACE));
        merger.clear();
        for (start, c) in text.char_indices() {
            let end = start + c.len_utf8();
            let id = self
                .tokens
                .get(&text[start..end])
                .map_or(NONE, |&(_, id)| id);
            merger.push(start, end, id);
        }
        merger.merge(|left, right| self.tokens.get(&text[left.start..right.end]).copied());
        for symbol in merger.symbols() {
            self.push_symbol(&text, symbol, out);
        }
    }

    fn push_symbol(&self, text: &str, symbol: &Symbol, out: &mut Vec<u32>) {
        if symbol.id != NONE {
            return out.push(symbol.id);
        }
        let bytes = text[symbol.start..symbol.end]
            .bytes()
            .map(|b| self.bytes[usize::from(b)]);
        match self.unknown {
            Some(unknown) if bytes.clone().any(|id| id == NONE) => out.push(unknown),
            _ => out.extend(bytes),
        }
    }
}

/// A number that is the smaller, the higher the score.
fn preference(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // Minus zero is zero.
    if bits >> 31 == 0 {
        !(bits | 1 << 31)
    } else {
        bits
    }
}
