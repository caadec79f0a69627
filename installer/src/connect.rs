//! From nothing to a verified SSH connection: waiting for the port, jump hosts, the handshake.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use russh::client::{self, Config};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PublicKey};
use russh::{ChannelOpenFailure, Preferred, SshId};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::api::{Console, Fault, FaultMoment, HostKeyQuestion, Step};
use crate::auth::{self, Credentials};
use crate::error::{BootstrapError, Code};
use crate::host_key::{Guard, HandlerError, Judge, KeyRefused, Question, RouteTo, Said, record_file};
use crate::known_hosts::{self, fingerprint, record_name};
use crate::report::Clock;
use crate::stream::{Complaint, Cut, Heard, Stream};
use crate::target::{Hop, Target};

/// How long one attempt at one address may take.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may take to say anything, and for the whole handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// A port that accepts and says nothing this often does not speak SSH.
const SILENT_LIMIT: u32 = 2;

pub(crate) type Handle = client::Handle<Guard>;

/// How keys are judged and asked about.
#[derive(Debug)]
pub(crate) struct Policy<'a> {
    pub(crate) known_hosts_files: &'a [PathBuf],
    pub(crate) fingerprint: Option<&'a str>,
    pub(crate) fault: Option<Fault>,
}

impl Policy<'_> {
    /// Whether a fault test cuts the connection between TCP and the handshake (or before TCP).
    fn is_cut(&self, cuts: &[(Step, FaultMoment)]) -> bool {
        self.fault.is_some_and(|fault| cuts.contains(&(fault.step, fault.moment)))
    }
}

/// A verified connection, not logged in.
pub(crate) struct Connection {
    pub(crate) handle: Handle,
    /// The connections this one goes through; they live as long as it does.
    pub(crate) upstream: Vec<Handle>,
    pub(crate) route: RouteTo,
    pub(crate) said: Arc<Mutex<Said>>,
    /// Our end of the TCP connection, when it is one to the host itself.
    pub(crate) local: Option<IpAddr>,
    /// The host's end, likewise.
    pub(crate) peer: Option<IpAddr>,
    pub(crate) cut: Cut,
}

/// A failed attempt.
enum Failed {
    /// Nothing will change by itself.
    Final(BootstrapError),
    /// It may be better in a moment: a host that boots.
    Again(BootstrapError),
    /// It accepted, and said nothing in time.
    Silent,
    /// The fingerprint is of another key; the host may have several.
    OtherKey(BootstrapError),
}

/// Connects to the target through its jump hosts, waiting for each to answer, and verifies every key.
pub(crate) async fn connect(
    target: &Target,
    policy: &Policy<'_>,
    credentials: &Credentials<'_>,
    deadline: Duration,
    console: &dyn Console,
    clock: &mut Clock<'_>,
) -> Result<Connection, BootstrapError> {
    if policy.is_cut(&[(Step::Connect, FaultMoment::Before)]) {
        return Err(BootstrapError::new(Code::ConnectionCut, "there is no connection").at(Step::Connect));
    }
    let cut = Cut::default();
    let mut upstream: Vec<Handle> = Vec::new();
    let mut waiter = Waiter { until: Instant::now() + deadline, deadline, attempts: 0, silent: 0 };
    // The password that was given is the target's: a jump host is not told it.
    let on_the_way = Credentials { password: None, ..*credentials };
    for hop in &target.jumps {
        let mut made = dial(hop, true, policy, upstream.last(), &cut, &mut waiter, console, clock).await?;
        auth::login(&mut made.handle, hop, &on_the_way, &made.said, console)
            .await
            .map_err(|error| error.at(Step::Connect))?;
        upstream.push(made.handle);
    }
    let last = target.as_hop();
    let made = dial(&last, false, policy, upstream.last(), &cut, &mut waiter, console, clock).await?;
    let (local, peer) = if upstream.is_empty() { made.ends.unzip() } else { (None, None) };
    Ok(Connection { handle: made.handle, upstream, route: made.route, said: made.said, local, peer, cut })
}

struct Waiter {
    until: Instant,
    deadline: Duration,
    attempts: u32,
    silent: u32,
}

