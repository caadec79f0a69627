//! Reading a run from a cursor on.

use postern_proto::event::{LogFrame, RunEvent};
use postern_proto::ids::RunId;
use rusqlite::params;

use super::sql::{one, optional, prepare};
use super::{OpError, RunRecord, Store, chunk, record, runs};

/// A page ends after so many bytes as they lie in the database.
const PAGE_BYTES: usize = 512 * 1024;
/// A page ends after so many updates.
const PAGE_ITEMS: usize = 2048;

/// One thing that happened in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Grows by one with each update of the run, from 1.
    pub cursor: u64,
    /// What happened.
    pub body: UpdateBody,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpdateBody {
    /// An event.
    Event(RunEvent),
    /// A piece of output.
    Log(LogFrame),
}

/// What there is of a run after a cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The run, as of the same moment.
    pub run: RunRecord,
    /// In order.
    pub updates: Vec<Update>,
    /// There is more already.
    pub more: bool,
    /// Nothing will ever be added: the run is over and all its output is here.
    pub complete: bool,
}

impl Store {
    /// What there is of a run after `cursor`.
    pub async fn follow(&self, id: RunId, cursor: u64) -> Result<Page, OpError> {
        self.read("reading a run", move |db| {
            let run = runs::by_id(db, id)?;
            let sql = "SELECT runs.no, runs.last_cursor, hosts.state = 'forgotten' FROM runs \
                       JOIN hosts ON hosts.id = runs.host WHERE runs.id = $1";
            let (no, last, forgotten): (i64, u64, bool) =
                one(db, sql, params![id.to_string()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            let updates = if cursor < last { read(db, id, no, cursor)? } else { Vec::new() };
            let more = updates.last().is_some_and(|update| update.cursor < last);
            // Control goes first on the wire, so output can follow the last event. A forgotten host sends
            // nothing more.
            let sql = "SELECT 1 FROM steps WHERE run = $1 AND frames > next_frame LIMIT 1";
            let complete = run.state.is_final()
                && !more
                && (forgotten || optional(db, sql, params![no], |_| Ok(()))?.is_none());
            Ok(Page { run, updates, more, complete })
        })
        .await
    }
}

fn read(db: &rusqlite::Connection, id: RunId, no: i64, after: u64) -> Result<Vec<Update>, OpError> {
    let sql = "SELECT last_cursor, items, kind, body FROM updates \
               WHERE run = $1 AND last_cursor > $2 ORDER BY last_cursor";
    let mut statement = prepare(db, sql)?;
    let mut rows = statement.query(params![no, after])?;
    let (mut updates, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let (last, items): (u64, u64) = (row.get(0)?, row.get(1)?);
        let kind: String = row.get(2)?;
        let body = row.get_ref(3)?.as_blob().map_err(|error| OpError::Corrupt(error.to_string()))?;
        bytes += body.len();
        match kind.as_str() {
            "event" => updates.push(Update { cursor: last, body: UpdateBody::Event(record::event(body)?) }),
            "log" => {
                let first = last.saturating_sub(items).saturating_add(1);
                let frames = chunk::decode(id, body).map_err(OpError::Corrupt)?;
                if frames.len() as u64 != items {
                    return Err(OpError::Corrupt(format!("output of run {id}: {items} frames expected")));
                }
                let fresh = (first..).zip(frames).filter(|(cursor, _)| *cursor > after);
                updates.extend(fresh.map(|(cursor, frame)| Update { cursor, body: UpdateBody::Log(frame) }));
            }
            other => return Err(OpError::Corrupt(format!("run {id}: an update of kind {other:?}"))),
        }
        if bytes >= PAGE_BYTES || updates.len() >= PAGE_ITEMS {
            break;
        }
    }
    Ok(updates)
}
