//! Packages with their holds, repositories, security updates and the clock, on Debian 12 and 13.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use anyhow::Result;
use postern_tests::lab::{FileSpec, Host, HostSpec, Image};
use postern_tests::rig::{Ended, Rig, apply, managed_with, said};

/// A guest may not set the clock of the machine it runs on: chrony measures it and leaves it alone.
const CHRONY_IN_THE_LAB: &str = "[Unit]\nConditionCapability=\n\
                                 [Service]\nEnvironmentFile=\nEnvironment=\"DAEMON_OPTS=-F 1 -x\"\n";

/// Brings it about, and then finds it so.
#[track_caller]
fn apply_twice(rig: &Rig, host: &Host, resources: &str) -> Result<Ended> {
    let first = apply(rig, host, resources, &[])?.expect(0);
    let again = apply(rig, host, resources, &[])?.expect(0);
    assert!(!again.stdout.lines().any(|line| line.starts_with("changed")), "{again:?}");
    Ok(first)
}

fn managed(name: &str, image: Image) -> Result<Option<(Rig, Host)>> {
    let mut spec = HostSpec::new(name, image);
    spec.files.push(FileSpec {
        path: "/etc/systemd/system/chrony.service.d/lab.conf".into(),
        content: CHRONY_IN_THE_LAB.into(),
        mode: 0o644,
    });
    managed_with(spec)
}

#[test]
fn packages_and_repositories() -> Result<()> {
    for (name, image) in [("pkg-12", Image::BOOKWORM), ("pkg-13", Image::TRIXIE)] {
        let Some((rig, host)) = managed(name, image)? else { return Ok(()) };
        let keys = make_repository(&host)?;
        packages(&rig, &host)?;
        repositories(&rig, &host, &keys)?;
        host.destroy()?;
    }
    Ok(())
}

fn packages(rig: &Rig, host: &Host) -> Result<()> {
    let wanted = "  - package: {name: hello, hold: true}\n  - package: {name: tree}\n";
    apply_twice(rig, host, wanted)?;
    assert_eq!(host.sh("apt-mark showhold; dpkg -l hello tree | grep -c '^[ih]i'")?, "hello\n2");
    let free = "  - package: {name: hello, hold: false}\n";
    let check = apply(rig, host, free, &["--check"])?.expect(0);
    assert!(said(&check).contains("is held no longer"), "{check:?}");
    apply_twice(rig, host, free)?;
    assert_eq!(host.sh("apt-mark showhold")?, "");

    // A name that nobody has, in the middle of others: it is named, and the others are not half there.
    let nobody = "  - package: {name: sl}\n  - package: {name: no-such-thing}\n  - package: {name: jq}\n";
    let failed = apply(rig, host, nobody, &[])?.expect(1);
    assert!(said(&failed).contains("Unable to locate package no-such-thing"), "{failed:?}");
    host.sh("! dpkg -s sl jq 2>/dev/null | grep '^Status: install ok installed'")?;
    // A hold of somebody else's stops what would change it, and is named.
    host.sh("apt-mark hold tree >/dev/null")?;
    let held = apply(rig, host, "  - package: {name: tree, state: absent}\n", &[])?.expect(1);
    assert!(said(&held).contains("eld packages were changed"), "{held:?}");
    host.sh("apt-mark unhold tree >/dev/null")?;
    apply_twice(rig, host, "  - package: {name: tree, state: absent}\n")?;
    Ok(())
}

/// Makes a signed repository with one package in the guest, served at port 8080. Gives the fingerprints of
/// its key and of another one.
fn make_repository(host: &Host) -> Result<(String, String)> {
    host.sh(
        "apt-get -qq update; apt-get -qq -y install --no-install-recommends gpg gpg-agent busybox apt-utils >/dev/null 2>&1
         echo 'Acquire::http::Proxy::127.0.0.1 \"DIRECT\";' >/etc/apt/apt.conf.d/90lab
         mkdir -p /srv/repo/dists/lab/main/binary-amd64 /srv/repo/pool /root/gnupg /root/pkg/DEBIAN
         chmod 700 /root/gnupg
         printf 'Package: lab-tool\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: lab <lab@localhost>\\nDescription: lab\\n' >/root/pkg/DEBIAN/control
         dpkg-deb -b /root/pkg /srv/repo/pool/lab-tool_1.0_all.deb >/dev/null
         for name in lab other; do
           gpg --homedir /root/gnupg --batch --quiet --passphrase '' --quick-generate-key $name rsa2048 sign 0
         done
         gpg --homedir /root/gnupg --armor --export lab >/srv/repo/key.asc
         gpg --homedir /root/gnupg --export other >/srv/repo/other.gpg
         cat >/root/publish <<'END'
cd /srv/repo
apt-ftparchive packages pool >dists/lab/main/binary-amd64/Packages
apt-ftparchive -o APT::FTPArchive::Release::Codename=lab -o APT::FTPArchive::Release::Components=main \
  -o APT::FTPArchive::Release::Architectures=amd64 release dists/lab >/root/Release
gpg --homedir /root/gnupg --batch --yes --quiet -u $1 --clearsign -o dists/lab/InRelease /root/Release
END
         sh /root/publish lab
         systemd-run --quiet --unit=lab-http busybox httpd -f -p 127.0.0.1:8080 -h /srv/repo",
    )?;
    let fingerprint = |name: &str| {
        host.sh(&format!(
            "gpg --homedir /root/gnupg --with-colons --list-keys {name} | awk -F: '/^fpr/{{print $10; exit}}'"
        ))
    };
    Ok((fingerprint("lab")?, fingerprint("other")?))
}

