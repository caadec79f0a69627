//! An agent that is killed at each border, and a host whose power is cut: nothing is lost, doubled or run
//! twice, and what cannot be known is said.

use crate::support::*;
use postern_proto::event::{Outcome, RunState, Stream};
use serde_json::json;

#[tokio::test]
async fn trap_36_killed_before_accepted_is_on_disk() {
    let mut host = Host::new();
    let work = host.open();
    let marks = host.path("marks");
    let dispatch = host.shell(&format!("echo x >>{marks}"));
    // The journal's thread never gets to write: the engine dies with the order still in its queue.
    let engine = work.engine.clone();
    work.driver.abort();
    let _ = (&work.driver, tokio::task::yield_now().await);
    assert!(engine.dispatch(dispatch.clone()).await.is_err());
    drop(engine);
    work.kill().await;
    let work = host.open();
    let snapshot = work.engine.snapshot().await;
    assert_eq!((snapshot.runs.len(), snapshot.dispatch_floor), (0, 0));
    // The controller never heard of an acceptance, so it sends the dispatch again.
    let told = complete(&work, dispatch).await;
    assert_eq!(told.end().0, RunState::Ok);
    assert_eq!(lines(&marks), 1);
}

#[tokio::test]
async fn trap_36_killed_after_accepted() {
    let mut host = Host::new();
    let work = host.open();
    let marks = host.path("marks");
    let slow = json!({"shell": "sleep 30"});
    let blocker = host.dispatch(&[("s", "command", slow), ("f", "file", file("/etc/x", "x"))]);
    let spec = json!({"shell": format!("echo x >>{marks}")});
    let waits = host.dispatch(&[("c", "command", spec), ("f", "file", file("/etc/f", "x"))]);
    let (blocker_run, run) = (blocker.run, waits.run);
    work.engine.dispatch(blocker).await.unwrap();
    work.engine.dispatch(waits.clone()).await.unwrap();
    work.kill().await;
    let work = host.open();
    work.engine.cancel(blocker_run).await;
    let told = whole(&work, run).await;
    assert_eq!(told.end(), (RunState::Ok, "2 changed"));
    work.engine.dispatch(waits).await.unwrap();
    assert_eq!(lines(&marks), 1);
}

/// STARTED is on the disk and nothing was done: in the same boot that is certain, so it is done now, once.
#[tokio::test]
async fn trap_36_killed_between_started_and_the_act() {
    let mut host = Host::new();
    let marks = host.path("marks");
    let work = host.open();
    let dispatch = host.shell(&format!("echo x >>{marks}"));
    let run = dispatch.run;
    complete_unacked(&work, dispatch).await;
    work.kill().await;
    // As if the agent had died right after the fsync: the supervisor was never given its job.
    cut_after(&host.state(), |record| !record.contains("step_finished"));
    std::fs::remove_file(&marks).unwrap();
    for entry in std::fs::read_dir(host.state().join("spool")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let work = host.open();
    let told = whole(&work, run).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Interrupted), (2, Outcome::Changed)]);
    assert_eq!(told.end().0, RunState::Ok);
    assert_eq!(lines(&marks), 1);
}

/// The same after a reboot: the spool may have been lost with the power, so nothing can be known.
#[tokio::test]
async fn trap_36_power_cut_after_started_is_said_and_not_repeated() {
    for (spec, want) in [
        (json!({}), vec![(1, Outcome::Interrupted)]),
        (json!({"idempotent": true}), vec![(1, Outcome::Interrupted), (2, Outcome::Changed)]),
    ] {
        let mut host = Host::new();
        let marks = host.path("marks");
        let work = host.open();
        let mut spec = spec;
        spec["shell"] = json!(format!("echo x >>{marks}"));
        let dispatch = host.command(spec);
        let run = dispatch.run;
        complete_unacked(&work, dispatch).await;
        work.kill().await;
        cut_after(&host.state(), |record| !record.contains("step_finished"));
        host.boot = NEXT_BOOT.parse().unwrap();
        let work = host.open();
        let told = whole(&work, run).await;
        assert_eq!(told.outcomes(), want);
        if want.len() == 1 {
            assert_eq!(told.end().0, RunState::Interrupted);
            assert!(told.messages()[0].contains("how far it got is not known"), "{:?}", told.messages());
            assert_eq!(lines(&marks), 1, "not run again");
        } else {
            assert_eq!(told.end().0, RunState::Ok);
            assert_eq!(lines(&marks), 2, "it says of itself that it may be");
        }
    }
}

