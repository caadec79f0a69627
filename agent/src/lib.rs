//! The agent: dials the controller, executes plans on the host, and outlives SSH.

pub mod engine;
pub mod journal;
pub mod link;
pub mod resources;
pub mod supervise;
pub mod sys;
