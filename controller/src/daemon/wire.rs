//! Between the messages of the link and what a session thinks in. What an agent sends is checked here.

use std::collections::{BTreeSet, HashSet};

use postern_proto::convert::WireError;
use postern_proto::event::{LogFrame, RunEvent, RunOffset};
use postern_proto::ids::{BootId, ClusterId, HostId, InstanceId, RunId, SecretRef, SessionId};
use postern_proto::v1;

use super::kinds::Kinds;
use super::text::neutral;
use crate::room::Room;
use crate::store::{Dispatch, Facts, Revealed};

/// An agent names no more runs than this in its first frame.
const MAX_RUNS: usize = 10_000;
/// Secrets that are asked for at once.
const MAX_SECRETS: usize = 256;
/// Ports on which one SSH server listens.
const MAX_SSH_PORTS: usize = 16;
/// The longest fact about a host, bytes.
const MAX_FACT: usize = 255;

/// A frame of an agent.
#[derive(Debug)]
pub(crate) enum AgentFrame {
    Hello(Box<Hello>),
    Refused { run: RunId, message: String },
    Event(Box<RunEvent>),
    Log(Box<LogFrame>),
    Pong(u64),
    Left(Vec<String>),
    SecretsWanted { run: RunId, secrets: Vec<SecretRef> },
}

/// The first frame.
#[derive(Clone, Debug)]
pub(crate) struct Hello {
    pub(crate) host: HostId,
    pub(crate) instance: InstanceId,
    pub(crate) wire_min: u32,
    pub(crate) wire_max: u32,
    pub(crate) epoch: u64,
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) runs: Vec<RunId>,
    pub(crate) floor: u64,
    pub(crate) above: HashSet<u64>,
    pub(crate) facts: Facts,
    pub(crate) kinds: Kinds,
}

/// A frame for an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ControllerFrame {
    Welcome {
        cluster: ClusterId,
        epoch: u64,
        session: SessionId,
        wire: u32,
        acked: Vec<RunOffset>,
        unknown: Vec<RunId>,
        now_ms: i64,
        renew: bool,
    },
    Dispatch {
        dispatch: Dispatch,
        epoch: u64,
    },
    Ack(RunOffset),
    Cancel(RunId),
    Ping(u64),
    Goodbye {
        reason: Reason,
        message: String,
        retry_after_ms: u64,
    },
    Leave,
    Restart,
    Secrets {
        run: RunId,
        values: Vec<Revealed>,
        /// Those that are refused may be asked for again after this; 0 where that would change nothing.
        retry_after_ms: u64,
    },
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Shutdown,
    Shed,
    Replaced,
    Quarantined,
    Revoked,
    Protocol,
    Version,
}

impl From<Reason> for v1::GoodbyeReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Shutdown => Self::Shutdown,
            Reason::Shed => Self::Shed,
            Reason::Replaced => Self::Replaced,
            Reason::Quarantined => Self::Quarantined,
            Reason::Revoked => Self::Revoked,
            Reason::Protocol => Self::Protocol,
            Reason::Version => Self::Version,
        }
    }
}

fn fact(what: &'static str, text: String) -> Result<String, WireError> {
    if text.len() > MAX_FACT {
        let why = format!("{} bytes, the limit is {MAX_FACT}", text.len());
        return Err(WireError::Invalid { what, why });
    }
    // Shown in tables and logs, so made harmless once, here.
    Ok(neutral(&text))
}

/// Sorted, each once.
fn ports(ports: Vec<u32>) -> Result<Vec<u16>, WireError> {
    let invalid = |why: String| WireError::Invalid { what: "ports of SSH", why };
    if ports.len() > MAX_SSH_PORTS {
        return Err(invalid(format!("{}, the limit is {MAX_SSH_PORTS}", ports.len())));
    }
    let port = |port: u32| u16::try_from(port).ok().filter(|port| *port != 0);
    let all: Option<BTreeSet<u16>> = ports.into_iter().map(port).collect();
    Ok(all.ok_or_else(|| invalid("want 1 to 65535".to_owned()))?.into_iter().collect())
}

/// Whole MiB; so many always fit the store's numbers.
fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

fn hello(hello: v1::Hello) -> Result<Hello, WireError> {
    if hello.runs.len() > MAX_RUNS || hello.dispatches_above.len() > MAX_RUNS {
        return Err(WireError::Invalid { what: "hello", why: format!("more than {MAX_RUNS} runs") });
    }
    let facts = hello.facts.unwrap_or_default();
    Ok(Hello {
        host: hello.host_id.parse()?,
        instance: hello.instance.parse()?,
        wire_min: hello.wire_min,
        wire_max: hello.wire_max,
        epoch: hello.epoch,
        cluster: if hello.cluster_id.is_empty() { None } else { Some(hello.cluster_id.parse()?) },
        runs: hello.runs.iter().map(|run| run.run_id.parse()).collect::<Result<_, _>>()?,
        floor: hello.dispatch_floor,
        above: hello.dispatches_above.into_iter().collect(),
        kinds: hello.kinds.try_into()?,
        facts: Facts {
            agent_version: fact("agent version", hello.agent_version)?,
            os_id: fact("os id", facts.os_id)?,
            os_version: fact("os version", facts.os_version)?,
            arch: fact("architecture", facts.arch)?,
            hostname: fact("host name", facts.hostname)?,
            boot_id: if hello.boot_id.is_empty() { None } else { Some(hello.boot_id.parse::<BootId>()?) },
            room: Room {
                memory_mb: Some(facts.memory_bytes).filter(|bytes| *bytes > 0).map(mib),
                swap_mb: facts.swap_bytes.map(mib),
                disk_free_mb: facts.disk_free_bytes.map(mib),
                var_free_mb: facts.var_free_bytes.map(mib),
            },
            ssh_ports: ports(facts.ssh_ports)?,
        },
    })
}

