//! The types at the engine's border.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postern_proto::event::{LogFrame, RunEvent, RunOffset};
use postern_proto::ids::{BootId, PlanHash, RunId, SecretRef};
use postern_proto::plan::Terms;
pub use postern_proto::text::MAX_SECRET_BYTES;
use zeroize::Zeroizing;

use crate::guard::Vantage;
use crate::sys::Sys;

/// What an engine needs to know.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Where journal, spools and backups live; made with 0700 when it is not there.
    pub state_dir: PathBuf,
    /// This boot of the host.
    pub boot_id: BootId,
    /// How a supervisor is started.
    pub supervisor: SupervisorCommand,
    /// The host that is worked on.
    pub sys: Sys,
    /// Bounds.
    pub limits: Limits,
    /// Who looks at the host from outside. Without one, nothing is done that could cut the host off.
    pub vantage: Option<Arc<dyn Vantage>>,
}

impl EngineConfig {
    /// For the host itself, with the default limits.
    #[must_use]
    pub fn new(state_dir: PathBuf, boot_id: BootId, supervisor: SupervisorCommand) -> Self {
        Self { state_dir, boot_id, supervisor, sys: Sys::host(), limits: Limits::default(), vantage: None }
    }
}

/// How `postern-agent supervise` is started.
#[derive(Clone, Debug)]
pub struct SupervisorCommand {
    /// The program, absolute.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

impl SupervisorCommand {
    /// This binary as a supervisor.
    #[must_use]
    pub fn of(program: PathBuf) -> Self {
        Self { program, args: vec!["supervise".to_owned()] }
    }
}

/// Bounds on what the engine holds and does at once.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Runs that wait for their turn.
    pub queued_runs: usize,
    /// Single commands that run beside a longer plan and beside each other.
    pub parallel_commands: usize,
    /// Runs that are kept because the controller has not acked them all.
    pub kept_runs: usize,
    /// Output of one step on disk, bytes; the middle of what is more is dropped and marked.
    pub spool_bytes: u64,
    /// What is kept for an undo, bytes over all runs.
    pub backup_bytes: u64,
    /// How long a step waits for a lock of somebody else's (T11).
    pub lock_wait: Duration,
    /// How long the host may take to go down for a restart.
    pub reboot_wait: Duration,
    /// Resources that are looked at at once while nothing was changed yet; 1 looks at each in its turn.
    pub look_ahead: usize,
    /// After so much waiting for the controller a run says that it is parked.
    pub park_after: Duration,
    /// How long a change that could cut the host off has to be confirmed.
    pub guard_window: Duration,
    /// Log bytes of one run on their way without being acked.
    pub run_window: usize,
    /// Log bytes of all runs on their way without being acked.
    pub agent_window: usize,
    /// The journal grows in steps of this many bytes.
    pub journal_chunk: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queued_runs: 64,
            parallel_commands: 16,
            kept_runs: 4096,
            spool_bytes: 64 << 20,
            backup_bytes: 256 << 20,
            lock_wait: Duration::from_secs(900),
            reboot_wait: Duration::from_secs(600),
            look_ahead: 8,
            park_after: Duration::from_secs(2),
            guard_window: Duration::from_secs(60),
            run_window: postern_proto::RUN_WINDOW_BYTES,
            agent_window: postern_proto::AGENT_WINDOW_BYTES,
            journal_chunk: 1 << 20,
        }
    }
}

/// Why the engine's state cannot be opened. Missing, corrupt and too new are three different answers.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state directory was in use, and its journal is gone: not a first start.
    #[error("the journal {path} is missing although this agent has worked here before; restore it, or enrol the host anew", path = path.display())]
    Missing {
        /// The journal.
        path: PathBuf,
    },
    /// The journal is there and damaged.
    #[error("the journal {path} is damaged at byte {offset}: {what}", path = path.display())]
    Corrupt {
        /// The journal.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// How.
        what: String,
    },
    /// The journal was written by a newer agent.
    #[error("the journal {path} has format {found}, this agent knows up to {known}: run the newer agent", path = path.display())]
    TooNew {
        /// The journal.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format this build knows.
        known: u32,
    },
    /// Another agent has this state directory open.
    #[error("another agent is using {path}", path = path.display())]
    InUse {
        /// The state directory.
        path: PathBuf,
    },
    /// The disk.
    #[error("cannot {doing} {path}", path = path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// Why the engine has ended by itself.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// The journal can no longer be written: no work is taken.
    #[error("the journal can no longer be written, so no work is taken: {0}")]
    Journal(String),
    /// A run broke off inside this program; a new start takes it up from the journal.
    #[error("a run broke off inside the agent: {0}")]
    Broken(String),
}

/// A plan to be taken.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// Per host, from 1, never reused.
    pub seq: u64,
    /// The run.
    pub run: RunId,
    /// The exact bytes of the plan.
    pub plan: Bytes,
    /// What the controller says their SHA-256 is.
    pub hash: PlanHash,
    /// The owner epoch of the session.
    pub epoch: u64,
    /// How it is to be executed.
    pub terms: Terms,
    /// Its time to live is over.
    pub expired: bool,
}

/// Why a plan is not taken. The number of a refused dispatch stays free: sent again, it is judged again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Which reason of the wire.
    pub reason: RefusalReason,
    /// For people.
    pub message: String,
}

/// The reasons of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The bytes do not have the hash.
    BadHash,
    /// Not a valid plan.
    Malformed,
    /// A kind this agent lacks.
    UnknownKind,
    /// A schema version this agent lacks.
    UnknownSchema,
    /// Sent by a controller that no longer owns this host.
    StaleEpoch,
    /// Its time to live is over.
    Expired,
    /// The journal has no room for it, or can no longer be written.
    NoRoom,
    /// Too much is waiting already.
    Busy,
    /// The run id names another plan.
    RunIdReused,
}

/// What this agent has, for `Hello`.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Every run that is not wholly acked.
    pub runs: Vec<RunOffset>,
    /// Every dispatch up to here was taken.
    pub dispatch_floor: u64,
    /// Those above it that were taken too.
    pub dispatches_above: Vec<u64>,
    /// The highest owner epoch seen.
    pub epoch: u64,
    /// Runs that are not over.
    pub unfinished: u32,
}

/// One thing to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// An event; durable here.
    Event(RunEvent),
    /// Output; durable here.
    Log(LogFrame),
    /// A run needs the values of these; [`super::Engine::secrets`] takes them.
    SecretsWanted {
        /// The run.
        run: RunId,
        /// What it lacks.
        secrets: Vec<SecretRef>,
    },
}

/// The value of a secret: wiped when the last copy goes, and not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Arc<Zeroizing<String>>);

impl SecretText {
    /// Takes the text over.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Arc::new(Zeroizing::new(text)))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText")
    }
}

/// What the controller says about one secret of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretAnswer {
    /// Which.
    pub secret: SecretRef,
    /// Its value, or why there is none.
    pub value: Result<SecretText, NoSecret>,
}

/// Why there is no value of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoSecret {
    /// There will be none in this run; why, for people.
    Never(String),
    /// It may be asked for again.
    NotNow {
        /// Why, for people.
        why: String,
        /// When, from now on, by the controller's word.
        after: Duration,
    },
}
