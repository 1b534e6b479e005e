//! A step of a model: operations over buffers, described once, then run by all workers in one dispatch a step.
//!
//! A [`Program`] holds the operations in order and the buffers that they read and write, one row a token. For each step,
//! every operation becomes one or a few **phases** (see [`Workers::run_phases`]), each cut into chunks that write
//! disjoint parts of the buffers. Chunks of products are numbered by the node on which their weights lie. Nothing is
//! decided here: which kernel multiplies which format was bound to the plan.
//!
//! **Invariant** (on which the `unsafe` of this module rests): in a phase, an element of a buffer, of the prepared
//! activations or of the cache is either written by exactly one chunk and read by no other, or written by none. Phases
//! are separated in time. A chunk's scratch is its worker's own.

mod account;
mod activations;
mod attention;
mod check;
mod linear;
mod mixture;
mod products;
mod rows;
mod shared;
mod tiled;

pub use crate::cpu::generic::elementwise::Activation;
pub use account::{ClassCost, ON_WANTED, PREPARE, Record, Unit, WRITE_CACHE};
pub use attention::Attention;
pub use linear::{Linear, Output, Weights};
pub use mixture::{Expert, Mixture};
pub use rows::Norm;

use crate::bind::{Bound, DecodeKernel, PrefillKernel};
use crate::cpu::generic::tile_attention::AttentionScratch;
use crate::cpu::generic::tile_matmul::TileWords;
use crate::kernel_set::KernelSet;
use crate::kv_cache::{KvCache, KvCells};
use crate::matrix::Matrix;
use crate::tensor::{Rows, RowsMut};
use crate::workers::{Nodes, Workers};
use activations::{Prepared, Shared};
use shared::SharedSlice;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Arc;
use tiled::Tiles;

/// A buffer of a program: rows of one width, one for each token of a step (or for each row whose logits are wanted).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer(usize);

/// Sequences that take part in a step, and what goes in.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// `[rows]`: tokens, those of a sequence side by side.
    pub tokens: &'a [u32],
    /// The sequences, in the order of their rows.
    pub sequences: &'a [Sequence<'a>],
    /// Rows whose logits are wanted.
    pub wanted: &'a [usize],
}

/// The rows of one sequence: row `i` of them stands at position `context_len - query_len + i`, attends to every position
/// up to its own, and its key and value go to that position in the blocks.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// First row of the step.
    pub query_start: usize,
    /// Rows of the step.
    pub query_len: usize,
    /// Keys of the sequence, those of these rows included.
    pub context_len: usize,
    /// Blocks of the cache, by position.
    pub block_table: &'a [u32],
}

impl Sequence<'_> {
    /// Position of the first row.
    fn position(&self) -> usize {
        self.context_len - self.query_len
    }
}

/// Operations in order, and their buffers.
pub struct Program {
    buffers: Vec<Storage>,
    /// Operations on rows of all tokens, with their labels.
    body: Vec<(&'static str, Op)>,
    /// Operations on rows that are wanted.
    head: Vec<(&'static str, Op)>,
    label: &'static str,
    record: Option<Record>,
    scratch: Vec<Scratch>,
    shared: Prepared,
    attention: attention::Room,
    mixture: mixture::Room,
    serial: u64,
}

struct Storage {
    width: usize,
    /// Of the rows whose logits are wanted, and not of all.
    wanted: bool,
    rows: Vec<f32>,
}

/// One operation.
enum Op {
    Embed(rows::Embed),
    Gather(rows::Gather),
    AddNormed(rows::AddNormed),
    Linear(Linear),
    Mixture(Mixture),
    Attention(Attention),
    SoftCap(rows::SoftCap),
}

/// Chunks of one operation that may run at the same time.
#[derive(Clone, Copy, Debug)]
struct Phase {
    op: usize,
    part: Part,
    chunks: u32,
    /// Rows, panels or queries of a chunk, whatever the operation counts.
    size: usize,
}

/// What of its operation a phase does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// All of it.
    Whole,
    /// Activations for a product, once for everybody.
    Prepare,
    /// Products of activations that each worker prepares for itself.
    MultiplyOwn,
    /// Products of activations that were prepared for everybody.
    MultiplyShared,
    /// New keys and values.
    WriteCache,
    /// Keys and values of long runs of rows into tiles.
    PackTiles,
    /// Attention; new keys and values of short runs of rows are written on the way.
    Attend,
    /// Partial results over ranges of keys into one.
    Merge,
    /// Which experts a row goes through.
    Route,
    /// First halves of the experts.
    Gates,
    /// Second halves of the experts.
    Downs,
    /// Results of the experts into their rows.
    Combine,
}

/// Rows whose logits are computed together: enough to share the head's weights, few enough to stay small.
pub const LOGIT_ROWS: usize = 32;

impl Program {
    /// A program without operations.
    pub fn new() -> Self {
        Self {
            buffers: Vec::new(),
            body: Vec::new(),
            head: Vec::new(),
            label: "",
            record: None,
            scratch: Vec::new(),
            shared: Prepared::default(),
            attention: attention::Room::default(),
            mixture: mixture::Room::default(),
            serial: 0,
        }
    }

