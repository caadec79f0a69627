//! Between the session's own words and the generated messages; what the controller sends is checked here.

use std::time::Duration;

use postern_proto::convert::WireError;
use postern_proto::event::RunOffset;
use postern_proto::ids::{ClusterId, PlanHash, RunId, SecretRef, SessionId};
use postern_proto::plan::Terms;
use postern_proto::{MAX_PLAN_BYTES, WIRE_MAX, WIRE_MIN, spec, v1};

use super::HelloFacts;
use crate::engine::{
    Dispatch, MAX_SECRET_BYTES, NoSecret, Outgoing, Refusal, RefusalReason, SecretAnswer, SecretText,
    Snapshot,
};

/// The longest text of the controller that is kept for people, characters.
const MAX_TEXT: usize = 300;

/// What the controller says.
#[derive(Clone, Debug)]
pub enum FromController {
    /// The answer to `Hello`.
    Welcome(Welcome),
    /// A plan.
    Dispatch {
        /// The plan; `expired` is not decided yet.
        dispatch: Dispatch,
        /// Not to be started after this time of the controller's, milliseconds since the Unix epoch.
        not_after_ms: Option<i64>,
    },
    /// A plan that cannot even be handed on: refused, and the session goes on.
    BadDispatch {
        /// Its number.
        seq: u64,
        /// Its run as it was written.
        run: String,
        /// Why.
        refusal: Refusal,
    },
    /// Committed there.
    Ack(RunOffset),
    /// End a run.
    Cancel(RunId),
    /// The secrets of a run.
    Secrets(RunId, Vec<SecretAnswer>),
    /// To be answered.
    Ping(u64),
    /// The session ends.
    Goodbye(Goodbye),
    /// Remove yourself.
    Leave,
    /// End, to be started anew.
    Restart,
    /// A kind of frame that this build does not know.
    Unknown,
}

/// The controller's half of a session's beginning.
#[derive(Clone, Debug)]
pub struct Welcome {
    /// Which controller.
    pub cluster: ClusterId,
    /// The owner epoch of this session.
    pub epoch: u64,
    /// The session.
    pub session: SessionId,
    /// The wire version that is spoken.
    pub wire: u32,
    /// What it has committed.
    pub acked: Vec<RunOffset>,
    /// Runs it does not know.
    pub unknown: Vec<RunId>,
    /// Its time, milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// It wants the certificate renewed.
    pub renew: bool,
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoodbyeReason {
    /// It does not say, or says what this build does not know.
    Other,
    /// The controller stops.
    Shutdown,
    /// Too many at once.
    Shed,
    /// A newer session of this identity took over.
    Replaced,
    /// Two live sessions with this identity.
    Quarantined,
    /// This identity is no longer wanted.
    Revoked,
    /// This agent said something wrong.
    Protocol,
    /// No wire version in common.
    Version,
}

/// The end of a session as the controller puts it.
#[derive(Clone, Debug)]
pub struct Goodbye {
    /// Why.
    pub reason: GoodbyeReason,
    /// For people.
    pub message: String,
    /// Not before this.
    pub retry_after: Duration,
}

/// What the session says beside runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToController {
    /// The answer to a ping.
    Pong(u64),
    /// A plan is not taken.
    Refused {
        /// Its number.
        seq: u64,
        /// Its run as it was written.
        run: String,
        /// Why.
        refusal: Refusal,
    },
    /// This agent has removed itself.
    Left(Vec<String>),
}

/// Text of a peer for people: one line, printable, not long.
pub(crate) fn readable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}

impl TryFrom<v1::ControllerFrame> for FromController {
    type Error = WireError;

