//! Profiles from their text to a plan, and everything that is told of mistakes in them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod errors;
mod files;
mod hosts;
mod language;
mod plans;
mod support;
mod swarm;
