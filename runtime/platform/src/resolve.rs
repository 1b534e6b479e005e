//! From facts, model and wishes to a plan: every platform is probed once, one is chosen, asked, and checked.

mod choose;
mod questions;
mod refusal;

pub use choose::facts_for;
pub use refusal::Refusal;
pub(crate) use refusal::{of_diagnostic, of_record};

use crate::facts::{Facts, ModelFacts};
use crate::plan::{Plan, ProbeRecord};
use crate::policy::EngineConfig;
use crate::registry::Registry;
use choose::Chosen;
use std::sync::Arc;

/// What the user wants.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// This platform and no other.
    pub platform: Option<String>,
    /// Settings; `user_set` names those that the user wrote.
    pub config: EngineConfig,
    /// A plugin that fails is an error, not a finding.
    pub strict: bool,
    /// A platform may override the user, visibly.
    pub allow_overrides: bool,
    /// Environment variables. A platform sees those on its allow-list.
    pub env: Vec<(String, String)>,
}

/// Resolves a plan.
///
/// A platform that fails or answers wrongly after it was chosen is set aside with a finding, and the choice is made
/// again without it, unless the user asked for it or wants to be strict: one plan never mixes the answers of two
/// platforms.
///
/// # Errors
/// Why there is no plan, whoever's fault it is.
pub fn resolve(
    registry: &mut Registry,
    facts: &Arc<Facts>,
    model: &ModelFacts,
    wishes: &Wishes,
) -> Result<Plan, Box<Refusal>> {
    let mut probes = choose::probe_all(registry, facts, &wishes.env);
    if wishes.strict {
        choose::refuse_failures(&probes)?;
    }
    loop {
        let chosen = choose::choose(registry, &probes, wishes.platform.as_deref())?;
        let refusal = match questions::ask_all(registry, &chosen, facts, model, wishes) {
            Ok(draft) => return Ok(draft.into_plan(facts, model, probes)),
            Err(refusal) => refusal,
        };
        match set_aside(&mut probes, &chosen, &refusal, wishes) {
            true => {}
            false => return Err(after(&probes, refusal)),
        }
    }
}

/// Goes on without a platform that failed. False if the refusal is not its fault, or the user wants to hear of it.
fn set_aside(
    probes: &mut [ProbeRecord],
    chosen: &Chosen,
    refusal: &Refusal,
    wishes: &Wishes,
) -> bool {
    let its_fault = matches!(refusal, Refusal::Fault(_) | Refusal::BadAnswer { .. });
    if !its_fault || wishes.strict || wishes.platform.is_some() || chosen.entry.is_none() {
        return false;
    }
    if let Some(record) = chosen.entry.and_then(|n| probes.get_mut(n)) {
        record.set_aside = Some(refusal.to_string());
    }
    true
}

/// A refusal that others came before: why they were set aside is what the user has to know first.
fn after(probes: &[ProbeRecord], refusal: Box<Refusal>) -> Box<Refusal> {
    let earlier: Vec<_> = probes
        .iter()
        .filter_map(|record| record.set_aside.clone())
        .collect();
    match earlier.is_empty() {
        true => refusal,
        false => Box::new(Refusal::After { earlier, refusal }),
    }
}

/// What every platform says to `facts`, for those who only want to know.
pub fn probe(
    registry: &mut Registry,
    facts: &Arc<Facts>,
    env: &[(String, String)],
) -> Vec<ProbeRecord> {
    choose::probe_all(registry, facts, env)
}
