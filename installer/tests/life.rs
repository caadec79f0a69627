//! A bootstrap against a real sshd: install, leave alone, upgrade, repair, remove; users and transports.

mod common;

use std::time::Duration;

use common::{Answers, Desk, Host, SSHD, TOKEN};
use postern_installer::{Action, Code, Fault, FaultMoment, Step, bootstrap, remove};

macro_rules! host_or_skip {
    ($make:expr) => {{
        if common::missing().is_some() {
            return;
        }
        $make
    }};
}

#[tokio::test]
async fn installs_then_leaves_alone_then_upgrades_then_removes() {
    let host = host_or_skip!(Host::new());
    host.trust();
    let desk = Desk::new(&host);
    let console = Answers::new();
    let report = bootstrap(host.options("root"), &console, &desk).await.unwrap();
    assert_eq!(report.action, Action::Installed);
    assert!(report.guard.is_none() && !report.temporary_route);
    assert_eq!(report.facts.os_id, "debian");
    assert_eq!(report.steps.len(), Step::ALL.len());
    for (path, mode) in [
        ("/usr/local/bin/postern-agent", 0o755),
        ("/etc/postern-agent", 0o700),
        ("/etc/postern-agent/config.json", 0o600),
        ("/var/lib/postern-agent", 0o700),
        ("/etc/systemd/system/postern-agent.service", 0o644),
    ] {
        assert_eq!(host.mode(path), mode, "{path}");
    }
    assert!(host.temporary_files().is_empty(), "{:?}", host.temporary_files());
    assert_eq!(host.read("/run/tokens").trim(), format!("{TOKEN}-1"));
    // The token went by stdin: no process list, no environment, no file shows it.
    assert!(!host.read("/run/processes").is_empty());
    for file in ["/run/processes", "/run/environ", "/etc/postern-agent/config.json"] {
        assert!(!host.read(file).contains(TOKEN), "{file}");
    }
    let config = host.read("/etc/postern-agent/config.json");
    assert!(config.contains("\"127.0.0.1:1\",\"127.0.0.1:2\",\"203.0.113.1:7300\""), "{config}");
    assert!(config.contains("it's a test"));

    let before = host.inside("stat -c %Y%Z /usr/local/bin/postern-agent; wc -l </run/systemctl.log");
    let report = bootstrap(host.options("root"), &console, &desk).await.unwrap();
    assert_eq!(report.action, Action::LeftAlone);
    assert!(host.read("/run/systemctl.log").lines().filter(|line| line.starts_with("restart")).count() == 1);
    assert_eq!(
        before.lines().next(),
        host.inside("stat -c %Y%Z /usr/local/bin/postern-agent").lines().next()
    );

    let report = bootstrap(host.options_with("root", "", "0.2.0"), &console, &desk).await.unwrap();
    assert_eq!(report.action, Action::Upgraded);
    assert!(host.inside("/usr/local/bin/postern-agent --version").contains("0.2.0"));
    // It is the same host still: no second enrolment.
    assert_eq!(host.read("/run/tokens").lines().count(), 1);
    // A newer agent is not put back.
    let report = bootstrap(host.options_with("root", "", "0.1.9"), &console, &desk).await.unwrap();
    assert_eq!(report.action, Action::LeftAlone);

    // Stopped: started again. Its configuration edited: written again.
    host.delete("/run/agent-active");
    let report = bootstrap(host.options_with("root", "", "0.2.0"), &console, &desk).await.unwrap();
    assert_eq!(report.action, Action::Upgraded);
    // Another controller takes it over, with an enrolment.
    let other = Desk::new(&host);
    let report = bootstrap(host.options_with("root", "", "0.2.0"), &console, &other).await.unwrap();
    assert_eq!(report.action, Action::Installed);
    assert_eq!(host.read("/run/tokens").lines().count(), 2);

    let removed = remove(host.options("root"), &console).await.unwrap();
    assert!(removed.removed.iter().any(|path| path == "/usr/local/bin/postern-agent"), "{removed:?}");
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
    assert!(remove(host.options("root"), &console).await.unwrap().removed.is_empty());
}

#[tokio::test]
async fn sudo_with_and_without_a_password() {
    let host = host_or_skip!(Host::with(
        SSHD,
        "echo 'plain ALL=(ALL) ALL' >/etc/sudoers.d/plain; chmod 0440 /etc/sudoers.d/plain"
    ));
    host.trust();
    let desk = Desk::new(&host);
    let console = Answers::new();
    let report = bootstrap(host.options("op"), &console, &desk).await.unwrap();
    assert_eq!(report.action, Action::Installed);
    assert!(console.prompts.lock().unwrap().is_empty());
    assert!(host.temporary_files().is_empty(), "{:?}", host.temporary_files());
    assert_eq!(host.inside("stat -c %U /usr/local/bin/postern-agent").trim(), "root");
    remove(host.options("op"), &console).await.unwrap();

    // Nobody to ask; a wrong one, then the right one; one given beforehand, wrong.
    let error = bootstrap(host.options("plain"), &Answers::new(), &desk).await.unwrap_err();
    assert_eq!(error.code(), Code::SudoPassword, "{error}");
    let console = Answers::secrets(&["wrong", "plain-pass"]);
    let report = bootstrap(host.options("plain"), &console, &desk).await.unwrap();
    assert_eq!(report.action, Action::Installed);
    assert_eq!(console.prompts.lock().unwrap().len(), 2);
    for file in ["/run/processes", "/run/environ"] {
        assert!(!host.read(file).contains("plain-pass"), "{file}");
    }
    let mut options = host.options("plain");
    options.become_password = Some(zeroize::Zeroizing::new("wrong".into()));
    let error = bootstrap(options, &Answers::secrets(&["plain-pass"]), &desk).await.unwrap_err();
    assert_eq!(error.code(), Code::SudoPassword, "{error}");
    remove(host.options("plain"), &Answers::secrets(&["plain-pass"])).await.unwrap();
    assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
}

