//! Which platform answers: the user's, else the only available one out of tree, else the best built-in, else the floor.

use super::Refusal;
use crate::check;
use crate::facts::Facts;
use crate::plan::{DecidedBy, Origin, Outcome, ProbeRecord};
use crate::policy::{Availability, Probe};
use crate::registry::{FLOOR_ID, Registry};
use std::sync::Arc;

/// Who was chosen.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    /// Place in the registry; `None` is the floor.
    pub entry: Option<usize>,
    /// What it offers.
    pub availability: Availability,
    pub by: DecidedBy,
    pub reason: String,
}

/// Facts with the environment variables that a platform asked for, and no others.
pub fn facts_for(facts: &Arc<Facts>, allowlist: &[String], env: &[(String, String)]) -> Arc<Facts> {
    let mut shown: Vec<_> = env
        .iter()
        .filter(|(name, _)| allowlist.contains(name))
        .cloned()
        .collect();
    shown.sort();
    // What a facts file recorded stays, unless the environment says it anew.
    let recorded = facts
        .env
        .iter()
        .filter(|(name, _)| allowlist.contains(name));
    let recorded: Vec<_> = recorded
        .filter(|(name, _)| !shown.iter().any(|(other, _)| other == name))
        .cloned()
        .collect();
    shown.extend(recorded);
    match shown == facts.env {
        true => Arc::clone(facts),
        false => Arc::new(Facts {
            env: shown,
            ..Facts::clone(facts)
        }),
    }
}

/// Asks every platform once.
pub(super) fn probe_all(
    registry: &mut Registry,
    facts: &Arc<Facts>,
    env: &[(String, String)],
) -> Vec<ProbeRecord> {
    let mut records = Vec::new();
    for entry in registry.entries() {
        let outcome = match (&entry.refused, &mut entry.platform, &entry.descriptor) {
            (Some(outcome), _, _) => outcome.clone(),
            (None, Some(platform), Some(descriptor)) => {
                let facts = facts_for(facts, &descriptor.env_allowlist, env);
                match platform.probe(&facts) {
                    Err(fault) => Outcome::Failed(format!("probe: {}", fault.message)),
                    Ok(answer) => match (check::probe(&answer, &facts), answer) {
                        (Err(fault), _) => {
                            Outcome::Failed(format!("probe gave an answer that cannot be: {fault}"))
                        }
                        (Ok(()), Probe::Available(availability)) => {
                            Outcome::Available(availability)
                        }
                        (Ok(()), Probe::Unavailable(reasons)) => Outcome::Unavailable(reasons),
                    },
                }
            }
            (None, _, _) => Outcome::Refused("it was not registered as a platform".to_owned()),
        };
        records.push(entry.record(outcome));
    }
    records
}

/// Strict: nothing may have failed.
pub(super) fn refuse_failures(records: &[ProbeRecord]) -> Result<(), Box<Refusal>> {
    let failed =
        |record: &&ProbeRecord| matches!(record.outcome, Outcome::Failed(_) | Outcome::Refused(_));
    let failures: Vec<_> = records.iter().filter(failed).cloned().collect();
    match failures.is_empty() {
        true => Ok(()),
        false => Err(Box::new(Refusal::Strict(failures))),
    }
}

fn availability(record: &ProbeRecord) -> Option<&Availability> {
    match (&record.outcome, &record.set_aside) {
        (Outcome::Available(availability), None) => Some(availability),
        _ => None,
    }
}

fn floor(by: DecidedBy, reason: String) -> Chosen {
    let availability = Availability {
        devices: Vec::new(),
        score: 0,
        notes: Vec::new(),
    };
    Chosen {
        entry: None,
        availability,
        by,
        reason,
    }
}

pub(super) fn choose(
    registry: &mut Registry,
    records: &[ProbeRecord],
    wanted: Option<&str>,
) -> Result<Chosen, Box<Refusal>> {
    let usable = |n: &usize| {
        registry
            .entries()
            .get(*n)
            .is_some_and(|entry| entry.platform.is_some())
    };
    let mut usable: Vec<usize> = {
        let mut usable = usable;
        (0..records.len()).filter(|n| usable(n)).collect()
    };
    usable.retain(|&n| availability(&records[n]).is_some());
    let take = |n: usize, by, reason: String| {
        let availability = availability(&records[n])
            .cloned()
            .expect("only available ones are usable");
        Ok(Chosen {
            entry: Some(n),
            availability,
            by,
            reason,
        })
    };
    if let Some(wanted) = wanted {
        if wanted == FLOOR_ID {
            return Ok(floor(DecidedBy::User, "asked for".to_owned()));
        }
        return match usable.iter().find(|&&n| records[n].id == wanted) {
            Some(&n) => take(n, DecidedBy::User, "asked for".to_owned()),
            None => Err(Box::new(Refusal::Unavailable {
                wanted: wanted.to_owned(),
                probes: records.to_vec(),
            })),
        };
    }
    let vendors: Vec<_> = usable
        .iter()
        .copied()
        .filter(|&n| matches!(records[n].origin, Origin::File { .. }))
        .collect();
    match vendors.as_slice() {
        [] => {}
        [one] => {
            let reason = "the only available platform that is not built in, which goes before those that are".to_owned();
            return take(*one, DecidedBy::Floor, reason);
        }
        several => {
            let name = |&n: &usize| {
                format!(
                    "{} ({}, {})",
                    records[n].id, records[n].origin, records[n].digest
                )
            };
            return Err(Box::new(Refusal::Ambiguous {
                candidates: several.iter().map(name).collect(),
            }));
        }
    }
    let score = |n: usize| availability(&records[n]).map_or(0, |availability| availability.score);
    match usable
        .iter()
        .copied()
        .max_by_key(|&n| (score(n), std::cmp::Reverse(n)))
    {
        Some(best) => take(
            best,
            DecidedBy::Floor,
            format!("the best score of what is available, {}", score(best)),
        ),
        None => Ok(floor(
            DecidedBy::Floor,
            "no other platform is available".to_owned(),
        )),
    }
}
