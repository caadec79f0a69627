//! The command line's connection to the daemon: the operator's calls in the program's own types.

mod model;
mod start;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use postern_proto::ids::{HostId, RunId};
use postern_proto::v1;
use postern_proto::v1::operator_client::OperatorClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use zeroize::Zeroizing;

pub use model::{
    AgentBack, Assigned, HostChange, HostInfo, Info, Link, Order, PortLook, PortLooks, PortState, RunInfo,
    SecretInfo, SshInfo, SshSaid, Update, UpdateKind,
};
pub use start::{StartFailure, Starter, log_path};
pub(crate) use start::{reach, start_lock};

/// How long the daemon may take to accept a connection, and to answer a call that waits for nothing.
const CALL_DEADLINE: Duration = Duration::from_secs(15);
/// All profiles assigned to a host are the largest answer, bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// How long an agent may take to come back from a restart: the daemon's own deadline is shorter.
const RESTART_DEADLINE: Duration = Duration::from_secs(120);
/// How long looks at ports may take, those included that wait for their turn.
const LOOK_DEADLINE: Duration = Duration::from_secs(60);
/// How long a host may take to remove its agent.
const FORGET_DEADLINE: Duration = Duration::from_secs(120);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon answers at the socket.
    #[error("connecting to the daemon at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket belongs to another user, who could be anyone.
    #[error("the daemon at {} runs as user {uid}, not as you", path.display())]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// The daemon refused or could not.
    #[error("{}", refusal(status))]
    Refused {
        /// What it said.
        status: Box<Status>,
    },
    /// The daemon said what it should not.
    #[error("the daemon's answer makes no sense: {0}")]
    Answer(String),
}

fn refusal(status: &Status) -> String {
    if status.message().is_empty() {
        format!("the daemon answers {:?}", status.code())
    } else {
        status.message().to_owned()
    }
}

impl ClientError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "daemon-unreachable",
            Self::Foreign { .. } => "daemon-foreign",
            Self::Answer(_) => "daemon-answer",
            Self::Refused { status } => match status.code() {
                Code::NotFound => "not-found",
                Code::AlreadyExists => "already-exists",
                Code::InvalidArgument => "invalid-argument",
                Code::FailedPrecondition => "failed-precondition",
                Code::Unavailable => "unavailable",
                Code::DeadlineExceeded | Code::Cancelled => "deadline-exceeded",
                Code::ResourceExhausted => "resource-exhausted",
                Code::PermissionDenied | Code::Unauthenticated => "permission-denied",
                Code::Unimplemented => "daemon-too-old",
                _ => "daemon-failed",
            },
        }
    }

    /// True when the connection was lost, so that asking again can help.
    #[must_use]
    pub fn is_connection_lost(&self) -> bool {
        match self {
            Self::Connect { .. } => true,
            Self::Refused { status } => {
                // What tonic makes of a connection that ended while a stream was open.
                matches!(status.code(), Code::Unavailable)
                    || matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Internal)
                        && std::error::Error::source(status.as_ref()).is_some()
            }
            _ => false,
        }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        Self::Refused { status: Box::new(status) }
    }
}

/// A connection to the daemon.
#[derive(Clone, Debug)]
pub struct Client {
    operator: OperatorClient<Channel>,
    daemon_pid: Option<i32>,
}

fn request<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// Opens the socket and makes sure whose it is: the token for a host is not for a stranger's daemon.
async fn open(path: &Path) -> Result<UnixStream, ClientError> {
    let fail = |source| ClientError::Connect { path: path.to_owned(), source };
    let stream = tokio::time::timeout(CALL_DEADLINE, UnixStream::connect(path))
        .await
        .map_err(|_| fail(io::ErrorKind::TimedOut.into()))?
        .map_err(fail)?;
    let uid = stream.peer_cred().map_err(fail)?.uid();
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(ClientError::Foreign { path: path.to_owned(), uid });
    }
    Ok(stream)
}

