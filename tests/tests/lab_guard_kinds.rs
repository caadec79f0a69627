//! Changes by kinds of resources that would shut everybody out of a real host, each taken back by its guard, and what
//! they do where there is none. `POSTERN_GUARD_ROUNDS` says how often each is made.

use std::time::Duration;

use anyhow::{Result, ensure};
use postern_tests::lab::{Host, Image};
use postern_tests::rig::{Ended, Rig, apply, managed, said, wait_for};

/// Seconds that a change has to be confirmed here: the least there is.
const WINDOW_S: u64 = 15;
const BACK: Duration = Duration::from_secs(90);

fn rounds() -> u32 {
    std::env::var("POSTERN_GUARD_ROUNDS").ok().and_then(|it| it.parse().ok()).unwrap_or(1).min(20)
}

/// A host whose guards do not wait long.
fn hasty(name: &str, image: Image) -> Result<Option<(Rig, Host)>> {
    let Some((rig, host)) = managed(name, image)? else { return Ok(None) };
    host.sh(&format!(
        "sed -i 's/^{{/{{\"limits\":{{\"guard_window_s\":{WINDOW_S}}},/' /etc/postern-agent/config.json; \
         systemctl restart postern-agent"
    ))?;
    wait_for(
        "the session is up",
        BACK,
        || Ok(rig.run(&["exec", &host.name, "--", "true"])?.code == Some(0)),
    )?;
    Ok(Some((rig, host)))
}

fn gets_in(host: &Host) -> Result<bool> {
    Ok(host.ssh_with("root", &["ConnectTimeout=3"]).arg("true").output()?.status.success())
}

fn nothing_left(host: &Host) -> Result<()> {
    let left = host.sh(
        "ls -A /var/lib/postern-agent/guard 2>/dev/null; find /etc/systemd/system -name 'postern-guard-*'; \
         systemctl list-units --all --plain --no-legend 'postern-guard-*'",
    )?;
    ensure!(left.is_empty(), "the guard left: {left}");
    Ok(())
}

/// It was taken back for this reason, and people get in as before.
fn is_taken_back(host: &Host, ended: &Ended, why: &str, what: &str) -> Result<()> {
    let text = said(ended);
    ensure!(ended.code == Some(1), "{what}: exit code {:?}\n{text}", ended.code);
    ensure!(text.contains(why) && text.contains("the change was taken back"), "{what}: {text}");
    wait_for("SSH is as before", Duration::from_secs(20), || gets_in(host))?;
    nothing_left(host)
}

/// What somebody writes for sshd beside the kind of that name: a file, and the unit that reads it.
fn sshd_file(text: &str) -> String {
    format!(
        "  - file: {{path: /etc/ssh/sshd_config.d/10-own.conf, content: \"{text}\\n\"}}\n\
         \x20 - service: {{name: ssh, state: running, restart_on: [/etc/ssh/sshd_config.d/10-own.conf]}}\n"
    )
}

/// sshd does not start, or starts where nobody looks for it: the file that did it is put back, and
/// what runs has read the old one.
fn sshd_by_hand(name: &str, image: Image) -> Result<()> {
    let Some((rig, host)) = hasty(name, image)? else { return Ok(()) };
    let is_there = || -> Result<bool> {
        Ok(!host.sh("ls /etc/ssh/sshd_config.d/10-own.conf 2>/dev/null || true")?.is_empty())
    };
    let cases = [
        ("Nonsense yes", "systemctl restart -- ssh.service"),
        ("Port 2222", "inbound 22"),
        ("ListenAddress 127.0.0.1", "inbound 22"),
    ];
    for (text, why) in cases {
        for round in 0..rounds() {
            let ended = apply(&rig, &host, &sshd_file(text), &[])?;
            is_taken_back(&host, &ended, why, &format!("{text}, round {round}"))?;
            ensure!(!is_there()?, "{text}, round {round}: the file stays");
        }
    }
    // What shuts nobody out stays.
    apply(&rig, &host, &sshd_file("MaxAuthTries 4"), &[])?.expect(0);
    ensure!(is_there()? && host.sh("sshd -T | grep -i maxauthtries")? == "maxauthtries 4");
    // The same without a guard: a command that says nothing of a way back.
    let lost =
        "  - command: {shell: 'echo Port 2222 >/etc/ssh/sshd_config.d/10-own.conf; systemctl restart ssh'}\n";
    apply(&rig, &host, lost, &[])?.expect(0);
    let end = std::time::Instant::now() + Duration::from_secs(WINDOW_S + 3);
    while std::time::Instant::now() < end {
        ensure!(!gets_in(&host)?, "there was nothing to save it from");
    }
    Ok(())
}

#[test]
fn an_sshd_that_shuts_everybody_out_is_taken_back_on_debian_12() -> Result<()> {
    sshd_by_hand("guard-ssh-12", Image::BOOKWORM)
}

#[test]
fn an_sshd_that_shuts_everybody_out_is_taken_back_on_debian_13() -> Result<()> {
    sshd_by_hand("guard-ssh-13", Image::TRIXIE)
}

