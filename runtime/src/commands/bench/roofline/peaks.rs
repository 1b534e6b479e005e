//! What this machine reaches, and which of it limits a class of operations.

use super::Limit;
use crate::calibration::{self, Extent};
use crate::error::Result;
use crate::startup;
use plinth_kernels::ClassCost;
use plinth_kernels::calibrate::{Calibration, ComputePeak, ReadPeak};
use plinth_platform::text::bytes;
use serde::Serialize;

/// Peaks of all threads together.
#[derive(Debug, Serialize)]
pub struct Peaks {
    /// Where they come from, in words.
    pub source: String,
    /// Of arithmetic.
    pub compute: Vec<ComputePeak>,
    /// Of reading, by working set, in rising order.
    pub read: Vec<ReadPeak>,
}

impl Peaks {
    /// Those that `plinth calibrate` has kept, or else measured now.
    ///
    /// # Errors
    /// A thread or memory cannot be had.
    pub fn of_this_machine(threads: u32, quiet: bool) -> Result<Self> {
        let facts = startup::facts(None)?;
        let file = calibration::file_of(&facts, threads);
        let kept = file.as_deref().and_then(calibration::read);
        let (source, calibration) = match (kept, file) {
            (Some(kept), Some(file)) => (format!("kept in {}", file.display()), kept),
            _ => {
                let measured = calibration::measure(&facts, threads, Extent::Peaks, quiet)?;
                calibration::disturbed(&measured);
                ("measured just now".to_owned(), measured)
            }
        };
        Ok(Self::new(source, calibration))
    }

    fn new(source: String, calibration: Calibration) -> Self {
        let threads = calibration.threads;
        let mut peaks = Self {
            source,
            compute: calibration.compute,
            read: calibration.read,
        };
        peaks.compute.retain(|peak| peak.threads == threads);
        peaks.read.retain(|peak| peak.threads == threads);
        peaks.read.sort_by_key(|peak| peak.bytes);
        peaks
    }

    /// What limits a class: of the times that its bytes and its operations take at the least, the longer.
    ///
    /// Weights come from as far away as `working_set` bytes do, all weights of a step, for it reads them in turn. Other
    /// operands were written just before, and come from as far away as the bytes of one phase do.
    pub fn limit(&self, cost: &ClassCost, working_set: u64) -> Option<Limit> {
        let of_weights = 2 * cost.weight_bytes > cost.bytes;
        let set = match of_weights {
            true => working_set,
            false => cost.bytes / cost.phases.max(1),
        };
        let memory = self.nearest(set).map(|peak| Limit {
            by: "memory",
            peak: peak.gb_per_second,
            of: format!("reading {}", bytes(peak.bytes)),
            reached: cost.bytes as f64 / 1e9 / peak.gb_per_second / cost.seconds,
        });
        let unit = |peak: &&ComputePeak| {
            peak.tier == cost.unit.tier && peak.operation == cost.unit.operation
        };
        let arithmetic = self.compute.iter().find(unit).map(|peak| Limit {
            by: "arithmetic",
            peak: peak.gops,
            of: format!("{} {}", peak.tier, peak.operation),
            reached: cost.operations as f64 / 1e9 / peak.gops / cost.seconds,
        });
        let limits = [memory, arithmetic].into_iter().flatten();
        let limits = limits.filter(|limit| limit.reached > 0.0);
        limits.max_by(|a, b| a.reached.total_cmp(&b.reached))
    }

    /// The peak whose working set is the nearest, as a ratio.
    fn nearest(&self, set: u64) -> Option<&ReadPeak> {
        let distance = |peak: &&ReadPeak| (peak.bytes as f64 / set.max(1) as f64).ln().abs();
        let by_distance = |a: &&ReadPeak, b: &&ReadPeak| distance(a).total_cmp(&distance(b));
        self.read.iter().min_by(by_distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_kernels::Unit;

    const UNIT: Unit = Unit {
        tier: "avx2",
        operation: "f32-fma",
    };

    fn peaks() -> Peaks {
        let read = |bytes, gb_per_second| ReadPeak {
            bytes,
            threads: 2,
            gb_per_second,
        };
        Peaks {
            source: String::new(),
            compute: vec![ComputePeak {
                tier: UNIT.tier.to_owned(),
                operation: UNIT.operation.to_owned(),
                threads: 2,
                gops: 200.0,
            }],
            read: vec![read(1 << 20, 100.0), read(1 << 29, 20.0)],
        }
    }

    fn limit(operations: u64, bytes: u64, weight_bytes: u64) -> Option<Limit> {
        let cost = ClassCost {
            class: "qkv",
            unit: UNIT,
            seconds: 1.0,
            operations,
            bytes,
            weight_bytes,
            phases: 1000,
        };
        peaks().limit(&cost, 400 << 20)
    }

    #[test]
    fn the_longer_of_the_two_times_is_the_limit() {
        let few_operations = limit(10 << 30, 10_000_000_000, 9_000_000_000).expect("a limit");
        assert_eq!((few_operations.by, few_operations.peak), ("memory", 20.0));
        assert!((few_operations.reached - 0.5).abs() < 1e-9);
        let many = limit(100_000_000_000, 1_000_000, 900_000).expect("a limit");
        assert_eq!((many.by, many.peak), ("arithmetic", 200.0));
        assert!((many.reached - 0.5).abs() < 1e-9);
        assert_eq!(limit(0, 0, 0), None);
    }

    #[test]
    fn what_was_just_written_comes_from_near() {
        let near = limit(0, 1_000_000_000, 0).expect("a limit");
        assert_eq!(near.peak, 100.0, "a megabyte a phase");
    }
}
