//! The link of an agent: its state machine, over real sockets, and the program itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

mod binary;
mod network;
mod session;
mod support;
