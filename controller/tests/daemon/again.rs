//! Runs made from runs: resumed and taken back; and what is written down beside a run: assigned profiles,
//! approvals, that it waits.

use postern_proto::event::{EventKind, Outcome, RunState};
use postern_proto::plan::Terms;
use postern_proto::v1;
use tonic::Code;

use crate::support::{Line, Rig, Script, begun, collect, ending};

const PLAN: &[u8] = br#"{"schema":1,"resources":[
    {"address":"a:command:one","kind":"command","schema":1,"spec":{"argv":["one"]}},
    {"address":"a:package:curl","kind":"package","schema":1,"spec":{"name":"curl"}},
    {"address":"a:command:two","kind":"command","schema":1,"spec":{"argv":["two"]}},
    {"address":"a:command:three","kind":"command","schema":1,"spec":{"argv":["three"]}}]}"#;

fn apply(host: &str) -> v1::ApplyRequest {
    v1::ApplyRequest {
        host: host.to_owned(),
        plan: PLAN.to_vec().into(),
        origin: "base".to_owned(),
        ..Default::default()
    }
}

fn profile(name: &str, bundle: &str) -> v1::AssignedProfile {
    v1::AssignedProfile {
        name: name.to_owned(),
        bundle: bundle.as_bytes().to_vec().into(),
        vars: [("user".to_owned(), "ops".to_owned())].into(),
        assigned_unix_ms: 0,
        covers: Vec::new(),
    }
}

fn terms(dispatch: &v1::Dispatch) -> Terms {
    dispatch.terms.clone().unwrap().try_into().unwrap()
}

fn resume(run: &str) -> v1::ResumeRunRequest {
    v1::ResumeRunRequest { run_id: run.to_owned() }
}

