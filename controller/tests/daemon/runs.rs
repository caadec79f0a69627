//! Runs from the operator's call to what followers read, across broken lines and restarts.

use std::time::Duration;

use postern_proto::event::{LogBody, RunState, Stream};
use postern_proto::v1;
use postern_proto::v1::agent_frame::Kind as Up;
use postern_proto::v1::controller_frame::Kind as Down;
use tonic::Code;

use crate::support::{Rig, Script, collect, ending, events, output, soon};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_from_call_to_end() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, welcome) = agent.session(&rig).await;
    assert!(welcome.acked.is_empty() && !welcome.renew);
    let (run, updates) = rig.exec("one").await;
    assert_eq!(run.state(), v1::RunState::Queued);
    let dispatch = line.dispatch().await;
    assert_eq!((dispatch.seq, &dispatch.run_id), (1, &run.id));
    assert_eq!(postern_proto::ids::PlanHash::of(&dispatch.plan).as_bytes()[..], dispatch.plan_sha256[..]);

    let mut script = Script::new(&run.id);
    line.event(script.accepted()).await;
    line.log(script.log(Stream::Stdout, b"hello ")).await;
    line.log(script.log(Stream::Stderr, b"oops\n")).await;
    line.log(script.log(Stream::Stdout, &[0xff, 0, b'\n'])).await;
    for event in script.ending() {
        line.event(event).await;
    }
    line.acked(&run.id, 4).await;

    let updates = collect(updates).await;
    assert_eq!(events(&updates), [1, 2, 3, 4]);
    assert_eq!(output(&updates, v1::Stream::Stdout), b"hello \xff\x00\n");
    assert_eq!(output(&updates, v1::Stream::Stderr), b"oops\n");
    assert_eq!(ending(&updates).state(), v1::RunState::Ok);
    assert!(ending(&updates).finished_unix_ms > 0);
    let cursors: Vec<_> = updates.iter().map(|update| update.cursor).collect();
    assert_eq!(cursors, [1, 2, 3, 4, 5, 6, 7, 7], "one for each update, and the last again for the end");

    // From every cursor on: exactly the rest, also from within a row of output.
    for cursor in 0..=7u64 {
        let rest = collect(rig.follow(&run.id, cursor).await).await;
        let cursors: Vec<_> = rest[1..rest.len() - 1].iter().map(|update| update.cursor).collect();
        assert_eq!(cursors, (cursor + 1..=7).collect::<Vec<_>>());
        let index = usize::try_from(cursor).unwrap();
        assert_eq!(rest[1..], updates[index..], "from {cursor}");
    }
    let unknown =
        v1::FollowRunRequest { run_id: postern_proto::ids::RunId::generate().to_string(), cursor: 0 };
    assert_eq!(rig.operator().await.follow_run(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn output_may_come_after_the_last_event() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let (run, updates) = rig.exec("one").await;
    line.dispatch().await;
    let mut script = Script::new(&run.id);
    let late = [script.log(Stream::Stdout, b"a"), script.log(Stream::Stdout, b"b")];
    line.event(script.accepted()).await;
    for event in script.ending() {
        line.event(event).await;
    }
    line.acked(&run.id, 4).await;
    for frame in late {
        line.log(frame).await;
    }
    let updates = collect(updates).await;
    assert_eq!(output(&updates, v1::Stream::Stdout), b"ab");
    assert_eq!(ending(&updates).state(), v1::RunState::Ok);
}

/// T35: the line breaks again and again, between sending and ack and in the middle of output. The agent says
/// what it has, gets what is committed, and sends the difference.
#[tokio::test(flavor = "multi_thread")]
async fn trap_35_nothing_lost_and_nothing_doubled_when_the_line_breaks() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let (run, updates) = rig.exec("one").await;
    line.dispatch().await;
    agent.floor = 1;
    agent.runs = vec![run.id.clone()];

    let mut script = Script::new(&run.id);
    let accepted = script.accepted();
    let frames: Vec<_> = (0..300u32)
        .map(|n| {
            let stream = if n % 3 == 0 { Stream::Stderr } else { Stream::Stdout };
            script.log(stream, format!("line {n} {}\n", "x".repeat((n as usize * 37) % 900)).as_bytes())
        })
        .collect();
    let want = |stream| {
        let mut bytes = Vec::new();
        for frame in frames.iter().filter(|frame| frame.stream == stream) {
            let LogBody::Data(data) = &frame.body else { panic!() };
            bytes.extend_from_slice(data);
        }
        bytes
    };
    let mut next = 0;
    let mut sent_accepted = false;
    for round in 0..12usize {
        if !sent_accepted {
            line.event(accepted.clone()).await;
        }
        for frame in frames.iter().skip(next).take(10 + round * 7) {
            line.log(frame.clone()).await;
        }
        // Some rounds wait for a commit before the break, some for nothing at all.
        match round % 3 {
            0 => drop(line),
            1 => {
                line.next().await;
                drop(line);
            }
            _ => {
                tokio::task::yield_now().await;
                drop(line);
            }
        }
        let (again, welcome) = agent.session(&rig).await;
        line = again;
        assert!(welcome.unknown_runs.is_empty());
        let acked = welcome.acked.iter().find(|offset| offset.run_id == run.id).unwrap();
        sent_accepted = acked.event_seq == 1;
        let committed = acked.logs.first().map_or(0, |log| usize::try_from(log.next_frame).unwrap());
        assert!(committed >= next.min(committed), "never goes back");
        next = committed;
    }
    if !sent_accepted {
        line.event(accepted).await;
    }
    for frame in &frames[next..] {
        line.log(frame.clone()).await;
    }
    for event in script.ending() {
        line.event(event).await;
    }
    line.acked(&run.id, 4).await;
    let updates = collect(updates).await;
    assert_eq!(events(&updates), [1, 2, 3, 4]);
    assert_eq!(output(&updates, v1::Stream::Stdout), want(Stream::Stdout));
    assert_eq!(output(&updates, v1::Stream::Stderr), want(Stream::Stderr));
    assert_eq!(collect(rig.follow(&run.id, 0).await).await[1..], updates[..], "the store says the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_are_acked_again_and_gaps_end_the_session() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let (run, _updates) = rig.exec("one").await;
    line.dispatch().await;
    (agent.floor, agent.runs) = (1, vec![run.id.clone()]);
    let mut script = Script::new(&run.id);
    let accepted = script.accepted();
    line.event(accepted.clone()).await;
    line.acked(&run.id, 1).await;
    line.event(accepted).await;
    line.acked(&run.id, 1).await;
    let first = script.log(Stream::Stdout, b"once");
    for _ in 0..3 {
        line.log(first.clone()).await;
    }
    line.acked_frames(0, 1).await;
    let mut wrong = script.log(Stream::Stdout, b"x");
    wrong.offset += 1;
    line.log(wrong).await;
    let goodbye = line.goodbye().await;
    assert_eq!(goodbye.reason(), v1::GoodbyeReason::Protocol);
    assert!(goodbye.message.contains("at byte 5, want 4"), "{goodbye:?}");

    let (mut line, _) = agent.session(&rig).await;
    script.frame_no = 5;
    line.log(script.log(Stream::Stdout, b"later")).await;
    assert_eq!(line.goodbye().await.reason(), v1::GoodbyeReason::Protocol);

    let (mut line, _) = agent.session(&rig).await;
    script.seq = 7;
    line.event(script.accepted()).await;
    assert_eq!(line.goodbye().await.reason(), v1::GoodbyeReason::Protocol);
    let (mut line, welcome) = agent.session(&rig).await;
    assert_eq!((welcome.acked[0].event_seq, welcome.acked[0].logs[0].next_frame), (1, 1));
    line.send(Up::Pong(v1::Pong { nonce: 99 })).await;
    line.send(agent.hello()).await;
    assert_eq!(line.goodbye().await.reason(), v1::GoodbyeReason::Protocol);
}

/// T33, T34: an agent speaks of its own runs only.
#[tokio::test(flavor = "multi_thread")]
async fn trap_33_another_hosts_run_is_out_of_reach() {
    let rig = Rig::start().await;
    let mut one = rig.agent("one").await;
    let mut two = rig.agent("two").await;
    let (mut line_one, _) = one.session(&rig).await;
    let (run, _updates) = rig.exec("one").await;
    line_one.dispatch().await;

    let (mut line, _) = two.session(&rig).await;
    let mut script = Script::new(&run.id);
    line.event(script.accepted()).await;
    assert_eq!(line.goodbye().await.reason(), v1::GoodbyeReason::Protocol);
    let (mut line, _) = two.session(&rig).await;
    line.log(script.log(Stream::Stdout, b"forged")).await;
    assert_eq!(line.goodbye().await.reason(), v1::GoodbyeReason::Protocol);
    let (mut line, _) = two.session(&rig).await;
    line.send(Up::Refused(v1::DispatchRefused { run_id: run.id.clone(), ..Default::default() })).await;
    assert_eq!(line.goodbye().await.reason(), v1::GoodbyeReason::Protocol);
    two.runs = vec![run.id.clone()];
    assert_eq!(two.dial(&rig).await.goodbye().await.reason(), v1::GoodbyeReason::Protocol);
    two.runs = vec![postern_proto::ids::RunId::generate().to_string()];
    let (_line, welcome) = two.session(&rig).await;
    assert_eq!(welcome.unknown_runs, two.runs, "a run nobody knows stays where it is");
    assert_eq!(rig.run(&run.id).await.state(), v1::RunState::Queued);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_a_run_in_flight() {
    let mut rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let (run, updates) = rig.exec("one").await;
    line.dispatch().await;
    (agent.floor, agent.runs) = (1, vec![run.id.clone()]);
    let mut script = Script::new(&run.id);
    line.event(script.accepted()).await;
    line.log(script.log(Stream::Stdout, b"before ")).await;
    line.acked_frames(0, 1).await;

    let (goodbye, ()) = tokio::join!(line.goodbye(), rig.stop());
    assert_eq!(goodbye.reason(), v1::GoodbyeReason::Shutdown);
    let mut updates = updates;
    let status = loop {
        match soon("the end of the stream", updates.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the run is not over"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);

    rig.restart().await;
    let (line, welcome) = agent.session(&rig).await;
    assert_eq!((welcome.acked[0].event_seq, welcome.acked[0].logs[0].next_frame), (1, 1));
    line.log(script.log(Stream::Stdout, b"after")).await;
    for event in script.ending() {
        line.event(event).await;
    }
    let updates = collect(rig.follow(&run.id, 0).await).await;
    assert_eq!(output(&updates, v1::Stream::Stdout), b"before after");
    assert_eq!(ending(&updates).state(), v1::RunState::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_host_is_sent_expires_or_is_cancelled() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (late, late_updates) = rig.exec("one").await;
    let (unwanted, unwanted_updates) = rig.exec("one").await;
    rig.operator().await.cancel_run(v1::CancelRunRequest { run_id: unwanted.id.clone() }).await.unwrap();
    assert_eq!(ending(&collect(unwanted_updates).await).state(), v1::RunState::Cancelled);

    rig.advance(Duration::from_secs(3601));
    let (wanted, _updates) = rig.exec("one").await;
    assert_eq!(ending(&collect(late_updates).await).state(), v1::RunState::Expired);
    assert_eq!(rig.run(&late.id).await.state(), v1::RunState::Expired);

    let (mut line, _) = agent.session(&rig).await;
    let dispatch = line.dispatch().await;
    assert_eq!((dispatch.seq, &dispatch.run_id), (1, &wanted.id), "no number was spent on what was not sent");
    // Sent and not taken: the next session sends it again under the same number.
    drop(line);
    let (mut line, _) = agent.session(&rig).await;
    let again = line.dispatch().await;
    assert_eq!((again.seq, &again.run_id), (1, &wanted.id));

    let refused = v1::DispatchRefused {
        seq: 1,
        run_id: wanted.id.clone(),
        reason: v1::RefusalReason::NoRoom.into(),
        message: "disk\u{1b}[2J full".to_owned(),
    };
    line.send(Up::Refused(refused)).await;
    let run = ending(&collect(rig.follow(&wanted.id, 0).await).await);
    assert_eq!(run.state(), v1::RunState::Refused);
    assert_eq!(run.message, "refused by the agent: the host has no room for it: disk\\u{1b}[2J full");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_what_runs_tells_the_agent_now_or_when_it_is_back() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let (run, _updates) = rig.exec("one").await;
    line.dispatch().await;
    (agent.floor, agent.runs) = (1, vec![run.id.clone()]);
    line.event(Script::new(&run.id).accepted()).await;
    line.acked(&run.id, 1).await;
    let cancel = v1::CancelRunRequest { run_id: run.id.clone() };
    rig.operator().await.cancel_run(cancel.clone()).await.unwrap();
    assert_eq!(line.next().await, Down::Cancel(v1::CancelRun { run_id: run.id.clone() }));
    drop(line);
    let (mut line, _) = agent.session(&rig).await;
    assert_eq!(line.next().await, Down::Cancel(v1::CancelRun { run_id: run.id.clone() }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_lost_is_said() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let (started, started_updates) = rig.exec("one").await;
    let (taken, taken_updates) = rig.exec("one").await;
    line.dispatch().await;
    line.dispatch().await;
    line.event(Script::new(&started.id).accepted()).await;
    line.acked(&started.id, 1).await;
    drop(line);
    // It took both and knows neither: one had started, of the other only a refusal can have been lost.
    agent.floor = 2;
    agent.session(&rig).await;
    assert_eq!(ending(&collect(started_updates).await).state(), v1::RunState::Interrupted);
    let run = ending(&collect(taken_updates).await);
    assert_eq!((run.id.as_str(), run.state()), (taken.id.as_str(), v1::RunState::Refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused_before_anything_is_written() {
    let rig = Rig::with(|config| config.limits.runs_per_host = 2).await;
    rig.agent("one").await;
    let mut operator = rig.operator().await;
    let apply = |host: &str, plan: &[u8]| v1::ApplyRequest {
        host: host.to_owned(),
        plan: plan.to_vec().into(),
        origin: "test".to_owned(),
        ..Default::default()
    };
    let good = br#"{"schema":1,"resources":[]}"#;
    for (request, code) in [
        (apply("nobody", good), Code::NotFound),
        (apply(&postern_proto::ids::HostId::generate().to_string(), good), Code::NotFound),
        (apply("one", b"{}"), Code::InvalidArgument),
        (
            apply(
                "one",
                br#"{"schema":1,"resources":[{"address":"a:b:c","kind":"warp","schema":1,"spec":{}}]}"#,
            ),
            Code::InvalidArgument,
        ),
        (apply("one", &vec![b' '; postern_proto::MAX_PLAN_BYTES + 1]), Code::InvalidArgument),
    ] {
        assert_eq!(operator.apply(request).await.unwrap_err().code(), code);
    }
    let spec = |text: &str| v1::ExecRequest {
        host: "one".to_owned(),
        command_spec: text.as_bytes().to_vec().into(),
    };
    for bad in ["", "{}", r#"{"argv":[]}"#, r#"{"argv":["a"],"shell":"b"}"#] {
        assert_eq!(operator.exec(spec(bad)).await.unwrap_err().code(), Code::InvalidArgument, "{bad}");
    }
    assert!(operator.list_runs(v1::ListRunsRequest::default()).await.unwrap().into_inner().runs.is_empty());
    let _first = operator.apply(apply("one", good)).await.unwrap();
    let _second = operator.apply(apply("one", good)).await.unwrap();
    assert_eq!(operator.apply(apply("one", good)).await.unwrap_err().code(), Code::ResourceExhausted);
}

/// How long `exec true` takes here, from the call to the end of the run, all of it durable.
#[tokio::test(flavor = "multi_thread")]
async fn dispatch_is_quick() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let double = tokio::spawn(async move {
        loop {
            if let Down::Dispatch(dispatch) = line.next().await {
                let mut script = Script::new(&dispatch.run_id);
                line.event(script.accepted()).await;
                for event in script.ending() {
                    line.event(event).await;
                }
            }
        }
    });
    let mut operator = rig.operator().await;
    let mut took = Vec::new();
    for _ in 0..50 {
        let begin = std::time::Instant::now();
        let request = v1::ExecRequest {
            host: agent.host.clone(),
            command_spec: br#"{"argv":["true"]}"#.to_vec().into(),
        };
        let updates = operator.exec(request).await.unwrap().into_inner();
        assert_eq!(ending(&collect(updates).await).state(), v1::RunState::Ok);
        took.push(begin.elapsed());
    }
    double.abort();
    took.sort();
    println!("exec true with a stand-in agent: p50 {:?}, p90 {:?}, max {:?}", took[25], took[45], took[49]);
    // Far above what is measured, so that a busy machine does not fail it, and far below any polling.
    assert!(took[25] < Duration::from_millis(250), "{took:?}");
}

/// T33: what an agent said last stands. It may not go on with a run that it has finished, also not on a new
/// session.
#[tokio::test(flavor = "multi_thread")]
async fn trap_33_nothing_is_added_to_a_run_that_was_finished() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let (run, updates) = rig.exec("one").await;
    line.dispatch().await;
    let mut script = Script::new(&run.id);
    line.event(script.accepted()).await;
    line.log(script.log(Stream::Stdout, b"a")).await;
    for event in script.ending() {
        line.event(event).await;
    }
    line.acked(&run.id, 4).await;
    let before = collect(updates).await;
    agent.floor = 1;
    agent.runs = vec![run.id.clone()];

    let (mut line, _) = agent.session(&rig).await;
    line.log(script.log(Stream::Stdout, b"more")).await;
    assert_eq!(line.goodbye().await.reason(), v1::GoodbyeReason::Protocol);
    let (mut line, _) = agent.session(&rig).await;
    line.event(script.finished(RunState::Failed)).await;
    assert_eq!(line.goodbye().await.reason(), v1::GoodbyeReason::Protocol);
    let after = collect(rig.follow(&run.id, 0).await).await;
    assert_eq!(output(&after, v1::Stream::Stdout), b"a");
    assert_eq!((events(&after), ending(&after)), (events(&before), ending(&before)));
}
