//! Doubles for the tests of the link: a CA, a controller in this process, an engine, a proxy. Nothing here is a
//! test; `link_network.rs` includes this file.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use postern_agent::engine::{Dispatch, Outgoing, Refusal, SecretAnswer, Snapshot, SupervisorCommand};
use postern_agent::link::dial::DialLimits;
use postern_agent::link::engine::{EnginePort, OutboxPort};
use postern_agent::link::enrol::EnrolOptions;
use postern_agent::link::names::Names;
use postern_agent::link::route::ProxyEnv;
use postern_agent::link::session::Timing;
use postern_agent::link::time::host_clock;
use postern_agent::link::{AgentOptions, Backoff};
use postern_proto::event::{EventKind, RunEvent, RunOffset};
use postern_proto::host::AgentConfig;
use postern_proto::ids::{BootId, ClusterId, HostId, PlanHash, RunId, SessionId};
use postern_proto::v1::enrolment_server::{Enrolment, EnrolmentServer};
use postern_proto::v1::link_server::{Link, LinkServer};
use postern_proto::v1::{self, agent_frame, controller_frame};
use postern_proto::{SERVER_NAME, WIRE_MAX};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
pub(crate) const TOKEN: &str = "the-token";
const DAY: i64 = 86_400;

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("timed out: {what}"),
    }
}

pub(crate) fn now_s() -> i64 {
    host_clock()()
}

fn validity(params: &mut CertificateParams, from_s: i64, to_s: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from_s as u64);
    params.not_after = epoch + Duration::from_secs(to_s as u64);
}

/// A root with one issuer for servers and one for agents, as the real CA has them.
pub(crate) struct TestCa {
    pub(crate) root: CertifiedIssuer<'static, KeyPair>,
    pub(crate) servers: CertifiedIssuer<'static, KeyPair>,
    pub(crate) agents: CertifiedIssuer<'static, KeyPair>,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let params = |usage: Option<ExtendedKeyUsagePurpose>| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.extended_key_usages = usage.into_iter().collect();
            validity(&mut params, now_s() - 20 * 365 * DAY, now_s() + 20 * 365 * DAY);
            params
        };
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(params(None), key()).unwrap();
        let issuer = |usage| CertifiedIssuer::signed_by(params(Some(usage)), key(), &root).unwrap();
        let servers = issuer(ExtendedKeyUsagePurpose::ServerAuth);
        let agents = issuer(ExtendedKeyUsagePurpose::ClientAuth);
        Self { root, servers, agents }
    }

    /// A certificate with this purpose from this issuer, as PEM chain and key.
    pub(crate) fn issue(
        issuer: &CertifiedIssuer<'static, KeyPair>,
        usage: Option<ExtendedKeyUsagePurpose>,
        name: &str,
        (from_s, to_s): (i64, i64),
    ) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = usage.into_iter().collect();
        validity(&mut params, from_s, to_s);
        let leaf = params.signed_by(&key, issuer).unwrap();
        (format!("{}{}", leaf.pem(), issuer.pem()), key.serialize_pem())
    }

    pub(crate) fn server(&self, validity_s: (i64, i64)) -> (String, String) {
        Self::issue(&self.servers, Some(ExtendedKeyUsagePurpose::ServerAuth), SERVER_NAME, validity_s)
    }

    fn agent(&self, csr: &[u8], host: HostId, (from_s, to_s): (i64, i64)) -> String {
        let mut csr =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr)).unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(format!("postern:host:{host}").try_into().unwrap())];
        validity(&mut params, from_s, to_s);
        csr.params = params;
        format!("{}{}", csr.signed_by(&self.agents).unwrap().pem(), self.agents.pem())
    }
}

/// What the controller double does when it is asked.
pub(crate) struct Behaviour {
    /// Validity of the certificates it issues, relative to now.
    pub(crate) issues: (i64, i64),
    /// Renewals are answered with this.
    pub(crate) renewal: Option<Status>,
    pub(crate) enrolments: u32,
    pub(crate) renewals: u32,
    /// Keys seen in requests, in order.
    pub(crate) keys: Vec<Vec<u8>>,
}

/// A session as the controller double sees it.
pub(crate) struct TestSession {
    pub(crate) hello: v1::Hello,
    pub(crate) leaf: Vec<u8>,
    pub(crate) to: mpsc::Sender<Result<v1::ControllerFrame, Status>>,
    pub(crate) from: Streaming<v1::AgentFrame>,
}

impl TestSession {
    pub(crate) async fn send(&self, kind: controller_frame::Kind) {
        within("sending to the agent", self.to.send(Ok(v1::ControllerFrame { kind: Some(kind) })))
            .await
            .unwrap();
    }

