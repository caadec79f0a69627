//! The lab (throw-away VPSs), the fault proxy, and what end-to-end tests and benchmarks share.
pub mod bench;
pub mod fingerprint;
pub mod lab;
pub mod proxy;
pub mod rig;
pub mod time_server;
