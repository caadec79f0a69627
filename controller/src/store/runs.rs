//! Runs: written down, listed, cancelled, expired.

use postern_proto::event::RunState;
use postern_proto::ids::{HostId, PlanHash, RunId};
use postern_proto::plan::Terms;
use postern_proto::spec::SshPort;
use rusqlite::{Connection, Row, params};

use super::sql::{all, execute, malformed, one, optional, parsed};
use super::types::run_state;
use super::{Dispatch, HostState, NewRun, OpError, RunRecord, Store, hosts};

const COLUMNS: &str = "runs.id, runs.host, hosts.name AS host_name, runs.state, runs.origin, runs.terms, \
                       runs.resumes, runs.undoes, runs.created_ms, runs.finished_ms, runs.plan_sha256, \
                       runs.message, runs.ssh_port";
const FROM: &str = "runs JOIN hosts ON hosts.id = runs.host";

/// The states in which a run is not over.
pub(super) const OPEN: &str = "('queued', 'running', 'parked')";

/// What came of the wish to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// It was over already.
    Over,
    /// It had not left the controller: it is over now.
    Cancelled(HostId),
    /// The agent has to be told.
    Tell(HostId),
}

/// Runs that waited too long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    /// Expired now.
    pub ended: Vec<RunId>,
    /// When the next one is due, milliseconds since the Unix epoch.
    pub next_ms: Option<i64>,
}

pub(super) fn state(row: &Row<'_>) -> rusqlite::Result<RunState> {
    run_state(&row.get::<_, String>("state")?).map_err(malformed)
}

pub(super) fn plan_hash(row: &Row<'_>) -> rusqlite::Result<PlanHash> {
    let bytes: Vec<u8> = row.get("plan_sha256")?;
    PlanHash::try_from(bytes.as_slice()).map_err(malformed)
}

fn terms(row: &Row<'_>) -> rusqlite::Result<Terms> {
    serde_json::from_str(row.get_ref("terms")?.as_str()?).map_err(malformed)
}