fn secret_value(revealed: Revealed, retry_after_ms: u64) -> v1::SecretValue {
    let secret = Some(revealed.secret.into());
    match revealed.value {
        // The memory is wiped when the last part of the message was sent.
        Ok(value) => v1::SecretValue {
            secret,
            value: bytes::Bytes::from_owner(value.into_inner()),
            refused: String::new(),
            retry_after_ms: 0,
        },
        Err(refused) => v1::SecretValue { secret, value: bytes::Bytes::new(), refused, retry_after_ms },
    }
}

fn refusal(reason: v1::RefusalReason) -> &'static str {
    use v1::RefusalReason as R;
    match reason {
        R::Unspecified => "no reason given",
        R::BadHash => "the plan does not match its hash",
        R::Malformed => "the plan is malformed",
        R::UnknownKind => "the agent does not know a kind of resource in it",
        R::UnknownSchema => "the agent does not know a schema version in it",
        R::StaleEpoch => "the agent belongs to a newer owner",
        R::Expired => "it came too late",
        R::NoRoom => "the host has no room for it",
        R::Busy => "the agent is busy",
        R::RunIdReused => "the agent has another run of this id",
    }
}

impl TryFrom<v1::AgentFrame> for AgentFrame {
    type Error = WireError;

    fn try_from(frame: v1::AgentFrame) -> Result<Self, WireError> {
        use v1::agent_frame::Kind;
        Ok(match frame.kind.ok_or(WireError::Missing("kind of frame"))? {
            Kind::Hello(it) => Self::Hello(Box::new(hello(it)?)),
            Kind::Refused(it) => {
                let why = refusal(it.reason());
                let message = match neutral(&it.message) {
                    detail if detail.is_empty() => format!("refused by the agent: {why}"),
                    detail => format!("refused by the agent: {why}: {detail}"),
                };
                Self::Refused { run: it.run_id.parse()?, message }
            }
            Kind::Event(it) => Self::Event(Box::new(it.try_into()?)),
            Kind::Log(it) => Self::Log(Box::new(it.try_into()?)),
            Kind::Pong(it) => Self::Pong(it.nonce),
            Kind::SecretsWanted(it) => {
                if it.secrets.len() > MAX_SECRETS {
                    let why = format!("more than {MAX_SECRETS} at once");
                    return Err(WireError::Invalid { what: "secrets", why });
                }
                let secrets = it.secrets.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
                Self::SecretsWanted { run: it.run_id.parse()?, secrets }
            }
            Kind::Left(it) => Self::Left(it.left_behind.iter().take(100).map(|text| neutral(text)).collect()),
        })
    }
}

impl From<ControllerFrame> for v1::ControllerFrame {
    fn from(frame: ControllerFrame) -> Self {
        use v1::controller_frame::Kind;
        let kind = match frame {
            ControllerFrame::Welcome { cluster, epoch, session, wire, acked, unknown, now_ms, renew } => {
                Kind::Welcome(v1::Welcome {
                    cluster_id: cluster.to_string(),
                    epoch,
                    session_id: session.to_string(),
                    wire,
                    acked: acked.into_iter().map(Into::into).collect(),
                    unknown_runs: unknown.iter().map(ToString::to_string).collect(),
                    now_unix_ns: now_ms.saturating_mul(1_000_000),
                    renew,
                })
            }
            ControllerFrame::Dispatch { dispatch, epoch } => Kind::Dispatch(v1::Dispatch {
                seq: dispatch.seq,
                run_id: dispatch.run.to_string(),
                plan: dispatch.plan.into(),
                plan_sha256: dispatch.plan_hash.as_bytes().to_vec().into(),
                epoch,
                terms: Some(dispatch.terms.into()),
                not_after_unix_ms: dispatch.not_after_ms,
                operator_signature: Default::default(),
                policy_ref: String::new(),
            }),
            ControllerFrame::Ack(offset) => Kind::Ack(v1::RunAck { offset: Some(offset.into()) }),
            ControllerFrame::Cancel(run) => Kind::Cancel(v1::CancelRun { run_id: run.to_string() }),
            ControllerFrame::Ping(nonce) => Kind::Ping(v1::Ping { nonce }),
            ControllerFrame::Goodbye { reason, message, retry_after_ms } => Kind::Goodbye(v1::Goodbye {
                reason: v1::GoodbyeReason::from(reason).into(),
                message,
                retry_after_ms,
            }),
            ControllerFrame::Leave => Kind::Leave(v1::Leave {}),
            ControllerFrame::Restart => Kind::Restart(v1::Restart {}),
            ControllerFrame::Secrets { run, values, retry_after_ms } => Kind::Secrets(v1::Secrets {
                run_id: run.to_string(),
                values: values.into_iter().map(|value| secret_value(value, retry_after_ms)).collect(),
            }),
        };
        Self { kind: Some(kind) }
    }
}
