//! The session of one agent as pure logic: `handle(input, now)` gives effects, the driver in `link` acts.
//!
//! What must stay true: a frame is acked only after its commit; an event or frame is recorded once and in
//! order; an agent speaks only of its own runs; whatever it sends, this ends in a Goodbye, not a panic.

mod port;
mod secrets;

pub(crate) use port::{ClaimError, Effect, Identity, Input, Now};

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use postern_proto::event::{EventKind, LogFrame, RunEvent, RunOffset, StepId};
use postern_proto::ids::RunId;
use postern_proto::{WIRE_MAX, WIRE_MIN};

use self::secrets::Asks;
use super::wire::{AgentFrame, ControllerFrame, Hello, Reason};
use crate::store::{
    Batch, Dispatch, OpError, OpenRefusal, OpenRequest, Opened, Progress, RunBatch, StepProgress,
};

/// The first frame must be there by then.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Reported and not committed: more is not read from the agent, bytes.
const MAX_PENDING_BYTES: usize = 2 * 1024 * 1024;
/// The same in frames and events.
const MAX_PENDING_ITEMS: usize = 16 * 1024;
/// Steps with output in one run.
const MAX_STEPS: usize = 20_000;
/// Runs that are over and still remembered, so that what is sent again is known for a duplicate.
const MAX_DONE: usize = 4096;
/// An agent that is sent away comes back after about so long.
const RETRY_MS: u64 = 5_000;

enum Phase {
    AwaitHello { until: Duration },
    Claiming(Box<Hello>),
    Opening,
    Live,
    Over,
}

#[derive(Default)]
struct Track {
    event_seq: u64,
    committed: u64,
    steps: HashMap<StepId, StepTrack>,
    finished: bool,
    refused: bool,
}

#[derive(Clone, Copy, Default)]
struct StepTrack {
    at: StepProgress,
    committed: u64,
}

/// One session.
pub(crate) struct Session {
    me: Identity,
    phase: Phase,
    epoch: u64,
    runs: HashMap<RunId, Track>,
    done: Vec<RunId>,
    pending: Vec<RunBatch>,
    pending_bytes: usize,
    pending_items: usize,
    in_flight: Option<Vec<RunOffset>>,
    /// Duplicates: what is committed is said again.
    reack: HashSet<(RunId, Option<StepId>)>,
    early: Vec<Input>,
    asks: Asks,
    heard: Duration,
    ping: Option<Ping>,
    probing: bool,
    nonce: u64,
}

struct Ping {
    nonce: u64,
    until: Duration,
}

type Effects = Vec<Effect>;

impl Session {
    pub(crate) fn new(me: Identity, now: Now) -> Self {
        Self {
            me,
            phase: Phase::AwaitHello { until: now.mono + HELLO_DEADLINE },
            epoch: 0,
            runs: HashMap::new(),
            done: Vec::new(),
            pending: Vec::new(),
            pending_bytes: 0,
            pending_items: 0,
            in_flight: None,
            reack: HashSet::new(),
            early: Vec::new(),
            asks: Asks::default(),
            heard: now.mono,
            ping: None,
            probing: false,
            nonce: 0,
        }
    }

    /// False while so much waits to be committed that the agent has to wait, or before it may speak.
    pub(crate) fn wants_input(&self) -> bool {
        match self.phase {
            Phase::AwaitHello { .. } => true,
            Phase::Live => self.pending_bytes < MAX_PENDING_BYTES && self.pending_items < MAX_PENDING_ITEMS,
            Phase::Claiming(_) | Phase::Opening | Phase::Over => false,
        }
    }

    /// True when it will do nothing more.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// When to be told that time has passed, by the monotonic clock.
    pub(crate) fn deadline(&self, now: Now) -> Duration {
        let until = match &self.phase {
            Phase::AwaitHello { until } => *until,
            Phase::Live => self.ping.as_ref().map_or(self.heard + self.me.quiet, |ping| ping.until),
            _ => now.mono + self.me.quiet,
        };
        let left = u64::try_from(self.me.not_after_ms.saturating_sub(now.unix_ms)).unwrap_or(0);
        until.min(now.mono + Duration::from_millis(left))
    }

