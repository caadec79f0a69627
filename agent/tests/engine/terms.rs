//! What a run goes by beside its resources: needs, late values, what was done or approved before, restarts of
//! the host, locks of others, and looks before their turn.

use std::time::Duration;

use crate::support::*;
use postern_agent::engine::Dispatch;
use postern_proto::event::{EventKind, Outcome, RunState, StepEnd};
use postern_proto::plan::{Approval, Terms};
use serde_json::{Value, json};

use Outcome::{Changed, Failed, Skipped, Unchanged, WouldChange};

fn outcomes(told: &Told) -> Vec<Outcome> {
    told.outcomes().into_iter().map(|(_, outcome)| outcome).collect()
}

fn late(name: &str) -> Value {
    json!({"$text": ["<", {"late": name}, ">"]})
}

#[tokio::test]
async fn a_failure_stops_only_what_needs_it() {
    let mut host = Host::new();
    let work = host.open();
    let run = host.dispatch(&[
        ("bad", "command", json!({"argv": ["false"]})),
        ("alone", "file", file("/etc/alone", "x")),
        ("on_bad", "file", file("/etc/on_bad", "x")),
        ("on_alone", "file", file("/etc/on_alone", "x")),
        ("on_all", "file", file("/etc/on_all", "x")),
        ("bad2", "command", json!({"argv": ["false"]})),
    ]);
    let needs: &[(&str, &[&str])] =
        &[("alone", &[]), ("on_bad", &["alone", "bad"]), ("on_alone", &["alone"]), ("bad2", &[])];
    let run = host.needing(&run, needs);
    let told = complete(&work, run).await;
    assert_eq!(outcomes(&told), [Failed, Changed, Skipped, Changed, Skipped, Failed]);
    let needs = "needs t:command:bad, which failed";
    assert_eq!((told.messages()[2], told.messages()[4]), (needs, needs));
    assert_eq!(told.end(), (RunState::Failed, "t:command:bad: exit status 1; 1 more failed"));
}

#[tokio::test]
async fn a_late_value_fills_what_comes_after_it() {
    let mut host = Host::new();
    let (work, asked, out) = (host.open(), host.path("asked"), host.path("out"));
    let mut conf = file("/etc/conf", "");
    conf["content"] = late("ip");
    let resources = [
        ("ip", "command", json!({"shell": format!("echo x >>{asked}; echo ' 10.0.0.7 '"), "late": "ip"})),
        ("conf", "file", conf),
        ("use", "command", json!({"argv": ["sh", "-c", format!("echo \"$0\" >{out}"), late("ip")]})),
    ];
    let run = host.dispatch(&resources);
    let mut check = host.again(&run, Terms::check());
    check.terms.check = true;
    let told = complete(&work, check).await;
    assert_eq!(outcomes(&told), [Unchanged, WouldChange, WouldChange]);
    assert_eq!(lines(&asked), 1, "it changes nothing, so it is also run in a check");
    let told = complete(&work, run.clone()).await;
    assert_eq!(outcomes(&told), [Unchanged, Changed, Changed]);
    assert_eq!(std::fs::read_to_string(host.root().join("etc/conf")).unwrap(), "<10.0.0.7>");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "<10.0.0.7>\n");
    // Taken back with the value that it had then, whatever it would be now.
    let undo = host.undo(&run);
    let told = complete(&work, undo).await;
    assert_eq!(outcomes(&told), [Skipped, Changed, Unchanged], "{:?}", told.messages());
    assert!(!host.root().join("etc/conf").exists());

    let resources = [
        ("ip", "command", json!({"shell": "echo no >&2; exit 1", "late": "ip"})),
        ("use", "command", json!({"argv": ["echo", late("ip")]})),
    ];
    let run = host.dispatch(&resources);
    let mut check = run.clone();
    check.terms.check = true;
    let told = complete(&work, check).await;
    assert_eq!(outcomes(&told), [Failed, WouldChange]);
    assert_eq!(told.messages()[1], "known after apply: late.ip is not known yet");
    let run = host.again(&run, Terms::default());
    let told = complete(&work, run).await;
    assert_eq!(outcomes(&told), [Failed, Skipped]);
    assert!(told.messages()[0].contains("failed (exit status 1): no"), "{:?}", told.messages());
}