#[tokio::test]
async fn trap_28_no_sudo_at_all_is_said() {
    // The survey looks for sudo in the usual places, so hide it there.
    let host = host_or_skip!(Host::with(SSHD, "mount --bind /dev/null /usr/bin/sudo"));
    host.trust();
    let error = bootstrap(host.options("op"), &Answers::new(), &Desk::new(&host)).await.unwrap_err();
    assert_eq!(error.code(), Code::NoSudo, "{error}");
    assert!(host.leftovers().is_empty());
}

#[tokio::test]
async fn without_sftp_a_plain_channel_is_used() {
    let sshd = SSHD.replace("Subsystem sftp internal-sftp\n", "");
    let host = host_or_skip!(Host::with(&sshd, ""));
    host.trust();
    let desk = Desk::new(&host);
    for user in ["root", "op"] {
        let console = Answers::new();
        let report = bootstrap(host.options(user), &console, &desk).await.unwrap();
        assert_eq!(report.action, Action::Installed);
        assert!(console.progress.lock().unwrap().iter().any(|p| p.detail.contains("channel")));
        assert!(host.temporary_files().is_empty(), "{:?}", host.temporary_files());
        remove(host.options(user), &console).await.unwrap();
    }
}

#[tokio::test]
async fn a_chrooted_sftp_does_not_mislead() {
    let sshd = format!("{SSHD}Match User op\nChrootDirectory /run/jail\nForceCommand none\n");
    // sshd applies ChrootDirectory to shells as well; an SFTP server with another root stands for it.
    let sshd = sshd.split("Match").next().unwrap().replace("internal-sftp", "/usr/local/bin/jailed-sftp");
    let prepare = "mkdir -p /run/jail && printf '#!/bin/sh\\nHOME=/run/jail; cd /run/jail; exec /usr/lib/openssh/sftp-server -d /run/jail\\n' \
                   >/usr/local/bin/jailed-sftp && chmod 0755 /usr/local/bin/jailed-sftp && chmod 0777 /run/jail";
    let host = host_or_skip!(Host::with(&sshd, prepare));
    host.trust();
    let report = bootstrap(host.options("op"), &Answers::new(), &Desk::new(&host)).await.unwrap();
    assert_eq!(report.action, Action::Installed);
}

#[tokio::test]
async fn cut_at_every_step_it_converges() {
    let host = host_or_skip!(Host::new());
    host.trust();
    let console = Answers::new();
    for user in ["root", "op"] {
        for step in Step::ALL {
            for moment in [FaultMoment::Before, FaultMoment::After] {
                let desk = Desk::new(&host);
                let mut options = host.options(user);
                options.fault = Some(Fault { step, moment });
                let cut = bootstrap(options, &console, &desk).await;
                match &cut {
                    Err(error) => assert_eq!(error.code(), Code::ConnectionCut, "{step} {moment:?}: {error}"),
                    // The agent was started: it needs SSH no more.
                    Ok(_) => assert!(step >= Step::Start, "{step} {moment:?} did not cut"),
                }
                let report = bootstrap(host.options(user), &console, &desk)
                    .await
                    .unwrap_or_else(|error| panic!("after a cut {moment:?} {step}: {error}"));
                if cut.is_ok() {
                    assert_eq!(report.action, Action::LeftAlone, "{step} {moment:?}");
                }
                assert!(host.temporary_files().is_empty(), "{step} {moment:?}: {:?}", host.temporary_files());
                remove(host.options(user), &console).await.unwrap();
                assert!(host.leftovers().is_empty(), "{step} {moment:?}: {:?}", host.leftovers());
            }
        }
    }
}

