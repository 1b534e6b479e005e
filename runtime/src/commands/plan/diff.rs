//! `plinth plan --diff A B`: what is decided differently, and because of which fact.

use super::changes::{Change, between, decided, side};
use super::fact_path::{FactPath, leaves, shown_at};
use super::planner::{Outcome, Planner};
use super::recording::Recording;
use crate::catalogue;
use crate::cli::PlanArgs;
use crate::error::{Failure, Result};
use crate::startup;
use anyhow::{Context, anyhow};
use plinth_platform::decisions::Decision;
use plinth_platform::facts::{Facts, ModelFacts};
use serde::Serialize;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a file that is compared may hold.
enum Side {
    Facts(Box<Facts>),
    Plugin(PathBuf),
    Model(Box<ModelFacts>),
    Recording(Box<Recording>),
}

impl Side {
    fn kind(&self) -> &'static str {
        match self {
            Self::Facts(_) => "facts of a machine",
            Self::Plugin(_) => "a platform component",
            Self::Model(_) => "a model",
            Self::Recording(_) => "a recording",
        }
    }

    fn read(path: &Path, args: &PlanArgs) -> Result<Self> {
        let ending = path.extension().and_then(|ending| ending.to_str());
        match ending {
            Some("wasm") => return Ok(Self::Plugin(path.to_owned())),
            Some("json") => {}
            _ => return Ok(Self::Model(Box::new(startup::model_of(path)?))),
        }
        let shown = path.display();
        let text = std::fs::read(path)
            .with_context(|| format!("cannot read '{shown}'"))
            .map_err(Failure::Input)?;
        let json: Value = serde_json::from_slice(&text)
            .with_context(|| format!("'{shown}' is not JSON"))
            .map_err(Failure::Input)?;
        if json.get("recording").is_some() {
            return Ok(Self::Recording(Box::new(Recording::read(path)?)));
        }
        if json.get("host").is_some() {
            let facts = startup::facts_of(Some(path), args.catalogue.as_deref())?;
            return Ok(Self::Facts(Box::new(Facts::clone(&facts))));
        }
        if json.get("layers").is_some() {
            return Ok(Self::Model(Box::new(startup::model_facts(path)?)));
        }
        Err(Failure::Input(anyhow!(
            "'{shown}': expected facts, facts of a model, a component, a model or a recording"
        )))
    }
}

/// A decision that differs, and the facts each of which alone makes it so.
#[derive(Serialize)]
struct Explained {
    #[serde(flatten)]
    change: Change,
    because_of: Vec<String>,
}

pub(super) fn run(a: &Path, b: &Path, args: &PlanArgs, out: &mut dyn Write) -> Result<()> {
    let (first, second) = (Side::read(a, args)?, Side::read(b, args)?);
    let explained = match (&first, &second) {
        (Side::Facts(x), Side::Facts(y)) => of_facts(x, y, args)?,
        (Side::Plugin(x), Side::Plugin(y)) => {
            let with = |path: &PathBuf| -> Result<Vec<Decision>> {
                let mut args = args.clone();
                args.engine.platform.plugins.push(path.clone());
                let mut planner = Planner::new(&args)?;
                let (facts, model) = (super::facts(&args)?, super::model(&args)?);
                Ok(decided(&planner.plan_where_it_fits(&facts, &model)))
            };
            unexplained(&with(x)?, &with(y)?)
        }
        (Side::Model(x), Side::Model(y)) => {
            let mut planner = Planner::new(args)?;
            let facts = super::facts(args)?;
            let mut with = |model| decided(&planner.plan_where_it_fits(&facts, model));
            unexplained(&with(x), &with(y))
        }
        (Side::Recording(x), Side::Recording(y)) => {
            let of = |recording: &Recording| {
                let plan: Outcome = Ok(recording.plan.clone());
                decided(&plan)
            };
            unexplained(&of(x), &of(y))
        }
        _ => {
            return Err(Failure::Input(anyhow!(
                "'{}' holds {} and '{}' {}: expected two of a kind",
                a.display(),
                first.kind(),
                b.display(),
                second.kind()
            )));
        }
    };
    match args.json {
        true => {
            serde_json::to_writer_pretty(&mut *out, &explained).map_err(Failure::failed)?;
            Ok(writeln!(out)?)
        }
        false => print(&explained, out),
    }
}

fn unexplained(before: &[Decision], after: &[Decision]) -> Vec<Explained> {
    let explained = |change| Explained {
        change,
        because_of: Vec::new(),
    };
    between(before, after).into_iter().map(explained).collect()
}

