//! Removing the agent from a host whose session is down.

use std::time::Duration;

use zeroize::Zeroizing;

use crate::api::{Console, Options, Step};
use crate::bootstrap::enter;
use crate::error::{BootstrapError, Code};
use crate::exec;
use crate::plan::disk_code;
use crate::report::Clock;
use crate::root;
use crate::route::disconnect;
use crate::script;

const DEADLINE: Duration = Duration::from_secs(120);

/// What a removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoveReport {
    /// The host's own name.
    pub host: String,
    /// What was there and is gone, paths; empty when there was no agent.
    pub removed: Vec<String>,
}

/// Removes agent, unit, configuration and state over SSH. What the agent provisioned stays, and what it
/// started goes on. Safe to repeat.
pub async fn remove(options: Options, console: &dyn Console) -> Result<RemoveReport, BootstrapError> {
    let mut clock = Clock::new(console);
    let connection = Box::pin(enter(&options, console, &mut clock)).await?;
    let (facts, root) = root::survey(&connection.handle, &options, console).await?;
    clock.end(Step::Survey, facts.os_name.clone());
    let input = root.input().secret(Zeroizing::new(script::remove()));
    let what = "removing the agent";
    let output = exec::run(&connection.handle, root.shell, input, what, DEADLINE).await;
    disconnect(connection).await;
    let output = output?;
    let lines = || output.stdout.lines().filter_map(|line| line.split_once('='));
    if !lines().any(|line| line == ("end", "remove")) {
        let mut complaint = output.complaint();
        if let Some((_, part)) = lines().find(|(key, _)| *key == "error") {
            complaint = format!("{part}: {complaint}");
        }
        let code = if output.code.is_none() {
            Code::ConnectionCut
        } else {
            disk_code(&complaint).unwrap_or(Code::InstallFailed)
        };
        return Err(BootstrapError::new(code, format!("{what}: {complaint}"))
            .with_hint("see what the host says, and repeat"));
    }
    let removed = lines().filter(|(key, _)| *key == "removed").map(|(_, path)| path.to_owned()).collect();
    Ok(RemoveReport { host: facts.name, removed })
}
