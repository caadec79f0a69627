//! `directory`, `file`, `sysctl`, `service` and `reboot` on real hosts: applied, seen by other means, and again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use anyhow::Result;
use postern_tests::lab::{Host, Image};
use postern_tests::rig::{BOOT_DEADLINE, Rig, apply, managed, said};

/// Changed by the first run, and not by the second.
#[track_caller]
fn settles(rig: &Rig, host: &Host, resources: &str, changed: usize) -> Result<()> {
    let first = apply(rig, host, resources, &[])?.expect(0);
    assert!(first.stdout.contains(&format!("{changed} changed")), "{first:?}");
    let count = resources.lines().filter(|line| line.starts_with("  - ")).count();
    let again = apply(rig, host, resources, &[])?.expect(0);
    assert!(again.stdout.contains(&format!("{count} unchanged")), "{again:?}");
    Ok(())
}

#[track_caller]
fn refused(rig: &Rig, host: &Host, resources: &str, why: &str) -> Result<()> {
    let ended = apply(rig, host, resources, &[])?.expect(1);
    assert!(said(&ended).contains(why), "want {why:?}: {}", said(&ended));
    Ok(())
}

const MARTIANS: &str = "net.ipv4.conf.all.log_martians";

fn on(image: Image, name: &str) -> Result<()> {
    let Some((rig, host)) = managed(name, image)? else { return Ok(()) };
    directories(&rig, &host)?;
    files(&rig, &host)?;
    services(&rig, &host)?;
    sysctls(&rig, &host)?;
    what_boot_makes_of_other_lines(&rig, &host)?;
    restarts(&rig, &host)
}

#[test]
fn kinds_hold_on_debian_12() -> Result<()> {
    on(Image::BOOKWORM, "kinds12")
}

#[test]
fn kinds_hold_on_debian_13() -> Result<()> {
    on(Image::TRIXIE, "kinds13")
}

fn directories(rig: &Rig, host: &Host) -> Result<()> {
    host.sh("mkdir -p /srv/empty /srv/full && touch /srv/full/kept && ln -s /etc /srv/link")?;
    let deep = "  - directory: {path: /srv/lab/deep, parents: true, mode: '2750', group: www-data}\n";
    let empty = "  - directory: {path: /srv/empty, state: absent}\n";
    refused(
        rig,
        host,
        &deep.replace("parents: true, ", ""),
        "the directory /srv/lab for /srv/lab/deep is not there",
    )?;
    settles(rig, host, &format!("{deep}{empty}"), 2)?;
    let stat = host.sh("stat -c '%n %a %U %G' /srv/lab /srv/lab/deep; ls -d /srv/empty 2>&1 || true")?;
    let want = "/srv/lab 755 root root\n/srv/lab/deep 2750 root www-data\n";
    assert!(stat.starts_with(want) && stat.contains("No such file"), "{stat}");

    // Attributes alone.
    host.sh("chmod 777 /srv/lab/deep && chown daemon /srv/lab/deep")?;
    settles(rig, host, deep, 1)?;
    assert_eq!(host.sh("stat -c '%a %U' /srv/lab/deep")?, "2750 root");

    refused(rig, host, "  - directory: {path: /srv/full, state: absent}\n", "is not empty, it holds kept")?;
    refused(rig, host, "  - directory: {path: /srv/link}\n", "/srv/link is a symbolic link")?;
    assert_eq!(host.sh("ls /srv/full")?, "kept");
    Ok(())
}

fn files(rig: &Rig, host: &Host) -> Result<()> {
    let secret = "  - file: {path: /etc/lab.pin, content: '4711', mode: '0600'}\n";
    settles(rig, host, secret, 1)?;
    assert_eq!(host.sh("stat -c %a /etc/lab.pin; cat /etc/lab.pin")?, "600\n4711");
    // T46: neither the content nor what tells it from another one.
    let check = said(&apply(rig, host, &secret.replace("4711", "0815"), &["--check"])?);
    assert!(check.contains("content differs, 4 bytes -> 4 bytes") && !check.contains("sha256"), "{check}");
    let gone = "  - file: {path: /etc/lab.pin, state: absent}\n";
    settles(rig, host, gone, 1)?;
    host.sh("test ! -e /etc/lab.pin")?;
    Ok(())
}

