//! What ends a command: what went wrong, where, and what to do next, with a stable code.

use std::error::Error;
use std::fmt::Write as _;

use super::clean;
use crate::client::{ClientError, StartFailure};

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything is as it was asked for.
    Ok,
    /// A host or a task failed.
    Failed,
    /// Wrong usage, or something in Postern itself.
    Usage,
}

impl Exit {
    /// The process's exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
        }
    }
}

/// What ends a command.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) exit: Exit,
    /// Stable: scripts may look at it.
    pub(crate) code: String,
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hint: Option<String>,
    /// One line each below the message: addresses that were tried and the like.
    pub(crate) details: Vec<String>,
}

impl CliError {
    /// Wrong usage, or a failure that is no host's.
    pub(crate) fn usage(code: &str, message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, code, message)
    }

    /// A host or a task failed.
    pub(crate) fn failed(code: &str, message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, code, message)
    }

    fn new(exit: Exit, code: &str, message: impl Into<String>) -> Self {
        Self { exit, code: code.into(), message: message.into(), hint: None, details: Vec::new() }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!("error[{}]: {}", self.code, clean::line(&self.message));
        for detail in &self.details {
            let _ = write!(text, "\n  {}", clean::line(detail));
        }
        if let Some(hint) = &self.hint {
            let _ = write!(text, "\nhint: {}", clean::line(hint));
        }
        text
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "schema": "postern/error/v1",
            "code": self.code,
            "message": self.message,
            "details": self.details,
            "hint": self.hint,
        })
    }
}

/// A message with its causes, each said once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            let _ = write!(text, ": {said}");
        }
        source = cause.source();
    }
    text
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        // Not the whole chain: behind a refusal is only gRPC's own account of it.
        let message = match &error {
            ClientError::Refused { .. } => error.to_string(),
            other => chain(other),
        };
        // What a host's state does not allow is the host's failure.
        let cli = match error.code() {
            code @ "failed-precondition" => Self::failed(code, message),
            code => Self::usage(code, message),
        };
        match error.code() {
            "not-found" => {
                cli.hint("`postern hosts`, `postern runs` and `postern secret list` show what there is")
            }
            "daemon-foreign" => cli.hint("use a state directory of your own (--state-dir)"),
            "daemon-too-old" => cli.hint("the daemon that runs is older than this command: restart it"),
            "daemon-unreachable" => cli.hint("look at daemon.log in the state directory"),
            _ => cli,
        }
    }
}

impl From<StartFailure> for CliError {
    fn from(error: StartFailure) -> Self {
        match error {
            StartFailure::Client(error) => error.into(),
            error => {
                let cli = Self::usage(error.code(), chain(&error));
                match &error {
                    StartFailure::Disk { .. } => cli.hint("name a directory of your own with --state-dir"),
                    _ => cli.hint("`postern serve` in a terminal shows why; its log is daemon.log in the state directory"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_state_is_a_failure_and_no_wrong_usage() {
        for (status, exit) in [
            (tonic::Status::failed_precondition("the host is quarantined"), Exit::Failed),
            (tonic::Status::invalid_argument("no"), Exit::Usage),
            (tonic::Status::internal("no"), Exit::Usage),
        ] {
            assert_eq!(CliError::from(ClientError::from(status)).exit, exit);
        }
    }
}
