//! Writing packed weights down as they are made.

use super::{ALIGNMENT, Entry, HEADER, MAGIC, PIECE, PackedKey, Table};
use crate::error::{FormatError, Problem};
use plinth_kernels::Matrix;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes written at a time, and where: whole multiples of it, so that a system that keeps files in huge pages keeps this
/// one so, and it can be mapped. (On ext4 of Linux 6.18, writes of 1 MiB gave no huge page, and 8 MiB nothing but.)
const BLOCK: usize = 8 << 20;

/// A file in the making, under another name than it will have. Dropped before it is finished, it is removed.
#[derive(Debug)]
pub struct PackedWriter {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    /// What has not been written yet: less than a block.
    block: Vec<u8>,
    written: u64,
    matrices: Vec<Entry>,
    /// The first failure. What comes after it is not written.
    failed: Option<io::Error>,
    finished: bool,
}

impl PackedWriter {
    /// Begins the file that will lie at `path`, which only this user can read.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(path: &Path) -> Result<Self, FormatError> {
        let temporary = path.with_extension(format!("partial-{}", std::process::id()));
        let file = private_file(&temporary)
            .map_err(|error| Problem::io("make it")(error).at(&temporary))?;
        let mut writer = Self {
            path: path.to_owned(),
            temporary,
            file,
            block: Vec::with_capacity(BLOCK),
            written: 0,
            matrices: Vec::new(),
            failed: None,
            finished: false,
        };
        writer.write(&[0; HEADER]);
        Ok(writer)
    }

    /// Adds a matrix. Whether that went well is told in the end: a model is loaded all the same.
    pub fn add(&mut self, name: &str, matrix: &Matrix) {
        let end = self.offset();
        let offset = end.next_multiple_of(ALIGNMENT);
        self.write(&[0; ALIGNMENT as usize][..(offset - end) as usize]);
        let panels = matrix.as_bytes();
        let mut sums = Vec::with_capacity(panels.len().div_ceil(PIECE));
        for piece in panels.chunks(PIECE) {
            sums.push(crc32fast::hash(piece));
            self.write(piece);
        }
        self.matrices.push(Entry {
            name: name.to_owned(),
            format: matrix.format().name().to_owned(),
            rows: matrix.rows(),
            cols: matrix.cols(),
            offset,
            bytes: panels.len(),
            sums,
        });
    }

    /// Writes table and header, waits until all is on the disk, and gives the file its name. Tells its length.
    ///
    /// # Errors
    /// Something could not be written, now or before.
    pub fn finish(mut self, key: &PackedKey) -> Result<u64, FormatError> {
        let finished = self.try_finish(key);
        finished.map_err(|error| Problem::io("write it")(error).at(&self.path))
    }

    fn try_finish(&mut self, key: &PackedKey) -> io::Result<u64> {
        let table = Table {
            key: key.clone(),
            matrices: std::mem::take(&mut self.matrices),
        };
        let table = serde_json::to_vec(&table)?;
        let mut header = MAGIC.to_vec();
        header.extend(self.offset().to_le_bytes());
        header.extend((table.len() as u64).to_le_bytes());
        let digest = Sha256::new_with_prefix(&header).chain_update(&table);
        header.extend(digest.finalize());
        self.write(&table);
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.file.write_all(&self.block)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header)?;
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        self.finished = true;
        Ok(self.offset())
    }

    fn offset(&self) -> u64 {
        self.written + self.block.len() as u64
    }

    fn write(&mut self, mut bytes: &[u8]) {
        while self.failed.is_none() && !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend(now);
            bytes = later;
            if self.block.len() == BLOCK {
                self.failed = self.file.write_all(&self.block).err();
                self.written += BLOCK as u64;
                self.block.clear();
            }
        }
    }
}

impl Drop for PackedWriter {
    fn drop(&mut self) {
        if !self.finished {
            // What cannot be removed is removed by a later start.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(unix)]
fn private_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(not(unix))]
fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}
