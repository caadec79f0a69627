//! What the daemon tells, in the program's own types: checked once, here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use postern_proto::convert::WireError;
use postern_proto::event::{LogFrame, RunEvent, RunState};
use postern_proto::ids::{HostId, PlanHash, RunId};
use postern_proto::plan::Approval;
use postern_proto::spec::SshPort;
use postern_proto::v1;

use super::ClientError;
use crate::room::Room;

impl From<WireError> for ClientError {
    fn from(error: WireError) -> Self {
        Self::Answer(error.to_string())
    }
}

/// What a daemon is.
#[derive(Clone, Debug)]
pub struct Info {
    /// Its version.
    pub version: String,
    /// The controller it is.
    pub cluster_id: String,
    /// Addresses that agents are told to dial, in order.
    pub advertised: Vec<String>,
    /// What the agents' port is bound to.
    pub listen: String,
    /// It was started by a command and ends when idle.
    pub private: bool,
    /// The name in its certificate.
    pub server_name: String,
    /// Trust anchors for it, PEM.
    pub server_ca_pem: String,
}

impl From<v1::InfoResponse> for Info {
    fn from(info: v1::InfoResponse) -> Self {
        Self {
            version: info.version,
            cluster_id: info.cluster_id,
            advertised: info.advertised,
            listen: info.listen,
            private: info.private,
            server_name: info.server_name,
            server_ca_pem: info.server_ca_pem,
        }
    }
}

/// How a host is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Registered, no certificate yet.
    Pending,
    /// Its session is up.
    Up,
    /// It has no session.
    Down,
    /// Two live sessions showed one identity.
    Quarantined,
}

impl Link {
    /// The word in tables and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Up => "up",
            Self::Down => "down",
            Self::Quarantined => "quarantined",
        }
    }
}

/// One host. Texts may come from the host: they are hostile until shown through [`crate::cli`]'s output.
#[derive(Clone, Debug)]
pub struct HostInfo {
    /// Never reused.
    pub id: HostId,
    /// Can change.
    pub name: String,
    /// As bootstrap used it.
    pub ssh_address: String,
    /// Given by the operator.
    pub labels: BTreeMap<String, String>,
    /// How it is connected.
    pub link: Link,
    /// Empty until the first session.
    pub agent_version: String,
    /// `debian`, `ubuntu`…; empty until the first session.
    pub os_id: String,
    /// `12`, `24.04`…
    pub os_version: String,
    /// As `uname -m` has it.
    pub arch: String,
    /// What it calls itself.
    pub hostname: String,
    /// Milliseconds since the Unix epoch; 0 is never.
    pub last_seen_ms: i64,
    /// Where its session comes from.
    pub peer: String,
    /// More for people.
    pub detail: String,
    /// Values for profiles' variables on this host.
    pub vars: BTreeMap<String, String>,
    /// Names of the assigned profiles, in order.
    pub profiles: Vec<String>,
    /// Other addresses at which its SSH server was seen to answer.
    pub also_at: Vec<String>,
    /// What it has of memory and disk, as its agent said when its session began.
    pub room: Room,
    /// How it stands with its port of SSH.
    pub ssh: SshInfo,
}

/// How it stands with a host's port of SSH.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SshInfo {
    /// What a run declared; `None` while none has.
    pub declared: Option<SshSaid>,
    /// A run that is to change it and is not over.
    pub changing: Option<RunId>,
    /// Where its SSH server listens, as its agent last said; empty where that is not known.
    pub ports: BTreeSet<u16>,
}

/// What a run declared of the port of SSH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshSaid {
    /// What.
    pub port: SshPort,
    /// Which run.
    pub run: RunId,
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
}

impl SshInfo {
    /// SSH is to be kept out, whatever the profiles say.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.declared.as_ref().is_some_and(|said| said.port == SshPort::Closed)
    }
}

