//! Running one test program to its end, with a deadline, its output understood as it comes.
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, PipeReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::libtest::{Line, Outcome, Reader, Skip};

/// How long output may still come once the program is over: a process it left behind can hold the pipe open.
const LINGER: Duration = Duration::from_secs(2);
/// Lines of standard error kept for the case that a suite fails.
const ASIDE: usize = 200;

/// What came of one suite.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    pub(crate) time: Duration,
    /// Why the suite as a whole is no good, whatever its tests said.
    pub(crate) error: Option<String>,
}

/// How to run a suite.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// It is killed then, and has failed.
    pub(crate) deadline: Duration,
    /// Show each test's result as it comes, with the suite's name: others may run beside it.
    pub(crate) follow: bool,
    /// No test in it is an error.
    pub(crate) expects_tests: bool,
}

impl Suite {
    /// Nothing failed and everything that was announced is accounted for.
    pub(crate) fn good(&self) -> bool {
        self.error.is_none() && self.outcome.failed == 0
    }
}

/// A suite that is not run: each of its tests is skipped for this reason. `command` is what would have run it.
pub(crate) fn left_out(name: &str, command: Command, reason: &str) -> Result<Suite> {
    let start = Instant::now();
    let (tests, error) = list(name, command)?;
    let skipped: Vec<_> =
        tests.into_iter().map(|test| Skip { test: Some(test), reason: reason.to_owned() }).collect();
    let outcome = Outcome { announced: skipped.len(), skipped, ..Outcome::default() };
    Ok(Suite { name: name.to_owned(), outcome, time: start.elapsed(), error })
}

/// The tests that a program would run, and why that cannot be told where it cannot.
pub(crate) fn list(name: &str, mut command: Command) -> Result<(Vec<String>, Option<String>)> {
    let output = command
        .arg("--list")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let tests = text.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())).collect();
    let error = (!output.status.success()).then(|| format!("its tests cannot be listed ({})", output.status));
    Ok((tests, error))
}

enum Said {
    Out(String),
    Err(String),
}

/// Runs a test program; its failures appear on our output.
pub(crate) fn run(name: &str, mut command: Command, plan: Plan) -> Result<Suite> {
    let start = Instant::now();
    let (out, out_writer) = std::io::pipe().context("cannot make a pipe")?;
    let (err, err_writer) = std::io::pipe().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stdout(out_writer).stderr(err_writer);
    let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    // Our copies of the pipes' ends go with the command; else there would be no end of file.
    drop(command);
    let (tx, rx) = sync_channel(1024);
    forward(out, tx.clone(), Said::Out);
    forward(err, tx, Said::Err);

    let mut reader = Reader::default();
    let mut aside = VecDeque::new();
    let ended = follow(child, &rx, start + plan.deadline, &mut |said| match said {
        Said::Out(line) => match reader.line(&line) {
            Line::Failure if plan.follow => println!("{name}: {line}"),
            Line::Failure => println!("{line}"),
            Line::Progress if plan.follow => println!("{name}: {line}"),
            Line::Progress | Line::Noise => {}
        },
        Said::Err(line) => {
            reader.markers(&line);
            if plan.follow {
                eprintln!("{name}: {line}");
            } else {
                // Worth reading only when something is wrong.
                aside.truncate(ASIDE - 1);
                aside.push_front(line);
            }
        }
    })?;
    let outcome = reader.finish();
    let error = judge(&outcome, ended, plan);
    let suite = Suite { name: name.to_owned(), outcome, time: start.elapsed(), error };
    if !suite.good() {
        aside.iter().rev().for_each(|line| eprintln!("{line}"));
    }
    Ok(suite)
}

/// How the program ended.
enum Ended {
    /// By itself: success or not.
    Exit { success: bool, status: String },
    /// Killed by us.
    Deadline,
}