    pub(crate) async fn welcome(&self, cluster: ClusterId, change: impl FnOnce(&mut v1::Welcome)) {
        let mut welcome = v1::Welcome {
            cluster_id: cluster.to_string(),
            epoch: 1,
            session_id: SessionId::generate().to_string(),
            wire: WIRE_MAX,
            now_unix_ns: now_s() * 1_000_000_000,
            ..Default::default()
        };
        change(&mut welcome);
        self.send(controller_frame::Kind::Welcome(welcome)).await;
    }

    pub(crate) async fn next(&mut self) -> Option<agent_frame::Kind> {
        match within("a frame of the agent", self.from.message()).await {
            Ok(frame) => frame.and_then(|frame| frame.kind),
            Err(_) => None,
        }
    }
}

/// A controller in this process, named a double: it has its own CA and no store.
pub(crate) struct TestController {
    pub(crate) at: SocketAddr,
    pub(crate) cluster: ClusterId,
    pub(crate) ca: Arc<TestCa>,
    pub(crate) behaviour: Arc<Mutex<Behaviour>>,
    sessions: mpsc::Receiver<TestSession>,
    _server: AbortOnDropHandle<()>,
    open: Arc<Mutex<Vec<OwnedFd>>>,
}

#[derive(Clone)]
struct Service {
    cluster: ClusterId,
    ca: Arc<TestCa>,
    behaviour: Arc<Mutex<Behaviour>>,
    sessions: mpsc::Sender<TestSession>,
}

impl Service {
    fn certificate(&self, host_id: &str, csr: &[u8]) -> v1::EnrolResponse {
        let host: HostId = host_id.parse().unwrap();
        let mut behaviour = self.behaviour.lock().unwrap();
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr)).unwrap();
        behaviour.keys.push(rcgen::PublicKeyData::der_bytes(&request.public_key).to_vec());
        let (from, to) = (now_s() + behaviour.issues.0, now_s() + behaviour.issues.1);
        v1::EnrolResponse {
            cluster_id: self.cluster.to_string(),
            host_id: host.to_string(),
            certificate_chain_pem: self.ca.agent(csr, host, (from, to)),
            server_ca_pem: self.ca.root.pem(),
            now_unix_s: now_s(),
        }
    }
}

#[tonic::async_trait]
impl Enrolment for Service {
    async fn enrol(&self, request: Request<v1::EnrolRequest>) -> Result<Response<v1::EnrolResponse>, Status> {
        let request = request.into_inner();
        self.behaviour.lock().unwrap().enrolments += 1;
        if request.token != TOKEN {
            return Err(Status::permission_denied("the token was used already"));
        }
        Ok(Response::new(self.certificate(&request.host_id, &request.csr_der)))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::EnrolResponse>, Status> {
        let request = request.into_inner();
        let refusal = {
            let mut behaviour = self.behaviour.lock().unwrap();
            behaviour.renewals += 1;
            behaviour.renewal.clone()
        };
        match refusal {
            Some(status) => Err(status),
            None => Ok(Response::new(self.certificate(&request.host_id, &request.csr_der))),
        }
    }
}

#[tonic::async_trait]
impl Link for Service {
    type SessionStream = ReceiverStream<Result<v1::ControllerFrame, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let leaf = request.extensions().get::<PeerLeaf>().and_then(|peer| peer.0.clone());
        let leaf = leaf.ok_or_else(|| Status::unauthenticated("no certificate"))?;
        let (to, frames) = mpsc::channel(16);
        let sessions = self.sessions.clone();
        let mut from = request.into_inner();
        tokio::spawn(async move {
            let Ok(Some(v1::AgentFrame { kind: Some(agent_frame::Kind::Hello(hello)) })) =
                from.message().await
            else {
                return;
            };
            let _ = sessions.send(TestSession { hello, leaf, to, from }).await;
        });
        Ok(Response::new(ReceiverStream::new(frames)))
    }

    async fn vantage(&self, _: Request<v1::VantageRequest>) -> Result<Response<v1::VantageResponse>, Status> {
        Err(Status::unimplemented("this double of a controller does not look"))
    }
}

/// The leaf certificate of the peer, if it showed one.
#[derive(Clone)]
pub(crate) struct PeerLeaf(Option<Vec<u8>>);

struct Accepted(TlsStream<TcpStream>);

impl Connected for Accepted {
    type ConnectInfo = PeerLeaf;

