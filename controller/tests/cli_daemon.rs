//! The private daemon: started once, found again, replaced, and told nothing secret by its arguments. These
//! tests start the real program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);

/// A state directory whose daemons are ended with the test.
struct State(tempfile::TempDir);

impl State {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> std::path::PathBuf {
        self.0.path().join("state")
    }

    fn postern(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
        command
            .args(args)
            .env("POSTERN_STATE_DIR", self.dir())
            .env("HOME", self.0.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.postern(args).output().unwrap()
    }

    /// Processes that serve this state, found by their arguments in /proc.
    fn daemons(&self) -> Vec<(i32, Vec<String>)> {
        let dir = self.dir().display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let Ok(bytes) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let args: Vec<_> =
                bytes.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
            if args.contains(&"--private".to_owned()) && args.contains(&dir) {
                found.push((pid, args));
            }
        }
        found
    }
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

impl Drop for State {
    fn drop(&mut self) {
        for (pid, _) in self.daemons() {
            signal(pid, rustix::process::Signal::KILL);
        }
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn many_commands_at_once_start_one_daemon() {
    let state = State::new();
    let children: Vec<Child> = (0..8)
        .map(|_| state.postern(&["hosts"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    assert_eq!(state.daemons().len(), 1);
    // Once more: the same one is found.
    let before = state.daemons();
    assert_eq!(state.run(&["hosts"]).status.code(), Some(0));
    assert_eq!(state.daemons(), before);
    // It is no child of a terminal's session, and what it keeps is nobody else's business.
    let (pid, _) = &before[0];
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string(), "it leads a session of its own");
    for (name, want) in [("", 0o700), ("daemon.log", 0o600), ("port", 0o600), ("postern.sock", 0o600)] {
        assert_eq!(mode(&state.dir().join(name)), want, "{name}");
    }
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_killed_daemon_is_replaced_at_the_same_port() {
    let state = State::new();
    assert_eq!(state.run(&["hosts"]).status.code(), Some(0));
    // It answers a moment before it has written its port down.
    wait_for("its port is on disk", || state.dir().join("port").exists());
    let port = std::fs::read_to_string(state.dir().join("port")).unwrap();
    let (first, _) = state.daemons().remove(0);
    signal(first, rustix::process::Signal::KILL);
    wait_for("the daemon is gone", || state.daemons().is_empty());
    assert!(state.dir().join("postern.sock").exists(), "its socket stays behind");
    let output = state.run(&["hosts"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_ne!(state.daemons()[0].0, first);
    assert_eq!(std::fs::read_to_string(state.dir().join("port")).unwrap(), port);
}

#[test]
fn serve_takes_over_from_a_private_daemon_and_from_no_other() {
    let state = State::new();
    assert_eq!(state.run(&["hosts"]).status.code(), Some(0));
    let mut serve =
        state.postern(&["serve", "--listen", "127.0.0.1:0"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the private daemon ends", || state.daemons().is_empty());
    wait_for("the operator's daemon answers", || {
        let output = state.run(&["-v", "hosts"]);
        output.status.code() == Some(0) && !text(&output.stderr).contains("started a daemon")
    });
    assert!(state.daemons().is_empty(), "no other was started");
    let second = state.run(&["serve"]);
    assert_eq!(second.status.code(), Some(2));
    assert!(
        text(&second.stderr).starts_with("error[already-running]: a daemon serves "),
        "{}",
        text(&second.stderr)
    );
    signal(serve.id().cast_signed(), rustix::process::Signal::TERM);
    assert_eq!(serve.wait().unwrap().code(), Some(0));
}

#[test]
fn a_private_daemon_ends_when_idle() {
    let state = State::new();
    let mut daemon = state
        .postern(&["serve", "--private", "--idle", "1s", "--listen", "127.0.0.1:0"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
    assert!(started.elapsed() < DEADLINE);
    assert!(!state.dir().join("postern.sock").exists());
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let state = State::new();
    std::fs::create_dir(state.dir()).unwrap();
    rustix::fs::chmod(state.dir(), rustix::fs::Mode::from_raw_mode(0o700)).unwrap();
    std::fs::write(state.dir().join("port"), "none").unwrap();
    let output = state.run(&["hosts"]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.starts_with("error[daemon-start]: the daemon did not start (exit status: 2): "), "{said}");
    assert!(said.contains("holds no port"), "{said}");
}

#[test]
fn trap_23_nothing_secret_is_in_a_daemons_arguments_or_environment() {
    let state = State::new();
    let output = state.run(&["hosts"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let (_, args) = state.daemons().remove(0);
    let program = env!("CARGO_BIN_EXE_postern");
    let dir = state.dir().display().to_string();
    assert_eq!(args, [program, "--state-dir", &dir, "serve", "--private", ""]);
}

#[test]
fn a_reader_that_goes_away_ends_a_command_without_a_panic() {
    let state = State::new();
    let mut child = state
        .postern(&["profile", "show", "hello"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
}

/// A daemon that is ending has closed its socket and holds the state a little longer.
#[test]
fn a_command_waits_for_a_daemon_that_is_ending() {
    use std::os::unix::fs::DirBuilderExt as _;
    let state = State::new();
    std::fs::DirBuilder::new().mode(0o700).create(state.dir()).unwrap();
    let lock = std::fs::File::create(state.dir().join("lock")).unwrap();
    lock.lock().unwrap();
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    let ending = std::thread::spawn(move || {
        // Long enough for the new daemon to find the state in use; sooner if the command has given up.
        let _ = is_over.recv_timeout(Duration::from_millis(1500));
        drop(lock);
    });
    let output = state.run(&["hosts"]);
    let _ = over.send(());
    ending.join().unwrap();
    assert!(output.status.success(), "{output:?}");
}