struct Made {
    handle: Handle,
    route: RouteTo,
    said: Arc<Mutex<Said>>,
    /// Our end of the TCP connection and the other one.
    ends: Option<(IpAddr, IpAddr)>,
}

/// One host: tries until it answers or the deadline is over.
#[allow(clippy::too_many_arguments)]
async fn dial(
    hop: &Hop,
    jump: bool,
    policy: &Policy<'_>,
    upstream: Option<&Handle>,
    cut: &Cut,
    waiter: &mut Waiter,
    console: &dyn Console,
    clock: &mut Clock<'_>,
) -> Result<Made, BootstrapError> {
    let address = hop.address();
    let mut families: &[&[Algorithm]] = &[&USUAL];
    loop {
        waiter.attempts += 1;
        clock.detail(Step::Connect, address.clone(), Some(waiter.attempts));
        let failed =
            match attempt(hop, jump, policy, families[0], upstream, cut, waiter, console, clock).await {
                Ok(made) => return Ok(made),
                Err(failed) => failed,
            };
        let error = match failed {
            Failed::Final(error) => return Err(error),
            Failed::OtherKey(error) => {
                // The fingerprint may be that of another of the host's keys: ask for one kind at a time.
                families = match families {
                    [first] if first.len() == USUAL.len() => &EACH,
                    [_, rest @ ..] if !rest.is_empty() => rest,
                    _ => return Err(error),
                };
                continue;
            }
            Failed::Silent => {
                waiter.silent += 1;
                let error = BootstrapError::new(
                    Code::NotSsh,
                    format!(
                        "{address} accepts connections and says nothing within {} seconds",
                        HANDSHAKE_TIMEOUT.as_secs()
                    ),
                )
                .at(Step::Connect);
                if waiter.silent >= SILENT_LIMIT {
                    return Err(error);
                }
                error
            }
            Failed::Again(error) => error,
        };
        if Instant::now() + PAUSE >= waiter.until {
            return Err(error.after(waiter.attempts, waiter.deadline));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

const USUAL: [Algorithm; 6] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
];
const EACH: [&[Algorithm]; 3] = [
    &[Algorithm::Ed25519],
    &[
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    ],
    &[Algorithm::Rsa { hash: Some(HashAlg::Sha512) }, Algorithm::Rsa { hash: Some(HashAlg::Sha256) }],
];

#[allow(clippy::too_many_arguments)]
async fn attempt(
    hop: &Hop,
    jump: bool,
    policy: &Policy<'_>,
    algorithms: &[Algorithm],
    upstream: Option<&Handle>,
    cut: &Cut,
    waiter: &mut Waiter,
    console: &dyn Console,
    clock: &mut Clock<'_>,
) -> Result<Made, Failed> {
    let limit = waiter.until.saturating_duration_since(Instant::now()).min(TCP_TIMEOUT);
    let mut complaint = Complaint::default();
    let (stream, ends) = match (upstream, &hop.proxy) {
        (None, Some(command)) => {
            let (stream, said) = Stream::by_program(command).map_err(|error| {
                let text = format!("cannot start the command that connects to {}", hop.address());
                let error = BootstrapError::new(Code::JumpFailed, text).caused_by(error);
                Failed::Final(error.at(Step::Connect))
            })?;
            complaint = said;
            (stream, None)
        }
        (None, None) => {
            let tcp = tcp(hop, limit).await?;
            let ends =
                tcp.local_addr().and_then(|local| Ok((local.ip(), tcp.peer_addr()?.ip().to_canonical())));
            let stream = Stream::direct(tcp, cut).map_err(|error| Failed::Again(io_error(hop, &error)))?;
            (stream, ends.ok())
        }
        (Some(handle), _) => (Stream::over(through(hop, handle, limit).await?), None),
    };
    let cuts = [(Step::Connect, FaultMoment::After), (Step::HostKey, FaultMoment::Before)];
    if !jump && policy.is_cut(&cuts) {
        cut.cut();
        let error = BootstrapError::new(Code::ConnectionCut, "the connection broke before the handshake");
        return Err(Failed::Final(error.at(Step::HostKey)));
    }
    clock.host_key_begins(jump);
    let made = handshake(hop, jump, policy, algorithms, stream, waiter, console).await;
    let made = match made {
        Ok(made) => return Ok(Made { ends, ..made }),
        Err(failed) => failed,
    };
    match (made, complaint.text().await) {
        // That is no host that boots: by the same way it would end so for as long as it is tried.
        (Failed::Again(_) | Failed::Silent, said) if complaint.gave_up() => {
            let why = if said.is_empty() { "ends before anything comes over it" } else { "says" };
            let said = if said.is_empty() { said } else { format!(": {said}") };
            let text = format!("the command that connects to {} {why}{said}", hop.address());
            Err(Failed::Final(BootstrapError::new(Code::JumpFailed, text).at(Step::Connect)))
        }
        // A command that says why says more than a connection that is over, or over which nothing comes.
        (Failed::Again(_) | Failed::Silent, said) if !said.is_empty() => {
            let text = format!("the command that connects to {} says: {said}", hop.address());
            Err(Failed::Again(BootstrapError::new(Code::JumpFailed, text).at(Step::Connect)))
        }
        (failed, _) => Err(failed),
    }
}

async fn tcp(hop: &Hop, limit: Duration) -> Result<TcpStream, Failed> {
    let addresses: Vec<SocketAddr> = match tokio::time::timeout(
        limit.max(Duration::from_secs(5)),
        tokio::net::lookup_host((hop.host.as_str(), hop.port)),
    )
    .await
    {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            let error = BootstrapError::new(Code::NameNotFound, format!("{:?} has no address", hop.host))
                .caused_by(error);
            return Err(Failed::Final(error.at(Step::Connect)));
        }
        Err(_) => {
            let error =
                BootstrapError::new(Code::NameNotFound, format!("looking up {:?} takes too long", hop.host));
            return Err(Failed::Again(error.at(Step::Connect)));
        }
    };
    let mut worst: Option<(SocketAddr, io::Error)> = None;
    for address in addresses {
        let error = match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                // Small packets must not wait for each other; a failure only costs time.
                let _ = tcp.set_nodelay(true);
                return Ok(tcp);
            }
            Ok(Err(error)) => error,
            Err(_) => io::Error::from(io::ErrorKind::TimedOut),
        };
        // A refusal says more than silence: a host answered.
        if worst.as_ref().is_none_or(|(_, old)| rank(&error) > rank(old)) {
            worst = Some((address, error));
        }
    }
    match worst {
        Some((_, error)) => Err(Failed::Again(io_error(hop, &error))),
        None => Err(Failed::Final(
            BootstrapError::new(Code::NameNotFound, format!("{:?} has no address", hop.host))
                .at(Step::Connect),
        )),
    }
}