    fn connect_info(&self) -> PeerLeaf {
        let chain = self.0.get_ref().1.peer_certificates();
        PeerLeaf(chain.and_then(|chain| chain.first()).map(|leaf| leaf.to_vec()))
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A server's TLS with an optional client certificate of the agents' issuer.
pub(crate) fn server_tls(ca: &TestCa, (chain, key): &(String, String)) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.root.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

impl TestController {
    pub(crate) async fn start() -> Self {
        let ca = Arc::new(TestCa::new());
        let server = ca.server((now_s() - DAY, now_s() + DAY));
        Self::with(ca, &server).await
    }

    pub(crate) async fn with(ca: Arc<TestCa>, server: &(String, String)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let behaviour = Arc::new(Mutex::new(Behaviour {
            issues: (-60, DAY),
            renewal: None,
            enrolments: 0,
            renewals: 0,
            keys: Vec::new(),
        }));
        let (sessions_in, sessions) = mpsc::channel(16);
        let cluster = ClusterId::generate();
        let service =
            Service { cluster, ca: ca.clone(), behaviour: behaviour.clone(), sessions: sessions_in };
        let acceptor = server_tls(&ca, server);
        let open: Arc<Mutex<Vec<OwnedFd>>> = Arc::default();
        let sockets = open.clone();
        let accept = async move {
            loop {
                let Ok((tcp, _)) = listener.accept().await else { return };
                let (acceptor, service) = (acceptor.clone(), service.clone());
                sockets.lock().unwrap().push(tcp.as_fd().try_clone_to_owned().unwrap());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let one = tokio_stream::StreamExt::chain(
                        tokio_stream::once(Ok::<_, std::io::Error>(Accepted(tls))),
                        tokio_stream::pending(),
                    );
                    let _ = tonic::transport::Server::builder()
                        .add_service(EnrolmentServer::new(service.clone()))
                        .add_service(LinkServer::new(service))
                        .serve_with_incoming(one)
                        .await;
                });
            }
        };
        let _server = AbortOnDropHandle::new(tokio::spawn(accept));
        Self { at, cluster, ca, behaviour, sessions, _server, open }
    }

    pub(crate) async fn session(&mut self) -> TestSession {
        within("a session", self.sessions.recv()).await.unwrap()
    }

    /// A session that has been welcomed.
    pub(crate) async fn welcomed(&mut self) -> TestSession {
        let session = self.session().await;
        session.welcome(self.cluster, |_| {}).await;
        session
    }

    pub(crate) fn config(&self, host: HostId) -> AgentConfig {
        config(host, &self.ca, &self.at.to_string())
    }
}

pub(crate) fn config(host: HostId, ca: &TestCa, at: &str) -> AgentConfig {
    AgentConfig {
        version: 1,
        host_id: host,
        controllers: vec![at.to_owned()],
        server_name: SERVER_NAME.into(),
        server_ca_pem: ca.root.pem(),
        proxy: None,
        temporary_route: None,
        limits: Default::default(),
    }
}

pub(crate) fn limits() -> DialLimits {
    let short = Duration::from_millis(500);
    DialLimits { connect: short, proxy: short, tls: short, all: Duration::from_secs(5) }
}

pub(crate) fn enrol_options(config: AgentConfig, state_dir: &Path) -> EnrolOptions {
    EnrolOptions {
        config,
        state_dir: state_dir.into(),
        proxy_env: ProxyEnv::default(),
        names: Names::default(),
        clock: host_clock(),
        limits: limits(),
    }
}

pub(crate) fn agent_options(config: AgentConfig, state_dir: &Path) -> AgentOptions {
    let boot: BootId = "0b7cb8a4-2f5c-4c67-9d0e-0123456789ab".parse().unwrap();
    let supervisor = SupervisorCommand::of("/nonexistent/postern-agent".into());
    let mut options = AgentOptions::new(config, state_dir.into(), boot, supervisor);
    options.dial = limits();
    options.timing = Timing {
        backoff: Backoff { base: Duration::from_millis(20), cap: Duration::from_millis(200) },
        slow: Duration::from_millis(200),
        stable: Duration::from_secs(30),
        greeting: Duration::from_secs(5),
        renewal_retry: Duration::from_millis(50),
    };
    options
}

/// A double of the engine: takes every plan, keeps what it was told, sends the events it was given.
#[derive(Default)]
pub(crate) struct FakeEngine {
    state: Mutex<FakeState>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct FakeState {
    epoch: u64,
    run: Option<RunId>,
    events: Vec<RunEvent>,
    acked: u64,
    dispatches: Vec<Dispatch>,
    attached: u64,
    refuse: Option<Refusal>,
}

impl FakeEngine {
    pub(crate) fn emit(&self, run: RunId) {
        let mut state = self.state.lock().unwrap();
        let seq = state.events.len() as u64 + 1;
        state.run = Some(run);
        let kind = EventKind::Accepted { plan: PlanHash::of(b""), resources: 1 };
        state.events.push(RunEvent { run, seq, time_ns: 0, kind });
        drop(state);
        self.changed.notify_waiters();
    }

    pub(crate) fn refuse(&self, refusal: Refusal) {
        self.state.lock().unwrap().refuse = Some(refusal);
    }

