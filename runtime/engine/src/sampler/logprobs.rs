//! Log probabilities of the raw logits.

use super::candidates::likeliest_first;
use crate::request::{TokenId, TokenLogprob};

/// `ln(sum(exp(logits)))`, summed in double precision.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Eight sums side by side: one would wait for each addition.
    let mut sums = [0.0f64; 8];
    let (blocks, rest) = logits.as_chunks::<8>();
    for block in blocks {
        for (sum, &logit) in sums.iter_mut().zip(block) {
            *sum += f64::from((logit - max).exp());
        }
    }
    let rest: f64 = rest
        .iter()
        .map(|&logit| f64::from((logit - max).exp()))
        .sum();
    f64::from(max) + (sums.iter().sum::<f64>() + rest).ln()
}

/// What a request wants to know of one step's logits, but for the token that is yet to be drawn.
pub(super) struct Report {
    normaliser: f64,
    top: Vec<(TokenId, f32)>,
}

impl Report {
    pub fn new(logits: &[f32], top: usize) -> Self {
        let normaliser = log_sum_exp(logits);
        let mut ids: Vec<TokenId> = (0..logits.len() as TokenId).collect();
        let order = |a: &TokenId, b: &TokenId| {
            likeliest_first((*a, logits[*a as usize]), (*b, logits[*b as usize]))
        };
        let top = top.min(ids.len());
        if top > 0 && top < ids.len() {
            ids.select_nth_unstable_by(top - 1, order);
        }
        ids.truncate(top);
        ids.sort_unstable_by(order);
        let logprob = |id: TokenId| (f64::from(logits[id as usize]) - normaliser) as f32;
        Self {
            normaliser,
            top: ids.into_iter().map(|id| (id, logprob(id))).collect(),
        }
    }

    /// The report once a token with this logit was drawn.
    pub fn of(self, logit: f32) -> TokenLogprob {
        TokenLogprob {
            logprob: (f64::from(logit) - self.normaliser) as f32,
            top: self.top,
        }
    }
}
