//! Packed weights of models on disk, so that a second start packs nothing.
//!
//! ```text
//! MODEL-LAYOUT.panels   packed weights: of which bytes, in which layout (see `plinth_formats::PackedFile`)
//! PATH.model            what is known of the model at a path: its files as the system described them, and their digest
//! ```
//!
//! A digest of all bytes is the truth about a model, and takes as long as packing it. So it is taken when a model is seen
//! for the first time, and again when the system says anything else of its files than it did then: size, the two times,
//! the file behind the name. Whoever puts size and time of modification back cannot put back the time of the last change.
//! A file that was changed within the last moments is not known by that yet, since a clock has its steps.
//!
//! Whatever goes wrong here costs time: the weights are packed as without a cache, and a note says why.

use crate::platforms::cache_folder;
use crate::progress::Progress;
use plinth_formats::{FileStamp, ModelFile, PackedFile, PackedKey, PackedWriter};
use plinth_kernels::{Workers, is_private};
use plinth_platform::text::bytes as shown_bytes;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A file that changed longer ago than this would show another time if it changed again. Twice the coarsest step of a file
/// system that is in use (FAT: two seconds).
const SETTLED_S: i64 = 4;
/// Age from which on a file in the making has been given up.
const ABANDONED: Duration = Duration::from_secs(3600);

/// What became of the packed weights at a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum PackedWeights {
    /// The matrices are where the file is mapped.
    Mapped { file: PathBuf, bytes: u64 },
    /// They were read from the file into memory, where that serves better than a mapping.
    Read { file: PathBuf, bytes: u64 },
    /// They were packed and written; what lay there before was not used for that reason.
    Written {
        file: PathBuf,
        bytes: u64,
        because: Option<String>,
    },
    /// They were packed, as without a cache.
    NotUsed { because: String },
}

impl PackedWeights {
    /// Tells it on standard error; if it shall be quiet, only what went wrong.
    pub fn tell(&self, quiet: bool) {
        let wrong = match self {
            Self::Mapped { .. } | Self::Read { .. } => false,
            Self::Written { because, .. } => because.is_some(),
            Self::NotUsed { .. } => true,
        };
        match wrong {
            true => eprintln!("warning: packed weights: {self}"),
            false if !quiet => eprintln!("packed weights: {self}"),
            false => {}
        }
    }
}

impl fmt::Display for PackedWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |done: &str, file: &Path, bytes: u64| {
            format!("{done} '{}' ({})", file.display(), shown_bytes(bytes))
        };
        match self {
            Self::Mapped { file, bytes } => f.write_str(&place("mapped from", file, *bytes)),
            Self::Read { file, bytes } => f.write_str(&place("read from", file, *bytes)),
            Self::Written {
                file,
                bytes,
                because,
            } => {
                f.write_str(&place("written to", file, *bytes))?;
                match because {
                    Some(because) => write!(f, "; those that were there are not used: {because}"),
                    None => Ok(()),
                }
            }
            Self::NotUsed { because } => write!(f, "not used: {because}"),
        }
    }
}

/// The folder that `--pack-cache` names, or our own one in the user's cache folder.
///
/// # Errors
/// The user has no cache folder.
pub fn folder(named: Option<&Path>) -> Result<PathBuf, String> {
    let own = || cache_folder().map(|folder| folder.join("packed"));
    named.map(Path::to_owned).or_else(own).ok_or_else(|| {
        "there is no folder for it: set HOME or XDG_CACHE_HOME, or name one".to_owned()
    })
}

/// What is known of the model at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    path: PathBuf,
    /// As the system described its files when the digest was taken; `None` if that does not tell it from a changed one.
    stamps: Option<Vec<FileStamp>>,
    digest: String,
    /// The packed weights of it.
    packed: String,
}

/// The place of one model's packed weights.
pub struct Place {
    folder: PathBuf,
    key: PackedKey,
    known: Known,
    /// Known as it was when this start began: nothing has to be written.
    kept: bool,
    /// As the system described the files before their digest was taken.
    stamps: Option<Vec<FileStamp>>,
}

