//! The session's state machine under a simulated clock: tables for each rule.

mod random;

use std::time::Duration;

use postern_agent::engine::{Dispatch, Refusal, RefusalReason};
use postern_agent::link::Backoff;
use postern_agent::link::session::{ConnId, Effect, End, Event, Moment, Session, Settings, Timing};
use postern_agent::link::wire::{FromController, Goodbye, GoodbyeReason, ToController, Welcome};
use postern_proto::ids::{ClusterId, PlanHash, RunId, SessionId};

use crate::support::DAY;

const NOW: i64 = 1_800_000_000;

/// A session, its clock, and what it did last.
struct Sim {
    session: Session,
    cluster: ClusterId,
    at: Duration,
    random: u32,
    last: Vec<Effect>,
}

impl Sim {
    fn new() -> Self {
        Self::with((NOW, NOW + DAY), 5)
    }

    fn with(validity_s: (i64, i64), epoch: u64) -> Self {
        let cluster = ClusterId::generate();
        let session = Session::new(Settings { cluster, epoch, validity_s, timing: Timing::default() });
        Self { session, cluster, at: Duration::ZERO, random: u32::MAX / 2, last: Vec::new() }
    }

    fn give(&mut self, event: Event) -> &mut Self {
        let unix_ms = NOW * 1000 + i64::try_from(self.at.as_millis()).unwrap();
        self.last = self.session.handle(event, Moment { at: self.at, unix_ms, random: self.random });
        self
    }

    fn frame(&mut self, conn: ConnId, frame: FromController) -> &mut Self {
        self.give(Event::Frame(conn, Box::new(frame)))
    }

    /// Lets the clock run to the next time the session wants to be woken; gives how long that took.
    fn wake(&mut self) -> Duration {
        let wake = self.session.wake_at().expect("the session wants to be woken").max(self.at);
        let waited = wake - self.at;
        self.at = wake;
        self.give(Event::Tick);
        waited
    }

    fn dialled(&self) -> Option<ConnId> {
        self.last.iter().find_map(|it| match it {
            Effect::Dial(conn) => Some(*conn),
            _ => None,
        })
    }

    fn did(&self, what: impl Fn(&Effect) -> bool) -> bool {
        self.last.iter().any(what)
    }

    fn notes(&self) -> String {
        let notes = self.last.iter().filter_map(|it| match it {
            Effect::Note(level, text) => Some(format!("{level:?} {text}")),
            _ => None,
        });
        notes.collect::<Vec<_>>().join("\n")
    }

    fn welcome(&self) -> Welcome {
        Welcome {
            cluster: self.cluster,
            epoch: 5,
            session: SessionId::generate(),
            wire: 1,
            acked: Vec::new(),
            unknown: Vec::new(),
            now_ms: NOW * 1000 + i64::try_from(self.at.as_millis()).unwrap(),
            renew: false,
        }
    }

    /// Dials, greets and is welcomed.
    fn up(&mut self) -> ConnId {
        self.give(Event::Start);
        let conn = self.dialled().expect("it dials at once");
        self.give(Event::Dialled(conn));
        assert!(self.did(|it| matches!(it, Effect::Greet(greeted) if *greeted == conn)));
        let welcome = self.welcome();
        self.frame(conn, FromController::Welcome(welcome));
        assert_eq!(self.session.live(), Some(conn), "{}", self.notes());
        conn
    }

    fn goodbye(&mut self, conn: ConnId, reason: GoodbyeReason, retry_after: Duration) -> &mut Self {
        let message = "because".to_owned();
        self.frame(conn, FromController::Goodbye(Goodbye { reason, message, retry_after }))
    }
}

fn dispatch(seq: u64, epoch: u64) -> Dispatch {
    let plan = b"{}".as_slice().into();
    Dispatch {
        seq,
        run: RunId::generate(),
        plan,
        hash: PlanHash::of(b"{}"),
        epoch,
        terms: Default::default(),
        expired: false,
    }
}

fn secs(duration: Duration) -> u64 {
    duration.as_secs()
}

