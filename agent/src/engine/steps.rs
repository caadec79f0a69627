//! How a run performs one step, and what it makes of steps that were cut off.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_proto::event::{EventKind, Outcome, StepEnd, StepId};

use super::act;
use super::book::{Record, slot};
use super::exec::{self, Ended, Place};
use super::past::PastStep;
use super::run::{Failure, MAX_ATTEMPTS, RunTask, StepResult, Stop, clamp};
use crate::resources::{Exec, Step};
use crate::supervise::Exit;
use crate::supervise::spool::{Claim, Reader, claim, last_words};

/// How long a lock of somebody else's is waited for (T11).
const LOCK_WAIT: Duration = Duration::from_secs(900);
/// Between looks at a lock.
const LOCK_LOOK: Duration = Duration::from_millis(500);
/// What a failed process said last, characters.
const LAST_WORDS: usize = 300;

impl RunTask {
    pub(super) async fn step(&mut self, id: StepId, step: &Step, last: bool) -> Result<StepResult, Stop> {
        match step {
            Step::Exec(exec) => Box::pin(self.exec(id, exec, step.summary(), last)).await,
            _ => self.change(id, step).await,
        }
    }

    /// A step that this process performs itself.
    async fn change(&mut self, id: StepId, step: &Step) -> Result<StepResult, Stop> {
        let name = slot(self.run, self.next_seq());
        let (sys, dir, replaced) = (self.ctx.config.sys.clone(), self.ctx.backup_dir.clone(), step.clone());
        let kept = tokio::task::spawn_blocking(move || act::keep(&sys, &dir, &name, &replaced)).await;
        let kept = kept.unwrap_or_else(|error| Err(error.to_string()));
        self.kept = true;
        self.emit(EventKind::StepStarted { step: id.clone(), summary: clamp(&step.summary()) });
        let done = match kept {
            Ok(()) => {
                self.commit().await?;
                act::act(self.ctx.config.sys.clone(), step.clone()).await
            }
            // What could not be brought back is not replaced.
            Err(error) => Err(error),
        };
        Ok(match done {
            Ok(()) => {
                self.end_step(id, StepEnd::Done, 0);
                Ok(String::new())
            }
            Err(error) => {
                self.end_step(id, StepEnd::Error(error.clone()), 0);
                Err(Failure { message: error, cancelled: false })
            }
        })
    }