fn ports(ports: &[u32]) -> Result<BTreeSet<u16>, ClientError> {
    let port =
        |port: &u32| u16::try_from(*port).map_err(|_| ClientError::Answer("a port that is none".into()));
    ports.iter().map(port).collect()
}

/// An agent that was told to restart, and is back.
#[derive(Clone, Debug)]
pub struct AgentBack {
    /// Where its new session comes from.
    pub peer: String,
    /// From the word to the new session.
    pub took_ms: u64,
    /// The session comes from the daemon's own machine.
    pub from_here: bool,
    /// Where its SSH server listens, as it said.
    pub ssh_ports: BTreeSet<u16>,
}

impl TryFrom<v1::RestartAgentResponse> for AgentBack {
    type Error = ClientError;

    fn try_from(back: v1::RestartAgentResponse) -> Result<Self, ClientError> {
        let ssh_ports = ports(&back.ssh_ports)?;
        Ok(Self { peer: back.peer, took_ms: back.took_ms, from_here: back.from_here, ssh_ports })
    }
}

/// What became of a new connection to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// It was accepted.
    Open,
    /// It was refused.
    Refused,
    /// Nobody answered.
    Dropped,
    /// Nothing can be told from where the daemon is.
    Unobservable,
}

/// One port at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortLook {
    /// Of the host.
    pub address: IpAddr,
    /// TCP.
    pub port: u16,
    /// What was seen.
    pub state: PortState,
    /// For people; empty where it is open.
    pub why: String,
}

/// What the daemon sees of a host's ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortLooks {
    /// Each port at each address.
    pub seen: Vec<PortLook>,
    /// Why there is nothing to look at; empty where there is.
    pub unobservable: String,
}

impl TryFrom<v1::LookAtPortsResponse> for PortLooks {
    type Error = ClientError;

    fn try_from(looks: v1::LookAtPortsResponse) -> Result<Self, ClientError> {
        let nonsense = |what: &str| ClientError::Answer(format!("{what} that is none"));
        let look = |seen: v1::PortSeen| {
            let state = match seen.state() {
                v1::PortState::Open => PortState::Open,
                v1::PortState::Refused => PortState::Refused,
                v1::PortState::Dropped => PortState::Dropped,
                v1::PortState::Unobservable => PortState::Unobservable,
                v1::PortState::Unspecified => return Err(nonsense("a state of a port")),
            };
            let port = u16::try_from(seen.port).map_err(|_| nonsense("a port"))?;
            let address = seen.address.parse().map_err(|_| nonsense("an address"))?;
            Ok(PortLook { address, port, state, why: seen.why })
        };
        let seen = looks.seen.into_iter().map(look).collect::<Result<_, _>>()?;
        Ok(Self { seen, unobservable: looks.unobservable })
    }
}

impl TryFrom<v1::Host> for HostInfo {
    type Error = ClientError;

    fn try_from(host: v1::Host) -> Result<Self, ClientError> {
        let link = match host.link() {
            v1::LinkState::Up => Link::Up,
            v1::LinkState::Down => Link::Down,
            v1::LinkState::Quarantined => Link::Quarantined,
            v1::LinkState::Pending => Link::Pending,
            v1::LinkState::Unspecified => {
                return Err(ClientError::Answer("a host without link state".into()));
            }
        };
        let declared = match host.ssh_port() {
            v1::SshPort::Unspecified => None,
            v1::SshPort::Open => Some(SshPort::Open),
            v1::SshPort::Closed => Some(SshPort::Closed),
        };
        let declared = declared.map(|port| {
            let run = host.ssh_port_run.parse().map_err(WireError::Id)?;
            Ok::<_, ClientError>(SshSaid { port, run, at_ms: host.ssh_port_unix_ms })
        });
        let ssh = SshInfo {
            declared: declared.transpose()?,
            changing: other_run(&host.ssh_port_changing)?,
            ports: ports(&host.ssh_ports)?,
        };
        Ok(Self {
            ssh,
            id: host.id.parse().map_err(WireError::Id)?,
            name: host.name,
            ssh_address: host.ssh_address,
            labels: host.labels.into_iter().collect(),
            link,
            agent_version: host.agent_version,
            os_id: host.os_id,
            os_version: host.os_version,
            arch: host.arch,
            hostname: host.hostname,
            last_seen_ms: host.last_seen_unix_ms,
            peer: host.peer,
            detail: host.detail,
            vars: host.vars.into_iter().collect(),
            also_at: host.also_at,
            profiles: host.profiles,
            room: Room {
                memory_mb: host.memory_mb,
                swap_mb: host.swap_mb,
                disk_free_mb: host.disk_free_mb,
                var_free_mb: host.var_free_mb,
            },
        })
    }
}

