//! Sessions: one for each host, ended when they must be.

use std::time::Duration;

use postern_proto::ids::{ClusterId, InstanceId};
use postern_proto::v1;
use postern_proto::v1::agent_frame::Kind as Up;
use postern_proto::v1::controller_frame::Kind as Down;
use tonic::Code;

use crate::support::{Agent, Rig, Script, collect, ending, soon};

/// T43: the same instance again is a broken line; another one while the first answers is a clone.
#[tokio::test(flavor = "multi_thread")]
async fn trap_43_half_open_is_replaced_and_a_clone_quarantines_both() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut first, _) = agent.session(&rig).await;
    let (mut second, _) = agent.session(&rig).await;
    assert_eq!(first.goodbye().await.reason(), v1::GoodbyeReason::Replaced);
    assert_eq!(rig.host(&agent.host).await.link(), v1::LinkState::Up);

    agent.instance = InstanceId::generate();
    let mut clone = agent.dial(&rig).await;
    let Down::Ping(ping) = second.next().await else { panic!("want a ping") };
    second.send(Up::Pong(v1::Pong { nonce: ping.nonce })).await;
    assert_eq!(clone.goodbye().await.reason(), v1::GoodbyeReason::Quarantined);
    assert_eq!(second.goodbye().await.reason(), v1::GoodbyeReason::Quarantined);
    let host = rig.host(&agent.host).await;
    assert_eq!(host.link(), v1::LinkState::Quarantined);
    assert!(host.detail.contains("two agents"), "{}", host.detail);

    // Nobody is let in and nothing is queued until it is enrolled anew.
    assert_eq!(agent.dial(&rig).await.goodbye().await.reason(), v1::GoodbyeReason::Quarantined);
    let request =
        v1::ExecRequest { host: "one".into(), command_spec: br#"{"argv":["true"]}"#.to_vec().into() };
    assert_eq!(rig.operator().await.exec(request).await.unwrap_err().code(), Code::FailedPrecondition);
    let (_, token) = rig.prepare("one").await;
    // The clone has this key too: another token does not make it good again.
    let refused = agent.enrol(&rig, &token).await.unwrap_err();
    assert!(refused.message().contains("quarantined"), "{refused}");
    assert_eq!(rig.host(&agent.host).await.link(), v1::LinkState::Quarantined);
    let mut fresh = Agent::new(&rig, &agent.host).await;
    fresh.enrol(&rig, &token).await.unwrap();
    fresh.session(&rig).await;
}

/// On a hand-over the hello may be older than what the old session did last.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_younger_than_the_hello_goes_on() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let (run, updates) = rig.exec("one").await;
    line.dispatch().await;
    let mut script = Script::new(&run.id);
    line.event(script.accepted()).await;
    line.acked(&run.id, 1).await;
    // Neither the run nor its number is in this hello.
    let (mut line, welcome) = agent.session(&rig).await;
    assert_eq!((welcome.acked[0].run_id.as_str(), welcome.acked[0].event_seq), (run.id.as_str(), 1));
    for event in script.ending() {
        line.event(event).await;
    }
    line.acked(&run.id, 4).await;
    assert_eq!(ending(&collect(updates).await).state(), v1::RunState::Ok);
}

