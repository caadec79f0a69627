//! The link: gets to a controller, enrols, keeps a session up and never gives up.

mod backoff;
pub mod dial;
mod driver;
pub mod engine;
pub mod enrol;
pub mod http2;
pub mod identity;
pub mod names;
mod notify;
pub(crate) mod private_file;
pub(crate) mod proxy;
pub mod route;
pub mod session;
mod stream;
pub mod time;
pub mod tls;
mod vantage;
pub mod wire;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use postern_proto::host::{AgentConfig, exit};
use postern_proto::ids::{BootId, HostId, InstanceId};
use tokio_util::sync::CancellationToken;

pub use backoff::Backoff;

use crate::engine::{EngineConfig, EngineError, OpenError, SupervisorCommand};
use crate::facts::Facts;
use crate::leave::HostPaths;
use crate::sys::Around;
use dial::DialLimits;
use engine::EnginePort;
use enrol::EnrolError;
use http2::KeepAlive;
use identity::{IdentityError, IdentityStore};
use names::Names;
use route::ProxyEnv;
use session::Timing;
use time::{TrustedTime, WallClock, host_clock};

/// All that an agent needs to know. Nothing is read from the environment and nothing is global, so that tests
/// run many agents in one process.
#[derive(Clone)]
pub struct AgentOptions {
    /// What the installer wrote.
    pub config: AgentConfig,
    /// Identity, journal, spools.
    pub state_dir: PathBuf,
    /// What the engine needs.
    pub engine: EngineConfig,
    /// The environment's proxies.
    pub proxy_env: ProxyEnv,
    /// Where names are looked up.
    pub names: Names,
    /// The host's clock.
    pub clock: WallClock,
    /// `NOTIFY_SOCKET`, where the service manager set it.
    pub notify_socket: Option<OsString>,
    /// What is removed when the agent is told to leave.
    pub host: HostPaths,
    /// Under which the facts lie: `/`.
    pub facts_root: PathBuf,
    /// Delays of the session.
    pub timing: Timing,
    /// Deadlines of dialling.
    pub dial: DialLimits,
    /// HTTP/2's PING.
    pub keep_alive: KeepAlive,
}

impl AgentOptions {
    /// With the defaults of a real host.
    #[must_use]
    pub fn new(config: AgentConfig, state_dir: PathBuf, boot: BootId, supervisor: SupervisorCommand) -> Self {
        let mut engine = EngineConfig::new(state_dir.clone(), boot, supervisor);
        if let Some(seconds) = config.limits.lock_wait_s {
            engine.limits.lock_wait = std::time::Duration::from_secs(seconds);
        }
        if let Some(seconds) = config.limits.guard_window_s {
            engine.limits.guard_window = std::time::Duration::from_secs(seconds.max(15));
        }
        Self {
            config,
            engine,
            host: HostPaths { state_dir: state_dir.clone(), ..HostPaths::default() },
            state_dir,
            proxy_env: ProxyEnv::default(),
            names: Names::default(),
            clock: host_clock(),
            notify_socket: None,
            facts_root: "/".into(),
            timing: Timing::default(),
            dial: DialLimits::default(),
            keep_alive: KeepAlive::default(),
        }
    }
}

/// What an agent says about itself in every `Hello`.
#[derive(Clone, Debug)]
pub(crate) struct HelloFacts {
    pub(crate) host: HostId,
    pub(crate) boot: BootId,
    pub(crate) instance: InstanceId,
    pub(crate) facts: Facts,
}

/// Why an agent ended in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// It was asked to.
    Stopped,
    /// The controller wants to see it come back.
    Restarting,
    /// It removed itself from the host.
    Left {
        /// Nothing was left behind.
        clean: bool,
    },
}

impl ExitReason {
    /// The exit code of `postern-agent run`.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Stopped => exit::OK,
            // The unit says `Restart=always`: that is started anew, and is no failure.
            Self::Restarting => exit::OK,
            // systemd has forgotten the unit: any other code would keep it there as failed.
            Self::Left { clean: true } => exit::OK,
            // It may still know it, and must not start it again.
            Self::Left { clean: false } => exit::LEFT,
        }
    }
}

/// Why an agent cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The identity is for another host than the configuration.
    #[error("the configuration is for host {config}, the identity for {identity}: enrol this host again")]
    OtherHost {
        /// In the configuration.
        config: HostId,
        /// In the identity.
        identity: HostId,
    },
    /// Routes or TLS.
    #[error(transparent)]
    Setup(#[from] EnrolError),
    /// The engine's state.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The engine ended.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine is there and does not answer.
    #[error("the engine does not answer")]
    EngineSilent,
}

