//! `plinth bench`: tokens per second of prefill and decode, alone and in batches, and in turns with another engine; where the
//! time of a step goes.

mod figures;
mod peer;
mod report;
mod roofline;

use crate::cli::{BenchArgs, EngineArgs, Speculation};
use crate::error::{Failure, Result};
use crate::progress::Progress;
use crate::startup::{self, Session};
use anyhow::anyhow;
use figures::{Comparison, Figures};
use peer::Peer;
use plinth_engine::{Event, FinishReason, Request, SamplingParams, Stream};
use report::{Ran, Report};
use std::io::Write;
use std::time::Instant;

/// Tokens of the prompt before a decode run where the user names no depth.
const DECODE_PROMPT: u32 = 8;

/// What the engine is asked for.
fn engine_args(args: &BenchArgs) -> EngineArgs {
    let mut engine = args.engine.clone();
    // Runs of the same prompt would find each other's blocks.
    engine.no_prefix_caching = true;
    // What a step costs does not depend on the text; how often a guess is right does, and this one says nothing.
    engine.speculate.get_or_insert(Speculation::Off);
    if let Some(&most) = args.batch.iter().max() {
        engine.max_num_seqs.get_or_insert(most.max(64));
    }
    engine
}

/// Runs the command.
pub fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<()> {
    if args.roofline {
        return roofline::run(args, out);
    }
    let peer = args
        .compare
        .as_deref()
        .map(|command| Peer { command, args });
    // Not counted: it brings the peer's files into memory, and shows before anything else whether it can be read.
    let first = peer.as_ref().map(Peer::measure).transpose()?;
    let begin = Instant::now();
    let session = startup::start(&args.model, &engine_args(args), args.json)?;
    let load_seconds = begin.elapsed().as_secs_f64();
    session.tell_packed(args.json);
    let bench = Bench {
        session: &session,
        args,
    };
    let progress = Progress::count("measuring", args.json);
    // The first round touches memory for the first time and is not counted either.
    let warm = bench.round()?;
    if let (Some(first), Some(command)) = (&first, &args.compare) {
        Comparison::of(command, &[warm], std::slice::from_ref(first))?;
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..args.runs {
        progress.set(u64::from(round), u64::from(args.runs));
        ours.push(bench.round()?);
        theirs.extend(peer.as_ref().map(Peer::measure).transpose()?);
    }
    drop(progress);
    let comparison = args.compare.as_deref();
    let comparison = comparison.map(|command| Comparison::of(command, &ours, &theirs));
    let stats = session.engine.stats();
    let report = Report::new(
        args,
        &session.plan,
        Ran {
            load_seconds,
            packed: session.packed.clone(),
            drafts: stats.map(|stats| (stats.drafted_tokens, stats.accepted_tokens)),
            rounds: &ours,
            compared: comparison.transpose()?,
        },
    );
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
    /// One run of each kind that was asked for.
    fn round(&self) -> Result<Figures> {
        let args = self.args;
        let prefill = (args.prompt_tokens > 0).then(|| self.prefill());
        let decodes = args.generate > 1;
        let decode = decodes.then(|| self.decode(1));
        let batch = |&sequences: &u32| Ok((sequences, self.decode(sequences)?));
        let batches = args.batch.iter().filter(|_| decodes).map(batch);
        Ok(Figures {
            prefill: prefill.transpose()?,
            decode: decode.transpose()?,
            batches: batches.collect::<Result<_>>()?,
        })
    }

    /// Tokens per second from the request to its first token.
    fn prefill(&self) -> Result<f64> {
        let prompt = self.prompt(self.args.prompt_tokens, 0);
        let begin = Instant::now();
        finish(self.submit(prompt, 1)?)?;
        Ok(f64::from(self.args.prompt_tokens) / begin.elapsed().as_secs_f64())
    }

    /// Tokens per second of `sequences` together, from the moment when the last has its first token.
    fn decode(&self, sequences: u32) -> Result<f64> {
        let len = self.args.depth.max(DECODE_PROMPT);
        let submit = |n| self.submit(self.prompt(len, n), self.args.generate);
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

    fn prompt(&self, len: u32, seed: u32) -> Vec<u32> {
        prompt(len, seed, self.session.text.vocab_size())
    }

    fn submit(&self, prompt: Vec<u32>, max_tokens: u32) -> Result<Stream> {
        let request = request(prompt, max_tokens);
        self.session.engine.submit(request).map_err(Failure::input)
    }
}

/// Tokens that depend on `seed`; what they say does not matter.
fn prompt(len: u32, seed: u32, vocab_size: usize) -> Vec<u32> {
    let spread = |n: u32| u64::from(n) * 7919 + u64::from(seed) * 104_729 + 1000;
    let token = |n| (spread(n) % vocab_size as u64) as u32;
    (0..len).map(token).collect()
}

/// Answers a prompt with exactly so many tokens.
fn request(prompt: Vec<u32>, max_tokens: u32) -> Request {
    Request {
        prompt,
        sampling: SamplingParams {
            max_tokens,
            ignore_eos: true,
            ..SamplingParams::default()
        },
        prompt_logprobs: false,
        stop: None,
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
