//! The link over real sockets on loopback, against a controller double with a CA of its own.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postern_agent::engine::{Refusal, RefusalReason};
use postern_agent::link::enrol::{self, EnrolOptions};
use postern_agent::link::http2::KeepAlive;
use postern_agent::link::identity::{Identity, IdentityStore};
use postern_agent::link::names::Names;
use postern_agent::link::{AgentError, AgentOptions, ExitReason, run_link};
use postern_proto::SERVER_NAME;
use postern_proto::host::{EnrolReport, exit};
use postern_proto::ids::{ClusterId, HostId, PlanHash, RunId};
use postern_proto::v1::{self, agent_frame, controller_frame};
use rcgen::ExtendedKeyUsagePurpose;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::support::*;

const YEAR: i64 = 365 * DAY;

/// An enrolled agent that runs, with a double of its engine.
struct Agent {
    state: TempDir,
    engine: Arc<FakeEngine>,
    shutdown: CancellationToken,
    task: AbortOnDropHandle<Result<ExitReason, AgentError>>,
}

async fn enrolled(controller: &TestController) -> (TempDir, HostId) {
    let (state, host) = (tempfile::tempdir().unwrap(), HostId::generate());
    let options = enrol_options(controller.config(host), state.path());
    let (code, report) = within("enrolment", enrol::enrol(&options, TOKEN)).await;
    assert_eq!((code, report.error.as_str()), (exit::OK, ""));
    (state, host)
}

impl Agent {
    async fn start(controller: &TestController) -> Self {
        Self::start_with(controller, |_| {}).await
    }

    async fn start_with(controller: &TestController, change: impl FnOnce(&mut AgentOptions)) -> Self {
        let (state, host) = enrolled(controller).await;
        Self::run(controller, state, host, change)
    }

    fn run(
        controller: &TestController,
        state: TempDir,
        host: HostId,
        change: impl FnOnce(&mut AgentOptions),
    ) -> Self {
        let mut options = agent_options(controller.config(host), state.path());
        change(&mut options);
        let (engine, shutdown) = (Arc::new(FakeEngine::default()), CancellationToken::new());
        let run = run_link(options, Arc::new(FakePort(engine.clone())), shutdown.clone());
        Self { state, engine, shutdown, task: AbortOnDropHandle::new(tokio::spawn(run)) }
    }

    fn identity(&self) -> Identity {
        IdentityStore::new(self.state.path()).load().unwrap()
    }
}

fn identity_file(state: &Path) -> std::path::PathBuf {
    state.join("identity/identity.json")
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn enrolment_writes_a_private_identity_and_a_session_comes_up() {
    let mut controller = TestController::start().await;
    let agent = Agent::start(&controller).await;
    let file = identity_file(agent.state.path());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));

    let mut session = controller.session().await;
    assert_eq!(session.hello.cluster_id, controller.cluster.to_string());
    assert_eq!((session.hello.wire_min, session.hello.wire_max), (1, 1));
    assert_eq!(session.hello.kinds.len(), postern_proto::spec::KINDS.len());
    session.welcome(controller.cluster, |welcome| welcome.epoch = 3).await;
    session.send(controller_frame::Kind::Ping(v1::Ping { nonce: 42 })).await;
    let Some(agent_frame::Kind::Pong(pong)) = session.next().await else { panic!("no pong") };
    assert_eq!((pong.nonce, agent.engine.epoch()), (42, 3));

    // A plan goes to the engine; one that it refuses comes back with its reason.
    let run = RunId::generate();
    let dispatch = |seq| {
        controller_frame::Kind::Dispatch(v1::Dispatch {
            seq,
            run_id: run.to_string(),
            plan: b"{}".as_slice().into(),
            plan_sha256: PlanHash::of(b"{}").as_bytes().to_vec().into(),
            epoch: 3,
            ..Default::default()
        })
    };
    session.send(dispatch(1)).await;
    until("the dispatch", || agent.engine.dispatches().len() == 1).await;
    agent.engine.refuse(Refusal { reason: RefusalReason::NoRoom, message: "full".into() });
    session.send(dispatch(2)).await;
    let Some(agent_frame::Kind::Refused(refused)) = session.next().await else { panic!("no refusal") };
    assert_eq!((refused.seq, refused.reason()), (2, v1::RefusalReason::NoRoom));

    agent.shutdown.cancel();
    assert_eq!(within("the end", agent.task).await.unwrap().unwrap(), ExitReason::Stopped);
}