    pub(crate) fn handle(&mut self, input: Input, now: Now) -> Effects {
        let mut effects = Effects::new();
        if self.is_over() {
            return effects;
        }
        match input {
            Input::Frame(frame) => {
                self.heard = now.mono;
                self.frame(frame, now, &mut effects);
            }
            Input::Malformed(why) => self.protocol(format!("a malformed frame: {why}"), &mut effects),
            Input::Gone => self.end("the agent went away".to_owned(), &mut effects),
            Input::Drained => self.flush(now, &mut effects),
            Input::Claimed(result) => self.claimed(result, now, &mut effects),
            Input::Opened(result) => self.opened(result, now, &mut effects),
            Input::Committed(result) => self.committed(result, now, &mut effects),
            Input::Refused(run, result) => match result {
                Ok(()) => effects.push(Effect::Changed(vec![run])),
                Err(error) => self.store_failed(&error, &mut effects),
            },
            Input::Revealed(run, result) => self.revealed(run, result, &mut effects),
            Input::Close(reason, message) => self.goodbye(reason, message, 0, &mut effects),
            Input::Tick => self.tick(now, &mut effects),
            // What is asked for while the session comes up is done when it is up.
            other if !matches!(self.phase, Phase::Live) => self.early.push(other),
            Input::Dispatch(dispatch) => self.dispatch(dispatch, &mut effects),
            Input::Cancel(run) => effects.push(Effect::Send(ControllerFrame::Cancel(run))),
            Input::Leave => effects.push(Effect::Send(ControllerFrame::Leave)),
            Input::Restart => effects.push(Effect::Send(ControllerFrame::Restart)),
            Input::Probe => {
                self.probing = true;
                self.send_ping(now, &mut effects);
            }
        }
        effects
    }

    fn frame(&mut self, frame: AgentFrame, now: Now, effects: &mut Effects) {
        if let AgentFrame::Hello(hello) = frame {
            return match self.phase {
                Phase::AwaitHello { .. } => self.hello(hello, effects),
                _ => self.protocol("a second hello".to_owned(), effects),
            };
        }
        if !matches!(self.phase, Phase::Live) {
            return self.protocol("something before hello".to_owned(), effects);
        }
        match frame {
            AgentFrame::Hello(_) => {}
            AgentFrame::Event(event) => self.event(*event, effects),
            AgentFrame::Log(frame) => self.log(*frame, effects),
            // Each costs a commit and a line in the log: one a run.
            AgentFrame::Refused { run, message } => {
                let before = self.runs.get_mut(&run).map(|track| std::mem::replace(&mut track.refused, true));
                match before {
                    None => self.protocol(format!("a refusal of run {run}, which it was not given"), effects),
                    Some(true) => self.protocol(format!("a second refusal of run {run}"), effects),
                    Some(false) => effects.push(Effect::Refuse { run, epoch: self.epoch, message }),
                }
            }
            AgentFrame::Pong(nonce) => {
                if self.ping.as_ref().is_some_and(|ping| ping.nonce == nonce) {
                    self.ping = None;
                    if std::mem::take(&mut self.probing) {
                        effects.push(Effect::ProbeAnswered);
                    }
                }
            }
            AgentFrame::SecretsWanted { run, secrets } => self.wanted(run, secrets, now, effects),
            AgentFrame::Left(left_behind) => {
                self.flush(now, effects);
                effects.push(Effect::Left(left_behind));
                self.end("the agent left the host".to_owned(), effects);
            }
        }
    }

    fn hello(&mut self, hello: Box<Hello>, effects: &mut Effects) {
        if hello.host != self.me.host {
            return self
                .protocol(format!("it says it is {}, its certificate says otherwise", hello.host), effects);
        }
        if hello.wire_max < WIRE_MIN || hello.wire_min > WIRE_MAX {
            let message = format!(
                "this controller speaks wire versions {WIRE_MIN} to {WIRE_MAX}, the agent {} to {}",
                hello.wire_min, hello.wire_max
            );
            return self.goodbye(Reason::Version, message, 60_000, effects);
        }
        if hello.cluster.is_some_and(|cluster| cluster != self.me.cluster) {
            return self.protocol("it belongs to another controller".to_owned(), effects);
        }
        effects.push(Effect::Claim(hello.instance, hello.kinds.clone()));
        self.phase = Phase::Claiming(hello);
    }

