//! A scripted double of the controller's look at a host, and an engine in front of it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use postern_agent::engine;
use postern_agent::guard::{Unseen, Vantage};
use postern_proto::guard::{Found, Predicate};

use crate::support::{Host, Work};

/// What the controller answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "each test file uses a part of it")]
pub(crate) enum Says {
    /// It is reached.
    Yes,
    /// It is not.
    No,
    /// Nothing, for ever.
    Nothing,
    /// It will never look.
    Never,
    /// It is reached, and cannot look at anything.
    Blind,
    /// It is reached once the file `reached` is there.
    Later,
}

/// Answers as scripted; the last answer stays.
#[derive(Debug)]
struct Scripted {
    script: Mutex<VecDeque<Says>>,
    reached: PathBuf,
}

#[async_trait]
impl Vantage for Scripted {
    async fn look(&self, predicates: &[Predicate]) -> Result<Vec<Found>, Unseen> {
        let says = {
            let mut script = self.script.lock().unwrap();
            if script.len() > 1 { script.pop_front().unwrap() } else { script[0] }
        };
        match says {
            Says::Yes => Ok(Vec::new()),
            Says::No => Err(Unseen::now("nothing answers")),
            Says::Nothing => std::future::pending().await,
            Says::Never => Err(Unseen::for_good("too old")),
            Says::Blind if predicates.is_empty() => Ok(Vec::new()),
            Says::Later if self.reached.exists() => Ok(Vec::new()),
            Says::Blind | Says::Later => Err(Unseen::now("nobody looks")),
        }
    }
}

/// An engine in front of such a controller. What is not confirmed within seconds is taken back.
pub(crate) fn open(host: &Host, script: &[Says]) -> Work {
    open_for(host, script, Duration::from_secs(7))
}

pub(crate) fn open_for(host: &Host, script: &[Says], window: Duration) -> Work {
    std::fs::create_dir_all(host.root().join("etc/systemd/system")).unwrap();
    if !Path::new(&host.path("bin/systemctl")).exists() {
        host.fake("systemctl", "exit 0");
    }
    let mut config = host.config();
    let script = Mutex::new(script.iter().copied().collect());
    config.vantage = Some(Arc::new(Scripted { script, reached: host.path("reached").into() }));
    config.limits.guard_window = window;
    config.limits.park_after = Duration::from_millis(100);
    let (engine, driver) = engine::open(config).unwrap();
    Work { engine, driver: tokio::spawn(driver) }
}

pub(crate) fn guards_left(host: &Host) -> usize {
    std::fs::read_dir(host.state().join("guard")).map_or(0, Iterator::count)
}
