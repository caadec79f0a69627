//! The profiles that a host is to have, in the order in which they compose. What a bundle holds is known to
//! the command line alone.

use postern_proto::ids::HostId;
use rusqlite::{Connection, params};

use super::hosts::{self, map_json};
use super::sql::{all, execute, malformed, one};
use super::{Assigned, OpError, Store};

/// Profiles of one host.
const MAX_PROFILES: usize = 32;
/// Their bundles together, bytes: an answer that lists them all must fit a message.
pub const MAX_BUNDLES: usize = 12 * 1024 * 1024;

/// In order.
pub(super) fn names(db: &Connection, host: HostId) -> Result<Vec<String>, OpError> {
    let sql = "SELECT name FROM assigned WHERE host = $1 ORDER BY position";
    all(db, sql, params![host.to_string()], |row| row.get(0))
}

/// Replaces those that are there in their place and appends the others.
pub(super) fn assign(
    db: &Connection,
    host: HostId,
    profiles: &[Assigned],
    now_ms: i64,
) -> Result<(), OpError> {
    if profiles.is_empty() {
        return Ok(());
    }
    let id = host.to_string();
    for profile in profiles {
        let sql = "INSERT INTO assigned (host, name, bundle, vars, assigned_ms, position) \
                   VALUES ($1, $2, $3, $4, $5, \
                   (SELECT coalesce(max(position), 0) + 1 FROM assigned WHERE host = $1)) \
                   ON CONFLICT (host, name) DO UPDATE SET bundle = excluded.bundle, vars = excluded.vars, \
                   assigned_ms = excluded.assigned_ms";
        execute(db, sql, params![id, profile.name, profile.bundle, map_json(&profile.vars), now_ms])?;
    }
    let sql = "SELECT count(*), sum(length(bundle)) FROM assigned WHERE host = $1";
    let (count, bytes): (usize, usize) = one(db, sql, params![id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if count > MAX_PROFILES {
        return Err(OpError::TooMany { what: "assigned profiles", limit: MAX_PROFILES });
    }
    if bytes > MAX_BUNDLES {
        return Err(OpError::TooMany { what: "bytes of assigned profiles", limit: MAX_BUNDLES });
    }
    Ok(())
}

impl Store {
    /// The profiles a host is to have, in order.
    pub async fn assigned(&self, id_or_name: String) -> Result<Vec<Assigned>, OpError> {
        self.read("listing the assigned profiles", move |db| {
            let host = hosts::find(db, &id_or_name)?;
            let sql =
                "SELECT name, bundle, vars, assigned_ms FROM assigned WHERE host = $1 ORDER BY position";
            all(db, sql, params![host.id.to_string()], |row| {
                Ok(Assigned {
                    name: row.get("name")?,
                    bundle: row.get("bundle")?,
                    vars: serde_json::from_str(row.get_ref("vars")?.as_str()?).map_err(malformed)?,
                    assigned_ms: row.get("assigned_ms")?,
                })
            })
        })
        .await
    }

    /// Takes one away; which host it was.
    pub async fn unassign(&self, id_or_name: String, profile: String) -> Result<HostId, OpError> {
        self.write("unassigning a profile", move |db| {
            let host = hosts::find(db, &id_or_name)?;
            let sql = "DELETE FROM assigned WHERE host = $1 AND name = $2";
            match execute(db, sql, params![host.id.to_string(), profile])? {
                0 => Err(OpError::NotAssigned { host: host.name, profile }),
                _ => Ok(host.id),
            }
        })
        .await
    }
}
