//! How many worker threads are worth starting, and which limit says so.
//!
//! One per physical core that this process may run on, since SMT siblings share the vector units that the kernels
//! saturate; and never more than the whole cores of a CPU quota, since a thread more would only be throttled.

use plinth_platform::facts::LogicalCpu;

use super::cgroup::{Cgroups, CpuQuota, Cpuset};
use super::tree::{IdSet, Tree};

/// CPUs that this process may run on.
#[derive(Debug)]
pub(super) struct Allowed {
    pub(super) cpus: IdSet,
    /// What restricts them, if they are not all that are online.
    restriction: Option<String>,
}

impl Allowed {
    /// Affinity and cpuset within the CPUs that are online. If they leave none, they are about another machine or
    /// malformed, and are not believed.
    pub(super) fn read(
        tree: &Tree,
        groups: &Cgroups,
        affinity: Option<IdSet>,
        online: &IdSet,
    ) -> Self {
        let cpuset = groups
            .cpus(tree)
            .filter(|cpuset| !cpuset.ids.is_disjoint(online));
        let in_cpuset = cpuset
            .as_ref()
            .map_or_else(|| online.clone(), |Cpuset { ids, .. }| ids & online);
        let bound = affinity
            .map(|affinity| &affinity & &in_cpuset)
            .filter(|cpus| !cpus.is_empty());
        let cpus = bound.unwrap_or_else(|| in_cpuset.clone());
        let restriction = if cpus.len() < in_cpuset.len() {
            Some("affinity".to_owned())
        } else {
            cpuset
                .filter(|_| cpus.len() < online.len())
                .map(|cpuset| cpuset.origin)
        };
        Self { cpus, restriction }
    }
}

/// Worker threads, and which limit decided.
pub(super) fn budget(
    logical: &[LogicalCpu],
    allowed: &Allowed,
    quota: Option<&CpuQuota>,
) -> (u32, String) {
    let cores: IdSet = logical
        .iter()
        .filter(|cpu| cpu.allowed)
        .map(|cpu| cpu.core)
        .collect();
    let cores = (cores.len() as u32).max(1); // at most as many as there are CPU numbers
    match quota {
        Some(quota) if quota.whole_cores() < u64::from(cores) => {
            let threads = (quota.whole_cores() as u32).max(1); // under `cores`, hence in range
            let exact = (quota.cores() * 100.0).round() / 100.0;
            (
                threads,
                format!("{}: {exact} {}", quota.origin, plural(exact == 1.0, "core")),
            )
        }
        _ => (cores, cores_limit(cores, logical, allowed)),
    }
}

fn cores_limit(cores: u32, logical: &[LogicalCpu], allowed: &Allowed) -> String {
    let cores_text = format!("{cores} physical {}", plural(cores == 1, "core"));
    let smt = allowed.cpus.len() > cores as usize;
    match &allowed.restriction {
        None if smt => format!("{cores_text} of {} CPUs", logical.len()),
        None => cores_text,
        Some(restriction) => {
            let count = format!(
                "{restriction}: {} of {} CPUs",
                allowed.cpus.len(),
                logical.len()
            );
            if smt {
                format!("{count}, {cores_text}")
            } else {
                count
            }
        }
    }
}

fn plural(one: bool, word: &str) -> String {
    if one {
        word.to_owned()
    } else {
        format!("{word}s")
    }
}