fn rank(error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => 3,
        io::ErrorKind::TimedOut => 2,
        _ => 1,
    }
}

fn io_error(hop: &Hop, error: &io::Error) -> BootstrapError {
    let address = hop.address();
    let (code, text) = match error.kind() {
        io::ErrorKind::ConnectionRefused => (Code::Refused, format!("{address} refuses connections")),
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable => {
            (Code::TimedOut, format!("{address} does not answer"))
        }
        io::ErrorKind::NetworkUnreachable => {
            (Code::NetworkUnreachable, format!("no way to {address} from here"))
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
            (Code::HandshakeFailed, format!("{address} closes connections at once"))
        }
        _ => (Code::NetworkUnreachable, format!("connecting to {address}")),
    };
    // The kind is in the words already; io::Error's own text would repeat it.
    let mut made = BootstrapError::new(code, text).at(Step::Connect);
    if !matches!(code, Code::Refused | Code::TimedOut) {
        made = made.caused_by(io::Error::from(error.kind()));
    }
    made
}

async fn through(
    hop: &Hop,
    handle: &Handle,
    limit: Duration,
) -> Result<russh::ChannelStream<client::Msg>, Failed> {
    let address = hop.address();
    let opening = handle.channel_open_direct_tcpip(hop.host.clone(), hop.port.into(), "127.0.0.1", 0);
    match tokio::time::timeout(limit, opening).await {
        Ok(Ok(channel)) => Ok(channel.into_stream()),
        Ok(Err(russh::Error::ChannelOpenFailure(
            ChannelOpenFailure::ConnectFailed | ChannelOpenFailure::ResourceShortage,
        ))) => Err(Failed::Again(
            // The jump host does not tell refused from anything else.
            BootstrapError::new(Code::Refused, format!("the jump host cannot connect to {address}"))
                .at(Step::Connect),
        )),
        Ok(Err(error @ russh::Error::ChannelOpenFailure(_))) => Err(Failed::Final(
            BootstrapError::new(Code::JumpFailed, format!("the jump host does not forward to {address}"))
                .caused_by(error)
                .at(Step::Connect),
        )),
        Ok(Err(error)) => Err(Failed::Final(
            BootstrapError::new(Code::ConnectionCut, "the connection to the jump host broke")
                .caused_by(error)
                .at(Step::Connect),
        )),
        Err(_) => Err(Failed::Again(
            BootstrapError::new(Code::TimedOut, format!("{address} does not answer the jump host"))
                .at(Step::Connect),
        )),
    }
}

