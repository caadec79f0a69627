//! One run: resource by resource, journaled before it acts, stopped by the first failure, and picked up
//! again where a crash or a reboot cut it off.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_proto::event::{EventKind, Outcome, RunEvent, RunState, StepEnd, StepId};
use postern_proto::ids::RunId;
use postern_proto::plan::{Plan, Terms};
use tokio::sync::{oneshot, watch};

use super::book::Record;
use super::past::{Past, past};
use super::writer::CommitError;
use super::{Ctx, Refusal, RefusalReason, act};
use crate::resources::{Bound, Depth, Step, View, bind};
use crate::sys::now_ns;

/// A resource that was cut off this often is given up.
pub(super) const MAX_ATTEMPTS: u32 = 3;
/// Events that nobody waits for are written when something takes longer than this.
const PATIENCE: Duration = Duration::from_millis(20);
/// The longest text in an event, bytes; what is reserved in the journal counts on it.
pub(super) const TEXT: usize = 600;
/// Diffs of one run, bytes.
const DIFFS: usize = 1 << 20;

/// Why a run stops without an end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It was never taken.
    Refused,
    /// The journal cannot be written: what would happen next could not be told.
    Journal,
}

/// A dispatch whose answer waits for the first commit of its run.
pub(super) struct Ticket {
    pub(super) reserve: u64,
    pub(super) reply: oneshot::Sender<Result<(), Refusal>>,
}

/// A run at work.
pub(super) struct RunTask {
    pub(super) ctx: Arc<Ctx>,
    pub(super) run: RunId,
    plan: Arc<Plan>,
    terms: Terms,
    seq: u64,
    pub(super) pending: Vec<Record>,
    ticket: Option<Ticket>,
    pub(super) cancel: watch::Receiver<bool>,
    diffs_left: usize,
    pub(super) past: Vec<Past>,
    /// A copy of something replaced was put aside.
    pub(super) kept: bool,
    bound: Arc<Vec<Box<dyn Bound>>>,
    stop: Option<RunState>,
    why: String,
}

/// Why a step did not do what it was to do.
pub(super) struct Failure {
    pub(super) message: String,
    pub(super) cancelled: bool,
}

/// What a step says when it is done.
pub(super) type StepResult = Result<String, Failure>;

impl RunTask {
    /// A run that is about to be taken: `accepted` goes into its first commit.
    pub(super) fn new(
        ctx: Arc<Ctx>,
        run: RunId,
        plan: Arc<Plan>,
        terms: Terms,
        cancel: watch::Receiver<bool>,
        accepted: Record,
        ticket: Ticket,
    ) -> Self {
        let past = vec![Past::default(); plan.resources.len()];
        let mut task = Self::bare(ctx, run, plan, terms, cancel, past);
        let kind = accepted_event(&accepted, &task.plan);
        task.pending.push(accepted);
        task.emit(kind);
        task.ticket = Some(ticket);
        task
    }

    /// A run that was taken before.
    pub(super) fn again(ctx: Arc<Ctx>, run: RunId, cancel: watch::Receiver<bool>) -> Option<Self> {
        let shared = Arc::clone(&ctx.shared);
        let inner = shared.lock();
        let book = inner.book.runs.get(&run)?;
        let mut task = Self::bare(ctx, run, Arc::clone(&book.plan), book.terms.clone(), cancel, past(book));
        task.seq = book.last();
        Some(task)
    }

    fn bare(
        ctx: Arc<Ctx>,
        run: RunId,
        plan: Arc<Plan>,
        terms: Terms,
        cancel: watch::Receiver<bool>,
        past: Vec<Past>,
    ) -> Self {
        Self {
            ctx,
            run,
            plan,
            terms,
            seq: 0,
            pending: Vec::new(),
            ticket: None,
            cancel,
            diffs_left: DIFFS,
            past,
            kept: false,
            bound: Arc::new(Vec::new()),
            stop: None,
            why: String::new(),
        }
    }

    /// To the end, or until the journal fails.
    pub(super) async fn execute(mut self) -> Result<(), Stop> {
        let bound: Result<Vec<_>, String> = self.plan.resources.iter().map(bind).collect();
        match bound {
            Ok(bound) => self.bound = Arc::new(bound),
            // A validated plan cannot come here; if it does, nothing of it is done.
            Err(error) => {
                self.past.iter_mut().for_each(|past| past.outcome = Some((Outcome::Skipped, String::new())));
                self.halt(RunState::Failed, error);
            }
        }
        let quick = !self.terms.check && self.bound.first().is_some_and(|first| first.foreseen().is_some());
        if self.ticket.is_some() && !quick {
            self.commit().await?;
        }
        self.recover().await?;
        let mut index = 0;
        while index < self.past.len() {
            index = self.settle(index).await?;
        }
        let (state, message) = self.summary();
        self.emit(EventKind::Finished { state, message: clamp(&message) });
        self.commit().await?;
        if self.kept {
            let (dir, limit) = (self.ctx.backup_dir.clone(), self.ctx.config.limits.backup_bytes);
            // What is left over goes after the next run or at the next start.
            let _ = tokio::task::spawn_blocking(move || act::prune(&dir, limit)).await;
        }
        Ok(())
    }

