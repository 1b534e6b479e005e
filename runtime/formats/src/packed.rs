//! The packed weights of a model in a file, so that a later start need not pack them.
//!
//! ```text
//! header   "PLINTHP1", offset and length of the table (u64, little-endian), SHA-256 of those and of the table
//! panels   of each matrix from a multiple of 64 bytes on
//! table    JSON: key, and for each matrix its name, format, shape, place, and the CRC-32 of each piece of its panels
//! ```
//!
//! All of it is verified before it is used: header and table when the file is opened, the panels of a matrix when that is
//! loaded, by all workers, at the speed of memory. A sum tells chance from truth (a bad disk, a copy cut short), not malice:
//! against that a file counts only if it belongs to this user and nobody else may write it. SHA-256 of the panels would take
//! longer than packing them anew.
//!
//! **Invariant:** a file is written under another name, and renamed when it is whole and on the disk. It is never written
//! to again: processes may have it mapped.

mod write;

pub use write::PackedWriter;

use crate::error::{Checked, FormatError, Problem, shown};
use crate::identity::hex;
use crate::model_file::ModelFile;
use crate::positioned::read_at;
use crate::tensors::TensorInfo;
use plinth_kernels::{
    Format, KernelSet, Matrix, PackError, PanelFile, Workers, is_private, packed_bytes,
    panel_layout,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const MAGIC: &[u8; 8] = b"PLINTHP1";
const HEADER: usize = 56;
/// Where a matrix may begin: what the kernels align memory to.
const ALIGNMENT: u64 = 64;
/// Bytes of panels under one sum. They are summed in the nearest caches, right after they were read.
const PIECE: usize = 256 << 10;

/// What to do about packed weights while a model is loaded.
pub enum Packed<'a> {
    /// Nothing: they are packed.
    Pack,
    /// They are packed, and written down.
    Write(&'a mut PackedWriter),
    /// They were packed before.
    Read(&'a PackedFile),
}

/// Of which model, and in which layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedKey {
    /// SHA-256 of its bytes and of how they are understood.
    pub model: String,
    /// SHA-256 of the layout of the panels of every format.
    pub layout: String,
}

impl PackedKey {
    /// The key of a model with this digest ([`ModelFile::digest`]), packed by this build.
    ///
    /// # Errors
    /// No memory to pack a sample in.
    pub fn new(model: &ModelFile, digest: &str, workers: &Workers) -> Result<Self, PackError> {
        let understood = format!("{digest}\n{}", model.arrangement());
        Ok(Self {
            model: hex(&Sha256::digest(understood)),
            layout: hex(&Sha256::digest(panel_layout(workers)?)),
        })
    }

    /// A file name that begins with [`PackedKey::prefix`].
    pub fn file_name(&self) -> String {
        format!("{}{:.16}.panels", self.prefix(), self.layout)
    }

    /// What the names of all layouts of one model begin with.
    pub fn prefix(&self) -> String {
        format!("{:.32}-", self.model)
    }
}

/// The last part of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    key: PackedKey,
    matrices: Vec<Entry>,
}

/// One matrix.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    format: String,
    rows: usize,
    cols: usize,
    offset: u64,
    bytes: usize,
    sums: Vec<u32>,
}

/// Why a matrix could not be had.
#[derive(Debug)]
pub enum PackedError {
    /// The file's fault.
    File(FormatError),
    /// The plan's or the machine's fault.
    Pack(PackError),
}

impl From<PackError> for PackedError {
    fn from(error: PackError) -> Self {
        Self::Pack(error)
    }
}

/// A file of packed weights whose header and table were verified.
#[derive(Debug)]
pub struct PackedFile {
    path: PathBuf,
    file: File,
    /// The same, where a mapping serves as well as memory.
    mapped: Option<PanelFile>,
    bytes: u64,
    entries: HashMap<String, Entry>,
}

