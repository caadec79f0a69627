//! The firewall on real hosts, seen from outside with fresh connections over IPv4 and IPv6.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use postern_tests::controls::{listen, others};
use postern_tests::lab::{Host, HostSpec, Image, Release};
use postern_tests::rig::{BOOT_DEADLINE, Ended, Rig, apply, managed, managed_with, said, wait_for};

/// Whether a fresh connection is taken, over IPv4 and over IPv6.
fn open(host: &Host, port: u16) -> (bool, bool) {
    let to = |address: IpAddr| {
        TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_secs(2)).is_ok()
    };
    (to(host.v4.into()), to(host.v6.into()))
}

const OPEN: (bool, bool) = (true, true);
const CLOSED: (bool, bool) = (false, false);

/// What we have in the filter tables.
fn ours(host: &Host) -> Result<String> {
    Ok(host.sh("iptables-save | grep POSTERN; ip6tables-save | grep POSTERN; :")?)
}

const RULES: &str = "  - firewall: {allow: ['22/tcp', '80,9000-9010/tcp']}\n";

fn in_force(host: &Host) {
    assert_eq!(open(host, 22), OPEN);
    assert_eq!(open(host, 80), OPEN);
    assert_eq!(open(host, 9005), OPEN);
    assert_eq!(open(host, 8080), CLOSED, "the control: it listens, and is not allowed");
}

/// T01: rules of others survive it all, also an undo and the end. T03: IPv6 lives when the neighbours have
/// forgotten each other.
fn nothing_foreign_is_touched(name: &str, image: Image) -> Result<()> {
    let Some((rig, host)) = managed(name, image)? else { return Ok(()) };
    listen(&host, &[80, 9005, 8080])?;
    assert_eq!(open(&host, 8080), OPEN, "before");
    host.sh(
        "for t in iptables ip6tables; do
             $t -N f2b-lab; $t -A f2b-lab -j RETURN; $t -I INPUT -p tcp --dport 22 -j f2b-lab
             $t -N LAB; $t -A LAB -p tcp --dport 7 -j DROP; $t -A FORWARD -j LAB; $t -A OUTPUT -p tcp --dport 7 -j LAB
             $t -t nat -N LABNAT; $t -t nat -A PREROUTING -p tcp --dport 8 -j LABNAT
         done",
    )?;
    let foreign = others(&host)?;
    let check = apply(&rig, &host, RULES, &["--check"])?.expect(0);
    assert!(check.stdout.contains("1 would change"), "{check:?}");
    assert_eq!(ours(&host)?, "");
    apply(&rig, &host, RULES, &[])?.expect(0);
    let run = rig.last_run(&host)?;
    in_force(&host);
    let rules = ours(&host)?;
    for _ in 0..2 {
        let again = apply(&rig, &host, RULES, &[])?.expect(0);
        assert!(again.stdout.contains("1 unchanged"), "{again:?}");
    }
    assert_eq!((others(&host)?, ours(&host)?), (foreign.clone(), rules.clone()));

    // T03: a fresh start of neighbour discovery, from both sides.
    host.sh("ip -6 neigh flush all; ip neigh flush all")?;
    let flushed = Command::new("ip").args(["-6", "neigh", "flush", "to", &host.v6.to_string()]).status()?;
    assert!(flushed.success());
    in_force(&host);
    // Somebody goes by us, takes out a rule, adds one, forgets the jump: found, named, and mended.
    for (harm, words) in [
        (
            "iptables -I INPUT -p tcp --dport 8080 -j ACCEPT",
            "IPv4: INPUT lets packets by before it calls POSTERN-INPUT",
        ),
        ("ip6tables -D INPUT -j POSTERN-INPUT", "IPv6: INPUT does not call POSTERN-INPUT"),
        (
            "iptables -I POSTERN-INPUT -p tcp --dport 8080 -j ACCEPT",
            "is not ours to have: POSTERN-INPUT -p tcp --dport 8080",
        ),
        ("ip6tables -F POSTERN-INPUT", "IPv6: our chains are not as declared: is missing"),
        ("iptables -D POSTERN-INPUT -j DROP", "is missing: POSTERN-INPUT -j DROP"),
    ] {
        host.sh(harm)?;
        let (v4, v6) = open(&host, 8080);
        assert!(v4 || v6, "{harm} did no harm");
        let check = apply(&rig, &host, RULES, &["--check"])?;
        assert!(said(&check).contains(words), "{harm}: {check:?}");
        apply(&rig, &host, RULES, &[])?.expect(0);
        in_force(&host);
    }
    host.sh("iptables -D INPUT -p tcp --dport 8080 -j ACCEPT")?;
    assert_eq!(others(&host)?, foreign);

    // Taken out of force by hand, and in force again.
    host.sh("/usr/local/bin/postern-agent firewall unload; /usr/local/bin/postern-agent firewall unload")?;
    assert_eq!((ours(&host)?, others(&host)?, open(&host, 8080)), (String::new(), foreign.clone(), OPEN));
    host.sh("/usr/local/bin/postern-agent firewall load; /usr/local/bin/postern-agent firewall load")?;
    in_force(&host);
    assert_eq!(others(&host)?, foreign);

    rig.run(&["run", "undo", &run])?.expect(0);
    assert_eq!((ours(&host)?, others(&host)?, open(&host, 8080)), (String::new(), foreign.clone(), OPEN));
    host.sh("! ls /etc/systemd/system/postern-firewall* /etc/systemd/system/*/postern-firewall* /etc/postern-agent/firewall* 2>/dev/null")?;

    // What leaves takes its own with it.
    apply(&rig, &host, RULES, &[])?.expect(0);
    host.sh("/usr/local/bin/postern-agent uninstall")?;
    assert_eq!((ours(&host)?, others(&host)?, open(&host, 8080)), (String::new(), foreign, OPEN));
    host.sh(
        "! ls /etc/systemd/system/postern-firewall* /etc/systemd/system/*/postern-firewall* 2>/dev/null",
    )?;
    Ok(())
}

