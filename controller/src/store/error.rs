//! Why the store does not open, and why an operation did not happen.

use std::path::PathBuf;
use std::sync::Arc;

use postern_proto::ids::RunId;

/// Why the database does not open.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is a state, but not its database.
    #[error("the database is missing: {0} is not there; restore it from a backup")]
    Missing(PathBuf),
    /// It is there and cannot be used.
    #[error("the database {path} is corrupt: {why}; restore it from a backup")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A newer version wrote it.
    #[error("the database {path} has schema {found}, this version knows {known}: use a newer postern")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: i64,
        /// The newest schema of this build.
        known: i64,
    },
    /// It belongs to another certificate authority.
    #[error(
        "the database {path} and the certificate authority beside it are not of the same controller: \
         restore both from one backup"
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
    },
    /// SQLite would not.
    #[error("{action} {path}")]
    Database {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: rusqlite::Error,
    },
    /// The disk would not.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// Why an operation did not happen. Nothing of it was written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpError {
    /// SQLite would not.
    #[error("{action} in the database")]
    Database {
        /// What was being done.
        action: &'static str,
        /// Why it failed; shared by all that were in the same transaction.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// Something in the database is not what was written there.
    #[error("the database is corrupt: {0}")]
    Corrupt(String),
    /// The store is shut down.
    #[error("the store is closed")]
    Closed,
    /// The store is too far behind.
    #[error("the store did not get to {0} in time")]
    Busy(&'static str),
    /// No host has this id or name.
    #[error("there is no host {0:?}")]
    NoSuchHost(String),
    /// More than one host is meant.
    #[error("there is already a host named {0:?}")]
    NameTaken(String),
    /// No run has this id.
    #[error("there is no run {0}")]
    NoSuchRun(RunId),
    /// The session that writes is not the host's owner any more.
    #[error("the session was replaced by a newer one")]
    Fenced,
    /// A run of another host.
    #[error("run {0} is not of this host")]
    OtherHost(RunId),
    /// What is to be written does not continue what is there.
    #[error("run {run}: {what} does not continue what is recorded")]
    Gap {
        /// The run.
        run: RunId,
        /// Event or frame.
        what: &'static str,
    },
    /// The host has too much to do already.
    #[error("{0} runs of this host wait or go on already")]
    TooManyRuns(u32),
    /// The host is not to be given work.
    #[error("the host is quarantined: {0}")]
    Quarantined(String),
}
