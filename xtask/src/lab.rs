//! What needs throw-away hosts: its requirements, and the programs built on it (`lab`, `demo`, `bench`).
use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::agent::{self, Arch};
use crate::cargo::{self, Executable, on_path};

/// This machine is not one that the lab can run on.
#[derive(Debug)]
pub(crate) struct CannotRunHere(String);

impl fmt::Display for CannotRunHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CannotRunHere {}

/// Runs `lab`, `demo` or `bench` in place of this process, so that Ctrl-C reaches it and it can clear up.
pub(crate) fn run_tool(tool: &str, args: &[OsString]) -> Result<ExitCode> {
    let asks_for_help = args.iter().any(|arg| arg == "--help" || arg == "-h");
    let wants_host = tool != "lab" && !asks_for_help;
    if wants_host {
        require_linux_and_root(tool)?;
    }
    let agent = if wants_host {
        let agent = agent::build(Arch::of_this_machine().map_err(anyhow::Error::msg)?)?;
        eprintln!("{agent}");
        Some(agent)
    } else {
        None
    };
    let programs = match &agent {
        // What is measured is what users get: optimised, the agent inside.
        Some(agent) if tool == "bench" => Programs::release(agent)?,
        Some(_) => Programs::build(false, false)?,
        // The lab stays of use while another crate is being changed and does not compile.
        None => Programs::alone(tool)?,
    };
    let mut command = Command::new(programs.find(tool)?);
    command.args(args);
    if let Some(agent) = agent {
        if let Some(missing) = install(programs.find("lab")?, &[])? {
            return Err(CannotRunHere(format!("the lab cannot run here: {missing}")).into());
        }
        set_paths(&mut command, &agent.path, programs.find("postern")?);
        command.env("POSTERN_BENCH_DIR", cargo::target_dir()?.join("bench"));
    }
    Err(cargo::exec(command))
}

fn require_linux_and_root(tool: &str) -> Result<()> {
    let why = if !cfg!(target_os = "linux") {
        format!(
            "`{tool}` makes a throw-away VPS out of Linux namespaces, and this is not Linux. What runs here:"
        )
    } else if !is_root() {
        format!(
            "`{tool}` makes a throw-away VPS out of Linux namespaces, which takes root. As root:\n  \
             sudo -E env PATH=\"$PATH\" cargo xtask {tool}\nWhat runs without:"
        )
    } else {
        return Ok(());
    };
    let text = format!(
        "{why}\n  cargo xtask test --no-lab    the tests that need no VPS\n  cargo xtask dist             the \
         program, for a host of your own: target/dist/postern up root@HOST --profile hello"
    );
    Err(CannotRunHere(text).into())
}

/// Tells a test, the demo or a benchmark where the programs are.
pub(crate) fn set_paths(command: &mut Command, agent: &Path, postern: &Path) {
    command.env("POSTERN_TEST_AGENT", agent).env("POSTERN_TEST_BIN", postern);
}

/// The workspace's programs, and its test harnesses where asked for.
pub(crate) struct Programs(pub(crate) Vec<Executable>);

impl Programs {
    /// One cargo call for the whole workspace: calls for single packages would choose other features of common
    /// dependencies and compile them again.
    pub(crate) fn build(tests: bool, locked: bool) -> Result<Programs> {
        let mut command = cargo::cargo("build");
        command.args(["--workspace", "--bins"]);
        if tests {
            command.arg("--tests");
        }
        if locked {
            command.arg("--locked");
        }
        eprintln!(
            "xtask: building the workspace ({})",
            if tests { "programs and tests" } else { "programs" }
        );
        cargo::build(command).map(Programs)
    }

    fn alone(tool: &str) -> Result<Programs> {
        let mut command = cargo::cargo("build");
        // The benchmarks link the controller, which only examples and tests of that package may.
        let kind = if tool == "bench" { "--example" } else { "--bin" };
        command.args(["--quiet", "--package", "postern-tests", kind, tool]);
        cargo::build(command).map(Programs)
    }

    /// The programs as users get them.
    fn release(agent: &agent::Agent) -> Result<Programs> {
        let mut command = cargo::cargo("build");
        command
            .args(["--workspace", "--bins", "--examples", "--release"])
            .env(agent.arch.embed_variable(), &agent.path);
        eprintln!("xtask: building the workspace (programs, release)");
        cargo::build(command).map(Programs)
    }

