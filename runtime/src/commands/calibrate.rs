//! `plinth calibrate`: what this machine's kernels reach, measured once and kept.

use crate::calibration::{self, Extent};
use crate::cli::CalibrateArgs;
use crate::error::{Failure, Result};
use crate::startup;
use plinth_kernels::calibrate::{Calibration, ComputePeak, MatmulCost};
use plinth_platform::text::bytes;
use std::io::Write;

/// Runs the command.
pub fn run(args: &CalibrateArgs, out: &mut dyn Write) -> Result<()> {
    let facts = startup::facts(None)?;
    let threads = args.threads.unwrap_or(facts.host.budget.threads);
    // What was measured hastily is not worth keeping.
    let file = calibration::file_of(&facts, threads).filter(|_| !args.quick);
    let kept = file.as_deref().filter(|_| !args.again);
    let (calibration, kept) = match kept.and_then(calibration::read) {
        Some(kept) => (kept, file),
        None => {
            let extent = if args.quick {
                Extent::Quick
            } else {
                Extent::Thorough
            };
            let measured = calibration::measure(&facts, threads, extent, args.json)?;
            // Nor is what was measured in a crowd.
            let file = file.filter(|_| !calibration::disturbed(&measured));
            if let Some(file) = &file {
                calibration::keep(file, &measured)?;
            }
            (measured, file)
        }
    };
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &calibration).map_err(Failure::failed)?;
        return Ok(writeln!(out)?);
    }
    let model = &facts.host.model;
    let name = if model.is_empty() {
        "unnamed processor"
    } else {
        model
    };
    writeln!(
        out,
        "processor  {name}, {}",
        threads_of(calibration.threads)
    )?;
    print(&calibration, out)?;
    if let Some(file) = kept {
        writeln!(out, "kept in    {} (--again measures anew)", file.display())?;
    }
    Ok(())
}

fn threads_of(threads: u32) -> String {
    match threads {
        1 => "1 thread".to_owned(),
        threads => format!("{threads} threads"),
    }
}

fn print(found: &Calibration, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "clock      {:.2} GHz", found.clock_ghz)?;
    for ComputePeak {
        tier,
        operation,
        threads,
        gops,
    } in &found.compute
    {
        let what = format!("{tier} {operation}");
        writeln!(
            out,
            "compute    {what:<24} {:<10} {gops:>8.1} Gop/s",
            threads_of(*threads)
        )?;
    }
    for read in &found.read {
        let (bytes, threads) = (bytes(read.bytes), threads_of(read.threads));
        writeln!(
            out,
            "read       {bytes:<24} {threads:<10} {:>8.1} GB/s",
            read.gb_per_second
        )?;
    }
    let dispatch = &found.dispatch;
    writeln!(
        out,
        "dispatch   {:.2} us to threads that are awake, {:.1} us to sleeping ones",
        dispatch.awake_us, dispatch.asleep_us
    )?;
    print_products(&found.matmul, out)
}

/// Of each format and shape the kernels that are the fastest for some number of rows.
fn print_products(costs: &[MatmulCost], out: &mut dyn Write) -> Result<()> {
    let mut tokens: Vec<u32> = costs.iter().map(|cost| cost.tokens).collect();
    tokens.sort_unstable();
    tokens.dedup();
    let heads: String = tokens.iter().map(|tokens| format!("{tokens:>9}")).collect();
    writeln!(
        out,
        "products   {:<44}{heads} rows, in us",
        "outputs x inputs, weights, kernel"
    )?;
    let mut done = Vec::new();
    for MatmulCost {
        format,
        outputs,
        inputs,
        ..
    } in costs
    {
        let product = (*outputs, *inputs, format);
        if done.contains(&product) {
            continue;
        }
        done.push(product);
        let same = |cost: &&MatmulCost| (cost.outputs, cost.inputs, &cost.format) == product;
        let all: Vec<_> = costs.iter().filter(same).collect();
        let mut fastest = Vec::new();
        for &tokens in &tokens {
            let of = all.iter().filter(|cost| cost.tokens == tokens);
            let best = of
                .min_by(|a, b| a.us.total_cmp(&b.us))
                .map(|cost| &cost.kernel);
            fastest.extend(best.filter(|kernel| !fastest.contains(kernel)));
        }
        for kernel in fastest {
            let cell = |&tokens: &u32| {
                let of = |cost: &&&MatmulCost| cost.kernel == *kernel && cost.tokens == tokens;
                let us = all.iter().find(of).map(|cost| format!("{:.1}", cost.us));
                format!("{:>9}", us.unwrap_or_default())
            };
            let cells: String = tokens.iter().map(cell).collect();
            let what = format!("{outputs}x{inputs} {format} {kernel}");
            writeln!(out, "           {what:<44}{cells}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_kernels::calibrate::DispatchCost;

    fn calibration() -> Calibration {
        let cost = |kernel: &str, tokens, us| MatmulCost {
            kernel: kernel.to_owned(),
            format: "q4_1".to_owned(),
            outputs: 64,
            inputs: 32,
            weight_bytes: 1280,
            tokens,
            us,
        };
        Calibration {
            kernels: "0.1.0".to_owned(),
            threads: 2,
            clock_ghz: 3.5,
            disturbed: 0.0,
            compute: Vec::new(),
            read: Vec::new(),
            dispatch: DispatchCost {
                threads: 2,
                awake_us: 0.5,
                asleep_us: 40.0,
            },
            matmul: vec![
                cost("few", 1, 1.0),
                cost("few", 512, 900.0),
                cost("many", 1, 2.0),
                cost("many", 512, 300.0),
                cost("never", 1, 3.0),
                cost("never", 512, 950.0),
            ],
        }
    }

    #[test]
    fn a_kernel_is_shown_if_it_is_the_fastest_for_some_number_of_rows() {
        let mut out = Vec::new();
        print(&calibration(), &mut out).expect("it can be written");
        let text = String::from_utf8(out).expect("it is UTF-8");
        assert!(
            text.contains("64x32 q4_1 few") && text.contains("64x32 q4_1 many"),
            "{text}"
        );
        assert!(!text.contains("never"), "{text}");
    }
}
