//! The contract every kind of resource keeps, seen on real hosts.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod contract;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use contract::{Case, Undo, keeps};
use postern_proto::spec::KINDS;
use postern_tests::lab::Image;
use postern_tests::rig::managed;

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
            "directory",
            ":",
            "directory: {path: /etc/lab-way/on.d/it, parents: true}",
            "test $(stat -c %a /etc/lab-way/on.d/it) = 755",
        ),
        // Before Docker's packages; on a host that has them, in lab_swarm.
        case(
            "docker_daemon",
            "test ! -e /etc/docker",
            "docker_daemon: {log_driver: local}",
            "grep -q '\"log-driver\": \"local\"' /etc/docker/daemon.json",
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
            kind: "preflight",
            before: ":",
            resource: "preflight: {name: lab, memory_mb: 64, disk_free_mb: 16, var_free_mb: 16, clock_s: 60, \
                       resolves: [localhost], reaches: ['127.0.0.1:22', apt]}",
            effect: ":",
            undo: Undo::Nothing,
        },
        // The whole of it on a virtual machine: `lab_swap.rs`.
        Case {
            kind: "swap",
            before: ":",
            resource: "swap: {size_mb: 64}",
            effect: ":",
            undo: Undo::Refused("this host is a container (systemd-nspawn)"),
        },
        Case {
            kind: "command",
            before: ":",
            resource: "command: {argv: [touch, /var/lab-made], creates: /var/lab-made}",
            effect: "test -e /var/lab-made",
            undo: Undo::Says("what a command did is not known"),
        },
    ]
}

fn contract_on(name: &str, image: Image) -> Result<()> {
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
    contract_on("contract-12", Image::BOOKWORM)
}

#[test]
fn every_kind_keeps_the_contract_on_debian_13() -> Result<()> {
    contract_on("contract-13", Image::TRIXIE)
}

/// A new kind without a case here is a kind of which nothing is known.
#[test]
fn every_kind_has_a_case() {
    // Shown by tests of their own, which need a repository, a time server or a restart of the host; those about Docker
    // in lab_swarm.
    let elsewhere = ["apt_repository", "security_updates", "time_sync", "reboot"];
    let docker = ["docker_network", "swarm", "swarm_service"];
    let elsewhere = elsewhere.into_iter().chain(docker);
    let here: BTreeSet<&str> = cases().iter().map(|case| case.kind).chain(elsewhere).collect();
    let kinds: BTreeSet<&str> = KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!(here, kinds);
}
