//! `plinth plan --fleet DIR`: one table over many machines and models.

mod page;

use super::changes::first_reason;
use super::planner::{Outcome, Planner};
use crate::cli::PlanArgs;
use crate::error::{Failure, Result};
use crate::library::{self, stem};
use crate::progress::Progress;
use crate::startup;
use anyhow::{Context, anyhow};
use plinth_platform::facts::{Facts, ModelFacts};
use plinth_platform::text;
use serde::Serialize;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// One machine with one model.
#[derive(Debug, Serialize)]
struct Row {
    machine: String,
    /// What computes, such as `8 × NVIDIA H100 80GB HBM3`.
    hardware: String,
    model: String,
    platform: String,
    dtype: String,
    attention: String,
    /// The weight format with most bytes, and the kernel that multiplies by it.
    matmul: String,
    graphs: String,
    /// Devices that share the model; 1 on a CPU.
    devices: u32,
    weight_bytes: u64,
    kv_bytes: u64,
    /// Longest context, in tokens.
    context: u32,
    /// Sequences that fit at that context.
    sequences: u64,
    /// Why it cannot be served; absent where it can.
    refused: Option<String>,
    warnings: Vec<String>,
}

/// The columns that every form of the table has.
const COLUMNS: [&str; 14] = [
    "machine",
    "hardware",
    "model",
    "platform",
    "dtype",
    "attention",
    "matmul",
    "graphs",
    "devices",
    "weights",
    "kv cache",
    "context",
    "sequences",
    "refused",
];

pub(super) fn run(folder: &Path, args: &PlanArgs, out: &mut dyn Write) -> Result<()> {
    let models = models(args)?;
    let machines = library::files(folder)?;
    let mut planner = Planner::new(args)?;
    let progress = Progress::count("planning", args.json || args.csv);
    let total = (machines.len() * models.len()) as u64;
    let mut rows = Vec::new();
    for path in &machines {
        let facts = startup::facts_of(Some(path), args.catalogue.as_deref())?;
        for (name, model) in &models {
            let outcome = planner.plan_where_it_fits(&facts, model);
            rows.push(row(&stem(path), &facts, name, outcome));
            progress.set(rows.len() as u64, total);
        }
    }
    drop(progress);
    if let Some(path) = &args.html {
        let engine = args.catalogue.as_deref().unwrap_or("plinth");
        std::fs::write(path, page::of(&rows, engine))
            .with_context(|| format!("cannot write '{}'", path.display()))
            .map_err(Failure::Input)?;
    }
    match (args.json, args.csv) {
        (true, _) => {
            serde_json::to_writer_pretty(&mut *out, &rows).map_err(Failure::failed)?;
            Ok(writeln!(out)?)
        }
        (_, true) => csv(&rows, out),
        _ => table(&rows, out),
    }
}

/// Every model that the command names.
fn models(args: &PlanArgs) -> Result<Vec<(String, ModelFacts)>> {
    let named = args
        .model
        .iter()
        .chain(&args.more_models)
        .chain(&args.model_facts);
    let models = named.map(|path| Ok((stem(path), startup::model_of(path)?)));
    let models: Vec<_> = models.collect::<Result<_>>()?;
    match models.is_empty() {
        false => Ok(models),
        true => Err(Failure::Input(anyhow!(
            "--fleet: name at least one --model"
        ))),
    }
}

/// Devices by name, or the CPU.
fn hardware(facts: &Facts) -> String {
    let mut counts: Vec<(&str, u32)> = Vec::new();
    for device in &facts.devices {
        match counts.iter_mut().find(|(name, _)| *name == device.name) {
            Some((_, n)) => *n += 1,
            None => counts.push((&device.name, 1)),
        }
    }
    if counts.is_empty() {
        let cores = facts.host.budget.threads;
        let model = if facts.host.model.is_empty() {
            &facts.host.arch
        } else {
            &facts.host.model
        };
        return format!("{model}, {cores} threads");
    }
    let shown = counts.iter().map(|(name, n)| match n {
        1 => (*name).to_owned(),
        n => format!("{n} × {name}"),
    });
    shown.collect::<Vec<_>>().join(" + ")
}