    /// A buffer with a row of `width` elements for each token.
    pub fn buffer(&mut self, width: usize) -> Buffer {
        self.add_buffer(width, false)
    }

    /// A buffer with a row of `width` elements for each row whose logits are wanted.
    pub fn wanted_buffer(&mut self, width: usize) -> Buffer {
        self.add_buffer(width, true)
    }

    fn add_buffer(&mut self, width: usize, wanted: bool) -> Buffer {
        self.buffers.push(Storage {
            width,
            wanted,
            rows: Vec::new(),
        });
        Buffer(self.buffers.len() - 1)
    }

    /// Width of the rows of a buffer.
    pub fn width(&self, buffer: Buffer) -> usize {
        self.buffers[buffer.0].width
    }

    /// `to[i] = scale * table[tokens[i]]`, dequantised from the packed panels, so that one copy serves an embedding and a
    /// tied head.
    ///
    /// **Shapes**: `table: [vocabulary, n]`, `to: [rows, n]`.
    pub fn embed(&mut self, table: Arc<Matrix>, scale: f32, to: Buffer) {
        assert_width("to", self.width(to), table.cols());
        self.push(to, Op::Embed(rows::Embed { table, scale, to }));
    }

    /// The rows of `from` that are wanted, in their order.
    pub fn gather(&mut self, from: Buffer, to: Buffer) {
        assert_width("to", self.width(to), self.width(from));
        assert!(
            self.buffers[to.0].wanted && !self.buffers[from.0].wanted,
            "gathers wanted rows out of all"
        );
        self.push(to, Op::Gather(rows::Gather { from, to }));
    }

    /// `to += norm(from)`.
    pub fn add_normed(&mut self, from: Buffer, norm: Norm, to: Buffer) {
        assert_width("from", self.width(from), norm.weight.len());
        assert_width("to", self.width(to), norm.weight.len());
        assert!(from != to, "from one buffer to another");
        self.push(to, Op::AddNormed(rows::AddNormed { from, norm, to }));
    }

    /// `x = cap * tanh(x / cap)`.
    pub fn soft_cap(&mut self, x: Buffer, cap: f32) {
        self.push(x, Op::SoftCap(rows::SoftCap { x, cap }));
    }

    /// Products of the same activations with one or several matrices.
    pub fn linear(&mut self, linear: Linear) {
        linear.check(self);
        self.push(linear.from, Op::Linear(linear));
    }

    /// A mixture of experts.
    pub fn mixture(&mut self, mixture: Mixture) {
        mixture.check(self);
        self.push(mixture.from, Op::Mixture(mixture));
    }

    /// Attention over the cache.
    pub fn attention(&mut self, attention: Attention) {
        attention.check(self);
        self.push(attention.query, Op::Attention(attention));
    }

    fn push(&mut self, buffer: Buffer, op: Op) {
        match self.buffers[buffer.0].wanted {
            true => self.head.push((self.label, op)),
            false => self.body.push((self.label, op)),
        }
    }

