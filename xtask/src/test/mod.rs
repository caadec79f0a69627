//! `cargo xtask test`: builds everything once, runs every suite, and counts what ran, what failed and what was skipped.
mod beside;
mod libtest;
mod report;
mod suite;

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::agent::{self, Arch};
use crate::cargo::{self, Executable};
use crate::lab::{self, Programs};
use report::Report;
use suite::Plan;

/// For suites in one process.
const UNIT_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// For suites with hosts.
const LAB_DEADLINE: Duration = Duration::from_secs(40 * 60);
const DOC_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// The package whose integration tests make hosts, in files with this prefix.
const LAB_PACKAGE: &str = "postern-tests";
const LAB_PREFIX: &str = "lab_";
/// The suite whose hosts are virtual machines. The emulator is heavy, so it is installed for that one only. It has the
/// machine to itself: an emulator takes whole cores, and others wait for states with deadlines.
const MACHINES_SUITE: &str = "lab_tier2";
/// Suites with tests that take minutes each, the longest first: they begin before the others.
const LONG_SUITES: [&str; 7] =
    ["lab_swarm", "lab_tunnel", "lab_dns", "lab_ssh_port", "lab_acme", "lab_guard", "lab_site_backup"];
/// The suite that fetches `ssh-audit` from PyPI, for which it needs Python.
const AUDIT_SUITE: &str = "lab_audit";

/// What `cargo xtask test` was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) require_lab: bool,
    pub(crate) no_lab: bool,
    pub(crate) locked: bool,
    pub(crate) filter: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
    let require_lab = options.require_lab || (ci && !options.no_lab);
    let this_run = run_name();
    let mut report = Report::new(options.filter.clone(), require_lab);

    let programs = report.stage("build", || Programs::build(true, options.locked || ci))?;
    let lab_runs = !options.no_lab && report.stage("requirements", || lab_can_run(&programs))?;
    // Images are made by the package manager and agents by the linker: side by side, neither waits for the other.
    let machines = lab_runs
        && std::env::var_os("POSTERN_LAB_VMS").is_some_and(|value| value == "1")
        && wants(MACHINES_SUITE, &programs, options.filter.as_deref())?
        && report.stage("emulator", || Ok(can_have(&programs, lab::MACHINES, "virtual machines")))?;
    if lab_runs && wants(AUDIT_SUITE, &programs, options.filter.as_deref())? {
        report.stage("ssh-audit", || Ok(can_have(&programs, lab::AUDIT, "ssh-audit")))?;
    }
    let more = if machines { lab::MACHINES } else { &[] };
    let images = if lab_runs { Some(Images::prepare(programs.find("lab")?, more, &this_run)?) } else { None };
    let agent = report
        .stage("static agent", || agent::build(Arch::of_this_machine().map_err(anyhow::Error::msg)?))?;
    println!("{agent}");

    let command = |executable: &Executable| -> Result<Command> {
        let mut command = harness(executable, options.filter.as_deref());
        lab::set_paths(&mut command, &agent.path, programs.find("postern")?);
        command.env(RUN_VARIABLE, &this_run);
        if require_lab {
            command.env("POSTERN_REQUIRE_LAB", "1");
        }
        Ok(command)
    };
    let (hosts, alone): (Vec<_>, Vec<_>) = suites(&programs.0).partition(|e| makes_hosts(e));
    for executable in alone {
        let plan = plan(executable, options, UNIT_DEADLINE);
        report.add(suite::run(&name(executable), command(executable)?, plan)?);
    }
    if let Some(images) = images {
        report.stage("images (rest)", || images.wait())?;
    }
    let (machines, mut beside) = (lab::machines_at_once(), Vec::new());
    for executable in hosts {
        let (name, mut command) = (name(executable), command(executable)?);
        if options.no_lab {
            report.add(suite::left_out(&name, command, "lab: left out (--no-lab)")?);
            continue;
        }
        let plan = plan(executable, options, LAB_DEADLINE);
        if is_of_machines(executable) {
            command.arg(format!("--test-threads={machines}"));
            report.add(suite::run(&name, command, plan)?);
            continue;
        }
        let (tests, _) = suite::list(&name, harness(executable, options.filter.as_deref()))?;
        beside.push(beside::Waiting { name, command, plan, tests: tests.len() });
    }
    beside::run(beside, lab::parallel_hosts(), &LONG_SUITES, &mut |suite| report.add(suite))?;
    if options.filter.is_none() {
        report.add(documentation(options.locked || ci)?);
    }
    Ok(report.finish())
}

