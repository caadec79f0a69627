//! What can be wrong with a host or with what was said about it: a clear error with a stable code, and nothing
//! half-done on the host.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result};
use postern_tests::lab::{FileSpec, Host, HostSpec, Image, Sudo, UserSpec};
use postern_tests::rig::{Ended, Rig, finish, ssh_closed};

/// Nothing of Postern is on the host.
fn untouched(host: &Host) -> Result<()> {
    let found = host
        .sh("ls -d /usr/local/bin/*postern* /etc/postern-agent /var/lib/postern-agent /tmp/*postern* \
         /etc/systemd/system/postern-agent.service 2>/dev/null || true")?;
    assert_eq!(found, "", "left on the host");
    Ok(())
}

/// Exit code 1 and the stable code, and the host as it was.
fn refused(ended: Ended, code: &str, host: &Host) -> Result<Ended> {
    let ended = ended.expect(1).says(&format!("error[{code}]")).says("hint:");
    untouched(host)?;
    Ok(ended)
}

#[test]
fn wrong_key_wrong_password_and_changed_host_key() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let mut spec = HostSpec::new("login", Image::BOOKWORM);
    spec.root_password = Some("right".into());
    let host = rig.host_with(spec)?;
    let target = format!("root@{}", host.v4);
    let fingerprint = host.fingerprint("ssh-ed25519").context("a fingerprint")?;

    let other = rig.state_dir().join("other_key");
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&other)
        .status()?;
    assert!(made.success());
    let other = other.display().to_string();
    let ended = rig.run(&["up", &target, "--identity", &other, "--host-key", fingerprint])?;
    refused(ended, "authentication-failed", &host)?;

    let wrong = rig.secret_file("password", "wrong")?;
    let file = wrong.display().to_string();
    let ended = rig.run(&["up", &target, "--password-file", &file, "--host-key", fingerprint])?;
    refused(ended, "authentication-failed", &host)?;

    // A fingerprint that is not the host's: nothing secret was sent, sshd saw no login attempt.
    let attempts = "journalctl --no-pager -u ssh | grep -Ec 'Failed|Accepted' || true";
    let before = host.sh(attempts)?;
    let key = host.private_key.display().to_string();
    let not = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";
    let ended = rig.run(&["up", &target, "--identity", &key, "--host-key", not])?;
    refused(ended, "fingerprint-mismatch", &host)?;

    // The right fingerprint was put on record above. Unknown again, and nobody there to confirm it.
    let ssh = rig.state_dir().join(".ssh");
    let record = std::fs::read_to_string(ssh.join("known_hosts"))?;
    assert!(record.contains(&host.v4.to_string()), "the key that was vouched for is on record: {record}");
    std::fs::remove_file(ssh.join("known_hosts"))?;
    let ended = rig.run(&["up", &target, "--identity", &key])?;
    refused(ended, "host-key-unknown", &host)?;

    // Another key on record than the one the host has.
    let public = std::fs::read_to_string(format!("{other}.pub"))?;
    let blob = public.split_whitespace().nth(1).context("a public key")?;
    std::fs::write(ssh.join("known_hosts"), format!("{} ssh-ed25519 {blob}\n", host.v4))?;
    let ended = rig.run(&["up", &target, "--identity", &key])?;
    refused(ended, "host-key-changed", &host)?;
    assert_eq!(host.sh(attempts)?, before, "a login was attempted before the host key was trusted");

    // And with the right password all is well.
    std::fs::remove_file(ssh.join("known_hosts"))?;
    rig.secret_file("password", "right")?;
    rig.run(&["up", &target, "--password-file", &file, "--host-key", fingerprint])?.expect(0);
    Ok(())
}

