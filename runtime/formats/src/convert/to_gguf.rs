//! Into a GGUF file.

pub(crate) mod factors;
mod fused;

use super::rows::Reader;
use super::{Report, gguf_metadata};
use crate::error::FormatError;
use crate::gguf;
use crate::gguf::write::{Planned, Writer};
use crate::model_file::{ModelFile, Source};
use crate::tensors::TensorInfo;
use fused::Target;
use plinth_kernels::Format;
use std::path::Path;

pub(super) fn write(
    input: &ModelFile,
    output: &Path,
    target: Format,
    progress: &dyn Fn(u64, u64),
) -> Result<Report, FormatError> {
    let mut report = Report::default();
    let architecture = &input.config().architecture;
    let targets = fused::targets(input.tensors(), architecture);
    let factors = match &input.source {
        // Among its tensors already.
        Source::Gguf(_) => Vec::new(),
        Source::HuggingFace(_) => factors::tensors(input.config()),
    };
    let planned: Vec<_> = targets
        .iter()
        .map(|tensor| plan(tensor, target, &mut report))
        .chain(factors.iter().map(|tensor| tensor.planned.clone()))
        .collect();
    let metadata = gguf_metadata::of(input, target)?;
    let mut reader = Reader::new(input, gguf::rope_layout(architecture))
        .map_err(|problem| problem.at(input.path()))?;
    let mut writer =
        Writer::create(output, &metadata, &planned).map_err(|problem| problem.at(output))?;
    let total = input.tensors().iter().map(TensorInfo::bytes).sum();
    let mut done = 0;
    for (tensor, planned) in targets.iter().zip(&planned) {
        let mut bytes = Vec::new();
        for source in &tensor.sources {
            bytes.extend(reader.read(source, planned.format)?);
            done += source.bytes();
        }
        writer
            .tensor(&bytes)
            .map_err(|problem| problem.at(output))?;
        report.tensors += 1;
        report.bytes += bytes.len() as u64;
        progress(done, total);
    }
    for tensor in &factors {
        writer
            .tensor(&tensor.bytes())
            .map_err(|problem| problem.at(output))?;
        report.tensors += 1;
        report.bytes += tensor.planned.bytes();
    }
    writer.finish().map_err(|problem| problem.at(output))?;
    Ok(report)
}

/// The format that a tensor gets. Vectors stay f32: they are few bytes and many results hang on each of them. So does
/// what ranks experts, for which llama.cpp expects it.
fn plan(tensor: &Target<'_>, target: Format, report: &mut Report) -> Planned {
    let (name, cols) = (&tensor.name, tensor.cols());
    let with = |format| Planned {
        name: name.clone(),
        format,
        rows: tensor.rows(),
        cols,
        matrices: tensor.matrices(),
    };
    let vector = tensor.rows() == 1 || name.ends_with(".bias");
    if vector || name.ends_with(".ffn_gate_inp.weight") {
        return with(Format::F32);
    }
    let four_bits = matches!(target, Format::Q4_0 | Format::Q4_1);
    if four_bits
        && ["token_embd.weight", "output.weight"].contains(&name.as_str())
        && cols.is_multiple_of(32)
    {
        report.otherwise.push(format!(
            "{name}: q8_0, since the embedding and the head lose most by 4 bits"
        ));
        return with(Format::Q8_0);
    }
    if target.row_bytes(cols).is_some() {
        return with(target);
    }
    let reason = format!("its rows of {cols} elements are no whole number of {target} blocks");
    report
        .otherwise
        .push(format!("{name}: f16, since {reason}"));
    with(Format::F16)
}
