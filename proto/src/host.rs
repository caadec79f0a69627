//! What lies on a host and the words that installer and agent say to each other there.

use serde::{Deserialize, Serialize};

use crate::ids::HostId;

/// The agent's program. 0755.
pub const AGENT_BINARY: &str = "/usr/local/bin/postern-agent";
/// Configuration. Directory 0700, file 0600.
pub const CONFIG_DIR: &str = "/etc/postern-agent";
/// The [`AgentConfig`] in JSON, 0600.
pub const CONFIG_FILE: &str = "/etc/postern-agent/config.json";
/// Key, certificate, journal, spools. 0700.
pub const STATE_DIR: &str = "/var/lib/postern-agent";
/// The unit's name.
pub const UNIT: &str = "postern-agent.service";
/// The unit.
pub const UNIT_FILE: &str = "/etc/systemd/system/postern-agent.service";

/// A configuration with a temporary route, on tmpfs: a reboot forgets it. 0700.
pub const RUN_DIR: &str = "/run/postern-agent";
/// What makes the unit use the configuration in [`RUN_DIR`], in a directory of its own.
pub const RUN_DROP_IN_DIR: &str = "/run/systemd/system/postern-agent.service.d";

/// The version of [`AgentConfig`]'s JSON.
pub const CONFIG_VERSION: u32 = 1;

/// What the installer writes for the agent. Nothing in it is secret; it is 0600 all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// [`CONFIG_VERSION`].
    pub version: u32,
    /// The id the controller gave this host.
    pub host_id: HostId,
    /// Routes to the controller, `host:port`, tried in order.
    pub controllers: Vec<String>,
    /// The name in the controller's certificate.
    pub server_name: String,
    /// Trust anchors for the controller, PEM.
    pub server_ca_pem: String,
    /// HTTP CONNECT proxy (`http://[user:password@]host:port`); the environment's `https_proxy` counts when
    /// this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// A route that ends with the bootstrap's SSH connection, tried last and never written to disk for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temporary_route: Option<String>,
    /// Bounds of the agent's own that are other than it was built with. Written by whoever runs the host; the
    /// installer keeps them.
    #[serde(default, skip_serializing_if = "AgentLimits::is_default")]
    pub limits: AgentLimits,
}

/// Bounds that a host can have for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentLimits {
    /// How long a step waits for a lock that another program holds, such as apt's, seconds; 900 when this is
    /// left out. The holder is named and never ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock_wait_s: Option<u64>,
    /// How long a change that could cut the host off has to be confirmed before it is taken back, seconds; 60 when
    /// this is left out, and at least 15: a look from outside takes that long where nothing answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard_window_s: Option<u64>,
}

impl AgentLimits {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Exit codes of `postern-agent enrol`, `probe` and `status`.
pub mod exit {
    /// Done.
    pub const OK: i32 = 0;
    /// Anything that has no code of its own.
    pub const FAILED: i32 = 1;
    /// Wrong arguments or configuration.
    pub const USAGE: i32 = 2;
    /// No address of the controller could be reached.
    pub const UNREACHABLE: i32 = 3;
    /// The controller refused: token used, expired, or for another host.
    pub const REFUSED: i32 = 4;
    /// What answered is not this controller (certificate, garbage).
    pub const NOT_THE_CONTROLLER: i32 = 5;
    /// The host's disk: full, read-only, no permission.
    pub const DISK: i32 = 6;
    /// `status`: there is no agent state.
    pub const NOT_ENROLLED: i32 = 7;
    /// State on disk that cannot be read.
    pub const CORRUPT: i32 = 8;
    /// State on disk written by a newer agent.
    pub const TOO_NEW: i32 = 9;
    /// The agent removed itself as told: systemd is not to start it again.
    pub const LEFT: i32 = 10;
}

/// What `postern-agent enrol` (and `probe`) print on stdout as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolReport {
    /// Who it is now, when it enrolled.
    pub host_id: Option<HostId>,
    /// The address that answered, if one did.
    pub reached: Option<String>,
    /// Every address tried before, and why it was no good.
    pub tried: Vec<Tried>,
    /// What failed, for people; empty on success.
    pub error: String,
}

/// An address of the controller that was no good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// `host:port`, with the proxy where one was used.
    pub address: String,
    /// Refused, timed out, name not found, not the controller.
    pub error: String,
}

/// What `postern-agent status` prints on stdout as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The agent's version.
    pub version: String,
    /// Who it is, when it is enrolled.
    pub host_id: Option<HostId>,
    /// Runs that are not over.
    pub unfinished_runs: u32,
    /// The certificate's end, seconds since the Unix epoch.
    pub certificate_not_after_s: Option<i64>,
}
