//! What the store does when an agent says hello: raise the owner epoch, compare what both sides have, and
//! settle what became of runs while it was away. One transaction.

use std::collections::HashSet;

use postern_proto::event::RunState;
use postern_proto::ids::{HostId, RunId};
use rusqlite::{Connection, params};

use super::enrol::{KeyStatus, key_status};
use super::record::progress;
use super::runs::{OPEN, dispatch, end, next_seq, state};
use super::sql::{all, execute, one, optional, parsed};
use super::{Dispatch, Facts, HostState, OpError, Progress, Store, hosts};
use crate::ca::KeyHash;

/// No epoch and no number of a dispatch is higher: a host that says so is not believed after a restore either.
const MAX_COUNT: u64 = 1 << 48;

/// What an agent says about itself.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// From its certificate.
    pub host: HostId,
    /// From its certificate.
    pub key: KeyHash,
    /// The highest owner epoch it has seen.
    pub epoch: u64,
    /// Runs it has.
    pub runs: Vec<RunId>,
    /// It took every dispatch up to here.
    pub floor: u64,
    /// It took these too.
    pub above: HashSet<u64>,
    /// About its host.
    pub facts: Facts,
    /// Milliseconds since the Unix epoch.
    pub now_ms: i64,
}

/// The session is the host's owner now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// What every write of it carries.
    pub epoch: u64,
    /// The host's name, for logs.
    pub name: String,
    /// Of each run that the agent has or that is not over: what is committed.
    pub progress: Vec<Progress>,
    /// Runs the agent named that are not on record.
    pub unknown: Vec<RunId>,
    /// To be sent (again), in order.
    pub dispatches: Vec<Dispatch>,
    /// To be told to stop.
    pub cancels: Vec<RunId>,
    /// Runs that are over as of now.
    pub ended: Vec<RunId>,
}

/// Why it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenRefusal {
    /// The key is not good, or not this host's.
    Revoked,
    /// The key or its host was never registered here: it came after the backup that this was restored from.
    Unknown,
    /// Two lived with this identity.
    Quarantined(String),
    /// The agent has seen more than is on record: this is an old copy of the controller.
    BehindAgent(&'static str),
    /// The agent named a run of another host.
    OtherHost(RunId),
}

impl Store {
    /// Makes a session the owner of its host.
    pub async fn open_session(&self, request: OpenRequest) -> Result<Result<Opened, OpenRefusal>, OpError> {
        self.write("opening a session", move |db| open(db, &request)).await
    }
}

