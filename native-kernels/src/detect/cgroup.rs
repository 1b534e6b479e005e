//! Control groups, versions 1 and 2: which groups this process is in, and what they let it use.
//!
//! A limit holds for everything below it, so each controller's groups are read from the process's own up to the
//! mount point, and the tightest counts. What lies above the mount point (a container's namespace) cannot be seen.
//! CPU shares and weights are no limits and are not read.
//!
//! **Source**: cgroups(7), proc(5) on mountinfo, and Linux `Documentation/admin-guide/cgroup-{v1,v2}`.

use super::tree::{IdSet, Tree, field};

/// A cgroup v1 limit is a multiple of the page size just under this where there is none.
const V1_UNLIMITED: u64 = 1 << 62;

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
    fn new(quota_us: u64, period_us: u64, origin: String) -> Option<Self> {
        (quota_us > 0 && period_us > 0).then_some(Self {
            quota_us,
            period_us,
            origin,
        })
    }

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
        let mounts = Mount::parse_all(&tree.text("/proc/self/mountinfo").unwrap_or_default());
        let memberships =
            Membership::parse_all(&tree.text("/proc/self/cgroup").unwrap_or_default());
        let hierarchy = |controller| Hierarchy::find(controller, &mounts, &memberships);
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

/// One controller's tree of groups, and this process's place in it.
#[derive(Debug)]
struct Hierarchy {
    version: u8,
    /// Where the hierarchy is mounted.
    mount: String,
    /// Names from the mount point down to the process's own group.
    path: Vec<String>,
}

impl Hierarchy {
    /// Version 1 if the controller is mounted there, else version 2: a controller is never in both.
    fn find(controller: &str, mounts: &[Mount], memberships: &[Membership]) -> Option<Self> {
        Self::of_version(1, controller, mounts, memberships)
            .or_else(|| Self::of_version(2, controller, mounts, memberships))
    }

    fn of_version(
        version: u8,
        controller: &str,
        mounts: &[Mount],
        memberships: &[Membership],
    ) -> Option<Self> {
        let membership = memberships
            .iter()
            .find(|membership| membership.is_in(version, controller))?;
        let mounts = mounts
            .iter()
            .filter(|mount| mount.holds(version, controller));
        // A mount may show only a part of the hierarchy. The one that shows most ancestors above us is best; one that
        // does not show us (made outside our namespace) still bounds us by the limits at its root.
        let (mount, path) = mounts
            .map(|mount| (mount, relative(&membership.path, &mount.root)))
            .max_by_key(|(_, path)| path.as_ref().map(Vec::len))?;
        Some(Self {
            version,
            mount: mount.point.clone(),
            path: path.unwrap_or_default(),
        })
    }

    /// The process's own group first, the mount point last.
    fn groups(&self) -> impl Iterator<Item = Group> {
        (0..=self.path.len()).rev().map(|depth| {
            let mut folder = self.mount.trim_end_matches('/').to_owned();
            for name in &self.path[..depth] {
                folder.push('/');
                folder.push_str(name);
            }
            Group {
                version: self.version,
                folder,
                own: depth == self.path.len(),
            }
        })
    }
}

/// `path` below `root`, as names; absent if it is not below it.
fn relative(path: &str, root: &str) -> Option<Vec<String>> {
    let below = path.strip_prefix(root.trim_end_matches('/'))?;
    if !below.is_empty() && !below.starts_with('/') {
        return None;
    }
    let names: Vec<String> = below
        .split('/')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    (!names.iter().any(|name| name == "..")).then_some(names)
}

/// One group.
struct Group {
    version: u8,
    folder: String,
    /// The process itself is in it, not only in a descendant.
    own: bool,
}

impl Group {
    fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    /// `cgroup v2 memory.max at /sys/fs/cgroup/a`; a group's name is anyone's text, so control characters go.
    fn origin(&self, what: &str) -> String {
        let folder = self.folder.replace(char::is_control, "?");
        format!("cgroup v{} {what} at {folder}", self.version)
    }

    fn cpu_quota(&self, tree: &Tree) -> Option<CpuQuota> {
        let (file, quota, period) = if self.version == 2 {
            let text = tree.text(&self.file("cpu.max"))?; // "max 100000" has no quota
            let mut numbers = text.split_ascii_whitespace();
            let quota = numbers.next()?.parse().ok()?;
            (
                "cpu.max",
                quota,
                numbers
                    .next()
                    .map_or(Some(100_000), |period| period.parse().ok())?,
            )
        } else {
            let quota = tree.value(&self.file("cpu.cfs_quota_us"))?; // -1 is none
            (
                "cpu.cfs_quota_us",
                quota,
                tree.value(&self.file("cpu.cfs_period_us"))
                    .unwrap_or(100_000),
            )
        };
        CpuQuota::new(
            quota,
            period,
            self.origin(&format!("{file} {quota}/{period}")),
        )
    }

    /// In version 1 a group limits its descendants only with `memory.use_hierarchy`.
    fn counts_descendants(&self, tree: &Tree) -> bool {
        self.own || self.version == 2 || tree.value(&self.file("memory.use_hierarchy")) != Some(0u8)
    }

