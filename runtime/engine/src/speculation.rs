//! Speculative decoding: what a sequence wrote before is proposed as its continuation, and checked in one step.
//!
//! ```text
//! tokens  … the cat sat on the mat and the cat sat     the last n tokens occurred before:
//!             ^^^^^^^^^^^ on the mat                    propose what followed
//! ```
//! A draft decides nothing. Each row's token is drawn from the model's logits in the ordinary way, one after another, and
//! the row behind it counts only if it was computed for the very token that was drawn. So the distribution stays what it
//! was, and with it every draw of a seed.
//!
//! **Source**: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", algorithm 1, for a draft
//! model that is certain of its token; drafts as in Saxena, "Prompt Lookup Decoding".

mod ngrams;

use crate::request::TokenId;
use ngrams::Ngrams;
use plinth_kernels::MANY_ROWS;

/// Most rows of a step with drafts whose cost is known. No more than [`plinth_kernels::KernelSet::few_rows`] in any case:
/// from one more on products run on other kernels, which round otherwise, and a draft must not change what a row comes to.
pub(crate) const MOST_ROWS: usize = MANY_ROWS - 1;

/// What a step of so many rows costs, in steps of one row. Rows are multiplied in groups of 8, 4, 2 and 1, so three cost
/// as much as four.
///
/// Measured, those of 5, 7, 9 and 10 rows interpolated: SmolLM2-135M, Q4_1, 2 threads of a Xeon with AMX, 4.2 ms a row.
/// Where weights come from memory more slowly, further rows cost less than this. To repeat:
/// `plinth bench MODEL -p 0 -n 64 --batch 2,3,4,6,8,11`, and divide the number of sequences by how many times as many
/// tokens a second they had as one.
const COST: [f32; MANY_ROWS] = [0.0, 1.0, 1.1, 1.7, 1.8, 2.4, 2.5, 2.5, 2.5, 3.2, 3.3, 3.8];

/// Tokens that may follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Draft {
    pub tokens: Vec<TokenId>,
    /// Tokens before them that occurred before.
    matched: usize,
}

/// Makes the drafts of one sequence, and remembers how good they were.
#[derive(Debug)]
pub(crate) struct Drafter {
    ngrams: Ngrams,
    /// Chance that a drafted token is drawn, by the length of the match.
    rates: [f32; ngrams::LONGEST + 1],
}

/// Chances before anything was tried, by the length of the match: longer ones say more.
const FIRST_RATES: [f32; ngrams::LONGEST + 1] = [0.0, 0.0, 0.3, 0.5, 0.7];

/// Weight of one token in a chance.
const LEARN: f32 = 0.15;

/// How fast a chance returns to what it was at first while it is too low to be tried: after some tens of matches, one is.
const FORGET: f32 = 0.02;

impl Default for Drafter {
    fn default() -> Self {
        Self {
            ngrams: Ngrams::default(),
            rates: FIRST_RATES,
        }
    }
}

impl Drafter {
    /// Up to `most` tokens that may follow `tokens`. `tokens` have only grown since the last call.
    pub fn propose(&mut self, tokens: &[TokenId], most: usize) -> Option<Draft> {
        if most == 0 {
            return None;
        }
        let (matched, next) = self.ngrams.find(tokens)?;
        let mut draft = Vec::with_capacity(most);
        for at in next..next + most {
            // What follows may reach its own end: a text that repeats itself goes on repeating.
            let known = tokens.get(at).or_else(|| draft.get(at - tokens.len()));
            draft.push(*known.expect("a draft begins within the tokens and has no gap"));
        }
        Some(Draft {
            tokens: draft,
            matched,
        })
    }

    /// Chance that a token of this draft is drawn, if the one before it was.
    pub fn rate(&self, draft: &Draft) -> f32 {
        self.rates[draft.matched]
    }

    /// The draft was not worth its rows.
    pub fn passed(&mut self, draft: &Draft) {
        let rate = &mut self.rates[draft.matched];
        *rate += (FIRST_RATES[draft.matched] - *rate) * FORGET;
    }

    /// Of the draft's tokens the first `accepted` were drawn.
    pub fn tried(&mut self, draft: &Draft, accepted: usize) {
        let rate = &mut self.rates[draft.matched];
        for _ in 0..accepted {
            *rate += (1.0 - *rate) * LEARN;
        }
        if accepted < draft.tokens.len() {
            *rate -= *rate * LEARN;
        }
    }
}

