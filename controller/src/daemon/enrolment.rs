//! The `Enrolment` service: a token buys the first certificate, a registered key all that follow.

use std::sync::Arc;

use postern_proto::ids::HostId;
use postern_proto::v1::enrolment_server::Enrolment;
use postern_proto::{REFUSAL_KEY, REFUSAL_REVOKED, v1};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use super::authz::{self, rpc};
use super::shared::Shared;
use super::text::Neutral;
use super::wire::Reason;
use crate::ca::{AgentCertificate, AgentKey};
use crate::store::{self, EnrolOutcome, KeyStatus, OpError, TokenFault, TokenHash};

/// The longest token that is looked at, bytes.
const MAX_TOKEN: usize = 128;

/// The service.
pub(crate) struct EnrolmentService(pub(crate) Arc<Shared>);

/// What the store said, as a status. Details stay in the log.
pub(crate) fn store_status(error: &OpError) -> Status {
    match error {
        OpError::NoSuchHost(_)
        | OpError::NoSuchRun(_)
        | OpError::NoSuchSecret(_)
        | OpError::NotAssigned { .. } => Status::not_found(error.to_string()),
        OpError::NameTaken(_) => Status::already_exists(error.to_string()),
        OpError::TooManyRuns(_) | OpError::TooMany { .. } => Status::resource_exhausted(error.to_string()),
        OpError::Quarantined(_)
        | OpError::NoSuchSecrets(_)
        | OpError::SecretInUse { .. }
        | OpError::SshPortClosed(_)
        | OpError::SshPortClosedSince(_)
        | OpError::SshPortOpenSince(_)
        | OpError::SshPortChanges { .. }
        | OpError::NotAgain { .. } => Status::failed_precondition(error.to_string()),
        OpError::Closed => Status::unavailable("the controller stops"),
        OpError::Busy(_) => Status::unavailable(error.to_string()),
        _ => {
            tracing::error!(%error, cause = ?std::error::Error::source(error), "the store failed");
            Status::internal(format!("{error}: see the controller's log"))
        }
    }
}

fn malformed(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

impl EnrolmentService {
    fn sign(&self, host: HostId, key: &AgentKey) -> Result<AgentCertificate, Status> {
        let shared = &self.0;
        shared.ca.issue_agent(host, key, shared.clock.now(), shared.limits.certificate_life).map_err(
            |error| {
                tracing::error!(%host, %error, cause = ?std::error::Error::source(&error), "signing failed");
                Status::internal("the certificate could not be signed: see the controller's log")
            },
        )
    }

    async fn is_revoked(&self, key: &AgentKey) -> Result<bool, Status> {
        let status = self.0.store.key_status(key.hash()).await.map_err(|error| store_status(&error))?;
        Ok(matches!(status, KeyStatus::Revoked(_)))
    }

    fn answer(&self, host: HostId, certificate: AgentCertificate) -> Response<v1::EnrolResponse> {
        Response::new(v1::EnrolResponse {
            cluster_id: self.0.store.cluster().to_string(),
            host_id: host.to_string(),
            certificate_chain_pem: certificate.chain_pem,
            server_ca_pem: self.0.ca.root_pem().to_owned(),
            now_unix_s: self.0.clock.now_ms() / 1000,
        })
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn enrol(&self, request: Request<v1::EnrolRequest>) -> Result<Response<v1::EnrolResponse>, Status> {
        let peer = authz::require(&request, rpc::ENROL)?;
        let request = request.into_inner();
        let host: HostId = request.host_id.parse().map_err(malformed)?;
        if request.token.is_empty() || request.token.len() > MAX_TOKEN {
            return Err(malformed("an enrolment token has 1 to 128 bytes"));
        }
        let key = AgentKey::from_csr(&request.csr_der).map_err(malformed)?;
        // Signed before, handed out only after the token was used and the key registered in one commit.
        let certificate = self.sign(host, &key)?;
        let outcome = self
            .0
            .store
            .enrol(store::Enrolment {
                token: TokenHash::of(&request.token),
                host,
                key: key.hash(),
                serial: certificate.serial.clone(),
                not_after_ms: certificate.not_after_ms,
                now_ms: self.0.clock.now_ms(),
            })
            .await
            .map_err(|error| store_status(&error))?;
        match outcome {
            EnrolOutcome::Refused(fault) => {
                tracing::warn!(%host, %peer, %fault, "enrolment refused");
                let revoked = fault == TokenFault::KeyNotFree && self.is_revoked(&key).await?;
                return Err(refusal(fault.to_string(), revoked));
            }
            EnrolOutcome::Again => tracing::info!(%host, key = %key.hash(), "enrolment answered again"),
            EnrolOutcome::Enrolled { revoked, ended } => {
                let version = Neutral(&request.agent_version);
                tracing::info!(%host, key = %key.hash(), %version, revoked, dropped = ended.len(), "host enrolled");
                self.0.hub.close(host, Reason::Revoked, "the host was enrolled anew", |session| {
                    session.key != key.hash()
                });
                ended.into_iter().for_each(|run| self.0.hub.runs.wake(run));
                self.0.hub.hosts.wake(host);
            }
        }
        Ok(self.answer(host, certificate))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::EnrolResponse>, Status> {
        let peer = authz::require(&request, rpc::RENEW)?;
        let request = request.into_inner();
        let host: HostId = request.host_id.parse().map_err(malformed)?;
        let key = AgentKey::from_csr(&request.csr_der).map_err(malformed)?;
        // Looked up before anything is signed; asked again in the commit.
        let status = self.0.store.key_status(key.hash()).await.map_err(|error| store_status(&error))?;
        refuse_unless_good(status, host, &peer)?;
        let certificate = self.sign(host, &key)?;
        let renewed = self.0.store.renew(
            host,
            key.hash(),
            certificate.serial.clone(),
            certificate.not_after_ms,
            self.0.clock.now_ms(),
        );
        refuse_unless_good(renewed.await.map_err(|error| store_status(&error))?, host, &peer)?;
        tracing::info!(%host, key = %key.hash(), "certificate renewed");
        Ok(self.answer(host, certificate))
    }
}

fn refuse_unless_good(status: KeyStatus, host: HostId, peer: &authz::Peer) -> Result<(), Status> {
    let why = match status {
        KeyStatus::Good(owner) if owner == host => return Ok(()),
        KeyStatus::Good(_) => "the key belongs to another host",
        KeyStatus::Revoked(_) => "the key was revoked",
        KeyStatus::Unknown => "the key is not registered",
    };
    tracing::warn!(%host, %peer, why, "renewal refused");
    Err(refusal(why, matches!(status, KeyStatus::Revoked(_))))
}

/// A refusal; one because of a revoked key says so in a word that the agent knows, and it stops asking.
fn refusal(why: impl Into<String>, revoked: bool) -> Status {
    let mut status = Status::permission_denied(why);
    if revoked {
        status.metadata_mut().insert(REFUSAL_KEY, MetadataValue::from_static(REFUSAL_REVOKED));
    }
    status
}
