//! The tokens of a step in the form that kernels read, complete when it is made.

use crate::kv_cache::BlockId;
use crate::request::TokenId;
use crate::scheduler::Share;
use crate::sequence::Sequence;
use plinth_kernels::Sequence as Rows;
use std::ops::Range;

/// One step's tokens, those of a sequence side by side.
pub(crate) struct Batch {
    /// `[rows]`: what goes in.
    pub tokens: Vec<TokenId>,
    /// Sequences that take part.
    spans: Vec<Span>,
    /// Their block tables, one after another.
    tables: Vec<BlockId>,
    /// Rows whose logits are wanted, ascending.
    pub wanted: Vec<Wanted>,
}

/// Rows and keys of a sequence.
struct Span {
    query_start: usize,
    query_len: usize,
    context_len: usize,
    table: Range<usize>,
}

/// A row whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Row of the batch.
    pub row: usize,
    /// Position in `Scheduler::running`.
    pub sequence: usize,
    /// What for.
    pub purpose: Purpose,
}

/// What logits are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Drawing the next token, if the sequence came this far.
    Draw {
        /// The token that the sequence's next row was computed for; it counts only if this one is drawn.
        draft: Option<TokenId>,
    },
    /// The log probability of a prompt token.
    Score {
        /// Where it stands.
        position: usize,
        /// Which it is.
        token: TokenId,
    },
}

impl Batch {
    /// The step that `shares` describes.
    pub fn new(running: &[Sequence], shares: &[Share]) -> Self {
        let rows = shares.iter().map(Share::rows).sum();
        let mut batch = Self {
            tokens: Vec::with_capacity(rows),
            spans: Vec::with_capacity(shares.len()),
            tables: Vec::new(),
            wanted: Vec::new(),
        };
        for (n, (sequence, share)) in running.iter().zip(shares).enumerate() {
            if share.rows() > 0 {
                batch.push(n, sequence, share);
            }
        }
        batch
    }

    fn push(&mut self, n: usize, sequence: &Sequence, share: &Share) {
        let query_start = self.tokens.len();
        let blocks = sequence.table.blocks();
        for position in sequence.computed..sequence.computed + share.known {
            let row = self.tokens.len();
            self.tokens.push(sequence.tokens[position]);
            let next = position + 1;
            if sequence.prompt_logprobs.is_some() && next < sequence.prompt_len {
                self.wanted.push(Wanted {
                    row,
                    sequence: n,
                    purpose: Purpose::Score {
                        position: next,
                        token: sequence.tokens[next],
                    },
                });
            }
            if next == sequence.tokens.len() {
                self.wanted.push(Wanted {
                    row,
                    sequence: n,
                    purpose: Purpose::Draw {
                        draft: share.draft.tokens.first().copied(),
                    },
                });
            }
        }
        for (k, &token) in share.draft.tokens.iter().enumerate() {
            self.wanted.push(Wanted {
                row: self.tokens.len(),
                sequence: n,
                purpose: Purpose::Draw {
                    draft: share.draft.tokens.get(k + 1).copied(),
                },
            });
            self.tokens.push(token);
        }
        let begin = self.tables.len();
        self.tables.extend_from_slice(blocks);
        let table = begin..self.tables.len();
        self.spans.push(Span {
            query_start,
            query_len: share.rows(),
            context_len: sequence.computed + share.rows(),
            table,
        });
    }

    /// Queries and keys of each sequence that takes part.
    pub fn sequences(&self) -> Vec<Rows<'_>> {
        let sequence = |span: &Span| Rows {
            query_start: span.query_start,
            query_len: span.query_len,
            context_len: span.context_len,
            block_table: &self.tables[span.table.clone()],
        };
        self.spans.iter().map(sequence).collect()
    }
}