impl AgentError {
    /// The exit code of `postern-agent run`.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Identity(error) => error.exit_code(),
            Self::OtherHost { .. } => exit::NOT_ENROLLED,
            Self::Setup(error) => error.exit_code(),
            Self::Open(error) => open_exit_code(error),
            Self::Engine(EngineError::Journal(_)) => exit::DISK,
            Self::Engine(EngineError::Broken(_)) | Self::EngineSilent => exit::FAILED,
        }
    }
}

/// The exit code for a state that cannot be opened.
#[must_use]
pub fn open_exit_code(error: &OpenError) -> i32 {
    match error {
        OpenError::Missing { .. } | OpenError::Corrupt { .. } => exit::CORRUPT,
        OpenError::TooNew { .. } => exit::TOO_NEW,
        OpenError::InUse { .. } => exit::FAILED,
        OpenError::Io { .. } => exit::DISK,
    }
}

/// Runs an agent until it is told to stop or to leave.
pub async fn run_agent(options: AgentOptions, shutdown: CancellationToken) -> Result<ExitReason, AgentError> {
    let vantage: Arc<dyn crate::guard::Vantage> = Arc::new(vantage::LinkVantage::new(&options));
    let time = TrustedTime::new(options.clock.clone(), 0);
    let proxy = options.config.proxy.as_ref().or(options.proxy_env.proxy.as_ref());
    // One that cannot be used is told of where the controller is dialled.
    let proxy = proxy.and_then(|text| text.parse().ok());
    let sys = options.engine.sys.clone().with_around(Around { time: time.clone(), proxy });
    let forgets = crate::resources::forget_restores(sys.clone());
    let engine = EngineConfig { vantage: Some(vantage), sys, ..options.engine.clone() };
    let (engine, work) = crate::engine::open(engine)?;
    tokio::select! {
        biased;
        result = work => match result {
            Ok(()) => Ok(ExitReason::Stopped),
            Err(error) => Err(error.into()),
        },
        result = link(options, Arc::new(engine), time, shutdown) => result,
        // It does not end.
        () = forgets => Ok(ExitReason::Stopped),
    }
}

/// Runs the link alone, in front of an engine that somebody else drives.
pub async fn run_link(
    options: AgentOptions,
    engine: Arc<dyn EnginePort>,
    shutdown: CancellationToken,
) -> Result<ExitReason, AgentError> {
    let time = TrustedTime::new(options.clock.clone(), 0);
    link(options, engine, time, shutdown).await
}

async fn link(
    options: AgentOptions,
    engine: Arc<dyn EnginePort>,
    time: TrustedTime,
    shutdown: CancellationToken,
) -> Result<ExitReason, AgentError> {
    let store = IdentityStore::new(&options.state_dir);
    let identity = store.load()?;
    if identity.host() != options.config.host_id {
        return Err(AgentError::OtherHost { config: options.config.host_id, identity: identity.host() });
    }
    if let Some(socket) = &options.notify_socket
        && let Err(error) = notify::notify(socket, "READY=1")
    {
        tracing::warn!(%error, "cannot tell the service manager that the agent is ready");
    }
    time.raise_floor(identity.floor_s());
    let facts = HelloFacts {
        host: identity.host(),
        boot: options.engine.boot_id,
        instance: InstanceId::generate(),
        facts: Facts::default(),
    };
    let driver = driver::Driver::new(options, store, identity, facts, engine, time).await?;
    Box::pin(driver.run(shutdown)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_a_host_reach_the_engine() {
        let config = |limits: &str| -> AgentConfig {
            let json = format!(
                r#"{{"version":1,"host_id":"0192f0c1-2345-7abc-8def-0123456789ab","controllers":["c:7300"],
                "server_name":"x","server_ca_pem":""{limits}}}"#
            );
            serde_json::from_str(&json).unwrap()
        };
        let boot: BootId = "0192f0c4-0000-4000-8000-000000000001".parse().unwrap();
        for (limits, seconds) in [("", 900), (r#","limits":{"lock_wait_s":7}"#, 7), (r#","limits":{}"#, 900)]
        {
            let supervisor = SupervisorCommand::of("/x".into());
            let options = AgentOptions::new(config(limits), "/y".into(), boot, supervisor);
            assert_eq!(options.engine.limits.lock_wait.as_secs(), seconds, "{limits}");
        }
        for (limits, seconds) in
            [("", 60), (r#","limits":{"guard_window_s":90}"#, 90), (r#","limits":{"guard_window_s":1}"#, 15)]
        {
            let supervisor = SupervisorCommand::of("/x".into());
            let options = AgentOptions::new(config(limits), "/y".into(), boot, supervisor);
            assert_eq!(options.engine.limits.guard_window.as_secs(), seconds, "{limits}");
        }
    }
}
