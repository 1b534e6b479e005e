//! Control groups, versions 1 and 2: which groups this process is in, and what they let it use.
//!
//! A limit holds for everything below it, so each controller's groups are read from the process's own up to the
//! mount point, and the tightest counts. What lies above the mount point (a container's namespace) cannot be seen.
//! CPU shares and weights are no limits and are not read.
//!
//! **Source**: cgroups(7), proc(5) on mountinfo, and Linux `Documentation/admin-guide/cgroup-{v1,v2}`.

mod hierarchy;

use super::tree::{IdSet, Tree, field};
use hierarchy::{Group, Hierarchy};

/// The groups of this process, by controller.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    cpu: Option<Hierarchy>,
    memory: Option<Hierarchy>,
    cpuset: Option<Hierarchy>,
}

/// CPU time that a group may use per period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CpuQuota {
    /// Microseconds of CPU time.
    pub(super) quota_us: u64,
    /// Microseconds of a period; never zero.
    pub(super) period_us: u64,
    /// Where it stands: `cgroup v2 cpu.max 765000/100000 at /sys/fs/cgroup/a`.
    pub(super) origin: String,
}

impl CpuQuota {
    /// Whole cores; the rest of a quota would only let one thread more be throttled.
    pub(super) fn whole_cores(&self) -> u64 {
        self.quota_us / self.period_us
    }

    pub(super) fn cores(&self) -> f64 {
        self.quota_us as f64 / self.period_us as f64
    }
}

/// Memory that a group may still take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemoryLimit {
    /// Bytes that the group and its descendants may hold.
    pub(super) limit: u64,
    /// Bytes of it in use that cannot be reclaimed.
    pub(super) used: u64,
    /// Which file of which group: `cgroup v2 memory.max at /sys/fs/cgroup/a`.
    pub(super) origin: String,
}

impl MemoryLimit {
    pub(super) fn headroom(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// CPUs or nodes that a cpuset allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cpuset {
    pub(super) ids: IdSet,
    /// Which group: `cgroup v2 cpuset at /sys/fs/cgroup/a`.
    pub(super) origin: String,
}

impl Cgroups {
    pub(super) fn read(tree: &Tree) -> Self {
        let mountinfo = tree.text("/proc/self/mountinfo").unwrap_or_default();
        let memberships = tree.text("/proc/self/cgroup").unwrap_or_default();
        let hierarchy = |controller| Hierarchy::find(controller, &mountinfo, &memberships);
        Self {
            cpu: hierarchy("cpu"),
            memory: hierarchy("memory"),
            cpuset: hierarchy("cpuset"),
        }
    }

    /// The tightest CPU quota, if there is any.
    pub(super) fn cpu_quota(&self, tree: &Tree) -> Option<CpuQuota> {
        let hierarchy = self.cpu.as_ref()?;
        let quotas = hierarchy.groups().filter_map(|group| group.cpu_quota(tree));
        quotas.min_by(|a, b| {
            let cross =
                |x: &CpuQuota, y: &CpuQuota| u128::from(x.quota_us) * u128::from(y.period_us);
            cross(a, b).cmp(&cross(b, a))
        })
    }

    /// The limit that leaves the least, if there is any.
    pub(super) fn memory_limit(&self, tree: &Tree) -> Option<MemoryLimit> {
        let hierarchy = self.memory.as_ref()?;
        let limits = hierarchy
            .groups()
            .take_while(|group| group.counts_descendants(tree));
        limits
            .flat_map(|group| group.memory_limits(tree))
            .min_by_key(MemoryLimit::headroom)
    }

    /// CPUs that the cpuset allows.
    pub(super) fn cpus(&self, tree: &Tree) -> Option<Cpuset> {
        self.cpuset(
            tree,
            ["cpuset.cpus.effective"],
            ["cpuset.effective_cpus", "cpuset.cpus"],
        )
    }

    /// NUMA nodes that the cpuset allows.
    pub(super) fn mems(&self, tree: &Tree) -> Option<Cpuset> {
        self.cpuset(
            tree,
            ["cpuset.mems.effective"],
            ["cpuset.effective_mems", "cpuset.mems"],
        )
    }

    /// The nearest group that has a cpuset: its effective value already counts the ancestors.
    fn cpuset(&self, tree: &Tree, v2: [&str; 1], v1: [&str; 2]) -> Option<Cpuset> {
        let hierarchy = self.cpuset.as_ref()?;
        let files: &[&str] = if hierarchy.version == 2 { &v2 } else { &v1 };
        hierarchy.groups().find_map(|group| {
            let ids = files.iter().find_map(|file| tree.ids(&group.file(file)))?;
            Some(Cpuset {
                ids,
                origin: group.origin("cpuset"),
            })
        })
    }
}

impl Group {
    fn cpu_quota(&self, tree: &Tree) -> Option<CpuQuota> {
        let (file, (quota, period)) = if self.version == 2 {
            ("cpu.max", self.cpu_max(tree)?)
        } else {
            ("cpu.cfs_quota_us", self.cfs_quota(tree)?)
        };
        let origin = self.origin(&format!("{file} {quota}/{period}"));
        (quota > 0 && period > 0).then_some(CpuQuota {
            quota_us: quota,
            period_us: period,
            origin,
        })
    }

    /// Version 2: `765000 100000`, or `max 100000` for none.
    fn cpu_max(&self, tree: &Tree) -> Option<(u64, u64)> {
        let text = tree.text(&self.file("cpu.max"))?;
        let (quota, period) = text.trim().split_once(' ')?;
        Some((quota.parse().ok()?, period.parse().ok()?))
    }

    /// Version 1: two files; -1 for none.
    fn cfs_quota(&self, tree: &Tree) -> Option<(u64, u64)> {
        let quota = tree.value(&self.file("cpu.cfs_quota_us"))?;
        Some((quota, tree.value(&self.file("cpu.cfs_period_us"))?))
    }

    /// In version 1 a group limits its descendants only with `memory.use_hierarchy`.
    fn counts_descendants(&self, tree: &Tree) -> bool {
        self.own || self.version == 2 || tree.value(&self.file("memory.use_hierarchy")) != Some(0u8)
    }

    fn memory_limits(&self, tree: &Tree) -> Vec<MemoryLimit> {
        let stat = tree.text(&self.file("memory.stat")).unwrap_or_default();
        let in_stat = |key| field(&stat, key, ' ')?.parse::<u64>().ok();
        let in_file = |name| tree.value::<u64>(&self.file(name));
        let (usage, inactive, limits) = if self.version == 2 {
            // Over memory.high a group is not killed but slowed down until it is of no use. Both may be "max".
            let limits = ["memory.max", "memory.high"].map(|name| (name, in_file(name)));
            ("memory.current", "inactive_file", limits)
        } else {
            // The second also counts ancestors that this namespace does not show. Without a limit both are about
            // 2^63, which never decides.
            let limits = [
                ("memory.limit_in_bytes", in_file("memory.limit_in_bytes")),
                (
                    "hierarchical_memory_limit",
                    in_stat("hierarchical_memory_limit"),
                ),
            ];
            ("memory.usage_in_bytes", "total_inactive_file", limits)
        };
        let reclaimable = in_stat(inactive).unwrap_or(0);
        let used = in_file(usage).unwrap_or(0).saturating_sub(reclaimable);
        let limits = limits.into_iter().filter_map(|(name, limit)| {
            Some(MemoryLimit {
                limit: limit?,
                used,
                origin: self.origin(name),
            })
        });
        limits.collect()
    }
}