fn repository(key: &str, fingerprint: &str) -> String {
    format!(
        "  - apt_repository:\n      name: lab\n      uris: ['http://127.0.0.1:8080/']\n      suites: [lab]\n      \
         components: [main]\n      {key}\n      fingerprints: ['{fingerprint}']\n"
    )
}

/// All that a run of these kinds touches: packages, their marks, files, lists and timers. Accounts are left
/// out, which packages make and leave behind, and what the linker and apt write for themselves.
fn state_of(host: &Host) -> Result<String> {
    let seen = host.sh(
        "dpkg --get-selections; apt-mark showauto; apt-mark showhold
         find /etc -type f ! -name 'passwd*' ! -name 'group*' ! -name 'shadow*' ! -name 'gshadow*' ! -name 'sub?id*' \
           ! -name ld.so.cache | LC_ALL=C sort | xargs sha256sum
         find /etc/systemd -type l | LC_ALL=C sort; ls /var/lib/apt/lists | grep 127.0.0.1
         systemctl is-enabled apt-daily.timer apt-daily-upgrade.timer; true",
    )?;
    Ok(seen)
}

#[test]
fn what_these_kinds_did_is_taken_back() -> Result<()> {
    let Some((rig, host)) = managed("back-13", Image::TRIXIE)? else { return Ok(()) };
    let keys = make_repository(&host)?;
    undone(&rig, &host, &keys.0)
}

/// All four kinds in one run, and back.
fn undone(rig: &Rig, host: &Host, fingerprint: &str) -> Result<()> {
    host.sh("systemctl mask --quiet --now apt-daily-upgrade.timer; systemctl stop apt-daily.timer; apt-get -qq update")?;
    let before = state_of(host)?;
    let all = format!(
        "{}  - package: {{name: lab-tool}}\n  - package: {{name: unattended-upgrades}}\n  \
         - package: {{name: hello, hold: true}}\n  - security_updates: {{}}\n",
        repository("key_url: 'http://127.0.0.1:8080/key.asc'", fingerprint)
    );
    apply(rig, host, &all, &[])?.expect(0);
    assert_ne!(state_of(host)?, before);
    let runs = rig.run(&["runs"])?.expect(0);
    let run = runs.stdout.lines().nth(1).and_then(|line| line.split_whitespace().next()).unwrap_or_default();

    // What came later and needs what the run added is not torn away: nothing is done then.
    host.sh(
        "mkdir -p /root/later/DEBIAN && printf 'Package: later\\nVersion: 1\\nArchitecture: all\\nDepends: lab-tool\\n\
         Maintainer: lab <lab@localhost>\\nDescription: lab\\n' >/root/later/DEBIAN/control
         dpkg-deb -b /root/later /root/later.deb >/dev/null && dpkg -i /root/later.deb >/dev/null",
    )?;
    let needed = rig.run(&["run", "undo", run])?.expect(1);
    assert!(said(&needed).contains("later depends on lab-tool"), "{needed:?}");
    host.sh("dpkg -s lab-tool hello | grep -c 'ok installed' | grep -qx 2 && dpkg --purge later >/dev/null")?;

    rig.run(&["run", "undo", run])?.expect(0);
    let after = state_of(host)?;
    let (old, new): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
    let gone: Vec<_> = old.iter().filter(|line| !new.contains(line)).collect();
    let more: Vec<_> = new.iter().filter(|line| !old.contains(line)).collect();
    assert!(gone.is_empty() && more.is_empty(), "gone: {gone:#?}\nmore: {more:#?}");
    host.sh("systemctl unmask --quiet apt-daily-upgrade.timer")?;
    Ok(())
}

