//! Hosts on record: registered, found, quarantined, forgotten.

use std::collections::BTreeMap;

use postern_proto::ids::{HostId, RunId};
use rusqlite::{Connection, Row, params};

use super::sql::{all, execute, malformed, optional, parsed};
use super::{Facts, HostChange, HostRecord, HostState, OpError, SshRecord, Store};
use crate::room::Room;

const COLUMNS: &str = "id, name, ssh_address, labels, state, detail, agent_version, os_id, os_version, arch, \
                       hostname, boot_id, last_seen_ms, vars, also_at, memory_mb, swap_mb, disk_free_mb, \
                       var_free_mb, ssh_ports";

/// Labels on one host.
const MAX_LABELS: usize = 64;
/// Variables of one host.
const MAX_VARS: usize = 256;

/// What forgetting a host did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// Runs that were not over and never will be.
    pub ended: Vec<RunId>,
}

fn read(row: &Row<'_>) -> rusqlite::Result<HostRecord> {
    let labels: String = row.get("labels")?;
    let vars: String = row.get("vars")?;
    let also_at: String = row.get("also_at")?;
    let ssh_ports: String = row.get("ssh_ports")?;
    let boot_id: Option<String> = row.get("boot_id")?;
    Ok(HostRecord {
        id: parsed(row, "id")?,
        name: row.get("name")?,
        ssh_address: row.get("ssh_address")?,
        labels: serde_json::from_str(&labels).map_err(malformed)?,
        state: parsed(row, "state")?,
        detail: row.get("detail")?,
        facts: Facts {
            agent_version: row.get("agent_version")?,
            os_id: row.get("os_id")?,
            os_version: row.get("os_version")?,
            arch: row.get("arch")?,
            hostname: row.get("hostname")?,
            boot_id: boot_id.map(|id| id.parse().map_err(malformed)).transpose()?,
            room: Room {
                memory_mb: row.get("memory_mb")?,
                swap_mb: row.get("swap_mb")?,
                disk_free_mb: row.get("disk_free_mb")?,
                var_free_mb: row.get("var_free_mb")?,
            },
            ssh_ports: serde_json::from_str(&ssh_ports).map_err(malformed)?,
        },
        last_seen_ms: row.get("last_seen_ms")?,
        vars: serde_json::from_str(&vars).map_err(malformed)?,
        also_at: serde_json::from_str(&also_at).map_err(malformed)?,
        // They are in tables of their own: see `whole`.
        profiles: Vec::new(),
        ssh: SshRecord::default(),
    })
}

/// With what other tables say of it.
fn whole(db: &Connection, mut host: HostRecord) -> Result<HostRecord, OpError> {
    host.profiles = super::assigned::names(db, host.id)?;
    host.ssh = super::ssh_port::of(db, host.id)?;
    Ok(host)
}

/// By id, tombstones left out.
pub(super) fn by_id(db: &Connection, id: HostId) -> Result<Option<HostRecord>, OpError> {
    let sql = format!("SELECT {COLUMNS} FROM hosts WHERE id = $1 AND state <> 'forgotten'");
    optional(db, &sql, params![id.to_string()], read)?.map(|host| whole(db, host)).transpose()
}

fn by_name(db: &Connection, name: &str) -> Result<Option<HostRecord>, OpError> {
    let sql = format!("SELECT {COLUMNS} FROM hosts WHERE name = $1 AND state <> 'forgotten'");
    optional(db, &sql, params![name], read)?.map(|host| whole(db, host)).transpose()
}

/// By id or name, tombstones left out.
pub(super) fn find(db: &Connection, id_or_name: &str) -> Result<HostRecord, OpError> {
    let found = match id_or_name.parse::<HostId>() {
        Ok(id) => by_id(db, id)?,
        Err(_) => by_name(db, id_or_name)?,
    };
    found.ok_or_else(|| OpError::NoSuchHost(id_or_name.chars().take(80).collect()))
}

impl Store {
    /// All hosts but the forgotten ones, by name.
    pub async fn hosts(&self) -> Result<Vec<HostRecord>, OpError> {
        self.read("listing the hosts", |db| {
            let sql = format!("SELECT {COLUMNS} FROM hosts WHERE state <> 'forgotten' ORDER BY name");
            all(db, &sql, [], read)?.into_iter().map(|host| whole(db, host)).collect()
        })
        .await
    }

    /// The host with this id or name.
    pub async fn find_host(&self, id_or_name: String) -> Result<HostRecord, OpError> {
        self.read("looking up a host", move |db| find(db, &id_or_name)).await
    }

    /// The host at this SSH address, made when there is none. A name of `None` is taken from `suggestion`,
    /// with a number where that is taken. Labels are added to those there are.
    pub async fn register_host(
        &self,
        ssh_address: String,
        name: Option<String>,
        suggestion: String,
        labels: BTreeMap<String, String>,
        now_ms: i64,
    ) -> Result<HostRecord, OpError> {
        self.write("registering a host", move |db| {
            let sql = format!("SELECT {COLUMNS} FROM hosts WHERE ssh_address = $1 AND state <> 'forgotten'");
            let known = if ssh_address.is_empty() {
                name.as_deref().map(|name| by_name(db, name)).transpose()?.flatten()
            } else {
                optional(db, &sql, params![ssh_address], read)?.map(|host| whole(db, host)).transpose()?
            };
            match known {
                Some(host) => {
                    update(db, host, HostChange { name, set_labels: labels, ..HostChange::default() })
                }
                None => insert(db, ssh_address, name, &suggestion, labels, now_ms),
            }
        })
        .await
    }

