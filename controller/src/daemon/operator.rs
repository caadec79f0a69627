//! The `Operator` service: what the command line asks of the daemon.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use postern_proto::ids::{HostId, RunId};
use postern_proto::plan::{PLAN_SCHEMA, Plan, PlannedResource};
use postern_proto::spec::{CommandSpec, ResourceSpec as _};
use postern_proto::v1::operator_server::Operator;
use postern_proto::{SERVER_NAME, v1};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::authz::{self, rpc};
use super::enrolment::store_status;
use super::follow::{Updates, follow, follow_new, run_message};
use super::hub::Command;
use super::shared::Shared;
use super::wire::Reason;
use crate::store::{CancelOutcome, HostRecord, HostState, NewRun, OpError, TokenHash};

/// Runs listed when nobody says how many, and at most.
const LIST_DEFAULT: u32 = 50;
const LIST_MAX: u32 = 1000;
/// Between a host's SSH address and the jump hosts on the way to it.
const VIA: &str = " via ";
/// Jump hosts of one address, bytes.
const MAX_JUMPS: usize = 8 * 320;
/// What selects every host, and so is no host's name.
const EVERY_HOST: &str = "all";
/// Labels on one host.
const MAX_LABELS: usize = 64;

/// The service.
pub(crate) struct OperatorService(pub(crate) Arc<Shared>);

fn failed(error: OpError) -> Status {
    store_status(&error)
}

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

impl OperatorService {
    fn host_message(&self, host: HostRecord) -> v1::Host {
        host_message(&self.0, host)
    }

    /// Writes a run down, sends it if the host is connected, and follows it.
    async fn start(
        &self,
        host: String,
        origin: String,
        check: bool,
        plan: Vec<u8>,
        ttl: std::time::Duration,
    ) -> Result<Response<Updates>, Status> {
        let shared = &self.0;
        Plan::from_bytes(&plan).map_err(|error| Status::invalid_argument(error.to_string()))?;
        // An id needs no look-up: the store checks it in the commit that it costs anyway.
        let host = match host.parse::<HostId>() {
            Ok(id) => id,
            Err(_) => shared.store.find_host(host).await.map_err(failed)?.id,
        };
        let created_ms = shared.clock.now_ms();
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let new = NewRun {
            id: RunId::generate(),
            host,
            origin,
            check,
            plan_hash: postern_proto::ids::PlanHash::of(&plan),
            plan,
            created_ms,
            not_after_ms: created_ms.saturating_add(ttl_ms),
            send_now: shared.hub.session(host).is_some(),
            limit: shared.limits.runs_per_host,
        };
        let changes = shared.hub.runs.subscribe(new.id);
        let (run, dispatch) = shared.store.create_run(new).await.map_err(failed)?;
        tracing::info!(run = %run.id, %host, origin = %super::text::Neutral(&run.origin), check, "run created");
        let updates = follow_new(Arc::clone(shared), run, changes);
        let dispatches = match dispatch {
            Some(dispatch) => vec![dispatch],
            // A session may have asked the store before this commit, also one that is not up yet. One that asks
            // afterwards gets the run twice, and sends it once.
            None if shared.hub.is_claimed(host) => shared.store.take_waiting(host).await.map_err(failed)?,
            None => Vec::new(),
        };
        for dispatch in dispatches {
            // Not taken: the next session of the host gets it from the store.
            shared.hub.tell(host, Command::Dispatch(dispatch)).await;
        }
        shared.new_run.notify_one();
        Ok(Response::new(updates))
    }
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
        vars: Default::default(),
        profiles: Vec::new(),
    }
}

#[tonic::async_trait]
impl Operator for OperatorService {
    type WatchHostStream = ReceiverStream<Result<v1::Host, Status>>;
    type ApplyStream = Updates;
    type ExecStream = Updates;
    type FollowRunStream = Updates;
    type ResumeRunStream = Updates;
    type UndoRunStream = Updates;
    type BackupStream = ReceiverStream<Result<v1::BackupPiece, Status>>;

    async fn resume_run(&self, request: Request<v1::ResumeRunRequest>) -> Result<Response<Updates>, Status> {
        authz::require(&request, rpc::RESUME_RUN)?;
        Err(Status::unimplemented("not yet"))
    }

    async fn undo_run(&self, request: Request<v1::UndoRunRequest>) -> Result<Response<Updates>, Status> {
        authz::require(&request, rpc::UNDO_RUN)?;
        Err(Status::unimplemented("not yet"))
    }

