//! What the controller sees of a host from where it stands: the answer to an agent that is about to make, or has
//! made, a change that could cut the host off.
//!
//! The agent names ports and users only. Which addresses are looked at is decided here, from what operators and
//! connections said: an agent must not be able to make the controller knock at other people's doors.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use postern_installer::{LoginSeen, LookError, look_at_login};
use postern_proto::guard::{Finding, Found, Predicate};
use postern_proto::v1;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::authz::{self, AgentPeer, rpc};
use super::enrolment::store_status;
use super::shared::Shared;
use super::text::Neutral;
use crate::store::KeyStatus;

/// For one port, and for one look at an SSH server.
const PROBE: Duration = Duration::from_secs(5);
/// For a name to be looked up.
const LOOKUP: Duration = Duration::from_secs(5);
/// Addresses of one host that are looked at.
const MAX_ADDRESSES: usize = 4;
/// Connections that are made for looks at one time, over all hosts.
const AT_ONCE: usize = 128;
/// How long a look waits for its turn.
const TURN: Duration = Duration::from_secs(5);

/// Shared by all looks.
pub(crate) struct Looks(Semaphore);

impl Default for Looks {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

/// Answers an agent.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    request: Request<v1::VantageRequest>,
) -> Result<Response<v1::VantageResponse>, Status> {
    let peer = authz::require(&request, rpc::VANTAGE)?;
    let request = request.into_inner();
    let nonce = request.nonce;
    let predicates = request.predicates().map_err(|error| Status::invalid_argument(error.to_string()))?;
    let status = shared.store.key_status(peer.key).await.map_err(|error| store_status(&error))?;
    if status != KeyStatus::Good(peer.host) {
        return Err(Status::permission_denied("this key is not this host's, or not any more"));
    }
    let findings = if predicates.is_empty() { Vec::new() } else { look(shared, &peer, &predicates).await? };
    for found in &findings {
        if let Finding::Fails { why } | Finding::Unobservable { why } = &found.finding {
            let predicate = predicates.get(found.predicate).map(ToString::to_string).unwrap_or_default();
            tracing::info!(host = %peer.host, predicate = %Neutral(&predicate), at = found.at, %why, "not seen");
        }
    }
    Ok(Response::new(v1::VantageResponse { nonce, findings: findings.into_iter().map(Into::into).collect() }))
}

async fn look(shared: &Shared, peer: &AgentPeer, predicates: &[Predicate]) -> Result<Vec<Found>, Status> {
    let host = shared.store.find_host(peer.host.to_string()).await.map_err(|error| store_status(&error))?;
    let mut addresses = BTreeSet::new();
    let mut why = "the host is not known by an address that can be reached from here".to_owned();
    match reachable_at(&host.ssh_address) {
        Some(name) => match timeout(LOOKUP, tokio::net::lookup_host((name, 0))).await {
            Ok(Ok(found)) => addresses.extend(found.map(|address| address.ip())),
            Ok(Err(error)) => why = format!("{name:?} has no address: {error}"),
            Err(_) => why = format!("looking up {name:?} takes too long"),
        },
        None => addresses.extend([peer.address.ip()]),
    }
    let addresses: Vec<IpAddr> = addresses.into_iter().take(MAX_ADDRESSES).collect();
    if addresses.is_empty() {
        let unobservable =
            |predicate| Found { predicate, at: String::new(), finding: Finding::unobservable(why.clone()) };
        return Ok((0..predicates.len()).map(unobservable).collect());
    }
    let looks = predicates.iter().enumerate().flat_map(|(place, predicate)| {
        addresses.iter().map(move |address| async move {
            let finding = one(&shared.looks, predicate, *address).await;
            Found { predicate: place, at: address.to_string(), finding }
        })
    });
    Ok(join_all(looks).await)
}

/// Where operators reach a host by SSH, without a jump host: there the controller looks.
fn reachable_at(ssh_address: &str) -> Option<&str> {
    if ssh_address.is_empty() || ssh_address.contains(' ') {
        return None;
    }
    let (_, at) = ssh_address.rsplit_once('@').unwrap_or(("", ssh_address));
    match at.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(host, _)| host),
        None => Some(at.rsplit_once(':').map_or(at, |(host, _)| host)),
    }
}

async fn one(looks: &Looks, predicate: &Predicate, address: IpAddr) -> Finding {
    let Ok(Ok(_turn)) = timeout(TURN, looks.0.acquire()).await else {
        return Finding::unobservable("the controller is busy");
    };
    match predicate {
        Predicate::Inbound { port } => {
            let connected = timeout(PROBE, TcpStream::connect(SocketAddr::new(address, *port))).await;
            match connected {
                Ok(Ok(_)) => Finding::Holds,
                Ok(Err(error)) => refused(&LookError::Connect(error)),
                Err(_) => refused(&LookError::TimedOut),
            }
        }
        Predicate::Login { port, user, keys } => {
            match look_at_login(SocketAddr::new(address, *port), user, keys, PROBE).await {
                Ok(LoginSeen { takes_key: true, .. }) => Finding::Holds,
                Ok(_) => Finding::fails("the SSH server takes none of the keys"),
                Err(error) => refused(&error),
            }
        }
        Predicate::NoPassword { port, user } => {
            match look_at_login(SocketAddr::new(address, *port), user, &[], PROBE).await {
                Ok(LoginSeen { takes_password: false, .. }) => Finding::Holds,
                Ok(_) => Finding::fails("the SSH server takes a password"),
                Err(error) => refused(&error),
            }
        }
        Predicate::Dns { .. } | Predicate::Egress { .. } => Finding::unobservable("the host has to look"),
    }
}

/// A network that is not there at the controller says nothing about the host.
fn refused(error: &LookError) -> Finding {
    let absent = [
        std::io::ErrorKind::NetworkUnreachable,
        std::io::ErrorKind::AddrNotAvailable,
        std::io::ErrorKind::Unsupported,
    ];
    match error {
        LookError::Connect(io) if absent.contains(&io.kind()) => {
            Finding::unobservable("there is no way to that address from the controller")
        }
        LookError::NoKey => Finding::unobservable(error.to_string()),
        error => Finding::fails(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_host_is_looked_at() {
        for (text, want) in [
            ("root@192.0.2.1:22", Some("192.0.2.1")),
            ("root@web1.example:2222", Some("web1.example")),
            ("ada@[2001:db8::1]:22", Some("2001:db8::1")),
            ("root@10.0.0.5:22 via ops@jump.example:22", None),
            ("", None),
        ] {
            assert_eq!(reachable_at(text), want, "{text}");
        }
    }

    #[tokio::test]
    async fn ports_and_servers_that_are_not_there() {
        let looks = Looks::default();
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = open.local_addr().unwrap().port();
        let local = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(one(&looks, &Predicate::Inbound { port }, local).await, Finding::Holds);
        let login = |keys: &[&str]| Predicate::Login {
            port,
            user: "ada".to_owned(),
            keys: keys.iter().map(ToString::to_string).collect(),
        };
        assert!(matches!(one(&looks, &login(&["no key"]), local).await, Finding::Unobservable { .. }));
        drop(open);
        assert_eq!(
            one(&looks, &Predicate::Inbound { port }, local).await,
            Finding::fails("connection refused")
        );
        let no_password = Predicate::NoPassword { port, user: "root".to_owned() };
        assert_eq!(one(&looks, &no_password, local).await, Finding::fails("connection refused"));
    }
}