    pub(super) fn bound(&self) -> Arc<Vec<Box<dyn Bound>>> {
        Arc::clone(&self.bound)
    }

    /// Brings one resource, or one group of them, to an outcome. Gives the next one's place.
    async fn settle(&mut self, index: usize) -> Result<usize, Stop> {
        if let Some((outcome, message)) = self.past[index].outcome.clone() {
            self.mind(index, outcome, &message);
            return Ok(index + 1);
        }
        if *self.cancel.borrow() && self.stop.is_none() {
            self.halt(RunState::Cancelled, "cancelled by an operator".to_owned());
        }
        // A check acts on nothing, so a failure in it holds nothing up.
        let stopped = match self.stop {
            Some(RunState::Cancelled) => true,
            Some(_) => !self.terms.check,
            None => false,
        };
        if stopped {
            self.past[index].attempts = self.past[index].attempts.max(1);
            self.finish(index, Outcome::Skipped, String::new(), String::new(), Duration::ZERO);
            return Ok(index + 1);
        }
        let end = self.group_end(index);
        self.group(index..end).await?;
        Ok(end)
    }

    fn group_end(&self, index: usize) -> usize {
        let key = if self.terms.check { None } else { self.bound[index].merge_key() };
        let same =
            |i: &usize| self.past[*i].outcome.is_none() && key.is_some() && self.bound[*i].merge_key() == key;
        index + 1 + (index + 1..self.bound.len()).take_while(same).count()
    }

    async fn group(&mut self, members: std::ops::Range<usize>) -> Result<(), Stop> {
        let began = Instant::now();
        for index in members.clone() {
            self.past[index].attempts += 1;
            self.past[index].open = true;
            let (address, attempt) = self.attempt_of(index);
            self.emit(EventKind::ResourceStarted { address, attempt });
        }
        let bound = self.bound();
        let mut views: Vec<View> = Vec::new();
        for index in members.clone() {
            let view = match bound[index].foreseen() {
                Some(view) => Ok(view),
                None => {
                    let ctx = Arc::clone(&self.ctx);
                    self.patiently(bound[index].view(&ctx.config.sys, Depth::Cheap)).await?
                }
            };
            match view {
                Ok(view) => views.push(view),
                Err(error) => {
                    self.blind(members, &views, index, &error.to_string(), began.elapsed());
                    return Ok(());
                }
            }
        }
        let (mut changing, mut plans, mut diffs) = (Vec::new(), Vec::new(), Vec::new());
        for (index, view) in members.zip(views) {
            if view.steps.is_empty() {
                self.unchanged(index, began.elapsed());
            } else if self.terms.check {
                let message = summary_of(&view.steps);
                self.finish(index, Outcome::WouldChange, message, view.diff, began.elapsed());
            } else {
                changing.push(index);
                plans.push(view.steps);
                diffs.push(view.diff);
            }
        }
        let Some(first) = changing.first().copied() else { return Ok(()) };
        let steps = if plans.len() == 1 { plans.concat() } else { bound[first].merge(plans) };
        let failure = self.steps(first, &steps).await?;
        self.conclude(&changing, diffs, failure, &summary_of(&steps), began).await
    }

    /// One of a group could not be observed.
    fn blind(
        &mut self,
        members: std::ops::Range<usize>,
        views: &[View],
        at: usize,
        why: &str,
        took: Duration,
    ) {
        let first = members.start;
        for index in members {
            match views.get(index - first) {
                Some(view) if view.steps.is_empty() => self.unchanged(index, took),
                None if index == at => {
                    let needs_earlier = self.terms.check && self.would_change_before(index);
                    if needs_earlier {
                        let message = format!("known after apply: {why}");
                        self.finish(index, Outcome::WouldChange, message, String::new(), took);
                    } else {
                        self.finish(index, Outcome::Failed, why.to_owned(), String::new(), took);
                    }
                }
                _ => self.finish(index, Outcome::Skipped, String::new(), String::new(), took),
            }
        }
    }

    fn would_change_before(&self, index: usize) -> bool {
        let would = |past: &Past| matches!(past.outcome, Some((Outcome::WouldChange, _)));
        self.past[..index].iter().any(would)
    }

