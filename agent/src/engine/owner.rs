//! The owner of the runs: judges dispatches, queues them, starts them, and ends with the journal.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use postern_proto::ids::{PlanHash, RunId};
use postern_proto::plan::{Plan, PlanError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::book::Record;
use super::run::{RunTask, Stop, Ticket, accepted_records, refusal, room_for};
use super::{Ctx, Dispatch, EngineError, Refusal, RefusalReason};

/// What the handle asks for.
pub(super) enum Order {
    Dispatch(Dispatch, oneshot::Sender<Result<(), Refusal>>),
    Cancel(RunId, oneshot::Sender<()>),
    Epoch(u64, oneshot::Sender<()>),
}

/// Which runs may go on beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// One after the other: they change what the next one observes.
    Plans,
    /// A single command, beside plans and each other.
    Commands,
}

fn lane(plan: &Plan) -> Lane {
    match &plan.resources[..] {
        // One that is run under guard keeps to the order: there is one guard at a time.
        [only] if only.kind == "command" && only.spec.get("revert").is_none() => Lane::Commands,
        _ => Lane::Plans,
    }
}

struct Working {
    lane: Lane,
    cancel: watch::Sender<bool>,
}

pub(super) struct Owner {
    ctx: Arc<Ctx>,
    orders: mpsc::Receiver<Order>,
    tasks: JoinSet<(RunId, Result<(), Stop>)>,
    working: HashMap<RunId, Working>,
    queue: VecDeque<(RunId, Lane)>,
}

impl Owner {
    pub(super) fn new(ctx: Arc<Ctx>, orders: mpsc::Receiver<Order>) -> Self {
        Self { ctx, orders, tasks: JoinSet::new(), working: HashMap::new(), queue: VecDeque::new() }
    }

    pub(super) async fn drive(mut self) -> Result<(), EngineError> {
        self.queue_unfinished();
        let shared = Arc::clone(&self.ctx.shared);
        let mut open = true;
        while open || !self.tasks.is_empty() {
            self.start_queued();
            tokio::select! {
                order = self.orders.recv(), if open => match order {
                    Some(order) => self.order(order).await,
                    None => open = false,
                },
                Some(done) = self.tasks.join_next() => self.joined(done)?,
                () = shared.failure.notified() => {}
            }
            if let Some(why) = shared.failed() {
                return Err(EngineError::Journal(why));
            }
        }
        Ok(())
    }

    fn joined(
        &mut self,
        done: Result<(RunId, Result<(), Stop>), tokio::task::JoinError>,
    ) -> Result<(), EngineError> {
        match done {
            Ok((run, _)) => {
                self.working.remove(&run);
                Ok(())
            }
            // What the run was about to do is in the journal: the next start takes it up from there.
            Err(error) => Err(EngineError::Broken(error.to_string())),
        }
    }

    /// What an earlier agent left unfinished, in the order it was taken.
    fn queue_unfinished(&mut self) {
        let inner = self.ctx.shared.lock();
        let mut runs: Vec<_> = inner.book.runs.iter().filter(|(_, book)| book.end.is_none()).collect();
        runs.sort_by_key(|(_, book)| book.seq);
        self.queue.extend(runs.into_iter().map(|(run, book)| (*run, lane(&book.plan))));
    }

    fn has_slot(&self, lane: Lane) -> bool {
        let working = self.working.values().filter(|working| working.lane == lane).count();
        match lane {
            Lane::Plans => working == 0,
            Lane::Commands => working < self.ctx.config.limits.parallel_commands.max(1),
        }
    }

    fn start_queued(&mut self) {
        let mut at = 0;
        while let Some((run, lane)) = self.queue.get(at).copied() {
            if !self.has_slot(lane) {
                at += 1;
                continue;
            }
            self.queue.remove(at);
            let (cancel, heard) = watch::channel(self.is_cancelled(run));
            if let Some(task) = RunTask::again(Arc::clone(&self.ctx), run, heard) {
                self.start(run, lane, cancel, task);
            }
        }
    }

    fn is_cancelled(&self, run: RunId) -> bool {
        self.ctx.shared.lock().book.runs.get(&run).is_some_and(|book| book.cancelled)
    }

    fn start(&mut self, run: RunId, lane: Lane, cancel: watch::Sender<bool>, task: RunTask) {
        self.working.insert(run, Working { lane, cancel });
        self.tasks.spawn(async move { (run, Box::pin(task.execute()).await) });
    }

    async fn order(&mut self, order: Order) {
        match order {
            Order::Dispatch(dispatch, reply) => {
                let _ = reply.send(self.dispatch(dispatch).await);
            }
            Order::Cancel(run, reply) => {
                self.cancel(run).await;
                let _ = reply.send(());
            }
            Order::Epoch(epoch, reply) => {
                if epoch > self.ctx.shared.lock().book.epoch {
                    // An error ends the engine by itself.
                    let _ = self.ctx.writer.commit(vec![Record::Epoch(epoch)], None).await;
                }
                let _ = reply.send(());
            }
        }
    }

