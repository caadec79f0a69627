//! What the link asks of the engine, as a trait, so that tests of the link can put a double in its place.

use async_trait::async_trait;
use postern_proto::event::RunOffset;
use postern_proto::ids::RunId;

use crate::engine::{self, Dispatch, Outgoing, Refusal, SecretAnswer, Snapshot};

/// The engine as the link sees it.
#[async_trait]
pub trait EnginePort: Send + Sync + 'static {
    /// What this agent has.
    async fn snapshot(&self) -> Snapshot;
    /// Takes a plan; returns when it is on disk.
    async fn dispatch(&self, dispatch: Dispatch) -> Result<(), Refusal>;
    /// Ends a run.
    async fn cancel(&self, run: RunId);
    /// The controller has committed this much.
    async fn acked(&self, offset: RunOffset);
    /// Begins a session; a newer one ends an older one.
    async fn attach(&self, acked: Vec<RunOffset>, hold: Vec<RunId>) -> Box<dyn OutboxPort>;
    /// What the controller says about the secrets of a run.
    async fn secrets(&self, run: RunId, answers: Vec<SecretAnswer>);
    /// Remembers the highest owner epoch.
    async fn set_epoch(&self, epoch: u64);
}

/// What is to be sent in one session.
#[async_trait]
pub trait OutboxPort: Send {
    /// The next thing to send; `None` when the session is over.
    async fn next(&mut self) -> Option<Outgoing>;
}

#[async_trait]
impl EnginePort for engine::Engine {
    async fn snapshot(&self) -> Snapshot {
        Self::snapshot(self).await
    }

    async fn dispatch(&self, dispatch: Dispatch) -> Result<(), Refusal> {
        Self::dispatch(self, dispatch).await
    }

    async fn cancel(&self, run: RunId) {
        Self::cancel(self, run).await;
    }

    async fn acked(&self, offset: RunOffset) {
        Self::acked(self, offset).await;
    }

    async fn attach(&self, acked: Vec<RunOffset>, hold: Vec<RunId>) -> Box<dyn OutboxPort> {
        Box::new(Self::attach(self, acked, hold).await)
    }

    async fn secrets(&self, run: RunId, answers: Vec<SecretAnswer>) {
        Self::secrets(self, run, answers).await;
    }

    async fn set_epoch(&self, epoch: u64) {
        Self::set_epoch(self, epoch).await;
    }
}

#[async_trait]
impl OutboxPort for engine::Outbox {
    async fn next(&mut self) -> Option<Outgoing> {
        Self::next(self).await
    }
}
