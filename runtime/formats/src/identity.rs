//! What tells one model from another: the digest of all its bytes, and what the system says of its files, which is there
//! without reading them.

use crate::error::{FormatError, Problem};
use crate::model_file::ModelFile;
use crate::positioned::read_at;
use plinth_kernels::Workers;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::sync::{Mutex, PoisonError};

/// Bytes that are hashed at a time. Each worker takes some, so the digest is one of digests.
const PIECE: usize = 1 << 20;
/// Pieces between two reports of progress.
const PIECES: usize = 64;

/// What the system says of a file. Whoever changes a file can set its size and its time of modification as they were,
/// but not the time of its last change of any kind, which the system alone sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
    /// When the file was changed last, in whatever way: whole seconds since 1970.
    pub fn changed_s(&self) -> i64 {
        self.changed.0
    }

    #[cfg(unix)]
    fn of(file: &File) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = file.metadata().ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Elsewhere there is no time that only the system sets.
    #[cfg(not(unix))]
    fn of(_: &File) -> Option<Self> {
        None
    }
}

impl ModelFile {
    /// What the system says of the files that hold its tensors. `None` where it does not say enough to know an unchanged
    /// file by.
    pub fn stamps(&self) -> Option<Vec<FileStamp>> {
        let stamp = |file: &crate::model_file::OpenFile| FileStamp::of(&file.handle().ok()?);
        self.files.iter().map(stamp).collect()
    }

    /// Digest (SHA-256, in hexadecimal) of every byte of the files that hold its tensors, which tells `progress` the bytes
    /// read so far and in all.
    ///
    /// # Errors
    /// A file can no longer be read.
    pub fn digest(
        &self,
        workers: &Workers,
        progress: &dyn Fn(u64, u64),
    ) -> Result<String, FormatError> {
        let mut files = Vec::with_capacity(self.files.len());
        for open in &self.files {
            let at = |error| Problem::io("read it")(error).at(open.path());
            let file = open.handle().map_err(at)?;
            let bytes = file.metadata().map_err(at)?.len();
            files.push((open, file, bytes));
        }
        let total = files.iter().map(|(.., bytes)| bytes).sum();
        let mut all = Sha256::new();
        let mut done = 0;
        for (open, file, bytes) in &files {
            all.update(bytes.to_le_bytes());
            let mut offset = 0;
            while offset < *bytes {
                let end = bytes.min(&(offset + (PIECES * PIECE) as u64)).to_owned();
                let digests = digests(file, offset..end, workers);
                let digests =
                    digests.map_err(|error| Problem::io("read it")(error).at(open.path()))?;
                digests.iter().for_each(|digest| all.update(digest));
                done += end - offset;
                offset = end;
                progress(done, total);
            }
        }
        Ok(hex(&all.finalize()))
    }

    /// How it finds its tensors in those files: as text, to be hashed.
    pub(crate) fn arrangement(&self) -> String {
        format!("{:?}", self.tensors())
    }
}

/// The digest of each piece of a range.
fn digests(
    file: &File,
    range: std::ops::Range<u64>,
    workers: &Workers,
) -> std::io::Result<Vec<[u8; 32]>> {
    let bytes = (range.end - range.start) as usize;
    let slots: Vec<_> = (0..bytes.div_ceil(PIECE))
        .map(|_| Mutex::new(Ok([0; 32])))
        .collect();
    workers.run(slots.len(), &|piece, _| {
        let offset = piece * PIECE;
        let mut buffer = vec![0; PIECE.min(bytes - offset)];
        let read = read_at(file, &mut buffer, range.start + offset as u64);
        let digest = read.map(|()| Sha256::digest(&buffer).into());
        *slots[piece].lock().unwrap_or_else(PoisonError::into_inner) = digest;
    });
    let digest = |slot: Mutex<_>| slot.into_inner().unwrap_or_else(PoisonError::into_inner);
    slots.into_iter().map(digest).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
