//! Bootstrap of a host over SSH: from the first TCP connect to the closing of the connection.
//!
//! This crate is the only one that speaks SSH. It puts the agent on a host, hands it the enrolment token on
//! stdin, waits for its session and closes. It knows nothing of profiles and runs; what it needs from the
//! controller comes through [`Controller`], what it needs from the person at the terminal through [`Console`].
//! It reads no environment variable and prints nothing.

mod api;
mod auth;
mod bootstrap;
mod connect;
mod elsewhere;
mod error;
mod exec;
mod host_key;
mod key_file;
mod known_hosts;
mod login;
mod look;
mod plan;
mod preflight;
mod remove;
mod report;
mod root;
mod route;
mod script;
mod ssh_config;
mod stream;
mod survey;
mod target;
mod unit;
mod upload;

pub use api::{
    AgentBinaries, AgentBinary, Arch, BoxError, Console, Controller, Fault, FaultMoment, HostKeyPolicy,
    HostKeyQuestion, Options, Progress, SessionUp, Step, Ticket,
};
pub use bootstrap::bootstrap;
pub use error::{BootstrapError, Code};
pub use login::log_in;
pub use look::{LoginSeen, LookError, look_at_login};
pub use preflight::{Finding, Preflight, Severity};
pub use remove::{RemoveReport, remove};
pub use report::{Action, Report, StepTime};
pub use route::TemporaryRoute;
pub use ssh_config::{ConfigError, SshConfig};
pub use survey::{CloudInit, ExistingAgent, HostFacts, Sudo};
pub use target::{Hop, Login, Overrides, Target, TargetError};
