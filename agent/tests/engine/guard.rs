//! Changes that could cut the host off: made under guard, with a scripted double of the controller's look.

use std::path::Path;
use std::time::Duration;

use crate::support::{self, Host, LIMIT, Told, complete, lines, to_the_end, until};
use crate::vantage::{Says, guards_left, open, open_for};
use postern_proto::event::{EventKind, Outcome, RunEvent, RunState};
use serde_json::json;

/// A change and its way back; `done` has a line for each time that it was made, `back` for each way back.
fn change(host: &Host) -> serde_json::Value {
    json!({
        "shell": format!("echo x >>{}; touch {}", host.path("done"), host.path("changed")),
        "revert": ["sh", "-c", format!("echo x >>{}; rm -f {}", host.path("back"), host.path("changed"))],
    })
}

fn stands(host: &Host) -> (bool, usize, usize) {
    (Path::new(&host.path("changed")).exists(), lines(host.path("done")), lines(host.path("back")))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_controller_still_sees_stays() {
    let mut host = Host::new();
    let work = open(&host, &[Says::Yes]);
    let dispatch = host.command(change(&host));
    let told = complete(&work, dispatch).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Changed)], "{:?}", told.messages());
    assert!(told.messages()[0].contains("link"), "{:?}", told.messages());
    assert_eq!(stands(&host), (true, 1, 0));
    assert_eq!(guards_left(&host), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cuts_the_controller_off_is_taken_back() {
    for lost in [Says::No, Says::Nothing] {
        let mut host = Host::new();
        let work = open(&host, &[Says::Yes, lost]);
        let dispatch = host.command(change(&host));
        let told = complete(&work, dispatch).await;
        assert_eq!(told.outcomes(), [(1, Outcome::Failed)]);
        assert!(told.messages()[0].contains("the change was taken back"), "{:?}", told.messages());
        assert_eq!(stands(&host), (false, 1, 1), "{lost:?}");
        assert_eq!(guards_left(&host), 0);
    }
}

/// A step that fails half way leaves nothing behind either.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_fails_is_taken_back_at_once() {
    let mut host = Host::new();
    let work = open(&host, &[Says::Yes, Says::Nothing]);
    let mut spec = change(&host);
    spec["shell"] = json!(format!("{}; exit 3", spec["shell"].as_str().unwrap()));
    let dispatch = host.command(spec);
    let told = complete(&work, dispatch).await;
    assert!(told.messages()[0].contains("exit status 3"), "{:?}", told.messages());
    assert!(told.messages()[0].contains("taken back"), "{:?}", told.messages());
    assert_eq!(stands(&host), (false, 1, 1));
}

/// The controller is gone before: nothing is begun, the run says that it waits, what needs no controller goes on,
/// and all of it is done once the controller is back.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_controller_it_waits_and_the_rest_goes_on() {
    let mut host = Host::new();
    let work = open(&host, &[Says::No, Says::No, Says::Yes]);
    let other = json!({"argv": ["touch", host.path("other")]});
    let dispatch = host.dispatch(&[("guarded", "command", change(&host)), ("other", "command", other)]);
    let dispatch = host.needing(&dispatch, &[("other", &[])]);
    let (run, other) = (dispatch.run, host.path("other"));
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    until("the other one", || Path::new(&other).exists()).await;
    assert_eq!(stands(&host), (false, 0, 0));
    let mut told = Told::default();
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
    assert_eq!(told.end().0, RunState::Ok, "{:?}", told.end());
    let parked: Vec<_> = told
        .events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Parked { why } => Some(why.as_str()),
            _ => None,
        })
        .collect();
    assert!(parked.len() == 1 && parked[0].contains("nothing answers"), "{parked:?}");
    assert!(told.events.iter().any(|event| event.kind == EventKind::Unparked));
    assert_eq!(stands(&host), (true, 1, 0));
    // It is one attempt: nothing was begun before.
    assert_eq!(told.outcomes(), [(1, Outcome::Changed), (1, Outcome::Changed)]);
    // Its steps are counted by themselves: the first one arms the guard.
    let of = |event: &RunEvent| match &event.kind {
        EventKind::StepStarted { step, .. } if step.address.as_str().ends_with("guarded") => Some(step.step),
        _ => None,
    };
    assert_eq!(told.events.iter().filter_map(of).collect::<Vec<_>>(), [0, 1, 2]);
}

/// Where an agent is killed that makes a change under guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Killed {
    /// The change is there; its process may be over.
    AtTheChange,
    /// The process is over, and nothing was looked at.
    AfterIt,
    /// Somebody looks from outside.
    InTheLook,
}

