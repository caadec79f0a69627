//! The engine on a host that is a directory, with no controller or a scripted double of one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

mod crash;
mod disk;
#[path = "../support/docker.rs"]
mod docker;
mod guard;
mod guard_service;
mod kinds;
mod output;
mod put_off;
mod runs;
mod secrets;
mod speed;
#[path = "../support/engine.rs"]
mod support;
mod terms;
mod undo;
#[path = "../support/guard.rs"]
mod vantage;
