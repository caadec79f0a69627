//! The `Link` service: drives one [`Session`] for each stream, between the wire, the store and the hub.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use postern_proto::ids::{InstanceId, SessionId};
use postern_proto::v1;
use postern_proto::v1::link_server::Link;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::authz::{self, AgentPeer, rpc};
use super::hub::{Claim, Command, Handle};
use super::session::{ClaimError, Effect, Identity, Input, Session};
use super::shared::Shared;
use super::text::Neutral;
use super::vantage;
use super::wire::Reason;

/// Frames on their way to an agent.
const OUTBOUND: usize = 64;
/// Commands on their way to a session.
const COMMANDS: usize = 64;
/// An agent that takes nothing for so long is gone.
const SEND: Duration = Duration::from_secs(30);
/// What is still being written when a session ends has so long.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// Frames taken in one go before what they say is committed.
const GULP: usize = 512;

type Outbound = mpsc::Sender<Result<v1::ControllerFrame, Status>>;

/// The service.
pub(crate) struct LinkService(pub(crate) Arc<Shared>);

#[tonic::async_trait]
impl Link for LinkService {
    type SessionStream = ReceiverStream<Result<v1::ControllerFrame, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentFrame>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = authz::require(&request, rpc::SESSION)?;
        let (out, stream) = mpsc::channel(OUTBOUND);
        let driver = Driver::new(Arc::clone(&self.0), peer, out);
        let span = tracing::info_span!("session", host = %driver.peer.host, id = %driver.handle.session, peer = %driver.peer.address);
        self.0.sessions.spawn(driver.run(request.into_inner()).instrument(span));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn vantage(
        &self,
        request: Request<v1::VantageRequest>,
    ) -> Result<Response<v1::VantageResponse>, Status> {
        vantage::answer(&self.0, request).await
    }
}

struct Driver {
    shared: Arc<Shared>,
    peer: AgentPeer,
    /// What others get to reach this session; instance and kinds are known after hello.
    handle: Handle,
    commands: mpsc::Receiver<Command>,
    close: watch::Receiver<Option<(Reason, String)>>,
    out: Outbound,
    session: Session,
    claim: Option<Claim>,
    probes: Vec<oneshot::Sender<()>>,
    leave: Option<oneshot::Sender<Vec<String>>>,
    /// What the store and the hub are asked.
    asked: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Last seen as it stands in the store, milliseconds since the Unix epoch.
    noted_ms: i64,
}

/// What comes back from the store and the hub.
enum Answer {
    Input(Input),
    Claimed(Claim),
}

impl Driver {
    fn new(shared: Arc<Shared>, peer: AgentPeer, out: Outbound) -> Self {
        let (command_sender, commands) = mpsc::channel(COMMANDS);
        let (close_sender, close) = watch::channel(None);
        let now_ms = shared.clock.now_ms();
        let handle = Handle {
            session: SessionId::generate(),
            instance: InstanceId::generate(),
            key: peer.key,
            peer: peer.address,
            commands: command_sender,
            close: Arc::new(close_sender),
            up: Arc::new(AtomicBool::new(false)),
            heard_ms: Arc::new(AtomicI64::new(now_ms)),
            kinds: Arc::default(),
        };
        let identity = Identity {
            host: peer.host,
            key: peer.key,
            not_before_ms: peer.not_before_ms,
            not_after_ms: peer.not_after_ms,
            cluster: shared.store.cluster(),
            session: handle.session,
            quiet: shared.limits.quiet,
        };
        let session = Session::new(identity, shared.now());
        Self {
            shared,
            peer,
            handle,
            commands,
            close,
            out,
            session,
            claim: None,
            probes: Vec::new(),
            leave: None,
            asked: FuturesUnordered::new(),
            noted_ms: now_ms,
        }
    }

    async fn run(mut self, mut inbound: Streaming<v1::AgentFrame>) {
        let stop = self.shared.stop_sessions.clone();
        while !self.session.is_over() {
            let now = self.shared.now();
            let deadline = self.session.deadline(now).saturating_sub(now.mono);
            tokio::select! {
                biased;
                _ = self.close.changed() => {
                    let close = self.close.borrow_and_update().clone();
                    if let Some((reason, message)) = close {
                        self.input(Input::Close(reason, message)).await;
                    }
                }
                () = stop.cancelled() => {
                    self.input(Input::Close(Reason::Shutdown, "the controller stops".to_owned())).await;
                }
                Some(answer) = self.asked.next(), if !self.asked.is_empty() => match answer {
                    Answer::Input(input) => self.input(input).await,
                    Answer::Claimed(claim) => {
                        self.claim = Some(claim);
                        self.input(Input::Claimed(Ok(()))).await;
                    }
                },
                Some(command) = self.commands.recv() => self.command(command).await,
                frame = inbound.next(), if self.session.wants_input() => self.gulp(frame, &mut inbound).await,
                () = tokio::time::sleep(deadline) => {
                    self.note_heard();
                    self.input(Input::Tick).await;
                }
            }
        }
        self.finish().await;
    }

    /// Takes what has arrived, then lets it be committed together.
    async fn gulp(
        &mut self,
        first: Option<Result<v1::AgentFrame, Status>>,
        inbound: &mut Streaming<v1::AgentFrame>,
    ) {
        self.handle.heard_ms.store(self.shared.clock.now_ms(), Ordering::Relaxed);
        let mut next = first;
        let mut room = GULP;
        loop {
            let input = match next {
                Some(Ok(frame)) => match frame.try_into() {
                    Ok(frame) => Input::Frame(frame),
                    Err(error) => Input::Malformed(error.to_string()),
                },
                // A message that is too large or does not decode ends the stream as a broken line does.
                Some(Err(status)) => {
                    tracing::debug!(error = %Neutral(status.message()), "the stream broke");
                    Input::Gone
                }
                None => Input::Gone,
            };
            self.input(input).await;
            room -= 1;
            // Before the next one is taken: what was taken must be heard.
            if room == 0 || self.session.is_over() || !self.session.wants_input() {
                break;
            }
            match inbound.next().now_or_never() {
                Some(more) => next = more,
                None => break,
            }
        }
        self.input(Input::Drained).await;
    }