    async fn exec(
        &mut self,
        id: StepId,
        exec: &Exec,
        mut summary: String,
        last: bool,
    ) -> Result<StepResult, Stop> {
        let seq = self.next_seq();
        let spool = self.ctx.spool_dir.join(slot(self.run, seq));
        let holder = self.ctx.config.sys.first_lock(&exec.waits_for);
        if let Some((holder, _)) = &holder {
            summary = format!("{summary} (waits for {holder} to be done)");
        }
        let ready = exec::job(&self.ctx.config, exec, &spool).and_then(|job| {
            let spare = exec::spare(&self.ctx.config);
            spare.map(|spare| (job, spare)).map_err(|error| format!("cannot start a supervisor: {error}"))
        });
        self.emit(EventKind::StepStarted { step: id.clone(), summary: clamp(&summary) });
        let (job, spare) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                self.end_step(id, StepEnd::Error(error.clone()), 0);
                return Ok(Err(Failure { message: error, cancelled: false }));
            }
        };
        self.pending.push(Record::Exec { run: self.run, seq, last });
        self.commit().await?;
        if holder.is_some()
            && let Err(why) = self.wait_for_locks(&exec.waits_for).await
        {
            self.end_step(id, StepEnd::Error(why.clone()), 0);
            let cancelled = *self.cancel.borrow();
            return Ok(Err(Failure { message: why, cancelled }));
        }
        let shared = Arc::clone(&self.ctx.shared);
        let place = Place {
            shared: &shared,
            run: self.run,
            step: id.clone(),
            spool: spool.clone(),
            cancel: self.cancel.clone(),
        };
        let ended = spare.run(&job, place).await;
        self.ended(id, spool, ended).await
    }

    async fn wait_for_locks(&mut self, locks: &[String]) -> Result<(), String> {
        let until = tokio::time::Instant::now() + LOCK_WAIT;
        while let Some((holder, lock)) = self.ctx.config.sys.first_lock(locks) {
            if *self.cancel.borrow() {
                return Err(format!("while it waited for {holder}, which holds {lock}"));
            }
            if tokio::time::Instant::now() >= until {
                let waited = LOCK_WAIT.as_secs() / 60;
                return Err(format!("{lock} was held by {holder} for {waited} minutes; it was left alone"));
            }
            tokio::time::sleep(LOCK_LOOK).await;
        }
        Ok(())
    }

    /// Writes down how a process ended, once its output is on the disk.
    async fn ended(&mut self, id: StepId, spool: PathBuf, ended: Ended) -> Result<StepResult, Stop> {
        let (end, frames, cancelled, note) = match ended {
            Ended::Exit(exit) => {
                // Anyone may end a supervisor; only what is in the journal is an operator's wish.
                let cancelled = exit.cancelled && *self.cancel.borrow();
                (exit.end.clone(), exit.total_frames(), cancelled, exit.note)
            }
            Ended::Dead(why) => {
                let end = StepEnd::Error(format!("{why}; whether the process is over is not known"));
                (end, count(&spool).await, false, String::new())
            }
            Ended::Never(why) => {
                let why = if why.is_empty() { "its supervisor ended at once" } else { &why };
                (StepEnd::Error(format!("the process was not started: {why}")), 0, false, String::new())
            }
        };
        let failure = exec::failure(&end);
        if frames > 0 {
            let words = failure.is_some();
            let read = tokio::task::spawn_blocking(move || {
                let synced = Reader::open(&spool).and_then(|mut reader| reader.sync());
                (synced, if words { last_words(&spool, LAST_WORDS) } else { String::new() })
            });
            let (synced, words) = self.patiently(read).await?.unwrap_or_else(|_| (Ok(()), String::new()));
            if let Err(error) = synced {
                tracing::warn!(%error, "output of a step could not be synced");
            }
            self.end_step(id, end, frames);
            return Ok(match failure {
                None => Ok(note),
                Some(how) if words.is_empty() => Err(Failure { message: how, cancelled }),
                Some(how) => Err(Failure { message: format!("{how}: {words}"), cancelled }),
            });
        }
        self.end_step(id, end, frames);
        Ok(failure.map_or(Ok(note), |message| Err(Failure { message, cancelled })))
    }

    /// Takes up what was in the middle when the agent or the host went down.
    pub(super) async fn recover(&mut self) -> Result<(), Stop> {
        let shared = Arc::clone(&self.ctx.shared);
        let (boot, now) =
            (shared.lock().book.runs.get(&self.run).map(|book| book.boot), self.ctx.config.boot_id);
        let Some(boot) = boot else { return Ok(()) };
        let members: Vec<usize> = (0..self.past.len()).filter(|index| self.past[*index].open).collect();
        let step =
            members.iter().filter_map(|index| self.past[*index].step.clone()).max_by_key(|step| step.seq);
        let why = if boot == now { "the agent was restarted" } else { "the host was restarted" };
        let began = Instant::now();
        match step {
            _ if members.is_empty() => {}
            None => self.retry(&members, why),
            Some(PastStep { id, exec: None, end: None, .. }) => {
                self.end_step(id, StepEnd::Error(format!("cut off: {why}")), 0);
                self.retry(&members, why);
            }
            Some(PastStep { exec, end: Some(end), .. }) => match exec::failure(&end) {
                Some(message) => {
                    self.conclude(&members, vec![], Err(Failure { message, cancelled: false }), "", began)
                        .await?;
                }
                None if exec == Some(true) => {
                    self.conclude(&members, vec![], Ok(String::new()), "done", began).await?;
                }
                None => self.retry(&members, why),
            },
            Some(PastStep { id, seq, exec: Some(last), end: None }) => {
                let spool = self.ctx.spool_dir.join(slot(self.run, seq));
                let ended = match claim(&spool, boot == now) {
                    Ok(Claim::Running) => {
                        let place = Place {
                            shared: &shared,
                            run: self.run,
                            step: id.clone(),
                            spool: spool.clone(),
                            cancel: self.cancel.clone(),
                        };
                        Box::pin(place.adopt()).await
                    }
                    Ok(Claim::Exited(exit))
                        if boot != now && !*self.cancel.borrow() && ended_with_the_boot(&exit) =>
                    {
                        Ended::Dead(format!("cut off: {why}"))
                    }
                    Ok(Claim::Exited(exit)) => Ended::Exit(exit),
                    Ok(Claim::Dead) => Ended::Dead(format!("cut off: {why}")),
                    Ok(Claim::Never) => Ended::Never(why.to_owned()),
                    Err(error) => Ended::Dead(format!("cut off: {why}; its spool cannot be read: {error}")),
                };
                let told = matches!(ended, Ended::Exit(_));
                let never = matches!(ended, Ended::Never(_));
                let result = self.ended(id, spool, ended).await?;
                let bound = self.bound();
                if told && (last || result.is_err()) {
                    self.conclude(&members, vec![], result, "done", began).await?;
                } else if told || never || members.iter().all(|index| bound[*index].repeatable()) {
                    self.retry(&members, why);
                } else {
                    let message =
                        format!("{why} while it ran, and it is not repeatable: how far it got is not known");
                    for index in members {
                        let took = began.elapsed();
                        self.finish(index, Outcome::Interrupted, message.clone(), String::new(), took);
                    }
                }
            }
        }
        if boot != now {
            self.pending.push(Record::Boot { run: self.run, boot: now });
        }
        Ok(())
    }

    /// Closes the attempts that were cut off; the resources are observed again and planned again.
    fn retry(&mut self, members: &[usize], why: &str) {
        for index in members.iter().copied() {
            if self.past[index].attempts >= MAX_ATTEMPTS {
                let message =
                    format!("given up: it was cut off {MAX_ATTEMPTS} times, the last time since {why}");
                self.finish(index, Outcome::Failed, message, String::new(), Duration::ZERO);
            } else {
                let message = format!("cut off since {why}; it is observed and planned again");
                self.end_attempt(index, Outcome::Interrupted, message, String::new(), Duration::ZERO);
            }
        }
    }
}

/// True when the shutdown may have ended it: the host then sends TERM to every process, and either the
/// supervisor or its process may see it first. 143 is how a shell or a handler tells of that TERM.
fn ended_with_the_boot(exit: &Exit) -> bool {
    exit.cancelled || matches!(exit.end, StepEnd::Signal(_) | StepEnd::Exit(143))
}

/// Frames in the spool of a step whose supervisor can no longer say.
async fn count(spool: &std::path::Path) -> u64 {
    let spool = spool.to_owned();
    let counted = tokio::task::spawn_blocking(move || {
        let mut reader = Reader::open(&spool).ok()?;
        while reader.next_frame().ok()?.is_some() {}
        Some(reader.position())
    });
    counted.await.ok().flatten().unwrap_or(0)
}
