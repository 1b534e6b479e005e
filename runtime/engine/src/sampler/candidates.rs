//! The tokens that may be drawn, after min-p, top-k and top-p.
//!
//! A vocabulary is never sorted: tokens are looked for from the largest logit downwards, and as far as they are needed.

use crate::request::{SamplingParams, TokenId};
use plinth_kernels::KernelSet;
use std::cmp::Ordering;

/// Higher logits first; of equals the lower id.
fn likeliest_first(a: &(TokenId, f32), b: &(TokenId, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The likeliest token and its logit. `None` if there is no finite one, or a logit is not a number.
pub(super) fn argmax(kernels: &KernelSet, logits: &[f32]) -> Option<(TokenId, f32)> {
    let largest = kernels.largest(logits)?;
    let finite = largest.value.is_finite();
    finite.then_some((largest.index as TokenId, largest.value))
}

/// Draws one of the tokens that `params` leave, at `u` (0 to 1) of the way through their weights, likeliest first. `max` is
/// the largest logit.
pub(super) fn draw(
    kernels: &KernelSet,
    (logits, max): (&[f32], f32),
    params: &SamplingParams,
    u: f64,
) -> TokenId {
    let likeliest = Likeliest::new(kernels, (logits, max), params.temperature, params.min_p);
    if (params.top_k, params.top_p) == (0, 1.0) {
        let total = likeliest.total();
        return pick(likeliest, u * total);
    }
    let left = likeliest.keep(params);
    let total: f64 = left.iter().map(|(_, weight)| weight).sum();
    pick(left.into_iter(), u * total)
}

/// The token at `rest` of the way through the weights.
fn pick(weighted: impl Iterator<Item = (TokenId, f64)>, mut rest: f64) -> TokenId {
    let mut last = None;
    for (id, weight) in weighted {
        if rest < weight {
            return id;
        }
        rest -= weight;
        last = Some(id);
    }
    // Rounding can leave the whole just short of its own sum.
    last.expect("the likeliest token is always left")
}

/// How far below the largest logit tokens are looked for at first, in units of the temperature. What is further away is
/// less likely by `e^8` and more.
const FIRST_REACH: f32 = 8.0;

/// Tokens that are sorted at first: nearly always enough.
const FIRST_SORTED: usize = 256;

/// Tokens with their weights, likeliest first, found and sorted as they are asked for. The likeliest weighs 1.
///
/// ```text
/// logits    max ------- max - 8 t ------- max - 16 t -- …  floor
/// found     [sorted | not yet]
/// ```
pub(super) struct Likeliest<'a> {
    kernels: &'a KernelSet,
    logits: &'a [f32],
    max: f32,
    temperature: f32,
    /// No token below this is given.
    floor: f32,
    /// Everything at this and above was found, in this run or an earlier one.
    low: f32,
    reach: f32,
    run: Vec<(TokenId, f32)>,
    sorted: usize,
    given: usize,
}

impl<'a> Likeliest<'a> {
    /// Of all tokens that are at least `min_p` times as likely as the likeliest.
    pub fn new(
        kernels: &'a KernelSet,
        (logits, max): (&'a [f32], f32),
        temperature: f32,
        min_p: f32,
    ) -> Self {
        let mut likeliest = Self {
            kernels,
            logits,
            max,
            temperature,
            // p >= min_p * p_max, in logits.
            floor: match min_p {
                0.0 => f32::NEG_INFINITY,
                min_p => max + temperature * min_p.ln(),
            },
            low: f32::INFINITY,
            reach: FIRST_REACH,
            run: Vec::new(),
            sorted: 0,
            given: 0,
        };
        likeliest.find_more();
        likeliest
    }

    fn weight(&self, logit: f32) -> f64 {
        f64::from((logit - self.max) / self.temperature).exp()
    }

    /// Weight of all tokens together. Nothing may have been asked for before.
    pub fn total(&self) -> f64 {
        let near: f64 = self.run.iter().map(|&(_, logit)| self.weight(logit)).sum();
        let rate = 1.0 / self.temperature;
        let far = self.floor..self.low;
        near + self.kernels.sum_exp(self.logits, (self.max, rate), far)
    }

    /// What top-k and top-p leave.
    pub fn keep(self, params: &SamplingParams) -> Vec<(TokenId, f64)> {
        let top_p = f64::from(params.top_p);
        if params.top_k == 0 {
            let mass = match params.top_p < 1.0 {
                true => top_p * self.total(),
                false => f64::INFINITY,
            };
            return up_to_mass(self, mass);
        }
        let left: Vec<_> = self.take(params.top_k as usize).collect();
        if params.top_p < 1.0 {
            let all: f64 = left.iter().map(|(_, weight)| weight).sum();
            return up_to_mass(left.into_iter(), top_p * all);
        }
        left
    }

    /// Looks further down. False if there is nothing more.
    fn find_more(&mut self) -> bool {
        if self.low <= self.floor {
            return false;
        }
        let low = (self.max - self.temperature * self.reach).max(self.floor);
        let found = self.kernels.find_within(self.logits, low..self.low);
        let logits = self.logits;
        self.run.clear();
        self.run
            .extend(found.into_iter().map(|id| (id, logits[id as usize])));
        (self.sorted, self.given) = (0, 0);
        self.low = low;
        // After a few doublings there is nothing whose weight would not be zero.
        self.reach *= match self.reach < 1000.0 {
            true => 2.0,
            false => f32::INFINITY,
        };
        true
    }

    fn sort_more(&mut self) {
        let more = FIRST_SORTED.max(7 * self.sorted);
        let rest = &mut self.run[self.sorted..];
        let more = more.min(rest.len());
        if more < rest.len() {
            rest.select_nth_unstable_by(more, likeliest_first);
        }
        rest[..more].sort_unstable_by(likeliest_first);
        self.sorted += more;
    }

    /// The next token and its logit.
    pub fn next_logit(&mut self) -> Option<(TokenId, f32)> {
        while self.given == self.sorted {
            match self.sorted < self.run.len() {
                true => self.sort_more(),
                false if self.find_more() => {}
                false => return None,
            }
        }
        self.given += 1;
        Some(self.run[self.given - 1])
    }
}

impl Iterator for Likeliest<'_> {
    type Item = (TokenId, f64);

    fn next(&mut self) -> Option<Self::Item> {
        let (id, logit) = self.next_logit()?;
        Some((id, self.weight(logit)))
    }
}

/// The fewest tokens that together weigh at least `mass`.
fn up_to_mass(tokens: impl Iterator<Item = (TokenId, f64)>, mass: f64) -> Vec<(TokenId, f64)> {
    let mut left = Vec::new();
    let mut sum = 0.0;
    for (id, weight) in tokens {
        left.push((id, weight));
        sum += weight;
        if sum >= mass {
            break;
        }
    }
    left
}