    async fn update_host(
        &self,
        request: Request<v1::UpdateHostRequest>,
    ) -> Result<Response<v1::UpdateHostResponse>, Status> {
        authz::require(&request, rpc::UPDATE_HOST)?;
        Err(Status::unimplemented("not yet"))
    }

    async fn list_assigned(
        &self,
        request: Request<v1::ListAssignedRequest>,
    ) -> Result<Response<v1::ListAssignedResponse>, Status> {
        authz::require(&request, rpc::LIST_ASSIGNED)?;
        Err(Status::unimplemented("not yet"))
    }

    async fn unassign(
        &self,
        request: Request<v1::UnassignRequest>,
    ) -> Result<Response<v1::UnassignResponse>, Status> {
        authz::require(&request, rpc::UNASSIGN)?;
        Err(Status::unimplemented("not yet"))
    }

    async fn set_secret(
        &self,
        request: Request<v1::SetSecretRequest>,
    ) -> Result<Response<v1::SetSecretResponse>, Status> {
        authz::require(&request, rpc::SET_SECRET)?;
        Err(Status::unimplemented("not yet"))
    }

    async fn list_secrets(
        &self,
        request: Request<v1::ListSecretsRequest>,
    ) -> Result<Response<v1::ListSecretsResponse>, Status> {
        authz::require(&request, rpc::LIST_SECRETS)?;
        Err(Status::unimplemented("not yet"))
    }

