//! What agents report, written down: events and output of runs, refusals.

use postern_proto::event::{EventKind, LogFrame, RunEvent, RunState, StepId};
use postern_proto::ids::{HostId, RunId};
use rusqlite::{Connection, params};

use super::chunk::{self, CHUNK_BYTES};
use super::sql::{all, execute, malformed, one, optional, parsed};
use super::{OpError, Progress, StepProgress, Store, runs};

/// What one session reports in one commit.
#[derive(Debug)]
pub struct Batch {
    /// Whose session.
    pub host: HostId,
    /// The epoch that session was given.
    pub epoch: u64,
    /// Milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// By run.
    pub runs: Vec<RunBatch>,
}

/// What one session reports of one run.
#[derive(Debug)]
pub struct RunBatch {
    run: RunId,
    /// The first event in it continues this one.
    events_from: u64,
    events: u64,
    rows: Vec<NewRow>,
    /// Frames that wait to become a row.
    frames: Vec<LogFrame>,
    frame_bytes: usize,
    steps: Vec<StepMove>,
    ends: Vec<(StepId, u64)>,
    accepted: bool,
    /// Why it waits, or that it goes on again: what was said last.
    parked: Option<Option<String>>,
    finished: Option<(RunState, String)>,
}

/// How far the output of a step moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepMove {
    /// Which step.
    pub step: StepId,
    /// What must be on record.
    pub from: StepProgress,
    /// What is on record then.
    pub to: StepProgress,
}

#[derive(Debug)]
struct NewRow {
    items: u64,
    kind: &'static str,
    body: Vec<u8>,
}

impl RunBatch {
    /// Nothing yet; events go on after `events_from`.
    #[must_use]
    pub fn new(run: RunId, events_from: u64) -> Self {
        Self {
            run,
            events_from,
            events: 0,
            rows: Vec::new(),
            frames: Vec::new(),
            frame_bytes: 0,
            steps: Vec::new(),
            ends: Vec::new(),
            accepted: false,
            parked: None,
            finished: None,
        }
    }

    /// Which run.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.run
    }

    /// The last event in it.
    #[must_use]
    pub fn last_event(&self) -> u64 {
        self.events_from + self.events
    }

    /// How far output moves.
    #[must_use]
    pub fn steps(&self) -> &[StepMove] {
        &self.steps
    }

    /// The next event; the caller has seen that it is the next.
    pub fn event(&mut self, event: &RunEvent) {
        self.flush();
        self.events += 1;
        match &event.kind {
            EventKind::Accepted { .. } => self.accepted = true,
            EventKind::Parked { why } => self.parked = Some(Some(why.clone())),
            EventKind::Unparked => self.parked = Some(None),
            EventKind::StepFinished { step, frames, .. } => self.ends.push((step.clone(), *frames)),
            EventKind::Finished { state, message } => self.finished = Some((*state, message.clone())),
            _ => {}
        }
        // An event is made of strings and numbers: there is no way for it not to be JSON.
        let body = serde_json::to_vec(event).unwrap_or_default();
        self.rows.push(NewRow { items: 1, kind: "event", body });
    }

    /// The next frame of its step; the caller has seen that it is the next.
    pub fn frame(&mut self, frame: LogFrame, from: StepProgress, to: StepProgress) {
        match self.steps.iter_mut().find(|known| known.step == frame.step) {
            Some(known) => known.to = to,
            None => self.steps.push(StepMove { step: frame.step.clone(), from, to }),
        }
        // The data alone: a marker of dropped bytes weighs nothing here, however many they were.
        if let postern_proto::event::LogBody::Data(data) = &frame.body {
            self.frame_bytes += data.len();
        }
        self.frames.push(frame);
        if self.frame_bytes >= CHUNK_BYTES || self.frames.len() >= 1024 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.frames.is_empty() {
            let body = chunk::encode(&self.frames);
            self.rows.push(NewRow { items: self.frames.len() as u64, kind: "log", body });
            self.frames.clear();
            self.frame_bytes = 0;
        }
    }
}

