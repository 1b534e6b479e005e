//! `plinth plugin test`: is a platform what a platform has to be, on every machine that is known?
//!
//! - **Total**: every question about every machine and model has an answer that the host accepts, or a reasoned refusal.
//! - **Pure**: another instance that was asked about other machines before gives the same answers.
//! - **Stable**: the order in which facts list things sways nothing.
//! - **Without contradiction**: the answers make one plan.

use crate::error::{Failure, Result};
use crate::library;
use crate::progress::Progress;
use crate::{catalogue, platforms};
use anyhow::anyhow;
use plinth_host::Guest;
use plinth_platform::exchange::{Answer, Seen};
use plinth_platform::facts::{Facts, ModelFacts};
use plinth_platform::policy::{Decision, Platform, Rejected};
use plinth_platform::registry::{Candidate, Registry};
use plinth_platform::resolve::{Refusal, Wishes, resolve};
use serde::Serialize;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// What is wrong, and where it was seen.
#[derive(Debug, Serialize)]
struct Fault {
    rule: &'static str,
    machine: String,
    model: String,
    question: String,
    message: String,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    plugin: String,
    machines: usize,
    plans: usize,
    refused: usize,
    unavailable: usize,
    answers: usize,
    faults: Vec<Fault>,
}

/// Catalogues that a platform is asked to choose from.
const CATALOGUES: [&str; 2] = ["plinth", "vllm-0.22.1"];

pub(super) fn run(
    plugin: &str,
    folder: Option<&Path>,
    json: bool,
    out: &mut dyn Write,
) -> Result<()> {
    let loaded = platforms::one(plugin)?;
    let id = loaded.guest()?.describe().map_err(Failure::failed)?.id;
    let machines = match folder {
        Some(folder) => library::in_folder(folder)?,
        None => library::machines()?,
    };
    let models = library::models()?;
    let mut report = Report {
        plugin: id.clone(),
        machines: machines.len(),
        ..Report::default()
    };
    // The second instance hears of all machines, and never of the one that was asked just before.
    let mut second = loaded.guest()?;
    let progress = Progress::count("testing", json);
    let total = (machines.len() * CATALOGUES.len()) as u64;
    let mut done = 0;
    for name in CATALOGUES {
        for (machine, facts) in &machines {
            let mut facts = facts.clone();
            catalogue::apply(&mut facts, name)?;
            let facts = Arc::new(facts);
            for (model_name, model) in &models {
                let mut seen = |rule, question: &str, message| {
                    report.faults.push(Fault {
                        rule,
                        machine: machine.clone(),
                        model: model_name.clone(),
                        question: question.to_owned(),
                        message,
                    });
                };
                let asked = plan(loaded.guest()?, &id, &facts, model, &loaded.origin);
                match asked.outcome {
                    Outcome::Planned => report.plans += 1,
                    Outcome::Unavailable => report.unavailable += 1,
                    Outcome::Refused => report.refused += 1,
                    Outcome::Broken(message) => seen("total", "", message),
                }
                report.answers += asked.exchanges.len();
                for (question, message) in repeated(&asked.exchanges, &mut second) {
                    seen("pure", &question, message);
                }
                for (question, message) in reordered(&asked.exchanges, &mut second) {
                    seen("stable", &question, message);
                }
            }
            done += 1;
            progress.set(done, total);
        }
    }
    drop(progress);
    print(&report, json, out)?;
    match report.faults.len() {
        0 => Ok(()),
        1 => Err(Failure::Failed(anyhow!("1 fault"))),
        n => Err(Failure::Failed(anyhow!("{n} faults"))),
    }
}

enum Outcome {
    Planned,
    /// It says that it cannot serve here, and why.
    Unavailable,
    /// It can serve, but not this.
    Refused,
    Broken(String),
}

struct Asked {
    outcome: Outcome,
    exchanges: Vec<Seen>,
}