    fn memory_limits(&self, tree: &Tree) -> Vec<MemoryLimit> {
        let (usage, inactive) = if self.version == 2 {
            ("memory.current", "inactive_file")
        } else {
            ("memory.usage_in_bytes", "total_inactive_file")
        };
        let stat = tree.text(&self.file("memory.stat")).unwrap_or_default();
        let in_stat = |key| field(&stat, key, ' ').and_then(|value| value.parse::<u64>().ok());
        let usage = tree.value::<u64>(&self.file(usage)).unwrap_or(0);
        let used = usage.saturating_sub(in_stat(inactive).unwrap_or(0));

        let found = if self.version == 2 {
            // Over memory.high a group is not killed but slowed down until it is of no use.
            ["memory.max", "memory.high"].map(|file| (file, tree.value(&self.file(file)))) // "max" is none
        } else {
            // The second also counts ancestors that this namespace does not show.
            let own = tree.value(&self.file("memory.limit_in_bytes"));
            let ancestors = in_stat("hierarchical_memory_limit");
            [
                ("memory.limit_in_bytes", own),
                ("hierarchical_memory_limit", ancestors),
            ]
        };
        let limits = found
            .into_iter()
            .filter_map(|(file, limit)| Some((file, limit?)));
        let limits = limits.filter(|(_, limit)| self.version == 2 || *limit < V1_UNLIMITED);
        limits
            .map(|(file, limit)| MemoryLimit {
                limit,
                used,
                origin: self.origin(file),
            })
            .collect()
    }
}

/// A line of `/proc/self/cgroup`: the process's group in one hierarchy.
struct Membership {
    version: u8,
    controllers: Vec<String>,
    path: String,
}

impl Membership {
    /// Lines are `id:controllers:path`; version 2 is `0::path`.
    fn parse_all(text: &str) -> Vec<Self> {
        text.lines().filter_map(Self::parse).collect()
    }

    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, ':');
        let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let version = if id == "0" && controllers.is_empty() {
            2
        } else {
            1
        };
        let path = path.strip_suffix(" (deleted)").unwrap_or(path).to_owned();
        Some(Self {
            version,
            controllers: split(controllers),
            path,
        })
    }

    fn is_in(&self, version: u8, controller: &str) -> bool {
        self.version == version
            && (version == 2 || self.controllers.iter().any(|name| name == controller))
    }
}

/// A cgroup file system in `/proc/self/mountinfo`.
struct Mount {
    version: u8,
    controllers: Vec<String>,
    /// Which part of the hierarchy is mounted.
    root: String,
    /// Where.
    point: String,
}

impl Mount {
    fn parse_all(text: &str) -> Vec<Self> {
        text.lines().filter_map(Self::parse).collect()
    }

    /// `36 35 98:0 /root /point rw,noatime master:1 - cgroup source rw,cpu,cpuacct`, with any number of fields
    /// before the dash.
    fn parse(line: &str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (unescape(place.next()?), unescape(place.next()?));
        let mut kind = kind.split(' ');
        let version = match kind.next()? {
            "cgroup2" => 2,
            "cgroup" => 1,
            _ => return None,
        };
        Some(Self {
            version,
            controllers: split(kind.nth(1).unwrap_or_default()),
            root,
            point,
        })
    }

    fn holds(&self, version: u8, controller: &str) -> bool {
        self.version == version
            && (version == 2 || self.controllers.iter().any(|name| name == controller))
    }
}

fn split(list: &str) -> Vec<String> {
    list.split(',').map(str::to_owned).collect()
}

/// Space, tab, newline and backslash are written as `\040` and so on.
fn unescape(path: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(path.to_owned(), |path, (escaped, plain)| {
            path.replace(escaped, plain)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_group_lies_below_a_mount() {
        let check = |path: &str, root: &str, expected: Option<&[&str]>| {
            let expected = expected.map(|names| {
                names
                    .iter()
                    .map(|name| (*name).to_owned())
                    .collect::<Vec<_>>()
            });
            assert_eq!(relative(path, root), expected, "{path} below {root}");
        };
        check("/", "/", Some(&[]));
        check("/a/b", "/", Some(&["a", "b"]));
        check("/docker/7f", "/docker/7f", Some(&[]));
        check("/docker/7f/app", "/docker/7f", Some(&["app"]));
        check("/docker/7fa", "/docker/7f", None);
        check("/", "/../../..", None);
        check("/../sibling", "/", None);
    }

    #[test]
    fn mounts_with_optional_fields_and_escapes() {
        let line = "30 23 0:26 / /sys/fs/my\\040cgroup rw shared:9 master:1 - cgroup cgroup rw,cpu,cpuacct";
        let mount = Mount::parse(line).expect("a mount");
        assert_eq!(
            (mount.version, mount.point.as_str()),
            (1, "/sys/fs/my cgroup")
        );
        assert!(
            mount.holds(1, "cpu")
                && mount.holds(1, "cpuacct")
                && !mount.holds(1, "memory")
                && !mount.holds(2, "cpu")
        );
        assert!(Mount::parse("22 27 0:21 / /proc rw - proc proc rw").is_none());
        assert!(Mount::parse("22 27 - cgroup").is_none());
    }

    #[test]
    fn memberships_of_both_versions() {
        let memberships = Membership::parse_all(
            "4:cpu,cpuacct:/a:b\n1:name=systemd:/\n0::/c (deleted)\nnonsense\n",
        );
        assert_eq!(memberships.len(), 3);
        assert!(memberships[0].is_in(1, "cpuacct"));
        assert_eq!(memberships[0].path, "/a:b");
        assert!(memberships[2].is_in(2, "memory"));
        assert_eq!(memberships[2].path, "/c");
    }
}
