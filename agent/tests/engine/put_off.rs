//! What was begun and only has to be waited for: what does not need it is worked on first, and it comes to an honest end
//! whatever happens meanwhile. Docker's engine is a stand-in.

use crate::docker::{Docker, open, web};
use crate::support::*;
use postern_agent::engine::Dispatch;
use postern_proto::event::{EventKind, Outcome, RunEvent, RunState};
use postern_proto::ids::RunId;
use serde_json::{Value, json};

/// A host with the stand-in, and a plan of these resources after the service `web`.
fn host_with(more: &[(&str, &str, Value)], needs: &[(&str, &[&str])]) -> (Host, Docker, Dispatch) {
    let mut host = Host::new();
    let docker = Docker::on(&host);
    let run = host.dispatch(&[&[("web", "swarm_service", web())], more].concat());
    let run = host.needing(&run, needs);
    (host, docker, run)
}

fn touch(path: String) {
    std::fs::write(path, "").unwrap();
}

fn log(host: &Host) -> Vec<String> {
    let text = std::fs::read_to_string(host.path("log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A command that says that it is there, and goes on once it may.
fn slow(host: &Host) -> Value {
    let script =
        format!("touch {}; while ! test -e {}; do sleep 0.01; done", host.path("there"), host.path("go"));
    json!({"shell": script, "idempotent": true})
}

async fn begun(host: &Host) {
    until("the slow one is there", || std::path::Path::new(&host.path("there")).exists()).await;
}

async fn whole(work: &Work, run: RunId) -> Told {
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    let mut told = Told::default();
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
    told
}

/// How each attempt ended, in the order of their ends: `web 1 Changed`.
fn ends(told: &Told) -> Vec<String> {
    let of = |event: &RunEvent| match &event.kind {
        EventKind::ResourceFinished { address, attempt, outcome, .. } => {
            Some(format!("{} {attempt} {outcome:?}", address.parts().2))
        }
        _ => None,
    };
    told.events.iter().filter_map(of).collect()
}

/// What begins and ends, resource by resource, and the steps in between.
fn course(told: &Told) -> Vec<String> {
    let of = |event: &RunEvent| match &event.kind {
        EventKind::ResourceStarted { address, .. } => Some(format!("{}:", address.parts().2)),
        EventKind::StepStarted { step, .. } => Some(format!("{} {}", step.address.parts().2, step.step)),
        EventKind::ResourceFinished { address, .. } => Some(format!("{}.", address.parts().2)),
        _ => None,
    };
    told.events.iter().filter_map(of).collect()
}

fn message_of<'a>(told: &'a Told, name: &str) -> &'a str {
    let of = |event: &'a RunEvent| match &event.kind {
        EventKind::ResourceFinished { address, message, .. } if address.parts().2 == name => {
            Some(message.as_str())
        }
        _ => None,
    };
    told.events.iter().filter_map(of).next_back().unwrap_or("no end")
}

/// What the service is after the run was kept: its undo takes it away, and does not take it for cut off.
async fn is_known_to_an_undo(host: &mut Host, work: &Work, run: &Dispatch) {
    let undo = host.undo(run);
    let undone = complete(work, undo).await;
    let said = message_of(&undone, "web");
    assert!(said.starts_with("remove the service web; ") && !said.contains("cut off"), "{said}");
}

#[tokio::test]
async fn what_does_not_need_it_is_done_before_its_wait() {
    let resources = [
        ("one", "file", file("/etc/one", "x")),
        ("on_web", "file", file("/etc/on_web", "x")),
        ("two", "file", file("/etc/two", "x")),
        ("all", "file", file("/etc/all", "x")),
    ];
    let (mut host, _docker, run) =
        host_with(&resources, &[("one", &[]), ("on_web", &["one", "web"]), ("two", &["one"])]);
    let work = open(&host);
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(run.clone()).await.unwrap();
    until("it is waited for", || log(&host) == ["make", "wait"]).await;
    let there = |name: &str| host.root().join("etc").join(name).exists();
    assert!(there("one") && there("two") && !there("on_web") && !there("all"));
    touch(host.path("runs"));
    let mut told = Told::default();
    to_the_end(&work.engine, &mut outbox, run.run, &mut told).await;
    let want = [
        "web:", "web 0", "one:", "one 0", "one.", "two:", "two 0", "two.", "web 1", "web.", "on_web:",
        "on_web 0", "on_web.", "all:", "all 0", "all.",
    ];
    assert_eq!(course(&told), want);
    assert_eq!(told.end(), (RunState::Ok, "5 changed"));
    assert!(message_of(&told, "web").starts_with("make the service web; "), "{}", message_of(&told, "web"));

    let again = host.again(&run, Default::default());
    assert_eq!(complete(&work, again).await.end(), (RunState::Ok, "5 unchanged"));
    let undo = host.undo(&run);
    let undone = complete(&work, undo).await;
    assert_eq!(undone.end(), (RunState::Ok, "5 changed"), "{:?}", undone.messages());
    assert_eq!(log(&host), ["make", "wait", "remove", "wait"]);
}