#[test]
fn a_welcome_sets_the_epoch_and_the_time_before_anything_is_sent() {
    let mut sim = Sim::new();
    sim.give(Event::Start);
    let conn = sim.dialled().unwrap();
    sim.give(Event::Dialled(conn));
    let welcome = Welcome { epoch: 9, unknown: vec![RunId::generate()], ..sim.welcome() };
    sim.frame(conn, FromController::Welcome(welcome));
    let order: Vec<_> = sim
        .last
        .iter()
        .filter_map(|it| match it {
            Effect::SetEpoch(9) => Some("epoch"),
            Effect::LearnTime(..) => Some("time"),
            Effect::Attach { hold, .. } if hold.len() == 1 => Some("attach"),
            _ => None,
        })
        .collect();
    assert_eq!(order, ["epoch", "time", "attach"]);
}

#[test]
fn trap_40_every_failure_is_retried_for_ever_within_the_cap() {
    let mut sim = Sim::new();
    sim.random = u32::MAX;
    sim.give(Event::Start);
    let mut waits = Vec::new();
    for _ in 0..10_000 {
        let conn = sim.dialled().expect("a dial");
        sim.give(Event::DialFailed { conn, why: "refused".into(), certificate_refused: false });
        let (before, mut renewals) = (sim.at, 0);
        while sim.dialled().is_none() {
            sim.wake();
            if sim.did(|it| matches!(it, Effect::Renew)) {
                renewals += 1;
                assert!(renewals < 20, "renewals instead of dials");
                sim.give(Event::RenewFailed { why: "refused".into(), revoked: false });
            }
        }
        waits.push(sim.at - before);
    }
    assert_eq!(waits[..4].iter().map(Duration::as_millis).collect::<Vec<_>>(), [499, 999, 1999, 3999]);
    assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(60)));
    assert_eq!(secs(*waits.last().unwrap()), 59, "a full minute at the worst dice");
}

#[test]
fn the_delay_is_drawn_from_all_of_zero_to_the_bound() {
    let backoff = Backoff::default();
    for failures in [0, 1, 2, 7, 8, 40, u32::MAX] {
        let bound = backoff.bound(failures);
        assert!(bound <= Duration::from_secs(60));
        assert_eq!(backoff.delay(failures, 0), Duration::ZERO);
        assert!(backoff.delay(failures, u32::MAX) < bound);
        let half = backoff.delay(failures, u32::MAX / 2 + 1);
        assert_eq!(half, bound / 2);
    }
    assert_eq!(backoff.bound(1), Duration::from_millis(500));
    assert_eq!(backoff.bound(u32::MAX), Duration::from_secs(60));
}

#[test]
fn a_session_that_lived_resets_the_count_and_one_that_did_not_does_not() {
    for (lived, want_ms) in [(31, 250), (1, 500)] {
        let mut sim = Sim::new();
        sim.random = u32::MAX / 2 + 1;
        sim.give(Event::Start);
        let conn = sim.dialled().unwrap();
        sim.give(Event::DialFailed { conn, why: String::new(), certificate_refused: false });
        sim.wake();
        let conn = sim.dialled().unwrap();
        sim.give(Event::Dialled(conn));
        let welcome = sim.welcome();
        sim.frame(conn, FromController::Welcome(welcome));
        sim.at += Duration::from_secs(lived);
        sim.give(Event::Ended(conn, End::Broke("cut".into())));
        assert_eq!(sim.wake().as_millis(), want_ms, "after {lived} s");
    }
}

#[test]
fn trap_39_every_goodbye_has_its_delay() {
    let (none, ten, day) = (Duration::ZERO, Duration::from_secs(10), Duration::from_secs(86_400));
    for (reason, retry_after, least, most, level) in [
        (GoodbyeReason::Shutdown, none, 0, 1, "Info"),
        (GoodbyeReason::Shed, ten, 10, 11, "Info"),
        (GoodbyeReason::Other, ten, 10, 11, "Warn"),
        (GoodbyeReason::Shed, day, 3600, 3601, "Info"),
        (GoodbyeReason::Replaced, none, 5, 6, "Warn"),
        (GoodbyeReason::Quarantined, none, 60, 120, "Error"),
        (GoodbyeReason::Quarantined, Duration::from_secs(300), 300, 360, "Error"),
        (GoodbyeReason::Version, none, 60, 120, "Error"),
        (GoodbyeReason::Protocol, none, 60, 120, "Error"),
    ] {
        for random in [0, u32::MAX] {
            let mut sim = Sim::new();
            sim.random = random;
            let conn = sim.up();
            sim.goodbye(conn, reason, retry_after);
            assert!(sim.did(|it| matches!(it, Effect::Close(closed) if *closed == conn)));
            assert!(sim.notes().starts_with(level) && sim.notes().contains("because"), "{}", sim.notes());
            let waited = sim.wake();
            assert!((least..=most).contains(&secs(waited)), "{reason:?}: {waited:?}");
            assert!(sim.dialled().is_some(), "{reason:?}");
        }
    }
}