    fn try_from(frame: v1::ControllerFrame) -> Result<Self, WireError> {
        use v1::controller_frame::Kind;
        Ok(match frame.kind {
            None => Self::Unknown,
            Some(Kind::Welcome(it)) => Self::Welcome(it.try_into()?),
            Some(Kind::Dispatch(it)) => dispatch(it),
            Some(Kind::Ack(it)) => Self::Ack(it.offset.ok_or(WireError::Missing("offset"))?.try_into()?),
            Some(Kind::Cancel(it)) => Self::Cancel(it.run_id.parse()?),
            Some(Kind::Ping(it)) => Self::Ping(it.nonce),
            Some(Kind::Goodbye(it)) => Self::Goodbye(it.into()),
            Some(Kind::Secrets(it)) => {
                let answers = it.values.into_iter().map(answer).collect::<Result<_, _>>()?;
                Self::Secrets(it.run_id.parse()?, answers)
            }
            Some(Kind::Leave(_)) => Self::Leave,
            Some(Kind::Restart(_)) => Self::Restart,
        })
    }
}

impl TryFrom<v1::Welcome> for Welcome {
    type Error = WireError;

    fn try_from(it: v1::Welcome) -> Result<Self, WireError> {
        Ok(Self {
            cluster: it.cluster_id.parse()?,
            epoch: it.epoch,
            session: it.session_id.parse()?,
            wire: it.wire,
            acked: it.acked.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            unknown: it.unknown_runs.iter().map(|id| id.parse()).collect::<Result<_, _>>()?,
            now_ms: it.now_unix_ns.div_euclid(1_000_000),
            renew: it.renew,
        })
    }
}

impl From<v1::Goodbye> for Goodbye {
    fn from(it: v1::Goodbye) -> Self {
        let reason = match it.reason() {
            v1::GoodbyeReason::Unspecified => GoodbyeReason::Other,
            v1::GoodbyeReason::Shutdown => GoodbyeReason::Shutdown,
            v1::GoodbyeReason::Shed => GoodbyeReason::Shed,
            v1::GoodbyeReason::Replaced => GoodbyeReason::Replaced,
            v1::GoodbyeReason::Quarantined => GoodbyeReason::Quarantined,
            v1::GoodbyeReason::Revoked => GoodbyeReason::Revoked,
            v1::GoodbyeReason::Protocol => GoodbyeReason::Protocol,
            v1::GoodbyeReason::Version => GoodbyeReason::Version,
        };
        let retry_after = Duration::from_millis(it.retry_after_ms);
        Self { reason, message: readable(&it.message), retry_after }
    }
}

fn dispatch(it: v1::Dispatch) -> FromController {
    let refuse = |reason, message: String| {
        let run = it.run_id.chars().take(64).collect();
        FromController::BadDispatch { seq: it.seq, run, refusal: Refusal { reason, message } }
    };
    if it.plan.len() > MAX_PLAN_BYTES {
        let message = format!("the plan has {} bytes, the limit is {MAX_PLAN_BYTES}", it.plan.len());
        return refuse(RefusalReason::Malformed, message);
    }
    if it.seq == 0 {
        return refuse(RefusalReason::Malformed, "the dispatch has no number".into());
    }
    let run = match it.run_id.parse::<RunId>() {
        Ok(run) => run,
        Err(error) => return refuse(RefusalReason::Malformed, error.to_string()),
    };
    let terms = match Terms::try_from(it.terms.unwrap_or_default()) {
        Ok(terms) => terms,
        Err(error) => return refuse(RefusalReason::Malformed, error.to_string()),
    };
    let hash = match PlanHash::try_from(it.plan_sha256.as_ref()) {
        Ok(hash) => hash,
        Err(error) => return refuse(RefusalReason::BadHash, error.to_string()),
    };
    FromController::Dispatch {
        dispatch: Dispatch { seq: it.seq, run, plan: it.plan, hash, epoch: it.epoch, terms, expired: false },
        not_after_ms: Some(it.not_after_unix_ms).filter(|at| *at != 0),
    }
}

/// A value that cannot be used is as good as none, and says why; the session goes on.
fn answer(it: v1::SecretValue) -> Result<SecretAnswer, WireError> {
    let secret: SecretRef = it.secret.ok_or(WireError::Missing("secret"))?.try_into()?;
    let value = if !it.refused.is_empty() {
        let why = readable(&it.refused);
        Err(match it.retry_after_ms {
            0 => NoSecret::Never(why),
            ms => NoSecret::NotNow { why, after: Duration::from_millis(ms) },
        })
    } else if it.value.len() > MAX_SECRET_BYTES {
        let why = format!("the value has {} bytes, the limit is {MAX_SECRET_BYTES}", it.value.len());
        Err(NoSecret::Never(why))
    } else {
        String::from_utf8(it.value.to_vec()).map(SecretText::new).map_err(|_| {
            let why = "the value is not text (UTF-8), which is all that can be filled in: set it anew, in base64 \
                       where it is binary";
            NoSecret::Never(why.to_owned())
        })
    };
    Ok(SecretAnswer { secret, value })
}

