//! What is changed is looked at while nobody else works at it: whoever holds a lock that the steps will wait for
//! is waited for before the look that is kept (T11). What he does meanwhile is then not taken for the run's own,
//! and an undo leaves it alone.

use std::ops::Range;
use std::time::Instant;

use postern_proto::event::{EventKind, Outcome, RunState, StepEnd, WAITS_FOR};

use super::run::{End, Failure, RunTask, Stop, clamp};
use super::steps::LOCK_TRIES;
use crate::resources::{Step, View};

/// Whether others were in the way.
pub(super) enum Others {
    /// Nobody is at work.
    None,
    /// They are done now: what was seen before is old.
    Done,
    /// They are not, or an operator has ended the wait.
    Still(Failure),
}

impl RunTask {
    /// What these are while nobody else works at what is to be changed, and why the wait for that was given up.
    /// `None` when one of them could not be looked at, which settles them all.
    pub(super) async fn look_alone(
        &mut self,
        members: Range<usize>,
        began: Instant,
    ) -> Result<Option<(Vec<View>, Option<Failure>)>, Stop> {
        let until = tokio::time::Instant::now() + self.ctx.config.limits.lock_wait;
        let mut tries = 0;
        loop {
            let mut views: Vec<View> = Vec::new();
            for index in members.clone() {
                match self.look(index).await? {
                    Ok(view) => views.push(view),
                    Err(unseen) => {
                        self.blind(members, &views, index, unseen, began.elapsed());
                        return Ok(None);
                    }
                }
            }
            let steps: Vec<&Step> = views.iter().flat_map(|view| &view.steps).collect();
            match self.others(members.start, &steps, tries, until).await? {
                Others::None => return Ok(Some((views, None))),
                Others::Done => tries += 1,
                Others::Still(failure) => return Ok(Some((views, Some(failure)))),
            }
        }
    }

    /// Waits for whoever holds a lock that these steps wait for, as a step of its own. After some `tries` that
    /// is left to the steps: their own waits come to an end.
    pub(super) async fn others(
        &mut self,
        index: usize,
        steps: &[&Step],
        tries: u32,
        until: tokio::time::Instant,
    ) -> Result<Others, Stop> {
        if self.terms.check || tries >= LOCK_TRIES {
            return Ok(Others::None);
        }
        let mut locks: Vec<String> = Vec::new();
        for step in steps {
            let Step::Exec(exec) = step else { continue };
            for lock in &exec.waits_for {
                if !locks.contains(lock) {
                    locks.push(lock.clone());
                }
            }
        }
        let Some((holder, lock)) = self.ctx.config.sys.first_lock(&locks) else { return Ok(Others::None) };
        let id = self.next_step(index);
        let summary = clamp(&self.redact.text(&format!("{WAITS_FOR}{holder} to be done with {lock}")));
        self.emit(EventKind::StepStarted { step: id.clone(), summary });
        self.commit().await?;
        // What is seen now is old when this is over.
        self.ahead.clear();
        let waited = self.wait_for_locks(&locks, until).await;
        let (end, others) = match waited {
            Ok(()) => (StepEnd::Done, Others::Done),
            Err(why) => {
                let cancelled = *self.cancel.borrow();
                (StepEnd::Error(why.clone()), Others::Still(Failure { cancelled, ..Failure::new(why) }))
            }
        };
        self.end_step(id, end, 0);
        Ok(others)
    }

    /// The end of one that nothing was done for.
    pub(super) fn give_up(&mut self, index: usize, failure: &Failure, began: Instant) {
        let failed = |message: String| End::new(Outcome::Failed, message, began.elapsed());
        if failure.cancelled {
            let message = format!("cancelled by an operator: {}", failure.message);
            self.finish(index, failed(message.clone()));
            self.halt(RunState::Cancelled, message);
        } else {
            self.finish(index, failed(failure.message.clone()));
        }
    }
}
