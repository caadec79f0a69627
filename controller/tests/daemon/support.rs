//! A daemon on free ports in a throw-away state, and a stand-in for the agent that speaks the real wire.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use postern::daemon::{self, Clock, Daemon, DaemonConfig};
use postern_proto::SERVER_NAME;
use postern_proto::event::{
    EventKind, LogBody, LogFrame, Outcome, RunEvent, RunState, StepEnd, StepId, Stream,
};
use postern_proto::ids::{Address, InstanceId, PlanHash, RunId};
use postern_proto::v1;
use postern_proto::v1::agent_frame::Kind as Up;
use postern_proto::v1::controller_frame::Kind as Down;
use postern_proto::v1::enrolment_client::EnrolmentClient;
use postern_proto::v1::link_client::LinkClient;
use postern_proto::v1::operator_client::OperatorClient;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Nothing in these tests takes longer unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for something with a deadline.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: nothing came"))
}

/// A daemon and its state.
pub(crate) struct Rig {
    _dir: tempfile::TempDir,
    pub(crate) daemon: Option<Daemon>,
    pub(crate) config: DaemonConfig,
    ahead_ms: Arc<AtomicI64>,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut DaemonConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ahead_ms = Arc::new(AtomicI64::new(0));
        let mut config = DaemonConfig::new(dir.path().join("state"), ([127, 0, 0, 1], 0).into());
        let ahead = Arc::clone(&ahead_ms);
        config.clock = Clock::new(move || {
            SystemTime::now() + Duration::from_millis(u64::try_from(ahead.load(Ordering::Relaxed)).unwrap())
        });
        change(&mut config);
        let daemon = Some(daemon::start(config.clone()).await.unwrap());
        Self { _dir: dir, daemon, config, ahead_ms }
    }

    /// The controller's clock is so much further.
    pub(crate) fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(i64::try_from(by.as_millis()).unwrap(), Ordering::Relaxed);
    }

    pub(crate) fn state_dir(&self) -> &Path {
        &self.config.state_dir
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            soon("shutdown", daemon.shutdown()).await;
        }
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.daemon = Some(daemon::start(self.config.clone()).await.unwrap());
    }

    pub(crate) async fn operator(&self) -> OperatorClient<Channel> {
        operator(self.daemon().socket()).await
    }

    /// Registers a host and gives its id and a token.
    pub(crate) async fn prepare(&self, name: &str) -> (String, String) {
        let request = v1::PrepareHostRequest {
            ssh_address: format!("root@{name}"),
            name: name.to_owned(),
            labels: Default::default(),
        };
        let answer = self.operator().await.prepare_host(request).await.unwrap().into_inner();
        (answer.host.unwrap().id, answer.token)
    }

    pub(crate) async fn root_pem(&self) -> String {
        self.operator().await.info(v1::InfoRequest {}).await.unwrap().into_inner().server_ca_pem
    }

    /// A host with an agent that has its certificate.
    pub(crate) async fn agent(&self, name: &str) -> Agent {
        let (host, token) = self.prepare(name).await;
        let mut agent = Agent::new(self, &host).await;
        agent.enrol(self, &token).await.unwrap();
        agent
    }

    pub(crate) async fn host(&self, id: &str) -> v1::Host {
        let hosts =
            self.operator().await.list_hosts(v1::ListHostsRequest {}).await.unwrap().into_inner().hosts;
        hosts.into_iter().find(|host| host.id == id).unwrap()
    }

    pub(crate) async fn run(&self, id: &str) -> v1::Run {
        let request = v1::ListRunsRequest { host: String::new(), limit: 0 };
        let runs = self.operator().await.list_runs(request).await.unwrap().into_inner().runs;
        runs.into_iter().find(|run| run.id == id).unwrap()
    }

    /// Starts a command.
    pub(crate) async fn exec(&self, host: &str) -> (v1::Run, Streaming<v1::RunUpdate>) {
        let request =
            v1::ExecRequest { host: host.to_owned(), command_spec: br#"{"argv":["true"]}"#.to_vec().into() };
        begun(self.operator().await.exec(request).await).await.unwrap()
    }

    pub(crate) async fn follow(&self, run: &str, cursor: u64) -> Streaming<v1::RunUpdate> {
        let request = v1::FollowRunRequest { run_id: run.to_owned(), cursor };
        self.operator().await.follow_run(request).await.unwrap().into_inner()
    }
}

