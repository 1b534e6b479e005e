//! Threads of several nodes, which are made up: what is claimed by whom does not depend on where memory lies.

use super::*;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Rounds enough to meet a rare order of events; an interpreter takes a thousand times as long for each.
const ROUNDS: usize = if cfg!(miri) { 5 } else { 2_000 };

fn by_node(nodes: &[u32]) -> Workers {
    Workers::by_node(nodes.len(), &[], nodes).unwrap()
}

/// Which worker ran each chunk.
struct Ran(Vec<AtomicUsize>);

impl Ran {
    const NOBODY: usize = usize::MAX;

    fn new(chunks: usize) -> Self {
        Self(
            (0..chunks)
                .map(|_| AtomicUsize::new(Self::NOBODY))
                .collect(),
        )
    }

    fn by(&self, chunk: usize, worker: usize) {
        let before = self.0[chunk].swap(worker, Ordering::Relaxed);
        assert_eq!(before, Self::NOBODY, "chunk {chunk} runs once");
    }

    fn workers(self) -> Vec<usize> {
        let workers: Vec<_> = self.0.into_iter().map(AtomicUsize::into_inner).collect();
        assert!(!workers.contains(&Self::NOBODY), "{workers:?}");
        workers
    }
}

#[test]
fn a_worker_begins_with_what_is_its_node_s() {
    let workers = by_node(&[0, 0, 1, 1]);
    let ran = Ran::new(16);
    let all_have_begun = Barrier::new(4);
    let first: Vec<_> = (0..4).map(|_| AtomicUsize::new(Ran::NOBODY)).collect();
    workers.run(16, &|chunk, worker| {
        ran.by(chunk, worker);
        let none = Ran::NOBODY;
        let first =
            first[worker].compare_exchange(none, chunk, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            all_have_begun.wait();
        }
    });
    ran.workers();
    for (worker, chunk) in first.into_iter().enumerate() {
        assert_eq!(chunk.into_inner() / 8, worker / 2, "of worker {worker}");
    }
}

#[test]
fn what_a_node_does_not_get_to_is_done_by_the_others() {
    let workers = by_node(&[0, 0, 1, 1]);
    let ran = Ran::new(8);
    // The workers of the second node take a chunk each and wait until everything else is done.
    let (held, others) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let wait_until = |what: &dyn Fn() -> bool| {
        while !what() {
            thread::yield_now();
        }
    };
    workers.run_by_node(&[2, 8], &|_, chunk, worker| {
        ran.by(chunk, worker);
        match worker {
            0 | 1 => {
                wait_until(&|| held.load(Ordering::SeqCst) == 2);
                others.fetch_add(1, Ordering::SeqCst);
            }
            _ => {
                held.fetch_add(1, Ordering::SeqCst);
                wait_until(&|| others.load(Ordering::SeqCst) == 6);
            }
        }
    });
    let ran = ran.workers();
    let stolen = ran[2..].iter().filter(|worker| **worker < 2).count();
    assert_eq!(stolen, 4, "{ran:?}");
    assert!(ran[..2].iter().all(|worker| *worker < 2), "{ran:?}");
}

#[test]
fn every_chunk_runs_once_and_phases_are_in_order_on_any_nodes() {
    // Uneven, the caller's not the first, more nodes than chunks, and nodes whose part of a phase is empty.
    for nodes in [&[0, 0, 0, 1][..], &[9, 9, 4], &[3, 1, 0, 2], &[6, 6]] {
        let workers = by_node(nodes);
        let phases = [4, 0, 1, 7, 0, 3, 2, 1];
        for _ in 0..ROUNDS / 10 {
            let finished: Vec<_> = phases.iter().map(|_| AtomicU32::new(0)).collect();
            let ran: Vec<_> = phases.iter().map(|n| Ran::new(*n as usize)).collect();
            workers.run_phases(&phases, &|phase, chunk, worker| {
                ran[phase].by(chunk, worker);
                for before in 0..phase {
                    assert_eq!(finished[before].load(Ordering::Relaxed), phases[before]);
                }
                finished[phase].fetch_add(1, Ordering::Relaxed);
            });
            ran.into_iter().for_each(|ran| drop(ran.workers()));
        }
    }
}

/// The publisher of a phase whose last nodes have no chunks may be overtaken by the phases that follow: it must not touch
/// the counters of those nodes then.
#[test]
fn a_late_publisher_touches_no_later_phase() {
    let workers = by_node(&[0, 1, 2]);
    let ends = [1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 2, 3, 0, 0, 0, 2, 2, 2];
    for _ in 0..ROUNDS {
        let count = AtomicU32::new(0);
        workers.run_by_node(&ends, &|_, _, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 8);
    }
}

#[test]
fn at_home_nobody_helps() {
    let workers = by_node(&[0, 0, 1, 1]);
    for _ in 0..ROUNDS / 100 + 1 {
        let ran = Ran::new(20);
        let of_first = AtomicUsize::new(0);
        workers.run_at_home(&[4, 20], &|chunk, worker| {
            ran.by(chunk, worker);
            match worker {
                0 | 1 => {
                    of_first.fetch_add(1, Ordering::SeqCst);
                }
                // The first node has long been idle when the second goes on.
                _ => {
                    while of_first.load(Ordering::SeqCst) < 4 {
                        thread::yield_now();
                    }
                }
            }
        });
        for (chunk, worker) in ran.workers().into_iter().enumerate() {
            assert_eq!(worker / 2, usize::from(chunk >= 4), "chunk {chunk}");
        }
    }
}

#[test]
fn sleepers_of_another_node_wake_for_what_is_theirs() {
    let workers = by_node(&[0, 1, 1]);
    while workers.shared.sleepers.load(Ordering::SeqCst) < 2 {
        thread::yield_now();
    }
    // Two chunks that wait for each other, neither of which is the caller's.
    let both = Barrier::new(2);
    workers.run_at_home(&[0, 2], &|_, worker| {
        assert_ne!(worker, 0);
        both.wait();
    });
    // A job that is for everybody follows one that was not.
    let all = Barrier::new(3);
    workers.run(3, &|_, _| {
        all.wait();
    });
}

#[test]
fn nodes_that_are_not_one_for_each_worker_are_refused() {
    assert!(Workers::by_node(2, &[], &[0]).is_err());
    assert!(Workers::by_node(2, &[], &[0, 1, 1]).is_err());
}

/// A node that the machine does not have is a number like any other, and the caller is where it was afterwards.
#[cfg(all(target_os = "linux", not(miri)))]
#[test]
fn the_caller_is_on_its_node_while_it_matters() {
    let allowed = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    };
    let before = allowed();
    let cpu: String = before.chars().take_while(char::is_ascii_digit).collect();
    let cpu: u32 = cpu.parse().unwrap();
    let workers = Workers::by_node(2, &[cpu, cpu], &[0, 700]).unwrap();
    let both = Barrier::new(2);
    workers.run_at_home(&[1, 2], &|chunk, worker| {
        assert_eq!((chunk, allowed()), (worker, cpu.to_string()));
        both.wait();
    });
    assert_eq!(allowed(), before);
    workers.run(1, &|_, _| assert_eq!(allowed(), before));
    workers.stay_on_node().unwrap();
    assert_eq!(allowed(), cpu.to_string());
}
