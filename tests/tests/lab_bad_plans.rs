//! Plans that cannot be brought about on a real host: each fails with what, where and what to do, and nothing
//! that was there is lost.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use anyhow::Result;
use postern_tests::lab::{Host, Image};
use postern_tests::rig::{self, Ended, Rig, managed, said};

struct Bench {
    rig: Rig,
    host: Host,
}

impl Bench {
    fn open(name: &str) -> Result<Option<Self>> {
        Ok(managed(name, Image::BOOKWORM)?.map(|(rig, host)| Self { rig, host }))
    }

    fn apply(&self, resources: &str, more: &[&str]) -> Result<Ended> {
        rig::apply(&self.rig, &self.host, resources, more)
    }

    /// Fails with all of these words, and says so on one of the streams.
    #[track_caller]
    fn refused(&self, resources: &str, words: &[&str]) -> Result<Ended> {
        let ended = self.apply(resources, &[])?.expect(1);
        let said = said(&ended);
        for word in words {
            assert!(said.contains(word), "want {word:?} in\n{said}");
        }
        Ok(ended)
    }
}

#[test]
fn what_is_in_the_way_is_named_and_left_alone() -> Result<()> {
    let Some(bench) = Bench::open("obstacles")? else { return Ok(()) };
    let host = &bench.host;

    host.sh("mkdir /etc/lab && touch /etc/lab/inside")?;
    bench.refused("  - file: {path: /etc/lab, content: x}\n", &["/etc/lab", "a directory", "remove it"])?;
    bench.refused("  - file: {path: /etc/lab, state: absent}\n", &["/etc/lab", "a directory"])?;
    host.sh("test -f /etc/lab/inside")?;
    bench.refused("  - file: {path: /nowhere/x, content: x}\n", &["/nowhere", "not there"])?;
    bench
        .refused("  - file: {path: /etc/x, content: x, owner: nobody-here}\n", &["no user", "nobody-here"])?;

    // One that exists stands beside one that does not: nothing of the transaction is done.
    let packages = "  - package: {name: hello}\n  - package: {name: no-such-package-here}\n";
    bench.refused(packages, &["no-such-package-here"])?;
    host.sh("! dpkg -s hello 2>/dev/null | grep -q '^Status: install ok installed'")?;

    // What fails is not repeated by what comes after, and what stands after it is not reached.
    let three = "  - file: {path: /etc/one, content: x}\n  - command: {argv: ['false']}\n    id: no\n  \
                 - file: {path: /etc/three, content: x}\n";
    bench.refused(three, &["exit status 1", "1 skipped"])?;
    host.sh("test -f /etc/one && test ! -e /etc/three")?;
    Ok(())
}

/// The file that was there stays whole when there is no room for the new one, and the run says so.
#[test]
fn a_full_disk_in_the_middle_of_a_run_loses_nothing() -> Result<()> {
    let Some(bench) = Bench::open("full")? else { return Ok(()) };
    let host = &bench.host;
    host.sh("mkdir /small && mount -t tmpfs -o size=64k small /small && echo old >/small/conf")?;
    let long = "x".repeat(200_000);
    let resources = format!(
        "  - file: {{path: /etc/first, content: x}}\n  - file: {{path: /small/conf, content: {long}}}\n  \
         - file: {{path: /etc/last, content: x}}\n"
    );
    bench.refused(&resources, &["/small/conf", "No space left"])?;
    assert_eq!(host.sh("cat /small/conf; ls -A /small")?, "old\nconf");
    host.sh("test -f /etc/first && test ! -e /etc/last")?;
    // With room it goes through, and what was done before is not done again.
    host.sh("mount -o remount,size=1m /small")?;
    let done = bench.apply(&resources, &[])?.expect(0);
    assert!(done.stdout.contains("2 changed") && done.stdout.contains("1 unchanged"), "{done:?}");
    assert_eq!(host.sh("wc -c </small/conf")?, "200000");
    Ok(())
}

/// A validation that says no leaves the old content in force.
#[test]
fn content_that_its_own_program_refuses_is_not_put_in_place() -> Result<()> {
    let Some(bench) = Bench::open("validate")? else { return Ok(()) };
    let host = &bench.host;
    host.sh("mkdir -p /etc/sudoers.d && echo '# fine' >/etc/sudoers.d/lab && chmod 440 /etc/sudoers.d/lab")?;
    let bad = "  - file:\n      path: /etc/sudoers.d/lab\n      mode: '0440'\n      content: \"nonsense here\\n\"\n      \
               validate: [visudo, -cf, '{path}']\n";
    bench.refused(bad, &["visudo", "does not accept"])?;
    assert_eq!(
        host.sh("cat /etc/sudoers.d/lab; ls -A /etc/sudoers.d | grep -c postern-new || true")?,
        "# fine\n0"
    );
    host.sh("sudo -n true")?;
    Ok(())
}

/// T11: a lock that is not given up ends the run at its limit. The holder is named, and nothing is done to it.
#[test]
fn trap_11_a_lock_that_is_held_too_long_fails_the_run_and_not_its_holder() -> Result<()> {
    let Some(bench) = Bench::open("held")? else { return Ok(()) };
    let host = &bench.host;
    // As whoever runs the host sets it.
    host.sh("sed -i 's/^{/{\"limits\":{\"lock_wait_s\":3},/' /etc/postern-agent/config.json && \
             systemctl restart postern-agent")?;
    let lock = "/var/lib/dpkg/lock-frontend";
    let hold = format!(
        r#"use Fcntl; open(my $f, ">>", "{lock}") or die;
        my $l = pack("s s x4 q q i x4", F_WRLCK, 0, 0, 0, 0); fcntl($f, F_SETLK, $l) or die;
        open(my $g, ">", "/run/held"); sleep 600"#
    );
    host.sh(&format!(
        "echo '{hold}' >/root/hold.pl && systemd-run --quiet --unit=holder perl /root/hold.pl"
    ))?;
    host.sh("for i in $(seq 100); do test -e /run/held && break; sleep 0.1; done; test -e /run/held")?;
    let pid = host.sh("systemctl show -P MainPID holder")?;

    let wanted = "  - package: {name: hello}\n";
    let holder = format!("{pid} (/usr/bin/perl /root/hold.pl)");
    let waits = format!("waits for {holder} to be done with {lock}");
    let why = format!("{lock} was held by {holder} for 3 s; it was left alone");
    bench.refused(wanted, &[&waits, &why])?;
    // Nothing was ended, removed or begun.
    assert_eq!(
        host.sh("systemctl is-active holder; systemctl show -P MainPID holder")?,
        format!("active\n{pid}")
    );
    host.sh(&format!(
        "test -e {lock} && ! dpkg -s hello 2>/dev/null | grep -q '^Status: install ok installed'"
    ))?;

    host.sh("systemctl stop holder")?;
    bench.apply(wanted, &[])?.expect(0);
    // What the host has for itself outlives a bootstrap.
    bench.rig.up(host, &[])?.expect(0);
    let config = host.sh("cat /etc/postern-agent/config.json")?;
    assert!(config.contains("\"lock_wait_s\":3"), "{config}");
    Ok(())
}
