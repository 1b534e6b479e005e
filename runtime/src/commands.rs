//! The verbs.

mod batch;
mod bench;
mod calibrate;
mod convert;
mod doctor;
mod facts;
mod perplexity;
pub(crate) mod plan;
mod plugin;
mod run;
mod synthetic;
mod tokenize;

use crate::cli::{Cli, Command};
use crate::error::Result;
use clap::CommandFactory;
use std::io::Write;

/// Does what the user wrote.
///
/// # Errors
/// Why it could not be done, by whose fault.
pub fn run(cli: Cli) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match cli.command {
        Command::Run(args) => run::run(&args, &mut out),
        Command::Batch(args) => batch::run(&args, &mut out),
        Command::Plan(args) => plan::run(&args, &mut out),
        Command::Facts(args) => facts::run(&args, &mut out),
        Command::Doctor(args) => doctor::run(&args, &mut out),
        Command::Tokenize(args) => tokenize::tokenize(&args, &mut out),
        Command::Detokenize(args) => tokenize::detokenize(&args, &mut out),
        Command::Perplexity(args) => perplexity::run(&args, &mut out),
        Command::Bench(args) => bench::run(&args, &mut out),
        Command::Calibrate(args) => calibrate::run(&args, &mut out),
        Command::Convert(args) => convert::run(&args),
        Command::Synthetic(args) => synthetic::run(&args),
        Command::Plugin(args) => plugin::run(&args, &mut out),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "plinth", &mut script);
            Ok(out.write_all(&script)?)
        }
    }
}