    fn claimed(&mut self, result: Result<(), ClaimError>, now: Now, effects: &mut Effects) {
        let Phase::Claiming(hello) = std::mem::replace(&mut self.phase, Phase::Opening) else { return };
        match result {
            Ok(()) => effects.push(Effect::Open(Box::new(OpenRequest {
                host: self.me.host,
                key: self.me.key,
                epoch: hello.epoch,
                runs: hello.runs,
                floor: hello.floor,
                above: hello.above,
                facts: hello.facts,
                now_ms: now.unix_ms,
            }))),
            Err(ClaimError::Clone) => {
                let message = "another agent lives with this identity; enrol each of them anew";
                self.goodbye(Reason::Quarantined, message.to_owned(), 60_000, effects);
            }
            Err(ClaimError::Shed) => {
                self.goodbye(Reason::Shed, "too many at once".to_owned(), RETRY_MS, effects);
            }
        }
    }

    fn opened(
        &mut self,
        result: Result<Result<Opened, OpenRefusal>, OpError>,
        now: Now,
        effects: &mut Effects,
    ) {
        let opened = match result {
            Err(error) => return self.store_failed(&error, effects),
            Ok(Err(refusal)) => {
                let (reason, message) = match refusal {
                    OpenRefusal::Revoked => (Reason::Revoked, "this key is not good any more".to_owned()),
                    OpenRefusal::Unknown => (
                        Reason::Protocol,
                        "this host is not on record here: the controller was restored from a backup that is \
                         older than its enrolment; enrol it anew"
                            .to_owned(),
                    ),
                    OpenRefusal::Quarantined(why) => (Reason::Quarantined, why),
                    OpenRefusal::BehindAgent(what) => (
                        Reason::Protocol,
                        format!(
                            "the agent has seen {what} that are not on record here: this controller was \
                             restored from an older copy, or another one owns the host"
                        ),
                    ),
                    OpenRefusal::OtherHost(run) => {
                        (Reason::Protocol, format!("run {run} is not of this host"))
                    }
                };
                return self.goodbye(reason, message, 60_000, effects);
            }
            Ok(Ok(opened)) => opened,
        };
        self.phase = Phase::Live;
        self.epoch = opened.epoch;
        self.heard = now.mono;
        let unknown = opened.unknown;
        if !unknown.is_empty() {
            effects.push(Effect::UnknownRuns(unknown.clone()));
        }
        let acked = opened.progress.iter().map(offset).collect();
        self.runs.extend(opened.progress.into_iter().map(|progress| (progress.run, Track::from(progress))));
        effects.push(Effect::Up { name: opened.name });
        effects.push(Effect::Send(ControllerFrame::Welcome {
            cluster: self.me.cluster,
            epoch: self.epoch,
            session: self.me.session,
            wire: WIRE_MAX,
            acked,
            unknown,
            now_ms: now.unix_ms,
            renew: now.unix_ms >= self.me.not_before_ms.midpoint(self.me.not_after_ms),
        }));
        opened.dispatches.into_iter().for_each(|dispatch| self.send_dispatch(dispatch, effects));
        effects.extend(opened.cancels.into_iter().map(|run| Effect::Send(ControllerFrame::Cancel(run))));
        if !opened.ended.is_empty() {
            effects.push(Effect::Changed(opened.ended));
        }
        for input in std::mem::take(&mut self.early) {
            effects.extend(self.handle(input, now));
        }
    }

    /// One that was queued while the store was asked may be in the store's answer as well.
    fn dispatch(&mut self, dispatch: Dispatch, effects: &mut Effects) {
        if !self.runs.contains_key(&dispatch.run) {
            self.send_dispatch(dispatch, effects);
        }
    }

    fn send_dispatch(&mut self, dispatch: Dispatch, effects: &mut Effects) {
        self.runs.entry(dispatch.run).or_default();
        effects.push(Effect::Send(ControllerFrame::Dispatch { dispatch, epoch: self.epoch }));
    }

