//! Into a GGUF file.

use super::rows::Reader;
use super::{Report, gguf_metadata};
use crate::config::RopeLayout;
use crate::error::FormatError;
use crate::gguf::write::{Planned, Writer};
use crate::model_file::ModelFile;
use crate::tensors::TensorInfo;
use plinth_kernels::Format;
use std::path::Path;

pub(super) fn write(
    input: &ModelFile,
    output: &Path,
    target: Format,
    progress: &dyn Fn(u64, u64),
) -> Result<Report, FormatError> {
    let mut report = Report::default();
    let planned: Vec<_> = input
        .tensors()
        .iter()
        .map(|info| plan(info, target, &mut report))
        .collect();
    let metadata = gguf_metadata::of(input, target)?;
    let mut reader =
        Reader::new(input, RopeLayout::Interleaved).map_err(|problem| problem.at(input.path()))?;
    let mut writer =
        Writer::create(output, &metadata, &planned).map_err(|problem| problem.at(output))?;
    let total = input.tensors().iter().map(TensorInfo::bytes).sum();
    let mut done = 0;
    for (info, planned) in input.tensors().iter().zip(&planned) {
        let bytes = reader.read(info, planned.format)?;
        writer
            .tensor(&bytes)
            .map_err(|problem| problem.at(output))?;
        report.tensors += 1;
        report.bytes += bytes.len() as u64;
        done += info.bytes();
        progress(done, total);
    }
    writer.finish().map_err(|problem| problem.at(output))?;
    Ok(report)
}

/// The format that a tensor gets. Vectors stay f32: they are few bytes and many results hang on each of them.
fn plan(info: &TensorInfo, target: Format, report: &mut Report) -> Planned {
    let with = |format| Planned {
        name: info.name.clone(),
        format,
        rows: info.rows,
        cols: info.cols,
    };
    if info.rows == 1 {
        return with(Format::F32);
    }
    let four_bits = matches!(target, Format::Q4_0 | Format::Q4_1);
    if four_bits
        && ["token_embd.weight", "output.weight"].contains(&info.name.as_str())
        && info.cols.is_multiple_of(32)
    {
        report.otherwise.push(format!(
            "{}: q8_0, since the embedding and the head lose most by 4 bits",
            info.name
        ));
        return with(Format::Q8_0);
    }
    if target.row_bytes(info.cols).is_some() {
        return with(target);
    }
    let reason = format!(
        "its rows of {} elements are no whole number of {target} blocks",
        info.cols
    );
    report
        .otherwise
        .push(format!("{}: f16, since {reason}", info.name));
    with(Format::F16)
}
