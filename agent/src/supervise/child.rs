//! Runs the process of one job to its end: output, deadline, cancellation, what it leaves behind.

use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use postern_proto::MAX_FRAME_BYTES;
use postern_proto::event::{StepEnd, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::job::{Exit, Job};
use super::recorder::Recorder;
use super::spool::Writer;
use crate::sys::now_ns;

/// A process that survives KILL for this long (it hangs in the kernel) is given up.
const GIVE_UP: Duration = Duration::from_secs(30);
/// The longest wait in one poll, so that no clock is trusted for longer.
const LONGEST_POLL: Duration = Duration::from_secs(60);

/// Tells the agent that there is something new. It may be gone, or have enough of these unread.
pub(super) fn wake() {
    let mut stdout = io::stdout();
    let _ = stdout.write_all(b"w\n").and_then(|()| stdout.flush());
}

/// Runs the job and writes its end into the spool.
pub(super) fn run(job: &Job, spool: Writer, terminate: UnixStream) -> io::Result<()> {
    let recorder = Recorder::new(spool, job.spool_bytes, &job.redact);
    let (mut spool, exit) = match spawn(job) {
        Ok(child) => Watch::new(job, child, recorder, terminate)?.follow(),
        Err(error) => {
            let program = job.argv.first().map_or("", String::as_str);
            let (spool, frames, lost) = recorder.finish(now_ns());
            let end = StepEnd::Error(format!("cannot start {program:.200}: {error}"));
            (spool, Exit { end, frames, lost, cancelled: false, note: String::new(), time_ns: now_ns() })
        }
    };
    spool.exit(&exit)?;
    wake();
    Ok(())
}

fn spawn(job: &Job) -> io::Result<Child> {
    let mut argv: Vec<String> = Vec::new();
    let mut env: Vec<(&str, &str)> = Vec::new();
    if let Some(user) = &job.user {
        // setpriv is in Debian's util-linux, which is always there. It sets the groups, which std cannot.
        argv.extend(["setpriv", "--reuid"].map(str::to_owned));
        argv.push(user.uid.to_string());
        argv.push("--regid".to_owned());
        argv.push(user.gid.to_string());
        argv.extend(["--init-groups", "--inh-caps=-all", "--"].map(str::to_owned));
        env.extend([("HOME", &*user.home), ("USER", &*user.name), ("LOGNAME", &*user.name)]);
    }
    argv.extend(job.argv.iter().cloned());
    let Some((program, args)) = argv.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no program"));
    };
    let mut command = Command::new(program);
    command.args(args).envs(env).envs(job.env.iter().map(|(name, value)| (name, value)));
    command.current_dir(&job.cwd).process_group(0);
    let stdin = if job.stdin.is_some() { Stdio::piped() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    if !job.cwd.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{} is no directory", job.cwd.display()),
        ));
    }
    let mut child = command.spawn()?;
    if let (Some(mut stdin), Some(text)) = (child.stdin.take(), job.stdin.clone()) {
        // On a thread of its own: a process that writes before it reads would otherwise wait for us, and we for
        // it. One that does not read all of it ends this with an error that nobody needs; one that never reads
        // ends it by ending.
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || stdin.write_all(text.as_bytes()))?;
    }
    Ok(child)
}

/// One output of the process.
struct Pipe {
    stream: Stream,
    from: Box<dyn ReadFd>,
}

trait ReadFd: Read + AsFd {}
impl<T: Read + AsFd> ReadFd for T {}

/// Why the process was told to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Deadline,
    Cancel,
}

struct Watch<'a> {
    job: &'a Job,
    child: Child,
    group: Option<Pid>,
    pidfd: OwnedFd,
    pipes: Vec<Pipe>,
    recorder: Recorder,
    terminate: UnixStream,
    deadline: Instant,
    told: Option<Told>,
    kill_at: Option<Instant>,
    give_up_at: Option<Instant>,
    /// Since when it is over, and when it last was heard of after that.
    exited: Option<(Instant, Instant)>,
}

/// What one poll found.
#[derive(Default)]
struct Ready {
    pipes: Vec<bool>,
    exited: bool,
    terminate: bool,
}

impl<'a> Watch<'a> {
    fn new(job: &'a Job, mut child: Child, recorder: Recorder, terminate: UnixStream) -> io::Result<Self> {
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = group.ok_or_else(|| io::Error::other("a process id out of range"))?;
        let mut pipes = Vec::new();
        if let Some(out) = child.stdout.take() {
            pipes.push(Pipe { stream: Stream::Stdout, from: Box::new(out) });
        }
        if let Some(err) = child.stderr.take() {
            pipes.push(Pipe { stream: Stream::Stderr, from: Box::new(err) });
        }
        Ok(Self {
            job,
            pidfd: pidfd_open(pid, PidfdFlags::empty())?,
            child,
            group,
            pipes,
            recorder,
            terminate,
            deadline: Instant::now() + Duration::from_millis(job.timeout_ms),
            told: None,
            kill_at: None,
            give_up_at: None,
            exited: None,
        })
    }

