//! The agent: dials the controller, executes plans on the host, and outlives SSH.

pub mod cli;
pub mod config;
pub mod engine;
pub mod facts;
mod firewall;
pub mod guard;
pub mod journal;
pub mod leave;
pub mod link;
pub mod resources;
pub mod supervise;
pub mod sys;
