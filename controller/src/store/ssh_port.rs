//! What is declared of a host's port of SSH: a run that was to open or close it, and ended well, says so.
//!
//! There is no word of its own that could disagree with what was done: a run that was cut off, failed or was taken back
//! by its guard declares nothing.

use postern_proto::event::RunState;
use postern_proto::ids::{HostId, RunId};
use postern_proto::spec::SshPort;
use rusqlite::{Connection, Row, params};

use super::OpError;
use super::runs::OPEN;
use super::sql::{malformed, optional, parsed};
use super::types::UnknownWord;

/// What a run said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SshDeclared {
    /// What.
    pub port: SshPort,
    /// Which run.
    pub run: RunId,
    /// When it ended, milliseconds since the Unix epoch.
    pub at_ms: i64,
}

/// How it stands on one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SshRecord {
    /// `None` while no run has said anything: it is open, or as the profiles say.
    pub declared: Option<SshDeclared>,
    /// A run that is to change it and is not over.
    pub changing: Option<RunId>,
}

impl SshRecord {
    /// A plan must not let SSH in.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.declared.is_some_and(|declared| declared.port == SshPort::Closed)
    }
}

pub(super) fn word(row: &Row<'_>) -> rusqlite::Result<Option<SshPort>> {
    let word: Option<String> = row.get("ssh_port")?;
    word.map(|word| SshPort::from_word(&word).ok_or_else(|| malformed(UnknownWord::of(&word)))).transpose()
}

pub(super) fn of(db: &Connection, host: HostId) -> Result<SshRecord, OpError> {
    let id = host.to_string();
    let sql = "SELECT id, ssh_port, finished_ms FROM runs \
               WHERE host = $1 AND ssh_port IS NOT NULL AND state = $2 ORDER BY no DESC LIMIT 1";
    let declared = optional(db, sql, params![id, RunState::Ok.as_str()], |row| {
        let port = word(row)?.unwrap_or_default();
        Ok(SshDeclared { port, run: parsed(row, "id")?, at_ms: row.get("finished_ms")? })
    })?;
    let sql = format!(
        "SELECT id FROM runs WHERE host = $1 AND ssh_port IS NOT NULL AND state IN {OPEN} ORDER BY no LIMIT 1"
    );
    let changing = optional(db, &sql, params![id], |row| parsed(row, "id"))?;
    Ok(SshRecord { declared, changing })
}

/// Refuses what would change the port beside who may: decided in the commit that writes the run down, so that no plan
/// that was made before the port was closed can open it again, and none that was made before it is opened can close it.
pub(super) fn allow(
    db: &Connection,
    host: HostId,
    name: &str,
    wants: Option<SshPort>,
    firewall: Option<SshPort>,
    undoes: bool,
) -> Result<(), OpError> {
    if wants.is_none() && firewall.is_none() {
        return Ok(());
    }
    let now = of(db, host)?;
    if let Some(run) = now.changing {
        return Err(OpError::SshPortChanges { host: name.to_owned(), run });
    }
    if wants.is_none() && firewall == Some(SshPort::Open) && now.is_closed() {
        let why = if undoes { OpError::SshPortClosedSince } else { OpError::SshPortClosed };
        return Err(why(name.to_owned()));
    }
    let opened = now.declared.is_some_and(|declared| declared.port == SshPort::Open);
    if undoes && firewall == Some(SshPort::Closed) && opened {
        return Err(OpError::SshPortOpenSince(name.to_owned()));
    }
    Ok(())
}
