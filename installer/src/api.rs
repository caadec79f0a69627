//! What a caller gives to a bootstrap and how it is asked and told things while one goes on.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use postern_proto::ids::HostId;
use zeroize::Zeroizing;

use crate::target::Target;

/// Any error of the caller's own.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A processor architecture that an agent exists for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl Arch {
    /// The name `uname -m` uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// From what `uname -m` prints.
    #[must_use]
    pub fn from_uname(machine: &str) -> Option<Self> {
        match machine {
            "x86_64" | "amd64" => Some(Self::X86_64),
            "aarch64" | "arm64" => Some(Self::Aarch64),
            _ => None,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The agent's program for one architecture.
#[derive(Clone)]
pub struct AgentBinary {
    /// The program, compressed with gzip.
    pub gzip: Bytes,
    /// SHA-256 of the program as it runs, that is of the *unpacked* bytes.
    pub sha256: [u8; 32],
    /// Its version, `1.2.3` with an optional suffix.
    pub version: String,
}

impl fmt::Debug for AgentBinary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentBinary")
            .field("version", &self.version)
            .field("gzip_bytes", &self.gzip.len())
            .finish_non_exhaustive()
    }
}

/// The agents the caller carries: by architecture, `None` where it has none.
pub type AgentBinaries = Arc<dyn Fn(Arch) -> Option<AgentBinary> + Send + Sync>;

/// How the host's key is judged. There is no way to accept one unseen.
#[derive(Clone, Debug, Default)]
pub struct HostKeyPolicy {
    /// Files to look in; the first one is where a confirmed key is appended. Empty: what the ssh
    /// configuration says for this host.
    pub known_hosts_files: Vec<PathBuf>,
    /// The fingerprint the host must have (`SHA256:…`); jump hosts are not meant by it.
    pub fingerprint: Option<String>,
}

/// Everything a bootstrap needs to know.
#[derive(Clone)]
pub struct Options {
    /// The host and the way to it.
    pub target: Target,
    /// Key files named for this bootstrap (`--identity`); tried before those of the ssh configuration.
    pub identity_files: Vec<PathBuf>,
    /// The SSH agent's socket (`SSH_AUTH_SOCK`), when there is one. The ssh configuration's `IdentityAgent`
    /// wins over it.
    pub agent_socket: Option<PathBuf>,
    /// Whether passwords may be asked for, at login (password and keyboard-interactive).
    pub password_login: bool,
    /// A login password that is known already; asked for otherwise.
    pub password: Option<Zeroizing<String>>,
    /// sudo's password, when it is known already; asked for otherwise.
    pub become_password: Option<Zeroizing<String>>,
    /// How the host's key is judged.
    pub host_key: HostKeyPolicy,
    /// How long to wait for SSH to answer.
    pub connect_deadline: Duration,
    /// How long to wait for cloud-init.
    pub cloud_init_deadline: Duration,
    /// How long to wait for the agent's session once it was started.
    pub session_deadline: Duration,
    /// The agents to choose from.
    pub agent: AgentBinaries,
    /// Go on with a host whose clock is more than seven days away from ours.
    pub accept_clock: bool,
    /// Whether a route through the SSH connection may be made when the host reaches no address of the
    /// controller and [`Controller::listener`] names one.
    pub allow_temporary_route: bool,
    /// For tests: cut the TCP connection at a step.
    pub fault: Option<Fault>,
}

impl Options {
    /// The usual deadlines and nothing special: SSH 3 minutes, cloud-init 10 minutes, session 1 minute.
    #[must_use]
    pub fn new(target: Target, agent: AgentBinaries) -> Self {
        Self {
            target,
            identity_files: Vec::new(),
            agent_socket: None,
            password_login: true,
            password: None,
            become_password: None,
            host_key: HostKeyPolicy::default(),
            connect_deadline: Duration::from_secs(180),
            cloud_init_deadline: Duration::from_secs(600),
            session_deadline: Duration::from_secs(60),
            agent,
            accept_clock: false,
            allow_temporary_route: false,
            fault: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("target", &self.target).finish_non_exhaustive()
    }
}

/// The steps of a bootstrap. The numbers are stable: errors and fault tests name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Step {
    /// TCP, through jump hosts if there are any, until something answers.
    Connect = 1,
    /// The SSH handshake, and the host's key judged.
    HostKey = 2,
    /// Login.
    Login = 3,
    /// What the host is; sudo.
    Survey = 4,
    /// Waiting for cloud-init.
    CloudInit = 5,
    /// Deciding whether this host can be taken and what has to be done. Nothing on it was changed so far.
    Preflight = 6,
    /// The one-use token and the routes, from the controller.
    Ticket = 7,
    /// The agent's program, compressed, on its way.
    Upload = 8,
    /// Unpacked, verified and renamed into place; configuration and unit written.
    Install = 9,
    /// Key made on the host, certificate fetched.
    Enrol = 10,
    /// Unit enabled and started.
    Start = 11,
    /// The agent's session seen by the controller.
    Session = 12,
    /// The SSH connection closed.
    Close = 13,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 13] = [
        Self::Connect,
        Self::HostKey,
        Self::Login,
        Self::Survey,
        Self::CloudInit,
        Self::Preflight,
        Self::Ticket,
        Self::Upload,
        Self::Install,
        Self::Enrol,
        Self::Start,
        Self::Session,
        Self::Close,
    ];

    /// 1 to 13.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// What it does, for people.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::HostKey => "verify the host key",
            Self::Login => "log in",
            Self::Survey => "survey the host",
            Self::CloudInit => "wait for cloud-init",
            Self::Preflight => "preflight",
            Self::Ticket => "fetch a token",
            Self::Upload => "upload the agent",
            Self::Install => "install the agent",
            Self::Enrol => "enrol",
            Self::Start => "start the agent",
            Self::Session => "wait for the agent's session",
            Self::Close => "close SSH",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number(), self.what())
    }
}

