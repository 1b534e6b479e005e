//! The host trusts no answer: what a platform may say, judged against the catalogue, the facts and the ranges.
//!
//! Every function gives what is wrong in words; who was asked what is added by the resolver.

use crate::facts::Facts;
use crate::needs::{Need, reasons_against};
use crate::policy::{
    Availability, BatchDefaults, Capabilities, Choice, Decision, Diagnostic, GraphPlan,
    KernelRefusal, KvTransferPlan, ParallelPlan, Probe, Rejected, Rule, ThreadPlan,
};
use crate::text;
use std::collections::BTreeSet;

type Checked = Result<(), String>;

/// Longest list of findings, devices, rules or names that an answer may hold.
const MAX_LIST: usize = 1024;

fn texts<'a>(what: &str, texts: impl IntoIterator<Item = &'a String>) -> Checked {
    match texts.into_iter().find_map(|part| text::fault(part)) {
        Some(fault) => Err(format!("{what}: {fault}")),
        None => Ok(()),
    }
}

fn short<T>(what: &str, list: &[T]) -> Checked {
    match list.len() {
        0..=MAX_LIST => Ok(()),
        found => Err(format!(
            "{what}: {found} entries where at most {MAX_LIST} are allowed"
        )),
    }
}

pub(crate) fn diagnostics(list: &[Diagnostic]) -> Checked {
    short("findings", list)?;
    list.iter().try_for_each(
        |Diagnostic {
             code,
             path,
             message,
             fix,
             ..
         }| {
            texts(
                "a finding",
                [code, message].into_iter().chain(path).chain(fix),
            )
        },
    )
}

pub(crate) fn probe(answer: &Probe, facts: &Facts) -> Checked {
    let Availability { devices, notes, .. } = match answer {
        Probe::Available(availability) => availability,
        Probe::Unavailable(reasons) if reasons.is_empty() => {
            return Err("unavailable without a reason".to_owned());
        }
        Probe::Unavailable(reasons) => return diagnostics(reasons),
    };
    diagnostics(notes)?;
    let known = facts.devices.len();
    if let Some(beyond) = devices.iter().find(|&&index| index as usize >= known) {
        return Err(format!("device {beyond}, where the facts list {known}"));
    }
    match devices.iter().collect::<BTreeSet<_>>().len() == devices.len() {
        true => Ok(()),
        false => Err("a device twice".to_owned()),
    }
}

pub(crate) fn capabilities(answer: &Capabilities) -> Checked {
    let Capabilities {
        dtypes,
        kv_dtypes,
        quantization,
        fp8_format,
        features,
        ..
    } = answer;
    let lists = [dtypes, kv_dtypes, features];
    lists.iter().try_for_each(|list| short("names", list))?;
    let named = lists
        .into_iter()
        .flatten()
        .chain(quantization.iter().flatten())
        .chain(fp8_format);
    texts("a name", named)?;
    for (what, list) in [("dtypes", dtypes), ("kv dtypes", kv_dtypes)] {
        if list.is_empty() {
            return Err(format!("no {what}: at least one is needed to serve"));
        }
    }
    Ok(())
}

pub(crate) fn batch(answer: &BatchDefaults) -> Checked {
    texts("the reason", [&answer.reason])?;
    for (what, found, most) in [
        ("tokens a step", answer.max_batched_tokens, 1 << 20),
        ("sequences", answer.max_num_seqs, 1 << 16),
    ] {
        if !(1..=most).contains(&found) {
            return Err(format!("{what}: found {found}, expected 1 to {most}"));
        }
    }
    Ok(())
}

/// A choice among kernels, held against the catalogue and what the kernel is needed for.
pub(crate) fn decision(
    answer: &Decision,
    need: &Need<'_>,
    requested: Option<&str>,
    facts: &Facts,
    devices: &[u32],
) -> Checked {
    let rejected = match answer {
        Decision::Chosen(choice) => &choice.rejected,
        Decision::Refused(refusal) => &refusal.rejected,
    };
    short("rejected kernels", rejected)?;
    for Rejected { id, reasons } in rejected {
        known(id, facts)?;
        short("reasons", reasons)?;
        texts("a reason", reasons)?;
        if reasons.is_empty() {
            return Err(format!(
                "kernel {} is rejected without a reason",
                text::quote(id)
            ));
        }
    }
    match answer {
        Decision::Refused(KernelRefusal {
            message, ranking, ..
        }) => {
            texts("the message", [message])?;
            ranked(ranking, rejected, facts)
        }
        Decision::Chosen(choice) => chosen(choice, need, requested, facts, devices),
    }
}

