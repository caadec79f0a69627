//! What a run makes of steps that were cut off when the agent or the host went down.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_proto::event::{Outcome, StepEnd, StepId};
use postern_proto::text;

use super::book::{Record, slot};
use super::exec::{self, Ended, Place};
use super::past::PastStep;
use super::run::{End, Failure, MAX_ATTEMPTS, RunTask, StepResult, Stop};
use crate::resources::{Depth, bind_filled};
use crate::supervise::Exit;
use crate::supervise::spool::{Claim, claim};

impl RunTask {
    /// Takes up what was in the middle when the agent or the host went down.
    pub(super) async fn recover(&mut self) -> Result<(), Stop> {
        let boot = self.ctx.shared.lock().book.runs.get(&self.run).map(|book| book.boot);
        let now = self.ctx.config.boot_id;
        let Some(boot) = boot else { return Ok(()) };
        let mut members: Vec<usize> = (0..self.past.len()).filter(|index| self.past[*index].open).collect();
        let step =
            members.iter().filter_map(|index| self.past[*index].step.clone()).max_by_key(|step| step.seq);
        let acted = |index: &usize| {
            let of = self.past[*index].step.as_ref();
            of.is_some_and(|of| of.acts && step.as_ref().is_some_and(|newest| newest.seq != of.seq))
        };
        // Something else was worked on after their steps.
        let put_off: Vec<usize> = members.iter().copied().filter(acted).collect();
        if let Some(step) = &step {
            // Others that are open have begun nothing: they wait for the controller, and go on waiting.
            let key = |index: usize| self.bound.get(index)?.as_ref()?.merge_key();
            let owner = members.iter().copied().find(|index| *self.address(*index) == step.id.address);
            members.retain(|index| {
                let with = owner.and_then(key);
                Some(*index) == owner
                    || with.is_some() && key(*index) == with && self.past[*index].step.is_none()
            });
        }
        let why = if boot == now { "the agent was restarted" } else { "the host was restarted" };
        let began = Instant::now();
        // Its own restart was in good order: everything was written to the disk before.
        let cut =
            boot != now && !matches!(&step, Some(PastStep { reboot: Some((was, _)), .. }) if *was != now);
        let mut taken_back = false;
        let runs_on = matches!(&step, Some(PastStep { exec: Some(_), end: None, .. }) if boot == now);
        if !members.is_empty() && !runs_on {
            taken_back |= self.settle_guards(false).await?;
        }
        match step {
            _ if members.is_empty() => {}
            // It waited, and had changed nothing: it waits on, for as long as it takes.
            None if self.parked => {}
            None => self.retry(&members, why),
            Some(PastStep { id, exec: None, end: None, reboot: Some((was, last)), .. }) if was != now => {
                self.end_step(id, StepEnd::Done, 0);
                if last {
                    self.resume(&members, Ok("the host was restarted".to_owned()), began).await?;
                } else {
                    self.retry(&members, why);
                }
            }
            Some(PastStep { id, exec: None, end: None, reboot, .. }) => {
                let what = if reboot.is_some() { "the host was not restarted" } else { "cut off" };
                // The first one of an attempt under guard only arms it.
                let acted = id.step > 0;
                self.end_step(id, StepEnd::Error(format!("{what}: {why}")), 0);
                if acted { self.retry_or_tell(&members, why, began) } else { self.retry(&members, why) }
            }
            Some(PastStep { exec, reboot, end: Some(end), .. }) => match exec::failure(&end) {
                Some(message) => self.resume(&members, Err(Failure::new(message)), began).await?,
                None if exec == Some(true) || reboot.is_some_and(|(_, last)| last) => {
                    self.resume(&members, Ok(String::new()), began).await?;
                }
                // Of what runs under guard the process is not the end: it was not confirmed, and taken back.
                None => self.retry_or_tell(&members, why, began),
            },
            Some(PastStep { id, seq, exec: Some(last), end: None, .. }) => {
                let spool = self.ctx.spool_dir.join(slot(self.run, seq));
                let ended = self.found(&spool, &id, boot == now, why).await;
                let told = matches!(ended, Ended::Exit(_));
                let never = matches!(ended, Ended::Never(_));
                let result = self.step_ended(id, spool, ended).await?;
                if runs_on {
                    // Only now: it would have changed again what was taken back.
                    taken_back |= self.settle_guards(true).await?;
                }
                if told && (last || result.is_err()) {
                    self.resume(&members, result, began).await?;
                } else if never {
                    self.retry(&members, why);
                } else {
                    self.retry_or_tell(&members, why, began);
                }
            }
        }
        self.recover_put_off(&put_off, why, began).await?;
        // A guard also takes back what other resources had done, where its change put that in force.
        if cut || taken_back {
            self.reopen_what_was_lost().await?;
        }
        if boot != now {
            self.pending.push(Record::Boot { run: self.run, boot: now });
        }
        Ok(())
    }

