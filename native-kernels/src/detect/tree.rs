//! Reading `/proc` and `/sys`, of this machine or of a copied tree of another one.
//!
//! A missing, unreadable or malformed file is an absent value, never an error: what the kernel shows differs between
//! versions, architectures and containers, and a fact that is not there has a default.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// Longest file that is read: `/proc/cpuinfo` of 8,192 CPUs is 12 MiB.
const MAX_BYTES: u64 = 16 << 20;

/// Highest CPU or node number believed. Linux builds with at most 8,192 CPUs; a corrupt list such as `0-4294967295`
/// must not become a set of four billion.
const MAX_ID: u32 = 65_535;

/// Numbers of CPUs or of NUMA nodes.
pub(super) type IdSet = BTreeSet<u32>;

/// A file system tree whose `/proc` and `/sys` describe a machine.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    /// The file at `path` (absolute, as the machine itself names it), lossily decoded.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        let file = File::open(self.inside(path)?).ok()?;
        file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The file's whole content as one value: a number, mostly.
    pub(super) fn value<T: FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.trim().parse().ok()
    }

    /// The file's content as a list of CPUs or nodes; an empty list counts as absent.
    pub(super) fn ids(&self, path: &str) -> Option<IdSet> {
        parse_ids(&self.text(path)?).filter(|ids| !ids.is_empty())
    }

    /// Names in a folder, sorted.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let entries = self
            .inside(folder)
            .and_then(|folder| fs::read_dir(folder).ok());
        let mut names: Vec<String> = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Numbers of the entries `prefix0`, `prefix1`, … of a folder.
    pub(super) fn numbered(&self, folder: &str, prefix: &str) -> IdSet {
        let names = self.names(folder);
        let numbers = names
            .iter()
            .filter_map(|name| name.strip_prefix(prefix)?.parse().ok());
        numbers.filter(|number| *number <= MAX_ID).collect()
    }

    /// Where `path` lies; absent if it would climb out of the tree, as a path read from a file of that tree may.
    fn inside(&self, path: &str) -> Option<PathBuf> {
        let relative = Path::new(path.trim_start_matches('/'));
        let plain = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        plain.then(|| self.root.join(relative))
    }
}

/// Reads the kernel's list format: `0-3,8,10-11`. Absent if any part of it is malformed.
pub(super) fn parse_ids(list: &str) -> Option<IdSet> {
    let mut ids = IdSet::new();
    for part in list
        .trim()
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if first > last || last > MAX_ID {
            return None;
        }
        ids.extend(first..=last);
    }
    Some(ids)
}

/// The value of the first line `key` + `separator` + value, trimmed, of a file such as `/proc/self/status`.
pub(super) fn field<'a>(text: &'a str, key: &str, separator: char) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(separator)?;
        (name.trim() == key).then_some(value.trim())
    })
}

/// A `kB` value of such a file, in bytes.
pub(super) fn kib_field(text: &str, key: &str) -> Option<u64> {
    let kib: u64 = field(text, key, ':')?
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_ids() {
        let check = |list: &str, expected: Option<&[u32]>| {
            let expected = expected.map(|ids| ids.iter().copied().collect::<IdSet>());
            assert_eq!(parse_ids(list), expected, "{list:?}");
        };
        check("0", Some(&[0]));
        check("0-3,8,10-11\n", Some(&[0, 1, 2, 3, 8, 10, 11]));
        check("", Some(&[]));
        check("3-1", None);
        check("0-4294967295", None);
        check("0-", None);
        check("-1", None);
        check("a", None);
    }

    #[test]
    fn a_path_cannot_leave_the_tree() {
        let tree = Tree::new(Path::new("/nowhere"));
        assert_eq!(tree.inside("/proc/../../etc"), None);
        assert_eq!(
            tree.inside("//proc/self"),
            Some(PathBuf::from("/nowhere/proc/self"))
        );
    }

    #[test]
    fn fields_of_status_files() {
        let text = "MemTotal:       24684096 kB\nMemFree: x kB\nBig: 99999999999999999999 kB\n";
        assert_eq!(kib_field(text, "MemTotal"), Some(24_684_096 * 1024));
        assert_eq!(kib_field(text, "MemFree"), None);
        assert_eq!(kib_field(text, "Big"), None);
        assert_eq!(kib_field(text, "Absent"), None);
    }
}
