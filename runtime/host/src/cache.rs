//! Compiled guests on disk, so that the second start compiles nothing.
//!
//! An entry counts only if this installation made it: it carries an HMAC-SHA256 with a key in the user's own data folder.
//! Whatever else lies there (another's, another version's, half a file) is a miss.

use crate::aot::{Verified, deserialize};
use crate::trust::hex;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use wasmtime::Engine;
use wasmtime::component::Component;

/// First bytes of an entry; a new layout gets a new number.
const MAGIC: &[u8; 8] = b"PLINTHC1";

/// Length of a MAC and of the key.
const MAC: usize = 32;

/// Where compiled guests lie, and the key that vouches for them.
pub(crate) struct Cache {
    folder: PathBuf,
    key: [u8; MAC],
}

impl Cache {
    /// `None` where there can be no cache: the folders cannot be made, or the key cannot be kept. Guests are then
    /// compiled at each start.
    pub fn open(folder: &Path, key_folder: &Path) -> Option<Self> {
        std::fs::create_dir_all(folder).ok()?;
        Some(Self {
            key: key(key_folder)?,
            folder: folder.to_owned(),
        })
    }

    /// The compiled form of the component with this digest, if this installation has made it for this engine.
    pub fn find(&self, engine: &Engine, digest: &str) -> Option<Component> {
        // Read whole, then verified, then used: a mapped file could change in between.
        let entry = std::fs::read(self.path(engine, digest)).ok()?;
        let artifact = self.verify(&entry, engine, digest)?;
        deserialize(engine, &Verified::new(artifact))
    }

    /// Keeps a compiled component. A cache that cannot be written costs time at the next start, and nothing else.
    pub fn keep(&self, engine: &Engine, digest: &str, component: &Component) {
        let Ok(artifact) = component.serialize() else {
            return;
        };
        let mut entry = MAGIC.to_vec();
        entry.extend(self.mac(&artifact, engine, digest).finalize().into_bytes());
        entry.extend(artifact);
        let path = self.path(engine, digest);
        let temporary = path.with_extension(format!("partial-{}", std::process::id()));
        let written = private_file(&temporary).and_then(|mut file| file.write_all(&entry));
        if written
            .and_then(|()| std::fs::rename(&temporary, &path))
            .is_err()
        {
            let _ = std::fs::remove_file(&temporary);
        }
    }

    fn verify<'a>(&self, entry: &'a [u8], engine: &Engine, digest: &str) -> Option<&'a [u8]> {
        let rest = entry.strip_prefix(MAGIC)?;
        let (mac, artifact) = rest.split_at_checked(MAC)?;
        self.mac(artifact, engine, digest).verify_slice(mac).ok()?;
        Some(artifact)
    }

    /// Over the artifact and what it was made of and for, so that a true entry under another name is none.
    fn mac(&self, artifact: &[u8], engine: &Engine, digest: &str) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(self.name(engine, digest).as_bytes());
        mac.update(artifact);
        mac
    }

    fn path(&self, engine: &Engine, digest: &str) -> PathBuf {
        self.folder
            .join(self.name(engine, digest))
            .with_extension("guest")
    }

    /// The component, the version of Wasmtime, its settings and the CPU's features, in one name.
    fn name(&self, engine: &Engine, digest: &str) -> String {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let of_engine = hasher.finish();
        hex(&Sha256::digest(format!(
            "{digest} {of_engine:016x} {}",
            env!("CARGO_PKG_VERSION")
        )))
    }
}

/// The key of this installation, made at the first use.
fn key(folder: &Path) -> Option<[u8; MAC]> {
    let path = folder.join("cache.key");
    if let Ok(bytes) = std::fs::read(&path) {
        // A key that is broken or was readable by others vouches for nothing.
        return if is_private(&path) {
            bytes.try_into().ok()
        } else {
            None
        };
    }
    std::fs::create_dir_all(folder).ok()?;
    let mut key = [0; MAC];
    getrandom::fill(&mut key).ok()?;
    let temporary = folder.join(format!("cache.key.partial-{}", std::process::id()));
    private_file(&temporary)
        .and_then(|mut file| file.write_all(&key))
        .ok()?;
    // Another process may have been faster: its key is the key.
    let linked = std::fs::hard_link(&temporary, &path);
    let _ = std::fs::remove_file(&temporary);
    match linked {
        Ok(()) => Some(key),
        Err(_) => std::fs::read(&path).ok()?.try_into().ok(),
    }
}

#[cfg(unix)]
fn private_file(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

#[cfg(not(unix))]
fn private_file(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::File::create(path)
}

#[cfg(unix)]
fn is_private(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 == 0)
}

#[cfg(not(unix))]
fn is_private(_: &Path) -> bool {
    true
}
