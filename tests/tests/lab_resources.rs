//! The kinds of resources on a real host: packages under locks and after a power cut, services, private files.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use anyhow::Result;
use postern_tests::lab::Image;
use postern_tests::rig::{apply, managed, said};

/// T11 for the lock that apt's own timeout does not cover, and dpkg as a power cut leaves it.
#[test]
fn trap_11_packages_wait_for_locks_and_heal_dpkg() -> Result<()> {
    let Some((rig, host)) = managed("packages", Image::TRIXIE)? else { return Ok(()) };
    let wanted = "  - package: {name: hello}\n";

    // Somebody fetches lists for some seconds; ours are missing.
    host.sh("rm -f /var/lib/apt/lists/*_*; mkdir -p /var/lib/apt/lists/partial")?;
    // In a file: systemd would fill in what looks like a variable.
    let hold = r#"use Fcntl; open(my $f, ">>", "/var/lib/apt/lists/lock") or die;
        my $l = pack("s s x4 q q i x4", F_WRLCK, 0, 0, 0, 0); fcntl($f, F_SETLK, $l) or die;
        open(my $g, ">", "/run/held"); sleep 6; open(my $d, ">", "/run/released")"#;
    host.sh(&format!("echo '{hold}' >/root/hold.pl && systemd-run --quiet perl /root/hold.pl"))?;
    host.sh("for i in $(seq 100); do test -e /run/held && break; sleep 0.1; done; test -e /run/held")?;
    let refused = host.sh("apt-get -o DPkg::Lock::Timeout=60 update 2>&1; echo exit $?")?;
    assert!(refused.contains("exit 100") && refused.contains("lists/lock"), "apt itself waits: {refused}");
    let applied = apply(&rig, &host, wanted, &[])?.expect(0);
    assert!(said(&applied).contains("waits for") && said(&applied).contains("perl"), "{applied:?}");
    host.sh("test -e /run/released && dpkg -s hello | grep -q '^Status: install ok installed'")?;
    let again = apply(&rig, &host, wanted, &[])?.expect(0);
    assert!(again.stdout.contains("1 unchanged"), "{again:?}");

    // Cut off between unpacking and configuring, with dpkg's journal not merged.
    host.sh("cd /tmp && apt-get download hello >/dev/null 2>&1 && dpkg --unpack hello_*.deb >/dev/null && \
         dpkg -s hello >/var/lib/dpkg/updates/0000")?;
    let refused = host.sh("apt-get -y install hello 2>&1; true")?;
    assert!(refused.contains("dpkg was interrupted"), "{refused}");
    apply(&rig, &host, wanted, &[])?.expect(0);
    host.sh("dpkg -s hello | grep -q '^Status: install ok installed'")?;
    assert_eq!(host.sh("ls /var/lib/dpkg/updates; dpkg --audit")?, "");

    // A name without a package of its own is told apart from one that does not exist.
    let virtual_name = apply(&rig, &host, "  - package: {name: mail-transport-agent}\n", &[])?.expect(1);
    let text = said(&virtual_name);
    assert!(text.contains("virtual package") && text.contains("exim4-daemon-light"), "{text}");

    let gone = "  - package: {name: hello, state: absent}\n";
    apply(&rig, &host, gone, &[])?.expect(0);
    host.sh("! dpkg -s hello 2>/dev/null | grep -q '^Status: install ok installed'")?;
    let again = apply(&rig, &host, gone, &[])?.expect(0);
    assert!(again.stdout.contains("1 unchanged"), "{again:?}");
    Ok(())
}