    fn follow(mut self) -> (Writer, Exit) {
        let mut buffer = vec![0u8; MAX_FRAME_BYTES];
        let note = loop {
            let now = Instant::now();
            self.tell_it_to_end(now);
            if self.give_up_at.is_some_and(|at| now >= at) {
                break "it did not end when it was killed".to_owned();
            }
            if let Some(over) = self.is_over(now) {
                break over.to_owned();
            }
            let wait = if self.recorder.is_waiting() { Duration::ZERO } else { self.wait(now) };
            let ready = self.poll(wait);
            if self.recorder.is_waiting() && !ready.pipes.contains(&true) {
                self.recorder.flush();
                wake();
            }
            self.read(&ready, &mut buffer);
            if ready.terminate && self.told.is_none() {
                let _ = self.terminate.read(&mut buffer);
                self.end_it(Told::Cancel, Instant::now());
            }
            if ready.exited && self.exited.is_none() {
                self.exited = Some((Instant::now(), Instant::now()));
            }
        };
        self.finish(note)
    }

    /// `Some` when there is nothing more to wait for, with what is to be said about it.
    fn is_over(&mut self, now: Instant) -> Option<&'static str> {
        let (since, heard) = self.exited?;
        if self.pipes.is_empty() {
            return Some("");
        }
        let linger = Duration::from_millis(self.job.linger_ms);
        (now >= heard + linger || now >= since + 10 * linger).then_some(
            "a process that it left behind holds its output open; what that writes is not recorded",
        )
    }

    fn wait(&self, now: Instant) -> Duration {
        let linger = Duration::from_millis(self.job.linger_ms);
        let next = [
            self.told.is_none().then_some(self.deadline),
            self.kill_at,
            self.give_up_at,
            self.exited.map(|(since, heard)| (heard + linger).min(since + 10 * linger)),
        ];
        let next = next.into_iter().flatten().min().unwrap_or(now + LONGEST_POLL);
        // A millisecond more, so that the instant has really come when poll returns.
        (next.saturating_duration_since(now) + Duration::from_millis(1)).min(LONGEST_POLL)
    }

    fn poll(&self, wait: Duration) -> Ready {
        let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds: Vec<PollFd<'_>> = self.pipes.iter().map(|pipe| watch(pipe.from.as_fd())).collect();
        fds.push(watch(self.terminate.as_fd()));
        if self.exited.is_none() {
            fds.push(watch(self.pidfd.as_fd()));
        }
        let timeout =
            Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: i64::from(wait.subsec_nanos()) };
        if poll(&mut fds, Some(&timeout)).is_err() {
            return Ready { pipes: vec![false; self.pipes.len()], ..Ready::default() };
        }
        let mut hit = fds.iter().map(|fd| !fd.revents().is_empty());
        let pipes = hit.by_ref().take(self.pipes.len()).collect();
        let terminate = hit.next() == Some(true);
        Ready { pipes, terminate, exited: hit.next() == Some(true) }
    }

    /// One read from each output that has something, so that neither starves the other.
    fn read(&mut self, ready: &Ready, buffer: &mut [u8]) {
        let mut index = 0;
        let recorder = &mut self.recorder;
        let exited = &mut self.exited;
        self.pipes.retain_mut(|pipe| {
            index += 1;
            if ready.pipes.get(index - 1) != Some(&true) {
                return true;
            }
            match pipe.from.read(buffer) {
                Ok(0) => false,
                Ok(got) => {
                    recorder.take(pipe.stream, &buffer[..got], now_ns());
                    if let Some((_, heard)) = exited {
                        *heard = Instant::now();
                    }
                    true
                }
                Err(error) => matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock),
            }
        });
    }

    fn end_it(&mut self, told: Told, now: Instant) {
        self.told = Some(told);
        if self.exited.is_none() {
            self.signal(Signal::TERM);
            self.kill_at = Some(now + Duration::from_millis(self.job.kill_after_ms));
        }
    }

    fn tell_it_to_end(&mut self, now: Instant) {
        if self.told.is_none() && self.exited.is_none() && now >= self.deadline {
            self.end_it(Told::Deadline, now);
        }
        if self.exited.is_some() {
            self.kill_at = None;
        } else if self.kill_at.is_some_and(|at| now >= at) {
            self.signal(Signal::KILL);
            self.kill_at = None;
            self.give_up_at = Some(now + GIVE_UP);
        }
    }

    /// To the whole process group, whose number stays ours as long as the process is not waited for.
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, signal);
        }
    }

    fn finish(mut self, note: String) -> (Writer, Exit) {
        if self.told.is_some() {
            self.signal(Signal::KILL);
        }
        let (spool, frames, lost) = self.recorder.finish(now_ns());
        let end = match (self.told, self.child.try_wait()) {
            (_, Ok(None)) => StepEnd::Error(note.clone()),
            (Some(Told::Deadline), Ok(Some(status))) => StepEnd::Error(format!(
                "it took longer than {} s and was ended ({status})",
                self.job.timeout_ms.div_ceil(1000)
            )),
            (_, Ok(Some(status))) => end_of(status),
            (_, Err(error)) => StepEnd::Error(format!("cannot learn how it ended: {error}")),
        };
        let cancelled = self.told == Some(Told::Cancel);
        (spool, Exit { end, frames, lost, cancelled, note, time_ns: now_ns() })
    }
}

fn end_of(status: ExitStatus) -> StepEnd {
    match (status.code(), status.signal()) {
        (Some(code), _) => StepEnd::Exit(code),
        (None, Some(signal)) => StepEnd::Signal(signal),
        (None, None) => StepEnd::Error(status.to_string()),
    }
}
