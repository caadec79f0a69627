//! A login and nothing more: that there is a way in, and that it leads to the very host.

use std::time::Duration;

use crate::api::{Console, Options};
use crate::bootstrap::enter;
use crate::error::{BootstrapError, Code};
use crate::exec::{self, Input};
use crate::report::Clock;
use crate::route::disconnect;

const DEADLINE: Duration = Duration::from_secs(20);

/// Logs in, runs a command that does nothing, and logs out. Whose host it is says the key of
/// [`Options::host_key`](crate::HostKeyPolicy).
pub async fn log_in(options: Options, console: &dyn Console) -> Result<(), BootstrapError> {
    let mut clock = Clock::new(console);
    let connection = Box::pin(enter(&options, console, &mut clock)).await?;
    let output = exec::run(&connection.handle, "true", Input::default(), "a command there", DEADLINE).await;
    disconnect(connection).await;
    match output? {
        output if output.code == Some(0) => Ok(()),
        output => Err(BootstrapError::new(
            Code::Unexpected,
            format!("a login there runs no command: {}", output.complaint()),
        )),
    }
}
