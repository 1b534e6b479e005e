//! A plan as it was made: facts, questions and answers in a file, to be asked again elsewhere.

use super::planner::Planner;
use crate::error::{Failure, Result};
use anyhow::Context;
use plinth_platform::exchange::Exchange;
use plinth_platform::facts::{Facts, ModelFacts};
use plinth_platform::plan::Plan;
use plinth_platform::policy::EngineConfig;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    /// Form of the file.
    pub recording: u32,
    /// What the user asked for.
    pub wishes: EngineConfig,
    /// The machine, as the chosen platform saw it.
    pub facts: Facts,
    /// The model.
    pub model: ModelFacts,
    /// Who answered.
    pub platform: String,
    /// `sha256:…` of its component.
    pub digest: String,
    /// What was asked of it, in order, and its answers.
    pub exchanges: Vec<Exchange>,
    /// What became of them.
    pub plan: Plan,
}

/// The form that is written and read.
const FORM: u32 = 1;

pub(super) fn run(
    path: &Path,
    facts: &Arc<Facts>,
    model: &ModelFacts,
    mut planner: Planner,
    out: &mut dyn Write,
) -> Result<()> {
    let logs = planner.registry.record();
    let plan = planner.plan(facts, model).map_err(Failure::refused)?;
    let asked = logs
        .into_iter()
        .find(|(id, digest, _)| *id == plan.platform.id && *digest == plan.platform.digest)
        .map(|(.., log)| log.exchanges())
        .unwrap_or_default();
    let seen = asked
        .last()
        .map_or_else(|| Arc::clone(facts), |(facts, _)| Arc::clone(facts));
    let recording = Recording {
        recording: FORM,
        wishes: planner.wishes.config,
        facts: Facts::clone(&seen),
        model: model.clone(),
        platform: plan.platform.id.clone(),
        digest: plan.platform.digest.clone(),
        exchanges: asked.into_iter().map(|(_, exchange)| exchange).collect(),
        plan,
    };
    let text = serde_json::to_string_pretty(&recording).map_err(Failure::failed)?;
    std::fs::write(path, text + "\n")
        .with_context(|| format!("cannot write '{}'", path.display()))
        .map_err(Failure::Input)?;
    Ok(writeln!(
        out,
        "recorded {} answers of '{}' in '{}'",
        recording.exchanges.len(),
        recording.platform,
        path.display()
    )?)
}

impl Recording {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = std::fs::read(path)
            .with_context(|| format!("cannot read '{shown}'"))
            .map_err(Failure::Input)?;
        let reader = &mut serde_json::Deserializer::from_slice(&text);
        let recording: Self = serde_path_to_error::deserialize(reader)
            .with_context(|| format!("'{shown}' is no recording of this version of plinth"))
            .map_err(Failure::Input)?;
        match recording.recording {
            FORM => Ok(recording),
            other => Err(Failure::Input(anyhow::anyhow!(
                "'{shown}': found a recording of the form {other}, expected {FORM}"
            ))),
        }
    }
}
