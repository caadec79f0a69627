//! The machine itself: what it has of its own, how it loses its power, and that nothing is left of it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use postern_tests::lab::{self, Release, VmSpec};
use postern_tests::rig::VM_BOOT_DEADLINE;

use super::{BACK, again, timed};

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Command lines of this machine's processes that have this text.
fn processes(text: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(text)).collect()
}

#[test]
fn a_virtual_machine_has_a_kernel_a_clock_and_a_disk_of_its_own() -> Result<()> {
    let Some(lab) = lab::require_vm() else { return Ok(()) };
    let mut spec = VmSpec::new("own", Release::Trixie);
    spec.clock = Some("2031-05-04T03:02:01".to_owned());
    let host = timed("make a virtual machine", || lab.make_vm(spec))?;
    timed("boot", || host.wait_ssh(VM_BOOT_DEADLINE))?;
    host.wait_booted(VM_BOOT_DEADLINE)?;
    assert_eq!(host.sh("systemctl list-units --failed --plain --no-legend")?, "", "units failed at boot");
    assert_eq!(host.sh("hostname; . /etc/os-release; echo $VERSION_ID")?, "own\n13");
    let kernel = Command::new("uname").arg("-r").output()?.stdout;
    assert_ne!(host.sh("uname -r")?, String::from_utf8_lossy(&kernel).trim(), "the kernel is this machine's");
    // Words, an exit code and standard input reach the guest and come back as they are.
    let out = host.exec_with(&["sh", "-c", "cat; echo \"$1\"; exit 7", "x", "a 'b"], b"in ", BACK)?;
    assert_eq!((out.text().as_str(), out.status.code()), ("in a 'b", Some(7)));

    // Its clock is its own, and so is its swap.
    assert_eq!(host.sh("date -u +%Y-%m")?, "2031-05");
    let before = now();
    host.sh("date -s @1700000000 >/dev/null")?;
    assert!(host.sh("date +%s")?.starts_with("17000000"));
    assert!((before..before + 60).contains(&now()), "the machine's clock was changed");
    host.sh(
        "dd if=/dev/zero of=/swap bs=1M count=32 status=none; chmod 600 /swap; mkswap -q /swap; swapon /swap",
    )?;
    assert!(host.sh("cat /proc/swaps")?.contains("/swap"));

    // The network is the lab's: names are resolved, and what the machine listens on is shut until it is opened.
    let mirror = "sed -n 's|.*//\\([^/]*\\)/.*|\\1|p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n1";
    assert!(host.sh(&format!("getent hosts $({mirror})"))?.len() > 4, "no name service");
    let listener = std::net::TcpListener::bind((lab.gateway_v4(), 0))?;
    let port = listener.local_addr()?.port();
    let dial = format!("timeout 3 bash -c '</dev/tcp/{}/{port}' 2>/dev/null", lab.gateway_v4());
    assert!(!host.exec(&["sh", "-c", &dial])?.success(), "a port that nobody opened");
    lab.allow_port(port)?;
    host.sh(&dial)?;

    let boot = host.boot_id()?;
    host.sh("echo kept >/root/kept")?;
    timed("reboot", || host.reboot())?;
    assert_ne!(host.boot_id()?, boot);
    assert_eq!(host.sh("cat /root/kept")?, "kept");

    // A power cut: what was flushed is there, what was not is lost.
    let boot = host.boot_id()?;
    host.sh("echo flushed >/root/flushed; sync; echo not flushed >/root/lost")?;
    host.kill()?;
    assert_eq!(host.init_pid(), None);
    again(&host)?;
    assert_ne!(host.boot_id()?, boot);
    assert_eq!(host.sh("cat /root/flushed; cat /root/lost 2>/dev/null || true")?, "flushed");

    timed("power off", || host.poweroff())?;
    assert_eq!(host.init_pid(), None);
    let mark = format!("runs/{}/hosts/own/disk.img", lab.run());
    host.destroy()?;
    assert_eq!(processes(&mark), [""; 0]);
    Ok(())
}

/// Not a test: the process that the next test kills.
#[test]
#[ignore = "run by another test, which kills it"]
fn victim() {
    if std::env::var_os("LAB_VICTIM").is_none() {
        return;
    }
    let lab = lab::require_vm().unwrap();
    let _host = lab.make_vm(VmSpec::new("orphan", Release::Trixie)).unwrap();
    writeln!(std::io::stdout(), "\nMADE {}", lab.run()).unwrap();
    // The end of standard input means that the other test has died itself.
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn nothing_is_left_of_a_virtual_machine_whose_lab_was_killed() -> Result<()> {
    if lab::require_vm().is_none() {
        return Ok(());
    }
    // What went wrong is known to the victim and to the lab's guardian alone.
    let complaints = tempfile::NamedTempFile::new()?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "machine::victim", "--ignored", "--nocapture"])
        .env("LAB_VICTIM", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(complaints.reopen()?)
        .spawn()?;
    let said = || std::fs::read_to_string(complaints.path()).unwrap_or_default();
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines().map_while(Result::ok);
    let run = lines.find_map(|line| Some(line.strip_prefix("MADE ")?.trim().to_owned()));
    let run = run.with_context(|| format!("the victim ended before it had made its machine:\n{}", said()))?;
    let mark = format!("runs/{run}/hosts/orphan/disk.img");
    let cable = std::path::PathBuf::from(format!("/sys/class/net/plv{run}h1"));
    let left = || (processes(&mark), cable.exists());
    assert!(!left().0.is_empty() && left().1, "the machine does not run: {:?}\n{}", left(), said());
    child.kill()?;
    child.wait()?;
    let start = Instant::now();
    while left() != (Vec::new(), false) {
        assert!(start.elapsed() < BACK, "left: {:?}\n{}{}", left(), said(), lab::guardian_log());
        std::thread::park_timeout(Duration::from_millis(50));
    }
    println!("gone after {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}
