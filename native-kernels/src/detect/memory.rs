//! Memory of the machine and of its NUMA nodes, and how much of it this process may still take.

use plinth_platform::facts::NumaNode;

use super::cgroup::Cgroups;
use super::topology::node_file;
use super::tree::{IdSet, Tree, field, kib_field};
use super::{Source, live};

/// What is assumed of a machine that says nothing about its memory: enough for a small model, and no more.
const ASSUMED_BYTES: u64 = 4 << 30;

/// Memory of the whole machine, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostMemory {
    pub(super) total: u64,
    pub(super) available: u64,
    /// Where `available` comes from: "MemAvailable".
    pub(super) origin: &'static str,
}

impl HostMemory {
    pub(super) fn read(source: &Source) -> Self {
        let text = source.tree.text("/proc/meminfo").unwrap_or_default();
        Self::parse(&text).unwrap_or_else(|| {
            Self::guess(if source.live {
                live::physical_memory()
            } else {
                None
            })
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let total = kib_field(text, "MemTotal")?;
        let kib = |key| kib_field(text, key).unwrap_or(0);
        let (available, origin) = match kib_field(text, "MemAvailable") {
            Some(available) => (available, "MemAvailable"),
            // Sandboxes that write a shorter file.
            None => (
                kib("MemFree").saturating_add(kib("Cached")),
                "MemFree + Cached",
            ),
        };
        Some(Self {
            total,
            available: available.min(total),
            origin,
        })
    }

    fn guess(physical: Option<u64>) -> Self {
        match physical {
            Some(total) => {
                let origin =
                    "half of the physical memory (the system does not say what is available)";
                Self {
                    total,
                    available: total / 2,
                    origin,
                }
            }
            None => {
                let origin = "4 GiB assumed (the system does not say what it has)";
                Self {
                    total: ASSUMED_BYTES,
                    available: ASSUMED_BYTES,
                    origin,
                }
            }
        }
    }
}

/// Every node, in order of its number.
pub(super) fn numa_nodes(
    tree: &Tree,
    nodes: &IdSet,
    visible: &IdSet,
    host: &HostMemory,
) -> Vec<NumaNode> {
    if let (1, Some(&id)) = (nodes.len(), nodes.first()) {
        // A node's own file leaves out memory that was plugged in later.
        return vec![NumaNode {
            id,
            total: host.total,
            available: host.available,
            visible: true,
        }];
    }
    nodes
        .iter()
        .map(|&id| numa_node(tree, id, visible.contains(&id)))
        .collect()
}

fn numa_node(tree: &Tree, id: u32, visible: bool) -> NumaNode {
    // Lines are "Node 0 MemTotal:  4286680 kB".
    let text = tree.text(&node_file(id, "meminfo")).unwrap_or_default();
    let kib = |key: &str| kib_field(&text, &format!("Node {id} {key}")).unwrap_or(0);
    let total = kib("MemTotal");
    let available = kib("MemFree")
        .saturating_add(kib("Inactive(file)"))
        .saturating_add(kib("SReclaimable"));
    NumaNode {
        id,
        total,
        available: available.min(total),
        visible,
    }
}

/// Bytes that this process may still take, and which limit decided.
pub(super) fn budget(
    source: &Source,
    groups: &Cgroups,
    nodes: &[NumaNode],
    host: &HostMemory,
) -> (u64, String) {
    let limits = [
        Some((host.available, host.origin.to_owned())),
        visible_nodes(nodes),
        groups.memory_limit(&source.tree).map(|limit| {
            let text = format!(
                "{} {}, {} in use",
                limit.origin,
                gib(limit.limit),
                gib(limit.used)
            );
            (limit.headroom(), text)
        }),
        address_space(&source.tree),
    ];
    // `min_by_key` keeps the first of equals: the machine itself before any limit put on it.
    limits
        .into_iter()
        .flatten()
        .min_by_key(|(bytes, _)| *bytes)
        .unwrap_or_default()
}

fn visible_nodes(nodes: &[NumaNode]) -> Option<(u64, String)> {
    let visible = nodes.iter().filter(|node| node.visible);
    let count = visible.clone().count();
    let bytes = visible
        .map(|node| node.available)
        .fold(0, u64::saturating_add);
    let text = format!("memory of {count} of {} NUMA nodes (cpuset)", nodes.len());
    (count < nodes.len()).then_some((bytes, text))
}

/// `ulimit -v`, less what is mapped already.
fn address_space(tree: &Tree) -> Option<(u64, String)> {
    let limits = tree.text("/proc/self/limits")?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_ascii_whitespace().next()?.parse().ok()?; // "unlimited" is none
    let status = tree.text("/proc/self/status").unwrap_or_default();
    let mapped = kib_field(&status, "VmSize").unwrap_or(0);
    Some((
        limit.saturating_sub(mapped),
        format!("address space limit (ulimit -v) {}", gib(limit)),
    ))
}

/// Nodes that this process may allocate on: `Mems_allowed_list` and the cpuset. Absent if neither says.
pub(super) fn allowed_nodes(tree: &Tree, groups: &Cgroups) -> Option<IdSet> {
    let status = tree.text("/proc/self/status").unwrap_or_default();
    let own = field(&status, "Mems_allowed_list", ':')
        .and_then(super::tree::parse_ids)
        .filter(|ids| !ids.is_empty());
    let cpuset = groups.mems(tree).map(|cpuset| cpuset.ids);
    match (own, cpuset) {
        (Some(own), Some(cpuset)) => Some(&own & &cpuset),
        (own, cpuset) => own.or(cpuset),
    }
}

/// Bytes for people: `16 GiB`, `7.5 GiB`, `300 MiB`.
fn gib(bytes: u64) -> String {
    let (unit, name) = if bytes >= 1 << 30 {
        (1u64 << 30, "GiB")
    } else {
        (1 << 20, "MiB")
    };
    let tenths = (bytes as f64 / unit as f64 * 10.0).round() / 10.0;
    format!("{tenths} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available() {
        let parsed = HostMemory::parse(
            "MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable: 60 kB\nCached: 30 kB\n",
        );
        assert_eq!(
            parsed,
            Some(HostMemory {
                total: 102_400,
                available: 61_440,
                origin: "MemAvailable"
            })
        );
        let short = HostMemory::parse("MemTotal: 100 kB\nMemFree: 10 kB\nCached: 30 kB\n")
            .expect("a total");
        assert_eq!(
            (short.available, short.origin),
            (40_960, "MemFree + Cached")
        );
        assert_eq!(HostMemory::parse("MemFree: 10 kB\n"), None);
        let absurd =
            HostMemory::parse("MemTotal: 100 kB\nMemAvailable: 999 kB\n").expect("a total");
        assert_eq!(absurd.available, absurd.total);
    }

    #[test]
    fn bytes_for_people() {
        assert_eq!(gib(16 << 30), "16 GiB");
        assert_eq!(gib(8_053_063_680), "7.5 GiB");
        assert_eq!(gib(300 << 20), "300 MiB");
        assert_eq!(gib(0), "0 MiB");
    }
}
