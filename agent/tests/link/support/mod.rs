//! Doubles for the tests of the link: a CA, a controller in this process, an engine, a network. Nothing here is a test.

mod ca;
mod controller;
mod engine;
mod network;

use std::path::Path;
use std::time::Duration;

use postern_agent::engine::SupervisorCommand;
use postern_agent::link::dial::DialLimits;
use postern_agent::link::enrol::EnrolOptions;
use postern_agent::link::names::Names;
use postern_agent::link::route::ProxyEnv;
use postern_agent::link::session::Timing;
use postern_agent::link::time::host_clock;
use postern_agent::link::{AgentOptions, Backoff};
use postern_proto::SERVER_NAME;
use postern_proto::host::AgentConfig;
use postern_proto::ids::{BootId, HostId};

pub(crate) use ca::TestCa;
pub(crate) use controller::{TestController, TestSession};
pub(crate) use engine::{FakeEngine, FakePort};
pub(crate) use network::{Hose, connect_proxy};

pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
pub(crate) const TOKEN: &str = "the-token";
pub(crate) const DAY: i64 = 86_400;

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("timed out: {what}"),
    }
}

pub(crate) fn now_s() -> i64 {
    host_clock()()
}

pub(crate) fn config(host: HostId, ca: &TestCa, at: &str) -> AgentConfig {
    AgentConfig {
        version: 1,
        host_id: host,
        controllers: vec![at.to_owned()],
        server_name: SERVER_NAME.into(),
        server_ca_pem: ca.root.pem(),
        proxy: None,
        temporary_route: None,
        limits: Default::default(),
    }
}

pub(crate) fn limits() -> DialLimits {
    let short = Duration::from_millis(500);
    DialLimits { connect: short, proxy: short, tls: short, all: Duration::from_secs(5) }
}

pub(crate) fn enrol_options(config: AgentConfig, state_dir: &Path) -> EnrolOptions {
    EnrolOptions {
        config,
        state_dir: state_dir.into(),
        proxy_env: ProxyEnv::default(),
        names: Names::default(),
        clock: host_clock(),
        limits: limits(),
    }
}

pub(crate) fn agent_options(config: AgentConfig, state_dir: &Path) -> AgentOptions {
    let boot: BootId = "0b7cb8a4-2f5c-4c67-9d0e-0123456789ab".parse().unwrap();
    let supervisor = SupervisorCommand::of("/nonexistent/postern-agent".into());
    let mut options = AgentOptions::new(config, state_dir.into(), boot, supervisor);
    options.dial = limits();
    options.timing = Timing {
        backoff: Backoff { base: Duration::from_millis(20), cap: Duration::from_millis(200) },
        slow: Duration::from_millis(200),
        stable: Duration::from_secs(30),
        greeting: Duration::from_secs(5),
        renewal_retry: Duration::from_millis(50),
    };
    options
}
