//! Numbers out of rounds: medians with their spread, and ratios to another engine's.

use crate::error::{Failure, Result};
use anyhow::anyhow;
use serde::Serialize;
use std::collections::BTreeMap;

/// What one round measured, in tokens per second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Of a prompt.
    pub prefill: Option<f64>,
    /// Of one sequence.
    pub decode: Option<f64>,
    /// Of several sequences at once, all together, by their number.
    pub batches: BTreeMap<u32, f64>,
}

/// Runs of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// All, in the order in which they were made.
    pub runs: Vec<f64>,
}

impl Measured {
    /// `None` if there was no run.
    pub fn of(runs: Vec<f64>) -> Option<Self> {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        Some(Self {
            median,
            min,
            max,
            runs,
        })
    }

    /// One kind of figure over all rounds.
    pub fn over(rounds: &[Figures], kind: impl Fn(&Figures) -> Option<f64>) -> Option<Self> {
        Self::of(rounds.iter().filter_map(kind).collect())
    }
}

/// Another engine, measured in turns with this one.
#[derive(Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What ran it.
    pub command: String,
    /// Of a prompt.
    pub prefill: Option<Versus>,
    /// Of one sequence.
    pub decode: Option<Versus>,
    /// Of several sequences at once.
    pub batches: Vec<BatchVersus>,
}

/// One kind of figure, there and here.
#[derive(Debug, PartialEq, Serialize)]
pub struct Versus {
    /// The other engine, in tokens per second.
    pub peer: Measured,
    /// How many times as fast this engine was, round by round: what disturbs the machine for longer than a round does
    /// not show in it.
    pub ratio: Measured,
}

/// The same of several sequences at once.
#[derive(Debug, PartialEq, Serialize)]
pub struct BatchVersus {
    /// How many.
    pub sequences: u32,
    /// Of all together.
    pub decode: Versus,
}

impl Comparison {
    /// Of what both have measured.
    ///
    /// # Errors
    /// There is nothing that both have.
    pub fn of(command: &str, ours: &[Figures], theirs: &[Figures]) -> Result<Self> {
        let versus = |kind: &dyn Fn(&Figures) -> Option<f64>| {
            let pairs = ours.iter().zip(theirs);
            let ratio = pairs.filter_map(|(ours, theirs)| Some(kind(ours)? / kind(theirs)?));
            Some(Versus {
                ratio: Measured::of(ratio.collect())?,
                peer: Measured::over(theirs, kind)?,
            })
        };
        let sequences = ours
            .first()
            .into_iter()
            .flat_map(|ours| ours.batches.keys());
        let batch = |&sequences: &u32| {
            let decode = versus(&|figures| figures.batches.get(&sequences).copied())?;
            Some(BatchVersus { sequences, decode })
        };
        let comparison = Self {
            command: command.to_owned(),
            prefill: versus(&|figures| figures.prefill),
            decode: versus(&|figures| figures.decode),
            batches: sequences.filter_map(batch).collect(),
        };
        let nothing = (None, None) == (comparison.prefill.as_ref(), comparison.decode.as_ref());
        match nothing && comparison.batches.is_empty() {
            false => Ok(comparison),
            true => Err(Failure::Input(anyhow!(
                "--compare: '{command}' measured nothing that this run measures: give both a prompt (-p), tokens to \
                 generate (-n), or the same batches"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let check = |runs: &[f64], want: Option<f64>| {
            let measured = Measured::of(runs.to_vec());
            assert_eq!(measured.map(|measured| measured.median), want);
        };
        check(&[], None);
        check(&[3.0], Some(3.0));
        check(&[9.0, 1.0, 5.0], Some(5.0));
        check(&[4.0, 1.0, 2.0, 100.0], Some(3.0));
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        // A machine that became half as fast in the middle: each round's ratio is the same.
        let round = |decode| Figures {
            decode: Some(decode),
            ..Figures::default()
        };
        let ours = [200.0, 200.0, 100.0].map(round);
        let theirs = [100.0, 100.0, 50.0].map(round);
        let comparison = Comparison::of("peer", &ours, &theirs).expect("both have it");
        let decode = comparison.decode.expect("both have it");
        assert_eq!((decode.ratio.min, decode.ratio.max), (2.0, 2.0));
        assert_eq!(comparison.prefill, None);
    }
}
