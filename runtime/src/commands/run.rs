//! `plinth run`: one answer, or a chat.

mod chat;

use crate::cli::{RunArgs, SamplingArgs};
use crate::error::{Failure, Result};
use crate::startup::{self, Session};
use anyhow::{Context, anyhow};
use plinth_engine::{FinishReason, SamplingParams};
use plinth_platform::plan::Plan;
use plinth_text::Message;
use std::io::{IsTerminal, Read, Write};
use std::time::{Duration, Instant};

/// Runs the command.
pub fn run(args: &RunArgs, out: &mut dyn Write) -> Result<()> {
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let prompt = match &args.prompt {
        Some(prompt) => Some(prompt.clone()),
        None if interactive => None,
        None => Some(read_prompt()?),
    };
    let mut session = startup::start(&args.model, &args.engine, args.quiet)?;
    session.tell_packed(args.quiet);
    session.trust_content = args.trust_content;
    match prompt {
        None => chat::converse(&session, args, out),
        Some(prompt) => answer(&session, args, &prompt, out),
    }
}

fn read_prompt() -> Result<String> {
    let mut prompt = String::new();
    let read = std::io::stdin().read_to_string(&mut prompt);
    read.context("cannot read the prompt from standard input")
        .map_err(Failure::Input)?;
    let prompt = prompt.trim_end_matches(['\r', '\n']);
    if prompt.is_empty() {
        return Err(Failure::Input(anyhow!(
            "no prompt: give one after the model, or on standard input"
        )));
    }
    Ok(prompt.to_owned())
}

fn answer(session: &Session, args: &RunArgs, prompt: &str, out: &mut dyn Write) -> Result<()> {
    let raw = args.raw || (!args.chat && !session.can_chat());
    if raw && args.system.is_some() {
        return Err(Failure::Input(anyhow!(
            "--system: a system message needs a chat, and the prompt is raw"
        )));
    }
    let tokens = match raw {
        true => session.encode_raw(prompt),
        false => session
            .encode_chat(&messages(args.system.as_deref(), prompt))
            .map_err(Failure::Input)?,
    };
    let spoken = speak(session, &args.sampling, tokens, out)?;
    writeln!(out)?;
    if !args.quiet {
        eprintln!("{}", spoken.line(&session.plan));
    }
    Ok(())
}

fn messages(system: Option<&str>, prompt: &str) -> Vec<Message> {
    let system = system.map(|text| message("system", text));
    system
        .into_iter()
        .chain([message("user", prompt)])
        .collect()
}

fn message(role: &str, content: &str) -> Message {
    Message {
        role: role.to_owned(),
        content: content.to_owned(),
    }
}

/// An answer that was printed, and how long it took.
struct Spoken {
    text: String,
    prompt_tokens: usize,
    cached_tokens: usize,
    tokens: usize,
    to_first: Duration,
    rest: Duration,
    drafted_tokens: usize,
    accepted_tokens: usize,
    end: FinishReason,
}

/// Streams an answer to `out`.
fn speak(
    session: &Session,
    sampling: &SamplingArgs,
    prompt: Vec<u32>,
    out: &mut dyn Write,
) -> Result<Spoken> {
    let params = params(session, sampling, prompt.len());
    let begin = Instant::now();
    let mut collector = session
        .submit(prompt, params, sampling.stop.clone())
        .map_err(Failure::Input)?;
    let mut first = None;
    while let Some(text) = collector.next_text() {
        first.get_or_insert_with(Instant::now);
        if !text.is_empty() {
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
    }
    let end = Instant::now();
    let first = first.unwrap_or(end);
    let answer = collector.into_answer();
    if let FinishReason::Error(why) = &answer.finish_reason {
        return Err(Failure::Failed(anyhow!("{why}")));
    }
    Ok(Spoken {
        text: answer.text,
        prompt_tokens: answer.usage.prompt_tokens,
        cached_tokens: answer.usage.cached_tokens,
        tokens: answer.usage.completion_tokens,
        to_first: first - begin,
        rest: end - first,
        drafted_tokens: answer.usage.drafted_tokens,
        accepted_tokens: answer.usage.accepted_tokens,
        end: answer.finish_reason,
    })
}

fn params(session: &Session, args: &SamplingArgs, prompt_len: usize) -> SamplingParams {
    SamplingParams {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        logit_bias: args.logit_bias.clone(),
        seed: args.seed,
        stop_ids: args.stop_id.clone(),
        eos_ids: session.text.eog_ids().to_vec(),
        ignore_eos: args.ignore_eos,
        min_tokens: args.min_tokens,
        max_tokens: args.max_tokens.unwrap_or_else(|| session.room(prompt_len)),
        logprobs: None,
    }
}

impl Spoken {
    /// Platform, kernels and speed in one line.
    fn line(&self, plan: &Plan) -> String {
        let per_second =
            |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
        let computed = self.prompt_tokens - self.cached_tokens;
        let prefill = match self.cached_tokens {
            0 => format!("{computed} tokens"),
            cached => format!("{computed} tokens and {cached} cached"),
        };
        let decode = match self.tokens {
            0 | 1 => String::new(),
            n => format!(
                " · answer {n} tokens, {:.0} tokens/s",
                per_second(n - 1, self.rest)
            ),
        };
        let drafts = match self.drafted_tokens {
            0 => String::new(),
            drafted => format!(", {} of {drafted} guessed right", self.accepted_tokens),
        };
        let end = match self.end {
            FinishReason::Length => " · cut at the length limit",
            _ => "",
        };
        let kernels = &plan.kernels;
        let matmul = kernels
            .matmul
            .first()
            .map(|(_, id)| id.as_str())
            .unwrap_or_default();
        format!(
            "[{} {} · {} · {matmul} · {} threads · prompt {prefill}, {:.0} tokens/s{decode}{drafts}{end}]",
            plan.platform.id,
            plan.platform.version,
            kernels.attention_decode,
            plan.threads.workers,
            per_second(computed, self.to_first)
        )
    }
}
