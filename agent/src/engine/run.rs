//! One run: resource by resource, journaled before it acts, each reached when what it needs is there, and
//! picked up again where a crash or a reboot cut it off.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use postern_proto::event::{EventKind, Outcome, RunEvent, RunState, StepEnd, StepId};
use postern_proto::ids::{Address, PlanHash, RunId};
use postern_proto::plan::{Plan, Terms};
use postern_proto::text;
use tokio::sync::{oneshot, watch};

use super::ahead::Ahead;
use super::book::Record;
use super::guarded::Held;
use super::needs::{self, Needs, Turn};
use super::past::{Past, parked, past};
use super::put_off::PutOff;
use super::secrets::Secrets;
use super::writer::CommitError;
use super::{Ctx, Refusal, RefusalReason, backup};
use crate::resources::{Bound, Step};
use crate::supervise::Redact;
use crate::sys::now_ns;

/// A resource that was cut off this often is given up.
pub(super) const MAX_ATTEMPTS: u32 = 3;
/// Events that nobody waits for are written when something takes longer than this.
const PATIENCE: Duration = Duration::from_millis(20);
/// The longest text in an event, bytes; what is reserved in the journal counts on it.
pub(super) const TEXT: usize = 600;
/// The longest text on how a resource ended, bytes: a preflight tells of all that is lacking at once.
pub(super) const MESSAGE: usize = 3000;
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
    pub(super) plan: Arc<Plan>,
    pub(super) hash: PlanHash,
    pub(super) terms: Terms,
    seq: u64,
    pub(super) pending: Vec<Record>,
    ticket: Option<Ticket>,
    pub(super) cancel: watch::Receiver<bool>,
    diffs_left: usize,
    pub(super) past: Vec<Past>,
    pub(super) needs: Needs,
    /// Those without holes from the beginning, the others while they are worked on.
    pub(super) bound: Vec<Option<Arc<dyn Bound>>>,
    pub(super) secrets: Option<Secrets>,
    pub(super) redact: Redact,
    /// How many secrets `redact` knows.
    pub(super) known: usize,
    pub(super) late: BTreeMap<String, String>,
    pub(super) ahead: Ahead,
    /// Those whose change waits until the controller can confirm it.
    pub(super) held: BTreeMap<usize, Held>,
    /// Those that only have to be waited for.
    pub(super) put_off: BTreeMap<usize, PutOff>,
    /// Before the controller is tried again.
    pub(super) hold_pause: Duration,
    /// Something was changed since this task began.
    pub(super) acted: bool,
    /// What was replaced is kept.
    pub(super) keeps: bool,
    pub(super) kept: bool,
    pub(super) parked: bool,
    pub(super) waits_since: Option<tokio::time::Instant>,
    stop: Option<RunState>,
    why: String,
    /// How many failed.
    failures: usize,
    /// How many could not be undone.
    pub(super) beyond_undo: usize,
}

/// Why a step did not do what it was to do.
pub(super) struct Failure {
    pub(super) message: String,
    pub(super) cancelled: bool,
    /// A lock of somebody else's kept it from beginning.
    pub(super) locked: bool,
}

impl Failure {
    pub(super) fn new(message: String) -> Self {
        Self { message, cancelled: false, locked: false }
    }
}

/// What a step says when it is done.
pub(super) type StepResult<T = String> = Result<T, Failure>;

/// How an attempt ended.
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) message: String,
    pub(super) diff: String,
    pub(super) took: Duration,
    pub(super) seen: String,
}

impl End {
    pub(super) fn new(outcome: Outcome, message: impl Into<String>, took: Duration) -> Self {
        Self { outcome, message: message.into(), diff: String::new(), took, seen: String::new() }
    }

    pub(super) fn diff(self, diff: String) -> Self {
        Self { diff, ..self }
    }