fn repositories(rig: &Rig, host: &Host, keys: &(String, String)) -> Result<()> {
    let (own, other) = keys;
    let files = "ls /etc/apt/sources.list.d /etc/apt/keyrings /var/lib/apt/lists /run | grep -E 'postern-|8080'; true";
    let fetched = "key_url: 'http://127.0.0.1:8080/key.asc'";

    // The key is another one: both are named, and nothing is written.
    let refused = apply(rig, host, &repository(fetched, other), &[])?.expect(1);
    assert!(said(&refused).contains(own) && said(&refused).contains(other), "{refused:?}");
    assert_eq!(host.sh(files)?, "");
    let missing = apply(rig, host, &repository("key_url: 'http://127.0.0.1:8080/none'", own), &[])?.expect(1);
    assert!(said(&missing).contains("404"), "{missing:?}");
    assert_eq!(host.sh(files)?, "");

    // Where there is no release, nothing is left that a later update would trip over.
    let clean = "apt-get update 2>&1 | grep -E '^(W|E):' && exit 1; exit 0";
    let nowhere = |repository: &str| repository.replace("suites: [lab]", "suites: [nowhere]");
    let failed = apply(rig, host, &nowhere(&repository(fetched, own)), &[])?.expect(1);
    assert!(said(&failed).contains("nowhere"), "{failed:?}");
    assert_eq!(host.sh("ls /etc/apt/sources.list.d /etc/apt/keyrings | grep postern-; true")?, "");
    host.sh(clean)?;

    // Fingerprints are written with blanks as gpg prints them.
    let spaced =
        own.as_bytes().chunks(4).map(|four| String::from_utf8_lossy(four)).collect::<Vec<_>>().join(" ");
    let good = repository(fetched, &spaced);
    let tool = format!("{good}  - package: {{name: lab-tool}}\n");
    apply_twice(rig, host, &tool)?;
    assert_eq!(host.sh("dpkg-query -W -f '${Status}' lab-tool")?, "install ok installed");
    host.sh(clean)?;
    // Nor does a definition that fails take the place of one that works.
    apply(rig, host, &nowhere(&good), &[])?.expect(1);
    host.sh(clean)?;
    apply_twice(rig, host, &tool)?;

    // Lists that are gone are fetched, and a signature by another key is a failure that the next look still sees.
    host.sh("rm -f /var/lib/apt/lists/127.0.0.1*")?;
    apply_twice(rig, host, &good)?;
    host.sh("sh /root/publish other; rm -f /var/lib/apt/lists/127.0.0.1*")?;
    for _ in 0..2 {
        let unsigned = apply(rig, host, &good, &[])?.expect(1);
        assert!(said(&unsigned).contains("InRelease") || said(&unsigned).contains("signed"), "{unsigned:?}");
    }
    // The other key in the binary form, in place of the first.
    apply_twice(rig, host, &repository("key_url: 'http://127.0.0.1:8080/other.gpg'", other))?;
    host.sh("sh /root/publish lab")?;

    // The same source in a file of somebody else's is named before apt trips over it.
    host.sh("echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://127.0.0.1:8080 lab main' >/etc/apt/sources.list.d/zz-foreign.list")?;
    let twice = apply(rig, host, &good, &[])?.expect(1);
    assert!(said(&twice).contains("/etc/apt/sources.list.d/zz-foreign.list has"), "{twice:?}");
    let broken = host.sh("apt-get update 2>&1; true")?;
    assert!(broken.contains("Conflicting values set"), "apt copes by itself: {broken}");
    host.sh("rm /etc/apt/sources.list.d/zz-foreign.list")?;

    apply_twice(rig, host, "  - apt_repository: {name: lab, state: absent}\n")?;
    assert_eq!(host.sh(files)?, "");
    Ok(())
}

/// T08: what a foreign file says matches nothing; what is in force afterwards does, in the words of
/// unattended-upgrades itself. And the clock, as it needs a server of the lab.
#[test]
fn trap_08_security_updates_and_the_clock() -> Result<()> {
    for (name, image) in [("upd-12", Image::BOOKWORM), ("upd-13", Image::TRIXIE)] {
        let Some((rig, host)) = managed(name, image)? else { return Ok(()) };
        security_updates(&rig, &host)?;
        time_sync(&rig, &host)?;
        host.destroy()?;
    }
    Ok(())
}

