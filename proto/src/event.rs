//! What happens in a run, in the crate's own types: events, log frames, and how far each side has them.

use serde::{Deserialize, Serialize};

use crate::ids::{Address, PlanHash, RunId};

/// One numbered event of a run. The events of a run are contiguous from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEvent {
    /// The run.
    pub run: RunId,
    /// Position in the run, from 1.
    pub seq: u64,
    /// Time on the host, nanoseconds since the Unix epoch.
    pub time_ns: i64,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The agent has the plan on disk.
    Accepted {
        /// Which plan.
        plan: PlanHash,
        /// How many resources it has.
        resources: u32,
    },
    /// An attempt at a resource began with an observation.
    ResourceStarted {
        /// The resource.
        address: Address,
        /// From 1.
        attempt: u32,
    },
    /// On disk before the step acts.
    StepStarted {
        /// Which step.
        step: StepId,
        /// One redacted line for people.
        summary: String,
    },
    /// The step has acted.
    StepFinished {
        /// Which step.
        step: StepId,
        /// How it ended.
        end: StepEnd,
        /// How many log frames it has in all.
        frames: u64,
    },
    /// The attempt is over.
    ResourceFinished {
        /// The resource.
        address: Address,
        /// From 1.
        attempt: u32,
        /// How it ended.
        outcome: Outcome,
        /// One redacted line for people.
        message: String,
        /// Redacted unified diff; empty where there is none.
        diff: String,
        /// Nanoseconds.
        duration_ns: u64,
        /// In a check: digest of what was observed and would be done. Empty where nothing can be observed
        /// before something else is applied.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        seen: String,
    },
    /// It waits for the controller or a secret; what does not need it has gone on.
    Parked {
        /// One line for people.
        why: String,
    },
    /// It goes on.
    Unparked,
    /// The last event of a run.
    Finished {
        /// A final state.
        state: RunState,
        /// One redacted line for people.
        message: String,
    },
}

/// What the summary of a step begins with that only waits for another program: nothing is changed by it.
pub const WAITS_FOR: &str = "waits for ";

/// Names a step within a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StepId {
    /// The resource.
    pub address: Address,
    /// From 1.
    pub attempt: u32,
    /// From 0 within the attempt.
    pub step: u32,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepEnd {
    /// It did what it was to do. A step that runs no process ends so.
    Done,
    /// A process ended by exit.
    Exit(i32),
    /// A process was ended by a signal.
    Signal(i32),
    /// It failed: what was being done, to what, why.
    Error(String),
}

/// How an attempt at a resource ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// In the declared state before; nothing was done.
    Unchanged,
    /// Changed, and the effective state was then observed.
    Changed,
    /// Failed.
    Failed,
    /// Not reached.
    Skipped,
    /// Cut off and not repeatable.
    Interrupted,
    /// Check mode: a change is needed.
    WouldChange,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Written down by the controller, not yet accepted by the agent.
    Queued,
    /// Accepted.
    Running,
    /// Waits for the link or a secret.
    Parked,
    /// Every resource is in its declared state.
    Ok,
    /// A resource failed.
    Failed,
    /// Ended by an operator.
    Cancelled,
    /// Ended because something not repeatable was cut off.
    Interrupted,
    /// The agent would not take it.
    Refused,
    /// Not accepted within its time to live.
    Expired,
}

impl RunState {
    /// True for a state that a run never leaves.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running | Self::Parked)
    }

    /// The word in logs, tables and the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Parked => "parked",
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
            Self::Refused => "refused",
            Self::Expired => "expired",
        }
    }

    /// Every state, in the order of a run's life.
    pub const ALL: [Self; 9] = [
        Self::Queued,
        Self::Running,
        Self::Parked,
        Self::Ok,
        Self::Failed,
        Self::Cancelled,
        Self::Interrupted,
        Self::Refused,
        Self::Expired,
    ];

    /// The state with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// Which output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFrame {
    /// The run.
    pub run: RunId,
    /// The step.
    pub step: StepId,
    /// Counts the step's frames from 0 over both streams.
    pub frame_no: u64,
    /// Which output.
    pub stream: Stream,
    /// Bytes of this stream before this frame, dropped ones included.
    pub offset: u64,
    /// Time on the host, nanoseconds since the Unix epoch.
    pub time_ns: i64,
    /// What was written, or what was dropped.
    pub body: LogBody,
}

/// What a log frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogBody {
    /// At most [`crate::MAX_FRAME_BYTES`] of output, redacted.
    Data(Vec<u8>),
    /// Bytes had to be dropped here.
    Truncated {
        /// How many.
        bytes: u64,
        /// SHA-256 of what was dropped.
        sha256: [u8; 32],
    },
}

impl LogBody {
    /// How far the stream's offset moves on.
    #[must_use]
    pub fn stream_bytes(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Truncated { bytes, .. } => *bytes,
        }
    }
}

/// What one side has of one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunOffset {
    /// The run.
    pub run: RunId,
    /// The last event there is, or the last one committed.
    pub event_seq: u64,
    /// For each step with output: the next frame.
    pub logs: Vec<(StepId, u64)>,
}