/// One run.
#[derive(Clone, Debug)]
pub struct RunInfo {
    /// Never reused.
    pub id: RunId,
    /// On which host.
    pub host_id: HostId,
    /// Its name when the run was asked for.
    pub host_name: String,
    /// Where it is.
    pub state: RunState,
    /// A profile's name or path, or the command.
    pub origin: String,
    /// Nothing is changed.
    pub check: bool,
    /// Milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// Milliseconds since the Unix epoch; 0 is not yet.
    pub finished_ms: i64,
    /// Of the plan's bytes.
    pub plan: Option<PlanHash>,
    /// For people.
    pub message: String,
    /// The run that this one resumes.
    pub resumes: Option<RunId>,
    /// The run that this one takes back.
    pub undoes: Option<RunId>,
}

fn other_run(id: &str) -> Result<Option<RunId>, WireError> {
    if id.is_empty() { Ok(None) } else { Ok(Some(id.parse()?)) }
}

impl TryFrom<v1::Run> for RunInfo {
    type Error = ClientError;

    fn try_from(run: v1::Run) -> Result<Self, ClientError> {
        Ok(Self {
            state: run.state().try_into()?,
            id: run.id.parse().map_err(WireError::Id)?,
            host_id: run.host_id.parse().map_err(WireError::Id)?,
            host_name: run.host_name,
            origin: run.origin,
            check: run.check,
            created_ms: run.created_unix_ms,
            finished_ms: run.finished_unix_ms,
            plan: PlanHash::try_from(run.plan_sha256.as_ref()).ok(),
            message: run.message,
            resumes: other_run(&run.resumes)?,
            undoes: other_run(&run.undoes)?,
        })
    }
}

/// How a plan is to be applied.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// Nothing is changed.
    pub check: bool,
    /// A profile's name or path.
    pub origin: String,
    /// From a reviewed preview; empty: not asked for.
    pub approved: Vec<Approval>,
    /// Written down together with the run. Those that the host has already are replaced in their place.
    pub assign: Vec<Assigned>,
    /// Names of profiles that the host is not to have any more once this run has ended well.
    pub unassign: Vec<String>,
    /// The run is to open or close the port of SSH.
    pub ssh_port: Option<SshPort>,
}

impl Order {
    pub(super) fn into_request(self, host: HostId, plan: Vec<u8>) -> v1::ApplyRequest {
        v1::ApplyRequest {
            host: host.to_string(),
            plan: plan.into(),
            check: self.check,
            origin: self.origin,
            approved: self.approved.into_iter().map(v1::Approval::from).collect(),
            assign: self.assign.into_iter().map(v1::AssignedProfile::from).collect(),
            unassign: self.unassign,
            ssh_port: match self.ssh_port {
                None => v1::SshPort::Unspecified,
                Some(SshPort::Open) => v1::SshPort::Open,
                Some(SshPort::Closed) => v1::SshPort::Closed,
            }
            .into(),
        }
    }
}