#[test]
fn revoked_stops_dialling_and_says_so() {
    for how in 0..3 {
        let mut sim = Sim::new();
        let conn = sim.up();
        match how {
            0 => sim.goodbye(conn, GoodbyeReason::Revoked, Duration::ZERO),
            1 => sim.give(Event::Ended(conn, End::Revoked("because".into()))),
            _ => sim.give(Event::RenewFailed { why: "because".into(), revoked: true }),
        };
        assert!(sim.notes().contains("revoked") && sim.notes().contains("uninstall"), "{}", sim.notes());
        assert!(sim.did(|it| matches!(it, Effect::Close(closed) if *closed == conn)));
        assert!(sim.session.is_revoked());
        assert_eq!(sim.session.wake_at(), None);
        assert!(sim.give(Event::Tick).last.is_empty());
    }
}

#[test]
fn trap_34_a_lower_epoch_and_another_cluster_are_refused() {
    type Change = fn(&mut Welcome);
    let wrong: [(Change, &str); 3] = [
        (|it| it.epoch = 4, "owner epoch 4"),
        (|it| it.cluster = ClusterId::generate(), "belongs to"),
        (|it| it.wire = 99, "wire version 99"),
    ];
    for (change, says) in wrong {
        let mut sim = Sim::new();
        sim.give(Event::Start);
        let conn = sim.dialled().unwrap();
        sim.give(Event::Dialled(conn));
        let mut welcome = sim.welcome();
        change(&mut welcome);
        sim.frame(conn, FromController::Welcome(welcome));
        assert_eq!(sim.session.live(), None);
        assert!(!sim.did(|it| matches!(it, Effect::Attach { .. } | Effect::SetEpoch(_))), "{says}");
        assert!(sim.notes().contains(says), "{}", sim.notes());
        assert!(secs(sim.wake()) >= 60, "slowly");
        assert!(sim.dialled().is_some());
    }
}

#[test]
fn the_epoch_seen_counts_for_the_next_session_too() {
    let mut sim = Sim::new();
    sim.give(Event::Start);
    let conn = sim.dialled().unwrap();
    sim.give(Event::Dialled(conn));
    let welcome = Welcome { epoch: 8, ..sim.welcome() };
    sim.frame(conn, FromController::Welcome(welcome));
    sim.give(Event::Ended(conn, End::Closed));
    sim.wake();
    let conn = sim.dialled().unwrap();
    sim.give(Event::Dialled(conn));
    let stale = Welcome { epoch: 7, ..sim.welcome() };
    sim.frame(conn, FromController::Welcome(stale));
    assert_eq!(sim.session.live(), None);
}

#[test]
fn what_is_dispatched_goes_to_the_engine_or_is_refused() {
    let mut sim = Sim::new();
    let conn = sim.up();
    let give = |sim: &mut Sim, epoch, not_after_ms| {
        sim.frame(conn, FromController::Dispatch { dispatch: dispatch(3, epoch), not_after_ms });
    };
    give(&mut sim, 5, None);
    assert!(sim.did(|it| matches!(it, Effect::Dispatch(it) if it.seq == 3 && !it.expired)));
    give(&mut sim, 5, Some(NOW * 1000 + 1));
    assert!(sim.did(|it| matches!(it, Effect::Dispatch(it) if !it.expired)));
    give(&mut sim, 5, Some(NOW * 1000 - 1));
    assert!(sim.did(|it| matches!(it, Effect::Dispatch(it) if it.expired)));
    let refused = |sim: &Sim, reason| {
        sim.did(|it| {
            matches!(it, Effect::Send(_, ToController::Refused { refusal, .. }) if refusal.reason == reason)
        })
    };
    give(&mut sim, 4, None);
    assert!(refused(&sim, RefusalReason::StaleEpoch));
    let refusal = Refusal { reason: RefusalReason::NoRoom, message: "full".into() };
    sim.give(Event::NotTaken { seq: 3, run: "r".into(), refusal });
    assert!(refused(&sim, RefusalReason::NoRoom));
    sim.frame(conn, FromController::Ping(77));
    assert!(sim.did(|it| matches!(it, Effect::Send(_, ToController::Pong(77)))));
}