/// Journaled: after a restart it is what it was, and the command is not asked again.
#[tokio::test]
async fn a_late_value_survives_a_restart() {
    let mut host = Host::new();
    let (work, asked, go, out) = (host.open(), host.path("asked"), host.path("go"), host.path("out"));
    let run = host.dispatch(&[
        ("n", "command", json!({"shell": format!("echo x >>{asked}; wc -l <{asked}"), "late": "n"})),
        (
            "wait",
            "command",
            json!({"shell": format!("while ! test -e {go}; do sleep 0.01; done"), "idempotent": true}),
        ),
        ("use", "command", json!({"argv": ["sh", "-c", format!("echo \"$0\" >{out}"), late("n")]})),
    ]);
    let id = run.run;
    work.engine.dispatch(run).await.unwrap();
    let spool = host.state().join("spool");
    until("the step", || std::fs::read_dir(&spool).unwrap().count() == 1).await;
    work.kill().await;
    std::fs::write(&go, "").unwrap();
    let work = host.open();
    let told = whole(&work, id).await;
    assert_eq!(told.end().0, RunState::Ok, "{:?}", told.messages());
    assert_eq!((lines(&asked), std::fs::read_to_string(&out).unwrap().as_str()), (1, "<1>\n"));
}

#[tokio::test]
async fn what_the_resumed_run_has_done_is_not_done_again() {
    let mut host = Host::new();
    let (work, marks) = (host.open(), host.path("marks"));
    let run = host.dispatch(&[
        ("a", "command", json!({"shell": format!("echo a >>{marks}")})),
        ("b", "command", json!({"shell": format!("echo b >>{marks}")})),
    ]);
    let done = vec!["t:command:a".parse().unwrap()];
    let run = host.again(&run, Terms { done, ..Terms::default() });
    let told = complete(&work, run).await;
    assert_eq!(outcomes(&told), [Unchanged, Changed]);
    assert_eq!(told.messages()[0], "done in the run that this one resumes");
    assert_eq!(std::fs::read_to_string(&marks).unwrap(), "b\n");
}

fn approved(check: &Told) -> Vec<Approval> {
    let of = |event: &postern_proto::event::RunEvent| match &event.kind {
        EventKind::ResourceFinished { address, seen, .. } => {
            Some(Approval { address: address.clone(), seen: seen.clone() })
        }
        _ => None,
    };
    check.events.iter().filter_map(of).collect()
}

#[tokio::test]
async fn only_what_was_approved_is_done() {
    let mut host = Host::new();
    let (work, marks) = (host.open(), host.path("marks"));
    std::fs::create_dir(host.root().join("etc/d")).unwrap();
    let run = host.dispatch(&[
        ("a", "file", file("/etc/a", "new\n")),
        ("c", "command", json!({"shell": format!("echo x >>{marks}")})),
        ("b", "file", file("/etc/b", "new\n")),
        ("n", "file", file("/etc/none/n", "known after apply\n")),
    ]);
    let check = host.again(&run, Terms::check());
    let told = complete(&work, check).await;
    assert_eq!(outcomes(&told), [WouldChange; 4]);
    let seen = approved(&told);
    assert!(seen[..3].iter().all(|it| it.seen.len() == 64), "{seen:?}");
    assert_eq!(seen[3].seen, "", "known after apply");

    std::fs::write(host.root().join("etc/b"), "by hand\n").unwrap();
    let wrong = host.again(&run, Terms { approved: seen.clone(), ..Terms::default() });
    let told = complete(&work, wrong).await;
    assert_eq!(outcomes(&told), [Skipped; 4]);
    let (state, message) = told.end();
    assert_eq!(state, RunState::Failed);
    assert!(
        message.contains("nothing was done") && message.contains("t:file:b is not as it was"),
        "{message}"
    );
    assert!(!host.root().join("etc/a").exists() && lines(&marks) == 0);

    std::fs::remove_file(host.root().join("etc/b")).unwrap();
    std::fs::create_dir(host.root().join("etc/none")).unwrap();
    let wrong = host.again(&run, Terms { approved: seen.clone(), ..Terms::default() });
    assert_eq!(complete(&work, wrong).await.end().0, RunState::Failed, "what is known now was not approved");
    std::fs::remove_dir(host.root().join("etc/none")).unwrap();
    let right = host.again(&run, Terms { approved: seen, ..Terms::default() });
    let told = complete(&work, right).await;
    assert_eq!(outcomes(&told), [Changed, Changed, Changed, Failed], "{:?}", told.messages());
    assert_eq!(lines(&marks), 1);
}

