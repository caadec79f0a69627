//! The controller's memory: SQLite, owned by one thread that commits what has queued up in one transaction.
//!
//! Operations are typed and speak the domain's types; rows and SQL stay in here. Ids are never reused and a
//! forgotten host keeps a tombstone. Placeholders are `$1`, `$2`… in order of first use, so that the same
//! text serves PostgreSQL later.

mod again;
mod assigned;
mod chunk;
mod enrol;
mod error;
mod follow;
mod hosts;
mod record;
mod runs;
mod schema;
mod secrets;
mod session;
mod sql;
mod ssh_port;
mod types;
mod worker;

pub use again::Past;
pub use assigned::MAX_BUNDLES;
pub use enrol::{EnrolOutcome, Enrolment, KeyStatus, TokenFault, TokenHash};
pub use error::{OpError, StoreError};
pub use follow::{Page, Update, UpdateBody};
pub use hosts::Forgotten;
pub use record::{Batch, RunBatch, StepMove};
pub use runs::{CancelOutcome, Expiry};
pub use secrets::{Revealed, SecretBytes, SecretRecord, SecretSet};
pub use session::{OpenRefusal, OpenRequest, Opened};
pub use ssh_port::{SshDeclared, SshRecord};
pub use types::{
    Assigned, Dispatch, Facts, HostChange, HostRecord, HostState, NewRun, Progress, RunRecord, StepProgress,
};

use std::path::Path;
use std::sync::Arc;

use postern_proto::ids::ClusterId;
use rusqlite::Connection;

use self::worker::Queue;
use crate::seal::{KeyId, SealKey};

/// A handle on the store; cheap to clone. The store closes when the last handle is gone.
#[derive(Clone)]
pub struct Store {
    write: Queue,
    read: Queue,
    key: Arc<SealKey>,
    cluster: ClusterId,
    generation: u64,
}

impl Store {
    /// Makes an empty database. The caller has made sure that this is a first start.
    pub fn create(state_dir: &Path, authority: &str) -> Result<(), StoreError> {
        schema::create(state_dir, authority)
    }

    /// Opens the database that [`Store::create`] made for the authority with this fingerprint, bringing an
    /// older schema up to date. What it keeps encrypted is encrypted with `key`.
    pub fn open(state_dir: &Path, authority: &str, key: Arc<SealKey>) -> Result<Self, StoreError> {
        let opened = schema::open(state_dir, authority)?;
        schema::adopt_key(&opened.connection, state_dir, &key)?;
        let reader = schema::open_reader(state_dir)?;
        Ok(Self {
            write: Queue::start("postern-store", opened.connection, worker::Mode::GroupCommit)?,
            read: Queue::start("postern-read", reader, worker::Mode::Read)?,
            key,
            cluster: opened.cluster,
            generation: opened.generation,
        })
    }

    /// True when something lies where a database would.
    pub fn exists(state_dir: &Path) -> Result<bool, StoreError> {
        schema::is_there(state_dir)
    }

    /// The id of the key that secrets are encrypted with; `None` where none was ever used. Changes nothing.
    pub fn key_id(state_dir: &Path) -> Result<Option<String>, StoreError> {
        schema::key_id(state_dir)
    }

    /// True when there is a database that knows a host, also a forgotten one, or a secret. An error where that
    /// cannot be told.
    pub fn is_used(state_dir: &Path) -> Result<bool, StoreError> {
        schema::is_used(state_dir)
    }

    /// Removes what an unfinished first start left behind. Never called once anything was handed out.
    pub fn discard(state_dir: &Path) -> Result<(), StoreError> {
        schema::discard(state_dir)
    }

    /// Which controller this is.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The id of the key that secrets are encrypted with.
    #[must_use]
    pub fn secrets_key(&self) -> KeyId {
        self.key.id()
    }

    /// The file that this key was read from.
    #[must_use]
    pub fn secrets_key_file(&self) -> &Path {
        self.key.path()
    }

    /// Copies the database as of one moment into a new file, for this user only. Nobody waits for it. Blocks.
    pub fn snapshot(state_dir: &Path, to: &Path) -> Result<(), StoreError> {
        schema::snapshot(state_dir, to)
    }

    /// Marks a database that came from a backup, before a daemon opens it: what agents have seen may be more
    /// than is recorded, and what waited to be sent may have been sent. The new generation. Blocks.
    pub fn mark_restored(
        state_dir: &Path,
        authority: &str,
        key: &SealKey,
        now_ms: i64,
    ) -> Result<u64, StoreError> {
        schema::mark_restored(state_dir, authority, key, now_ms)
    }

    /// How often this controller was restored from a backup, counted from 1.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Waits until both threads have written down what was queued and closed the database. Operations after
    /// this fail with [`OpError::Closed`].
    pub async fn close(&self) {
        self.write.close().await;
        self.read.close().await;
    }

    async fn write<T: Send + 'static>(
        &self,
        action: &'static str,
        op: impl FnOnce(&Connection) -> Result<T, OpError> + Send + 'static,
    ) -> Result<T, OpError> {
        self.write.run(action, op).await
    }

    async fn read<T: Send + 'static>(
        &self,
        action: &'static str,
        op: impl FnOnce(&Connection) -> Result<T, OpError> + Send + 'static,
    ) -> Result<T, OpError> {
        self.read.run(action, op).await
    }
}
