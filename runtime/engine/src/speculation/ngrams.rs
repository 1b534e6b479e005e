//! Where the last tokens of a sequence occurred before.

use crate::request::TokenId;
use std::collections::HashMap;

/// Longest run of tokens that is looked up, and the shortest: a single token says little of what follows it.
pub(super) const LONGEST: usize = 4;
const SHORTEST: usize = 2;

/// Runs of two to four tokens, and what stands behind the latest occurrence of each. A new token adds three entries and a
/// look-up asks for three, whatever the length of the sequence.
#[derive(Debug, Default)]
pub(super) struct Ngrams {
    /// Position after the latest occurrence.
    after: HashMap<Gram, usize>,
    /// Tokens whose runs are known: those that end before this position.
    known: usize,
}

/// A run of tokens, filled up with an id that no vocabulary has.
type Gram = [TokenId; LONGEST];

fn gram(tokens: &[TokenId]) -> Gram {
    let mut gram = [TokenId::MAX; LONGEST];
    gram[..tokens.len()].copy_from_slice(tokens);
    gram
}

impl Ngrams {
    /// The longest run at the end of `tokens` that occurred before, as its length and the position after its latest earlier
    /// occurrence. `tokens` have only grown since the last call.
    pub fn find(&mut self, tokens: &[TokenId]) -> Option<(usize, usize)> {
        // The run at the very end has nothing behind it yet.
        for end in self.known + 1..tokens.len() {
            for len in SHORTEST..=LONGEST.min(end) {
                self.after.insert(gram(&tokens[end - len..end]), end);
            }
        }
        self.known = self.known.max(tokens.len().saturating_sub(1));
        let lengths = (SHORTEST..=LONGEST.min(tokens.len())).rev();
        lengths.into_iter().find_map(|len| {
            let end = self.after.get(&gram(&tokens[tokens.len() - len..]))?;
            Some((len, *end))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(tokens: &[TokenId]) -> Option<(usize, usize)> {
        let lengths = (SHORTEST..=LONGEST.min(tokens.len())).rev();
        lengths.into_iter().find_map(|len| {
            let last = &tokens[tokens.len() - len..];
            let ends = (len..tokens.len()).rev();
            let end = ends
                .into_iter()
                .find(|end| &tokens[end - len..*end] == last)?;
            Some((len, end))
        })
    }

    proptest! {
        #[test]
        fn a_growing_sequence_is_searched_as_if_from_its_beginning(
            tokens in proptest::collection::vec(0u32..4, 0..60),
            steps in proptest::collection::vec(1usize..9, 1..60),
        ) {
            let mut ngrams = Ngrams::default();
            let mut len = 0;
            for step in steps {
                len = tokens.len().min(len + step);
                prop_assert_eq!(ngrams.find(&tokens[..len]), naive(&tokens[..len]));
            }
        }
    }
}