/// T38: the process, its output and its exit status outlive the agent.
#[tokio::test]
async fn trap_38_killed_with_a_child_running() {
    let mut host = Host::new();
    let (go, marks) = (host.path("go"), host.path("marks"));
    let work = host.open();
    let dispatch = host.shell(&format!(
        "echo before; echo x >>{marks}; while ! test -e {go}; do sleep 0.01; done; echo after; exit 7"
    ));
    let run = dispatch.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    let mut told = Told::default();
    while told.frames.is_empty() {
        told.take(next(&mut outbox).await);
    }
    drop(outbox);
    work.kill().await;
    // Twice: the second agent is killed while it follows the process of the first.
    host.open().kill().await;
    let work = host.open();
    let snapshot = work.engine.snapshot().await;
    assert_eq!(snapshot.unfinished, 1);
    assert_eq!(snapshot.runs[0].logs.len(), 1, "the running step's output is known: {snapshot:?}");
    let mut outbox = work.engine.attach(vec![told.offset(run)], vec![]).await;
    std::fs::write(&go, "").unwrap();
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
    assert_eq!(told.end().0, RunState::Failed);
    assert_eq!(told.outcomes(), [(1, Outcome::Failed)]);
    assert_eq!(told.messages(), ["exit status 7: before / after"]);
    assert_eq!(told.output(Stream::Stdout), b"before\nafter\n");
    assert_eq!(lines(&marks), 1);
}

/// What was told as done and had not reached the disk is done again where it shows; an action is never repeated.
#[tokio::test]
async fn trap_36_what_a_power_cut_took_back_is_done_again() {
    for cut in [true, false] {
        let mut host = Host::new();
        let (marks, made, go) = (host.path("marks"), host.root().join("made"), host.path("go"));
        let work = host.open();
        let script = format!("echo made >>{marks}; touch {}", made.display());
        let makes = json!({"shell": script, "creates": "/made"});
        let acts = json!({"shell": format!("echo acts >>{marks}")});
        let script = format!("echo waits >>{marks}; while ! test -e {go}; do sleep 0.01; done");
        let waits = json!({"shell": script, "idempotent": true});
        let dispatch = host.dispatch(&[
            ("made", "command", makes),
            ("file", "file", file("/etc/kept", "x")),
            ("acts", "command", acts),
            ("waits", "command", waits),
        ]);
        let run = dispatch.run;
        work.engine.dispatch(dispatch).await.unwrap();
        until("it waits", || lines(&marks) == 3).await;
        work.kill().await;
        std::fs::remove_file(&made).unwrap();
        if cut {
            kill_supervised(&host);
            host.boot = NEXT_BOOT.parse().unwrap();
        }
        std::fs::write(&go, "").unwrap();
        let work = host.open();
        let told = whole(&work, run).await;
        assert_eq!(told.end().0, RunState::Ok, "{:?}", told.messages());
        // In the same boot nothing is lost, so whoever removed it did so after the run had made it.
        let want: &[&str] =
            if cut { &["made", "acts", "waits", "made", "waits"] } else { &["made", "acts", "waits"] };
        assert!(std::fs::read_to_string(&marks).unwrap().lines().eq(want.iter().copied()), "cut: {cut}");
        assert_eq!(made.exists(), cut);
    }
}

/// It ended while no agent was there.
#[tokio::test]
async fn trap_38_ended_while_the_agent_was_away() {
    let mut host = Host::new();
    let (go, done) = (host.path("go"), host.path("done"));
    let work = host.open();
    let dispatch =
        host.shell(&format!("while ! test -e {go}; do sleep 0.01; done; echo out; echo x >{done}"));
    let run = dispatch.run;
    work.engine.dispatch(dispatch).await.unwrap();
    let spool = host.state().join("spool");
    until("a spool", || std::fs::read_dir(&spool).unwrap().count() == 1).await;
    work.kill().await;
    std::fs::write(&go, "").unwrap();
    until("the end", || lines(&done) == 1).await;
    // Also when the host went down right after it: the exit is in the spool.
    host.boot = NEXT_BOOT.parse().unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let work = host.open();
    let told = whole(&work, run).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Changed)]);
    assert_eq!(told.output(Stream::Stdout), b"out\n");
}

