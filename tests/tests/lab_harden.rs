//! SSH hardening and fail2ban on real hosts: what gets in and what does not, seen from outside.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use postern_tests::lab::{FileSpec, Host, HostSpec, Image, Peer, Release, UserSpec};
use postern_tests::rig::{Rig, apply, managed_with, said, wait_for};

/// A host where passwords are taken, of root too, and `ada` has the lab's key.
fn loose(name: &str, image: Image) -> Result<Option<(Rig, Host)>> {
    let mut spec = HostSpec::new(name, image);
    spec.root_password = Some("guess-me".to_owned());
    spec.users.push(UserSpec {
        name: "ada".to_owned(),
        password: Some("guess-me".to_owned()),
        ..UserSpec::default()
    });
    if image.release == Release::Trixie {
        // OpenSSH 10 turns away who fails by itself; what is tested here is what others do about it.
        spec.files.push(FileSpec {
            path: "/etc/ssh/sshd_config.d/41-lab.conf".into(),
            content: "PerSourcePenalties no\n".into(),
            mode: 0o644,
        });
    }
    managed_with(spec)
}

/// What sshd offers somebody who comes without a key, as ssh says it in `Permission denied (…)`.
fn offered(host: &Host, user: &str) -> Result<String> {
    let mut ssh = host.ssh_with(user, &["PubkeyAuthentication=no", "PreferredAuthentications=none"]);
    let said = ssh.arg("true").output()?;
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("Permission denied")).unwrap_or(&text);
    Ok(line.rsplit_once('(').map_or(line, |(_, rest)| rest).trim_end_matches([')', '.', '\r']).to_owned())
}

/// Whether a user gets in with the lab's key.
fn gets_in(host: &Host, user: &str) -> Result<bool> {
    Ok(host.ssh(user).arg("true").output()?.status.success())
}

/// Does this to sshd's files and has sshd read them. Told to, it reads them when it gets to it, as they are by then:
/// its pid file, which it writes again once it listens, tells that it has.
fn reload_after(host: &Host, change: &str) -> Result<()> {
    let read = || host.sh("stat -c %.9Y /run/sshd.pid 2>/dev/null || :");
    let before = read()?;
    host.sh(&format!("{change}; systemctl reload ssh"))?;
    wait_for("sshd has read its files", Duration::from_secs(10), || {
        let now = read()?;
        Ok(!now.is_empty() && now != before)
    })
}

const SSHD: &str = "  - sshd: {users: [ada]}\n";