    pub(super) fn seen(self, seen: String) -> Self {
        Self { seen, ..self }
    }
}

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
        let kind = accepted_event(&accepted, &plan);
        let hash = hash_of(&accepted);
        let mut task = Self::bare(ctx, run, plan, hash, terms, cancel, past);
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
        let (plan, terms) = (Arc::clone(&book.plan), book.terms.clone());
        let mut task = Self::bare(ctx, run, plan, book.hash, terms, cancel, past(book));
        (task.seq, task.late, task.parked) = (book.last(), book.late.clone(), parked(book));
        Some(task)
    }

    fn bare(
        ctx: Arc<Ctx>,
        run: RunId,
        plan: Arc<Plan>,
        hash: PlanHash,
        terms: Terms,
        cancel: watch::Receiver<bool>,
        past: Vec<Past>,
    ) -> Self {
        Self {
            ctx,
            run,
            needs: needs::needs(&plan.resources),
            plan,
            hash,
            terms,
            seq: 0,
            pending: Vec::new(),
            ticket: None,
            cancel,
            diffs_left: DIFFS,
            past,
            bound: Vec::new(),
            secrets: None,
            redact: Redact::new([]),
            known: 0,
            late: BTreeMap::new(),
            ahead: Ahead::default(),
            held: BTreeMap::new(),
            put_off: BTreeMap::new(),
            hold_pause: Held::FIRST / 2,
            acted: false,
            keeps: false,
            kept: false,
            parked: false,
            waits_since: None,
            stop: None,
            why: String::new(),
            failures: 0,
            beyond_undo: 0,
        }
    }

    /// To the end, or until the journal fails.
    pub(super) async fn execute(mut self) -> Result<(), Stop> {
        let bound = self.bind_whole();
        let quick = !self.terms.check
            && self.terms.undo_of.is_none()
            && self
                .bound
                .first()
                .is_some_and(|first| first.as_ref().is_some_and(|it| it.foreseen().is_some()));
        let secrets = self.plan.secrets();
        if self.ticket.is_some() && (!quick || !secrets.is_empty()) {
            self.commit().await?;
        }
        if !secrets.is_empty() {
            self.secrets = Some(Secrets::ask(&self.ctx.shared, self.run, secrets));
        }
        let settled = match bound {
            // A validated plan cannot come here; if it does, nothing of it is done.
            Err(error) => self.bar(error),
            Ok(()) => {
                self.recover().await?;
                if self.terms.undo_of.is_some() { self.undo().await } else { self.apply().await }
            }
        };
        settled?;
        let (state, message) = self.summary();
        let message = self.redact.text(&message);
        self.emit(EventKind::Finished { state, message: clamp(&message) });
        self.commit().await?;
        if self.kept {
            let (dir, limit) = (self.ctx.backup_dir.clone(), self.ctx.config.limits.backup_bytes);
            let busy = self.ctx.shared.lock().book.unfinished();
            // What is left over goes after the next run or at the next start.
            let _ = tokio::task::spawn_blocking(move || backup::prune(&dir, limit, &busy)).await;
        }
        Ok(())
    }

    /// Nothing of it is done.
    pub(super) fn bar(&mut self, why: String) -> Result<(), Stop> {
        self.halt(RunState::Failed, why);
        self.skip_rest();
        Ok(())
    }

    /// What has no outcome gets none any more.
    pub(super) fn skip_rest(&mut self) {
        for index in 0..self.past.len() {
            if self.past[index].outcome.is_none() {
                self.finish(index, End::new(Outcome::Skipped, "", Duration::ZERO));
            }
        }
    }

    async fn apply(&mut self) -> Result<(), Stop> {
        for index in 0..self.past.len() {
            if let Some((outcome, message)) = self.past[index].outcome.clone() {
                self.mind(index, outcome, &message);
            }
        }
        if !self.terms.approved.is_empty() && !self.past.iter().any(|past| past.attempts > 0) {
            self.approved().await?;
        }
        loop {
            if self.is_cancelled() {
                self.cancel_put_off().await?;
                self.skip_rest();
                return Ok(());
            }
            self.learn();
            let outcome = |index: usize| self.past[index].outcome.as_ref().map(|(outcome, _)| *outcome);
            let (ready, put_off) =
                (|index: usize| self.is_ready(index), |index: usize| self.put_off.contains_key(&index));
            let turn = needs::next(&self.needs, self.terms.check, outcome, ready, put_off);
            match turn {
                Turn::Over => return Ok(()),
                Turn::Go(index) => {
                    // A value may have come since it was last looked: what is filled in is also redacted.
                    self.learn();
                    self.settle(index).await?;
                }
                Turn::Skip(index, root) => {
                    let how = match self.past[root].outcome {
                        Some((Outcome::Interrupted, _)) => "which was cut off",
                        Some((Outcome::Skipped, _)) => "which was not reached",
                        _ => "which failed",
                    };
                    let message = format!("needs {}, {how}", self.plan.resources[root].address);
                    self.finish(index, End::new(Outcome::Skipped, message, Duration::ZERO));
                }
                Turn::Finish(index) => self.finish_put_off(index).await?,
                Turn::Wait(waiting) => self.wait(&waiting).await?,
            }
        }
    }

    /// True once an operator has ended the run.
    pub(super) fn is_cancelled(&mut self) -> bool {
        if *self.cancel.borrow() && self.stop != Some(RunState::Cancelled) {
            self.halt(RunState::Cancelled, "cancelled by an operator".to_owned());
        }
        self.stop == Some(RunState::Cancelled)
    }

    /// Brings one resource, or one group of them, to an outcome.
    async fn settle(&mut self, index: usize) -> Result<(), Stop> {
        self.unpark();
        let planned = &self.plan.resources[index];
        let yields = postern_proto::spec::kind(&planned.kind).and_then(|kind| (kind.yields)(&planned.spec));
        if yields.is_none() && self.past[index].attempts == 0 && self.terms.done.contains(&planned.address) {
            let message = "done in the run that this one resumes";
            self.finish(index, End::new(Outcome::Unchanged, message, Duration::ZERO));
            return Ok(());
        }
        let end = self.group_end(index);
        self.group(index..end).await
    }

    fn group_end(&self, index: usize) -> usize {
        let key = |i: usize| self.bound.get(i)?.as_ref()?.merge_key();
        let first = if self.terms.check { None } else { key(index) };
        // It needs what the first one needs, or one of those between them and nothing that is not there for the first.
        let as_ready = |i: usize| match (&self.needs[index], &self.needs[i]) {
            (Some(first), Some(on)) if first != on => {
                let between = |at: &usize| (index..i).contains(at);
                on.iter().any(between) && on.iter().all(|at| between(at) || first.contains(at))
            }
            (first, on) => first == on,
        };
        let same = |i: &usize| {
            self.past[*i].outcome.is_none()
                && first.is_some()
                && key(*i) == first
                && as_ready(*i)
                && !self.terms.done.contains(self.address(*i))
        };
        index + 1 + (index + 1..self.bound.len()).take_while(same).count()
    }

    /// Ends an attempt and settles the resource.
    pub(super) fn finish(&mut self, index: usize, mut end: End) {
        end.message = clamp_to(&self.redact.text(&end.message), MESSAGE);
        let (outcome, message) = (end.outcome, end.message.clone());
        self.end_attempt(index, end);
        self.past[index].outcome = Some((outcome, message.clone()));
        self.mind(index, outcome, &message);
        if !text::holes(&self.plan.resources[index].spec).is_empty() {
            // What was filled in may be secret: it is kept no longer than it is used.
            self.bound[index] = None;
        }
    }

    /// Ends an attempt; the resource may be tried again.
    pub(super) fn end_attempt(&mut self, index: usize, end: End) {
        self.past[index].attempts = self.past[index].attempts.max(1);
        let (address, attempt) = self.attempt_of(index);
        self.past[index].open = false;
        let diff = self.redact.text(&end.diff);
        let diff = match self.diffs_left.checked_sub(diff.len()) {
            Some(left) => {
                self.diffs_left = left;
                diff
            }
            None => "the diffs of this run are too long to be kept\n".to_owned(),
        };
        let duration_ns = u64::try_from(end.took.as_nanos()).unwrap_or(u64::MAX);
        self.emit(EventKind::ResourceFinished {
            address,
            attempt,
            outcome: end.outcome,
            message: clamp_to(&self.redact.text(&end.message), MESSAGE),
            diff,
            duration_ns,
            seen: end.seen,
        });
    }

    /// What an outcome means for the run.
    pub(super) fn mind(&mut self, index: usize, outcome: Outcome, message: &str) {
        let address = &self.plan.resources[index].address;
        match outcome {
            Outcome::Failed => {
                self.failures += 1;
                self.halt(RunState::Failed, format!("{address}: {message}"));
            }
            Outcome::Interrupted => self.halt(RunState::Interrupted, format!("{address}: {message}")),
            Outcome::Unchanged | Outcome::Changed | Outcome::Skipped | Outcome::WouldChange => {}
        }
    }

    pub(super) fn halt(&mut self, state: RunState, why: String) {
        if self.stop.is_none() || state == RunState::Cancelled {
            (self.stop, self.why) = (Some(state), why);
        }
    }

    fn summary(&self) -> (RunState, String) {
        if let Some(stop) = self.stop {
            if stop == RunState::Failed && self.terms.undo_of.is_some() && self.failures > 0 {
                return (stop, self.undo_failures());
            }
            let others = self.failures.saturating_sub(1);
            let more = if stop == RunState::Failed && others > 0 {
                format!("; {others} more failed")
            } else {
                String::new()
            };
            // The count is not what is cut off.
            let room = TEXT - more.len();
            return (stop, format!("{}{more}", shortened(&self.why, room)));
        }
        let count = |wanted: Outcome| {
            self.past.iter().filter(|past| past.outcome.as_ref().is_some_and(|(o, _)| *o == wanted)).count()
        };
        let words = [
            (count(Outcome::Changed), "changed"),
            (count(Outcome::WouldChange), "would change"),
            (count(Outcome::Unchanged), "unchanged"),
            (self.beyond_undo, "could not be undone"),
        ];
        let parts: Vec<String> =
            words.into_iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
        (RunState::Ok, if parts.is_empty() { "nothing to do".to_owned() } else { parts.join(", ") })
    }

    pub(super) fn attempt_of(&self, index: usize) -> (Address, u32) {
        (self.plan.resources[index].address.clone(), self.past[index].attempts.max(1))
    }

    /// Names the next step of an attempt.
    pub(super) fn next_step(&mut self, index: usize) -> StepId {
        let (address, attempt) = self.attempt_of(index);
        let step = self.past[index].next_step;
        self.past[index].next_step += 1;
        StepId { address, attempt, step }
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
            StepEnd::Error(error) => StepEnd::Error(clamp(&self.redact.text(&error))),
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

fn hash_of(accepted: &Record) -> PlanHash {
    match accepted {
        Record::Accepted { hash, .. } => *hash,
        _ => PlanHash::of(&[]),
    }
}

fn accepted_event(accepted: &Record, plan: &Plan) -> EventKind {
    EventKind::Accepted { plan: hash_of(accepted), resources: plan.resources.len() as u32 }
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

pub(super) fn summary_of(steps: &[Step]) -> String {
    steps.iter().map(Step::summary).collect::<Vec<_>>().join("; ")
}

/// One line within the bounds that the journal's room was reserved for.
pub(super) fn clamp(text: &str) -> String {
    clamp_to(text, TEXT)
}

fn clamp_to(text: &str, limit: usize) -> String {
    let line: String = text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    shortened(&line, limit)
}

fn shortened(line: &str, limit: usize) -> String {
    if line.len() <= limit {
        return line.to_owned();
    }
    let cut = (0..=limit - 3).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &line[..cut])
}

/// A late value in the journal, bytes: escapes may take six for one.
const LATE: u64 = 6 * 4096 + 200;

/// Steps of one attempt that room is set aside for when a run is taken. An attempt with more gets more before its
/// first one.
pub(super) const STEPS: u64 = 5;
/// A text in a record, bytes: quotes and backslashes double in JSON.
const TEXT_ROOM: u64 = 2 * TEXT as u64;
const MESSAGE_ROOM: u64 = 2 * MESSAGE as u64;
/// A record without its texts, bytes.
const FIXED: u64 = 400;

fn event_room(address: &Address) -> u64 {
    2 * address.as_str().len() as u64 + FIXED
}

/// Room for the two events of a step, with texts as long as they may be, bytes.
pub(super) fn step_room(address: &Address) -> u64 {
    2 * event_room(address) + 2 * TEXT_ROOM
}

/// Room for all state records of a run, bytes: every attempt with [`STEPS`] steps.
pub(super) fn room_for(plan: &Plan) -> u64 {
    let waits = !plan.secrets().is_empty();
    let resource = |planned: &postern_proto::plan::PlannedResource| {
        let late = if planned.spec.get("late").is_some() { LATE } else { 0 };
        // It says once that it waits for the controller, and that it goes on.
        let parked = if waits { 2 * FIXED + TEXT_ROOM } else { 0 };
        let attempt = 2 * event_room(&planned.address) + MESSAGE_ROOM + late + parked;
        u64::from(MAX_ATTEMPTS) * (STEPS * step_room(&planned.address) + attempt)
    };
    plan.resources.iter().map(resource).sum::<u64>() + TEXT_ROOM + FIXED
}