    /// Bytes of the matrices, each counted once.
    pub fn weight_bytes(&self) -> usize {
        let mut seen: Vec<*const Matrix> = Vec::new();
        let mut bytes = 0;
        for (_, op) in self.body.iter().chain(&self.head) {
            let matrices: Vec<&Arc<Matrix>> = match op {
                Op::Embed(embed) => vec![&embed.table],
                Op::Linear(linear) => linear.matrices().collect(),
                Op::Mixture(mixture) => mixture.matrices().collect(),
                _ => vec![],
            };
            for matrix in matrices {
                if !seen.contains(&Arc::as_ptr(matrix)) {
                    seen.push(Arc::as_ptr(matrix));
                    bytes += matrix.bytes();
                }
            }
        }
        bytes
    }

    /// `[rows * width]`: the first `rows` rows of a buffer.
    ///
    /// **Panics** if no step and no [`write`](Self::write) reached so many.
    pub fn read(&self, buffer: Buffer, rows: usize) -> &[f32] {
        let storage = &self.buffers[buffer.0];
        &storage.rows[..rows * storage.width]
    }

    /// `[rows * width]`: the first `rows` rows of a buffer, to write.
    pub fn write(&mut self, buffer: Buffer, rows: usize) -> &mut [f32] {
        let storage = &mut self.buffers[buffer.0];
        storage.reserve(rows);
        &mut storage.rows[..rows * storage.width]
    }

    /// Runs a step. For every [`LOGIT_ROWS`] wanted rows, `on_wanted` is called with their range in [`Step::wanted`];
    /// what the operations left in buffers of wanted rows is there then.
    ///
    /// **Panics** if sequences overlap or are out of order, a table is too short or names a block that the cache does not
    /// have, a token is beyond the vocabulary, a position beyond a table of angles, or a block that is written belongs
    /// to two sequences, or attention in pairs meets a cache of something other than `bf16`.
    pub fn run(
        &mut self,
        kernels: &KernelSet,
        workers: &Workers,
        step: &Step<'_>,
        cache: &mut KvCache,
        on_wanted: &mut dyn FnMut(&mut Self, Range<usize>),
    ) {
        check::check_step(step, cache);
        let step_begin = self.recorded_since();
        let mut wanted = 0..step.wanted.len().min(LOGIT_ROWS);
        self.run_ops(kernels, workers, step, cache, (true, wanted.clone()));
        while !wanted.is_empty() {
            let begin = self.recorded_since();
            on_wanted(self, wanted.clone());
            self.record_wanted(begin, kernels);
            wanted = wanted.end..step.wanted.len().min(wanted.end + LOGIT_ROWS);
            if !wanted.is_empty() {
                self.run_ops(kernels, workers, step, cache, (false, wanted.clone()));
            }
        }
        self.record_step(step_begin);
    }