/// T07: hardening on the disk and not in force, after a run that failed in between; and no restart too many.
#[test]
fn trap_07_a_service_is_restarted_once_and_only_once() -> Result<()> {
    let Some((rig, host)) = managed("services", Image::TRIXIE)? else { return Ok(()) };
    let profile = |conf: &str, between: &str| {
        format!(
            "  - file:\n      path: /etc/systemd/system/lab.service\n      content: |\n        [Service]\n        \
             ExecStart=/bin/sh -c 'echo start >>/var/starts; exec sleep infinity'\n        [Install]\n        \
             WantedBy=multi-user.target\n  - file: {{path: /etc/lab.conf, content: {conf}}}\n{between}  \
             - service: {{name: lab, state: running, enabled: true, restart_on: [/etc/lab.conf]}}\n"
        )
    };
    let starts = || host.sh("wc -l </var/starts");
    apply(&rig, &host, &profile("one", ""), &[])?.expect(0);
    assert_eq!(starts()?, "1");
    apply(&rig, &host, &profile("two", "  - command: {argv: ['false']}\n"), &[])?.expect(1);
    assert_eq!((host.sh("cat /etc/lab.conf")?, starts()?), ("two".to_owned(), "1".to_owned()));
    apply(&rig, &host, &profile("two", ""), &[])?.expect(0);
    assert_eq!(starts()?, "2", "the pending restart");
    let again = apply(&rig, &host, &profile("two", ""), &[])?.expect(0);
    assert!(again.stdout.contains("3 unchanged"), "{again:?}");
    // Touched with a time that is still to come.
    host.sh("touch -d 2037-01-01 /etc/lab.conf")?;
    apply(&rig, &host, &profile("two", ""), &[])?.expect(0);
    assert_eq!(starts()?, "3");
    let again = apply(&rig, &host, &profile("two", ""), &[])?.expect(0);
    assert!(again.stdout.contains("3 unchanged"), "{again:?}");
    assert_eq!(starts()?, "3");

    // A unit that nobody has is off; one that only others start cannot be enabled.
    let none = "  - service: {name: no-such, state: stopped, enabled: false}\n";
    let off = apply(&rig, &host, none, &[])?.expect(0);
    assert!(off.stdout.contains("1 unchanged"), "{off:?}");
    host.sh("systemctl mask --quiet lab-masked.service")?;
    let masked = "  - service: {name: lab-masked, state: stopped, enabled: false}\n";
    apply(&rig, &host, masked, &[])?.expect(0);
    let fixed = apply(&rig, &host, "  - service: {name: systemd-journald, enabled: true}\n", &[])?.expect(1);
    assert!(said(&fixed).contains("cannot be enabled"), "{fixed:?}");
    Ok(())
}

/// T46 and T48: private content is in no diff, and nothing is written through a link of somebody else.
#[test]
fn trap_48_private_files_and_links_of_others() -> Result<()> {
    let Some((rig, host)) = managed("files", Image::TRIXIE)? else { return Ok(()) };
    host.sh("useradd -m deploy && mkdir /home/deploy/real && ln -s /etc /home/deploy/.ssh && \
             chown -h deploy: /home/deploy/.ssh")?;
    let private = "  - file: {path: /etc/lab.key, content: hunter2secret, mode: '0600'}\n";
    let open = "  - file: {path: /etc/lab.txt, content: everybody, mode: '0644'}\n";
    let both = format!("{private}{open}");
    let check = said(&apply(&rig, &host, &both, &["--check"])?);
    assert!(check.contains("not shown") && check.contains("everybody"), "{check}");
    assert!(!check.contains("hunter2secret"), "{check}");
    apply(&rig, &host, &both, &[])?.expect(0);
    assert_eq!(host.sh("cat /etc/lab.key; stat -c %a /etc/lab.key")?, "hunter2secret600");
    let again = apply(&rig, &host, &both, &[])?.expect(0);
    assert!(again.stdout.contains("2 unchanged"), "{again:?}");

    let through =
        "  - file: {path: /home/deploy/.ssh/shadow-lab, content: x, owner: deploy, group: deploy}\n";
    let refused = apply(&rig, &host, through, &[])?.expect(1);
    assert!(said(&refused).contains("others than root control"), "{refused:?}");
    host.sh("test ! -e /etc/shadow-lab")?;
    // The link itself can go.
    apply(&rig, &host, "  - file: {path: /home/deploy/.ssh, state: absent}\n", &[])?.expect(0);
    host.sh("test ! -L /home/deploy/.ssh && test -d /etc")?;

    // A question is asked as its command would run.
    let asked = "  - command: {argv: ['false'], user: deploy, cwd: /home/deploy/real, \
                 unless: [sh, -c, 'test \"$(id -un) $(pwd) $(umask)\" = \"deploy /home/deploy/real 0022\"']}\n";
    let unless = apply(&rig, &host, asked, &[])?.expect(0);
    assert!(unless.stdout.contains("1 unchanged"), "{unless:?}");
    Ok(())
}
