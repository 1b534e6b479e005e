//! `plinth plan --why PATH`: from facts to one decision, with the facts that it hangs on.

use super::changes::{PLAN, between, decided, side};
use super::fact_path::{leaves, shown_at};
use super::planner::Planner;
use crate::error::{Failure, Result};
use anyhow::anyhow;
use plinth_platform::decisions::Decision;
use plinth_platform::facts::{Facts, ModelFacts};
use plinth_platform::text;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::Arc;

/// A fact without which the decision would be another.
#[derive(Serialize)]
struct Ground {
    fact: String,
    is: String,
    /// What was put in its place, and what would be decided then.
    otherwise: String,
    decided: String,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    decision: Decision,
    platform: String,
    digest: String,
    rests_on: Vec<Ground>,
}

pub(super) fn run(
    path: &str,
    facts: &Arc<Facts>,
    model: &ModelFacts,
    planner: &mut Planner,
    json: bool,
    out: &mut dyn Write,
) -> Result<()> {
    let plan = planner.plan_where_it_fits(facts, model);
    let digest = plan.as_ref().map(|plan| plan.platform.digest.clone());
    let platform = plan.as_ref().map(|plan| plan.platform.id.clone());
    let list = decided(&plan);
    let Some(decision) = list.iter().find(|decision| decision.path == path) else {
        if let Err(refusal) = plan {
            return Err(Failure::refused(refusal));
        }
        let known: Vec<_> = list.iter().map(|decision| decision.path.as_str()).collect();
        return Err(Failure::Input(anyhow!(
            "there is no decision '{path}', only {}",
            text::list(&known)
        )));
    };
    let report = Report {
        decision: decision.clone(),
        platform: platform.unwrap_or_default(),
        digest: digest.unwrap_or_default(),
        rests_on: grounds(path, &list, facts, model, planner)?,
    };
    match json {
        true => {
            serde_json::to_writer_pretty(&mut *out, &report).map_err(Failure::failed)?;
            Ok(writeln!(out)?)
        }
        false => print(&report, out),
    }
}

/// What a fact could be instead, such that it says nothing.
fn otherwise(value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(truth) => vec![json!(!truth)],
        Value::Number(number) => {
            let n = number.as_u64().unwrap_or(0);
            vec![json!((n / 16).max(1)), json!(n.saturating_mul(16).max(1))]
        }
        Value::String(text) if !text.is_empty() => vec![json!("")],
        // A capability.
        Value::Array(pair) if pair.len() == 2 && pair.iter().all(Value::is_number) => {
            [(7, 0), (8, 0), (9, 0), (10, 0), (12, 0)]
                .map(|step| json!(step))
                .to_vec()
        }
        Value::Array(list) => list
            .iter()
            .filter(|entry| entry.is_string())
            .map(|gone| {
                let others = list.iter().filter(|entry| *entry != gone);
                Value::Array(others.cloned().collect())
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Facts that no decision may rest on, or of which it says nothing that it does.
const NAMES: [&str; 4] = ["uuid", "threads_limit", "memory_limit", "index"];

/// Changes each fact alone, and asks again.
fn grounds(
    path: &str,
    list: &[Decision],
    facts: &Arc<Facts>,
    model: &ModelFacts,
    planner: &mut Planner,
) -> Result<Vec<Ground>> {
    let mut grounds = Vec::new();
    for (fact, value) in leaves(facts).map_err(Failure::failed)? {
        let name = fact.to_string();
        if NAMES.contains(&fact.last()) {
            continue;
        }
        for other in otherwise(&value) {
            // A value that no facts can have says nothing.
            let Ok(changed) = fact.set(facts, &other) else {
                continue;
            };
            let after = decided(&planner.plan_where_it_fits(&changed, model));
            let change = between(list, &after)
                .into_iter()
                .find(|change| change.path == path || change.path == PLAN);
            if let Some(change) = change {
                let refused = change.path == PLAN && path != PLAN;
                grounds.push(Ground {
                    fact: name.clone(),
                    is: shown_at(&fact, &difference(&value, &other)),
                    otherwise: match value
                        .as_array()
                        .is_some_and(|l| l.first().is_some_and(Value::is_string))
                    {
                        true => "without it".to_owned(),
                        false => format!("with {}", shown_at(&fact, &other)),
                    },
                    decided: match refused {
                        true => format!("no plan: {}", change.reason),
                        false => side(&change.after).to_owned(),
                    },
                });
            }
        }
    }
    Ok(grounds)
}

/// Of a list the entry that was left out, else the value.
fn difference(value: &Value, other: &Value) -> Value {
    match (value, other) {
        (Value::Array(list), Value::Array(rest)) if list.len() == rest.len() + 1 => {
            let gone = list.iter().find(|entry| !rest.contains(entry));
            gone.cloned().unwrap_or(Value::Null)
        }
        _ => value.clone(),
    }
}

fn print(report: &Report, out: &mut dyn Write) -> Result<()> {
    let decision = &report.decision;
    writeln!(out, "{}: {}", decision.path, decision.value)?;
    let digest = report.digest.get(..19).map(|short| format!(" ({short}…)"));
    let by = match decision.by == report.platform {
        true => format!("the platform {}{}", decision.by, digest.unwrap_or_default()),
        false => decision.by.clone(),
    };
    writeln!(out, "  decided by {by}")?;
    writeln!(out, "  because    {}", decision.reason)?;
    if !decision.others.is_empty() {
        writeln!(out, "  before     {}", decision.others.join(", "))?;
    }
    for rejected in &decision.rejected {
        writeln!(
            out,
            "  not        {}: {}",
            rejected.id,
            rejected.reasons.join("; ")
        )?;
    }
    match report.rests_on.is_empty() {
        true => writeln!(
            out,
            "  rests on no single fact: each was changed alone, and it stayed"
        )?,
        false => writeln!(out, "  rests on")?,
    }
    let width = report
        .rests_on
        .iter()
        .map(|ground| ground.fact.len())
        .max()
        .unwrap_or(0);
    for ground in &report.rests_on {
        writeln!(
            out,
            "    {:width$}  {}: {} it would be {}",
            ground.fact, ground.is, ground.otherwise, ground.decided
        )?;
    }
    Ok(())
}
