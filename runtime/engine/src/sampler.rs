//! From logits to a token. Each request has its own state, so that who else is in the batch cannot matter.

mod candidates;
mod logprobs;
mod penalties;
mod random;

use crate::request::{SamplingParams, TokenId, TokenLogprob};
use penalties::Penalties;
use plinth_kernels::KernelSet;
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
    pub fn draw(&mut self, kernels: &KernelSet, logits: &mut [f32]) -> Option<Drawn> {
        let report = match self.params.logprobs {
            Some(n) => Some(logprobs::Report::new(kernels, logits, n as usize)?),
            None => None,
        };
        let raw = report.as_ref().map(|_| logits.to_vec());
        self.adjust(logits);
        let id = self.choose(kernels, logits)?;
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

    fn choose(&mut self, kernels: &KernelSet, logits: &[f32]) -> Option<TokenId> {
        let (likeliest, max) = candidates::argmax(kernels, logits)?;
        if self.params.temperature == 0.0 {
            return Some(likeliest);
        }
        let u = self.random.uniform();
        Some(candidates::draw(kernels, (logits, max), &self.params, u))
    }
}

#[cfg(test)]
mod tests;
