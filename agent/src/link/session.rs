//! The life of the link, pure: events and the time go in, effects come out. Sockets, clocks, dice and the engine
//! are the driver's.
//!
//! At any moment there is at most one *live* session and at most one *attempt* at a new one. Both exist together
//! while a renewed certificate is taken into use: the new session is welcomed before the old one closes. What
//! always holds, and is tested by simulation: unless the identity was revoked or the agent is leaving, there is
//! a live session, an attempt, a renewal under way, or a time at which the next of them begins (T40).

mod renewal;
mod words;

use std::time::Duration;

use postern_proto::ids::ClusterId;
use postern_proto::{WIRE_MAX, WIRE_MIN};

use super::backoff::{Backoff, share};
use super::wire::{FromController, Goodbye, GoodbyeReason, ToController, Welcome};
use crate::engine::{Refusal, RefusalReason};

pub use words::{ConnId, Effect, End, Event, Level};

/// When something happens, and a number drawn evenly from all of `u32` for whoever needs one.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Monotonic, since the start of the process.
    pub at: Duration,
    /// Trusted time, milliseconds since the Unix epoch.
    pub unix_ms: i64,
    /// The dice.
    pub random: u32,
}

/// What the session is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The controller this agent belongs to.
    pub cluster: ClusterId,
    /// The highest owner epoch seen so far.
    pub epoch: u64,
    /// When the certificate begins and ends, seconds since the Unix epoch.
    pub validity_s: (i64, i64),
    /// The delays between tries.
    pub timing: Timing,
}

/// Delays and deadlines.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// After a failure that may pass soon.
    pub backoff: Backoff,
    /// After one that takes a person (quarantine, another cluster, no version in common): this, and up to as
    /// much again.
    pub slow: Duration,
    /// A session that lived this long was a good one: failures are counted anew.
    pub stable: Duration,
    /// From the connection to `Welcome`.
    pub greeting: Duration,
    /// At least this long between a failed renewal and the next.
    pub renewal_retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            slow: Duration::from_secs(60),
            stable: Duration::from_secs(30),
            greeting: Duration::from_secs(30),
            renewal_retry: Duration::from_secs(5),
        }
    }
}

/// No controller can send an agent away for longer.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// A dial has deadlines of its own; this one holds if they should fail.
const DIAL_DEADLINE: Duration = Duration::from_secs(180);
/// So many connections in a row that broke before `Welcome` look like a certificate that is not accepted.
const UNWELCOME: u32 = 3;

#[derive(Debug)]
struct Live {
    conn: ConnId,
    since: Duration,
}

#[derive(Debug, PartialEq)]
enum Stage {
    Dialling,
    Greeting,
}

#[derive(Debug)]
struct Attempt {
    conn: ConnId,
    stage: Stage,
    deadline: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum First {
    Dial,
    Renew,
}

#[derive(Debug)]
struct Retry {
    at: Duration,
    first: First,
}

/// How long to wait.
enum Delay {
    Normal(Duration),
    Slow(Duration),
}

/// The state of the link.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    next_conn: ConnId,
    live: Option<Live>,
    attempt: Option<Attempt>,
    retry: Option<Retry>,
    failures: u32,
    unwelcome: u32,
    renewing: bool,
    renew_at: Option<Duration>,
    renew_failures: u32,
    renewed_at: Option<Duration>,
    /// A certificate newer than the one in use is stored.
    stale: bool,
    leaving: bool,
    stopped: bool,
    out: Vec<Effect>,
}

