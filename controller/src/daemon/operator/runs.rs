//! Runs, as an operator starts, follows, cancels, resumes and takes them back.

use std::sync::Arc;
use std::time::Duration;

use postern_proto::ids::{HostId, PlanHash, RunId};
use postern_proto::plan::{Approval, PLAN_SCHEMA, Plan, PlannedResource, Terms};
use postern_proto::spec::{CommandSpec, ResourceSpec as _, SshPort};
use postern_proto::v1;
use tonic::Status;

use super::hosts::check_var;
use super::{OperatorService, failed};
use crate::daemon::authz::OperatorPeer;
use crate::daemon::follow::{Updates, follow, follow_new, run_message};
use crate::daemon::hub::Command;
use crate::daemon::ssh_port;
use crate::daemon::text::{Neutral, neutral};
use crate::store::{Assigned, CancelOutcome, NewRun};

/// Runs listed when nobody says how many, and at most.
const LIST_DEFAULT: u32 = 50;
const LIST_MAX: u32 = 1000;
/// The name of an assigned profile, bytes: a path may be one.
const MAX_PROFILE_NAME: usize = 1024;
/// Variables of one assigned profile.
const MAX_PROFILE_VARS: usize = 1024;
/// Profiles that one takes the place of: as many as a bundle can have files.
const MAX_COVERED: usize = 256;

/// What a run is made from.
#[derive(Default)]
struct Order {
    /// Id or name.
    host: String,
    origin: String,
    plan: Vec<u8>,
    terms: Terms,
    resumes: Option<RunId>,
    undoes: Option<RunId>,
    assign: Vec<Assigned>,
    unassign: Vec<String>,
    ttl: Duration,
    ssh_port: Option<SshPort>,
    /// What a firewall made of that port in the run that is taken back, if it did anything.
    undone_port: Option<SshPort>,
}

fn assigned(profile: v1::AssignedProfile) -> Result<Assigned, Status> {
    let name = profile.name;
    if name.is_empty() || name.len() > MAX_PROFILE_NAME || name.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!(
            "assigned profile {name:?}: want a name of up to {MAX_PROFILE_NAME} plain characters"
        )));
    }
    if profile.covers.len() > MAX_COVERED {
        return Err(Status::invalid_argument(format!(
            "profile {name}: includes more than {MAX_COVERED} others"
        )));
    }
    if profile.vars.len() > MAX_PROFILE_VARS {
        return Err(Status::invalid_argument(format!(
            "profile {name}: more than {MAX_PROFILE_VARS} variables"
        )));
    }
    profile.vars.iter().try_for_each(|(name, value)| check_var(name, value))?;
    let (bundle, vars) = (profile.bundle.into(), profile.vars.into_iter().collect());
    Ok(Assigned { name, bundle, vars, assigned_ms: 0, covers: profile.covers })
}

impl OperatorService {
    pub(super) async fn apply_plan(&self, request: v1::ApplyRequest) -> Result<Updates, Status> {
        if request.check && !(request.assign.is_empty() && request.unassign.is_empty()) {
            return Err(Status::invalid_argument(
                "a check changes nothing, so it assigns no profiles either",
            ));
        }
        let ssh_port = ssh_port::from_message(request.ssh_port());
        if ssh_port.is_some() && (request.check || !request.assign.is_empty()) {
            return Err(Status::invalid_argument(
                "what changes the port of SSH is no check and assigns nothing",
            ));
        }
        let approved = request.approved.into_iter().map(Approval::try_from).collect::<Result<_, _>>();
        let approved = approved.map_err(|error| Status::invalid_argument(format!("approved: {error}")))?;
        self.start(Order {
            host: request.host,
            origin: neutral(&request.origin),
            plan: request.plan.into(),
            terms: Terms { check: request.check, approved, ..Terms::default() },
            assign: request.assign.into_iter().map(assigned).collect::<Result<_, _>>()?,
            unassign: request.unassign,
            ttl: self.0.limits.apply_ttl,
            ssh_port,
            ..Order::default()
        })
        .await
    }

    pub(super) async fn exec_command(&self, request: v1::ExecRequest) -> Result<Updates, Status> {
        let (plan, origin) =
            exec_plan(&request.command_spec).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let ttl = self.0.limits.exec_ttl;
        self.start(Order { host: request.host, origin, plan, ttl, ..Order::default() }).await
    }

    pub(super) async fn resume(&self, peer: OperatorPeer, run: &str) -> Result<Updates, Status> {
        let past = self.0.store.past(parse_run(run)?).await.map_err(failed)?;
        let old = past.run.id;
        let plan = Plan::from_bytes(&past.plan)
            .map_err(|error| Status::failed_precondition(format!("run {old} cannot be resumed: {error}")))?;
        let terms = past.resume(&plan).map_err(failed)?;
        let host = self.0.store.find_host(past.run.host.to_string()).await.map_err(failed)?;
        let undone_port = match terms.undo_of {
            None => None,
            // What either of them did to the firewall; what that means is decided as for the undo itself.
            Some(undone) => {
                let mut touched = self.0.store.past(undone).await.map_err(failed)?.touched;
                touched.extend(past.touched.iter().cloned());
                ssh_port::of_touched(&plan, &touched)
            }
        };
        let said_since = host.ssh.declared.is_some_and(|said| said.at_ms >= past.run.created_ms);
        if terms.undo_of.is_none() && said_since && ssh_port::of(&plan).is_some() {
            // It would make of the port what was declared then.
            return Err(Status::failed_precondition(format!(
                "run {old} cannot be resumed: the port of SSH of {} was opened or closed since it was made \
                 (`postern ssh-port status` says how it stands); apply the profiles again",
                host.name
            )));
        }
        tracing::info!(run = %old, uid = peer.uid, done = terms.done.len(), "resume");
        self.start(Order {
            host: past.run.host.to_string(),
            origin: past.run.origin,
            plan: past.plan,
            resumes: Some(old),
            // What takes a run back does so also when it was cut off and goes on.
            undoes: terms.undo_of,
            undone_port,
            terms,
            ttl: self.0.limits.apply_ttl,
            ..Order::default()
        })
        .await
    }