/// Gives the first machine each fact of the second alone, and sees what of the difference it makes.
fn of_facts(first: &Facts, second: &Facts, args: &PlanArgs) -> Result<Vec<Explained>> {
    let model = super::model(args)?;
    let mut planner = Planner::new(args)?;
    let mut ask = |facts: &Arc<Facts>| decided(&planner.plan_where_it_fits(facts, &model));
    let (first, second) = (Arc::new(first.clone()), Arc::new(second.clone()));
    let (before, after) = (ask(&first), ask(&second));
    let mut explained = unexplained(&before, &after);
    for (path, new) in differing(&first, &second)? {
        let Ok(mixed) = path.set(&first, &new) else {
            continue;
        };
        let mixed = with_own_catalogue(mixed, &path, args)?;
        let old = path.get(&first).map_err(Failure::failed)?;
        let alone = ask(&mixed);
        let makes = between(&before, &alone);
        for Explained { change, because_of } in &mut explained {
            let same = |other: &&Change| other.path == change.path && other.after == change.after;
            if makes.iter().any(|other| same(&other)) {
                because_of.push(match brief(&path, &old).zip(brief(&path, &new)) {
                    Some((old, new)) => format!("{path}: {old} → {new}"),
                    None => path.to_string(),
                });
            }
        }
    }
    Ok(explained)
}

/// Devices of another vendor bring another build of the engine with them.
fn with_own_catalogue(facts: Arc<Facts>, path: &FactPath, args: &PlanArgs) -> Result<Arc<Facts>> {
    match (&args.catalogue, path.to_string() == "devices") {
        (Some(name), true) => {
            let mut facts = Facts::clone(&facts);
            catalogue::apply(&mut facts, name)?;
            Ok(Arc::new(facts))
        }
        _ => Ok(facts),
    }
}

/// Names that tell one device from another, and words about a limit: they decide nothing.
const SAYS_NOTHING: [&str; 5] = ["features", "index", "memory_limit", "threads_limit", "uuid"];

/// Facts of the second machine that are others than the first's. Two boxes of a vendor's devices differ in what all of
/// their devices are; other boxes in their devices altogether.
fn differing(first: &Facts, second: &Facts) -> Result<Vec<(FactPath, Value)>> {
    let json = |facts: &Facts| serde_json::to_value(facts).map_err(Failure::failed);
    let (a, b) = (json(first)?, json(second)?);
    let vendors = |facts: &Facts| -> Vec<String> {
        facts
            .devices
            .iter()
            .map(|device| device.vendor.clone())
            .collect()
    };
    let same_vendor = vendors(first) == vendors(second);
    let mut found = Vec::new();
    for group in ["devices", "driver_notes", "packages", "services", "env"] {
        if a[group] != b[group] && !(same_vendor && group == "devices") {
            found.push((FactPath::parse(group), b[group].clone()));
        }
    }
    let device = b["devices"][0].as_object().filter(|_| same_vendor);
    for (field, value) in device.into_iter().flatten() {
        if a["devices"][0][field] != *value {
            found.push((FactPath::parse(&format!("devices.{field}")), value.clone()));
        }
    }
    let old = leaves(first).map_err(Failure::failed)?;
    for (path, value) in leaves(second).map_err(Failure::failed)? {
        let same_place = old.iter().find(|(known, _)| *known == path);
        if path.starts_with("host") && same_place.is_some_and(|(_, old)| *old != value) {
            found.push((path, value));
        }
    }
    found.retain(|(path, _)| !SAYS_NOTHING.contains(&path.last()));
    Ok(found)
}

/// A value that fits on a line.
fn brief(path: &FactPath, value: &Value) -> Option<String> {
    let text = shown_at(path, value);
    (text.chars().count() <= 60).then_some(text)
}

fn print(explained: &[Explained], out: &mut dyn Write) -> Result<()> {
    if explained.is_empty() {
        return Ok(writeln!(out, "nothing is decided differently")?);
    }
    let width = explained
        .iter()
        .map(|entry| entry.change.path.len())
        .max()
        .unwrap_or(0);
    for Explained { change, because_of } in explained {
        let (before, after) = (side(&change.before), side(&change.after));
        writeln!(out, "{:width$}  {before} → {after}", change.path)?;
        if !change.gradual && !change.reason.is_empty() {
            writeln!(out, "{:width$}    because {}", "", change.reason)?;
        }
        if !because_of.is_empty() {
            writeln!(out, "{:width$}    by {}", "", because_of.join("; or "))?;
        }
    }
    Ok(())
}