async fn handshake(
    hop: &Hop,
    jump: bool,
    policy: &Policy<'_>,
    algorithms: &[Algorithm],
    stream: Stream,
    waiter: &mut Waiter,
    console: &dyn Console,
) -> Result<Made, Failed> {
    let files = if policy.known_hosts_files.is_empty() {
        hop.login.known_hosts_files.clone()
    } else {
        policy.known_hosts_files.to_vec()
    };
    let name = match &hop.login.host_key_alias {
        Some(alias) => alias.to_lowercase(),
        None => record_name(&hop.host, hop.port),
    };
    let known = known_hosts::lookup_files(&files, &name).map_err(|(file, error)| {
        Failed::Final(
            BootstrapError::new(Code::KnownHosts, format!("reading {}", file.display()))
                .caused_by(error)
                .at(Step::HostKey),
        )
    })?;
    let order = known_hosts::order(&known, algorithms);
    let (ask, mut questions) = mpsc::channel::<Question>(1);
    let wanted = policy.fingerprint.filter(|_| !jump).map(str::to_owned);
    let judge = Judge { known, fingerprint: wanted, strict: hop.login.strict, ask };
    let route = RouteTo::default();
    let guard = Guard::new(judge, route.clone());
    let (accepted, said) = (Arc::clone(&guard.accepted), Arc::clone(&guard.said));
    let heard = stream.heard();

    let mut connecting = Box::pin(client::connect_stream(Arc::new(config(order)), stream, guard));
    let mut until = Instant::now() + HANDSHAKE_TIMEOUT;
    let result = loop {
        tokio::select! {
            result = &mut connecting => break Some(result),
            Some(question) = questions.recv() => {
                let asked = Instant::now();
                let text = HostKeyQuestion {
                    host: hop.host.clone(),
                    port: hop.port,
                    algorithm: question.key.algorithm().as_str().to_owned(),
                    fingerprint: fingerprint(&question.key),
                    jump,
                    known_hosts: record_file(&files).cloned(),
                };
                let answer = console.confirm_host_key(&text).await;
                // The handler may be gone when the server gave up waiting.
                let _ = question.answer.send(answer);
                // A person's time is not the host's.
                waiter.until += asked.elapsed();
                until = Instant::now() + HANDSHAKE_TIMEOUT;
            }
            () = tokio::time::sleep_until(until) => break None,
        }
    };
    drop(connecting);
    let handle = match result {
        Some(Ok(handle)) => handle,
        Some(Err(HandlerError::Key(refused))) => return Err(key_error(hop, policy, refused)),
        Some(Err(HandlerError::Ssh(error))) => return Err(ssh_error(hop, error, &heard)),
        None if heard.bytes().is_empty() => return Err(Failed::Silent),
        None => {
            let error = BootstrapError::new(
                Code::HandshakeFailed,
                format!("{} began to speak SSH and then said nothing more", hop.address()),
            );
            return Err(Failed::Again(error.at(Step::HostKey)));
        }
    };
    let learned = accepted.lock().ok().and_then(|kept| kept.clone());
    if let Some((key, true)) = learned {
        learn(&files, &name, &key).map_err(Failed::Final)?;
    }
    Ok(Made { handle, route, said, ends: None })
}

