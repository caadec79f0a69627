//! What happens by the clock: runs expire, the controller's certificate is renewed, a private daemon ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::listen::Connections;
use super::shared::Shared;
use super::tls::Current;

/// What was sent before its time ran out may still come back as accepted for so long.
const EXPIRY_GRACE: Duration = Duration::from_secs(60);
/// A clock that jumps is noticed after this at the latest.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// How long a certificate may be in use that a corrected clock has made invalid.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(60);
/// After a failure.
const RETRY: Duration = Duration::from_secs(10);

/// When the next run expires, so that a new one costs a look at all of them only when it comes first.
pub(crate) struct Expiry {
    /// Milliseconds since the Unix epoch.
    due_ms: AtomicI64,
    sooner: Notify,
}

impl Default for Expiry {
    fn default() -> Self {
        Self { due_ms: AtomicI64::new(i64::MAX), sooner: Notify::new() }
    }
}

impl Expiry {
    /// A run was written down that expires then.
    pub(crate) fn expect(&self, at_ms: i64) {
        if self.due_ms.fetch_min(at_ms, Ordering::AcqRel) > at_ms {
            self.sooner.notify_one();
        }
    }

    /// Before the runs are looked at: whoever comes after this is seen by that look, or calls for another.
    fn forget(&self) {
        self.due_ms.store(i64::MAX, Ordering::Release);
    }
}

/// Expires runs when they are due.
pub(crate) async fn expire(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let now_ms = shared.clock.now_ms();
        shared.expiry.forget();
        let grace_ms = i64::try_from(EXPIRY_GRACE.as_millis()).unwrap_or(0);
        let sleep = match shared.store.expire(now_ms, grace_ms).await {
            Ok(expiry) => {
                for run in expiry.ended {
                    tracing::info!(%run, "run expired");
                    shared.hub.runs.wake(run);
                }
                shared.expiry.due_ms.fetch_min(expiry.next_ms.unwrap_or(i64::MAX), Ordering::AcqRel);
                expiry.next_ms.map_or(LONGEST_SLEEP, |next_ms| {
                    Duration::from_millis(u64::try_from(next_ms.saturating_sub(now_ms)).unwrap_or(0))
                })
            }
            Err(crate::store::OpError::Closed) => return,
            Err(error) => {
                tracing::error!(%error, "expiring runs failed");
                RETRY
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.expiry.sooner.notified() => {
                // A run's time to live is much longer than this; many at once are looked at once.
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                }
            }
            () = tokio::time::sleep(sleep.min(LONGEST_SLEEP)) => {}
        }
    }
}

/// Gives the port a new certificate before the one in use is too old.
pub(crate) async fn renew(shared: Arc<Shared>, current: Arc<Current>, stop: CancellationToken) {
    let mut issued = shared.clock.now();
    let mut renew_at = issued + crate::ca::SERVER_LIFE / 2;
    loop {
        let left = renew_at.duration_since(shared.clock.now()).unwrap_or(Duration::ZERO);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(left.min(LOOK_AT_CLOCK)) => {}
        }
        let now = shared.clock.now();
        // A clock that was put back: the certificate is not valid yet.
        let too_early = now + crate::ca::BACKDATE < issued;
        if now < renew_at && !too_early {
            continue;
        }
        let renewed = shared.ca.issue_server(shared.clock.now()).map_err(|error| error.to_string());
        let renewed = renewed.and_then(|certificate| {
            (issued, renew_at) = (now, certificate.renew_at);
            current.set(certificate).map_err(|error| error.to_string())
        });
        match renewed {
            Ok(()) => tracing::info!("the controller's certificate was renewed"),
            Err(error) => {
                tracing::error!(%error, "the controller's certificate could not be renewed");
                (issued, renew_at) = (now, now + LONGEST_SLEEP);
            }
        }
    }
}

/// Says when a private daemon has been idle long enough: no operator connected and no run under way.
pub(crate) async fn idle(
    shared: Arc<Shared>,
    operators: Connections,
    after: Duration,
    finished: Arc<watch::Sender<bool>>,
    stop: CancellationToken,
) {
    let mut connected = operators.watch();
    loop {
        let quiet = async {
            if connected.wait_for(|count| *count == 0).await.is_err() {
                return false;
            }
            tokio::time::timeout(after, connected.wait_for(|count| *count > 0)).await.is_err()
        };
        let quiet = tokio::select! {
            () = stop.cancelled() => return,
            quiet = quiet => quiet,
        };
        if !quiet {
            continue;
        }
        match shared.store.open_runs().await {
            Ok(0) => {
                tracing::info!("idle: the private daemon ends");
                finished.send_replace(true);
                return;
            }
            Ok(_) => {}
            Err(crate::store::OpError::Closed) => return,
            Err(error) => tracing::warn!(%error, "counting runs failed"),
        }
    }
}