/// Order as it is written: who says nothing of needs finds all before it as it is declared.
#[tokio::test]
async fn in_a_line_it_is_waited_for_at_once() {
    let (host, _docker, run) = host_with(&[("next", "file", file("/etc/next", "x"))], &[]);
    let work = open(&host);
    touch(host.path("runs"));
    let told = complete(&work, run).await;
    assert_eq!(course(&told), ["web:", "web 0", "web 1", "web.", "next:", "next 0", "next."]);
    assert_eq!(told.end(), (RunState::Ok, "2 changed"));
}

#[tokio::test]
async fn a_failure_elsewhere_does_not_lose_it() {
    let resources = [("bad", "command", json!({"argv": ["false"]})), ("all", "file", file("/etc/all", "x"))];
    let (host, _docker, run) = host_with(&resources, &[("bad", &[])]);
    let work = open(&host);
    touch(host.path("runs"));
    let told = complete(&work, run).await;
    assert_eq!(ends(&told), ["bad 1 Failed", "all 1 Skipped", "web 1 Changed"]);
    assert_eq!(log(&host), ["make", "wait"]);
    assert_eq!(told.end(), (RunState::Failed, "t:command:bad: exit status 1"));
}

#[tokio::test]
async fn a_wait_that_fails_is_told_and_holds_up_what_needs_it() {
    let resources = [
        ("alone", "file", file("/etc/alone", "x")),
        ("on_web", "file", file("/etc/on_web", "x")),
        ("all", "file", file("/etc/all", "x")),
    ];
    let (mut host, _docker, run) = host_with(&resources, &[("alone", &[]), ("on_web", &["web"])]);
    let work = open(&host);
    touch(host.path("broken"));
    let told = complete(&work, run.clone()).await;
    assert_eq!(ends(&told), ["alone 1 Changed", "web 1 Failed", "on_web 1 Skipped", "all 1 Skipped"]);
    assert_eq!(told.end(), (RunState::Failed, "t:swarm_service:web: exit status 1: no good"));
    // It is there, so the next run has only to wait for it.
    std::fs::remove_file(host.path("broken")).unwrap();
    touch(host.path("runs"));
    let again = host.again(&run, Default::default());
    let told = complete(&work, again).await;
    assert_eq!(ends(&told), ["web 1 Unchanged", "alone 1 Unchanged", "on_web 1 Changed", "all 1 Changed"]);
    assert_eq!(log(&host), ["make", "wait"]);
}

/// What comes before the wait failed: nothing is waited for, and what does not need it is done all the same.
#[tokio::test]
async fn what_could_not_be_begun_is_over_at_once() {
    let (host, _docker, run) = host_with(&[("alone", "file", file("/etc/alone", "x"))], &[("alone", &[])]);
    let work = open(&host);
    touch(host.path("unmakable"));
    let told = complete(&work, run).await;
    assert_eq!(ends(&told), ["web 1 Failed", "alone 1 Changed"]);
    assert_eq!(log(&host), ["make"]);
}

/// It has acted, so it was not skipped; and what it is by then is known to an undo.
#[tokio::test]
async fn a_cancel_ends_it_with_what_it_is_kept() {
    for in_its_wait in [false, true] {
        let (mut host, _docker, _) = host_with(&[], &[]);
        let run = host.dispatch(&[("web", "swarm_service", web()), ("slow", "command", slow(&host))]);
        let run = host.needing(&run, &[("slow", &[])]);
        if in_its_wait {
            touch(host.path("go"));
        }
        let work = open(&host);
        let mut outbox = work.engine.attach(vec![], vec![]).await;
        work.engine.dispatch(run.clone()).await.unwrap();
        begun(&host).await;
        if in_its_wait {
            until("it is waited for", || log(&host) == ["make", "wait"]).await;
        }
        work.engine.cancel(run.run).await;
        let mut told = Told::default();
        to_the_end(&work.engine, &mut outbox, run.run, &mut told).await;
        let slow = if in_its_wait { "slow 1 Changed" } else { "slow 1 Failed" };
        assert_eq!(ends(&told), [slow, "web 1 Failed"]);
        let said = message_of(&told, "web");
        assert!(said.starts_with("cancelled by an operator: "), "{said}");
        assert_eq!(told.end().0, RunState::Cancelled);
        assert_eq!(log(&host).len(), 1 + usize::from(in_its_wait), "nothing is waited for after it");
        is_known_to_an_undo(&mut host, &work, &run).await;
    }
}

