//! One line of results.

use crate::answer::Answer;
use plinth_engine::{FinishReason, TokenLogprob};
use serde::Serialize;
use std::io::{self, Write};

#[derive(Serialize)]
struct BatchResult<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<serde_json::Value>,
    ids: &'a [u32],
    text: &'a str,
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<Logprob<'a>>>,
    usage: Usage,
}

#[derive(Serialize)]
struct Logprob<'a> {
    id: u32,
    logprob: f32,
    top: &'a [(u32, f32)],
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
    drafted_tokens: usize,
    accepted_tokens: usize,
}

#[derive(Serialize)]
struct BatchError<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<serde_json::Value>,
    line: usize,
    error: &'a str,
}

/// Writes the result of a request that ran.
pub fn write_answer(
    out: &mut dyn Write,
    id: Option<serde_json::Value>,
    answer: &Answer,
) -> io::Result<()> {
    let logprob = |(&id, l): (&u32, &'_ TokenLogprob)| -> (u32, f32) { (id, l.logprob) };
    let logprobs = answer.logprobs.as_ref().map(|logprobs| {
        let tokens = answer.ids.iter().zip(logprobs);
        tokens
            .map(|pair| {
                let (id, value) = logprob((pair.0, pair.1));
                Logprob {
                    id,
                    logprob: value,
                    top: &pair.1.top,
                }
            })
            .collect()
    });
    let result = BatchResult {
        id,
        ids: &answer.ids,
        text: &answer.text,
        finish_reason: reason(&answer.finish_reason),
        logprobs,
        usage: Usage {
            prompt_tokens: answer.usage.prompt_tokens,
            cached_tokens: answer.usage.cached_tokens,
            completion_tokens: answer.usage.completion_tokens,
            drafted_tokens: answer.usage.drafted_tokens,
            accepted_tokens: answer.usage.accepted_tokens,
        },
    };
    write_line(out, &result)
}

/// Writes what is wrong with a request, in the place of its result.
pub fn write_error(
    out: &mut dyn Write,
    id: Option<serde_json::Value>,
    line: usize,
    error: &str,
) -> io::Result<()> {
    write_line(out, &BatchError { id, line, error })
}

fn write_line(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// The name of a reason, as the OpenAI interface has it.
fn reason(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Error(_) => "error",
    }
}
