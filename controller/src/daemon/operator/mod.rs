//! The `Operator` service: what the command line asks of the daemon. Every handler passes the choke point
//! first; what it does then stands in the modules.

mod backup;
mod hosts;
mod runs;
mod secrets;
mod ssh_port;

use std::sync::Arc;

use postern_proto::v1::operator_server::Operator;
use postern_proto::{SERVER_NAME, v1};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::authz::{self, rpc};
use super::enrolment::store_status;
use super::follow::Updates;
use super::shared::Shared;
use crate::store::OpError;

/// The service.
pub(crate) struct OperatorService(pub(crate) Arc<Shared>);

fn failed(error: OpError) -> Status {
    store_status(&error)
}

impl OperatorService {
    fn about(&self) -> v1::InfoResponse {
        let shared = &self.0;
        v1::InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_id: shared.store.cluster().to_string(),
            advertised: shared.advertise.clone(),
            listen: shared.listen.to_string(),
            private: shared.private,
            server_name: SERVER_NAME.to_owned(),
            server_ca_pem: shared.ca.root_pem().to_owned(),
        }
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

    async fn info(&self, request: Request<v1::InfoRequest>) -> Result<Response<v1::InfoResponse>, Status> {
        authz::require(&request, rpc::INFO)?;
        Ok(Response::new(self.about()))
    }

    async fn prepare_host(
        &self,
        request: Request<v1::PrepareHostRequest>,
    ) -> Result<Response<v1::PrepareHostResponse>, Status> {
        let peer = authz::require(&request, rpc::PREPARE_HOST)?;
        Ok(Response::new(self.prepare(peer, request.into_inner()).await?))
    }

    async fn list_hosts(
        &self,
        request: Request<v1::ListHostsRequest>,
    ) -> Result<Response<v1::ListHostsResponse>, Status> {
        authz::require(&request, rpc::LIST_HOSTS)?;
        Ok(Response::new(self.hosts().await?))
    }

    async fn watch_host(
        &self,
        request: Request<v1::WatchHostRequest>,
    ) -> Result<Response<Self::WatchHostStream>, Status> {
        authz::require(&request, rpc::WATCH_HOST)?;
        Ok(Response::new(self.watch_one(request.into_inner()).await?))
    }

    async fn forget_host(
        &self,
        request: Request<v1::ForgetHostRequest>,
    ) -> Result<Response<v1::ForgetHostResponse>, Status> {
        let peer = authz::require(&request, rpc::FORGET_HOST)?;
        Ok(Response::new(self.forget(peer, request.into_inner()).await?))
    }

    async fn update_host(
        &self,
        request: Request<v1::UpdateHostRequest>,
    ) -> Result<Response<v1::UpdateHostResponse>, Status> {
        let peer = authz::require(&request, rpc::UPDATE_HOST)?;
        Ok(Response::new(self.update(peer, request.into_inner()).await?))
    }

    async fn list_assigned(
        &self,
        request: Request<v1::ListAssignedRequest>,
    ) -> Result<Response<v1::ListAssignedResponse>, Status> {
        authz::require(&request, rpc::LIST_ASSIGNED)?;
        Ok(Response::new(self.assigned(request.into_inner()).await?))
    }

    async fn unassign(
        &self,
        request: Request<v1::UnassignRequest>,
    ) -> Result<Response<v1::UnassignResponse>, Status> {
        let peer = authz::require(&request, rpc::UNASSIGN)?;
        Ok(Response::new(self.unassign_profile(peer, request.into_inner()).await?))
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<Updates>, Status> {
        authz::require(&request, rpc::APPLY)?;
        Ok(Response::new(self.apply_plan(request.into_inner()).await?))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Result<Response<Updates>, Status> {
        authz::require(&request, rpc::EXEC)?;
        Ok(Response::new(self.exec_command(request.into_inner()).await?))
    }

    async fn follow_run(&self, request: Request<v1::FollowRunRequest>) -> Result<Response<Updates>, Status> {
        authz::require(&request, rpc::FOLLOW_RUN)?;
        Ok(Response::new(self.follow_one(request.into_inner()).await?))
    }

    async fn cancel_run(
        &self,
        request: Request<v1::CancelRunRequest>,
    ) -> Result<Response<v1::CancelRunResponse>, Status> {
        let peer = authz::require(&request, rpc::CANCEL_RUN)?;
        Ok(Response::new(self.cancel(peer, request.into_inner()).await?))
    }

    async fn list_runs(
        &self,
        request: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        authz::require(&request, rpc::LIST_RUNS)?;
        Ok(Response::new(self.runs(request.into_inner()).await?))
    }

    async fn resume_run(&self, request: Request<v1::ResumeRunRequest>) -> Result<Response<Updates>, Status> {
        let peer = authz::require(&request, rpc::RESUME_RUN)?;
        Ok(Response::new(self.resume(peer, &request.into_inner().run_id).await?))
    }

    async fn undo_run(&self, request: Request<v1::UndoRunRequest>) -> Result<Response<Updates>, Status> {
        let peer = authz::require(&request, rpc::UNDO_RUN)?;
        Ok(Response::new(self.undo(peer, request.into_inner()).await?))
    }

    async fn restart_agent(
        &self,
        request: Request<v1::RestartAgentRequest>,
    ) -> Result<Response<v1::RestartAgentResponse>, Status> {
        let peer = authz::require(&request, rpc::RESTART_AGENT)?;
        Ok(Response::new(self.restart(peer, request.into_inner()).await?))
    }

    async fn look_at_ports(
        &self,
        request: Request<v1::LookAtPortsRequest>,
    ) -> Result<Response<v1::LookAtPortsResponse>, Status> {
        authz::require(&request, rpc::LOOK_AT_PORTS)?;
        Ok(Response::new(self.look(request.into_inner()).await?))
    }

    async fn set_secret(
        &self,
        request: Request<v1::SetSecretRequest>,
    ) -> Result<Response<v1::SetSecretResponse>, Status> {
        let peer = authz::require(&request, rpc::SET_SECRET)?;
        Ok(Response::new(self.set(peer, request.into_inner()).await?))
    }

    async fn list_secrets(
        &self,
        request: Request<v1::ListSecretsRequest>,
    ) -> Result<Response<v1::ListSecretsResponse>, Status> {
        authz::require(&request, rpc::LIST_SECRETS)?;
        Ok(Response::new(self.secrets().await?))
    }

    async fn remove_secret(
        &self,
        request: Request<v1::RemoveSecretRequest>,
    ) -> Result<Response<v1::RemoveSecretResponse>, Status> {
        let peer = authz::require(&request, rpc::REMOVE_SECRET)?;
        Ok(Response::new(self.remove(peer, request.into_inner()).await?))
    }

    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let peer = authz::require(&request, rpc::BACKUP)?;
        Ok(Response::new(self.archive(peer).await?))
    }
}