/// T05: the provider's drop-in that takes passwords loses, a password and root are refused from outside, the
/// administrator's key is taken; what would count before ours is named.
fn only_keys(name: &str, image: Image) -> Result<()> {
    let Some((rig, host)) = loose(name, image)? else { return Ok(()) };
    reload_after(
        &host,
        "printf 'PasswordAuthentication yes\\nPermitRootLogin yes\\n' >/etc/ssh/sshd_config.d/50-cloud-init.conf",
    )?;
    assert!(offered(&host, "ada")?.contains("password") && gets_in(&host, "root")?, "before");
    let before = host.sh("cat /etc/ssh/sshd_config /etc/ssh/sshd_config.d/* | sha256sum")?;

    apply(&rig, &host, SSHD, &[])?.expect(0);
    let hardened = || -> Result<()> {
        assert_eq!(offered(&host, "ada")?, "publickey");
        assert_eq!(offered(&host, "root")?, "publickey");
        assert!(gets_in(&host, "ada")? && !gets_in(&host, "root")?);
        Ok(())
    };
    hardened()?;
    let again = apply(&rig, &host, SSHD, &[])?.expect(0);
    assert!(again.stdout.contains("1 unchanged"), "{again:?}");

    // A drop-in added by hand.
    for (file, text, words) in [
        (
            "00-a.conf",
            "PasswordAuthentication yes",
            "/etc/ssh/sshd_config.d/00-a.conf:1: passwordauthentication yes",
        ),
        (
            "99-hand.conf",
            "Match Address 10.0.0.0/8\\nPermitRootLogin yes",
            "/etc/ssh/sshd_config.d/99-hand.conf:2: permitrootlogin yes (in `Match Address 10.0.0.0/8`)",
        ),
    ] {
        reload_after(&host, &format!("printf '{text}\\n' >/etc/ssh/sshd_config.d/{file}"))?;
        let found = apply(&rig, &host, SSHD, &["--check"])?.expect(1);
        assert!(said(&found).contains(words), "{found:?}");
        reload_after(&host, &format!("rm /etc/ssh/sshd_config.d/{file}"))?;
    }
    // Somebody broke it: nothing of ours is done on top.
    host.sh("echo Nonsense yes >/etc/ssh/sshd_config.d/70-broken.conf")?;
    let broken = apply(&rig, &host, "  - sshd: {users: [ada], max_auth_tries: 3}\n", &[])?.expect(1);
    assert!(said(&broken).contains("sshd's files are not in order (sshd -t)"), "{broken:?}");
    hardened()?;
    host.sh("rm /etc/ssh/sshd_config.d/70-broken.conf")?;

    // T07: on the disk and not in force, whoever wrote it.
    apply(&rig, &host, SSHD, &[])?.expect(0);
    host.sh("touch /etc/ssh/sshd_config.d/50-cloud-init.conf")?;
    let late = apply(&rig, &host, SSHD, &[])?.expect(0);
    assert!(late.stdout.contains("1 changed"), "{late:?}");

    // A session that is open stays so.
    let mut held = host.ssh("ada").arg("echo in; sleep 30").stdout(std::process::Stdio::piped()).spawn()?;
    wait_for("ada is in", Duration::from_secs(10), || Ok(!host.sh("pgrep -u ada sleep || :")?.is_empty()))?;
    apply(&rig, &host, "  - sshd: {users: [ada], max_auth_tries: 3}\n", &[])?.expect(0);
    assert!(held.try_wait()?.is_none(), "a reload ended a session");
    held.kill()?;
    held.wait()?;
    apply(&rig, &host, SSHD, &[])?.expect(0);

    // Nobody is locked out.
    let locked = apply(&rig, &host, "  - sshd: {users: [ghost]}\n", &[])?.expect(1);
    assert!(said(&locked).contains("nobody could log in any more"), "{locked:?}");

    // Taken out by hand, so that what is undone is all of it.
    reload_after(&host, "rm /etc/ssh/sshd_config.d/00-postern.conf")?;
    // However late sshd reads its files, no run is over before it has: whoever changes one next would have it read
    // by halves.
    host.sh(
        "mkdir -p /etc/systemd/system/ssh.service.d; printf '[Service]\\nExecReload=\\nExecReload=/usr/bin/systemd-run \
         --quiet /bin/sh -c \"sleep 1.5; kill -HUP ${MAINPID}\"\\n' >/etc/systemd/system/ssh.service.d/lab.conf; \
         systemctl daemon-reload",
    )?;
    apply(&rig, &host, SSHD, &[])?.expect(0);
    hardened()?;
    let run = rig.last_run(&host)?;
    rig.run(&["run", "undo", &run])?.expect(0);
    assert_eq!(host.sh("cat /etc/ssh/sshd_config /etc/ssh/sshd_config.d/* | sha256sum")?, before);
    assert!(offered(&host, "ada")?.contains("password") && gets_in(&host, "root")?, "all is as before");
    Ok(())
}

#[test]
fn trap_05_only_keys_on_debian_12() -> Result<()> {
    only_keys("ssh-12", Image::BOOKWORM)
}

#[test]
fn trap_05_only_keys_on_debian_13() -> Result<()> {
    only_keys("ssh-13", Image::TRIXIE)
}