/// A profile that a host is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Unique on a host.
    pub name: String,
    /// What compiles it again. The daemon keeps it and does not look into it.
    pub bundle: Vec<u8>,
    /// As given when it was applied.
    pub vars: BTreeMap<String, String>,
    /// Set by the daemon, milliseconds since the Unix epoch.
    pub assigned_ms: i64,
    /// Profiles that it includes, in whose place it is assigned. Only in an order.
    pub covers: Vec<String>,
}

impl From<Assigned> for v1::AssignedProfile {
    fn from(assigned: Assigned) -> Self {
        Self {
            name: assigned.name,
            bundle: assigned.bundle.into(),
            vars: assigned.vars.into_iter().collect(),
            assigned_unix_ms: assigned.assigned_ms,
            covers: assigned.covers,
        }
    }
}

impl From<v1::AssignedProfile> for Assigned {
    fn from(assigned: v1::AssignedProfile) -> Self {
        Self {
            name: assigned.name,
            bundle: assigned.bundle.into(),
            vars: assigned.vars.into_iter().collect(),
            assigned_ms: assigned.assigned_unix_ms,
            covers: assigned.covers,
        }
    }
}

/// What is to change of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostChange {
    /// `None`: stays.
    pub name: Option<String>,
    /// Added, or given another value.
    pub set_labels: BTreeMap<String, String>,
    /// Removed; those that are not there do not matter.
    pub remove_labels: Vec<String>,
    /// Added, or given another value.
    pub set_vars: BTreeMap<String, String>,
    /// Removed; those that are not there do not matter.
    pub remove_vars: Vec<String>,
    /// Where else its SSH server answers; `None`: stays.
    pub also_at: Option<Vec<IpAddr>>,
}

impl HostChange {
    pub(super) fn into_request(self, host: HostId) -> v1::UpdateHostRequest {
        v1::UpdateHostRequest {
            host: host.to_string(),
            name: self.name.unwrap_or_default(),
            set_labels: self.set_labels.into_iter().collect(),
            remove_labels: self.remove_labels,
            set_vars: self.set_vars.into_iter().collect(),
            remove_vars: self.remove_vars,
            also_at: self
                .also_at
                .map(|all| v1::Addresses { addresses: all.iter().map(ToString::to_string).collect() }),
        }
    }
}

/// What is known of a secret without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretInfo {
    /// Given by the operator.
    pub name: String,
    /// The newest.
    pub version: u32,
    /// When that was set, milliseconds since the Unix epoch.
    pub set_ms: i64,
    /// Names of hosts whose assigned profiles or unfinished runs refer to it.
    pub used_by: Vec<String>,
}

impl From<v1::SecretInfo> for SecretInfo {
    fn from(secret: v1::SecretInfo) -> Self {
        Self {
            name: secret.name,
            version: secret.version,
            set_ms: secret.set_unix_ms,
            used_by: secret.used_by,
        }
    }
}

/// One thing that happened in a run.
#[derive(Clone, Debug)]
pub struct Update {
    /// What to give to [`super::Client::follow`] to go on after this one.
    pub cursor: u64,
    /// What happened.
    pub kind: UpdateKind,
}

/// What happened in a run.
#[derive(Clone, Debug)]
pub enum UpdateKind {
    /// The run as it is now.
    Run(RunInfo),
    /// An event.
    Event(RunEvent),
    /// Output.
    Log(LogFrame),
}

impl TryFrom<v1::RunUpdate> for Update {
    type Error = ClientError;

    fn try_from(update: v1::RunUpdate) -> Result<Self, ClientError> {
        use v1::run_update::Kind;
        let kind = match update.kind {
            Some(Kind::Run(run)) => UpdateKind::Run(run.try_into()?),
            Some(Kind::Event(event)) => UpdateKind::Event(event.try_into()?),
            Some(Kind::Log(frame)) => UpdateKind::Log(frame.try_into()?),
            None => return Err(ClientError::Answer("an empty update".into())),
        };
        Ok(Self { cursor: update.cursor, kind })
    }
}
