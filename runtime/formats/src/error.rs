//! What is wrong with a model file, said so that a person can act on it.

use std::fmt;
use std::path::{Path, PathBuf};

/// A model file that cannot be used. Always the file's fault or the path's, never the caller's.
#[derive(Debug)]
pub struct FormatError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong.
#[derive(Debug)]
pub enum Problem {
    /// The operating system refused.
    Io {
        /// What was tried: "open", "read the header".
        action: String,
        /// Its answer.
        error: std::io::Error,
    },
    /// A field does not hold what it must.
    Field {
        /// Which: a metadata key, a tensor, a part of the header.
        field: String,
        /// What stands there.
        found: String,
        /// What would be right.
        expected: String,
        /// What to do; empty if the file is simply broken.
        fix: String,
    },
}

/// A result whose error still lacks the file's name.
pub(crate) type Checked<T> = Result<T, Problem>;

impl Problem {
    pub(crate) fn field(
        field: impl Into<String>,
        found: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Self {
        Self::Field {
            field: field.into(),
            found: found.to_string(),
            expected: expected.to_string(),
            fix: String::new(),
        }
    }

    /// Adds what to do about it.
    pub(crate) fn fix(mut self, text: impl Into<String>) -> Self {
        if let Self::Field { fix, .. } = &mut self {
            *fix = text.into();
        }
        self
    }

    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |error| Self::Io { action, error }
    }

    pub(crate) fn at(self, file: &Path) -> FormatError {
        FormatError {
            file: file.to_owned(),
            problem: self,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { action, error } => write!(f, "cannot {action}: {error}"),
            Self::Field {
                field,
                found,
                expected,
                fix,
            } => {
                write!(f, "{field}: found {found}, expected {expected}")?;
                if !fix.is_empty() {
                    write!(f, "; {fix}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}': {}", self.file.display(), self.problem)
    }
}

/// Without a source: what the operating system says is part of the text already.
impl std::error::Error for FormatError {}

/// Text of a file as it may be shown: escaped and cut, since a broken file can hold anything.
pub(crate) fn shown(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut out: String = text
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    format!("'{out}'")
}