fn other_run(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<RunId>> {
    let id: Option<String> = row.get(column)?;
    id.map(|id| id.parse().map_err(malformed)).transpose()
}

fn read(row: &Row<'_>) -> rusqlite::Result<RunRecord> {
    Ok(RunRecord {
        id: parsed(row, "id")?,
        host: parsed(row, "host")?,
        host_name: row.get("host_name")?,
        state: state(row)?,
        origin: row.get("origin")?,
        terms: terms(row)?,
        resumes: other_run(row, "resumes")?,
        undoes: other_run(row, "undoes")?,
        created_ms: row.get("created_ms")?,
        finished_ms: row.get("finished_ms")?,
        plan: plan_hash(row)?,
        message: row.get("message")?,
        ssh_port: super::ssh_port::word(row)?,
    })
}

pub(super) fn by_id(db: &Connection, id: RunId) -> Result<RunRecord, OpError> {
    let sql = format!("SELECT {COLUMNS} FROM {FROM} WHERE runs.id = $1");
    optional(db, &sql, params![id.to_string()], read)?.ok_or(OpError::NoSuchRun(id))
}

pub(super) fn dispatch(row: &Row<'_>, seq: u64) -> rusqlite::Result<Dispatch> {
    Ok(Dispatch {
        seq,
        run: parsed(row, "id")?,
        plan: row.get("plan")?,
        plan_hash: plan_hash(row)?,
        terms: terms(row)?,
        not_after_ms: row.get("not_after_ms")?,
    })
}

/// The next number of a host's dispatches.
pub(super) fn next_seq(db: &Connection, host: HostId) -> Result<u64, OpError> {
    let sql = "UPDATE hosts SET next_seq = next_seq + 1 WHERE id = $1 RETURNING next_seq - 1";
    one(db, sql, params![host.to_string()], |row| row.get(0))
}

/// Ends a run for good, with a reason for people.
pub(super) fn end(
    db: &Connection,
    run: RunId,
    state: RunState,
    now_ms: i64,
    message: &str,
) -> Result<(), OpError> {
    let sql = "UPDATE runs SET state = $1, finished_ms = $2, message = $3 WHERE id = $4";
    execute(db, sql, params![state.as_str(), now_ms, message, run.to_string()]).map(drop)
}

/// Ends all that a host has not finished: what never started is cancelled, the rest is interrupted.
pub(super) fn end_all(
    db: &Connection,
    host: HostId,
    now_ms: i64,
    queued: &str,
    started: &str,
) -> Result<Vec<RunId>, OpError> {
    let sql = format!("SELECT id, state FROM runs WHERE host = $1 AND state IN {OPEN}");
    let open =
        all(db, &sql, params![host.to_string()], |row| Ok((parsed::<RunId>(row, "id")?, state(row)?)))?;
    for (run, was) in &open {
        match was {
            RunState::Queued => end(db, *run, RunState::Cancelled, now_ms, queued)?,
            _ => end(db, *run, RunState::Interrupted, now_ms, started)?,
        }
    }
    Ok(open.into_iter().map(|(run, _)| run).collect())
}

impl Store {
    /// Writes a run down. With `send_now` it gets its number in the same commit; otherwise the next session
    /// of the host gives it one.
    pub async fn create_run(&self, new: NewRun) -> Result<(RunRecord, Option<Dispatch>), OpError> {
        self.write("writing down a run", move |db| create(db, new)).await
    }

    /// Numbers what waits for a host that turned out to be connected.
    pub async fn take_waiting(&self, host: HostId) -> Result<Vec<Dispatch>, OpError> {
        self.write("numbering what waits for a host", move |db| waiting(db, host)).await
    }

    /// The run with this id.
    pub async fn run(&self, id: RunId) -> Result<RunRecord, OpError> {
        self.read("looking up a run", move |db| by_id(db, id)).await
    }

    /// The oldest run of a host that is not over.
    pub async fn open_run(&self, host: HostId) -> Result<Option<RunRecord>, OpError> {
        self.read("looking for a run that is not over", move |db| {
            let sql = format!(
                "SELECT {COLUMNS} FROM {FROM} WHERE runs.host = $1 AND runs.state IN {OPEN} ORDER BY runs.no LIMIT 1"
            );
            optional(db, &sql, params![host.to_string()], read)
        })
        .await
    }

    /// The newest runs, of one host or of all.
    pub async fn runs(&self, host: Option<HostId>, limit: u32) -> Result<Vec<RunRecord>, OpError> {
        self.read("listing the runs", move |db| match host {
            Some(host) => {
                let sql = format!(
                    "SELECT {COLUMNS} FROM {FROM} WHERE runs.host = $1 ORDER BY runs.no DESC LIMIT $2"
                );
                all(db, &sql, params![host.to_string(), limit], read)
            }
            None => {
                let sql = format!("SELECT {COLUMNS} FROM {FROM} ORDER BY runs.no DESC LIMIT $1");
                all(db, &sql, params![limit], read)
            }
        })
        .await
    }

    /// How many runs are not over.
    pub async fn open_runs(&self) -> Result<u64, OpError> {
        self.read("counting the runs that are not over", |db| {
            one(db, &format!("SELECT count(*) FROM runs WHERE state IN {OPEN}"), [], |row| row.get(0))
        })
        .await
    }

    /// Cancels what has not left the controller and notes the wish for the rest.
    pub async fn cancel(&self, run: RunId, connected: bool, now_ms: i64) -> Result<CancelOutcome, OpError> {
        self.write("cancelling a run", move |db| {
            let sql = "SELECT host, state, seq FROM runs WHERE id = $1";
            let row = optional(db, sql, params![run.to_string()], |row| {
                Ok((parsed::<HostId>(row, "host")?, state(row)?, row.get::<_, Option<u64>>("seq")?))
            })?;
            let (host, was, seq) = row.ok_or(OpError::NoSuchRun(run))?;
            if was.is_final() {
                return Ok(CancelOutcome::Over);
            }
            if was == RunState::Queued && seq.is_none() && !connected {
                end(db, run, RunState::Cancelled, now_ms, "cancelled before it was sent")?;
                return Ok(CancelOutcome::Cancelled(host));
            }
            execute(db, "UPDATE runs SET cancel = 1 WHERE id = $1", params![run.to_string()])?;
            Ok(CancelOutcome::Tell(host))
        })
        .await
    }

    /// Ends what waited too long: what was never sent at its time, what was sent (and may just be on its way
    /// back to us as accepted) `grace_ms` later.
    pub async fn expire(&self, now_ms: i64, grace_ms: i64) -> Result<Expiry, OpError> {
        self.write("expiring runs", move |db| {
            let sql = "SELECT id FROM runs WHERE state = 'queued' AND not_after_ms > 0 \
                       AND not_after_ms + (CASE WHEN seq IS NULL THEN 0 ELSE $1 END) <= $2";
            let ended = all(db, sql, params![grace_ms, now_ms], |row| parsed::<RunId>(row, "id"))?;
            for run in &ended {
                end(db, *run, RunState::Expired, now_ms, "the host did not take it in time")?;
            }
            let sql = "SELECT min(not_after_ms + (CASE WHEN seq IS NULL THEN 0 ELSE $1 END)) FROM runs \
                       WHERE state = 'queued' AND not_after_ms > 0";
            Ok(Expiry { ended, next_ms: one(db, sql, params![grace_ms], |row| row.get(0))? })
        })
        .await
    }
}

fn create(db: &Connection, new: NewRun) -> Result<(RunRecord, Option<Dispatch>), OpError> {
    let id = new.host.to_string();
    let host = hosts::by_id(db, new.host)?.ok_or_else(|| OpError::NoSuchHost(id.clone()))?;
    if host.state == HostState::Quarantined {
        return Err(OpError::Quarantined(host.detail));
    }
    let sql = format!("SELECT count(*) FROM runs WHERE host = $1 AND state IN {OPEN}");
    let open: u32 = one(db, &sql, params![id], |row| row.get(0))?;
    if open >= new.limit {
        return Err(OpError::TooManyRuns(open));
    }
    super::secrets::require(db, &new.secrets)?;
    super::ssh_port::allow(db, new.host, &host.name, new.ssh_port, new.firewall, new.undoes.is_some())?;
    let terms = serde_json::to_string(&new.terms).map_err(malformed)?;
    let seq = if new.send_now { Some(next_seq(db, new.host)?) } else { None };
    let mut unassigns = serde_json::to_string(&new.unassign).map_err(malformed)?;
    if let Some(resumed) = new.resumes {
        // What the first was to take away at its end, the second is.
        let sql = "SELECT unassigns FROM runs WHERE id = $1";
        unassigns = one(db, sql, params![resumed.to_string()], |row| row.get(0))?;
    }
    let sql = "INSERT INTO runs (id, host, state, origin, terms, resumes, undoes, created_ms, not_after_ms, \
               plan_sha256, plan, seq, ssh_port, unassigns, finished_ms, message, cancel, last_event, last_cursor) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 0, '', 0, 0, 0)";
    execute(
        db,
        sql,
        params![
            new.id.to_string(),
            id,
            RunState::Queued.as_str(),
            new.origin,
            terms,
            new.resumes.map(|run| run.to_string()),
            new.undoes.map(|run| run.to_string()),
            new.created_ms,
            new.not_after_ms,
            new.plan_hash.as_bytes(),
            new.plan,
            seq,
            new.ssh_port.map(SshPort::as_str),
            unassigns
        ],
    )?;
    super::assigned::assign(db, new.host, new.id, &new.assign, new.created_ms)?;
    if let Some(undone) = new.undoes.filter(|_| !new.terms.check) {
        super::assigned::take_back(db, new.host, undone, new.id)?;
    }
    let record = RunRecord {
        id: new.id,
        host: new.host,
        host_name: host.name,
        state: RunState::Queued,
        origin: new.origin,
        terms: new.terms.clone(),
        resumes: new.resumes,
        undoes: new.undoes,
        created_ms: new.created_ms,
        finished_ms: 0,
        plan: new.plan_hash,
        message: String::new(),
        ssh_port: new.ssh_port,
    };
    let dispatch = seq.map(|seq| Dispatch {
        seq,
        run: new.id,
        plan: new.plan,
        plan_hash: new.plan_hash,
        terms: new.terms,
        not_after_ms: new.not_after_ms,
    });
    Ok((record, dispatch))
}

/// Numbers what was not sent yet, oldest first.
pub(super) fn waiting(db: &Connection, host: HostId) -> Result<Vec<Dispatch>, OpError> {
    let sql = "SELECT id, plan, plan_sha256, terms, not_after_ms FROM runs \
               WHERE host = $1 AND state = 'queued' AND seq IS NULL ORDER BY no";
    let mut found = all(db, sql, params![host.to_string()], |row| dispatch(row, 0))?;
    for dispatch in &mut found {
        dispatch.seq = next_seq(db, host)?;
        let sql = "UPDATE runs SET seq = $1 WHERE id = $2";
        execute(db, sql, params![dispatch.seq, dispatch.run.to_string()])?;
    }
    Ok(found)
}
