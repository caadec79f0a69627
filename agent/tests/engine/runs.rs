//! Runs from dispatch to the last ack: order, outcomes, duplicates, refusals, cancellation.

use crate::support::*;
use postern_agent::engine::RefusalReason;
use postern_proto::event::{EventKind, Outcome, RunState, StepEnd, Stream};
use postern_proto::ids::{PlanHash, RunId};
use serde_json::json;

#[tokio::test]
async fn a_command_is_told_in_order_and_forgotten_when_acked() {
    let mut host = Host::new();
    let work = host.open();
    let dispatch = host.shell("echo out; echo err >&2");
    let run = dispatch.run;
    let told = complete(&work, dispatch).await;
    let kinds: Vec<_> = told
        .events
        .iter()
        .map(|event| match &event.kind {
            EventKind::Accepted { .. } => "accepted",
            EventKind::ResourceStarted { .. } => "resource started",
            EventKind::StepStarted { .. } => "step started",
            EventKind::StepFinished { end: StepEnd::Exit(0), .. } => "step finished",
            EventKind::StepFinished { .. } => "step failed",
            EventKind::ResourceFinished { .. } => "resource finished",
            EventKind::Parked { .. } => "parked",
            EventKind::Unparked => "unparked",
            EventKind::Finished { .. } => "finished",
        })
        .collect();
    let want =
        ["accepted", "resource started", "step started", "step finished", "resource finished", "finished"];
    assert_eq!(kinds, want);
    assert_eq!(told.end(), (RunState::Ok, "1 changed"));
    assert_eq!(told.output(Stream::Stdout), b"out\n");
    assert_eq!(told.output(Stream::Stderr), b"err\n");
    let spool = host.state().join("spool");
    until("the run is forgotten", || std::fs::read_dir(&spool).unwrap().count() == 0).await;
    let snapshot = work.engine.snapshot().await;
    assert!(snapshot.runs.iter().all(|offset| offset.run != run));
    assert_eq!((snapshot.dispatch_floor, snapshot.unfinished), (1, 0));
}

#[tokio::test]
async fn the_first_failure_stops_and_the_rest_is_skipped() {
    let mut host = Host::new();
    let work = host.open();
    let dispatch = host.dispatch(&[
        ("a", "file", file("/etc/a", "one\n")),
        ("b", "command", json!({"shell": "echo why >&2; exit 3"})),
        ("c", "file", file("/etc/c", "never\n")),
    ]);
    let told = complete(&work, dispatch).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Changed), (1, Outcome::Failed), (1, Outcome::Skipped)]);
    assert_eq!(told.end(), (RunState::Failed, "t:command:b: exit status 3: why"));
    assert_eq!(std::fs::read(host.root().join("etc/a")).unwrap(), b"one\n");
    assert!(!host.root().join("etc/c").exists());
}

#[tokio::test]
async fn a_second_run_changes_nothing_and_a_check_only_tells() {
    let mut host = Host::new();
    let work = host.open();
    let resources = [("a", "file", file("/etc/a", "one\n")), ("b", "file", file("/etc/b", "two\n"))];
    let mut check = host.dispatch(&resources);
    check.terms.check = true;
    let told = complete(&work, check).await;
    assert_eq!(told.outcomes(), [(1, Outcome::WouldChange), (1, Outcome::WouldChange)]);
    assert_eq!(told.steps_started(), 0);
    assert!(!host.root().join("etc/a").exists());
    let diffs: Vec<_> = told
        .events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::ResourceFinished { diff, .. } => Some(diff.as_str()),
            _ => None,
        })
        .collect();
    assert!(diffs[0].contains("+one") && diffs[1].contains("+two"), "{diffs:?}");

    let told = complete(&work, host.dispatch(&resources)).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Changed), (1, Outcome::Changed)]);
    let told = complete(&work, host.dispatch(&resources)).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Unchanged), (1, Outcome::Unchanged)]);
    assert_eq!(told.end(), (RunState::Ok, "2 unchanged"));
}

