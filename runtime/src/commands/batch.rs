//! `plinth batch`: one request a line in, one result a line out, in order, all scheduled together.

mod request;
mod result;

use crate::answer::{Answer, Collector};
use crate::cli::BatchArgs;
use crate::error::{Failure, Result};
use crate::progress::Progress;
use crate::startup::{self, Session};
use anyhow::Context;
use request::{BatchRequest, Prompt};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

/// Runs the command. A wrong line is answered in its place and does not stop the others.
pub fn run(args: &BatchArgs, out: &mut dyn Write) -> Result<()> {
    let lines = read_lines(&args.file).map_err(Failure::Input)?;
    let mut session = startup::start(&args.model, &args.engine, true)?;
    session.tell_packed(false);
    session.trust_content = args.trust_content;
    let answers: Vec<_> = lines
        .iter()
        .map(|(number, line)| Line::submit(&session, *number, line))
        .collect();
    match &args.output {
        None => write_results(answers, out),
        Some(path) => {
            let shown = path.display();
            let file = File::create(path)
                .with_context(|| format!("cannot write '{shown}'"))
                .map_err(Failure::Input)?;
            let mut file = BufWriter::new(file);
            write_results(answers, &mut file)?;
            Ok(file.flush()?)
        }
    }
}

/// A line on its way: accepted and running, or wrong.
struct Line {
    number: usize,
    id: Option<serde_json::Value>,
    outcome: anyhow::Result<Collector>,
}

impl Line {
    fn submit(session: &Session, number: usize, line: &str) -> Self {
        match BatchRequest::parse(line) {
            Err(error) => Self {
                number,
                id: id_of(line),
                outcome: Err(error),
            },
            Ok(mut request) => {
                let id = request.id.take();
                Self {
                    number,
                    id,
                    outcome: submit(session, request),
                }
            }
        }
    }

    fn finish(self) -> (usize, Option<serde_json::Value>, anyhow::Result<Answer>) {
        (
            self.number,
            self.id,
            self.outcome.and_then(Collector::finish),
        )
    }
}

/// The id of a line that is JSON but not a request, so that its error can be matched to it.
fn id_of(line: &str) -> Option<serde_json::Value> {
    serde_json::from_str::<serde_json::Value>(line)
        .ok()?
        .get("id")
        .cloned()
}

fn submit(session: &Session, mut request: BatchRequest) -> anyhow::Result<Collector> {
    let prompt = match request.take_prompt()? {
        Prompt::Ids(ids) => ids,
        Prompt::Text(text) => session.encode_raw(&text),
        Prompt::Messages(messages) => session.encode_chat(&messages)?,
    };
    let sampling = request.sampling(session.text.eog_ids(), session.room(prompt.len()))?;
    session.submit(prompt, sampling, request.stop_texts())
}

fn read_lines(path: &Path) -> anyhow::Result<Vec<(usize, String)>> {
    let shown = path.display();
    let reader: Box<dyn BufRead> = if path.as_os_str() == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(BufReader::new(
            File::open(path).with_context(|| format!("cannot read '{shown}'"))?,
        ))
    };
    let mut lines = Vec::new();
    for (n, line) in reader.split(b'\n').enumerate() {
        let line = line.with_context(|| format!("cannot read '{shown}'"))?;
        // A line that is not UTF-8 is wrong as a request, which is found and said where it is parsed.
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        if !line.is_empty() {
            lines.push((n + 1, line));
        }
    }
    Ok(lines)
}

fn write_results(lines: Vec<Line>, out: &mut dyn Write) -> Result<()> {
    let total = lines.len() as u64;
    let progress = Progress::count("requests", false);
    let mut wrong = Vec::new();
    for (done, line) in lines.into_iter().enumerate() {
        progress.set(done as u64, total);
        let (number, id, answer) = line.finish();
        match answer {
            Ok(answer) => result::write_answer(out, id, &answer)?,
            Err(error) => {
                let message = format!("{error:#}");
                result::write_error(out, id, number, &message)?;
                wrong.push(format!("line {number}: {message}"));
            }
        }
        out.flush()?;
    }
    drop(progress);
    if wrong.is_empty() {
        return Ok(());
    }
    let shown = wrong
        .iter()
        .take(10)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n  ");
    let more = if wrong.len() > 10 { "\n  …" } else { "" };
    Err(Failure::Input(anyhow::anyhow!(
        "{} of {total} requests failed:\n  {shown}{more}",
        wrong.len()
    )))
}