fn services(rig: &Rig, host: &Host) -> Result<()> {
    let unit = "  - file:\n      path: /etc/systemd/system/lab.service\n      content: |\n        [Service]\n        \
                ExecStart=/bin/sleep infinity\n        [Install]\n        WantedBy=multi-user.target\n";
    let service = |state: &str, enabled: bool| {
        format!("  - service: {{name: lab, state: {state}, enabled: {enabled}}}\n")
    };
    let state = || host.sh("systemctl is-active lab; systemctl is-enabled lab; true");
    settles(rig, host, &format!("{unit}{}", service("running", true)), 2)?;
    assert_eq!(state()?, "active\nenabled");
    settles(rig, host, &service("stopped", false), 1)?;
    assert_eq!(state()?, "inactive\ndisabled");
    Ok(())
}

fn sysctls(rig: &Rig, host: &Host) -> Result<()> {
    // An interface with a dot in its name, as VLANs have them.
    host.sh("ip link add lab.1 type veth peer name lab2")?;
    let martians = format!("  - sysctl: {{name: {MARTIANS}, value: 1}}\n");
    let range = "  - sysctl: {name: net/ipv4/ip_local_port_range, value: '20001 50001'}\n";
    let dotted = "  - sysctl: {name: net.ipv4.conf.lab/1.rp_filter, value: '2'}\n";
    let before = host.sh("cat /proc/sys/net/ipv4/ip_local_port_range")?;
    assert_ne!(before, "20001\t50001");
    settles(rig, host, &format!("{martians}{range}{dotted}"), 3)?;
    let live = "cat /proc/sys/net/ipv4/conf/all/log_martians /proc/sys/net/ipv4/ip_local_port_range \
                /proc/sys/net/ipv4/conf/lab.1/rp_filter";
    assert_eq!(host.sh(live)?, "1\n20001\t50001\n2");
    refused(rig, host, "  - sysctl: {name: net.ipv4.no_such, value: 1}\n", "the kernel of this host has no")?;

    // The network namespace outlives a boot of this host: what is seen after it, the boot has set.
    host.sh("echo 0 >/proc/sys/net/ipv4/conf/all/log_martians; \
             echo 32768 60999 >/proc/sys/net/ipv4/ip_local_port_range; ip link del lab.1")?;
    host.sh("rm /etc/sysctl.d/90-postern-net.ipv4.ip_local_port_range.conf")?;
    host.reboot()?;
    host.wait_booted(BOOT_DEADLINE)?;
    let booted = "cat /proc/sys/net/ipv4/conf/all/log_martians /proc/sys/net/ipv4/ip_local_port_range";
    assert_eq!(host.sh(booted)?, "1\n32768\t60999", "the file that is there was applied, and it alone");

    let gone = format!("  - sysctl: {{name: {MARTIANS}, state: absent}}\n");
    settles(rig, host, &gone, 1)?;
    assert_eq!(host.sh("ls /etc/sysctl.d | grep -c all.log_martians || true")?, "0");
    assert_eq!(host.sh("cat /proc/sys/net/ipv4/conf/all/log_martians")?, "1", "in force until the next boot");
    Ok(())
}

