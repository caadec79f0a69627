//! Accepting connections: the agents' TCP port with TLS, and the operator's Unix socket. What comes out is
//! a connection that knows its peer; garbage costs a bounded handshake and a line in the log now and then.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::authz::{AgentPeer, OperatorPeer, Peer};
use super::config::Limits;
use super::tls;

/// A peer's rubbish is logged once in this time.
const QUIET_FOR: Duration = Duration::from_secs(60);
/// Addresses remembered for that.
const REMEMBERED: usize = 1024;
/// Data that is not acknowledged for so long ends the connection, milliseconds.
const USER_TIMEOUT_MS: u32 = 30_000;
/// Connections that are ready and not yet picked up.
const BACKLOG: usize = 64;

/// A connection that knows its peer and can be ended from outside.
pub(crate) struct Conn<S> {
    stream: S,
    peer: Peer,
    /// Ready when the connection is to end: the daemon stops, or its time is up.
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    _held: Held,
}

/// What a connection holds while it lives.
struct Held {
    _permit: Option<OwnedSemaphorePermit>,
    _count: Option<Counted>,
    _anonymous: Option<Slot>,
}

impl<S> Connected for Conn<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the controller ended the connection")
}

impl<S: AsyncRead + Unpin> AsyncRead for Conn<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            // Not polled again after it is ready.
            self.end = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(ended()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Conn<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// The agents' port.
pub(crate) struct AgentPort {
    pub(crate) listener: TcpListener,
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) limits: Limits,
    pub(crate) stop_accepting: CancellationToken,
    pub(crate) stop_all: CancellationToken,
}

/// Connections as they become ready.
pub(crate) type Incoming<S> = mpsc::Receiver<Result<Conn<S>, io::Error>>;

impl AgentPort {
    /// Accepts until told to stop.
    pub(crate) fn serve(self) -> Incoming<TlsStream<TcpStream>> {
        let (ready, incoming) = mpsc::channel(BACKLOG);
        tokio::spawn(self.accept(ready));
        incoming
    }

    async fn accept(self, ready: mpsc::Sender<Result<Conn<TlsStream<TcpStream>>, io::Error>>) {
        let all = Arc::new(Semaphore::new(self.limits.connections));
        let handshakes = Arc::new(Counts::default());
        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls));
        let complaints = Arc::new(Complaints::default());
        let anonymous = Arc::new(Counts::default());
        loop {
            let accepted = tokio::select! {
                () = self.stop_accepting.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (socket, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: what is being closed gives some back.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&all).try_acquire_owned() else {
                complaints.note(address, "there are too many connections");
                continue;
            };
            let (limit, most) = (self.limits.handshakes_per_address, self.limits.handshakes);
            let Some(handshake) = handshakes.take(address.ip(), limit, most) else {
                complaints.note(address, "there are too many handshakes at once");
                continue;
            };
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            let (complaints, anonymous) = (Arc::clone(&complaints), Arc::clone(&anonymous));
            let (limits, stop) = (self.limits.clone(), self.stop_all.clone());
            tokio::spawn(async move {
                let welcomed = tokio::select! {
                    () = stop.cancelled() => return,
                    welcomed = welcome(socket, address, &acceptor, &limits, &anonymous, &stop) => welcomed,
                };
                drop(handshake);
                match welcomed {
                    Ok(mut conn) => {
                        conn._held._permit = Some(permit);
                        // The server picks up as fast as it can; when it is gone, so is the daemon.
                        let _ = ready.send_timeout(Ok(conn), limits.handshake).await;
                    }
                    Err(why) => complaints.note(address, &why),
                }
            });
        }
    }
}

async fn welcome(
    socket: TcpStream,
    address: SocketAddr,
    acceptor: &TlsAcceptor,
    limits: &Limits,
    anonymous: &Arc<Counts>,
    stop: &CancellationToken,
) -> Result<Conn<TlsStream<TcpStream>>, String> {
    tune(&socket).map_err(|error| format!("setting socket options failed: {error}"))?;
    let stream = match tokio::time::timeout(limits.handshake, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(format!("the TLS handshake failed: {error}")),
        Err(_) => return Err("the TLS handshake took too long".to_owned()),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let (peer, end, slot): (_, Pin<Box<dyn Future<Output = ()> + Send>>, _) = match certificate {
        Some(certificate) => {
            let it = tls::identity(certificate).ok_or("the certificate names no host")?;
            let agent = AgentPeer {
                host: it.host,
                key: it.key,
                not_before_ms: it.not_before_ms,
                not_after_ms: it.not_after_ms,
                address,
            };
            (Peer::Agent(agent), Box::pin(stop.clone().cancelled_owned()), None)
        }
        None => {
            let slot = anonymous
                .take(address.ip(), limits.anonymous_per_address, limits.anonymous)
                .ok_or("there are too many connections without a certificate")?;
            let (stop, life) = (stop.clone(), limits.anonymous_life);
            let end = async move {
                let _ = tokio::time::timeout(life, stop.cancelled_owned()).await;
            };
            (Peer::Anonymous(address), Box::pin(end), Some(slot))
        }
    };
    Ok(Conn { stream, peer, end, _held: Held { _permit: None, _count: None, _anonymous: slot } })
}

fn tune(socket: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    sockopt::set_tcp_user_timeout(socket, USER_TIMEOUT_MS)?;
    Ok(())
}

/// How many there are of something, in all and from each peer.
#[derive(Default)]
struct Counts(Mutex<Tally>);

#[derive(Default)]
struct Tally {
    all: usize,
    by_peer: HashMap<IpAddr, usize>,
}

struct Slot(Arc<Counts>, IpAddr);

impl Counts {
    fn take(self: &Arc<Self>, from: IpAddr, limit: usize, all: usize) -> Option<Slot> {
        let peer = peer_of(from);
        let mut tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tally.all >= all || tally.by_peer.get(&peer).is_some_and(|count| *count >= limit) {
            return None;
        }
        tally.all += 1;
        *tally.by_peer.entry(peer).or_default() += 1;
        Some(Slot(Arc::clone(self), peer))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut tally = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        tally.all -= 1;
        if let Some(count) = tally.by_peer.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                tally.by_peer.remove(&self.1);
            }
        }
    }
}