/// T06: where systemd listens, ports are the socket's.
#[test]
fn trap_06_a_socket_is_told_of_ports() -> Result<()> {
    for (name, image) in [("sock-12", Image::BOOKWORM), ("sock-13", Image::TRIXIE)] {
        let Some((rig, host)) = loose(name, image)? else { return Ok(()) };
        host.sh("systemctl disable --quiet --now ssh.service; systemctl enable --quiet --now ssh.socket")?;
        let ports = "  - sshd: {users: [ada], ports: [2222, 22]}\n";
        apply(&rig, &host, ports, &[])?.expect(0);
        assert_eq!(offered(&host, "ada")?, "publickey");
        assert!(gets_in(&host, "ada")?);
        TcpStream::connect_timeout(&(IpAddr::from(host.v4), 2222).into(), Duration::from_secs(3))?;
        assert_eq!(
            host.sh("systemctl is-active ssh.socket; systemctl is-enabled ssh.service || :")?,
            "active\ndisabled"
        );
        let again = apply(&rig, &host, ports, &[])?.expect(0);
        assert!(again.stdout.contains("1 unchanged"), "{again:?}");
        apply(&rig, &host, "  - sshd: {users: [ada], ports: [22]}\n", &[])?.expect(0);
        assert!(gets_in(&host, "ada")?);
        assert!(
            TcpStream::connect_timeout(&(IpAddr::from(host.v4), 2222).into(), Duration::from_secs(2))
                .is_err()
        );
        host.destroy()?;
    }
    Ok(())
}

/// Whether a fresh connection from this peer to sshd is taken.
fn reaches(peer: &Peer, host: &Host) -> Result<bool> {
    let ssh = host.ssh_with("ada", &["ConnectTimeout=3"]);
    let ssh = peer.command("timeout").args(["15", "ssh"]).args(ssh.get_args()).arg("true").output()?;
    Ok(ssh.status.success())
}

/// Tries to log in without a key, once.
fn fails(peer: &Peer, host: &Host) -> Result<()> {
    let ssh = host.ssh_with("nobody-such", &["PubkeyAuthentication=no", "ConnectTimeout=3"]);
    // Banned in the middle of it, nobody tells this end.
    peer.command("timeout").args(["8", "ssh"]).args(ssh.get_args()).arg("true").output()?;
    Ok(())
}

/// T09: a banned peer's connection is refused, another's is not. T10: neither the controller nor who is declared
/// is ever banned; `unban` lets a peer in again.
fn bans(name: &str, image: Image) -> Result<()> {
    let Some((rig, host)) = loose(name, image)? else { return Ok(()) };
    let (bad, good, friend) = (rig.lab.peer()?, rig.lab.peer()?, rig.lab.peer()?);
    let bad_address = bad.v4.to_string();
    let kind = |more: &str| format!("  - fail2ban: {{tries: 3, ignore: ['{}']{more}}}\n", friend.v4);
    let refused = apply(&rig, &host, &kind(""), &[])?.expect(1);
    assert!(said(&refused).contains("the package fail2ban is not installed"), "{refused:?}");
    let all = format!(
        "  - package: {{name: fail2ban}}\n  - package: {{name: python3-systemd}}\n  - firewall: {{allow: [22/tcp]}}\n  - sshd: {{users: [ada]}}\n{}",
        kind("")
    );
    apply(&rig, &host, &all, &[])?.expect(0);
    let again = apply(&rig, &host, &all, &[])?.expect(0);
    assert!(again.stdout.contains("5 unchanged"), "{again:?}");
    assert!(
        host.sh("fail2ban-client status sshd")?.contains("Currently banned:\t0"),
        "the proof left no ban"
    );
    for peer in [&bad, &good, &friend] {
        assert!(reaches(peer, &host)?, "{} before", peer.v4);
    }

    for _ in 0..4 {
        fails(&bad, &host)?;
        fails(&friend, &host)?;
    }
    let status = || host.sh("fail2ban-client status sshd | grep 'Banned IP'");
    wait_for("the peer is banned", Duration::from_secs(30), || Ok(status()?.contains(&bad_address)))?;
    wait_for("and shut out", Duration::from_secs(10), || Ok(!reaches(&bad, &host)?))?;
    assert!(reaches(&good, &host)?, "another peer was shut out");
    assert!(reaches(&friend, &host)? && !status()?.contains(&friend.v4.to_string()), "{}", status()?);
    let ignored = host.sh("fail2ban-client get sshd ignoreip")?;
    assert!(ignored.contains(&rig.lab.gateway_v4().to_string()), "the controller: {ignored}");

    // The firewall is loaded anew, and the ban holds.
    host.sh("/usr/local/bin/postern-agent firewall load")?;
    assert!(!reaches(&bad, &host)? && reaches(&good, &host)?);

    let unbanned = rig.run(&["unban", &host.name, &bad_address])?.expect(0);
    assert!(said(&unbanned).contains("was banned, and is no longer"), "{unbanned:?}");
    assert!(reaches(&bad, &host)?);
    let not = rig.run(&["unban", &host.name, &bad_address])?.expect(0);
    assert!(said(&not).contains("was not banned"), "{not:?}");

    // A ban that blocks nothing is none, whatever fail2ban counts.
    host.sh("printf '[sshd]\\nbanaction = dummy\\n' >/etc/fail2ban/jail.d/zz.local; systemctl restart fail2ban; touch /etc/fail2ban/jail.d/postern.local")?;
    let blind = apply(&rig, &host, &kind(", ban_s: 1800"), &[])?.expect(1);
    assert!(said(&blind).contains("no rule of INPUT blocks it"), "{blind:?}");
    host.sh("rm /etc/fail2ban/jail.d/zz.local")?;
    Ok(())
}

