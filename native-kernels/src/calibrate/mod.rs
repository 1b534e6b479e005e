//! What this machine's kernels reach: peaks of arithmetic and of memory, the cost of handing out work, and the cost of
//! every matrix product of the catalogue.
//!
//! It measures and never decides. Neighbours on the machine only ever make a run slower, so a peak is the fastest of
//! several runs; a cost is their median.

mod bandwidth;
mod compute;
mod dispatch;
mod matmul;
mod timing;

use crate::workers::Workers;
use compute::Clock;
pub use plinth_platform::facts::MatmulCost;
use serde::{Deserialize, Serialize};
use std::io;
use std::time::Duration;

/// The measurements of one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Version of the kernels that were measured.
    pub kernels: String,
    /// Threads of the figures that are of all threads together.
    pub threads: u32,
    /// Dependent additions, shifts and the like of one thread, in 10^9 a second: its clock, where each takes one cycle.
    pub clock_ghz: f64,
    /// Share of the moments, spread over all of the measuring, at which a thread was far slower than its clock, 0 to 1:
    /// other processes had its CPU. Near 0 the figures can be trusted.
    pub disturbed: f64,
    /// Peaks of arithmetic out of registers and the first cache.
    pub compute: Vec<ComputePeak>,
    /// Peaks of reading memory.
    pub read: Vec<ReadPeak>,
    /// Cost of handing work to the threads.
    pub dispatch: DispatchCost,
    /// Costs of matrix products. A product that takes longer than [`Options::longest_run`] is not among them.
    pub matmul: Vec<MatmulCost>,
}

/// Arithmetic that one instruction set reaches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputePeak {
    /// The instruction set, as ids of the catalogue name it: `avx2`.
    pub tier: String,
    /// `f32-fma`: multiplications and additions of single precision; `int8-dot`, `int4-dot`: dot products of weights of
    /// 8 or 4 bits and activations of 8, with all that the tier must do to keep them exact; `bf16-tile`, `int8-tile`:
    /// products of tiles that lie in the first cache.
    pub operation: String,
    /// Threads, each doing the same.
    pub threads: u32,
    /// 10^9 operations a second of all threads together; a multiplication and an addition are two.
    pub gops: f64,
}

/// Memory read again and again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadPeak {
    /// What all threads together read before they begin again.
    pub bytes: u64,
    /// Threads, each with a part of its own.
    pub threads: u32,
    /// 10^9 bytes a second of all threads together.
    pub gb_per_second: f64,
}

/// What it costs to hand every thread a piece of work and to wait for all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DispatchCost {
    /// Threads, the caller among them.
    pub threads: u32,
    /// Microseconds while the threads wait awake: the work before has only just ended.
    pub awake_us: f64,
    /// Microseconds after they have gone to sleep.
    pub asleep_us: f64,
}

/// How much is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Working sets of the read peaks, in bytes of all threads together, in rising order.
    pub working_sets: Vec<Set>,
    /// Matrices, as (outputs, inputs).
    pub shapes: Vec<(usize, usize)>,
    /// Rows of activations, in rising order.
    pub tokens: Vec<usize>,
    /// Runs of a peak, of which the fastest counts.
    pub peak_runs: usize,
    /// How long each product is run.
    pub cost_time: Duration,
    /// Products that are expected to take longer are left out.
    pub longest_run: Duration,
}

/// A working set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// So many bytes for each thread: a cache that belongs to one core.
    Each(usize),
    /// So many bytes for all threads together: a cache that they share, or memory.
    Shared(usize),
}

impl Options {
    /// A few seconds. `l2` are the bytes of a core's own cache, `memory` those that may be taken.
    ///
    /// The shapes are the widest matrix of SmolLM2-135M whose rows hold whole blocks of every format, and the attention
    /// projections of a model of a billion weights.
    pub fn thorough(l2: usize, memory: u64) -> Self {
        let sets = [
            Set::Each(l2 / 2),
            Set::Shared(90 << 20),
            Set::Shared(600 << 20),
        ];
        // A third of what may be had, so that measuring a small container does not end it.
        let fits = |set: &Set| match *set {
            Set::Each(_) => true,
            Set::Shared(bytes) => bytes as u64 <= memory / 3,
        };
        Self {
            working_sets: sets.into_iter().filter(fits).collect(),
            shapes: vec![(576, 1536), (2048, 2048)],
            tokens: vec![1, 4, 8, 16, 32, 128, 512],
            peak_runs: 9,
            cost_time: Duration::from_millis(2),
            longest_run: Duration::from_millis(6),
        }
    }