/// By this the processes of one run know each other: what one of them could not reach the others do not try.
const RUN_VARIABLE: &str = "POSTERN_TEST_RUN";

/// No other run on this machine has the same.
fn run_name() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), since.as_nanos())
}

/// Says what is missing when the lab cannot run; its tests then skip themselves, or fail where it is required.
fn lab_can_run(programs: &Programs) -> Result<bool> {
    if !cfg!(target_os = "linux") {
        return Ok(false);
    }
    let missing = lab::install(programs.find("lab")?, &[])?;
    if let Some(missing) = &missing {
        eprintln!("xtask: the lab cannot run here: {missing}");
    }
    Ok(missing.is_none())
}

/// Whether a test of this suite is among those that were asked for.
fn wants(suite: &str, programs: &Programs, filter: Option<&str>) -> Result<bool> {
    let is = |e: &&Executable| makes_hosts(e) && e.target == suite;
    let Some(executable) = suites(&programs.0).find(is) else { return Ok(false) };
    Ok(!suite::list(&name(executable), harness(executable, filter))?.0.is_empty())
}

/// Installs what these need and says what is missing when they cannot be had here, which is no reason to give the other
/// tests up.
fn can_have(programs: &Programs, more: &[&str], what: &str) -> bool {
    let why = match programs.find("lab").and_then(|lab| lab::install(lab, more)) {
        Ok(None) => return true,
        Ok(Some(missing)) => missing,
        Err(error) => format!("{error:#}"),
    };
    eprintln!("xtask: {what} cannot be had here: {why}");
    false
}

/// The lab's base images being built beside us.
struct Images(Option<Child>);

impl Images {
    fn prepare(lab: &Path, more: &[&str], run: &str) -> Result<Images> {
        let mut command = Command::new(lab);
        command.env(RUN_VARIABLE, run);
        command.args(["images", "--build"]).args(more).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Images(Some(command.spawn().context("cannot start `lab images --build`")?)))
    }

    /// Each step inside has a deadline of its own.
    fn wait(mut self) -> Result<()> {
        let Some(mut process) = self.0.take() else { return Ok(()) };
        let status = process.wait().context("cannot wait for `lab images --build`")?;
        anyhow::ensure!(status.success(), "`lab images --build` failed ({status})");
        Ok(())
    }
}

impl Drop for Images {
    /// When we end early: killing it would leave mounts behind, so see it through.
    fn drop(&mut self) {
        if let Some(mut process) = self.0.take() {
            let _ = process.wait();
        }
    }
}

fn plan(executable: &Executable, options: &Options, deadline: Duration) -> Plan {
    Plan {
        deadline,
        follow: makes_hosts(executable),
        expects_tests: options.filter.is_none() && has_tests(executable),
    }
}

/// The test harnesses among what was built.
fn suites(built: &[Executable]) -> impl Iterator<Item = &Executable> {
    built.iter().filter(|e| e.harness)
}

fn makes_hosts(executable: &Executable) -> bool {
    executable.package == LAB_PACKAGE
        && executable.kind == "test"
        && executable.target.starts_with(LAB_PREFIX)
}

fn is_of_machines(executable: &Executable) -> bool {
    makes_hosts(executable) && executable.target == MACHINES_SUITE
}

