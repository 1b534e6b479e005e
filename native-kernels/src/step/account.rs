//! An account of steps: how long each class of operations takes, and what it must compute and move.
//!
//! With a [`Record`] every phase is a dispatch of its own, so that it can be timed: the times are a little longer than
//! those of an undivided step, by a dispatch each. Without one nothing is counted and no clock is read.

use super::activations::Form;
use super::attention::{Attention, FEW_ROWS};
use super::linear::{Linear, Output};
use super::mixture::Mixture;
use super::{Op, Part, Phase, Program, Running, Sequence};
use crate::Format;
use crate::bind::{DecodeKernel, MatmulKernel, PrefillKernel};
use crate::cpu::isa::LaneIsa;
use crate::cpu::panel::QuantBlock;
use crate::kernel_set::KernelSet;
use crate::matrix::Matrix;
use std::time::Instant;

/// What steps have cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Steps.
    pub steps: u64,
    /// Seconds of the steps as wholes; the classes leave out what is between phases.
    pub seconds: f64,
    /// Classes, in the order in which they first ran.
    pub classes: Vec<ClassCost>,
}

/// What the operations of one class have cost, in all steps of a record together.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassCost {
    /// The label that the operations were given ([`Program::label`]); [`PREPARE`], [`WRITE_CACHE`] and [`ON_WANTED`] are
    /// parts of operations, and more than one label's.
    pub class: &'static str,
    /// What does most of its arithmetic.
    pub unit: Unit,
    /// Seconds from dispatch to dispatch.
    pub seconds: f64,
    /// Additions and multiplications. Where there is a product only its own are counted, `2 · rows · weights`; functions
    /// such as `exp` are counted nowhere.
    pub operations: u64,
    /// Bytes that must be read or written at least: each operand of each operation once.
    pub bytes: u64,
    /// Those of `bytes` that are packed weights.
    pub weight_bytes: u64,
    /// Phases that ran.
    pub phases: u64,
}

/// Instructions that do arithmetic, called as [`crate::calibrate::ComputePeak`] calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The instruction set.
    pub tier: &'static str,
    /// The operation.
    pub operation: &'static str,
}

/// Class of activations that are normalised and brought into a kernel's form by a phase of their own, for steps of many
/// rows. For few every worker does it as a part of its product.
pub const PREPARE: &str = "prepare";

/// Class of keys and values of long runs of rows on their way into the cache. Short runs are written while they are
/// attended to.
pub const WRITE_CACHE: &str = "kv-write";

/// Class of what is done with the wanted rows between operations: tokens are drawn.
pub const ON_WANTED: &str = "sampling";

impl Program {
    /// Gives the operations that are added from now on a label, under which a record counts them.
    pub fn label(&mut self, label: &'static str) {
        self.label = label;
    }

    /// Begins a record of the steps that follow.
    pub fn record(&mut self) {
        self.record = Some(Record::default());
    }

    /// Ends the record, and gives it.
    pub fn take_record(&mut self) -> Option<Record> {
        self.record.take()
    }

    /// The time, if there is a record.
    pub(super) fn recorded_since(&self) -> Option<Instant> {
        self.record.as_ref().map(|_| Instant::now())
    }

    /// A step that began at `begin` has ended.
    pub(super) fn record_step(&mut self, begin: Option<Instant>) {
        if let (Some(record), Some(begin)) = (&mut self.record, begin) {
            record.steps += 1;
            record.seconds += begin.elapsed().as_secs_f64();
        }
    }

    /// Something was done with wanted rows since `begin`. What, is not known here: it has a time and nothing else.
    pub(super) fn record_wanted(&mut self, begin: Option<Instant>, kernels: &KernelSet) {
        if let (Some(record), Some(begin)) = (&mut self.record, begin) {
            let seconds = begin.elapsed().as_secs_f64();
            let cost = Cost::none(lanes(kernels.bound().elementwise));
            record.add(ON_WANTED, seconds, &cost);
        }
    }
}