#[test]
fn host_down_port_closed_and_not_ssh() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let host = rig.host("down", Image::BOOKWORM)?;
    host.sh("systemctl stop ssh.socket ssh.service 2>/dev/null || systemctl stop ssh.service")?;
    let ended = rig.up(&host, &["--timeout", "3"])?;
    refused(ended, "refused", &host)?;

    host.set_link(false)?;
    let ended = rig.up(&host, &["--timeout", "3"])?.expect(1);
    assert!(
        ended.stderr.contains("error[timed-out]") || ended.stderr.contains("error[network-unreachable]"),
        "{ended:?}"
    );
    host.set_link(true)?;

    // Something that is not SSH on the port: final at once, long before the deadline.
    let garbage = TcpListener::bind("127.0.0.1:0")?;
    let port = garbage.local_addr()?.port();
    let answer = std::thread::spawn(move || -> Result<()> {
        let (mut peer, _) = garbage.accept()?;
        peer.set_read_timeout(Some(Duration::from_secs(5)))?;
        peer.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        let _ = peer.read(&mut [0; 64]);
        Ok(())
    });
    let target = format!("root@127.0.0.1:{port}");
    let ended = rig.run(&["up", &target, "--timeout", "60"])?.expect(1).says("error[not-ssh]");
    assert!(ended.took < Duration::from_secs(20), "{ended:?}");
    answer.join().map_err(|_| anyhow::anyhow!("the listener panicked"))??;

    rig.run(&["up", "root@no-such-host.invalid", "--timeout", "3"])?.expect(1).says("error[name-not-found]");
    Ok(())
}

#[test]
fn no_systemd() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let mut spec = HostSpec::new("noinit", Image::BOOKWORM);
    spec.no_systemd = true;
    let host = rig.host_with(spec)?;
    refused(rig.up(&host, &[])?, "no-systemd", &host)?;
    Ok(())
}

#[test]
fn read_only_root() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let mut spec = HostSpec::new("readonly", Image::BOOKWORM);
    spec.read_only_root = true;
    let host = rig.host_with(spec)?;
    refused(rig.up(&host, &[])?, "read-only", &host)?;
    Ok(())
}

#[test]
fn full_disk() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let mut spec = HostSpec::new("full", Image::BOOKWORM);
    spec.disk_limit = Some(64 << 20);
    let host = rig.host_with(spec)?;
    host.sh("dd if=/dev/zero of=/filler bs=1M 2>/dev/null || true")?;
    refused(rig.up(&host, &[])?, "disk-full", &host)?;
    // Room again: the same command goes through.
    host.sh("rm /filler")?;
    rig.up(&host, &[])?.expect(0);
    Ok(())
}

#[test]
fn no_sudo() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let mut spec = HostSpec::new("nosudo", Image::TRIXIE);
    spec.users = vec![UserSpec { name: "ada".into(), ..UserSpec::default() }];
    spec.remove = vec!["/usr/bin/sudo".into()];
    let host = rig.host_with(spec)?;
    refused(rig.up_as("ada", &host, &[])?, "no-sudo", &host)?;
    Ok(())
}

/// With sudo: without a password, with one over stdin only, with a wrong one, and not at all (T28).
#[test]
fn trap_28_as_a_user_with_sudo() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let user = |name: &str, password: Option<&str>, sudo| UserSpec {
        name: name.into(),
        password: password.map(Into::into),
        sudo,
        keys: vec![],
    };
    let mut spec = HostSpec::new("sudo", Image::TRIXIE);
    spec.users = vec![
        user("free", None, Sudo::NoPassword),
        user("asked", Some("s3cret-Pass"), Sudo::WithPassword),
        user("plain", Some("s3cret-Pass"), Sudo::None),
    ];
    let host = rig.host_with(spec)?;
    let right = rig.secret_file("right", "s3cret-Pass")?.display().to_string();
    let wrong = rig.secret_file("wrong", "not-it")?.display().to_string();

    refused(rig.up_as("asked", &host, &[])?, "sudo-password", &host)?;
    refused(rig.up_as("asked", &host, &["--sudo-password-file", &wrong])?, "sudo-password", &host)?;
    let ended = rig.up_as("plain", &host, &["--sudo-password-file", &right])?.expect(1);
    assert!(
        ended.stderr.contains("error[no-sudo]") || ended.stderr.contains("error[sudo-password]"),
        "{ended:?}"
    );
    untouched(&host)?;

    rig.up_as("free", &host, &[])?.expect(0);
    rig.run(&["host", "forget", "sudo"])?.expect(0);
    rig.up_as("asked", &host, &["--sudo-password-file", &right])?.expect(0);
    assert_eq!(rig.run(&["exec", "sudo", "--", "id", "-u"])?.expect(0).stdout, "0\n");
    let seen = host.sh("journalctl --no-pager | grep -c 's3cret-Pas[s]' || true")?;
    assert_eq!(seen, "0", "the password is in the host's journal");
    Ok(())
}

