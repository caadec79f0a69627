//! The guard around a change that could cut the host off: armed before it, and taken back unless it is confirmed.
//!
//! What the way back needs lies on the disk before anything is changed, and so do a timer and a service that
//! carry it out without the agent: a crash, a restart of the host or a link that is gone lead back to what was.
//! Confirmation and timer race for one rename ([`Stored::shift`]), so exactly one of them wins.

mod snapshot;
mod store;
mod units;
mod vantage;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use store::{State, Stored};
pub(crate) use vantage::watched;
pub use vantage::{Unseen, Vantage, lacking};

use snapshot::Plan;
use units::Units;

use crate::resources::{Protect, Step};
use crate::sys::{Sys, SysError};

/// One program that puts in force what was put back.
const RELOAD: Duration = Duration::from_secs(120);
/// How often taking it back is tried before it is left to its service, which goes on.
const TRIES: u32 = 3;
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);
/// Tries over all processes and boots after which what cannot be put in force is left: a guard that never ends
/// would keep every later one from being armed.
const LAST_TRY: u32 = 60;

/// Why a guard is not what it is to be.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// A name that is none.
    #[error("{0:?} is no name of a guard")]
    Name(String),
    /// What the way back needs is not there.
    #[error("{} is missing", .0.display())]
    Missing(PathBuf),
    /// It cannot be understood.
    #[error("{} is damaged: what it kept cannot be put back", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A newer agent wrote it.
    #[error("{} has format {version}, this agent knows up to {}: run the newer agent", path.display(), store::VERSION)]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u32,
    },
    /// The disk.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The host's files and programs.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// systemd did not take the units.
    #[error("the timer that would take the change back cannot be set: {0}")]
    Systemd(String),
    /// Another change is under guard.
    #[error("another change is under guard ({0}): it has to be confirmed or taken back first")]
    Busy(String),
    /// Not all of it was put back.
    #[error("not all of it could be put back: {}", .0.join("; "))]
    Incomplete(Vec<String>),
    /// A thread broke.
    #[error("the work broke off: {0}")]
    Broken(#[from] tokio::task::JoinError),
}

/// Who takes a change back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The agent, or the timer's service.
    Now,
    /// The boot's service, for whose end wait those that it puts in force: it must not wait for them.
    Boot,
}

/// How a guard ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The change stays.
    Confirmed,
    /// It was taken back.
    Reverted,
    /// Not all of it could be taken back, which is not tried any more.
    GivenUp,
    /// Nothing was changed under it.
    Nothing,
}

/// What a guard is armed around.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The resource, for people.
    pub what: &'a str,
    /// What is done.
    pub steps: &'a [Step],
    /// Steps back from what the same run did before to files that this change puts in force.
    pub earlier: &'a [Step],
    /// What its kind says about it.
    pub protect: &'a Protect,
}

/// The guards of one host.
#[derive(Clone, Debug)]
pub struct Guards {
    /// The agent's state.
    pub state_dir: PathBuf,
    /// The host.
    pub sys: Sys,
}

impl Guards {
    /// Keeps what the change touches and sets the timer. Everything is on the disk when this returns, and
    /// systemd runs the timer.
    pub async fn arm(&self, name: &str, change: &Change<'_>, window: Duration) -> Result<Stored, GuardError> {
        for other in Stored::all(&self.state_dir)? {
            // Nobody goes on with one whose units are gone: it would be in the way for ever.
            if other.state() == Some(State::Reverting) && !self.units(&other).are_there()? {
                self.revert(&other).await?;
            }
            if !is_over(&other) {
                return Err(GuardError::Busy(other.name));
            }
            self.clear(&other).await;
        }
        let stored = Stored::of(&self.state_dir, name)?;
        let armed = self.set(&stored, change, window).await;
        if armed.is_err() {
            // Nothing was changed under it.
            stored.shift(State::Armed, State::Preparing)?;
            self.clear(&stored).await;
        }
        armed.map(|()| stored)
    }

    async fn set(&self, stored: &Stored, change: &Change<'_>, window: Duration) -> Result<(), GuardError> {
        let (sys, on_disk) = (self.sys.clone(), stored.clone());
        let (steps, earlier) = (change.steps.to_vec(), change.earlier.to_vec());
        let (protect, what) = (change.protect.clone(), change.what.to_owned());
        let state_dir = self.state_dir.to_string_lossy().into_owned();
        let since = Units::since_start(&self.sys).await;
        tokio::task::spawn_blocking(move || {
            let paths = snapshot::keep(&sys, &steps, &protect.also, &earlier)?;
            let (first, reload) = (protect.first, protect.reload);
            let plan = Plan { version: store::VERSION, what: what.clone(), paths, first, reload };
            on_disk.prepare(&plan)?;
            let units = Units { sys: &sys, name: &on_disk.name };
            units.write(&units::this_program()?, &state_dir, &what, since, window)
        })
        .await??;
        // Armed before the timer runs: one that fires at once must find something to take back.
        stored.shift(State::Preparing, State::Armed)?;
        self.units(stored).start().await
    }

    fn units<'a>(&'a self, stored: &'a Stored) -> Units<'a> {
        Units { sys: &self.sys, name: &stored.name }
    }

    /// The change stays. False when its time was over before.
    pub async fn confirm(&self, stored: &Stored) -> Result<bool, GuardError> {
        if !stored.shift(State::Armed, State::Confirmed)? {
            return Ok(false);
        }
        self.clear(stored).await;
        Ok(true)
    }

