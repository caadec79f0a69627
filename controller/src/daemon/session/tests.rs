//! The session's logic without any I/O: inputs, effects, and a clock that is a number.

use proptest::prelude::*;

use super::*;
use postern_proto::event::{LogBody, Stream};
use postern_proto::ids::{ClusterId, HostId, InstanceId, PlanHash, SecretRef, SessionId};
use postern_proto::plan::Terms;

use crate::ca::KeyHash;
use crate::daemon::kinds::Kinds;

use crate::store::{Facts, Revealed, SecretBytes};

const QUIET: Duration = Duration::from_secs(60);
const DAY_MS: i64 = 24 * 3600 * 1000;

fn at(seconds: u64) -> Now {
    Now { mono: Duration::from_secs(seconds), unix_ms: i64::try_from(seconds * 1000).unwrap() }
}

struct Rig {
    session: Session,
    run: RunId,
}

/// A session that is up and was given one run.
fn live() -> Rig {
    let host = HostId::generate();
    let me = Identity {
        host,
        key: KeyHash::of(b"key"),
        not_before_ms: 0,
        not_after_ms: DAY_MS,
        cluster: ClusterId::generate(),
        session: SessionId::generate(),
        quiet: QUIET,
    };
    let mut session = Session::new(me, at(0));
    let hello = Hello {
        host,
        instance: InstanceId::generate(),
        wire_min: WIRE_MIN,
        wire_max: WIRE_MAX,
        epoch: 0,
        cluster: None,
        runs: Vec::new(),
        floor: 0,
        above: HashSet::new(),
        facts: Facts::default(),
        kinds: Kinds::default(),
    };
    let effects = session.handle(Input::Frame(AgentFrame::Hello(Box::new(hello))), at(0));
    assert!(matches!(effects[..], [Effect::Claim(..)]), "{effects:?}");
    let effects = session.handle(Input::Claimed(Ok(())), at(0));
    assert!(matches!(effects[..], [Effect::Open(_)]), "{effects:?}");
    let run = RunId::generate();
    let opened = Opened { epoch: 7, dispatches: vec![dispatch(run)], ..Opened::default() };
    let effects = session.handle(Input::Opened(Ok(Ok(opened))), at(0));
    assert!(
        matches!(
            effects[..],
            [
                Effect::Up { .. },
                Effect::Send(ControllerFrame::Welcome { .. }),
                Effect::Send(ControllerFrame::Dispatch { epoch: 7, .. })
            ]
        ),
        "{effects:?}"
    );
    Rig { session, run }
}

fn dispatch(run: RunId) -> Dispatch {
    let plan_hash = PlanHash::of(b"plan");
    Dispatch { seq: 1, run, plan: b"plan".to_vec(), plan_hash, terms: Terms::default(), not_after_ms: 0 }
}

impl Rig {
    fn event(&mut self, seq: u64) -> Effects {
        let kind = EventKind::Accepted { plan: PlanHash::of(b"plan"), resources: 1 };
        let event = RunEvent { run: self.run, seq, time_ns: 0, kind };
        self.session.handle(Input::Frame(AgentFrame::Event(Box::new(event))), at(1))
    }

    fn log(&mut self, frame_no: u64, offset: u64, data: &[u8]) -> Effects {
        let step = StepId { address: "a:command:b".parse().unwrap(), attempt: 1, step: 0 };
        let body = LogBody::Data(data.to_vec());
        let frame =
            LogFrame { run: self.run, step, frame_no, stream: Stream::Stdout, offset, time_ns: 0, body };
        self.session.handle(Input::Frame(AgentFrame::Log(Box::new(frame))), at(1))
    }

    fn drained(&mut self) -> Effects {
        self.session.handle(Input::Drained, at(1))
    }

    fn committed(&mut self) -> Effects {
        self.session.handle(Input::Committed(Ok(())), at(1))
    }
}

fn acks(effects: &[Effect]) -> Vec<(u64, Option<u64>)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send(ControllerFrame::Ack(ack)) => {
                Some((ack.event_seq, ack.logs.first().map(|(_, next)| *next)))
            }
            _ => None,
        })
        .collect()
}

