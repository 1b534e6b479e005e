//! Threads that stay: one dispatch of chunked work costs well under a microsecond while they are awake.
//!
//! A job is a function and a list of phases, each a number of chunks. Chunks are claimed one at a time from a counter, by
//! the caller too, and whoever finishes the last chunk of a phase publishes the next one: so a whole step of a model is
//! one dispatch, and a thread that the system has put aside delays nobody unless it holds a chunk. Idle threads spin for
//! a short while (the next phase is about to come), then sleep. Measured elsewhere and the reason for this design:
//! spinning fork and join 0.3 µs, waking a sleeper 40 µs, a barrier over a descheduled thread 8 to 24 ms.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::{hint, io, ptr};

/// Spins before an idle thread sleeps: 50 to 150 µs on current machines.
const SPINS: u32 = if cfg!(miri) { 10 } else { 4_000 };
/// Spins of the caller before it offers its CPU to a worker that may not be running.
const CALLER_SPINS: u32 = if cfg!(miri) { 10 } else { 2_000 };

/// Called with the phase, the chunk and the worker.
type Chunk<'a> = dyn Fn(usize, usize, usize) + Sync + 'a;

/// A fixed set of threads for the kernels.
pub struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    cpus: Vec<u32>,
    /// Held for the length of a job: there is one at a time.
    dispatch: Mutex<()>,
}

