//! Who computes how many tokens in the next step.
//!
//! First come, first served: running sequences in the order of their arrival, then waiting ones. A step carries decodes
//! and chunks of prompts together. Where blocks run out, the sequence that arrived last gives its own back and computes
//! them again later; the one that arrived first can therefore always go on, and nobody starves. Drafts get what is left
//! when everybody has been served: they take no row and no block that somebody waits for.

use crate::engine::EngineOptions;
use crate::kv_cache::KvBlocks;
use crate::request::RequestId;
use crate::sequence::Sequence;
use crate::speculation::{Draft, allot};
use std::collections::VecDeque;

/// All requests that are not finished.
pub(crate) struct Scheduler {
    options: EngineOptions,
    /// Most rows of a step with drafts.
    draft_rows: usize,
    /// In order of arrival.
    pub waiting: VecDeque<Sequence>,
    /// In order of arrival.
    pub running: Vec<Sequence>,
    pub preemptions: u64,
}

/// What a running sequence computes in a step; nothing, if it pauses.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// Tokens of its own, from its `computed` on.
    pub known: usize,
    /// Tokens that may follow them.
    pub draft: Draft,
}

impl Share {
    fn of(known: usize) -> Self {
        Self {
            known,
            draft: Draft::default(),
        }
    }

    /// Tokens in all.
    pub fn rows(&self) -> usize {
        self.known + self.draft.tokens.len()
    }
}

/// Parallel to `Scheduler::running`.
pub(crate) type Shares = Vec<Share>;

impl Scheduler {
    pub fn new(options: EngineOptions, draft_rows: usize) -> Self {
        Self {
            options,
            draft_rows,
            waiting: VecDeque::new(),
            running: Vec::new(),
            preemptions: 0,
        }
    }

    /// Chooses the next step's tokens and reserves their blocks.
    pub fn schedule(&mut self, blocks: &mut KvBlocks) -> Shares {
        let mut budget = self.options.max_batched_tokens;
        let (mut shares, preempted) = self.continue_running(blocks, &mut budget);
        // Who was just sent back would otherwise take the blocks that it gave away.
        if !preempted {
            self.admit(blocks, &mut budget, &mut shares);
        }
        self.add_drafts(blocks, budget, &mut shares);
        shares
    }

    fn continue_running(&mut self, blocks: &mut KvBlocks, budget: &mut usize) -> (Shares, bool) {
        let mut shares = Shares::new();
        let mut preempted = false;
        while shares.len() < self.running.len() {
            let n = shares.len();
            let sequence = &mut self.running[n];
            let share = self.options.share(sequence.remaining(), *budget);
            if share == 0 || blocks.reserve(&mut sequence.table, sequence.computed + share) {
                *budget -= share;
                shares.push(Share::of(share));
                continue;
            }
            // The last in order of arrival may be the one that asked.
            let last = self
                .running
                .pop()
                .expect("at least the sequence that asked runs");
            self.send_back(last, blocks);
            preempted = true;
        }
        (shares, preempted)
    }

    fn send_back(&mut self, mut sequence: Sequence, blocks: &mut KvBlocks) {
        blocks.release(&mut sequence.table);
        sequence.computed = 0;
        sequence.preemptions += 1;
        self.preemptions += 1;
        self.waiting.push_front(sequence);
    }

    fn admit(&mut self, blocks: &mut KvBlocks, budget: &mut usize, shares: &mut Shares) {
        while *budget > 0 && self.running.len() < self.options.max_num_seqs {
            let Some(sequence) = self.waiting.front_mut() else {
                return;
            };
            let cached = match sequence.prompt_logprobs {
                // What is not computed again has no logits.
                Some(_) => 0,
                // The last token is always computed, for its logits.
                None => blocks.take_prefix(
                    &sequence.tokens[..sequence.tokens.len() - 1],
                    &mut sequence.table,
                ),
            };
            sequence.computed = cached;
            let share = self.options.share(sequence.remaining(), *budget);
            if share == 0 || !blocks.reserve(&mut sequence.table, sequence.computed + share) {
                blocks.release(&mut sequence.table);
                sequence.computed = 0;
                return;
            }
            sequence.cached_tokens.get_or_insert(cached);
            *budget -= share;
            shares.push(Share::of(share));
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// Adds what sequences may write next, where a larger step pays.
    fn add_drafts(&mut self, blocks: &mut KvBlocks, budget: usize, shares: &mut Shares) {
        let EngineOptions {
            max_draft,
            max_model_len,
            ..
        } = self.options;
        let rows = shares.iter().map(Share::rows).sum();
        let room = budget.min(self.draft_rows.saturating_sub(rows));
        if max_draft == 0 || room == 0 {
            return;
        }
        let mut drafts = Vec::new();
        for (n, sequence) in self.running.iter_mut().enumerate() {
            if shares[n].known > 0
                && let Some(draft) = sequence.propose(max_draft.min(room), max_model_len)
            {
                drafts.push((n, draft));
            }
        }
        let chances: Vec<_> = drafts
            .iter()
            .map(|(n, draft)| (self.running[*n].drafter.rate(draft), draft.tokens.len()))
            .collect();
        for ((n, mut draft), count) in drafts.into_iter().zip(allot(rows, room, &chances)) {
            let sequence = &mut self.running[n];
            if count == 0 {
                sequence.drafter.passed(&draft);
                continue;
            }
            let tokens = sequence.tokens.len();
            let count = match blocks.reserve(&mut sequence.table, tokens + count) {
                true => count,
                // What fits into the blocks that it has.
                false => count.min(blocks.room(&sequence.table) - tokens),
            };
            draft.tokens.truncate(count);
            shares[n].draft = draft;
        }
    }

    /// Takes a request out, wherever it is.
    pub fn remove(&mut self, id: RequestId, blocks: &mut KvBlocks) -> Option<Sequence> {
        if let Some(n) = self.running.iter().position(|sequence| sequence.id == id) {
            let mut sequence = self.running.remove(n);
            blocks.release(&mut sequence.table);
            return Some(sequence);
        }
        let n = self.waiting.iter().position(|sequence| sequence.id == id)?;
        self.waiting.remove(n)
    }
}

impl EngineOptions {
    /// How many of `remaining` tokens fit into what is left of a step.
    fn share(&self, remaining: usize, budget: usize) -> usize {
        match self.chunked_prefill {
            true => remaining.min(budget),
            // A sequence that was sent back may have grown beyond a whole step. It then has one to itself.
            false if remaining > self.max_batched_tokens && budget == self.max_batched_tokens => {
                budget
            }
            false if remaining <= budget => remaining,
            false => 0,
        }
    }
}