/// The run that a call began, which is the first of its updates.
pub(crate) async fn begun(
    called: Result<tonic::Response<Streaming<v1::RunUpdate>>, tonic::Status>,
) -> Result<(v1::Run, Streaming<v1::RunUpdate>), tonic::Status> {
    let mut updates = called?.into_inner();
    match soon("the run", updates.message()).await?.unwrap().kind {
        Some(v1::run_update::Kind::Run(run)) => Ok((run, updates)),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn operator(socket: &Path) -> OperatorClient<Channel> {
    OperatorClient::new(unix_channel(socket).await)
}

pub(crate) async fn unix_channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    Endpoint::from_static("http://controller")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .unwrap()
}

/// All updates of a run until its stream ends.
pub(crate) async fn collect(mut updates: Streaming<v1::RunUpdate>) -> Vec<v1::RunUpdate> {
    let mut all = Vec::new();
    while let Some(update) = soon("an update", updates.message()).await.unwrap() {
        all.push(update);
    }
    all
}

/// What the updates say was written to a stream, in order; offsets must agree.
pub(crate) fn output(updates: &[v1::RunUpdate], stream: v1::Stream) -> Vec<u8> {
    let mut bytes = Vec::new();
    for update in updates {
        if let Some(v1::run_update::Kind::Log(frame)) = &update.kind
            && frame.stream() == stream
        {
            assert_eq!(frame.offset, bytes.len() as u64, "{frame:?}");
            bytes.extend_from_slice(&frame.data);
        }
    }
    bytes
}

/// Sequence numbers of the events among the updates.
pub(crate) fn events(updates: &[v1::RunUpdate]) -> Vec<u64> {
    updates
        .iter()
        .filter_map(|update| match &update.kind {
            Some(v1::run_update::Kind::Event(event)) => Some(event.seq),
            _ => None,
        })
        .collect()
}

/// The run as the last update has it.
pub(crate) fn ending(updates: &[v1::RunUpdate]) -> v1::Run {
    match updates.last().and_then(|update| update.kind.clone()) {
        Some(v1::run_update::Kind::Run(run)) => run,
        other => panic!("{other:?}"),
    }
}

/// TLS to the controller with or without a client certificate (chain and key).
pub(crate) async fn tls_channel(
    address: std::net::SocketAddr,
    root_pem: &str,
    client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<Channel, tonic::transport::Error> {
    let config = Arc::new(client_config(root_pem, client));
    Endpoint::from_static("http://controller")
        .connect_with_connector(tower::service_fn(move |_| {
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(&config));
            async move {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from(SERVER_NAME).unwrap();
                connector.connect(name, tcp).await.map(TokioIo::new)
            }
        }))
        .await
}

pub(crate) fn client_config(
    root_pem: &str,
    client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(root_pem.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match client {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// True when a client with this certificate is not let in. In TLS 1.3 the client's side of the handshake is
/// done before the server has looked at the certificate, and the server speaks first in HTTP/2: a first byte
/// says that it was good.
pub(crate) async fn turned_away(
    address: std::net::SocketAddr,
    root_pem: &str,
    client: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
) -> bool {
    use tokio::io::AsyncReadExt as _;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(root_pem, Some(client))));
    let socket = TcpStream::connect(address).await.unwrap();
    match connector.connect(ServerName::try_from(SERVER_NAME).unwrap(), socket).await {
        Ok(mut stream) => soon("a byte or the end", stream.read_u8()).await.is_err(),
        Err(_) => true,
    }
}

/// The stand-in for an agent: the test says what it sends and when its line breaks.
pub(crate) struct Agent {
    pub(crate) host: String,
    pub(crate) key: KeyPair,
    pub(crate) chain_pem: String,
    pub(crate) root_pem: String,
    pub(crate) instance: InstanceId,
    pub(crate) epoch: u64,
    pub(crate) cluster: String,
    /// Runs it says it has.
    pub(crate) runs: Vec<String>,
    pub(crate) floor: u64,
    pub(crate) wire: (u32, u32),
    /// What it says it knows; nothing where it is empty.
    pub(crate) kinds: Vec<v1::KindSupport>,
    /// What it says it has; an older one says nothing, which is 0.
    pub(crate) memory_bytes: u64,
    /// Where it says that SSH is served.
    pub(crate) ssh_ports: Vec<u32>,
}

impl Agent {
    pub(crate) async fn new(rig: &Rig, host: &str) -> Self {
        Self {
            host: host.to_owned(),
            key: KeyPair::generate().unwrap(),
            chain_pem: String::new(),
            root_pem: rig.root_pem().await,
            instance: InstanceId::generate(),
            epoch: 0,
            cluster: String::new(),
            runs: Vec::new(),
            floor: 0,
            wire: (1, 1),
            kinds: Vec::new(),
            memory_bytes: 0,
            ssh_ports: Vec::new(),
        }
    }

    pub(crate) fn csr(&self) -> Vec<u8> {
        CertificateParams::default().serialize_request(&self.key).unwrap().der().to_vec()
    }

    pub(crate) async fn anonymous(&self, rig: &Rig) -> EnrolmentClient<Channel> {
        EnrolmentClient::new(tls_channel(rig.daemon().local_addr(), &self.root_pem, None).await.unwrap())
    }

    pub(crate) async fn enrol(&mut self, rig: &Rig, token: &str) -> Result<(), tonic::Status> {
        let request = v1::EnrolRequest {
            host_id: self.host.clone(),
            token: token.to_owned(),
            csr_der: self.csr().into(),
            agent_version: "test".to_owned(),
        };
        let answer = self.anonymous(rig).await.enrol(request).await?.into_inner();
        assert_eq!(answer.host_id, self.host);
        self.chain_pem = answer.certificate_chain_pem;
        Ok(())
    }

    pub(crate) async fn renew(&mut self, rig: &Rig) -> Result<(), tonic::Status> {
        let request = v1::RenewRequest { host_id: self.host.clone(), csr_der: self.csr().into() };
        let answer = self.anonymous(rig).await.renew(request).await?.into_inner();
        self.chain_pem = answer.certificate_chain_pem;
        Ok(())
    }

    pub(crate) fn identity(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_slice_iter(self.chain_pem.as_bytes()).map(Result::unwrap).collect();
        (chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der())))
    }

    pub(crate) async fn channel(&self, rig: &Rig) -> Result<Channel, tonic::transport::Error> {
        tls_channel(rig.daemon().local_addr(), &self.root_pem, Some(self.identity())).await
    }

    pub(crate) fn hello(&self) -> Up {
        Up::Hello(v1::Hello {
            host_id: self.host.clone(),
            boot_id: InstanceId::generate().to_string(),
            instance: self.instance.to_string(),
            agent_version: "0.0.1".to_owned(),
            wire_min: self.wire.0,
            wire_max: self.wire.1,
            epoch: self.epoch,
            cluster_id: self.cluster.clone(),
            kinds: self.kinds.clone(),
            runs: self
                .runs
                .iter()
                .map(|run| v1::RunOffset { run_id: run.clone(), event_seq: 0, logs: Vec::new() })
                .collect(),
            dispatch_floor: self.floor,
            dispatches_above: Vec::new(),
            facts: Some(v1::HostFacts {
                hostname: "web\u{1b}[31m1".to_owned(),
                os_id: "debian".to_owned(),
                os_version: "13".to_owned(),
                arch: "x86_64".to_owned(),
                memory_bytes: self.memory_bytes,
                now_unix_ns: 0,
                swap_bytes: (self.memory_bytes > 0).then_some(0),
                disk_free_bytes: (self.memory_bytes > 0).then_some(u64::MAX),
                var_free_bytes: None,
                ssh_ports: self.ssh_ports.clone(),
            }),
        })
    }

    /// A session up to its hello.
    pub(crate) async fn dial(&self, rig: &Rig) -> Line {
        let channel = self.channel(rig).await.unwrap();
        let (send, outgoing) = mpsc::channel(1024);
        send.send(frame(self.hello())).await.unwrap();
        let mut client = LinkClient::new(channel);
        let receive = client.session(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        Line { send, receive, held: Vec::new() }
    }

    /// A session that was welcomed.
    pub(crate) async fn session(&mut self, rig: &Rig) -> (Line, v1::Welcome) {
        let mut line = self.dial(rig).await;
        match line.next().await {
            Down::Welcome(welcome) => {
                assert!(welcome.epoch > self.epoch, "{welcome:?}");
                self.epoch = welcome.epoch;
                self.cluster = welcome.cluster_id.clone();
                (line, welcome)
            }
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn frame(kind: Up) -> v1::AgentFrame {
    v1::AgentFrame { kind: Some(kind) }
}

/// One stream of a session.
pub(crate) struct Line {
    send: mpsc::Sender<v1::AgentFrame>,
    receive: Streaming<v1::ControllerFrame>,
    held: Vec<Down>,
}

impl Line {
    pub(crate) async fn send(&self, kind: Up) {
        self.send.send(frame(kind)).await.unwrap();
    }

    pub(crate) async fn event(&self, event: RunEvent) {
        self.send(Up::Event(event.into())).await;
    }

    pub(crate) async fn log(&self, frame: LogFrame) {
        self.send(Up::Log(frame.into())).await;
    }

    /// Plays a run that was dispatched to its end.
    pub(crate) async fn play(&mut self, run: &str, outcomes: &[(&str, Outcome)], state: RunState) {
        let mut script = Script::new(run);
        self.event(script.accepted()).await;
        for (address, outcome) in outcomes {
            self.event(script.resource_finished(address.parse().unwrap(), *outcome)).await;
        }
        self.event(script.finished(state)).await;
        self.acked(run, outcomes.len() as u64 + 2).await;
    }

    /// The next frame, pings answered.
    pub(crate) async fn next(&mut self) -> Down {
        if !self.held.is_empty() {
            return self.held.remove(0);
        }
        match soon("a frame", self.receive.message()).await.unwrap() {
            Some(frame) => frame.kind.unwrap(),
            None => panic!("the stream ended"),
        }
    }

    pub(crate) async fn dispatch(&mut self) -> v1::Dispatch {
        match self.next().await {
            Down::Dispatch(dispatch) => dispatch,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until so much of a run is acked; the ack that says so.
    pub(crate) async fn acked(&mut self, run: &str, event_seq: u64) -> v1::RunOffset {
        loop {
            match self.next().await {
                Down::Ack(ack) => {
                    let offset = ack.offset.unwrap();
                    if offset.run_id == run && offset.event_seq >= event_seq {
                        return offset;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits until so many frames of a step are acked.
    pub(crate) async fn acked_frames(&mut self, step: u32, next_frame: u64) {
        loop {
            if let Down::Ack(ack) = self.next().await
                && ack.offset.unwrap().logs.iter().any(|log| log.step == step && log.next_frame >= next_frame)
            {
                return;
            }
        }
    }

    /// The session's last frame; the stream ends after it.
    pub(crate) async fn goodbye(&mut self) -> v1::Goodbye {
        loop {
            match self.next().await {
                Down::Goodbye(goodbye) => {
                    let end = soon("the end", self.receive.message()).await;
                    assert!(matches!(end, Ok(None)), "{end:?}");
                    return goodbye;
                }
                Down::Ack(_) | Down::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

pub(crate) fn step(number: u32) -> StepId {
    StepId { address: "exec:command:true".parse().unwrap(), attempt: 1, step: number }
}

/// Events and output of a run, numbered as an agent would.
pub(crate) struct Script {
    pub(crate) run: RunId,
    pub(crate) seq: u64,
    pub(crate) frame_no: u64,
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
}

impl Script {
    pub(crate) fn new(run: &str) -> Self {
        Self { run: run.parse().unwrap(), seq: 0, frame_no: 0, stdout: 0, stderr: 0 }
    }

    pub(crate) fn event(&mut self, kind: EventKind) -> RunEvent {
        self.seq += 1;
        RunEvent { run: self.run, seq: self.seq, time_ns: 1, kind }
    }

    pub(crate) fn accepted(&mut self) -> RunEvent {
        self.event(EventKind::Accepted { plan: PlanHash::of(b"x"), resources: 1 })
    }

    pub(crate) fn log(&mut self, stream: Stream, data: &[u8]) -> LogFrame {
        let offset = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let frame = LogFrame {
            run: self.run,
            step: step(0),
            frame_no: self.frame_no,
            stream,
            offset: *offset,
            time_ns: 2,
            body: LogBody::Data(data.to_vec()),
        };
        *offset += data.len() as u64;
        self.frame_no += 1;
        frame
    }

    pub(crate) fn step_finished(&mut self) -> RunEvent {
        let frames = self.frame_no;
        self.event(EventKind::StepFinished { step: step(0), end: StepEnd::Exit(0), frames })
    }

    pub(crate) fn resource_finished(&mut self, address: Address, outcome: Outcome) -> RunEvent {
        self.event(EventKind::ResourceFinished {
            address,
            attempt: 1,
            outcome,
            message: String::new(),
            diff: String::new(),
            duration_ns: 1,
            seen: String::new(),
        })
    }

    pub(crate) fn finished(&mut self, state: RunState) -> RunEvent {
        self.event(EventKind::Finished { state, message: String::new() })
    }

    /// What follows the output of a command that did well.
    pub(crate) fn ending(&mut self) -> Vec<RunEvent> {
        let resource = step(0).address;
        vec![
            self.step_finished(),
            self.resource_finished(resource, Outcome::Changed),
            self.finished(RunState::Ok),
        ]
    }
}