/// How much of a run is committed.
pub(super) fn progress(db: &Connection, run: RunId) -> Result<Progress, OpError> {
    let sql = "SELECT no, last_event FROM runs WHERE id = $1";
    let (no, event_seq): (i64, u64) =
        one(db, sql, params![run.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let sql = "SELECT address, attempt, step, next_frame, stdout, stderr FROM steps \
               WHERE run = $1 AND next_frame > 0";
    let steps = all(db, sql, params![no], |row| {
        let id =
            StepId { address: parsed(row, "address")?, attempt: row.get("attempt")?, step: row.get("step")? };
        let at = StepProgress {
            next_frame: row.get("next_frame")?,
            stdout: row.get("stdout")?,
            stderr: row.get("stderr")?,
        };
        Ok((id, at))
    })?;
    Ok(Progress { run, event_seq, steps })
}

/// Refuses a session that is not the host's owner any more.
pub(super) fn fence(db: &Connection, host: HostId, epoch: u64) -> Result<(), OpError> {
    let sql = "SELECT epoch FROM hosts WHERE id = $1 AND state <> 'forgotten'";
    match optional(db, sql, params![host.to_string()], |row| row.get::<_, u64>(0))? {
        Some(current) if current == epoch => Ok(()),
        _ => Err(OpError::Fenced),
    }
}

impl Store {
    /// Writes down what a session reports; all of it or nothing.
    pub async fn append(&self, mut batch: Batch) -> Result<(), OpError> {
        batch.runs.iter_mut().for_each(RunBatch::flush);
        self.write("recording what a run does", move |db| {
            fence(db, batch.host, batch.epoch)?;
            batch.runs.iter().try_for_each(|run| append(db, batch.host, run, batch.now_ms))
        })
        .await
    }

    /// The agent would not take a run.
    pub async fn refuse_run(
        &self,
        host: HostId,
        epoch: u64,
        run: RunId,
        message: String,
        now_ms: i64,
    ) -> Result<(), OpError> {
        self.write("recording a refusal", move |db| {
            fence(db, host, epoch)?;
            let sql = "UPDATE runs SET state = 'refused', message = $1, finished_ms = $2 \
                       WHERE id = $3 AND host = $4 AND state = 'queued'";
            execute(db, sql, params![message, now_ms, run.to_string(), host.to_string()]).map(drop)
        })
        .await
    }
}

fn append(db: &Connection, host: HostId, batch: &RunBatch, now_ms: i64) -> Result<(), OpError> {
    let run = batch.run;
    let sql = "SELECT no, host, last_event, last_cursor, state FROM runs WHERE id = $1";
    let row = optional(db, sql, params![run.to_string()], |row| {
        Ok((
            row.get::<_, i64>("no")?,
            parsed::<HostId>(row, "host")?,
            row.get::<_, u64>("last_event")?,
            row.get::<_, u64>("last_cursor")?,
            runs::state(row)?,
        ))
    })?;
    let (no, owner, last_event, mut cursor, was) = row.ok_or(OpError::NoSuchRun(run))?;
    if owner != host {
        return Err(OpError::OtherHost(run));
    }
    if batch.events > 0 && last_event != batch.events_from {
        return Err(OpError::Gap { run, what: "an event" });
    }
    if was.is_final() && has_finished(db, no)? {
        // What it said last stands; only output that it announced before may still be on its way.
        if batch.events > 0 {
            return Err(OpError::Gap { run, what: "an event after the last" });
        }
        for moved in &batch.steps {
            if !is_announced(db, no, moved)? {
                return Err(OpError::Gap { run, what: "output after the end" });
            }
        }
    }
    for row in &batch.rows {
        cursor += row.items;
        let sql = "INSERT INTO updates (run, last_cursor, items, kind, body) VALUES ($1, $2, $3, $4, $5)";
        execute(db, sql, params![no, cursor, row.items, row.kind, row.body])?;
    }
    for moved in &batch.steps {
        advance(db, run, no, moved)?;
    }
    for (step, frames) in &batch.ends {
        let sql = "INSERT INTO steps (run, address, attempt, step, frames, next_frame, stdout, stderr) \
                   VALUES ($1, $2, $3, $4, $5, 0, 0, 0) \
                   ON CONFLICT (run, address, attempt, step) DO UPDATE SET frames = excluded.frames";
        execute(db, sql, params![no, step.address.as_str(), step.attempt, step.step, frames])?;
    }
    let sql = "UPDATE runs SET last_event = last_event + $1, last_cursor = $2 WHERE no = $3";
    execute(db, sql, params![batch.events, cursor, no])?;
    if batch.accepted {
        // Also of one that was taken for expired, or that waited when a backup was made: the truth is that it
        // runs.
        let sql = "UPDATE runs SET state = 'running', message = '', finished_ms = 0 \
                   WHERE no = $1 AND (state IN ('queued', 'expired') OR (state = 'interrupted' AND $2 = 0))";
        execute(db, sql, params![no, last_event])?;
    }
    if let Some(parked) = &batch.parked {
        let state = if parked.is_some() { RunState::Parked } else { RunState::Running };
        let sql = "UPDATE runs SET state = $1, message = $2 WHERE no = $3 AND state IN ('running', 'parked')";
        execute(db, sql, params![state.as_str(), parked.as_deref().unwrap_or_default(), no])?;
    }
    if let Some((state, message)) = &batch.finished {
        let sql = "UPDATE runs SET state = $1, message = $2, finished_ms = $3 WHERE no = $4";
        execute(db, sql, params![state.as_str(), message, now_ms, no])?;
        if *state == RunState::Ok {
            super::assigned::unassign(db, no)?;
        }
    }
    Ok(())
}

/// True when the agent itself has said that the run is over. One that the controller ended may go on: the truth
/// is what the agent says.
fn has_finished(db: &Connection, no: i64) -> Result<bool, OpError> {
    let sql = "SELECT body FROM updates WHERE run = $1 AND kind = 'event' ORDER BY last_cursor DESC LIMIT 1";
    let last = optional(db, sql, params![no], |row| event(row.get_ref("body")?.as_blob()?))?;
    Ok(last.is_some_and(|last| matches!(last.kind, EventKind::Finished { .. })))
}

/// True when the step has ended and said that it has so many frames.
fn is_announced(db: &Connection, no: i64, moved: &StepMove) -> Result<bool, OpError> {
    let step = &moved.step;
    let sql = "SELECT frames FROM steps WHERE run = $1 AND address = $2 AND attempt = $3 AND step = $4";
    let key = params![no, step.address.as_str(), step.attempt, step.step];
    let frames: Option<Option<u64>> = optional(db, sql, key, |row| row.get(0))?;
    Ok(frames.flatten().is_some_and(|frames| moved.to.next_frame <= frames))
}

fn advance(db: &Connection, run: RunId, no: i64, moved: &StepMove) -> Result<(), OpError> {
    let (step, from, to) = (&moved.step, &moved.from, &moved.to);
    let sql = "SELECT next_frame FROM steps WHERE run = $1 AND address = $2 AND attempt = $3 AND step = $4";
    let key = params![no, step.address.as_str(), step.attempt, step.step];
    let recorded: Option<u64> = optional(db, sql, key, |row| row.get(0))?;
    if recorded.unwrap_or(0) != from.next_frame {
        return Err(OpError::Gap { run, what: "output" });
    }
    let sql = "INSERT INTO steps (run, address, attempt, step, next_frame, stdout, stderr) \
               VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (run, address, attempt, step) DO UPDATE \
               SET next_frame = excluded.next_frame, stdout = excluded.stdout, stderr = excluded.stderr";
    let address = step.address.as_str();
    execute(db, sql, params![no, address, step.attempt, step.step, to.next_frame, to.stdout, to.stderr])
        .map(drop)
}

/// An event as it lies in the database.
pub(super) fn event(body: &[u8]) -> rusqlite::Result<RunEvent> {
    serde_json::from_slice(body).map_err(malformed)
}
