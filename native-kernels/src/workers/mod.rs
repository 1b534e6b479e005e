//! Threads that stay: one dispatch of chunked work costs well under a microsecond while they are awake.
//!
//! A job is a function and a list of phases, each a number of chunks. Chunks are claimed one at a time from a counter, by
//! the caller too, and whoever finishes the last chunk of a phase publishes the next one: so a whole step of a model is
//! one dispatch, and a thread that the system has put aside delays nobody unless it holds a chunk. Idle threads spin for
//! a short while (the next phase is about to come), then sleep. Measured elsewhere and the reason for this design:
//! spinning fork and join 0.3 µs, waking a sleeper 40 µs, a barrier over a descheduled thread 8 to 24 ms.
//!
//! Where memory is near to some workers and far from others they are of several nodes. Each node has chunks of its own,
//! and a counter for them: its workers claim those first, and then what the other nodes have not got to.

mod affinity;
mod nodes;
mod shared;

#[cfg(test)]
mod node_tests;
#[cfg(test)]
mod tests;

pub(crate) use nodes::Nodes;

use shared::{Apart, Job, MOST_CHUNKS, Shared, lock};
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::{hint, io};

/// Spins of the caller before it offers its CPU to a worker that may not be running.
const CALLER_SPINS: u32 = if cfg!(miri) { 10 } else { 2_000 };

/// Called with the phase, the chunk and the worker.
type Chunk<'a> = dyn Fn(usize, usize, usize) + Sync + 'a;

/// A fixed set of threads for the kernels.
pub struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    cpus: Vec<u32>,
    nodes: Nodes,
    /// Held for the length of a job: there is one at a time.
    dispatch: Mutex<()>,
}

impl Workers {
    /// Workers of one node; see [`Workers::by_node`].
    ///
    /// **Errors**: no such number of threads can be started, or a CPU is not to be had.
    pub fn new(threads: usize, cpus: &[u32]) -> io::Result<Self> {
        Self::by_node(threads, cpus, &[])
    }

