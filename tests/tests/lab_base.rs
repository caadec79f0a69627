//! The shipped profile `base`, unmodified, on every image: in force, unchanged the second time, still so after
//! a reboot, and undone; and the life of a rented host with it, seen from outside.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::controls::{echo, echoes, listen, listens, others};
use postern_tests::fingerprint::{changes, fingerprint};
use postern_tests::lab::{Host, HostSpec, Image, Peer, Release};
use postern_tests::rig::{BOOT_DEADLINE, Rig, said, ssh_closed, wait_for};
use postern_tests::scan::{both, only_these, udp_answers};
use postern_tests::time_server::serve_time;

struct Base {
    rig: Rig,
    host: Host,
    vars: Vec<String>,
}

impl Base {
    fn open(name: &str, image: Image) -> Result<Option<Self>> {
        let Some(mut rig) = Rig::open() else { return Ok(None) };
        rig.serve()?;
        // With room for Docker, whoever installs it.
        let host = rig.host_with(HostSpec { docker: true, ..HostSpec::new(name, image) })?;
        serve_time(&host)?;
        let vars = rig.admin_vars()?;
        Ok(Some(Self { rig, host, vars }))
    }

    fn up(&self) -> Result<String> {
        self.up_with(&[])
    }

    fn up_with(&self, more: &[&str]) -> Result<String> {
        let mut args = vec!["--profile", "base"];
        args.extend(self.vars.iter().map(String::as_str).chain(more.iter().copied()));
        self.rig.up(&self.host, &args)?.expect(0);
        self.rig.last_message(&self.host)
    }

    fn reboot(&self) -> Result<()> {
        self.host.reboot()?;
        self.host.wait_ssh(BOOT_DEADLINE)?;
        wait_for("chrony follows its server again", Duration::from_secs(60), || {
            Ok(self.host.sh("chronyc -n tracking || true")?.contains(": Normal"))
        })
    }

    fn in_force(&self) -> Result<()> {
        let host = &self.host;
        let mut login = host.ssh("ada");
        login.arg("sudo -n id -u");
        let said = login.output()?;
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "0", "{said:?}");
        assert!(host.sh("passwd -S ada")?.starts_with("ada L"), "a password could be guessed");
        let tracking = host.sh("chronyc -n tracking")?;
        assert!(tracking.contains(": Normal"), "{tracking}");
        let origins = host.sh("unattended-upgrade --dry-run --debug 2>&1 | grep 'llowed origins are'")?;
        assert!(origins.contains("-security,label=Debian-Security"), "T08: {origins}");
        assert_eq!(host.sh("cat /proc/sys/net/ipv4/conf/all/accept_redirects")?, "0");
        let mut root = host.ssh("root");
        assert!(!root.arg("true").status()?.success(), "root gets in");
        let mut password = host.ssh_with("ada", &["PubkeyAuthentication=no"]);
        let said = String::from_utf8_lossy(&password.arg("true").output()?.stderr).into_owned();
        assert!(said.contains("Permission denied (publickey)"), "{said}");
        assert!(host.sh("iptables -S INPUT")?.contains("-j POSTERN-INPUT"));
        assert!(host.sh("ip6tables -S INPUT")?.contains("-j POSTERN-INPUT"));
        host.sh("fail2ban-client status sshd")?;
        Ok(())
    }
}

fn base_on(name: &str, image: Image) -> Result<()> {
    let Some(base) = Base::open(name, image)? else { return Ok(()) };
    let host = &base.host;
    let first = base.up()?;
    assert!(first.contains("changed"), "{first}");
    ssh_closed(host)?;
    base.in_force()?;
    assert!(host.sh("fail2ban-client status sshd")?.contains("Currently banned:\t0"));
    let second = base.up()?;
    assert!(second.ends_with(" unchanged") && !second.contains(','), "the second run: {second}");

    base.reboot()?;
    base.in_force()?;
    let third = base.up()?;
    assert!(third.ends_with(" unchanged") && !third.contains(','), "the run after a reboot: {third}");
    Ok(())
}