#[tokio::test]
async fn a_refused_token_leaves_what_is_there_as_it_is() {
    let controller = TestController::start().await;
    let (state, host) = (tempfile::tempdir().unwrap(), HostId::generate());
    let options = enrol_options(controller.config(host), state.path());
    let (code, report) = enrol::enrol(&options, "another").await;
    assert_eq!(code, exit::REFUSED);
    assert!(report.error.contains("the token was used already"), "{}", report.error);
    assert_eq!(report.reached.as_deref(), Some(controller.at.to_string().as_str()));
    assert!(!identity_file(state.path()).exists());

    let (state, host) = enrolled(&controller).await;
    let before = std::fs::read(identity_file(state.path())).unwrap();
    let options = enrol_options(controller.config(host), state.path());
    assert_eq!(enrol::enrol(&options, "another").await.0, exit::REFUSED);
    let other = enrol_options(controller.config(HostId::generate()), state.path());
    assert_eq!(enrol::enrol(&other, "another").await.0, exit::REFUSED);
    assert_eq!(std::fs::read(identity_file(state.path())).unwrap(), before);
}

#[tokio::test]
async fn the_same_host_keeps_its_key_and_another_host_does_not() {
    let controller = TestController::start().await;
    let (state, host) = enrolled(&controller).await;
    std::fs::write(state.path().join("journal"), "runs").unwrap();
    for id in [host, HostId::generate()] {
        let options = enrol_options(controller.config(id), state.path());
        assert_eq!(enrol::enrol(&options, TOKEN).await.0, exit::OK);
        assert_eq!(IdentityStore::new(state.path()).load().unwrap().host(), id);
        assert_eq!(state.path().join("journal").exists(), id == host);
    }
    let keys = controller.behaviour.lock().unwrap().keys.clone();
    assert_eq!(keys[0], keys[1]);
    assert_ne!(keys[1], keys[2]);
}

#[tokio::test]
async fn a_corrupt_or_newer_identity_stops_enrolment_and_the_agent() {
    let controller = TestController::start().await;
    for (text, code) in [("{\"version\":1", exit::CORRUPT), ("{\"version\":9}\n", exit::TOO_NEW)] {
        let (state, host) = enrolled(&controller).await;
        std::fs::write(identity_file(state.path()), text).unwrap();
        let options = enrol_options(controller.config(host), state.path());
        assert_eq!(enrol::enrol(&options, TOKEN).await.0, code);
        let agent = Agent::run(&controller, state, host, |_| {});
        assert_eq!(within("the end", agent.task).await.unwrap().unwrap_err().exit_code(), code);
    }
    let agent = Agent::run(&controller, tempfile::tempdir().unwrap(), HostId::generate(), |_| {});
    assert_eq!(within("the end", agent.task).await.unwrap().unwrap_err().exit_code(), exit::NOT_ENROLLED);
}

async fn probe(options: &EnrolOptions) -> (i32, EnrolReport) {
    within("a probe", enrol::probe(options)).await
}

fn probe_of(ca: &TestCa, at: &str) -> EnrolOptions {
    enrol_options(config(HostId::generate(), ca, at), Path::new("/nonexistent"))
}

