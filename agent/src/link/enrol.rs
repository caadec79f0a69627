//! Enrolment with a one-use token, and renewal with the registered key.

use std::path::Path;
use std::time::Duration;

use postern_proto::host::{AgentConfig, EnrolReport, exit};
use postern_proto::ids::{ClusterId, HostId};
use postern_proto::v1;
use postern_proto::v1::enrolment_client::EnrolmentClient;
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::dial::{Connection, DialLimits, Dialer, Unreachable, tried};
use super::http2::{self, Driving, Http2, KeepAlive};
use super::identity::{IDENTITY_DIR, Identity, IdentityError, IdentityStore, Key};
use super::names::Names;
use super::private_file;
use super::route::{ProxyEnv, RouteError, routes};
use super::session::End;
use super::stream::judge;
use super::time::{TrustedTime, WallClock};
use super::tls::{TlsSetupError, client_config};

/// For the controller's answer.
const ANSWER: Duration = Duration::from_secs(30);
/// The largest answer, bytes: a chain and the trust anchors.
const MAX_ANSWER: usize = 256 * 1024;
/// The engine holds a lock on this file while it uses the state.
const ENGINE_LOCK: &str = "engine.lock";
/// What was set aside for a host that this machine is no more.
const ASIDE: &str = "aside-";

/// What enrolling needs. Nothing is read from the environment.
#[derive(Clone)]
pub struct EnrolOptions {
    /// The configuration.
    pub config: AgentConfig,
    /// Where the identity goes.
    pub state_dir: std::path::PathBuf,
    /// The environment's proxies.
    pub proxy_env: ProxyEnv,
    /// Where names are looked up.
    pub names: Names,
    /// The host's clock.
    pub clock: WallClock,
    /// Deadlines of dialling.
    pub limits: DialLimits,
}

/// Why this host is not enrolled (or its certificate not renewed).
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The configuration names no usable route.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The name in the controller's certificate is none.
    #[error("{0:?} is not a name that a certificate can have")]
    ServerName(String),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The identity on disk, or the disk.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The runs of the host that this machine was before.
    #[error("cannot set aside what the host {host} left in {}", dir.display())]
    Aside {
        /// The old id.
        host: HostId,
        /// The state directory.
        dir: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No address is good.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// A key cannot be made or used.
    #[error("cannot make the key or sign the request with it")]
    Key(#[source] rcgen::Error),
    /// The controller said no.
    #[error("the controller refused: {0}")]
    Refused(String),
    /// The controller said that this identity is revoked.
    #[error("the controller has revoked this host: {0}")]
    Revoked(String),
    /// It answers and cannot now, or the connection broke.
    #[error("the controller could not be asked: {0}")]
    Unavailable(String),
    /// What it sent makes no sense.
    #[error("the controller's answer is not usable: {0}")]
    Answer(String),
}

impl EnrolError {
    /// The exit code of `postern-agent enrol`.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Route(_) | Self::ServerName(_) | Self::Tls(_) => exit::USAGE,
            Self::Identity(error) => error.exit_code(),
            Self::Aside { .. } => exit::DISK,
            Self::Unreachable(Unreachable(tried)) => {
                if tried.iter().any(|(_, error)| error.is_not_the_controller()) {
                    exit::NOT_THE_CONTROLLER
                } else {
                    exit::UNREACHABLE
                }
            }
            Self::Refused(_) | Self::Revoked(_) => exit::REFUSED,
            Self::Answer(_) => exit::NOT_THE_CONTROLLER,
            Self::Key(_) | Self::Unavailable(_) => exit::FAILED,
        }
    }
}

impl IdentityError {
    /// The exit code of whatever needs the identity.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Missing(_) => exit::NOT_ENROLLED,
            Self::Corrupt { .. } => exit::CORRUPT,
            Self::TooNew { .. } => exit::TOO_NEW,
            Self::Io { .. } => exit::DISK,
        }
    }
}

/// The dialer for a configuration.
pub(crate) fn dialer(
    config: &AgentConfig,
    proxy_env: &ProxyEnv,
    names: &Names,
    limits: DialLimits,
) -> Result<Dialer, EnrolError> {
    let server_name = ServerName::try_from(config.server_name.clone())
        .map_err(|_| EnrolError::ServerName(config.server_name.clone()))?;
    Ok(Dialer { routes: routes(config, proxy_env)?, server_name, names: names.clone(), limits })
}

/// Dials every route without a token: is the controller to be reached from here? The exit code comes along.
pub async fn probe(options: &EnrolOptions) -> (i32, EnrolReport) {
    let result = async {
        let dialer = dialer(&options.config, &options.proxy_env, &options.names, options.limits)?;
        let time = TrustedTime::new(options.clock.clone(), 0);
        let tls = client_config(&options.config.server_ca_pem, None, time)?;
        Ok::<_, EnrolError>(dialer.dial(tls).await?)
    };
    match Box::pin(result).await {
        Ok(connection) => (exit::OK, reached(&connection, None)),
        Err(error) => failed(&error, None),
    }
}

