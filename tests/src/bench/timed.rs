//! A process from its start to its end, to the microsecond: the kernel tells the end, nobody looks again and again.
use std::fs::File;
use std::io::Read;
use std::process::{ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::rig::Ended;

/// Runs a command to its end, or kills it at the deadline and says what it had printed.
pub(super) fn timed(command: Command, deadline: Duration) -> Result<Ended> {
    let (ended, bytes) = timed_with(command, deadline, all)?;
    Ok(Ended { stdout: text(&bytes), ..ended })
}

/// The same, with a file as its standard input.
pub(super) fn timed_from(command: Command, input: File, deadline: Duration) -> Result<Ended> {
    let (ended, bytes) = start(command, input.into(), deadline, all)?;
    Ok(Ended { stdout: text(&bytes), ..ended })
}

/// The same without input, with standard output given to `consume`, on a thread of its own, as it comes; that of the result is
/// empty.
pub(super) fn timed_with<T: Send + 'static>(
    command: Command,
    deadline: Duration,
    consume: impl FnOnce(ChildStdout) -> T + Send + 'static,
) -> Result<(Ended, T)> {
    start(command, Stdio::null(), deadline, consume)
}

fn start<T: Send + 'static>(
    mut command: Command,
    input: Stdio,
    deadline: Duration,
    consume: impl FnOnce(ChildStdout) -> T + Send + 'static,
) -> Result<(Ended, T)> {
    let start = Instant::now();
    let mut child = command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let end = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).context("cannot watch a process")?;
    let stdout = child.stdout.take().context("a process has no output")?;
    let stderr = child.stderr.take().context("a process has no error output")?;
    let stdout = std::thread::spawn(move || consume(stdout));
    let stderr = std::thread::spawn(move || all(stderr));
    let in_time = readable(&end, start + deadline)?;
    let took = start.elapsed();
    if !in_time {
        child.kill().context("cannot end a process")?;
    }
    let status = child.wait().context("cannot wait for a process")?;
    let (consumed, stderr) = (join(stdout)?, text(&join(stderr)?));
    if !in_time {
        bail!("{command:?} did not end in {deadline:?}\n--- stderr\n{stderr}");
    }
    Ok((Ended { code: status.code(), stdout: String::new(), stderr, took }, consumed))
}

/// Whether it has become readable before `end`, which a pidfd does when its process has ended.
fn readable(pidfd: &rustix::fd::OwnedFd, end: Instant) -> Result<bool> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("a deadline is too far away")?;
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(anyhow!(error).context("cannot wait for a process")),
        }
    }
}

fn all(mut pipe: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What came until it failed is what there is to show.
    let _ = pipe.read_to_end(&mut bytes);
    bytes
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn join<T>(thread: JoinHandle<T>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("reading a process's output failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_process_is_timed_and_its_end_told() {
        let ended = timed(sh("echo out; echo err >&2; sleep 0.2; exit 3"), Duration::from_secs(20)).unwrap();
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(3), "out\n", "err\n"));
        assert!(ended.took >= Duration::from_millis(200), "{:?}", ended.took);
    }

    #[test]
    fn one_that_does_not_end_is_killed_and_shown() {
        // `exec`, or the pipe would stay open with the child.
        let error = timed(sh("echo stuck >&2; exec sleep 60"), Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains("stuck"), "{error}");
    }
}
