//! How a run waits for what only the controller has: it says so, and a cancel still reaches it.

use std::collections::BTreeSet;
use std::sync::Arc;

use postern_proto::event::EventKind;
use tokio::time::Instant;

use super::run::{RunTask, Stop, clamp};

impl RunTask {
    /// Returns when something has changed: a secret came, an operator cancelled, or it is parked from now on.
    /// The link has no deadline, so this has none either; cancelling ends it.
    pub(super) async fn wait(&mut self, waiting: &[usize]) -> Result<(), Stop> {
        self.commit().await?;
        // What is seen now may be hours old when this is over.
        self.ahead.clear();
        let Some(secrets) = &self.secrets else { return Ok(()) };
        let changed = Arc::clone(&secrets.changed);
        let since = *self.waits_since.get_or_insert_with(Instant::now);
        let (due, parked) = (since + self.ctx.config.limits.park_after, self.parked);
        let cancelled = async {
            if self.cancel.wait_for(|cancelled| *cancelled).await.is_err() {
                // Nobody can cancel any more: the engine is ending.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = changed.notified() => {}
            () = cancelled => {}
            () = tokio::time::sleep_until(due), if !parked => {
                let lacking: BTreeSet<_> = waiting.iter().flat_map(|index| self.lacks(*index)).collect();
                if lacking.is_empty() {
                    return Ok(());
                }
                let names: Vec<String> =
                    lacking.iter().map(|secret| format!("{} (version {})", secret.id, secret.version)).collect();
                let why = format!("waits for the controller to give it secrets: {}", names.join(", "));
                self.emit(EventKind::Parked { why: clamp(&why) });
                self.parked = true;
                self.commit().await?;
            }
        }
        Ok(())
    }

    /// It goes on.
    pub(super) fn unpark(&mut self) {
        self.waits_since = None;
        if std::mem::take(&mut self.parked) {
            self.emit(EventKind::Unparked);
        }
    }

    /// Returns when the secrets of these are there, or an operator has cancelled.
    pub(super) async fn wait_for(&mut self, members: &[usize]) -> Result<(), Stop> {
        while !*self.cancel.borrow() && members.iter().any(|index| !self.is_ready(*index)) {
            self.wait(members).await?;
        }
        self.learn();
        self.unpark();
        Ok(())
    }
}