/// The first frame of a session.
pub(crate) fn hello(who: &HelloFacts, cluster: ClusterId, have: Snapshot, now_ns: i64) -> v1::AgentFrame {
    let kinds = spec::KINDS.iter().map(|kind| v1::KindSupport {
        kind: kind.name.to_owned(),
        schema_min: 1,
        schema_max: kind.schema,
    });
    agent_frame(v1::agent_frame::Kind::Hello(v1::Hello {
        host_id: who.host.to_string(),
        boot_id: who.boot.to_string(),
        instance: who.instance.to_string(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        wire_min: WIRE_MIN,
        wire_max: WIRE_MAX,
        epoch: have.epoch,
        cluster_id: cluster.to_string(),
        kinds: kinds.collect(),
        runs: have.runs.into_iter().map(Into::into).collect(),
        dispatch_floor: have.dispatch_floor,
        dispatches_above: have.dispatches_above,
        facts: Some(v1::HostFacts {
            hostname: who.facts.hostname.clone(),
            os_id: who.facts.os_id.clone(),
            os_version: who.facts.os_version.clone(),
            arch: who.facts.arch.clone(),
            memory_bytes: who.facts.memory_bytes,
            swap_bytes: who.facts.swap_bytes,
            disk_free_bytes: who.facts.disk_free_bytes,
            var_free_bytes: who.facts.var_free_bytes,
            ssh_ports: who.facts.ssh_ports.iter().map(|port| u32::from(*port)).collect(),
            now_unix_ns: now_ns,
        }),
    }))
}

pub(crate) fn agent_frame(kind: v1::agent_frame::Kind) -> v1::AgentFrame {
    v1::AgentFrame { kind: Some(kind) }
}

impl From<ToController> for v1::AgentFrame {
    fn from(it: ToController) -> Self {
        use v1::agent_frame::Kind;
        agent_frame(match it {
            ToController::Pong(nonce) => Kind::Pong(v1::Pong { nonce }),
            ToController::Refused { seq, run, refusal } => Kind::Refused(v1::DispatchRefused {
                seq,
                run_id: run,
                reason: reason(refusal.reason).into(),
                message: refusal.message,
            }),
            ToController::Left(left_behind) => Kind::Left(v1::Left { left_behind }),
        })
    }
}

pub(crate) fn outgoing(it: Outgoing) -> v1::AgentFrame {
    agent_frame(match it {
        Outgoing::Event(event) => v1::agent_frame::Kind::Event(event.into()),
        Outgoing::Log(frame) => v1::agent_frame::Kind::Log(frame.into()),
        Outgoing::SecretsWanted { run, secrets } => v1::agent_frame::Kind::SecretsWanted(v1::SecretsWanted {
            run_id: run.to_string(),
            secrets: secrets.into_iter().map(Into::into).collect(),
        }),
    })
}

fn reason(reason: RefusalReason) -> v1::RefusalReason {
    match reason {
        RefusalReason::BadHash => v1::RefusalReason::BadHash,
        RefusalReason::Malformed => v1::RefusalReason::Malformed,
        RefusalReason::UnknownKind => v1::RefusalReason::UnknownKind,
        RefusalReason::UnknownSchema => v1::RefusalReason::UnknownSchema,
        RefusalReason::StaleEpoch => v1::RefusalReason::StaleEpoch,
        RefusalReason::Expired => v1::RefusalReason::Expired,
        RefusalReason::NoRoom => v1::RefusalReason::NoRoom,
        RefusalReason::Busy => v1::RefusalReason::Busy,
        RefusalReason::RunIdReused => v1::RefusalReason::RunIdReused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn trap_33_garbage_decodes_to_a_checked_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            use prost::Message as _;
            if let Ok(frame) = v1::ControllerFrame::decode(bytes.as_slice()) {
                let _ = FromController::try_from(frame);
            }
        }
    }

    fn good() -> v1::Dispatch {
        v1::Dispatch {
            seq: 1,
            run_id: RunId::generate().to_string(),
            plan: b"plan".as_slice().into(),
            plan_sha256: PlanHash::of(b"plan").as_bytes().to_vec().into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_dispatch_that_cannot_be_read_is_refused_and_not_fatal() {
        assert!(matches!(dispatch(good()), FromController::Dispatch { not_after_ms: None, .. }));
        for (bad, want) in [
            (v1::Dispatch { run_id: "../x".into(), ..good() }, RefusalReason::Malformed),
            (v1::Dispatch { plan_sha256: b"short".as_slice().into(), ..good() }, RefusalReason::BadHash),
            (v1::Dispatch { seq: 0, ..good() }, RefusalReason::Malformed),
            (v1::Dispatch { plan: vec![0; MAX_PLAN_BYTES + 1].into(), ..good() }, RefusalReason::Malformed),
        ] {
            let FromController::BadDispatch { refusal, .. } = dispatch(bad) else { panic!("{want:?}") };
            assert_eq!(refusal.reason, want);
        }
    }

    #[test]
    fn values_of_secrets_by_table() {
        let value = |value: &[u8], refused: &str| v1::SecretValue {
            secret: Some(v1::SecretRef { id: "db/password".into(), version: 2 }),
            value: value.to_vec().into(),
            refused: refused.into(),
            retry_after_ms: 0,
        };
        let cases = [
            (value(b"hunter2", ""), Ok("hunter2")),
            (value(b"", ""), Ok("")),
            (value(&[b'x'; MAX_SECRET_BYTES + 1], ""), Err("the limit is 65536")),
            (value(b"\xff", ""), Err("not text (UTF-8)")),
            (value(b"hunter2", "gone\x1b[31m"), Err("gone [31m")),
        ];
        for (it, want) in cases {
            let got = answer(it).unwrap();
            assert_eq!((got.secret.id.as_str(), got.secret.version), ("db/password", 2));
            match (got.value, want) {
                (Ok(got), Ok(want)) => assert_eq!(got, SecretText::new(want.into())),
                (Err(NoSecret::Never(got)), Err(want)) => assert!(got.contains(want), "{got}"),
                (got, want) => panic!("{got:?}, wanted {want:?}"),
            }
        }
        let later = answer(v1::SecretValue { retry_after_ms: 7, ..value(b"", "too often") }).unwrap();
        let (why, after) = ("too often".to_owned(), Duration::from_millis(7));
        assert_eq!(later.value, Err(NoSecret::NotNow { why, after }));
        // One that cannot be used is alone in that.
        let run = RunId::generate();
        let frame = |values| v1::ControllerFrame {
            kind: Some(v1::controller_frame::Kind::Secrets(v1::Secrets { run_id: run.to_string(), values })),
        };
        let good = frame(vec![value(b"\xff", ""), value(b"hunter2", "")]);
        let good = FromController::try_from(good).unwrap();
        assert!(!format!("{good:?}").contains("hunter2"), "{good:?}");
        let FromController::Secrets(of, answers) = good else { panic!("{good:?}") };
        assert_eq!(of, run);
        assert_eq!(answers.iter().map(|it| it.value.is_ok()).collect::<Vec<_>>(), [false, true]);
        // Ids are typed: one that cannot be is no answer to anything.
        for secret in
            [None, Some(v1::SecretRef { id: "../x".into(), version: 1 }), Some(v1::SecretRef::default())]
        {
            let bad = v1::SecretValue { secret, ..value(b"x", "") };
            assert!(FromController::try_from(frame(vec![bad])).is_err());
        }
    }

    #[test]
    fn text_of_a_peer_is_made_harmless() {
        assert_eq!(readable("a\x1b[31m\nb"), "a [31m b");
        assert_eq!(readable(&"x".repeat(1000)).len(), MAX_TEXT);
    }
}
