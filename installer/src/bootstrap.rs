//! The bootstrap itself, step by step.

use crate::api::{Console, Controller, Options};
use crate::error::{BootstrapError, Code};
use crate::report::Report;

/// Bootstraps a host: see the crate's documentation. Safe to repeat from any point.
pub async fn bootstrap(
    options: Options,
    console: &dyn Console,
    controller: &dyn Controller,
) -> Result<Report, BootstrapError> {
    let _ = (options, console, controller);
    Err(BootstrapError::new(Code::Unexpected, "the bootstrap is not written yet"))
}
