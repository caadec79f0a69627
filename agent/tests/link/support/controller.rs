//! A double of the controller, in this process: it has its own CA and no store.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use postern_proto::WIRE_MAX;
use postern_proto::host::AgentConfig;
use postern_proto::ids::{ClusterId, HostId, SessionId};
use postern_proto::v1::enrolment_server::{Enrolment, EnrolmentServer};
use postern_proto::v1::link_server::{Link, LinkServer};
use postern_proto::v1::{self, agent_frame, controller_frame};
use rcgen::CertificateSigningRequestParams;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::{DAY, TOKEN, TestCa, config, now_s, within};

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
fn server_tls(ca: &TestCa, (chain, key): &(String, String)) -> TlsAcceptor {
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

    /// Drops every connection that is open now.
    pub(crate) fn cut(&self) {
        for socket in self.open.lock().unwrap().drain(..) {
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        }
    }
}
