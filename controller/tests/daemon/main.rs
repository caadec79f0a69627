//! The daemon over real connections, with a test double for the agent.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows tests by their attribute, not what they call"
)]

mod authorisation;
mod enrolment;
mod lifecycle;
mod runs;
mod sessions;
mod state;
mod support;
