//! The `plinth` command.

#![forbid(unsafe_code)]

use clap::Parser;
use plinth::cli::Cli;
use plinth::error::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    match plinth::commands::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::OutputClosed) {
                eprintln!("error: {failure}");
            }
            failure.exit_code()
        }
    }
}
