//! The power is cut while a run is at work: what was being written is lost, and nothing else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::lab::{Host, Release, VmSpec};
use postern_tests::rig::VM_BOOT_DEADLINE;
use serde_json::Value;

use super::{Applying, Ended, cut, managed_vm, undamaged};

/// A package whose scripts do not come to an end the first time, and a repository that has only this one.
const SLOW_PACKAGE: &str = r#"set -e
mkdir -p /root/repo /root/slow/DEBIAN /root/slow/usr/share/lab-slow
date >/root/slow/usr/share/lab-slow/file
printf 'Package: lab-slow\nVersion: 1\nArchitecture: all\nMaintainer: Lab <lab@localhost>\nDescription: takes its time\n' >/root/slow/DEBIAN/control
for script in preinst postinst; do
    printf '#!/bin/sh\necho %s >>/root/log; sync\ntest $(grep -c %s /root/log) -gt 1 || sleep 600\n' $script $script >/root/slow/DEBIAN/$script
    chmod 755 /root/slow/DEBIAN/$script
done
chmod 755 /root
cd /root/repo
dpkg-deb --build --root-owner-group ../slow ./slow.deb >/dev/null
dpkg-deb -f slow.deb >Packages
printf 'Filename: ./slow.deb\nSize: %s\nSHA256: %s\n' $(stat -c %s slow.deb) $(sha256sum slow.deb | cut -d' ' -f1) >>Packages
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/root/repo ./' >/etc/apt/sources.list
echo 'Acquire::Languages "none";' >/etc/apt/apt.conf.d/99lab
sync"#;

/// Each of these comes in the middle of something once.
const RUN: &str = "  - file: {path: /root/declared, content: one}
  - package: {name: lab-slow}
  - command: {shell: 'echo once >>/root/log; sync; while ! test -e /root/go; do sleep 0.2; done'}
    id: once
  - file: {path: /root/beside, content: two}
    needs: []
  - command: {shell: 'echo after >>/root/log; sync'}
    id: after
";

/// Which marks are on the disk, each with how often.
fn marks(host: &Host) -> Result<String> {
    Ok(host.sh("sort /root/log 2>/dev/null | uniq -c | awk '{print $2 $1}' | tr '\\n' ' '")?)
}

/// Declared resources go on, also a package that was half unpacked and then half configured; a command that may not
/// be repeated is told as cut off, and is run again only when an operator says so.
#[test]
fn trap_36_the_power_is_cut_three_times_in_one_run() -> Result<()> {
    let Some((rig, host)) = managed_vm(VmSpec::new("cuts", Release::Trixie), &[])? else { return Ok(()) };
    host.sh(SLOW_PACKAGE)?;
    let mut applying = Applying::start(&rig, &host, RUN)?;
    for middle in ["preinst1", "postinst1 preinst2", "once1 postinst2 preinst2"] {
        applying.until(middle, |_| Ok(marks(&host)? == middle))?;
        let status = host.sh("dpkg-query -W -f '${db:Status-Status}' lab-slow")?;
        cut(&host)?;
        println!("{middle}: {status}, {}", host.sh("dpkg-query -W -f '${db:Status-Status}' lab-slow")?);
    }
    let ended = applying.end()?;
    ended.is_whole();
    assert_eq!(ended.state(), "interrupted");
    assert_eq!(ended.outcomes("/root/declared"), ["changed"]);
    assert_eq!(ended.outcomes("lab-slow"), ["interrupted", "interrupted", "changed"]);
    let once = ended.attempts("once");
    assert!(once.len() == 1 && once[0].0 == "interrupted", "{once:?}");
    assert!(once[0].1.contains("how far it got is not known"), "{once:?}");
    assert_eq!(
        (ended.outcomes("/root/beside"), ended.outcomes("after")),
        (vec!["changed".to_owned()], vec!["skipped".to_owned()])
    );
    assert_eq!(marks(&host)?, "once1 postinst2 preinst2");
    host.sh(
        "dpkg -s lab-slow | grep -q '^Status: install ok installed' && test -s /usr/share/lab-slow/file",
    )?;
    assert_eq!(host.sh("dpkg --audit; cat /root/declared /root/beside")?, "onetwo");

    host.sh("touch /root/go")?;
    rig.run(&["run", "resume", &ended.id])?.expect(0);
    assert_eq!(marks(&host)?, "after1 once2 postinst2 preinst2");
    undamaged(&host)
}

