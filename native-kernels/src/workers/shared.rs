//! What the threads share: how a phase is published, claimed chunk by chunk, and followed by the next one.

use super::Chunk;
use std::any::Any;
use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Spins before an idle thread sleeps: 50 to 150 µs on current machines.
const SPINS: u32 = if cfg!(miri) { 10 } else { 4_000 };

/// On cache lines of its own.
#[repr(align(128))]
pub(super) struct Apart<T>(pub T);

/// What a published job consists of; it lives on the stack of the caller of `run_phases`, apart from what that writes
/// there: every chunk reads it.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    /// `[phases][nodes]`: where the chunks of each node end. They begin where those of the node before end, and those of
    /// the first at zero.
    pub ends: &'a [u32],
    /// A chunk is run by a worker of its node and by nobody else.
    pub at_home: bool,
    pub f: &'a Chunk<'a>,
}

impl Job<'_> {
    /// The first phase from `from` on that has chunks.
    pub fn next_phase(&self, nodes: usize, from: usize) -> Option<usize> {
        // Whoever looks is waited for by all the others: no division.
        let mut last = from * nodes + nodes - 1;
        let mut phase = from;
        while *self.ends.get(last)? == 0 {
            (last, phase) = (last + nodes, phase + 1);
        }
        Some(phase)
    }
}

/// The chunks of one node that nobody has claimed or finished, and what they are chunks of. All that changes with every
/// chunk is on one cache line, which whoever runs chunks in quick succession keeps; and a node that counts its chunks does
/// not disturb another. (Aligned to two lines, as processors fetch them.)
#[derive(Default)]
#[repr(align(128))]
struct Counter {
    /// [`AT_HOME`], [`ODD`] and the end of the node's chunks in the upper half, next chunk to claim in the lower.
    claims: AtomicU64,
    unfinished: AtomicUsize,
    job: AtomicPtr<()>,
    phase: AtomicUsize,
}

/// The chunks are for the node's own workers.
const AT_HOME: u64 = 1 << 63;

/// Changes from phase to phase, so that the counters of one phase can be told from those of the one before.
const ODD: u64 = 1 << 62;

/// Chunks of a phase are less than this.
pub(super) const MOST_CHUNKS: u32 = 1 << 30;

/// Nothing to claim, ever again.
const STOP: u64 = u64::MAX;

/// The next chunk of a counter, if there is one left.
fn next(claims: u64) -> Option<u32> {
    let (end, next) = ((claims >> 32) as u32 % MOST_CHUNKS, claims as u32);
    (next < end).then_some(next)
}

impl Counter {
    /// The next chunk, if there is one left and `may` says so of the counter; else the counter as it was seen.
    fn claim(&self, may: impl Fn(u64) -> bool) -> Result<Claimed<'_>, u64> {
        let mut seen = self.claims.load(Ordering::Acquire);
        loop {
            let Some(chunk) = next(seen).filter(|_| may(seen)) else {
                return Err(seen);
            };
            match self.claims.compare_exchange_weak(
                seen,
                // The chunk is below the end, so this stays in the lower half.
                seen + 1,
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    return Ok(Claimed {
                        counter: self,
                        seen,
                        chunk: chunk as usize,
                    });
                }
                Err(now) => seen = now,
            }
        }
    }
}

/// A chunk that its holder runs once.
pub(super) struct Claimed<'a> {
    counter: &'a Counter,
    /// The counter before the claim.
    seen: u64,
    chunk: usize,
}

/// How far the job is, on cache lines of its own as well: it changes when a node has finished.
#[derive(Default)]
#[repr(align(128))]
struct Progress {
    /// Nodes that have unfinished chunks. Not kept where there is one node, whose counter says as much.
    nodes: AtomicUsize,
    done: AtomicBool,
}

