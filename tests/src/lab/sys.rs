//! Running programs with a deadline, waiting for a state, and small file helpers.
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::error::{LabError, Result};

/// Longest text read back from a program; what is beyond is cut off.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output, at most 64 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, at most 64 MiB.
    pub stderr: Vec<u8>,
    pub(super) argv: String,
}

impl Output {
    /// Whether the program ended with 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Standard output as text, without white space at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Standard error as text, without white space at its end.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// Turns an exit status other than 0 into an error that shows what the program wrote.
    pub fn ok(self) -> Result<Self> {
        if self.success() {
            return Ok(self);
        }
        let status = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "an unknown status".to_owned(),
        };
        let output = if self.stderr.is_empty() { self.text() } else { self.error_text() };
        Err(LabError::Failed { argv: self.argv, status, output })
    }
}

/// A program to run to its end.
#[derive(Debug)]
pub(super) struct Cmd {
    command: Command,
    argv: String,
    input: Vec<u8>,
    deadline: Duration,
}

impl Cmd {
    pub(super) fn new(argv: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let argv: Vec<OsString> = argv.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let shown = argv.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let mut command = Command::new(argv.first().cloned().unwrap_or_default());
        command.args(argv.iter().skip(1)).env("LC_ALL", "C.UTF-8").env("PATH", SAFE_PATH);
        Cmd { command, argv: shown, input: Vec::new(), deadline: Duration::from_secs(60) }
    }

    pub(super) fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    pub(super) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    pub(super) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Drops the caller's environment but for a usable PATH, so that a guest sees none of the machine's.
    pub(super) fn clean_env(mut self, vars: &[(&str, &str)]) -> Self {
        self.command.env_clear().env("PATH", SAFE_PATH).envs(vars.iter().copied());
        self
    }

    /// Runs the program and fails unless it ends with 0.
    pub(super) fn run(self) -> Result<Output> {
        self.output()?.ok()
    }

    /// Runs the program; only failing to start it and the deadline are errors.
    pub(super) fn output(mut self) -> Result<Output> {
        // Files, not pipes: a grandchild that outlives the program cannot keep us waiting for an end of file.
        let scratch =
            || tempfile::tempfile().map_err(LabError::io("make a scratch file in", std::env::temp_dir()));
        let (mut input, mut out, mut err) = (scratch()?, scratch()?, scratch()?);
        let io = |doing| LabError::io(doing, "a scratch file");
        input.write_all(&self.input).and_then(|()| input.rewind()).map_err(io("write"))?;
        let clone = |f: &File| f.try_clone().map_err(LabError::io("duplicate", "a scratch file"));
        let start = |source| LabError::Start { argv: self.argv.clone(), source };
        // A process group of its own, so that the deadline also ends the program's children.
        let mut child = self
            .command
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(clone(&out)?))
            .stderr(Stdio::from(clone(&err)?))
            .process_group(0)
            .spawn()
            .map_err(start)?;
        let pid = Pid::from_child(&child);
        let ended = wait_exit(pid, self.deadline);
        if !ended {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let status = child.wait().map_err(|source| LabError::Start { argv: self.argv.clone(), source })?;
        let read = |file: &mut File| -> Result<Vec<u8>> {
            let mut text = Vec::new();
            file.seek(SeekFrom::Start(0))
                .and_then(|_| file.take(OUTPUT_LIMIT).read_to_end(&mut text))
                .map_err(LabError::io("read", "a scratch file"))?;
            Ok(text)
        };
        let (stdout, stderr) = (read(&mut out)?, read(&mut err)?);
        let output = Output { status, stdout, stderr, argv: self.argv };
        if !ended {
            let detail = format!("{}\n{}", output.text(), output.error_text());
            return Err(LabError::Deadline {
                what: format!("`{}`", output.argv),
                after: self.deadline,
                detail,
            });
        }
        Ok(output)
    }
}

/// Where programs are looked for inside guests and by the lab's own children.
pub(super) const SAFE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Waits until a child has ended (it is not reaped); false when it had not by the deadline.
pub(super) fn wait_exit(pid: Pid, deadline: Duration) -> bool {
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Err(rustix::io::Errno::INTR) if !left.is_zero() => {}
            Ok(_) | Err(_) => return true,
        }
    }
}

/// Asks `look` again and again until it answers, or the deadline has passed.
pub(super) fn wait_until<T>(
    what: impl Into<String>,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= end {
            return Err(LabError::Deadline { what: what.into(), after: deadline, detail: String::new() });
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

pub(super) fn read_text(path: impl AsRef<Path>) -> Result<String> {
    fs::read_to_string(&path).map_err(LabError::io("read", &path))
}

pub(super) fn make_dir(path: impl AsRef<Path>) -> Result<()> {
    fs::create_dir_all(&path).map_err(LabError::io("make the folder", &path))
}

/// Writes a file that exists in full or not at all.
pub(super) fn write_file(path: impl AsRef<Path>, text: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    let path = path.as_ref();
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    let mut temp = path.as_os_str().to_owned();
    temp.push(".lab-new");
    let temp = PathBuf::from(temp);
    let write = || -> std::io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temp)?;
        file.write_all(text.as_ref())?;
        // The umask may have taken bits away from the mode given to open.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        fs::rename(&temp, path)
    };
    write().map_err(LabError::io("write", path))
}

/// Removes a file or a whole tree; one that is not there is fine.
pub(super) fn remove(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let gone = |e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
    let outcome = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match outcome {
        Err(e) if !gone(&e) => Err(LabError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Unmounts everything at or below a folder, deepest first, then removes the folder.
pub(super) fn unmount_and_remove(dir: &Path) -> Result<()> {
    unmount_below(dir)?;
    remove(dir)
}

/// Unmounts everything at or below a folder, deepest first.
pub(super) fn unmount_below(dir: &Path) -> Result<()> {
    // More than one round: mounts can be stacked on one place.
    for _ in 0..8 {
        let mut found = mounts_below(dir)?;
        if found.is_empty() {
            return Ok(());
        }
        found.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
        for mount in found {
            let plain = Cmd::new([OsStr::new("umount"), mount.as_os_str()]).output()?;
            if !plain.success() {
                // Busy: a dying process still holds a file. A lazy unmount detaches it from the tree now.
                Cmd::new([OsStr::new("umount"), OsStr::new("-l"), mount.as_os_str()]).output()?;
            }
        }
    }
    match mounts_below(dir)?.first() {
        None => Ok(()),
        Some(left) => {
            Err(LabError::Invalid(format!("{} is still mounted and cannot be unmounted", left.display())))
        }
    }
}

fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = read_text("/proc/self/mountinfo")?;
    Ok(table
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(unescape)
        .filter(|p| p.starts_with(dir))
        .collect())
}

/// The kernel writes space, tab, newline and backslash of a path as octal.
pub(super) fn unescape(field: &str) -> PathBuf {
    let mut out = field.to_owned();
    for (from, to) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        out = out.replace(from, to);
    }
    PathBuf::from(out)
}
