//! Controller and agent killed in mid-run on a real host: nothing lost, nothing doubled, nothing run twice.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use postern_tests::lab::{Host, Image};
use postern_tests::rig::{Rig, wait_for};

/// Prints numbered lines slowly and leaves one mark for each time it ran to its end.
fn slow(lines: u32) -> String {
    format!(
        "i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); sleep 0.01; done; touch /ran-once-$$"
    )
}

fn lines(count: u32) -> String {
    (0..count).map(|i| format!("line {i}\n")).collect()
}

fn started(host: &Host) -> Result<()> {
    wait_for("the command runs", Duration::from_secs(20), || {
        Ok(!host.sh("pgrep -f '[r]an-once' || true")?.is_empty())
    })
}

fn marks(host: &Host) -> Result<String> {
    Ok(host.sh("find / -maxdepth 1 -name 'ran-once-*' | wc -l")?)
}

fn newest_run(rig: &Rig) -> Result<String> {
    let runs = rig.run(&["--output", "json", "runs"])?.expect(0);
    let first: serde_json::Value = serde_json::from_str(runs.stdout.trim()).context("runs as JSON")?;
    Ok(first["runs"][0]["id"].as_str().context("a run's id")?.to_owned())
}

/// The run goes on without the controller, and its log is whole once it is back (I3, I6).
#[test]
fn trap_35_the_controller_is_killed_in_mid_run() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let host = rig.host("orphan", Image::TRIXIE)?;
    rig.up(&host, &[])?.expect(0);
    let mut exec = rig
        .command(&["exec", "orphan", "--", "sh", "-c", &slow(400)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    started(&host)?;
    rig.kill_daemon()?;
    exec.wait()?;
    wait_for("the command ended without the controller", Duration::from_secs(30), || {
        Ok(marks(&host)? == "1")
    })?;
    rig.serve()?;
    let run = newest_run(&rig)?;
    wait_for("the run is known to be ok", Duration::from_secs(90), || {
        let shown = rig.run(&["--output", "json", "run", "show", &run])?.expect(0);
        Ok(shown.stdout.contains("\"state\":\"ok\""))
    })?;
    let logs = rig.run(&["run", "logs", &run])?.expect(0);
    assert_eq!(logs.stdout, lines(400), "nothing lost, nothing doubled");
    assert_eq!(marks(&host)?, "1", "ran once");
    Ok(())
}

/// The command goes on, and its output and end are not lost (T38).
#[test]
fn trap_38_the_agent_is_killed_with_a_command_running() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let host = rig.host("killed", Image::BOOKWORM)?;
    rig.up(&host, &[])?.expect(0);
    let script = slow(300);
    let exec = std::thread::scope(|scope| -> Result<_> {
        let run = scope.spawn(|| rig.run(&["exec", "killed", "--", "sh", "-c", &script]));
        started(&host)?;
        host.sh("kill -9 $(systemctl show -P MainPID postern-agent)")?;
        run.join().map_err(|_| anyhow::anyhow!("the run panicked"))?
    })?
    .expect(0);
    assert_eq!(exec.stdout, lines(300), "nothing lost, nothing doubled");
    assert_eq!(marks(&host)?, "1", "ran once");
    Ok(())
}

/// Power cut with a command running: it is said to be interrupted, and not run again (T36, I5).
#[test]
fn trap_36_the_power_is_cut_with_a_command_running() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let host = rig.host("dark", Image::TRIXIE)?;
    rig.up(&host, &[])?.expect(0);
    let script = format!("touch /began-$$; {}", slow(3000));
    let exec = std::thread::scope(|scope| -> Result<_> {
        let run = scope.spawn(|| rig.run(&["exec", "dark", "--", "sh", "-c", &script]));
        started(&host)?;
        host.kill()?;
        host.start()?;
        run.join().map_err(|_| anyhow::anyhow!("the run panicked"))?
    })?
    .expect(1);
    assert!(exec.stderr.contains("cut off"), "{exec:?}");
    assert_eq!(host.sh("find / -maxdepth 1 -name 'began-*' | wc -l")?, "1", "started once");
    assert_eq!(marks(&host)?, "0", "never ended");
    Ok(())
}
