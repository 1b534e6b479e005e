//! Into a Hugging Face folder: config.json, tokenizer files, model.safetensors.

use super::rows::Reader;
use super::{Report, huggingface_files};
use crate::config::RopeLayout;
use crate::error::{Checked, FormatError, Problem};
use crate::gguf::write::temporary_beside;
use crate::huggingface::names;
use crate::model_file::ModelFile;
use crate::tensors::TensorInfo;
use plinth_kernels::Format;
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

pub(super) fn write(
    input: &ModelFile,
    output: &Path,
    target: Format,
    progress: &dyn Fn(u64, u64),
) -> Result<Report, FormatError> {
    let at = |problem: Problem| problem.at(output);
    let existed = output.is_dir();
    let work = temporary_beside(output);
    std::fs::create_dir_all(&work)
        .map_err(Problem::io("create a folder beside it"))
        .map_err(at)?;
    let written = write_folder(input, &work, target, progress);
    let finished = written.and_then(|report| {
        let moved = if existed {
            move_into(&work, output)
        } else {
            std::fs::rename(&work, output)
        };
        moved
            .map_err(Problem::io("move the files to it"))
            .map_err(at)?;
        Ok(report)
    });
    // Gone after a rename; after a failure, what is left of the work is of no use.
    let _ = std::fs::remove_dir_all(&work);
    finished
}

/// The weights come last, so that a folder with weights is whole.
fn move_into(work: &Path, output: &Path) -> std::io::Result<()> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(work)? {
        names.push(entry?.file_name());
    }
    names.sort_by_key(|name| name.to_string_lossy().ends_with(".safetensors"));
    names
        .iter()
        .try_for_each(|name| std::fs::rename(work.join(name), output.join(name)))
}

fn write_folder(
    input: &ModelFile,
    work: &Path,
    target: Format,
    progress: &dyn Fn(u64, u64),
) -> Result<Report, FormatError> {
    huggingface_files::write(input, work, target)?;
    let path = work.join("model.safetensors");
    let file = File::create(&path).map_err(|error| Problem::io("create it")(error).at(&path))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    write_tensors(input, &mut file, target, progress).map_err(|error| match error {
        Failure::Input(error) => error,
        Failure::Output(problem) => problem.at(&path),
    })
}

enum Failure {
    Input(FormatError),
    Output(Problem),
}

fn write_tensors(
    input: &ModelFile,
    file: &mut impl Write,
    target: Format,
    progress: &dyn Fn(u64, u64),
) -> Result<Report, Failure> {
    // The factors are in config.json, as the folder's way of saying the same.
    let tensors: Vec<_> = input
        .tensors()
        .iter()
        .filter(|info| info.name != "rope_freqs.weight")
        .collect();
    let header = header(&tensors, target).map_err(Failure::Output)?;
    let out = |result: std::io::Result<()>| {
        result
            .map_err(Problem::io("write it"))
            .map_err(Failure::Output)
    };
    out(file.write_all(&(header.len() as u64).to_le_bytes()))?;
    out(file.write_all(&header))?;
    let mut reader = Reader::new(input, RopeLayout::HalfSplit)
        .map_err(|problem| Failure::Input(problem.at(input.path())))?;
    let total = tensors.iter().map(|info| info.bytes()).sum();
    let mut report = Report::default();
    let mut done = 0;
    for info in tensors {
        let bytes = reader.read(info, target).map_err(Failure::Input)?;
        out(file.write_all(&bytes))?;
        report.tensors += 1;
        report.bytes += bytes.len() as u64;
        done += info.bytes();
        progress(done, total);
    }
    out(file.flush())?;
    Ok(report)
}

fn header(tensors: &[&TensorInfo], target: Format) -> Checked<Vec<u8>> {
    let dtype = match target {
        Format::F32 => "F32",
        Format::F16 => "F16",
        _ => "BF16",
    };
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset = 0;
    for info in tensors {
        let name = names::from_gguf(&info.name).ok_or_else(|| {
            Problem::field(
                format!("tensor '{}'", info.name),
                "it",
                "one with a Hugging Face name",
            )
        })?;
        let end = offset + info.elements() * target.block_bytes();
        let shape = if info.rows == 1 {
            vec![info.cols]
        } else {
            vec![info.rows, info.cols]
        };
        entries.insert(
            name,
            json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut header = serde_json::Value::Object(entries).to_string().into_bytes();
    // Readers map the data: it must begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}
