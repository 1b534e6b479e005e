//! From logits to a token. Each request has its own state, so that who else is in the batch cannot matter.

mod candidates;
mod logprobs;
mod penalties;
mod random;

use crate::request::{SamplingParams, TokenId, TokenLogprob};
use penalties::Penalties;
use random::Random;

pub(crate) use logprobs::log_sum_exp;

/// How a request draws its tokens.
pub(crate) struct Sampler {
    params: SamplingParams,
    penalties: Option<Penalties>,
    random: Random,
    drawn: usize,
}

/// A drawn token.
#[derive(Debug, PartialEq)]
pub(crate) struct Drawn {
    pub id: TokenId,
    pub logprob: Option<TokenLogprob>,
}

impl Sampler {
    pub fn new(params: SamplingParams, prompt: &[TokenId], vocab_size: usize) -> Self {
        Self {
            penalties: Penalties::of(&params, prompt, vocab_size),
            random: Random::new(params.seed),
            params,
            drawn: 0,
        }
    }

    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// `token` was appended to the answer.
    pub fn observe(&mut self, token: TokenId) {
        self.drawn += 1;
        if let Some(penalties) = &mut self.penalties {
            penalties.observe(token);
        }
    }

    /// Draws from `logits`, which are changed on the way. `None` if they hold no number to draw by.
    pub fn draw(&mut self, logits: &mut [f32]) -> Option<Drawn> {
        let report = self
            .params
            .logprobs
            .map(|n| logprobs::Report::new(logits, n as usize));
        let raw = report.as_ref().map(|_| logits.to_vec());
        self.adjust(logits);
        let id = self.choose(logits)?;
        let logprob = report
            .zip(raw)
            .map(|(report, raw)| report.of(raw[id as usize]));
        Some(Drawn { id, logprob })
    }

    fn adjust(&self, logits: &mut [f32]) {
        if let Some(penalties) = &self.penalties {
            penalties.apply(logits);
        }
        for &(id, bias) in &self.params.logit_bias {
            logits[id as usize] += bias;
        }
        if self.drawn < self.params.min_tokens as usize {
            let banned = self.params.eos_ids.iter().chain(&self.params.stop_ids);
            banned.for_each(|&id| logits[id as usize] = f32::NEG_INFINITY);
        }
    }

    fn choose(&mut self, logits: &mut [f32]) -> Option<TokenId> {
        let (likeliest, max) = candidates::argmax(logits)?;
        if self.params.temperature == 0.0 {
            return Some(likeliest);
        }
        let candidates = candidates::filter(logits, max, &self.params);
        Some(candidates.draw(self.random.uniform()))
    }
}

#[cfg(test)]
mod tests;
