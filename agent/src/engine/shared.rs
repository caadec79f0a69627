//! What handle, owner, runs and session share: the book and how far it was sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use postern_proto::event::StepId;
use postern_proto::ids::RunId;
use tokio::sync::Notify;

use super::book::Book;
use super::secrets::Vault;
use super::session::Session;

/// Shared by all parts of an engine; the lock is held for moments only.
#[derive(Default)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
    failed: OnceLock<String>,
    /// Told once, when the journal has failed.
    pub(super) failure: Notify,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) book: Book,
    pub(super) session: Option<Session>,
    /// Counts sessions: an older one ends when a newer begins.
    pub(super) generation: u64,
    /// Secrets of the runs at work.
    pub(super) vaults: BTreeMap<RunId, Vault>,
    /// Woken when there may be something to send.
    pub(super) waiting: Arc<Notify>,
}

impl Shared {
    pub(super) fn new(book: Book) -> Self {
        Self { inner: Mutex::new(Inner { book, ..Inner::default() }), ..Self::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds this; if it did, the book is still what the journal says.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the journal cannot be written any more.
    pub(super) fn failed(&self) -> Option<String> {
        self.failed.get().cloned()
    }

    pub(super) fn fail(&self, why: &str) {
        tracing::error!(why, "the journal can no longer be written");
        let _ = self.failed.set(why.to_owned());
        self.failure.notify_one();
    }

    /// The spool of a step may have grown.
    pub(super) fn output(&self, run: RunId, step: &StepId) {
        let mut inner = self.lock();
        if let Some(book) = inner.book.runs.get_mut(&run).and_then(|book| book.steps.get_mut(step)) {
            book.version += 1;
        }
        inner.touch(run);
        inner.wake();
    }
}

impl Inner {
    /// This run may have something to send.
    pub(super) fn touch(&mut self, run: RunId) {
        if let Some(session) = &mut self.session {
            session.touch(run, self.book.runs.contains_key(&run));
        }
    }

    pub(super) fn wake(&self) {
        self.waiting.notify_one();
    }
}