fn name(executable: &Executable) -> String {
    match executable.kind.as_str() {
        "lib" => executable.package.clone(),
        "test" => format!("{}/{}", executable.package, executable.target),
        _ => format!("{} ({} {})", executable.package, executable.kind, executable.target),
    }
}

/// The command cargo itself would use: in the package's folder, with its place in the environment.
fn harness(executable: &Executable, filter: Option<&str>) -> Command {
    let mut command = Command::new(&executable.path);
    command.current_dir(&executable.dir).env("CARGO_MANIFEST_DIR", &executable.dir);
    command.args(filter).arg("--show-output");
    command
}

/// Whether the source of a suite has tests, so that a harness which runs none is found out. A binary's tests are
/// looked for in its root file and in folders beside it only where it has no library; those of a suite that is a
/// folder, in all of it.
fn has_tests(executable: &Executable) -> bool {
    let Some(folder) = executable.source.parent() else { return false };
    let library_beside = executable.kind == "bin" && executable.dir.join("src/lib.rs").exists();
    let is_file = executable.kind == "test" && !executable.source.ends_with("main.rs");
    if is_file || library_beside {
        return file_has_tests(&executable.source);
    }
    folder_has_tests(folder)
}

fn folder_has_tests(folder: &Path) -> bool {
    let Ok(entries) = folder.read_dir() else { return false };
    entries.flatten().map(|entry| entry.path()).any(|path| match path.is_dir() {
        // Programs have harnesses of their own.
        true => !path.ends_with("src/bin") && folder_has_tests(&path),
        false => file_has_tests(&path),
    })
}

fn file_has_tests(path: &Path) -> bool {
    let is_rust = path.extension().is_some_and(|extension| extension == "rs");
    let text = if is_rust { std::fs::read_to_string(path).unwrap_or_default() } else { String::new() };
    text.lines().map(str::trim_start).any(|line| {
        line.starts_with("#[test]") || line.starts_with("#[tokio::test") || line.starts_with("proptest!")
    })
}

/// Examples in documentation, which only cargo can build.
fn documentation(locked: bool) -> Result<suite::Suite> {
    let mut command = cargo::cargo("test");
    command.args(["--workspace", "--doc", "--no-fail-fast"]);
    if locked {
        command.arg("--locked");
    }
    let start = Instant::now();
    let plan = Plan { deadline: DOC_DEADLINE, follow: false, expects_tests: false };
    let mut suite = suite::run("examples in documentation", command, plan)?;
    suite.time = start.elapsed();
    Ok(suite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_crate_is_seen_to_have_tests() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        let me = Executable {
            package: "xtask".into(),
            target: "xtask".into(),
            kind: "bin".into(),
            harness: true,
            path: "/nowhere".into(),
            dir: dir.into(),
            source: dir.join("src/main.rs"),
        };
        assert!(has_tests(&me));
        assert!(!makes_hosts(&me));
        assert_eq!(name(&me), "xtask (bin xtask)");
        assert!(!file_has_tests(&dir.join("src/dist.rs")));
    }

    #[test]
    fn a_suite_that_is_a_folder_is_seen_to_have_tests() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
        let source = dir.join("tests/lab_tier2/main.rs");
        assert!(source.exists() && !file_has_tests(&source), "it only names the files that have them");
        let suite = |target: &str, source: std::path::PathBuf| Executable {
            package: LAB_PACKAGE.into(),
            target: target.into(),
            kind: "test".into(),
            harness: true,
            path: "/nowhere".into(),
            dir: dir.clone(),
            source,
        };
        let machines = suite(MACHINES_SUITE, source);
        assert!(has_tests(&machines) && is_of_machines(&machines));
        let other = suite("lab_up", dir.join("tests/lab_up.rs"));
        assert!(makes_hosts(&other) && !is_of_machines(&other));
    }
}