    /// Takes the change back, unless that is done or it is confirmed. It is tried a few times; what is left
    /// then is the service's, which does not give up.
    pub async fn revert(&self, stored: &Stored) -> Result<Ended, GuardError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match revert(&self.sys, stored, Moment::Now).await {
                Err(error) if tries >= TRIES => {
                    // It goes on with it at once, and not only when the time is over.
                    if let Err(error) = self.units(stored).go_on().await {
                        tracing::warn!(%error, guard = stored.name, "its timer has to go on with it");
                    }
                    return Err(error);
                }
                Err(error) => tracing::warn!(%error, guard = stored.name, "a change was not taken back yet"),
                Ok(ended) => return Ok(ended),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Takes it back once more although that was done, or given up: something was still at work then.
    pub async fn revert_again(&self, stored: &Stored) -> Result<Ended, GuardError> {
        for over in [State::Reverted, State::GivenUp] {
            stored.shift(over, State::Reverting)?;
        }
        self.revert(stored).await
    }

    /// What an agent that is gone left of the guards whose names begin so: what was not confirmed is taken back.
    /// With `again` also what was taken back already, while one of its steps was still at work.
    pub async fn settle(&self, prefix: &str, again: bool) -> Result<Vec<(String, Ended)>, GuardError> {
        let mut ended = Vec::new();
        for stored in Stored::all(&self.state_dir)?.into_iter().filter(|it| it.name.starts_with(prefix)) {
            let done = if again { self.revert_again(&stored).await? } else { self.revert(&stored).await? };
            ended.push((stored.name.clone(), done));
            self.clear(&stored).await;
        }
        Ok(ended)
    }

    /// Removes what is left of a guard that is over, and nothing of one that is not. What cannot be removed does no
    /// harm: it finds nothing to take back.
    pub async fn clear(&self, stored: &Stored) {
        if matches!(stored.state(), Some(State::Armed | State::Reverting)) {
            return;
        }
        for cleared in [self.units(stored).remove().await, stored.remove()] {
            if let Err(error) = cleared {
                tracing::warn!(%error, guard = stored.name, "a guard that is over left something behind");
            }
        }
    }
}

fn is_over(stored: &Stored) -> bool {
    matches!(
        stored.state(),
        None | Some(State::Confirmed | State::Reverted | State::GivenUp | State::Preparing)
    )
}

/// Takes a change back. Whoever carries it out, it is done once: the agent, the timer, the next boot.
async fn revert(sys: &Sys, stored: &Stored, moment: Moment) -> Result<Ended, GuardError> {
    let over = |state| match state {
        None | Some(State::Preparing) => Some(Ended::Nothing),
        Some(State::Confirmed) => Some(Ended::Confirmed),
        Some(State::Reverted) => Some(Ended::Reverted),
        Some(State::GivenUp) => Some(Ended::GivenUp),
        Some(State::Armed | State::Reverting) => None,
    };
    if let Some(ended) = over(stored.state()) {
        return Ok(ended);
    }
    let _lock = stored.lock().await?;
    stored.shift(State::Armed, State::Reverting)?;
    if let Some(ended) = over(stored.state()) {
        return Ok(ended);
    }
    let plan = stored.plan()?;
    tracing::warn!(guard = stored.name, what = plan.what, "a change is taken back");
    let (host, reload) = (sys.clone(), plan.reload.clone());
    let mut failures = Vec::new();
    for argv in &plan.first {
        failures.extend(put_in_force(sys, argv, moment).await);
    }
    let unput = tokio::task::spawn_blocking(move || {
        let mut failures = Vec::new();
        // Backwards: what was made last lies in what was made before it.
        for kept in plan.paths.iter().rev() {
            if let Err(error) = kept.put_back(&host) {
                failures.push(format!("{}: {error}", kept.path()));
            }
        }
        failures
    })
    .await?;
    failures.extend(unput);
    for argv in &reload {
        failures.extend(put_in_force(sys, argv, moment).await);
    }
    let (state, ended) = match failures.as_slice() {
        [] => (State::Reverted, Ended::Reverted),
        _ if stored.count_try() < LAST_TRY => return Err(GuardError::Incomplete(failures)),
        _ => {
            tracing::error!(
                guard = stored.name,
                left = failures.join("; "),
                "given up: this was not put back"
            );
            (State::GivenUp, Ended::GivenUp)
        }
    };
    stored.shift(State::Reverting, state)?;
    // The service that runs this may go on: its unit is in memory until it ends.
    Units { sys, name: &stored.name }.remove().await?;
    Ok(ended)
}

/// Runs one of the programs of a way back; why it failed.
async fn put_in_force(sys: &Sys, argv: &[String], moment: Moment) -> Option<String> {
    let mut words: Vec<&str> = argv.iter().map(String::as_str).collect();
    if let ["systemctl", "start" | "restart" | "reload-or-restart", units @ ..] = words.as_slice() {
        // One that was started in vain too often is not started any more. What is not known needs no reset.
        let reset = [&["systemctl", "reset-failed"], units].concat();
        let _ = sys.run(&reset, &[], RELOAD).await;
    }
    if moment == Moment::Boot && words.first() == Some(&"systemctl") {
        words.insert(1, "--no-block");
    }
    match sys.run(&words, &[], RELOAD).await {
        Ok(said) if said.ok() => None,
        Ok(said) => Some(format!("{}: {}", argv.join(" "), said.last_line())),
        Err(error) => Some(error.to_string()),
    }
}

/// What `postern-agent guard-revert` does: for the units of a guard, not for people.
pub async fn revert_by_name(state_dir: &Path, name: &str, moment: Moment) -> Result<Ended, GuardError> {
    let stored = Stored::of(state_dir, name)?;
    revert(&Sys::host(), &stored, moment).await
}

#[cfg(test)]
mod tests;
