//! The lab (throw-away VPSs), the fault proxy, and what end-to-end tests and benchmarks share.
pub mod bench;
mod checks;
pub mod controls;
pub mod edge;
pub mod fingerprint;
pub mod lab;
pub mod load;
pub mod proxy;
pub mod rig;
pub mod scan;
pub mod time_server;