#[test]
fn trap_09_a_banned_peer_is_refused_on_debian_12() -> Result<()> {
    bans("f2b-12", Image::BOOKWORM)
}

#[test]
fn trap_09_a_banned_peer_is_refused_on_debian_13() -> Result<()> {
    bans("f2b-13", Image::TRIXIE)
}

/// T09: where there is no iptables, bans are nftables' own.
#[test]
fn trap_09_a_banned_peer_is_refused_by_nftables_alone() -> Result<()> {
    let Some((rig, host)) = loose("f2b-nft", Image::TRIXIE)? else { return Ok(()) };
    let (bad, good) = (rig.lab.peer()?, rig.lab.peer()?);
    let bad_address = bad.v4.to_string();
    let packages = "  - package: {name: iptables, state: absent}\n  - package: {name: fail2ban}\n  - package: {name: python3-systemd}\n";
    let ban = "  - fail2ban: {tries: 3}\n";
    let refused = apply(&rig, &host, &format!("{packages}{ban}"), &[])?.expect(1);
    assert!(said(&refused).contains("nothing here can block an address"), "{refused:?}");
    let all = format!("{packages}  - package: {{name: nftables}}\n{ban}");
    apply(&rig, &host, &all, &[])?.expect(0);
    host.sh("! ls /usr/sbin/iptables* /usr/sbin/ip6tables* 2>/dev/null")?;
    assert!(host.sh("cat /etc/fail2ban/jail.d/postern.local")?.contains("banaction = nftables-multiport"));
    let again = apply(&rig, &host, &all, &[])?.expect(0);
    assert!(again.stdout.contains("5 unchanged"), "{again:?}");
    assert!(
        host.sh("fail2ban-client status sshd")?.contains("Currently banned:\t0"),
        "the proof left no ban"
    );
    assert!(reaches(&bad, &host)? && reaches(&good, &host)?, "before");
    for _ in 0..4 {
        fails(&bad, &host)?;
    }
    wait_for("the peer is banned", Duration::from_secs(30), || {
        Ok(host.sh("fail2ban-client status sshd | grep 'Banned IP'")?.contains(&bad_address))
    })?;
    wait_for("and shut out", Duration::from_secs(10), || Ok(!reaches(&bad, &host)?))?;
    assert!(reaches(&good, &host)?, "another peer was shut out");
    rig.run(&["unban", &host.name, &bad_address])?.expect(0);
    assert!(reaches(&bad, &host)?);

    // A ban that blocks nothing is none here either.
    host.sh("printf '[sshd]\\nbanaction = dummy\\n' >/etc/fail2ban/jail.d/zz.local; systemctl restart fail2ban; touch /etc/fail2ban/jail.d/postern.local")?;
    let blind = apply(&rig, &host, "  - fail2ban: {tries: 3, ban_s: 1800}\n", &[])?.expect(1);
    assert!(said(&blind).contains("by nftables-multiport, and no rule of INPUT blocks it"), "{blind:?}");
    Ok(())
}
