//! When the certificate is renewed, and what comes of it.

use std::time::Duration;

use super::super::backoff::share;
use super::{Delay, Effect, First, Level, Moment, Session};

/// Not more often than this does a refused session lead to a renewal.
const RENEWAL_PAUSE: Duration = Duration::from_secs(600);

impl Session {
    pub(super) fn renewal_allowed(&self, now: Moment) -> First {
        let recent = self.renewed_at.is_some_and(|at| now.at.saturating_sub(at) < RENEWAL_PAUSE);
        if recent { First::Dial } else { First::Renew }
    }

    /// Half of the certificate's life, less up to a tenth of what is left until then, so that hosts that were
    /// enrolled together do not renew together.
    pub(super) fn plan_renewal(&mut self, unix_ms: i64, now: Moment) {
        let (from, to) = self.settings.validity_s;
        let half_ms = (from / 2 + to / 2).saturating_mul(1000);
        let wait = Duration::from_millis(u64::try_from(half_ms.saturating_sub(unix_ms)).unwrap_or(0));
        let wait = wait - share(wait / 10, now.random);
        let soonest = match self.renew_failures {
            0 => Duration::ZERO,
            failures => self.renewal_delay(failures, now),
        };
        self.renew_at = Some(now.at + wait.max(soonest));
    }

    fn renewal_delay(&self, failures: u32, now: Moment) -> Duration {
        let timing = &self.settings.timing;
        timing.backoff.delay(failures, now.random).max(timing.renewal_retry)
    }

    pub(super) fn renew(&mut self, now: Moment) {
        self.renew_at = None;
        if !self.renewing && !self.leaving {
            self.renewing = true;
            self.renewed_at = Some(now.at);
            self.out.push(Effect::Renew);
        }
    }

    pub(super) fn renewed(&mut self, validity_s: (i64, i64), now: Moment) {
        self.renewing = false;
        self.renew_failures = 0;
        self.settings.validity_s = validity_s;
        self.note(Level::Info, "the certificate was renewed".into());
        self.plan_renewal(now.unix_ms, now);
        if self.attempt.is_some() {
            // It uses the old certificate; the session after it will not.
            self.stale = true;
        } else {
            self.dial(now);
        }
    }

    pub(super) fn renew_failed(&mut self, why: &str, now: Moment) {
        self.renewing = false;
        self.renew_failures = self.renew_failures.saturating_add(1);
        self.note(Level::Warn, format!("the certificate could not be renewed: {why}"));
        self.renew_at = Some(now.at + self.renewal_delay(self.renew_failures, now));
        if self.live.is_none() && self.attempt.is_none() && self.retry.is_none() && !self.leaving {
            // The host's clock may be wrong and the certificate good: what there is, is tried.
            self.plan(Delay::Normal(Duration::ZERO), First::Dial, now);
        }
    }
}