    fn run_ops(
        &mut self,
        kernels: &KernelSet,
        workers: &Workers,
        step: &Step<'_>,
        cache: &mut KvCache,
        (body, wanted): (bool, Range<usize>),
    ) {
        let rows = step.tokens.len();
        let of_body = if body { &self.body[..] } else { &[] };
        let head_from = of_body.len();
        let (labels, ops): (Vec<&'static str>, Vec<&Op>) = (of_body.iter().chain(&self.head))
            .map(|(label, op)| (*label, op))
            .unzip();
        let lowering = Lowering {
            tiles: matches!(kernels.bound().attention_prefill, PrefillKernel::Tiles(_)),
            pairs: matches!(kernels.bound().attention_decode, DecodeKernel::Pairs(_)),
            workers: workers.len(),
            nodes: workers.nodes(),
            sequences: step.sequences,
            layout: *cache.layout(),
        };
        let mut phases = Vec::with_capacity(6 * ops.len());
        for (op, what) in ops.iter().enumerate() {
            let m = if op < head_from { rows } else { wanted.len() };
            if m > 0 {
                what.phases(&lowering, op, m, &mut phases);
            }
        }
        for storage in &mut self.buffers {
            storage.reserve(if storage.wanted { wanted.len() } else { rows });
        }
        self.scratch.resize_with(workers.len(), Scratch::default);
        // Kernels, and with them forms of activations, depend on the number of rows.
        self.shared
            .reserve(&ops[..head_from], kernels.bound(), rows);
        self.shared
            .reserve(&ops[head_from..], kernels.bound(), wanted.len());
        self.attention.reserve(&ops, &lowering);
        self.mixture.reserve(&ops, rows);
        // No two phases have the same number, of whatever steps: a worker knows what it prepared by it.
        let serial = self.serial + 1;
        self.serial += phases.len() as u64;
        let (partial, tiles) = self.attention.shared();
        let running = Running {
            bound: kernels.bound(),
            nodes: workers.nodes(),
            step,
            wanted: &step.wanted[wanted.clone()],
            views: self
                .buffers
                .iter_mut()
                .map(|storage| {
                    let m = if storage.wanted { wanted.len() } else { rows };
                    RowsMut::new(&mut storage.rows[..m * storage.width], m, storage.width)
                })
                .collect(),
            cells: KvCells::new(cache),
            shared: Shared::new(&mut self.shared),
            partial,
            tiles,
            mixture: self.mixture.shared(),
            scratch: Scratches::new(&mut self.scratch),
        };
        let nodes = workers.nodes().len();
        let mut ends = Vec::with_capacity(nodes * phases.len());
        for phase in &phases {
            ops[phase.op].ends(&running, phase, &mut ends);
        }
        let run = |number: usize, chunk: usize, worker: usize| {
            let phase = &phases[number];
            // SAFETY: chunks that overlap have different workers.
            let scratch = unsafe { running.scratch.of(worker) };
            scratch.serial = serial + number as u64;
            ops[phase.op].run(&running, phase, chunk, scratch);
        };
        match &mut self.record {
            None => workers.run_by_node(&ends, &run),
            Some(record) => record.run(&running, (&labels, &ops), &phases, &|number| {
                let ends = &ends[nodes * number..][..nodes];
                workers.run_by_node(ends, &|_, chunk, worker| {
                    run(number, chunk, worker);
                });
            }),
        }
    }
}

impl Default for Program {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program")
            .field("buffers", &self.buffers.len())
            .field("operations", &(self.body.len() + self.head.len()))
            .finish()
    }
}

impl Storage {
    /// Room for `rows` rows; new ones are zero.
    fn reserve(&mut self, rows: usize) {
        let len = rows * self.width;
        if self.rows.len() < len {
            self.rows.resize(len, 0.0);
        }
    }
}

/// What the number of chunks depends on.
struct Lowering<'a> {
    /// Is attention of many queries in tiles?
    tiles: bool,
    /// Is attention of few queries in pairs?
    pairs: bool,
    workers: usize,
    nodes: &'a Nodes,
    sequences: &'a [Sequence<'a>],
    layout: crate::kv_cache::KvLayout,
}

/// What a running chunk can reach.
struct Running<'a> {
    bound: &'a Bound,
    nodes: &'a Nodes,
    step: &'a Step<'a>,
    wanted: &'a [usize],
    views: Vec<RowsMut<'a>>,
    cells: KvCells<'a>,
    shared: Shared<'a>,
    partial: SharedSlice<'a, f32>,
    tiles: SharedSlice<'a, TileWords>,
    mixture: mixture::SharedRoom<'a>,
    scratch: Scratches<'a>,
}

impl Running<'_> {
    /// A buffer, to read.
    ///
    /// # Safety
    /// No chunk of the running phase writes the buffer.
    unsafe fn read(&self, buffer: Buffer) -> Rows<'_> {
        // SAFETY: as the caller promises.
        unsafe { self.views[buffer.0].read() }
    }

    /// A part of a buffer, to write.
    ///
    /// # Safety
    /// No other chunk of the running phase reads or writes an element of it.
    unsafe fn part(&self, buffer: Buffer, rows: Range<usize>, cols: Range<usize>) -> RowsMut<'_> {
        // SAFETY: as the caller promises.
        unsafe { self.views[buffer.0].part(rows, cols) }
    }

    fn rows_of(&self, buffer: Buffer) -> usize {
        self.views[buffer.0].rows()
    }
}

/// Memory of one worker, kept from step to step.
#[derive(Default)]
struct Scratch {
    /// Number of the phase that runs.
    serial: u64,
    /// Number of the phase, and the expert, for which `own` was prepared.
    prepared: (u64, usize),
    own: Prepared,
    gathered: Vec<f32>,
    rows: Vec<f32>,
    more: Vec<f32>,
    positions: Vec<u32>,
    tiles: Tiles,
    attention: AttentionScratch,
}

