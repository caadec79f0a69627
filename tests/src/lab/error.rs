//! What can go wrong in the lab; each error says what was being done, to what, and why it failed.
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::requirements::Missing;

/// The lab's result.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

/// An error of the lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The machine lacks something; nothing was changed.
    #[error("the lab cannot run here: {}", list(.0))]
    Missing(Vec<Missing>),
    /// A file operation failed.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// The operation, as a verb.
        doing: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot start `{argv}`")]
    Start {
        /// The whole command line.
        argv: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A program ended with an error.
    #[error("`{argv}` ended with {status}{}", tail(.output))]
    Failed {
        /// The whole command line.
        argv: String,
        /// Its exit status, in words.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
    /// Something did not happen in time.
    #[error("{what}: not within {after:?}{}", tail(.detail))]
    Deadline {
        /// What was awaited.
        what: String,
        /// How long.
        after: Duration,
        /// What was seen instead, when something was.
        detail: String,
    },
    /// A file of the lab's own state does not say what it should.
    #[error("{} is not a state file of this lab (destroy the host by hand, or remove the file)", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A request that cannot be met.
    #[error("{0}")]
    Invalid(String),
}

impl LabError {
    pub(super) fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> LabError {
        let path = path.as_ref().to_path_buf();
        move |source| LabError::Io { doing, path, source }
    }
}

fn list(missing: &[Missing]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn tail(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        return String::new();
    }
    let from = text.char_indices().rev().nth(1500).map_or(0, |(at, _)| at);
    format!(": {}", &text[from..])
}
