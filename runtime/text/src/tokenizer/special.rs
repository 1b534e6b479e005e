//! Finds the tokens that are recognised in a text before it is cut into words.

use crate::vocabulary::Kind;
use std::ops::Range;

/// A token that is found by its spelling.
#[derive(Clone, Debug)]
pub(super) struct Added {
    pub(super) text: String,
    pub(super) id: u32,
    pub(super) kind: Kind,
    /// White space on these sides belongs to the token.
    pub(super) strip_left: bool,
    pub(super) strip_right: bool,
    /// Found only where no word goes on at either side.
    pub(super) single_word: bool,
}

/// A stretch of a text: one token, or text that is still to be encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Token { id: u32, range: Range<usize> },
    Text(Range<usize>),
}

/// The tokens that are found by their spelling, by first byte, the longest first.
pub(super) struct AddedTokens {
    by_first_byte: Vec<Vec<Added>>,
}

impl AddedTokens {
    pub(super) fn new(tokens: Vec<Added>) -> Self {
        let mut by_first_byte = vec![Vec::new(); 256];
        for token in tokens {
            if let Some(&first) = token.text.as_bytes().first() {
                by_first_byte[usize::from(first)].push(token);
            }
        }
        for bucket in &mut by_first_byte {
            bucket.sort_by_key(|token| std::cmp::Reverse(token.text.len()));
        }
        Self { by_first_byte }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Added> {
        self.by_first_byte.iter().flatten()
    }

    /// Cuts `text` at the tokens that `accept` lets through: the leftmost first, of those at one place the longest.
    pub(super) fn split(
        &self,
        text: &str,
        accept: impl Fn(&Added, Range<usize>) -> bool,
    ) -> Vec<Part> {
        let mut parts = Vec::new();
        let (mut done, mut at) = (0, 0);
        while at < text.len() {
            let Some((token, range)) = self.find_at(text, at, done, &accept) else {
                at += 1;
                continue;
            };
            if done < range.start {
                parts.push(Part::Text(done..range.start));
            }
            (done, at) = (range.end, range.end);
            parts.push(Part::Token {
                id: token.id,
                range,
            });
        }
        if done < text.len() {
            parts.push(Part::Text(done..text.len()));
        }
        parts
    }

    /// The token spelled at `at`, and the range that it takes: `done` and after.
    fn find_at(
        &self,
        text: &str,
        at: usize,
        done: usize,
        accept: impl Fn(&Added, Range<usize>) -> bool,
    ) -> Option<(&Added, Range<usize>)> {
        let bytes = &text.as_bytes()[at..];
        let token = self.by_first_byte[usize::from(bytes[0])]
            .iter()
            .find(|token| {
                let range = at..at + token.text.len();
                bytes.starts_with(token.text.as_bytes())
                    && (!token.single_word || stands_alone(text, &range))
                    && accept(token, range)
            })?;
        let (mut start, mut end) = (at, at + token.text.len());
        if token.strip_left {
            start = done + text[done..start].trim_end().len();
        }
        if token.strip_right {
            end = text.len() - text[end..].trim_start().len();
        }
        Some((token, start..end))
    }
}

fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let in_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    !in_word(text[..range.start].chars().next_back()) && !in_word(text[range.end..].chars().next())
}