#[tokio::test]
async fn trap_32_what_is_not_this_controller_is_told_apart_and_gets_no_token() {
    let good = TestController::start().await;
    let (code, report) = probe(&probe_of(&good.ca, &good.at.to_string())).await;
    assert_eq!((code, report.reached.as_deref()), (exit::OK, Some(good.at.to_string().as_str())));

    let validity = (now_s() - DAY, now_s() + DAY);
    let client = Some(ExtendedKeyUsagePurpose::ClientAuth);
    let server = Some(ExtendedKeyUsagePurpose::ServerAuth);
    let ca = || Arc::new(TestCa::new());
    let (trap_32_a, trap_32_b, trap_32_c, no_usage, name, old) = (ca(), ca(), ca(), ca(), ca(), ca());
    for (what, theirs, certificate, trusted) in [
        ("another CA", ca(), None, ca()),
        // T32: an agent's certificate, even with the controller's name in it.
        (
            "an agent's certificate",
            trap_32_a.clone(),
            Some(TestCa::issue(&trap_32_a.agents, client.clone(), SERVER_NAME, validity)),
            trap_32_a,
        ),
        (
            "the agents' issuer with the servers' purpose",
            trap_32_b.clone(),
            Some(TestCa::issue(&trap_32_b.agents, server.clone(), SERVER_NAME, validity)),
            trap_32_b,
        ),
        (
            "the servers' issuer with the agents' purpose",
            trap_32_c.clone(),
            Some(TestCa::issue(&trap_32_c.servers, client, SERVER_NAME, validity)),
            trap_32_c,
        ),
        (
            "no purpose",
            no_usage.clone(),
            Some(TestCa::issue(&no_usage.root, None, SERVER_NAME, validity)),
            no_usage,
        ),
        (
            "another name",
            name.clone(),
            Some(TestCa::issue(&name.servers, server.clone(), "controller.example", validity)),
            name,
        ),
    ] {
        let certificate = certificate.unwrap_or_else(|| theirs.server(validity));
        let impostor = TestController::with(theirs, &certificate).await;
        let state = tempfile::tempdir().unwrap();
        let mut options = probe_of(&trusted, &impostor.at.to_string());
        options.state_dir = state.path().into();
        let (code, report) = within(what, enrol::enrol(&options, TOKEN)).await;
        assert_eq!(code, exit::NOT_THE_CONTROLLER, "{what}: {}", report.error);
        assert!(report.tried[0].error.contains("not this controller"), "{what}: {:?}", report.tried);
        assert_eq!(impostor.behaviour.lock().unwrap().enrolments, 0, "{what}: it got the token");
    }
    // Expired by the host's clock and later than any floor: accepted, which is the rule of T49.
    let expired = TestController::with(old.clone(), &old.server((now_s() - 2 * DAY, now_s() - DAY))).await;
    assert_eq!(probe(&probe_of(&old, &expired.at.to_string())).await.0, exit::OK);
}

#[tokio::test]
async fn every_way_an_address_can_be_no_good_has_its_own_words() {
    let ca = TestCa::new();
    let garbage = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let (garbage_at, silent_at, closing_at, refused_at) =
        (at(&garbage), at(&silent), at(&closing), at(&refused));
    drop(refused);
    let _servers = [
        AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok((mut tcp, _)) = garbage.accept().await {
                let _ = tcp.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n").await;
                let _ = tcp.read_u8().await;
            }
        })),
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok(accepted) = silent.accept().await {
                open.push(accepted);
            }
        })),
        AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok((mut tcp, _)) = closing.accept().await {
                let _ = tcp.read(&mut [0; 4096]).await;
            }
        })),
    ];
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 named.test\n").unwrap();
    let named = format!("named.test:{}", refused_at.rsplit(':').next().unwrap());
    for (address, code, says) in [
        (garbage_at.as_str(), exit::NOT_THE_CONTROLLER, "not a controller"),
        (&closing_at, exit::NOT_THE_CONTROLLER, "closes the connection during the TLS handshake"),
        (&silent_at, exit::UNREACHABLE, "timed out (it accepts connections and says nothing)"),
        (&refused_at, exit::UNREACHABLE, "connection refused"),
        (&named, exit::UNREACHABLE, "connection refused"),
        ("no controller", exit::USAGE, "is not an address"),
    ] {
        let mut options = probe_of(&ca, address);
        options.names = Names { hosts: hosts.clone(), ..Names::default() };
        let (got, report) = probe(&options).await;
        assert_eq!(got, code, "{address}: {}", report.error);
        assert!(report.error.contains(says), "{address}: {}", report.error);
    }
}

#[tokio::test]
async fn routes_are_tried_in_order_and_the_report_names_each() {
    let controller = TestController::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let mut options = probe_of(&controller.ca, &closed);
    options.config.temporary_route = Some(controller.at.to_string());
    let (code, report) = probe(&options).await;
    assert_eq!((code, report.reached), (exit::OK, Some(controller.at.to_string())));
    assert_eq!((report.tried.len(), report.tried[0].address.as_str()), (1, closed.as_str()));
}

