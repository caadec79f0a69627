//! What the controller tells an agent about its host as it is seen from here.

use postern_proto::v1;
use postern_proto::v1::guard_predicate::Kind;
use postern_proto::v1::link_client::LinkClient;
use tokio::net::TcpListener;
use tonic::Code;

use crate::support::{Agent, Rig};

fn inbound(port: u32) -> v1::GuardPredicate {
    v1::GuardPredicate { kind: Some(Kind::Inbound(v1::InboundPort { port })) }
}

async fn ask(
    rig: &Rig,
    agent: &Agent,
    predicates: Vec<v1::GuardPredicate>,
) -> Result<v1::VantageResponse, tonic::Status> {
    let mut client = LinkClient::new(agent.channel(rig).await.unwrap());
    client.vantage(v1::VantageRequest { nonce: 7, predicates }).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_the_host_and_of_nobody_else_are_looked_at() {
    let rig = Rig::start().await;
    let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(open.local_addr().unwrap().port());
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed_port = u32::from(closed.local_addr().unwrap().port());
    drop(closed);
    // Its SSH address is what it is looked at by, and not where its connection comes from.
    let agent = rig.agent("127.0.0.1").await;
    let answer = ask(&rig, &agent, vec![inbound(port), inbound(closed_port)]).await.unwrap();
    assert_eq!(answer.nonce, 7);
    let found: Vec<_> =
        answer.findings.iter().map(|it| (it.predicate, it.address.as_str(), it.found())).collect();
    assert_eq!(
        found,
        [(0, "127.0.0.1", v1::GuardFound::Holds), (1, "127.0.0.1", v1::GuardFound::Fails)],
        "{answer:?}"
    );
    // An answer without a question proves the link.
    assert_eq!(ask(&rig, &agent, Vec::new()).await.unwrap().findings, []);
    // One that nobody here can reach is neither for nor against it.
    let far = rig.agent("no-such-host.invalid").await;
    let answer = ask(&rig, &far, vec![inbound(port)]).await.unwrap();
    assert_eq!(answer.findings[0].found(), v1::GuardFound::Unobservable, "{answer:?}");
}

/// Where else a bootstrap saw the host, it is looked at too; what is no address is not taken.
#[tokio::test(flavor = "multi_thread")]
async fn every_address_of_the_host_is_looked_at() {
    let rig = Rig::start().await;
    let open = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = u32::from(open.local_addr().unwrap().port());
    let agent = rig.agent("127.0.0.1").await;
    let at = |addresses: &[&str]| v1::UpdateHostRequest {
        host: agent.host.clone(),
        also_at: Some(v1::Addresses { addresses: addresses.iter().map(ToString::to_string).collect() }),
        ..Default::default()
    };
    let mut operator = rig.operator().await;
    for bad in [&["web1.example"][..], &["127.0.0.1:22"], &["127.0.0.9"; 9]] {
        let refused = operator.update_host(at(bad)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}");
    }
    operator.update_host(at(&["127.0.0.2", "127.0.0.1"])).await.unwrap();
    // Another change leaves them.
    let label = v1::UpdateHostRequest {
        host: agent.host.clone(),
        set_labels: [("a".to_owned(), "b".to_owned())].into(),
        ..Default::default()
    };
    let host = operator.update_host(label).await.unwrap().into_inner().host.unwrap();
    assert_eq!(host.also_at, ["127.0.0.2", "127.0.0.1"]);
    let answer = ask(&rig, &agent, vec![inbound(port)]).await.unwrap();
    let mut found: Vec<_> = answer.findings.iter().map(|it| (it.address.as_str(), it.found())).collect();
    found.sort_unstable_by_key(|it| it.0);
    assert_eq!(found, [("127.0.0.1", v1::GuardFound::Fails), ("127.0.0.2", v1::GuardFound::Holds)]);
    operator.update_host(at(&[])).await.unwrap();
    assert_eq!(ask(&rig, &agent, vec![inbound(port)]).await.unwrap().findings.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_asks_is_bounded_and_a_revoked_one_gets_no_answer() {
    let rig = Rig::start().await;
    let agent = rig.agent("127.0.0.1").await;
    for bad in [
        vec![inbound(0)],
        vec![inbound(70_000)],
        vec![v1::GuardPredicate { kind: None }],
        vec![inbound(1); 65],
    ] {
        assert_eq!(ask(&rig, &agent, bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let mut client = LinkClient::new(agent.channel(&rig).await.unwrap());
    let forget = v1::ForgetHostRequest { host: agent.host.clone(), record_only: true };
    rig.operator().await.forget_host(forget).await.unwrap();
    let refused = client.vantage(v1::VantageRequest { nonce: 1, predicates: Vec::new() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}
