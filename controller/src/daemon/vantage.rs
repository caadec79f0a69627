//! What the controller sees of a host from where it stands: the answer to an agent that is about to make, or has
//! made, a change that could cut the host off.
//!
//! The agent names ports and users only. Which addresses are looked at is decided here, from what operators and
//! connections said: an agent must not be able to make the controller knock at other people's doors.

use std::collections::BTreeSet;
use std::io::ErrorKind;
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
use crate::store::{HostRecord, KeyStatus};

/// For one port, and for one look at an SSH server.
const PROBE: Duration = Duration::from_secs(5);
/// For a name to be looked up.
const LOOKUP: Duration = Duration::from_secs(5);
/// Addresses of one host that are looked at.
const MAX_ADDRESSES: usize = 4;
/// Connections that are made for looks at one time, over all hosts.
const AT_ONCE: usize = 128;
/// Said of what is not looked at.
const BUSY: &str = "the controller is busy";
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
    let addresses = match addresses(&host).await {
        Ok(addresses) => addresses,
        Err(why) => {
            let unobservable = |predicate| Found {
                predicate,
                at: String::new(),
                finding: Finding::unobservable(why.clone()),
            };
            return Ok((0..predicates.len()).map(unobservable).collect());
        }
    };
    // To an SSH server that counts failed logins, one that is looked at by two addresses of a family is attacked twice.
    let first =
        |address: &IpAddr| addresses.iter().find(|it| it.is_ipv4() == address.is_ipv4()) == Some(address);
    let at = addresses.iter().map(|address| look_at(&shared.looks, predicates, *address, first(address)));
    Ok(join_all(at).await.concat())
}

/// Where a host is looked at; why it cannot be where there is nothing.
pub(crate) async fn addresses(host: &HostRecord) -> Result<Vec<IpAddr>, String> {
    let mut addresses = BTreeSet::new();
    // Not where its session comes from: that may be a gateway, which answers for itself.
    let mut why = "the host is not known by an address that can be reached from here".to_owned();
    if let Some(name) = reachable_at(&host.ssh_address) {
        match timeout(LOOKUP, tokio::net::lookup_host((name, 0))).await {
            Ok(Ok(found)) => addresses.extend(found.map(|address| address.ip())),
            Ok(Err(error)) => why = format!("{name:?} has no address: {error}"),
            Err(_) => why = format!("looking up {name:?} takes too long"),
        }
    }
    // Where bootstrap saw the same server, by its host key.
    let others = host.also_at.iter().copied().filter(|it| !addresses.contains(it));
    let addresses: Vec<IpAddr> = addresses.iter().copied().chain(others).take(MAX_ADDRESSES).collect();
    if addresses.is_empty() { Err(why) } else { Ok(addresses) }
}

/// What becomes of a new TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Knock {
    /// It is accepted.
    Open,
    /// Somebody says no; what exactly.
    Refused(String),
    /// Nobody says anything. The kernel asks three times in this time (after 0, 1 and 3 s), so one lost packet makes
    /// no port look shut.
    Dropped,
    /// It says nothing about the host.
    NoWay(String),
}

/// Makes one.
async fn knock(address: IpAddr, port: u16) -> Knock {
    match timeout(PROBE, TcpStream::connect(SocketAddr::new(address, port))).await {
        Ok(Ok(_)) => Knock::Open,
        Err(_) => Knock::Dropped,
        Ok(Err(error)) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => {
                Knock::Refused(LookError::Connect(error).to_string())
            }
            // A router says so, or a filter that would rather not be taken for a port: what other ports do decides.
            ErrorKind::TimedOut | ErrorKind::HostUnreachable => Knock::Dropped,
            _ => match unreached(&LookError::Connect(error)) {
                Finding::Unobservable { why } | Finding::Fails { why } => Knock::NoWay(why),
                Finding::Holds => Knock::Open,
            },
        },
    }
}

/// Each of these ports at each of these addresses, side by side.
pub(crate) async fn look_at_ports(
    looks: &Looks,
    addresses: &[IpAddr],
    ports: &BTreeSet<u16>,
) -> Vec<(IpAddr, u16, Knock)> {
    let one = async |address: IpAddr, port: u16| {
        let knock = match timeout(TURN, looks.0.acquire()).await {
            Ok(Ok(_turn)) => knock(address, port).await,
            _ => Knock::NoWay(BUSY.to_owned()),
        };
        (address, port, knock)
    };
    let all = addresses.iter().flat_map(|address| ports.iter().map(move |port| (*address, *port)));
    join_all(all.map(|(address, port)| one(address, port))).await
}

