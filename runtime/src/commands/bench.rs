//! `plinth bench`: tokens per second of prefill and decode, alone and in batches.

use crate::cli::BenchArgs;
use crate::error::{Failure, Result};
use crate::progress::Progress;
use crate::startup::{self, Session};
use anyhow::anyhow;
use plinth_engine::{Event, FinishReason, Request, SamplingParams, Stream};
use plinth_platform::text::bytes;
use serde::Serialize;
use std::io::Write;
use std::time::Instant;

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    plan_digest: String,
    platform: String,
    attention_kernel: String,
    matmul_kernels: Vec<(String, String)>,
    matmul_many_kernels: Vec<(String, String)>,
    threads: u32,
    load_seconds: f64,
    peak_memory_bytes: Option<u64>,
    prompt_tokens: u32,
    generated_tokens: u32,
    prefill_tokens_per_second: Option<f64>,
    decode_tokens_per_second: Option<f64>,
    prefill: Option<Measured>,
    decode: Option<Measured>,
    batches: Vec<Batch>,
}

/// Runs of one kind, in tokens per second.
#[derive(Debug, PartialEq, Serialize)]
struct Measured {
    median: f64,
    min: f64,
    max: f64,
    runs: Vec<f64>,
}

/// Decode of several sequences at once: tokens per second of all together.
#[derive(Debug, Serialize)]
struct Batch {
    sequences: u32,
    decode: Measured,
}

/// Tokens of the prompt before a decode run.
const DECODE_PROMPT: u32 = 8;

/// Runs the command.
pub fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<()> {
    let mut engine = args.engine.clone();
    // Runs of the same prompt would find each other's blocks.
    engine.no_prefix_caching = true;
    if let Some(&most) = args.batch.iter().max() {
        engine.max_num_seqs.get_or_insert(most.max(64));
    }
    let begin = Instant::now();
    let session = startup::start(&args.model, &engine, args.json)?;
    let load_seconds = begin.elapsed().as_secs_f64();
    let bench = Bench {
        session: &session,
        args,
    };
    let rounds = u64::from(args.runs + 1);
    let progress = Progress::count("measuring", args.json);
    let kinds = 2 + args.batch.len() as u64;
    let mut kind = 0;
    let mut measure = |wanted: bool, once: &dyn Fn() -> Result<f64>| -> Result<Option<Measured>> {
        kind += 1;
        if !wanted {
            return Ok(None);
        }
        let mut runs = Vec::new();
        for round in 0..rounds {
            progress.set((kind - 1) * rounds + round, kinds * rounds);
            runs.push(once()?);
        }
        // The first run touches memory for the first time and is not counted.
        runs.remove(0);
        Ok(Some(Measured::of(runs)))
    };
    let prefill = measure(args.prompt_tokens > 0, &|| bench.prefill())?;
    let decode = measure(args.generate > 1, &|| bench.decode(1))?;
    let mut batches = Vec::new();
    for &sequences in &args.batch {
        if let Some(decode) = measure(args.generate > 1, &|| bench.decode(sequences))? {
            batches.push(Batch { sequences, decode });
        }
    }
    let plan = &session.plan;
    let report = Report {
        model: args.model.display().to_string(),
        plan_digest: plan.digest.clone(),
        platform: format!("{} {}", plan.platform.id, plan.platform.version),
        attention_kernel: plan.kernels.attention_decode.clone(),
        matmul_kernels: plan.kernels.matmul.clone(),
        matmul_many_kernels: plan.kernels.matmul_many.clone(),
        threads: plan.threads.workers,
        load_seconds,
        peak_memory_bytes: peak_memory(),
        prompt_tokens: args.prompt_tokens,
        generated_tokens: args.generate,
        prefill_tokens_per_second: prefill.as_ref().map(|measured| measured.median),
        decode_tokens_per_second: decode.as_ref().map(|measured| measured.median),
        prefill,
        decode,
        batches,
    };
    drop(progress);
    match args.json {
        true => {
            serde_json::to_writer_pretty(&mut *out, &report).map_err(Failure::failed)?;
            Ok(writeln!(out)?)
        }
        false => report.print(out),
    }
}