/// How many tokens to draft for each of some sequences, given its rate and the most that it can use: what makes a step of
/// at least `rows` and up to `rows + room` rows advance most for what it costs.
pub(crate) fn allot(rows: usize, room: usize, sequences: &[(f32, usize)]) -> Vec<usize> {
    let mut chances = Vec::new();
    for (n, &(rate, most)) in sequences.iter().enumerate() {
        let powers = std::iter::successors(Some(rate), |chance| Some(chance * rate));
        chances.extend(powers.take(most.min(room)).map(|chance| (chance, n)));
    }
    // Stable: of equal chances those of the sequence that arrived first.
    chances.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut best = (0, rows as f32 / cost(rows));
    let mut advance = rows as f32;
    for (n, (chance, _)) in chances.iter().take(room).enumerate() {
        advance += chance;
        let speed = advance / cost(rows + n + 1);
        if speed > best.1 {
            best = (n + 1, speed);
        }
    }
    let mut counts = vec![0; sequences.len()];
    chances[..best.0].iter().for_each(|&(_, n)| counts[n] += 1);
    counts
}

fn cost(rows: usize) -> f32 {
    COST.get(rows).copied().unwrap_or(f32::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_what_followed_and_goes_on_repeating() {
        let check = |tokens: &[TokenId], most, want: &[TokenId]| {
            let draft = Drafter::default().propose(tokens, most);
            assert_eq!(draft.unwrap_or_default().tokens, want, "{tokens:?}");
        };
        check(&[1, 2, 3, 4, 5, 1, 2], 2, &[3, 4]);
        check(&[1, 2, 3, 1, 2], 7, &[3, 1, 2, 3, 1, 2, 3]);
        check(&[8, 8, 8], 4, &[8, 8, 8, 8]);
        check(&[1, 2, 3], 4, &[]);
        check(&[1, 2, 3, 1, 2], 0, &[]);
        // The latest, and a longer match before a later one.
        check(&[1, 2, 5, 1, 2, 6, 1, 2], 1, &[6]);
        check(&[9, 1, 2, 5, 7, 1, 2, 6, 9, 1, 2], 1, &[5]);
    }

    #[test]
    fn rows_go_where_they_pay() {
        // Sure of it: as many as one pass over the weights takes. Unsure: a second row costs next to nothing.
        assert_eq!(allot(1, 10, &[(0.98, 10)]), [7]);
        assert_eq!(allot(1, 10, &[(0.3, 10)]), [1]);
        assert_eq!(allot(1, 10, &[(0.05, 10)]), [0]);
        // Never more than there is room for, or than the sequence can use.
        assert_eq!(allot(1, 1, &[(0.98, 10)]), [1]);
        assert_eq!(allot(1, 10, &[(0.98, 3)]), [3]);
        assert_eq!(allot(1, 0, &[(0.98, 3)]), [0]);
        // Two share a step; many leave no row that pays.
        assert_eq!(allot(2, 9, &[(0.98, 10), (0.05, 10)]), [6, 0]);
        assert_eq!(allot(2, 9, &[(0.3, 10), (0.3, 10)]), [0, 0]);
        assert_eq!(allot(8, 3, &[(0.98, 10); 8]), [0; 8]);
        assert_eq!(allot(30, 0, &[(0.98, 10)]), [0]);
    }

    #[test]
    fn bad_drafts_are_given_up_and_tried_again() {
        let mut drafter = Drafter::default();
        let draft = drafter.propose(&[1, 2, 3, 1, 2], 1).expect("1 2 occurred");
        let tries = |drafter: &mut Drafter, accepted: usize| {
            let mut tried = 0;
            for _ in 0..400 {
                if allot(1, 1, &[(drafter.rate(&draft), 1)]) == [1] {
                    drafter.tried(&draft, accepted);
                    tried += 1;
                } else {
                    drafter.passed(&draft);
                }
            }
            tried
        };
        let hopeless = tries(&mut drafter, 0);
        assert!((4..160).contains(&hopeless), "{hopeless}");
        assert!(tries(&mut drafter, 1) > 390);
    }
}