    async fn dispatch(&mut self, dispatch: Dispatch) -> Result<(), Refusal> {
        let Some(plan) = self.judge(&dispatch)? else { return Ok(()) };
        let (run, lane) = (dispatch.run, lane(&plan));
        let text = String::from_utf8(dispatch.plan.to_vec())
            .map_err(|_| refused(RefusalReason::Malformed, "the plan is not text"))?;
        let reserve = room_for(&plan);
        let accepted = Record::Accepted {
            seq: dispatch.seq,
            run,
            plan: text,
            hash: dispatch.hash,
            terms: dispatch.terms.clone(),
            boot: self.ctx.config.boot_id,
        };
        let waits = self.queue.iter().any(|(_, queued)| *queued == lane);
        if waits || !self.has_slot(lane) {
            if self.queue.len() >= self.ctx.config.limits.queued_runs {
                let waiting = self.queue.len();
                return Err(refused(
                    RefusalReason::Busy,
                    format!("{waiting} runs are waiting on this host already"),
                ));
            }
            let records = accepted_records(run, accepted, &plan);
            self.ctx.writer.commit(records, Some((run, reserve))).await.map_err(refusal)?;
            self.queue.push_back((run, lane));
            return Ok(());
        }
        let (cancel, heard) = watch::channel(false);
        let (reply, answer) = oneshot::channel();
        let ticket = Ticket { reserve, reply };
        let ctx = Arc::clone(&self.ctx);
        let task = RunTask::new(ctx, run, Arc::new(plan), dispatch.terms, heard, accepted, ticket);
        self.start(run, lane, cancel, task);
        answer.await.unwrap_or_else(|_| Err(refused(RefusalReason::Busy, "the engine is ending")))
    }

    /// The plan, when it is to be taken; `None` for a duplicate, which is harmless.
    fn judge(&self, dispatch: &Dispatch) -> Result<Option<Plan>, Refusal> {
        let Dispatch { seq, run, .. } = dispatch;
        let limits = &self.ctx.config.limits;
        if PlanHash::of(&dispatch.plan) != dispatch.hash {
            return Err(refused(RefusalReason::BadHash, "the plan does not have the hash it was sent with"));
        }
        let inner = self.ctx.shared.lock();
        if let Some(known) = inner.book.runs.get(run) {
            if (known.hash, &known.terms) == (dispatch.hash, &dispatch.terms) {
                return Ok(None);
            }
            let message = format!("{run:?} is known here with another plan");
            return Err(refused(RefusalReason::RunIdReused, message));
        }
        if inner.book.numbers.contains(*seq) {
            // It was taken, told of and acked long ago.
            return Ok(None);
        }
        let epoch = inner.book.epoch;
        if dispatch.epoch < epoch {
            let message = format!("sent with owner epoch {}, this host has seen {epoch}", dispatch.epoch);
            return Err(refused(RefusalReason::StaleEpoch, message));
        }
        if dispatch.expired {
            return Err(refused(RefusalReason::Expired, "its time to live was over when it came"));
        }
        if inner.book.runs.len() >= limits.kept_runs {
            let kept = inner.book.runs.len();
            return Err(refused(RefusalReason::Busy, format!("{kept} runs wait here to be acked")));
        }
        drop(inner);
        Plan::from_bytes(&dispatch.plan).map(Some).map_err(|error| {
            let reason = match &error {
                PlanError::UnknownKind(_) => RefusalReason::UnknownKind,
                PlanError::UnknownSchema(_) | PlanError::Schema(_) => RefusalReason::UnknownSchema,
                PlanError::TooLarge(_)
                | PlanError::Malformed(_)
                | PlanError::Invalid(_)
                | PlanError::Needs { .. }
                | PlanError::Late { .. }
                | PlanError::DuplicateAddress(_) => RefusalReason::Malformed,
            };
            refused(reason, error.to_string())
        })
    }

    async fn cancel(&mut self, run: RunId) {
        let unfinished = self.ctx.shared.lock().book.runs.get(&run).is_some_and(|book| book.end.is_none());
        if !unfinished || self.ctx.writer.commit(vec![Record::Cancel { run }], None).await.is_err() {
            return;
        }
        if let Some(working) = self.working.get(&run) {
            working.cancel.send_replace(true);
        } else if let Some(at) = self.queue.iter().position(|(queued, _)| *queued == run) {
            // It needs no turn to say that it will not begin.
            self.queue.remove(at);
            let (cancel, heard) = watch::channel(true);
            if let Some(task) = RunTask::again(Arc::clone(&self.ctx), run, heard) {
                self.start(run, Lane::Commands, cancel, task);
            }
        }
    }
}

fn refused(reason: RefusalReason, message: impl Into<String>) -> Refusal {
    Refusal { reason, message: message.into() }
}
