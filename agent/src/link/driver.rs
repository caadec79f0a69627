//! Does what the session decides: owns the connections, the identity in use and the tasks of the link.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::dial::{Dialer, Unreachable};
use super::engine::EnginePort;
use super::enrol::{self, EnrolError};
use super::http2::{self, Driving, Http2, chain};
use super::identity::{Identity, IdentityStore};
use super::session::{ConnId, Effect, Event, Level, Moment, Session, Settings};
use super::stream::{self, Lanes};
use super::time::TrustedTime;
use super::wire;
use super::{AgentError, AgentOptions, ExitReason, HelloFacts};
use crate::facts::{self, Facts};
use crate::leave;
use crate::resources::ssh_ports;

/// The engine answers within this, or the agent restarts.
const ENGINE: Duration = Duration::from_secs(60);
/// Facts are read within this, or are those of the last time.
const FACTS: Duration = Duration::from_secs(5);
/// A certificate is renewed within this, or the try has failed.
const RENEWAL: Duration = Duration::from_secs(180);
/// How long an agent that is told to leave waits for its runs to be acked.
const DRAIN: Duration = Duration::from_secs(10);
/// How long it waits for the controller to take its last word.
const LAST_WORD: Duration = Duration::from_secs(5);
/// The stored floor of trusted time is moved in steps of at least this, seconds.
const FLOOR_STEP_S: i64 = 600;
/// What tasks report and the driver has not yet looked at.
const REPORTS: usize = 64;

/// What a task of the driver reports.
enum Report {
    Dialled(ConnId, Box<Dialled>),
    DialFailed { conn: ConnId, why: String, certificate_refused: bool },
    Renewed(Result<Box<Identity>, EnrolError>),
    Removed(Vec<String>),
}

struct Dialled {
    http2: Http2,
    _driving: Driving,
    address: String,
    server_end_s: i64,
}

