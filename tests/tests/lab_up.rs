//! `postern up` against real hosts, from a bare image to a managed one: the whole life, on every image.
#![allow(clippy::print_stdout, reason = "figures for whoever runs it with --nocapture")]

use std::time::Duration;

use anyhow::Result;
use postern_tests::lab::{HostSpec, Image};
use postern_tests::rig::{Rig, ssh_closed, ssh_connections, wait_for};

const PROFILE: &str = "hello";

/// Bootstrap, profile, a second run that changes nothing and needs no SSH, a command, a reboot, and leaving.
fn whole_life(image: Image) -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    // As provided: nobody waits for sshd or cloud-init before `up` comes.
    let host = rig.lab.make(HostSpec::new("life", image))?;
    let first = rig.up(&host, &["--profile", PROFILE])?.expect(0);
    println!("{image}: first up took {:?}", first.took);
    ssh_closed(&host)?;

    // The unit, its modes and the state directory are as they are documented.
    let modes = host
        .sh("stat -c '%a %U %n' /usr/local/bin/postern-agent /var/lib/postern-agent /etc/postern-agent \
         /etc/postern-agent/config.json")?;
    let want = "755 root /usr/local/bin/postern-agent\n700 root /var/lib/postern-agent\n\
                700 root /etc/postern-agent\n600 root /etc/postern-agent/config.json";
    assert_eq!(modes, want);
    let loose = host.sh("find /var/lib/postern-agent /etc/postern-agent -perm /077")?;
    assert_eq!(loose, "", "state that others can read");
    let left =
        host.sh("ls -A /usr/local/bin /tmp /root | grep -i postern | grep -vx postern-agent || true")?;
    assert_eq!(left, "", "upload leftovers");

    // With sshd off, `up` still does its work: no SSH is needed, and none is tried.
    host.sh("systemctl stop ssh.socket ssh.service 2>/dev/null || systemctl stop ssh.service")?;
    let before = host.packets_to_port(22)?;
    let second = rig.up(&host, &["--profile", PROFILE])?.expect(0);
    println!("{image}: second up took {:?}", second.took);
    assert_eq!(host.packets_to_port(22)?, before, "packets to port 22 during a run over the session");
    assert!(second.stdout.contains("4 unchanged") && !second.stdout.contains(" changed"), "{second:?}");

    let exec = rig.run(&["exec", "life", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])?.expect(1);
    assert_eq!(exec.stdout, "out\n");
    assert!(exec.stderr.contains("err") && exec.stderr.contains('7'), "{exec:?}");

    // A reboot: the agent is back by itself.
    let boot = host.boot_id()?;
    host.reboot()?;
    wait_for("the agent is back after a reboot", Duration::from_secs(60), || {
        let exec = rig.run(&["exec", "life", "--", "cat", "/proc/sys/kernel/random/boot_id"])?;
        let now = exec.stdout.trim();
        Ok(!now.is_empty() && now != boot && now == host.boot_id()?)
    })?;

    // Leaving takes everything along.
    rig.run(&["host", "forget", "life"])?.expect(0);
    let gone = "ls -d /usr/local/bin/postern-agent /var/lib/postern-agent /etc/postern-agent \
                /etc/systemd/system/postern-agent.service 2>/dev/null || true";
    wait_for("the agent has left", Duration::from_secs(20), || Ok(host.sh(gone)?.is_empty()))?;
    wait_for("its unit is gone", Duration::from_secs(20), || {
        Ok(host.sh("systemctl is-active postern-agent.service || true")? == "inactive")
    })?;
    assert!(!rig.run(&["hosts"])?.expect(0).stdout.contains("life"));
    Ok(())
}

#[test]
fn life_on_debian_12_plain() -> Result<()> {
    whole_life(Image::BOOKWORM)
}

#[test]
fn life_on_debian_12_as_shipped() -> Result<()> {
    whole_life(Image::BOOKWORM_SHIPPED)
}

#[test]
fn life_on_debian_13_plain() -> Result<()> {
    whole_life(Image::TRIXIE)
}

#[test]
fn life_on_debian_13_as_shipped() -> Result<()> {
    whole_life(Image::TRIXIE_SHIPPED)
}

/// While resources are applied, no connection to port 22 is open and no packet goes there (I1).
#[test]
fn ssh_is_silent_while_resources_are_applied() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let host = rig.host("silent", Image::BOOKWORM)?;
    rig.up(&host, &[])?.expect(0);
    ssh_closed(&host)?;
    let before = host.packets_to_port(22)?;
    assert!(before > 0, "the counter sees bootstrap's own packets");
    let profile = rig.state_dir().join("busy.yaml");
    std::fs::write(
        &profile,
        "name: busy\nresources:\n  - package: {name: hello}\n  - command: {argv: [sleep, '2']}\n  \
         - file: {path: /etc/busy, content: done}\n",
    )?;
    let (samples, open) = std::thread::scope(|scope| -> Result<(usize, usize)> {
        let run = scope.spawn(|| rig.up(&host, &["--profile", &profile.display().to_string()]));
        let (mut samples, mut open) = (0, 0);
        while !run.is_finished() {
            open += ssh_connections(&host)?;
            samples += 1;
        }
        run.join().map_err(|_| anyhow::anyhow!("the run panicked"))??.expect(0);
        Ok((samples, open))
    })?;
    println!("sampled {samples} times");
    assert!(samples > 20, "sampled only {samples} times");
    assert_eq!(open, 0, "an SSH connection was open");
    assert_eq!(host.packets_to_port(22)?, before, "packets went to port 22");
    assert_eq!(host.sh("cat /etc/busy")?, "done");
    Ok(())
}

/// `up` with no daemon running: a private one is started, and the agent finds the next one on the same port.
#[test]
fn a_private_daemon_is_started() -> Result<()> {
    let Some(rig) = Rig::open() else { return Ok(()) };
    let host = rig.host("private", Image::BOOKWORM)?;
    // The port that this lab lets hosts reach, as if an earlier daemon had taken it.
    std::fs::write(rig.state_dir().join("port"), format!("{}\n", rig.port()))?;
    rig.up(&host, &["--profile", PROFILE])?.expect(0);
    let hosts = rig.run(&["hosts"])?.expect(0);
    assert!(hosts.stdout.contains("private") && hosts.stdout.contains("up"), "{hosts:?}");
    rig.stop_private_daemon()?;
    wait_for("the agent finds the next daemon", Duration::from_secs(90), || {
        Ok(rig.run(&["exec", "private", "--", "true"])?.code == Some(0))
    })
}