    pub(crate) fn dispatches(&self) -> Vec<Dispatch> {
        self.state.lock().unwrap().dispatches.clone()
    }

    pub(crate) fn acked(&self) -> u64 {
        self.state.lock().unwrap().acked
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.state.lock().unwrap().epoch
    }
}

/// The port is for the trait's own `Arc`; the double itself is shared with the test.
pub(crate) struct FakePort(pub(crate) Arc<FakeEngine>);

#[async_trait]
impl EnginePort for FakePort {
    async fn snapshot(&self) -> Snapshot {
        let state = self.0.state.lock().unwrap();
        let open = state.run.filter(|_| state.acked < state.events.len() as u64);
        let runs = open.map(|run| RunOffset { run, event_seq: state.events.len() as u64, logs: Vec::new() });
        Snapshot { runs: runs.into_iter().collect(), epoch: state.epoch, ..Snapshot::default() }
    }

    async fn dispatch(&self, dispatch: Dispatch) -> Result<(), Refusal> {
        let mut state = self.0.state.lock().unwrap();
        if let Some(refusal) = state.refuse.take() {
            return Err(refusal);
        }
        state.dispatches.push(dispatch);
        self.0.changed.notify_waiters();
        Ok(())
    }

    async fn cancel(&self, _run: RunId) {}

    async fn acked(&self, offset: RunOffset) {
        let mut state = self.0.state.lock().unwrap();
        state.acked = state.acked.max(offset.event_seq);
    }

    async fn attach(&self, acked: Vec<RunOffset>, _hold: Vec<RunId>) -> Box<dyn OutboxPort> {
        let mut state = self.0.state.lock().unwrap();
        state.attached += 1;
        let next = acked.first().map_or(0, |offset| offset.event_seq);
        Box::new(FakeOutbox { engine: self.0.clone(), session: state.attached, next })
    }

    async fn secrets(&self, _run: RunId, _answers: Vec<SecretAnswer>) {}

    async fn set_epoch(&self, epoch: u64) {
        self.0.state.lock().unwrap().epoch = epoch;
    }
}

struct FakeOutbox {
    engine: Arc<FakeEngine>,
    session: u64,
    next: u64,
}

#[async_trait]
impl OutboxPort for FakeOutbox {
    async fn next(&mut self) -> Option<Outgoing> {
        let changed = self.engine.changed.clone();
        loop {
            let waiting = changed.notified();
            tokio::pin!(waiting);
            waiting.as_mut().enable();
            {
                let state = self.engine.state.lock().unwrap();
                if state.attached != self.session {
                    return None;
                }
                if let Some(event) = state.events.get(self.next as usize) {
                    self.next += 1;
                    return Some(Outgoing::Event(event.clone()));
                }
            }
            waiting.await;
        }
    }
}

/// A TCP forwarder that can stop forwarding without closing anything: a half-open connection.
pub(crate) struct Hose {
    pub(crate) at: SocketAddr,
    stalls: watch::Sender<u64>,
    _task: AbortOnDropHandle<()>,
}

impl Hose {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (stalls, stall) = watch::channel(0);
        let task = async move {
            loop {
                let Ok((near, _)) = listener.accept().await else { return };
                let mut stall = stall.clone();
                stall.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    let (mut near, mut far) = (near, far);
                    // A stall lasts as long as this connection does; a later one is forwarded again.
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                        _ = stall.changed() => {}
                    }
                    let _open = (near, far);
                    tokio::time::sleep(DEADLINE).await;
                });
            }
        };
        Self { at, stalls, _task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }

    /// Forwards nothing more over the connections that are open now, and closes none.
    pub(crate) fn stall(&self) {
        self.stalls.send_modify(|count| *count += 1);
    }
}

/// An HTTP CONNECT proxy; gives what it was asked, and refuses what lacks the credentials.
pub(crate) async fn connect_proxy(
    authorization: Option<&'static str>,
) -> (SocketAddr, Arc<Mutex<VecDeque<String>>>, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(VecDeque::new()));
    let heads = asked.clone();
    let task = async move {
        loop {
            let Ok((mut near, _)) = listener.accept().await else { return };
            let heads = heads.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = near.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap().to_owned();
                let wanted = authorization.map(|it| format!("Proxy-Authorization: {it}\r\n"));
                let allowed = wanted.is_none_or(|wanted| head.contains(&wanted));
                heads.lock().unwrap().push_back(head);
                if !allowed {
                    let _ = near.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
                    return;
                }
                let Ok(mut far) = TcpStream::connect(&target).await else {
                    let _ = near.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
                    return;
                };
                near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    };
    (at, asked, AbortOnDropHandle::new(tokio::spawn(task)))
}

impl TestController {
    /// Drops every connection that is open now.
    pub(crate) fn cut(&self) {
        for socket in self.open.lock().unwrap().drain(..) {
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        }
    }
}