/// How many resources of the many are of each kind, and how often the power is cut in their middle.
const EACH: usize = 25;
const CUTS: usize = 4;

/// Small steps, none of which waits for another: a file, a command that may be repeated, and one that may not. What
/// the last one writes it has to sync by itself, since nobody can look whether it is there; of the others that is seen.
fn many() -> String {
    let three = |i: usize| {
        format!(
            "  - file: {{path: /root/files/{i}, content: 'file {i}'}}\n    needs: []\n  \
             - command: {{creates: /root/made/{i}, shell: 'echo made {i}; touch /root/made/{i}'}}\n    id: made-{i}\n    needs: []\n  \
             - command: {{shell: 'echo once {i}; echo {i} >>/root/once; sync; sleep 0.2'}}\n    id: once-{i}\n    needs: []\n"
        )
    };
    (0..EACH).map(three).collect()
}

fn finished(events: &[Value]) -> usize {
    events.iter().filter(|it| it["event"] == "resource-finished").count()
}

/// Cut off at no matter what: what is told as done is there, and nothing that may not be repeated was done twice.
#[test]
fn trap_36_the_power_is_cut_again_and_again() -> Result<()> {
    let Some((rig, host)) = managed_vm(VmSpec::new("flicker", Release::Bookworm), &[])? else {
        return Ok(());
    };
    host.sh("mkdir /root/files /root/made; sync")?;
    let mut applying = Applying::start(&rig, &host, &many())?;
    for _ in 0..CUTS {
        let enough = finished(&applying.events()?) + rand::random_range(3..9);
        applying.until("more of it is done", |events| Ok(finished(events) >= enough))?;
        // Anywhere within a step.
        std::thread::park_timeout(Duration::from_millis(rand::random_range(0..200)));
        host.kill()?;
        println!("cut after {} resources", finished(&applying.events()?));
        host.start()?;
    }
    let ended = applying.end()?;
    ended.is_whole();
    host.wait_ssh(VM_BOOT_DEADLINE)?;
    all_is_there(&host, &ended)?;
    undamaged(&host)
}

fn all_is_there(host: &Host, ended: &Ended) -> Result<()> {
    let once = host.sh("cat /root/once")?;
    let times = |i: usize| once.lines().filter(|line| *line == i.to_string()).count();
    let made = host.sh("ls /root/made")?;
    let files = host.sh(&format!("cd /root/files; for i in $(seq 0 {}); do cat $i; echo; done", EACH - 1))?;
    let files: Vec<&str> = files.lines().collect();
    let mut cut_off = 0;
    for i in 0..EACH {
        let last = |address: &str| ended.outcomes(address).pop().context(format!("no end of {address}"));
        ensure!(files.get(i) == Some(&&*format!("file {i}")), "/root/files/{i} has {:?}", files.get(i));
        ensure!(last(&format!("made-{i}"))? != "interrupted");
        ensure!(made.lines().any(|name| name == i.to_string()), "{i} is told as made, and is not there");
        match (last(&format!("once-{i}"))?.as_str(), times(i)) {
            ("changed", 1) => {}
            ("interrupted", 0 | 1) => cut_off += 1,
            (outcome, times) => anyhow::bail!("once-{i} is told as {outcome}, and was done {times} times"),
        }
    }
    println!("{cut_off} commands were cut off");
    ensure!(ended.state() == if cut_off == 0 { "ok" } else { "interrupted" }, "{}", ended.state());
    Ok(())
}
