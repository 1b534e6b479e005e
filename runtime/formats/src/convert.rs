//! Writes a model in another type or file format.

mod gguf_metadata;
mod huggingface_files;
mod rows;
mod to_gguf;
mod to_safetensors;

pub(crate) use gguf_metadata::model as model_metadata;
pub(crate) use to_gguf::factors;

use crate::error::{FormatError, Problem};
use crate::model_file::ModelFile;
use plinth_kernels::Format;
use std::path::Path;

/// What was written, and where a wish could not be granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Tensors written.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Tensors in another format than asked for, with the format and why.
    pub otherwise: Vec<String>,
}

/// Writes `input` to `output` with its matrices in the format `target`: a GGUF file where `output` ends in `.gguf`,
/// else a Hugging Face folder with safetensors. Vectors stay f32 in a GGUF file.
///
/// `progress` is told the bytes read so far, and in all.
///
/// # Errors
/// The input cannot be read, the output cannot be written, or the target has no room for what the model needs. Nothing
/// is left behind then.
pub fn convert(
    input: &ModelFile,
    output: &Path,
    target: Format,
    progress: &dyn Fn(u64, u64),
) -> Result<Report, FormatError> {
    if !target.can_quantize() {
        let problem = Problem::field("target type", target, "f32, f16, bf16, q8_0, q4_0 or q4_1");
        return Err(problem.at(output));
    }
    if output
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    {
        return to_gguf::write(input, output, target, progress);
    }
    if !target.is_float() {
        let problem = Problem::field(
            "target type",
            target,
            "f32, f16 or bf16 for a folder with safetensors",
        );
        return Err(problem.fix("give an output that ends in .gguf").at(output));
    }
    to_safetensors::write(input, output, target, progress)
}