/// Whether a port that is to be shut is. Where nobody answers, it is the port's doing only if somebody answers at
/// another one there, as far as others are asked about.
fn shut(knock: Knock, others_answer: Option<bool>) -> Finding {
    match knock {
        Knock::Open => Finding::fails("it still answers"),
        Knock::Refused(_) => Finding::Holds,
        Knock::Dropped if others_answer == Some(false) => {
            Finding::unobservable("nothing answers at that address, at no other port either")
        }
        Knock::Dropped => Finding::Holds,
        Knock::NoWay(why) => Finding::unobservable(why),
    }
}

/// All that is asked about one address.
async fn look_at(looks: &Looks, predicates: &[Predicate], address: IpAddr, logins: bool) -> Vec<Found> {
    let found = |predicate, finding| Found { predicate, at: address.to_string(), finding };
    let Ok(Ok(_turn)) = timeout(TURN, looks.0.acquire()).await else {
        let busy = |place| found(place, Finding::unobservable(BUSY));
        return (0..predicates.len()).map(busy).collect();
    };
    let ports = predicates.iter().enumerate().filter_map(|(place, predicate)| match predicate {
        Predicate::Inbound { port } | Predicate::Closed { port } => {
            Some(async move { (place, predicate, knock(address, *port).await) })
        }
        _ => None,
    });
    // One after the other, and one connection for all that is asked about a user: to an SSH server, many
    // connections that log nobody in are an attack.
    let logins = async {
        let mut all = Vec::new();
        let accounts = if logins { accounts(predicates) } else { BTreeSet::new() };
        // Where nobody answers, the others need not be asked about too: the agent does not wait for ever.
        let mut silent: Option<(u16, Result<LoginSeen, LookError>)> = None;
        for (port, user) in accounts {
            let keys = keys_of(predicates, port, user);
            let seen = match silent.take().filter(|(at, _)| *at == port) {
                Some((_, seen)) => seen,
                None => look_at_login(SocketAddr::new(address, port), user, &keys, PROBE).await,
            };
            for (place, predicate) in predicates.iter().enumerate() {
                all.extend(judge(predicate, port, user, &seen).map(|finding| found(place, finding)));
            }
            if matches!(seen, Err(LookError::Connect(_) | LookError::TimedOut)) {
                silent = Some((port, seen));
            }
        }
        all
    };
    let (knocks, mut all) = tokio::join!(join_all(ports), logins);
    let inbound = |predicate: &Predicate| matches!(predicate, Predicate::Inbound { .. });
    let others = knocks.iter().filter(|(_, predicate, _)| inbound(predicate));
    let answer = others.map(|(_, _, knock)| *knock == Knock::Open).reduce(|one, other| one || other);
    all.extend(knocks.into_iter().map(|(place, predicate, knock)| {
        found(place, if inbound(predicate) { reached(knock) } else { shut(knock, answer) })
    }));
    all
}

/// Whether a port that is to be open is.
fn reached(knock: Knock) -> Finding {
    match knock {
        Knock::Open => Finding::Holds,
        Knock::Refused(why) => Finding::fails(why),
        Knock::Dropped => unreached(&LookError::TimedOut),
        Knock::NoWay(why) => Finding::unobservable(why),
    }
}

/// Every port and user that is asked about, once.
fn accounts(predicates: &[Predicate]) -> BTreeSet<(u16, &str)> {
    fn of(predicate: &Predicate) -> Option<(u16, &str)> {
        match predicate {
            Predicate::Login { port, user, .. } | Predicate::NoPassword { port, user } => {
                Some((*port, user.as_str()))
            }
            Predicate::Inbound { .. }
            | Predicate::Closed { .. }
            | Predicate::Dns { .. }
            | Predicate::Egress { .. } => None,
        }
    }
    predicates.iter().filter_map(of).collect()
}

/// The keys of a user that are asked about.
fn keys_of(predicates: &[Predicate], at: u16, of: &str) -> Vec<String> {
    let keys = predicates.iter().filter_map(|predicate| match predicate {
        Predicate::Login { port, user, keys } if (*port, user.as_str()) == (at, of) => Some(keys.clone()),
        _ => None,
    });
    keys.flatten().collect()
}

