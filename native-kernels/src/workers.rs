//! Threads that stay: one dispatch of chunked work costs well under a microsecond while they are awake.
//!
//! A job is a function and a number of chunks. Chunks are claimed one at a time from a counter, by the caller too, so a
//! thread that the system has put aside delays nobody unless it holds a chunk. Idle threads spin for a short while (the
//! next operation of the same step is about to come), then sleep. Measured elsewhere and the reason for this design:
//! spinning fork and join 0.3 µs, waking a sleeper 40 µs, a barrier over a descheduled thread 8 to 24 ms.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::{hint, io, ptr};

/// Spins before an idle thread sleeps: 50 to 150 µs on current machines.
const SPINS: u32 = 4_000;
/// Spins of the caller before it offers its CPU to a worker that may not be running.
const CALLER_SPINS: u32 = 2_000;

type Chunk<'a> = dyn Fn(usize, usize) + Sync + 'a;

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
    /// `worker` is below [`Workers::len`] and tells who runs the chunk, for statistics: it is no promise that two
    /// chunks with the same number do not overlap. Calls from within a chunk, and calls while another thread's job
    /// runs, are carried out by the calling thread alone.
    ///
    /// **Panics** with the first panic of a chunk, after all chunks have ended.
    pub fn run(&self, chunks: usize, f: &Chunk<'_>) {
        let alone = |chunks| (0..chunks).for_each(|chunk| f(chunk, 0));
        if chunks <= 1 || self.threads.is_empty() {
            return alone(chunks);
        }
        match self.dispatch.try_lock() {
            Ok(guard) => self.dispatch(chunks, f, guard),
            Err(_) => alone(chunks),
        }
    }

    fn dispatch(&self, chunks: usize, f: &Chunk<'_>, guard: MutexGuard<'_, ()>) {
        let shared = &*self.shared;
        let chunks = u32::try_from(chunks)
            .ok()
            .filter(|&chunks| chunks < u32::MAX)
            .expect("a job has fewer than 2^32 - 1 chunks");
        let job = Job { f };
        shared.unfinished.store(chunks as usize, Ordering::Relaxed);
        let published = ptr::from_ref(&job).cast_mut().cast();
        shared.job.store(published, Ordering::Relaxed);
        shared.claims.store(claims(chunks, 0), Ordering::SeqCst);
        shared.wake_sleepers();

        while let Some(chunk) = shared.claim() {
            // SAFETY: the chunk was claimed from the job that this call has published.
            unsafe { shared.execute(chunk, 0) };
        }
        // The workers that still hold a chunk read `job` and `f`: neither may go before they are done.
        shared.wait_until_finished();
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

/// What a published job consists of; it lives on the stack of the caller of `run`.
struct Job<'a> {
    f: &'a Chunk<'a>,
}

/// What the threads share.
///
/// **Invariant:** between a successful `claim` and the `unfinished` count going down for it, `job` points to a live
/// `Job`. A claim succeeds only while `next < chunks`, which holds only after a job was published; its publisher does
/// not return before `unfinished` is zero, and the next job is not published before that. So the order is: claim, then
/// read `job`. What a thread read before it claimed proves nothing, and nothing is read before.
#[derive(Default)]
struct Shared {
    /// Number of chunks in the upper half, next chunk to claim in the lower.
    claims: AtomicU64,
    job: AtomicPtr<()>,
    unfinished: AtomicUsize,
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

    /// Runs a claimed chunk and counts it as finished.
    ///
    /// # Safety
    /// `chunk` comes from `claim` and is executed once.
    unsafe fn execute(&self, chunk: usize, worker: usize) {
        let job = self.job.load(Ordering::Relaxed).cast::<Job<'_>>();
        // SAFETY: the chunk is claimed and not finished, so the job lives (see the invariant); the claim acquired what
        // its publisher had written.
        let f = unsafe { (*job).f };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| f(chunk, worker))) {
            lock(&self.panic).get_or_insert(panic);
        }
        self.unfinished.fetch_sub(1, Ordering::Release);
    }

    fn wait_until_finished(&self) {
        let mut spins = 0;
        while self.unfinished.load(Ordering::Acquire) != 0 {
            if spins < CALLER_SPINS {
                spins += 1;
                hint::spin_loop();
            } else {
                thread::yield_now();
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
    use std::sync::atomic::AtomicBool;

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
    fn jobs_in_quick_succession_see_their_own_data() {
        let workers = Workers::new(4, &[]).unwrap();
        for round in 0..20_000usize {
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