#[test]
fn trap_01_nothing_foreign_is_touched_on_debian_12() -> Result<()> {
    nothing_foreign_is_touched("fw-12", Image::BOOKWORM)
}

#[test]
fn trap_01_nothing_foreign_is_touched_on_debian_13() -> Result<()> {
    nothing_foreign_is_touched("fw-13", Image::TRIXIE)
}

/// Who may come, and how often; and who would be locked out.
#[test]
fn rules_decide_by_address_and_rate() -> Result<()> {
    let Some((rig, host)) = managed("fw-rules", Image::TRIXIE)? else { return Ok(()) };
    listen(&host, &[80, 81, 82])?;
    let (v4, v6) = (rig.lab.gateway_v4(), rig.lab.gateway_v6());
    let rules = format!(
        "  - firewall: {{allow: [22/tcp, '80/tcp from {v4}; 81/tcp from 192.0.2.0/24 {v6}', 82/tcp limit 5/hour]}}\n"
    );
    apply(&rig, &host, &rules, &[])?.expect(0);
    assert_eq!((open(&host, 80), open(&host, 81)), ((true, false), (false, true)));
    let taken = (0..12).filter(|_| open(&host, 82).0).count();
    assert!((4..=6).contains(&taken), "5 an hour, and {taken} were taken");
    let again = apply(&rig, &host, &rules, &[])?.expect(0);
    assert!(again.stdout.contains("1 unchanged"), "rates are read as they were written: {again:?}");

    let closing = apply(&rig, &host, "  - firewall: {allow: [80/tcp]}\n", &[])?.expect(1);
    assert!(said(&closing).contains("this would close port 22, where sshd listens"), "{closing:?}");
    assert_eq!(open(&host, 22), OPEN);
    apply(&rig, &host, "  - firewall: {allow: [80/tcp], ssh: closed}\n", &[])?.expect(0);
    assert_eq!((open(&host, 22), open(&host, 80)), (CLOSED, OPEN));
    Ok(())
}

/// T04: in force after a restart, and before there is a network.
#[test]
fn trap_04_rules_are_there_before_the_network() -> Result<()> {
    for (name, image) in [("fw-boot-12", Image::BOOKWORM), ("fw-boot-13", Image::TRIXIE)] {
        let Some((rig, host)) = managed(name, image)? else { return Ok(()) };
        listen(&host, &[80, 9005, 8080])?;
        apply(&rig, &host, RULES, &[])?.expect(0);
        host.reboot()?;
        host.wait_ssh(BOOT_DEADLINE)?;
        in_force(&host);
        let stamp = |unit: &str| -> Result<u64> {
            let line = host.sh(&format!("systemctl show -P ActiveEnterTimestampMonotonic {unit}"))?;
            line.trim().parse().with_context(|| format!("{unit}: {line}"))
        };
        let (ours, network) = (stamp("postern-firewall.service")?, stamp("network-pre.target")?);
        assert!(0 < ours && ours <= network, "loaded at {ours}, the network at {network}");
        assert!(ours < stamp("ssh.service")?, "a port was open before");
        let again = apply(&rig, &host, RULES, &[])?.expect(0);
        assert!(again.stdout.contains("1 unchanged"), "{again:?}");
        host.destroy()?;
    }
    Ok(())
}