/// For tests: where the TCP connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// At which step.
    pub step: Step,
    /// Before or after it.
    pub moment: FaultMoment,
}

/// When, at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultMoment {
    /// Before anything of it was done.
    Before,
    /// When all of it was done and nothing of the next.
    After,
}

/// What is going on.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Which step.
    pub step: Step,
    /// Of how many.
    pub of: u8,
    /// What is being done, for people.
    pub what: &'static str,
    /// More of it: the address, a count of bytes, what is waited for. May come from the host: escape it.
    pub detail: String,
    /// While waiting: how often was looked, or how many seconds went by.
    pub count: Option<u32>,
    /// Whether the step is over.
    pub done: bool,
}

/// A host key nobody has vouched for yet.
#[derive(Clone, Debug)]
pub struct HostKeyQuestion {
    /// The host as it was named.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `ssh-ed25519` and so on.
    pub algorithm: String,
    /// `SHA256:…`.
    pub fingerprint: String,
    /// Whether this is a host on the way, not the one to be bootstrapped.
    pub jump: bool,
    /// The file it will be appended to.
    pub known_hosts: Option<PathBuf>,
}

/// The person at the terminal, or what stands in for one.
#[async_trait]
pub trait Console: Send + Sync {
    /// Whether this is the right key. A console nobody sits at answers no.
    async fn confirm_host_key(&self, question: &HostKeyQuestion) -> bool;

    /// A password or passphrase; `None` when nobody is there to ask or the person gives up.
    async fn secret(&self, prompt: &str) -> Option<Zeroizing<String>>;

    /// Something happened. Must not block.
    fn progress(&self, progress: &Progress);
}

/// What a host needs to enrol.
#[derive(Clone)]
pub struct Ticket {
    /// Who it will be.
    pub host_id: HostId,
    /// The one-use token.
    pub token: Zeroizing<String>,
    /// Routes to the controller, `host:port`, best first.
    pub controllers: Vec<String>,
    /// The name in the controller's certificate.
    pub server_name: String,
    /// Trust anchors for the controller, PEM.
    pub server_ca_pem: String,
    /// HTTP CONNECT proxy for the agent, if it needs one.
    pub proxy: Option<String>,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("host_id", &self.host_id)
            .field("controllers", &self.controllers)
            .finish_non_exhaustive()
    }
}

/// A session that the controller sees.
#[derive(Clone, Debug, Default)]
pub struct SessionUp {
    /// The agent's version, as it said.
    pub agent_version: String,
    /// Where the session comes from, when the controller knows.
    pub peer: Option<String>,
}

/// The controller that the agent will belong to.
#[async_trait]
pub trait Controller: Send + Sync {
    /// Registers the host, if it is not, and mints a token for it. Called once for each bootstrap, at the
    /// same time as other things; a token that turns out not to be needed is never sent.
    async fn ticket(&self) -> Result<Ticket, BoxError>;

    /// Returns when the host's session is up, or fails once `deadline` has passed.
    async fn session_up(&self, deadline: Duration) -> Result<SessionUp, BoxError>;

    /// Where the controller listens for agents, as seen from this process: the end of a temporary route.
    fn listener(&self) -> Option<SocketAddr> {
        None
    }

    /// More addresses at which the host may find the controller, `host:port`, best first; they are put
    /// before the ticket's. `seen_from_host` is where the host sees our SSH connection come from, `local` is
    /// our end of it.
    fn extra_addresses(&self, seen_from_host: IpAddr, local: IpAddr) -> Vec<String> {
        let _ = (seen_from_host, local);
        Vec::new()
    }
}
