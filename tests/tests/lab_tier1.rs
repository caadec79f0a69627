//! The lab itself: its four images, reboots, isolation, first boot as shipped, and special hosts.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postern_tests::lab::{self, FileSpec, Flavour, Host, HostSpec, Image, Lab, Sudo, TcpState, UserSpec};

const BOOT: Duration = Duration::from_secs(60);

/// Hosts of at most one test at a time: a small machine must do.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(mut command: Command) -> (bool, String) {
    let out = command.output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
}

fn over_ssh(host: &Host, user: &str, line: &str) -> String {
    let mut command = host.ssh(user);
    command.arg(line);
    let out = command.output().unwrap();
    assert!(out.status.success(), "ssh {user}@{} {line}: {out:?}", host.name);
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// Waits for a state.
fn until(what: &str, deadline: Duration, mut look: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !look() {
        assert!(Instant::now() < end, "{what}: not within {deadline:?}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn up(lab: &Lab, spec: HostSpec) -> Host {
    let host = lab.make(spec).unwrap();
    host.wait_ssh(BOOT).unwrap();
    host
}

/// Boots an image, logs in with the real client, reboots, and sees what stays and what goes.
fn boots_and_reboots(image: Image, version: &str) {
    let _turn = turn();
    let Some(lab) = lab::require() else { return };
    let host = up(&lab, HostSpec::new("web-1", image));
    assert_eq!(over_ssh(&host, "root", "id -u; hostname"), "0\nweb-1");
    assert!(over_ssh(&host, "root", "cat /etc/os-release").contains(&format!("VERSION_ID=\"{version}\"")));
    assert_eq!(over_ssh(&host, "root", "ls /usr/lib/openssh/sftp-server"), "/usr/lib/openssh/sftp-server");
    host.wait_booted(BOOT).unwrap();
    let failed = host.sh("systemctl list-units --failed --plain --no-legend").unwrap();
    assert_eq!(failed, "", "units failed at boot");
    let python = host.exec(&["test", "-e", "/usr/bin/python3"]).unwrap().success();
    assert_eq!(python, image.flavour == Flavour::Shipped);
    for unwanted in ["docker", "fail2ban-server", "nft", "chronyd", "traefik", "nginx"] {
        let there = host.exec(&["sh", "-c", &format!("command -v {unwanted}")]).unwrap();
        assert!(!there.success(), "{unwanted} is in the image; a profile installs it");
    }
    // The mirror its own packages come from, whichever that is here.
    let mirror = "sed -n 's|.*//\\([^/]*\\)/.*|\\1|p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n1";
    let named = over_ssh(&host, "root", &format!("getent hosts $({mirror}) || echo none"));
    assert!(named.len() > 4, "no name service: {named}");

    // The host key in the file is the one that sshd shows.
    let shown = host.fingerprint("ssh-ed25519").unwrap();
    let mut keyscan = Command::new("sh");
    keyscan.arg("-c").arg(format!("ssh-keyscan -t ed25519 {} 2>/dev/null | ssh-keygen -lf -", host.v4));
    assert!(run(keyscan).1.contains(shown));

    let before = host.boot_id().unwrap();
    host.sh("echo kept >/root/file && iptables -N GUEST && iptables -A OUTPUT -j GUEST && sync").unwrap();
    assert!(host.sh("iptables -S").unwrap().contains("-N GUEST"));
    host.reboot().unwrap();
    host.wait_ssh(BOOT).unwrap();
    assert_ne!(host.boot_id().unwrap(), before);
    assert_eq!(over_ssh(&host, "root", "cat /root/file"), "kept");
    assert!(!host.sh("iptables -S").unwrap().contains("GUEST"), "a rule survived the reboot");

    // The power goes, the disk stays.
    let before = host.boot_id().unwrap();
    host.kill().unwrap();
    assert_eq!(host.init_pid(), None);
    host.start().unwrap();
    host.wait_ssh(BOOT).unwrap();
    assert_ne!(host.boot_id().unwrap(), before);
    assert_eq!(over_ssh(&host, "root", "cat /root/file"), "kept");
    host.poweroff().unwrap();
    assert_eq!(host.init_pid(), None);
    host.destroy().unwrap();
}

#[test]
fn bookworm_plain_boots_and_reboots() {
    boots_and_reboots(Image::BOOKWORM, "12");
}

#[test]
fn bookworm_shipped_boots_and_reboots() {
    boots_and_reboots(Image::BOOKWORM_SHIPPED, "12");
}

#[test]
fn trixie_plain_boots_and_reboots() {
    boots_and_reboots(Image::TRIXIE, "13");
}

#[test]
fn trixie_shipped_boots_and_reboots() {
    boots_and_reboots(Image::TRIXIE_SHIPPED, "13");
}

/// Answers the real client's question for a password, as `ssh` has no option for it.
fn password_login(host: &Host, user: &str, password: &str) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let ask = dir.path().join("ask");
    std::fs::write(&ask, format!("#!/bin/sh\necho '{password}'\n")).unwrap();
    std::fs::set_permissions(&ask, std::fs::Permissions::from_mode(0o700)).unwrap();
    let options = ["BatchMode=no", "PreferredAuthentications=password", "NumberOfPasswordPrompts=1"];
    let mut command = host.ssh_with(user, &options);
    command.env("SSH_ASKPASS", &ask).env("SSH_ASKPASS_REQUIRE", "force").args(["id", "-un"]);
    run(command)
}

/// T11 needs this of the image: at first boot, apt is really busy, and who holds the lock is a real apt-get.
fn first_boot_as_shipped(image: Image) {
    let _turn = turn();
    let Some(lab) = lab::require() else { return };
    let mut spec = HostSpec::new("shipped", image);
    spec.users =
        vec![UserSpec { name: "ada".into(), password: Some("correct horse".into()), ..UserSpec::default() }];
    spec.first_boot_lock_seconds = 6;
    let host = up(&lab, spec);
    let attempt = || {
        let argv =
            ["apt-get", "-o", "DPkg::Lock::Timeout=0", "install", "-y", "--reinstall", "no-such-package"];
        host.exec(&argv).unwrap().error_text()
    };
    // Its package's script runs with the lock held. To ask apt earlier would take the lock for a moment, and
    // the provider's own apt would be the one to fail.
    until("the provider's package is being installed", BOOT, || {
        host.exec(&["test", "-s", "/var/lib/provider-guest-agent.started"]).unwrap().success()
    });
    let busy = attempt();
    let held = |line: &str| line.contains("/var/lib/dpkg/lock-frontend") && line.contains("(apt-get)");
    assert!(busy.lines().any(held), "apt's lock is not held: {busy}");
    assert!(host.sh("cloud-init status || true").unwrap().contains("running"));
    let (fine, text) = password_login(&host, "ada", "correct horse");
    assert!(fine && text.ends_with("ada"), "password login as shipped: {text}");
    assert!(!password_login(&host, "ada", "wrong").0);

    until("cloud-init is done", BOOT, || {
        host.sh("cloud-init status || true").unwrap().contains("status: done")
    });
    assert!(attempt().contains("Unable to locate package"), "the lock is free again: {}", attempt());
    let held = host.sh(
        "expr $(cat /var/lib/provider-guest-agent.finished) - $(cat /var/lib/provider-guest-agent.started)",
    );
    assert!(held.unwrap().parse::<u32>().unwrap() >= 6);
    assert_eq!(over_ssh(&host, "debian", "sudo -n id -u"), "0");
    assert_eq!(
        over_ssh(&host, "root", "cat /etc/ssh/sshd_config.d/50-cloud-init.conf"),
        "PasswordAuthentication yes"
    );
}

#[test]
fn first_boot_of_bookworm_shipped_holds_the_apt_lock() {
    first_boot_as_shipped(Image::BOOKWORM_SHIPPED);
}

#[test]
fn first_boot_of_trixie_shipped_holds_the_apt_lock() {
    first_boot_as_shipped(Image::TRIXIE_SHIPPED);
}

/// Whether the guest can open a TCP connection.
fn reaches(host: &Host, address: &str, port: u16) -> bool {
    let line = format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/{port}'");
    host.exec(&["sh", "-c", &line]).unwrap().success()
}

#[test]
fn guests_reach_neither_each_other_nor_the_machine() {
    let _turn = turn();
    let Some(lab) = lab::require() else { return };
    let a = up(&lab, HostSpec::new("a", Image::BOOKWORM));
    let b = up(&lab, HostSpec::new("b", Image::TRIXIE));
    let (v4, v6) = (lab.gateway_v4().to_string(), lab.gateway_v6().to_string());

    // The machine reaches both, the guests not each other, on either protocol.
    assert_eq!(over_ssh(&b, "root", "echo here"), "here");
    assert!(!reaches(&a, &b.v4.to_string(), 22));
    assert!(!reaches(&a, &b.v6.to_string(), 22));
    // Nor by asking the gateway to pass it on.
    a.sh(&format!("ip route add {} via {v4} && ip -6 route add {} via {v6}", b.v4, b.v6)).unwrap();
    assert!(!reaches(&a, &b.v4.to_string(), 22));
    assert!(!reaches(&a, &b.v6.to_string(), 22));

    let open = TcpListener::bind((lab.gateway_v4(), 0)).unwrap();
    let open_v6 = TcpListener::bind((lab.gateway_v6(), 0)).unwrap();
    let shut = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = |l: &TcpListener| l.local_addr().unwrap().port();
    assert!(!reaches(&a, &v4, port(&open)), "a port that nobody opened");
    lab.allow_port(port(&open)).unwrap();
    lab.allow_port(port(&open_v6)).unwrap();
    assert!(reaches(&a, &v4, port(&open)));
    assert!(reaches(&a, &v6, port(&open_v6)));
    assert!(!reaches(&a, &v4, port(&shut)));
    lab.deny_port(port(&open)).unwrap();
    assert!(!reaches(&a, &v4, port(&open)));
    // The machine's other addresses are out of reach, whatever listens there.
    lab.allow_port(port(&shut)).unwrap();
    assert!(reaches(&a, &v4, port(&shut)));
    for address in machine_addresses(&lab) {
        assert!(!reaches(&a, &address, port(&shut)), "reached the machine at {address}");
    }

    // Another lab is another world, and has the same names free.
    let other = lab::require().unwrap();
    let c = up(&other, HostSpec::new("a", Image::BOOKWORM));
    assert!(!reaches(&c, &a.v4.to_string(), 22));
    assert!(!reaches(&a, &c.v4.to_string(), 22));
    assert!(!reaches(&c, &v4, port(&shut)), "a port that another lab opened");
}

fn machine_addresses(lab: &Lab) -> Vec<String> {
    let mut command = Command::new("ip");
    command.args(["-4", "-o", "addr", "show", "scope", "global"]);
    let ours = lab.gateway_v4().to_string();
    let (_, text) = run(command);
    let all = text.lines().filter_map(|l| l.split_whitespace().nth(3)?.split('/').next().map(str::to_owned));
    all.filter(|a| *a != ours).collect()
}

#[test]
fn packets_and_sockets_of_a_host_are_seen() {
    let _turn = turn();
    let Some(lab) = lab::require() else { return };
    let host = up(&lab, HostSpec::new("quiet", Image::BOOKWORM));
    let busy = host.packets_to_port(22).unwrap();
    assert!(busy > 0, "waiting for SSH is traffic");
    // Other traffic does not count, whatever happens on the host.
    host.sh("true").unwrap();
    let listener = TcpListener::bind((lab.gateway_v4(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    lab.allow_port(port).unwrap();
    assert_eq!(host.packets_to_port(9999).unwrap(), 0);
    let mut hold = host
        .enter(&["bash", "-c", &format!("exec 3<>/dev/tcp/{}/{port}; read x", lab.gateway_v4())])
        .unwrap();
    let mut hold = hold.stdin(Stdio::piped()).spawn().unwrap();
    let (_accepted, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip().to_string(), host.v4.to_string());
    let sockets = host.tcp_connections().unwrap();
    assert!(sockets.iter().any(|s| s.local == peer && s.state == TcpState::Established));
    assert!(sockets.iter().any(|s| s.local.port() == 22 && s.state == TcpState::Listen));
    drop(hold.stdin.take());
    hold.wait().unwrap();
    // The knock on 22 is closed; its last packets may still be under way when the greeting has been read.
    until("port 22 falls silent", BOOT, || {
        !host.tcp_connections().unwrap().iter().any(|s| s.local.port() == 22 && s.state != TcpState::Listen)
    });
    let silent = host.packets_to_port(22).unwrap();
    host.sh("apt-get --version >/dev/null").unwrap();
    assert_eq!(host.packets_to_port(22).unwrap(), silent);
    over_ssh(&host, "root", "true");
    assert!(host.packets_to_port(22).unwrap() > silent);

    host.set_link(false).unwrap();
    assert!(host.wait_ssh(Duration::from_secs(1)).is_err());
    host.set_link(true).unwrap();
    host.wait_ssh(BOOT).unwrap();
}

#[test]
fn special_hosts_are_what_they_say() {
    let _turn = turn();
    let Some(lab) = lab::require() else { return };

    let mut spec = HostSpec::new("bare", Image::BOOKWORM);
    spec.no_systemd = true;
    spec.remove = vec!["/usr/bin/sudo".into()];
    let host = up(&lab, spec);
    assert_eq!(over_ssh(&host, "root", "test -e /run/systemd/system || echo absent"), "absent");
    assert!(!host.exec(&["test", "-e", "/usr/bin/sudo"]).unwrap().success());
    let before = host.boot_id().unwrap();
    host.reboot().unwrap();
    host.wait_ssh(BOOT).unwrap();
    assert_ne!(host.boot_id().unwrap(), before);
    drop(host);

    let mut spec = HostSpec::new("frozen", Image::BOOKWORM);
    spec.read_only_root = true;
    let host = up(&lab, spec);
    let text = host.exec(&["touch", "/usr/local/bin/x"]).unwrap().error_text();
    assert!(text.contains("Read-only file system"), "{text}");
    assert_eq!(over_ssh(&host, "root", "id -u"), "0");
    drop(host);

    let mut spec = HostSpec::new("small", Image::TRIXIE);
    spec.disk_limit = Some(64 << 20);
    spec.docker = true;
    let host = up(&lab, spec);
    let text =
        host.exec(&["dd", "if=/dev/zero", "of=/var/lib/big", "bs=1M", "count=80"]).unwrap().error_text();
    assert!(text.contains("No space left on device"), "{text}");
    host.sh("rm /var/lib/big && echo small >/var/lib/little").unwrap();
    host.reboot().unwrap();
    assert_eq!(
        host.sh("cat /var/lib/little; stat -f -c %T /var/lib/docker").unwrap().lines().next(),
        Some("small")
    );
    assert!(host.sh("grep ' /var/lib/docker ' /proc/mounts").is_ok());
}

#[test]
fn users_log_in_as_the_host_was_asked_for() {
    let _turn = turn();
    let Some(lab) = lab::require() else { return };
    let user = |name: &str, sudo| UserSpec {
        name: name.into(),
        password: Some("pa55".into()),
        sudo,
        keys: Vec::new(),
    };
    let mut spec = HostSpec::new("users", Image::TRIXIE);
    spec.users = vec![
        user("none", Sudo::None),
        user("asked.user", Sudo::WithPassword),
        user("free", Sudo::NoPassword),
    ];
    spec.root_password = Some("r00t".into());
    spec.sshd_extra = Some("Banner /etc/lab-banner".into());
    spec.files = vec![FileSpec { path: "/etc/lab-banner".into(), content: b"a lab\n".to_vec(), mode: 0o644 }];
    let host = up(&lab, spec);
    assert_eq!(over_ssh(&host, "free", "sudo -n id -u"), "0");
    let sudo = "sudo -n true 2>/dev/null; echo $?; echo pa55 | sudo -S -p '' id -u 2>/dev/null; echo $?";
    assert!(over_ssh(&host, "asked.user", sudo).ends_with("1\n0\n0"));
    assert!(over_ssh(&host, "none", sudo).ends_with("1\n1"));
    let (fine, text) = password_login(&host, "root", "r00t");
    assert!(fine && text.contains("a lab"), "{text}");

    let kept = tempfile::tempdir().unwrap();
    host.sh(
        "mkdir -p /var/lib/postern-agent/x && echo state >/var/lib/postern-agent/x/y && journalctl --sync",
    )
    .unwrap();
    host.collect(kept.path()).unwrap();
    assert!(std::fs::read_to_string(kept.path().join("journal.txt")).unwrap().contains("sshd"));
    let copied = std::fs::read_to_string(kept.path().join("var-lib-postern-agent/x/y")).unwrap();
    assert_eq!(copied, "state\n");
}

#[test]
fn several_labs_at_once_do_not_meet() {
    let _turn = turn();
    if lab::require().is_none() {
        return;
    }
    let work = |number: usize| {
        let lab = lab::require().unwrap();
        let image = if number.is_multiple_of(2) { Image::BOOKWORM } else { Image::TRIXIE };
        let host = up(&lab, HostSpec::new("same-name", image));
        over_ssh(&host, "root", &format!("echo {number} >/root/number; cat /root/number"))
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|n| scope.spawn(move || (n, work(n)))).collect();
        for thread in all {
            let (number, seen) = thread.join().unwrap();
            assert_eq!(seen, number.to_string());
        }
    });
}
