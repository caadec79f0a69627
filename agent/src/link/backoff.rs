//! How long to wait before the next try: exponential with full jitter.
//!
//! Full jitter (a delay drawn evenly from nothing to the bound) spreads a fleet that lost its controller at one
//! moment best: <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>.

use std::time::Duration;

/// Bounds of the delay.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The bound after the first failure; doubles with each.
    pub base: Duration,
    /// It grows no further.
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(500), cap: Duration::from_secs(60) }
    }
}

impl Backoff {
    /// The bound after so many failures in a row.
    #[must_use]
    pub fn bound(&self, failures: u32) -> Duration {
        let doubled = 2u32.saturating_pow(failures.saturating_sub(1).min(31));
        self.base.saturating_mul(doubled).min(self.cap)
    }

    /// The delay, given a number drawn evenly from all of `u32`.
    #[must_use]
    pub fn delay(&self, failures: u32, random: u32) -> Duration {
        share(self.bound(failures), random)
    }
}

/// The share of a duration that a random number stands for.
#[must_use]
pub(super) fn share(of: Duration, random: u32) -> Duration {
    let nanos = (of.as_nanos() * u128::from(random)) >> 32;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
