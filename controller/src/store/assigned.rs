//! The profiles that a host is to have, in the order in which they compose. What a bundle holds is known to
//! the command line alone.

use std::collections::HashMap;

use postern_proto::ids::{HostId, RunId};
use rusqlite::{Connection, params};

use super::hosts::{self, map_json};
use super::sql::{all, execute, malformed, one, optional, parsed};
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

/// What a run does to what is assigned to its host, in the run's commit: those that it names are replaced in
/// their places or appended, and each takes the place of the first of those that it covers. What was there
/// before is kept for the run's undo.
pub(super) fn assign(
    db: &Connection,
    host: HostId,
    run: RunId,
    profiles: &[Assigned],
    now_ms: i64,
) -> Result<(), OpError> {
    if profiles.is_empty() {
        return Ok(());
    }
    let id = host.to_string();
    for profile in profiles {
        let earlier = find(db, host, &profile.name)?;
        let mut place = earlier.as_ref().map(|row| row.position);
        let covered = profile
            .covers
            .iter()
            .filter(|name| **name != profile.name && profiles.iter().all(|assigned| assigned.name != **name));
        for name in covered {
            let Some(row) = find(db, host, name)? else { continue };
            place = Some(place.map_or(row.position, |place| place.min(row.position)));
            keep(
                db,
                host,
                run,
                name,
                Kept { before: Some(&row), covered_by: Some(&profile.name), left_ms: None },
            )?;
            take_away(db, host, name)?;
        }
        let vars = map_json(&profile.vars);
        if let Some(row) = &earlier
            && (&row.bundle, &row.vars, Some(row.position)) == (&profile.bundle, &vars, place)
        {
            // Still the assignment of the run that made it, whose undo may take it back.
            continue;
        }
        let kept = Kept { before: earlier.as_ref(), covered_by: None, left_ms: Some(now_ms) };
        keep(db, host, run, &profile.name, kept)?;
        let place = match place {
            Some(place) => place,
            None => {
                let sql = "SELECT coalesce(max(position), 0) + 1 FROM assigned WHERE host = $1";
                one(db, sql, params![id], |row| row.get(0))?
            }
        };
        let row = Row { position: place, bundle: profile.bundle.clone(), vars, assigned_ms: now_ms };
        put(db, host, &profile.name, &row)?;
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

/// Takes away what a run that has ended well was to take away, in the commit of its end; one that is not there is not.
pub(super) fn unassign(db: &Connection, no: i64) -> Result<(), OpError> {
    let sql = "SELECT id, host, unassigns FROM runs WHERE no = $1";
    let (run, host, names) = one(db, sql, params![no], |row| {
        let names: Vec<String> =
            serde_json::from_str(row.get_ref("unassigns")?.as_str()?).map_err(malformed)?;
        Ok((parsed::<RunId>(row, "id")?, parsed::<HostId>(row, "host")?, names))
    })?;
    for name in names {
        if let Some(row) = find(db, host, &name)? {
            keep(db, host, run, &name, Kept { before: Some(&row), covered_by: None, left_ms: None })?;
            take_away(db, host, &name)?;
        }
    }
    Ok(())
}

/// Takes back what a run did to what is assigned, where nobody has changed it since; `by` is its undo, which can
/// be undone in its turn.
pub(super) fn take_back(db: &Connection, host: HostId, undone: RunId, by: RunId) -> Result<(), OpError> {
    let sql = "SELECT name, position, bundle, vars, assigned_ms, covered_by, left_ms FROM assigned_before \
               WHERE run = $1";
    let kept = all(db, sql, params![undone.to_string()], |row| {
        let before = match row.get::<_, Option<i64>>("position")? {
            None => None,
            Some(_) => Some(Row::read(row)?),
        };
        let covered_by: Option<String> = row.get("covered_by")?;
        Ok((row.get::<_, String>("name")?, before, covered_by, row.get::<_, Option<i64>>("left_ms")?))
    })?;
    // Whether each is still as the run left it, before anything is changed.
    let mut is_runs = HashMap::new();
    for (name, _, _, left) in &kept {
        let now = find(db, host, name)?;
        is_runs.insert(name.clone(), now.map(|row| row.assigned_ms) == *left);
    }
    for (name, before, covered_by, _) in kept {
        // One whose coverer stays would be there twice.
        let goes = covered_by.as_ref().is_none_or(|by| is_runs.get(by).copied().unwrap_or(false));
        if !goes || !is_runs.get(&name).copied().unwrap_or(false) {
            continue;
        }
        let now = find(db, host, &name)?;
        let left_ms = before.as_ref().map(|row| row.assigned_ms);
        let kept = Kept { before: now.as_ref(), covered_by: covered_by.as_deref(), left_ms };
        keep(db, host, by, &name, kept)?;
        match before {
            Some(before) => put(db, host, &name, &before)?,
            None => take_away(db, host, &name)?,
        }
    }
    Ok(())
}

/// One assignment as it lies there.
struct Row {
    position: i64,
    bundle: Vec<u8>,
    /// JSON.
    vars: String,
    assigned_ms: i64,
}

impl Row {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            position: row.get("position")?,
            bundle: row.get("bundle")?,
            vars: row.get("vars")?,
            assigned_ms: row.get("assigned_ms")?,
        })
    }
}

fn find(db: &Connection, host: HostId, name: &str) -> Result<Option<Row>, OpError> {
    let sql = "SELECT position, bundle, vars, assigned_ms FROM assigned WHERE host = $1 AND name = $2";
    optional(db, sql, params![host.to_string(), name], Row::read)
}

fn put(db: &Connection, host: HostId, name: &str, row: &Row) -> Result<(), OpError> {
    let sql = "INSERT INTO assigned (host, name, position, bundle, vars, assigned_ms) \
               VALUES ($1, $2, $3, $4, $5, $6) \
               ON CONFLICT (host, name) DO UPDATE SET position = excluded.position, bundle = excluded.bundle, \
               vars = excluded.vars, assigned_ms = excluded.assigned_ms";
    let Row { position, bundle, vars, assigned_ms } = row;
    execute(db, sql, params![host.to_string(), name, position, bundle, vars, assigned_ms]).map(drop)
}

fn take_away(db: &Connection, host: HostId, name: &str) -> Result<(), OpError> {
    let sql = "DELETE FROM assigned WHERE host = $1 AND name = $2";
    execute(db, sql, params![host.to_string(), name]).map(drop)
}

/// What a run found and left.
struct Kept<'a> {
    before: Option<&'a Row>,
    covered_by: Option<&'a str>,
    left_ms: Option<i64>,
}

/// The first that a run finds is what was there before it.
fn keep(db: &Connection, host: HostId, run: RunId, name: &str, kept: Kept<'_>) -> Result<(), OpError> {
    let sql = "INSERT INTO assigned_before \
               (run, host, name, position, bundle, vars, assigned_ms, covered_by, left_ms) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
               ON CONFLICT (run, name) DO UPDATE SET left_ms = excluded.left_ms";
    let Kept { before, covered_by, left_ms } = kept;
    let (position, bundle) = (before.map(|row| row.position), before.map(|row| row.bundle.as_slice()));
    let (vars, at) = (before.map(|row| row.vars.as_str()), before.map(|row| row.assigned_ms));
    let ids = (run.to_string(), host.to_string());
    execute(db, sql, params![ids.0, ids.1, name, position, bundle, vars, at, covered_by, left_ms]).map(drop)
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
                    covers: Vec::new(),
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
