//! Trusted time: what the agent believes the time to be when its host's clock may be years off (T49).
//!
//! The rule. The agent keeps a *floor*, the latest time an authenticated controller told it, on disk beside its
//! identity. Its best knowledge of the time is, in this order: what a controller said in this process plus the
//! monotonic time since; otherwise the later of the host's clock and the floor. Validity of the controller's
//! certificate is judged at that time moved into the certificate's own window, except that nothing that ended
//! before the floor is ever accepted:
//!
//! - a certificate that "is not valid yet" is accepted: a CA does not sign ahead of its own clock, so its
//!   signature over that date is better evidence of the time than a host's clock;
//! - a certificate that "has expired" by the host's clock is accepted while it ends after the floor, since the
//!   clock may be fast.
//!
//! The risk. Whoever holds the stolen key of a controller certificate that has expired can still pass for the
//! controller towards an agent that has heard from no controller since that certificate ended. Chain, purpose
//! and name are checked always, so nothing else is given up; without the rule a fast clock would strand a host.
//!
//! The floor itself cannot be pushed arbitrarily far: a controller moves it at most to the end of the
//! certificate it presented, so a controller with a fast clock cannot lock its agents out either.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::time::Instant;

/// Reads a host's clock: seconds since the Unix epoch. Tests put a wrong one here.
pub type WallClock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The clock of the host.
#[must_use]
pub fn host_clock() -> WallClock {
    Arc::new(|| match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(_) => 0,
    })
}

/// Trusted time, shared by everything that judges or makes a date.
#[derive(Clone)]
pub struct TrustedTime {
    wall: WallClock,
    known: Arc<Mutex<Known>>,
}

impl std::fmt::Debug for TrustedTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrustedTime").field("floor_s", &self.floor_s()).finish_non_exhaustive()
    }
}

struct Known {
    floor_s: i64,
    /// When in this process a controller said what time it is.
    told: Option<(Instant, i64)>,
}

impl TrustedTime {
    /// Starts from a stored floor (0 when there is none).
    #[must_use]
    pub fn new(wall: WallClock, floor_s: i64) -> Self {
        Self { wall, known: Arc::new(Mutex::new(Known { floor_s, told: None })) }
    }

    /// Milliseconds since the Unix epoch, as well as it is known.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.told {
            Some((at, ms)) => ms.saturating_add(i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX)),
            None => (self.wall)().max(known.floor_s).saturating_mul(1000),
        }
    }

    /// Seconds since the Unix epoch, as well as it is known.
    #[must_use]
    pub fn now_s(&self) -> i64 {
        self.now_ms().div_euclid(1000)
    }

    /// How far the host's clock is from what is known of the time, seconds, more is ahead. Where no controller spoke
    /// in this process only a clock before the floor is known to be wrong, by at least this; `None` where nothing is
    /// known against it.
    #[must_use]
    pub fn off_s(&self) -> Option<i64> {
        let (told, floor_s) = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            (known.told.is_some(), known.floor_s)
        };
        let wall = (self.wall)();
        match told {
            true => Some(wall.saturating_sub(self.now_s())),
            false => Some(wall.saturating_sub(floor_s)).filter(|off| *off < 0),
        }
    }

    /// What was stored of an earlier process: the floor is at least this.
    pub fn raise_floor(&self, floor_s: i64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.floor_s = known.floor_s.max(floor_s);
    }

    /// The floor: no accepted certificate ended before it.
    #[must_use]
    pub fn floor_s(&self) -> i64 {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).floor_s
    }

    /// An authenticated controller said what time it is; its certificate ends at `certificate_end_s`.
    pub fn told(&self, now_ms: i64, certificate_end_s: i64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.told = Some((Instant::now(), now_ms));
        known.floor_s = known.floor_s.max(now_ms.div_euclid(1000).min(certificate_end_s));
    }

    /// The time at which a chain that is valid from `from_s` to `to_s` is to be judged; `None` where it ended
    /// before the floor.
    #[must_use]
    pub fn judge_at(&self, from_s: i64, to_s: i64) -> Option<i64> {
        let (now, floor) = (self.now_s(), self.floor_s());
        if to_s < floor || from_s > to_s {
            return None;
        }
        Some(now.max(floor).clamp(from_s, to_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: i64 = 365 * 86_400;
    const NOW: i64 = 1_800_000_000;

    fn at(wall: i64, floor: i64) -> TrustedTime {
        TrustedTime::new(Arc::new(move || wall), floor)
    }

    #[test]
    fn trap_49_a_clock_ten_years_off_locks_nobody_out() {
        let (from, to) = (NOW - 86_400, NOW + 86_400);
        for floor in [0, NOW - YEAR, NOW] {
            assert_eq!(at(NOW, floor).judge_at(from, to), Some(NOW));
            assert_eq!(at(NOW - 10 * YEAR, floor).judge_at(from, to), Some(floor.max(from)));
            assert_eq!(at(NOW + 10 * YEAR, floor).judge_at(from, to), Some(to));
        }
    }

    #[test]
    fn trap_29_how_far_a_clock_is_off_by_table() {
        for (wall, floor, told, want) in [
            (NOW, 0, None, None),
            (NOW, NOW + YEAR, None, Some(-YEAR)),
            (NOW + YEAR, NOW, None, None),
            (NOW + 7, NOW, Some(NOW), Some(7)),
            (NOW - 7200, 0, Some(NOW), Some(-7200)),
        ] {
            let time = at(wall, 0);
            time.raise_floor(floor);
            if let Some(told) = told {
                time.told(told * 1000, NOW + YEAR);
            }
            assert_eq!(time.off_s(), want, "{wall} {floor} {told:?}");
        }
    }

    #[test]
    fn what_ended_before_the_floor_is_never_accepted() {
        let old = (NOW - 2 * YEAR, NOW - YEAR);
        for wall in [NOW - 10 * YEAR, NOW - YEAR - 1, NOW, NOW + 10 * YEAR] {
            assert_eq!(at(wall, NOW).judge_at(old.0, old.1), None);
        }
        assert_eq!(at(NOW, 0).judge_at(NOW, NOW - 1), None, "an empty window");
    }

    #[test]
    fn the_floor_only_rises_and_no_further_than_the_certificate_that_vouches_for_it() {
        let time = at(NOW - 10 * YEAR, NOW - YEAR);
        time.told(NOW * 1000, NOW + YEAR);
        assert_eq!((time.floor_s(), time.now_s()), (NOW, NOW));
        time.told((NOW - 5) * 1000, NOW + YEAR);
        assert_eq!((time.floor_s(), time.now_s()), (NOW, NOW - 5));
        // A controller whose clock is ten years fast.
        time.told((NOW + 10 * YEAR) * 1000, NOW + YEAR);
        assert_eq!(time.floor_s(), NOW + YEAR);
        assert!(time.judge_at(NOW, NOW + YEAR).is_some());
    }
}