    fn event(&mut self, event: RunEvent, effects: &mut Effects) {
        let run = event.run;
        let Some(track) = self.runs.get_mut(&run) else {
            return self.protocol(format!("an event of run {run}, which is not its own"), effects);
        };
        if event.seq <= track.event_seq {
            self.reack.insert((run, None));
            return;
        }
        if event.seq != track.event_seq + 1 {
            let want = track.event_seq + 1;
            return self.protocol(format!("event {} of run {run}, want {want}", event.seq), effects);
        }
        if track.finished {
            return self.protocol(format!("an event of run {run} after its last"), effects);
        }
        let from = track.event_seq;
        track.event_seq = event.seq;
        track.finished = matches!(event.kind, EventKind::Finished { .. });
        self.pending_items += 1;
        self.pending_bytes += match &event.kind {
            EventKind::ResourceFinished { message, diff, .. } => 256 + message.len() + diff.len(),
            _ => 256,
        };
        self.batch(run, from).event(&event);
    }

    fn log(&mut self, frame: LogFrame, effects: &mut Effects) {
        let run = frame.run;
        let Some(track) = self.runs.get_mut(&run) else {
            return self.protocol(format!("output of run {run}, which is not its own"), effects);
        };
        let from_event = track.event_seq;
        let full = track.steps.len() >= MAX_STEPS;
        let step = match track.steps.get_mut(&frame.step) {
            Some(step) => step,
            None if full => return self.protocol(format!("run {run} has too many steps"), effects),
            None => track.steps.entry(frame.step.clone()).or_default(),
        };
        if frame.frame_no < step.at.next_frame {
            self.reack.insert((run, Some(frame.step)));
            return;
        }
        let from = step.at;
        if frame.frame_no > from.next_frame {
            let (got, want) = (frame.frame_no, from.next_frame);
            return self.protocol(format!("frame {got} of a step of run {run}, want {want}"), effects);
        }
        if frame.offset != from.offset(frame.stream) {
            let (got, want) = (frame.offset, from.offset(frame.stream));
            return self.protocol(format!("output of run {run} at byte {got}, want {want}"), effects);
        }
        step.at.advance(frame.stream, frame.body.stream_bytes());
        let to = step.at;
        self.pending_items += 1;
        if let postern_proto::event::LogBody::Data(data) = &frame.body {
            self.pending_bytes += data.len();
        }
        self.batch(run, from_event).frame(frame, from, to);
    }

    fn batch(&mut self, run: RunId, events_from: u64) -> &mut RunBatch {
        let index = match self.pending.iter().position(|batch| batch.run() == run) {
            Some(index) => index,
            None => {
                self.pending.push(RunBatch::new(run, events_from));
                self.pending.len() - 1
            }
        };
        &mut self.pending[index]
    }

    /// Commits what has gathered, one commit at a time, so that what arrives meanwhile shares the next.
    fn flush(&mut self, now: Now, effects: &mut Effects) {
        if !matches!(self.phase, Phase::Live) {
            return;
        }
        for (run, step) in std::mem::take(&mut self.reack) {
            let Some(track) = self.runs.get(&run) else { continue };
            let logs = step.and_then(|step| track.steps.get(&step).map(|at| (step, at.committed)));
            let offset = RunOffset { run, event_seq: track.committed, logs: logs.into_iter().collect() };
            effects.push(Effect::Send(ControllerFrame::Ack(offset)));
        }
        if self.in_flight.is_some() || self.pending.is_empty() {
            return;
        }
        let runs = std::mem::take(&mut self.pending);
        (self.pending_bytes, self.pending_items) = (0, 0);
        let acks = runs.iter().map(|batch| RunOffset {
            run: batch.run(),
            event_seq: batch.last_event(),
            logs: batch.steps().iter().map(|moved| (moved.step.clone(), moved.to.next_frame)).collect(),
        });
        self.in_flight = Some(acks.collect());
        effects.push(Effect::Append(Batch {
            host: self.me.host,
            epoch: self.epoch,
            now_ms: now.unix_ms,
            runs,
        }));
    }