fn plan(
    guest: Guest,
    id: &str,
    facts: &Arc<Facts>,
    model: &ModelFacts,
    origin: &plinth_platform::plan::Origin,
) -> Asked {
    let mut registry = Registry::default();
    registry.register(Candidate {
        digest: guest.digest().to_owned(),
        platform: Box::new(guest),
        origin: origin.clone(),
    });
    let logs = registry.record();
    let wishes = Wishes {
        platform: Some(id.to_owned()),
        ..Wishes::default()
    };
    let outcome = match resolve(&mut registry, facts, model, &wishes) {
        Ok(_) => Outcome::Planned,
        Err(refusal) => match *refusal {
            Refusal::Fault(_) | Refusal::BadAnswer { .. } => Outcome::Broken(refusal.to_string()),
            Refusal::Unavailable { .. } => Outcome::Unavailable,
            _ => Outcome::Refused,
        },
    };
    let exchanges = logs.into_iter().flat_map(|(.., log)| log.exchanges());
    Asked {
        outcome,
        exchanges: exchanges.collect(),
    }
}

/// Questions that another instance answers otherwise.
fn repeated(exchanges: &[Seen], second: &mut Guest) -> Vec<(String, String)> {
    let again = exchanges.iter().filter_map(|(facts, exchange)| {
        let answer = exchange.question.ask(second, facts);
        (answer != exchange.answer).then(|| {
            let message = "another instance answers otherwise".to_owned();
            (exchange.question.name().to_owned(), message)
        })
    });
    again.collect()
}

/// Questions whose answer changes with the order of what is listed.
fn reordered(exchanges: &[Seen], second: &mut Guest) -> Vec<(String, String)> {
    let Some((facts, _)) = exchanges.first() else {
        return Vec::new();
    };
    let turned = Arc::new(turned(facts));
    let again = exchanges.iter().filter_map(|(_, exchange)| {
        let answer = exchange.question.ask(second, &turned);
        (sorted(answer) != sorted(exchange.answer.clone())).then(|| {
            let message = "the answer follows the order in which facts are listed".to_owned();
            (exchange.question.name().to_owned(), message)
        })
    });
    again.collect()
}

/// The same facts, each list the other way round, but for devices, of which the order is a fact.
fn turned(facts: &Facts) -> Facts {
    let mut facts = facts.clone();
    facts.kernels.reverse();
    facts.packages.reverse();
    facts.services.reverse();
    facts.env.reverse();
    facts.driver_notes.reverse();
    facts.host.isa.reverse();
    facts.host.logical.reverse();
    for kernel in &mut facts.kernels {
        kernel.dtypes.reverse();
        kernel.kv_dtypes.reverse();
        kernel.formats.reverse();
        kernel.requires.reverse();
        kernel.traits.reverse();
        kernel.block_sizes.reverse();
        kernel.head_sizes.reverse();
    }
    facts
}

/// Reasons name lists in their order, and rejected kernels come in that of the catalogue: neither is a decision.
fn sorted(answer: Answer) -> Answer {
    let sort = |rejected: &mut Vec<Rejected>| {
        rejected.sort_by(|a, b| a.id.cmp(&b.id));
        for entry in rejected {
            entry.reasons = vec![entry.reasons.len().to_string()];
        }
    };
    let decision = |mut decision: Decision| {
        match &mut decision {
            Decision::Chosen(choice) => sort(&mut choice.rejected),
            Decision::Refused(refusal) => sort(&mut refusal.rejected),
        }
        decision
    };
    match answer {
        Answer::SelectAttention(answer) => Answer::SelectAttention(decision(answer)),
        Answer::SelectVisionAttention(answer) => Answer::SelectVisionAttention(decision(answer)),
        Answer::KernelPriority(answer) => Answer::KernelPriority(decision(answer)),
        other => other,
    }
}

fn print(report: &Report, json: bool, out: &mut dyn Write) -> Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, report).map_err(Failure::failed)?;
        return Ok(writeln!(out)?);
    }
    for fault in &report.faults {
        let question = match fault.question.as_str() {
            "" => String::new(),
            name => format!(", {name}"),
        };
        writeln!(
            out,
            "not {}: {} with {}{question}: {}",
            fault.rule, fault.machine, fault.model, fault.message
        )?;
    }
    Ok(writeln!(
        out,
        "{}: {} machines, {} answers: {} plans, {} refusals with a reason, {} times not available; {} faults",
        report.plugin,
        report.machines,
        report.answers,
        report.plans,
        report.refused,
        report.unavailable,
        report.faults.len()
    )?)
}
