//! The daemon: two listeners over one store. Agents reach `Enrolment` and `Link` over TLS, operators reach
//! `Operator` over a Unix socket; what either may do is decided in [`authz`].

pub mod authz;
mod config;
mod enrolment;
mod follow;
mod hub;
mod kinds;
mod link;
mod listen;
mod operator;
mod route;
mod session;
mod shared;
mod ssh_port;
mod state;
mod text;
mod tls;
mod upkeep;
mod vantage;
mod wire;

pub use config::{Clock, DaemonConfig, Limits, StartError, socket_path};

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_proto::MAX_PLAN_BYTES;
use postern_proto::v1::enrolment_server::EnrolmentServer;
use postern_proto::v1::link_server::LinkServer;
use postern_proto::v1::operator_server::OperatorServer;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use self::hub::Hub;
use self::listen::{AgentPort, Connections, OperatorSocket};
use self::shared::Shared;

/// A message of an agent: events and output are far smaller, a hello with many runs is the largest.
const MAX_LINK_MESSAGE: usize = 4 * 1024 * 1024;
/// Tokens and CSRs.
const MAX_ENROLMENT_MESSAGE: usize = 64 * 1024;
/// A plan, the profiles it was made from, and what is said about both.
const MAX_OPERATOR_MESSAGE: usize = MAX_PLAN_BYTES + crate::store::MAX_BUNDLES + 1024 * 1024;
/// HTTP/2 PING so often.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// A peer that does not answer one is gone.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams at once on one connection.
const STREAMS: u32 = 16;
/// On the operator's socket: one command line may follow many runs.
const OPERATOR_STREAMS: u32 = 1024;
/// Receive windows, bytes. A connection of an agent that sends much carries one stream.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// Request headers, bytes.
const MAX_HEADERS: u32 = 16 * 1024;
/// How long sessions have for their last words.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long connections have to close by themselves after that.
const CLOSING: Duration = Duration::from_secs(2);

/// A running daemon. Dropped without [`Daemon::shutdown`], it stops as a crash would.
pub struct Daemon {
    shared: Arc<Shared>,
    socket: PathBuf,
    stop_accepting: CancellationToken,
    stop_all: CancellationToken,
    servers: Vec<JoinHandle<()>>,
    finished: watch::Receiver<bool>,
    _finished: Arc<watch::Sender<bool>>,
    // Last, so that the state is free only when all else is gone.
    lock: Option<state::Lock>,
}

/// Opens the state and starts both listeners; returns when they are bound.
pub async fn start(config: DaemonConfig) -> Result<Daemon, StartError> {
    config::check_socket_path(&config.state_dir)?;
    let now = config.clock.now();
    let (dir, key) = (config.state_dir.clone(), config.secrets_key.clone());
    let opened = tokio::task::spawn_blocking(move || state::open(&dir, key.as_deref(), now)).await;
    let state = opened.map_err(|error| StartError::State {
        action: "opening",
        path: config.state_dir.clone(),
        source: std::io::Error::other(error),
    })??;
    let (tls, current) = tls::configure(&state.ca, &config.clock)?;
    current.set(state.ca.issue_server(now)?)?;

    let refused = |address: String| move |source| StartError::Listen { address, source };
    let tcp = TcpListener::bind(config.listen).await.map_err(refused(config.listen.to_string()))?;
    let listen = tcp.local_addr().map_err(refused(config.listen.to_string()))?;
    let socket = socket_path(&config.state_dir);
    let unix = bind_socket(&socket).map_err(refused(socket.display().to_string()))?;

    let (stop_accepting, stop_all) = (CancellationToken::new(), CancellationToken::new());
    let shared = Arc::new(Shared {
        state_dir: config.state_dir.clone(),
        store: state.store,
        ca: state.ca,
        hub: Hub::new(config.limits.probe),
        clock: config.clock,
        limits: config.limits,
        advertise: config.advertise,
        listen,
        private: config.private.is_some(),
        started: Instant::now(),
        sessions: TaskTracker::new(),
        stop_sessions: CancellationToken::new(),
        backup: Arc::default(),
        expiry: upkeep::Expiry::default(),
        looks: vantage::Looks::default(),
    });
    let operators = Connections::new();
    let port = AgentPort {
        listener: tcp,
        tls: Arc::new(tls),
        limits: shared.limits.clone(),
        stop_accepting: stop_accepting.clone(),
        stop_all: stop_all.clone(),
    };
    let operator_socket = OperatorSocket {
        listener: unix,
        connected: operators.clone(),
        stop_accepting: stop_accepting.clone(),
        stop_all: stop_all.clone(),
    };
    let servers = vec![
        tokio::spawn(serve_agents(Arc::clone(&shared), port, stop_accepting.clone())),
        tokio::spawn(serve_operators(Arc::clone(&shared), operator_socket, stop_accepting.clone())),
    ];
    let (finished_sender, finished) = watch::channel(false);
    let finished_sender = Arc::new(finished_sender);
    tokio::spawn(upkeep::expire(Arc::clone(&shared), stop_accepting.clone()));
    tokio::spawn(upkeep::renew(Arc::clone(&shared), current, stop_accepting.clone()));
    if let Some(after) = config.private {
        let (shared, finished) = (Arc::clone(&shared), Arc::clone(&finished_sender));
        tokio::spawn(upkeep::idle(shared, operators, after, finished, stop_accepting.clone()));
    }
    let generation = shared.store.generation();
    tracing::info!(%listen, generation, socket = %socket.display(), private = shared.private, "controller up");
    Ok(Daemon {
        shared,
        socket,
        stop_accepting,
        stop_all,
        servers,
        finished,
        _finished: finished_sender,
        lock: Some(state.lock),
    })
}