fn judge(outcome: &Outcome, ended: Ended, plan: Plan) -> Option<String> {
    match ended {
        Ended::Deadline => Some(format!("not done after {:?}, killed", plan.deadline)),
        Ended::Exit { status, .. } if !outcome.adds_up() => Some(format!(
            "{} tests announced, {} accounted for; the program ended with {status}",
            outcome.announced,
            outcome.passed + outcome.failed + outcome.skipped.len()
        )),
        Ended::Exit { success, status } if success != (outcome.failed == 0) => {
            Some(format!("{} tests failed, but the program ended with {status}", outcome.failed))
        }
        Ended::Exit { .. } if plan.expects_tests && outcome.announced == 0 => {
            Some("no test ran, where the source has some".to_owned())
        }
        Ended::Exit { .. } => None,
    }
}

fn forward(pipe: PipeReader, tx: SyncSender<Said>, wrap: fn(String) -> Said) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { return };
            if tx.send(wrap(String::from_utf8_lossy(&line).into_owned())).is_err() {
                return;
            }
        }
    });
}

fn follow(
    mut child: Child,
    rx: &Receiver<Said>,
    deadline: Instant,
    each: &mut dyn FnMut(Said),
) -> Result<Ended> {
    let mut exit = None;
    let mut until = deadline;
    loop {
        match rx.recv_timeout(Duration::from_millis(100)) {
            Ok(said) => {
                each(said);
                // Who writes without end must not keep us from looking at the clock.
                if Instant::now() < until {
                    continue;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if exit.is_some() => break,
            // It closed its output, so its end is near; nothing else will wake us.
            Err(RecvTimeoutError::Disconnected) => std::thread::park_timeout(Duration::from_millis(20)),
        }
        if exit.is_none() {
            exit = child.try_wait().context("cannot wait for a test program")?;
            if exit.is_some() {
                until = Instant::now() + LINGER;
            }
        }
        if Instant::now() >= until {
            break;
        }
    }
    match exit {
        Some(status) => Ok(Ended::Exit { success: status.success(), status: status.to_string() }),
        None => {
            child.kill().context("cannot kill a test program")?;
            child.wait().context("cannot wait for a test program")?;
            Ok(Ended::Deadline)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, deadline: Duration) -> Suite {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run("sh", command, Plan { deadline, follow: false, expects_tests: true }).unwrap()
    }

    const LONG: Duration = Duration::from_secs(30);
    const PASSED: &str =
        "printf 'running 1 test\ntest a ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored;\\n'";

    #[test]
    fn a_suite_that_ends_well_is_good_also_with_a_process_left_on_its_pipe() {
        let suite = sh(PASSED, LONG);
        assert!(suite.good(), "{suite:?}");
        assert_eq!(suite.outcome.passed, 1);
        let start = Instant::now();
        let suite = sh(&format!("sleep 6 & {PASSED}"), LONG);
        assert!(suite.good(), "{suite:?}");
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_suite_that_is_left_out_counts_as_skipped_test_by_test() {
        let mut command = Command::new("sh");
        command.args(["-c", "printf 'a::b: test\\nc: test\\n\\n2 tests, 0 benchmarks\\n'"]);
        let suite = left_out("sh", command, "lab: left out").unwrap();
        assert_eq!((suite.good(), suite.outcome.skipped.len()), (true, 2));
        assert_eq!(suite.outcome.skipped[0].test.as_deref(), Some("a::b"));
    }

    #[test]
    fn what_dies_hangs_or_contradicts_itself_is_an_error() {
        for (script, word) in [
            ("printf 'running 2 tests\ntest a ... ok\n'; kill -9 $$".to_owned(), "signal"),
            (format!("{PASSED}; exit 3"), "exit status: 3"),
            (
                "printf 'running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored;'".to_owned(),
                "no test ran",
            ),
            ("exit 0".to_owned(), "0 tests announced"),
        ] {
            let suite = sh(&script, LONG);
            assert!(!suite.good(), "{script}");
            let error = suite.error.unwrap();
            assert!(error.contains(word), "{script}: {error}");
        }
        for script in ["exec sleep 20", "exec >&- 2>&-; exec sleep 20", "while :; do echo spam; done"] {
            let suite = sh(script, Duration::from_millis(300));
            assert!(suite.error.unwrap().contains("killed"), "{script}");
            assert!(suite.time < Duration::from_secs(10), "{script}");
        }
    }
}
