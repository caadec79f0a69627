//! What one session sends: picks the next thing, reads spools, and sends no byte that is not on the disk.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use postern_proto::event::{LogBody, LogFrame};
use postern_proto::ids::{RunId, SecretRef};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Outgoing;
use super::book::slot;
use super::session::{Next, Read, cost};
use super::shared::Shared;
use crate::supervise::spool::{Frame, Reader};

/// So much is read from a spool at once, bytes: it is what an fdatasync is worth.
const READ_BYTES: usize = 256 * 1024;
/// Spools that are kept open.
const OPEN_SPOOLS: usize = 32;

/// What is to be sent in one session.
pub struct Outbox {
    shared: Arc<Shared>,
    waiting: Arc<Notify>,
    generation: u64,
    spool_dir: PathBuf,
    /// Read and not yet handed out; all of one run.
    ready: VecDeque<LogFrame>,
    spools: HashMap<(RunId, u64), Cursor>,
    /// How often in a row the spool of a finished step could not be read.
    failures: HashMap<(RunId, u64), u32>,
}

/// A disk that fails is asked this often; then what cannot be read is marked as missing.
const TRIES: u32 = 5;
/// Between these.
const RETRY: Duration = Duration::from_millis(200);

/// What is sent next: what a run waits for goes before what it says.
enum Pick {
    Wanted(RunId, Vec<SecretRef>),
    Next(Next),
}

/// A place in a spool.
struct Cursor {
    reader: Reader,
    /// Read, but more than the window took.
    held: Option<Frame>,
}

impl Outbox {
    pub(super) fn new(
        shared: Arc<Shared>,
        waiting: Arc<Notify>,
        generation: u64,
        spool_dir: PathBuf,
    ) -> Self {
        Self {
            shared,
            waiting,
            generation,
            spool_dir,
            ready: VecDeque::new(),
            spools: HashMap::new(),
            failures: HashMap::new(),
        }
    }

    /// The next thing to send, when there is one and the windows are open; `None` when a newer session has
    /// taken over or the engine has ended. Safe to drop and call again.
    pub async fn next(&mut self) -> Option<Outgoing> {
        loop {
            let waiting = Arc::clone(&self.waiting);
            match self.pick()? {
                Pick::Wanted(run, secrets) => return Some(Outgoing::SecretsWanted { run, secrets }),
                Pick::Next(Next::Event(event)) => return Some(Outgoing::Event(*event)),
                Pick::Next(Next::Frames(read)) => self.read(read).await,
                Pick::Next(Next::Nothing) => match self.ready.pop_front() {
                    Some(frame) => return Some(Outgoing::Log(frame)),
                    // A wake-up between the pick and here is not lost: it is stored.
                    None => {
                        let again = self.shared.lock().asks_again();
                        tokio::select! {
                            () = waiting.notified() => {}
                            () = until(again) => {}
                        }
                    }
                },
            }
        }
    }

    fn pick(&self) -> Option<Pick> {
        let mut inner = self.shared.lock();
        let inner = &mut *inner;
        if inner.generation != self.generation {
            return None;
        }
        if let Some((run, secrets)) = inner.wanted(Instant::now()) {
            return Some(Pick::Wanted(run, secrets));
        }
        let session = inner.session.as_mut()?;
        Some(Pick::Next(session.next(&inner.book, self.ready.front().map(|frame| frame.run))))
    }

    async fn read(&mut self, read: Read) {
        let key = (read.run, read.seq);
        let cursor = self.spools.remove(&key);
        let path = self.spool_dir.join(slot(read.run, read.seq));
        let job = read.clone();
        let patient = self.failures.get(&key).is_none_or(|failures| *failures < TRIES);
        let done = tokio::task::spawn_blocking(move || read_frames(cursor, &path, &job, patient)).await;
        let done = done.unwrap_or_else(|error| Err(io::Error::other(error)));
        let (frames, stuck) = match done {
            Ok((frames, stuck, cursor)) => {
                self.failures.remove(&key);
                let over = read.until.is_some_and(|until| cursor.reader.position() >= until);
                if !over || cursor.held.is_some() {
                    if self.spools.len() >= OPEN_SPOOLS {
                        self.spools.clear();
                    }
                    self.spools.insert(key, cursor);
                }
                (frames, stuck)
            }
            // A process that was not started yet has no spool yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound && read.until.is_none() => (vec![], false),
            Err(error) => {
                tracing::warn!(%error, run = %read.run, "output of a step cannot be read");
                if read.until.is_some() && patient {
                    // Nothing was sent, so the same is picked again.
                    *self.failures.entry(key).or_default() += 1;
                    tokio::time::sleep(RETRY).await;
                    return;
                }
                (Vec::new(), false)
            }
        };
        let mut inner = self.shared.lock();
        if inner.generation != self.generation {
            return;
        }
        let Some(session) = inner.session.as_mut() else { return };
        let sizes: Vec<(u64, usize)> = frames.iter().map(|frame| (frame.frame_no, size(frame))).collect();
        session.read(&read, &sizes, stuck);
        drop(inner);
        self.ready.extend(frames.into_iter().map(|frame| LogFrame {
            run: read.run,
            step: read.step.clone(),
            frame_no: frame.frame_no,
            stream: frame.stream,
            offset: frame.offset,
            time_ns: frame.time_ns,
            body: frame.body,
        }));
    }
}

/// Returns at that time; never where there is none.
async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn size(frame: &Frame) -> usize {
    match &frame.body {
        LogBody::Data(data) => data.len(),
        LogBody::Truncated { .. } => 0,
    }
}

fn read_frames(
    cursor: Option<Cursor>,
    path: &std::path::Path,
    read: &Read,
    patient: bool,
) -> io::Result<(Vec<Frame>, bool, Cursor)> {
    let place = |cursor: &Cursor| cursor.held.as_ref().map_or(cursor.reader.position(), |held| held.frame_no);
    let mut cursor = match cursor {
        Some(cursor) if place(&cursor) == read.from => cursor,
        _ => {
            let mut reader = match Reader::open(path) {
                // It was there when the step ended.
                Err(error)
                    if read.until.is_some() && (!patient || error.kind() == io::ErrorKind::NotFound) =>
                {
                    tracing::warn!(%error, run = %read.run, "the output of a step is gone");
                    Reader::lost(path)?
                }
                opened => opened?,
            };
            match read.until {
                None => reader.skip_to(read.from)?,
                Some(until) => {
                    while reader.position() < read.from && reader.next_of(until, patient)?.is_some() {}
                }
            }
            Cursor { reader, held: None }
        }
    };
    let (mut frames, mut spent, mut stuck) = (Vec::new(), 0, false);
    if place(&cursor) != read.from {
        return Ok((frames, false, cursor));
    }
    let budget = read.budget.min(READ_BYTES);
    while spent < budget || (read.must && frames.is_empty()) {
        let next = match cursor.held.take() {
            Some(frame) => Some(frame),
            None => match read.until {
                None => cursor.reader.next_frame()?,
                Some(until) => cursor.reader.next_of(until, patient)?,
            },
        };
        let Some(frame) = next else { break };
        spent += cost(size(&frame));
        if spent > budget && !(read.must && frames.is_empty()) {
            stuck = frames.is_empty();
            cursor.held = Some(frame);
            break;
        }
        frames.push(frame);
    }
    if !frames.is_empty() {
        match cursor.reader.sync() {
            Err(error) if patient => return Err(error),
            _ => {}
        }
    }
    Ok((frames, stuck, cursor))
}