#[tokio::test]
async fn a_refused_enrolment_leaves_nothing() {
    let host = host_or_skip!(Host::new());
    host.trust();
    let desk = Desk::new(&host);
    for (exit, code) in [
        (3, Code::ControllerUnreachable),
        (4, Code::EnrolRefused),
        (5, Code::NotTheController),
        (8, Code::StateCorrupt),
        (1, Code::EnrolFailed),
    ] {
        host.write("/run/enrol-code", &exit.to_string());
        let error = bootstrap(host.options("root"), &Answers::new(), &desk).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert_eq!(error.step(), Some(Step::Enrol));
        assert_eq!(error.tried()[0].address, "192.0.2.1:7300");
        assert!(host.leftovers().is_empty(), "{:?}", host.leftovers());
    }
    // An agent that works stays when its replacement cannot enrol.
    host.delete("/run/enrol-code");
    bootstrap(host.options("root"), &Answers::new(), &desk).await.unwrap();
    host.write("/run/enrol-code", "4");
    let other = Desk::new(&host);
    bootstrap(host.options_with("root", "", "0.3.0"), &Answers::new(), &other).await.unwrap_err();
    assert!(host.inside("/usr/local/bin/postern-agent --version").contains("0.1.0"));
    assert_eq!(host.read("/var/lib/postern-agent/host_id").trim(), desk.host_id.to_string());
    assert!(host.read("/etc/postern-agent/config.json").contains(&desk.host_id.to_string()));
}

#[tokio::test]
async fn a_temporary_route_through_ssh() {
    let host = host_or_skip!(Host::new());
    host.trust();
    host.write("/run/enrol-code", "3");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut desk = Desk::new(&host);
    desk.listener = Some(listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"controller\n").await;
        }
    });
    // Only when it is allowed.
    let error = bootstrap(host.options("op"), &Answers::new(), &desk).await.unwrap_err();
    assert_eq!(error.code(), Code::ControllerUnreachable);
    let mut options = host.options("op");
    options.allow_temporary_route = true;
    let report = bootstrap(options, &Answers::new(), &desk).await.unwrap();
    assert!(report.temporary_route);
    let mut guard = report.guard.unwrap();
    // What stays on disk knows nothing of it; what does not survive a reboot does.
    assert!(!host.read("/etc/postern-agent/config.json").contains("temporary_route"));
    assert!(host.read("/run/postern-agent/config.json").contains(guard.address()));
    let drop_in = "/run/systemd/system/postern-agent.service.d/temporary-route.conf";
    assert!(host.read(drop_in).contains("/run/postern-agent/config.json"));
    assert!(host.temporary_files().is_empty(), "{:?}", host.temporary_files());
    assert!(tokio::time::timeout(Duration::from_millis(300), guard.ended()).await.is_err());
    guard.close().await.unwrap();
    assert!(!host.exists(drop_in) && !host.exists("/run/postern-agent"));

    // Repeated, with an agent that is enrolled and lost its route: a new route, and no second enrolment.
    host.delete("/run/agent-active");
    let mut options = host.options("op");
    options.allow_temporary_route = true;
    let report = bootstrap(options, &Answers::new(), &desk).await.unwrap();
    assert!(report.temporary_route);
    assert_eq!(host.read("/run/tokens").lines().count(), 1);
    // Dropped without a word, as by a crash; then the controller can be reached, and the route is forgotten.
    drop(report);
    host.delete("/run/enrol-code");
    let report = bootstrap(host.options("op"), &Answers::new(), &desk).await.unwrap();
    assert!(!report.temporary_route);
    assert!(!host.exists(drop_in) && !host.exists("/run/postern-agent"));
}

#[tokio::test]
async fn a_session_that_does_not_come_up_is_explained() {
    let host = host_or_skip!(Host::new());
    host.trust();
    let mut desk = Desk::new(&host);
    desk.dead = true;
    let mut options = host.options("root");
    options.session_deadline = Duration::from_millis(300);
    let error = bootstrap(options, &Answers::new(), &desk).await.unwrap_err();
    assert_eq!((error.code(), error.step()), (Code::SessionDown, Some(Step::Session)));
    assert!(error.to_string().contains("the journal says nothing"), "{error}");
}

#[tokio::test]
async fn trap_11_waits_for_cloud_init_and_names_what_runs() {
    let host = host_or_skip!(Host::with(SSHD, "mkdir -p /run/cloud-init; touch /run/cloud-busy"));
    host.trust();
    let desk = Desk::new(&host);
    let mut options = host.options("root");
    options.cloud_init_deadline = Duration::from_millis(1500);
    let error = bootstrap(options, &Answers::new(), &desk).await.unwrap_err();
    assert_eq!(error.code(), Code::CloudInitBusy, "{error}");
    assert!(error.to_string().contains("cloud-final.service"), "{error}");
    assert!(host.leftovers().is_empty());
    assert_eq!(desk.tickets.load(std::sync::atomic::Ordering::SeqCst), 0);

    let console = Answers::new();
    let done = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        host.delete("/run/cloud-busy");
    };
    let (report, ()) = tokio::join!(bootstrap(host.options("root"), &console, &desk), done);
    assert_eq!(report.unwrap().action, Action::Installed);
    let counts: Vec<_> = console
        .progress
        .lock()
        .unwrap()
        .iter()
        .filter_map(|p| p.count.filter(|_| p.step == Step::CloudInit))
        .collect();
    assert!(counts.len() >= 2 && counts[0] == 1 && counts[1] == 2, "{counts:?}");
}