/// I9: what the agent says of other files is what systemd-sysctl of this release does with them.
fn what_boot_makes_of_other_lines(rig: &Rig, host: &Host) -> Result<()> {
    let ours = format!("  - sysctl: {{name: {MARTIANS}, value: 1}}\n");
    let file = "/etc/sysctl.d/99-lab.conf";
    // A line in a later file; whether ours holds at boot all the same.
    let cases = [
        (format!("{MARTIANS} = 0"), false),
        ("net/ipv4/conf/all/log_martians=0".to_owned(), false),
        (format!("-{MARTIANS} = 0"), false),
        (format!("-{MARTIANS}"), false),
        ("net.ipv4.conf.*.log_martians = 0".to_owned(), true),
        (format!("# {MARTIANS} = 0"), true),
        (format!("{MARTIANS} = 1"), true),
    ];
    host.sh("echo 0 >/proc/sys/net/ipv4/conf/all/log_martians")?;
    settles(rig, host, &ours, 1)?;
    for (line, holds) in cases {
        host.sh(&format!("echo '{line}' >{file}"))?;
        let ended = apply(rig, host, &ours, &[])?;
        let boot = "echo 0 >/proc/sys/net/ipv4/conf/all/log_martians; /lib/systemd/systemd-sysctl; \
                    cat /proc/sys/net/ipv4/conf/all/log_martians";
        let live = host.sh(boot)?;
        assert_eq!(live == "1", holds, "systemd makes {live} of {line:?}");
        assert_eq!(ended.code == Some(0), holds, "{line:?}: {ended:?}");
        let why = format!("{file} line 1");
        assert!(holds || said(&ended).contains(&why), "{line:?}: {ended:?}");
        host.sh("echo 1 >/proc/sys/net/ipv4/conf/all/log_martians")?;
    }
    // As administrators of Debian 12 do it: a line in sysctl.conf, which a link in sysctl.d leads to.
    host.sh(&format!(
        "rm {file}; ls /etc/sysctl.conf >/dev/null 2>&1 || touch /etc/sysctl.conf; \
         test -e /etc/sysctl.d/99-sysctl.conf || ln -s ../sysctl.conf /etc/sysctl.d/99-sysctl.conf; \
         cp /etc/sysctl.conf /root/sysctl.conf; echo '{MARTIANS} = 0' >>/etc/sysctl.conf"
    ))?;
    refused(rig, host, &ours, "/etc/sysctl.d/99-sysctl.conf line")?;
    host.sh("cp /root/sysctl.conf /etc/sysctl.conf")?;
    apply(rig, host, &ours, &[])?.expect(0);
    Ok(())
}

fn restarts(rig: &Rig, host: &Host) -> Result<()> {
    let due = "  - reboot: {name: kernel, if_newer: [/etc/lab.boot]}\n";
    let none = apply(rig, host, due, &[])?.expect(0);
    assert!(none.stdout.contains("1 unchanged"), "{none:?}");
    host.sh("touch /etc/lab.boot")?;
    let newer = said(&apply(rig, host, due, &["--check"])?);
    assert!(newer.contains("restart the host: /etc/lab.boot is newer than the boot"), "{newer}");
    host.sh("rm /etc/lab.boot; touch /run/reboot-required; echo linux-image-lab >/run/reboot-required.pkgs")?;
    let asked = said(&apply(rig, host, due, &["--check"])?);
    assert!(asked.contains("linux-image-lab asks for it (/run/reboot-required)"), "{asked}");
    // After a boot nothing calls for another one: the file is older than it, and the flag is gone.
    host.sh("touch /etc/lab.boot")?;
    host.reboot()?;
    host.wait_booted(BOOT_DEADLINE)?;
    let after = apply(rig, host, due, &[])?.expect(0);
    assert!(after.stdout.contains("1 unchanged"), "{after:?}");

    // For real: one run, which goes on in the next boot.
    let before = host.boot_id()?;
    let whole = format!(
        "  - file: {{path: /etc/lab.boot, content: new}}\n{due}  - command: {{shell: 'cat \
         /proc/sys/kernel/random/boot_id >/etc/lab.after', creates: /etc/lab.after}}\n    id: after\n"
    );
    let done = apply(rig, host, &whole, &[])?.expect(0);
    assert!(done.stdout.contains("3 changed"), "{done:?}");
    let now = host.boot_id()?;
    assert_ne!(now, before);
    assert_eq!(host.sh("cat /etc/lab.after")?, now);
    let again = apply(rig, host, &whole, &[])?.expect(0);
    assert!(again.stdout.contains("3 unchanged"), "{again:?}");
    Ok(())
}