    fn committed(&mut self, result: Result<(), OpError>, now: Now, effects: &mut Effects) {
        let Some(acks) = self.in_flight.take() else { return };
        if let Err(error) = result {
            return self.store_failed(&error, effects);
        }
        effects.push(Effect::Changed(acks.iter().map(|ack| ack.run).collect()));
        for ack in acks {
            if let Some(track) = self.runs.get_mut(&ack.run) {
                track.committed = ack.event_seq;
                for (step, next) in &ack.logs {
                    if let Some(step) = track.steps.get_mut(step) {
                        step.committed = *next;
                    }
                }
                if track.finished && track.committed == track.event_seq && !self.done.contains(&ack.run) {
                    self.done.push(ack.run);
                }
            }
            effects.push(Effect::Send(ControllerFrame::Ack(ack)));
        }
        if self.done.len() > MAX_DONE {
            for run in self.done.drain(..MAX_DONE / 2) {
                self.runs.remove(&run);
            }
        }
        self.flush(now, effects);
    }

    fn store_failed(&mut self, error: &OpError, effects: &mut Effects) {
        match error {
            OpError::Fenced => {
                self.goodbye(Reason::Replaced, "a newer session owns this host".to_owned(), 0, effects);
            }
            OpError::Gap { .. } | OpError::OtherHost(_) | OpError::NoSuchRun(_) => {
                self.protocol(error.to_string(), effects);
            }
            _ => {
                tracing::error!(host = %self.me.host, %error, cause = ?std::error::Error::source(error), "the store failed a session");
                let message = "the controller cannot write at the moment".to_owned();
                self.goodbye(Reason::Shed, message, RETRY_MS, effects);
            }
        }
    }

    fn tick(&mut self, now: Now, effects: &mut Effects) {
        if now.unix_ms >= self.me.not_after_ms {
            let message = "the certificate of this session has expired: renew and come back".to_owned();
            return self.goodbye(Reason::Shutdown, message, 0, effects);
        }
        match &self.phase {
            Phase::AwaitHello { until } if now.mono >= *until => {
                self.protocol("no hello in time".to_owned(), effects);
            }
            Phase::Live => match &self.ping {
                Some(ping) if now.mono >= ping.until => {
                    let message = "the agent did not answer in time".to_owned();
                    self.goodbye(Reason::Shutdown, message, 0, effects);
                }
                None if now.mono >= self.heard + self.me.quiet => self.send_ping(now, effects),
                _ => {}
            },
            _ => {}
        }
    }

    fn send_ping(&mut self, now: Now, effects: &mut Effects) {
        self.nonce += 1;
        self.ping = Some(Ping { nonce: self.nonce, until: now.mono + self.me.quiet / 2 });
        effects.push(Effect::Send(ControllerFrame::Ping(self.nonce)));
    }

    fn protocol(&mut self, why: String, effects: &mut Effects) {
        self.goodbye(Reason::Protocol, why, 60_000, effects);
    }

    fn goodbye(&mut self, reason: Reason, message: String, retry_after_ms: u64, effects: &mut Effects) {
        let why = format!("{reason:?}: {message}");
        effects.push(Effect::Send(ControllerFrame::Goodbye { reason, message, retry_after_ms }));
        self.end(why, effects);
    }

    fn end(&mut self, why: String, effects: &mut Effects) {
        self.phase = Phase::Over;
        effects.push(Effect::End(why));
    }
}

fn offset(progress: &Progress) -> RunOffset {
    RunOffset {
        run: progress.run,
        event_seq: progress.event_seq,
        logs: progress.steps.iter().map(|(step, at)| (step.clone(), at.next_frame)).collect(),
    }
}

impl From<Progress> for Track {
    fn from(progress: Progress) -> Self {
        let steps = progress.steps.into_iter();
        Self {
            event_seq: progress.event_seq,
            committed: progress.event_seq,
            steps: steps.map(|(step, at)| (step, StepTrack { at, committed: at.next_frame })).collect(),
            // The store takes what follows the last event as little as this does.
            finished: false,
            refused: false,
        }
    }
}

#[cfg(test)]
mod tests;
