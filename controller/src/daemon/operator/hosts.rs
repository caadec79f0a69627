//! Hosts, as an operator registers, names, labels and forgets them, and the profiles that are theirs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use postern_proto::ids::HostId;
use postern_proto::v1;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{OperatorService, failed};
use crate::daemon::authz::OperatorPeer;
use crate::daemon::hub::Command;
use crate::daemon::shared::Shared;
use crate::daemon::ssh_port;
use crate::daemon::text::Neutral;
use crate::daemon::wire::Reason;
use crate::store::{Assigned, HostChange, HostRecord, HostState, TokenHash};

/// Between a host's SSH address and the jump hosts on the way to it.
const VIA: &str = " via ";
/// Jump hosts of one address, bytes.
const MAX_JUMPS: usize = 8 * 320;
/// What selects every host, and so is no host's name.
const EVERY_HOST: &str = "all";
/// Labels on one host.
const MAX_LABELS: usize = 64;
/// The value of a label, bytes.
const MAX_LABEL: usize = 255;
/// The value of a variable, bytes.
const MAX_VAR: usize = 16 * 1024;

/// A host's name: letters, digits, `.`, `_`, `-`; what people type and tables show.
fn check_name(what: &str, name: &str) -> Result<(), Status> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts || name.len() > 63 || !name.chars().all(good) {
        return Err(Status::invalid_argument(format!(
            "{what} {name:?}: want up to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )));
    }
    if name.parse::<HostId>().is_ok() {
        return Err(Status::invalid_argument(format!("{what} {name:?}: that is the form of a host id")));
    }
    Ok(())
}

/// `user@host:port`, and behind ` via ` the jump hosts on the way to it.
fn check_address(address: &str) -> Result<(), Status> {
    let (host, jumps) = address.split_once(VIA).map_or((address, None), |(host, jumps)| (host, Some(jumps)));
    let is_plain = |text: &str| !text.chars().any(|c| c.is_control() || c.is_whitespace());
    let jumps_fit =
        jumps.is_none_or(|jumps| !jumps.is_empty() && jumps.len() <= MAX_JUMPS && is_plain(jumps));
    if host.len() > 320 || !is_plain(host) || !jumps_fit {
        return Err(Status::invalid_argument("the SSH address is too long or has a space in it"));
    }
    Ok(())
}

/// `user@host:port` gives `host`, with what a name cannot hold replaced.
fn name_from(address: &str) -> String {
    let address = address.split_once(VIA).map_or(address, |(host, _)| host);
    let host = address.rsplit_once('@').map_or(address, |(_, host)| host);
    let host = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => match host.rsplit_once(':') {
            Some((name, port)) if !name.contains(':') && port.parse::<u16>().is_ok() => name,
            _ => host,
        },
    };
    let name: String = host
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .take(59)
        .collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() || name == EVERY_HOST { "host".to_owned() } else { name.to_owned() }
}

fn host_message(shared: &Shared, host: HostRecord) -> v1::Host {
    let session = shared.hub.session(host.id);
    let link = match (host.state, &session) {
        (HostState::Quarantined, _) => v1::LinkState::Quarantined,
        (_, Some(_)) => v1::LinkState::Up,
        (HostState::Pending, None) => v1::LinkState::Pending,
        _ => v1::LinkState::Down,
    };
    let session = session.filter(|_| link == v1::LinkState::Up);
    let heard = session.as_ref().map_or(0, |session| session.heard_ms.load(Ordering::Relaxed));
    v1::Host {
        id: host.id.to_string(),
        name: host.name,
        ssh_address: host.ssh_address,
        labels: host.labels.into_iter().collect(),
        link: link.into(),
        agent_version: host.facts.agent_version,
        os_id: host.facts.os_id,
        os_version: host.facts.os_version,
        arch: host.facts.arch,
        hostname: host.facts.hostname,
        last_seen_unix_ms: host.last_seen_ms.max(heard),
        peer: session.as_ref().map(|session| session.peer.to_string()).unwrap_or_default(),
        boot_id: host.facts.boot_id.map(|boot| boot.to_string()).unwrap_or_default(),
        session_id: session.map(|session| session.session.to_string()).unwrap_or_default(),
        detail: host.detail,
        vars: host.vars.into_iter().collect(),
        profiles: host.profiles,
        also_at: host.also_at.iter().map(ToString::to_string).collect(),
        memory_mb: host.facts.room.memory_mb,
        swap_mb: host.facts.room.swap_mb,
        disk_free_mb: host.facts.room.disk_free_mb,
        var_free_mb: host.facts.room.var_free_mb,
        ssh_port: ssh_port::message(host.ssh.declared.map(|it| it.port)).into(),
        ssh_port_run: host.ssh.declared.map(|it| it.run.to_string()).unwrap_or_default(),
        ssh_port_unix_ms: host.ssh.declared.map_or(0, |it| it.at_ms),
        ssh_port_changing: host.ssh.changing.map(|run| run.to_string()).unwrap_or_default(),
        ssh_ports: host.facts.ssh_ports.iter().map(|port| u32::from(*port)).collect(),
    }
}

fn check_label(key: &str, value: &str) -> Result<(), Status> {
    check_name("label", key)?;
    if value.len() > MAX_LABEL || value.chars().any(char::is_control) {
        let why = format!("label {key}: want up to {MAX_LABEL} plain characters");
        return Err(Status::invalid_argument(why));
    }
    Ok(())
}

/// A variable of a profile: what a template can name.
pub(super) fn check_var(name: &str, value: &str) -> Result<(), Status> {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts || name.len() > 64 || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(Status::invalid_argument(format!(
            "variable {name:?}: want up to 64 letters, digits or '_', not beginning with a digit"
        )));
    }
    if value.len() > MAX_VAR || value.contains('\0') {
        let why = format!("variable {name}: want up to {MAX_VAR} bytes of text");
        return Err(Status::invalid_argument(why));
    }
    Ok(())
}

