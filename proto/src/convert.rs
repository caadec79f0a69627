//! Between generated messages and the crate's own types. What comes from a peer is checked here, once.

use crate::event::{
    EventKind, LogBody, LogFrame, Outcome, RunEvent, RunOffset, RunState, StepEnd, StepId, Stream,
};
use crate::ids::{IdError, PlanHash, RunId, SecretRef};
use crate::plan::{Approval, Terms};
use crate::{MAX_FRAME_BYTES, text, v1};

/// The longest line for people in an event, bytes.
const MAX_TEXT: usize = 16 * 1024;
/// The longest diff in an event, bytes.
const MAX_DIFF: usize = 256 * 1024;

/// Why a message of a peer is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// An id that is none.
    #[error(transparent)]
    Id(#[from] IdError),
    /// A field that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field out of its range.
    #[error("{what}: {why}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
}

fn invalid<T>(what: &'static str, why: impl Into<String>) -> Result<T, WireError> {
    Err(WireError::Invalid { what, why: why.into() })
}

fn bounded(what: &'static str, text: String, limit: usize) -> Result<String, WireError> {
    if text.len() > limit {
        invalid(what, format!("{} bytes, the limit is {limit}", text.len()))
    } else {
        Ok(text)
    }
}

fn attempt(attempt: u32) -> Result<u32, WireError> {
    if attempt == 0 { invalid("attempt", "counts from 1") } else { Ok(attempt) }
}

fn step_id(address: &str, number: u32, step: u32) -> Result<StepId, WireError> {
    Ok(StepId { address: address.parse()?, attempt: attempt(number)?, step })
}

/// SHA-256 in hex, or nothing.
fn digest(text: String) -> Result<String, WireError> {
    let valid = text.is_empty() || text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if valid { Ok(text) } else { invalid("digest", "want 64 hex digits") }
}

impl From<SecretRef> for v1::SecretRef {
    fn from(secret: SecretRef) -> Self {
        Self { id: secret.id, version: secret.version }
    }
}

impl TryFrom<v1::SecretRef> for SecretRef {
    type Error = WireError;

    fn try_from(secret: v1::SecretRef) -> Result<Self, WireError> {
        if !text::is_secret_name(&secret.id) || secret.version == 0 {
            return invalid("secret", "want a name and a version from 1");
        }
        Ok(Self { id: secret.id, version: secret.version })
    }
}

impl From<Terms> for v1::RunTerms {
    fn from(terms: Terms) -> Self {
        Self {
            check: terms.check,
            undo_of: terms.undo_of.map(|run| run.to_string()).unwrap_or_default(),
            done: terms.done.into_iter().map(String::from).collect(),
            approved: terms.approved.into_iter().map(v1::Approval::from).collect(),
        }
    }
}

impl TryFrom<v1::RunTerms> for Terms {
    type Error = WireError;

