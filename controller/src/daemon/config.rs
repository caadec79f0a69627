//! What a daemon is started with, and why it would not start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::ca::CaError;
use crate::seal::{KEY_FILE_VARIABLE, KeyError};
use crate::store::StoreError;

/// What a daemon is started with. `DaemonConfig::new` gives the defaults.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// Everything the daemon keeps; made 0700 when it is not there.
    pub state_dir: PathBuf,
    /// Where agents connect to; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Addresses (`host:port`) that agents are told to dial, in order.
    pub advertise: Vec<String>,
    /// The file with the key that secrets are encrypted with, when it lies elsewhere than in `state_dir`. It is
    /// never made there. By default what [`KEY_FILE_VARIABLE`] names.
    pub secrets_key: Option<PathBuf>,
    /// End after being idle so long: no operator connected and no unfinished run.
    pub private: Option<Duration>,
    /// What time it is.
    pub clock: Clock,
    /// How much of everything.
    pub limits: Limits,
}

impl DaemonConfig {
    /// Defaults for all but the state and the address.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            state_dir: state_dir.into(),
            listen,
            advertise: Vec::new(),
            secrets_key: std::env::var_os(KEY_FILE_VARIABLE).map(PathBuf::from),
            private: None,
            clock: Clock::default(),
            limits: Limits::default(),
        }
    }
}

/// Bounds and deadlines.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long an agent's certificate is valid.
    pub certificate_life: Duration,
    /// How long an enrolment token is good.
    pub token_life: Duration,
    /// How long a remote command waits for its host before it expires.
    pub exec_ttl: Duration,
    /// How long an apply waits for its host before it expires.
    pub apply_ttl: Duration,
    /// A TLS handshake must be over by then.
    pub handshake: Duration,
    /// A connection without a client certificate may last this long: enough to enrol.
    pub anonymous_life: Duration,
    /// Connections at once, in all.
    pub connections: usize,
    /// Handshakes at once.
    pub handshakes: usize,
    /// Handshakes at once from one address, or one /64 of IPv6: a part of all, so that one peer cannot have them.
    pub handshakes_per_address: usize,
    /// Connections without a certificate at once, in all.
    pub anonymous: usize,
    /// Connections without a certificate at once from one address, or one /64 of IPv6.
    pub anonymous_per_address: usize,
    /// Runs of one host that wait or go on at once.
    pub runs_per_host: u32,
    /// How long an old session has to answer before a new one of another instance replaces it.
    pub probe: Duration,
    /// How long a host that was told to leave may take.
    pub leave: Duration,
    /// How long an agent that was told to restart may take to come back.
    pub restart: Duration,
    /// A session that said nothing for so long is asked; if nothing comes back in half of it, it is over.
    pub quiet: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            certificate_life: Duration::from_secs(24 * 3600),
            token_life: Duration::from_secs(600),
            exec_ttl: Duration::from_secs(3600),
            apply_ttl: Duration::from_secs(24 * 3600),
            handshake: Duration::from_secs(10),
            anonymous_life: Duration::from_secs(60),
            connections: 20_000,
            handshakes: 256,
            handshakes_per_address: 128,
            anonymous: 2048,
            anonymous_per_address: 64,
            runs_per_host: 256,
            probe: Duration::from_secs(5),
            leave: Duration::from_secs(60),
            restart: Duration::from_secs(60),
            quiet: Duration::from_secs(60),
        }
    }
}

/// The wall clock, replaceable so that tests need not wait for a day.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// A clock that asks this function.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }

    /// Now, milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        match self.now().duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(_) => 0,
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(SystemTime::now)
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clock({})", self.now_ms())
    }
}

/// The longest path of a Unix socket, bytes: `sun_path` of unix(7) without its last NUL.
const SOCKET_PATH_MAX: usize = 107;

/// Nothing is made where no socket could be.
pub(crate) fn check_socket_path(state_dir: &Path) -> Result<(), StartError> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = socket_path(state_dir);
    match path.as_os_str().as_bytes().len() {
        length if length > SOCKET_PATH_MAX => Err(StartError::SocketPath { path, length }),
        _ => Ok(()),
    }
}

/// Where the daemon of this state listens for operators.
#[must_use]
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("postern.sock")
}

/// Why a daemon did not start. Missing, corrupt and too new state are told apart.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another daemon has the state.
    #[error("the state in {state_dir} is in use by {holder}")]
    InUse {
        /// Which state.
        state_dir: PathBuf,
        /// Who said so in the lock file: process id and version.
        holder: String,
    },
    /// The state directory is not usable.
    #[error("{action} {path}")]
    State {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Others could read or replace what lies there.
    #[error("{path} is not safe to keep state in: {why}")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// The certificate authority is missing, corrupt or too new.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// The key of what is encrypted is missing, corrupt or wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The database is missing, corrupt or too new.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An address or socket could not be bound.
    #[error("listening on {address}")]
    Listen {
        /// Address or path.
        address: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The kernel takes no socket with so long a path.
    #[error(
        "the path of the socket, {path}, has {length} bytes; the system takes {SOCKET_PATH_MAX}: name a state \
         directory with a shorter path"
    )]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Its length, bytes.
        length: usize,
    },
    /// TLS would not take the certificates.
    #[error("setting up TLS: {0}")]
    Tls(String),
}