/// The most other addresses of one host.
const MAX_ADDRESSES: usize = 8;

fn check_addresses(texts: &[String]) -> Result<Vec<IpAddr>, Status> {
    if texts.len() > MAX_ADDRESSES {
        return Err(Status::invalid_argument(format!("more than {MAX_ADDRESSES} addresses")));
    }
    let address = |text: &String| {
        let wrong = || Status::invalid_argument(format!("{text:?} is no IP address"));
        text.parse().map_err(|_| wrong())
    };
    texts.iter().map(address).collect()
}

fn check_host_name(name: &str) -> Result<(), Status> {
    check_name("host name", name)?;
    if name == EVERY_HOST {
        return Err(Status::invalid_argument("host name \"all\": that means every host"));
    }
    Ok(())
}

impl OperatorService {
    pub(super) async fn prepare(
        &self,
        peer: OperatorPeer,
        request: v1::PrepareHostRequest,
    ) -> Result<v1::PrepareHostResponse, Status> {
        let address = request.ssh_address;
        check_address(&address)?;
        if address.is_empty() && request.name.is_empty() {
            return Err(Status::invalid_argument("want an SSH address or a name"));
        }
        let name = (!request.name.is_empty()).then_some(request.name);
        name.as_deref().map_or(Ok(()), check_host_name)?;
        if request.labels.len() > MAX_LABELS {
            return Err(Status::invalid_argument(format!("more than {MAX_LABELS} labels")));
        }
        request.labels.iter().try_for_each(|(key, value)| check_label(key, value))?;
        let labels: BTreeMap<_, _> = request.labels.into_iter().collect();
        let suggestion = name_from(&address);
        let now_ms = self.0.clock.now_ms();
        let host =
            self.0.store.register_host(address, name, suggestion, labels, now_ms).await.map_err(failed)?;
        let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let life_ms = i64::try_from(self.0.limits.token_life.as_millis()).unwrap_or(i64::MAX);
        let expires_ms = now_ms.saturating_add(life_ms);
        self.0.store.add_token(host.id, TokenHash::of(&token), expires_ms).await.map_err(failed)?;
        tracing::info!(host = %host.id, name = %host.name, uid = peer.uid, "host prepared, token made");
        self.0.hub.hosts.wake(host.id);
        Ok(v1::PrepareHostResponse { host: Some(host_message(&self.0, host)), token })
    }

