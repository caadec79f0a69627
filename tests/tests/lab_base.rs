//! The shipped profile `base`, unmodified, on every image: in force, unchanged the second time, still so after
//! a reboot, and undone.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::time::Duration;

use anyhow::{Context, Result};
use postern_tests::fingerprint::{changes, fingerprint};
use postern_tests::lab::{Host, Image};
use postern_tests::rig::{BOOT_DEADLINE, Rig, ssh_closed, wait_for};
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
        let host = rig.host(name, image)?;
        serve_time(&host)?;
        let key = std::fs::read_to_string(rig.lab.public_key())?;
        let vars = ["admin=ada".to_owned(), format!("admin_key={}", key.trim())];
        let vars = vars.into_iter().flat_map(|var| ["--var".to_owned(), var]).collect();
        Ok(Some(Self { rig, host, vars }))
    }

    fn up(&self) -> Result<String> {
        let mut args = vec!["--profile", "base"];
        args.extend(self.vars.iter().map(String::as_str));
        self.rig.up(&self.host, &args)?.expect(0);
        self.last_run("message")
    }

    /// What the record has of the newest run.
    fn last_run(&self, field: &str) -> Result<String> {
        let runs = self.rig.run(&["runs", "-H", &self.host.name, "--output", "json"])?.expect(0);
        let value: serde_json::Value = serde_json::from_str(&runs.stdout)?;
        let run = value["runs"].get(0).context("no run")?;
        Ok(run[field].as_str().with_context(|| format!("no {field} in {run}"))?.to_owned())
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
        assert!(host.sh("fail2ban-client status sshd")?.contains("Currently banned:\t0"));
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
    let second = base.up()?;
    assert!(second.ends_with(" unchanged") && !second.contains(','), "the second run: {second}");

    host.reboot()?;
    host.wait_ssh(BOOT_DEADLINE)?;
    wait_for("chrony follows its server again", Duration::from_secs(60), || {
        Ok(host.sh("chronyc -n tracking || true")?.contains(": Normal"))
    })?;
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
fn base_on_debian_12_as_shipped() -> Result<()> {
    base_on("base-12s", Image::BOOKWORM_SHIPPED)
}

#[test]
fn base_on_debian_13_plain() -> Result<()> {
    base_on("base-13", Image::TRIXIE)
}

#[test]
fn base_on_debian_13_as_shipped() -> Result<()> {
    base_on("base-13s", Image::TRIXIE_SHIPPED)
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
    let run = base.last_run("id")?;
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