fn restarting(host: &mut Host) -> Dispatch {
    std::fs::create_dir_all(host.root().join("run")).unwrap();
    std::fs::write(host.root().join("run/reboot-required"), "").unwrap();
    let marks = host.path("marks");
    host.fake("systemctl", &format!("echo \"$*\" >>{marks}"));
    host.dispatch(&[
        ("a", "file", file("/etc/a", "a")),
        ("now", "reboot", json!({"name": "now"})),
        ("b", "file", file("/etc/b", "b")),
    ])
}

#[tokio::test]
async fn a_run_goes_on_after_the_restart_of_its_host() {
    let mut host = Host::new();
    let run = restarting(&mut host);
    let (marks, id) = (host.path("marks"), run.run);
    let work = host.open();
    work.engine.dispatch(run).await.unwrap();
    until("the restart", || lines(&marks) == 1).await;
    assert_eq!(std::fs::read_to_string(&marks).unwrap(), "reboot\n");
    work.kill().await;
    assert!(!host.root().join("etc/b").exists());
    std::fs::remove_file(host.root().join("run/reboot-required")).unwrap();
    host.boot = NEXT_BOOT.parse().unwrap();
    let work = host.open();
    let told = whole(&work, id).await;
    assert_eq!(outcomes(&told), [Changed, Changed, Changed], "{:?}", told.messages());
    assert_eq!(told.messages()[1], "done; the host was restarted");
    assert_eq!((told.end().0, lines(&marks)), (RunState::Ok, 1));
}

/// The agent came back and the host had not gone down: again, but not for ever.
#[tokio::test]
async fn a_restart_that_did_not_happen_is_done_again_and_given_up() {
    let mut host = Host::new();
    let run = restarting(&mut host);
    let (marks, id) = (host.path("marks"), run.run);
    let mut work = host.open();
    work.engine.dispatch(run).await.unwrap();
    for tries in 1..=3 {
        until("the restart", || lines(&marks) == tries).await;
        work.kill().await;
        work = host.open();
    }
    let told = whole(&work, id).await;
    assert_eq!(lines(&marks), 3);
    assert_eq!(told.outcomes().last(), Some(&(1, Skipped)));
    assert!(told.end().1.contains("given up: it was cut off 3 times"), "{:?}", told.end());
}

#[tokio::test]
async fn a_host_that_does_not_go_down_is_told() {
    for (script, want) in
        [("true", "did not go down"), ("echo no bus >&2; exit 1", "systemctl reboot: no bus")]
    {
        let mut host = Host::tuned(|config| config.limits.reboot_wait = Duration::from_millis(50));
        let run = restarting(&mut host);
        host.fake("systemctl", script);
        let work = host.open();
        let told = complete(&work, run).await;
        assert_eq!(outcomes(&told), [Changed, Failed, Skipped]);
        assert!(told.messages()[1].contains(want), "{:?}", told.messages());
    }
}

fn apt(host: &mut Host, refusals: usize) -> Dispatch {
    let dpkg = host.root().join("var/lib/dpkg");
    std::fs::create_dir_all(dpkg.join("updates")).unwrap();
    let status = "Package: aa\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n";
    std::fs::write(dpkg.join("status"), status).unwrap();
    let (marks, status) = (host.path("marks"), dpkg.join("status"));
    let refuse = "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 77 (apt)";
    host.fake(
        "apt-get",
        &format!(
            "echo x >>{marks}; if test $(wc -l <{marks}) -le {refusals}; then echo '{refuse}' >&2; exit 100; fi\n\
             : >{}",
            status.display()
        ),
    );
    host.dispatch(&[("aa", "package", json!({"name": "aa", "state": "absent"}))])
}