fn undo(run: &str, check: bool) -> v1::UndoRunRequest {
    v1::UndoRunRequest { run_id: run.to_owned(), check }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_run_knows_what_was_done_also_by_the_one_before() {
    let rig = Rig::start().await;
    let mut operator = rig.operator().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let (first, _) = begun(operator.apply(apply("one")).await).await.unwrap();
    assert_eq!(terms(&line.dispatch().await), Terms::default());
    let error = begun(operator.resume_run(resume(&first.id)).await).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let outcomes = [
        ("a:command:one", Outcome::Changed),
        ("a:package:curl", Outcome::Changed),
        ("a:command:two", Outcome::Interrupted),
    ];
    line.play(&first.id, &outcomes, RunState::Interrupted).await;

    let (second, _) = begun(operator.resume_run(resume(&first.id)).await).await.unwrap();
    assert_eq!((second.resumes.as_str(), second.plan_sha256), (first.id.as_str(), first.plan_sha256.clone()));
    let dispatch = line.dispatch().await;
    assert_eq!((&dispatch.plan[..], &dispatch.run_id), (PLAN, &second.id));
    assert_eq!(terms(&dispatch).done, ["a:command:one".parse().unwrap()]);
    line.play(&second.id, &[("a:command:two", Outcome::Changed)], RunState::Failed).await;

    let (third, updates) = begun(operator.resume_run(resume(&second.id)).await).await.unwrap();
    let done = ["a:command:one", "a:command:two"].map(|address| address.parse().unwrap());
    assert_eq!(terms(&line.dispatch().await).done, done);
    line.play(&third.id, &[("a:command:three", Outcome::Changed)], RunState::Ok).await;
    assert_eq!(ending(&collect(updates).await).resumes, second.id);
    let error = begun(operator.resume_run(resume(&third.id)).await).await.unwrap_err();
    assert!(error.message().contains("nothing to resume"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_taken_back_by_another_one() {
    let rig = Rig::start().await;
    let mut operator = rig.operator().await;
    let mut agent = rig.agent("one").await;
    let (run, _) = begun(operator.apply(apply("one")).await).await.unwrap();
    let error = begun(operator.undo_run(undo(&run.id, false)).await).await.unwrap_err();
    assert!(error.message().contains("not over"), "{error}");
    let (mut line, _) = agent.session(&rig).await;
    line.dispatch().await;
    line.play(&run.id, &[("a:package:curl", Outcome::Changed)], RunState::Failed).await;

    for check in [true, false] {
        let (taken_back, _) = begun(operator.undo_run(undo(&run.id, check)).await).await.unwrap();
        assert_eq!((taken_back.undoes.as_str(), taken_back.check), (run.id.as_str(), check));
        let dispatch = line.dispatch().await;
        assert_eq!(&dispatch.plan[..], PLAN);
        let want = Terms { check, undo_of: Some(run.id.parse().unwrap()), ..Terms::default() };
        assert_eq!(terms(&dispatch), want);
        line.play(&taken_back.id, &[], RunState::Failed).await;
        // What was cut off goes on as what it was.
        let (again, _) = begun(operator.resume_run(resume(&taken_back.id)).await).await.unwrap();
        assert_eq!((again.resumes, again.undoes), (taken_back.id.clone(), run.id.clone()));
        assert_eq!(terms(&line.dispatch().await), want);
        line.play(&again.id, &[], RunState::Ok).await;
        // An undo is taken back like any other run; what was only shown is not.
        let back = begun(operator.undo_run(undo(&taken_back.id, false)).await).await;
        if check {
            assert_eq!(back.unwrap_err().code(), Code::FailedPrecondition);
            continue;
        }
        let (back, _) = back.unwrap();
        assert_eq!(terms(&line.dispatch().await).undo_of, Some(taken_back.id.parse().unwrap()));
        line.play(&back.id, &[], RunState::Ok).await;
    }
    let check = v1::ApplyRequest { check: true, ..apply("one") };
    let (check, _) = begun(operator.apply(check).await).await.unwrap();
    line.dispatch().await;
    line.play(&check.id, &[("a:package:curl", Outcome::WouldChange)], RunState::Ok).await;
    let error = begun(operator.undo_run(undo(&check.id, false)).await).await.unwrap_err();
    assert!(error.message().contains("was a check"), "{error}");
    // Of a host that is gone there is nothing to take back.
    let request = v1::ForgetHostRequest { host: "one".to_owned(), record_only: true };
    operator.forget_host(request).await.unwrap();
    for again in [
        begun(operator.undo_run(undo(&run.id, false)).await).await,
        begun(operator.resume_run(resume(&run.id)).await).await,
    ] {
        assert_eq!(again.unwrap_err().code(), Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_begun_is_not_taken_back() {
    let rig = Rig::start().await;
    let mut operator = rig.operator().await;
    rig.agent("one").await;
    let (run, _) = begun(operator.apply(apply("one")).await).await.unwrap();
    operator.cancel_run(v1::CancelRunRequest { run_id: run.id.clone() }).await.unwrap();
    let error = begun(operator.undo_run(undo(&run.id, false)).await).await.unwrap_err();
    assert!(error.message().contains("never begun"), "{error}");
    // It can be resumed: all of it is still to be done.
    let (again, _) = begun(operator.resume_run(resume(&run.id)).await).await.unwrap();
    assert_eq!(again.resumes, run.id);
    let unknown = postern_proto::ids::RunId::generate().to_string();
    let error = begun(operator.resume_run(resume(&unknown)).await).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_says_so_and_is_not_over() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let (run, updates) = rig.exec("one").await;
    line.dispatch().await;
    let mut script = Script::new(&run.id);
    line.event(script.accepted()).await;
    line.event(script.event(EventKind::Parked { why: "waits for secret db".into() })).await;
    line.acked(&run.id, 2).await;
    let seen = rig.run(&run.id).await;
    assert_eq!((seen.state(), seen.message.as_str()), (v1::RunState::Parked, "waits for secret db"));
    // A parked run is open: it is the agent's to end, and told to stop.
    agent.floor = 1;
    agent.runs = vec![run.id.clone()];
    let request = v1::CancelRunRequest { run_id: run.id.clone() };
    rig.operator().await.cancel_run(request).await.unwrap();
    assert_eq!(rig.run(&run.id).await.state(), v1::RunState::Parked);
    line.event(script.event(EventKind::Unparked)).await;
    loop {
        use postern_proto::v1::controller_frame::Kind as Down;
        match line.next().await {
            Down::Ack(ack) if ack.offset.as_ref().unwrap().event_seq == 3 => break,
            Down::Ack(_) | Down::Cancel(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let seen = rig.run(&run.id).await;
    assert_eq!((seen.state(), seen.message.as_str()), (v1::RunState::Running, ""));
    for event in script.ending() {
        line.event(event).await;
    }
    assert_eq!(ending(&collect(updates).await).state(), v1::RunState::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn approvals_go_with_the_run() {
    let rig = Rig::start().await;
    let mut operator = rig.operator().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let approval = |seen: &str| v1::Approval { address: "a:command:one".to_owned(), seen: seen.to_owned() };
    let seen = "ab".repeat(32);
    let request = v1::ApplyRequest { approved: vec![approval(&seen)], ..apply("one") };
    let (run, _) = begun(operator.apply(request).await).await.unwrap();
    let approved = terms(&line.dispatch().await).approved;
    assert_eq!((approved.len(), &approved[0].seen), (1, &seen));
    // What was approved was approved of the state before.
    line.play(&run.id, &[], RunState::Failed).await;
    begun(operator.resume_run(resume(&run.id)).await).await.unwrap();
    assert!(terms(&line.dispatch().await).approved.is_empty());
    let request = v1::ApplyRequest { approved: vec![approval("no digest")], ..apply("one") };
    assert_eq!(begun(operator.apply(request).await).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_are_assigned_with_the_run_in_their_order() {
    let mut rig = Rig::with(|config| config.limits.runs_per_host = 2).await;
    let mut operator = rig.operator().await;
    let agent = rig.agent("one").await;
    let with = |assign: Vec<v1::AssignedProfile>| v1::ApplyRequest { assign, ..apply("one") };
    let both = vec![profile("base", "1"), profile("swarm", "2")];
    let check = v1::ApplyRequest { check: true, ..with(both.clone()) };
    assert_eq!(begun(operator.apply(check).await).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(rig.host(&agent.host).await.profiles, [""; 0]);
    begun(operator.apply(with(both)).await).await.unwrap();
    // In its place, with what it is now.
    begun(operator.apply(with(vec![profile("tunnel", "3"), profile("base", "4")])).await).await.unwrap();
    // One too many runs: nothing of it is written, neither the run nor the profile.
    let refused = begun(operator.apply(with(vec![profile("more", "5")])).await).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(rig.host(&agent.host).await.profiles, ["base", "swarm", "tunnel"]);

    rig.restart().await;
    let mut operator = rig.operator().await;
    let list = v1::ListAssignedRequest { host: "one".to_owned() };
    let profiles = operator.list_assigned(list.clone()).await.unwrap().into_inner().profiles;
    let seen: Vec<_> = profiles.iter().map(|it| (it.name.as_str(), &it.bundle[..])).collect();
    assert_eq!(seen, [("base", &b"4"[..]), ("swarm", b"2"), ("tunnel", b"3")]);
    assert!(profiles.iter().all(|it| it.assigned_unix_ms > 0 && it.vars["user"] == "ops"));

    let unassign =
        |profile: &str| v1::UnassignRequest { host: "one".to_owned(), profile: profile.to_owned() };
    operator.unassign(unassign("swarm")).await.unwrap();
    assert_eq!(operator.unassign(unassign("swarm")).await.unwrap_err().code(), Code::NotFound);
    let profiles = operator.list_assigned(list).await.unwrap().into_inner().profiles;
    assert_eq!(profiles.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["base", "tunnel"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_renamed_labelled_and_given_variables() {
    let rig = Rig::start().await;
    let mut operator = rig.operator().await;
    let (one, _) = rig.prepare("one").await;
    rig.prepare("two").await;
    let map =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let mut change = async |request: v1::UpdateHostRequest| {
        let request = v1::UpdateHostRequest { host: one.clone(), ..request };
        operator.update_host(request).await.map(|answer| answer.into_inner().host.unwrap())
    };
    let host = change(v1::UpdateHostRequest {
        name: "web".to_owned(),
        set_labels: map(&[("role", "web"), ("site", "a")]),
        set_vars: map(&[("admin", "ops"), ("port", "2222")]),
        ..Default::default()
    })
    .await
    .unwrap();
    assert_eq!((host.name.as_str(), host.labels.len(), host.vars.len()), ("web", 2, 2));
    let host = change(v1::UpdateHostRequest {
        set_labels: map(&[("role", "db")]),
        remove_labels: vec!["site".to_owned(), "none".to_owned()],
        remove_vars: vec!["port".to_owned()],
        ..Default::default()
    })
    .await
    .unwrap();
    assert_eq!((host.labels, host.vars), (map(&[("role", "db")]), map(&[("admin", "ops")])));
    assert_eq!(rig.host(&one).await.vars, map(&[("admin", "ops")]));

    let named = |name: &str| v1::UpdateHostRequest { name: name.to_owned(), ..Default::default() };
    assert_eq!(change(named("two")).await.unwrap_err().code(), Code::AlreadyExists);
    for bad in ["all", "a b", "-x"] {
        assert_eq!(change(named(bad)).await.unwrap_err().code(), Code::InvalidArgument, "{bad}");
    }
    for (name, value) in [("a-b", "x"), ("1a", "x"), ("a", "\0"), ("a", "x".repeat(16 * 1024 + 1).as_str())] {
        let request = v1::UpdateHostRequest { set_vars: map(&[(name, value)]), ..Default::default() };
        assert_eq!(change(request).await.unwrap_err().code(), Code::InvalidArgument, "{name}");
    }
    let many = (0..300).map(|n| (format!("v{n}"), String::new())).collect();
    let request = v1::UpdateHostRequest { set_vars: many, ..Default::default() };
    assert_eq!(change(request).await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(rig.host(&one).await.name, "web");
    let gone = v1::UpdateHostRequest { host: "one".to_owned(), ..Default::default() };
    assert_eq!(rig.operator().await.update_host(gone).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_takes_back_what_its_run_assigned_and_can_be_undone() {
    let rig = Rig::start().await;
    let mut operator = rig.operator().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let assigned = async |rig: &Rig| {
        let list = v1::ListAssignedRequest { host: "one".to_owned() };
        let profiles = rig.operator().await.list_assigned(list).await.unwrap().into_inner().profiles;
        let text = |it: &v1::AssignedProfile| format!("{}={}", it.name, String::from_utf8_lossy(&it.bundle));
        profiles.iter().map(text).collect::<Vec<_>>().join(" ")
    };
    let with = |assign: Vec<v1::AssignedProfile>| v1::ApplyRequest { assign, ..apply("one") };
    applied(&rig, &mut line, with(vec![profile("swarm", "1"), profile("site", "1"), profile("base", "1")]))
        .await;
    // One takes the place of two others, wherever they stood.
    let mut tunnel = profile("tunnel", "2");
    tunnel.covers = ["base", "swarm", "tunnel", "other"].map(str::to_owned).into();
    let second = applied(&rig, &mut line, with(vec![profile("extra", "2"), tunnel])).await;
    assert_eq!(assigned(&rig).await, "tunnel=2 site=1 extra=2");

    // To look what an undo would do changes nothing of it.
    let (check, _) = begun(operator.undo_run(undo(&second, true)).await).await.unwrap();
    assert_eq!(assigned(&rig).await, "tunnel=2 site=1 extra=2");
    ended(&mut line, check).await;
    // What somebody assigned since is not the run's to take away.
    applied(&rig, &mut line, with(vec![profile("extra", "3")])).await;
    let third = undone(&rig, &mut line, &second).await;
    assert_eq!(assigned(&rig).await, "swarm=1 site=1 base=1 extra=3");
    undone(&rig, &mut line, &third).await;
    assert_eq!(assigned(&rig).await, "tunnel=2 site=1 extra=3");

    // What a run takes away comes back with its undo, in its place.
    let without = ["site", "none"].map(str::to_owned).into();
    let order = v1::ApplyRequest { unassign: without, ..with(Vec::new()) };
    let check = v1::ApplyRequest { check: true, ..order.clone() };
    assert_eq!(begun(operator.apply(check).await).await.unwrap_err().code(), Code::InvalidArgument);
    // Only when it has ended well: one that failed can be asked for again, or resumed.
    let (failed, _) = begun(rig.operator().await.apply(order).await).await.unwrap();
    line.dispatch().await;
    line.play(&failed.id, &[("a:package:curl", Outcome::Failed)], RunState::Failed).await;
    assert_eq!(assigned(&rig).await, "tunnel=2 site=1 extra=3");
    let (again, _) = begun(operator.resume_run(resume(&failed.id)).await).await.unwrap();
    let fourth = ended(&mut line, again).await;
    assert_eq!(assigned(&rig).await, "tunnel=2 extra=3");
    undone(&rig, &mut line, &fourth).await;
    assert_eq!(assigned(&rig).await, "tunnel=2 site=1 extra=3");

    // The same once more is still the assignment of the run that made it; anew with other words, it is not, and what it
    // covers does not come back beside it.
    let cover = |bundle: &str| {
        let mut cover = profile("cover", bundle);
        cover.covers = vec!["extra".to_owned()];
        cover
    };
    let fifth = applied(&rig, &mut line, with(vec![cover("4")])).await;
    applied(&rig, &mut line, with(vec![cover("4")])).await;
    let sixth = undone(&rig, &mut line, &fifth).await;
    assert_eq!(assigned(&rig).await, "tunnel=2 site=1 extra=3");
    undone(&rig, &mut line, &sixth).await;
    applied(&rig, &mut line, with(vec![cover("5")])).await;
    undone(&rig, &mut line, &fifth).await;
    assert_eq!(assigned(&rig).await, "tunnel=2 site=1 cover=5");
}

async fn applied(rig: &Rig, line: &mut Line, order: v1::ApplyRequest) -> String {
    ended(line, begun(rig.operator().await.apply(order).await).await.unwrap().0).await
}

async fn undone(rig: &Rig, line: &mut Line, run: &str) -> String {
    ended(line, begun(rig.operator().await.undo_run(undo(run, false)).await).await.unwrap().0).await
}

async fn ended(line: &mut Line, run: v1::Run) -> String {
    line.dispatch().await;
    line.play(&run.id, &[("a:package:curl", Outcome::Changed)], RunState::Ok).await;
    run.id
}
