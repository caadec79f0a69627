//! Virtual machines, the lab's second kind of host: with a kernel, a clock and a disk of their own.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers and figures of tests")]

mod boots;
mod machine;
mod power;

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::lab::{Host, VmSpec};
use postern_tests::rig::{Rig, VM_BOOT_DEADLINE, wait_for};
use serde_json::Value;

/// What a program in a virtual machine may take, and an agent to come back after a boot.
const BACK: Duration = Duration::from_secs(300);
/// What a run may take that is cut off again and again.
const RUN: Duration = Duration::from_secs(900);

/// How long something took, for whoever reads the output.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let out = work();
    println!("{what}: {:.1} s", start.elapsed().as_secs_f32());
    out
}

/// Switches a host that lost its power on again.
fn again(host: &Host) -> Result<()> {
    host.start()?;
    Ok(timed("boot after a power cut", || host.wait_ssh(VM_BOOT_DEADLINE))?)
}

/// Cuts the power, and switches it on again.
fn cut(host: &Host) -> Result<()> {
    host.kill()?;
    again(host)
}

/// A daemon, and a virtual machine that its agent has taken over, told `more`; `None` where there can be none.
fn managed_vm(spec: VmSpec, more: &[&str]) -> Result<Option<(Rig, Host)>> {
    let Some(mut rig) = Rig::open_vm() else { return Ok(None) };
    rig.serve()?;
    let host = timed("make and boot", || rig.vm_with(spec))?;
    timed("take over", || rig.up(&host, more))?.expect(0);
    Ok(Some((rig, host)))
}

/// An apply at work while the test does something to its host; it is ended when this is dropped.
struct Applying {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Applying {
    /// Starts to apply a profile of these resources.
    fn start(rig: &Rig, host: &Host, resources: &str) -> Result<Self> {
        let file = |name: &str| rig.state_dir().join(name);
        let (profile, stdout, stderr) = (file("vm.yaml"), file("vm.out"), file("vm.err"));
        std::fs::write(&profile, format!("name: vm\nresources:\n{resources}")).context("write a profile")?;
        let profile = profile.display().to_string();
        let child = rig
            .command(&["--output", "json", "apply", &profile, "-H", &host.name])
            .stdout(std::fs::File::create(&stdout)?)
            .stderr(std::fs::File::create(&stderr)?)
            .stdin(Stdio::null())
            .spawn()
            .context("start postern apply")?;
        Ok(Self { child, stdout, stderr })
    }

    /// All that it has written by now, for who looks into a failure.
    fn said(&self) -> String {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        format!("{}{}", read(&self.stdout), read(&self.stderr))
    }

    /// What has happened so far, line by line.
    fn events(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.stdout).context("read what postern apply wrote")?;
        // The last line may not be whole yet.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// Waits until something is so while it is at work.
    fn until(&mut self, what: &str, mut so: impl FnMut(&[Value]) -> Result<bool>) -> Result<()> {
        wait_for(what, BACK, || {
            ensure!(self.child.try_wait()?.is_none(), "it ended before: {}", self.said());
            so(&self.events()?)
        })
    }

    /// Waits for its end; gives the run's id and all that happened.
    fn end(mut self) -> Result<Ended> {
        wait_for("the run is over", RUN, || Ok(self.child.try_wait()?.is_some()))?;
        let code = self.child.wait()?.code();
        let events = self.events()?;
        let id = events.iter().find_map(|it| it["run"].as_str()).context("a run's id")?.to_owned();
        ensure!(matches!(code, Some(0 | 1)), "exit code {code:?}: {}", self.said());
        Ok(Ended { id, events })
    }
}

impl Drop for Applying {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("what postern apply had written:\n{}", self.said());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A run that is over.
struct Ended {
    id: String,
    events: Vec<Value>,
}

impl Ended {
    /// Outcome and message of each attempt at the resource whose address ends so.
    fn attempts(&self, address: &str) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of = |it: &&Value| {
            it["event"] == "resource-finished" && it["address"].as_str().is_some_and(|a| a.ends_with(address))
        };
        self.events.iter().filter(of).map(|it| (text(&it["outcome"]), text(&it["message"]))).collect()
    }

    /// How the run ended.
    fn state(&self) -> &str {
        let last = self.events.iter().rev().find(|it| it["event"] == "finished");
        last.and_then(|it| it["state"].as_str()).unwrap_or("not over")
    }

    /// Only the outcomes.
    fn outcomes(&self, address: &str) -> Vec<String> {
        self.attempts(address).into_iter().map(|(outcome, _)| outcome).collect()
    }

    /// No event is missing, and none is there twice.
    fn is_whole(&self) {
        let numbers: Vec<u64> = self.events.iter().filter_map(|it| it["seq"].as_u64()).collect();
        assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{numbers:?}");
        assert!(numbers.len() > 2);
    }
}

/// No boot's agent has found anything damaged, or had to be started twice.
fn undamaged(host: &Host) -> Result<()> {
    let said =
        host.sh("journalctl --no-pager -q -u postern-agent | grep -i -e damaged -e corrupt || true")?;
    assert_eq!(said, "");
    assert_eq!(host.sh("systemctl show -P NRestarts postern-agent")?, "0");
    Ok(())
}
