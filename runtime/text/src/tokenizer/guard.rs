//! Which tokens must not come out of which parts of a text.

use super::special::{Added, AddedTokens, Part};
use std::fmt;
use std::ops::Range;

/// Tokens that steer the model, by their spellings.
pub(crate) struct Guarded {
    tokens: AddedTokens,
    /// Sorted.
    ids: Vec<u32>,
}

/// Where in a text guarded tokens are not recognised.
#[derive(Clone, Copy)]
pub(crate) struct Guard<'a> {
    /// Byte ranges in order, which do not overlap; a guarded token that shares a byte with one is not recognised.
    pub(crate) ranges: &'a [Range<usize>],
    pub(crate) guarded: &'a Guarded,
}

impl Guarded {
    pub(super) fn new(tokens: Vec<Added>) -> Self {
        let mut ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        ids.sort_unstable();
        let tokens = AddedTokens::new(tokens);
        Self { tokens, ids }
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// The guarded tokens that are recognised in `text` outside of `ranges`, in order.
    pub(crate) fn found(&self, text: &str, ranges: &[Range<usize>]) -> Vec<u32> {
        let parts = self
            .tokens
            .split(text, |_, range| !overlaps(ranges, &range));
        let ids = parts.into_iter().filter_map(|part| match part {
            Part::Token { id, .. } => Some(id),
            Part::Text(_) => None,
        });
        ids.collect()
    }

    /// The ranges of `text` that spell a guarded token, or that could once it stands between other text: an edge (white
    /// space aside) that completes one, or text that is the middle of one.
    pub(crate) fn spans(&self, text: &str) -> Vec<Range<usize>> {
        let parts = self.tokens.split(text, |_, _| true).into_iter();
        let mut spans: Vec<Range<usize>> = parts
            .filter_map(|part| match part {
                Part::Token { range, .. } => Some(range),
                Part::Text(_) => None,
            })
            .collect();
        let start = text.len() - text.trim_start().len();
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return spans;
        }
        let end = start + trimmed.len();
        let (mut head, mut tail) = (0, 0);
        for spelling in self.tokens.iter().map(|token| token.text.as_str()) {
            if spelling.contains(trimmed) {
                return std::iter::once(start..end).collect();
            }
            let cuts = || spelling.char_indices().map(|(at, _)| at).skip(1);
            let suffix = cuts().find(|&at| trimmed.starts_with(&spelling[at..]));
            let prefix = cuts().filter(|&at| trimmed.ends_with(&spelling[..at]));
            head = head.max(suffix.map_or(0, |at| spelling.len() - at));
            tail = tail.max(prefix.last().unwrap_or(0));
        }
        spans.extend(
            [start..start + head, end - tail..end]
                .into_iter()
                .filter(|span| !span.is_empty()),
        );
        spans
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guarded").field(&self.ids).finish()
    }
}

/// Does `range` share a byte with one of `ranges`, which are in order?
pub(super) fn overlaps(ranges: &[Range<usize>], range: &Range<usize>) -> bool {
    let next = ranges.partition_point(|other| other.end <= range.start);
    ranges
        .get(next)
        .is_some_and(|other| other.start < range.end)
}