impl Place {
    /// Finds out which model it is, and in which layout it would be packed.
    ///
    /// # Errors
    /// The folder cannot be used, or the model not be read.
    pub fn of(
        folder: &Path,
        model: &ModelFile,
        workers: &Workers,
        quiet: bool,
    ) -> Result<Self, String> {
        make_private(folder).map_err(at("make the folder", folder))?;
        let path = fs::canonicalize(model.path()).map_err(at("open", model.path()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs() as i64);
        let stamps = model.stamps();
        let before = Known::read(folder, &path)
            .filter(|known| known.stamps.is_some() && known.stamps == stamps);
        let digest = match &before {
            Some(known) => known.digest.clone(),
            None => {
                let progress = Progress::bytes("taking the model's digest", quiet);
                let digest = model.digest(workers, &|done, total| progress.set(done, total));
                digest.map_err(|error| error.to_string())?
            }
        };
        let key = PackedKey::new(model, &digest, workers).map_err(|error| error.to_string())?;
        let settled = |stamp: &FileStamp| before.is_some() || stamp.changed_s() + SETTLED_S < now;
        let telling = stamps.clone().filter(|stamps| stamps.iter().all(settled));
        let known = Known {
            path,
            stamps: telling,
            digest,
            packed: key.file_name(),
        };
        Ok(Self {
            folder: folder.to_owned(),
            kept: before.as_ref() == Some(&known),
            key,
            known,
            stamps,
        })
    }

    fn file(&self) -> PathBuf {
        self.folder.join(self.key.file_name())
    }

    /// The packed weights, if there are any, or why they are not used.
    pub fn find(&self, workers: &Workers) -> Result<Option<PackedFile>, String> {
        if let Err(error) = fs::symlink_metadata(self.file())
            && error.kind() == ErrorKind::NotFound
        {
            return Ok(None);
        }
        let opened = PackedFile::open(&self.file(), &self.key, workers);
        opened.map(Some).map_err(|error| error.to_string())
    }

    /// Says what was used.
    pub fn used(&self, model: &ModelFile, packed: &PackedFile) -> PackedWeights {
        if !self.kept && self.unchanged(model) {
            // Without it the next start takes the digest again.
            let _ = self.known.write(&self.folder);
        }
        let (file, bytes) = (packed.path().to_owned(), packed.bytes());
        match packed.is_mapped() {
            true => PackedWeights::Mapped { file, bytes },
            false => PackedWeights::Read { file, bytes },
        }
    }

    /// Begins to write packed weights.
    pub fn create(&self) -> Result<PackedWriter, String> {
        remove_abandoned(&self.folder);
        PackedWriter::create(&self.file()).map_err(|error| error.to_string())
    }

    /// Ends it, and removes what nothing needs any more.
    pub fn finish(
        &self,
        model: &ModelFile,
        writer: PackedWriter,
        workers: &Workers,
    ) -> Result<u64, String> {
        // Where the system's word is not enough, the digest that was taken before it was packed is held against one after.
        let same = self.unchanged(model)
            && (self.known.stamps.is_some()
                || model.digest(workers, &|_, _| {}).ok().as_ref() == Some(&self.known.digest));
        if !same {
            let path = model.path().display();
            return Err(format!("'{path}' was changed while it was read"));
        }
        // First this, so that another start does not take what is about to come for something that no model needs.
        self.known
            .write(&self.folder)
            .map_err(at("write", &self.known.file(&self.folder)))?;
        let bytes = writer
            .finish(&self.key)
            .map_err(|error| error.to_string())?;
        remove_stale(&self.folder, &self.key);
        Ok(bytes)
    }

    /// Does the system describe the model's files as it did before their digest was taken?
    fn unchanged(&self, model: &ModelFile) -> bool {
        model.stamps() == self.stamps
    }

    /// Where they lie, when they have been written.
    pub fn written(&self, bytes: u64, because: Option<String>) -> PackedWeights {
        PackedWeights::Written {
            file: self.file(),
            bytes,
            because,
        }
    }
}

impl Known {
    fn file(&self, folder: &Path) -> PathBuf {
        Self::file_of(folder, &self.path)
    }

    fn file_of(folder: &Path, path: &Path) -> PathBuf {
        let digest = plinth_host::digest(path.as_os_str().as_encoded_bytes());
        let digest = digest.rsplit(':').next().unwrap_or_default();
        folder.join(format!("{digest:.32}.model"))
    }

    fn read(folder: &Path, path: &Path) -> Option<Self> {
        Self::read_file(&Self::file_of(folder, path)).filter(|known| known.path == path)
    }

