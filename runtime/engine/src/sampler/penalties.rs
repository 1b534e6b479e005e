//! Penalties for tokens that occurred.

use crate::request::{SamplingParams, TokenId};
use std::collections::BTreeMap;

/// What occurred, and what that costs.
pub(super) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    /// How often each token was generated; 0 for tokens of the prompt only.
    counts: BTreeMap<TokenId, u32>,
}

impl Penalties {
    /// `None` if there is nothing to pay.
    pub fn of(params: &SamplingParams, prompt: &[TokenId], vocab_size: usize) -> Option<Self> {
        let penalties = Self {
            repetition: params.repetition_penalty,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            counts: prompt
                .iter()
                .filter(|&&id| (id as usize) < vocab_size)
                .map(|&id| (id, 0))
                .collect(),
        };
        let free = (
            penalties.repetition,
            penalties.presence,
            penalties.frequency,
        ) == (1.0, 0.0, 0.0);
        (!free).then_some(penalties)
    }

    pub fn observe(&mut self, token: TokenId) {
        *self.counts.entry(token).or_insert(0) += 1;
    }

    pub fn apply(&self, logits: &mut [f32]) {
        for (&id, &count) in &self.counts {
            let logit = &mut logits[id as usize];
            *logit = if *logit > 0.0 {
                *logit / self.repetition
            } else {
                *logit * self.repetition
            };
            if count > 0 {
                *logit -= self.presence + self.frequency * count as f32;
            }
        }
    }
}