    /// A program's path.
    pub(crate) fn find(&self, name: &str) -> Result<&Path> {
        let program = |e: &Executable| matches!(e.kind.as_str(), "bin" | "example") && !e.harness;
        let is = |e: &&Executable| e.target == name && program(e);
        Ok(&self.0.iter().find(is).with_context(|| format!("the workspace has no program `{name}`"))?.path)
    }
}

/// Installs what the lab lacks where that can be done here; with [`MACHINES`], what its virtual machines lack, with
/// [`AUDIT`] what that test does. Returns what is missing after that.
pub(crate) fn install(lab: &Path, more: &[&str]) -> Result<Option<String>> {
    let Some(missing) = requirements(lab, more)? else { return Ok(None) };
    let packages = packages(&missing);
    if packages.is_empty() || !is_root() || !on_path("apt-get") {
        return Ok(Some(missing.join("; ")));
    }
    eprintln!(
        "xtask: the lab lacks some programs; installing from the distribution's packages: {}",
        packages.join(" ")
    );
    let apt = |args: &[&str]| -> Result<()> {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y", "-o", "DPkg::Lock::Timeout=300"]).args(args);
        command.env("DEBIAN_FRONTEND", "noninteractive").env("NEEDRESTART_MODE", "a").stdin(Stdio::null());
        // Its output is for people; ours on stdout may be read by a program.
        command.stdout(std::io::stderr());
        let status = command.status().context("cannot start apt-get")?;
        ensure!(status.success(), "`{}` failed ({status})", cargo::show(&command));
        Ok(())
    };
    let mut install = vec!["install", "--no-install-recommends"];
    install.extend(packages.iter().map(String::as_str));
    if apt(&["update"]).and_then(|()| apt(&install)).is_err() {
        bail!("cannot install what the lab needs: {}", packages.join(" "));
    }
    Ok(requirements(lab, more)?.map(|missing| missing.join("; ")))
}

/// Makes `lab requirements` and `lab images` speak of virtual machines as well.
pub(crate) const MACHINES: &[&str] = &["--vm"];

/// Makes `lab requirements` speak of what `ssh-audit` needs, and of nothing else.
pub(crate) const AUDIT: &[&str] = &["--audit"];

/// The lines of `lab requirements`, none when nothing is missing.
fn requirements(lab: &Path, more: &[&str]) -> Result<Option<Vec<String>>> {
    let output = Command::new(lab)
        .arg("requirements")
        .args(more)
        .stdin(Stdio::null())
        .output()
        .context("cannot start lab")?;
    let lines = || String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>();
    match output.status.code() {
        Some(0) => Ok(None),
        Some(1) => Ok(Some(lines())),
        _ => bail!("`lab requirements` failed: {}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}

/// What `lab requirements` says is to be installed.
fn packages(lines: &[String]) -> Vec<String> {
    let line = lines.iter().find_map(|line| line.strip_prefix("to install: apt-get install "));
    line.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Effective user id 0; asked of the kernel's own account, without a C library call.
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    uids.split_whitespace().nth(1) == Some("0")
}

/// Tests with hosts at the same time: each takes some 150 MB and mostly waits.
pub(crate) fn parallel_hosts() -> usize {
    (available_mib() >> 10).clamp(1, 8).min(cores() * 2)
}

/// Tests with virtual machines at the same time: each takes 1 GB, and a core while it boots.
pub(crate) fn machines_at_once() -> usize {
    (available_mib() / 1500).clamp(1, 4).min(cores())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn available_mib() -> usize {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: usize =
        available.and_then(|v| v.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(2 << 20);
    kib >> 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_from_the_labs_own_words() {
        let lines = [
            "the program ip is missing (apt-get install iproute2)",
            "to install: apt-get install iproute2 mount",
        ];
        assert_eq!(packages(&lines.map(str::to_owned)), ["iproute2", "mount"]);
        assert!(packages(&["root is missing (run as root)".to_owned()]).is_empty());
    }

    #[test]
    fn there_is_room_for_at_least_one_host() {
        assert!((1..=8).contains(&parallel_hosts()));
        assert!((1..=4).contains(&machines_at_once()));
    }
}