/// Enrols this host with a token. An identity that is there stays as it is unless all of it succeeds.
pub async fn enrol(options: &EnrolOptions, token: &str) -> (i32, EnrolReport) {
    let mut seen = None;
    match Box::pin(try_enrol(options, token, &mut seen)).await {
        Ok(host) => {
            let report = seen.unwrap_or_else(|| report(""));
            (exit::OK, EnrolReport { host_id: Some(host), ..report })
        }
        Err(error) => failed(&error, seen),
    }
}

fn report(error: &str) -> EnrolReport {
    EnrolReport { host_id: None, reached: None, tried: Vec::new(), error: error.to_owned() }
}

fn reached(connection: &Connection, host_id: Option<HostId>) -> EnrolReport {
    let reached = Some(connection.address.clone());
    EnrolReport { host_id, reached, tried: tried(&connection.tried), error: String::new() }
}

fn failed(error: &EnrolError, seen: Option<EnrolReport>) -> (i32, EnrolReport) {
    let mut report = seen.unwrap_or_else(|| report(""));
    if let EnrolError::Unreachable(Unreachable(list)) = error {
        report.tried = tried(list);
    }
    report.error = http2::chain(error);
    (error.exit_code(), report)
}

async fn try_enrol(
    options: &EnrolOptions,
    token: &str,
    seen: &mut Option<EnrolReport>,
) -> Result<HostId, EnrolError> {
    let host = options.config.host_id;
    let store = IdentityStore::new(&options.state_dir);
    let old = match store.load() {
        Ok(identity) => Some(identity),
        Err(IdentityError::Missing(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let same_host = old.as_ref().filter(|old| old.host() == host);
    let key = same_host.map_or_else(Key::generate, Identity::key).map_err(EnrolError::Key)?;
    let time = TrustedTime::new(options.clock.clone(), same_host.map_or(0, Identity::floor_s));

    let dialer = dialer(&options.config, &options.proxy_env, &options.names, options.limits)?;
    let tls = client_config(&options.config.server_ca_pem, None, time.clone())?;
    let connection = dialer.dial(tls).await?;
    *seen = Some(reached(&connection, None));
    let mut call = Call::open(connection, &options.config.server_name).await?;
    let request = v1::EnrolRequest {
        host_id: host.to_string(),
        token: token.to_owned(),
        csr_der: key.request().map_err(EnrolError::Key)?.into(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let asked = timeout(ANSWER, call.client.enrol(request)).await;
    let identity = call.take(asked, host, None, &key, &time, &options.config.server_ca_pem)?;

    // On disk before anything is replaced; in force only when all the rest is done.
    let staged = store.stage(&identity)?;
    if let Some(old) = old.filter(|old| old.host() != host) {
        set_aside(&options.state_dir, old.host())?;
    }
    staged.commit()?;
    Ok(host)
}

/// Asks for a certificate with the registered key, over a connection without a certificate: it works however
/// long the old one has been expired. Nothing is stored.
pub(crate) async fn renew(
    dialer: &Dialer,
    server_name: &str,
    identity: &Identity,
    time: &TrustedTime,
) -> Result<Identity, EnrolError> {
    let key = identity.key().map_err(EnrolError::Key)?;
    let tls = client_config(identity.server_ca_pem(), None, time.clone())?;
    let connection = dialer.dial(tls).await?;
    let mut call = Call::open(connection, server_name).await?;
    let request = v1::RenewRequest {
        host_id: identity.host().to_string(),
        csr_der: key.request().map_err(EnrolError::Key)?.into(),
    };
    let asked = timeout(ANSWER, call.client.renew(request)).await;
    call.take(asked, identity.host(), Some(identity.cluster()), &key, time, identity.server_ca_pem())
}

/// One connection to the `Enrolment` service.
struct Call {
    client: EnrolmentClient<Http2>,
    server_end_s: i64,
    _driving: Driving,
}

type Asked = Result<Result<tonic::Response<v1::EnrolResponse>, tonic::Status>, tokio::time::error::Elapsed>;

impl Call {
    async fn open(connection: Connection, server_name: &str) -> Result<Self, EnrolError> {
        let server_end_s = connection.server_not_after_s;
        let (http2, driving) =
            http2::open(connection, KeepAlive::default()).await.map_err(EnrolError::Unavailable)?;
        let client = EnrolmentClient::with_origin(http2, http2::origin(server_name))
            .max_decoding_message_size(MAX_ANSWER);
        Ok(Self { client, server_end_s, _driving: driving })
    }

    /// Checks the answer; only then is the time in it believed.
    fn take(
        &self,
        asked: Asked,
        host: HostId,
        cluster: Option<ClusterId>,
        key: &Key,
        time: &TrustedTime,
        known_ca: &str,
    ) -> Result<Identity, EnrolError> {
        let answer = match asked {
            Err(_) => return Err(EnrolError::Unavailable("no answer in time".into())),
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => {
                return Err(match judge(&status) {
                    End::Revoked(why) => EnrolError::Revoked(why),
                    End::Refused(why) => EnrolError::Refused(why),
                    End::Invalid(why) if status.code() == tonic::Code::InvalidArgument => {
                        EnrolError::Refused(why)
                    }
                    End::Invalid(why) => EnrolError::Answer(why),
                    End::Broke(why) | End::Unavailable(why) => EnrolError::Unavailable(why),
                    End::Closed => EnrolError::Unavailable("it closed the connection".into()),
                });
            }
        };
        let wrong = |error: postern_proto::ids::IdError| EnrolError::Answer(error.to_string());
        let (answer_host, answer_cluster) = (
            answer.host_id.parse::<HostId>().map_err(wrong)?,
            answer.cluster_id.parse::<ClusterId>().map_err(wrong)?,
        );
        if answer_host != host {
            return Err(EnrolError::Answer(format!("it is for {answer_host}, this is {host}")));
        }
        if cluster.is_some_and(|cluster| cluster != answer_cluster) {
            return Err(EnrolError::Answer(format!("it is from another controller, {answer_cluster}")));
        }
        let ca = if answer.server_ca_pem.is_empty() { known_ca.to_owned() } else { answer.server_ca_pem };
        let mut identity =
            Identity::new(host, answer_cluster, key, answer.certificate_chain_pem, ca, time.floor_s())
                .map_err(EnrolError::Answer)?;
        time.told(answer.now_unix_s.saturating_mul(1000), self.server_end_s);
        identity.set_floor(time.floor_s());
        Ok(identity)
    }
}

/// Moves what the engine kept for another host out of the way: its runs are not this host's, and its dispatch
/// numbers would hide the new controller's. Nothing is deleted.
fn set_aside(state_dir: &Path, host: HostId) -> Result<(), EnrolError> {
    let fail = |source| EnrolError::Aside { host, dir: state_dir.into(), source };
    // Not from under an agent that runs. No lock file is no engine that ever ran.
    let lock = match std::fs::File::open(state_dir.join(ENGINE_LOCK)) {
        Ok(lock) => Some(lock),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(fail(error)),
    };
    if lock.as_ref().is_some_and(|lock| lock.try_lock().is_err()) {
        return Err(fail(std::io::Error::other("the agent is running: stop it first")));
    }
    let mut keep = Vec::new();
    for entry in std::fs::read_dir(state_dir).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let text = name.to_string_lossy();
        if text != IDENTITY_DIR && text != ENGINE_LOCK && !text.starts_with(ASIDE) {
            keep.push(name);
        }
    }
    if keep.is_empty() {
        return Ok(());
    }
    let aside = state_dir.join(format!("{ASIDE}{host}-{}", uuid::Uuid::now_v7()));
    private_file::private_dir(&aside).map_err(fail)?;
    for name in keep {
        std::fs::rename(state_dir.join(&name), aside.join(&name)).map_err(fail)?;
    }
    private_file::sync_dir(&aside).and_then(|()| private_file::sync_dir(state_dir)).map_err(fail)
}

/// A token as it comes on stdin: one line, not long.
pub fn read_token(from: impl std::io::Read) -> Result<Zeroizing<String>, String> {
    use std::io::Read as _;
    const MAX: u64 = 4096;
    let mut text = Zeroizing::new(String::new());
    from.take(MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| format!("cannot read the token: {error}"))?;
    if text.len() as u64 > MAX {
        return Err("the token on stdin is too long".into());
    }
    let token = Zeroizing::new(text.trim().to_owned());
    if token.is_empty() { Err("no token on stdin".into()) } else { Ok(token) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        assert_eq!(read_token(&b" abc\n"[..]).unwrap().as_str(), "abc");
        assert!(read_token(&b"\n"[..]).is_err());
        assert!(read_token(&[b'x'; 5000][..]).is_err());
        assert!(read_token(&[0xff, 0xfe][..]).is_err());
    }

    #[test]
    fn the_runs_of_another_host_are_set_aside_and_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["identity", "spool", "aside-older"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("journal"), "old").unwrap();
        let host = HostId::generate();
        let lock = std::fs::File::create(dir.path().join("engine.lock")).unwrap();
        lock.lock().unwrap();
        assert!(set_aside(dir.path(), host).is_err(), "the agent is running");
        assert!(dir.path().join("journal").exists());
        drop(lock);
        set_aside(dir.path(), host).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left.len(), 4, "{left:?}");
        let aside = left.iter().find(|name| name.contains(&host.to_string())).unwrap();
        assert_eq!(std::fs::read(dir.path().join(aside).join("journal")).unwrap(), b"old");
    }
}