/// What was seen of a login says about a predicate; `None` where it is about something else.
fn judge(predicate: &Predicate, at: u16, of: &str, seen: &Result<LoginSeen, LookError>) -> Option<Finding> {
    match predicate {
        Predicate::Login { port, user, .. } if (*port, user.as_str()) == (at, of) => Some(match seen {
            Ok(LoginSeen { takes_key: true, .. }) => Finding::Holds,
            Ok(_) => Finding::fails("the SSH server takes none of the keys"),
            Err(error) => unreached(error),
        }),
        Predicate::NoPassword { port, user } if (*port, user.as_str()) == (at, of) => Some(match seen {
            Ok(LoginSeen { takes_password: false, .. }) => Finding::Holds,
            Ok(_) => Finding::fails("the SSH server takes a password"),
            // That nobody gets an answer is not that a password is taken.
            Err(error) => Finding::unobservable(error.to_string()),
        }),
        _ => None,
    }
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

/// A network that is not there at the controller says nothing about the host.
fn unreached(error: &LookError) -> Finding {
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
        let login = |keys: &[&str]| Predicate::Login {
            port,
            user: "ada".to_owned(),
            keys: keys.iter().map(ToString::to_string).collect(),
        };
        let no_password = Predicate::NoPassword { port, user: "root".to_owned() };
        let findings = async |predicates: &[Predicate]| {
            let mut found = look_at(&looks, predicates, IpAddr::from([127, 0, 0, 1]), true).await;
            found.sort_by_key(|found| found.predicate);
            assert_eq!(found.len(), predicates.len(), "{found:?}");
            found.into_iter().map(|found| found.finding).collect::<Vec<_>>()
        };
        let open_port = findings(&[Predicate::Inbound { port }, login(&["no key"])]).await;
        assert_eq!(open_port[0], Finding::Holds);
        assert!(matches!(open_port[1], Finding::Unobservable { .. }), "{open_port:?}");
        drop(open);
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGT2/5hLlLC12ZgUEoud+FIUtp0Szc6E48Spq1r+GtnI";
        assert_eq!(
            findings(&[no_password, Predicate::Inbound { port }, login(&[key])]).await,
            [
                Finding::unobservable("connection refused"),
                Finding::fails("connection refused"),
                Finding::fails("connection refused"),
            ]
        );
    }

    /// T24: "closed" is what is seen, and not what was asked for.
    #[tokio::test]
    async fn trap_24_a_port_that_answers_is_not_closed() {
        let looks = Looks::default();
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = |listener: &tokio::net::TcpListener| listener.local_addr().unwrap().port();
        let (open_port, gone_port) = (port(&open), port(&gone));
        drop(gone);
        let closed = |port| Predicate::Closed { port };
        let asked = [closed(open_port), closed(gone_port), Predicate::Inbound { port: open_port }];
        let mut found = look_at(&looks, &asked, IpAddr::from([127, 0, 0, 1]), true).await;
        found.sort_by_key(|found| found.predicate);
        let found: Vec<_> = found.into_iter().map(|found| found.finding).collect();
        assert_eq!(found, [Finding::fails("it still answers"), Finding::Holds, Finding::Holds]);
        let local = [IpAddr::from([127, 0, 0, 1])];
        let seen = look_at_ports(&looks, &local, &[open_port, gone_port].into()).await;
        let seen: std::collections::BTreeMap<_, _> = seen.into_iter().map(|it| (it.1, it.2)).collect();
        assert_eq!(seen[&open_port], Knock::Open);
        assert_eq!(seen[&gone_port], Knock::Refused("connection refused".to_owned()));
    }

    #[test]
    fn where_nobody_answers_at_all_nothing_is_closed() {
        for (knock, others, want) in [
            (Knock::Dropped, Some(true), Finding::Holds),
            (Knock::Dropped, None, Finding::Holds),
            (
                Knock::Dropped,
                Some(false),
                Finding::unobservable("nothing answers at that address, at no other port either"),
            ),
            (Knock::Refused("connection refused".to_owned()), Some(false), Finding::Holds),
            (Knock::NoWay("no IPv6".to_owned()), None, Finding::unobservable("no IPv6")),
            (Knock::Open, Some(true), Finding::fails("it still answers")),
        ] {
            assert_eq!(shut(knock.clone(), others), want, "{knock:?} {others:?}");
        }
    }

    #[test]
    fn one_connection_answers_all_that_is_asked_about_a_user() {
        let (keys, user) = (vec!["k".to_owned()], "ada".to_owned());
        let predicates = [
            Predicate::Login { port: 22, user: user.clone(), keys: keys.clone() },
            Predicate::NoPassword { port: 22, user: user.clone() },
            Predicate::NoPassword { port: 22, user: "root".to_owned() },
            Predicate::Inbound { port: 22 },
        ];
        assert_eq!(accounts(&predicates).into_iter().collect::<Vec<_>>(), [(22, "ada"), (22, "root")]);
        assert_eq!((keys_of(&predicates, 22, "ada"), keys_of(&predicates, 22, "root")), (keys, vec![]));
        let seen = Ok(LoginSeen { takes_key: true, takes_password: true });
        let judged: Vec<_> = predicates.iter().map(|it| judge(it, 22, "ada", &seen)).collect();
        let takes = Finding::fails("the SSH server takes a password");
        assert_eq!(judged, [Some(Finding::Holds), Some(takes), None, None]);
    }
}
