//! The one choke point: who may call what. Every handler calls [`require`] first and gets a typed peer.
//!
//! A peer is what its connection proved, nothing else: a certificate of the `agents` issuer, the operator's
//! own Unix socket, or nothing. What has no row is refused.

use std::net::SocketAddr;

use postern_proto::ids::HostId;
use tonic::{Request, Status};

use crate::ca::KeyHash;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// Showed no certificate.
    Anonymous(SocketAddr),
    /// Showed a valid certificate of the `agents` issuer.
    Agent(AgentPeer),
    /// Came over the Unix socket as its owner or root.
    Operator(OperatorPeer),
}

/// For logs.
impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Anonymous(address) => write!(f, "{address}"),
            Self::Agent(agent) => write!(f, "{} (host {})", agent.address, agent.host),
            Self::Operator(operator) => write!(f, "user {}", operator.uid),
        }
    }
}

/// An agent.
#[derive(Clone, Debug)]
pub(crate) struct AgentPeer {
    /// The host in its certificate.
    pub(crate) host: HostId,
    /// The key in its certificate.
    pub(crate) key: KeyHash,
    /// Milliseconds since the Unix epoch.
    pub(crate) not_before_ms: i64,
    /// Milliseconds since the Unix epoch.
    pub(crate) not_after_ms: i64,
    /// Where it comes from.
    pub(crate) address: SocketAddr,
}

/// An operator on this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OperatorPeer {
    /// The user it runs as.
    pub(crate) uid: u32,
}

/// What a row asks of a peer.
pub(crate) trait Access {
    /// What a handler gets.
    type Grant;
    /// The word in the table.
    const NAME: &'static str;
    /// `None` is a refusal.
    fn grant(peer: &Peer) -> Option<Self::Grant>;
}

/// Nothing: also peers that are not known.
pub(crate) struct Anyone;
/// A valid certificate of the `agents` issuer. Whether its key is still good is asked of the store.
pub(crate) struct Agent;
/// The operator's socket.
pub(crate) struct Operator;

impl Access for Anyone {
    type Grant = Peer;
    const NAME: &'static str = "anyone";
    fn grant(peer: &Peer) -> Option<Peer> {
        // An operator has no business enrolling: that way lies a key that was not born on its host.
        (!matches!(peer, Peer::Operator(_))).then(|| peer.clone())
    }
}

impl Access for Agent {
    type Grant = AgentPeer;
    const NAME: &'static str = "agent";
    fn grant(peer: &Peer) -> Option<AgentPeer> {
        if let Peer::Agent(agent) = peer { Some(agent.clone()) } else { None }
    }
}

impl Access for Operator {
    type Grant = OperatorPeer;
    const NAME: &'static str = "operator";
    fn grant(peer: &Peer) -> Option<OperatorPeer> {
        if let Peer::Operator(operator) = peer { Some(*operator) } else { None }
    }
}

/// One RPC and who may call it.
pub(crate) struct Row<A> {
    name: &'static str,
    access: std::marker::PhantomData<A>,
}

macro_rules! rows {
    ($($row:ident: $name:literal => $access:ident;)*) => {
        /// The rows, one a constant.
        pub(crate) mod rpc {
            use super::{Agent, Anyone, Operator, Row};
            $(pub(crate) const $row: Row<$access> = Row { name: $name, access: std::marker::PhantomData };)*
        }

        /// Every row: the RPC and who may call it. For the test that walks all RPCs.
        pub const TABLE: &[(&str, &str)] = &[$(($name, <$access as Access>::NAME)),*];
    };
}

rows! {
    ENROL: "postern.v1.Enrolment/Enrol" => Anyone;
    RENEW: "postern.v1.Enrolment/Renew" => Anyone;
    SESSION: "postern.v1.Link/Session" => Agent;
    VANTAGE: "postern.v1.Link/Vantage" => Agent;
    INFO: "postern.v1.Operator/Info" => Operator;
    PREPARE_HOST: "postern.v1.Operator/PrepareHost" => Operator;
    LIST_HOSTS: "postern.v1.Operator/ListHosts" => Operator;
    WATCH_HOST: "postern.v1.Operator/WatchHost" => Operator;
    FORGET_HOST: "postern.v1.Operator/ForgetHost" => Operator;
    APPLY: "postern.v1.Operator/Apply" => Operator;
    EXEC: "postern.v1.Operator/Exec" => Operator;
    FOLLOW_RUN: "postern.v1.Operator/FollowRun" => Operator;
    CANCEL_RUN: "postern.v1.Operator/CancelRun" => Operator;
    LIST_RUNS: "postern.v1.Operator/ListRuns" => Operator;
    RESUME_RUN: "postern.v1.Operator/ResumeRun" => Operator;
    UNDO_RUN: "postern.v1.Operator/UndoRun" => Operator;
    UPDATE_HOST: "postern.v1.Operator/UpdateHost" => Operator;
    LIST_ASSIGNED: "postern.v1.Operator/ListAssigned" => Operator;
    UNASSIGN: "postern.v1.Operator/Unassign" => Operator;
    RESTART_AGENT: "postern.v1.Operator/RestartAgent" => Operator;
    LOOK_AT_PORTS: "postern.v1.Operator/LookAtPorts" => Operator;
    SET_SECRET: "postern.v1.Operator/SetSecret" => Operator;
    LIST_SECRETS: "postern.v1.Operator/ListSecrets" => Operator;
    REMOVE_SECRET: "postern.v1.Operator/RemoveSecret" => Operator;
    BACKUP: "postern.v1.Operator/Backup" => Operator;
}

/// Lets the peer of this request through, or not.
pub(crate) fn require<A: Access, T>(request: &Request<T>, row: Row<A>) -> Result<A::Grant, Status> {
    let peer = request.extensions().get::<Peer>();
    if let Some(grant) = peer.and_then(A::grant) {
        return Ok(grant);
    }
    let who = peer.map(ToString::to_string).unwrap_or_default();
    tracing::warn!(rpc = row.name, peer = who, "refused");
    Err(match peer {
        Some(Peer::Anonymous(_)) | None => {
            Status::unauthenticated(format!("{} wants a certificate", row.name))
        }
        Some(_) => Status::permission_denied(format!("{} is not for this peer", row.name)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers() -> Vec<(&'static str, Peer)> {
        let address = SocketAddr::from(([192, 0, 2, 1], 1));
        let agent = AgentPeer {
            host: HostId::generate(),
            key: KeyHash::of(b""),
            not_before_ms: 0,
            not_after_ms: 0,
            address,
        };
        vec![
            ("nobody", Peer::Anonymous(address)),
            ("agent", Peer::Agent(agent)),
            ("operator", Peer::Operator(OperatorPeer { uid: 0 })),
        ]
    }

    #[test]
    fn each_access_by_peer() {
        let granted = |grant: fn(&Peer) -> bool| {
            peers().iter().filter(|(_, peer)| grant(peer)).map(|(name, _)| *name).collect::<Vec<_>>()
        };
        assert_eq!(granted(|peer| Anyone::grant(peer).is_some()), ["nobody", "agent"]);
        assert_eq!(granted(|peer| Agent::grant(peer).is_some()), ["agent"]);
        assert_eq!(granted(|peer| Operator::grant(peer).is_some()), ["operator"]);
    }

    #[test]
    fn a_request_without_a_peer_is_refused() {
        assert!(require(&Request::new(()), rpc::ENROL).is_err());
        assert!(require(&Request::new(()), rpc::SESSION).is_err());
        assert!(require(&Request::new(()), rpc::INFO).is_err());
    }
}
