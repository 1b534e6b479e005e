//! Log probabilities of the raw logits.

use super::candidates::Likeliest;
use crate::request::{TokenId, TokenLogprob};
use plinth_kernels::KernelSet;

/// `ln(sum(exp(logits)))`; not a number if a logit is none.
pub(crate) fn log_sum_exp(kernels: &KernelSet, logits: &[f32]) -> f64 {
    kernels
        .largest(logits)
        .map_or(f64::NAN, |largest| above(kernels, logits, largest.value))
}

fn above(kernels: &KernelSet, logits: &[f32], max: f32) -> f64 {
    let all = f32::NEG_INFINITY..f32::INFINITY;
    f64::from(max) + kernels.sum_exp(logits, (max, 1.0), all).ln()
}

/// What a request wants to know of one step's logits, but for the token that is yet to be drawn.
pub(super) struct Report {
    normaliser: f64,
    top: Vec<(TokenId, f32)>,
}

impl Report {
    /// `None` if a logit is not a number.
    pub fn new(kernels: &KernelSet, logits: &[f32], top: usize) -> Option<Self> {
        let max = kernels.largest(logits)?.value;
        let normaliser = above(kernels, logits, max);
        let mut likeliest = Likeliest::new(kernels, (logits, max), 1.0, 0.0);
        let top = std::iter::from_fn(|| likeliest.next_logit()).take(top);
        let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
        Some(Self {
            normaliser,
            top: top.map(|(id, logit)| (id, logprob(logit))).collect(),
        })
    }

    /// The report once a token with this logit was drawn.
    pub fn of(self, logit: f32) -> TokenLogprob {
        TokenLogprob {
            logprob: (f64::from(logit) - self.normaliser) as f32,
            top: self.top,
        }
    }
}
