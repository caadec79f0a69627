//! A login and nothing more: that there is a way in, and that it leads to the very host.

use std::net::IpAddr;
use std::time::Duration;

use crate::api::{Console, Options};
use crate::bootstrap::enter;
use crate::error::{BootstrapError, Code};
use crate::exec::{self, Input};
use crate::report::Clock;
use crate::route::disconnect;

/// sshd says it to every session.
const ASK: &str = "echo \"$SSH_CONNECTION\"";
const DEADLINE: Duration = Duration::from_secs(20);

/// Logs in, asks from which address that came as the host sees it, and logs out. Whose host it is says the key of
/// [`Options::host_key`](crate::HostKeyPolicy); nothing is learned of it.
pub async fn log_in(options: Options, console: &dyn Console) -> Result<IpAddr, BootstrapError> {
    let mut clock = Clock::new(console);
    let connection = Box::pin(enter(&options, console, &mut clock)).await?;
    let what = "asking where a login comes from";
    let output = exec::run(&connection.handle, ASK, Input::default(), what, DEADLINE).await;
    disconnect(connection).await;
    let output = output?;
    let from = output.stdout.split_whitespace().next().and_then(|text| text.parse::<IpAddr>().ok());
    match (output.code, from) {
        (Some(0), Some(from)) => Ok(from.to_canonical()),
        _ => Err(BootstrapError::new(
            Code::Unexpected,
            format!("a login there runs no command: {}", output.complaint()),
        )),
    }
}
