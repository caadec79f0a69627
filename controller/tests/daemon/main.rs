//! The daemon over real connections, with a test double for the agent.

mod authorisation;
mod enrolment;
mod lifecycle;
mod runs;
mod sessions;
mod state;
mod support;