#[test]
fn a_peer_that_breaks_the_protocol_is_left() {
    let mut sim = Sim::new();
    let conn = sim.up();
    let again = sim.welcome();
    sim.frame(conn, FromController::Welcome(again));
    assert_eq!(sim.session.live(), None, "a second Welcome");

    let mut sim = Sim::new();
    sim.give(Event::Start);
    let conn = sim.dialled().unwrap();
    sim.give(Event::Dialled(conn));
    sim.frame(conn, FromController::Dispatch { dispatch: dispatch(1, 5), not_after_ms: None });
    assert!(!sim.did(|it| matches!(it, Effect::Dispatch(_))), "a dispatch before Welcome");
    assert!(sim.did(|it| matches!(it, Effect::Close(_))));

    let mut sim = Sim::new();
    sim.give(Event::Start);
    let conn = sim.dialled().unwrap();
    sim.give(Event::Dialled(conn));
    assert_eq!(secs(sim.wake()), 30, "no Welcome in time");
    assert!(sim.did(|it| matches!(it, Effect::Close(_))));
}

#[test]
fn a_renewed_certificate_is_taken_into_use_before_the_old_session_closes() {
    let mut sim = Sim::new();
    sim.random = 0;
    let old = sim.up();
    let waited = sim.wake();
    assert!(sim.did(|it| matches!(it, Effect::Renew)));
    assert_eq!(waited.as_secs(), (DAY / 2) as u64, "at half life");
    assert_eq!(sim.session.live(), Some(old));

    let from = NOW + DAY / 2;
    sim.give(Event::Renewed { validity_s: (from, from + DAY) });
    let new = sim.dialled().expect("a new session");
    assert!(!sim.did(|it| matches!(it, Effect::Close(_))));
    // The old one still works, also when the controller already speaks of the new one.
    sim.frame(old, FromController::Ping(1));
    assert!(sim.did(|it| matches!(it, Effect::Send(conn, _) if *conn == old)));
    sim.give(Event::Dialled(new));
    let welcome = sim.welcome();
    sim.frame(new, FromController::Welcome(welcome));
    assert_eq!(sim.session.live(), Some(new));
    let order: Vec<_> = sim
        .last
        .iter()
        .filter_map(|it| match it {
            Effect::Close(conn) => Some(("close", *conn)),
            Effect::Attach { conn, .. } => Some(("attach", *conn)),
            _ => None,
        })
        .collect();
    assert_eq!(order, [("close", old), ("attach", new)]);
    assert!(sim.frame(old, FromController::Ping(1)).last.is_empty(), "nothing is heard from the old one");
}

#[test]
fn a_hand_over_in_which_the_old_session_is_replaced_first_goes_on() {
    let mut sim = Sim::new();
    let old = sim.up();
    sim.wake();
    sim.give(Event::Renewed { validity_s: (NOW, NOW + 10 * DAY) });
    let new = sim.dialled().unwrap();
    sim.give(Event::Dialled(new));
    sim.goodbye(old, GoodbyeReason::Replaced, Duration::ZERO);
    assert_eq!((sim.session.live(), sim.dialled()), (None, None));
    let welcome = sim.welcome();
    sim.frame(new, FromController::Welcome(welcome));
    assert_eq!(sim.session.live(), Some(new));
}

#[test]
fn a_hand_over_that_fails_leaves_the_old_session_and_is_tried_again() {
    let mut sim = Sim::new();
    let old = sim.up();
    sim.wake();
    sim.give(Event::Renewed { validity_s: (NOW, NOW + 10 * DAY) });
    let conn = sim.dialled().unwrap();
    sim.give(Event::DialFailed { conn, why: "refused".into(), certificate_refused: false });
    assert_eq!(sim.session.live(), Some(old));
    sim.wake();
    assert!(sim.dialled().is_some());
}

#[test]
fn trap_49_an_expired_certificate_is_renewed_first_and_tried_if_that_fails() {
    let mut sim = Sim::with((NOW - 30 * DAY, NOW - 29 * DAY), 5);
    sim.give(Event::Start);
    assert!(sim.did(|it| matches!(it, Effect::Renew)) && sim.dialled().is_none());
    sim.give(Event::RenewFailed { why: "unreachable".into(), revoked: false });
    sim.wake();
    assert!(sim.dialled().is_some(), "the clock may be wrong and the certificate good");

    let mut sim = Sim::with((NOW - 30 * DAY, NOW - 29 * DAY), 5);
    sim.give(Event::Start).give(Event::Renewed { validity_s: (NOW, NOW + DAY) });
    assert!(sim.dialled().is_some());
}

