//! `plinth plan`: what would run here, there, or on a hundred machines, and why.

mod changes;
mod diff;
mod fact_path;
mod fleet;
mod planner;
pub(crate) mod recording;
mod what_if;
mod why;

use crate::cli::PlanArgs;
use crate::error::{Failure, Result};
use crate::startup;
use anyhow::anyhow;
use planner::Planner;
use plinth_platform::facts::{Facts, ModelFacts};
use std::io::Write;
use std::sync::Arc;

/// Runs the command.
pub fn run(args: &PlanArgs, out: &mut dyn Write) -> Result<()> {
    if let Some(folder) = &args.fleet {
        return fleet::run(folder, args, out);
    }
    if let Some(sides) = &args.diff {
        return diff::run(&sides[0], &sides[1], args, out);
    }
    let model = model(args)?;
    let facts = facts(args)?;
    let mut planner = Planner::new(args)?;
    if let Some(path) = &args.why {
        return why::run(path, &facts, &model, &mut planner, args.json, out);
    }
    if let Some(change) = &args.what_if {
        return what_if::run(change, &facts, &model, &mut planner, args.json, out);
    }
    if let Some(path) = &args.record {
        return recording::run(path, &facts, &model, planner, out);
    }
    let plan = planner.plan(&facts, &model).map_err(Failure::refused)?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &plan).map_err(Failure::failed)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", plinth_platform::render::plan(&plan))?;
    }
    Ok(())
}

/// The machine that is planned for.
fn facts(args: &PlanArgs) -> Result<Arc<Facts>> {
    let machine = args.engine.platform.facts.as_deref();
    startup::facts_of(machine, args.catalogue.as_deref())
}

/// The one model that is planned for.
fn model(args: &PlanArgs) -> Result<ModelFacts> {
    let named: Vec<_> = args.model.iter().chain(&args.more_models).collect();
    match (named.as_slice(), &args.model_facts) {
        ([], Some(path)) => startup::model_facts(path),
        ([one], None) => startup::model_of(one),
        _ => Err(Failure::Input(anyhow!(
            "expected one model: several are planned for with --fleet"
        ))),
    }
}
