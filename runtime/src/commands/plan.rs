//! `plinth plan`: what would run here, and why.

use crate::cli::PlanArgs;
use crate::error::{Failure, Result};
use crate::startup;
use std::io::Write;

/// Runs the command.
pub fn run(args: &PlanArgs, out: &mut dyn Write) -> Result<()> {
    let model = match (&args.model, &args.model_facts) {
        (Some(path), _) => startup::open(path)?.facts(),
        (None, Some(path)) => startup::model_facts(path)?,
        (None, None) => unreachable!("the command line wants one of them"),
    };
    let machine = args.engine.platform.facts.as_deref();
    let facts = startup::facts_of(machine, args.catalogue.as_deref())?;
    let plan = startup::plan_for(&facts, &model, &args.engine)?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &plan).map_err(Failure::failed)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", plinth_platform::render::plan(&plan))?;
    }
    Ok(())
}
