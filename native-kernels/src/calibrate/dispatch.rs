//! Cost of handing every worker a piece of work, measured with pieces that only wait for each other.

use super::DispatchCost;
use super::timing::{median, seconds};
use crate::workers::Workers;
use std::hint;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Medians over many dispatches.
pub fn cost(workers: &Workers) -> DispatchCost {
    /// After this long without work the threads sleep: several times what they spin.
    const IDLE: Duration = Duration::from_millis(2);
    let awake = (0..2000).map(|_| seconds(|| meet(workers))).collect();
    let asleep = (0..50).map(|_| {
        thread::sleep(IDLE);
        seconds(|| meet(workers))
    });
    DispatchCost {
        threads: workers.len() as u32,
        awake_us: median(awake) * 1e6,
        asleep_us: median(asleep.collect()) * 1e6,
    }
}

/// Returns when every worker has begun its piece: otherwise one that is awake would do the pieces of those that sleep.
fn meet(workers: &Workers) {
    /// Should a worker be kept from its piece for this long, the others go on: a slow figure is better than none.
    const PATIENCE: Duration = Duration::from_millis(100);
    let begun = AtomicUsize::new(0);
    workers.run(workers.len(), &|_, _| {
        begun.fetch_add(1, Ordering::AcqRel);
        let mut spins = 0u32;
        let mut since = None;
        while begun.load(Ordering::Acquire) < workers.len() {
            hint::spin_loop();
            spins += 1;
            // The clock is read seldom, so that reading it is not what is measured.
            if spins.is_multiple_of(4096)
                && since.get_or_insert_with(Instant::now).elapsed() > PATIENCE
            {
                return;
            }
        }
    });
}