/// T43: a session of another instance that does not answer was left behind by a crash.
#[tokio::test(flavor = "multi_thread")]
async fn trap_43_a_dead_session_gives_way_to_a_restarted_agent() {
    let rig = Rig::with(|config| config.limits.probe = Duration::from_millis(200)).await;
    let mut agent = rig.agent("one").await;
    let (mut dead, _) = agent.session(&rig).await;
    agent.instance = InstanceId::generate();
    let _line = agent.session(&rig).await;
    assert_eq!(dead.goodbye().await.reason(), v1::GoodbyeReason::Replaced);
    assert_eq!(rig.host(&agent.host).await.link(), v1::LinkState::Up);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_does_not_fit_is_sent_away() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    agent.session(&rig).await;
    let reason = async |agent: &Agent| agent.dial(&rig).await.goodbye().await.reason();

    agent.wire = (2, 9);
    assert_eq!(reason(&agent).await, v1::GoodbyeReason::Version);
    agent.wire = (1, 1);
    let host = std::mem::replace(&mut agent.host, rig.prepare("two").await.0);
    assert_eq!(reason(&agent).await, v1::GoodbyeReason::Protocol);
    agent.host = host;
    let cluster = std::mem::replace(&mut agent.cluster, ClusterId::generate().to_string());
    assert_eq!(reason(&agent).await, v1::GoodbyeReason::Protocol);
    agent.cluster = cluster;
    // It has seen more than is on record: this controller is an old copy.
    let epoch = std::mem::replace(&mut agent.epoch, 1000);
    assert_eq!(reason(&agent).await, v1::GoodbyeReason::Protocol);
    agent.epoch = epoch;
    agent.floor = 1;
    assert_eq!(reason(&agent).await, v1::GoodbyeReason::Protocol);
    agent.floor = 0;
    agent.session(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_ends_a_live_session() {
    let rig = Rig::with(|config| config.limits.quiet = Duration::from_millis(200)).await;
    let mut agent = rig.agent("one").await;
    let (_line, welcome) = agent.session(&rig).await;
    assert!(!welcome.renew);
    rig.advance(Duration::from_secs(13 * 3600));
    let (mut line, welcome) = agent.session(&rig).await;
    assert!(welcome.renew, "past half of its life");
    rig.advance(Duration::from_secs(12 * 3600));
    let goodbye = line.goodbye().await;
    assert_eq!(goodbye.reason(), v1::GoodbyeReason::Shutdown);
    assert!(goodbye.message.contains("expired"), "{goodbye:?}");
}

/// T41: a line that is up and an agent that does nothing are told apart.
#[tokio::test(flavor = "multi_thread")]
async fn trap_41_an_agent_that_does_not_answer_is_down() {
    let rig = Rig::with(|config| config.limits.quiet = Duration::from_millis(200)).await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    for _ in 0..3 {
        let Down::Ping(ping) = line.next().await else { panic!("want a ping") };
        line.send(Up::Pong(v1::Pong { nonce: ping.nonce })).await;
    }
    assert_eq!(rig.host(&agent.host).await.link(), v1::LinkState::Up);
    // From here on it answers no more, though its connection answers every PING of HTTP/2.
    assert_eq!(line.goodbye().await.reason(), v1::GoodbyeReason::Shutdown);
    let mut watch = watch(&rig, &agent.host).await;
    let host = loop {
        let host = soon("the host", watch.message()).await.unwrap().unwrap();
        if host.link() == v1::LinkState::Down {
            break host;
        }
    };
    assert!(host.last_seen_unix_ms > 0);
}

async fn watch(rig: &Rig, host: &str) -> tonic::Streaming<v1::Host> {
    let request = v1::WatchHostRequest { host: host.to_owned() };
    rig.operator().await.watch_host(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_a_host_shows_each_change() {
    let rig = Rig::start().await;
    let (host, token) = rig.prepare("one").await;
    let mut updates = watch(&rig, "one").await;
    let mut until = async |link: v1::LinkState| loop {
        let host = soon("a change", updates.message()).await.unwrap().unwrap();
        if host.link() == link {
            return host;
        }
    };
    until(v1::LinkState::Pending).await;
    let mut agent = Agent::new(&rig, &host).await;
    agent.enrol(&rig, &token).await.unwrap();
    until(v1::LinkState::Down).await;
    agent.memory_bytes = 980 << 20;
    let (line, welcome) = agent.session(&rig).await;
    let up = until(v1::LinkState::Up).await;
    assert_eq!((up.session_id.clone(), up.os_version.as_str()), (welcome.session_id, "13"));
    assert_eq!(up.hostname, "web\\u{1b}[31m1", "what an agent says cannot drive a terminal");
    assert!(up.peer.starts_with("127.0.0.1:"));
    drop(line);
    let down = until(v1::LinkState::Down).await;
    assert!(down.peer.is_empty() && down.session_id.is_empty());
    // What it has of memory and disk is known as of its last session; an agent that says nothing of it is fine.
    let room = |host: &v1::Host| (host.memory_mb, host.swap_mb, host.disk_free_mb, host.var_free_mb);
    assert_eq!(room(&up), (Some(980), Some(0), Some(u64::MAX >> 20), None));
    assert_eq!(room(&down), room(&up));
    agent.memory_bytes = 0;
    let _line = agent.session(&rig).await;
    assert_eq!(room(&until(v1::LinkState::Up).await), (None, None, None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn forgetting_a_host_goes_through_its_session() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let forget = |record_only| v1::ForgetHostRequest { host: "one".to_owned(), record_only };
    let status = rig.operator().await.forget_host(forget(false)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("--record-only"), "{}", status.message());

    let (mut line, _) = agent.session(&rig).await;
    let (run, updates) = rig.exec("one").await;
    line.dispatch().await;
    line.event(Script::new(&run.id).accepted()).await;
    let mut operator = rig.operator().await;
    let (answer, ()) = tokio::join!(operator.forget_host(forget(false)), async {
        loop {
            if matches!(line.next().await, Down::Leave(_)) {
                break;
            }
        }
        line.send(Up::Left(v1::Left { left_behind: vec!["/var/lib/x\u{7}".to_owned()] })).await;
    });
    assert_eq!(answer.unwrap().into_inner().left_behind, ["/var/lib/x\\u{7}"]);
    assert_eq!(ending(&collect(updates).await).state(), v1::RunState::Interrupted);
    assert!(
        rig.operator().await.list_hosts(v1::ListHostsRequest {}).await.unwrap().into_inner().hosts.is_empty()
    );
    assert_eq!(agent.dial(&rig).await.goodbye().await.reason(), v1::GoodbyeReason::Revoked);
    assert!(agent.renew(&rig).await.is_err());
    // The same address again is another host: ids are never reused.
    assert_ne!(rig.prepare("one").await.0, agent.host);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_record_ends_the_session_within_a_second() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    let forget = v1::ForgetHostRequest { host: agent.host.clone(), record_only: true };
    rig.operator().await.forget_host(forget).await.unwrap();
    let goodbye = tokio::time::timeout(Duration::from_secs(1), line.goodbye()).await.unwrap();
    assert_eq!(goodbye.reason(), v1::GoodbyeReason::Revoked);
}
