//! Which CPUs the workers of each rank run on (`utils/ompmultiprocessing.py:108-275`).

use crate::prelude::{Diagnostic, Facts, RankBinding, ThreadPlan, info, reject, warn};
use std::collections::{BTreeMap, BTreeSet};

/// Binds rank N to the CPUs of the Nth visible NUMA node, and leaves some to other processes.
///
/// # Errors
/// There are more ranks than nodes, or nobody knows how to choose on this architecture.
pub fn bind(facts: &Facts, ranks: u32) -> Result<ThreadPlan, Diagnostic> {
    let arch = facts.host.arch.as_str();
    let env = |name: &str| {
        let entry = facts.env.iter().find(|(known, _)| known == name);
        entry
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    };
    if !BINDABLE.contains(&arch) {
        let message = "CpuArchEnum.OTHER doesn't support auto CPU binding.";
        return Err(reject(
            "threads",
            message,
            Some("bind threads by hand".to_owned()),
        ));
    }
    let visible: Vec<u32> = facts
        .host
        .numa
        .iter()
        .filter(|node| node.visible)
        .map(|node| node.id)
        .collect();
    let nodes: Vec<u32> = match env("CPU_VISIBLE_MEMORY_NODES") {
        Some(list) => {
            let named = list.split(',').filter_map(|id| id.trim().parse().ok());
            named.filter(|id| visible.contains(id)).collect()
        }
        None => visible,
    };
    if nodes.len() < ranks as usize {
        let message = format!(
            "Not enough allowed NUMA nodes to bind threads of {ranks} local CPUWorkers: {nodes:?} are allowed"
        );
        let fix = "ask for fewer ranks, or bind threads by hand".to_owned();
        return Err(reject("numa", message, Some(fix)));
    }
    let mut bound = Vec::new();
    for (rank, &node) in (0..ranks).zip(&nodes) {
        let cpus = cpus_of(facts, node, arch);
        bound.push(RankBinding {
            rank,
            cpus,
            numa: Some(node),
        });
    }
    let least = match arch {
        "aarch64" | "riscv64" => ranks,
        _ => 1,
    };
    let wanted = env("VLLM_CPU_NUM_OF_RESERVED_CPU").and_then(|text| text.parse().ok());
    Ok(within_budget(
        facts,
        reserve(bound, wanted.unwrap_or(least)),
    ))
}

/// vLLM knows nothing of a quota of CPU time, and would start a worker for each CPU that it sees: so many wait for each
/// other. Here they are no more than the budget, on purpose.
fn within_budget(facts: &Facts, mut plan: ThreadPlan) -> ThreadPlan {
    let budget = &facts.host.budget;
    let allowed = facts.host.logical.iter().filter(|cpu| cpu.allowed);
    let cores: BTreeSet<u32> = allowed.map(|cpu| cpu.core).collect();
    let total: usize = plan.ranks.iter().map(|rank| rank.cpus.len()).sum();
    let most = budget.threads as usize;
    if most >= cores.len() || total <= most {
        return plan;
    }
    let each = (most / plan.ranks.len().max(1)).max(1);
    for rank in &mut plan.ranks {
        rank.cpus.truncate(each);
    }
    let message = format!(
        "vLLM would start {total} workers, and {most} can run: {}",
        budget.threads_limit
    );
    plan.notes.push(warn("quota", message, None));
    plan
}

/// Architectures of which it is known which hardware threads are worth a worker.
const BINDABLE: [&str; 5] = ["x86_64", "s390x", "powerpc64le", "aarch64", "riscv64"];

/// Those of the hardware threads of each core that are worth a worker.
fn cpus_of(facts: &Facts, node: u32, arch: &str) -> Vec<u32> {
    let mut cores: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for cpu in facts
        .host
        .logical
        .iter()
        .filter(|cpu| cpu.allowed && cpu.node == node)
    {
        cores.entry(cpu.core).or_default().push(cpu.id);
    }
    let mut chosen = Vec::new();
    for mut threads in cores.into_values() {
        threads.sort_unstable();
        match arch {
            "x86_64" | "s390x" => chosen.extend(threads.last()),
            // The first half of eight threads.
            "powerpc64le" => chosen.extend(threads.iter().filter(|id| *id % 8 < 4)),
            // Without siblings.
            _ => chosen.extend(threads),
        }
    }
    chosen.sort_unstable();
    chosen
}

/// Takes CPUs from the end of each rank, the last rank first; none where all would be taken.
fn reserve(mut bound: Vec<RankBinding>, wanted: u32) -> ThreadPlan {
    let total: usize = bound.iter().map(|rank| rank.cpus.len()).sum();
    if total <= wanted as usize {
        let message = format!(
            "{total} CPUs, and {wanted} should be left to other processes: none is left to them"
        );
        return ThreadPlan {
            ranks: bound,
            reserved: Vec::new(),
            notes: vec![
                info("threads", format!("{total} CPUs of the chosen NUMA nodes")),
                warn("reserved", message, None),
            ],
        };
    }
    let ranks = bound.len() as u32;
    let (each, more) = (wanted / ranks, wanted % ranks);
    let mut reserved = Vec::new();
    for (n, rank) in bound.iter_mut().enumerate() {
        let takes_more = n as u32 >= ranks - more;
        let take = (each + u32::from(takes_more)) as usize;
        let kept = rank.cpus.len().saturating_sub(take);
        reserved.extend(rank.cpus.split_off(kept));
    }
    let message =
        format!("{total} CPUs of the chosen NUMA nodes, less {wanted} for other processes");
    ThreadPlan {
        ranks: bound,
        reserved,
        notes: vec![info("threads", message)],
    }
}
