//! A chat in the terminal, with history.

use super::{message, speak};
use crate::cli::RunArgs;
use crate::error::{Failure, Result};
use crate::startup::Session;
use anyhow::anyhow;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::Write;

const HELP: &str = "\
/system TEXT   begin anew with this system message
/clear         begin anew
/undo          take the last question and its answer back
/plan          show why this machine runs the model the way it does
/exit          leave (so does Ctrl-D)";

/// Asks and answers until the user leaves.
pub(super) fn converse(session: &Session, args: &RunArgs, out: &mut dyn Write) -> Result<()> {
    if args.raw || !session.can_chat() {
        let why = if args.raw {
            "--raw continues a prompt"
        } else {
            "the model has no chat template"
        };
        return Err(Failure::Input(anyhow!(
            "there is no chat without a prompt: {why}; give the prompt after the model"
        )));
    }
    let system = |text: Option<&str>| {
        text.map(|text| message("system", text))
            .into_iter()
            .collect::<Vec<_>>()
    };
    let mut messages = system(args.system.as_deref());
    let mut editor = DefaultEditor::new().map_err(Failure::failed)?;
    eprintln!("/help lists what can be typed besides questions");
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line.trim().to_owned(),
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(Failure::failed(error)),
        };
        if line.is_empty() {
            continue;
        }
        // A line that the history does not take is still a line.
        let _ = editor.add_history_entry(&line);
        match line
            .split_once(' ')
            .map_or((line.as_str(), ""), |(verb, rest)| (verb, rest.trim()))
        {
            ("/exit" | "/quit", _) => return Ok(()),
            ("/help", _) => eprintln!("{HELP}"),
            ("/clear", _) => messages = system(args.system.as_deref()),
            ("/system", text) => messages = system((!text.is_empty()).then_some(text)),
            ("/undo", _) => undo(&mut messages),
            ("/plan", _) => write!(out, "{}", plinth_platform::render::plan(&session.plan))?,
            (verb, _) if verb.starts_with('/') => {
                eprintln!("there is no {verb}: /help lists what there is")
            }
            _ => {
                messages.push(message("user", &line));
                let answered = session.encode_chat(&messages).map_err(Failure::Input);
                match answered.and_then(|prompt| speak(session, &args.sampling, prompt, out)) {
                    Ok(spoken) => {
                        writeln!(out)?;
                        messages.push(message("assistant", &spoken.text));
                        if !args.quiet {
                            eprintln!("{}", spoken.line(&session.plan));
                        }
                    }
                    // The chat may be too long by now: it is the user's to shorten.
                    Err(Failure::Input(error)) => {
                        undo(&mut messages);
                        eprintln!("error: {error:#}");
                    }
                    Err(failure) => return Err(failure),
                }
            }
        }
    }
}

fn undo(messages: &mut Vec<plinth_text::Message>) {
    while let Some(last) = messages.pop() {
        match last.role.as_str() {
            "user" => return,
            "system" => return messages.push(last),
            _ => {}
        }
    }
}