/// The agent is killed after the change and before it is confirmed: the next one takes it back. What may be
/// repeated is tried again, and what may not be is told as cut off.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_in_the_window_leaves_nothing_changed() {
    let kills = [Killed::AtTheChange, Killed::AfterIt, Killed::InTheLook];
    for (repeatable, killed) in kills.into_iter().flat_map(|killed| [(false, killed), (true, killed)]) {
        let mut host = Host::new();
        let work = open(&host, &[Says::Yes, Says::Nothing]);
        let mut spec = change(&host);
        spec["idempotent"] = json!(repeatable);
        let dispatch = host.command(spec);
        let run = dispatch.run;
        let mut outbox = work.engine.attach(vec![], vec![]).await;
        work.engine.dispatch(dispatch).await.unwrap();
        let mut told = Told::default();
        let looks = |kind: &EventKind| matches!(kind, EventKind::StepStarted { summary, .. } if summary == "look at the host from outside");
        while killed != Killed::AtTheChange && !told.events.iter().any(|event| looks(&event.kind)) {
            told.take(support::next(&mut outbox).await);
        }
        until("the change", || stands(&host) == (true, 1, 0)).await;
        work.kill().await;
        if killed == Killed::AfterIt {
            support::cut_after(&host.state(), |record| !record.contains("look at the host"));
        }
        let work = open(&host, &[Says::Yes]);
        let mut outbox = work.engine.attach(vec![], vec![]).await;
        let mut told = Told::default();
        to_the_end(&work.engine, &mut outbox, run, &mut told).await;
        let interrupted = (1, Outcome::Interrupted);
        if repeatable {
            assert_eq!(told.outcomes(), [interrupted, (2, Outcome::Changed)], "{killed:?}");
            assert_eq!(stands(&host), (true, 2, 1), "{killed:?}");
        } else {
            assert_eq!(told.outcomes(), [interrupted], "{killed:?}: {:?}", told.messages());
            assert_eq!(stands(&host), (false, 1, 1), "{killed:?}");
        }
        assert_eq!(guards_left(&host), 0);
    }
}

/// The agent is killed before the change: nothing was done yet, so it is done, whether it may be repeated or not.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_while_it_arms_begins_anew() {
    let mut host = Host::new();
    let work = open(&host, &[Says::Yes]);
    let (asked, go) = (host.path("asked"), host.path("go"));
    let script = format!("touch {asked}; while ! test -e {go}; do sleep 0.01; done");
    host.fake("systemctl", &format!("[ $1 != start ] || {{ {script}; }}"));
    let dispatch = host.command(change(&host));
    let run = dispatch.run;
    work.engine.dispatch(dispatch).await.unwrap();
    until("systemctl", || Path::new(&asked).exists()).await;
    work.kill().await;
    std::fs::write(&go, "").unwrap();
    assert_eq!(stands(&host), (false, 0, 0));
    let work = open(&host, &[Says::Yes]);
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    let mut told = Told::default();
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
    let want = [(1, Outcome::Interrupted), (2, Outcome::Changed)];
    assert_eq!(told.outcomes(), want, "{:?}", told.messages());
    // The way back was on the disk already, and does no harm.
    assert_eq!(stands(&host), (true, 1, 1));
    assert_eq!(guards_left(&host), 0);
}

/// A process that outlives the agent is waited for before its change is taken back, also when another run comes to
/// its end meanwhile: it would change again what was taken back.
#[tokio::test(flavor = "multi_thread")]
async fn what_runs_on_without_its_agent_is_taken_back_after_its_end() {
    let mut host = Host::new();
    let until_there = |name: &str| format!("while ! test -e {}; do sleep 0.01; done", host.path(name));
    let (waits, waits_too) = (until_there("go"), until_there("go-too"));
    let mut spec = change(&host);
    let script = format!("touch {}; {waits}; {}", host.path("begun"), spec["shell"].as_str().unwrap());
    spec["shell"] = json!(script);
    let dispatch = host.command(spec);
    let other = host.shell(&format!("touch {}; {waits_too}", host.path("begun-too")));
    let (run, other_run) = (dispatch.run, other.run);
    let window = Duration::from_secs(600);
    let work = open_for(&host, &[Says::Yes], window);
    work.engine.dispatch(dispatch).await.unwrap();
    work.engine.dispatch(other).await.unwrap();
    let begun = [host.path("begun"), host.path("begun-too")];
    until("both", || begun.iter().all(|path| Path::new(path).exists())).await;
    work.kill().await;
    let work = open_for(&host, &[Says::Yes], window);
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    std::fs::write(host.path("go-too"), "").unwrap();
    let (mut told, mut told_too) = (Told::default(), Told::default());
    while !told_too.is_over() {
        let outgoing = support::next(&mut outbox).await;
        let postern_agent::engine::Outgoing::Event(event) = &outgoing else { continue };
        if event.run == run { told.take(outgoing) } else { told_too.take(outgoing) }
    }
    assert_eq!(told_too.end().0, RunState::Ok, "{other_run}: {:?}", told_too.end());
    assert_eq!((stands(&host), guards_left(&host)), ((false, 0, 0), 1));
    std::fs::write(host.path("go"), "").unwrap();
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Interrupted)], "{:?}", told.messages());
    assert_eq!((stands(&host), guards_left(&host)), ((false, 1, 1), 0));
}

