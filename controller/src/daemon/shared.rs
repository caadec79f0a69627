//! What every part of a running daemon holds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::{Clock, Limits};
use super::hub::Hub;
use super::session::Now;
use super::upkeep::Expiry;
use super::vantage::Looks;
use crate::ca::Authority;
use crate::store::Store;

pub(crate) struct Shared {
    pub(crate) state_dir: PathBuf,
    pub(crate) store: Store,
    pub(crate) ca: Authority,
    pub(crate) hub: Hub,
    pub(crate) clock: Clock,
    pub(crate) limits: Limits,
    pub(crate) advertise: Vec<String>,
    pub(crate) listen: SocketAddr,
    pub(crate) private: bool,
    pub(crate) started: Instant,
    /// Session drivers, so that a stop can wait for their last words.
    pub(crate) sessions: TaskTracker,
    pub(crate) stop_sessions: CancellationToken,
    /// Held by the backup that is under way.
    pub(crate) backup: Arc<tokio::sync::Mutex<()>>,
    /// When the next run expires.
    pub(crate) expiry: Expiry,
    /// Looks at hosts from outside.
    pub(crate) looks: Looks,
}

impl Shared {
    pub(crate) fn now(&self) -> Now {
        Now { mono: self.started.elapsed(), unix_ms: self.clock.now_ms() }
    }
}