    async fn command(&mut self, command: Command) {
        let input = match command {
            Command::Dispatch(dispatch) => Input::Dispatch(dispatch),
            Command::Cancel(run) => Input::Cancel(run),
            Command::Leave(answer) => {
                self.leave = Some(answer);
                Input::Leave
            }
            Command::Probe(answer) => {
                self.probes.push(answer);
                Input::Probe
            }
            Command::Restart => Input::Restart,
        };
        self.input(input).await;
    }

    async fn input(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for effect in self.session.handle(input, self.shared.now()) {
                inputs.extend(self.act(effect).await);
            }
        }
    }

    async fn act(&mut self, effect: Effect) -> Option<Input> {
        let (host, store) = (self.peer.host, self.shared.store.clone());
        match effect {
            Effect::Claim(instance, kinds) => {
                self.handle.instance = instance;
                self.handle.kinds = Arc::new(kinds);
                self.asked
                    .push(claim(Arc::clone(&self.shared), self.peer.clone(), self.handle.clone()).boxed());
            }
            Effect::Open(request) => {
                let open = async move { Answer::Input(Input::Opened(store.open_session(*request).await)) };
                self.asked.push(open.boxed());
            }
            Effect::Up { name } => {
                self.handle.up.store(true, Ordering::Release);
                self.claim = None;
                tracing::info!(%name, "session up");
                self.shared.hub.hosts.wake(host);
            }
            Effect::UnknownRuns(runs) => {
                let (count, first) = (runs.len(), runs.first().map(ToString::to_string).unwrap_or_default());
                tracing::warn!(count, %first, "the agent has runs that are not on record here: they stay there");
            }
            Effect::Append(batch) => {
                let append = async move { Answer::Input(Input::Committed(store.append(batch).await)) };
                self.asked.push(append.boxed());
            }
            Effect::Refuse { run, epoch, message } => {
                tracing::warn!(%run, %message, "run refused");
                let now_ms = self.shared.clock.now_ms();
                let refuse = async move {
                    let result = store.refuse_run(host, epoch, run, message, now_ms).await;
                    Answer::Input(Input::Refused(run, result))
                };
                self.asked.push(refuse.boxed());
            }
            Effect::Reveal { run, epoch, secrets } => {
                let reveal = async move {
                    Answer::Input(Input::Revealed(run, store.reveal(host, epoch, run, secrets).await))
                };
                self.asked.push(reveal.boxed());
            }
            Effect::Withheld { run, secrets, why } => {
                let first = secrets.first().map(|secret| secret.id.as_str()).unwrap_or_default();
                let count = secrets.len();
                tracing::warn!(%run, %first, count, %why, "secrets withheld from an agent");
            }
            Effect::Send(frame) => {
                if self.out.send_timeout(Ok(frame.into()), SEND).await.is_err() {
                    return Some(Input::Gone);
                }
            }
            Effect::Changed(runs) => runs.into_iter().for_each(|run| self.shared.hub.runs.wake(run)),
            Effect::ProbeAnswered => {
                for probe in self.probes.drain(..) {
                    let _ = probe.send(());
                }
            }
            Effect::Left(left_behind) => {
                if let Some(leave) = self.leave.take() {
                    let _ = leave.send(left_behind);
                }
            }
            Effect::End(why) => tracing::info!(why = %Neutral(&why), "session over"),
        }
        None
    }

    /// Writes down when something last came, if something came.
    fn note_heard(&mut self) {
        let heard_ms = self.handle.heard_ms.load(Ordering::Relaxed);
        if heard_ms > self.noted_ms {
            self.noted_ms = heard_ms;
            let (store, host) = (self.shared.store.clone(), self.peer.host);
            self.shared.sessions.spawn(async move {
                if let Err(error) = store.seen(host, heard_ms).await {
                    tracing::warn!(%host, %error, "noting when a host was seen failed");
                }
            });
        }
    }

    async fn finish(mut self) {
        self.note_heard();
        let last = async { while self.asked.next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_WRITES, last).await;
        self.shared.hub.release(self.peer.host, self.handle.session);
    }
}

/// Makes this session the host's one; where another instance lives, both go and nobody is let in.
async fn claim(shared: Arc<Shared>, peer: AgentPeer, handle: Handle) -> Answer {
    let failed = |error| Answer::Input(Input::Claimed(Err(error)));
    let found = match shared.hub.claim(peer.host, handle).await {
        Ok(Ok(claim)) => return Answer::Claimed(claim),
        Ok(Err(found)) => found,
        Err(error) => return failed(error),
    };
    let detail = format!(
        "two agents lived with this identity, at {} and {}: enrol each of them anew",
        found.other.peer, peer.address
    );
    tracing::error!(host = %peer.host, one = %found.other.peer, other = %peer.address, "a clone: host quarantined");
    if let Err(error) = shared.store.quarantine(peer.host, detail.clone()).await {
        tracing::error!(host = %peer.host, %error, "the quarantine could not be written down");
    }
    found.other.close(Reason::Quarantined, &detail);
    shared.hub.hosts.wake(peer.host);
    failed(ClaimError::Clone)
}
