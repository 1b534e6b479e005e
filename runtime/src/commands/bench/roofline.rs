//! `plinth bench --roofline`: where the time of a step goes, and how near each class of operations comes to what this
//! machine reaches.
//!
//! **Source**: Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for Multicore
//! Architectures", Communications of the ACM 52(4), 2009: a class reaches at most the smaller of the peak of its
//! arithmetic and its operations per byte times the bandwidth.

mod peaks;
mod plot;
mod table;

use super::{DECODE_PROMPT, prompt, request};
use crate::cli::BenchArgs;
use crate::error::{Failure, Result};
use crate::progress::Progress;
use crate::startup;
use anyhow::{Context, anyhow};
use peaks::Peaks;
use plinth_engine::{Engine, Event, FinishReason};
use plinth_kernels::{ClassCost, Record};
use serde::Serialize;
use std::io::Write;
use std::time::Instant;

/// What was measured.
#[derive(Debug, Serialize)]
struct Roofline {
    model: String,
    plan_digest: String,
    threads: u32,
    /// Bytes of the weights as the kernels read them.
    packed_weight_bytes: u64,
    peaks: Peaks,
    phases: Vec<Phase>,
}

/// Steps of one kind.
#[derive(Debug, Serialize)]
struct Phase {
    /// `prefill`, or `decode` with the number of sequences if there are several.
    name: String,
    /// Tokens of a prompt, or sequences that decode.
    rows: u32,
    /// Steps that were recorded.
    steps: u64,
    /// Seconds of the steps, undivided: as the engine always runs them.
    undivided_seconds: f64,
    /// Seconds of the steps with every phase a dispatch of its own.
    divided_seconds: f64,
    classes: Vec<Class>,
}

/// Operations of one class.
#[derive(Debug, Serialize)]
struct Class {
    class: &'static str,
    /// What does most of its arithmetic: instruction set and operation.
    unit: String,
    /// Of all its phases, each dispatched alone.
    seconds: f64,
    /// Of the seconds of all classes.
    share: f64,
    /// Additions and multiplications.
    operations: u64,
    /// Bytes that must be read or written at least.
    bytes: u64,
    /// Those that are packed weights.
    weight_bytes: u64,
    gops: f64,
    gb_per_second: f64,
    /// The limit that it meets first; absent for one that neither computes nor moves anything that is counted.
    limit: Option<Limit>,
}

/// What a class reaches at most.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Limit {
    /// `memory` or `arithmetic`.
    by: &'static str,
    /// What reaches it: 10^9 bytes or operations a second.
    peak: f64,
    /// Whose peak that is.
    of: String,
    /// Share of the peak that the class reaches.
    reached: f64,
}

/// Runs the command.
pub fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<()> {
    let file = startup::open(&args.model)?;
    let engine_args = super::engine_args(args);
    let plan = startup::plan(&file, &engine_args)?;
    let peaks = Peaks::of_this_machine(plan.threads.workers, args.json)?;
    let (engine, packed) = startup::engine(&file, &plan, &engine_args, args.json)?;
    if let Some(packed) = packed {
        packed.tell(args.json);
    }
    let mut bench = Bench {
        engine,
        args,
        peaks: &peaks,
    };
    bench.engine.stay_near_memory();
    let phases = bench.phases()?;
    let roofline = Roofline {
        model: args.model.display().to_string(),
        plan_digest: plan.digest.clone(),
        threads: plan.threads.workers,
        packed_weight_bytes: bench.engine.model().weight_bytes() as u64,
        phases,
        peaks,
    };
    if let Some(svg) = &args.svg {
        std::fs::write(svg, plot::draw(&roofline))
            .with_context(|| format!("cannot write '{}'", svg.display()))
            .map_err(Failure::Failed)?;
    }
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &roofline).map_err(Failure::failed)?;
        return Ok(writeln!(out)?);
    }
    table::print(&roofline, out)
}

struct Bench<'a> {
    engine: Engine,
    args: &'a BenchArgs,
    peaks: &'a Peaks,
}

/// One kind of steps: so many sequences, each of a prompt and an answer.
#[derive(Clone, Copy)]
struct Kind {
    sequences: u32,
    prompt: u32,
    answer: u32,
}

impl Kind {
    fn is_prefill(self) -> bool {
        self.answer == 1
    }
}

