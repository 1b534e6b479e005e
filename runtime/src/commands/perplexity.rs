//! `plinth perplexity`: how well a model predicts a text, by llama.cpp's method.

use crate::cli::PerplexityArgs;
use crate::error::{Failure, Result};
use crate::progress::Progress;
use crate::startup;
use anyhow::{Context, ensure};
use plinth_engine::{Event, FinishReason, Request, SamplingParams, Stream};
use plinth_text::Special;
use serde::Serialize;
use std::io::Write;

#[derive(Debug, PartialEq, Serialize)]
struct Perplexity {
    /// `exp` of the mean negative log probability.
    perplexity: f64,
    /// Standard error of `perplexity`.
    stderr: f64,
    /// Tokens that were scored.
    tokens: usize,
    /// Windows of the text.
    windows: usize,
    /// Tokens in a window.
    context: u32,
}

/// Runs the command.
pub fn run(args: &PerplexityArgs, out: &mut dyn Write) -> Result<()> {
    let shown = args.file.display();
    let text = std::fs::read_to_string(&args.file);
    let text = text
        .with_context(|| format!("cannot read '{shown}'"))
        .map_err(Failure::Input)?;
    if args.context < 4 {
        return Err(Failure::Input(anyhow::anyhow!(
            "--context: found {}, expected at least 4 tokens",
            args.context
        )));
    }
    let session = startup::start(&args.model, &args.engine, false)?;
    session.tell_packed(false);
    let plain = session.text.encode(&text, Special::Plain);
    let ids = session.text.with_bos(plain.clone());
    let bos = (ids.len() > plain.len()).then(|| ids[0]);
    let windows = windows(&ids, args.context as usize, bos);
    if windows.is_empty() {
        let found = ids.len();
        let error = anyhow::anyhow!(
            "'{shown}' has {found} tokens, expected at least --context {}",
            args.context
        );
        return Err(Failure::Input(error));
    }
    let streams = windows.iter().map(|window| {
        let sampling = SamplingParams {
            max_tokens: 1,
            ignore_eos: true,
            ..SamplingParams::default()
        };
        session.engine.submit(Request {
            prompt: window.clone(),
            sampling,
            prompt_logprobs: true,
            stop: None,
        })
    });
    let streams = streams
        .collect::<Result<Vec<_>, _>>()
        .map_err(Failure::input)?;
    let progress = Progress::count("windows", false);
    let mut scored = Vec::new();
    for (n, stream) in streams.into_iter().enumerate() {
        progress.set(n as u64, windows.len() as u64);
        let logprobs = prompt_logprobs(stream).map_err(Failure::Failed)?;
        scored.extend(second_half(&logprobs).map_err(Failure::Failed)?);
    }
    drop(progress);
    report(
        &Perplexity::of(&scored, windows.len(), args.context),
        args.json,
        out,
    )
}

/// Whole windows of `context` tokens. Where a text begins with a token of its own, so does every window, in place of its
/// first: the model knows no other beginning.
fn windows(ids: &[u32], context: usize, bos: Option<u32>) -> Vec<Vec<u32>> {
    let windows = ids.chunks_exact(context).map(|window| {
        let mut window = window.to_vec();
        window[0] = bos.unwrap_or(window[0]);
        window
    });
    windows.collect()
}

/// Log probabilities of the positions from `context / 2 + 1` on: those before them have too little to go by.
fn second_half(logprobs: &[Option<f32>]) -> anyhow::Result<Vec<f32>> {
    let first = logprobs.len() / 2 + 1;
    let scored = logprobs[first..]
        .iter()
        .map(|l| l.context("a token of the window has no log probability"));
    scored.collect()
}

fn prompt_logprobs(stream: Stream) -> anyhow::Result<Vec<Option<f32>>> {
    let mut found = None;
    for event in stream {
        match event {
            Event::PromptLogprobs(logprobs) => found = Some(logprobs),
            Event::Finished {
                reason: FinishReason::Error(why),
                ..
            } => anyhow::bail!("{why}"),
            Event::Finished { .. } => {}
            Event::Token { .. } => {}
        }
    }
    let logprobs = found.context("the engine sent no log probabilities")?;
    ensure!(!logprobs.is_empty(), "the engine sent no log probabilities");
    Ok(logprobs)
}

impl Perplexity {
    /// Mean and standard error over independent tokens, carried through `exp` to first order as llama.cpp does.
    fn of(logprobs: &[f32], windows: usize, context: u32) -> Self {
        let count = logprobs.len() as f64;
        let mean = -logprobs.iter().map(|&l| f64::from(l)).sum::<f64>() / count;
        let squares = logprobs.iter().map(|&l| f64::from(l).powi(2)).sum::<f64>() / count;
        let perplexity = mean.exp();
        let stderr =
            ((squares - mean * mean).max(0.0) / (count - 1.0).max(1.0)).sqrt() * perplexity;
        Self {
            perplexity,
            stderr,
            tokens: logprobs.len(),
            windows,
            context,
        }
    }
}

fn report(result: &Perplexity, json: bool, out: &mut dyn Write) -> Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, result).map_err(Failure::failed)?;
        writeln!(out)?;
    } else {
        let Perplexity {
            perplexity,
            stderr,
            tokens,
            windows,
            context,
        } = result;
        writeln!(
            out,
            "perplexity {perplexity:.4} ± {stderr:.4} over {tokens} tokens ({windows} windows of {context})"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uniform_model_has_the_perplexity_of_its_vocabulary() {
        let logprobs = vec![-(50.0f32.ln()); 100];
        let result = Perplexity::of(&logprobs, 1, 200);
        assert!((result.perplexity - 50.0).abs() < 1e-4, "{result:?}");
        assert!(result.stderr < 1e-2, "{result:?}");
    }

    #[test]
    fn every_window_begins_as_a_text_does() {
        let ids = [7, 1, 2, 3, 4, 5, 6, 8, 9, 10];
        assert_eq!(
            windows(&ids, 4, Some(7)),
            [vec![7, 1, 2, 3], vec![7, 5, 6, 8]]
        );
        assert_eq!(windows(&ids, 5, None)[1], [5, 6, 8, 9, 10]);
    }

    #[test]
    fn of_512_positions_257_to_511_are_scored() {
        let logprobs: Vec<_> = (0..512).map(|n| (n > 0).then_some(-(n as f32))).collect();
        let scored = second_half(&logprobs).expect("all but the first have one");
        assert_eq!(
            (scored.len(), scored[0], scored[254]),
            (255, -257.0, -511.0)
        );
    }
}