/// Two years off, faked by a `date` of its own: the lab cannot change a guest's clock.
#[test]
fn clock_two_years_off() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let mut spec = HostSpec::new("clock", Image::BOOKWORM);
    spec.files = vec![FileSpec {
        path: "/usr/local/bin/date".into(),
        content: b"#!/bin/sh\nexec /bin/date -d '2 years ago' \"$@\"\n".to_vec(),
        mode: 0o755,
    }];
    let host = rig.host_with(spec)?;
    println!(
        "STAND-IN: a `date` that is two years off: it does not prove that the agent itself bears such a clock"
    );
    refused(rig.up(&host, &[])?, "clock-off", &host)?;
    rig.up(&host, &["--accept-clock"])?.expect(0);
    Ok(())
}

/// The host cannot reach the controller: the addresses tried are named. Then a route through SSH, said to be
/// temporary; and garbage where the controller should be.
#[test]
fn controller_out_of_reach() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let host = rig.host("far", Image::TRIXIE)?;
    rig.lab.deny_port(rig.port())?;
    let wrong = format!("{}:1", rig.lab.gateway_v4());
    let ended = rig.up(&host, &["--controller", &wrong, "--no-temporary-route"])?.expect(1);
    let ended = ended.says("error[controller-unreachable]").says(&wrong).says("hint:");
    assert!(ended.took < Duration::from_secs(90), "{ended:?}");
    ssh_closed(&host)?;

    let garbage = TcpListener::bind("0.0.0.0:0")?;
    let port = garbage.local_addr()?.port();
    rig.lab.allow_port(port)?;
    garbage.set_nonblocking(true)?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                if let Ok((mut peer, _)) = garbage.accept() {
                    let _ = peer.write_all(b"220 mail.example ESMTP\r\n");
                } else {
                    std::thread::yield_now();
                }
            }
        });
        let address = format!("{}:{port}", rig.lab.gateway_v4());
        let ended = rig.up(&host, &["--controller", &address, "--no-temporary-route"]);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        ended?.expect(1).says("error[not-the-controller]").says(&address);
        Ok(())
    })?;

    // The agent comes up through the SSH connection; what it does is done, and the route is said to be temporary.
    let ended = rig.up(&host, &["--controller", &wrong, "--profile", "hello"])?.expect(0).says("temporary");
    assert!(host.sh("test -e /usr/local/bin/postern-agent && echo there")? == "there", "{ended:?}");
    ssh_closed(&host)?;

    // Within reach again: a second `up` gives it the right address.
    rig.lab.allow_port(rig.port())?;
    rig.up(&host, &[])?.expect(0);
    assert_eq!(rig.run(&["exec", "far", "--", "echo", "here"])?.expect(0).stdout, "here\n");
    Ok(())
}

/// A port, a user or a target that is none, and profiles that do not hold together: exit code 2, before any host.
#[test]
fn usage_errors_touch_no_host() -> Result<()> {
    let Some(rig) = Rig::open() else { return Ok(()) };
    let host = rig.host("usage", Image::BOOKWORM)?;
    let before = host.packets_to_port(22)?;
    let profile = rig.state_dir().join("bad.yaml");
    std::fs::write(
        &profile,
        "name: bad\nresources:\n  - pakage: {name: curl}\n  - file: {path: etc/motd, content: x}\n  \
         - command: {argv: [\"{{ nope }}\"]}\n",
    )?;
    let ended = rig.up(&host, &["--profile", &profile.display().to_string()])?.expect(2);
    for part in ["bad.yaml:3:", "pakage", "bad.yaml:4:", "etc/motd", "bad.yaml:5:", "nope"] {
        assert!(ended.stderr.contains(part), "want {part:?} in {}", ended.stderr);
    }
    rig.run(&["up", "root@host:99999"])?.expect(2);
    rig.run(&["up", "--profile", "hello"])?.expect(2);
    rig.run(&["up", "root@192.0.2.1", "--host-key", "MD5:00"])?.expect(2);
    let mut command = rig.command(&["frobnicate"]);
    command.env_remove("POSTERN_STATE_DIR");
    finish(command, Duration::from_secs(10))?.expect(2);
    assert_eq!(host.packets_to_port(22)?, before, "packets went to the host");
    untouched(&host)
}