fn open(db: &Connection, request: &OpenRequest) -> Result<Result<Opened, OpenRefusal>, OpError> {
    let host = match (hosts::by_id(db, request.host)?, key_status(db, request.key)?) {
        (Some(host), KeyStatus::Good(owner)) if owner == host.id => host,
        (_, KeyStatus::Unknown) => return Ok(Err(OpenRefusal::Unknown)),
        _ => return Ok(Err(OpenRefusal::Revoked)),
    };
    if host.state == HostState::Quarantined {
        return Ok(Err(OpenRefusal::Quarantined(host.detail)));
    }
    let id = host.id.to_string();
    let sql = "SELECT epoch, next_seq, behind FROM hosts WHERE id = $1";
    let (mut epoch, mut next, behind): (u64, u64, bool) =
        one(db, sql, params![id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let taken = request.above.iter().copied().fold(request.floor, u64::max);
    if behind && request.epoch <= MAX_COUNT && taken <= MAX_COUNT {
        // Restored from a backup: what the agent has seen since then is gone on from, so that it neither takes
        // this owner for an old one nor new dispatches for ones that it has had.
        tracing::info!(host = %host.id, epoch, seen = request.epoch, next, taken, "first session after a restore");
        (epoch, next) = (epoch.max(request.epoch), next.max(taken + 1));
    }
    if request.epoch > epoch {
        return Ok(Err(OpenRefusal::BehindAgent("epochs")));
    }
    if taken >= next {
        return Ok(Err(OpenRefusal::BehindAgent("dispatches")));
    }
    let mut opened = Opened { epoch: epoch + 1, name: host.name, ..Opened::default() };
    let facts = &request.facts;
    // At boot the agent may be there before sshd: that says nothing about where it will listen.
    let said = Some(&facts.ssh_ports).filter(|ports| !ports.is_empty());
    let ssh_ports = said.map(|ports| serde_json::json!(ports).to_string());
    let sql = "UPDATE hosts SET epoch = $1, last_seen_ms = $2, agent_version = $3, os_id = $4, os_version = $5, \
               arch = $6, hostname = $7, boot_id = $8, next_seq = $9, memory_mb = $10, swap_mb = $11, \
               disk_free_mb = $12, var_free_mb = $13, ssh_ports = coalesce($14, ssh_ports), behind = 0, \
               state = 'enrolled', detail = '' WHERE id = $15";
    execute(
        db,
        sql,
        params![
            opened.epoch,
            request.now_ms,
            facts.agent_version,
            facts.os_id,
            facts.os_version,
            facts.arch,
            facts.hostname,
            facts.boot_id.map(|boot| boot.to_string()),
            next,
            facts.room.memory_mb,
            facts.room.swap_mb,
            facts.room.disk_free_mb,
            facts.room.var_free_mb,
            ssh_ports,
            id
        ],
    )?;
    let mut known = HashSet::new();
    for run in &request.runs {
        let sql = "SELECT host FROM runs WHERE id = $1";
        match optional(db, sql, params![run.to_string()], |row| parsed::<HostId>(row, "host"))? {
            None => opened.unknown.push(*run),
            Some(owner) if owner != request.host => return Ok(Err(OpenRefusal::OtherHost(*run))),
            Some(_) if known.contains(run) => {}
            Some(_) => {
                known.insert(*run);
                opened.progress.push(progress(db, *run)?);
            }
        }
    }
    settle(db, request, &known, behind, &mut opened)?;
    Ok(Ok(opened))
}

/// What became of the runs that are not over.
fn settle(
    db: &Connection,
    request: &OpenRequest,
    named: &HashSet<RunId>,
    restored: bool,
    opened: &mut Opened,
) -> Result<(), OpError> {
    let sql = format!(
        "SELECT id, state, seq, cancel, plan, plan_sha256, terms, not_after_ms FROM runs \
         WHERE host = $1 AND state IN {OPEN} ORDER BY seq IS NULL, seq, no"
    );
    let rows = all(db, &sql, params![request.host.to_string()], |row| {
        let seq: Option<u64> = row.get("seq")?;
        Ok((state(row)?, seq, row.get::<_, bool>("cancel")?, dispatch(row, seq.unwrap_or(0))?))
    })?;
    let now = request.now_ms;
    for (state, seq, cancel, mut dispatch) in rows {
        let run = dispatch.run;
        let named = named.contains(&run);
        let taken = seq.is_some_and(|seq| seq <= request.floor || request.above.contains(&seq));
        if named {
            // The agent has it and tells the rest itself.
            if cancel {
                opened.cancels.push(run);
            }
            continue;
        }
        if state != RunState::Queued && !taken {
            // The hello was written before the agent took it: on a hand-over the old session goes on until
            // the new one is up.
            opened.progress.push(progress(db, run)?);
            continue;
        }
        let over = if state != RunState::Queued {
            let message = if restored {
                "this controller was restored from a backup; how the run ended was told before that"
            } else {
                "the agent lost its record of this run; how far it got is not known"
            };
            Some((RunState::Interrupted, message))
        } else if taken {
            Some((RunState::Refused, "the agent refused it; the reason was lost with the connection"))
        } else if cancel {
            Some((RunState::Cancelled, "cancelled before the agent took it"))
        } else if dispatch.not_after_ms > 0 && dispatch.not_after_ms <= now {
            Some((RunState::Expired, "the host did not take it in time"))
        } else {
            None
        };
        if let Some((state, message)) = over {
            end(db, run, state, now, message)?;
            opened.ended.push(run);
            continue;
        }
        if seq.is_none() {
            dispatch.seq = next_seq(db, request.host)?;
            let sql = "UPDATE runs SET seq = $1 WHERE id = $2";
            execute(db, sql, params![dispatch.seq, run.to_string()])?;
        }
        opened.progress.push(progress(db, run)?);
        opened.dispatches.push(dispatch);
    }
    Ok(())
}
