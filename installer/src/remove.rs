//! Removing the agent from a host whose session is down.

use crate::api::{Console, Options};
use crate::error::{BootstrapError, Code};

/// What a removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoveReport {
    /// The host's own name.
    pub host: String,
    /// What was there and is gone, paths; empty when there was no agent.
    pub removed: Vec<String>,
}

/// Removes agent, unit, configuration and state over SSH. What the agent provisioned stays.
pub async fn remove(options: Options, console: &dyn Console) -> Result<RemoveReport, BootstrapError> {
    let _ = (options, console);
    Err(BootstrapError::new(Code::Unexpected, "removal is not written yet"))
}
