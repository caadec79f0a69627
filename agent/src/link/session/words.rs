//! What the session hears and what it asks for.

use postern_proto::event::RunOffset;
use postern_proto::ids::RunId;

use crate::engine::{Dispatch, Refusal, SecretAnswer};
use crate::link::wire::{FromController, ToController};

/// Names one connection of this process; never reused.
pub type ConnId = u64;

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The process is ready.
    Start,
    /// The time given by [`super::Session::wake_at`] has come.
    Tick,
    /// The connection is there.
    Dialled(ConnId),
    /// It is not, and why.
    DialFailed {
        /// Which.
        conn: ConnId,
        /// For people.
        why: String,
        /// The controller did not take this agent's certificate.
        certificate_refused: bool,
    },
    /// The controller said something.
    Frame(ConnId, Box<FromController>),
    /// A stream ended without a goodbye.
    Ended(ConnId, End),
    /// The engine does not take a plan.
    NotTaken {
        /// Its number.
        seq: u64,
        /// Its run.
        run: String,
        /// Why.
        refusal: Refusal,
    },
    /// There is a new certificate, already stored.
    Renewed {
        /// When it begins and ends, seconds since the Unix epoch.
        validity_s: (i64, i64),
    },
    /// There is none.
    RenewFailed {
        /// For people.
        why: String,
        /// The controller said that this identity is revoked.
        revoked: bool,
    },
    /// The agent has removed itself from the host.
    Removed {
        /// What could not be removed.
        left_behind: Vec<String>,
    },
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// In order.
    Closed,
    /// The connection broke.
    Broke(String),
    /// The controller answered that it cannot now.
    Unavailable(String),
    /// The controller answered that it does not let this agent in.
    Refused(String),
    /// The controller answered that this identity is revoked.
    Revoked(String),
    /// The controller sent what cannot be read.
    Invalid(String),
}

/// What is to be done, in this order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Connect, with the certificate that is stored now.
    Dial(ConnId),
    /// Open the stream and say `Hello`.
    Greet(ConnId),
    /// Say something.
    Send(ConnId, ToController),
    /// Remember the epoch, durably.
    SetEpoch(u64),
    /// This authenticated controller said what time it is, milliseconds since the Unix epoch.
    LearnTime(ConnId, i64),
    /// Send what the controller lacks over this connection, and nothing over any other.
    Attach {
        /// Which.
        conn: ConnId,
        /// What it has.
        acked: Vec<RunOffset>,
        /// What it does not know.
        hold: Vec<RunId>,
    },
    /// Hand a plan to the engine.
    Dispatch(Dispatch),
    /// Tell the engine what is committed.
    Acked(RunOffset),
    /// Tell the engine to end a run.
    Cancel(RunId),
    /// Hand the engine what the controller says about a run's secrets.
    Secrets(RunId, Vec<SecretAnswer>),
    /// Drop a connection.
    Close(ConnId),
    /// Get a new certificate.
    Renew,
    /// Send what is left, then remove the agent from the host.
    Remove,
    /// End the process, to be started anew by the service manager.
    Restart,
    /// End the process.
    End {
        /// Nothing of the agent is left on the host.
        clean: bool,
    },
    /// Tell the people who read the log.
    Note(Level, String),
}

/// How much people should care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Info,
    /// Passes by itself.
    Warn,
    /// Takes a person.
    Error,
}