    fn try_from(terms: v1::RunTerms) -> Result<Self, WireError> {
        Ok(Self {
            check: terms.check,
            undo_of: if terms.undo_of.is_empty() { None } else { Some(terms.undo_of.parse()?) },
            done: terms.done.iter().map(|address| address.parse()).collect::<Result<_, _>>()?,
            approved: terms.approved.into_iter().map(Approval::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl From<Approval> for v1::Approval {
    fn from(approval: Approval) -> Self {
        Self { address: approval.address.into(), seen: approval.seen }
    }
}

impl TryFrom<v1::Approval> for Approval {
    type Error = WireError;

    fn try_from(approval: v1::Approval) -> Result<Self, WireError> {
        Ok(Self { address: approval.address.parse()?, seen: digest(approval.seen)? })
    }
}

impl From<Outcome> for v1::Outcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Unchanged => Self::Unchanged,
            Outcome::Changed => Self::Changed,
            Outcome::Failed => Self::Failed,
            Outcome::Skipped => Self::Skipped,
            Outcome::Interrupted => Self::Interrupted,
            Outcome::WouldChange => Self::WouldChange,
        }
    }
}

impl TryFrom<v1::Outcome> for Outcome {
    type Error = WireError;

    fn try_from(outcome: v1::Outcome) -> Result<Self, WireError> {
        Ok(match outcome {
            v1::Outcome::Unspecified => return Err(WireError::Missing("outcome")),
            v1::Outcome::Unchanged => Self::Unchanged,
            v1::Outcome::Changed => Self::Changed,
            v1::Outcome::Failed => Self::Failed,
            v1::Outcome::Skipped => Self::Skipped,
            v1::Outcome::Interrupted => Self::Interrupted,
            v1::Outcome::WouldChange => Self::WouldChange,
        })
    }
}

impl From<RunState> for v1::RunState {
    fn from(state: RunState) -> Self {
        match state {
            RunState::Queued => Self::Queued,
            RunState::Running => Self::Running,
            RunState::Parked => Self::Parked,
            RunState::Ok => Self::Ok,
            RunState::Failed => Self::Failed,
            RunState::Cancelled => Self::Cancelled,
            RunState::Interrupted => Self::Interrupted,
            RunState::Refused => Self::Refused,
            RunState::Expired => Self::Expired,
        }
    }
}

impl TryFrom<v1::RunState> for RunState {
    type Error = WireError;

    fn try_from(state: v1::RunState) -> Result<Self, WireError> {
        Ok(match state {
            v1::RunState::Unspecified => return Err(WireError::Missing("state")),
            v1::RunState::Queued => Self::Queued,
            v1::RunState::Running => Self::Running,
            v1::RunState::Parked => Self::Parked,
            v1::RunState::Ok => Self::Ok,
            v1::RunState::Failed => Self::Failed,
            v1::RunState::Cancelled => Self::Cancelled,
            v1::RunState::Interrupted => Self::Interrupted,
            v1::RunState::Refused => Self::Refused,
            v1::RunState::Expired => Self::Expired,
        })
    }
}

impl From<RunEvent> for v1::RunEvent {
    fn from(event: RunEvent) -> Self {
        use v1::run_event::Kind;
        let kind = match event.kind {
            EventKind::Accepted { plan, resources } => {
                Kind::Accepted(v1::RunAccepted { plan_sha256: plan.as_bytes().to_vec().into(), resources })
            }
            EventKind::ResourceStarted { address, attempt } => {
                Kind::ResourceStarted(v1::ResourceStarted { address: address.into(), attempt })
            }
            EventKind::StepStarted { step, summary } => Kind::StepStarted(v1::StepStarted {
                address: step.address.into(),
                attempt: step.attempt,
                step: step.step,
                summary,
            }),
            EventKind::StepFinished { step, end, frames } => {
                let (exit_code, signal, error) = match end {
                    StepEnd::Done => (None, None, String::new()),
                    StepEnd::Exit(code) => (Some(code), None, String::new()),
                    StepEnd::Signal(signal) => (None, Some(signal), String::new()),
                    StepEnd::Error(error) => (None, None, error),
                };
                Kind::StepFinished(v1::StepFinished {
                    address: step.address.into(),
                    attempt: step.attempt,
                    step: step.step,
                    exit_code,
                    signal,
                    error,
                    frames,
                })
            }
            EventKind::Parked { why } => Kind::Parked(v1::RunParked { why }),
            EventKind::Unparked => Kind::Unparked(v1::RunUnparked {}),
            EventKind::ResourceFinished { address, attempt, outcome, message, diff, duration_ns, seen } => {
                Kind::ResourceFinished(v1::ResourceFinished {
                    address: address.into(),
                    attempt,
                    outcome: v1::Outcome::from(outcome).into(),
                    message,
                    diff,
                    duration_ns,
                    seen,
                })
            }
            EventKind::Finished { state, message } => {
                Kind::Finished(v1::RunFinished { state: v1::RunState::from(state).into(), message })
            }
        };
        Self { run_id: event.run.to_string(), seq: event.seq, time_unix_ns: event.time_ns, kind: Some(kind) }
    }
}

impl TryFrom<v1::RunEvent> for RunEvent {
    type Error = WireError;

    fn try_from(event: v1::RunEvent) -> Result<Self, WireError> {
        use v1::run_event::Kind;
        if event.seq == 0 {
            return invalid("seq", "counts from 1");
        }
        let kind = match event.kind.ok_or(WireError::Missing("kind of event"))? {
            Kind::Accepted(it) => EventKind::Accepted {
                plan: PlanHash::try_from(it.plan_sha256.as_ref())?,
                resources: it.resources,
            },
            Kind::ResourceStarted(it) => {
                EventKind::ResourceStarted { address: it.address.parse()?, attempt: attempt(it.attempt)? }
            }
            Kind::StepStarted(it) => EventKind::StepStarted {
                step: step_id(&it.address, it.attempt, it.step)?,
                summary: bounded("summary", it.summary, MAX_TEXT)?,
            },
            Kind::StepFinished(it) => EventKind::StepFinished {
                step: step_id(&it.address, it.attempt, it.step)?,
                end: match (it.exit_code, it.signal, it.error) {
                    (None, None, error) if error.is_empty() => StepEnd::Done,
                    (Some(code), None, error) if error.is_empty() => StepEnd::Exit(code),
                    (None, Some(signal), error) if error.is_empty() => StepEnd::Signal(signal),
                    (None, None, error) => StepEnd::Error(bounded("error", error, MAX_TEXT)?),
                    _ => return invalid("end of step", "more than one of exit code, signal and error"),
                },
                frames: it.frames,
            },
            Kind::ResourceFinished(it) => EventKind::ResourceFinished {
                outcome: it.outcome().try_into()?,
                address: it.address.parse()?,
                attempt: attempt(it.attempt)?,
                message: bounded("message", it.message, MAX_TEXT)?,
                diff: bounded("diff", it.diff, MAX_DIFF)?,
                duration_ns: it.duration_ns,
                seen: digest(it.seen)?,
            },
            Kind::Parked(it) => EventKind::Parked { why: bounded("why", it.why, MAX_TEXT)? },
            Kind::Unparked(_) => EventKind::Unparked,
            Kind::Finished(it) => EventKind::Finished {
                state: match it.state().try_into()? {
                    state if RunState::is_final(state) => state,
                    state => return invalid("final state", state.as_str()),
                },
                message: bounded("message", it.message, MAX_TEXT)?,
            },
        };
        Ok(Self { run: event.run_id.parse()?, seq: event.seq, time_ns: event.time_unix_ns, kind })
    }
}

impl From<LogFrame> for v1::LogFrame {
    fn from(frame: LogFrame) -> Self {
        let (data, truncated) = match frame.body {
            LogBody::Data(data) => (data.into(), None),
            LogBody::Truncated { bytes, sha256 } => {
                (Default::default(), Some(v1::Truncated { bytes, sha256: sha256.to_vec().into() }))
            }
        };
        Self {
            run_id: frame.run.to_string(),
            address: frame.step.address.into(),
            attempt: frame.step.attempt,
            step: frame.step.step,
            frame_no: frame.frame_no,
            stream: match frame.stream {
                Stream::Stdout => v1::Stream::Stdout.into(),
                Stream::Stderr => v1::Stream::Stderr.into(),
            },
            offset: frame.offset,
            time_unix_ns: frame.time_ns,
            data,
            truncated,
        }
    }
}

impl TryFrom<v1::LogFrame> for LogFrame {
    type Error = WireError;

    fn try_from(frame: v1::LogFrame) -> Result<Self, WireError> {
        let stream = match frame.stream() {
            v1::Stream::Stdout => Stream::Stdout,
            v1::Stream::Stderr => Stream::Stderr,
            v1::Stream::Unspecified => return Err(WireError::Missing("stream")),
        };
        let body = match frame.truncated {
            Some(cut) if frame.data.is_empty() => LogBody::Truncated {
                bytes: cut.bytes,
                sha256: match cut.sha256.as_ref().try_into() {
                    Ok(hash) => hash,
                    Err(_) => return invalid("hash of truncated output", "want 32 bytes"),
                },
            },
            Some(_) => return invalid("log frame", "both data and truncated"),
            None if frame.data.is_empty() => return invalid("log frame", "empty"),
            None if frame.data.len() > MAX_FRAME_BYTES => {
                return invalid(
                    "log frame",
                    format!("{} bytes, the limit is {MAX_FRAME_BYTES}", frame.data.len()),
                );
            }
            None => LogBody::Data(frame.data.into()),
        };
        if frame.offset.checked_add(body.stream_bytes()).is_none() {
            return invalid("offset", "out of range");
        }
        Ok(Self {
            run: frame.run_id.parse()?,
            step: step_id(&frame.address, frame.attempt, frame.step)?,
            frame_no: frame.frame_no,
            stream,
            offset: frame.offset,
            time_ns: frame.time_unix_ns,
            body,
        })
    }
}

impl From<RunOffset> for v1::RunOffset {
    fn from(offset: RunOffset) -> Self {
        Self {
            run_id: offset.run.to_string(),
            event_seq: offset.event_seq,
            logs: offset
                .logs
                .into_iter()
                .map(|(step, next_frame)| v1::LogOffset {
                    address: step.address.into(),
                    attempt: step.attempt,
                    step: step.step,
                    next_frame,
                })
                .collect(),
        }
    }
}

impl TryFrom<v1::RunOffset> for RunOffset {
    type Error = WireError;

    fn try_from(offset: v1::RunOffset) -> Result<Self, WireError> {
        Ok(Self {
            run: offset.run_id.parse::<RunId>()?,
            event_seq: offset.event_seq,
            logs: offset
                .logs
                .into_iter()
                .map(|log| Ok((step_id(&log.address, log.attempt, log.step)?, log.next_frame)))
                .collect::<Result<_, WireError>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_step() -> impl Strategy<Value = StepId> {
        ("[a-z]{1,5}:[a-z]{1,5}:[a-z/.:]{1,9}", 1..9u32, 0..9u32)
            .prop_map(|(address, attempt, step)| StepId { address: address.parse().unwrap(), attempt, step })
    }

    fn any_end() -> impl Strategy<Value = StepEnd> {
        prop_oneof![
            Just(StepEnd::Done),
            any::<i32>().prop_map(StepEnd::Exit),
            any::<i32>().prop_map(StepEnd::Signal),
            ".{1,20}".prop_map(StepEnd::Error),
        ]
    }

    fn any_kind() -> impl Strategy<Value = EventKind> {
        let outcome = prop_oneof![
            Just(Outcome::Unchanged),
            Just(Outcome::Changed),
            Just(Outcome::Failed),
            Just(Outcome::Skipped),
            Just(Outcome::Interrupted),
            Just(Outcome::WouldChange),
        ];
        let last = RunState::ALL.into_iter().filter(|state| state.is_final()).collect::<Vec<_>>();
        prop_oneof![
            (any::<Vec<u8>>(), any::<u32>())
                .prop_map(|(b, resources)| EventKind::Accepted { plan: PlanHash::of(&b), resources }),
            any_step().prop_map(|s| EventKind::ResourceStarted { address: s.address, attempt: s.attempt }),
            (any_step(), ".{0,20}").prop_map(|(step, summary)| EventKind::StepStarted { step, summary }),
            (any_step(), any_end(), any::<u64>()).prop_map(|(step, end, frames)| EventKind::StepFinished {
                step,
                end,
                frames
            }),
            (any_step(), outcome, ".{0,20}", ".{0,20}", any::<u64>()).prop_map(
                |(s, outcome, message, diff, duration_ns)| EventKind::ResourceFinished {
                    address: s.address,
                    attempt: s.attempt,
                    outcome,
                    message,
                    diff,
                    duration_ns,
                    seen: String::new()
                }
            ),
            ".{0,20}".prop_map(|why| EventKind::Parked { why }),
            Just(EventKind::Unparked),
            (proptest::sample::select(last), ".{0,20}")
                .prop_map(|(state, message)| EventKind::Finished { state, message }),
        ]
    }

    #[test]
    fn terms_round_trip() {
        let address: crate::ids::Address = "a:command:b".parse().unwrap();
        let terms = Terms {
            check: true,
            undo_of: Some(RunId::generate()),
            done: vec![address.clone()],
            approved: vec![Approval { address, seen: PlanHash::of(b"x").to_string() }],
        };
        for terms in [terms, Terms::default()] {
            assert_eq!(Terms::try_from(v1::RunTerms::from(terms.clone())).unwrap(), terms);
            let json = serde_json::to_string(&terms).unwrap();
            assert_eq!(serde_json::from_str::<Terms>(&json).unwrap(), terms);
        }
        let approved = vec![v1::Approval { address: "a:b:c".into(), seen: "zz".into() }];
        assert!(Terms::try_from(v1::RunTerms { approved, ..Default::default() }).is_err());
    }

    proptest! {
        #[test]
        fn events_round_trip(kind in any_kind(), seq in 1..u64::MAX, time_ns: i64) {
            let event = RunEvent { run: RunId::generate(), seq, time_ns, kind };
            prop_assert_eq!(RunEvent::try_from(v1::RunEvent::from(event.clone())).unwrap(), event);
        }

        #[test]
        fn frames_round_trip(step in any_step(), frame_no: u64, offset in 0..u64::MAX / 2, time_ns: i64,
                             data in proptest::collection::vec(any::<u8>(), 1..100), cut: bool, err: bool) {
            let body = if cut { LogBody::Truncated { bytes: 7, sha256: [9; 32] } } else { LogBody::Data(data) };
            let stream = if err { Stream::Stderr } else { Stream::Stdout };
            let frame = LogFrame { run: RunId::generate(), step, frame_no, stream, offset, time_ns, body };
            prop_assert_eq!(LogFrame::try_from(v1::LogFrame::from(frame.clone())).unwrap(), frame);
        }

        // T33: whatever a peer sends decodes to a checked value or an error, never a panic.
        #[test]
        fn trap_33_garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            use prost::Message as _;
            if let Ok(event) = v1::RunEvent::decode(bytes.as_slice()) {
                let _ = RunEvent::try_from(event);
            }
            if let Ok(frame) = v1::LogFrame::decode(bytes.as_slice()) {
                let _ = LogFrame::try_from(frame);
            }
        }
    }

    #[test]
    fn trap_33_oversized_and_contradictory_messages_are_refused() {
        let run_id = RunId::generate().to_string();
        let frame = |data: Vec<u8>, offset| v1::LogFrame {
            run_id: run_id.clone(),
            address: "a:b:c".into(),
            attempt: 1,
            stream: v1::Stream::Stdout.into(),
            data: data.into(),
            offset,
            ..Default::default()
        };
        assert!(LogFrame::try_from(frame(vec![0; MAX_FRAME_BYTES], 0)).is_ok());
        assert!(LogFrame::try_from(frame(vec![0; MAX_FRAME_BYTES + 1], 0)).is_err());
        assert!(LogFrame::try_from(frame(vec![0; 1], u64::MAX)).is_err());
        assert!(LogFrame::try_from(frame(vec![], 0)).is_err());
        let event = |kind| v1::RunEvent { run_id: run_id.clone(), seq: 1, time_unix_ns: 0, kind: Some(kind) };
        let both = v1::StepFinished {
            address: "a:b:c".into(),
            attempt: 1,
            exit_code: Some(0),
            signal: Some(9),
            ..Default::default()
        };
        assert!(RunEvent::try_from(event(v1::run_event::Kind::StepFinished(both))).is_err());
        let queued = v1::RunFinished { state: v1::RunState::Queued.into(), message: String::new() };
        assert!(RunEvent::try_from(event(v1::run_event::Kind::Finished(queued))).is_err());
    }
}
