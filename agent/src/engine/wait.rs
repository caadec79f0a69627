//! How a run waits for what only the controller has: it says so, and a cancel still reaches it.

use std::collections::BTreeSet;
use std::sync::Arc;

use postern_proto::event::EventKind;
use tokio::time::Instant;

use super::guarded::look_once;
use super::run::{RunTask, Stop, clamp};

impl RunTask {
    /// Returns when something has changed: a secret came, an operator cancelled, or it is parked from now on.
    /// The link has no deadline, so this has none either; cancelling ends it.
    pub(super) async fn wait(&mut self, waiting: &[usize]) -> Result<(), Stop> {
        self.commit().await?;
        // What is seen now may be hours old when this is over.
        self.ahead.clear();
        let changed = self.secrets.as_ref().map(|secrets| Arc::clone(&secrets.changed));
        let changed = async {
            match changed {
                Some(changed) => changed.notified().await,
                None => std::future::pending().await,
            }
        };
        let next = self.held.iter().min_by_key(|(_, held)| held.until);
        let next = next.map(|(index, held)| (*index, held.until, held.predicates.clone()));
        let vantage = self.ctx.config.vantage.clone();
        let tried = async {
            match next {
                Some((index, until, predicates)) => {
                    tokio::time::sleep_until(until).await;
                    (index, look_once(vantage.as_deref(), &predicates).await)
                }
                None => std::future::pending().await,
            }
        };
        let since = *self.waits_since.get_or_insert_with(Instant::now);
        let (due, parked) = (since + self.ctx.config.limits.park_after, self.parked);
        let cancelled = async {
            if self.cancel.wait_for(|cancelled| *cancelled).await.is_err() {
                // Nobody can cancel any more: the engine is ending.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = changed => {}
            (index, seen) = tried => match seen {
                Err(unseen) if !unseen.for_good => {
                    if let Some(held) = self.held.get_mut(&index) {
                        held.again(unseen.why);
                    }
                }
                // It can be confirmed, or never will be: either way it goes on, and tells.
                Ok(_) | Err(_) => drop(self.held.remove(&index)),
            },
            () = cancelled => {}
            () = tokio::time::sleep_until(due), if !parked => {
                let lacking: BTreeSet<_> = waiting.iter().flat_map(|index| self.lacks(*index)).collect();
                let mut reasons = Vec::new();
                if !lacking.is_empty() {
                    let names: Vec<String> =
                        lacking.iter().map(|secret| format!("{} (version {})", secret.id, secret.version)).collect();
                    reasons.push(format!("waits for the controller to give it secrets: {}", names.join(", ")));
                }
                if let Some((index, held)) = self.held.first_key_value() {
                    reasons.push(format!(
                        "waits for the controller, which has to confirm {}: {}",
                        self.plan.resources[*index].address, held.why
                    ));
                }
                if reasons.is_empty() {
                    return Ok(());
                }
                let why = reasons.join("; ");
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