impl Record {
    /// Runs phases one by one.
    pub(super) fn run(
        &mut self,
        running: &Running<'_>,
        (labels, ops): (&[&'static str], &[&Op]),
        phases: &[Phase],
        run: &dyn Fn(usize),
    ) {
        for (number, phase) in phases.iter().enumerate() {
            let begin = Instant::now();
            run(number);
            let seconds = begin.elapsed().as_secs_f64();
            let class = match phase.part {
                Part::Prepare => PREPARE,
                Part::WriteCache => WRITE_CACHE,
                _ => labels[phase.op],
            };
            if phase.chunks > 0 {
                self.add(class, seconds, &ops[phase.op].cost(running, phase));
            }
        }
    }

    fn add(&mut self, class: &'static str, seconds: f64, cost: &Cost) {
        let known = self.classes.iter_mut().find(|known| known.class == class);
        let Some(known) = known else {
            self.classes.push(ClassCost {
                class,
                unit: cost.unit,
                seconds,
                operations: cost.operations as u64,
                bytes: cost.bytes as u64,
                weight_bytes: cost.weight_bytes as u64,
                phases: 1,
            });
            return;
        };
        // A phase that does more than all before it on the average is one that matters.
        if cost.operations as u64 * known.phases > known.operations {
            known.unit = cost.unit;
        }
        known.seconds += seconds;
        known.operations += cost.operations as u64;
        known.bytes += cost.bytes as u64;
        known.weight_bytes += cost.weight_bytes as u64;
        known.phases += 1;
    }
}

/// What one phase must do.
struct Cost {
    unit: Unit,
    operations: usize,
    bytes: usize,
    weight_bytes: usize,
}

impl Cost {
    fn none(unit: Unit) -> Self {
        Self {
            unit,
            operations: 0,
            bytes: 0,
            weight_bytes: 0,
        }
    }
}

/// A number of a row or of the cache in single precision.
const F32: usize = size_of::<f32>();

/// Multiplication with itself, addition to the sum, multiplication with the scale and with the weight.
const NORM_OPERATIONS: usize = 4;

impl Op {
    fn cost(&self, running: &Running<'_>, phase: &Phase) -> Cost {
        let cost = Cost::none(lanes(running.bound.elementwise));
        match self {
            Op::Embed(embed) => {
                let (m, k) = (running.rows_of(embed.to), embed.table.cols());
                let read = m * (embed.table.bytes() / embed.table.rows().max(1));
                Cost {
                    bytes: read + m * k * F32,
                    weight_bytes: read,
                    ..cost
                }
            }
            Op::Gather(gather) => {
                let elements = running.rows_of(gather.to) * running.views[gather.to.0].cols();
                Cost {
                    bytes: 2 * elements * F32,
                    ..cost
                }
            }
            Op::AddNormed(add) => {
                let elements = running.rows_of(add.to) * add.norm.weight.len();
                Cost {
                    operations: (NORM_OPERATIONS + 1) * elements,
                    bytes: 3 * elements * F32,
                    ..cost
                }
            }
            Op::SoftCap(cap) => {
                let elements = running.rows_of(cap.x) * running.views[cap.x.0].cols();
                Cost {
                    operations: 2 * elements,
                    bytes: 2 * elements * F32,
                    ..cost
                }
            }
            Op::Linear(linear) if phase.part == Part::Prepare => linear.prepare_cost(running, cost),
            Op::Linear(linear) => linear.cost(running, phase),
            Op::Mixture(mixture) => mixture.cost(running, phase, cost),
            Op::Attention(attention) => attention.cost(running, phase, cost),
        }
    }
}

impl Linear {
    fn prepare_cost(&self, running: &Running<'_>, cost: Cost) -> Cost {
        let (m, k) = (running.rows_of(self.from), self.inputs());
        let norm = if self.norm.is_some() {
            NORM_OPERATIONS
        } else {
            0
        };
        Cost {
            operations: norm * m * k,
            bytes: m * k * F32 + self.prepared_bytes(running, m),
            ..cost
        }
    }

    /// Bytes of the activations as the products read them.
    fn prepared_bytes(&self, running: &Running<'_>, m: usize) -> usize {
        let elements = m * self.inputs();
        let bytes = |form: &Form| match form {
            Form::Floats(_) => elements * F32,
            Form::Quants(_) => elements / 32 * size_of::<QuantBlock>(),
            Form::Tiles(_) => elements * 2,
            Form::Spans => elements,
        };
        self.forms(running.bound, m).iter().map(bytes).sum()
    }

    fn cost(&self, running: &Running<'_>, phase: &Phase) -> Cost {
        let m = running.rows_of(self.from);
        let read = match phase.part {
            Part::MultiplyOwn => m * self.inputs() * F32,
            _ => self.prepared_bytes(running, m),
        };
        let largest = self.matrices().max_by_key(|matrix| matrix.bytes());
        let unit = largest.map(|matrix| unit_of(running, matrix, m));
        let mut cost = Cost::none(unit.unwrap_or_else(|| lanes(running.bound.elementwise)));
        for matrix in self.matrices() {
            cost.operations += 2 * m * matrix.rows() * matrix.cols();
            cost.weight_bytes += matrix.bytes();
        }
        let written = self.outputs.iter().map(|output| {
            let elements = m * running.views[output.to().0].cols();
            match output {
                Output::Add { .. } => 2 * elements * F32,
                Output::Store { .. } | Output::Gated { .. } => elements * F32,
            }
        });
        cost.bytes = cost.weight_bytes + read + written.sum::<usize>();
        cost
    }
}

impl Mixture {
    fn cost(&self, running: &Running<'_>, phase: &Phase, mut cost: Cost) -> Cost {
        let m = running.rows_of(self.from);
        let (n, inner) = (
            running.views[self.from.0].cols(),
            self.experts[0].gate.matrix.rows(),
        );
        // A (row, expert) pair each.
        let slots = m * self.used;
        match phase.part {
            Part::Route => {
                cost.bytes = m * self.experts.len() * F32;
                cost
            }
            Part::Combine => {
                cost.operations = 2 * slots * n;
                cost.bytes = (slots + 2 * m) * n * F32;
                cost
            }
            part => {
                // SAFETY: this runs after the dispatch of a phase and before the next: no chunk is at work.
                let active = unsafe { running.mixture.active() };
                let matrices = active.iter().flat_map(|&expert| {
                    let expert = &self.experts[expert];
                    match part {
                        Part::Gates => vec![&expert.gate.matrix, &expert.up.matrix],
                        _ => vec![&expert.down.matrix],
                    }
                });
                cost.weight_bytes = matrices.map(|matrix| matrix.bytes()).sum();
                cost.bytes = cost.weight_bytes + slots * (n + inner) * F32;
                let products = if part == Part::Gates { 2 } else { 1 };
                cost.operations = products * 2 * slots * inner * n;
                let rows = slots.div_ceil(active.len().max(1));
                cost.unit = unit_of(running, &self.experts[0].gate.matrix, rows);
                cost
            }
        }
    }
}

impl Attention {
    fn cost(&self, running: &Running<'_>, phase: &Phase, mut cost: Cost) -> Cost {
        let sequences = running.step.sequences;
        let layout = running.cells.layout();
        let (heads, keys) = (
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        );
        // A key and a value of every KV head, in the cache.
        let kept = 2 * self.num_kv_heads * layout.dtype.head_bytes(self.head_dim);
        let is_long = |s: &&Sequence<'_>| s.query_len > FEW_ROWS;
        let rows = |long: bool| -> usize {
            let of = sequences.iter().filter(|s| is_long(s) == long);
            of.map(|s| s.query_len).sum()
        };
        // Read once, written once.
        let written = |rows: usize| rows * (2 * keys * F32 + kept);
        match phase.part {
            Part::WriteCache => {
                // Turning a pair takes four multiplications and two additions.
                let turned = self.rope.as_ref().map_or(0, |rope| rope.rotary_dims());
                cost.operations = rows(true) * self.num_kv_heads * turned * 3;
                cost.bytes = written(rows(true));
            }
            Part::PackTiles => {
                let seen: usize = sequences
                    .iter()
                    .filter(is_long)
                    .map(|s| self.seen_keys(s))
                    .sum();
                cost.bytes = seen * (kept + 2 * keys * size_of::<u16>());
            }
            Part::Merge => {}
            _ => {
                cost.unit = match running.bound.attention_prefill {
                    PrefillKernel::Tiles(isa) if rows(true) > 0 => tile(isa.name()),
                    PrefillKernel::Lanes(isa) if rows(true) > 0 => lanes(isa),
                    _ => match running.bound.attention_decode {
                        DecodeKernel::Pairs(isa) => tile(isa.name()),
                        DecodeKernel::Lanes(isa) => lanes(isa),
                    },
                };
                let pairs: usize = sequences.iter().map(|s| self.seen_pairs(s)).sum();
                cost.operations = 4 * pairs * heads;
                let seen: usize = sequences.iter().map(|s| self.seen_keys(s)).sum();
                let queries = 2 * (rows(true) + rows(false)) * heads * F32;
                cost.bytes = queries + seen * kept + written(rows(false));
            }
        }
        cost
    }

    /// Keys that any row of the sequence sees.
    fn seen_keys(&self, s: &Sequence<'_>) -> usize {
        match s.query_len {
            0 => 0,
            _ => {
                s.context_len - (s.position() + 1).saturating_sub(self.window.unwrap_or(usize::MAX))
            }
        }
    }

    /// Keys that each row sees, summed over the rows.
    fn seen_pairs(&self, s: &Sequence<'_>) -> usize {
        let most = self.window.unwrap_or(usize::MAX);
        let rows = s.position() + 1..s.context_len + 1;
        rows.map(|keys| keys.min(most)).sum()
    }
}

fn unit_of(running: &Running<'_>, matrix: &Matrix, rows: usize) -> Unit {
    let operation = match matrix.format() {
        Format::Q4_0 | Format::Q4_1 | Format::Q4K | Format::Int4 => "int4-dot",
        _ => "int8-dot",
    };
    match running.bound.matmul_of(matrix.format(), rows) {
        MatmulKernel::Float(isa) => lanes(isa),
        MatmulKernel::Int8(isa) => Unit {
            tier: isa.name(),
            operation,
        },
        MatmulKernel::Tiles(isa) => tile(isa.name()),
        MatmulKernel::Spans(isa) => Unit {
            tier: isa.name(),
            operation: "int8-tile",
        },
    }
}

fn lanes(isa: LaneIsa) -> Unit {
    Unit {
        tier: isa.name(),
        operation: "f32-fma",
    }
}

fn tile(tier: &'static str) -> Unit {
    Unit {
        tier,
        operation: "bf16-tile",
    }
}
