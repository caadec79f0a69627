//! The daemon over real connections, with a test double for the agent.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows tests by their attribute, not what they call"
)]

mod again;
mod authorisation;
mod backup;
mod enrolment;
mod kinds;
mod lifecycle;
mod runs;
mod secrets;
mod sessions;
mod ssh_port;
mod state;
mod support;
mod vantage;
