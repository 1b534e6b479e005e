//! The header of a safetensors file (source: the format's description in the `safetensors` project).

use super::{names, read_json};
use crate::error::{Checked, FormatError, Problem, shown};
use crate::tensors::Place;
use plinth_kernels::Format;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest header that the format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// The files that hold the tensors: those of the index, or the only one.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>, FormatError> {
    let index_path = folder.join("model.safetensors.index.json");
    if let Some(index) = read_json(&index_path)? {
        return indexed(folder, &index).map_err(|problem| problem.at(&index_path));
    }
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let problem = Problem::field(
        "model.safetensors",
        "none",
        "the weights, whole or with model.safetensors.index.json",
    );
    Err(problem
        .fix("other weight files (*.bin, *.pt) are not read: they can run code")
        .at(folder))
}

fn indexed(folder: &Path, index: &serde_json::Value) -> Checked<Vec<PathBuf>> {
    let map = index.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| Problem::field("weight_map", "none", "the file of each tensor"))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let plain = file
            .as_str()
            .filter(|name| !name.is_empty() && !name.contains(['/', '\\']) && *name != "..");
        let plain = plain.ok_or_else(|| {
            Problem::field(
                format!("weight_map: {}", shown(tensor)),
                file,
                "the name of a file in the same folder",
            )
        })?;
        names.insert(plain);
    }
    if names.is_empty() {
        return Err(Problem::field(
            "weight_map",
            "no tensor",
            "the file of each tensor",
        ));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// A tensor as it lies in a file.
pub(super) struct Entry {
    pub name: String,
    /// Its name in GGUF files.
    pub gguf_name: String,
    pub dtype: Dtype,
    /// As many matrices of equal size lie one behind the other.
    pub matrices: usize,
    /// Of all matrices; 1 for a vector.
    pub rows: usize,
    pub cols: usize,
    pub place: Place,
}

impl Entry {
    /// For messages.
    pub fn shape(&self) -> String {
        match self.matrices {
            1 => format!("shape [{}, {}]", self.rows, self.cols),
            matrices => format!(
                "shape [{matrices}, {}, {}]",
                self.rows / matrices,
                self.cols
            ),
        }
    }
}

/// How its elements are stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dtype {
    Float(Format),
    /// Words of packed integers.
    I32,
    /// Bytes of packed numbers.
    U8,
}

impl Dtype {
    fn bytes(self) -> u64 {
        match self {
            Dtype::Float(format) => format.block_bytes() as u64,
            Dtype::I32 => 4,
            Dtype::U8 => 1,
        }
    }

    /// For messages: that of what holds no floats.
    pub fn name(self) -> String {
        match self {
            Dtype::Float(format) => format.to_string(),
            Dtype::I32 => "dtype 'I32'".to_owned(),
            Dtype::U8 => "dtype 'U8'".to_owned(),
        }
    }
}

/// What the header says of it.
#[derive(Deserialize)]
struct Header {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads the entries of one file. `number` is the file's place among those of the model, and `post_norms` is as in
/// `ModelConfig`.
pub(super) fn read(mut file: &File, number: usize, post_norms: bool) -> Checked<Vec<Entry>> {
    let file_len = file
        .metadata()
        .map_err(Problem::io("read its length"))?
        .len();
    let mut len = [0; 8];
    if file_len < 8 {
        return Err(
            Problem::field("the file", format!("{file_len} bytes"), "a header")
                .fix("fetch it again"),
        );
    }
    file.read_exact(&mut len)
        .map_err(Problem::io("read the header"))?;
    let header_len = u64::from_le_bytes(len);
    let limit = MAX_HEADER.min(file_len - 8);
    if header_len > limit {
        let problem = Problem::field(
            "length of the header",
            header_len,
            format!("at most {limit} bytes"),
        );
        return Err(problem.fix("the file was cut off or is no safetensors file"));
    }
    let mut header = Vec::new();
    file.take(header_len)
        .read_to_end(&mut header)
        .map_err(Problem::io("read the header"))?;
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&header)
        .map_err(|error| Problem::field("the header", format!("'{error}'"), "a JSON object"))?;
    let data = Data {
        file: number,
        begin: 8 + header_len,
        len: file_len - 8 - header_len,
    };
    let mut entries = Vec::new();
    for (name, entry) in header {
        // Old writers stored the rotary frequencies, which follow from the configuration.
        if name != "__metadata__" && !name.ends_with("rotary_emb.inv_freq") {
            entries.push(data.entry(name, entry, post_norms)?);
        }
    }
    Ok(entries)
}

/// The part of a file behind its header.
struct Data {
    file: usize,
    begin: u64,
    len: u64,
}

impl Data {
    fn entry(&self, name: String, entry: serde_json::Value, post_norms: bool) -> Checked<Entry> {
        let field = format!("tensor {}", shown(&name));
        let entry: Header = serde_json::from_value(entry).map_err(|error| {
            Problem::field(
                &field,
                format!("'{error}'"),
                "dtype, shape and data_offsets",
            )
        })?;
        let dtype = match entry.dtype.as_str() {
            "F32" => Dtype::Float(Format::F32),
            "F16" => Dtype::Float(Format::F16),
            "BF16" => Dtype::Float(Format::BF16),
            "I32" => Dtype::I32,
            "U8" => Dtype::U8,
            other => {
                let problem = Problem::field(
                    &field,
                    format!("dtype {}", shown(other)),
                    "F32, F16 or BF16",
                );
                return Err(problem.fix(
                    "quantised safetensors are read with 4 bits from GPTQ or AWQ, and gpt-oss in MXFP4: take such a \
                     model, the float model, or a GGUF file",
                ));
            }
        };
        let (matrices, rows, cols) = match *entry.shape.as_slice() {
            [cols] => (1, 1, cols),
            [rows, cols] => (1, rows, cols),
            [matrices, rows, cols] => (matrices, matrices.saturating_mul(rows), cols),
            // Rows of blocks of bytes.
            [matrices, rows, blocks, bytes] if dtype == Dtype::U8 => (
                matrices,
                matrices.saturating_mul(rows),
                blocks.saturating_mul(bytes),
            ),
            _ => {
                return Err(Problem::field(
                    &field,
                    format!("shape {:?}", entry.shape),
                    "at most three dimensions",
                ));
            }
        };
        if rows == 0 || cols == 0 {
            return Err(Problem::field(
                &field,
                format!("shape {:?}", entry.shape),
                "dimensions of at least 1",
            ));
        }
        let bytes = rows
            .checked_mul(cols)
            .and_then(|n| n.checked_mul(dtype.bytes()));
        let (begin, end) = entry.data_offsets;
        if end > self.len || begin > end || bytes != Some(end - begin) {
            let found = format!("bytes {begin} to {end} of {}", self.len);
            let expected = format!(
                "{} bytes inside the file",
                bytes.map_or("countable".into(), |n| n.to_string())
            );
            return Err(Problem::field(&field, found, expected)
                .fix("the file was cut off or is broken: fetch it again"));
        }
        let gguf_name = names::to_gguf(&name, post_norms).ok_or_else(|| {
            let problem = Problem::field(&field, "it in the file", "only tensors of such a model");
            problem.fix("the model is of an architecture that is not supported")
        })?;
        let place = Place {
            file: self.file,
            offset: self.begin + begin,
            bytes: end - begin,
        };
        Ok(Entry {
            name,
            gguf_name,
            dtype,
            matrices: matrices as usize,
            rows: rows as usize,
            cols: cols as usize,
            place,
        })
    }
}
