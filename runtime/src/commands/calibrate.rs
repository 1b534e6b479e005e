//! `plinth calibrate`: what this machine's kernels reach, measured once and kept.

use crate::cli::CalibrateArgs;
use crate::error::{Failure, Result};
use crate::platforms::cache_folder;
use crate::progress::Progress;
use crate::startup;
use anyhow::{Context, anyhow};
use plinth_host::digest;
use plinth_kernels::Workers;
use plinth_kernels::calibrate::{Calibration, ComputePeak, MatmulCost, Options, calibrate};
use plinth_platform::facts::Facts;
use plinth_platform::text::bytes;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Share of slow moments from which on a measurement says more about the neighbours than about the machine.
const DISTURBED: f64 = 0.15;

/// Runs the command.
pub fn run(args: &CalibrateArgs, out: &mut dyn Write) -> Result<()> {
    let facts = startup::facts(None)?;
    let threads = args.threads.unwrap_or(facts.host.budget.threads);
    let file = kept_in(&facts, threads);
    let kept = file.as_deref().filter(|_| !args.again && !args.quick);
    let kept = kept.and_then(read);
    let measured = kept.is_none();
    let calibration = match kept {
        Some(calibration) => calibration,
        None => measure(&facts, threads, args)?,
    };
    let disturbed = calibration.disturbed > DISTURBED;
    if disturbed {
        eprintln!(
            "warning: {:.0}% of the time other processes had a CPU: these are not the figures of this machine; \
             measure again when it is quiet",
            100.0 * calibration.disturbed
        );
    }
    // What was measured hastily or in a crowd is not worth keeping.
    let file = file.filter(|_| !args.quick && !disturbed);
    if let Some(file) = &file {
        keep(file, &calibration)?;
    }
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
    if let Some(file) = file {
        writeln!(out, "kept in    {} (--again measures anew)", file.display())?;
    }
    Ok(())
}

fn measure(facts: &Facts, threads: u32, args: &CalibrateArgs) -> Result<Calibration> {
    let l2 = facts.host.caches.iter().find(|cache| cache.level == 2);
    // Of a machine that does not tell, the least that has been built in a decade.
    let l2 = l2.map_or(256 << 10, |cache| cache.bytes as usize);
    let options = match args.quick {
        true => Options::quick(l2),
        false => Options::thorough(l2, facts.host.budget.memory),
    };
    let workers = Workers::new(threads as usize, &[])
        .context("cannot start the worker threads")
        .map_err(Failure::Failed)?;
    let progress = Progress::count("measuring", args.json);
    calibrate(&workers, &options, &|done, total| progress.set(done, total))
        .context("cannot measure this machine")
        .map_err(Failure::Failed)
}

/// Where the measurements of this machine lie: the name holds all that they depend on. `None` for a user without a
/// cache folder.
fn kept_in(facts: &Facts, threads: u32) -> Option<PathBuf> {
    let host = &facts.host;
    let key = json!({
        "vendor": host.vendor,
        "model": host.model,
        "isa": host.isa,
        "caches": host.caches,
        "threads": threads,
        "kernels": facts.kernels,
        "version": facts.engine.version,
    });
    let digest = digest(key.to_string().as_bytes());
    let name = digest.rsplit(':').next()?;
    Some(
        cache_folder()?
            .join("calibration")
            .join(format!("{name}.json")),
    )
}

/// What is kept there. Whatever cannot be read is measured again.
fn read(file: &Path) -> Option<Calibration> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

fn keep(file: &Path, calibration: &Calibration) -> Result<()> {
    let text = serde_json::to_vec_pretty(calibration).map_err(Failure::failed)?;
    let folder = file
        .parent()
        .ok_or_else(|| Failure::Failed(anyhow!("a file has a folder")))?;
    let temporary = file.with_extension(format!("partial-{}", std::process::id()));
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&temporary, text))
        .and_then(|()| std::fs::rename(&temporary, file));
    written
        .with_context(|| format!("cannot keep the measurements in '{}'", file.display()))
        .map_err(Failure::Failed)
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
    fn what_was_kept_is_read_and_what_is_broken_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("calibration").join("this.json");
        assert_eq!(read(&file), None);
        keep(&file, &calibration()).expect("it can be written");
        assert_eq!(read(&file), Some(calibration()));
        std::fs::write(&file, "{\"kernels\": ").expect("it can be written");
        assert_eq!(read(&file), None);
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