struct Bench<'a> {
    session: &'a Session,
    args: &'a BenchArgs,
}

impl Bench<'_> {
    /// Tokens per second from the request to its first token.
    fn prefill(&self) -> Result<f64> {
        let prompt = self.prompt(self.args.prompt_tokens, 0);
        let begin = Instant::now();
        finish(self.submit(prompt, 1)?)?;
        Ok(f64::from(self.args.prompt_tokens) / begin.elapsed().as_secs_f64())
    }

    /// Tokens per second of `sequences` together, from the moment when the last has its first token.
    fn decode(&self, sequences: u32) -> Result<f64> {
        let submit = |n| self.submit(self.prompt(DECODE_PROMPT, n), self.args.generate);
        let mut streams = (0..sequences).map(submit).collect::<Result<Vec<_>>>()?;
        for stream in &mut streams {
            stream.next();
        }
        let begin = Instant::now();
        for stream in streams {
            finish(stream)?;
        }
        let tokens = f64::from(self.args.generate - 1) * f64::from(sequences);
        Ok(tokens / begin.elapsed().as_secs_f64())
    }

    /// Tokens that depend on `seed`; what they say does not matter.
    fn prompt(&self, len: u32, seed: u32) -> Vec<u32> {
        let vocab_size = self.session.text.vocab_size() as u64;
        let token = |n: u32| (u64::from(n) * 7919 + u64::from(seed) * 104_729 + 1000) % vocab_size;
        (0..len).map(|n| token(n) as u32).collect()
    }

    fn submit(&self, prompt: Vec<u32>, max_tokens: u32) -> Result<Stream> {
        let sampling = SamplingParams {
            max_tokens,
            ignore_eos: true,
            ..SamplingParams::default()
        };
        let request = Request {
            prompt,
            sampling,
            prompt_logprobs: false,
            stop: None,
        };
        self.session.engine.submit(request).map_err(Failure::input)
    }
}

fn finish(stream: Stream) -> Result<()> {
    match stream.last() {
        Some(Event::Finished {
            reason: FinishReason::Error(why),
            ..
        }) => Err(Failure::Failed(anyhow!("{why}"))),
        _ => Ok(()),
    }
}

impl Measured {
    fn of(runs: Vec<f64>) -> Self {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        Self {
            median,
            min: sorted[0],
            max: sorted[sorted.len() - 1],
            runs,
        }
    }
}

impl Report {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "model      {}", self.model)?;
        writeln!(
            out,
            "platform   {} · {} · {} threads",
            self.platform, self.attention_kernel, self.threads
        )?;
        for (format, kernel) in &self.matmul_kernels {
            writeln!(out, "weights    {format}: {kernel}")?;
        }
        let memory = self.peak_memory_bytes.map_or(String::new(), |peak| {
            format!(", peak memory {}", bytes(peak))
        });
        writeln!(out, "load       {:.2} s{memory}", self.load_seconds)?;
        let mut line = |what: String, measured: &Measured| {
            let Measured {
                median, min, max, ..
            } = measured;
            writeln!(
                out,
                "{what:<34} {median:>8.1} tokens/s   ({min:.1} to {max:.1})"
            )
        };
        if let Some(prefill) = &self.prefill {
            line(format!("prefill    {} tokens", self.prompt_tokens), prefill)?;
        }
        if let Some(decode) = &self.decode {
            line(
                format!("decode     {} tokens", self.generated_tokens),
                decode,
            )?;
        }
        for batch in &self.batches {
            line(
                format!(
                    "decode     {} tokens x {}",
                    self.generated_tokens, batch.sequences
                ),
                &batch.decode,
            )?;
        }
        writeln!(out, "plan       {}", self.plan_digest)?;
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let check = |runs: &[f64], want: f64| assert_eq!(Measured::of(runs.to_vec()).median, want);
        check(&[3.0], 3.0);
        check(&[9.0, 1.0, 5.0], 5.0);
        check(&[4.0, 1.0, 2.0, 100.0], 3.0);
    }
}
