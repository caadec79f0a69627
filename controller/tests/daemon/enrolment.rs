//! Tokens and keys over the wire.

use std::time::Duration;

use postern_proto::{REFUSAL_KEY, REFUSAL_REVOKED, v1};
use rcgen::KeyPair;
use tonic::{Code, Status};

use crate::support::{Agent, Rig, collect, ending, soon, turned_away};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_once_for_one_host_and_ten_minutes() {
    let rig = Rig::start().await;
    let (host, token) = rig.prepare("one").await;
    let (other_host, other_token) = rig.prepare("two").await;
    let refusal = async |agent: &mut Agent, token: &str| {
        let status = agent.enrol(&rig, token).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        status.message().to_owned()
    };

    let mut agent = Agent::new(&rig, &host).await;
    assert!(refusal(&mut agent, "no-such-token").await.contains("unknown"));
    assert!(refusal(&mut agent, &other_token).await.contains("another host"));
    agent.enrol(&rig, &token).await.unwrap();

    // The answer may have been lost: the same key gets another one. Another key does not.
    agent.enrol(&rig, &token).await.unwrap();
    let mut thief = Agent::new(&rig, &host).await;
    assert!(refusal(&mut thief, &token).await.contains("used"));
    agent.session(&rig).await;

    let mut late = Agent::new(&rig, &other_host).await;
    rig.advance(Duration::from_secs(601));
    assert!(refusal(&mut late, &other_token).await.contains("expired"));
    assert!(refusal(&mut agent, &token).await.contains("used"), "no second answer after its life");

    // A new token takes the place of one that was not used.
    let (_, first) = rig.prepare("two").await;
    let (_, second) = rig.prepare("two").await;
    assert!(refusal(&mut late, &first).await.contains("unknown"));
    late.enrol(&rig, &second).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_request_is_refused() {
    let rig = Rig::start().await;
    let (host, token) = rig.prepare("one").await;
    let agent = Agent::new(&rig, &host).await;
    let mut client = agent.anonymous(&rig).await;
    let good =
        v1::EnrolRequest { host_id: host, token, csr_der: agent.csr().into(), agent_version: String::new() };
    let mut forged = agent.csr();
    *forged.last_mut().unwrap() ^= 1;
    for bad in [
        v1::EnrolRequest { host_id: "../x".into(), ..good.clone() },
        v1::EnrolRequest { token: String::new(), ..good.clone() },
        v1::EnrolRequest { token: "x".repeat(10_000), ..good.clone() },
        v1::EnrolRequest { csr_der: b"not a csr".to_vec().into(), ..good.clone() },
        v1::EnrolRequest { csr_der: forged.into(), ..good.clone() },
    ] {
        assert_eq!(client.enrol(bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    // None of them used the token up.
    client.enrol(good).await.unwrap();
}

/// Whether the refusal tells the agent to stop asking.
fn is_final(status: &Status) -> bool {
    status.metadata().get(REFUSAL_KEY).is_some_and(|value| value == REFUSAL_REVOKED)
}

/// T49: a host that was off for years comes back by itself; a revoked or foreign key does not.
#[tokio::test(flavor = "multi_thread")]
async fn trap_49_a_registered_key_can_always_renew() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let mut other = rig.agent("two").await;
    rig.advance(Duration::from_secs(2 * 365 * 24 * 3600));
    let refused = turned_away(rig.daemon().local_addr(), &agent.root_pem, agent.identity()).await;
    assert!(refused, "the certificate has expired");
    agent.renew(&rig).await.unwrap();
    agent.session(&rig).await;

    let good = std::mem::replace(&mut other.key, KeyPair::generate().unwrap());
    let status = other.renew(&rig).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "the key is not registered"));
    assert!(!is_final(&status), "a controller restored from a backup may not know it yet");
    other.key = good;
    other.host = agent.host.clone();
    let status = other.renew(&rig).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "the key belongs to another host")
    );
    assert!(!is_final(&status));
}

/// T44: what was queued for a host is not done to what it became.
#[tokio::test(flavor = "multi_thread")]
async fn trap_44_enrolled_anew_drops_what_was_queued_and_the_old_key() {
    let rig = Rig::start().await;
    let mut old = rig.agent("one").await;
    let (queued, updates) = rig.exec("one").await;

    let (host, token) = rig.prepare("one").await;
    assert_eq!(host, old.host, "found again by its SSH address");
    let (mut line, _) = old.session(&rig).await;
    line.dispatch().await;
    let mut new = Agent::new(&rig, &host).await;
    new.enrol(&rig, &token).await.unwrap();

    // The session that goes on with the old key ends within a second.
    let goodbye = tokio::time::timeout(Duration::from_secs(1), line.goodbye()).await.unwrap();
    assert_eq!(goodbye.reason(), v1::GoodbyeReason::Revoked);
    let run = ending(&soon("the end", collect(updates)).await);
    assert_eq!((run.id, run.state), (queued.id, v1::RunState::Cancelled.into()));
    assert_eq!(old.dial(&rig).await.goodbye().await.reason(), v1::GoodbyeReason::Revoked);
    let status = old.renew(&rig).await.unwrap_err();
    assert_eq!(status.message(), "the key was revoked");
    assert!(is_final(&status));
    // Not even a new token makes a revoked key good.
    let (_, token) = rig.prepare("one").await;
    let status = old.enrol(&rig, &token).await.unwrap_err();
    assert!(status.message().contains("revoked") && is_final(&status), "{status:?}");

    let (mut line, _) = new.session(&rig).await;
    let (next, _updates) = rig.exec("one").await;
    assert_eq!(line.dispatch().await.run_id, next.id, "nothing of before is sent");
}

/// An agent may renew as often as it likes; what is remembered of it is bounded.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_newest_certificates_of_a_key_are_kept() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    for _ in 0..8 {
        agent.renew(&rig).await.unwrap();
    }
    agent.session(&rig).await;
    let db = rusqlite::Connection::open(rig.state_dir().join("postern.db")).unwrap();
    let count: i64 = db.query_row("SELECT count(*) FROM certificates", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 4);
}