    /// `threads` workers of which the caller of [`Workers::run`] is the first, so one thread less is started.
    ///
    /// `cpus` are the logical CPUs to pin them to, one for each worker, or empty for none. The caller's thread is not
    /// touched until it asks for it by [`Workers::stay_on_node`]. `nodes` are the NUMA nodes that those CPUs are of, in
    /// whatever numbers, one for each worker, or empty if all are of one. It decides who does what first and where
    /// matrices lie, and no result.
    ///
    /// **Errors**: no such number of threads can be started, or a CPU is not to be had.
    pub fn by_node(threads: usize, cpus: &[u32], nodes: &[u32]) -> io::Result<Self> {
        let fits = |list: &[u32]| list.is_empty() || list.len() == threads;
        if threads == 0 || !fits(cpus) || !fits(nodes) {
            let (cpus, nodes) = (cpus.len(), nodes.len());
            let what = format!("{threads} workers on {cpus} cpus, of {nodes} nodes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let nodes = Nodes::new(threads, nodes);
        let mut workers = Self {
            shared: Arc::new(Shared::new(nodes.len())),
            threads: Vec::with_capacity(threads - 1),
            cpus: cpus.to_vec(),
            nodes,
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

    /// Which node each worker is of.
    pub(crate) fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Keeps the calling thread on the CPUs of the first worker's node from now on, for one that is about to call
    /// [`Workers::run`] again and again. Does nothing if the workers are not pinned or of one node.
    pub fn stay_on_node(&self) -> io::Result<()> {
        match self.caller_cpus() {
            Some(cpus) => affinity::pin_to(&cpus),
            None => Ok(()),
        }
    }

    /// The CPUs of the first worker's node, if that is one of several and known.
    fn caller_cpus(&self) -> Option<Vec<u32>> {
        let several = self.nodes.len() > 1 && !self.cpus.is_empty();
        let workers = self.nodes.workers_of(self.nodes.of(0));
        several.then(|| workers.map(|worker| self.cpus[worker]).collect())
    }

    /// Calls `f(chunk, worker)` once for every chunk below `chunks` and returns when all have returned.
    ///
    /// As [`Workers::run_phases`] with one phase.
    pub fn run(&self, chunks: usize, f: &(dyn Fn(usize, usize) + Sync)) {
        let chunks = u32::try_from(chunks).expect("a job has fewer than 2^30 chunks");
        self.run_phases(&[chunks], &|_, chunk, worker| f(chunk, worker));
    }

    /// Calls `f(phase, chunk, worker)` once for every chunk below `phases[phase]`, phase by phase: no chunk of a phase
    /// begins before every chunk of those before it has returned, and what they wrote is seen.
    ///
    /// `worker` is below [`Workers::len`]; chunks of one call that overlap in time have different ones. Calls from within
    /// a chunk, and calls while another thread's job runs, are carried out by the calling thread alone.
    ///
    /// **Panics** with the first panic of a chunk, after all chunks of all phases have ended; or if a phase has 2^30
    /// chunks.
    pub fn run_phases(&self, phases: &[u32], f: &Chunk<'_>) {
        if self.nodes.len() == 1 {
            return self.run_by_node(phases, f);
        }
        let share = |&chunks: &u32| {
            let nodes = 0..self.nodes.len();
            nodes.map(move |node| self.nodes.share(chunks as usize, node).end as u32)
        };
        let ends: Vec<u32> = phases.iter().flat_map(share).collect();
        self.run_by_node(&ends, f);
    }

    /// As [`Workers::run_phases`], with the chunks of each node: its workers do those first.
    ///
    /// **Shapes**: `ends: [phases][nodes]`, where the chunks of each node end; they follow those of the node before.
    pub(crate) fn run_by_node(&self, ends: &[u32], f: &Chunk<'_>) {
        self.run_job(Job {
            ends,
            at_home: false,
            f,
        });
    }

    /// Calls `f(chunk, worker)` once for every chunk, each on a CPU of its node: for who writes to memory first decides
    /// where it lies. A node that is held up is waited for.
    ///
    /// Within a chunk, while another thread's job runs, and without other workers, it is carried out by the calling thread
    /// alone, on its node.
    ///
    /// **Shapes**: `ends: [nodes]`, where the chunks of each node end; they follow those of the node before.
    pub(crate) fn run_at_home(&self, ends: &[u32], f: &(dyn Fn(usize, usize) + Sync)) {
        let _stay = self.caller_cpus().and_then(|cpus| affinity::stay_on(&cpus));
        self.run_job(Job {
            ends,
            at_home: true,
            f: &|_, chunk, worker| f(chunk, worker),
        });
    }

    fn run_job(&self, job: Job<'_>) {
        let nodes = self.nodes.len();
        let phases = || job.ends.chunks_exact(nodes).map(|ends| ends[nodes - 1]);
        assert!(phases().all(|n| n < MOST_CHUNKS), "too many chunks");
        let alone = || {
            for (phase, chunks) in phases().enumerate() {
                (0..chunks as usize).for_each(|chunk| (job.f)(phase, chunk, 0));
            }
        };
        let Some(first) = job.next_phase(nodes, 0) else {
            return;
        };
        let small = !job.at_home && phases().all(|chunks| chunks <= 1);
        if self.threads.is_empty() || small {
            return alone();
        }
        match self.dispatch.try_lock() {
            Ok(guard) => self.dispatch(&Apart(job), first, guard),
            Err(_) => alone(),
        }
    }

    fn dispatch(&self, Apart(job): &Apart<Job<'_>>, first: usize, guard: MutexGuard<'_, ()>) {
        let (shared, node) = (&*self.shared, self.nodes.of(0));
        // SAFETY: the guard is held by one thread at a time, and below it waits until it is done while `job` is borrowed.
        unsafe { shared.begin(job, first) };
        // The workers that hold a chunk read `job`: it may not go before the last phase is done.
        let mut spins = 0;
        while !shared.is_done() {
            if let Some(claimed) = shared.claim(node) {
                // SAFETY: the chunk was claimed from the job that this call has published.
                unsafe { shared.execute(&claimed, 0) };
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
        let node = self.nodes.of(worker);
        let (report, pinned) = std::sync::mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("worker-{worker}"))
            .spawn(move || {
                let result = cpu.map_or(Ok(()), |cpu| affinity::pin_to(&[cpu]));
                let ready = result.is_ok();
                // The receiver waits for this one message.
                let _ = report.send(result);
                if ready {
                    shared.work(worker, node);
                }
            })?;
        pinned.recv().expect("the thread reports before it works")?;
        Ok(thread)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.stop();
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
            .field("nodes", &self.nodes)
            .finish()
    }
}
