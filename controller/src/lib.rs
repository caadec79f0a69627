//! The controller: command line, daemon, certificate authority, store, profiles.

mod archive;
pub mod backup;
pub mod bundle;
pub mod ca;
pub mod cli;
pub mod client;
pub mod daemon;
pub mod profile;
pub mod room;
pub mod seal;
pub mod store;