/// Whom an address belongs to: one of IPv4 to itself, also when a socket of both families shows it as one of
/// IPv6; of IPv6 the /64, of which one machine has all addresses.
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

/// Says once in a while that a peer sends rubbish.
#[derive(Default)]
struct Complaints(Mutex<HashMap<IpAddr, Instant>>);

impl Complaints {
    fn note(&self, from: SocketAddr, why: &str) {
        if self.due(from.ip(), Instant::now()) {
            tracing::info!(peer = %from, why, "a connection was turned away; more from there go unsaid for a minute");
        }
    }

    fn due(&self, from: IpAddr, now: Instant) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.get(&from).is_some_and(|at| now.duration_since(*at) < QUIET_FOR) {
            return false;
        }
        if said.len() >= REMEMBERED {
            said.retain(|_, at| now.duration_since(*at) < QUIET_FOR);
        }
        // A flood from everywhere at once is not worth a line each.
        if said.len() >= REMEMBERED {
            return false;
        }
        said.insert(from, now);
        true
    }
}

/// The operator's socket.
pub(crate) struct OperatorSocket {
    pub(crate) listener: UnixListener,
    pub(crate) connected: Connections,
    pub(crate) stop_accepting: CancellationToken,
    pub(crate) stop_all: CancellationToken,
}

/// How many operators are connected, watchable.
#[derive(Clone)]
pub(crate) struct Connections(Arc<(AtomicUsize, watch::Sender<usize>)>);

impl Connections {
    pub(crate) fn new() -> Self {
        Self(Arc::new((AtomicUsize::new(0), watch::Sender::new(0))))
    }

    pub(crate) fn watch(&self) -> watch::Receiver<usize> {
        self.0.1.subscribe()
    }

    fn enter(&self) -> Counted {
        self.0.1.send_replace(self.0.0.fetch_add(1, Ordering::AcqRel) + 1);
        Counted(self.clone())
    }
}

struct Counted(Connections);

impl Drop for Counted {
    fn drop(&mut self) {
        let shared = &self.0.0;
        let left = shared.0.fetch_sub(1, Ordering::AcqRel) - 1;
        shared.1.send_replace(left);
    }
}

impl OperatorSocket {
    /// Accepts until told to stop.
    pub(crate) fn serve(self) -> Incoming<UnixStream> {
        let (ready, incoming) = mpsc::channel(BACKLOG);
        tokio::spawn(self.accept(ready));
        incoming
    }

    async fn accept(self, ready: mpsc::Sender<Result<Conn<UnixStream>, io::Error>>) {
        let owner = rustix::process::geteuid().as_raw();
        loop {
            let accepted = tokio::select! {
                () = self.stop_accepting.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting an operator failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // The directory keeps others out already; this holds if someone opened it up.
            let uid = match stream.peer_cred() {
                Ok(credentials) => credentials.uid(),
                Err(error) => {
                    tracing::warn!(%error, "an operator could not be identified");
                    continue;
                }
            };
            if uid != owner && uid != 0 {
                tracing::warn!(uid, "a user who is not the owner was turned away");
                continue;
            }
            let conn = Conn {
                stream,
                peer: Peer::Operator(OperatorPeer { uid }),
                end: Box::pin(self.stop_all.clone().cancelled_owned()),
                _held: Held { _permit: None, _count: Some(self.connected.enter()), _anonymous: None },
            };
            if ready.send(Ok(conn)).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_bounded() {
        let complaints = Complaints::default();
        let now = Instant::now();
        let one: IpAddr = [192, 0, 2, 1].into();
        assert!(complaints.due(one, now));
        assert!(!complaints.due(one, now + Duration::from_secs(59)));
        assert!(complaints.due(one, now + Duration::from_secs(61)));
        for n in 0..5000u16 {
            let [high, low] = n.to_be_bytes();
            complaints.due([198, 51, high, low].into(), now + Duration::from_secs(61));
        }
        assert!(complaints.0.lock().unwrap().len() <= REMEMBERED);
    }

    #[test]
    fn slots_are_bounded_by_peer_and_in_all_and_come_back() {
        let counts = Arc::new(Counts::default());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = counts.take(ip("192.0.2.1"), 2, 4).unwrap();
        let _second = counts.take(ip("::ffff:192.0.2.1"), 2, 4).unwrap();
        assert!(counts.take(ip("192.0.2.1"), 2, 4).is_none());
        // One machine has a whole /64.
        let _third = counts.take(ip("2001:db8::1"), 2, 4).unwrap();
        let _fourth = counts.take(ip("2001:db8::2"), 2, 4).unwrap();
        assert!(counts.take(ip("2001:db8::3"), 2, 9).is_none());
        assert!(counts.take(ip("2001:db8:0:1::1"), 2, 4).is_none(), "four in all");
        drop(first);
        assert!(counts.take(ip("::ffff:192.0.2.2"), 2, 4).is_some());
        assert!(counts.take(ip("192.0.2.1"), 2, 4).is_some());
    }
}