fn row(machine: &str, facts: &Arc<Facts>, model: &str, outcome: Outcome) -> Row {
    let mut row = Row {
        machine: machine.to_owned(),
        hardware: hardware(facts),
        model: model.to_owned(),
        platform: String::new(),
        dtype: String::new(),
        attention: String::new(),
        matmul: String::new(),
        graphs: String::new(),
        devices: 0,
        weight_bytes: 0,
        kv_bytes: 0,
        context: 0,
        sequences: 0,
        refused: None,
        warnings: Vec::new(),
    };
    let plan = match outcome {
        Ok(plan) => plan,
        Err(refusal) => {
            row.refused = Some(refusal.to_string());
            return row;
        }
    };
    let kernels = &plan.kernels;
    row.platform.clone_from(&plan.platform.id);
    row.dtype.clone_from(&plan.engine.dtype);
    row.attention = match kernels.attention_prefill == kernels.attention_decode {
        true => kernels.attention_decode.clone(),
        false => format!(
            "{} / {}",
            kernels.attention_prefill, kernels.attention_decode
        ),
    };
    if let Some((format, kernel)) = kernels.matmul.first() {
        row.matmul = format!("{format}: {kernel}");
    }
    let decisions = plinth_platform::decisions::of(&plan);
    let graphs = decisions
        .iter()
        .find(|decision| decision.path == "graphs.mode");
    row.graphs = graphs
        .map(|decision| decision.value.clone())
        .unwrap_or_default();
    row.devices = plan.engine.tensor_parallel * plan.engine.pipeline_parallel;
    row.weight_bytes = plan.memory.weights;
    row.kv_bytes = plan.memory.kv_bytes;
    row.context = plan.engine.max_model_len;
    row.sequences = plan.memory.full_sequences;
    let warned = plan.findings.iter().map(|finding| &finding.diagnostic);
    row.warnings = warned
        .filter(|diagnostic| diagnostic.severity != plinth_platform::policy::Severity::Info)
        .map(|diagnostic| diagnostic.message.clone())
        .collect();
    row
}

impl Row {
    /// A cell a column.
    fn cells(&self) -> [String; 14] {
        let number = |n: u64| match self.refused {
            Some(_) => String::new(),
            None => text::count(n),
        };
        let bytes = |n: u64| match self.refused {
            Some(_) => String::new(),
            None => text::bytes(n),
        };
        [
            self.machine.clone(),
            self.hardware.clone(),
            self.model.clone(),
            self.platform.clone(),
            self.dtype.clone(),
            self.attention.clone(),
            self.matmul.clone(),
            self.graphs.clone(),
            number(self.devices.into()),
            bytes(self.weight_bytes),
            bytes(self.kv_bytes),
            number(self.context.into()),
            number(self.sequences),
            self.refused.clone().unwrap_or_default(),
        ]
    }
}

/// Numbers as numbers, and bytes as bytes: for other programs.
fn csv(rows: &[Row], out: &mut dyn Write) -> Result<()> {
    let quoted = |cell: &str| match cell.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.to_owned(),
    };
    writeln!(
        out,
        "{}",
        COLUMNS.map(|name| name.replace(' ', "_")).join(",")
    )?;
    for row in rows {
        let mut cells = row.cells();
        if row.refused.is_none() {
            cells[9] = row.weight_bytes.to_string();
            cells[10] = row.kv_bytes.to_string();
            cells[11] = row.context.to_string();
            cells[12] = row.sequences.to_string();
        }
        writeln!(out, "{}", cells.map(|cell| quoted(&cell)).join(","))?;
    }
    Ok(())
}

/// A reason that fits beside a name.
fn shortened(reason: &str) -> String {
    const MOST: usize = 110;
    match reason.chars().count() {
        0..=MOST => reason.to_owned(),
        _ => reason.chars().take(MOST - 1).chain(['…']).collect(),
    }
}

/// For people: a line a machine, what is refused with its reason in place of the rest.
fn table(rows: &[Row], out: &mut dyn Write) -> Result<()> {
    let shown = [0, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12];
    let cells: Vec<_> = rows.iter().map(Row::cells).collect();
    let width = |n: usize| {
        let of_rows = cells.iter().map(|cells| cells[n].chars().count());
        of_rows.chain([COLUMNS[n].len()]).max().unwrap_or(0)
    };
    let widths = shown.map(width);
    let line = |cells: &[String]| {
        let padded = shown
            .iter()
            .zip(widths)
            .map(|(&n, width)| format!("{:width$}", cells[n]));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    writeln!(out, "{}", line(&COLUMNS.map(str::to_owned)))?;
    for (row, cells) in rows.iter().zip(&cells) {
        match &row.refused {
            None => writeln!(out, "{}", line(cells))?,
            Some(why) => {
                let (machine, model) = (&cells[0], &cells[2]);
                let why = shortened(&first_reason(why));
                let (first, second) = (widths[0], widths[1]);
                writeln!(out, "{machine:first$}  {model:second$}  refused: {why}")?;
            }
        }
    }
    let served = rows.iter().filter(|row| row.refused.is_none()).count();
    Ok(writeln!(out, "{served} of {} can be served", rows.len())?)
}
