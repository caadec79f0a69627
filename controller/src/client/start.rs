//! A private daemon for a command that finds none: started once, however many commands start at once.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;

use super::{Client, ClientError};
use crate::daemon::socket_path;

/// How long a daemon may take until it answers: it makes its keys at the first start.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How often is looked. A daemon that has its keys answers within this.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// More of a log than this is started anew.
const MAX_LOG: u64 = 1024 * 1024;

/// Why there is no daemon to talk to.
#[derive(Debug, thiserror::Error)]
pub enum StartFailure {
    /// Talking to one failed in a way that starting another does not mend.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Something on disk.
    #[error("{action} {}", path.display())]
    Disk {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The program could not be started.
    #[error("starting {}", program.display())]
    Spawn {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended at once.
    #[error("the daemon did not start ({status}){}", said(.log))]
    Ended {
        /// How.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// It does not answer.
    #[error("the daemon was started and does not answer after {} s{}", START_DEADLINE.as_secs(), said(.log))]
    Silent {
        /// The end of its log.
        log: String,
    },
}

fn said(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!(": {log}") }
}

impl StartFailure {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Client(error) => error.code(),
            Self::Disk { .. } => "state-directory",
            Self::Spawn { .. } | Self::Ended { .. } | Self::Silent { .. } => "daemon-start",
        }
    }
}

/// Where a private daemon of this state writes its log.
#[must_use]
pub fn log_path(state_dir: &Path) -> PathBuf {
    state_dir.join("daemon.log")
}

/// How to reach the daemon of a state directory, and how to start one.
#[derive(Clone, Debug)]
pub struct Starter {
    /// The state.
    pub state_dir: PathBuf,
    /// This program.
    pub program: PathBuf,
}

impl Starter {
    /// Connects to the daemon; starts a private one where none runs. True when it was started here.
    pub async fn connect(&self) -> Result<(Client, bool), StartFailure> {
        let socket = socket_path(&self.state_dir);
        if let Some(client) = reach(&socket).await? {
            return Ok((client, false));
        }
        let end = Instant::now() + START_DEADLINE;
        let _lock = loop {
            match try_start_lock(&self.state_dir)? {
                Some(lock) => break lock,
                // Whoever holds it starts a daemon right now.
                None => tokio::time::sleep(LOOK_EVERY).await,
            }
            if let Some(client) = reach(&socket).await? {
                return Ok((client, false));
            }
            if Instant::now() > end {
                return Err(StartFailure::Silent { log: log_tail(&self.state_dir) });
            }
        };
        if let Some(client) = reach(&socket).await? {
            return Ok((client, false));
        }
        Ok((self.start(&socket, end).await?, true))
    }

    async fn start(&self, socket: &Path, end: Instant) -> Result<Client, StartFailure> {
        let log = log_path(&self.state_dir);
        let stderr = open_log(&log).map_err(|source| StartFailure::Disk {
            action: "opening",
            path: log.clone(),
            source,
        })?;
        // The child makes itself a session of its own; nothing secret is in its arguments or environment.
        let mut child = tokio::process::Command::new(&self.program)
            .arg("--state-dir")
            .arg(&self.state_dir)
            .args(["serve", "--private"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .current_dir("/")
            .kill_on_drop(false)
            .spawn()
            .map_err(|source| StartFailure::Spawn { program: self.program.clone(), source })?;
        loop {
            if let Some(client) = reach(socket).await? {
                return Ok(client);
            }
            if let Ok(Some(status)) = child.try_wait() {
                // An operator's daemon may have come first; then this one was right to end.
                if let Some(client) = reach(socket).await? {
                    return Ok(client);
                }
                return Err(StartFailure::Ended { status, log: log_tail(&self.state_dir) });
            }
            if Instant::now() > end {
                return Err(StartFailure::Silent { log: log_tail(&self.state_dir) });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// The right to start a daemon for this state; `None` while another has it. Not the daemon's own lock, which
/// says who has the state. It goes with the file descriptor, so a killed command leaves none behind.
fn try_start_lock(state_dir: &Path) -> Result<Option<File>, StartFailure> {
    let disk = |action, path: &Path| {
        let path = path.to_owned();
        move |source| StartFailure::Disk { action, path, source }
    };
    // 0700 from the first moment. A directory that is there is the daemon's to judge.
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(state_dir).map_err(disk("making", state_dir))?;
    let lock = state_dir.join("start.lock");
    let file = open_private(&lock).map_err(disk("opening", &lock))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(disk("locking", &lock)(error.into())),
    }
}

/// The right to start a daemon for this state, as soon as nobody else has it. As long as it is held, no
/// command starts a private one.
pub(crate) async fn start_lock(state_dir: &Path) -> Result<File, StartFailure> {
    let end = Instant::now() + START_DEADLINE;
    loop {
        if let Some(lock) = try_start_lock(state_dir)? {
            return Ok(lock);
        }
        if Instant::now() > end {
            return Err(StartFailure::Silent { log: log_tail(state_dir) });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// `None` when no daemon is there: no socket, or one that a killed daemon left behind.
pub(crate) async fn reach(socket: &Path) -> Result<Option<Client>, ClientError> {
    let mut client = match Client::connect(socket).await {
        Ok(client) => client,
        Err(ClientError::Connect { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    match client.info().await {
        Ok(_) => Ok(Some(client)),
        // It ended between the two.
        Err(error) if error.is_connection_lost() => Ok(None),
        Err(error) => Err(error),
    }
}

fn open_private(path: &Path) -> io::Result<File> {
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).custom_flags(no_follow).open(path)
}

fn open_log(path: &Path) -> io::Result<File> {
    let file = open_private(path)?;
    if file.metadata()?.len() > MAX_LOG {
        file.set_len(0)?;
    }
    Ok(file)
}

/// The last lines of the log, on one line, for a message.
fn log_tail(state_dir: &Path) -> String {
    const MAX: u64 = 600;
    let read = || -> io::Result<String> {
        let mut file = File::open(log_path(state_dir))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX)))?;
        let mut bytes = Vec::new();
        file.take(MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(3).map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}