    /// What cannot be read, or was written by somebody else, is as good as not there.
    fn read_file(file: &Path) -> Option<Self> {
        let file = File::open(file).ok()?;
        if !is_private(&file).ok()? {
            return None;
        }
        serde_json::from_reader(io::BufReader::new(file)).ok()
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        let file = self.file(folder);
        let temporary = file.with_extension(format!("partial-{}", std::process::id()));
        let written = fs::write(&temporary, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&temporary, &file));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

fn at(action: &str, path: &Path) -> impl FnOnce(io::Error) -> String {
    let what = format!("cannot {action} '{}'", path.display());
    move |error| format!("{what}: {error}")
}

/// The files of a folder with this extension.
fn files(folder: &Path, extension: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let has = |path: &PathBuf| {
        let found = path.extension().and_then(OsStr::to_str);
        found.is_some_and(&extension)
    };
    paths.filter(has).collect()
}

/// Removes what a start that was ended left half written.
fn remove_abandoned(folder: &Path) {
    for path in files(folder, |extension| extension.starts_with("partial-")) {
        let age = || path.metadata().ok()?.modified().ok()?.elapsed().ok();
        if age().is_some_and(|age| age > ABANDONED) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes what is known of models that are gone, and the packed weights that no model needs: those in an older layout, and
/// those of a model that is gone or another one by now.
fn remove_stale(folder: &Path, key: &PackedKey) {
    let mut needed = vec![key.file_name()];
    for file in files(folder, |extension| extension == "model") {
        match Known::read_file(&file).filter(|known| known.path.exists()) {
            Some(known) => needed.push(known.packed),
            None => drop(fs::remove_file(file)),
        }
    }
    for file in files(folder, |extension| extension == "panels") {
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let older = name.starts_with(&key.prefix()) && name != key.file_name();
        if older || !needed.iter().any(|needed| needed == name) {
            // Whoever has it open keeps it.
            let _ = fs::remove_file(file);
        }
    }
}

/// Makes a folder, with those above it, which only this user may look into. One that is there stays as it is.
fn make_private(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(model: &str, layout: &str) -> PackedKey {
        PackedKey {
            model: model.repeat(64),
            layout: layout.repeat(64),
        }
    }

    #[test]
    fn what_no_model_needs_is_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path();
        let touch = |name: &str| fs::write(folder.join(name), "").expect("it can be written");
        let know = |path: &str, packed: &PackedKey| {
            let known = Known {
                path: folder.join(path),
                stamps: None,
                digest: "digest".to_owned(),
                packed: packed.file_name(),
            };
            known.write(folder).expect("it can be written");
            assert_eq!(Known::read(folder, &known.path), Some(known));
        };
        let (here, other, gone) = (key("a", "1"), key("b", "1"), key("c", "1"));
        let older = key("a", "0");
        for key in [&here, &older, &other, &gone] {
            touch(&key.file_name());
        }
        touch("here.gguf");
        touch("other.gguf");
        touch("notes.txt");
        know("here.gguf", &here);
        know("other.gguf", &other);
        know("gone.gguf", &gone);
        remove_stale(folder, &here);
        let mut left: Vec<_> = files(folder, |extension| extension == "panels");
        left.sort();
        assert_eq!(
            left,
            [&here, &other].map(|key| folder.join(key.file_name()))
        );
        assert_eq!(files(folder, |extension| extension == "model").len(), 2);
        assert!(folder.join("notes.txt").exists());
    }

    #[test]
    fn a_digest_is_taken_again_as_soon_as_a_file_is_described_otherwise() {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models/tiny/qwen3");
        let model = plinth_formats::open(&tiny.join("model.gguf")).expect("it opens");
        let Some(stamps) = model.stamps() else {
            return;
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let workers = Workers::new(1, &[]).expect("one thread");
        let place = || Place::of(folder.path(), &model, &workers, true).expect("it can be used");
        let truth = place().known;
        // A digest that was not taken shows whether it is taken.
        let known = Known {
            stamps: Some(stamps),
            digest: "not taken".to_owned(),
            ..truth.clone()
        };
        known.write(folder.path()).expect("it can be written");
        assert_eq!(place().known.digest, "not taken");
        for field in ["device", "inode", "bytes", "modified", "changed"] {
            let mut other = serde_json::to_value(&known).expect("JSON");
            let stamp = &mut other["stamps"][0][field];
            *stamp = match stamp.as_u64() {
                Some(number) => (number + 1).into(),
                None => serde_json::json!([stamp[0], stamp[1].as_i64().map(|ns| ns ^ 1)]),
            };
            let other: Known = serde_json::from_value(other).expect("as it was");
            other.write(folder.path()).expect("it can be written");
            assert_eq!(place().known.digest, truth.digest, "{field}");
        }
    }

    #[test]
    fn what_is_known_counts_only_if_it_is_whole() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = Path::new("/models/a.gguf");
        let file = Known::file_of(folder.path(), path);
        assert_eq!(Known::read(folder.path(), path), None);
        fs::write(&file, "{\"path\": ").expect("it can be written");
        assert_eq!(Known::read(folder.path(), path), None);
    }

    #[test]
    fn what_went_wrong_is_said_with_what_was_done() {
        let written = PackedWeights::Written {
            file: "a.panels".into(),
            bytes: 3 << 20,
            because: Some("it is odd".to_owned()),
        };
        let text = written.to_string();
        assert!(
            text.contains("'a.panels'") && text.contains("it is odd"),
            "{text}"
        );
    }
}