#[tokio::test]
async fn what_is_replaced_is_kept_for_an_undo() {
    let mut host = Host::new();
    let work = host.open();
    std::fs::write(host.root().join("etc/a"), "old\n").unwrap();
    let told = complete(&work, host.dispatch(&[("a", "file", file("/etc/a", "new\n"))])).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Changed)]);
    let run = host.last_run();
    let dir = host.state().join("backup").join(run.to_string());
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap()
    };
    let before = read("0.before.json");
    assert_eq!((&before["version"], &before["address"]), (&json!(1), &json!("t:file:a")));
    assert_eq!(before["seen"]["there"][1]["bytes"], "b2xkCg==");
    assert_eq!(read("0.after.json")["essence"].as_str().unwrap().len(), 64);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for entry in std::fs::read_dir(&dir).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}

/// What is kept stays within its bound while the agent runs for months.
#[tokio::test]
async fn what_is_kept_is_bounded_after_each_run() {
    let mut host = Host::tuned(|config| config.limits.backup_bytes = 3000);
    let work = host.open();
    let backup = host.state().join("backup");
    for round in 0..5 {
        let content = round.to_string().repeat(1500);
        let told = complete(&work, host.dispatch(&[("f", "file", file("/etc/f", &content))])).await;
        assert_eq!(told.end().0, RunState::Ok);
    }
    let size = || -> u64 {
        let runs = std::fs::read_dir(&backup).unwrap().flatten();
        let files = runs.flat_map(|run| std::fs::read_dir(run.path()).into_iter().flatten().flatten());
        files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
    };
    until("the removal of the oldest", || size() <= 3000).await;
    assert!(size() > 0);
}

#[tokio::test]
async fn content_that_its_validation_refuses_is_not_put_in_place() {
    let mut host = Host::new();
    let work = host.open();
    let mut spec = file("/etc/a", "bad\n");
    spec["validate"] = json!(["grep", "-q", "good", "{path}"]);
    let told = complete(&work, host.dispatch(&[("a", "file", spec.clone())])).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Failed)]);
    assert!(told.messages()[0].starts_with("grep does not accept the new content (exit status 1)"));
    assert_eq!(std::fs::read_dir(host.root().join("etc")).unwrap().count(), 2, "only passwd and group");
    spec["content"] = json!("good\n");
    let told = complete(&work, host.dispatch(&[("a", "file", spec)])).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Changed)]);
}

/// I9: a command that exits 0 and did not make what it was to make has failed.
#[tokio::test]
async fn exit_status_0_is_not_believed() {
    let mut host = Host::new();
    let work = host.open();
    let told = complete(&work, host.command(json!({"argv": ["true"], "creates": "/etc/none"}))).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Failed)]);
    assert!(told.messages()[0].contains("did not reach the declared state"), "{:?}", told.messages());
}

/// T34: a duplicate is harmless for ever, also after everything about the run is gone, and after a restart.
#[tokio::test]
async fn trap_34_a_duplicate_dispatch_runs_nothing() {
    let mut host = Host::new();
    let work = host.open();
    let marks = host.path("marks");
    let dispatch = host.shell(&format!("echo x >>{marks}"));
    complete(&work, dispatch.clone()).await;
    work.engine.dispatch(dispatch.clone()).await.unwrap();
    let spool = host.state().join("spool");
    until("the run is forgotten", || std::fs::read_dir(&spool).unwrap().count() == 0).await;
    work.engine.dispatch(dispatch.clone()).await.unwrap();
    work.kill().await;
    let work = host.open();
    work.engine.dispatch(dispatch).await.unwrap();
    complete(&work, host.shell("true")).await;
    assert_eq!(lines(&marks), 1);
    assert_eq!(work.engine.snapshot().await.dispatch_floor, 2);
}