    fn unchanged(&mut self, index: usize, took: Duration) {
        let (outcome, message) = if self.past[index].acted {
            (Outcome::Changed, "an earlier attempt, which was cut off, brought it about".to_owned())
        } else {
            (Outcome::Unchanged, String::new())
        };
        self.finish(index, outcome, message, String::new(), took);
    }

    async fn steps(&mut self, owner: usize, steps: &[Step]) -> Result<StepResult, Stop> {
        let (address, attempt) = self.attempt_of(owner);
        let mut note = String::new();
        for (number, step) in steps.iter().enumerate() {
            let id = StepId { address: address.clone(), attempt, step: number as u32 };
            self.past[owner].acted = true;
            match self.step(id, step, number + 1 == steps.len()).await? {
                Ok(said) => note = said,
                Err(failure) => return Ok(Err(failure)),
            }
        }
        Ok(Ok(note))
    }

    /// After the steps: what is in force now decides, not what the steps said of themselves.
    pub(super) async fn conclude(
        &mut self,
        members: &[usize],
        mut diffs: Vec<String>,
        result: StepResult,
        done: &str,
        began: Instant,
    ) -> Result<(), Stop> {
        diffs.resize(members.len(), String::new());
        let bound = self.bound();
        for (index, diff) in members.iter().copied().zip(diffs) {
            let failure = match &result {
                Err(failure) if failure.cancelled => {
                    let message = format!("cancelled by an operator: {}", failure.message);
                    self.finish(index, Outcome::Failed, message.clone(), diff, began.elapsed());
                    self.halt(RunState::Cancelled, message);
                    continue;
                }
                Err(failure) if members.len() == 1 => {
                    self.finish(index, Outcome::Failed, failure.message.clone(), diff, began.elapsed());
                    continue;
                }
                Err(failure) => Some(failure.message.as_str()),
                Ok(_) => None,
            };
            let ctx = Arc::clone(&self.ctx);
            let view = self.patiently(bound[index].view(&ctx.config.sys, Depth::Proof)).await?;
            let (outcome, message) = match (view, failure) {
                (Ok(view), _) if view.steps.is_empty() => {
                    let note = result.as_ref().map_or("", String::as_str);
                    let message = if note.is_empty() { done.to_owned() } else { format!("{done}; {note}") };
                    (Outcome::Changed, message)
                }
                (_, Some(failure)) => (Outcome::Failed, failure.to_owned()),
                (Ok(view), None) => {
                    let (still, state) = (summary_of(&view.steps), view.diff.lines().next().unwrap_or(""));
                    let message = format!(
                        "the host did not reach the declared state, still to be done: {still} ({state})"
                    );
                    (Outcome::Failed, message)
                }
                (Err(error), None) => (Outcome::Failed, format!("the result could not be observed: {error}")),
            };
            self.finish(index, outcome, message, diff, began.elapsed());
        }
        Ok(())
    }

    /// Ends an attempt and settles the resource.
    pub(super) fn finish(
        &mut self,
        index: usize,
        outcome: Outcome,
        message: String,
        diff: String,
        took: Duration,
    ) {
        let message = clamp(&message);
        self.end_attempt(index, outcome, message.clone(), diff, took);
        self.past[index].outcome = Some((outcome, message.clone()));
        self.mind(index, outcome, &message);
    }

    /// Ends an attempt; the resource may be tried again.
    pub(super) fn end_attempt(
        &mut self,
        index: usize,
        outcome: Outcome,
        message: String,
        diff: String,
        took: Duration,
    ) {
        let (address, attempt) = self.attempt_of(index);
        self.past[index].open = false;
        let diff = match self.diffs_left.checked_sub(diff.len()) {
            Some(left) => {
                self.diffs_left = left;
                diff
            }
            None => "the diffs of this run are too long to be kept\n".to_owned(),
        };
        let duration_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.emit(EventKind::ResourceFinished {
            address,
            attempt,
            outcome,
            message,
            diff,
            duration_ns,
            seen: String::new(),
        });
    }

    /// What an outcome means for the run.
    fn mind(&mut self, index: usize, outcome: Outcome, message: &str) {
        let address = &self.plan.resources[index].address;
        match outcome {
            Outcome::Failed => self.halt(RunState::Failed, format!("{address}: {message}")),
            Outcome::Interrupted => self.halt(RunState::Interrupted, format!("{address}: {message}")),
            Outcome::Unchanged | Outcome::Changed | Outcome::Skipped | Outcome::WouldChange => {}
        }
    }

    fn halt(&mut self, state: RunState, why: String) {
        if self.stop.is_none() || state == RunState::Cancelled {
            (self.stop, self.why) = (Some(state), why);
        }
    }