    /// What is told as changed was seen in force, but not all that others write is on the disk by then: a power cut
    /// takes the last seconds back, and so may a guard. So it is looked at once more, and what is not there any more is tried again. What
    /// only acts leaves nothing to look at; what has holes, only we write, and we sync.
    async fn reopen_what_was_lost(&mut self) -> Result<(), Stop> {
        if self.terms.check || self.terms.undo_of.is_some() {
            return Ok(());
        }
        for index in 0..self.past.len() {
            let past = &self.past[index];
            let told = matches!(past.outcome, Some((Outcome::Changed, _)));
            let bound = self.bound.get(index).and_then(Option::as_ref).filter(|it| it.foreseen().is_none());
            let Some(bound) = bound.filter(|_| told && past.attempts < MAX_ATTEMPTS).cloned() else {
                continue;
            };
            let ctx = Arc::clone(&self.ctx);
            let view = self.patiently(bound.view(&ctx.config.sys, Depth::Cheap)).await?;
            if view.is_ok_and(|view| !view.steps.is_empty()) {
                tracing::warn!(address = %self.address(index), "what was done is gone: it is done again");
                self.past[index].outcome = None;
            }
        }
        Ok(())
    }

    /// What became of a process that an earlier agent started; one that still runs is followed to its end.
    async fn found(&self, spool: &Path, id: &StepId, same_boot: bool, why: &str) -> Ended {
        match claim(spool, same_boot) {
            Ok(Claim::Running) => {
                let place = Place {
                    shared: &self.ctx.shared,
                    run: self.run,
                    step: id.clone(),
                    spool: spool.to_owned(),
                    cancel: self.cancel.clone(),
                };
                Box::pin(place.adopt()).await
            }
            Ok(Claim::Exited(exit)) if !same_boot && !*self.cancel.borrow() && ended_with_the_boot(&exit) => {
                Ended::Dead(format!("cut off: {why}"))
            }
            Ok(Claim::Exited(exit)) => Ended::Exit(exit),
            Ok(Claim::Dead) => Ended::Dead(format!("cut off: {why}")),
            Ok(Claim::Never) => Ended::Never(why.to_owned()),
            Err(error) => Ended::Dead(format!("cut off: {why}; its spool cannot be read: {error}")),
        }
    }

    /// The steps are over: what is there now decides. An undo begins again from that.
    pub(super) async fn resume(
        &mut self,
        members: &[usize],
        result: StepResult,
        began: Instant,
    ) -> Result<(), Stop> {
        if self.terms.undo_of.is_some() {
            self.retry(members, "its steps were over");
            return Ok(());
        }
        // The look may need secrets, which this agent has to be given anew.
        self.commit().await?;
        self.wait_for(members).await?;
        self.acted = true;
        self.conclude(members, vec![], result, "done", began).await
    }

    /// Whatever its holes are filled in with.
    fn is_repeatable(&self, index: usize) -> bool {
        let planned = &self.plan.resources[index];
        match self.bound.get(index) {
            Some(Some(bound)) => bound.repeatable(),
            _ => {
                let formed = text::stand_in(&planned.spec);
                bind_filled(planned, &formed).is_ok_and(|bound| bound.repeatable())
            }
        }
    }

    /// What may be repeated is tried again; of the others it is said that they were cut off.
    pub(super) fn retry_or_tell(&mut self, members: &[usize], why: &str, began: Instant) {
        if members.iter().all(|index| self.is_repeatable(*index)) {
            return self.retry(members, why);
        }
        let message = format!("{why} while it ran, and it is not repeatable: how far it got is not known");
        for index in members.iter().copied() {
            self.finish(index, End::new(Outcome::Interrupted, message.clone(), began.elapsed()));
        }
    }

    /// Closes the attempts that were cut off; the resources are observed again and planned again.
    fn retry(&mut self, members: &[usize], why: &str) {
        for index in members.iter().copied() {
            if self.past[index].attempts >= MAX_ATTEMPTS {
                let message =
                    format!("given up: it was cut off {MAX_ATTEMPTS} times, the last time since {why}");
                self.finish(index, End::new(Outcome::Failed, message, Duration::ZERO));
            } else {
                let message = format!("cut off since {why}; it is observed and planned again");
                self.end_attempt(index, End::new(Outcome::Interrupted, message, Duration::ZERO));
            }
        }
    }
}

/// True when the shutdown may have ended it: the host then sends TERM to every process, and either the
/// supervisor or its process may see it first. 143 is how a shell or a handler tells of that TERM.
fn ended_with_the_boot(exit: &Exit) -> bool {
    exit.cancelled || matches!(exit.end, StepEnd::Signal(_) | StepEnd::Exit(143))
}
