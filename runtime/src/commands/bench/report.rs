//! What was measured, for people or as JSON.

use super::figures::{Comparison, Figures, Measured, Versus};
use crate::cli::BenchArgs;
use crate::error::Result;
use crate::pack_cache::PackedWeights;
use plinth_platform::plan::Plan;
use plinth_platform::text::bytes;
use serde::Serialize;
use std::io::Write;

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    model: String,
    plan_digest: String,
    platform: String,
    attention_kernel: String,
    matmul_kernels: Vec<(String, String)>,
    matmul_many_kernels: Vec<(String, String)>,
    threads: u32,
    load_seconds: f64,
    /// What became of the packed weights, if they were to be kept.
    packed_weights: Option<PackedWeights>,
    peak_memory_bytes: Option<u64>,
    prompt_tokens: u32,
    generated_tokens: u32,
    depth: u32,
    prefill_tokens_per_second: Option<f64>,
    decode_tokens_per_second: Option<f64>,
    prefill: Option<Measured>,
    decode: Option<Measured>,
    batches: Vec<Batch>,
    /// Tokens guessed ahead over all rounds, the first included, and those of them that were right.
    drafted_tokens: u64,
    accepted_tokens: u64,
    compared: Option<Comparison>,
}

/// What ran, and how it went.
pub struct Ran<'a> {
    pub load_seconds: f64,
    pub packed: Option<PackedWeights>,
    /// Tokens guessed ahead, and those of them that were right.
    pub drafts: Option<(u64, u64)>,
    /// The rounds that count.
    pub rounds: &'a [Figures],
    pub compared: Option<Comparison>,
}

/// Decode of several sequences at once: tokens per second of all together.
#[derive(Debug, Serialize)]
struct Batch {
    sequences: u32,
    decode: Measured,
}

impl Report {
    /// Over all rounds that count.
    pub fn new(args: &BenchArgs, plan: &Plan, ran: Ran<'_>) -> Self {
        let Ran {
            load_seconds,
            packed,
            drafts,
            rounds,
            compared,
        } = ran;
        let (drafted_tokens, accepted_tokens) = drafts.unwrap_or_default();
        let prefill = Measured::over(rounds, |figures| figures.prefill);
        let decode = Measured::over(rounds, |figures| figures.decode);
        let batch = |&sequences: &u32| {
            let decode =
                Measured::over(rounds, |figures| figures.batches.get(&sequences).copied())?;
            Some(Batch { sequences, decode })
        };
        Self {
            model: args.model.display().to_string(),
            plan_digest: plan.digest.clone(),
            platform: format!("{} {}", plan.platform.id, plan.platform.version),
            attention_kernel: plan.kernels.attention_decode.clone(),
            matmul_kernels: plan.kernels.matmul.clone(),
            matmul_many_kernels: plan.kernels.matmul_many.clone(),
            threads: plan.threads.workers,
            load_seconds,
            packed_weights: packed,
            peak_memory_bytes: peak_memory(),
            prompt_tokens: args.prompt_tokens,
            generated_tokens: args.generate,
            depth: args.depth,
            prefill_tokens_per_second: prefill.as_ref().map(|measured| measured.median),
            decode_tokens_per_second: decode.as_ref().map(|measured| measured.median),
            prefill,
            decode,
            batches: args.batch.iter().filter_map(batch).collect(),
            drafted_tokens,
            accepted_tokens,
            compared,
        }
    }

    /// Line by line.
    pub fn print(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "model      {}", self.model)?;
        writeln!(
            out,
            "platform   {} · {} · {} threads",
            self.platform, self.attention_kernel, self.threads
        )?;
        for (format, kernel) in &self.matmul_kernels {
            let many = self.matmul_many_kernels.iter().find(|(f, _)| f == format);
            let many = many.map_or(String::new(), |(_, kernel)| {
                format!(", many rows: {kernel}")
            });
            writeln!(out, "weights    {format}: {kernel}{many}")?;
        }
        let memory = self.peak_memory_bytes.map_or(String::new(), |peak| {
            format!(", peak memory {}", bytes(peak))
        });
        writeln!(out, "load       {:.2} s{memory}", self.load_seconds)?;
        if let Some(prefill) = &self.prefill {
            line(out, &self.prefilled(), prefill)?;
        }
        if let Some(decode) = &self.decode {
            line(out, &self.decoded(1), decode)?;
        }
        for batch in &self.batches {
            line(out, &self.decoded(batch.sequences), &batch.decode)?;
        }
        if self.drafted_tokens > 0 {
            writeln!(
                out,
                "guesses    {} of {} tokens right",
                self.accepted_tokens, self.drafted_tokens
            )?;
        }
        if let Some(compared) = &self.compared {
            writeln!(out, "against    {}", compared.command)?;
            if let Some(prefill) = &compared.prefill {
                versus_line(out, &self.prefilled(), prefill)?;
            }
            if let Some(decode) = &compared.decode {
                versus_line(out, &self.decoded(1), decode)?;
            }
            for batch in &compared.batches {
                versus_line(out, &self.decoded(batch.sequences), &batch.decode)?;
            }
        }
        writeln!(out, "plan       {}", self.plan_digest)?;
        Ok(())
    }

    fn prefilled(&self) -> String {
        format!("prefill    {} tokens", self.prompt_tokens)
    }

    fn decoded(&self, sequences: u32) -> String {
        let depth = match self.depth {
            0 => String::new(),
            depth => format!(" after {depth}"),
        };
        let times = match sequences {
            1 => String::new(),
            sequences => format!(" x {sequences}"),
        };
        format!("decode     {} tokens{depth}{times}", self.generated_tokens)
    }
}

fn line(out: &mut dyn Write, what: &str, measured: &Measured) -> Result<()> {
    let Measured {
        median, min, max, ..
    } = measured;
    writeln!(
        out,
        "{what:<34} {median:>8.1} tokens/s   ({min:.1} to {max:.1})"
    )?;
    Ok(())
}

fn versus_line(out: &mut dyn Write, what: &str, versus: &Versus) -> Result<()> {
    let Measured {
        median, min, max, ..
    } = &versus.ratio;
    writeln!(
        out,
        "{what:<34} {:>8.1} tokens/s   ours is {median:.2} times as fast ({min:.2} to {max:.2})",
        versus.peer.median
    )?;
    Ok(())
}

/// Most memory that this process had resident at once, where the system says.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
