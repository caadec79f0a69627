//! How a run performs one step.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use postern_proto::event::{EventKind, StepEnd, StepId};
use postern_proto::ids::Address;
use tokio::time::Instant;

use super::act;
use super::book::{Record, slot};
use super::exec::{self, Ended, Place};
use super::run::{Failure, RunTask, STEPS, StepResult, Stop, clamp, step_room};
use super::secrets::Secrets;
use super::writer::CommitError;
use crate::resources::{Exec, Step};
use crate::supervise::spool::{Reader, last_words};

/// How often a step is begun again when another took its lock in the moment before it.
pub(super) const LOCK_TRIES: u32 = 3;
/// What a guard tells like steps: that it is armed, that it looks, that it takes the change back. And in the room
/// of one, that it waited for the controller before.
const GUARD_STEPS: u64 = 4;
/// Between looks at a lock.
const LOCK_LOOK: Duration = Duration::from_millis(500);
/// The time that asking for a restart may take.
const REBOOT_LIMIT: Duration = Duration::from_secs(60);
/// What a failed process said last, characters.
const LAST_WORDS: usize = 300;

/// How many steps the journal may have to tell of this one.
fn most_tries(step: &Step) -> u64 {
    match step {
        Step::Exec(exec) if !exec.waits_for.is_empty() => 1 + u64::from(LOCK_TRIES),
        _ => 1,
    }
}

/// How many steps the journal may have to tell of beyond those that it counted on when the run was taken.
fn beyond(steps: &[Step], guarded: bool) -> u64 {
    let guard = if guarded { GUARD_STEPS } else { 0 };
    // Others are waited for before the look at what is changed, too, which is told like a step.
    let waits = if steps.iter().any(|step| most_tries(step) > 1) { u64::from(LOCK_TRIES) } else { 0 };
    (guard + waits + steps.iter().map(most_tries).sum::<u64>()).saturating_sub(STEPS)
}

impl RunTask {
    /// Sets room aside for the events of these steps, where they may be more than was counted on when the run was
    /// taken: a full disk refuses them before the first one acts, not in their middle.
    pub(super) async fn room_for_steps(
        &self,
        address: &Address,
        steps: &[Step],
        guarded: bool,
    ) -> Result<(), CommitError> {
        match beyond(steps, guarded) {
            0 => Ok(()),
            beyond => self.ctx.writer.reserve(self.run, beyond * step_room(address)).await,
        }
    }

    /// Performs one step; a lock of somebody else's is waited for until `until`.
    pub(super) async fn step(
        &mut self,
        id: StepId,
        step: &Step,
        last: bool,
        until: Instant,
    ) -> Result<StepResult, Stop> {
        match step {
            Step::Exec(exec) => Box::pin(self.exec(id, exec, step.summary(), last, until)).await,
            Step::HttpUnix(call) => {
                let exec = call.as_exec(&self.ctx.config.supervisor.program.to_string_lossy());
                Box::pin(self.exec(id, &exec, step.summary(), last, until)).await
            }
            Step::Reboot { .. } => self.reboot(id, step.summary(), last).await,
            _ => self.change(id, step).await,
        }
    }

    /// A step that this process performs itself.
    async fn change(&mut self, id: StepId, step: &Step) -> Result<StepResult, Stop> {
        self.started(&id, &step.summary());
        self.commit().await?;
        Ok(match act::act(self.ctx.config.sys.clone(), step.clone()).await {
            Ok(()) => {
                self.end_step(id, StepEnd::Done, 0);
                Ok(String::new())
            }
            Err(error) => {
                self.end_step(id, StepEnd::Error(error.clone()), 0);
                Err(Failure::new(error))
            }
        })
    }

    pub(super) fn started(&mut self, id: &StepId, summary: &str) {
        let summary = clamp(&self.redact.text(summary));
        self.emit(EventKind::StepStarted { step: id.clone(), summary });
    }

    /// Restarts the host. Where that succeeds, nothing comes after it here: the next start takes the run up.
    async fn reboot(&mut self, id: StepId, summary: String, last: bool) -> Result<StepResult, Stop> {
        let seq = self.next_seq();
        self.started(&id, &summary);
        self.pending.push(Record::Reboot { run: self.run, seq, boot: self.ctx.config.boot_id, last });
        self.commit().await?;
        let sys = self.ctx.config.sys.clone();
        let why = match sys.run(&["systemctl", "reboot"], &[], REBOOT_LIMIT).await {
            Ok(said) if said.ok() => {
                let wait = self.ctx.config.limits.reboot_wait;
                tokio::time::sleep(wait).await;
                format!("the host did not go down for its restart within {} s", wait.as_secs())
            }
            Ok(said) => format!("the host cannot be restarted: systemctl reboot: {}", said.last_line()),
            Err(error) => format!("the host cannot be restarted: {error}"),
        };
        self.end_step(id, StepEnd::Error(why.clone()), 0);
        Ok(Err(Failure::new(why)))
    }