enum Slot {
    Dialling(#[allow(dead_code)] AbortOnDropHandle<()>),
    Open(Box<Open>),
}

struct Open {
    dialled: Dialled,
    lanes: Option<Lanes>,
    stream: Option<AbortOnDropHandle<()>>,
    pump: Option<AbortOnDropHandle<()>>,
}

pub(super) struct Driver {
    options: AgentOptions,
    store: IdentityStore,
    identity: Identity,
    facts: HelloFacts,
    engine: Arc<dyn EnginePort>,
    time: TrustedTime,
    dialer: Dialer,
    session: Session,
    slots: HashMap<ConnId, Slot>,
    queue: VecDeque<Event>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    /// Renewal and removal: at most one each.
    tasks: Vec<AbortOnDropHandle<()>>,
    started: Instant,
}

/// Waits for the engine, but not for ever.
async fn asked<T>(answer: impl Future<Output = T>) -> Result<T, AgentError> {
    timeout(ENGINE, answer).await.map_err(|_| AgentError::EngineSilent)
}

impl Driver {
    pub(super) async fn new(
        options: AgentOptions,
        store: IdentityStore,
        identity: Identity,
        facts: HelloFacts,
        engine: Arc<dyn EnginePort>,
        time: TrustedTime,
    ) -> Result<Self, AgentError> {
        let dialer = enrol::dialer(&options.config, &options.proxy_env, &options.names, options.dial)?;
        let epoch = asked(engine.snapshot()).await?.epoch;
        let settings = Settings {
            cluster: identity.cluster(),
            epoch,
            validity_s: identity.validity_s(),
            timing: options.timing,
        };
        Ok(Self {
            time,
            session: Session::new(settings),
            dialer,
            options,
            store,
            identity,
            facts,
            engine,
            slots: HashMap::new(),
            queue: VecDeque::from([Event::Start]),
            events: mpsc::channel(REPORTS),
            reports: mpsc::channel(REPORTS),
            tasks: Vec::new(),
            started: Instant::now(),
        })
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) -> Result<ExitReason, AgentError> {
        loop {
            while let Some(event) = self.queue.pop_front() {
                for effect in self.session.handle(event, self.moment()) {
                    if let Effect::End { clean } = effect {
                        self.last_word().await;
                        return Ok(ExitReason::Left { clean });
                    }
                    if let Effect::Restart = effect {
                        self.last_word().await;
                        return Ok(ExitReason::Restarting);
                    }
                    self.perform(effect).await?;
                }
            }
            let wake = self.session.wake_at().map(|at| self.started + at);
            let tick = async {
                match wake {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(ExitReason::Stopped),
                Some(report) = self.reports.1.recv() => self.take(report),
                Some(event) = self.events.1.recv() => self.queue.push_back(event),
                () = tick => self.queue.push_back(Event::Tick),
            }
        }
    }

    fn moment(&self) -> Moment {
        Moment { at: self.started.elapsed(), unix_ms: self.time.now_ms(), random: rand::random() }
    }

    fn take(&mut self, report: Report) {
        let event = match report {
            Report::Dialled(conn, dialled) => {
                // A connection that was closed while it was dialled has no slot any more.
                let Some(slot) = self.slots.get_mut(&conn) else { return };
                tracing::info!(address = dialled.address, "connected to the controller");
                let open = Open { dialled: *dialled, lanes: None, stream: None, pump: None };
                *slot = Slot::Open(Box::new(open));
                Event::Dialled(conn)
            }
            Report::DialFailed { conn, why, certificate_refused } => {
                Event::DialFailed { conn, why, certificate_refused }
            }
            Report::Renewed(Ok(identity)) => match self.store.store(&identity) {
                Ok(()) => {
                    self.identity = *identity;
                    Event::Renewed { validity_s: self.identity.validity_s() }
                }
                Err(error) => Event::RenewFailed { why: chain(&error), revoked: false },
            },
            Report::Renewed(Err(error)) => {
                Event::RenewFailed { revoked: matches!(error, EnrolError::Revoked(_)), why: chain(&error) }
            }
            Report::Removed(left_behind) => Event::Removed { left_behind },
        };
        self.queue.push_back(event);
    }

    async fn perform(&mut self, effect: Effect) -> Result<(), AgentError> {
        match effect {
            Effect::Dial(conn) => self.dial(conn),
            Effect::Greet(conn) => self.greet(conn).await?,
            Effect::Send(conn, frame) => self.send(conn, frame.into()),
            Effect::SetEpoch(epoch) => asked(self.engine.set_epoch(epoch)).await?,
            Effect::LearnTime(conn, unix_ms) => self.learn_time(conn, unix_ms),
            Effect::Attach { conn, acked, hold } => {
                for slot in self.slots.values_mut() {
                    if let Slot::Open(open) = slot {
                        open.pump = None;
                    }
                }
                let outbox = asked(self.engine.attach(acked, hold)).await?;
                if let Some(Slot::Open(open)) = self.slots.get_mut(&conn)
                    && let Some(lanes) = &open.lanes
                {
                    let pump = stream::pump(outbox, lanes.reports.clone());
                    open.pump = Some(AbortOnDropHandle::new(tokio::spawn(pump)));
                }
            }
            Effect::Dispatch(dispatch) => {
                let (seq, run) = (dispatch.seq, dispatch.run.to_string());
                if let Err(refusal) = asked(self.engine.dispatch(dispatch)).await? {
                    self.queue.push_back(Event::NotTaken { seq, run, refusal });
                }
            }
            Effect::Acked(offset) => asked(self.engine.acked(offset)).await?,
            Effect::Cancel(run) => asked(self.engine.cancel(run)).await?,
            Effect::Secrets(run, answers) => asked(self.engine.secrets(run, answers)).await?,
            Effect::Close(conn) => {
                self.slots.remove(&conn);
            }
            Effect::Renew => self.renew(),
            Effect::Remove => self.remove(),
            Effect::End { .. } | Effect::Restart => {}
            Effect::Note(Level::Info, text) => tracing::info!("{text}"),
            Effect::Note(Level::Warn, text) => tracing::warn!("{text}"),
            Effect::Note(Level::Error, text) => tracing::error!("{text}"),
        }
        Ok(())
    }

    fn dial(&mut self, conn: ConnId) {
        let (dialer, identity, time) = (self.dialer.clone(), self.identity.clone(), self.time.clone());
        let (keep, reports) = (self.options.keep_alive, self.reports.0.clone());
        let task = async move {
            let report = match dial(&dialer, &identity, time, keep).await {
                Ok(dialled) => Report::Dialled(conn, Box::new(dialled)),
                Err((why, certificate_refused)) => Report::DialFailed { conn, why, certificate_refused },
            };
            let _ = reports.send(report).await;
        };
        self.slots.insert(conn, Slot::Dialling(AbortOnDropHandle::new(tokio::spawn(task))));
    }

    async fn greet(&mut self, conn: ConnId) -> Result<(), AgentError> {
        let have = asked(self.engine.snapshot()).await?;
        // Anew for each session: memory, swap and disk are not what they were. A disk that hangs keeps nobody from
        // saying hello: what was known last is said.
        let root = self.options.facts_root.clone();
        let read = tokio::task::spawn_blocking(move || facts::read(&root));
        let ssh = ssh_ports(&self.options.engine.sys);
        let (read, ssh) = tokio::join!(timeout(FACTS, read), timeout(FACTS, ssh));
        // One that does not say is not asked twice: what was known last is said.
        let ssh = ssh.map(|ports| ports.into_iter().collect()).unwrap_or_default();
        match read {
            Ok(Ok(facts)) => self.facts.facts = Facts { ssh_ports: ssh, ..facts },
            _ => tracing::warn!("the facts of this host cannot be read: a file system does not answer"),
        }
        let wall_ns = (self.options.clock)().saturating_mul(1_000_000_000);
        let hello = wire::hello(&self.facts, self.identity.cluster(), have, wall_ns);
        let Some(Slot::Open(open)) = self.slots.get_mut(&conn) else { return Ok(()) };
        let (lanes, outflow) = stream::lanes();
        // The lane is new and empty: the first frame is Hello, and there is room for it.
        let _ = lanes.control.try_send(hello);
        let origin = http2::origin(&self.options.config.server_name);
        let run = stream::run(conn, open.dialled.http2.clone(), origin, outflow, self.events.0.clone());
        open.stream = Some(AbortOnDropHandle::new(tokio::spawn(run)));
        open.lanes = Some(lanes);
        Ok(())
    }

    fn send(&mut self, conn: ConnId, frame: postern_proto::v1::AgentFrame) {
        let Some(Slot::Open(open)) = self.slots.get(&conn) else { return };
        let Some(lanes) = &open.lanes else { return };
        if lanes.control.try_send(frame).is_err() {
            // A controller that asks and never reads is as good as gone.
            let end = super::session::End::Broke("the controller does not read".into());
            self.queue.push_back(Event::Ended(conn, end));
        }
    }

    fn learn_time(&mut self, conn: ConnId, unix_ms: i64) {
        let Some(Slot::Open(open)) = self.slots.get(&conn) else { return };
        self.time.told(unix_ms, open.dialled.server_end_s);
        let floor = self.time.floor_s();
        if floor.saturating_sub(self.identity.floor_s()) >= FLOOR_STEP_S {
            self.identity.set_floor(floor);
            if let Err(error) = self.store.store(&self.identity) {
                tracing::warn!(error = chain(&error), "cannot store the floor of trusted time");
            }
        }
    }

    fn renew(&mut self) {
        let (dialer, identity, time) = (self.dialer.clone(), self.identity.clone(), self.time.clone());
        let (name, reports) = (self.options.config.server_name.clone(), self.reports.0.clone());
        self.spawn(async move {
            let renewal = timeout(RENEWAL, Box::pin(enrol::renew(&dialer, &name, &identity, &time))).await;
            let result = renewal.unwrap_or_else(|_| Err(EnrolError::Unavailable("timed out".into())));
            let _ = reports.send(Report::Renewed(result.map(Box::new))).await;
        });
    }

    /// Runs that are not acked yet are sent while they can be; then all is removed.
    fn remove(&mut self) {
        let (engine, paths, reports) =
            (self.engine.clone(), self.options.host.clone(), self.reports.0.clone());
        self.spawn(async move {
            let drained = async {
                let mut pause = tokio::time::interval(Duration::from_millis(100));
                loop {
                    pause.tick().await;
                    if engine.snapshot().await.runs.is_empty() {
                        return;
                    }
                }
            };
            if timeout(DRAIN, drained).await.is_err() {
                tracing::warn!("leaving although the controller does not have everything yet");
            }
            let left_behind = leave::remove(&paths, false).await;
            let _ = reports.send(Report::Removed(left_behind)).await;
        });
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.retain(|task| !task.is_finished());
        self.tasks.push(AbortOnDropHandle::new(tokio::spawn(task)));
    }

    /// Lets what was sent last reach the controller: the stream is ended in order and waited for.
    async fn last_word(&mut self) {
        let Some(conn) = self.session.live() else { return };
        let Some(Slot::Open(open)) = self.slots.get_mut(&conn) else { return };
        (open.lanes, open.pump) = (None, None);
        if let Some(stream) = open.stream.take() {
            let _ = timeout(LAST_WORD, stream).await;
        }
    }
}

async fn dial(
    dialer: &Dialer,
    identity: &Identity,
    time: TrustedTime,
    keep: http2::KeepAlive,
) -> Result<Dialled, (String, bool)> {
    let tls = super::tls::client_config(identity.server_ca_pem(), Some(identity), time)
        .map_err(|error| (chain(&error), false))?;
    let connection = dialer.dial(tls).await.map_err(|error| {
        let Unreachable(tried) = &error;
        let refused =
            tried.iter().any(|(_, error)| matches!(error, super::dial::DialError::CertificateRefused(_)));
        (error.to_string(), refused)
    })?;
    let (address, server_end_s) = (connection.address.clone(), connection.server_not_after_s);
    let (http2, driving) = http2::open(connection, keep).await.map_err(|why| (why, false))?;
    Ok(Dialled { http2, _driving: driving, address, server_end_s })
}