#[test]
fn a_controller_that_wants_a_renewal_gets_it_once() {
    let mut sim = Sim::new();
    sim.give(Event::Start);
    let conn = sim.dialled().unwrap();
    sim.give(Event::Dialled(conn));
    let wants = Welcome { renew: true, ..sim.welcome() };
    sim.frame(conn, FromController::Welcome(wants));
    assert!(sim.did(|it| matches!(it, Effect::Renew)));
    sim.give(Event::Renewed { validity_s: (NOW, NOW + DAY) });
    let conn = sim.dialled().unwrap();
    sim.give(Event::Dialled(conn));
    let wants = Welcome { renew: true, ..sim.welcome() };
    sim.frame(conn, FromController::Welcome(wants));
    assert!(!sim.did(|it| matches!(it, Effect::Renew)), "not again and again");
}

#[test]
fn a_certificate_that_is_not_accepted_leads_to_a_renewal() {
    let mut sim = Sim::new();
    sim.give(Event::Start);
    let conn = sim.dialled().unwrap();
    sim.give(Event::Dialled(conn));
    sim.give(Event::Ended(conn, End::Refused("expired".into())));
    sim.wake();
    assert!(sim.did(|it| matches!(it, Effect::Renew)));

    // A connection that breaks before Welcome says nothing at first.
    let mut sim = Sim::new();
    sim.give(Event::Start);
    for _ in 0..2 {
        let conn = sim.dialled().expect("a dial");
        sim.give(Event::Dialled(conn)).give(Event::Ended(conn, End::Broke("reset".into())));
        sim.wake();
    }
    let conn = sim.dialled().expect("a dial");
    sim.give(Event::Dialled(conn)).give(Event::Ended(conn, End::Broke("reset".into())));
    sim.wake();
    assert!(sim.did(|it| matches!(it, Effect::Renew)));
}

#[test]
fn leaving_refuses_work_and_ends_with_a_last_word() {
    let mut sim = Sim::new();
    let conn = sim.up();
    sim.frame(conn, FromController::Leave);
    assert!(sim.did(|it| matches!(it, Effect::Remove)));
    assert!(sim.frame(conn, FromController::Leave).last.is_empty(), "told twice");
    sim.frame(conn, FromController::Dispatch { dispatch: dispatch(1, 5), not_after_ms: None });
    assert!(sim.did(|it| matches!(it, Effect::Send(_, ToController::Refused { .. }))));
    sim.give(Event::Removed { left_behind: vec!["/x".into()] });
    assert!(sim.did(|it| matches!(it, Effect::Send(_, ToController::Left(left)) if left == &["/x"])));
    assert!(matches!(sim.last.last(), Some(Effect::End { clean: false })));

    // Without a session it ends all the same, and does not dial again meanwhile.
    let mut sim = Sim::new();
    let conn = sim.up();
    sim.frame(conn, FromController::Leave).give(Event::Ended(conn, End::Closed));
    assert_eq!(sim.session.wake_at(), None);
    sim.give(Event::Removed { left_behind: Vec::new() });
    assert!(matches!(sim.last.as_slice(), [Effect::End { .. }]));
}

/// It ends and is started anew by whoever watches over it; one that leaves has another end.
#[test]
fn a_restart_is_an_end_that_is_not_a_leaving() {
    let mut sim = Sim::new();
    let conn = sim.up();
    sim.frame(conn, FromController::Restart);
    assert!(matches!(sim.last.last(), Some(Effect::Restart)));
    let mut sim = Sim::new();
    let conn = sim.up();
    sim.frame(conn, FromController::Leave);
    assert!(sim.frame(conn, FromController::Restart).last.is_empty());
    // Only a controller that was welcomed can say so.
    let mut sim = Sim::new();
    sim.give(Event::Start);
    let conn = sim.dialled().unwrap();
    sim.give(Event::Dialled(conn)).frame(conn, FromController::Restart);
    assert!(!sim.did(|it| matches!(it, Effect::Restart)));
}