/// T11: the lock was free when we looked and taken when apt did.
#[tokio::test]
async fn trap_11_a_lock_that_is_lost_in_the_last_moment_is_waited_for() {
    let mut host = Host::new();
    let run = apt(&mut host, 2);
    let work = host.open();
    let told = complete(&work, run).await;
    assert_eq!(outcomes(&told), [Changed], "{:?}", told.messages());
    let steps: Vec<(u32, StepEnd)> = told
        .events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::StepFinished { step, end, .. } => Some((step.step, end.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(steps, [(0, StepEnd::Exit(100)), (1, StepEnd::Exit(100)), (2, StepEnd::Exit(0))]);

    let mut host = Host::new();
    let run = apt(&mut host, 100);
    let work = host.open();
    let told = complete(&work, run).await;
    assert_eq!((outcomes(&told), lines(host.path("marks"))), (vec![Failed], 4));
    assert!(told.messages()[0].contains("held by process 77 (apt)"), "{:?}", told.messages());
}

/// T11: a lock that is not given up ends the wait at its deadline, and its holder is named.
#[tokio::test]
async fn trap_11_the_wait_for_a_lock_has_an_end() {
    let mut host = Host::tuned(|config| config.limits.lock_wait = Duration::from_millis(300));
    let run = apt(&mut host, 0);
    let lock = std::fs::File::create(host.root().join("var/lib/dpkg/lock-frontend")).unwrap();
    rustix::fs::fcntl_lock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let work = host.open();
    let told = complete(&work, run).await;
    assert_eq!((outcomes(&told), lines(host.path("marks"))), (vec![Failed], 0));
    let message = told.messages()[0].to_owned();
    assert!(message.contains(&format!("was held by {} (", std::process::id())), "{message}");
}

/// The looks of a run are those of a run that looks at each in its turn: what was changed before is seen.
#[tokio::test]
async fn a_look_before_its_turn_is_not_used_after_a_change() {
    for at_once in [1, 8] {
        let mut host = Host::new();
        host.tune = if at_once == 1 { |config| config.limits.look_ahead = 1 } else { |_| {} };
        let (work, root) = (host.open(), host.root());
        let script =
            format!("sleep 0.2; echo by-the-command >{}; chmod 644 {0}", root.join("etc/b").display());
        let resources = [
            ("a", "file", file("/etc/passwd", &std::fs::read_to_string(root.join("etc/passwd")).unwrap())),
            ("c", "command", json!({"shell": script, "creates": "/etc/b"})),
            ("b", "file", file("/etc/b", "by-the-command\n")),
        ];
        let told = complete(&work, host.dispatch(&resources)).await;
        assert_eq!(outcomes(&told), [Unchanged, Changed, Unchanged], "{at_once}");
    }
}

/// Eight services, whose looks ask a program, among forty resources.
#[tokio::test]
async fn looks_of_a_run_that_changes_nothing_go_on_together() {
    for at_once in [1, 8] {
        let mut host = Host::new();
        host.tune = if at_once == 1 { |config| config.limits.look_ahead = 1 } else { |_| {} };
        let log = host.path("looks");
        let show = format!(
            "echo begins >>{log}; sleep 0.2; while [ \"$1\" != -- ]; do shift; done; shift\n\
             for unit; do echo LoadState=loaded; echo ActiveState=active; echo SubState=running\n\
             echo UnitFileState=enabled; echo Result=success; echo NeedDaemonReload=no; echo Names=$unit; echo\n\
             done; echo ends >>{log}"
        );
        host.fake("systemctl", &show);
        let work = host.open();
        let mut resources = Vec::new();
        for n in 0..40 {
            let name: &'static str = Box::leak(format!("r{n}").into_boxed_str());
            if n % 5 == 4 {
                let spec = json!({"name": name, "state": "running", "enabled": true});
                resources.push((name, "service", spec));
            } else {
                resources.push((name, "file", file(&format!("/etc/{name}"), "x\n")));
            }
        }
        let run = host.dispatch(&resources);
        complete(&work, run.clone()).await;
        std::fs::write(&log, "").unwrap();
        let again = host.again(&run, Terms::default());
        let told = complete(&work, again).await;
        assert_eq!(told.end(), (RunState::Ok, "40 unchanged"), "{:?}", told.messages());
        let lines = std::fs::read_to_string(&log).unwrap();
        let looks = lines.lines().filter(|line| *line == "begins").count();
        // Two that share a process, or a second one that begins before the first has ended.
        let overlap = lines.lines().collect::<Vec<_>>().windows(2).any(|pair| pair == ["begins", "begins"]);
        if at_once == 1 {
            assert!(looks == 8 && !overlap, "one after the other: {lines}");
        } else {
            assert!(looks < 8 || overlap, "at once: {lines}");
        }
    }
}