fn goodbye(effects: &[Effect]) -> Reason {
    match effects {
        [.., Effect::Send(ControllerFrame::Goodbye { reason, .. }), Effect::End(_)] => *reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_ack_follows_the_commit_and_one_commit_is_under_way_at_a_time() {
    let mut rig = live();
    assert!(rig.event(1).is_empty());
    assert!(matches!(rig.drained()[..], [Effect::Append(_)]));
    assert!(rig.event(2).is_empty());
    assert!(rig.log(0, 0, b"ab").is_empty());
    assert!(rig.log(1, 2, b"c").is_empty());
    assert!(rig.drained().is_empty(), "the first is still under way");
    let effects = rig.committed();
    assert_eq!(acks(&effects), [(1, None)]);
    assert!(matches!(effects.last(), Some(Effect::Append(batch)) if batch.epoch == 7), "{effects:?}");
    assert_eq!(acks(&rig.committed()), [(2, Some(2))], "what gathered shares one commit and one ack");
}

#[test]
fn a_duplicate_is_acked_as_far_as_it_is_committed() {
    let mut rig = live();
    rig.event(1);
    rig.log(0, 0, b"ab");
    rig.event(1);
    rig.log(0, 0, b"ab");
    // Seen and not committed: the ack must not promise more than is on disk.
    let effects = rig.drained();
    assert!(acks(&effects).iter().all(|ack| matches!(ack, (0, None | Some(0)))), "{effects:?}");
    rig.committed();
    rig.log(0, 0, b"ab");
    assert_eq!(acks(&rig.drained()), [(1, Some(1))]);
}

#[test]
fn a_failed_commit_is_never_acked() {
    for (error, reason) in [
        (OpError::Fenced, Reason::Replaced),
        (OpError::Busy("write"), Reason::Shed),
        (OpError::Closed, Reason::Shed),
    ] {
        let mut rig = live();
        rig.event(1);
        rig.drained();
        let effects = rig.session.handle(Input::Committed(Err(error)), at(1));
        assert!(acks(&effects).is_empty());
        assert_eq!(goodbye(&effects), reason);
        assert!(rig.session.is_over());
        assert!(rig.event(2).is_empty(), "nothing is done any more");
    }
}

#[test]
fn what_does_not_fit_ends_the_session() {
    assert_eq!(goodbye(&live().event(2)), Reason::Protocol);
    assert_eq!(goodbye(&live().log(1, 0, b"a")), Reason::Protocol);
    assert_eq!(goodbye(&live().log(0, 1, b"a")), Reason::Protocol);
    let mut rig = live();
    rig.run = RunId::generate();
    assert_eq!(goodbye(&rig.event(1)), Reason::Protocol);
    let mut rig = live();
    let effects = rig.session.handle(Input::Malformed("x".to_owned()), at(1));
    assert_eq!(goodbye(&effects), Reason::Protocol);
}

#[test]
fn a_run_is_refused_once() {
    let mut rig = live();
    let refused = |run| Input::Frame(AgentFrame::Refused { run, message: String::new() });
    let effects = rig.session.handle(refused(rig.run), at(1));
    assert!(matches!(effects[..], [Effect::Refuse { .. }]), "{effects:?}");
    assert_eq!(goodbye(&rig.session.handle(refused(rig.run), at(1))), Reason::Protocol);
}

#[test]
fn nothing_is_read_while_too_much_waits() {
    let mut rig = live();
    let piece = vec![0; 32 * 1024];
    let mut sent = 0u64;
    while rig.session.wants_input() {
        rig.log(sent, sent * piece.len() as u64, &piece);
        rig.drained();
        sent += 1;
        assert!(sent < 1000, "no bound");
    }
    // The first frame is being committed, the rest waits.
    assert_eq!((sent - 1) as usize * piece.len(), MAX_PENDING_BYTES);
    rig.committed();
    assert!(rig.session.wants_input());
}

#[test]
fn silence_is_asked_about_and_then_ends_the_session() {
    let mut rig = live();
    assert_eq!(rig.session.deadline(at(0)), QUIET);
    let effects = rig.session.handle(Input::Tick, at(60));
    let [Effect::Send(ControllerFrame::Ping(nonce))] = effects[..] else { panic!("{effects:?}") };
    let pong = Input::Frame(AgentFrame::Pong(nonce));
    assert!(rig.session.handle(pong, at(61)).is_empty());
    assert!(matches!(rig.session.handle(Input::Tick, at(121))[..], [Effect::Send(ControllerFrame::Ping(_))]));
    assert!(rig.session.handle(Input::Tick, at(150)).is_empty());
    assert_eq!(goodbye(&rig.session.handle(Input::Tick, at(151))), Reason::Shutdown);
}

#[test]
fn an_old_pong_does_not_answer_a_probe() {
    let mut rig = live();
    let effects = rig.session.handle(Input::Probe, at(1));
    let [Effect::Send(ControllerFrame::Ping(nonce))] = effects[..] else { panic!("{effects:?}") };
    assert!(rig.session.handle(Input::Frame(AgentFrame::Pong(nonce - 1)), at(2)).is_empty());
    let effects = rig.session.handle(Input::Frame(AgentFrame::Pong(nonce)), at(2));
    assert!(matches!(effects[..], [Effect::ProbeAnswered]), "{effects:?}");
}

#[test]
fn a_dispatch_that_is_in_the_stores_answer_too_is_sent_once() {
    let mut rig = live();
    assert!(rig.session.handle(Input::Dispatch(dispatch(rig.run)), at(1)).is_empty());
    let other = RunId::generate();
    let effects = rig.session.handle(Input::Dispatch(dispatch(other)), at(1));
    assert!(matches!(effects[..], [Effect::Send(ControllerFrame::Dispatch { .. })]), "{effects:?}");
}

#[test]
fn the_certificate_ends_the_session_by_the_wall_clock() {
    let mut rig = live();
    let late = Now { mono: Duration::from_secs(1), unix_ms: DAY_MS };
    assert_eq!(rig.session.deadline(late), late.mono);
    assert_eq!(goodbye(&rig.session.handle(Input::Tick, late)), Reason::Shutdown);
}

proptest! {
    /// Whatever is sent in whatever order: what is appended is contiguous, and no ack runs ahead of a commit.
    #[test]
    fn acks_never_run_ahead(script in prop::collection::vec((0u8..4, 1u64..6), 1..60)) {
        let mut rig = live();
        let (mut committed, mut in_flight) = ((0u64, 0u64), None);
        for (what, number) in script {
            let effects = match what {
                0 => rig.event(number),
                1 => rig.log(number - 1, number - 1, b"x"),
                2 => rig.drained(),
                _ => {
                    if let Some(point) = in_flight.take() {
                        committed = point;
                    }
                    rig.committed()
                }
            };
            for effect in &effects {
                match effect {
                    Effect::Append(batch) => {
                        let run = &batch.runs[0];
                        let frames = run.steps().first().map_or(committed.1, |moved| moved.to.next_frame);
                        prop_assert!(run.last_event() >= committed.0);
                        prop_assert!(run.steps().iter().all(|moved| moved.from.next_frame == committed.1));
                        in_flight = Some((run.last_event(), frames));
                    }
                    Effect::Send(ControllerFrame::Ack(ack)) => {
                        prop_assert!(ack.event_seq <= committed.0);
                        prop_assert!(ack.logs.iter().all(|(_, next)| *next <= committed.1));
                    }
                    _ => {}
                }
            }
            if rig.session.is_over() {
                break;
            }
        }
    }
}

#[test]
fn secrets_are_asked_of_the_store_and_not_too_often() {
    let Rig { mut session, run } = live();
    let secret = |n: u32| SecretRef { id: format!("s{n}"), version: 1 };
    let wanted = |secrets| Input::Frame(AgentFrame::SecretsWanted { run, secrets });
    for _ in 0..64 {
        let effects = session.handle(wanted(vec![secret(1)]), at(1));
        assert!(matches!(effects[..], [Effect::Reveal { epoch: 7, .. }]), "{effects:?}");
    }
    let effects = session.handle(wanted(vec![secret(1)]), at(30));
    let [Effect::Withheld { .. }, Effect::Send(ControllerFrame::Secrets { values, retry_after_ms, .. })] =
        &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert!(values[0].value.as_ref().unwrap_err().contains("too often"));
    assert_eq!(*retry_after_ms, 31_000, "it is told when the first question has been forgotten");
    let effects = session.handle(wanted(vec![secret(1)]), at(61));
    assert!(matches!(effects[..], [Effect::Reveal { .. }]), "{effects:?}");
}

#[test]
fn large_answers_go_out_in_pieces() {
    let Rig { mut session, run } = live();
    let value = |n: u32| Revealed {
        secret: SecretRef { id: format!("s{n}"), version: 1 },
        value: Ok(SecretBytes::new(zeroize::Zeroizing::new(vec![7; 64 * 1024]))),
    };
    let effects = session.handle(Input::Revealed(run, Ok((0..40).map(value).collect())), at(1));
    let sizes: Vec<_> = effects
        .iter()
        .map(|effect| match effect {
            Effect::Send(ControllerFrame::Secrets { values, .. }) => values.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sizes, [16, 16, 8]);
    assert!(!format!("{effects:?}").contains("7, 7"), "a value is not shown");
    let error = OpError::Fenced;
    let effects = session.handle(Input::Revealed(run, Err(error)), at(1));
    assert_eq!(goodbye(&effects), Reason::Replaced);
}
