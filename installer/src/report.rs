//! What a bootstrap did.

use std::time::Duration;

use postern_proto::ids::HostId;

use crate::api::{SessionUp, Step};
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
    /// Whether the agent's only way to the controller is this process's SSH connection.
    pub temporary_route: bool,
    /// Keeps that route; it ends when this is dropped or closed. `None` otherwise: SSH is closed.
    pub guard: Option<TemporaryRoute>,
}
