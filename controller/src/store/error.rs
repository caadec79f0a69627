//! Why the store does not open, and why an operation did not happen.

use std::path::PathBuf;
use std::sync::Arc;

use postern_proto::ids::RunId;

use crate::seal::KeyError;

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
    /// What is encrypted in it is encrypted with another key.
    #[error(transparent)]
    Key(#[from] KeyError),
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
    /// More of something on a host than there may be.
    #[error("a host has at most {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// The host has no such profile assigned.
    #[error("{host} has no assigned profile {profile:?}")]
    NotAssigned {
        /// The host's name.
        host: String,
        /// The profile's name.
        profile: String,
    },
    /// What a plan refers to and is not there.
    #[error(
        "the plan refers to secrets that this controller does not have: {}; set them with postern secret set",
        .0.join(", ")
    )]
    NoSuchSecrets(Vec<String>),
    /// No secret has this name.
    #[error("there is no secret {0:?}")]
    NoSuchSecret(String),
    /// A run that is not over needs it.
    #[error("secret {name:?} is needed by runs that are not over: {}", .runs.join(", "))]
    SecretInUse {
        /// The secret.
        name: String,
        /// The runs, each with its host.
        runs: Vec<String>,
    },
    /// It cannot be resumed or taken back.
    #[error("run {run} {why}")]
    NotAgain {
        /// The run.
        run: RunId,
        /// Why, for people.
        why: &'static str,
    },
    /// The plan lets SSH in.
    #[error(
        "the port of SSH of {0} is closed, and this plan would let SSH in: it was made before that; make it again, or \
         open the port with `postern ssh-port open {0}`"
    )]
    SshPortClosed(String),
    /// The undo would take back what was done to a firewall that let SSH in.
    #[error(
        "the port of SSH of {0} is closed, and what this undo would take back was done to the firewall while it was \
         open: open it with `postern ssh-port open {0}`, undo, and close it again; nothing was changed"
    )]
    SshPortClosedSince(String),
    /// The undo would take back what was done to a firewall that kept SSH out.
    #[error(
        "the port of SSH of {0} is open, and what this undo would take back was done to the firewall while it was \
         closed: close it with `postern ssh-port close {0}`, undo, and open it again; nothing was changed"
    )]
    SshPortOpenSince(String),
    /// Another run is about to open or close it.
    #[error(
        "run {run} is about to change the port of SSH of {host}, and is not over: wait for it, or cancel it"
    )]
    SshPortChanges {
        /// The host's name.
        host: String,
        /// That run.
        run: RunId,
    },
    /// The host is not to be given work.
    #[error("the host is quarantined: {0}")]
    Quarantined(String),
}