/// What the threads share.
///
/// Each node has a counter of its chunks. A worker claims from its own node's, then from the others', so that a node
/// which is held up delays nobody; chunks of a job that is `at_home` are left alone by the others.
///
/// **Invariant:** between a successful claim and the counter's `unfinished` going down for it, the `job` beside the
/// counter points to a live `Job` and the `phase` beside it is the phase of the claimed chunk. The argument:
///
/// 1. A claim succeeds only while a counter has chunks left, which holds only after a phase was published. Publishing
///    sets `nodes` to *all* that have chunks before any counter is set, and writes `unfinished`, `job` and `phase` before
///    `claims` of the same counter, with release. A claim acquires what it reads: the store itself, or one that other
///    claims have changed since, which carries the store's release on. So whoever claims sees all of these of its phase,
///    from whichever counter. What a thread read before it claimed proves nothing, and nothing is read before: a claim
///    that was begun in an older phase succeeds only if the counter has the same value again, and then is one of the
///    newer phase.
/// 2. Whoever brings a counter's `unfinished` to zero takes its node off `nodes`, and who brings that to zero publishes
///    the next phase: every chunk was claimed and has returned, so no counter has chunks left and nobody reads `job` or
///    `phase`. Both counts are changed with acquire and release, so that this thread has seen what all chunks wrote and
///    what the publisher before it stored (each counter's store is seen by who claims from it), and hands it on to whoever
///    claims next.
/// 3. Counters are set one after the other: those that have no chunks first, then the others. Workers claim from one
///    while the last is not yet set, but the phase cannot end before: the last one's node is in `nodes`. After its store
///    the phase may end at any moment; no store to a counter follows, which would fall into another phase, and the job is
///    not looked at.
/// 4. The publisher of the job does not return before `done`, which is set when there is no next phase: until then the
///    job lives. Whoever stores to a counter is not past its last store, so `done` is not set: when the workers are
///    stopped, no store is under way that could undo it.
///
/// One thing rests on nothing but good manners. While counters are set one after the other, a worker whose own is not
/// yet set would help others before it has looked at its own chunks. So it helps only where a counter is of the same
/// phase as its own was when that had no chunks left ([`ODD`]): every phase sets every counter, so they differ by one
/// phase at most. Which chunk is whose does not depend on it.
pub(super) struct Shared {
    counters: Box<[Counter]>,
    progress: Progress,
    pub panic: Mutex<Option<Box<dyn Any + Send>>>,
    pub sleepers: AtomicU32,
    asleep: Mutex<()>,
    wake: Condvar,
}

