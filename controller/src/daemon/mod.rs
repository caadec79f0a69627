//! The daemon.
mod config;
pub use config::{Clock, DaemonConfig, Limits, StartError, socket_path};
