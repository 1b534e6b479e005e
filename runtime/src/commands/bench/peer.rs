//! Another engine's benchmark: a command that is run, and the figures in what it prints.
//!
//! Three kinds of output are read: that of `llama-bench -o json`, that of `llama-batched-bench --output-format jsonl`,
//! and a JSON object such as `plinth bench --json` prints, of which two fields suffice.

use super::figures::Figures;
use crate::cli::BenchArgs;
use crate::error::{Failure, Result};
use anyhow::{Context, anyhow};
use serde::Deserialize;
use serde_json::Value;
use std::process::{Command, Stdio};

/// A command, and what its figures must be of to be compared.
pub struct Peer<'a> {
    /// As the user would write it in a shell.
    pub command: &'a str,
    /// What we measure.
    pub args: &'a BenchArgs,
}

const READABLE: &str = "expected what llama-bench prints with -o json or llama-batched-bench with --output-format \
                        jsonl, or a JSON object with prefill_tokens_per_second or decode_tokens_per_second";

impl Peer<'_> {
    /// Runs the command once.
    ///
    /// # Errors
    /// It cannot be run, fails, or prints no figures that are comparable to ours.
    pub fn measure(&self) -> Result<Figures> {
        let command = self.command;
        let output = shell(command)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("--compare: cannot run '{command}'"))
            .map_err(Failure::Failed)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().rfind(|line| !line.trim().is_empty());
            let said = said.map_or(String::new(), |line| format!(": {}", line.trim()));
            let status = output.status;
            return Err(Failure::Failed(anyhow!(
                "--compare: '{command}' ended with {status}{said}"
            )));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let figures = self.read(&text);
        figures.map_err(|why| Failure::Input(anyhow!("--compare: '{command}': {why}")))
    }

    fn read(&self, text: &str) -> Result<Figures, String> {
        match serde_json::from_str(text.trim()) {
            Ok(Value::Array(tests)) => self.llama_bench(tests),
            Ok(value @ Value::Object(_)) if value.get("speed_tg").is_none() => read_object(value),
            _ => self.llama_batched_bench(text),
        }
    }

    /// A list of tests. One that is not like ours would give a ratio of different things.
    fn llama_bench(&self, tests: Vec<Value>) -> Result<Figures, String> {
        let parse =
            |test| serde_json::from_value(test).map_err(|error| format!("{error}; {READABLE}"));
        let tests: Vec<LlamaTest> = tests
            .into_iter()
            .map(parse)
            .collect::<Result<_, String>>()?;
        let (prompt, generate, depth) =
            (self.args.prompt_tokens, self.args.generate, self.args.depth);
        let find = |n_prompt, n_gen, n_depth, flag: &str| {
            let same = |test: &&LlamaTest| {
                (test.n_prompt, test.n_gen, test.n_depth) == (n_prompt, n_gen, n_depth)
            };
            let alike = |test: &&LlamaTest| {
                (test.n_prompt > 0, test.n_gen > 0) == (n_prompt > 0, n_gen > 0)
            };
            match (tests.iter().find(same), tests.iter().find(alike)) {
                (Some(test), _) => Ok(Some(test.avg_ts)),
                (None, Some(test)) if n_prompt + n_gen > 0 => Err(format!(
                    "it measured {test}, and this run {}: give both the same {flag}",
                    LlamaTest {
                        n_prompt,
                        n_gen,
                        n_depth,
                        avg_ts: 0.0
                    }
                )),
                _ => Ok(None),
            }
        };
        Ok(Figures {
            prefill: find(prompt, 0, 0, "-p")?,
            decode: find(0, generate, depth, "-n and depth (-d here and there)")?,
            ..Figures::default()
        })
    }

    /// One object a line, with other lines among them.
    fn llama_batched_bench(&self, text: &str) -> Result<Figures, String> {
        let lines = text.lines().filter(|line| line.starts_with('{'));
        let parsed = lines.filter_map(|line| serde_json::from_str::<LlamaBatch>(line).ok());
        let batches: Vec<_> = parsed.collect();
        if batches.is_empty() {
            let begin: String = text.trim().chars().take(100).collect();
            return Err(format!("it printed '{begin}', {READABLE}"));
        }
        let generate = self.args.generate;
        if let Some(other) = batches.iter().find(|batch| batch.tg != generate) {
            return Err(format!(
                "it generated {} tokens, and this run {generate}: give both the same (-ntg there, -n here)",
                other.tg
            ));
        }
        let all: Vec<_> = batches
            .iter()
            .map(|batch| (batch.pl, batch.speed_tg))
            .collect();
        Ok(Figures {
            decode: all
                .iter()
                .find(|(sequences, _)| *sequences == 1)
                .map(|(_, speed)| *speed),
            batches: all.into_iter().collect(),
            ..Figures::default()
        })
    }
}

/// One test of `llama-bench -o json`.
#[derive(Debug, Deserialize)]
struct LlamaTest {
    n_prompt: u32,
    n_gen: u32,
    #[serde(default)]
    n_depth: u32,
    /// Tokens per second.
    avg_ts: f64,
}

impl std::fmt::Display for LlamaTest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.n_prompt {
            0 => write!(
                f,
                "{} tokens generated at a depth of {}",
                self.n_gen, self.n_depth
            ),
            prompt => write!(f, "a prompt of {prompt} tokens"),
        }
    }
}

/// One line of `llama-batched-bench --output-format jsonl`.
#[derive(Debug, Deserialize)]
struct LlamaBatch {
    /// Sequences.
    pl: u32,
    /// Tokens generated of each.
    tg: u32,
    /// Tokens per second of all together.
    speed_tg: f64,
}

/// The fields of `plinth bench --json` that a comparison needs.
#[derive(Debug, Deserialize)]
struct Object {
    prefill_tokens_per_second: Option<f64>,
    decode_tokens_per_second: Option<f64>,
    #[serde(default)]
    batches: Vec<ObjectBatch>,
}

#[derive(Debug, Deserialize)]
struct ObjectBatch {
    sequences: u32,
    decode: ObjectMedian,
}

#[derive(Debug, Deserialize)]
struct ObjectMedian {
    median: f64,
}

fn read_object(value: Value) -> Result<Figures, String> {
    let object: Object =
        serde_json::from_value(value).map_err(|error| format!("{error}; {READABLE}"))?;
    let batches = object.batches.iter();
    let figures = Figures {
        prefill: object.prefill_tokens_per_second,
        decode: object.decode_tokens_per_second,
        batches: batches
            .map(|batch| (batch.sequences, batch.decode.median))
            .collect(),
    };
    match figures == Figures::default() {
        true => Err(format!("it printed an object without figures, {READABLE}")),
        false => Ok(figures),
    }
}

#[cfg(not(windows))]
fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]);
    shell
}

#[cfg(windows)]
fn shell(command: &str) -> Command {
    let mut shell = Command::new("cmd");
    shell.args(["/C", command]);
    shell
}