    pub(super) async fn hosts(&self) -> Result<v1::ListHostsResponse, Status> {
        let hosts = self.0.store.hosts().await.map_err(failed)?;
        let hosts = hosts.into_iter().map(|host| host_message(&self.0, host)).collect();
        Ok(v1::ListHostsResponse { hosts })
    }

    pub(super) async fn update(
        &self,
        peer: OperatorPeer,
        request: v1::UpdateHostRequest,
    ) -> Result<v1::UpdateHostResponse, Status> {
        let name = (!request.name.is_empty()).then_some(request.name);
        name.as_deref().map_or(Ok(()), check_host_name)?;
        request.set_labels.iter().try_for_each(|(key, value)| check_label(key, value))?;
        request.set_vars.iter().try_for_each(|(name, value)| check_var(name, value))?;
        let also_at = request.also_at.map(|it| check_addresses(&it.addresses)).transpose()?;
        let host = self.0.store.find_host(request.host).await.map_err(failed)?;
        let change = HostChange {
            name,
            set_labels: request.set_labels.into_iter().collect(),
            remove_labels: request.remove_labels,
            set_vars: request.set_vars.into_iter().collect(),
            remove_vars: request.remove_vars,
            also_at,
        };
        let was = host.name;
        let host = self.0.store.update_host(host.id, change).await.map_err(failed)?;
        tracing::info!(host = %host.id, %was, name = %host.name, uid = peer.uid, "host changed");
        self.0.hub.hosts.wake(host.id);
        Ok(v1::UpdateHostResponse { host: Some(host_message(&self.0, host)) })
    }

    pub(super) async fn assigned(
        &self,
        request: v1::ListAssignedRequest,
    ) -> Result<v1::ListAssignedResponse, Status> {
        let profiles = self.0.store.assigned(request.host).await.map_err(failed)?;
        let message = |assigned: Assigned| v1::AssignedProfile {
            name: assigned.name,
            bundle: assigned.bundle.into(),
            vars: assigned.vars.into_iter().collect(),
            assigned_unix_ms: assigned.assigned_ms,
            covers: Vec::new(),
        };
        Ok(v1::ListAssignedResponse { profiles: profiles.into_iter().map(message).collect() })
    }

    pub(super) async fn unassign_profile(
        &self,
        peer: OperatorPeer,
        request: v1::UnassignRequest,
    ) -> Result<v1::UnassignResponse, Status> {
        let profile = request.profile.clone();
        let host = self.0.store.unassign(request.host, request.profile).await.map_err(failed)?;
        tracing::info!(%host, profile = %Neutral(&profile), uid = peer.uid, "profile unassigned");
        self.0.hub.hosts.wake(host);
        Ok(v1::UnassignResponse {})
    }

