//! The tokens that may be drawn, after min-p, top-k and top-p.

use crate::request::{SamplingParams, TokenId};
use std::cmp::Ordering;

/// Higher logits first; of equals the lower id.
pub(super) fn likeliest_first(a: (TokenId, f32), b: (TokenId, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The likeliest token and its logit. `None` if there is no finite one, or a logit is not a number.
pub(super) fn argmax(logits: &[f32]) -> Option<(TokenId, f32)> {
    let mut best = (0, f32::NEG_INFINITY);
    let mut broken = false;
    for (id, &logit) in logits.iter().enumerate() {
        broken |= logit.is_nan();
        if logit > best.1 {
            best = (id as TokenId, logit);
        }
    }
    (best.1.is_finite() && !broken).then_some(best)
}

/// Tokens with their weights, likeliest first.
#[derive(Debug, PartialEq)]
pub(super) struct Candidates {
    weighted: Vec<(TokenId, f64)>,
    total: f64,
}

/// Tokens sorted before it is known how many top-p needs: nearly always enough.
const FIRST_SORTED: usize = 256;

/// What is left of `logits`, of which `max` is the greatest.
pub(super) fn filter(logits: &[f32], max: f32, params: &SamplingParams) -> Candidates {
    let temperature = params.temperature;
    // p >= min_p * p_max, in logits.
    let floor = match params.min_p {
        0.0 => f32::NEG_INFINITY,
        min_p => max + temperature * min_p.ln(),
    };
    let mut left: Vec<(TokenId, f32)> = (0..)
        .zip(logits.iter().copied())
        .filter(|&(_, l)| l >= floor)
        .collect();
    left.retain(|&(_, logit)| logit > f32::NEG_INFINITY);
    let top_k = match params.top_k {
        0 => left.len(),
        k => left.len().min(k as usize),
    };
    keep_likeliest(&mut left, top_k);
    let weight = |logit: f32| f64::from((logit - max) / temperature).exp();
    let all: f64 = left.iter().map(|&(_, logit)| weight(logit)).sum();
    if params.top_p < 1.0 {
        keep_mass(&mut left, f64::from(params.top_p) * all, weight);
    } else {
        left.sort_unstable_by(|&a, &b| likeliest_first(a, b));
    }
    let weighted: Vec<_> = left
        .into_iter()
        .map(|(id, logit)| (id, weight(logit)))
        .collect();
    let total = weighted.iter().map(|(_, weight)| weight).sum();
    Candidates { weighted, total }
}

/// Leaves the `n` likeliest, in no order.
fn keep_likeliest(left: &mut Vec<(TokenId, f32)>, n: usize) {
    if n > 0 && n < left.len() {
        left.select_nth_unstable_by(n - 1, |&a, &b| likeliest_first(a, b));
        left.truncate(n);
    }
}

/// Leaves the fewest likeliest tokens that together weigh at least `mass`, sorted.
fn keep_mass(left: &mut Vec<(TokenId, f32)>, mass: f64, weight: impl Fn(f32) -> f64) {
    let mut sorted = FIRST_SORTED;
    loop {
        let n = sorted.min(left.len());
        if n < left.len() {
            left.select_nth_unstable_by(n, |&a, &b| likeliest_first(a, b));
        }
        left[..n].sort_unstable_by(|&a, &b| likeliest_first(a, b));
        let mut sum = 0.0;
        let enough = left[..n].iter().position(|&(_, logit)| {
            sum += weight(logit);
            sum >= mass
        });
        match enough {
            Some(last) => return left.truncate(last + 1),
            // Rounding can leave the whole just short of its own sum.
            None if n == left.len() => return,
            None => sorted *= 8,
        }
    }
}

impl Candidates {
    /// The token at `u` (0 to 1) of the way through the weights.
    pub fn draw(&self, u: f64) -> TokenId {
        let mut rest = u * self.total;
        for &(id, weight) in &self.weighted {
            if rest < weight {
                return id;
            }
            rest -= weight;
        }
        self.weighted
            .last()
            .expect("the likeliest token is always left")
            .0
    }

    #[cfg(test)]
    pub fn ids(&self) -> Vec<TokenId> {
        self.weighted.iter().map(|&(id, _)| id).collect()
    }
}