impl Session {
    /// A link that has not begun: give it [`Event::Start`].
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            next_conn: 1,
            live: None,
            attempt: None,
            retry: None,
            failures: 0,
            unwelcome: 0,
            renewing: false,
            renew_at: None,
            renew_failures: 0,
            renewed_at: None,
            stale: false,
            leaving: false,
            stopped: false,
            out: Vec::new(),
        }
    }

    /// The connection of the live session.
    #[must_use]
    pub fn live(&self) -> Option<ConnId> {
        self.live.as_ref().map(|live| live.conn)
    }

    /// True once the identity was revoked: nothing is dialled any more.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.stopped
    }

    /// When [`Event::Tick`] is wanted.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        if self.stopped {
            return None;
        }
        let attempt = self.attempt.as_ref().map(|attempt| attempt.deadline);
        let retry = self.retry.as_ref().map(|retry| retry.at);
        let renew = self.renew_at.filter(|_| !self.renewing && !self.leaving);
        [attempt, retry, renew].into_iter().flatten().min()
    }

    /// Takes an event; what is to be done about it comes back, in order.
    pub fn handle(&mut self, event: Event, now: Moment) -> Vec<Effect> {
        if !self.stopped {
            self.take(event, now);
        }
        std::mem::take(&mut self.out)
    }

    fn take(&mut self, event: Event, now: Moment) {
        match event {
            Event::Start => self.start(now),
            Event::Tick => self.tick(now),
            Event::Dialled(conn) => self.dialled(conn, now),
            Event::DialFailed { conn, why, certificate_refused } => {
                self.note(Level::Warn, why);
                let first = if certificate_refused { self.renewal_allowed(now) } else { First::Dial };
                self.lost(conn, Delay::Normal(Duration::ZERO), first, now);
            }
            Event::Frame(conn, frame) => self.frame(conn, *frame, now),
            Event::Ended(conn, end) => self.ended(conn, end, now),
            Event::NotTaken { seq, run, refusal } => self.refuse(seq, run, refusal),
            Event::Renewed { validity_s } => self.renewed(validity_s, now),
            Event::RenewFailed { why, revoked: true } => self.stop(&why),
            Event::RenewFailed { why, revoked: false } => self.renew_failed(&why, now),
            Event::Removed { left_behind } => {
                let clean = left_behind.is_empty();
                if let Some(conn) = self.live() {
                    self.out.push(Effect::Send(conn, ToController::Left(left_behind)));
                }
                self.out.push(Effect::End { clean });
            }
        }
    }

    fn start(&mut self, now: Moment) {
        let (_, end) = self.settings.validity_s;
        if end.saturating_mul(1000) <= now.unix_ms {
            self.note(Level::Warn, "the certificate has expired: renewing it".into());
            self.renew(now);
        } else {
            self.plan_renewal(now.unix_ms, now);
            self.dial(now);
        }
    }

    fn tick(&mut self, now: Moment) {
        if let Some(attempt) = self.attempt.as_ref().filter(|attempt| attempt.deadline <= now.at) {
            let conn = attempt.conn;
            self.note(Level::Warn, "the controller does not answer Hello".into());
            self.lost(conn, Delay::Normal(Duration::ZERO), First::Dial, now);
        }
        if let Some(retry) = self.retry.take_if(|retry| retry.at <= now.at) {
            match retry.first {
                First::Dial => self.dial(now),
                First::Renew => self.renew(now),
            }
        }
        if !self.leaving && self.renew_at.is_some_and(|at| at <= now.at) {
            self.renew(now);
        }
    }

    fn dial(&mut self, now: Moment) {
        if self.attempt.is_some() || self.leaving {
            return;
        }
        let conn = self.next_conn;
        self.next_conn += 1;
        self.retry = None;
        self.stale = false;
        self.attempt = Some(Attempt { conn, stage: Stage::Dialling, deadline: now.at + DIAL_DEADLINE });
        self.out.push(Effect::Dial(conn));
    }

    fn dialled(&mut self, conn: ConnId, now: Moment) {
        match &mut self.attempt {
            Some(attempt) if attempt.conn == conn && attempt.stage == Stage::Dialling => {
                attempt.stage = Stage::Greeting;
                attempt.deadline = now.at + self.settings.timing.greeting;
                self.out.push(Effect::Greet(conn));
            }
            _ => self.out.push(Effect::Close(conn)),
        }
    }

    fn frame(&mut self, conn: ConnId, frame: FromController, now: Moment) {
        if self.live() == Some(conn) {
            self.live_frame(conn, frame, now);
        } else if self.attempt.as_ref().is_some_and(|it| it.conn == conn && it.stage == Stage::Greeting) {
            match frame {
                FromController::Welcome(welcome) => self.welcome(conn, welcome, now),
                FromController::Goodbye(goodbye) => self.goodbye(conn, goodbye, now),
                FromController::Unknown => {}
                _ => self.invalid(conn, "the controller did not begin with Welcome", now),
            }
        }
    }

    fn live_frame(&mut self, conn: ConnId, frame: FromController, now: Moment) {
        match frame {
            FromController::Welcome(_) => self.invalid(conn, "the controller said Welcome twice", now),
            FromController::Dispatch { mut dispatch, not_after_ms } => {
                if dispatch.epoch < self.settings.epoch {
                    let refusal = Refusal {
                        reason: RefusalReason::StaleEpoch,
                        message: format!("epoch {} is behind {}", dispatch.epoch, self.settings.epoch),
                    };
                    self.refuse(dispatch.seq, dispatch.run.to_string(), refusal);
                } else if self.leaving {
                    let message = "the agent is leaving this host".to_owned();
                    let refusal = Refusal { reason: RefusalReason::Busy, message };
                    self.refuse(dispatch.seq, dispatch.run.to_string(), refusal);
                } else {
                    dispatch.expired = not_after_ms.is_some_and(|at| now.unix_ms > at);
                    self.out.push(Effect::Dispatch(dispatch));
                }
            }
            FromController::BadDispatch { seq, run, refusal } => self.refuse(seq, run, refusal),
            FromController::Ack(offset) => self.out.push(Effect::Acked(offset)),
            FromController::Cancel(run) => self.out.push(Effect::Cancel(run)),
            FromController::Secrets(run, answers) => self.out.push(Effect::Secrets(run, answers)),
            FromController::Ping(nonce) => self.out.push(Effect::Send(conn, ToController::Pong(nonce))),
            FromController::Goodbye(goodbye) => self.goodbye(conn, goodbye, now),
            FromController::Leave if self.leaving => {}
            FromController::Leave => {
                self.leaving = true;
                self.retry = None;
                self.note(Level::Info, "told to leave: removing the agent from this host".into());
                if let Some(attempt) = self.attempt.take() {
                    self.out.push(Effect::Close(attempt.conn));
                }
                self.out.push(Effect::Remove);
            }
            // One that leaves has its own end.
            FromController::Restart if self.leaving => {}
            FromController::Restart => {
                self.note(Level::Info, "told to restart".into());
                self.out.push(Effect::Restart);
            }
            FromController::Unknown => {}
        }
    }

    fn welcome(&mut self, conn: ConnId, welcome: Welcome, now: Moment) {
        let slow = Delay::Slow(Duration::ZERO);
        if welcome.cluster != self.settings.cluster {
            let text = format!(
                "this agent belongs to {}, the controller that answers is {}",
                self.settings.cluster, welcome.cluster
            );
            self.note(Level::Error, text);
            return self.lost(conn, slow, First::Dial, now);
        }
        if welcome.epoch < self.settings.epoch {
            let text = format!(
                "the controller offers owner epoch {}, this host has seen {}: it is not its owner any more, \
                 or was restored from an old backup",
                welcome.epoch, self.settings.epoch
            );
            self.note(Level::Error, text);
            return self.lost(conn, slow, First::Dial, now);
        }
        if !(WIRE_MIN..=WIRE_MAX).contains(&welcome.wire) {
            let text = format!("the controller speaks wire version {}, which this agent lacks", welcome.wire);
            self.note(Level::Error, text);
            return self.lost(conn, slow, First::Dial, now);
        }
        self.attempt = None;
        self.retry = None;
        self.unwelcome = 0;
        if let Some(old) = self.live.replace(Live { conn, since: now.at }) {
            self.out.push(Effect::Close(old.conn));
        }
        if welcome.epoch > self.settings.epoch {
            self.settings.epoch = welcome.epoch;
            self.out.push(Effect::SetEpoch(welcome.epoch));
        }
        self.out.push(Effect::LearnTime(conn, welcome.now_ms));
        self.out.push(Effect::Attach { conn, acked: welcome.acked, hold: welcome.unknown });
        self.note(Level::Info, format!("session {} is up, epoch {}", welcome.session, welcome.epoch));
        self.plan_renewal(welcome.now_ms, now);
        if self.stale {
            self.dial(now);
        } else if welcome.renew && self.renewal_allowed(now) == First::Renew {
            self.renew(now);
        }
    }

    fn goodbye(&mut self, conn: ConnId, goodbye: Goodbye, now: Moment) {
        let Goodbye { reason, message, retry_after } = goodbye;
        let (level, delay, what) = match reason {
            GoodbyeReason::Revoked => return self.stop(&message),
            // The old session of a hand-over ends like this; anything else is another agent with this key.
            GoodbyeReason::Replaced => {
                let least = retry_after.max(Duration::from_secs(5));
                (Level::Warn, Delay::Normal(least), "a newer session took over")
            }
            GoodbyeReason::Quarantined => {
                (Level::Error, Delay::Slow(retry_after), "this identity is quarantined")
            }
            GoodbyeReason::Protocol => {
                (Level::Error, Delay::Slow(retry_after), "the controller did not understand this agent")
            }
            GoodbyeReason::Version => {
                (Level::Error, Delay::Slow(retry_after), "no wire version in common with the controller")
            }
            GoodbyeReason::Shed => (Level::Info, Delay::Normal(retry_after), "the controller is busy"),
            GoodbyeReason::Shutdown => (Level::Info, Delay::Normal(retry_after), "the controller stops"),
            GoodbyeReason::Other => {
                (Level::Warn, Delay::Normal(retry_after), "the controller ended the session")
            }
        };
        self.note(level, if message.is_empty() { what.to_owned() } else { format!("{what}: {message}") });
        self.lost(conn, delay, First::Dial, now);
    }

    fn ended(&mut self, conn: ConnId, end: End, now: Moment) {
        let greeting = self.attempt.as_ref().is_some_and(|attempt| attempt.conn == conn);
        if !greeting && self.live() != Some(conn) {
            return;
        }
        let (mut first, mut delay) = (First::Dial, Delay::Normal(Duration::ZERO));
        match end {
            End::Closed => self.note(Level::Warn, "the controller closed the session".into()),
            End::Unavailable(why) => {
                self.note(Level::Warn, format!("the controller is not available: {why}"))
            }
            End::Broke(why) => {
                self.note(Level::Warn, format!("the connection broke: {why}"));
                if greeting {
                    // In TLS 1.3 a certificate that is not accepted shows only as a connection that breaks
                    // after the handshake.
                    self.unwelcome = self.unwelcome.saturating_add(1);
                    if self.unwelcome >= UNWELCOME {
                        first = self.renewal_allowed(now);
                    }
                }
            }
            End::Refused(why) => {
                self.note(Level::Error, format!("the controller does not let this agent in: {why}"));
                first = self.renewal_allowed(now);
            }
            End::Revoked(why) => return self.stop(&why),
            End::Invalid(why) => {
                self.note(Level::Error, format!("the controller sent what cannot be read: {why}"));
                delay = Delay::Slow(Duration::ZERO);
            }
        }
        self.lost(conn, delay, first, now);
    }

    fn invalid(&mut self, conn: ConnId, what: &str, now: Moment) {
        self.note(Level::Error, what.to_owned());
        self.lost(conn, Delay::Slow(Duration::ZERO), First::Dial, now);
    }

    /// A connection is of no use any more: the next is planned, unless another is live or under way.
    fn lost(&mut self, conn: ConnId, delay: Delay, first: First, now: Moment) {
        if self.live.as_ref().is_some_and(|live| live.conn == conn) {
            let live = self.live.take();
            if live.is_some_and(|live| now.at.saturating_sub(live.since) >= self.settings.timing.stable) {
                self.failures = 0;
            }
        } else if self.attempt.as_ref().is_some_and(|attempt| attempt.conn == conn) {
            self.attempt = None;
        } else {
            return;
        }
        self.out.push(Effect::Close(conn));
        if self.attempt.is_none() && !self.leaving {
            self.plan(delay, first, now);
        }
    }

    fn plan(&mut self, delay: Delay, mut first: First, now: Moment) {
        if self.settings.validity_s.1.saturating_mul(1000) <= now.unix_ms {
            first = self.renewal_allowed(now);
        }
        self.failures = self.failures.saturating_add(1);
        let timing = &self.settings.timing;
        let wait = match delay {
            Delay::Normal(least) => {
                least.min(MAX_RETRY_AFTER) + timing.backoff.delay(self.failures, now.random)
            }
            Delay::Slow(least) => {
                least.min(MAX_RETRY_AFTER).max(timing.slow) + share(timing.slow, now.random)
            }
        };
        self.retry = Some(Retry { at: now.at + wait, first });
    }

    fn refuse(&mut self, seq: u64, run: String, refusal: Refusal) {
        self.note(Level::Warn, format!("dispatch {seq} refused: {}", refusal.message));
        // Without a session it is not lost: what was not taken is dispatched again.
        if let Some(conn) = self.live() {
            self.out.push(Effect::Send(conn, ToController::Refused { seq, run, refusal }));
        }
    }

    fn stop(&mut self, why: &str) {
        self.note(
            Level::Error,
            format!(
                "the controller has revoked this host ({why}): nothing is dialled any more; the agent stays \
                 installed, `postern-agent uninstall` removes it"
            ),
        );
        let open = self.live.take().map(|it| it.conn).into_iter();
        self.out.extend(open.chain(self.attempt.take().map(|it| it.conn)).map(Effect::Close));
        self.retry = None;
        self.renew_at = None;
        self.stopped = true;
    }

    fn note(&mut self, level: Level, text: String) {
        self.out.push(Effect::Note(level, text));
    }
}