fn security_updates(rig: &Rig, host: &Host) -> Result<()> {
    let alone = "  - security_updates: {}\n";
    let failed = apply(rig, host, alone, &[])?.expect(1);
    assert!(said(&failed).contains("the package unattended-upgrades is not installed"), "{failed:?}");
    let package = "  - package: {name: unattended-upgrades}\n";
    apply(rig, host, package, &[])?.expect(0);

    // As an image of a provider: on, and for another release; and the timers off.
    host.sh(
        r#"cat >/etc/apt/apt.conf.d/50unattended-upgrades <<'END'
Unattended-Upgrade::Origins-Pattern { "origin=Debian,codename=buster,label=Debian-Security"; };
END
           printf 'APT::Periodic::Update-Package-Lists "1";\nAPT::Periodic::Unattended-Upgrade "1";\n' >/etc/apt/apt.conf.d/20auto-upgrades
           systemctl disable --quiet --now apt-daily.timer; systemctl mask --quiet --now apt-daily-upgrade.timer"#,
    )?;
    let origins = "unattended-upgrade --dry-run --debug 2>&1 | grep 'llowed origins are'";
    let before = host.sh(origins)?;
    assert!(!before.contains("-security"), "{before}");
    let check = apply(rig, host, alone, &["--check"])?.expect(0);
    assert!(said(&check).contains("no origin that is allowed matches"), "{check:?}");
    apply_twice(rig, host, alone)?;
    let after = host.sh(origins)?;
    assert!(after.contains("-security,label=Debian-Security"), "{after}");
    assert_eq!(host.sh("systemctl is-enabled apt-daily.timer apt-daily-upgrade.timer")?, "enabled\nenabled");
    assert_eq!(host.sh("systemctl is-active apt-daily.timer apt-daily-upgrade.timer")?, "active\nactive");

    let night = "  - security_updates: {reboot: '04:30', origins: ['origin=Lab']}\n";
    apply_twice(rig, host, night)?;
    assert!(host.sh("apt-config dump Unattended-Upgrade")?.contains("Automatic-Reboot-Time \"04:30\""));
    assert!(host.sh(origins)?.contains("origin=Lab"));
    // A later file takes it back: ours is as it should be, and that is not enough.
    host.sh(r#"echo 'APT::Periodic::Unattended-Upgrade "0";' >/etc/apt/apt.conf.d/99zz-foreign"#)?;
    let off = apply(rig, host, night, &[])?.expect(1);
    assert!(said(&off).contains("APT::Periodic::Unattended-Upgrade is \"0\" in spite of"), "{off:?}");
    host.sh("rm /etc/apt/apt.conf.d/99zz-foreign")?;
    Ok(())
}

fn time_sync(rig: &Rig, host: &Host) -> Result<()> {
    let sync = |more: &str| format!("  - package: {{name: chrony}}\n  - time_sync: {{{more}}}\n");
    // Nobody answers in the lab, and that is said.
    let alone = apply(rig, host, &sync(""), &[])?.expect(1);
    assert!(said(&alone).contains("the clock follows no server"), "{alone:?}");
    // A server of the lab's own.
    host.sh(
        "printf 'local stratum 5\nallow\nbindaddress 127.0.0.1\ncmdport 0\nbindcmdaddress /run/lab-chrony.sock\npidfile /run/lab-chrony.pid\n' >/etc/lab-chrony.conf
         systemd-run --quiet --unit=lab-time chronyd -d -x -F 0 -u root -f /etc/lab-chrony.conf",
    )?;
    apply_twice(rig, host, &sync("servers: ['127.0.0.1']"))?;
    let tracking = host.sh("chronyc -n tracking")?;
    assert!(tracking.contains("(127.0.0.1)") && tracking.contains(": Normal"), "{tracking}");
    assert_eq!(
        host.sh("stat -c %a /etc/chrony/conf.d/postern.conf; systemctl is-enabled chrony")?,
        "644\nenabled"
    );

    // A server that is half a minute off, and may not be stepped to, is too much for the default and not for a minute.
    host.sh("printf 'server 127.0.0.1 iburst offset 30 prefer trust\n' >/etc/chrony/conf.d/zz.conf
         sed -i 's/^makestep/#&/' /etc/chrony/chrony.conf; systemctl stop chrony; rm -f /var/lib/chrony/drift")?;
    let off = apply(rig, host, &sync(""), &[])?.expect(1);
    assert!(said(&off).contains("the clock is off by"), "{off:?}");
    apply_twice(rig, host, &sync("max_offset_ms: 60000"))?;
    host.sh("! test -e /etc/chrony/conf.d/postern.conf")?;
    Ok(())
}
