//! The lab (throw-away VPSs), the fault proxy, and what end-to-end tests and benchmarks share.
pub mod lab;
pub mod proxy;