impl PackedFile {
    /// Opens a file that was written for this key.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn open(path: &Path, key: &PackedKey, workers: &Workers) -> Result<Self, FormatError> {
        Self::checked(path, key, workers).map_err(|problem| problem.at(path))
    }

    fn checked(path: &Path, key: &PackedKey, workers: &Workers) -> Checked<Self> {
        let file = File::open(path).map_err(Problem::io("open it"))?;
        if !is_private(&file).map_err(Problem::io("open it"))? {
            let found = "that others own it or may write it";
            return Err(Problem::field("its owner", found, "a file of yours alone"));
        }
        let bytes = file.metadata().map_err(Problem::io("open it"))?.len();
        let (table_at, table) = table(&file, bytes)?;
        for (what, found, expected) in [
            ("model", &table.key.model, &key.model),
            ("layout of panels", &table.key.layout, &key.layout),
        ] {
            if found != expected {
                return Err(Problem::field(what, shown(found), expected));
            }
        }
        let mut entries = HashMap::with_capacity(table.matrices.len());
        for entry in table.matrices {
            entry.check(table_at)?;
            entries.insert(entry.name.clone(), entry);
        }
        let mapped = PanelFile::map(&file, workers).map_err(Problem::io("map it"))?;
        // Its length is what was read above, unless somebody writes to it after all.
        let mapped = mapped.filter(|mapped| mapped.bytes().len() as u64 == bytes);
        Ok(Self {
            path: path.to_owned(),
            file,
            mapped,
            bytes,
            entries,
        })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Are matrices where the file is mapped, and not copies?
    pub fn is_mapped(&self) -> bool {
        self.mapped.is_some()
    }

    /// The matrix of a tensor, every byte of it verified.
    ///
    /// # Errors
    /// The file does not have it, or not as it was written; no memory; no kernel for the format.
    pub fn matrix(
        &self,
        kernels: &KernelSet,
        workers: &Workers,
        info: &TensorInfo,
    ) -> Result<Matrix, PackedError> {
        let entry = self.entry(info).map_err(|problem| self.at(problem))?;
        let shape = (info.rows, info.cols);
        if let Some(mapped) = &self.mapped {
            let matrix = kernels.map(info.format, shape, mapped, entry.offset as usize)?;
            let failed = Mutex::new(None);
            let pieces: Vec<_> = matrix.as_bytes().chunks(PIECE).collect();
            workers.run(pieces.len(), &|n, _| {
                if let Err(problem) = entry.verify(n, pieces[n])
                    && let Ok(mut failed) = failed.lock()
                {
                    *failed = Some(problem);
                }
            });
            return match failed.into_inner().ok().flatten() {
                None => Ok(matrix),
                Some(problem) => Err(self.at(problem)),
            };
        }
        kernels.restore(
            workers,
            info.format,
            shape,
            (PIECE, &|offset, piece| {
                let action = || format!("read matrix '{}'", entry.name);
                read_at(&self.file, piece, entry.offset + offset as u64)
                    .map_err(|error| self.at(Problem::io(action())(error)))?;
                entry
                    .verify(offset / PIECE, piece)
                    .map_err(|problem| self.at(problem))
            }),
        )
    }

    fn at(&self, problem: Problem) -> PackedError {
        PackedError::File(problem.at(&self.path))
    }

    /// What the table says of a tensor, if that is what the model says.
    fn entry(&self, info: &TensorInfo) -> Checked<&Entry> {
        let field = || format!("matrix '{}'", info.name);
        let expected = format!("{} x {} {}", info.rows, info.cols, info.format);
        let Some(entry) = self.entries.get(&info.name) else {
            return Err(Problem::field(field(), "none", expected));
        };
        let found = format!("{} x {} {}", entry.rows, entry.cols, entry.format);
        match found == expected {
            true => Ok(entry),
            false => Err(Problem::field(field(), found, expected)),
        }
    }
}

/// Where the table begins, and what is in it.
fn table(file: &File, bytes: u64) -> Checked<(u64, Table)> {
    let read = |what: &'static str, offset, len: u64| {
        let mut buffer = vec![0; len as usize];
        read_at(file, &mut buffer, offset).map_err(Problem::io(format!("read {what}")))?;
        Ok(buffer)
    };
    if bytes < HEADER as u64 {
        let expected = format!("at least the {HEADER} of a header");
        return Err(Problem::field("bytes", bytes, expected));
    }
    let header = read("the header", 0, HEADER as u64)?;
    let (places, digest) = header.split_at(24);
    if !places.starts_with(MAGIC) {
        let found = shown(&String::from_utf8_lossy(&places[..8]));
        let expected = String::from_utf8_lossy(MAGIC);
        return Err(Problem::field("magic", found, format!("'{expected}'")));
    }
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| places[at + n]));
    let (at, len) = (number(8), number(16));
    if at.checked_add(len) != Some(bytes) {
        let found = format!("{len} bytes from {at} on");
        let expected = format!("an end at the file's, {bytes}");
        return Err(Problem::field("table", found, expected));
    }
    let text = read("the table", at, len)?;
    let found = Sha256::new_with_prefix(places)
        .chain_update(&text)
        .finalize();
    if found[..] != *digest {
        let (found, expected) = (hex(&found), hex(digest));
        return Err(Problem::field("digest of the table", found, expected));
    }
    let table = serde_json::from_slice(&text);
    let table = table.map_err(|error| Problem::field("table", error, "a table of matrices"))?;
    Ok((at, table))
}

impl Entry {
    /// It lies before the table, as long as a matrix of its shape is, with a sum for each piece.
    fn check(&self, table_at: u64) -> Checked<()> {
        let format = Format::from_name(&self.format);
        let bytes = format.and_then(|format| packed_bytes(format, self.rows, self.cols));
        let end = self.offset.checked_add(self.bytes as u64);
        let whole = bytes == Some(self.bytes)
            && self.offset.is_multiple_of(ALIGNMENT)
            && end.is_some_and(|end| end <= table_at)
            && self.sums.len() == self.bytes.div_ceil(PIECE);
        if whole {
            return Ok(());
        }
        let found = format!(
            "{} bytes from {} on, {} sums",
            self.bytes,
            self.offset,
            self.sums.len()
        );
        let expected = format!(
            "those of {} x {} {} before {table_at}",
            self.rows, self.cols, self.format
        );
        Err(Problem::field(
            format!("matrix '{}'", shown(&self.name)),
            found,
            expected,
        ))
    }

    fn verify(&self, piece: usize, bytes: &[u8]) -> Checked<()> {
        let (found, expected) = (crc32fast::hash(bytes), self.sums[piece]);
        if found == expected {
            return Ok(());
        }
        let place = self.offset + (piece * PIECE) as u64;
        let field = format!("sum of {} bytes from {place} on", bytes.len());
        Err(Problem::field(
            format!("matrix '{}', {field}", self.name),
            format!("{found:08x}"),
            format!("{expected:08x}"),
        ))
    }
}

#[cfg(test)]
mod tests;