    /// Changes what the operator says about a host.
    pub async fn update_host(&self, host: HostId, change: HostChange) -> Result<HostRecord, OpError> {
        self.write("changing a host", move |db| {
            let known = by_id(db, host)?.ok_or_else(|| OpError::NoSuchHost(host.to_string()))?;
            update(db, known, change)
        })
        .await
    }

    /// Lets nobody in with this host's identity until it is enrolled anew.
    pub async fn quarantine(&self, host: HostId, detail: String) -> Result<(), OpError> {
        self.write("quarantining a host", move |db| {
            let sql = "UPDATE hosts SET state = 'quarantined', detail = $1, epoch = epoch + 1 \
                       WHERE id = $2 AND state <> 'forgotten'";
            execute(db, sql, params![detail, host.to_string()]).map(drop)
        })
        .await
    }

    /// Notes that something came from the host.
    pub async fn seen(&self, host: HostId, at_ms: i64) -> Result<(), OpError> {
        self.write("noting when a host was seen", move |db| {
            let sql = "UPDATE hosts SET last_seen_ms = $1 WHERE id = $2 AND last_seen_ms < $1";
            execute(db, sql, params![at_ms, host.to_string()]).map(drop)
        })
        .await
    }

    /// Leaves a tombstone: keys revoked, tokens gone, what was not over is ended.
    pub async fn forget(&self, host: HostId, now_ms: i64) -> Result<Forgotten, OpError> {
        self.write("forgetting a host", move |db| {
            let id = host.to_string();
            let sql = "UPDATE hosts SET state = 'forgotten', detail = '', epoch = epoch + 1 \
                       WHERE id = $1 AND state <> 'forgotten'";
            if execute(db, sql, params![id])? == 0 {
                return Err(OpError::NoSuchHost(id));
            }
            execute(db, "DELETE FROM tokens WHERE host = $1", params![id])?;
            execute(db, "DELETE FROM assigned WHERE host = $1", params![id])?;
            revoke_keys(db, host, now_ms, "the host was forgotten")?;
            let ended = super::runs::end_all(
                db,
                host,
                now_ms,
                "the host was forgotten before it started",
                "the host was forgotten; how far it got is not known",
            )?;
            Ok(Forgotten { ended })
        })
        .await
    }
}

/// How many were good until now.
pub(super) fn revoke_keys(db: &Connection, host: HostId, now_ms: i64, why: &str) -> Result<usize, OpError> {
    let sql = "UPDATE keys SET revoked_ms = $1, revoked_why = $2 WHERE host = $3 AND revoked_ms IS NULL";
    execute(db, sql, params![now_ms, why, host.to_string()])
}

fn update(db: &Connection, mut host: HostRecord, change: HostChange) -> Result<HostRecord, OpError> {
    if let Some(name) = change.name.filter(|name| *name != host.name) {
        if by_name(db, &name)?.is_some() {
            return Err(OpError::NameTaken(name));
        }
        host.name = name;
    }
    edit(&mut host.labels, change.set_labels, &change.remove_labels, MAX_LABELS, "labels")?;
    edit(&mut host.vars, change.set_vars, &change.remove_vars, MAX_VARS, "variables")?;
    host.also_at = change.also_at.unwrap_or(host.also_at);
    let sql = "UPDATE hosts SET name = $1, labels = $2, vars = $3, also_at = $4 WHERE id = $5";
    let (labels, vars) = (map_json(&host.labels), map_json(&host.vars));
    let also_at = serde_json::json!(host.also_at).to_string();
    execute(db, sql, params![host.name, labels, vars, also_at, host.id.to_string()])?;
    Ok(host)
}

fn edit(
    map: &mut BTreeMap<String, String>,
    set: BTreeMap<String, String>,
    remove: &[String],
    limit: usize,
    what: &'static str,
) -> Result<(), OpError> {
    map.retain(|key, _| !remove.contains(key));
    map.extend(set);
    if map.len() > limit { Err(OpError::TooMany { what, limit }) } else { Ok(()) }
}

fn insert(
    db: &Connection,
    ssh_address: String,
    name: Option<String>,
    suggestion: &str,
    labels: BTreeMap<String, String>,
    now_ms: i64,
) -> Result<HostRecord, OpError> {
    let name = match name {
        Some(name) if by_name(db, &name)?.is_some() => return Err(OpError::NameTaken(name)),
        Some(name) => name,
        None => free_name(db, suggestion)?,
    };
    let host = HostRecord {
        id: HostId::generate(),
        name,
        ssh_address,
        labels,
        state: HostState::Pending,
        detail: String::new(),
        facts: Facts::default(),
        last_seen_ms: 0,
        vars: BTreeMap::new(),
        also_at: Vec::new(),
        profiles: Vec::new(),
        ssh: SshRecord::default(),
    };
    let sql = "INSERT INTO hosts (id, name, ssh_address, labels, state, created_ms, detail, epoch, next_seq, \
               agent_version, os_id, os_version, arch, hostname, last_seen_ms) \
               VALUES ($1, $2, $3, $4, $5, $6, '', 0, 1, '', '', '', '', '', 0)";
    let labels = map_json(&host.labels);
    let id = host.id.to_string();
    execute(db, sql, params![id, host.name, host.ssh_address, labels, host.state.as_str(), now_ms])?;
    Ok(host)
}

fn free_name(db: &Connection, suggestion: &str) -> Result<String, OpError> {
    let mut name = suggestion.to_owned();
    let mut number = 2u32;
    while by_name(db, &name)?.is_some() {
        name = format!("{suggestion}-{number}");
        number = number.saturating_add(1);
    }
    Ok(name)
}

pub(super) fn map_json(map: &BTreeMap<String, String>) -> String {
    serde_json::Value::from_iter(map.iter().map(|(key, value)| (key.as_str(), value.as_str()))).to_string()
}
