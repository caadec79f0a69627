//! The engine: takes plans, executes them alone, and hands out what happened until it is acked.
//!
//! The journal comes first: a thread of its own writes records, syncs, and folds them into the `book`; only
//! then does anything act on them or is anything sent. One owner task judges dispatches and starts runs; a
//! run is one task; a session reads the book and the spools.

mod act;
mod ahead;
mod api;
mod approve;
mod backup;
mod book;
mod exec;
mod group;
mod guarded;
mod look;
mod needs;
mod open;
mod others;
mod outbox;
mod owner;
mod past;
mod put_off;
mod recover;
mod run;
mod secrets;
mod session;
mod shared;
mod steps;
mod undo;
mod wait;
mod writer;

pub use api::{
    Dispatch, EngineConfig, EngineError, Limits, MAX_SECRET_BYTES, NoSecret, OpenError, Outgoing, Refusal,
    RefusalReason, SecretAnswer, SecretText, Snapshot, SupervisorCommand,
};
pub use open::{open, open_on, unfinished};
pub use outbox::Outbox;

use std::path::PathBuf;
use std::sync::Arc;

use postern_proto::event::RunOffset;
use postern_proto::ids::RunId;
use tokio::sync::{Notify, mpsc, oneshot};

use book::{Record, slot};
use owner::Order;
use session::{Session, Windows};
use shared::Shared;
use writer::Writer;

use crate::supervise::spool::Reader;

/// Orders on their way to the owner.
const ORDERS: usize = 64;

/// What every part of an engine needs.
struct Ctx {
    shared: Arc<Shared>,
    writer: Writer,
    config: EngineConfig,
    spool_dir: PathBuf,
    backup_dir: PathBuf,
    seen_key: approve::Key,
}

/// A cheap handle to the engine; clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    ctx: Arc<Ctx>,
    orders: mpsc::Sender<Order>,
}

impl Engine {
    /// What this agent has, for `Hello`.
    pub async fn snapshot(&self) -> Snapshot {
        let mut running = Vec::new();
        let mut snapshot = {
            let inner = self.ctx.shared.lock();
            let book = &inner.book;
            let mut snapshot = Snapshot {
                runs: Vec::with_capacity(book.runs.len()),
                dispatch_floor: book.numbers.floor,
                dispatches_above: book.numbers.above.iter().copied().collect(),
                epoch: book.epoch,
                unfinished: 0,
            };
            for (run, book) in &book.runs {
                snapshot.unfinished += u32::from(book.end.is_none());
                let mut logs = Vec::new();
                for (step, of) in book.steps.iter().filter(|(_, of)| of.exec.is_some()) {
                    match of.frames {
                        Some(frames) if frames > 0 => logs.push((step.clone(), frames)),
                        Some(_) => {}
                        None => running.push((snapshot.runs.len(), step.clone(), slot(*run, of.seq))),
                    }
                }
                snapshot.runs.push(RunOffset { run: *run, event_seq: book.last(), logs });
            }
            snapshot
        };
        for (at, step, name) in running {
            let path = self.ctx.spool_dir.join(name);
            let counted = tokio::task::spawn_blocking(move || {
                let mut reader = Reader::open(&path).ok()?;
                reader.skip_to(u64::MAX).ok()?;
                Some(reader.position())
            });
            if let (Ok(Some(frames @ 1..)), Some(run)) = (counted.await, snapshot.runs.get_mut(at)) {
                run.logs.push((step, frames));
            }
        }
        snapshot
    }

    /// Takes a plan. Returns only when it is on disk. A duplicate (same number, run and hash) is harmless.
    pub async fn dispatch(&self, dispatch: Dispatch) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        let sent = self.orders.send(Order::Dispatch(dispatch, reply)).await;
        let ended = || Refusal { reason: RefusalReason::NoRoom, message: self.ended() };
        sent.map_err(|_| ended())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    fn ended(&self) -> String {
        let failed = self.ctx.shared.failed();
        failed.map_or("the engine has ended".to_owned(), |why| EngineError::Journal(why).to_string())
    }

    /// Ends a run; nothing happens when it is unknown or over.
    pub async fn cancel(&self, run: RunId) {
        let (reply, answer) = oneshot::channel();
        if self.orders.send(Order::Cancel(run, reply)).await.is_ok() {
            let _ = answer.await;
        }
    }

    /// The controller has committed this much: it may be deleted here, and the window opens.
    pub async fn acked(&self, offset: RunOffset) {
        let done = {
            let mut inner = self.ctx.shared.lock();
            let inner = &mut *inner;
            let Some(session) = inner.session.as_mut() else { return };
            let done = session.acked(&inner.book, &offset);
            inner.wake();
            done
        };
        if done {
            self.ctx.writer.soon(vec![Record::Removed { run: offset.run }]).await;
        }
    }

    /// Begins a session: sends what lies beyond `acked`, keeps back the runs in `hold`. A newer session ends
    /// an older one.
    pub async fn attach(&self, acked: Vec<RunOffset>, hold: Vec<RunId>) -> Outbox {
        let (outbox, done) = {
            let mut inner = self.ctx.shared.lock();
            let inner = &mut *inner;
            let limits = &self.ctx.config.limits;
            let windows = Windows { run: limits.run_window, agent: limits.agent_window };
            let offsets = acked.clone();
            let mut session = Session::new(&inner.book, windows, acked, hold);
            // What was acked whole while no session was there to hear it.
            let done: Vec<_> =
                offsets.iter().filter(|offset| session.acked(&inner.book, offset)).map(|o| o.run).collect();
            inner.session = Some(session);
            inner.generation += 1;
            // The older session wakes, sees that it is not the last any more, and ends.
            inner.wake();
            inner.waiting = Arc::new(Notify::new());
            let shared = Arc::clone(&self.ctx.shared);
            let waiting = Arc::clone(&inner.waiting);
            (Outbox::new(shared, waiting, inner.generation, self.ctx.spool_dir.clone()), done)
        };
        if !done.is_empty() {
            self.ctx.writer.soon(done.into_iter().map(|run| Record::Removed { run }).collect()).await;
        }
        outbox
    }

    /// What the controller says to [`Outgoing::SecretsWanted`]. Held in memory until the run is over.
    pub async fn secrets(&self, run: RunId, answers: Vec<SecretAnswer>) {
        self.ctx.shared.lock().answered(run, answers, tokio::time::Instant::now(), rand::random());
    }

    /// Remembers the highest owner epoch seen; a lower one has no effect.
    pub async fn set_epoch(&self, epoch: u64) {
        let (reply, answer) = oneshot::channel();
        if self.orders.send(Order::Epoch(epoch, reply)).await.is_ok() {
            let _ = answer.await;
        }
    }
}