/// A ranking that may be: known kernels, each once, and none of those that are rejected.
fn ranked(ranking: &[String], rejected: &[Rejected], facts: &Facts) -> Checked {
    short("ranking", ranking)?;
    ranking.iter().try_for_each(|id| known(id, facts))?;
    let ranked: BTreeSet<_> = ranking.iter().collect();
    if ranked.len() != ranking.len() {
        return Err("a kernel twice in the ranking".to_owned());
    }
    match rejected
        .iter()
        .find(|rejected| ranked.contains(&rejected.id))
    {
        Some(both) => Err(format!(
            "kernel {} is both ranked and rejected",
            text::quote(&both.id)
        )),
        None => Ok(()),
    }
}

fn known(id: &str, facts: &Facts) -> Checked {
    match facts.kernels.iter().any(|kernel| kernel.id == id) {
        true => Ok(()),
        false => Err(format!(
            "kernel {} is not in the catalogue",
            text::quote(id)
        )),
    }
}

fn chosen(
    choice: &Choice,
    need: &Need<'_>,
    requested: Option<&str>,
    facts: &Facts,
    devices: &[u32],
) -> Checked {
    let Choice {
        selected,
        ranking,
        rejected,
        notes,
    } = choice;
    diagnostics(notes)?;
    known(selected, facts)?;
    let asked_for = requested == Some(selected.as_str()) && ranking.contains(selected);
    if ranking.first() != Some(selected) && !asked_for {
        return Err(format!(
            "kernel {} is selected but not first of its ranking",
            text::quote(selected)
        ));
    }
    ranked(ranking, rejected, facts)?;
    let kernel = facts.kernels.iter().find(|kernel| kernel.id == *selected);
    let against = kernel
        .map(|kernel| reasons_against(kernel, need, facts, devices))
        .unwrap_or_default();
    match against.as_slice() {
        [] => Ok(()),
        reasons => Err(format!(
            "kernel '{selected}' is selected but cannot serve: {}",
            reasons.join("; ")
        )),
    }
}

pub(crate) fn graphs(answer: &GraphPlan) -> Checked {
    diagnostics(&answer.notes)?;
    short("capture sizes", &answer.capture_sizes)?;
    match answer
        .capture_sizes
        .iter()
        .find(|&&size| size == 0 || size > 1 << 16)
    {
        Some(size) => Err(format!("capture size {size}: expected 1 to 65536")),
        None => Ok(()),
    }
}

pub(crate) fn threads(answer: &ThreadPlan, facts: &Facts) -> Checked {
    diagnostics(&answer.notes)?;
    let [rank] = answer.ranks.as_slice() else {
        return Err(format!("{} ranks, expected 1", answer.ranks.len()));
    };
    let budget = most_workers(facts);
    if rank.cpus.is_empty() || rank.cpus.len() > budget {
        let limit = &facts.host.budget.threads_limit;
        return Err(format!(
            "{} worker threads, expected 1 to {budget} ({limit})",
            rank.cpus.len()
        ));
    }
    let mut seen = BTreeSet::new();
    for cpu in rank.cpus.iter().chain(&answer.reserved) {
        let known = facts.host.logical.iter().find(|logical| logical.id == *cpu);
        match known {
            None => return Err(format!("CPU {cpu}, which this machine does not have")),
            Some(logical) if !logical.allowed => {
                return Err(format!("CPU {cpu}, which this process may not use"));
            }
            Some(_) if !seen.insert(cpu) => return Err(format!("CPU {cpu} twice")),
            Some(_) => {}
        }
    }
    match rank.numa {
        Some(node)
            if !facts
                .host
                .numa
                .iter()
                .any(|numa| numa.id == node && numa.visible) =>
        {
            Err(format!(
                "NUMA node {node}, which this process does not have"
            ))
        }
        _ => Ok(()),
    }
}

/// A worker a hardware thread, where nothing but the number of cores bounds the budget; else no more than the budget.
fn most_workers(facts: &Facts) -> usize {
    let budget = facts.host.budget.threads as usize;
    let allowed = || facts.host.logical.iter().filter(|cpu| cpu.allowed);
    let cores: BTreeSet<_> = allowed().map(|cpu| cpu.core).collect();
    match budget < cores.len() {
        true => budget,
        false => allowed().count().max(budget),
    }
}

pub(crate) fn parallel(answer: &ParallelPlan) -> Checked {
    let ParallelPlan {
        collective,
        executor,
        gather,
        notes,
        ..
    } = answer;
    diagnostics(notes)?;
    texts("a name", [collective, executor, gather])
}

pub(crate) fn kv_transfer(answer: &KvTransferPlan) -> Checked {
    short("buffer devices", &answer.buffer_devices)?;
    texts(
        "a name",
        answer.buffer_devices.iter().chain(&answer.memory_type),
    )
}

pub(crate) fn rules(answer: &[Rule]) -> Checked {
    short("rules", answer)?;
    answer
        .iter()
        .find_map(crate::rule::fault)
        .map_or(Ok(()), Err)
}