    fn summary(&self) -> (RunState, String) {
        if let Some(stop) = self.stop {
            return (stop, self.why.clone());
        }
        let count = |wanted: Outcome| {
            self.past.iter().filter(|past| past.outcome.as_ref().is_some_and(|(o, _)| *o == wanted)).count()
        };
        let words = [
            (Outcome::Changed, "changed"),
            (Outcome::WouldChange, "would change"),
            (Outcome::Unchanged, "unchanged"),
        ];
        let parts: Vec<String> = words
            .into_iter()
            .filter(|(outcome, _)| count(*outcome) > 0)
            .map(|(outcome, word)| format!("{} {word}", count(outcome)))
            .collect();
        (RunState::Ok, if parts.is_empty() { "nothing to do".to_owned() } else { parts.join(", ") })
    }

    pub(super) fn attempt_of(&self, index: usize) -> (postern_proto::ids::Address, u32) {
        (self.plan.resources[index].address.clone(), self.past[index].attempts.max(1))
    }

    /// Adds an event to the next commit. Gives its number.
    pub(super) fn emit(&mut self, kind: EventKind) -> u64 {
        self.seq += 1;
        let event = RunEvent { run: self.run, seq: self.seq, time_ns: now_ns(), kind };
        self.pending.push(Record::Event(event));
        self.seq
    }

    /// The number of the next event.
    pub(super) fn next_seq(&self) -> u64 {
        self.seq + 1
    }

    pub(super) fn end_step(&mut self, step: StepId, end: StepEnd, frames: u64) {
        let end = match end {
            StepEnd::Error(error) => StepEnd::Error(clamp(&error)),
            other => other,
        };
        self.emit(EventKind::StepFinished { step, end, frames });
    }

    /// Returns when everything so far is on the disk; the first time, that answers the dispatch.
    pub(super) async fn commit(&mut self) -> Result<(), Stop> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let records = std::mem::take(&mut self.pending);
        let reserve = self.ticket.as_ref().map(|ticket| (self.run, ticket.reserve));
        let result = self.ctx.writer.commit(records, reserve).await;
        let ticket = self.ticket.take();
        let stop = if ticket.is_some() { Stop::Refused } else { Stop::Journal };
        if let Some(ticket) = ticket {
            let _ = ticket.reply.send(result.clone().map_err(refusal));
        }
        result.map_err(|error| match error {
            CommitError::NoRoom(_) => stop,
            CommitError::Failed(_) => Stop::Journal,
        })
    }

    /// Waits for something that may take long; what happened before is told meanwhile.
    pub(super) async fn patiently<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            () = tokio::time::sleep(PATIENCE) => {}
        }
        self.commit().await?;
        Ok(work.await)
    }
}

fn accepted_event(accepted: &Record, plan: &Plan) -> EventKind {
    let hash = match accepted {
        Record::Accepted { hash, .. } => *hash,
        _ => postern_proto::ids::PlanHash::of(&[]),
    };
    EventKind::Accepted { plan: hash, resources: plan.resources.len() as u32 }
}

/// The event of a run that is taken without being started.
pub(super) fn accepted_records(run: RunId, accepted: Record, plan: &Plan) -> Vec<Record> {
    let kind = accepted_event(&accepted, plan);
    vec![accepted, Record::Event(RunEvent { run, seq: 1, time_ns: now_ns(), kind })]
}

pub(super) fn refusal(error: CommitError) -> Refusal {
    let message = match error {
        CommitError::NoRoom(why) => format!("the disk of the host has no room for the run: {why}"),
        CommitError::Failed(why) => format!("the agent's journal can no longer be written: {why}"),
    };
    Refusal { reason: RefusalReason::NoRoom, message }
}

fn summary_of(steps: &[Step]) -> String {
    steps.iter().map(Step::summary).collect::<Vec<_>>().join("; ")
}

/// One line within the bounds that the journal's room was reserved for.
pub(super) fn clamp(text: &str) -> String {
    let line: String = text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() <= TEXT {
        return line;
    }
    let cut = (0..=TEXT - 3).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &line[..cut])
}

/// Room for all state records of a run, bytes: every attempt, every step, texts as long as they may be.
pub(super) fn room_for(plan: &Plan) -> u64 {
    // Quotes and backslashes double in JSON; a step's two events, and an attempt's two.
    let (text, fixed, steps) = (2 * TEXT as u64, 400, 4);
    let resource = |planned: &postern_proto::plan::PlannedResource| {
        let event = 2 * planned.address.as_str().len() as u64 + fixed;
        u64::from(MAX_ATTEMPTS) * (steps * (2 * event + 2 * text) + 2 * event + text)
    };
    plan.resources.iter().map(resource).sum::<u64>() + text + fixed
}
