//! `plinth plugin`: what is loaded and from where, and what one platform says.

mod decide;
mod inspect;
mod replay;
mod test;

use crate::cli::{PluginArgs, PluginCommand};
use crate::error::{Failure, Result};
use crate::{platforms, startup};
use plinth_platform::plan::{Outcome, ProbeRecord};
use plinth_platform::resolve::probe;
use std::io::Write;

/// Runs the command.
pub fn run(args: &PluginArgs, out: &mut dyn Write) -> Result<()> {
    match &args.command {
        PluginCommand::List { json, platform } => {
            let facts = startup::facts(platform.facts.as_deref())?;
            let mut registry = platforms::registry(platform)?;
            let env: Vec<_> = std::env::vars().collect();
            let records = probe(&mut registry, &facts, &env);
            match json {
                true => {
                    serde_json::to_writer_pretty(&mut *out, &records).map_err(Failure::failed)?;
                    Ok(writeln!(out)?)
                }
                false => list(&records, out),
            }
        }
        PluginCommand::Inspect { plugin, json } => inspect::run(plugin, *json, out),
        PluginCommand::Decide {
            plugin,
            question,
            input,
            model,
            facts,
            catalogue,
        } => {
            let question = decide::Question {
                plugin,
                name: question,
                input: input.as_deref(),
                model: model.as_deref(),
                facts: facts.as_deref(),
                catalogue: catalogue.as_deref(),
            };
            decide::run(&question, out)
        }
        PluginCommand::Test {
            plugin,
            facts_dir,
            json,
        } => test::run(plugin, facts_dir.as_deref(), *json, out),
        PluginCommand::Replay {
            recording,
            vectors,
            plugin,
            show_mismatches,
            json,
        } => {
            let source = replay::Source {
                recording: recording.as_deref(),
                vectors: vectors.as_deref(),
            };
            replay::run(&source, plugin.as_deref(), *show_mismatches, *json, out)
        }
    }
}

fn list(records: &[ProbeRecord], out: &mut dyn Write) -> Result<()> {
    for record in records {
        let id = if record.id.is_empty() {
            "?"
        } else {
            &record.id
        };
        let version = record
            .version
            .map(|version| version.to_string())
            .unwrap_or_default();
        writeln!(
            out,
            "{id} {version} · {} · {}",
            record.origin, record.digest
        )?;
        let lines: Vec<String> = match &record.outcome {
            Outcome::Available(availability) => {
                vec![format!("available, score {}", availability.score)]
            }
            Outcome::Unavailable(reasons) => {
                let line = |reason: &plinth_platform::policy::Diagnostic| match &reason.fix {
                    Some(fix) => format!("unavailable: {}; fix: {fix}", reason.message),
                    None => format!("unavailable: {}", reason.message),
                };
                reasons.iter().map(line).collect()
            }
            Outcome::Failed(why) => vec![format!("failed: {why}")],
            Outcome::Refused(why) => vec![format!("refused: {why}")],
        };
        lines
            .iter()
            .try_for_each(|line| writeln!(out, "    {line}"))?;
    }
    Ok(())
}