    pub(super) async fn watch_one(
        &self,
        request: v1::WatchHostRequest,
    ) -> Result<ReceiverStream<Result<v1::Host, Status>>, Status> {
        let host = self.0.store.find_host(request.host).await.map_err(failed)?.id;
        let (out, stream) = mpsc::channel(4);
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            let stop = shared.stop_sessions.clone();
            let result = tokio::select! {
                result = watch(&shared, host, &out) => result,
                () = out.closed() => return,
                () = stop.cancelled() => Err(Status::unavailable("the controller stops")),
            };
            if let Err(status) = result {
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(ReceiverStream::new(stream))
    }

    pub(super) async fn forget(
        &self,
        peer: OperatorPeer,
        request: v1::ForgetHostRequest,
    ) -> Result<v1::ForgetHostResponse, Status> {
        let host = self.0.store.find_host(request.host).await.map_err(failed)?;
        let left_behind = if request.record_only { Vec::new() } else { self.leave(&host).await? };
        let forgotten = self.0.store.forget(host.id, self.0.clock.now_ms()).await.map_err(failed)?;
        tracing::info!(host = %host.id, name = %host.name, uid = peer.uid, record_only = request.record_only, "host forgotten");
        self.0.hub.close(host.id, Reason::Revoked, "the host was forgotten", |_| true);
        forgotten.ended.into_iter().for_each(|run| self.0.hub.runs.wake(run));
        self.0.hub.hosts.wake(host.id);
        Ok(v1::ForgetHostResponse { left_behind })
    }

    async fn leave(&self, host: &HostRecord) -> Result<Vec<String>, Status> {
        let refused = |why: &str| {
            Status::failed_precondition(format!(
                "{why}. Bring the host up and try again, or remove the agent over SSH and drop the \
                 controller's record alone (--record-only)"
            ))
        };
        if self.0.hub.session(host.id).is_none() {
            return Err(refused(&format!(
                "host {} is not connected, so its agent cannot remove itself",
                host.name
            )));
        }
        let (answer, left) = oneshot::channel();
        if !self.0.hub.tell(host.id, Command::Leave(answer)).await {
            return Err(refused("the connection was lost before the agent could be told to leave"));
        }
        match tokio::time::timeout(self.0.limits.leave, left).await {
            Ok(Ok(left_behind)) => Ok(left_behind),
            Ok(Err(_)) => {
                Err(refused("the agent was told to leave, and the connection ended before it said it had"))
            }
            Err(_) => Err(refused("the agent was told to leave and did not say in time that it had")),
        }
    }
}

async fn watch(
    shared: &Shared,
    host: HostId,
    out: &mpsc::Sender<Result<v1::Host, Status>>,
) -> Result<(), Status> {
    let mut changes = shared.hub.hosts.subscribe(host);
    let mut last = None;
    loop {
        let record = shared.store.find_host(host.to_string()).await.map_err(failed)?;
        let message = host_message(shared, record);
        if last.as_ref() != Some(&message) {
            last = Some(message.clone());
            if out.send(Ok(message)).await.is_err() {
                return Ok(());
            }
        }
        changes.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_by_table() {
        for (address, good) in [
            ("root@192.0.2.1:22", true),
            ("root@192.168.1.10:22 via ops@bastion:22,ops@[fd00::7]:22", true),
            ("root@192.0.2.1 :22", false),
            ("root@192.168.1.10:22 via ", false),
            ("root@192.168.1.10:22 via a via b", false),
            ("root@192.168.1.10:22\nvia a", false),
        ] {
            assert_eq!(check_address(address).is_ok(), good, "{address:?}");
        }
    }

    #[test]
    fn names_from_addresses() {
        for (address, name) in [
            ("root@203.0.113.10", "203.0.113.10"),
            ("root@web1.example.org:2222", "web1.example.org"),
            ("web1", "web1"),
            ("root@[2001:db8::1]:22", "2001-db8--1"),
            ("root@2001:db8::1", "2001-db8--1"),
            ("root@192.168.1.10:22 via ops@bastion:22", "192.168.1.10"),
            ("root@all", "host"),
            ("a@b@-x y", "x-y"),
            ("@", "host"),
        ] {
            assert_eq!(name_from(address), name, "{address}");
            check_name("name", &name_from(address)).unwrap();
        }
    }

    #[test]
    fn names_that_are_refused() {
        for bad in ["", "-x", "a b", "a/b", "é", &"x".repeat(64), &HostId::generate().to_string()] {
            assert!(check_name("name", bad).is_err(), "{bad}");
        }
    }
}
