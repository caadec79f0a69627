//! What always holds, whatever a random peer and a random network do.

use std::collections::HashSet;
use std::time::Duration;

use postern_agent::link::session::{Effect, End, Event, Level};
use postern_agent::link::wire::{FromController, GoodbyeReason, Welcome};
use postern_proto::ids::{ClusterId, RunId};
use proptest::prelude::*;

use super::{NOW, Sim, dispatch};
use crate::support::DAY;

/// What they do.
#[derive(Clone, Debug)]
enum Move {
    Wake,
    Connect,
    FailToConnect(bool),
    Welcome { epoch: u64, foreign: bool, renew: bool },
    Goodbye(u8, u64),
    End(u8, bool),
    Frame(u8),
    Renew(bool),
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        4 => Just(Move::Wake),
        4 => Just(Move::Connect),
        2 => any::<bool>().prop_map(Move::FailToConnect),
        4 => (3..8u64, any::<bool>(), any::<bool>())
            .prop_map(|(epoch, foreign, renew)| Move::Welcome { epoch, foreign: foreign && renew, renew }),
        2 => (0..7u8, any::<u64>()).prop_map(|(reason, after)| Move::Goodbye(reason, after)),
        2 => (0..5u8, any::<bool>()).prop_map(|(how, old)| Move::End(how, old)),
        2 => (0..5u8).prop_map(Move::Frame),
        2 => any::<bool>().prop_map(Move::Renew),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn trap_40_never_gives_up_and_says_hello_once(moves in proptest::collection::vec((any_move(), any::<u32>()), 1..120)) {
        let mut sim = Sim::new();
        let (mut greeted, mut dialling, mut greeting, mut renewing) =
            (HashSet::new(), None, None, false);
        let mut highest = 5;
        sim.give(Event::Start);
        for (step, random) in moves {
            for effect in std::mem::take(&mut sim.last) {
                match effect {
                    Effect::Dial(conn) => dialling = Some(conn),
                    Effect::Greet(conn) => {
                        prop_assert!(greeted.insert(conn), "a second Hello");
                        greeting = Some(conn);
                    }
                    Effect::Renew => {
                        prop_assert!(!renewing, "two renewals at once");
                        renewing = true;
                    }
                    Effect::SetEpoch(epoch) => {
                        prop_assert!(epoch > highest);
                        highest = epoch;
                    }
                    Effect::Attach { conn, .. } => prop_assert_eq!(sim.session.live(), Some(conn)),
                    Effect::Note(Level::Info | Level::Warn | Level::Error, _) => {}
                    _ => {}
                }
            }
            // What has always to hold.
            prop_assert!(
                sim.session.live().is_some() || sim.session.wake_at().is_some() || renewing,
                "it has given up after {step:?}"
            );
            if let Some(wake) = sim.session.wake_at() {
                prop_assert!(wake <= sim.at + Duration::from_secs(2 * 86_400));
            }
            sim.random = random;
            let live = sim.session.live();
            match step {
                Move::Wake => { if sim.session.wake_at().is_some() { sim.wake(); } }
                Move::Connect => { if let Some(conn) = dialling.take() { sim.give(Event::Dialled(conn)); } }
                Move::FailToConnect(certificate_refused) => if let Some(conn) = dialling.take() {
                    sim.give(Event::DialFailed { conn, why: "no".into(), certificate_refused });
                },
                Move::Welcome { epoch, foreign, renew } => if let Some(conn) = greeting.or(live) {
                    let cluster = if foreign { ClusterId::generate() } else { sim.cluster };
                    let welcome = Welcome { cluster, epoch, renew, ..sim.welcome() };
                    sim.frame(conn, FromController::Welcome(welcome));
                },
                Move::Goodbye(reason, after) => if let Some(conn) = live.or(greeting) {
                    use GoodbyeReason::*;
                    let reason = [Other, Shutdown, Shed, Replaced, Quarantined, Protocol, Version][usize::from(reason)];
                    sim.goodbye(conn, reason, Duration::from_millis(after));
                },
                Move::End(how, old) => {
                    let conn = if old { live.or(greeting) } else { greeting.or(live) };
                    if let Some(conn) = conn {
                        let end = [
                            End::Closed,
                            End::Broke("x".into()),
                            End::Unavailable("x".into()),
                            End::Refused("x".into()),
                            End::Invalid("x".into()),
                        ][usize::from(how)].clone();
                        sim.give(Event::Ended(conn, end));
                    }
                }
                Move::Frame(which) => if let Some(conn) = live.or(greeting) {
                    let frame = match which {
                        0 => FromController::Ping(1),
                        1 => FromController::Unknown,
                        2 => FromController::Cancel(RunId::generate()),
                        3 => FromController::Secrets(RunId::generate(), Vec::new()),
                        _ => FromController::Dispatch { dispatch: dispatch(1, 5), not_after_ms: None },
                    };
                    sim.frame(conn, frame);
                },
                Move::Renew(good) => if std::mem::take(&mut renewing) {
                    let from = NOW + i64::try_from(sim.at.as_secs()).unwrap();
                    sim.give(if good {
                        Event::Renewed { validity_s: (from, from + DAY) }
                    } else {
                        Event::RenewFailed { why: "no".into(), revoked: false }
                    });
                },
            }
        }
    }
}
