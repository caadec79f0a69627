//! One attempt at a resource, or at a group of them that is brought about together: look, act, look again.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_proto::event::{EventKind, Outcome, RunState};
use serde_json::Value;

use super::approve::digest;
use super::backup::{After, Before, Kept};
use super::guarded::{Armed, Done};
use super::look::Unseen;
use super::run::{End, Failure, RunTask, StepResult, Stop, refusal, summary_of};
use super::steps::LOCK_TRIES;
use crate::resources::{Bound, Depth, Step, View};

const BROUGHT_ABOUT: &str = "an earlier attempt, which was cut off, brought it about";

impl RunTask {
    /// Begins an attempt.
    pub(super) fn begin(&mut self, index: usize) {
        self.past[index].attempts += 1;
        self.past[index].open = true;
        self.past[index].next_step = 0;
        let (address, attempt) = self.attempt_of(index);
        self.emit(EventKind::ResourceStarted { address, attempt });
    }

    pub(super) async fn group(&mut self, members: Range<usize>) -> Result<(), Stop> {
        let began = Instant::now();
        for index in members.clone() {
            // One that waited for the controller goes on with the attempt that it waited in.
            if !self.past[index].open {
                self.begin(index);
            }
        }
        let Some((views, stopped)) = self.look_alone(members.clone(), began).await? else { return Ok(()) };
        let (mut changing, mut plans, mut diffs, mut seen) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut protect, mut waits, mut found) = (None, 0, Vec::new());
        for (index, view) in members.zip(views) {
            if view.steps.is_empty() && self.past[index].acted && !self.terms.check {
                found.push(index);
            } else if view.steps.is_empty() {
                let digest = if self.terms.check { digest(&self.ctx.seen_key, &view) } else { String::new() };
                self.unchanged(index, digest, began.elapsed());
            } else if self.terms.check {
                let end = End::new(Outcome::WouldChange, summary_of(&view.steps), began.elapsed());
                let digest = digest(&self.ctx.seen_key, &view);
                self.finish(index, end.diff(view.diff).seen(digest));
            } else {
                changing.push(index);
                plans.push(view.steps);
                // Those that are brought about together are packages, which none protects.
                (protect, waits) = (view.protect, view.waits);
                diffs.push(view.diff);
                seen.push((index, view.seen));
            }
        }
        for index in found {
            // Proved and kept like any change: an undo is to know what this run left.
            self.conclude(&[index], vec![], Ok(String::new()), BROUGHT_ABOUT, began).await?;
        }
        let Some(first) = changing.first().copied() else { return Ok(()) };
        if let Some(failure) = stopped {
            for index in changing {
                self.give_up(index, &failure, began);
            }
            return Ok(());
        }
        if let Err(why) = self.keep(seen).await? {
            // What could not be brought back is not changed.
            for index in changing {
                self.finish(index, End::new(Outcome::Failed, why.clone(), began.elapsed()));
            }
            return Ok(());
        }
        let steps = match (plans.len(), &self.bound[first]) {
            (2.., Some(bound)) => bound.merge(plans),
            _ => plans.concat(),
        };
        // What runs under guard is over before its guard is.
        if protect.is_none() && changing.len() == 1 && (1..steps.len()).contains(&waits) {
            return self.put_off(first, steps, waits, diffs.concat(), began).await;
        }
        let result = match self.guarded(first, &steps, protect).await? {
            Done::Steps(result) => result,
            Done::Waits => return Ok(()),
        };
        self.conclude(&changing, diffs, result, &summary_of(&steps), began).await
    }

    /// One of a group could not be observed.
    pub(super) fn blind(
        &mut self,
        members: Range<usize>,
        views: &[View],
        at: usize,
        unseen: Unseen,
        took: Duration,
    ) {
        let first = members.start;
        for index in members {
            match views.get(index - first) {
                Some(view) if view.steps.is_empty() => self.unchanged(index, String::new(), took),
                None if index == at && unseen.after_apply => {
                    let message = format!("known after apply: {}", unseen.why);
                    self.finish(index, End::new(Outcome::WouldChange, message, took));
                }
                None if index == at => {
                    self.finish(index, End::new(Outcome::Failed, unseen.why.clone(), took))
                }
                _ => self.finish(index, End::new(Outcome::Skipped, "", took)),
            }
        }
    }

    fn unchanged(&mut self, index: usize, seen: String, took: Duration) {
        let end = if self.past[index].acted {
            End::new(Outcome::Changed, BROUGHT_ABOUT, took)
        } else {
            End::new(Outcome::Unchanged, "", took)
        };
        self.finish(index, end.seen(seen));
    }

    /// Keeps these states, as they were seen; on the disk when this returns.
    pub(super) async fn keep(&mut self, seen: Vec<(usize, Value)>) -> Result<Result<(), String>, Stop> {
        if !self.keeps {
            return Ok(Ok(()));
        }
        let states = seen.into_iter().map(|(index, seen)| {
            let planned = &self.plan.resources[index];
            let used = postern_proto::text::late(&planned.spec);
            let late = self.late.iter().filter(|(name, _)| used.contains(*name));
            let late = late.map(|(name, value)| (name.clone(), value.clone())).collect();
            let bound = self.bound.get(index).and_then(Option::as_ref);
            let secret = bound.is_none_or(|bound| bound.may_hold_secrets(&seen));
            let before = Before::new(planned.address.clone(), planned.kind.clone(), seen, late);
            let text = serde_json::to_string(&before).unwrap_or_default();
            let before = if self.redact.finds(&text) {
                before.withhold("there was a secret in what it was, and secrets are not kept")
            } else if secret {
                // One that was set anew since: its old value is known to nobody here.
                before
                    .withhold("what it was may hold an older value of its secrets, and secrets are not kept")
            } else {
                before
            };
            (index, self.past[index].acted, before)
        });
        let states: Vec<_> = states.collect();
        self.kept = true;
        let kept = Kept::of(&self.ctx.backup_dir, self.run);
        let (plan, undid) = (self.hash, self.terms.undo_of);
        let work = tokio::task::spawn_blocking(move || kept.keep(plan, undid, &states));
        Ok(self.patiently(work).await?.unwrap_or_else(|error| Err(error.to_string())))
    }

    /// Keeps what a resource is now, so that an undo knows whether somebody else has changed it since.
    pub(super) async fn keep_after(&mut self, index: usize, bound: &Arc<dyn Bound>, view: &View) {
        if !self.keeps {
            return;
        }
        let (kept, bound) = (Kept::of(&self.ctx.backup_dir, self.run), Arc::clone(bound));
        let (seen, essence, redact) = (view.seen.clone(), essence_of(&view.essence), self.redact.clone());
        let work = tokio::task::spawn_blocking(move || {
            let Some(before) = kept.before(index).map_err(|error| error.to_string())? else { return Ok(()) };
            let trace = match before.withheld {
                None => bound.trace(&before.seen, &seen)?,
                Some(_) => Value::Null,
            };
            let trace = if redact.finds(&trace.to_string()) { Value::Null } else { trace };
            kept.keep_after(index, &After::new(essence, trace)).map_err(|error| error.to_string())
        });
        let done: Result<(), String> = work.await.unwrap_or_else(|error| Err(error.to_string()));
        if let Err(error) = done {
            let address = &self.plan.resources[index].address;
            tracing::warn!(error = self.redact.text(&error), %address, "what it is after the change was not kept");
        }
    }

    /// The same where its proof failed or was not waited for: the change happened, and somebody may mend by hand
    /// what it left.
    async fn keep_unproved(&mut self, index: usize, bound: &Arc<dyn Bound>) -> Result<(), Stop> {
        // What only acts has no state, so there is nothing to compare it with.
        if !self.keeps || bound.foreseen().is_some() {
            return Ok(());
        }
        let ctx = Arc::clone(&self.ctx);
        match self.patiently(bound.view(&ctx.config.sys, Depth::Whole)).await? {
            Ok(view) => self.keep_after(index, bound, &view).await,
            Err(error) => {
                let (error, address) = (self.redact.text(&error.to_string()), self.address(index));
                tracing::warn!(error, %address, "what it is after the change could not be looked at");
            }
        }
        Ok(())
    }

    pub(super) async fn steps(&mut self, owner: usize, steps: &[Step]) -> Result<StepResult, Stop> {
        self.steps_under(owner, steps, None).await
    }

    /// The same. Under guard the last one is not the end of the attempt, and none outlasts the guard.
    pub(super) async fn steps_under(
        &mut self,
        owner: usize,
        steps: &[Step],
        guard: Option<&Armed<'_>>,
    ) -> Result<StepResult, Stop> {
        let address = self.address(owner).clone();
        if let Err(error) = self.room_for_steps(&address, steps, guard.is_some()).await {
            return Ok(Err(Failure::new(refusal(error).message)));
        }
        self.perform(owner, steps, guard, false).await
    }

    /// Performs steps that the journal has room for; `more` says that others follow in this attempt.
    pub(super) async fn perform(
        &mut self,
        owner: usize,
        steps: &[Step],
        guard: Option<&Armed<'_>>,
        more: bool,
    ) -> Result<StepResult, Stop> {
        self.acted = true;
        self.ahead.clear();
        let mut note = String::new();
        for (place, step) in steps.iter().enumerate() {
            let mut until = tokio::time::Instant::now() + self.ctx.config.limits.lock_wait;
            let mut tries = 0;
            loop {
                let mut step = Cow::Borrowed(step);
                if let Some(guard) = guard {
                    let Some(left) = guard.left() else {
                        return Ok(Err(Failure::new("the time that its guard gives it is over".to_owned())));
                    };
                    until = until.min(tokio::time::Instant::now() + left);
                    if let Step::Exec(exec) = step.to_mut() {
                        exec.timeout = exec.timeout.min(left);
                    }
                }
                let id = self.next_step(owner);
                let last = guard.is_none() && !more && place + 1 == steps.len();
                match self.step(id, &step, last, until).await? {
                    Ok(said) => note = said,
                    // Somebody took the lock between our look and its own: its turn comes again.
                    Err(failure) if failure.locked && tries < LOCK_TRIES => {
                        tries += 1;
                        continue;
                    }
                    Err(failure) => return Ok(Err(failure)),
                }
                break;
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
        for (index, diff) in members.iter().copied().zip(diffs) {
            let failed = |message: String| End::new(Outcome::Failed, message, began.elapsed());
            if let Err(failure) = &result
                && failure.cancelled
            {
                let message = format!("cancelled by an operator: {}", failure.message);
                if let Ok(bound) = self.bind(index) {
                    self.keep_unproved(index, &bound).await?;
                }
                self.finish(index, failed(message.clone()).diff(diff));
                self.halt(RunState::Cancelled, message);
                continue;
            }
            let alone = members.len() == 1;
            let bound = match self.bind(index) {
                Ok(bound) => bound,
                Err(unbound) => {
                    let why = result.as_ref().err().map_or(unbound.why, |failure| failure.message.clone());
                    self.finish(index, failed(why).diff(diff));
                    continue;
                }
            };
            if let (Err(failure), true, true) = (&result, alone, !self.keeps || bound.foreseen().is_some()) {
                self.finish(index, failed(failure.message.clone()).diff(diff));
                continue;
            }
            let ctx = Arc::clone(&self.ctx);
            let view = self.patiently(bound.view(&ctx.config.sys, Depth::Proof)).await?;
            match &view {
                Ok(view) => self.keep_after(index, &bound, view).await,
                Err(_) => self.keep_unproved(index, &bound).await?,
            }
            let failure = result.as_ref().err().map(|failure| failure.message.as_str());
            let end = match (view, failure) {
                (Ok(view), None) if view.steps.is_empty() => self.reached(&result, done, began),
                (Ok(view), Some(_)) if view.steps.is_empty() && !alone => self.reached(&result, done, began),
                (_, Some(failure)) => failed(failure.to_owned()),
                (Ok(view), None) => {
                    let (still, state) = (summary_of(&view.steps), view.diff.lines().next().unwrap_or(""));
                    failed(format!(
                        "the host did not reach the declared state, still to be done: {still} ({state})"
                    ))
                }
                (Err(error), None) => failed(format!("the result could not be observed: {error}")),
            };
            self.finish(index, end.diff(diff));
        }
        Ok(())
    }

    fn reached(&self, result: &StepResult, done: &str, began: Instant) -> End {
        let note = result.as_ref().map_or("", String::as_str);
        let message = if note.is_empty() { done.to_owned() } else { format!("{done}; {note}") };
        End::new(Outcome::Changed, message, began.elapsed())
    }
}

/// Stands for an essence where only sameness matters: nothing of the state itself is in it.
pub(super) fn essence_of(essence: &Value) -> Value {
    Value::String(postern_proto::ids::PlanHash::of(essence.to_string().as_bytes()).to_string())
}
