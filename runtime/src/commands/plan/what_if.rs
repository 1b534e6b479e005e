//! `plinth plan --what-if FACT[=VALUE]`: what a platform decides on facts that are not so, found by asking it again.

use super::changes::{Change, between, decided, side};
use super::fact_path::{FactPath, change_at, shown, shown_at, value_like};
use super::planner::Planner;
use crate::error::{Failure, Result};
use plinth_platform::decisions::Decision;
use plinth_platform::facts::{Facts, ModelFacts};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::Arc;

/// Compute capabilities of NVIDIA's devices, which a fact can be without being in between.
const CAPABILITIES: [(u32, u32); 16] = [
    (6, 0),
    (6, 1),
    (7, 0),
    (7, 2),
    (7, 5),
    (8, 0),
    (8, 6),
    (8, 7),
    (8, 9),
    (9, 0),
    (10, 0),
    (10, 1),
    (10, 3),
    (11, 0),
    (12, 0),
    (12, 1),
];

/// A value of the fact from which a decision is another.
#[derive(Debug, Serialize)]
struct Turn {
    path: String,
    /// The decision from here on.
    becomes: Option<String>,
    /// The least change of the fact that brings it about.
    from: String,
}

#[derive(Serialize)]
struct Report {
    fact: String,
    now: String,
    /// The change that was asked about, in words.
    change: Option<String>,
    changes: Vec<Change>,
    turns: Vec<Turn>,
}

pub(super) fn run(
    written: &str,
    facts: &Arc<Facts>,
    model: &ModelFacts,
    planner: &mut Planner,
    json: bool,
    out: &mut dyn Write,
) -> Result<()> {
    let (path, value) = match written.split_once('=') {
        Some((path, value)) => (path, Some(value)),
        None => (written, None),
    };
    let path = FactPath::parse(path);
    let old = path.get(facts).map_err(Failure::Input)?;
    let mut asked = Asking {
        facts,
        model,
        planner,
        path: &path,
    };
    let before = asked.with(&old)?;
    let mut report = Report {
        fact: path.to_string(),
        now: shown_at(&path, &old),
        change: None,
        changes: Vec::new(),
        turns: Vec::new(),
    };
    match value {
        Some(value) => {
            let new = value_like(&old, value).map_err(Failure::Input)?;
            let after = asked.with(&new)?;
            report.change = Some(change_at(&path, &old, &new));
            report.changes = between(&before, &after);
            let discrete = report.changes.iter().filter(|change| !change.gradual);
            for change in discrete.cloned().collect::<Vec<_>>() {
                report.turns.extend(asked.turn(&old, &new, &change)?);
            }
        }
        None => report.turns = asked.scan(&old)?,
    }
    match json {
        true => {
            serde_json::to_writer_pretty(&mut *out, &report).map_err(Failure::failed)?;
            Ok(writeln!(out)?)
        }
        false => print(&report, out),
    }
}

struct Asking<'a> {
    facts: &'a Arc<Facts>,
    model: &'a ModelFacts,
    planner: &'a mut Planner,
    path: &'a FactPath,
}