impl Client {
    /// Connects to the daemon that listens at this socket.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let fail = |source| ClientError::Connect { path: path.to_owned(), source };
        // The first connection is made here, so that its error is the operating system's own.
        let first = open(path).await?;
        let daemon_pid = first.peer_cred().ok().and_then(|peer| peer.pid());
        let mut first = Some(first);
        let path = path.to_owned();
        let again = path.clone();
        let connector = tower::service_fn(move |_| {
            let (first, path) = (first.take(), again.clone());
            async move {
                let stream = match first {
                    Some(stream) => stream,
                    None => open(&path).await.map_err(io::Error::other)?,
                };
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        // The address is never used: the connector goes to the socket.
        let channel = Endpoint::from_static("http://postern.invalid")
            .connect_timeout(CALL_DEADLINE)
            .connect_with_connector(connector)
            .await
            .map_err(|error| fail(io::Error::other(error)))?;
        let operator = OperatorClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        Ok(Self { operator, daemon_pid })
    }

    /// Which process listens at the socket, as the kernel says.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<i32> {
        self.daemon_pid
    }

    /// What the daemon is.
    pub async fn info(&mut self) -> Result<Info, ClientError> {
        let answer = self.operator.info(request(v1::InfoRequest {}, CALL_DEADLINE)).await?;
        Ok(answer.into_inner().into())
    }

    /// Registers a host, or finds the one at that address, and mints a one-use token for it.
    pub async fn prepare_host(
        &mut self,
        ssh_address: String,
        name: Option<String>,
        labels: Vec<(String, String)>,
    ) -> Result<(HostInfo, Zeroizing<String>), ClientError> {
        let message = v1::PrepareHostRequest {
            ssh_address,
            name: name.unwrap_or_default(),
            labels: labels.into_iter().collect(),
        };
        let answer = self.operator.prepare_host(request(message, CALL_DEADLINE)).await?.into_inner();
        let token = Zeroizing::new(answer.token);
        let host = answer.host.ok_or_else(|| ClientError::Answer("no host".into()))?;
        Ok((host.try_into()?, token))
    }

    /// All hosts, by name.
    pub async fn hosts(&mut self) -> Result<Vec<HostInfo>, ClientError> {
        let answer = self.operator.list_hosts(request(v1::ListHostsRequest {}, CALL_DEADLINE)).await?;
        let hosts = answer.into_inner().hosts.into_iter().map(HostInfo::try_from);
        let mut hosts = hosts.collect::<Result<Vec<_>, _>>()?;
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(hosts)
    }

    /// Returns when the host's session is up, with the last that was seen of it when it is not up in time.
    pub async fn wait_for_session(
        &mut self,
        host: HostId,
        deadline: Duration,
    ) -> Result<Result<HostInfo, Option<HostInfo>>, ClientError> {
        let mut last = None;
        let wait = async {
            let message = v1::WatchHostRequest { host: host.to_string() };
            let mut stream = self.operator.watch_host(message).await?.into_inner();
            while let Some(host) = stream.message().await? {
                let host = HostInfo::try_from(host)?;
                if host.link == Link::Up {
                    return Ok(Some(host));
                }
                last = Some(host);
            }
            Ok::<_, ClientError>(None)
        };
        match tokio::time::timeout(deadline, wait).await {
            Err(_) => Ok(Err(last)),
            Ok(result) => Ok(result?.ok_or(last)),
        }
    }

    /// Ends a host's membership; with `record_only` nothing is done on the host. Yields what was left there.
    pub async fn forget(&mut self, host: HostId, record_only: bool) -> Result<Vec<String>, ClientError> {
        let message = v1::ForgetHostRequest { host: host.to_string(), record_only };
        let answer = self.operator.forget_host(request(message, FORGET_DEADLINE)).await?;
        Ok(answer.into_inner().left_behind)
    }

    /// Changes what the operator says about a host; yields it as it is then.
    pub async fn update_host(&mut self, host: HostId, change: HostChange) -> Result<HostInfo, ClientError> {
        let message = change.into_request(host);
        let answer = self.operator.update_host(request(message, CALL_DEADLINE)).await?.into_inner();
        answer.host.ok_or_else(|| ClientError::Answer("no host".into()))?.try_into()
    }

    /// The profiles a host is to have, in the order in which they compose.
    pub async fn assigned(&mut self, host: HostId) -> Result<Vec<Assigned>, ClientError> {
        let message = v1::ListAssignedRequest { host: host.to_string() };
        let answer = self.operator.list_assigned(request(message, CALL_DEADLINE)).await?;
        Ok(answer.into_inner().profiles.into_iter().map(Assigned::from).collect())
    }

    /// Takes a profile from a host's assigned ones. Nothing changes on the host by that.
    pub async fn unassign(&mut self, host: HostId, profile: String) -> Result<(), ClientError> {
        let message = v1::UnassignRequest { host: host.to_string(), profile };
        self.operator.unassign(request(message, CALL_DEADLINE)).await?;
        Ok(())
    }

    /// Has an agent end and come back as a new process. Refused while a run of its host is not over.
    pub async fn restart_agent(&mut self, host: HostId) -> Result<AgentBack, ClientError> {
        let message = v1::RestartAgentRequest { host: host.to_string() };
        self.operator.restart_agent(request(message, RESTART_DEADLINE)).await?.into_inner().try_into()
    }

    /// What the daemon sees of these ports at every address of a host, by new connections.
    pub async fn look_at_ports(&mut self, host: HostId, ports: Vec<u16>) -> Result<PortLooks, ClientError> {
        let ports = ports.into_iter().map(u32::from).collect();
        let message = v1::LookAtPortsRequest { host: host.to_string(), ports };
        self.operator.look_at_ports(request(message, LOOK_DEADLINE)).await?.into_inner().try_into()
    }

    /// Gives a secret a value; yields the version that has it. The value it has already makes no new version.
    pub async fn set_secret(&mut self, name: String, value: Zeroizing<Vec<u8>>) -> Result<u32, ClientError> {
        // The message's buffer is wiped when the last part of it was sent.
        let message = v1::SetSecretRequest { name, value: bytes::Bytes::from_owner(value) };
        let answer = self.operator.set_secret(request(message, CALL_DEADLINE)).await?;
        Ok(answer.into_inner().version)
    }

    /// All secrets by name, without their values.
    pub async fn secrets(&mut self) -> Result<Vec<SecretInfo>, ClientError> {
        let answer = self.operator.list_secrets(request(v1::ListSecretsRequest {}, CALL_DEADLINE)).await?;
        Ok(answer.into_inner().secrets.into_iter().map(SecretInfo::from).collect())
    }

    /// Removes a secret with all its versions.
    pub async fn remove_secret(&mut self, name: String) -> Result<(), ClientError> {
        self.operator.remove_secret(request(v1::RemoveSecretRequest { name }, CALL_DEADLINE)).await?;
        Ok(())
    }

    /// The whole state as one archive, in pieces.
    pub async fn backup(&mut self) -> Result<BackupPieces, ClientError> {
        Ok(BackupPieces(self.operator.backup(v1::BackupRequest {}).await?.into_inner()))
    }

    /// Starts a run of a plan.
    pub async fn apply(&mut self, host: HostId, plan: Vec<u8>, order: Order) -> Result<Updates, ClientError> {
        let message = order.into_request(host, plan);
        Ok(Updates(self.operator.apply(message).await?.into_inner()))
    }

    /// Starts a run of the same plan on the same host that does not repeat the actions the old one has done.
    pub async fn resume(&mut self, run: RunId) -> Result<Updates, ClientError> {
        let message = v1::ResumeRunRequest { run_id: run.to_string() };
        Ok(Updates(self.operator.resume_run(message).await?.into_inner()))
    }

    /// Starts a run that takes back what this one did; with `check` it only shows what it would do.
    pub async fn undo(&mut self, run: RunId, check: bool) -> Result<Updates, ClientError> {
        let message = v1::UndoRunRequest { run_id: run.to_string(), check };
        Ok(Updates(self.operator.undo_run(message).await?.into_inner()))
    }

    /// Starts a run of one command.
    pub async fn exec(&mut self, host: HostId, spec: Vec<u8>) -> Result<Updates, ClientError> {
        let message = v1::ExecRequest { host: host.to_string(), command_spec: spec.into() };
        Ok(Updates(self.operator.exec(message).await?.into_inner()))
    }

    /// Follows a run after this cursor; from its beginning when that is 0.
    pub async fn follow(&mut self, run: RunId, cursor: u64) -> Result<Updates, ClientError> {
        let message = v1::FollowRunRequest { run_id: run.to_string(), cursor };
        Ok(Updates(self.operator.follow_run(message).await?.into_inner()))
    }

    /// Asks for a run to be ended.
    pub async fn cancel(&mut self, run: RunId) -> Result<(), ClientError> {
        let message = v1::CancelRunRequest { run_id: run.to_string() };
        self.operator.cancel_run(request(message, CALL_DEADLINE)).await?;
        Ok(())
    }

    /// The latest runs, newest first; of all hosts when `host` is empty.
    pub async fn runs(&mut self, host: &str, limit: u32) -> Result<Vec<RunInfo>, ClientError> {
        let message = v1::ListRunsRequest { host: host.to_owned(), limit };
        let answer = self.operator.list_runs(request(message, CALL_DEADLINE)).await?;
        answer.into_inner().runs.into_iter().map(RunInfo::try_from).collect()
    }
}

/// What happens in a run, as it happens.
#[derive(Debug)]
pub struct Updates(tonic::Streaming<v1::RunUpdate>);

impl Updates {
    /// The next update; `None` when the run is over and all of it was told.
    pub async fn next(&mut self) -> Result<Option<Update>, ClientError> {
        match self.0.message().await? {
            Some(update) => Ok(Some(update.try_into()?)),
            None => Ok(None),
        }
    }
}

/// A backup on its way.
#[derive(Debug)]
pub struct BackupPieces(tonic::Streaming<v1::BackupPiece>);

impl BackupPieces {
    /// The next piece; `None` after the last one. What ended in an error is no backup.
    pub async fn next(&mut self) -> Result<Option<bytes::Bytes>, ClientError> {
        Ok(self.0.message().await?.map(|piece| piece.data))
    }
}
