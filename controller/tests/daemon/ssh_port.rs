//! The port of SSH: an agent that comes back by itself, what is seen of ports from here, and what is declared by runs.

use std::time::Duration;

use postern_proto::event::{EventKind, RunState, StepId};
use postern_proto::ids::InstanceId;
use postern_proto::v1;
use postern_proto::v1::controller_frame::Kind as Down;
use tonic::{Code, Status};

use crate::support::{Line, Rig, Script, begun, collect, ending, soon};

fn restart() -> v1::RestartAgentRequest {
    v1::RestartAgentRequest { host: "one".to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_back_when_a_new_process_calls() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let away = rig.operator().await.restart_agent(restart()).await.unwrap_err();
    assert_eq!((away.code(), away.message()), (Code::FailedPrecondition, "one: its agent is not connected"));
    agent.ssh_ports = vec![2222, 22];
    let (mut line, _) = agent.session(&rig).await;
    let mut operator = rig.operator().await;
    let asked = tokio::spawn(async move { operator.restart_agent(restart()).await });
    assert_eq!(line.next().await, Down::Restart(v1::Restart {}));
    // The same process on a new connection has not restarted.
    drop(line);
    let (line, _) = agent.session(&rig).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!asked.is_finished());
    drop(line);
    agent.instance = InstanceId::generate();
    let (mut line, _) = agent.session(&rig).await;
    let back = soon("the answer", asked).await.unwrap().unwrap().into_inner();
    assert_eq!((back.from_here, back.ssh_ports), (true, vec![22, 2222]), "it comes from this machine");
    assert!(back.peer.starts_with("127.0.0.1:"), "{}", back.peer);
    // One that does not know where sshd listens (it is early in a boot) takes nothing back.
    drop(line);
    agent.ssh_ports = Vec::new();
    (line, _) = agent.session(&rig).await;
    assert_eq!(rig.host(&agent.host).await.ssh_ports, [22, 2222]);
    // While it has something to do it is left alone.
    let (run, _updates) = rig.exec(&agent.host).await;
    line.dispatch().await;
    let busy = rig.operator().await.restart_agent(restart()).await.unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition);
    assert!(busy.message().contains(&run.id) && busy.message().contains("exec true"), "{busy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_come_back_is_not_taken_for_one_that_does() {
    let rig = Rig::with(|config| config.limits.restart = Duration::from_millis(300)).await;
    let mut agent = rig.agent("one").await;
    let (_line, _) = agent.session(&rig).await;
    let gone = rig.operator().await.restart_agent(restart()).await.unwrap_err();
    assert_eq!(gone.code(), Code::FailedPrecondition);
    assert!(gone.message().contains("no new process of the agent called"), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_looked_at_where_the_host_is_known() {
    let rig = Rig::start().await;
    let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(open.local_addr().unwrap().port());
    let look = async |host: &str, ports: Vec<u32>| {
        let request = v1::LookAtPortsRequest { host: host.to_owned(), ports };
        rig.operator().await.look_at_ports(request).await.map(tonic::Response::into_inner)
    };
    rig.prepare("127.0.0.1").await;
    for bad in [vec![], vec![0], vec![65_536], vec![1; 65]] {
        assert_eq!(look("127.0.0.1", bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let seen = look("127.0.0.1", vec![port]).await.unwrap();
    assert_eq!((seen.seen[0].state(), seen.seen[0].address.as_str()), (v1::PortState::Open, "127.0.0.1"));
    drop(open);
    assert_eq!(look("127.0.0.1", vec![port]).await.unwrap().seen[0].state(), v1::PortState::Refused);
    rig.prepare("no-such-host.invalid").await;
    let nowhere = look("no-such-host.invalid", vec![port]).await.unwrap();
    assert!(nowhere.seen.is_empty() && !nowhere.unobservable.is_empty(), "{nowhere:?}");
}

fn plan(ssh: &str) -> Vec<u8> {
    let spec = format!(r#"{{"allow":["22/tcp"]{ssh}}}"#);
    format!(
        r#"{{"schema":1,"resources":[{{"address":"a:firewall:inbound","kind":"firewall","schema":1,"spec":{spec}}}]}}"#
    )
    .into_bytes()
}

const OPENS: &str = "";
const CLOSES: &str = r#","ssh":"closed""#;

fn request(ssh: &str, wants: v1::SshPort) -> v1::ApplyRequest {
    v1::ApplyRequest {
        host: "one".to_owned(),
        plan: plan(ssh).into(),
        origin: "base".to_owned(),
        ssh_port: wants.into(),
        ..Default::default()
    }
}

async fn apply(rig: &Rig, request: v1::ApplyRequest) -> Result<String, Status> {
    begun(rig.operator().await.apply(request).await).await.map(|(run, _)| run.id)
}

/// Plays a run to its end.
async fn ends(rig: &Rig, line: &mut Line, run: &str, state: RunState) {
    line.dispatch().await;
    line.play(run, &[], state).await;
    assert_eq!(ending(&collect(rig.follow(run, 0).await).await).state(), v1::RunState::from(state));
}

/// The same, and a step of the firewall was begun.
async fn ends_after_a_step(rig: &Rig, line: &mut Line, run: &str) {
    line.dispatch().await;
    let mut script = Script::new(run);
    let step = StepId { address: "a:firewall:inbound".parse().unwrap(), attempt: 1, step: 0 };
    line.event(script.accepted()).await;
    line.event(script.event(EventKind::StepStarted { step, summary: "write".to_owned() })).await;
    line.event(script.finished(RunState::Failed)).await;
    line.acked(run, 3).await;
    let _ = ending(&collect(rig.follow(run, 0).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_run_that_ended_well_declares_it_and_no_other_plan_opens_it() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let (open, closed, plain) = (v1::SshPort::Open, v1::SshPort::Closed, v1::SshPort::Unspecified);
    let declared = async || rig.host(&agent.host).await.ssh_port();
    // What is asked for and what the plan says must be one, and it is never a check.
    let check = v1::ApplyRequest { check: true, ..request(CLOSES, closed) };
    for bad in [request(OPENS, closed), request(CLOSES, open), check] {
        assert_eq!(apply(&rig, bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let before = apply(&rig, request(OPENS, plain)).await.unwrap();
    ends(&rig, &mut line, &before, RunState::Failed).await;
    let touched = apply(&rig, request(OPENS, plain)).await.unwrap();
    ends_after_a_step(&rig, &mut line, &touched).await;
    // One that fails declares nothing.
    let failed = apply(&rig, request(CLOSES, closed)).await.unwrap();
    ends(&rig, &mut line, &failed, RunState::Failed).await;
    assert_eq!(declared().await, plain);
    let closing = apply(&rig, request(CLOSES, closed)).await.unwrap();
    assert_eq!(rig.host(&agent.host).await.ssh_port_changing, closing);
    // While it goes on, nobody else decides.
    for other in
        [request(CLOSES, closed), request(OPENS, open), request(OPENS, plain), request(CLOSES, plain)]
    {
        let error = apply(&rig, other).await.unwrap_err();
        assert!(error.code() == Code::FailedPrecondition && error.message().contains(&closing), "{error}");
    }
    ends(&rig, &mut line, &closing, RunState::Ok).await;
    let host = rig.host(&agent.host).await;
    assert_eq!(
        (host.ssh_port(), host.ssh_port_run, host.ssh_port_changing),
        (closed, closing.clone(), String::new())
    );
    assert!(host.ssh_port_unix_ms > 0);
    // A plan from before it was closed: refused with the way, and so is a run that is taken up again.
    let resume = v1::ResumeRunRequest { run_id: before.clone() };
    for (error, text) in [
        (apply(&rig, request(OPENS, plain)).await.unwrap_err(), "postern ssh-port open one"),
        (
            rig.operator().await.resume_run(resume).await.unwrap_err(),
            "was opened or closed since it was made",
        ),
    ] {
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains(text), "{error}");
    }
    // Looks, plans that keep it out and commands go on.
    let check = v1::ApplyRequest { check: true, ..request(OPENS, plain) };
    for good in [check, request(CLOSES, plain)] {
        let run = apply(&rig, good).await.unwrap();
        ends(&rig, &mut line, &run, RunState::Ok).await;
    }
    let (run, _) = rig.exec(&agent.host).await;
    ends(&rig, &mut line, &run.id, RunState::Ok).await;
    let behind = apply(&rig, request(CLOSES, plain)).await.unwrap();
    ends_after_a_step(&rig, &mut line, &behind).await;
    // It has a command for each way, and no undo.
    for check in [true, false] {
        let undo = v1::UndoRunRequest { run_id: closing.clone(), check };
        let error = rig.operator().await.undo_run(undo).await.unwrap_err();
        assert!(error.message().contains("`postern ssh-port open HOST`"), "{error}");
    }
    let resume = v1::ResumeRunRequest { run_id: failed };
    let error = rig.operator().await.resume_run(resume).await.unwrap_err();
    assert!(error.message().contains("`postern ssh-port close HOST`"), "{error}");
    // What was done before it was closed can be taken back where it did nothing to the firewall; otherwise that is
    // the firewall of an open port.
    let undo = |run: &str, check| v1::UndoRunRequest { run_id: run.to_owned(), check };
    for good in [undo(&before, false), undo(&touched, true)] {
        rig.operator().await.undo_run(good).await.unwrap();
        line.dispatch().await;
    }
    let error = rig.operator().await.undo_run(undo(&touched, false)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let says = "open it with `postern ssh-port open one`, undo, and close it again";
    assert!(error.message().contains(says), "{error}");
    let opening = apply(&rig, request(OPENS, open)).await.unwrap();
    ends(&rig, &mut line, &opening, RunState::Ok).await;
    let host = rig.host(&agent.host).await;
    assert_eq!((host.ssh_port(), host.ssh_port_run), (open, opening));
    // The other way round: what was done behind a closed port is not undone while it is open.
    let error = rig.operator().await.undo_run(undo(&behind, false)).await.unwrap_err();
    assert!(error.message().contains("close it with `postern ssh-port close one`, undo"), "{error}");
    let undone = rig.operator().await.undo_run(undo(&touched, false)).await.unwrap();
    drop(undone);
    line.dispatch().await;
    let run = apply(&rig, request(OPENS, plain)).await.unwrap();
    ends(&rig, &mut line, &run, RunState::Ok).await;
}