/// The supervisor itself is killed: the step ends with what is known, and is not repeated.
#[tokio::test]
async fn trap_36_a_killed_supervisor_is_told() {
    let mut host = Host::new();
    let (marks, pids) = (host.path("marks"), host.path("pids"));
    let work = host.open();
    let script = format!("echo said; echo x >>{marks}; echo $$ $PPID >{pids}; exec sleep 30");
    let dispatch = host.shell(&script);
    let run = dispatch.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    until("pids", || lines(&pids) == 1).await;
    let text = std::fs::read_to_string(&pids).unwrap();
    let pid = |n: usize| text.split_whitespace().nth(n).and_then(|p| p.parse().ok()).unwrap();
    let mut told = Told::default();
    while told.frames.is_empty() {
        told.take(next(&mut outbox).await);
    }
    for n in [1, 0] {
        let pid = rustix::process::Pid::from_raw(pid(n)).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Failed)]);
    assert!(told.messages()[0].starts_with("its supervisor was ended"), "{:?}", told.messages());
    assert_eq!(told.output(Stream::Stdout), b"said\n");
    assert_eq!(lines(&marks), 1);
}

/// At a reboot the host sends TERM to every process: nobody cancelled the run, and how far it got is not known.
#[tokio::test]
async fn trap_36_a_reboot_is_not_an_operators_cancel() {
    let interrupted = vec![(1, Outcome::Interrupted)];
    let again = vec![(1, Outcome::Interrupted), (2, Outcome::Changed)];
    // Which process sees its TERM first: the supervisor (1) or what it runs (0).
    for (first, idempotent, want) in
        [(1, false, interrupted.clone()), (0, false, interrupted), (1, true, again.clone()), (0, true, again)]
    {
        let mut host = Host::new();
        let (marks, pids) = (host.path("marks"), host.path("pids"));
        let script = format!(
            "echo x >>{marks}; test $(wc -l <{marks}) = 2 && exit 0; echo $$ $PPID >{pids}; exec sleep 30"
        );
        let work = host.open();
        let dispatch = host.command(json!({"shell": script, "idempotent": idempotent}));
        let run = dispatch.run;
        work.engine.dispatch(dispatch).await.unwrap();
        until("pids", || lines(&pids) == 1).await;
        work.kill().await;
        terminate(&pids, first).await;
        host.boot = NEXT_BOOT.parse().unwrap();
        let work = host.open();
        let told = whole(&work, run).await;
        assert_eq!(told.outcomes(), want, "{first}: {:?}", told.messages());
        let state = if idempotent { RunState::Ok } else { RunState::Interrupted };
        assert_eq!(told.end().0, state, "{:?}", told.end());
        assert!(!told.end().1.contains("operator"), "{:?}", told.end());
        assert_eq!(lines(&marks), want.len());
    }
}

/// TERM by somebody else within a boot is an end by a signal; an operator's cancel stays one over a reboot.
#[tokio::test]
async fn only_what_the_engine_was_asked_for_is_a_cancel() {
    for cancelled in [false, true] {
        let mut host = Host::new();
        let pids = host.path("pids");
        let work = host.open();
        let dispatch = host.shell(&format!("trap '' TERM; echo $$ $PPID >{pids}; sleep 30 & wait; sleep 30"));
        let run = dispatch.run;
        work.engine.dispatch(dispatch).await.unwrap();
        until("pids", || lines(&pids) == 1).await;
        if cancelled {
            // It takes its time to end, and the agent and the host go down meanwhile.
            work.engine.cancel(run).await;
            work.kill().await;
            terminate(&pids, 1).await;
            host.boot = NEXT_BOOT.parse().unwrap();
            let told = whole(&host.open(), run).await;
            assert_eq!(told.end().0, RunState::Cancelled, "{:?}", told.end());
        } else {
            terminate(&pids, 1).await;
            let told = whole(&work, run).await;
            assert_eq!(told.outcomes(), [(1, Outcome::Failed)]);
            assert_eq!(told.end().0, RunState::Failed, "{:?}", told.end());
        }
    }
}

/// Sends TERM to one of the two processes in `pids` and waits until both are gone; the agent that started the
/// supervisor may still have to wait for it.
async fn terminate(pids: &str, which: usize) {
    let text = std::fs::read_to_string(pids).unwrap();
    let pids: Vec<i32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    let pid = rustix::process::Pid::from_raw(pids[which]).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let gone = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('Z'))
    };
    until("their end", || pids.iter().all(gone)).await;
}