/// The agent or the host goes down meanwhile: the service is looked at again, is not made again, and the process of the
/// other resource goes its own way.
#[tokio::test]
async fn a_crash_meanwhile_leaves_only_the_wait() {
    for (runs, reboots) in [(false, false), (true, false), (false, true)] {
        let (mut host, _docker, _) = host_with(&[], &[]);
        let resources = [
            ("web", "swarm_service", web()),
            ("slow", "command", slow(&host)),
            ("all", "file", file("/etc/all", "x")),
        ];
        let run = host.dispatch(&resources);
        let run = host.needing(&run, &[("slow", &[])]);
        let work = open(&host);
        work.engine.dispatch(run.clone()).await.unwrap();
        begun(&host).await;
        work.kill().await;
        touch(host.path("go"));
        if reboots {
            host.boot = NEXT_BOOT.parse().unwrap();
        }
        if runs {
            touch(host.path("runs"));
        }
        let work = open(&host);
        if !runs {
            until("it is waited for", || log(&host) == ["make", "wait"]).await;
            assert!(!host.root().join("etc/all").exists());
            touch(host.path("runs"));
        }
        let told = whole(&work, run.run).await;
        // The exit of a process that ended by itself stands also after a restart of the host.
        let want = ["slow 1 Changed", "web 1 Interrupted", "web 2 Changed", "all 1 Changed"];
        assert_eq!(ends(&told), want, "{runs} {reboots}");
        assert_eq!(log(&host), if runs { ["make"].as_slice() } else { &["make", "wait"] });
        assert_eq!(told.end(), (RunState::Ok, "3 changed"));
        // What it is after that was kept as of any change.
        is_known_to_an_undo(&mut host, &work, &run).await;
    }
}

/// The agent goes down while nothing else is at work, so that only the service is open, and the run is cancelled before
/// it can go on.
#[tokio::test]
async fn a_cancel_before_it_is_looked_at_again_does_not_skip_it() {
    let (mut host, _docker, _) = host_with(&[], &[]);
    let run = host.dispatch(&[("web", "swarm_service", web()), ("slow", "command", slow(&host))]);
    let run = host.needing(&run, &[("slow", &[])]);
    let work = open(&host);
    work.engine.dispatch(run.clone()).await.unwrap();
    begun(&host).await;
    work.engine.cancel(run.run).await;
    work.kill().await;
    // What is on the disk ends with the step that made it, and with the cancel.
    cut_after(&host.state(), |record| !record.contains("resource_started") || record.contains(":web"));
    let work = open(&host);
    work.engine.cancel(run.run).await;
    let told = whole(&work, run.run).await;
    assert_eq!(ends(&told), ["web 1 Interrupted", "web 1 Failed", "slow 1 Skipped"]);
    assert_eq!(told.end().0, RunState::Cancelled);
    is_known_to_an_undo(&mut host, &work, &run).await;
}

#[tokio::test]
async fn a_cancel_after_a_crash_does_not_skip_what_has_acted() {
    let (mut host, _docker, _) = host_with(&[], &[]);
    let run = host.dispatch(&[("web", "swarm_service", web()), ("slow", "command", slow(&host))]);
    let run = host.needing(&run, &[("slow", &[])]);
    let work = open(&host);
    work.engine.dispatch(run.clone()).await.unwrap();
    begun(&host).await;
    work.kill().await;
    let work = open(&host);
    work.engine.cancel(run.run).await;
    let told = whole(&work, run.run).await;
    assert_eq!(ends(&told), ["slow 1 Failed", "web 1 Failed"]);
    assert_eq!(told.end().0, RunState::Cancelled);
    is_known_to_an_undo(&mut host, &work, &run).await;
}

/// The last that is on the disk is the step before the wait: that was not the end of the attempt.
#[tokio::test]
async fn a_power_cut_right_after_it_was_begun() {
    let (host, _docker, run) = host_with(&[("alone", "file", file("/etc/alone", "x"))], &[("alone", &[])]);
    let work = open(&host);
    touch(host.path("runs"));
    let id = run.run;
    work.engine.dispatch(run).await.unwrap();
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    let mut told = Told::default();
    while !told.is_over() {
        told.take(next(&mut outbox).await);
    }
    drop(outbox);
    work.kill().await;
    let later = std::cell::Cell::new(false);
    cut_after(&host.state(), |record| {
        later.set(later.get() || record.contains("resource_started") && !record.contains(":web"));
        !later.get()
    });
    std::fs::remove_file(host.path("runs")).unwrap();
    let work = open(&host);
    until("it is waited for", || log(&host) == ["make", "wait", "wait"]).await;
    touch(host.path("runs"));
    let told = whole(&work, id).await;
    assert_eq!(ends(&told), ["web 1 Interrupted", "web 2 Changed", "alone 1 Unchanged"]);
}

/// In a check nothing is begun.
#[tokio::test]
async fn a_check_puts_nothing_off() {
    let (mut host, _docker, run) =
        host_with(&[("alone", "file", file("/etc/alone", "x"))], &[("alone", &[])]);
    let work = open(&host);
    let check = host.again(&run, postern_proto::plan::Terms::check());
    let told = complete(&work, check).await;
    assert_eq!(told.outcomes(), [(1, Outcome::WouldChange), (1, Outcome::WouldChange)]);
    assert_eq!(log(&host), [""; 0]);
}