#[test]
fn base_on_debian_12_plain() -> Result<()> {
    base_on("base-12", Image::BOOKWORM)
}

#[test]
fn base_on_debian_13_plain() -> Result<()> {
    base_on("base-13", Image::TRIXIE)
}

/// What somebody sees who has no part in it.
struct Outside<'a> {
    host: &'a Host,
    stranger: Peer,
    /// Tries passwords.
    guesser: Peer,
}

/// A port that listens on the host and that no profile opens, and one of UDP.
const SHUT: u16 = 54_321;
const UDP: u16 = 8053;

impl Outside<'_> {
    fn addresses(&self) -> [IpAddr; 2] {
        [self.host.v4.into(), self.host.v6.into()]
    }

    /// That these TCP ports are open and no other, though the host listens on another.
    fn only(&self, ports: &[u16]) -> Result<()> {
        ensure!(listens(self.host, SHUT)?, "the control: nobody listens on {SHUT}");
        only_these(&self.stranger, self.addresses(), ports)
    }

    /// Whether a datagram is answered over IPv4 and over IPv6, as it is on the host itself.
    fn udp(&self) -> Result<[bool; 2]> {
        ensure!(echoes(self.host, UDP)?, "the control: nobody answers on UDP {UDP}");
        let [v4, v6] =
            self.addresses().map(|address| udp_answers(&self.stranger, SocketAddr::new(address, UDP)));
        Ok([v4?, v6?])
    }

    /// An ssh that is ended when nobody answers it any more.
    fn ssh(&self, peer: &Peer, to: IpAddr, user: &str, options: &[&str]) -> Result<bool> {
        let ssh = self.host.ssh_to(to, user, options);
        let mut command = peer.command("timeout");
        command.args(["10", "ssh"]).args(ssh.get_args()).arg("true");
        command
            .env("SSH_ASKPASS", "/bin/hostname")
            .env("SSH_ASKPASS_REQUIRE", "force")
            .stdin(std::process::Stdio::null());
        Ok(command.output()?.status.success())
    }

    /// Whether the administrator gets in from elsewhere, over IPv4 and IPv6.
    fn administrator_gets_in(&self) -> Result<()> {
        for to in self.addresses() {
            ensure!(
                self.ssh(&self.stranger, to, "ada", &["ConnectTimeout=5"])?,
                "ada does not get in at {to}"
            );
        }
        Ok(())
    }

    /// How sshd's port answers the guesser: taken, or refused by the host.
    fn guesser_is_refused(&self, to: IpAddr) -> Result<bool> {
        let connect = || TcpStream::connect_timeout(&SocketAddr::new(to, 22), Duration::from_secs(3));
        match self.guesser.within(connect)? {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
            Err(error) => Err(error).with_context(|| format!("a connection to {to}")),
        }
    }

    /// Guesses passwords of one user after another, until nobody answers.
    fn guess_until_banned(&self, to: IpAddr) -> Result<()> {
        let users = ["admin", "root", "oracle", "test", "git", "ubuntu", "postgres"];
        let mut next = users.iter().cycle();
        let options = [
            "BatchMode=no",
            "PubkeyAuthentication=no",
            "PreferredAuthentications=password,keyboard-interactive",
            "NumberOfPasswordPrompts=1",
            "ConnectTimeout=3",
        ];
        // OpenSSH 10 turns away who fails by itself, for some seconds: meanwhile nothing counts.
        wait_for("who guesses is banned", Duration::from_secs(100), || {
            let user = next.next().copied().unwrap_or("admin");
            ensure!(!self.ssh(&self.guesser, to, user, &options)?, "{user} got in at {to} by a password");
            self.guesser_is_refused(to)
        })
    }

    fn banned(&self) -> Result<()> {
        for to in self.addresses() {
            ensure!(self.guesser_is_refused(to)?, "the guesser is not shut out at {to}");
        }
        let (v4, v6) = (self.guesser.v4.to_string(), self.guesser.v6.to_string());
        let status = self.host.sh("fail2ban-client status sshd | grep 'Banned IP'")?;
        ensure!(status.contains(&v4) && status.contains(&v6), "{status}");
        self.administrator_gets_in()
    }
}