/// The scratch of every worker.
struct Scratches<'a>(&'a [UnsafeCell<Scratch>]);

// SAFETY: a worker reaches its own scratch only (see `of`), and `Scratch` is `Send`.
unsafe impl Sync for Scratches<'_> {}

impl<'a> Scratches<'a> {
    fn new(scratch: &'a mut [Scratch]) -> Self {
        let cells: *mut [Scratch] = scratch;
        // SAFETY: `UnsafeCell<T>` has the layout of `T`, and the slice is borrowed exclusively for `'a`.
        Self(unsafe { &*(cells as *const [UnsafeCell<Scratch>]) })
    }

    /// # Safety
    /// While what is returned lives, nobody asks for the same worker's again.
    #[allow(clippy::mut_from_ref, reason = "that is the caller's promise")]
    unsafe fn of(&self, worker: usize) -> &mut Scratch {
        // SAFETY: as the caller promises.
        unsafe { &mut *self.0[worker].get() }
    }
}

impl Op {
    fn phases(&self, lowering: &Lowering<'_>, op: usize, m: usize, out: &mut Vec<Phase>) {
        let mut push = |part, chunks: usize, size| {
            out.push(Phase {
                op,
                part,
                chunks: u32::try_from(chunks).expect("fewer than 2^32 chunks"),
                size,
            });
        };
        match self {
            Op::Embed(embed) => embed.phases(lowering, m, &mut push),
            Op::Gather(gather) => gather.phases(lowering, m, &mut push),
            Op::AddNormed(add) => add.phases(lowering, m, &mut push),
            Op::SoftCap(cap) => cap.phases(&mut push),
            Op::Linear(linear) => linear.phases(lowering, m, &mut push),
            Op::Mixture(mixture) => mixture.phases(lowering, m, &mut push),
            Op::Attention(attention) => attention.phases(lowering, &mut push),
        }
    }

    /// Where the chunks of each node end: those of a product are where the weights lie, of others each node has its share.
    fn ends(&self, running: &Running<'_>, phase: &Phase, ends: &mut Vec<u32>) {
        let nodes = running.nodes;
        if nodes.len() == 1 {
            return ends.push(phase.chunks);
        }
        let mut end = 0;
        for node in 0..nodes.len() {
            let chunks = match (self, phase.part) {
                (Op::Linear(linear), Part::MultiplyOwn | Part::MultiplyShared) => {
                    linear.chunks_of(nodes, node, phase.size)
                }
                (Op::Mixture(mixture), Part::Gates | Part::Downs) => {
                    let m = running.rows_of(mixture.from);
                    mixture.chunks_of(nodes, node, phase, m)
                }
                _ => nodes.share(phase.chunks as usize, node).len(),
            };
            end += u32::try_from(chunks).expect("all nodes have fewer than 2^30");
            ends.push(end);
        }
        assert!(end == phase.chunks, "the nodes have all chunks of a phase");
    }

    fn run(&self, running: &Running<'_>, phase: &Phase, chunk: usize, scratch: &mut Scratch) {
        match self {
            Op::Embed(embed) => embed.run(running, phase, chunk),
            Op::Gather(gather) => gather.run(running, phase, chunk),
            Op::AddNormed(add) => add.run(running, phase, chunk, scratch),
            Op::SoftCap(cap) => cap.run(running, chunk),
            Op::Linear(linear) => linear.run(running, phase, chunk, scratch),
            Op::Mixture(mixture) => mixture.run(running, phase, chunk, scratch),
            Op::Attention(attention) => attention.run(running, phase, chunk, scratch),
        }
    }
}

/// Rows `chunk * size ..`, at most to `rows`.
fn rows_of_chunk(chunk: usize, size: usize, rows: usize) -> Range<usize> {
    (chunk * size).min(rows)..((chunk + 1) * size).min(rows)
}

fn assert_width(what: &str, found: usize, expected: usize) {
    assert!(
        found == expected,
        "{what}: rows of {found}, expected {expected}"
    );
}