impl Asking<'_> {
    /// The decisions with this value of the fact.
    fn with(&mut self, value: &Value) -> Result<Vec<Decision>> {
        let facts = self.path.set(self.facts, value).map_err(Failure::Input)?;
        Ok(decided(
            &self.planner.plan_where_it_fits(&facts, self.model),
        ))
    }

    fn decides(&mut self, value: &Value, path: &str) -> Result<Option<String>> {
        let list = self.with(value)?;
        let found = list.into_iter().find(|decision| decision.path == path);
        Ok(found.map(|decision| decision.value))
    }

    /// Where between two values a decision turns into what it is at the second.
    fn turn(&mut self, old: &Value, new: &Value, change: &Change) -> Result<Option<Turn>> {
        let from = match (capability(old), capability(new)) {
            (Some(old), Some(new)) => self.turn_of_capability(old, new, change)?,
            _ => match (old.as_u64(), new.as_u64()) {
                (Some(old), Some(new)) => self.turn_of_number(old, new, change)?,
                _ => match (old.as_array(), new.as_array()) {
                    (Some(old), Some(new)) => self.turn_of_list(old, new, change)?,
                    _ => None,
                },
            },
        };
        Ok(from.map(|from| Turn {
            path: change.path.clone(),
            becomes: change.after.clone(),
            from,
        }))
    }

    /// Capabilities one by one, from the new value towards the old.
    fn turn_of_capability(
        &mut self,
        old: (u32, u32),
        new: (u32, u32),
        change: &Change,
    ) -> Result<Option<String>> {
        let between = |c: &&(u32, u32)| (old.min(new)..=old.max(new)).contains(*c);
        let mut steps: Vec<_> = CAPABILITIES.iter().filter(between).copied().collect();
        if new > old {
            steps.reverse();
        }
        let mut last = new;
        for step in steps {
            if self.decides(&json!(step), &change.path)? != change.after {
                break;
            }
            last = step;
        }
        let direction = if new > old { "from" } else { "up to" };
        Ok(Some(format!("{direction} {}.{}", last.0, last.1)))
    }

    /// By halving: a decision that turns more than once in between turns at one of these.
    fn turn_of_number(&mut self, old: u64, new: u64, change: &Change) -> Result<Option<String>> {
        let (mut before, mut after) = (old, new);
        while before.abs_diff(after) > 1 {
            let middle = before.min(after) + before.abs_diff(after) / 2;
            match self.decides(&json!(middle), &change.path)? == change.after {
                true => after = middle,
                false => before = middle,
            }
        }
        let direction = if new > old { "from" } else { "up to" };
        let value = shown_at(self.path, &json!(after));
        let exact = match value == after.to_string() {
            true => String::new(),
            false => format!(" ({after} bytes)"),
        };
        Ok(Some(format!("{direction} {value}{exact}")))
    }

    /// The fewest of the changed names that do it.
    fn turn_of_list(
        &mut self,
        old: &[Value],
        new: &[Value],
        change: &Change,
    ) -> Result<Option<String>> {
        let mut least: Vec<Value> = new.to_vec();
        // Take back each change that is not needed.
        for gone in old.iter().filter(|entry| !new.contains(entry)) {
            let mut with = least.clone();
            with.push(gone.clone());
            if self.decides(&Value::Array(with.clone()), &change.path)? == change.after {
                least = with;
            }
        }
        for added in new.iter().filter(|entry| !old.contains(entry)) {
            let without: Vec<_> = least
                .iter()
                .filter(|entry| *entry != added)
                .cloned()
                .collect();
            if self.decides(&Value::Array(without.clone()), &change.path)? == change.after {
                least = without;
            }
        }
        let gone = old.iter().filter(|entry| !least.contains(entry));
        let added = least.iter().filter(|entry| !old.contains(entry));
        let gone: Vec<_> = gone
            .map(|entry| format!("without {}", shown(entry)))
            .collect();
        let added: Vec<_> = added
            .map(|entry| format!("with {}", shown(entry)))
            .collect();
        let words: Vec<_> = gone.into_iter().chain(added).collect();
        Ok((!words.is_empty()).then(|| words.join(" and ")))
    }

    /// Every value that the fact is known to take, and where decisions turn on the way.
    fn scan(&mut self, old: &Value) -> Result<Vec<Turn>> {
        let values: Vec<Value> = match (capability(old), old) {
            (Some(_), _) => CAPABILITIES.iter().map(|step| json!(step)).collect(),
            (None, Value::Bool(truth)) => vec![json!(truth), json!(!truth)],
            (None, Value::Number(_)) => {
                let now = old.as_u64().unwrap_or(1).max(1);
                (0..=12).map(|n| json!((now / 64).max(1) << n)).collect()
            }
            (None, Value::Array(names)) => {
                let without = |gone: &Value| {
                    names
                        .iter()
                        .filter(|entry| *entry != gone)
                        .cloned()
                        .collect()
                };
                let each = names.iter().map(|gone| Value::Array(without(gone)));
                return self.without_each(old, each.collect(), names);
            }
            _ => {
                return Err(Failure::Input(anyhow::anyhow!(
                    "{}: give a value: {}=VALUE",
                    self.path,
                    self.path
                )));
            }
        };
        let mut turns = Vec::new();
        let mut last = self.with(&values[0])?;
        for pair in values.windows(2) {
            let next = self.with(&pair[1])?;
            for change in between(&last, &next).into_iter().filter(|c| !c.gradual) {
                turns.extend(self.turn(&pair[0], &pair[1], &change)?);
            }
            last = next;
        }
        Ok(turns)
    }

    fn without_each(
        &mut self,
        old: &Value,
        each: Vec<Value>,
        names: &[Value],
    ) -> Result<Vec<Turn>> {
        let before = self.with(old)?;
        let mut turns = Vec::new();
        for (value, name) in each.iter().zip(names) {
            let after = self.with(value)?;
            for change in between(&before, &after).into_iter().filter(|c| !c.gradual) {
                turns.push(Turn {
                    path: change.path,
                    becomes: change.after,
                    from: format!("without {}", shown(name)),
                });
            }
        }
        Ok(turns)
    }
}

fn capability(value: &Value) -> Option<(u32, u32)> {
    match value.as_array()?.as_slice() {
        [major, minor] => Some((
            u32::try_from(major.as_u64()?).ok()?,
            u32::try_from(minor.as_u64()?).ok()?,
        )),
        _ => None,
    }
}

fn print(report: &Report, out: &mut dyn Write) -> Result<()> {
    match &report.change {
        Some(change) => writeln!(out, "{}: {change}", report.fact)?,
        None => writeln!(out, "{}: now {}", report.fact, report.now)?,
    }
    if report.changes.is_empty() && report.turns.is_empty() {
        return Ok(writeln!(out, "  nothing that is decided changes")?);
    }
    let all = report.changes.iter().map(|change| &change.path);
    let width = all.chain(report.turns.iter().map(|turn| &turn.path));
    let width = width.map(String::len).max().unwrap_or(0);
    for change in &report.changes {
        let (before, after) = (side(&change.before), side(&change.after));
        writeln!(out, "  {:width$}  {before} → {after}", change.path)?;
        if !change.gradual && !change.reason.is_empty() {
            writeln!(out, "  {:width$}    because {}", "", change.reason)?;
        }
        let turn = report.turns.iter().find(|turn| turn.path == change.path);
        if let Some(turn) = turn {
            writeln!(
                out,
                "  {:width$}    {} {}",
                "",
                side(&turn.becomes),
                turn.from
            )?;
        }
    }
    if report.changes.is_empty() {
        for turn in &report.turns {
            writeln!(
                out,
                "  {:width$}  {} {}",
                turn.path,
                side(&turn.becomes),
                turn.from
            )?;
        }
    }
    Ok(())
}