impl Bench<'_> {
    fn phases(&mut self) -> Result<Vec<Phase>> {
        let args = self.args;
        let decode = |&sequences: &u32| Kind {
            sequences,
            prompt: args.depth.max(DECODE_PROMPT),
            answer: args.generate,
        };
        let mut kinds = Vec::new();
        if args.prompt_tokens > 0 {
            kinds.push(Kind {
                sequences: 1,
                prompt: args.prompt_tokens,
                answer: 1,
            });
        }
        if args.generate > 1 {
            kinds.push(decode(&1));
            let others = args.batch.iter().filter(|&&sequences| sequences > 1);
            kinds.extend(others.map(decode));
        }
        let progress = Progress::count("measuring", args.json);
        let total = kinds.len() as u64 * u64::from(args.runs);
        let mut phases = Vec::new();
        for (n, &kind) in kinds.iter().enumerate() {
            // Touches memory for the first time.
            self.steps(kind, false)?;
            let mut runs = Vec::new();
            for run in 0..args.runs {
                progress.set(n as u64 * u64::from(args.runs) + u64::from(run), total);
                let undivided = self.steps(kind, false)?.0;
                let record = self.steps(kind, true)?.1;
                runs.push((
                    undivided,
                    record.ok_or_else(|| Failure::Failed(anyhow!("nothing was recorded")))?,
                ));
            }
            // One whole run, so that its parts are parts of the same.
            runs.sort_by(|a, b| a.1.seconds.total_cmp(&b.1.seconds));
            let undivided = middle(runs.iter().map(|run| run.0).collect());
            let (_, record) = runs.swap_remove(runs.len() / 2);
            phases.push(self.phase(kind, undivided, &record));
        }
        Ok(phases)
    }

    /// Runs steps of a kind: their seconds, and a record of them if one is wanted.
    fn steps(&mut self, kind: Kind, recorded: bool) -> Result<(f64, Option<Record>)> {
        let vocab_size = self.engine.model().config().vocab_size;
        let before = self.engine.stats().generated_tokens;
        for n in 0..kind.sequences {
            let prompt = prompt(kind.prompt, n, vocab_size);
            let request = request(prompt, kind.answer);
            self.engine.submit(request).map_err(Failure::input)?;
        }
        // Decoding begins when every prompt is done.
        let first_tokens = if kind.is_prefill() { 0 } else { kind.sequences };
        while self.engine.stats().generated_tokens < before + u64::from(first_tokens) {
            self.step()?;
        }
        if recorded {
            self.engine.record();
        }
        let begin = Instant::now();
        while self.engine.has_work() {
            self.step()?;
        }
        Ok((begin.elapsed().as_secs_f64(), self.engine.take_record()))
    }

    fn step(&mut self) -> Result<()> {
        for output in self.engine.step() {
            if let Event::Finished {
                reason: FinishReason::Error(why),
                ..
            } = output.event
            {
                return Err(Failure::Failed(anyhow!("{why}")));
            }
        }
        Ok(())
    }

    fn phase(&self, kind: Kind, undivided: f64, record: &Record) -> Phase {
        let all: f64 = record.classes.iter().map(|class| class.seconds).sum();
        let weights: u64 = record.classes.iter().map(|class| class.weight_bytes).sum();
        let working_set = weights / record.steps.max(1);
        let class = |cost: &ClassCost| {
            let rate = |n: u64| n as f64 / cost.seconds / 1e9;
            Class {
                class: cost.class,
                unit: format!("{} {}", cost.unit.tier, cost.unit.operation),
                seconds: cost.seconds,
                share: cost.seconds / all,
                operations: cost.operations,
                bytes: cost.bytes,
                weight_bytes: cost.weight_bytes,
                gops: rate(cost.operations),
                gb_per_second: rate(cost.bytes),
                limit: self.peaks.limit(cost, working_set),
            }
        };
        let (name, rows) = match (kind.is_prefill(), kind.sequences) {
            (true, _) => ("prefill".to_owned(), kind.prompt),
            (false, 1) => ("decode".to_owned(), 1),
            (false, sequences) => (format!("decode of {sequences}"), sequences),
        };
        Phase {
            name,
            rows,
            steps: record.steps,
            undivided_seconds: undivided,
            divided_seconds: record.seconds,
            classes: record.classes.iter().map(class).collect(),
        }
    }
}

fn middle(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