#[tokio::test]
async fn trap_50_link_and_enrolment_go_through_the_proxy() {
    let mut controller = TestController::start().await;
    let (proxy, asked, _proxy) = connect_proxy(Some("Basic dXNlcjpwOnc=")).await;
    let (state, host) = (tempfile::tempdir().unwrap(), HostId::generate());
    let mut config = controller.config(host);
    config.proxy = Some(format!("http://user:p%3Aw@{proxy}"));
    let options = enrol_options(config.clone(), state.path());
    let (code, report) = within("enrolment", enrol::enrol(&options, TOKEN)).await;
    assert_eq!(code, exit::OK, "{}", report.error);
    assert_eq!(report.reached.unwrap(), format!("{} through the proxy {proxy}", controller.at));
    let _agent = Agent::run(&controller, state, host, |options| options.config = config.clone());
    controller.welcomed().await;
    assert_eq!(asked.lock().unwrap().len(), 2);

    let mut wrong = probe_of(&controller.ca, &controller.at.to_string());
    wrong.config.proxy = Some(format!("http://user:wrong@{proxy}"));
    let (code, report) = probe(&wrong).await;
    assert_eq!(code, exit::UNREACHABLE);
    assert!(report.error.contains("407") && !report.error.contains("wrong@"), "{}", report.error);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut unreachable = probe_of(&controller.ca, &closed.to_string());
    unreachable.config.proxy = Some(format!("http://user:p%3Aw@{proxy}"));
    let (_, report) = probe(&unreachable).await;
    assert!(report.error.contains("the proxy cannot reach the controller (502"), "{}", report.error);
}

#[tokio::test]
async fn after_a_cut_the_same_instance_resumes_where_the_controller_is() {
    let mut controller = TestController::start().await;
    let agent = Agent::start(&controller).await;
    let run = RunId::generate();
    let mut first = controller.welcomed().await;
    for _ in 0..3 {
        agent.engine.emit(run);
    }
    for want in 1..=3 {
        let Some(agent_frame::Kind::Event(event)) = first.next().await else { panic!("no event {want}") };
        assert_eq!(event.seq, want);
    }
    let offset = v1::RunOffset { run_id: run.to_string(), event_seq: 2, logs: Vec::new() };
    first.send(controller_frame::Kind::Ack(v1::RunAck { offset: Some(offset.clone()) })).await;
    until("the ack", || agent.engine.acked() == 2).await;
    controller.cut();
    assert!(first.next().await.is_none());
    agent.engine.emit(run);

    let mut second = controller.session().await;
    assert_eq!(second.hello.instance, first.hello.instance);
    assert_eq!(second.hello.runs[0].event_seq, 4);
    second.welcome(controller.cluster, |welcome| welcome.acked = vec![offset]).await;
    for want in 3..=4 {
        let Some(agent_frame::Kind::Event(event)) = second.next().await else { panic!("no event {want}") };
        assert_eq!(event.seq, want, "what is committed is not sent again, and nothing is left out");
    }
}

#[tokio::test]
async fn trap_41_a_half_open_connection_is_noticed_while_idle() {
    let mut controller = TestController::start().await;
    let hose = Hose::start(controller.at).await;
    let _agent = Agent::start_with(&controller, |options| {
        options.config.controllers = vec![hose.at.to_string()];
        options.keep_alive =
            KeepAlive { interval: Duration::from_millis(150), timeout: Duration::from_millis(150) };
    })
    .await;
    let first = controller.welcomed().await;
    hose.stall();
    let second = controller.welcomed().await;
    assert_eq!(second.hello.instance, first.hello.instance);
}

#[tokio::test]
async fn trap_49_an_agent_whose_certificate_expired_renews_it_and_is_back() {
    let mut controller = TestController::start().await;
    controller.behaviour.lock().unwrap().issues = (-30 * DAY, -29 * DAY);
    let (state, host) = enrolled(&controller).await;
    let old = IdentityStore::new(state.path()).load().unwrap();
    controller.behaviour.lock().unwrap().issues = (-60, DAY);
    // Once it cannot: that is retried too (T40).
    controller.behaviour.lock().unwrap().renewal = Some(Status::unavailable("restarting"));
    let agent = Agent::run(&controller, state, host, |_| {});
    until("a first try", || controller.behaviour.lock().unwrap().renewals > 0).await;
    controller.behaviour.lock().unwrap().renewal = None;
    controller.welcomed().await;
    let new = agent.identity();
    assert!(new.validity_s().1 > now_s() && old.validity_s().1 < now_s());
    let keys = controller.behaviour.lock().unwrap().keys.clone();
    assert!(keys.iter().all(|key| *key == keys[0]), "the same key");
}