/// T30b: two firewalls do not work on one host.
#[test]
fn trap_30b_another_firewall_is_named_and_taken_over_when_told() -> Result<()> {
    let Some((rig, host)) = managed("fw-ufw", Image::BOOKWORM)? else { return Ok(()) };
    apply(&rig, &host, "  - package: {name: ufw}\n", &[])?.expect(0);
    host.sh("ufw allow 22/tcp >/dev/null; ufw --force enable")?;
    let refused = apply(&rig, &host, RULES, &[])?.expect(1);
    assert!(said(&refused).contains("ufw manages this host's firewall"), "{refused:?}");
    assert_eq!(ours(&host)?, "");
    let over = RULES.replace("allow:", "takeover: true, allow:");
    apply(&rig, &host, &over, &[])?.expect(0);
    assert!(host.sh("ufw status")?.contains("inactive"));
    let again = apply(&rig, &host, &over, &[])?.expect(0);
    assert!(again.stdout.contains("1 unchanged"), "{again:?}");
    assert_eq!((open(&host, 22), open(&host, 8080)), (OPEN, CLOSED));

    host.sh("iptables -P FORWARD ACCEPT; iptables -P INPUT DROP; iptables -I INPUT -p tcp --dport 22 -j ACCEPT; iptables -I INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT")?;
    let refused = apply(&rig, &host, &over, &[])?.expect(1);
    assert!(said(&refused).contains("the policy of INPUT is DROP"), "{refused:?}");
    host.sh("iptables -P INPUT ACCEPT")?;
    apply(&rig, &host, &over, &[])?.expect(0);

    apply(&rig, &host, "  - package: {name: nftables}\n", &[])?.expect(0);
    host.sh("systemctl enable --quiet nftables")?;
    let refused = apply(&rig, &host, &over, &[])?.expect(1);
    assert!(said(&refused).contains("nftables.service loads rules of its own"), "{refused:?}");
    host.sh("systemctl disable --quiet nftables; nft add table inet lab; nft 'add chain inet lab in { type filter hook input priority 5; policy drop; }'; nft add rule inet lab in accept")?;
    let refused = apply(&rig, &host, &over, &[])?.expect(1);
    assert!(said(&refused).contains("the chain in of nftables' table inet lab"), "{refused:?}");
    Ok(())
}

/// T30b: whoever managed the firewall before is back after an undo, and so are his rules.
fn taken_over_and_back(name: &str, image: Image, other: &Other) -> Result<()> {
    let Some((rig, host)) = managed(name, image)? else { return Ok(()) };
    listen(&host, &[80, 9005, 8080])?;
    host.sh(
        "sed -i 's/^{/{\"limits\":{\"guard_window_s\":20},/' /etc/postern-agent/config.json; systemctl restart postern-agent",
    )?;
    wait_for("the agent is back", Duration::from_secs(60), || {
        Ok(rig.run(&["exec", &host.name, "--", "true"])?.code == Some(0))
    })?;
    apply(&rig, &host, &format!("  - package: {{name: {}}}\n", other.name), &[])?.expect(0);
    host.sh(other.switch_on)?;
    wait_for("its own rules are in force", Duration::from_secs(30), || {
        Ok(open(&host, 8080) == CLOSED && open(&host, 9005) == OPEN && (other.is_on)(&host)?)
    })?;
    let refused = apply(&rig, &host, RULES, &[])?.expect(1);
    assert!(said(&refused).contains(&format!("{} manages this host's firewall", other.name)), "{refused:?}");
    assert!((other.is_on)(&host)? && ours(&host)?.is_empty(), "refused, and something was done");

    let over = RULES.replace("allow:", "takeover: true, allow:");
    let check = apply(&rig, &host, &over, &["--check", "--verbose"])?.expect(0);
    assert!(said(&check).contains(&format!("{}: is switched off", other.name)), "{check:?}");
    apply(&rig, &host, &over, &[])?.expect(0);
    let run = rig.last_run(&host)?;
    assert!(!(other.is_on)(&host)?);
    in_force(&host);
    let again = apply(&rig, &host, &over, &[])?.expect(0);
    assert!(again.stdout.contains("1 unchanged"), "{again:?}");
    host.reboot()?;
    host.wait_ssh(BOOT_DEADLINE)?;
    in_force(&host);
    assert!(!(other.is_on)(&host)?, "it came back at boot");

    // An undo that is not confirmed, and one that is.
    let undo = || rig.run(&["run", "undo", &run]);
    not_confirmed(&rig, undo, || Ok(ours(&host)?.is_empty()))?;
    in_force(&host);
    assert!(!(other.is_on)(&host)?);
    let again = apply(&rig, &host, &over, &[])?.expect(0);
    assert!(again.stdout.contains("1 unchanged"), "{again:?}");
    undo()?.expect(0);
    let as_before = || -> Result<()> {
        assert!((other.is_on)(&host)? && ours(&host)?.is_empty());
        // firewalld is up before its rules are.
        wait_for("its own rules are in force", Duration::from_secs(30), || {
            Ok((open(&host, 22), open(&host, 80), open(&host, 8080)) == (OPEN, CLOSED, CLOSED))
        })?;
        host.sh("! ls /etc/systemd/system/postern-firewall* /etc/systemd/system/*/postern-firewall* /etc/postern-agent/firewall* 2>/dev/null")?;
        Ok(())
    };
    as_before()?;
    not_confirmed(&rig, || apply(&rig, &host, &over, &[]), || Ok(!(other.is_on)(&host)?))?;
    as_before()
}

