//! A request on its way: its tokens, its blocks, and what it still waits for. A request's state lives here and nowhere
//! else.

use crate::kv_cache::BlockTable;
use crate::request::{FinishReason, Request, RequestId, StopCondition, TokenId, Usage};
use crate::sampler::{Drawn, Sampler};
use crate::speculation::{Draft, Drafter};
use plinth_kernels::KernelSet;

/// One request.
pub(crate) struct Sequence {
    pub id: RequestId,
    /// Prompt and answer.
    pub tokens: Vec<TokenId>,
    pub prompt_len: usize,
    /// Tokens whose keys and values are in the cache, from the first.
    pub computed: usize,
    pub table: BlockTable,
    pub sampler: Sampler,
    stop: Option<Box<dyn StopCondition>>,
    /// Log probabilities of the prompt, filled in as chunks are computed; `None` if they were not asked for or were
    /// sent.
    pub prompt_logprobs: Option<Vec<Option<f32>>>,
    /// Looked for a cached prefix when first scheduled, and found this many tokens.
    pub cached_tokens: Option<usize>,
    pub preemptions: usize,
    pub drafter: Drafter,
    drafted_tokens: usize,
    accepted_tokens: usize,
}

/// A token that was drawn and appended.
pub(crate) struct Appended {
    pub drawn: Drawn,
    /// Why the answer ends with it, if it does.
    pub end: Option<FinishReason>,
}

impl Sequence {
    pub fn new(id: RequestId, request: Request, vocab_size: usize) -> Self {
        let prompt_len = request.prompt.len();
        Self {
            id,
            sampler: Sampler::new(request.sampling, &request.prompt, vocab_size),
            tokens: request.prompt,
            prompt_len,
            computed: 0,
            table: BlockTable::default(),
            stop: request.stop,
            prompt_logprobs: request.prompt_logprobs.then(|| vec![None; prompt_len]),
            cached_tokens: None,
            preemptions: 0,
            drafter: Drafter::default(),
            drafted_tokens: 0,
            accepted_tokens: 0,
        }
    }

    /// Tokens that were generated.
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens that must be computed before the next can be drawn.
    pub fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Tokens that may follow, up to `most` and no more than the answer and the context have room for behind the token
    /// that is drawn without them. None before the last token of the prompt is to be computed.
    pub fn propose(&mut self, most: usize, max_model_len: usize) -> Option<Draft> {
        if self.remaining() != 1 {
            return None;
        }
        let answer = (self.sampler.params().max_tokens as usize).saturating_sub(self.generated());
        let context = max_model_len.saturating_sub(self.tokens.len());
        let most = most.min(answer.min(context).saturating_sub(1));
        self.drafter.propose(&self.tokens, most)
    }

    /// The first `accepted` tokens of a draft were drawn.
    pub fn tried(&mut self, draft: &Draft, accepted: usize) {
        self.drafter.tried(draft, accepted);
        self.drafted_tokens += draft.tokens.len();
        self.accepted_tokens += accepted;
    }

    /// Draws the next token from its logits and appends it. `None` if they hold no number to draw by.
    pub fn draw(
        &mut self,
        kernels: &KernelSet,
        logits: &mut [f32],
        max_model_len: usize,
    ) -> Option<Appended> {
        let drawn = self.sampler.draw(kernels, logits)?;
        let end = self.append(drawn.id, max_model_len);
        Some(Appended { drawn, end })
    }

    /// Appends a drawn token, and says whether the answer ends with it.
    fn append(&mut self, token: TokenId, max_model_len: usize) -> Option<FinishReason> {
        self.tokens.push(token);
        self.sampler.observe(token);
        let stopped = self.stop.as_mut().is_some_and(|stop| stop.push(token));
        let params = self.sampler.params();
        let ends = (params.eos_ids.contains(&token) && !params.ignore_eos)
            || params.stop_ids.contains(&token);
        let may_end = self.generated() >= params.min_tokens as usize;
        if (ends || stopped) && may_end {
            return Some(FinishReason::Stop);
        }
        let full =
            self.generated() >= params.max_tokens as usize || self.tokens.len() >= max_model_len;
        full.then_some(FinishReason::Length)
    }

    /// What it took.
    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_len,
            cached_tokens: self.cached_tokens.unwrap_or(0),
            completion_tokens: self.generated(),
            preemptions: self.preemptions,
            drafted_tokens: self.drafted_tokens,
            accepted_tokens: self.accepted_tokens,
        }
    }
}