    pub(super) async fn undo(
        &self,
        peer: OperatorPeer,
        request: v1::UndoRunRequest,
    ) -> Result<Updates, Status> {
        let past = self.0.store.past(parse_run(&request.run_id)?).await.map_err(failed)?;
        let terms = past.undo(request.check).map_err(failed)?;
        // One that cannot be read is refused below.
        let undone_port =
            Plan::from_bytes(&past.plan).ok().and_then(|plan| ssh_port::of_touched(&plan, &past.touched));
        tracing::info!(run = %past.run.id, uid = peer.uid, check = request.check, "undo");
        self.start(Order {
            host: past.run.host.to_string(),
            origin: past.run.origin,
            plan: past.plan,
            terms,
            undoes: Some(past.run.id),
            ttl: self.0.limits.apply_ttl,
            undone_port,
            ..Order::default()
        })
        .await
    }

    /// Writes a run down, sends it if the host is connected, and follows it.
    async fn start(&self, order: Order) -> Result<Updates, Status> {
        let shared = &self.0;
        let plan =
            Plan::from_bytes(&order.plan).map_err(|error| Status::invalid_argument(error.to_string()))?;
        ssh_port::check_plan(&plan, order.ssh_port)?;
        let firewall = match (order.terms.check, order.terms.undo_of) {
            // It changes nothing.
            (true, _) => None,
            (false, Some(_)) => order.undone_port,
            (false, None) => ssh_port::of(&plan),
        };
        // What takes a run back may go without: it starts from what was there before.
        let secrets = if order.undoes.is_some() { Default::default() } else { plan.secrets() };
        // An id needs no look-up: the store checks it in the commit that it costs anyway.
        let host = match order.host.parse::<HostId>() {
            Ok(id) => id,
            Err(_) => shared.store.find_host(order.host).await.map_err(failed)?.id,
        };
        let session = shared.hub.session(host);
        // The agent of a host that is away refuses by itself.
        let lacks = session.as_ref().map(|session| session.kinds.lacks(&plan)).unwrap_or_default();
        if !lacks.is_empty() {
            let lacks: Vec<_> = lacks.into_iter().collect();
            return Err(Status::failed_precondition(format!(
                "the agent is too old for this plan: it does not know {}; nothing was sent, and `postern up … \
                 --bootstrap` upgrades it",
                lacks.join(", ")
            )));
        }
        let created_ms = shared.clock.now_ms();
        let ttl_ms = i64::try_from(order.ttl.as_millis()).unwrap_or(i64::MAX);
        let not_after_ms = created_ms.saturating_add(ttl_ms);
        let (check, assigns, undoes) = (order.terms.check, !order.assign.is_empty(), order.undoes.is_some());
        let changes_ssh_port = order.ssh_port.is_some();
        let new = NewRun {
            id: RunId::generate(),
            host,
            origin: order.origin,
            terms: order.terms,
            resumes: order.resumes,
            undoes: order.undoes,
            assign: order.assign,
            unassign: order.unassign,
            secrets,
            plan_hash: PlanHash::of(&order.plan),
            plan: order.plan,
            created_ms,
            not_after_ms,
            send_now: session.is_some(),
            limit: shared.limits.runs_per_host,
            ssh_port: order.ssh_port,
            firewall,
        };
        let changes = shared.hub.runs.subscribe(new.id);
        let (run, dispatch) = shared.store.create_run(new).await.map_err(failed)?;
        tracing::info!(run = %run.id, %host, origin = %Neutral(&run.origin), check, "run created");
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
        // The undo of a run takes back what it assigned, too.
        if assigns || undoes || changes_ssh_port {
            shared.hub.hosts.wake(host);
        }
        shared.expiry.expect(not_after_ms);
        Ok(updates)
    }

    pub(super) async fn follow_one(&self, request: v1::FollowRunRequest) -> Result<Updates, Status> {
        let run = parse_run(&request.run_id)?;
        // Asked first, so that a run that is not there is the call's error and not the stream's.
        self.0.store.run(run).await.map_err(failed)?;
        Ok(follow(Arc::clone(&self.0), run, request.cursor))
    }

    pub(super) async fn cancel(
        &self,
        peer: OperatorPeer,
        request: v1::CancelRunRequest,
    ) -> Result<v1::CancelRunResponse, Status> {
        let run = parse_run(&request.run_id)?;
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
        Ok(v1::CancelRunResponse {})
    }

    pub(super) async fn runs(&self, request: v1::ListRunsRequest) -> Result<v1::ListRunsResponse, Status> {
        let host = match request.host.as_str() {
            "" => None,
            _ => Some(self.0.store.find_host(request.host).await.map_err(failed)?.id),
        };
        let limit = if request.limit == 0 { LIST_DEFAULT } else { request.limit.min(LIST_MAX) };
        let runs = self.0.store.runs(host, limit).await.map_err(failed)?;
        Ok(v1::ListRunsResponse { runs: runs.into_iter().map(run_message).collect() })
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