#[tokio::test]
async fn trap_49_a_host_clock_ten_years_off_locks_nobody_out() {
    for off in [-10 * YEAR, 10 * YEAR] {
        let mut controller = TestController::start().await;
        let (state, host) = (tempfile::tempdir().unwrap(), HostId::generate());
        let mut options = enrol_options(controller.config(host), state.path());
        let clock: postern_agent::link::time::WallClock = Arc::new(move || now_s() + off);
        options.clock = clock.clone();
        let (code, report) = within("enrolment", enrol::enrol(&options, TOKEN)).await;
        assert_eq!(code, exit::OK, "{off}: {}", report.error);
        let _agent = Agent::run(&controller, state, host, |options| options.clock = clock);
        let mut session = controller.welcomed().await;
        session.send(controller_frame::Kind::Ping(v1::Ping { nonce: 1 })).await;
        assert!(matches!(session.next().await, Some(agent_frame::Kind::Pong(_))), "{off}");
        assert!(controller.behaviour.lock().unwrap().renewals <= 1, "{off}: it renews again and again");
    }
}

#[tokio::test]
async fn a_wanted_renewal_opens_the_new_session_before_the_old_closes() {
    let mut controller = TestController::start().await;
    let agent = Agent::start(&controller).await;
    let mut old = controller.session().await;
    old.welcome(controller.cluster, |welcome| welcome.renew = true).await;
    let mut new = controller.session().await;
    assert_ne!(new.leaf, old.leaf, "the new session shows the new certificate");
    assert_eq!(new.hello.instance, old.hello.instance);
    old.send(controller_frame::Kind::Ping(v1::Ping { nonce: 5 })).await;
    assert!(matches!(old.next().await, Some(agent_frame::Kind::Pong(_))), "the old one still answers");
    new.welcome(controller.cluster, |_| {}).await;
    assert!(old.next().await.is_none(), "the old one is closed");
    agent.engine.emit(RunId::generate());
    assert!(matches!(new.next().await, Some(agent_frame::Kind::Event(_))));
}

#[tokio::test]
async fn a_revoked_agent_stays_and_does_not_dial() {
    let mut controller = TestController::start().await;
    let agent = Agent::start(&controller).await;
    let session = controller.welcomed().await;
    let goodbye = v1::Goodbye { reason: v1::GoodbyeReason::Revoked.into(), ..Default::default() };
    session.send(controller_frame::Kind::Goodbye(goodbye)).await;
    let again = tokio::time::timeout(Duration::from_secs(1), controller.session()).await;
    assert!(again.is_err(), "it dialled again");
    assert!(!agent.task.is_finished());
    agent.shutdown.cancel();
    assert_eq!(within("the end", agent.task).await.unwrap().unwrap(), ExitReason::Stopped);
}

#[tokio::test]
async fn another_cluster_is_not_served() {
    let mut controller = TestController::start().await;
    let agent = Agent::start(&controller).await;
    let mut session = controller.session().await;
    session.welcome(ClusterId::generate(), |welcome| welcome.epoch = 99).await;
    assert!(session.next().await.is_none());
    assert_eq!(agent.engine.epoch(), 0);
    controller.welcomed().await;
}

#[tokio::test]
async fn told_to_leave_it_sends_what_is_left_removes_itself_and_says_so() {
    let mut controller = TestController::start().await;
    let host = tempfile::tempdir().unwrap();
    let root = host.path().to_owned();
    let agent = Agent::start_with(&controller, |options| {
        options.host.binary = root.join("postern-agent");
        options.host.config_dir = root.join("etc");
        options.host.unit_file = root.join("postern-agent.service");
        options.host.runtime_dirs = vec![root.join("run")];
        options.host.systemctl = "/bin/true".into();
        std::fs::create_dir(root.join("etc")).unwrap();
        std::fs::write(root.join("postern-agent"), "x").unwrap();
        std::fs::write(root.join("postern-agent.service"), "x").unwrap();
    })
    .await;
    let run = RunId::generate();
    agent.engine.emit(run);
    let mut session = controller.welcomed().await;
    assert!(matches!(session.next().await, Some(agent_frame::Kind::Event(_))));
    session.send(controller_frame::Kind::Leave(v1::Leave {})).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(root.join("postern-agent").exists(), "nothing is removed before the run is acked");
    let offset = v1::RunOffset { run_id: run.to_string(), event_seq: 1, logs: Vec::new() };
    session.send(controller_frame::Kind::Ack(v1::RunAck { offset: Some(offset) })).await;
    let Some(agent_frame::Kind::Left(left)) = session.next().await else { panic!("no last word") };
    assert_eq!(left.left_behind, Vec::<String>::new());
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    assert!(!agent.state.path().exists());
    drop(session);
    let reason = within("the end", agent.task).await.unwrap().unwrap();
    assert_eq!((reason, reason.exit_code()), (ExitReason::Left { clean: true }, exit::OK));
}