fn learn(files: &[PathBuf], name: &str, key: &PublicKey) -> Result<(), BootstrapError> {
    let Some(file) = record_file(files) else { return Ok(()) };
    known_hosts::append(file, name, key).map_err(|error| {
        BootstrapError::new(Code::KnownHosts, format!("writing the host's key to {}", file.display()))
            .caused_by(error)
            .at(Step::HostKey)
    })
}

pub(crate) fn config(order: Vec<Algorithm>) -> Config {
    Config {
        client_id: SshId::Standard(concat!("SSH-2.0-Postern_", env!("CARGO_PKG_VERSION")).into()),
        preferred: Preferred { key: order.into(), ..Preferred::DEFAULT },
        keepalive_interval: Some(Duration::from_secs(10)),
        keepalive_max: 3,
        nodelay: true,
        ..Config::default()
    }
}

/// For looks: any of the usual host keys.
pub(crate) fn looking_config() -> Config {
    config(USUAL.to_vec())
}

fn key_error(hop: &Hop, policy: &Policy<'_>, refused: KeyRefused) -> Failed {
    let address = hop.address();
    let (code, text) = match refused {
        KeyRefused::Changed { fingerprint, record } => (
            Code::HostKeyChanged,
            format!("the host key of {address} has changed: it offers {fingerprint}, but {record}"),
        ),
        KeyRefused::Revoked { fingerprint, record } => (
            Code::HostKeyChanged,
            format!("{address} offers the key {fingerprint}, which {record} marks as revoked"),
        ),
        KeyRefused::Mismatch { fingerprint } => (
            Code::FingerprintMismatch,
            format!("{address} has not the key {} but {fingerprint}", policy.fingerprint.unwrap_or_default()),
        ),
        KeyRefused::Unknown { fingerprint, algorithm } => (
            Code::HostKeyUnknown,
            format!("nobody vouched for the host key of {address}: {algorithm} {fingerprint}"),
        ),
        KeyRefused::OnlyAuthority { record } => (
            Code::HostKeyUnknown,
            format!(
                "{address} is on record only by a certificate authority ({record}), which is not supported; \
                 give the host's own key or fingerprint"
            ),
        ),
    };
    let error = BootstrapError::new(code, text).at(Step::HostKey);
    if code == Code::FingerprintMismatch { Failed::OtherKey(error) } else { Failed::Final(error) }
}

/// What a server said first decides what it is.
fn ssh_error(hop: &Hop, error: russh::Error, heard: &Heard) -> Failed {
    let address = hop.address();
    let said = heard.bytes();
    let text = String::from_utf8_lossy(&said);
    let speaks_ssh = text.lines().any(|line| line.starts_with("SSH-2.0-") || line.starts_with("SSH-1.99-"));
    if speaks_ssh {
        let make = |text: String| BootstrapError::new(Code::HandshakeFailed, text).at(Step::HostKey);
        return match error {
            // Too many at once, or a host that shuts down while it boots: it may be better in a moment.
            russh::Error::Disconnect | russh::Error::HUP | russh::Error::IO(_) => {
                Failed::Again(make(format!("{address} broke off the handshake")).caused_by(error))
            }
            russh::Error::NoCommonAlgo { ref kind, .. } => {
                let text = format!("{address} and we share no {kind:?} algorithm");
                // With one kind of key asked for, this only says that the host has none of that kind.
                if matches!(kind, russh::AlgorithmKind::Key) {
                    Failed::OtherKey(make(text).caused_by(error))
                } else {
                    Failed::Final(make(text).caused_by(error))
                }
            }
            _ => Failed::Final(make(format!("the handshake with {address} failed")).caused_by(error)),
        };
    }
    if said.is_empty() {
        let error =
            BootstrapError::new(Code::HandshakeFailed, format!("{address} closes connections at once"))
                .caused_by(error);
        return Failed::Again(error.at(Step::Connect));
    }
    let first: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
    // What OpenSSH says instead of its version when it is full.
    if first.starts_with("Exceeded MaxStartups") || first.starts_with("Not allowed at this time") {
        let error = BootstrapError::new(Code::HandshakeFailed, format!("{address} is busy: {first:?}"));
        return Failed::Again(error.at(Step::Connect));
    }
    Failed::Final(
        BootstrapError::new(Code::NotSsh, format!("{address} does not speak SSH: it answers {first:?}"))
            .at(Step::Connect),
    )
}
