//! What can go wrong before and around a run. How a run itself ended is a [`crate::Verdict`], not an error.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why something could not be built, packed or booted.
#[derive(Debug)]
pub enum Error {
    /// A program is not installed.
    MissingTool(String),
    /// A file that an installed package should bring is not there.
    MissingFile(PathBuf),
    /// Reading or writing a file failed.
    Io {
        /// What was being done, as in "read".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A program ended badly.
    Program {
        /// Its name, or what it was to make.
        what: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed, or empty if that went to the terminal.
        output: String,
    },
    /// Something the user asked for is wrong.
    Asked {
        /// The word the user gave.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// An [`Error::Asked`].
    pub fn asked(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Asked {
            what: what.into(),
            reason: reason.into(),
        }
    }

    /// Wraps an I/O error with what was done to which file.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io {
            doing,
            path: path.to_owned(),
            error,
        }
    }

    /// The error of a program that could not be started.
    pub fn start(program: &str) -> impl FnOnce(io::Error) -> Self {
        move |error| match error.kind() {
            io::ErrorKind::NotFound => Self::MissingTool(program.to_owned()),
            _ => Self::Io {
                doing: "start",
                path: program.into(),
                error,
            },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingTool(tool) => {
                write!(f, "{tool} is not installed: run `make setup`")
            }
            Self::MissingFile(path) => {
                write!(f, "{} is not there: run `make setup`", path.display())
            }
            Self::Io { doing, path, error } => {
                write!(f, "cannot {doing} {}: {error}", path.display())
            }
            Self::Program {
                what,
                status,
                output,
            } => {
                write!(f, "{what}: {status}")?;
                if output.is_empty() {
                    Ok(())
                } else {
                    write!(f, "\n{output}")
                }
            }
            Self::Asked { what, reason } => write!(f, "{what}: {reason}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}
