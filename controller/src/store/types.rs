//! What the store keeps, in the domain's own words.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;

use postern_proto::event::{RunState, StepId, Stream};
use postern_proto::ids::{BootId, HostId, PlanHash, RunId, SecretRef};
use postern_proto::plan::Terms;
use postern_proto::spec::SshPort;

use super::SshRecord;

/// What a host is to the controller, apart from whether its session is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostState {
    /// Registered, no key yet.
    Pending,
    /// Has a key.
    Enrolled,
    /// Two lived with its identity: nobody is let in until it is enrolled anew.
    Quarantined,
    /// A tombstone.
    Forgotten,
}

impl HostState {
    /// The word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Enrolled => "enrolled",
            Self::Quarantined => "quarantined",
            Self::Forgotten => "forgotten",
        }
    }
}

/// A word that is none of ours.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a known word")]
pub struct UnknownWord(String);

impl UnknownWord {
    pub(super) fn of(word: &str) -> Self {
        Self(word.to_owned())
    }
}

impl FromStr for HostState {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        [Self::Pending, Self::Enrolled, Self::Quarantined, Self::Forgotten]
            .into_iter()
            .find(|state| state.as_str() == word)
            .ok_or_else(|| UnknownWord(word.to_owned()))
    }
}

pub(super) fn run_state(word: &str) -> Result<RunState, UnknownWord> {
    RunState::from_word(word).ok_or_else(|| UnknownWord(word.to_owned()))
}

/// A host as it is on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRecord {
    /// Never reused.
    pub id: HostId,
    /// Unique among the hosts there are.
    pub name: String,
    /// As bootstrap uses it; may be empty.
    pub ssh_address: String,
    /// Set by the operator.
    pub labels: BTreeMap<String, String>,
    /// See there.
    pub state: HostState,
    /// Why it is in that state, for people.
    pub detail: String,
    /// What its agent last said.
    pub facts: Facts,
    /// When something last came from it, milliseconds since the Unix epoch; 0 is never.
    pub last_seen_ms: i64,
    /// Values for profiles' variables, set by the operator.
    pub vars: BTreeMap<String, String>,
    /// Other addresses at which its SSH server was seen to answer.
    pub also_at: Vec<IpAddr>,
    /// Names of the assigned profiles, in the order in which they compose.
    pub profiles: Vec<String>,
    /// What is declared of its port of SSH.
    pub ssh: SshRecord,
}

/// What an agent says about its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Version of the agent.
    pub agent_version: String,
    /// `ID` of os-release.
    pub os_id: String,
    /// `VERSION_ID` of os-release.
    pub os_version: String,
    /// As the kernel names it.
    pub arch: String,
    /// The host's own name.
    pub hostname: String,
    /// Which boot.
    pub boot_id: Option<BootId>,
    /// What it has of memory and disk.
    pub room: crate::room::Room,
    /// Where its SSH server listens; empty where it does not say.
    pub ssh_ports: Vec<u16>,
}

/// A run as it is on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// Never reused.
    pub id: RunId,
    /// Where.
    pub host: HostId,
    /// The host's name now.
    pub host_name: String,
    /// Where it is.
    pub state: RunState,
    /// Where the plan came from, for people.
    pub origin: String,
    /// How the plan is to be executed.
    pub terms: Terms,
    /// The run that this one resumes.
    pub resumes: Option<RunId>,
    /// The run that this one takes back.
    pub undoes: Option<RunId>,
    /// Milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// Milliseconds since the Unix epoch; 0 while it is not over.
    pub finished_ms: i64,
    /// Which plan.
    pub plan: PlanHash,
    /// For people.
    pub message: String,
    /// It was to open or close the port of SSH.
    pub ssh_port: Option<SshPort>,
}

/// A profile that a host is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Unique on its host.
    pub name: String,
    /// What compiles it again; made and read by the command line alone.
    pub bundle: Vec<u8>,
    /// As given when it was applied.
    pub vars: BTreeMap<String, String>,
    /// Milliseconds since the Unix epoch.
    pub assigned_ms: i64,
    /// Profiles that it includes, in whose place it is assigned. Not kept: empty in what the store answers.
    pub covers: Vec<String>,
}

/// What an operator changes about a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostChange {
    /// `None`: stays.
    pub name: Option<String>,
    /// Added, or given another value.
    pub set_labels: BTreeMap<String, String>,
    /// Removed, where they are there.
    pub remove_labels: Vec<String>,
    /// Added, or given another value.
    pub set_vars: BTreeMap<String, String>,
    /// Removed, where they are there.
    pub remove_vars: Vec<String>,
    /// Where else its SSH server answers; `None`: stays.
    pub also_at: Option<Vec<IpAddr>>,
}

/// A run to be written down.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// Made by the caller.
    pub id: RunId,
    /// Where.
    pub host: HostId,
    /// Where the plan came from, for people.
    pub origin: String,
    /// How the plan is to be executed.
    pub terms: Terms,
    /// The run that this one resumes.
    pub resumes: Option<RunId>,
    /// The run that this one takes back.
    pub undoes: Option<RunId>,
    /// Written down in the same commit; those that the host has already are replaced in their place. The undo of
    /// a run takes back what that had assigned.
    pub assign: Vec<Assigned>,
    /// Names of those that the host is not to have any more once the run has ended well.
    pub unassign: Vec<String>,
    /// What the plan refers to: all of it must be there.
    pub secrets: BTreeSet<SecretRef>,
    /// The exact bytes.
    pub plan: Vec<u8>,
    /// Their hash.
    pub plan_hash: PlanHash,
    /// Milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// Not to be started after this; 0 is never.
    pub not_after_ms: i64,
    /// The host is connected: take the next number at once, for it is sent at once.
    pub send_now: bool,
    /// How many runs may wait or go on at once.
    pub limit: u32,
    /// It is to open or close the port of SSH.
    pub ssh_port: Option<SshPort>,
    /// What the firewall of its plan makes of that port, or made of it in the run that this one takes back; `None` where
    /// it has none, or changes nothing.
    pub firewall: Option<SshPort>,
}

/// A plan on its way to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// Per host, from 1.
    pub seq: u64,
    /// Which run.
    pub run: RunId,
    /// The exact bytes.
    pub plan: Vec<u8>,
    /// Their hash.
    pub plan_hash: PlanHash,
    /// How the plan is to be executed.
    pub terms: Terms,
    /// Milliseconds since the Unix epoch; 0 is never.
    pub not_after_ms: i64,
}

/// How much of a run is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The run.
    pub run: RunId,
    /// The last event; 0 is none.
    pub event_seq: u64,
    /// Each step that has output.
    pub steps: Vec<(StepId, StepProgress)>,
}

/// How much of a step's output is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepProgress {
    /// The next frame.
    pub next_frame: u64,
    /// Bytes of standard output, dropped ones included.
    pub stdout: u64,
    /// Bytes of standard error, dropped ones included.
    pub stderr: u64,
}

impl StepProgress {
    /// Where the stream is.
    #[must_use]
    pub fn offset(&self, stream: Stream) -> u64 {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    /// One frame further.
    pub fn advance(&mut self, stream: Stream, bytes: u64) {
        self.next_frame = self.next_frame.saturating_add(1);
        let offset = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        *offset = offset.saturating_add(bytes);
    }
}
