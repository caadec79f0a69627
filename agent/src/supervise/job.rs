//! What a supervisor is told to do, and what it says about it in the spool's first page.

use std::path::PathBuf;

use postern_proto::event::{StepEnd, Stream};
use serde::{Deserialize, Serialize};

/// One process to run, as JSON on the supervisor's stdin. It may hold secrets, so it is not printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The spool, which must not exist: its creation is what makes a job start at most once.
    pub spool: PathBuf,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the supervisor's own clean environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Whom it runs as; root when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<JobUser>,
    /// What the process reads; nothing when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Milliseconds until TERM.
    pub timeout_ms: u64,
    /// Milliseconds from TERM to KILL.
    pub kill_after_ms: u64,
    /// Milliseconds of quiet after its end that show whether anything else still writes.
    pub linger_ms: u64,
    /// Bytes of output that the spool takes; the middle of what is more is dropped and marked.
    pub spool_bytes: u64,
    /// Values that must not reach the disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redact: Vec<String>,
}

/// An account, resolved by the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobUser {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Home directory.
    pub home: String,
}

/// Who runs the job. In the spool before the process is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The supervisor.
    pub pid: u32,
    /// Its start, in clock ticks since boot: a pid alone is used again.
    pub start_ticks: u64,
}

/// How the job ended. In the spool's first page, whose block is there from the beginning, so that a full disk
/// cannot swallow it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// How the process ended.
    pub end: StepEnd,
    /// Frames in the spool.
    pub frames: u64,
    /// Output that could not be written at all, after the last frame.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Lost>,
    /// It was told to end by SIGTERM to its supervisor.
    #[serde(default)]
    pub cancelled: bool,
    /// What else there is to say; empty when nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Nanoseconds since the Unix epoch.
    pub time_ns: i64,
}

impl Exit {
    /// Frames in all, with those that stand for lost output.
    #[must_use]
    pub fn total_frames(&self) -> u64 {
        self.frames + self.lost.len() as u64
    }
}

/// Output that found no room on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Which output.
    pub stream: Stream,
    /// Where in it.
    pub offset: u64,
    /// How much.
    pub bytes: u64,
    /// SHA-256 of it, hex.
    pub sha256: String,
}
