//! How a command ends when it does not end well: whose fault it was, and the exit code that tells a script.

use std::fmt;
use std::process::ExitCode;

/// A command's result.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command ended early.
#[derive(Debug)]
pub enum Failure {
    /// What the user gave is wrong: a flag, a file, a line of a batch. Exit code 2.
    Input(anyhow::Error),
    /// The plan was refused: a wish that cannot be had, a model that does not fit. Exit code 3.
    Refused(anyhow::Error),
    /// It went wrong while running. Exit code 1.
    Failed(anyhow::Error),
    /// The reader of our output went away (`| head`): nothing to say. Exit code 0.
    OutputClosed,
}

impl Failure {
    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::OutputClosed => ExitCode::SUCCESS,
            Self::Failed(_) => ExitCode::from(1),
            Self::Input(_) => ExitCode::from(2),
            Self::Refused(_) => ExitCode::from(3),
        }
    }

    /// Blames what the user gave.
    pub fn input(error: impl Into<anyhow::Error>) -> Self {
        Self::Input(error.into())
    }

    /// Blames a wish that cannot be had.
    pub fn refused(error: impl Into<anyhow::Error>) -> Self {
        Self::Refused(error.into())
    }

    /// Blames the run.
    pub fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self::Failed(error.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(error) | Self::Refused(error) | Self::Failed(error) => {
                write!(f, "{error:#}")
            }
            Self::OutputClosed => Ok(()),
        }
    }
}

/// Writing to standard output failed: closed by the reader, or worse.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Failed(error.into()),
        }
    }
}
