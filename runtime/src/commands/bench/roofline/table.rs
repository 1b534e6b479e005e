//! The figures as lines of text.

use super::{Class, Phase, Roofline};
use crate::error::Result;
use plinth_platform::text::bytes;
use std::io::Write;

/// Prints all of it.
pub fn print(roofline: &Roofline, out: &mut dyn Write) -> Result<()> {
    let Roofline { peaks, .. } = roofline;
    writeln!(out, "model      {}", roofline.model)?;
    writeln!(
        out,
        "weights    {} packed, {} threads",
        bytes(roofline.packed_weight_bytes),
        roofline.threads
    )?;
    writeln!(out, "peaks      {}", peaks.source)?;
    for read in &peaks.read {
        let set = bytes(read.bytes);
        writeln!(
            out,
            "           read {set:<24} {:>8.1} GB/s",
            read.gb_per_second
        )?;
    }
    let used = |unit: &str| {
        let classes = roofline.phases.iter().flat_map(|phase| &phase.classes);
        classes.into_iter().any(|class| class.unit == unit)
    };
    for peak in &peaks.compute {
        let unit = format!("{} {}", peak.tier, peak.operation);
        if used(&unit) {
            writeln!(out, "           {unit:<29} {:>8.1} Gop/s", peak.gops)?;
        }
    }
    for phase in &roofline.phases {
        print_phase(phase, out)?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "Bytes and operations are the least that an operation must move and compute: every operand once, products only."
    )?;
    writeln!(
        out,
        "Times are of phases dispatched one by one; a share of a peak over 100% was served by a nearer cache."
    )?;
    Ok(())
}

fn print_phase(phase: &Phase, out: &mut dyn Write) -> Result<()> {
    let Phase {
        name, steps, rows, ..
    } = phase;
    let steps_of = if *steps == 1 {
        "1 step".to_owned()
    } else {
        format!("{steps} steps")
    };
    let what = match name.as_str() {
        "prefill" => format!("{name} of {rows} tokens, {steps_of}"),
        _ => format!("{name}, {steps_of}"),
    };
    let ms = |seconds: f64| 1e3 * seconds / *steps as f64;
    let in_phases: f64 = phase.classes.iter().map(|class| class.seconds).sum();
    writeln!(out)?;
    writeln!(
        out,
        "{what}: {:.3} ms a step undivided, {:.3} ms phase by phase, of which {:.3} ms in these:",
        ms(phase.undivided_seconds),
        ms(phase.divided_seconds),
        ms(in_phases)
    )?;
    writeln!(
        out,
        "  {:<10} {:>9} {:>6} {:>9} {:>9} {:>8} {:>9}  of its limit",
        "", "ms/step", "share", "MB/step", "Mop/step", "GB/s", "Gop/s"
    )?;
    for class in &phase.classes {
        let Class {
            operations, bytes, ..
        } = class;
        let each = |n: u64| n as f64 / 1e6 / *steps as f64;
        let limit = class.limit.as_ref().map_or(String::new(), |limit| {
            format!(
                "{:>4.0}%  {}, {}",
                100.0 * limit.reached,
                limit.by,
                limit.of
            )
        });
        writeln!(
            out,
            "  {:<10} {:>9.3} {:>5.1}% {:>9.3} {:>9.3} {:>8.1} {:>9.1} {limit}",
            class.class,
            ms(class.seconds),
            100.0 * class.share,
            each(*bytes),
            each(*operations),
            class.gb_per_second,
            class.gops,
        )?;
    }
    Ok(())
}
