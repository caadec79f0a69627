//! What a bootstrap did.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use postern_proto::ids::HostId;

use crate::api::{Console, Progress, SessionUp, Step};
use crate::preflight::Preflight;
use crate::route::TemporaryRoute;
use crate::survey::HostFacts;

/// What became of the agent on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// There was none, or one that belonged to another controller.
    Installed,
    /// Another version's program was replaced, or its configuration or unit.
    Upgraded,
    /// It was the right one, it ran, and it was not touched.
    LeftAlone,
}

/// How long a step took.
#[derive(Clone, Copy, Debug)]
pub struct StepTime {
    /// Which.
    pub step: Step,
    /// Steps overlap, so these do not add up to the whole.
    pub took: Duration,
}

/// What a bootstrap did.
#[derive(Debug)]
pub struct Report {
    /// Who the host is.
    pub host_id: HostId,
    /// What it is.
    pub facts: HostFacts,
    /// What was checked before anything was changed.
    pub preflight: Preflight,
    /// The steps that were made, in order.
    pub steps: Vec<StepTime>,
    /// From the first connect to the close, or to the session where a temporary route keeps SSH open.
    pub took: Duration,
    /// What became of the agent.
    pub action: Action,
    /// The session that came up.
    pub session: SessionUp,
    /// Other addresses at which the same SSH server was seen to answer.
    pub also_at: Vec<IpAddr>,
    /// Whether the agent's only way to the controller is this process's SSH connection.
    pub temporary_route: bool,
    /// Keeps that route; it ends when this is dropped or closed. `None` otherwise: SSH is closed.
    pub guard: Option<TemporaryRoute>,
}

/// Tells the console what goes on and keeps the time of each step. Steps may overlap.
pub(crate) struct Clock<'a> {
    console: &'a dyn Console,
    pub(crate) started: Instant,
    open: Vec<(Step, Instant)>,
    closed: Vec<StepTime>,
}

impl<'a> Clock<'a> {
    pub(crate) fn new(console: &'a dyn Console) -> Self {
        Self { console, started: Instant::now(), open: Vec::new(), closed: Vec::new() }
    }

    pub(crate) fn begin(&mut self, step: Step) {
        if !self.open.iter().any(|(open, _)| *open == step) {
            self.open.push((step, Instant::now()));
        }
    }

    pub(crate) fn detail(&mut self, step: Step, detail: String, count: Option<u32>) {
        self.begin(step);
        self.tell(step, detail, count, false);
    }

    /// The handshake with the target follows its connect without a seam; those of jump hosts belong to
    /// connecting.
    pub(crate) fn host_key_begins(&mut self, jump: bool) {
        if !jump {
            self.begin(Step::HostKey);
        }
    }

    pub(crate) fn end(&mut self, step: Step, detail: impl Into<String>) {
        let Some(index) = self.open.iter().position(|(open, _)| *open == step) else { return };
        let (step, since) = self.open.remove(index);
        self.closed.push(StepTime { step, took: since.elapsed() });
        self.tell(step, detail.into(), None, true);
    }

    pub(crate) fn finish(mut self) -> Vec<StepTime> {
        self.closed.sort_by_key(|time| time.step);
        self.closed
    }

    fn tell(&self, step: Step, detail: String, count: Option<u32>, done: bool) {
        let of = Step::ALL.len() as u8;
        self.console.progress(&Progress { step, of, what: step.what(), detail, count, done });
    }
}
