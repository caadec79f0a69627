//! Starts supervisors, follows them, and picks up those that an earlier agent started.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use postern_proto::event::{StepEnd, StepId};
use postern_proto::ids::RunId;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::EngineConfig;
use super::api::SecretText;
use super::shared::Shared;
use crate::resources::Exec;
use crate::supervise::spool::{Claim, Reader, claim};
use crate::supervise::{Exit, Job, JobUser};
use crate::sys::start_ticks;

/// From TERM to KILL.
pub(super) const KILL_AFTER: Duration = Duration::from_secs(10);
/// Quiet after the end of a process that shows whether anything else still writes.
const LINGER: Duration = Duration::from_millis(500);
/// Beyond its own deadlines a supervisor gets this long before it is taken for lost.
const GRACE: Duration = Duration::from_secs(120);
/// A supervisor that says nothing is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// One that an earlier agent started cannot wake us: it is looked at more often.
const LOOK_ADOPTED: Duration = Duration::from_millis(50);
/// What a supervisor says when it cannot begin, bytes.
const COMPLAINT: usize = 400;

/// A supervisor that has no job yet. Dropping it is harmless: without a whole job it starts nothing.
pub(super) struct Spare {
    child: Child,
}

/// Where a process runs and what follows it.
pub(super) struct Place<'a> {
    pub(super) shared: &'a Shared,
    pub(super) run: RunId,
    pub(super) step: StepId,
    pub(super) spool: PathBuf,
    pub(super) cancel: watch::Receiver<bool>,
}

/// How a process ended, as far as can be known.
#[derive(Debug)]
pub(super) enum Ended {
    /// As its supervisor says.
    Exit(Exit),
    /// Its supervisor is gone; how far it got is not known.
    Dead(String),
    /// It was never started.
    Never(String),
}

/// Starts a supervisor while the journal is still being written.
pub(super) fn spare(config: &EngineConfig) -> io::Result<Spare> {
    let mut command = Command::new(&config.supervisor.program);
    command.args(&config.supervisor.args).env_clear().envs(config.sys.base_env());
    command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    Ok(Spare { child: command.spawn()? })
}

/// The job of a step, and what of its output must not reach the disk. The error is for people.
pub(super) fn job(
    config: &EngineConfig,
    exec: &Exec,
    spool: &Path,
    secrets: &[SecretText],
) -> Result<Job, String> {
    let user = match &exec.user {
        None => None,
        Some(name) => {
            let user = config.sys.user(name).map_err(|error| error.to_string())?;
            Some(JobUser { name: user.name, uid: user.uid, gid: user.gid, home: user.home })
        }
    };
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Ok(Job {
        spool: spool.to_owned(),
        argv: exec.argv.clone(),
        env: exec.env.clone(),
        cwd: PathBuf::from(&exec.cwd),
        user,
        timeout_ms: millis(exec.timeout),
        kill_after_ms: millis(KILL_AFTER),
        linger_ms: millis(LINGER),
        spool_bytes: config.limits.spool_bytes,
        stdin: exec.stdin.clone(),
        redact: secrets.iter().map(|secret| secret.expose().to_owned()).collect(),
    })
}

impl Spare {
    /// Gives it the job and follows it to the end.
    pub(super) async fn run(mut self, job: &Job, mut place: Place<'_>) -> Ended {
        let text = match serde_json::to_vec(job) {
            Ok(text) => Zeroizing::new(text),
            Err(error) => return Ended::Never(error.to_string()),
        };
        if let Some(mut stdin) = self.child.stdin.take() {
            // An error shows as an end without a spool.
            let _ = stdin.write_all(&text).await;
        }
        drop(text);
        let limit = Duration::from_millis(job.timeout_ms) + KILL_AFTER + GRACE;
        place.follow(self.child.stdout.take(), limit).await
    }
}

impl Place<'_> {
    /// Follows a supervisor that an earlier agent started.
    pub(super) async fn adopt(mut self) -> Ended {
        // Its own deadline is in its job; this one only bounds our wait for it.
        self.follow(None, Duration::from_secs(7 * 24 * 3600)).await
    }

    async fn follow(&mut self, mut wake: Option<ChildStdout>, limit: Duration) -> Ended {
        let until = Instant::now() + limit;
        let mut reader: Option<Reader> = None;
        let mut complaint = String::new();
        let (mut told, mut cancellable) = (false, true);
        let adopted = wake.is_none();
        loop {
            if reader.is_none() {
                reader = Reader::open(&self.spool).ok();
            }
            if let Some(exit) = reader.as_mut().and_then(Reader::exit) {
                return Ended::Exit(exit.clone());
            }
            if wake.is_none() {
                match claim(&self.spool, true) {
                    Ok(Claim::Running) => {}
                    Ok(Claim::Exited(exit)) => return Ended::Exit(exit),
                    Ok(Claim::Dead) => return Ended::Dead("its supervisor was ended".to_owned()),
                    Ok(Claim::Never) => return Ended::Never(complaint),
                    Err(error) => return Ended::Dead(format!("its spool cannot be read: {error}")),
                }
            }
            if *self.cancel.borrow() && !told {
                told = reader.as_ref().is_some_and(terminate);
            }
            if Instant::now() >= until {
                return Ended::Dead("its supervisor did not end it in time".to_owned());
            }
            let look = if adopted || !told && *self.cancel.borrow() { LOOK_ADOPTED } else { LOOK };
            let mut part = [0u8; 512];
            tokio::select! {
                got = read_some(&mut wake, &mut part) => match got {
                    0 => wake = None,
                    got if part[0] == b'E' || !complaint.is_empty() => {
                        complaint.push_str(String::from_utf8_lossy(&part[..got]).trim());
                        cut(&mut complaint, COMPLAINT);
                    }
                    _ => {}
                },
                changed = self.cancel.changed(), if cancellable => cancellable = changed.is_ok(),
                () = tokio::time::sleep(look) => {}
            }
            self.shared.output(self.run, &self.step);
        }
    }
}

async fn read_some(wake: &mut Option<ChildStdout>, part: &mut [u8]) -> usize {
    match wake {
        Some(wake) => wake.read(part).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

/// At most `limit` bytes, and no half of a character.
fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        text.truncate((0..=limit).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
    }
}

/// Tells a supervisor to end its process. False when it is not there to be told.
fn terminate(reader: &Reader) -> bool {
    let Some(started) = reader.started() else { return false };
    // The pid could be another's by now; its start time cannot.
    if start_ticks(started.pid) != Some(started.start_ticks) {
        return false;
    }
    let pid = i32::try_from(started.pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok())
}

/// One line about how a process ended; `None` when it did what it was to do.
pub(super) fn failure(end: &StepEnd) -> Option<String> {
    match end {
        StepEnd::Done | StepEnd::Exit(0) => None,
        StepEnd::Exit(code) => Some(format!("exit status {code}")),
        StepEnd::Signal(signal) => Some(format!("ended by signal {signal}")),
        StepEnd::Error(error) => Some(error.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_not_cut_inside_a_character() {
        for lead in 0..4 {
            let mut text = "x".repeat(lead) + &"\u{20ac}".repeat(300);
            cut(&mut text, COMPLAINT);
            assert!((COMPLAINT - 2..=COMPLAINT).contains(&text.len()), "{lead}: {}", text.len());
        }
        let mut short = "short".to_owned();
        cut(&mut short, COMPLAINT);
        assert_eq!(short, "short");
    }
}