/// The state's lock is held, so a socket that lies there belongs to nobody.
fn bind_socket(path: &Path) -> std::io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Nobody else can reach it before this either: the directory is 0700.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// What both listeners have in common.
fn http2(streams: u32) -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(streams)
}

async fn serve_agents(shared: Arc<Shared>, port: AgentPort, stop: CancellationToken) {
    let enrolment = EnrolmentServer::new(enrolment::EnrolmentService(Arc::clone(&shared)))
        .max_decoding_message_size(MAX_ENROLMENT_MESSAGE);
    let link = LinkServer::new(link::LinkService(shared)).max_decoding_message_size(MAX_LINK_MESSAGE);
    let served = http2(STREAMS).serve_with_incoming_shutdown(
        route::Either(enrolment, link),
        ReceiverStream::new(port.serve()),
        stop.cancelled_owned(),
    );
    if let Err(error) = served.await {
        tracing::error!(%error, "serving agents failed");
    }
}

async fn serve_operators(shared: Arc<Shared>, socket: OperatorSocket, stop: CancellationToken) {
    let operator = OperatorServer::new(operator::OperatorService(shared))
        .max_decoding_message_size(MAX_OPERATOR_MESSAGE);
    let served = http2(OPERATOR_STREAMS).serve_with_incoming_shutdown(
        route::Only(operator),
        ReceiverStream::new(socket.serve()),
        stop.cancelled_owned(),
    );
    if let Err(error) = served.await {
        tracing::error!(%error, "serving operators failed");
    }
}

impl Daemon {
    /// Where agents connect to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.listen
    }

    /// Where operators connect to.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until a private daemon has been idle long enough; for ever for one that is not private.
    pub async fn finished(&mut self) {
        if self.finished.wait_for(|finished| *finished).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Says goodbye to agents, lets go of operators, writes down what is under way and closes the store.
    pub async fn shutdown(mut self) {
        self.stop_accepting.cancel();
        self.shared.stop_sessions.cancel();
        self.shared.sessions.close();
        if tokio::time::timeout(LAST_WORDS, self.shared.sessions.wait()).await.is_err() {
            tracing::warn!("some sessions did not end in time");
        }
        for server in std::mem::take(&mut self.servers) {
            let mut server = server;
            if tokio::time::timeout(CLOSING, &mut server).await.is_err() {
                self.stop_all.cancel();
                let _ = tokio::time::timeout(CLOSING, server).await;
            }
        }
        self.stop_all.cancel();
        self.shared.store.close().await;
        let _ = fs::remove_file(&self.socket);
        self.lock = None;
        tracing::info!("controller down");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop_accepting.cancel();
        self.stop_all.cancel();
        self.servers.iter().for_each(JoinHandle::abort);
    }
}