/// A run that waits for the controller waits on after a restart of the agent, as often as that happens.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_outlasts_restarts_of_the_agent() {
    let mut host = Host::new();
    let dispatch = host.command(change(&host));
    let run = dispatch.run;
    let work = open(&host, &[Says::No]);
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    let mut told = Told::default();
    while !matches!(told.events.last().map(|event| &event.kind), Some(EventKind::Parked { .. })) {
        told.take(support::next(&mut outbox).await);
    }
    work.kill().await;
    for _ in 0..4 {
        let work = open(&host, &[Says::No]);
        tokio::time::sleep(Duration::from_millis(300)).await;
        work.kill().await;
    }
    let work = open(&host, &[Says::Yes]);
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    let mut told = Told::default();
    tokio::time::timeout(LIMIT, to_the_end(&work.engine, &mut outbox, run, &mut told)).await.unwrap();
    assert_eq!(told.end().0, RunState::Ok, "{:?}", told.end());
    assert_eq!(told.outcomes(), [(1, Outcome::Changed)]);
    assert_eq!(stands(&host), (true, 1, 0));
}

/// And so does an undo.
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_waits_for_the_controller_too() {
    let mut host = Host::new();
    let path = host.root().join("etc/resolv.conf");
    std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
    let work = open(&host, &[Says::Yes]);
    let dispatch =
        host.dispatch(&[("r", "file", support::file("/etc/resolv.conf", "nameserver 192.0.2.2\n"))]);
    assert_eq!(complete(&work, dispatch.clone()).await.outcomes(), [(1, Outcome::Changed)]);
    work.kill().await;
    let undo = host.undo(&dispatch);
    let run = undo.run;
    let work = open(&host, &[Says::No]);
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(undo).await.unwrap();
    let mut told = Told::default();
    while !matches!(told.events.last().map(|event| &event.kind), Some(EventKind::Parked { .. })) {
        told.take(support::next(&mut outbox).await);
    }
    work.kill().await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.2\n");
    let work = open(&host, &[Says::Yes]);
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    let mut told = Told::default();
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Changed)], "{:?}", told.messages());
    let begun = |event: &&RunEvent| matches!(event.kind, EventKind::ResourceStarted { .. });
    assert_eq!(told.events.iter().filter(begun).count(), 1);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.1\n");
}

/// Much may have happened while an undo waited: what somebody else has changed meanwhile is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_waited_looks_anew() {
    let mut host = Host::new();
    let path = host.root().join("etc/resolv.conf");
    std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
    let work = open(&host, &[Says::Yes, Says::Yes, Says::Later]);
    let resource = ("r", "file", support::file("/etc/resolv.conf", "nameserver 192.0.2.2\n"));
    let dispatch = host.dispatch(&[resource]);
    assert_eq!(complete(&work, dispatch.clone()).await.outcomes(), [(1, Outcome::Changed)]);
    let undo = host.undo(&dispatch);
    let run = undo.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(undo).await.unwrap();
    let mut told = Told::default();
    while !matches!(told.events.last().map(|event| &event.kind), Some(EventKind::Parked { .. })) {
        match support::next(&mut outbox).await {
            postern_agent::engine::Outgoing::Event(event) if event.run != run => {}
            outgoing => told.take(outgoing),
        }
    }
    std::fs::write(&path, "nameserver 192.0.2.3\n").unwrap();
    std::fs::write(host.path("reached"), "").unwrap();
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Failed)], "{:?}", told.messages());
    assert!(told.messages()[0].contains("left alone"), "{:?}", told.messages());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.3\n");
}

