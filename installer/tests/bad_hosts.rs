//! Hosts that cannot be taken: each a clear refusal with a stable code, and nothing changed on the host.

mod common;

use std::time::Duration;

use common::{Answers, Desk, Host, SSHD};
use postern_installer::{Action, AgentBinaries, Code, bootstrap};

#[tokio::test]
async fn refusals_before_any_change() {
    if common::missing().is_some() {
        return;
    }
    let date = "printf '#!/bin/sh\\n[ \"$1\" = +%%s ] && exec /bin/date -d \"2 years\" +%%s; exec /bin/date \"$@\"\\n' \
                >/usr/local/sbin/date; chmod 0755 /usr/local/sbin/date";
    let uname = "printf '#!/bin/sh\\n/bin/uname \"$@\" | sed s/x86_64/riscv64/\\n' >/usr/local/sbin/uname; \
                 chmod 0755 /usr/local/sbin/uname";
    let table: &[(&str, &str, Code)] = &[
        ("no systemd", "rmdir /run/systemd/system", Code::NoSystemd),
        ("clock two years off", date, Code::ClockOff),
        ("riscv", uname, Code::UnsupportedArch),
        (
            "another distribution",
            "rm -f /etc/os-release; printf 'ID=fedora\\nVERSION_ID=41\\n' >/etc/os-release",
            Code::UnsupportedOs,
        ),
        ("read-only root", "mount -o remount,ro /usr/local", Code::ReadOnly),
        ("full disk", "mount -t tmpfs -o size=4m tmpfs /var/lib", Code::DiskFull),
        ("no inodes", "mount -t tmpfs -o nr_inodes=20 tmpfs /var/lib", Code::DiskFull),
        ("no gzip", "mount --bind /dev/null /usr/bin/gzip", Code::MissingTool),
        ("a login that runs nothing", "usermod -s /usr/sbin/nologin root", Code::Unexpected),
    ];
    for (name, prepare, want) in table {
        let host = Host::with(SSHD, prepare);
        host.trust();
        let desk = Desk::new(&host);
        let error = bootstrap(host.options("root"), &Answers::new(), &desk).await.unwrap_err();
        assert_eq!(error.code(), *want, "{name}: {error}");
        assert!(!error.hint().is_empty());
        assert!(host.leftovers().is_empty(), "{name}: {:?}", host.leftovers());
        assert_eq!(desk.tickets.load(std::sync::atomic::Ordering::SeqCst), 0, "{name}");
        if *want == Code::ClockOff {
            let mut options = host.options("root");
            options.accept_clock = true;
            let report = bootstrap(options, &Answers::new(), &desk).await.unwrap();
            assert_eq!(report.preflight.warnings().filter(|finding| finding.subject == "clock").count(), 1);
        }
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_later_leaves_what_was_there() {
    if common::missing().is_some() {
        return;
    }
    // Room enough for the preflight, and then not.
    let host = Host::with(SSHD, "mkdir -p /usr/local/bin; mount -t tmpfs -o size=60m tmpfs /usr/local/bin");
    host.trust();
    let desk = Desk::new(&host);
    bootstrap(host.options("root"), &Answers::new(), &desk).await.unwrap();
    host.inside("dd if=/dev/zero of=/usr/local/bin/ballast bs=1M count=11 2>/dev/null");
    // An agent whose program does not fit.
    let mut options = host.options_with("root", "", "0.9.0");
    let mut big = common::agent("0.9.0");
    let text = vec![0u8; 80 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &text).unwrap();
    big.gzip = gzip.finish().unwrap().into();
    let agents: AgentBinaries = std::sync::Arc::new(move |_| Some(big.clone()));
    options.agent = agents;
    let error = bootstrap(options, &Answers::new(), &desk).await.unwrap_err();
    assert_eq!(error.code(), Code::DiskFull, "{error}");
    assert!(host.temporary_files().is_empty(), "{:?}", host.temporary_files());
    assert!(host.inside("/usr/local/bin/postern-agent --version").contains("0.1.0"));
}

#[tokio::test]
async fn what_arrives_is_verified_on_the_host() {
    if common::missing().is_some() {
        return;
    }
    let host = Host::new();
    host.trust();
    let desk = Desk::new(&host);
    let with = |change: &dyn Fn(&mut postern_installer::AgentBinary)| {
        let mut binary = common::agent("0.1.0");
        change(&mut binary);
        let mut options = host.options("op");
        let agents: AgentBinaries = std::sync::Arc::new(move |_| Some(binary.clone()));
        options.agent = agents;
        options
    };
    let error = bootstrap(with(&|b| b.sha256[0] ^= 1), &Answers::new(), &desk).await.unwrap_err();
    assert_eq!(error.code(), Code::HashMismatch, "{error}");
    let error = bootstrap(with(&|b| b.gzip = b.gzip.slice(..b.gzip.len() / 2)), &Answers::new(), &desk)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::HashMismatch, "{error}");
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
}

#[tokio::test]
async fn state_that_is_corrupt_or_too_new_stops_a_bootstrap() {
    if common::missing().is_some() {
        return;
    }
    let host = Host::new();
    host.trust();
    let desk = Desk::new(&host);
    bootstrap(host.options("root"), &Answers::new(), &desk).await.unwrap();
    for (exit, code) in [("8", Code::StateCorrupt), ("9", Code::StateTooNew)] {
        host.write("/run/status-code", exit);
        let error = bootstrap(host.options("root"), &Answers::new(), &desk).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(host.exists("/var/lib/postern-agent/host_id"));
    }
    // A program that does not run at all is replaced.
    host.write("/run/status-code", "126");
    let mut options = host.options("root");
    options.session_deadline = Duration::from_secs(10);
    let report = bootstrap(options, &Answers::new(), &desk).await.unwrap();
    assert_eq!(report.action, Action::Installed);
}