    async fn remove_secret(
        &self,
        request: Request<v1::RemoveSecretRequest>,
    ) -> Result<Response<v1::RemoveSecretResponse>, Status> {
        authz::require(&request, rpc::REMOVE_SECRET)?;
        Err(Status::unimplemented("not yet"))
    }

    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        authz::require(&request, rpc::BACKUP)?;
        Err(Status::unimplemented("not yet"))
    }

    async fn info(&self, request: Request<v1::InfoRequest>) -> Result<Response<v1::InfoResponse>, Status> {
        authz::require(&request, rpc::INFO)?;
        let shared = &self.0;
        Ok(Response::new(v1::InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_id: shared.store.cluster().to_string(),
            advertised: shared.advertise.clone(),
            listen: shared.listen.to_string(),
            private: shared.private,
            server_name: SERVER_NAME.to_owned(),
            server_ca_pem: shared.ca.root_pem().to_owned(),
        }))
    }

    async fn prepare_host(
        &self,
        request: Request<v1::PrepareHostRequest>,
    ) -> Result<Response<v1::PrepareHostResponse>, Status> {
        let peer = authz::require(&request, rpc::PREPARE_HOST)?;
        let request = request.into_inner();
        let address = request.ssh_address;
        check_address(&address)?;
        if address.is_empty() && request.name.is_empty() {
            return Err(Status::invalid_argument("want an SSH address or a name"));
        }
        let name = (!request.name.is_empty()).then_some(request.name);
        name.as_deref().map_or(Ok(()), |name| check_name("host name", name))?;
        if name.as_deref() == Some(EVERY_HOST) {
            return Err(Status::invalid_argument("host name \"all\": that means every host"));
        }
        if request.labels.len() > MAX_LABELS {
            return Err(Status::invalid_argument(format!("more than {MAX_LABELS} labels")));
        }
        for (key, value) in &request.labels {
            check_name("label", key)?;
            if value.len() > 255 || value.chars().any(char::is_control) {
                return Err(Status::invalid_argument(format!(
                    "label {key}: want up to 255 plain characters"
                )));
            }
        }
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
        Ok(Response::new(v1::PrepareHostResponse { host: Some(self.host_message(host)), token }))
    }

    async fn list_hosts(
        &self,
        request: Request<v1::ListHostsRequest>,
    ) -> Result<Response<v1::ListHostsResponse>, Status> {
        authz::require(&request, rpc::LIST_HOSTS)?;
        let hosts = self.0.store.hosts().await.map_err(failed)?;
        let hosts = hosts.into_iter().map(|host| self.host_message(host)).collect();
        Ok(Response::new(v1::ListHostsResponse { hosts }))
    }

    async fn watch_host(
        &self,
        request: Request<v1::WatchHostRequest>,
    ) -> Result<Response<Self::WatchHostStream>, Status> {
        authz::require(&request, rpc::WATCH_HOST)?;
        let host = self.0.store.find_host(request.into_inner().host).await.map_err(failed)?.id;
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
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn forget_host(
        &self,
        request: Request<v1::ForgetHostRequest>,
    ) -> Result<Response<v1::ForgetHostResponse>, Status> {
        let peer = authz::require(&request, rpc::FORGET_HOST)?;
        let request = request.into_inner();
        let host = self.0.store.find_host(request.host).await.map_err(failed)?;
        let left_behind = if request.record_only { Vec::new() } else { self.leave(&host).await? };
        let forgotten = self.0.store.forget(host.id, self.0.clock.now_ms()).await.map_err(failed)?;
        tracing::info!(host = %host.id, name = %host.name, uid = peer.uid, record_only = request.record_only, "host forgotten");
        self.0.hub.close(host.id, Reason::Revoked, "the host was forgotten", |_| true);
        forgotten.ended.into_iter().for_each(|run| self.0.hub.runs.wake(run));
        self.0.hub.hosts.wake(host.id);
        Ok(Response::new(v1::ForgetHostResponse { left_behind }))
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<Self::ApplyStream>, Status> {
        authz::require(&request, rpc::APPLY)?;
        let request = request.into_inner();
        let origin = super::text::neutral(&request.origin);
        self.start(request.host, origin, request.check, request.plan.into(), self.0.limits.apply_ttl).await
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Result<Response<Self::ExecStream>, Status> {
        authz::require(&request, rpc::EXEC)?;
        let request = request.into_inner();
        let (plan, origin) =
            exec_plan(&request.command_spec).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.start(request.host, origin, false, plan, self.0.limits.exec_ttl).await
    }

    async fn follow_run(
        &self,
        request: Request<v1::FollowRunRequest>,
    ) -> Result<Response<Self::FollowRunStream>, Status> {
        authz::require(&request, rpc::FOLLOW_RUN)?;
        let request = request.into_inner();
        let run = parse_run(&request.run_id)?;
        // Asked first, so that a run that is not there is the call's error and not the stream's.
        self.0.store.run(run).await.map_err(failed)?;
        Ok(Response::new(follow(Arc::clone(&self.0), run, request.cursor)))
    }

    async fn cancel_run(
        &self,
        request: Request<v1::CancelRunRequest>,
    ) -> Result<Response<v1::CancelRunResponse>, Status> {
        let peer = authz::require(&request, rpc::CANCEL_RUN)?;
        let run = parse_run(&request.into_inner().run_id)?;
        let host = self.0.store.run(run).await.map_err(failed)?.host;
        let connected = self.0.hub.session(host).is_some();
        let outcome = self.0.store.cancel(run, connected, self.0.clock.now_ms()).await.map_err(failed)?;
        tracing::info!(%run, uid = peer.uid, ?outcome, "cancel");
        match outcome {
            CancelOutcome::Over => {}
            CancelOutcome::Cancelled(_) => self.0.hub.runs.wake(run),
            CancelOutcome::Tell(host) => {
                // Not taken: the wish is on record and told to the next session.
                self.0.hub.tell(host, Command::Cancel(run)).await;
            }
        }
        Ok(Response::new(v1::CancelRunResponse {}))
    }

    async fn list_runs(
        &self,
        request: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        authz::require(&request, rpc::LIST_RUNS)?;
        let request = request.into_inner();
        let host = match request.host.as_str() {
            "" => None,
            _ => Some(self.0.store.find_host(request.host).await.map_err(failed)?.id),
        };
        let limit = if request.limit == 0 { LIST_DEFAULT } else { request.limit.min(LIST_MAX) };
        let runs = self.0.store.runs(host, limit).await.map_err(failed)?;
        Ok(Response::new(v1::ListRunsResponse { runs: runs.into_iter().map(run_message).collect() }))
    }
}

impl OperatorService {
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

fn parse_run(id: &str) -> Result<RunId, Status> {
    id.parse().map_err(|error: postern_proto::ids::IdError| Status::invalid_argument(error.to_string()))
}

/// The plan of one command, and what it is called.
fn exec_plan(spec: &[u8]) -> Result<(Vec<u8>, String), Box<dyn std::error::Error>> {
    let spec: serde_json::Value = serde_json::from_slice(spec)?;
    let command: CommandSpec = serde::Deserialize::deserialize(&spec)?;
    let name = command.natural_name();
    let plan = Plan {
        schema: PLAN_SCHEMA,
        resources: vec![PlannedResource {
            address: postern_proto::ids::Address::new("exec", CommandSpec::KIND, &name)?,
            kind: CommandSpec::KIND.to_owned(),
            schema: CommandSpec::SCHEMA,
            spec,
            needs: None,
        }],
    };
    Ok((plan.to_bytes()?.0, format!("exec {name}")))
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
