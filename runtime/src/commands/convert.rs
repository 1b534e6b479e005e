//! `plinth convert`: a model in another type or file format.

use crate::cli::{ConvertArgs, WeightType};
use crate::error::{Failure, Result};
use crate::progress::Progress;
use crate::startup;
use anyhow::anyhow;
use plinth_formats::convert::convert;
use plinth_kernels::Format;
use plinth_platform::text::bytes;
use std::path::Path;

/// Runs the command.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let input = startup::open(&args.input)?;
    let shown = args.output.display();
    may_write(&args.output, args.force)?;
    let progress = Progress::bytes("converting", args.quiet);
    let report = convert(&input, &args.output, format(args.target), &|done, total| {
        progress.set(done, total)
    });
    drop(progress);
    let report = report.map_err(Failure::input)?;
    if !args.quiet {
        for line in &report.otherwise {
            eprintln!("note: {line}");
        }
        eprintln!(
            "wrote {} tensors, {}, to {shown}",
            report.tensors,
            bytes(report.bytes)
        );
    }
    Ok(())
}

/// Is there nothing of this name yet, or may it be replaced?
pub(super) fn may_write(output: &Path, force: bool) -> Result<()> {
    match output.exists() && !force {
        false => Ok(()),
        true => Err(Failure::Input(anyhow!(
            "'{}' exists: choose another name, or replace it with --force",
            output.display()
        ))),
    }
}

pub(super) fn format(target: WeightType) -> Format {
    match target {
        WeightType::F32 => Format::F32,
        WeightType::F16 => Format::F16,
        WeightType::Bf16 => Format::BF16,
        WeightType::Q8_0 => Format::Q8_0,
        WeightType::Q4_0 => Format::Q4_0,
        WeightType::Q4_1 => Format::Q4_1,
    }
}
