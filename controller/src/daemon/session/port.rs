//! What goes into a session and what comes out of it.

use std::time::Duration;

use postern_proto::ids::{ClusterId, HostId, InstanceId, RunId, SecretRef, SessionId};

use crate::ca::KeyHash;
use crate::daemon::kinds::Kinds;
use crate::daemon::wire::{AgentFrame, ControllerFrame, Reason};
use crate::store::{Batch, Dispatch, OpError, OpenRefusal, OpenRequest, Opened, Revealed};

/// Now, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// Only ever goes forward.
    pub(crate) mono: Duration,
    /// Milliseconds since the Unix epoch.
    pub(crate) unix_ms: i64,
}

/// What the connection has proved, and what the session may count on.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) host: HostId,
    pub(crate) key: KeyHash,
    pub(crate) not_before_ms: i64,
    pub(crate) not_after_ms: i64,
    pub(crate) cluster: ClusterId,
    pub(crate) session: SessionId,
    pub(crate) quiet: Duration,
}

/// What happens to a session.
#[derive(Debug)]
pub(crate) enum Input {
    /// From the agent.
    Frame(AgentFrame),
    /// From the agent, and not to be understood.
    Malformed(String),
    /// The agent or the network ended the stream.
    Gone,
    /// Nothing more has arrived for the moment.
    Drained,
    /// The answer to [`Effect::Claim`].
    Claimed(Result<(), ClaimError>),
    /// The answer to [`Effect::Open`].
    Opened(Result<Result<Opened, OpenRefusal>, OpError>),
    /// The answer to [`Effect::Append`].
    Committed(Result<(), OpError>),
    /// The answer to [`Effect::Refuse`].
    Refused(RunId, Result<(), OpError>),
    /// The answer to [`Effect::Reveal`].
    Revealed(RunId, Result<Vec<Revealed>, OpError>),
    /// To be sent.
    Dispatch(Dispatch),
    /// To be told to stop.
    Cancel(RunId),
    /// The host is to be left.
    Leave,
    /// Does it answer?
    Probe,
    /// The agent is to come back as a new process.
    Restart,
    /// It is to end.
    Close(Reason, String),
    /// The deadline has come.
    Tick,
}

/// Why a host could not be claimed for this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClaimError {
    /// Another instance lives with the same identity.
    Clone,
    /// Too many at once.
    Shed,
}

/// What the driver is to do.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Make this session the host's only one, of an agent that knows these kinds; answered by [`Input::Claimed`].
    Claim(InstanceId, Kinds),
    /// Ask the store; answered by [`Input::Opened`].
    Open(Box<OpenRequest>),
    /// The session is up.
    Up { name: String },
    /// For the log: runs that the agent has and that are not on record. They stay there and are not sent.
    UnknownRuns(Vec<RunId>),
    /// Write down; answered by [`Input::Committed`].
    Append(Batch),
    /// Write down; answered by [`Input::Refused`].
    Refuse { run: RunId, epoch: u64, message: String },
    /// Ask the store for the values of secrets; answered by [`Input::Revealed`].
    Reveal { run: RunId, epoch: u64, secrets: Vec<SecretRef> },
    /// For the log: secrets that the agent asked for and does not get.
    Withheld { run: RunId, secrets: Vec<SecretRef>, why: String },
    /// To the agent.
    Send(ControllerFrame),
    /// Wake who follows these.
    Changed(Vec<RunId>),
    /// It answers.
    ProbeAnswered,
    /// The agent has left the host.
    Left(Vec<String>),
    /// End the stream. The reason is for the log.
    End(String),
}
