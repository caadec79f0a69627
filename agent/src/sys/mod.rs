//! The host: the only place of the agent that touches its files and starts its programs.

mod accounts;
mod dpkg;
mod exchange;
mod files;
mod http_unix;
mod locks;
mod reach;
mod room;
mod run;
mod units;
mod walk;

pub use accounts::Account;
pub use dpkg::{Dpkg, DpkgPackage, DpkgState};
pub use files::{FileId, FileKind, Meta, NewFile};
pub use http_unix::{Answer, Call, CallError, Lines};
pub use reach::Around;
pub(crate) use reach::first_of;
pub use room::{Memory, Room, Swap};
pub use run::{As, Output};

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use postern_proto::ids::PlanHash;

/// What failed on the host: what was being done, to what.
#[derive(Debug, thiserror::Error)]
pub enum SysError {
    /// A file.
    #[error("cannot {doing} {path}: {source}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A file larger than what is read of one.
    #[error("{path} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Which.
        path: String,
        /// Its size.
        bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// A program that could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program that took too long and was killed.
    #[error("{program} did not end within {} s and was killed", .after.as_secs())]
    TimedOut {
        /// Which.
        program: String,
        /// Its time.
        after: Duration,
    },
    /// No such user or group.
    #[error("there is no {what} {name:?} on this host")]
    NoAccount {
        /// User or group.
        what: &'static str,
        /// Its name.
        name: String,
    },
}

impl SysError {
    fn file(doing: &'static str, path: &str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }
}

/// A host, or a directory that stands for one in tests.
#[derive(Clone, Debug)]
pub struct Sys {
    root: PathBuf,
    path_env: String,
    /// Clones share what was read of dpkg.
    dpkg: Arc<dpkg::Memo>,
    /// Clones ask systemd together.
    questions: Arc<units::Questions>,
    /// What is known beyond the host itself.
    around: Option<Arc<Around>>,
    /// What makes this host's hashes of secrets its own.
    key: Option<Key>,
}

/// A key that stays on the host, and is not shown.
#[derive(Clone, Copy)]
struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Sys {
    /// The machine this program runs on.
    #[must_use]
    pub fn host() -> Self {
        Self {
            root: PathBuf::from("/"),
            path_env: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            dpkg: Arc::default(),
            questions: Arc::default(),
            around: None,
            key: None,
        }
    }

    /// A directory that stands for a host's root; programs are looked for in `path_env`.
    #[must_use]
    pub fn rooted(root: PathBuf, path_env: String) -> Self {
        Self { root, path_env, dpkg: Arc::default(), questions: Arc::default(), around: None, key: None }
    }

    /// The same host, with the key that its hashes of secrets are made with.
    #[must_use]
    pub fn with_key(self, key: [u8; 32]) -> Self {
        Self { key: Some(Key(key)), ..self }
    }

    /// A hash that tells two texts apart and from which nobody without this host's key learns either, however short
    /// it is: SHA-256 in SHA-256, each with the key before it. `None` where this process has no key.
    #[must_use]
    pub fn keyed_hash(&self, text: &str) -> Option<[u8; 32]> {
        let key = &self.key.as_ref()?.0;
        let inner = PlanHash::of(&[key, text.as_bytes()].concat());
        Some(*PlanHash::of(&[&key[..], inner.as_bytes()].concat()).as_bytes())
    }

    /// Where programs are looked for.
    #[must_use]
    pub fn path_env(&self) -> &str {
        &self.path_env
    }

    /// The clean environment of every program.
    #[must_use]
    pub fn base_env(&self) -> [(&str, &str); 3] {
        [("PATH", &self.path_env), ("HOME", "/root"), ("LANG", "C.UTF-8")]
    }

    /// Where a path of the host lies for this process.
    #[must_use]
    pub fn real(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// When a process was started, in clock ticks since boot; `None` when there is no such process.
#[must_use]
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // proc(5): the name in brackets may hold anything; field 22 counts from there.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// When this system's first process was started, nanoseconds since the Unix epoch by the clock as it is now;
/// `None` when it cannot be known. That is the boot also where the kernel is older than the system on it.
#[must_use]
pub fn init_start_ns() -> Option<i128> {
    // proc(5): in ticks of sysconf(_SC_CLK_TCK), 100 a second on every architecture we are built for.
    let ticks = i128::from(start_ticks(1)?);
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let kernel = i128::from(now_ns()) - i128::from(since.tv_sec) * 1_000_000_000 - i128::from(since.tv_nsec);
    Some(kernel + ticks * 10_000_000)
}

/// Nanoseconds since the Unix epoch.
#[must_use]
pub fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// When the monotonic clock was zero, nanoseconds since the Unix epoch by the clock as it is now.
#[must_use]
pub fn boot_ns() -> i128 {
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    i128::from(now_ns()) - i128::from(since.tv_sec) * 1_000_000_000 - i128::from(since.tv_nsec)
}
