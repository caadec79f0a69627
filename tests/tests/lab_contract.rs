//! The contract every kind of resource keeps, seen on real hosts: a check changes nothing, applying reaches
//! the declared state, applying again changes nothing, and an undo brings back what was there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use postern_proto::spec::KINDS;
use postern_tests::fingerprint::{changes, fingerprint};
use postern_tests::lab::{Host, Image};
use postern_tests::rig::{Ended, Rig, managed, said};

/// One resource of a kind, with what has to be on the host before.
struct Case {
    kind: &'static str,
    /// A line of shell on the host, before anything is looked at.
    before: &'static str,
    /// One item of `resources:`, without the dash.
    resource: &'static str,
    /// A line of shell that succeeds only where the resource is in force.
    effect: &'static str,
    undo: Undo,
}

/// What an undo is to do.
enum Undo {
    /// Everything is as it was.
    Whole,
    /// It says that it cannot, with this in its words.
    Says(&'static str),
}

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ lab@example.net";

fn cases() -> Vec<Case> {
    let case = |kind, before, resource, effect| Case { kind, before, resource, effect, undo: Undo::Whole };
    vec![
        case(
            "file",
            "echo old >/etc/lab.conf; chmod 600 /etc/lab.conf",
            "file: {path: /etc/lab.conf, content: \"new\\n\", mode: '0640'}",
            "grep -qx new /etc/lab.conf && test $(stat -c %a /etc/lab.conf) = 640",
        ),
        case(
            "file",
            "ln -s /etc/hostname /etc/lab.link",
            "file: {path: /etc/lab.link, state: absent}",
            "test ! -L /etc/lab.link",
        ),
        case(
            "directory",
            ":",
            "directory: {path: /etc/lab.d, mode: '0750'}",
            "test $(stat -c %a /etc/lab.d) = 750",
        ),
        case(
            "directory",
            "mkdir -m 711 /etc/lab-old.d",
            "directory: {path: /etc/lab-old.d, state: absent}",
            "test ! -e /etc/lab-old.d",
        ),
        case(
            "package",
            ":",
            "package: {name: tree}",
            "dpkg -s tree | grep -q '^Status: install ok installed'",
        ),
        case(
            "package",
            ":",
            "package: {name: nano, state: absent}",
            "! dpkg -s nano 2>/dev/null | grep -q '^Status: install ok installed'",
        ),
        case(
            "service",
            "printf '[Service]\\nExecStart=sleep inf\\n[Install]\\nWantedBy=multi-user.target\\n' \
             >/etc/systemd/system/lab-s.service; systemctl daemon-reload",
            "service: {name: lab-s, state: running, enabled: true}",
            "systemctl is-active lab-s && systemctl is-enabled lab-s",
        ),
        case(
            "service",
            "systemctl enable --now systemd-timesyncd 2>/dev/null; systemctl start lab-s; systemctl enable lab-s",
            "service: {name: lab-s, state: stopped, enabled: false}",
            "! systemctl is-active lab-s && ! systemctl is-enabled lab-s",
        ),
        case(
            "user",
            "groupadd -f lab-group",
            "user: {name: ada, groups: [lab-group], shell: /bin/bash, comment: Ada}",
            "id -nG ada | grep -qw lab-group && getent passwd ada | grep -q ':Ada:.*:/bin/bash$'",
        ),
        case("user", "useradd -m -G lab-group grace", "user: {name: grace, state: absent}", "! id grace"),
        case(
            "authorized_key",
            "useradd -m linus",
            "authorized_key: {user: linus, key: KEY}",
            "grep -q lab@example.net /home/linus/.ssh/authorized_keys && test $(stat -c %U%a /home/linus/.ssh) = linus700",
        ),
        case(
            "sudoers",
            ":",
            "sudoers: {user: linus}",
            "setpriv --reuid linus --regid linus --init-groups sudo -n true",
        ),
        case(
            "sysctl",
            ":",
            "sysctl: {name: net.ipv4.ip_forward, value: '1'}",
            "test $(cat /proc/sys/net/ipv4/ip_forward) = 1 && grep -rq ip_forward /etc/sysctl.d",
        ),
        case(
            "firewall",
            ":",
            "firewall: {allow: ['22/tcp', '80/tcp; 443/udp from 192.0.2.0/24']}",
            "iptables -C INPUT -j POSTERN-INPUT && ip6tables -C INPUT -j POSTERN-INPUT && \
             systemctl is-enabled postern-firewall.service",
        ),
        case(
            "sshd",
            // The lab's own logins are root's; linus got his key above, and its undo took it back.
            "mkdir -p -m 700 /home/linus/.ssh; cp /root/.ssh/authorized_keys /home/linus/.ssh/; \
             chown -R linus /home/linus/.ssh",
            "sshd: {users: [linus], root_login: prohibit-password}",
            "sshd -T -C user=x,host=x,addr=192.0.2.7 | grep -qx 'passwordauthentication no'",
        ),
        case(
            "fail2ban",
            "DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends fail2ban python3-systemd \
             >/dev/null 2>&1; sleep 1; systemctl stop fail2ban; systemctl reset-failed fail2ban; :",
            "fail2ban: {ignore: [192.0.2.9], tries: 7}",
            "for i in $(seq 50); do fail2ban-client status sshd && break; sleep 0.2; done; \
             test $(fail2ban-client get sshd maxretry) = 7",
        ),
        Case {
            kind: "command",
            before: ":",
            resource: "command: {argv: [touch, /var/lab-made], creates: /var/lab-made}",
            effect: "test -e /var/lab-made",
            undo: Undo::Says("what a command did is not known"),
        },
    ]
}

/// The newest run's id.
fn last_run(rig: &Rig, host: &Host) -> Result<String> {
    let runs = rig.run(&["runs", "-H", &host.name, "--output", "json"])?.expect(0);
    let first = runs.stdout.lines().next().context("no run")?;
    let value: serde_json::Value = serde_json::from_str(first)?;
    let run = value.get("runs").and_then(|runs| runs.get(0)).unwrap_or(&value);
    Ok(run["id"].as_str().with_context(|| format!("no id in {first}"))?.to_owned())
}

/// Goes through the contract with one case. What breaks it is the error.
fn keeps(rig: &Rig, host: &Host, number: usize, case: &Case) -> Result<(), String> {
    let fail = |what: &str, ended: &Ended| Err(format!("{what}: {:?}\n{}", ended.code, said(ended)));
    let text = |error: anyhow::Error| format!("{error:#}");
    let profile = rig.state_dir().join(format!("case-{number}.yaml"));
    let resource = case.resource.replace("KEY", KEY);
    // One name for all: each replaces the one before it in what the host is assigned.
    let yaml = format!("name: contract\nresources:\n  - {resource}\n");
    std::fs::write(&profile, yaml).map_err(|error| error.to_string())?;
    let profile = profile.display().to_string();
    let apply = |more: &[&str]| {
        let mut args = vec!["apply", &profile, "-H", &host.name];
        args.extend(more);
        rig.run(&args).map_err(text)
    };

    let sh = |line: &str| host.sh(line).map_err(|error| error.to_string());
    sh(case.before)?;
    let before = fingerprint(host).map_err(text)?;
    let check = apply(&["--check"])?;
    if check.code != Some(0) || !check.stdout.contains("1 would change") {
        return fail("a check before", &check);
    }
    let after_check = fingerprint(host).map_err(text)?;
    if after_check != before {
        return Err(format!("the check changed the host: {:?}", changes(&before, &after_check)));
    }
    let applied = apply(&[])?;
    if applied.code != Some(0) || !applied.stdout.contains("1 changed") {
        return fail("apply", &applied);
    }
    let run = last_run(rig, host).map_err(text)?;
    sh(case.effect).map_err(|error| format!("it is not in force: {error}"))?;
    let after = fingerprint(host).map_err(text)?;
    for more in [&["--check"][..], &[]] {
        let again = apply(more)?;
        if again.code != Some(0) || !again.stdout.contains("1 unchanged") {
            return fail("apply again", &again);
        }
    }

    let undone = rig.run(&["run", "undo", &run]).map_err(text)?;
    if let Undo::Says(words) = case.undo {
        if undone.code != Some(0) || !said(&undone).contains(words) {
            return fail("undo", &undone);
        }
        return Ok(());
    }
    if undone.code != Some(0) {
        return fail("undo", &undone);
    }
    let back = fingerprint(host).map_err(text)?;
    if back != before {
        return Err(format!("the undo left a difference: {:#?}\n{}", changes(&before, &back), said(&undone)));
    }
    let check = apply(&["--check"])?;
    if !check.stdout.contains("1 would change") {
        return fail("a check after the undo", &check);
    }
    // An undo is a run like any other: it can be taken back in its turn.
    let undo_run = last_two(rig, host).map_err(text)?;
    let redone = rig.run(&["run", "undo", &undo_run]).map_err(text)?;
    if redone.code != Some(0) {
        return fail("undo of the undo", &redone);
    }
    sh(case.effect).map_err(|error| format!("after the undo of the undo: {error}\n{}", said(&redone)))?;
    if case.kind != "package" {
        let again = fingerprint(host).map_err(text)?;
        if again != after {
            return Err(format!("the undo of the undo left: {:#?}", changes(&after, &again)));
        }
    }
    Ok(())
}

/// The newest run that was not a check: of the two newest, the older one.
fn last_two(rig: &Rig, host: &Host) -> Result<String> {
    let runs = rig.run(&["runs", "-H", &host.name, "--output", "json"])?.expect(0);
    let mut ids = Vec::new();
    for line in runs.stdout.lines() {
        let value: serde_json::Value = serde_json::from_str(line)?;
        match value.get("runs").and_then(|runs| runs.as_array()) {
            Some(runs) => ids.extend(runs.iter().filter_map(|run| run["id"].as_str().map(str::to_owned))),
            None => ids.extend(value["id"].as_str().map(str::to_owned)),
        }
    }
    ids.get(1).cloned().context("fewer than two runs")
}

fn contract(name: &str, image: Image) -> Result<()> {
    let Some((rig, host)) = managed(name, image)? else { return Ok(()) };
    // What every host has that someone has worked on.
    host.sh("apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -qy nano >/dev/null 2>&1")?;
    let mut broken = BTreeMap::new();
    for (number, case) in cases().iter().enumerate() {
        if let Err(why) = keeps(&rig, &host, number, case) {
            broken.insert(format!("{number} {}", case.kind), why);
        }
    }
    for (case, why) in &broken {
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), "--- {case}\n{why}\n");
    }
    assert!(broken.is_empty(), "broken by {:?}", broken.keys());
    Ok(())
}

#[test]
fn every_kind_keeps_the_contract_on_debian_12() -> Result<()> {
    contract("contract-12", Image::BOOKWORM)
}

#[test]
fn every_kind_keeps_the_contract_on_debian_13() -> Result<()> {
    contract("contract-13", Image::TRIXIE)
}

/// A new kind without a case here is a kind of which nothing is known.
#[test]
fn every_kind_has_a_case() {
    // Shown by tests of their own, which need a repository, a time server or a restart of the host.
    let elsewhere = ["apt_repository", "security_updates", "time_sync", "reboot"];
    let here: BTreeSet<&str> = cases().iter().map(|case| case.kind).chain(elsewhere).collect();
    let kinds: BTreeSet<&str> = KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!(here, kinds);
}