/// A mutex here guards no invariant that a panic could break.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(nodes: usize) -> Self {
        Self {
            counters: (0..nodes).map(|_| Counter::default()).collect(),
            progress: Progress::default(),
            panic: Mutex::new(None),
            sleepers: AtomicU32::new(0),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Life of a worker thread of a node.
    pub fn work(&self, worker: usize, node: usize) {
        let mut spins = 0;
        loop {
            if let Some(claimed) = self.claim(node) {
                // SAFETY: the chunk was just claimed.
                unsafe { self.execute(&claimed, worker) };
                spins = 0;
            } else if self.counters[node].claims.load(Ordering::Relaxed) == STOP {
                return;
            } else if spins < SPINS {
                spins += 1;
                hint::spin_loop();
            } else {
                self.sleep(node);
                spins = 0;
            }
        }
    }

    /// The next chunk of the current phase that a worker of this node may run, if there is one left.
    pub fn claim(&self, node: usize) -> Option<Claimed<'_>> {
        let own = match self.counters[node].claim(|_| true) {
            Ok(claimed) => return Some(claimed),
            Err(seen) => seen,
        };
        if self.counters.len() == 1 {
            return None;
        }
        let may = |claims: u64| claims & AT_HOME == 0 && claims & ODD == own & ODD;
        // Each node helps the next one first, so that not all help the same.
        let (before, after) = (&self.counters[..node], &self.counters[node + 1..]);
        let mut others = after.iter().chain(before);
        others.find_map(|counter| counter.claim(may).ok())
    }

    /// Begins a job.
    ///
    /// # Safety
    /// No other job is under way, and `job` lives until it is done.
    pub unsafe fn begin(&self, job: &Job<'_>, first: usize) {
        self.progress.done.store(false, Ordering::Relaxed);
        let address = std::ptr::from_ref(job).cast_mut().cast();
        let before = self.counters[0].claims.load(Ordering::Relaxed);
        self.publish(job, address, first, before);
    }

    /// Has every chunk of the job returned? Then what they wrote is seen.
    pub fn is_done(&self) -> bool {
        self.progress.done.load(Ordering::Acquire)
    }

    /// Makes the chunks of a phase available; there is at least one. `before` is a counter of the phase before.
    fn publish(&self, job: &Job<'_>, address: *mut (), phase: usize, before: u64) {
        let nodes = self.counters.len();
        let ends = &job.ends[phase * nodes..][..nodes];
        let chunks = ends[nodes - 1];
        let flags = !before & ODD | if job.at_home { AT_HOME } else { 0 };
        // In one order with the count of sleepers (`SeqCst`); a release as well.
        let set = |counter: &Counter, (start, end): (u32, u32)| {
            let claims = flags | u64::from(end) << 32 | u64::from(start);
            counter.claims.store(claims, Ordering::SeqCst);
        };
        if nodes > 1 {
            let (mut start, mut with_chunks) = (0, 0);
            for (counter, &end) in self.counters.iter().zip(ends) {
                match start == end {
                    true => set(counter, (0, 0)),
                    false => with_chunks += 1,
                }
                start = end;
            }
            self.progress.nodes.store(with_chunks, Ordering::Relaxed);
        }
        let mut start = 0;
        for (counter, &end) in self.counters.iter().zip(ends) {
            if start < end {
                let unfinished = (end - start) as usize;
                counter.unfinished.store(unfinished, Ordering::Relaxed);
                counter.job.store(address, Ordering::Relaxed);
                counter.phase.store(phase, Ordering::Relaxed);
                set(counter, (start, end));
            }
            start = end;
            if start == chunks {
                // From here on the job may be gone: not even its ends are read.
                break;
            }
        }
        self.wake_sleepers();
    }

    /// Runs a claimed chunk and counts it as finished; the last of a phase publishes the next phase.
    ///
    /// # Safety
    /// The chunk comes from `claim` and is executed once.
    pub unsafe fn execute(&self, claimed: &Claimed<'_>, worker: usize) {
        let Claimed {
            counter,
            seen,
            chunk,
        } = *claimed;
        let address = counter.job.load(Ordering::Relaxed);
        // SAFETY: the chunk is claimed and not finished, so the job lives (see the invariant); the claim acquired what
        // its publisher had written.
        let job = *unsafe { &*address.cast::<Job<'_>>() };
        let phase = counter.phase.load(Ordering::Relaxed);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (job.f)(phase, chunk, worker))) {
            lock(&self.panic).get_or_insert(panic);
        }
        // Acquires what the other chunks have written, for whoever claims from the phase that is published next.
        let last = |count: &AtomicUsize| count.fetch_sub(1, Ordering::AcqRel) == 1;
        let nodes = self.counters.len();
        if last(&counter.unfinished) && (nodes == 1 || last(&self.progress.nodes)) {
            // The job lives on: its caller waits for `done`, which only this thread can set now.
            match job.next_phase(nodes, phase + 1) {
                Some(next) => self.publish(&job, address, next, seen),
                None => self.progress.done.store(true, Ordering::Release),
            }
        }
    }

    /// Ends the threads. No job is under way.
    pub fn stop(&self) {
        for counter in &self.counters {
            counter.claims.store(STOP, Ordering::SeqCst);
        }
        self.wake_sleepers();
    }

    /// Is there something to do for a worker of this node? Looks at all counters, as a worker does.
    fn has_work(&self, node: usize) -> bool {
        let mut counters = self.counters.iter().enumerate();
        counters.any(|(of, counter)| {
            let seen = counter.claims.load(Ordering::SeqCst);
            let its = of == node || seen & AT_HOME == 0;
            seen == STOP || (its && next(seen).is_some())
        })
    }

    /// Sleeps until there is work for this node. Setting counters and counting sleepers are in one order (`SeqCst`): a
    /// publisher that looks at the count after it went up sees a sleeper; one that looks before has set all its counters
    /// before, and `has_work` sees them. The lock keeps the wake-up from falling between that look and the wait.
    fn sleep(&self, node: usize) {
        let mut guard = lock(&self.asleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !self.has_work(node) {
            guard = self
                .wake
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_sleepers(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.asleep));
            self.wake.notify_all();
        }
    }
}
