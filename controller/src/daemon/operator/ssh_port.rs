//! What `postern ssh-port` asks before and after it changes anything: does the agent come back by itself, and what is
//! seen of the host's ports from here?

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use postern_proto::v1;
use tokio::time::Instant;
use tonic::Status;

use super::{OperatorService, failed};
use crate::daemon::authz::OperatorPeer;
use crate::daemon::hub::{Command, Handle};
use crate::daemon::text::Neutral;
use crate::daemon::vantage::{self, Knock};
use crate::store::HostRecord;

/// Ports of one look.
const MAX_PORTS: usize = 64;

impl OperatorService {
    pub(super) async fn restart(
        &self,
        peer: OperatorPeer,
        request: v1::RestartAgentRequest,
    ) -> Result<v1::RestartAgentResponse, Status> {
        let shared = &self.0;
        let host = shared.store.find_host(request.host).await.map_err(failed)?;
        let refused = |why: String| Status::failed_precondition(format!("{}: {why}", host.name));
        if let Some(run) = shared.store.open_run(host.id).await.map_err(failed)? {
            return Err(refused(format!("run {} ({}) is not over", run.id, Neutral(&run.origin))));
        }
        let Some(old) = shared.hub.session(host.id) else {
            return Err(refused("its agent is not connected".to_owned()));
        };
        let mut changes = shared.hub.hosts.subscribe(host.id);
        tracing::info!(host = %host.id, uid = peer.uid, "agent told to restart");
        let began = Instant::now();
        if !shared.hub.tell(host.id, Command::Restart).await {
            return Err(refused(
                "the connection was lost before the agent could be told to restart".to_owned(),
            ));
        }
        let another = async {
            loop {
                let now = shared.hub.session(host.id);
                if let Some(now) = now.filter(|now| now.instance != old.instance) {
                    return now;
                }
                changes.changed().await;
            }
        };
        let new = tokio::time::timeout(shared.limits.restart, another).await.map_err(|_| {
            refused(format!(
                "no new process of the agent called within {} s of being told to restart; one older than this \
                 controller does not know that word: `postern up … --bootstrap` upgrades it",
                shared.limits.restart.as_secs()
            ))
        })?;
        self.came_back(&host, &new, began).await
    }

    async fn came_back(
        &self,
        host: &HostRecord,
        new: &Handle,
        began: Instant,
    ) -> Result<v1::RestartAgentResponse, Status> {
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        // As its hello just said.
        let record = self.0.store.find_host(host.id.to_string()).await.map_err(failed)?;
        Ok(v1::RestartAgentResponse {
            peer: new.peer.to_string(),
            took_ms,
            from_here: is_own(new.peer),
            ssh_ports: record.facts.ssh_ports.iter().map(|port| u32::from(*port)).collect(),
        })
    }

    pub(super) async fn look(
        &self,
        request: v1::LookAtPortsRequest,
    ) -> Result<v1::LookAtPortsResponse, Status> {
        if request.ports.is_empty() || request.ports.len() > MAX_PORTS {
            return Err(Status::invalid_argument(format!("want 1 to {MAX_PORTS} ports")));
        }
        let port = |port: &u32| u16::try_from(*port).ok().filter(|port| *port != 0);
        let ports: Option<BTreeSet<u16>> = request.ports.iter().map(port).collect();
        let ports = ports.ok_or_else(|| Status::invalid_argument("a port is 1 to 65535"))?;
        let host = self.0.store.find_host(request.host).await.map_err(failed)?;
        let addresses = match vantage::addresses(&host).await {
            Ok(addresses) => addresses,
            Err(why) => return Ok(v1::LookAtPortsResponse { seen: Vec::new(), unobservable: why }),
        };
        let seen = vantage::look_at_ports(&self.0.looks, &addresses, &ports).await;
        let seen = seen.into_iter().map(|(address, port, knock)| message(address, port, &knock));
        Ok(v1::LookAtPortsResponse { seen: seen.collect(), unobservable: String::new() })
    }
}

fn message(address: IpAddr, port: u16, knock: &Knock) -> v1::PortSeen {
    let (state, why) = match knock {
        Knock::Open => (v1::PortState::Open, String::new()),
        Knock::Refused(why) => (v1::PortState::Refused, why.clone()),
        Knock::Dropped => (v1::PortState::Dropped, "no answer in time".to_owned()),
        Knock::NoWay(why) => (v1::PortState::Unobservable, why.clone()),
    };
    v1::PortSeen { address: address.to_string(), port: u32::from(port), state: state.into(), why }
}

/// Whether an address is one of this machine's: what comes from there was forwarded, over SSH as likely as not. Only
/// such an address can be bound.
fn is_own(peer: SocketAddr) -> bool {
    let address = peer.ip().to_canonical();
    address.is_loopback() || std::net::UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_from_this_machine_are_told() {
        for (peer, own) in [
            ("127.0.0.1:5", true),
            ("127.9.9.9:5", true),
            ("[::1]:5", true),
            ("[::ffff:127.0.0.1]:5", true),
            ("192.0.2.7:5", false),
            ("[2001:db8::7]:5", false),
        ] {
            assert_eq!(is_own(peer.parse().unwrap()), own, "{peer}");
        }
    }
}