/// A rented host from its first boot on: made safe, seen from outside over IPv4 and IPv6, guessed at, restarted, given
/// Docker, and looked after; T01 and T09 in one.
fn life(name: &str, image: Image) -> Result<()> {
    let Some(base) = Base::open(name, image)? else { return Ok(()) };
    let host = &base.host;
    let outside = Outside { host, stranger: base.rig.lab.peer()?, guesser: base.rig.lab.peer()? };
    listen(host, &[SHUT])?;
    echo(host, UDP)?;
    // The control of all that follows: what listens is seen, and every other port says that nobody does.
    for (address, seen) in both(&outside.stranger, outside.addresses())? {
        assert!(seen.open.iter().eq(&[22, SHUT]), "{address}: {:?}", seen.open);
        assert_eq!(seen.open.len() + seen.refused.len(), 65_535, "{address}");
    }
    assert_eq!(outside.udp()?, [true, true]);

    assert!(base.up()?.contains("changed"));
    ssh_closed(host)?;
    base.in_force()?;
    outside.only(&[22])?;
    assert_eq!(outside.udp()?, [false, false]);
    let second = base.up()?;
    assert!(second.ends_with(" unchanged") && !second.contains(','), "the second run: {second}");

    std::thread::scope(|scope| -> Result<()> {
        let outside = &outside;
        let guesses = outside.addresses().map(|to| scope.spawn(move || outside.guess_until_banned(to)));
        guesses
            .into_iter()
            .try_for_each(|guess| guess.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked)))
    })?;
    outside.banned()?;

    base.reboot()?;
    base.in_force()?;
    wait_for("fail2ban bans anew whom it had banned", Duration::from_secs(60), || {
        Ok(outside.guesser_is_refused(host.v4.into())? && outside.guesser_is_refused(host.v6.into())?)
    })?;
    outside.banned()?;
    outside.only(&[22])?;
    assert_eq!(outside.udp()?, [false, false]);
    let third = base.up()?;
    assert!(third.ends_with(" unchanged") && !third.contains(','), "the run after a restart: {third}");

    with_docker(&base, &outside, image)?;
    drifts(&base)
}

/// T01 and T02: Docker comes, and with the next run a port of it is let in; nothing of it is harmed.
fn with_docker(base: &Base, outside: &Outside<'_>, image: Image) -> Result<()> {
    let host = outside.host;
    // In Debian 13 the client is a package of its own.
    let client = if image.release == Release::Trixie { "docker-cli" } else { "" };
    let install = format!(
        "DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends docker.io {client} busybox-static"
    );
    host.exec_with(&["sh", "-c", &install], b"", Duration::from_secs(180))?.ok()?;
    host.sh(
        "mkdir -p /tmp/i/bin && cp /bin/busybox /tmp/i/bin/ && tar -C /tmp/i -c . | docker import - lab:1 >/dev/null
         for port in 8080 8082; do docker run -d --restart=always -p $port:80 lab:1 /bin/busybox httpd -f -p 80 -h /bin; done",
    )?;
    wait_for("both containers serve", Duration::from_secs(30), || {
        Ok(host
            .exec(&[
                "sh",
                "-c",
                "curl -sfo /dev/null localhost:8080/busybox && curl -sfo /dev/null localhost:8082/busybox",
            ])?
            .success())
    })?;
    // Before any run: what Docker publishes is as shut as the rest.
    outside.only(&[22])?;
    let foreign = others(host)?;
    let opened = ["--var", "open_ports=22/tcp; 8080/tcp; 8053/udp"];
    base.up_with(&opened)?;
    assert_eq!(others(host)?, foreign);
    outside.only(&[22, 8080])?;
    assert_eq!(outside.udp()?, [true, true]);
    for to in outside.addresses() {
        let url = format!("http://{}/busybox", SocketAddr::new(to, 8080));
        let fetched =
            outside.stranger.command("curl").args(["-sf", "-m", "10", "-o", "/dev/null", &url]).status()?;
        assert!(fetched.success(), "{url}: {fetched}");
    }
    outside.banned()?;
    let again = base.up_with(&opened)?;
    assert!(again.ends_with(" unchanged") && !again.contains(','), "{again}");
    assert_eq!(others(host)?, foreign);
    Ok(())
}