/// Another firewall, which lets 22 and 9005 in.
struct Other {
    name: &'static str,
    switch_on: &'static str,
    /// Now and at boot.
    is_on: fn(&Host) -> Result<bool>,
}

/// Does this, and shuts the way over which the controller would be asked to confirm it once it is half done.
fn not_confirmed(
    rig: &Rig,
    act: impl FnOnce() -> Result<Ended> + Send,
    half: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let ended = std::thread::scope(|scope| -> Result<_> {
        let run = scope.spawn(act);
        wait_for("it is half done", Duration::from_secs(60), half)?;
        // For new connections. On the host somebody else may just be loading his rules.
        rig.lab.deny_port(rig.port())?;
        run.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
    })?;
    assert!(said(&ended.expect(1)).contains("the change was taken back"));
    rig.lab.allow_port(rig.port())?;
    Ok(())
}

#[test]
fn trap_30b_ufw_is_taken_over_and_comes_back() -> Result<()> {
    let ufw = Other {
        name: "ufw",
        switch_on: "ufw allow 22/tcp >/dev/null; ufw allow 9005/tcp >/dev/null; ufw --force enable",
        is_on: |host| {
            Ok(host.sh("ufw status")?.contains("Status: active")
                && host.sh("cat /etc/ufw/ufw.conf")?.contains("ENABLED=yes"))
        },
    };
    taken_over_and_back("fw-ufw-back", Image::TRIXIE, &ufw)
}

#[test]
fn trap_30b_firewalld_is_taken_over_and_comes_back() -> Result<()> {
    let firewalld = Other {
        name: "firewalld",
        switch_on: "systemctl enable --quiet --now firewalld; firewall-cmd -q --permanent --add-port=9005/tcp; firewall-cmd -q --reload",
        is_on: |host| {
            Ok(host.sh("systemctl is-active firewalld; systemctl is-enabled firewalld; :")?
                == "active\nenabled")
        },
    };
    taken_over_and_back("fw-firewalld", Image::BOOKWORM, &firewalld)
}

/// T30b: Docker that filters by itself, past every chain that there is for others. Debian's Docker cannot yet: what
/// tells of it is put there in its place.
#[test]
fn trap_30b_dockers_own_tables_are_named() -> Result<()> {
    let Some((rig, host)) = managed("fw-docker-nft", Image::TRIXIE)? else { return Ok(()) };
    use std::io::Write as _;
    let _ = writeln!(
        std::io::stdout(),
        "STAND-IN: Docker with firewall-backend nftables: its setting and a table of its name, which prove nothing about its rules"
    );
    apply(&rig, &host, "  - package: {name: nftables}\n", &[])?.expect(0);
    let traces = [
        (
            "mkdir -p /etc/docker; echo '{\"firewall-backend\": \"nftables\"}' >/etc/docker/daemon.json",
            "rm /etc/docker/daemon.json",
        ),
        (
            "nft add table ip docker-bridges; nft 'add chain ip docker-bridges filter-FORWARD { type filter hook forward priority 0; }'",
            "nft delete table ip docker-bridges",
        ),
    ];
    for (put, take) in traces {
        host.sh(put)?;
        let refused = apply(&rig, &host, RULES, &[])?.expect(1);
        assert!(said(&refused).contains("Docker filters with nftables here"), "{put}: {refused:?}");
        assert_eq!(ours(&host)?, "");
        let ignored = apply(&rig, &host, &RULES.replace("allow:", "docker: ignored, allow:"), &["--check"])?;
        assert!(ignored.expect(0).stdout.contains("1 would change"), "{put}");
        host.sh(take)?;
    }
    apply(&rig, &host, RULES, &[])?.expect(0);
    Ok(())
}

