//! Writes GGUF files, tensor after tensor, under a temporary name until they are whole.

use super::reader::type_of;
use super::value::{Array, Metadata, Value};
use super::{DEFAULT_ALIGNMENT, MAGIC};
use crate::error::{Checked, Problem};
use plinth_kernels::Format;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A tensor that is going to be written.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub name: String,
    pub format: Format,
    /// Of all its matrices together.
    pub rows: usize,
    pub cols: usize,
    /// Matrices of equal size, one behind the other: 1 unless it is a tensor of three dimensions.
    pub matrices: usize,
}

impl Planned {
    /// Bytes it takes. The caller has chosen a format whose blocks divide the row.
    pub fn bytes(&self) -> u64 {
        let row = self
            .format
            .row_bytes(self.cols)
            .expect("the format was chosen for this row length");
        (row * self.rows) as u64
    }
}

/// A file in the making. Dropped before [`Writer::finish`], it leaves nothing behind.
pub(crate) struct Writer {
    file: BufWriter<File>,
    temporary: Option<PathBuf>,
    target: PathBuf,
}

impl Writer {
    /// Writes the header. `metadata` must not set another alignment than the default.
    pub fn create(target: &Path, metadata: &Metadata, tensors: &[Planned]) -> Checked<Self> {
        let temporary = temporary_beside(target);
        let file = File::create(&temporary).map_err(Problem::io("create a file beside it"))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        let mut writer = Self {
            file,
            temporary: Some(temporary),
            target: target.to_owned(),
        };
        let mut header = Vec::new();
        write_header(&mut header, metadata, tensors);
        pad(&mut header);
        writer.write(&header)?;
        Ok(writer)
    }

    /// Writes the bytes of the next tensor.
    pub fn tensor(&mut self, bytes: &[u8]) -> Checked<()> {
        self.write(bytes)?;
        let padding = bytes.len().next_multiple_of(DEFAULT_ALIGNMENT as usize) - bytes.len();
        self.write(&[0; DEFAULT_ALIGNMENT as usize][..padding])
    }

    fn write(&mut self, bytes: &[u8]) -> Checked<()> {
        self.file.write_all(bytes).map_err(Problem::io("write it"))
    }

    /// Gives the file its name.
    pub fn finish(mut self) -> Checked<()> {
        self.file.flush().map_err(Problem::io("write it"))?;
        self.file
            .get_ref()
            .sync_all()
            .map_err(Problem::io("write it"))?;
        if let Some(temporary) = &self.temporary {
            std::fs::rename(temporary, &self.target).map_err(Problem::io("rename it"))?;
        }
        self.temporary = None;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The work failed already; what is left to do is to leave no half file where it can be left out.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// A name in the same folder, so that the last step is a rename.
pub(crate) fn temporary_beside(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".partial-{}", std::process::id()));
    target.with_file_name(name)
}

fn write_header(out: &mut Vec<u8>, metadata: &Metadata, tensors: &[Planned]) {
    out.extend(MAGIC);
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.0.len() as u64).to_le_bytes());
    for (key, value) in &metadata.0 {
        write_text(out, key);
        out.extend(value.type_id().to_le_bytes());
        write_value(out, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        write_text(out, &tensor.name);
        let dims: &[usize] = match (tensor.matrices, tensor.rows) {
            (1, 1) => &[tensor.cols],
            (1, rows) => &[tensor.cols, rows],
            (matrices, rows) => &[tensor.cols, rows / matrices, matrices],
        };
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter()
            .for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
        let type_id = type_of(tensor.format).expect("a format that can be written is one of GGUF");
        out.extend(type_id.to_le_bytes());
        out.extend(u64::to_le_bytes(offset));
        offset = (offset + tensor.bytes()).next_multiple_of(DEFAULT_ALIGNMENT);
    }
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(n) => out.extend(n.to_le_bytes()),
        Value::I8(n) => out.extend(n.to_le_bytes()),
        Value::U16(n) => out.extend(n.to_le_bytes()),
        Value::I16(n) => out.extend(n.to_le_bytes()),
        Value::U32(n) => out.extend(n.to_le_bytes()),
        Value::I32(n) => out.extend(n.to_le_bytes()),
        Value::F32(n) => out.extend(n.to_le_bytes()),
        Value::Bool(truth) => out.push(u8::from(*truth)),
        Value::String(text) => write_text(out, text),
        Value::Array(array) => write_array(out, array),
        Value::U64(n) => out.extend(n.to_le_bytes()),
        Value::I64(n) => out.extend(n.to_le_bytes()),
        Value::F64(n) => out.extend(n.to_le_bytes()),
    }
}

fn write_array(out: &mut Vec<u8>, array: &Array) {
    let type_id = match array {
        Array::I32(_) => 5,
        Array::F32(_) => 6,
        Array::String(_) => 8,
        Array::Other(type_id, _) => *type_id,
    };
    out.extend(type_id.to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::I32(list) => list.iter().for_each(|n| out.extend(n.to_le_bytes())),
        Array::F32(list) => list.iter().for_each(|n| out.extend(n.to_le_bytes())),
        Array::String(list) => list.iter().for_each(|text| write_text(out, text)),
        Array::Other(_, list) => list.iter().for_each(|value| write_value(out, value)),
    }
}