/// A drop-in of somebody's that takes passwords again is found, and said with its line.
fn drifts(base: &Base) -> Result<()> {
    let drift = || base.rig.run(&["drift", &base.host.name]);
    let clean = drift()?.expect(0);
    assert!(clean.stdout.starts_with("drift: clean: ") || clean.stdout.contains(" clean: "), "{clean:?}");
    base.host.sh("echo 'PasswordAuthentication yes' >/etc/ssh/sshd_config.d/00-by-hand.conf")?;
    let found = drift()?.expect(1);
    let line = "/etc/ssh/sshd_config.d/00-by-hand.conf:1: passwordauthentication yes";
    assert!(said(&found).contains(line), "{found:?}");
    base.host.sh("rm /etc/ssh/sshd_config.d/00-by-hand.conf; systemctl reload ssh")?;
    Ok(())
}

#[test]
fn the_life_of_a_rented_host_on_debian_12() -> Result<()> {
    life("life-12", Image::BOOKWORM_SHIPPED)
}

#[test]
fn the_life_of_a_rented_host_on_debian_13() -> Result<()> {
    life("life-13", Image::TRIXIE_SHIPPED)
}

/// T15: Python modules come from the distribution, and its guard against pip stays where it is.
#[test]
fn trap_15_modules_for_ansible_are_the_distributions() -> Result<()> {
    let Some(mut base) = Base::open("base-ansible", Image::TRIXIE)? else { return Ok(()) };
    base.vars.extend(["--var".to_owned(), "ansible_modules=true".to_owned()]);
    base.up()?;
    let host = &base.host;
    host.sh("python3 -c 'import docker, jsondiff'")?;
    let from = host
        .sh("dpkg -S $(python3 -c 'import docker, jsondiff; print(docker.__file__, jsondiff.__file__)')")?;
    assert!(from.contains("python3-docker: ") && from.contains("python3-jsondiff: "), "{from}");
    host.sh(
        "ls /usr/lib/python3*/EXTERNALLY-MANAGED && ! ls /usr/local/lib/python3*/dist-packages/* 2>/dev/null",
    )?;
    // Given once, it stays: a second up without it is no other host.
    base.vars.truncate(4);
    let second = base.up()?;
    assert!(second.ends_with(" unchanged") && !second.contains(','), "{second}");
    host.sh("dpkg -s python3-docker | grep -q '^Status: install ok installed'")?;
    Ok(())
}

/// Hashes of /etc, selections of packages and states of units are what they were.
#[test]
fn base_is_undone() -> Result<()> {
    let Some(base) = Base::open("base-undo", Image::BOOKWORM)? else { return Ok(()) };
    let host = &base.host;
    base.rig.up(host, &[])?.expect(0);
    host.sh("apt-get update -q >/dev/null")?;
    let before = fingerprint(host)?;
    base.up()?;
    let run = base.rig.last_run(host)?;
    let applied = fingerprint(host)?;
    assert!(changes(&before, &applied).len() > 20, "base changes a host: {:?}", changes(&before, &applied));
    base.rig.run(&["run", "undo", &run])?.expect(0);
    let mut left = changes(&before, &fingerprint(host)?);
    // The lab's own time server was waiting for chronyd, and what Debian's package leaves running when it is
    // purged is gone with the next boot: a package's CANNOT_UNDO says so.
    left.retain(|line| {
        !line.contains("active lab-time.service") && line != "+ active unattended-upgrades.service active"
    });
    assert_eq!(left, Vec::<String>::new());
    Ok(())
}
