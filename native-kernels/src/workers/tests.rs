//! Threads of one node.

use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

/// Rounds enough to meet a rare order of events; an interpreter takes a thousand times as long for each.
const ROUNDS: usize = if cfg!(miri) { 20 } else { 20_000 };

#[test]
fn every_chunk_runs_once() {
    let workers = Workers::new(3, &[]).unwrap();
    for chunks in [0, 1, 2, 3, 64, 1000] {
        let counts: Vec<_> = (0..chunks).map(|_| AtomicU32::new(0)).collect();
        workers.run(chunks, &|chunk, worker| {
            assert!(worker < 3);
            counts[chunk].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|n| n.load(Ordering::Relaxed) == 1));
    }
}

#[test]
fn a_phase_sees_what_the_phases_before_it_wrote() {
    let workers = Workers::new(3, &[]).unwrap();
    let phases = [4, 0, 1, 7, 0, 3];
    for _ in 0..ROUNDS / 10 {
        let finished: Vec<_> = phases.iter().map(|_| AtomicU32::new(0)).collect();
        workers.run_phases(&phases, &|phase, chunk, _| {
            assert!((chunk as u32) < phases[phase]);
            for before in 0..phase {
                assert_eq!(finished[before].load(Ordering::Relaxed), phases[before]);
            }
            finished[phase].fetch_add(1, Ordering::Relaxed);
        });
        let finished: Vec<_> = finished.into_iter().map(AtomicU32::into_inner).collect();
        assert_eq!(finished, phases);
    }
}

#[test]
fn chunks_that_overlap_have_different_workers() {
    let workers = Workers::new(4, &[]).unwrap();
    let busy: Vec<_> = (0..4).map(|_| AtomicBool::new(false)).collect();
    workers.run_phases(&[64; 20], &|_, _, worker| {
        assert!(!busy[worker].swap(true, Ordering::Acquire));
        thread::yield_now();
        busy[worker].store(false, Ordering::Release);
    });
}

#[test]
fn jobs_in_quick_succession_see_their_own_data() {
    let workers = Workers::new(4, &[]).unwrap();
    for round in 0..ROUNDS {
        let sum = AtomicUsize::new(0);
        workers.run(5, &|chunk, _| {
            sum.fetch_add(round * chunk, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), round * 10);
    }
}

#[test]
fn sleepers_wake_for_the_next_job() {
    let workers = Workers::new(2, &[]).unwrap();
    while workers.shared.sleepers.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    // Two chunks that wait for each other end only if two threads run them.
    let (first, second) = (AtomicBool::new(false), AtomicBool::new(false));
    workers.run(2, &|chunk, _| {
        let (mine, other) = if chunk == 0 {
            (&first, &second)
        } else {
            (&second, &first)
        };
        mine.store(true, Ordering::SeqCst);
        while !other.load(Ordering::SeqCst) {
            thread::yield_now();
        }
    });
}

#[test]
fn a_panic_reaches_the_caller_and_harms_nobody() {
    let workers = Workers::new(2, &[]).unwrap();
    let finished = AtomicU32::new(0);
    let result = catch_unwind(AssertUnwindSafe(|| {
        workers.run(16, &|chunk, _| {
            assert!(chunk != 3, "chunk three");
            finished.fetch_add(1, Ordering::Relaxed);
        });
    }));
    let message = result.unwrap_err();
    assert_eq!(message.downcast_ref(), Some(&"chunk three"));
    assert_eq!(finished.into_inner(), 15);
    let again = AtomicU32::new(0);
    workers.run(8, &|_, _| {
        again.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(again.into_inner(), 8);
}

#[test]
fn a_job_within_a_job_is_done_by_its_caller() {
    let workers = Workers::new(2, &[]).unwrap();
    let count = AtomicU32::new(0);
    workers.run(4, &|_, _| {
        workers.run(4, &|_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(count.into_inner(), 16);
}

#[test]
fn senseless_numbers_are_refused() {
    assert!(Workers::new(0, &[]).is_err());
    assert!(Workers::new(2, &[0]).is_err());
    #[cfg(target_os = "linux")]
    assert!(Workers::new(2, &[0, 100_000]).is_err());
}
