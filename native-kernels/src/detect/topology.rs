//! Logical CPUs with their cores and nodes, and the caches that a core sees.

use std::collections::BTreeMap;

use plinth_platform::facts::{Cache, LogicalCpu};

use super::cpuinfo::{CpuInfo, Processor};
use super::tree::{IdSet, Tree};

const CPUS: &str = "/sys/devices/system/cpu";
const NODES: &str = "/sys/devices/system/node";

/// CPUs that are online: as `/sys` says, else as `/proc/cpuinfo` lists, else the first `assumed` ones.
pub(super) fn online(tree: &Tree, info: &CpuInfo, assumed: u32) -> IdSet {
    let listed = || info.processors.iter().map(|cpu| cpu.id).collect::<IdSet>();
    tree.ids(&format!("{CPUS}/online"))
        .or_else(|| Some(listed()).filter(|ids| !ids.is_empty()))
        .unwrap_or_else(|| (0..assumed.max(1)).collect())
}

/// NUMA nodes that are online; node 0 alone if the kernel was built without NUMA.
pub(super) fn nodes(tree: &Tree) -> IdSet {
    tree.ids(&format!("{NODES}/online"))
        .or_else(|| Some(tree.numbered(NODES, "node")).filter(|ids| !ids.is_empty()))
        .unwrap_or_else(|| IdSet::from([0]))
}

/// Path of a file about a NUMA node.
pub(super) fn node_file(node: u32, name: &str) -> String {
    format!("{NODES}/node{node}/{name}")
}

/// Which CPUs and nodes there are.
pub(super) struct Present<'a> {
    pub(super) online: &'a IdSet,
    /// CPUs that this process may run on.
    pub(super) allowed: &'a IdSet,
    pub(super) nodes: &'a IdSet,
}

/// Every online CPU, in order of its number.
pub(super) fn logical_cpus(tree: &Tree, info: &CpuInfo, present: &Present<'_>) -> Vec<LogicalCpu> {
    let node_of = node_of_cpu(tree, present.nodes);
    let first_node = present.nodes.first().copied().unwrap_or(0);
    let listed = info.processors.iter().map(|cpu| (cpu.id, *cpu));
    let listed: BTreeMap<u32, Processor> = listed.collect();
    let mut cores = Cores::default();
    let logical = present.online.iter().map(|&id| LogicalCpu {
        id,
        core: cores.number(core_of_cpu(tree, id, listed.get(&id))),
        node: node_of.get(&id).copied().unwrap_or(first_node),
        allowed: present.allowed.contains(&id),
    });
    logical.collect()
}

fn node_of_cpu(tree: &Tree, nodes: &IdSet) -> BTreeMap<u32, u32> {
    let cpus = |node: &u32| tree.ids(&node_file(*node, "cpulist")).unwrap_or_default();
    nodes
        .iter()
        .flat_map(|node| cpus(node).into_iter().map(|cpu| (cpu, *node)))
        .collect()
}

/// What tells one physical core from another. `core_id` does not: it may repeat within a socket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum CoreKey {
    /// The lowest of the SMT siblings.
    FirstSibling(u32),
    /// Socket and core within it, as `/proc/cpuinfo` numbers them.
    PackageAndCore(u32, u32),
}

fn core_of_cpu(tree: &Tree, id: u32, processor: Option<&Processor>) -> CoreKey {
    let siblings = ["core_cpus_list", "thread_siblings_list"] // the second is the name before Linux 5.3
        .iter()
        .find_map(|name| tree.ids(&format!("{CPUS}/cpu{id}/topology/{name}")))
        .filter(|siblings| siblings.contains(&id));
    if let Some(first) = siblings.and_then(|siblings| siblings.first().copied()) {
        return CoreKey::FirstSibling(first);
    }
    match processor {
        Some(Processor {
            package: Some(package),
            core: Some(core),
            ..
        }) => CoreKey::PackageAndCore(*package, *core),
        _ => CoreKey::FirstSibling(id),
    }
}

/// Numbers cores densely, in the order in which their first CPU comes.
#[derive(Default)]
struct Cores(BTreeMap<CoreKey, u32>);

impl Cores {
    fn number(&mut self, key: CoreKey) -> u32 {
        let next = self.0.len() as u32; // at most as many as there are CPU numbers
        *self.0.entry(key).or_insert(next)
    }
}

/// Data and unified caches of `cpu`, smallest level first. Empty where `/sys` does not tell, as on many ARM guests.
pub(super) fn caches(tree: &Tree, cpu: u32) -> Vec<Cache> {
    let folder = format!("{CPUS}/cpu{cpu}/cache");
    let indices = tree.numbered(&folder, "index");
    let caches = indices
        .iter()
        .filter_map(|index| cache(tree, &format!("{folder}/index{index}")));
    let by_level: BTreeMap<u8, Cache> = caches.map(|cache| (cache.level, cache)).collect();
    by_level.into_values().collect()
}

fn cache(tree: &Tree, folder: &str) -> Option<Cache> {
    let kind = tree.text(&format!("{folder}/type")).unwrap_or_default();
    if kind.trim() == "Instruction" {
        return None;
    }
    let sharers = tree
        .ids(&format!("{folder}/shared_cpu_list"))
        .unwrap_or_default();
    Some(Cache {
        level: tree.value(&format!("{folder}/level"))?,
        bytes: cache_bytes(tree.text(&format!("{folder}/size"))?.trim())?,
        shared_by: (sharers.len() as u32).max(1),
    })
}

/// `32K`, `1024K`, `32M`.
fn cache_bytes(size: &str) -> Option<u64> {
    let digits = size.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let unit = match &size[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)
        .filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_caches() {
        let check =
            |size: &str, expected: Option<u64>| assert_eq!(cache_bytes(size), expected, "{size:?}");
        check("32K", Some(32 << 10));
        check("36608K", Some(36608 << 10));
        check("32M", Some(32 << 20));
        check("512", Some(512));
        check("0K", None);
        check("K", None);
        check("32X", None);
        check("99999999999999999999G", None);
        check("18446744073709551615G", None);
        check("3é", None);
    }
}