#[tokio::test]
async fn refusals_by_table() {
    let mut host = Host::new();
    let work = host.open();
    work.engine.set_epoch(5).await;
    work.engine.set_epoch(3).await;
    assert_eq!(work.engine.snapshot().await.epoch, 5);
    let mut good = host.shell("sleep 30");
    good.epoch = 5;
    work.engine.dispatch(good.clone()).await.unwrap();
    let with = |change: fn(&mut postern_agent::engine::Dispatch)| {
        let mut dispatch = good.clone();
        (dispatch.seq, dispatch.run) = (9, RunId::generate());
        change(&mut dispatch);
        dispatch
    };
    fn plan(dispatch: &mut postern_agent::engine::Dispatch, text: &'static str) {
        dispatch.plan = bytes::Bytes::from_static(text.as_bytes());
        dispatch.hash = PlanHash::of(text.as_bytes());
    }
    let cases = [
        (with(|d| d.hash = PlanHash::of(b"other")), RefusalReason::BadHash),
        (with(|d| d.epoch = 4), RefusalReason::StaleEpoch),
        (with(|d| d.expired = true), RefusalReason::Expired),
        (with(|d| plan(d, "{}")), RefusalReason::Malformed),
        (with(|d| plan(d, "\u{0}")), RefusalReason::Malformed),
        (with(|d| plan(d, r#"{"schema":9,"resources":[]}"#)), RefusalReason::UnknownSchema),
        (
            with(|d| {
                plan(d, r#"{"schema":1,"resources":[{"address":"a:b:c","kind":"b","schema":1,"spec":{}}]}"#)
            }),
            RefusalReason::UnknownKind,
        ),
    ];
    for (dispatch, want) in cases {
        let refusal = work.engine.dispatch(dispatch).await.unwrap_err();
        assert_eq!(refusal.reason, want, "{refusal}");
    }
    let mut reused = host.shell("true");
    (reused.run, reused.epoch) = (good.run, 5);
    let refusal = work.engine.dispatch(reused).await.unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::RunIdReused);
    // A refused number stays free.
    let snapshot = work.engine.snapshot().await;
    assert_eq!((snapshot.dispatch_floor, snapshot.dispatches_above.len()), (1, 0));
    work.engine.cancel(good.run).await;
}

#[tokio::test]
async fn plans_wait_for_each_other_commands_do_not_and_the_queue_is_bounded() {
    let mut host = Host::tuned(|config| config.limits.queued_runs = 1);
    let work = host.open();
    let (go, order) = (host.path("go"), host.path("order"));
    let wait = json!({"shell": format!("while ! test -e {go}; do sleep 0.01; done; echo 1 >>{order}")});
    let first = host.dispatch(&[("w", "command", wait), ("f", "file", file("/etc/f", "x"))]);
    let second = host.dispatch(&[
        ("w", "command", json!({"shell": format!("echo 2 >>{order}")})),
        ("f", "file", file("/etc/g", "x")),
    ]);
    let third = host.dispatch(&[("f", "file", file("/etc/h", "x"))]);
    let (first_run, second_run) = (first.run, second.run);
    work.engine.dispatch(first).await.unwrap();
    work.engine.dispatch(second).await.unwrap();
    assert_eq!(work.engine.dispatch(third).await.unwrap_err().reason, RefusalReason::Busy);
    // A single command goes on beside them.
    let told = complete(&work, host.shell("echo beside")).await;
    assert_eq!(told.end().0, RunState::Ok);
    std::fs::write(&go, "").unwrap();
    for run in [first_run, second_run] {
        let mut outbox = work.engine.attach(vec![], vec![]).await;
        let mut told = Told::default();
        to_the_end(&work.engine, &mut outbox, run, &mut told).await;
        assert_eq!(told.end().0, RunState::Ok);
    }
    assert_eq!(std::fs::read_to_string(order).unwrap(), "1\n2\n");
}

#[tokio::test]
async fn cancel_ends_the_process_and_what_waits() {
    let mut host = Host::new();
    let work = host.open();
    let started = host.path("started");
    let long = json!({"shell": format!("trap 'echo bye; exit 9' TERM; echo x >{started}; while :; do sleep 0.01; done")});
    let first = host.dispatch(&[("w", "command", long), ("f", "file", file("/etc/f", "x"))]);
    let second = host.dispatch(&[("f", "file", file("/etc/g", "x")), ("g", "file", file("/etc/h", "x"))]);
    let (first_run, second_run) = (first.run, second.run);
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(first).await.unwrap();
    work.engine.dispatch(second).await.unwrap();
    until("the process has begun", || lines(&started) == 1).await;
    work.engine.cancel(second_run).await;
    work.engine.cancel(first_run).await;
    work.engine.cancel(RunId::generate()).await;
    let (mut one, mut two) = (Told::default(), Told::default());
    while !one.is_over() || !two.is_over() {
        match next(&mut outbox).await {
            out @ postern_agent::engine::Outgoing::Event(_) => {
                let postern_agent::engine::Outgoing::Event(event) = &out else { unreachable!() };
                if event.run == first_run { one.take(out) } else { two.take(out) }
            }
            out => one.take(out),
        }
    }
    assert_eq!(one.end().0, RunState::Cancelled);
    assert_eq!(one.outcomes(), [(1, Outcome::Failed), (1, Outcome::Skipped)]);
    assert_eq!(one.output(Stream::Stdout), b"bye\n");
    assert_eq!(two.end().0, RunState::Cancelled);
    assert_eq!(two.outcomes(), [(1, Outcome::Skipped), (1, Outcome::Skipped)]);
    assert!(!host.root().join("etc/g").exists());
}

#[tokio::test]
async fn commands_by_table() {
    let mut host = Host::new();
    let work = host.open();
    let tmp = host.path("");
    // Spec, state, what its message begins with, stdout.
    let cases = [
        (json!({"argv": ["printf", "%s|", "a b", "$HOME"]}), RunState::Ok, "", "a b|$HOME|"),
        (json!({"shell": "umask; pwd"}), RunState::Ok, "", "0022\n/\n"),
        (
            json!({"argv": ["pwd"], "cwd": tmp.trim_end_matches('/')}),
            RunState::Ok,
            "",
            tmp.trim_end_matches('/'),
        ),
        (json!({"argv": ["pwd"], "cwd": "/no/such"}), RunState::Failed, "cannot start pwd: /no/such", ""),
        (json!({"shell": "echo $A$LANG", "env": {"A": "1"}}), RunState::Ok, "", "1C.UTF-8\n"),
        (json!({"argv": ["/no/such"]}), RunState::Failed, "cannot start /no/such: No such file", ""),
        (json!({"argv": ["sh", "-c", "kill -9 $$"]}), RunState::Failed, "ended by signal 9", ""),
        (json!({"argv": ["sleep", "60"], "timeout_s": 1}), RunState::Failed, "it took longer than 1 s", ""),
        (json!({"argv": ["cat"]}), RunState::Ok, "", ""),
        (json!({"argv": ["true"], "user": "ghost"}), RunState::Failed, "there is no user \"ghost\"", ""),
        (json!({"argv": ["true"], "unless": ["true"]}), RunState::Ok, "", ""),
    ];
    for (spec, state, message, stdout) in cases {
        let told = complete(&work, host.command(spec.clone())).await;
        assert_eq!(told.end().0, state, "{spec}: {:?}", told.events);
        assert!(told.messages()[0].starts_with(message), "{spec}: {:?}", told.messages());
        let got = String::from_utf8(told.output(Stream::Stdout)).unwrap();
        assert_eq!(got.trim_end(), stdout.trim_end(), "{spec}");
    }
}

/// A process that a command leaves behind does not hang it.
#[tokio::test]
async fn a_process_left_behind_does_not_hold_the_step() {
    let mut host = Host::new();
    let work = host.open();
    let began = std::time::Instant::now();
    let told = complete(&work, host.shell("echo here; sleep 20 & echo $!")).await;
    assert_eq!(told.end().0, RunState::Ok);
    assert!(told.messages()[0].contains("left behind"), "{:?}", told.messages());
    assert!(began.elapsed().as_secs() < 15);
    let output = String::from_utf8(told.output(Stream::Stdout)).unwrap();
    let pid: i32 = output.lines().nth(1).unwrap().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}