/// T35: FINISHED is on the disk and nobody has heard of it.
#[tokio::test]
async fn trap_35_killed_after_finished() {
    let mut host = Host::new();
    let marks = host.path("marks");
    let work = host.open();
    let dispatch = host.shell(&format!("echo x | tee -a {marks}"));
    let run = dispatch.run;
    let before = complete_unacked(&work, dispatch).await;
    work.kill().await;
    let work = host.open();
    let after = whole(&work, run).await;
    assert_eq!((&after.events, &after.frames), (&before.events, &before.frames));
    assert_eq!(lines(&marks), 1);
}

/// A file that was half-way is observed again; what was done counts.
#[tokio::test]
async fn trap_36_a_cut_off_file_is_observed_again() {
    for done in [true, false] {
        let mut host = Host::new();
        let work = host.open();
        let dispatch = host.dispatch(&[("f", "file", file("/etc/f", "new\n"))]);
        let run = dispatch.run;
        complete_unacked(&work, dispatch).await;
        work.kill().await;
        cut_after(&host.state(), |record| !record.contains("step_finished"));
        if !done {
            std::fs::write(host.root().join("etc/f"), "old\n").unwrap();
        }
        host.boot = NEXT_BOOT.parse().unwrap();
        let work = host.open();
        let told = whole(&work, run).await;
        assert_eq!(told.outcomes(), [(1, Outcome::Interrupted), (2, Outcome::Changed)], "done: {done}");
        assert_eq!(told.steps_started(), if done { 1 } else { 2 });
        assert_eq!(std::fs::read(host.root().join("etc/f")).unwrap(), b"new\n");
    }
}

/// Two packages are one transaction, whose step bears the first one's address.
#[tokio::test]
async fn trap_36_a_cut_off_transaction_counts_for_all_of_its_packages() {
    let mut host = Host::new();
    let dpkg = host.root().join("var/lib/dpkg");
    std::fs::create_dir_all(dpkg.join("updates")).unwrap();
    let one = |name: &str| {
        format!("Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n")
    };
    std::fs::write(dpkg.join("status"), one("aa") + &one("bb")).unwrap();
    host.fake("apt-get", &format!(": >{}", dpkg.join("status").display()));
    let work = host.open();
    let absent = |name: &str| json!({"name": name, "state": "absent"});
    let dispatch = host.dispatch(&[("aa", "package", absent("aa")), ("bb", "package", absent("bb"))]);
    let run = dispatch.run;
    let told = complete_unacked(&work, dispatch).await;
    assert_eq!((told.steps_started(), told.end().0), (1, RunState::Ok), "{:?}", told.messages());
    work.kill().await;
    cut_after(&host.state(), |record| !record.contains("step_finished"));
    for entry in std::fs::read_dir(host.state().join("spool")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let told = whole(&host.open(), run).await;
    let interrupted = (1, Outcome::Interrupted);
    let changed = (2, Outcome::Changed);
    assert_eq!(told.outcomes(), [interrupted, interrupted, changed, changed], "{:?}", told.messages());
}

/// A resource that brings the host down each time is given up, not tried for ever.
#[tokio::test]
async fn a_resource_that_is_cut_off_again_and_again_is_given_up() {
    let mut host = Host::new();
    let marks = host.path("marks");
    let spec = json!({"shell": format!("echo x >>{marks}; exec sleep 30"), "idempotent": true});
    let dispatch = host.command(spec);
    let run = dispatch.run;
    let work = host.open();
    work.engine.dispatch(dispatch).await.unwrap();
    let mut work = Some(work);
    for round in 1..=3 {
        until("another start", || lines(&marks) == round).await;
        let work_now = work.take().unwrap();
        kill_supervised(&host);
        // The death of the process is seen only by the next agent, in another boot.
        work_now.driver.abort();
        work_now.kill().await;
        host.boot = format!("0192f0c4-0000-4000-8000-00000000001{round}").parse().unwrap();
        work = Some(host.open());
    }
    let told = whole(work.as_ref().unwrap(), run).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Interrupted), (2, Outcome::Interrupted), (3, Outcome::Failed)]);
    assert!(told.messages()[2].starts_with("given up"), "{:?}", told.messages());
    assert_eq!(lines(&marks), 3);
}

/// Kills the supervisors of this host's spools and their processes, as the end of a boot does.
fn kill_supervised(host: &Host) {
    let spool = host.state().join("spool");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let open = std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let ours = open.filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|to| to.starts_with(&spool));
        if !ours || pid == std::process::id().cast_signed() {
            continue;
        }
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok());
        for pid in std::iter::once(pid).chain(children) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
