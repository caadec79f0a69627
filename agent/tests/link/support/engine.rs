//! A double of the engine.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use postern_agent::engine::{Dispatch, Outgoing, Refusal, SecretAnswer, Snapshot};
use postern_agent::link::engine::{EnginePort, OutboxPort};
use postern_proto::event::{EventKind, RunEvent, RunOffset};
use postern_proto::ids::{PlanHash, RunId};
use tokio::sync::Notify;

/// Takes every plan, keeps what it was told, sends the events it was given.
#[derive(Default)]
pub(crate) struct FakeEngine {
    state: Mutex<FakeState>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct FakeState {
    epoch: u64,
    run: Option<RunId>,
    events: Vec<RunEvent>,
    acked: u64,
    dispatches: Vec<Dispatch>,
    attached: u64,
    refuse: Option<Refusal>,
}

impl FakeEngine {
    pub(crate) fn emit(&self, run: RunId) {
        let mut state = self.state.lock().unwrap();
        let seq = state.events.len() as u64 + 1;
        state.run = Some(run);
        let kind = EventKind::Accepted { plan: PlanHash::of(b""), resources: 1 };
        state.events.push(RunEvent { run, seq, time_ns: 0, kind });
        drop(state);
        self.changed.notify_waiters();
    }

    pub(crate) fn refuse(&self, refusal: Refusal) {
        self.state.lock().unwrap().refuse = Some(refusal);
    }

    pub(crate) fn dispatches(&self) -> Vec<Dispatch> {
        self.state.lock().unwrap().dispatches.clone()
    }

    pub(crate) fn acked(&self) -> u64 {
        self.state.lock().unwrap().acked
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.state.lock().unwrap().epoch
    }
}

/// The port is for the trait's own `Arc`; the double itself is shared with the test.
pub(crate) struct FakePort(pub(crate) Arc<FakeEngine>);

#[async_trait]
impl EnginePort for FakePort {
    async fn snapshot(&self) -> Snapshot {
        let state = self.0.state.lock().unwrap();
        let open = state.run.filter(|_| state.acked < state.events.len() as u64);
        let runs = open.map(|run| RunOffset { run, event_seq: state.events.len() as u64, logs: Vec::new() });
        Snapshot { runs: runs.into_iter().collect(), epoch: state.epoch, ..Snapshot::default() }
    }

    async fn dispatch(&self, dispatch: Dispatch) -> Result<(), Refusal> {
        let mut state = self.0.state.lock().unwrap();
        if let Some(refusal) = state.refuse.take() {
            return Err(refusal);
        }
        state.dispatches.push(dispatch);
        self.0.changed.notify_waiters();
        Ok(())
    }

    async fn cancel(&self, _run: RunId) {}

    async fn acked(&self, offset: RunOffset) {
        let mut state = self.0.state.lock().unwrap();
        state.acked = state.acked.max(offset.event_seq);
    }

    async fn attach(&self, acked: Vec<RunOffset>, _hold: Vec<RunId>) -> Box<dyn OutboxPort> {
        let mut state = self.0.state.lock().unwrap();
        state.attached += 1;
        let next = acked.first().map_or(0, |offset| offset.event_seq);
        Box::new(FakeOutbox { engine: self.0.clone(), session: state.attached, next })
    }

    async fn secrets(&self, _run: RunId, _answers: Vec<SecretAnswer>) {}

    async fn set_epoch(&self, epoch: u64) {
        self.0.state.lock().unwrap().epoch = epoch;
    }
}

struct FakeOutbox {
    engine: Arc<FakeEngine>,
    session: u64,
    next: u64,
}

#[async_trait]
impl OutboxPort for FakeOutbox {
    async fn next(&mut self) -> Option<Outgoing> {
        let changed = self.engine.changed.clone();
        loop {
            let waiting = changed.notified();
            tokio::pin!(waiting);
            waiting.as_mut().enable();
            {
                let state = self.engine.state.lock().unwrap();
                if state.attached != self.session {
                    return None;
                }
                if let Some(event) = state.events.get(self.next as usize) {
                    self.next += 1;
                    return Some(Outgoing::Event(event.clone()));
                }
            }
            waiting.await;
        }
    }
}