/// Without a way to be seen nothing is changed.
#[tokio::test(flavor = "multi_thread")]
async fn where_no_timer_can_be_set_nothing_is_changed() {
    let mut host = Host::new();
    let work = open(&host, &[Says::Yes]);
    host.fake("systemctl", "echo no bus >&2; exit 1");
    let dispatch = host.command(change(&host));
    let told = complete(&work, dispatch).await;
    assert!(told.messages()[0].contains("nothing was changed"), "{:?}", told.messages());
    assert_eq!(stands(&host), (false, 0, 0));
}

/// The resolver's file is read anew at each look-up, so writing it is guarded by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_resolver_is_taken_back() {
    let mut host = Host::new();
    let path = host.root().join("etc/resolv.conf");
    std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
    let work = open(&host, &[Says::Yes, Says::No]);
    let spec = support::file("/etc/resolv.conf", "nameserver 192.0.2.99\n");
    let dispatch = host.dispatch(&[("r", "file", spec)]);
    let told = complete(&work, dispatch).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Failed)], "{:?}", told.messages());
    assert_eq!(std::fs::read_to_string(path).unwrap(), "nameserver 192.0.2.1\n");
}

/// A way back that fails is not thrown away: what it needs stays, its service goes on, and the run says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_that_fails_is_kept_and_tried_on() {
    let mut host = Host::new();
    let work = open(&host, &[Says::Yes, Says::No]);
    let calls = host.path("calls");
    host.fake("systemctl", &format!("echo \"$@\" >>{calls}"));
    let mut spec = change(&host);
    spec["revert"] = json!(["test", "-e", host.path("mended")]);
    let dispatch = host.command(spec);
    let run = dispatch.run;
    let told = complete(&work, dispatch).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Failed)]);
    assert!(told.messages()[0].contains("goes on trying"), "{:?}", told.messages());
    assert_eq!(guards_left(&host), 1);
    let units = std::fs::read_dir(host.root().join("etc/systemd/system")).unwrap().count();
    assert!(units > 2, "its units are gone");
    let said = std::fs::read_to_string(&calls).unwrap();
    assert!(said.lines().any(|line| line.starts_with("start --no-block -- postern-guard-")), "{said}");
    assert_eq!(stands(&host), (true, 1, 0));
    // What its service does.
    std::fs::write(host.path("mended"), "").unwrap();
    let guards = postern_agent::guard::Guards { state_dir: host.state(), sys: host.config().sys };
    let settled = guards.settle(&format!("{run}-"), false).await.unwrap();
    assert_eq!(settled.len(), 1, "{settled:?}");
    assert_eq!(guards_left(&host), 0);
}

/// The steps have one time together: one that hangs is ended in it, and the next one does not begin.
#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_is_ended_before_the_guard_is_over() {
    let mut host = Host::new();
    let work = open(&host, &[Says::Yes]);
    let mut spec = change(&host);
    spec["shell"] = json!(format!("{}; sleep 600", spec["shell"].as_str().unwrap()));
    let began = std::time::Instant::now();
    let dispatch = host.command(spec);
    let told = complete(&work, dispatch).await;
    assert_eq!(told.outcomes(), [(1, Outcome::Failed)]);
    assert!(told.messages()[0].contains("taken back"), "{:?}", told.messages());
    assert!(began.elapsed() < Duration::from_secs(60), "it was not ended");
    assert_eq!(stands(&host), (false, 1, 1));
}

/// A controller that will never look keeps nobody waiting.
#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_will_never_look_is_told_of() {
    let mut host = Host::new();
    let work = open(&host, &[Says::Never]);
    let dispatch = host.command(change(&host));
    let told = complete(&work, dispatch).await;
    assert!(told.messages()[0].contains("nothing was changed") && told.messages()[0].contains("too old"));
    assert_eq!(stands(&host), (false, 0, 0));
}

/// One that waits for the controller is not drawn into what befell another one: it has done nothing yet.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_is_not_what_was_cut_off() {
    let mut host = Host::new();
    let slow = json!({"shell": format!("touch {}; sleep 1; exit 0", host.path("slow"))});
    let dispatch = host.dispatch(&[("guarded", "command", change(&host)), ("slow", "command", slow)]);
    let dispatch = host.needing(&dispatch, &[("slow", &[])]);
    let run = dispatch.run;
    let work = open(&host, &[Says::No]);
    work.engine.dispatch(dispatch).await.unwrap();
    let slow = host.path("slow");
    until("the slow one", || Path::new(&slow).exists()).await;
    work.kill().await;
    let work = open(&host, &[Says::Yes]);
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    let mut told = Told::default();
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
    assert_eq!(told.end().0, RunState::Ok, "{:?}", told.end());
    assert_eq!(stands(&host), (true, 1, 0), "it was said to be done and was not: {:?}", told.messages());
}