impl Workers {
    /// `threads` workers of which the caller of [`Workers::run`] is the first, so one thread less is started.
    ///
    /// `cpus` are the logical CPUs to pin them to, one for each worker, or empty for none. The caller's thread is not
    /// touched until it asks for it by [`Workers::pin_caller`].
    ///
    /// **Errors**: no such number of threads can be started, or a CPU is not to be had.
    pub fn new(threads: usize, cpus: &[u32]) -> io::Result<Self> {
        if threads == 0 || !(cpus.is_empty() || cpus.len() == threads) {
            let what = format!("{threads} workers on {} cpus", cpus.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let shared = Arc::new(Shared::default());
        let mut workers = Self {
            shared,
            threads: Vec::with_capacity(threads - 1),
            cpus: cpus.to_vec(),
            dispatch: Mutex::new(()),
        };
        // A failure on the way drops `workers`, which stops the threads already started.
        for worker in 1..threads {
            let thread = workers.start(worker)?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Number of workers, the caller included.
    #[allow(clippy::len_without_is_empty, reason = "there is always a worker")]
    pub fn len(&self) -> usize {
        self.threads.len() + 1
    }

    /// Pins the calling thread to the CPU of the first worker; does nothing if the workers are not pinned.
    pub fn pin_caller(&self) -> io::Result<()> {
        self.cpus.first().map_or(Ok(()), |&cpu| pin_to(cpu))
    }

    /// Calls `f(chunk, worker)` once for every chunk below `chunks` and returns when all have returned.
    ///
    /// As [`Workers::run_phases`] with one phase.
    pub fn run(&self, chunks: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        let chunks = u32::try_from(chunks).expect("a job has fewer than 2^32 chunks");
        self.run_phases(&[chunks], &|_, chunk, worker| f(chunk, worker));
    }

    /// Calls `f(phase, chunk, worker)` once for every chunk below `phases[phase]`, phase by phase: no chunk of a phase
    /// begins before every chunk of those before it has returned, and what they wrote is seen.
    ///
    /// `worker` is below [`Workers::len`]; chunks of one call that overlap in time have different ones. Calls from within
    /// a chunk, and calls while another thread's job runs, are carried out by the calling thread alone.
    ///
    /// **Panics** with the first panic of a chunk, after all chunks of all phases have ended.
    pub fn run_phases(&self, phases: &[u32], f: &Chunk<'_>) {
        let alone = || {
            for (phase, &chunks) in phases.iter().enumerate() {
                (0..chunks as usize).for_each(|chunk| f(phase, chunk, 0));
            }
        };
        let Some(first) = next_phase(phases, 0) else {
            return;
        };
        if self.threads.is_empty() || phases.iter().all(|&chunks| chunks <= 1) {
            return alone();
        }
        match self.dispatch.try_lock() {
            Ok(guard) => self.dispatch(Job { phases, f }, first, guard),
            Err(_) => alone(),
        }
    }

    fn dispatch(&self, job: Job<'_>, first: usize, guard: MutexGuard<'_, ()>) {
        let shared = &*self.shared;
        shared.done.store(false, Ordering::Relaxed);
        let published = ptr::from_ref(&job).cast_mut().cast();
        shared.job.store(published, Ordering::Relaxed);
        shared.publish(&job, first);
        // The workers that hold a chunk read `job`: it may not go before the last phase is done.
        let mut spins = 0;
        while !shared.done.load(Ordering::Acquire) {
            if let Some(chunk) = shared.claim() {
                // SAFETY: the chunk was claimed from the job that this call has published.
                unsafe { shared.execute(chunk, 0) };
                spins = 0;
            } else if spins < CALLER_SPINS {
                spins += 1;
                hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
        let panic = lock(&shared.panic).take();
        drop(guard);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    fn start(&self, worker: usize) -> io::Result<JoinHandle<()>> {
        let shared = self.shared.clone();
        let cpu = self.cpus.get(worker).copied();
        let (report, pinned) = std::sync::mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("worker-{worker}"))
            .spawn(move || {
                let result = cpu.map_or(Ok(()), pin_to);
                let ready = result.is_ok();
                // The receiver waits for this one message.
                let _ = report.send(result);
                if ready {
                    shared.work(worker);
                }
            })?;
        pinned.recv().expect("the thread reports before it works")?;
        Ok(thread)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.claims.store(STOP, Ordering::SeqCst);
        self.shared.wake_sleepers();
        for thread in self.threads.drain(..) {
            // A worker catches the panics of chunks, so it ends without one.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers")
            .field("len", &self.len())
            .field("cpus", &self.cpus)
            .finish()
    }
}

/// What a published job consists of; it lives on the stack of the caller of `run_phases`.
#[derive(Clone, Copy)]
struct Job<'a> {
    phases: &'a [u32],
    f: &'a Chunk<'a>,
}

/// The first phase from `from` on that has chunks.
fn next_phase(phases: &[u32], from: usize) -> Option<usize> {
    (from..phases.len()).find(|&phase| phases[phase] > 0)
}

/// What the threads share.
///
/// **Invariant:** between a successful `claim` and the `unfinished` count going down for it, `job` points to a live
/// `Job` and `phase` is the phase of the claimed chunk. A claim succeeds only while `next < chunks`, which holds only
/// after a phase was published; the next one is published when `unfinished` is zero, and the publisher of the job does
/// not return before `done`, which is set when there is none. So the order is: claim, then read `job` and `phase`. What
/// a thread read before it claimed proves nothing, and nothing is read before.
#[derive(Default)]
struct Shared {
    /// Number of chunks in the upper half, next chunk to claim in the lower.
    claims: AtomicU64,
    job: AtomicPtr<()>,
    phase: AtomicUsize,
    unfinished: AtomicUsize,
    done: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicU32,
    asleep: Mutex<()>,
    wake: Condvar,
}

const STOP: u64 = u64::MAX;

fn claims(chunks: u32, next: u32) -> u64 {
    u64::from(chunks) << 32 | u64::from(next)
}

/// A mutex here guards no invariant that a panic could break.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Life of a worker thread.
    fn work(&self, worker: usize) {
        let mut spins = 0;
        loop {
            if let Some(chunk) = self.claim() {
                // SAFETY: the chunk was just claimed.
                unsafe { self.execute(chunk, worker) };
                spins = 0;
            } else if self.claims.load(Ordering::Relaxed) == STOP {
                return;
            } else if spins < SPINS {
                spins += 1;
                hint::spin_loop();
            } else {
                self.sleep();
                spins = 0;
            }
        }
    }

    /// The next chunk of the current job, if there is one left.
    fn claim(&self) -> Option<usize> {
        let mut seen = self.claims.load(Ordering::Acquire);
        loop {
            let (chunks, next) = ((seen >> 32) as u32, seen as u32);
            if next >= chunks {
                return None;
            }
            match self.claims.compare_exchange_weak(
                seen,
                claims(chunks, next + 1),
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(next as usize),
                Err(now) => seen = now,
            }
        }
    }

    /// Makes the chunks of a phase available.
    fn publish(&self, job: &Job<'_>, phase: usize) {
        let chunks = job.phases[phase];
        self.phase.store(phase, Ordering::Relaxed);
        self.unfinished.store(chunks as usize, Ordering::Relaxed);
        self.claims.store(claims(chunks, 0), Ordering::SeqCst);
        self.wake_sleepers();
    }

    /// Runs a claimed chunk and counts it as finished; the last of a phase publishes the next phase.
    ///
    /// # Safety
    /// `chunk` comes from `claim` and is executed once.
    unsafe fn execute(&self, chunk: usize, worker: usize) {
        let job = self.job.load(Ordering::Relaxed).cast::<Job<'_>>();
        // SAFETY: the chunk is claimed and not finished, so the job lives (see the invariant); the claim acquired what
        // its publisher had written.
        let Job { phases, f } = *unsafe { &*job };
        let phase = self.phase.load(Ordering::Relaxed);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| f(phase, chunk, worker))) {
            lock(&self.panic).get_or_insert(panic);
        }
        // Acquires what the other chunks have written, for whoever claims from the phase that is published next.
        if self.unfinished.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The job lives on: its caller waits for `done`, which only this thread can set now.
            match next_phase(phases, phase + 1) {
                Some(next) => self.publish(&Job { phases, f }, next),
                None => self.done.store(true, Ordering::Release),
            }
        }
    }

    fn has_work(&self) -> bool {
        let seen = self.claims.load(Ordering::SeqCst);
        seen == STOP || (seen as u32) < (seen >> 32) as u32
    }

    /// Sleeps until the next job. A job published after the count went up sees a sleeper; one published before is seen
    /// by `has_work`; and the lock keeps the wake-up from falling between that look and the wait.
    fn sleep(&self) {
        let mut guard = lock(&self.asleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !self.has_work() {
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

#[cfg(target_os = "linux")]
fn pin_to(cpu: u32) -> io::Result<()> {
    let cpu = cpu as usize;
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: a CPU set is plain bits, for which zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number was checked against the size of the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is valid for the size given with it; 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Other systems have no such call or none that binds; the plan's wish is a wish.
#[cfg(not(target_os = "linux"))]
fn pin_to(_: u32) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
