//! Where guards lie on the disk: one directory each, in it what the way back needs and one file whose name is
//! the guard's state. Whoever renames that file first has decided how it ends.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::GuardError;
use super::snapshot::Plan;
use crate::link::private_file::{prepare, private_dir, read, sync_dir};

/// The format of [`Plan`].
pub(super) const VERSION: u32 = 1;
/// The directory below the agent's state.
const DIR: &str = "guard";
const PLAN: &str = "plan.json";
const LOCK: &str = "lock";
const TRIES: &str = "tries";
/// What was kept may be large files, in base64.
const LIMIT: u64 = 256 << 20;
/// How long another process that takes the same guard back is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(180);
const LOCK_LOOK: Duration = Duration::from_millis(50);

/// How a guard stands. Its name is that of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is being set up: nothing was changed yet.
    Preparing,
    /// The change may have begun; it is taken back unless it is confirmed.
    Armed,
    /// It stays.
    Confirmed,
    /// It is being taken back.
    Reverting,
    /// It was taken back.
    Reverted,
    /// Not all of it could be taken back, which is not tried any more.
    GivenUp,
}

impl State {
    fn file(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Armed => "armed",
            Self::Confirmed => "confirmed",
            Self::Reverting => "reverting",
            Self::Reverted => "reverted",
            Self::GivenUp => "given-up",
        }
    }
}

/// A guard on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name: that of its directory, and part of those of its units.
    pub name: String,
    dir: PathBuf,
}

/// Held while a guard is taken back.
pub(super) struct Lock(#[allow(dead_code)] File);

impl Stored {
    /// The guard of this name below the agent's state; it need not be there.
    pub fn of(state_dir: &Path, name: &str) -> Result<Self, GuardError> {
        // It becomes a path and a unit's name.
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if name.is_empty() || name.len() > 100 || !name.chars().all(plain) {
            return Err(GuardError::Name(name.chars().take(100).collect()));
        }
        Ok(Self { name: name.to_owned(), dir: state_dir.join(DIR).join(name) })
    }

    /// Every guard that lies below the agent's state.
    pub fn all(state_dir: &Path) -> Result<Vec<Self>, GuardError> {
        let dir = state_dir.join(DIR);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &dir)(error)),
        };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names.iter().map(|name| Self::of(state_dir, name)).collect()
    }

    /// Writes down what the way back needs; durable on return, and not armed.
    pub(super) fn prepare(&self, plan: &Plan) -> Result<(), GuardError> {
        let parent = self.dir.parent().unwrap_or(&self.dir);
        let made = || {
            private_dir(parent)?;
            private_dir(&self.dir)?;
            File::create(self.dir.join(LOCK))?.sync_all()?;
            prepare(&self.dir.join(PLAN), &serde_json::to_vec(plan)?)?.commit()?;
            File::create(self.dir.join(State::Preparing.file()))?.sync_all()?;
            sync_dir(&self.dir)?;
            sync_dir(parent)?;
            sync_dir(parent.parent().unwrap_or(parent))
        };
        made().map_err(failed("write", &self.dir))
    }

    /// What the way back needs. Missing, corrupt and too new are three different answers.
    pub(super) fn plan(&self) -> Result<Plan, GuardError> {
        #[derive(serde::Deserialize)]
        struct Head {
            version: u32,
        }
        let path = self.dir.join(PLAN);
        let bytes = read(&path, LIMIT).map_err(failed("read", &path))?;
        let bytes = bytes.ok_or_else(|| GuardError::Missing(path.clone()))?;
        let corrupt = |source| GuardError::Corrupt { path: path.clone(), source };
        let Head { version } = serde_json::from_slice(&bytes).map_err(corrupt)?;
        if version > VERSION {
            return Err(GuardError::TooNew { path, version });
        }
        serde_json::from_slice(&bytes).map_err(corrupt)
    }

    /// How it stands; `None` when there is no such guard.
    pub fn state(&self) -> Option<State> {
        use State::{Armed, Confirmed, GivenUp, Preparing, Reverted, Reverting};
        // Twice, since a rename may pass the first look by.
        let look = || {
            let all = [Reverted, GivenUp, Reverting, Confirmed, Armed, Preparing];
            all.into_iter().find(|state| self.dir.join(state.file()).exists())
        };
        look().or_else(look)
    }

    /// From one state to another, durable on return. False when it was not in that state: somebody else has
    /// decided otherwise.
    pub fn shift(&self, from: State, to: State) -> Result<bool, GuardError> {
        match fs::rename(self.dir.join(from.file()), self.dir.join(to.file())) {
            Ok(()) => sync_dir(&self.dir).map(|()| true).map_err(failed("sync", &self.dir)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("rename in", &self.dir)(error)),
        }
    }

    /// The only one to take it back, as long as what is returned lives.
    pub(super) async fn lock(&self) -> Result<Lock, GuardError> {
        let path = self.dir.join(LOCK);
        let file = File::open(&path).map_err(failed("open", &path))?;
        let until = tokio::time::Instant::now() + LOCK_WAIT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock(file)),
                Err(rustix::io::Errno::WOULDBLOCK) if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(LOCK_LOOK).await;
                }
                Err(error) => return Err(failed("lock", &path)(error.into())),
            }
        }
    }

    /// Counts one more try to take it back, over processes and boots; gives how many there were.
    pub(super) fn count_try(&self) -> u32 {
        let path = self.dir.join(TRIES);
        let tries = fs::read_to_string(&path).ok().and_then(|text| text.parse().ok()).unwrap_or(0u32) + 1;
        // A disk that does not take it may be what is wrong: then it is tried on.
        let _ = fs::write(&path, tries.to_string());
        tries
    }

    /// Removes all of it.
    pub(super) fn remove(&self) -> Result<(), GuardError> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.dir)(error)),
            _ => Ok(()),
        }
    }
}

