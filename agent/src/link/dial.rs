//! Gets a TLS connection to a controller: every route, every address, a short deadline each, and for whatever
//! was no good a reason that people can act on.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use postern_proto::host::Tried;
use rustix::net::sockopt;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::names::{NameError, Names};
use super::proxy::{self, ProxyError};
use super::route::{Proxy, Route, Target};
use super::tls::{ALPN, common_validity};

/// How long one address may take.
#[derive(Clone, Copy, Debug)]
pub struct DialLimits {
    /// For the TCP handshake.
    pub connect: Duration,
    /// For a proxy to answer.
    pub proxy: Duration,
    /// For the TLS handshake.
    pub tls: Duration,
    /// For all routes and addresses together.
    pub all: Duration,
}

impl Default for DialLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            proxy: Duration::from_secs(15),
            tls: Duration::from_secs(10),
            all: Duration::from_secs(120),
        }
    }
}

/// Data that is not acknowledged for this long ends a connection, whatever the kernel's defaults are.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// What is wrong with an address.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Its name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// No answer within the limit.
    #[error("timed out ({0})")]
    TimedOut(&'static str),
    /// No route, no permission, no buffer space and the like.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// The proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// Something listens there that does not speak TLS 1.3 and HTTP/2.
    #[error("what answers there is not a controller: {0}")]
    NotTls(String),
    /// It speaks TLS and is not this controller.
    #[error("what answers there is not this controller: {0}")]
    Foreign(rustls::Error),
    /// It did not take this agent's certificate.
    #[error("the controller does not accept this agent's certificate: {0}")]
    CertificateRefused(rustls::Error),
    /// The connection broke during the handshake.
    #[error("the connection broke: {0}")]
    Broke(#[source] io::Error),
}

impl DialError {
    /// True where something answered and it is not the controller.
    #[must_use]
    pub fn is_not_the_controller(&self) -> bool {
        matches!(self, Self::NotTls(_) | Self::Foreign(_))
    }
}

/// Every address tried, and none was good.
#[derive(Debug, thiserror::Error)]
#[error("no address of the controller is usable: {}", list(.0))]
pub struct Unreachable(pub Vec<(String, DialError)>);

fn list(tried: &[(String, DialError)]) -> String {
    tried.iter().map(|(address, error)| format!("{address}: {error}")).collect::<Vec<_>>().join("; ")
}

/// For reports.
#[must_use]
pub fn tried(list: &[(String, DialError)]) -> Vec<Tried> {
    list.iter().map(|(address, error)| Tried { address: address.clone(), error: error.to_string() }).collect()
}

/// A connection to a controller whose certificate was found good.
pub struct Connection {
    /// The stream.
    pub tls: TlsStream<TcpStream>,
    /// The address, with its proxy.
    pub address: String,
    /// When the first certificate of the controller's chain ends, seconds since the Unix epoch.
    pub server_not_after_s: i64,
    /// Addresses before it that were no good.
    pub tried: Vec<(String, DialError)>,
}

/// How to get to the controller.
#[derive(Clone)]
pub struct Dialer {
    /// In order.
    pub routes: Vec<Route>,
    /// The name in the controller's certificate.
    pub server_name: ServerName<'static>,
    /// Where names are looked up.
    pub names: Names,
    /// Deadlines.
    pub limits: DialLimits,
}

impl Dialer {
    /// The first address that is good, after every one before it that was not.
    pub async fn dial(&self, tls: Arc<ClientConfig>) -> Result<Connection, Unreachable> {
        let deadline = tokio::time::Instant::now() + self.limits.all;
        let mut tried = Vec::new();
        for route in &self.routes {
            let first_hop = route.proxy.as_ref().map_or(&route.target, |proxy| &proxy.at);
            let ips = match first_hop.ip() {
                Some(ip) => vec![ip],
                None => match self.names.resolve(&first_hop.host).await {
                    Ok(ips) => ips,
                    Err(error) => {
                        tried.push((route.to_string(), error.into()));
                        continue;
                    }
                },
            };
            for ip in ips {
                let address = shown(route, first_hop, ip);
                let attempt = self.attempt(route, SocketAddr::new(ip, first_hop.port), tls.clone());
                let result = tokio::time::timeout_at(deadline, Box::pin(attempt)).await;
                match result.unwrap_or(Err(DialError::TimedOut("too many addresses"))) {
                    Ok((tls, server_not_after_s)) => {
                        return Ok(Connection { tls, address, server_not_after_s, tried });
                    }
                    Err(error) => tried.push((address, error)),
                }
            }
        }
        Err(Unreachable(tried))
    }

    async fn attempt(
        &self,
        route: &Route,
        at: SocketAddr,
        tls: Arc<ClientConfig>,
    ) -> Result<(TlsStream<TcpStream>, i64), DialError> {
        let mut tcp = self.tcp(at).await?;
        if let Some(proxy) = &route.proxy {
            self.through(&mut tcp, proxy, &route.target).await?;
        }
        let handshake = TlsConnector::from(tls).connect(self.server_name.clone(), tcp);
        let stream = timeout(self.limits.tls, handshake)
            .await
            .map_err(|_| DialError::TimedOut("it accepts connections and says nothing"))?
            .map_err(classify)?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(ALPN) {
            return Err(DialError::NotTls("it does not speak HTTP/2".into()));
        }
        let chain = session.peer_certificates().unwrap_or_default();
        let (_, end) = common_validity(chain).map_err(DialError::NotTls)?;
        Ok((stream, end))
    }

    async fn tcp(&self, at: SocketAddr) -> Result<TcpStream, DialError> {
        let connected = timeout(self.limits.connect, TcpStream::connect(at)).await;
        let tcp = match connected {
            Err(_) => return Err(DialError::TimedOut("no answer to the connection request")),
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => {
                return Err(match error.kind() {
                    io::ErrorKind::ConnectionRefused => DialError::Refused,
                    io::ErrorKind::TimedOut => DialError::TimedOut("no answer to the connection request"),
                    _ => DialError::Connect(error),
                });
            }
        };
        tune(&tcp).map_err(DialError::Connect)?;
        Ok(tcp)
    }

    async fn through(&self, tcp: &mut TcpStream, proxy: &Proxy, to: &Target) -> Result<(), DialError> {
        timeout(self.limits.proxy, proxy::connect(tcp, proxy, to))
            .await
            .map_err(|_| DialError::TimedOut("the proxy does not answer"))?
            .map_err(Into::into)
    }
}

fn shown(route: &Route, first_hop: &Target, ip: IpAddr) -> String {
    if first_hop.ip().is_some() { route.to_string() } else { format!("{route} ({ip})") }
}

fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, Duration::from_secs(20))?;
    sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(tcp, 3)?;
    sockopt::set_tcp_user_timeout(tcp, TCP_USER_TIMEOUT.as_millis() as u32)?;
    Ok(())
}

fn classify(error: io::Error) -> DialError {
    use rustls::AlertDescription as Alert;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(error @ (rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)) => {
            DialError::Foreign(error.clone())
        }
        Some(rustls::Error::AlertReceived(
            alert @ (Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::BadCertificate
            | Alert::UnknownCA
            | Alert::CertificateRequired
            | Alert::AccessDenied),
        )) => DialError::CertificateRefused(rustls::Error::AlertReceived(*alert)),
        Some(error) => DialError::NotTls(error.to_string()),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            DialError::NotTls("it closes the connection during the TLS handshake".into())
        }
        None => DialError::Broke(error),
    }
}
