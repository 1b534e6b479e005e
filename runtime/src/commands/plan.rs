//! `plinth plan`: what would run here, and why.

use crate::cli::PlanArgs;
use crate::error::{Failure, Result};
use crate::startup;
use std::io::Write;

/// Runs the command.
pub fn run(args: &PlanArgs, out: &mut dyn Write) -> Result<()> {
    let file = startup::open(&args.model)?;
    let plan = startup::plan(&file, &args.engine)?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &plan).map_err(Failure::failed)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", plinth_platform::render::plan(&plan))?;
    }
    Ok(())
}