    async fn exec(
        &mut self,
        id: StepId,
        exec: &Exec,
        mut summary: String,
        last: bool,
        until: Instant,
    ) -> Result<StepResult, Stop> {
        let seq = self.next_seq();
        let spool = self.ctx.spool_dir.join(slot(self.run, seq));
        let holder = self.ctx.config.sys.first_lock(&exec.waits_for);
        if let Some((holder, _)) = &holder {
            summary = format!("{summary} (waits for {holder} to be done)");
        }
        let secrets = self.secrets.as_ref().map(Secrets::values).unwrap_or_default();
        let ready = exec::job(&self.ctx.config, exec, &spool, &secrets).and_then(|job| {
            let spare = exec::spare(&self.ctx.config);
            spare.map(|spare| (job, spare)).map_err(|error| format!("cannot start a supervisor: {error}"))
        });
        self.started(&id, &summary);
        let (job, spare) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                self.end_step(id, StepEnd::Error(error.clone()), 0);
                return Ok(Err(Failure::new(error)));
            }
        };
        self.pending.push(Record::Exec { run: self.run, seq, last });
        self.commit().await?;
        if holder.is_some()
            && let Err(why) = self.wait_for_locks(&exec.waits_for, until).await
        {
            self.end_step(id, StepEnd::Error(why.clone()), 0);
            let cancelled = *self.cancel.borrow();
            return Ok(Err(Failure { cancelled, ..Failure::new(why) }));
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
        let mut result = self.step_ended(id, spool, ended).await?;
        if let Err(failure) = &mut result {
            failure.locked =
                !exec.waits_for.is_empty() && !failure.cancelled && lost_the_lock(&failure.message);
        }
        Ok(result)
    }

    /// Waits until nobody holds one of these; the error is for people.
    pub(super) async fn wait_for_locks(&mut self, locks: &[String], until: Instant) -> Result<(), String> {
        while let Some((holder, lock)) = self.ctx.config.sys.first_lock(locks) {
            if *self.cancel.borrow() {
                return Err(format!("while it waited for {holder}, which holds {lock}"));
            }
            if Instant::now() >= until {
                let waited = self.ctx.config.limits.lock_wait.as_secs();
                let waited =
                    if waited < 120 { format!("{waited} s") } else { format!("{} minutes", waited / 60) };
                return Err(format!("{lock} was held by {holder} for {waited}; it was left alone"));
            }
            tokio::time::sleep(LOCK_LOOK).await;
        }
        Ok(())
    }

    /// Writes down how a process ended, once its output is on the disk.
    pub(super) async fn step_ended(
        &mut self,
        id: StepId,
        spool: PathBuf,
        ended: Ended,
    ) -> Result<StepResult, Stop> {
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
                Some(how) if words.is_empty() => Err(Failure { cancelled, ..Failure::new(how) }),
                Some(how) => Err(Failure { cancelled, ..Failure::new(format!("{how}: {words}")) }),
            });
        }
        self.end_step(id, end, frames);
        Ok(failure.map_or(Ok(note), |message| Err(Failure { cancelled, ..Failure::new(message) })))
    }
}

/// apt's words for a lock that another holds. Its own timeout covers only some of them.
fn lost_the_lock(said: &str) -> bool {
    said.starts_with("exit status 100:")
        && ["Could not get lock", "Unable to acquire", "Unable to lock"]
            .iter()
            .any(|words| said.contains(words))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A step that takes a lock may be begun four times, and three waits come before the first one.
    #[test]
    fn what_is_told_beyond_the_room_of_a_run_by_table() {
        let plain = || Step::Remove { path: String::new() };
        let locks = || {
            let mut exec = Exec::new(&["true"], Duration::ZERO);
            exec.waits_for = vec!["/lock".to_owned()];
            Step::Exec(exec)
        };
        let cases = [
            (vec![], false, 0),
            ((0..5).map(|_| plain()).collect(), false, 0),
            ((0..6).map(|_| plain()).collect(), false, 1),
            (vec![plain()], true, 0),
            (vec![plain(), plain()], true, 1),
            (vec![locks()], false, 2),
            (vec![locks(), plain(), locks()], false, 7),
            (vec![locks()], true, 6),
        ];
        for (steps, guarded, want) in cases {
            assert_eq!(beyond(&steps, guarded), want, "{steps:?} {guarded}");
        }
    }

    #[test]
    fn trap_11_a_lost_lock_is_known_by_apts_words() {
        let cases = [
            (
                "exit status 100: E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)",
                true,
            ),
            (
                "exit status 100: E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend)",
                true,
            ),
            ("exit status 100: E: Unable to lock directory /var/lib/apt/lists/", true),
            ("exit status 100: E: Unable to locate package nosuch", false),
            ("exit status 1: Could not get lock", false),
        ];
        for (said, want) in cases {
            assert_eq!(lost_the_lock(said), want, "{said}");
        }
    }
}