    /// A second: enough to see that all of it works, and sizes.
    pub fn quick(l2: usize) -> Self {
        Self {
            working_sets: vec![Set::Each(l2 / 2), Set::Shared(32 << 20)],
            shapes: vec![(576, 1536)],
            tokens: vec![1, 8],
            peak_runs: 2,
            cost_time: Duration::ZERO,
            longest_run: Duration::from_millis(20),
        }
    }
}

/// Measures, on one thread and on all of these workers, which must have nothing else to do. `progress` is told how many
/// steps are done, of how many.
///
/// # Errors
/// A thread cannot be started, or there is no memory for a working set or a matrix.
pub fn calibrate(
    workers: &Workers,
    options: &Options,
    progress: &dyn Fn(u64, u64),
) -> io::Result<Calibration> {
    let one = Workers::new(1, &[])?;
    let teams: Vec<&Workers> = match workers.len() {
        1 => vec![workers],
        _ => vec![&one, workers],
    };
    let products = matmul::products(options);
    let total = 2 + options.working_sets.len() as u64 + products.len() as u64;
    let mut done = 0;
    let mut clock = Clock::new();
    let mut step = || {
        progress(done, total);
        done += 1;
        clock.sample(workers);
    };
    step();
    let compute = compute::peaks(&teams, options.peak_runs);
    let mut read = Vec::new();
    for &set in &options.working_sets {
        step();
        read.extend(bandwidth::peaks(&teams, set, options.peak_runs)?);
    }
    step();
    let dispatch = dispatch::cost(workers);
    let mut matmul = Vec::new();
    for product in &products {
        step();
        matmul.extend(product.costs(workers, options)?);
    }
    Ok(Calibration {
        kernels: env!("CARGO_PKG_VERSION").to_owned(),
        threads: workers.len() as u32,
        clock_ghz: clock.ghz(),
        disturbed: clock.disturbed(),
        compute,
        read,
        dispatch,
        matmul,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use std::cell::Cell;
    use std::collections::HashSet;

    #[test]
    fn a_calibration_covers_what_this_cpu_can_run() {
        let workers = Workers::new(2, &[]).unwrap();
        let seen = Cell::new((0, 0));
        let progress = |done, total| {
            assert!(done < total, "{done} of {total}");
            seen.set((done, total));
        };
        let options = Options {
            // Slow or not: every product has a cost.
            longest_run: Duration::from_secs(60),
            ..Options::quick(256 << 10)
        };
        let found = calibrate(&workers, &options, &progress).unwrap();
        assert_eq!(seen.get().0 + 1, seen.get().1, "every step is told");

        let measured: HashSet<_> = found
            .matmul
            .iter()
            .map(|cost| cost.kernel.clone())
            .collect();
        let usable = catalog().into_iter().filter(|kernel| {
            kernel.op == "matmul" && crate::cpu::isa::missing_features(kernel).is_empty()
        });
        assert_eq!(measured, usable.map(|kernel| kernel.id).collect());
        assert!(
            found
                .compute
                .iter()
                .any(|peak| peak.operation == "f32-fma" && peak.threads == 2)
        );
        assert_eq!(found.read.len(), 4, "two sets, by one thread and by two");
        let figures = found.compute.iter().map(|peak| peak.gops);
        let figures = figures.chain(found.read.iter().map(|peak| peak.gb_per_second));
        let figures = figures.chain(found.matmul.iter().map(|cost| cost.us));
        let all = figures.chain([
            found.clock_ghz,
            found.dispatch.awake_us,
            found.dispatch.asleep_us,
        ]);
        all.for_each(|figure| assert!(figure.is_finite() && figure > 0.0, "{found:?}"));
    }

    #[test]
    fn a_product_that_takes_too_long_is_left_out() {
        let workers = Workers::new(1, &[]).unwrap();
        let options = Options {
            longest_run: Duration::ZERO,
            ..Options::quick(256 << 10)
        };
        let first = &matmul::products(&options)[0];
        let costs = first.costs(&workers, &options).unwrap();
        assert_eq!(
            costs.len(),
            1,
            "the first tells how long the others would take"
        );
    }

    #[test]
    fn a_small_machine_gets_small_sets() {
        let sets = Options::thorough(1 << 20, 512 << 20).working_sets;
        assert_eq!(sets, [Set::Each(512 << 10), Set::Shared(90 << 20)]);
    }
}
