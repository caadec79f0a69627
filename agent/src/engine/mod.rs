//! The engine: takes plans, executes them alone, and hands out what happened until it is acked.

mod api;

pub use api::{
    Dispatch, EngineConfig, EngineError, Limits, OpenError, Outgoing, Refusal, RefusalReason, Snapshot,
    SupervisorCommand,
};

use postern_proto::event::RunOffset;
use postern_proto::ids::RunId;

/// Opens the state, recovers what was in the middle, and gives a handle and the driver to spawn.
///
/// The driver ends with an error when the journal can no longer be written: the agent then takes no more
/// work and must say so.
pub fn open(
    config: EngineConfig,
) -> Result<(Engine, impl Future<Output = Result<(), EngineError>> + Send + 'static), OpenError> {
    let _ = config;
    Ok((Engine {}, async { Ok(()) }))
}

/// A cheap handle to the engine; clones are the same engine.
#[derive(Clone)]
pub struct Engine {}

impl Engine {
    /// What this agent has, for `Hello`.
    pub async fn snapshot(&self) -> Snapshot {
        Snapshot::default()
    }

    /// Takes a plan. Returns only when it is on disk. A duplicate (same number, run and hash) is harmless.
    pub async fn dispatch(&self, dispatch: Dispatch) -> Result<(), Refusal> {
        Err(Refusal { reason: RefusalReason::Busy, message: dispatch.run.to_string() })
    }

    /// Ends a run; nothing happens when it is unknown or over.
    pub async fn cancel(&self, run: RunId) {
        let _ = run;
    }

    /// The controller has committed this much: it may be deleted here, and the window opens.
    pub async fn acked(&self, offset: RunOffset) {
        let _ = offset;
    }

    /// Begins a session: sends what lies beyond `acked`, keeps back the runs in `hold`. A newer session ends
    /// an older one.
    pub async fn attach(&self, acked: Vec<RunOffset>, hold: Vec<RunId>) -> Outbox {
        let _ = (acked, hold);
        Outbox {}
    }

    /// Remembers the highest owner epoch seen; a lower one has no effect.
    pub async fn set_epoch(&self, epoch: u64) {
        let _ = epoch;
    }
}

/// What is to be sent in one session.
pub struct Outbox {}

impl Outbox {
    /// The next thing to send, when there is one and the windows are open; `None` when a newer session has
    /// taken over or the engine has ended. Safe to drop and call again.
    pub async fn next(&mut self) -> Option<Outgoing> {
        None
    }
}