/// T02: a port that Docker publishes is open where it is allowed, and nowhere else: also under another number,
/// after a restart of Docker and of the host, and past a run that changes nothing.
fn published_ports(name: &str, image: Image) -> Result<()> {
    let mut spec = HostSpec::new(name, image);
    spec.docker = true;
    let Some((rig, host)) = managed_with(spec)? else { return Ok(()) };
    // In Debian 13 the client is a package of its own.
    let client = if image.release == Release::Trixie { "  - package: {name: docker-cli}\n" } else { "" };
    let packages =
        format!("  - package: {{name: docker.io}}\n  - package: {{name: busybox-static}}\n{client}");
    apply(&rig, &host, &packages, &[])?.expect(0);
    wait_for("Docker answers", Duration::from_secs(60), || {
        Ok(host.sh("docker info >/dev/null 2>&1 && echo y || :")? == "y")
    })?;
    host.sh("mkdir -p /tmp/i/bin && cp /bin/busybox /tmp/i/bin/ && tar -C /tmp/i -c . | docker import - lab:1 >/dev/null")?;
    for port in [8080, 8081] {
        host.sh(&format!("docker run -d --restart=always --name web{port} -p {port}:80 lab:1 /bin/busybox httpd -f -p 80 -h /bin"))?;
    }
    wait_for("both are published", Duration::from_secs(20), || {
        Ok(open(&host, 8080).0 && open(&host, 8081).0)
    })?;
    let rules = |port: &str| format!("  - firewall: {{allow: [22/tcp, {port}/tcp]}}\n");
    let foreign = others(&host)?;
    apply(&rig, &host, &rules("8080"), &[])?.expect(0);
    let in_force = |when: &str| {
        wait_for("what is allowed is open", Duration::from_secs(30), || Ok(open(&host, 8080) == OPEN))?;
        assert_eq!(open(&host, 8081), CLOSED, "{when}");
        // Containers reach each other as before.
        host.sh("to=$(docker inspect -f '{{.NetworkSettings.IPAddress}}' web8081)
             inside=$(docker inspect -f '{{.State.Pid}}' web8080)
             nsenter --target $inside --net curl -sf -m 5 -o /dev/null http://$to/busybox")
            .context(when.to_owned())
    };
    in_force("after the first run")?;
    assert_eq!(others(&host)?, foreign);
    let again = apply(&rig, &host, &rules("8080"), &[])?.expect(0);
    assert!(again.stdout.contains("1 unchanged"), "{again:?}");
    in_force("after the second run")?;
    // The container's own port is not what was asked for.
    apply(&rig, &host, &rules("80"), &[])?.expect(0);
    assert_eq!((open(&host, 8080), open(&host, 8081)), (CLOSED, CLOSED));
    apply(&rig, &host, &rules("8080"), &[])?.expect(0);

    host.sh("systemctl restart docker")?;
    in_force("after a restart of Docker")?;
    host.reboot()?;
    host.wait_ssh(BOOT_DEADLINE)?;
    wait_for("the host has started Docker", Duration::from_secs(90), || {
        assert!(!open(&host, 8081).0, "open while the host starts");
        Ok(host.sh("systemctl is-active postern-firewall-docker.service || :")? == "active")
    })?;
    in_force("after a restart of the host")?;
    let again = apply(&rig, &host, &rules("8080"), &[])?.expect(0);
    assert!(again.stdout.contains("1 unchanged"), "{again:?}");
    Ok(())
}

#[test]
fn trap_02_published_ports_on_debian_12() -> Result<()> {
    published_ports("fw-docker-12", Image::BOOKWORM)
}

#[test]
fn trap_02_published_ports_on_debian_13() -> Result<()> {
    published_ports("fw-docker-13", Image::TRIXIE)
}
