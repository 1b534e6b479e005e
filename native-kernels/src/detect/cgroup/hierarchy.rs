//! Where the groups of this process lie in the file system, by controller.
//!
//! `/proc/self/cgroup` names the group within its hierarchy, `/proc/self/mountinfo` says which part of the hierarchy
//! is mounted where:
//!
//! ```text
//! group of the process   /docker/7f/app
//! root of the mount      /docker, mounted at /sys/fs/cgroup
//! folders, inside out    /sys/fs/cgroup/7f/app  /sys/fs/cgroup/7f  /sys/fs/cgroup
//! ```

/// One controller's tree of groups, and this process's place in it.
#[derive(Debug)]
pub(super) struct Hierarchy {
    pub(super) version: u8,
    /// Where the hierarchy is mounted.
    mount: String,
    /// Names from the mount point down to the process's own group.
    path: Vec<String>,
}

impl Hierarchy {
    /// Finds the controller in what `/proc/self/mountinfo` and `/proc/self/cgroup` say. Version 1 if it is mounted
    /// there, else version 2: a controller is never in both.
    pub(super) fn find(controller: &str, mountinfo: &str, memberships: &str) -> Option<Self> {
        let mounts = Mount::parse_all(mountinfo);
        let memberships = Membership::parse_all(memberships);
        let of_version = |version| Self::of_version(version, controller, &mounts, &memberships);
        of_version(1).or_else(|| of_version(2))
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
    pub(super) fn groups(&self) -> impl Iterator<Item = Group> {
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
pub(super) struct Group {
    pub(super) version: u8,
    folder: String,
    /// The process itself is in it, not only in a descendant.
    pub(super) own: bool,
}

impl Group {
    pub(super) fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    /// `cgroup v2 memory.max at /sys/fs/cgroup/a`; a group's name is anyone's text, so control characters go.
    pub(super) fn origin(&self, what: &str) -> String {
        let folder = self.folder.replace(char::is_control, "?");
        format!("cgroup v{} {what} at {folder}", self.version)
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