/// Postern's own hardening, where this host's sshd ends when it is told to read its files.
#[test]
fn hardening_that_ends_sshd_is_taken_back() -> Result<()> {
    let Some((rig, host)) = hasty("guard-harden", Image::BOOKWORM)? else { return Ok(()) };
    host.sh(
        "useradd -m ada && mkdir -p /home/ada/.ssh && cp /root/.ssh/authorized_keys /home/ada/.ssh/ && \
         chown -R ada: /home/ada; mkdir -p /etc/systemd/system/ssh.service.d; \
         printf '[Service]\\nExecReload=\\nExecReload=/bin/kill $MAINPID\\nRestart=no\\n' \
         >/etc/systemd/system/ssh.service.d/lab.conf; systemctl daemon-reload",
    )?;
    for round in 0..rounds() {
        let ended = apply(&rig, &host, "  - sshd: {users: [ada]}\n", &[])?;
        is_taken_back(&host, &ended, "", &format!("round {round}"))?;
        ensure!(host.sh("ls /etc/ssh/sshd_config.d")?.lines().all(|file| file != "00-postern.conf"));
        ensure!(host.sh("systemctl is-active ssh")? == "active");
    }
    Ok(())
}

/// A firewall that lets in only others, over one family or both; and a rule of somebody's own.
fn ports_that_were_open(name: &str, image: Image) -> Result<()> {
    let Some((rig, host)) = hasty(name, image)? else { return Ok(()) };
    let rules = || -> Result<String> {
        Ok(host.sh("all=$(iptables-save) && { echo \"$all\" | grep -c POSTERN || true; }")?)
    };
    ensure!(rules()? == "0");
    let own = "  - command: {shell: 'iptables -I INPUT -p tcp --dport 22 -j DROP', \
               revert: [sh, -c, 'iptables -D INPUT -p tcp --dport 22 -j DROP || true'], watch: [inbound 22]}\n";
    for (text, why) in
        [("  - firewall: {allow: ['22/tcp from 192.0.2.0/24']}\n", "inbound 22"), (own, "inbound 22")]
    {
        for round in 0..rounds() {
            let ended = apply(&rig, &host, text, &[])?;
            is_taken_back(&host, &ended, why, &format!("{text}, round {round}"))?;
            ensure!(rules()? == "0", "{text}, round {round}: our chains stay");
        }
    }
    apply(&rig, &host, "  - firewall: {allow: [22/tcp]}\n", &[])?.expect(0);
    ensure!(rules()? != "0" && gets_in(&host)?);
    nothing_left(&host)?;
    // The same without a guard.
    host.sh("iptables -I INPUT -p tcp --dport 22 -j DROP")?;
    ensure!(!gets_in(&host)?, "there was nothing to save it from");
    Ok(())
}

#[test]
fn ports_that_were_open_stay_so_on_debian_12() -> Result<()> {
    ports_that_were_open("guard-ports-12", Image::BOOKWORM)
}

#[test]
fn ports_that_were_open_stay_so_on_debian_13() -> Result<()> {
    ports_that_were_open("guard-ports-13", Image::TRIXIE)
}

/// A host that is known by its IPv4 address is watched over IPv6 too, where its own SSH server was seen to answer.
#[test]
fn a_family_that_nobody_named_is_watched_too() -> Result<()> {
    let Some((rig, host)) = hasty("guard-v6", Image::BOOKWORM)? else { return Ok(()) };
    let shown = rig.run(&["host", "show", &host.name, "--output", "json"])?.expect(0);
    let shown: serde_json::Value = serde_json::from_str(shown.stdout.trim())?;
    ensure!(shown["also_at"] == serde_json::json!([host.v6.to_string()]), "{shown}");
    for round in 0..rounds() {
        let ended = apply(&rig, &host, "  - firewall: {allow: ['22/tcp from 10.0.0.0/8']}\n", &[])?;
        is_taken_back(&host, &ended, &format!("inbound 22 at {}", host.v6), &format!("round {round}"))?;
    }
    Ok(())
}

/// An agent that is uninstalled before a change was confirmed takes it back first: nobody else could.
#[test]
fn what_was_not_confirmed_does_not_outlive_the_agent() -> Result<()> {
    let Some((rig, host)) = hasty("guard-leave", Image::TRIXIE)? else { return Ok(()) };
    let gateway = rig.lab.gateway_v4();
    let hold = format!("-d {gateway} -m conntrack --ctstate NEW -j DROP");
    let change = format!(
        "  - command: {{shell: 'iptables -I OUTPUT {hold}; touch /root/changed', \
         revert: [sh, -c, 'iptables -D OUTPUT {hold}; rm -f /root/changed']}}\n"
    );
    let is_changed =
        || -> Result<bool> { Ok(host.sh("test -e /root/changed && echo yes || echo no")? == "yes") };
    std::thread::scope(|scope| -> Result<()> {
        let run = scope.spawn(|| apply(&rig, &host, &change, &[]));
        wait_for("the change is made", BACK, is_changed)?;
        host.sh("/usr/local/bin/postern-agent uninstall")?;
        ensure!(!is_changed()?, "the change outlives the agent");
        ensure!(host.sh("all=$(iptables-save) && { echo \"$all\" | grep -c DROP || true; }")? == "0");
        ensure!(host.sh("ls /var/lib/postern-agent 2>/dev/null | wc -l")? == "0");
        nothing_left(&host)?;
        // Nobody is there any more who could end the run.
        rig.run(&["host", "forget", &host.name, "--force"])?;
        let _ = run.join();
        Ok(())
    })
}