pub(super) fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> GuardError + 'a {
    move |source| GuardError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn names_are_no_paths() {
        for name in ["", "..", "a/b", "a\nb", "a.service", &"x".repeat(101)] {
            assert!(matches!(Stored::of(Path::new("/x"), name), Err(GuardError::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn missing_corrupt_and_too_new_are_three_answers() {
        let dir = tempfile::tempdir().unwrap();
        let guard = Stored::of(dir.path(), "a-1").unwrap();
        assert_eq!((guard.state(), Stored::all(dir.path()).unwrap().len()), (None, 0));
        assert!(matches!(guard.plan(), Err(GuardError::Missing(_))));
        let plan = Plan { version: VERSION, what: "x".into(), ..Plan::default() };
        guard.prepare(&plan).unwrap();
        assert_eq!(guard.plan().unwrap(), plan);
        assert_eq!(Stored::all(dir.path()).unwrap(), std::slice::from_ref(&guard));
        guard.prepare(&Plan { version: VERSION + 1, ..plan }).unwrap();
        assert!(matches!(guard.plan(), Err(GuardError::TooNew { version: 2, .. })));
        fs::write(dir.path().join("guard/a-1/plan.json"), "{").unwrap();
        assert!(matches!(guard.plan(), Err(GuardError::Corrupt { .. })));
        guard.remove().unwrap();
        assert_eq!(guard.state(), None);
    }

    /// Timer and confirmation at the same instant: exactly one of them wins, whichever it is.
    #[test]
    fn confirmation_and_revert_never_both_win_and_never_neither() {
        let dir = tempfile::tempdir().unwrap();
        let mut confirmed = 0;
        for round in 0..2000 {
            let guard = Stored::of(dir.path(), &format!("g-{round}")).unwrap();
            fs::create_dir_all(&guard.dir).unwrap();
            File::create(guard.dir.join("armed")).unwrap();
            let barrier = Barrier::new(2);
            let race = |to| {
                barrier.wait();
                guard.shift(State::Armed, to).unwrap()
            };
            let (one, other) = std::thread::scope(|scope| {
                let one = scope.spawn(|| race(State::Confirmed));
                let other = scope.spawn(|| race(State::Reverting));
                (one.join().unwrap(), other.join().unwrap())
            });
            assert!(one != other, "round {round}: {one} {other}");
            let want = if one { State::Confirmed } else { State::Reverting };
            assert_eq!(guard.state(), Some(want));
            confirmed += usize::from(one);
        }
        assert!(confirmed > 0 && confirmed < 2000, "it was no race: {confirmed} of 2000 confirmed");
    }
}
