//! Compiled code is believed only if this installation made it.

use crate::guests::component;
use plinth_host::{Host, HostOptions};
use plinth_platform::policy::Platform;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

struct Installation {
    folder: TempDir,
}

impl Installation {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        Self { folder }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn host(&self) -> Host {
        Host::new(&HostOptions {
            cache: Some(self.cache()),
            key: Some(self.key()),
            ..HostOptions::default()
        })
        .expect("WebAssembly runs on this machine")
    }

    /// Loads a small guest, and checks that it is itself.
    fn load(&self, name: &str) {
        let loaded = self.host().load_bytes(name, &component(name));
        let mut guest = loaded.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(guest.describe().expect("it answers").id, name);
    }

    fn entries(&self) -> Vec<PathBuf> {
        let folder = std::fs::read_dir(self.cache()).expect("there is a cache");
        let mut entries: Vec<_> = folder
            .map(|entry| entry.expect("an entry").path())
            .collect();
        entries.sort();
        entries
    }
}

fn modified(path: &Path) -> (std::time::SystemTime, Vec<u8>) {
    let metadata = std::fs::metadata(path).expect("it is there");
    let time = metadata.modified().expect("files have times here");
    (time, std::fs::read(path).expect("it can be read"))
}

#[test]
fn the_second_load_takes_what_the_first_has_left() {
    let installation = Installation::new();
    installation.load("cpu");
    let entries = installation.entries();
    assert_eq!(entries.len(), 1, "{entries:?}");
    let before = modified(&entries[0]);
    installation.load("cpu");
    assert_eq!(installation.entries(), entries);
    assert!(modified(&entries[0]) == before, "a hit writes nothing");
}

#[test]
fn an_entry_that_this_installation_did_not_make_is_a_miss() {
    let installation = Installation::new();
    installation.load("cpu");
    let entry = installation.entries().remove(0);
    let good = std::fs::read(&entry).expect("it can be read");

    // A true entry of another installation, with another key.
    let other = Installation::new();
    other.load("cpu");
    let foreign = std::fs::read(other.entries().remove(0)).expect("it can be read");
    // A true entry of this installation, for another component.
    installation.load("hostile");
    let of_other = installation
        .entries()
        .into_iter()
        .find(|path| *path != entry);
    let of_other = std::fs::read(of_other.expect("two entries")).expect("it can be read");

    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let forgeries = [
        ("another installation's", foreign),
        ("another component's", of_other),
        ("a flipped bit of code", flipped(good.len() - 100)),
        ("a flipped bit of the MAC", flipped(10)),
        ("a flipped bit of the mark", flipped(0)),
        ("half", good[..good.len() / 2].to_vec()),
        ("nothing", Vec::new()),
    ];
    for (what, bytes) in forgeries {
        std::fs::write(&entry, &bytes).expect("it can be written");
        installation.load("cpu");
        let now = std::fs::read(&entry).expect("it can be read");
        assert!(
            now != bytes,
            "{what}: the forgery was believed, or at least left"
        );
        assert!(now.len() == good.len(), "{what}: it was made anew");
    }
}

#[test]
fn the_key_is_the_users_alone() {
    let installation = Installation::new();
    installation.load("cpu");
    let key = installation.key().join("cache.key");
    assert_eq!(std::fs::read(&key).expect("there is a key").len(), 32);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| {
            std::fs::metadata(path)
                .expect("it is there")
                .permissions()
                .mode()
        };
        assert_eq!(mode(&key) & 0o777, 0o600);
        assert_eq!(mode(&installation.entries()[0]) & 0o777, 0o600);
        // A key that others could read vouches for nothing: guests load, and nothing is kept.
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
        std::fs::remove_file(&installation.entries()[0]).expect("it is ours");
        installation.load("cpu");
        assert!(
            installation.entries().is_empty(),
            "no cache without a private key"
        );
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_no_error() {
    let installation = Installation::new();
    // Files where folders should be.
    std::fs::write(installation.cache(), b"").expect("it can be written");
    std::fs::write(installation.key(), b"").expect("it can be written");
    installation.load("cpu");
}
