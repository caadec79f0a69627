//! The thread that owns the journal: one fsync for all who wait, then the book, then everyone is told.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use postern_proto::event::EventKind;
use postern_proto::ids::RunId;
use tokio::sync::oneshot;

use super::book::{Record, slot};
use super::shared::Shared;
use crate::journal::{Journal, JournalError};

/// Records that nobody waits for are written this much later, if nothing else takes them along.
const LAZY: Duration = Duration::from_millis(20);
/// Nothing is due; the thread looks anyway.
const IDLE: Duration = Duration::from_secs(60);
/// Messages on their way to the thread.
const QUEUE: usize = 4096;
/// Messages that share one fsync.
const BATCH: usize = 256;
/// One frame of the journal holds at most this much beside its last record, bytes.
const FRAME_BYTES: usize = 1 << 20;

/// Why something is not in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CommitError {
    /// The disk has no room for a new run.
    NoRoom(String),
    /// The journal cannot be written any more.
    Failed(String),
}

struct Message {
    records: Vec<Record>,
    /// Room to set aside for the rest of a run, bytes.
    reserve: Option<(RunId, u64)>,
    reply: Option<oneshot::Sender<Result<(), CommitError>>>,
}

/// The way to the thread. The thread ends with its last handle.
#[derive(Clone)]
pub(super) struct Writer {
    to: SyncSender<Message>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(state: WriterState) -> std::io::Result<Self> {
        let (to, from) = sync_channel(QUEUE);
        std::thread::Builder::new().name("journal".to_owned()).spawn(move || state.work(&from))?;
        Ok(Self { to })
    }

    /// Returns when the records are on the disk and in the book.
    pub(super) async fn commit(
        &self,
        records: Vec<Record>,
        reserve: Option<(RunId, u64)>,
    ) -> Result<(), CommitError> {
        let (reply, answer) = oneshot::channel();
        self.send(Message { records, reserve, reply: Some(reply) }).await;
        answer.await.unwrap_or_else(|_| Err(CommitError::Failed("the journal's thread has ended".to_owned())))
    }

    /// Sets more room aside for a run. Nothing is written.
    pub(super) async fn reserve(&self, run: RunId, bytes: u64) -> Result<(), CommitError> {
        self.commit(Vec::new(), Some((run, bytes))).await
    }

    /// Writes the records some time soon; a crash may lose them.
    pub(super) async fn soon(&self, records: Vec<Record>) {
        self.send(Message { records, reserve: None, reply: None }).await;
    }

    async fn send(&self, mut message: Message) {
        // Full only when the disk hangs; those who come then wait with it.
        while let Err(TrySendError::Full(back)) = self.to.try_send(message) {
            message = back;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// What the thread owns.
pub(super) struct WriterState {
    pub(super) journal: Journal,
    pub(super) shared: Arc<Shared>,
    pub(super) spool_dir: PathBuf,
    pub(super) chunk: u64,
    /// Room set aside for each unfinished run, bytes.
    pub(super) reserved: HashMap<RunId, u64>,
    /// What each run takes in the journal, bytes.
    pub(super) live: HashMap<RunId, u64>,
    /// Held for as long as the state is in use.
    pub(super) lock: std::fs::File,
}

/// A record as JSON.
struct Piece {
    run: Option<RunId>,
    text: String,
    /// What of it comes out of the room that was set aside for its run, bytes.
    promised: u64,
}

fn pieces(records: &[Record]) -> Vec<Piece> {
    let piece = |record: &Record| {
        let text = serde_json::to_string(record).ok()?;
        let promised = (text.len() as u64 + 1).saturating_sub(beside(record));
        Some(Piece { run: record.run(), text, promised })
    };
    records.iter().filter_map(piece).collect()
}

/// Bytes of a record that no room was set aside for: the plan, and the diffs, which a full disk may lose.
fn beside(record: &Record) -> u64 {
    let json = |text: &str| serde_json::to_string(text).map_or(0, |json| json.len() as u64);
    match record {
        Record::Accepted { .. } => u64::MAX,
        Record::Event(event) => match &event.kind {
            EventKind::ResourceFinished { diff, .. } => json(diff),
            _ => 0,
        },
        _ => 0,
    }
}

impl WriterState {
    fn work(mut self, from: &Receiver<Message>) {
        let mut waiting: Vec<Message> = Vec::new();
        loop {
            let wait = if waiting.is_empty() { IDLE } else { LAZY };
            let due = match from.recv_timeout(wait) {
                Ok(message) => {
                    waiting.push(message);
                    waiting.extend(from.try_iter().take(BATCH));
                    waiting.len() > BATCH || waiting.iter().any(|message| message.reply.is_some())
                }
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => {
                    self.write(std::mem::take(&mut waiting));
                    let _ = self.lock.unlock();
                    return;
                }
            };
            if due && !waiting.is_empty() {
                self.write(std::mem::take(&mut waiting));
                self.compact();
            }
        }
    }

    fn write(&mut self, mut messages: Vec<Message>) {
        // Of those that are taken and not yet written.
        let mut coming = 0;
        messages.retain_mut(|message| {
            let Some((run, bytes)) = message.reserve else { return true };
            let new: usize = pieces(&message.records).iter().map(|piece| piece.text.len() + 64).sum();
            let wanted = self.reserved.values().sum::<u64>() + coming + bytes + new as u64;
            match self.shared.failed() {
                None => {}
                Some(why) => return refuse(message, CommitError::Failed(why)),
            }
            match self.journal.ensure_room(wanted) {
                Ok(()) => {
                    *self.reserved.entry(run).or_default() += bytes;
                    coming += new as u64;
                    if message.records.is_empty()
                        && let Some(reply) = message.reply.take()
                    {
                        let _ = reply.send(Ok(()));
                    }
                    !message.records.is_empty()
                }
                Err(error) => refuse(message, CommitError::NoRoom(error.to_string())),
            }
        });
        let mut group: Vec<Message> = Vec::new();
        let mut size = 0;
        for message in messages {
            size += message.records.iter().map(size_hint).sum::<usize>();
            group.push(message);
            if size > FRAME_BYTES {
                self.write_group(std::mem::take(&mut group));
                size = 0;
            }
        }
        self.write_group(group);
    }

    fn write_group(&mut self, mut group: Vec<Message>) {
        if group.is_empty() {
            return;
        }
        if let Some(why) = self.shared.failed() {
            group.iter_mut().for_each(|message| {
                refuse(message, CommitError::Failed(why.clone()));
            });
            return;
        }
        let mut all: Vec<Vec<Piece>> = group.iter().map(|message| pieces(&message.records)).collect();
        if !self.make_room(&all) {
            // A full disk loses text, never state.
            group.iter_mut().flat_map(|message| &mut message.records).for_each(drop_text);
            all = group.iter().map(|message| pieces(&message.records)).collect();
        }
        let texts: Vec<&str> = all.iter().flatten().map(|piece| piece.text.as_str()).collect();
        let payload = format!("[{}]", texts.join(","));
        if let Err(error) = self.journal.append(payload.as_bytes()) {
            let why = error.to_string();
            self.shared.fail(&why);
            group.iter_mut().for_each(|message| {
                refuse(message, CommitError::Failed(why.clone()));
            });
            return;
        }
        for piece in all.iter().flatten() {
            let Some(run) = piece.run else { continue };
            *self.live.entry(run).or_default() += piece.text.len() as u64 + 1;
            if let Some(left) = self.reserved.get_mut(&run) {
                *left = left.saturating_sub(piece.promised);
            }
        }
        let gone = self.take_in(&mut group);
        group.into_iter().filter_map(|message| message.reply).for_each(|reply| {
            let _ = reply.send(Ok(()));
        });
        for name in gone {
            // Nobody will ask for it again; at the next start what is left over goes, too.
            let _ = std::fs::remove_file(self.spool_dir.join(name));
        }
    }

    /// The book follows the disk. Gives the spools that are no longer needed.
    fn take_in(&mut self, group: &mut [Message]) -> Vec<String> {
        let mut gone = Vec::new();
        let mut inner = self.shared.lock();
        for record in group.iter_mut().flat_map(|message| std::mem::take(&mut message.records)) {
            let run = record.run();
            match &record {
                Record::Removed { run } => {
                    self.reserved.remove(run);
                    self.live.remove(run);
                    let steps = inner.book.runs.get(run).into_iter().flat_map(|book| book.steps.values());
                    gone.extend(steps.filter(|step| step.exec.is_some()).map(|step| slot(*run, step.seq)));
                }
                Record::Event(event) => match &event.kind {
                    EventKind::Finished { .. } => {
                        self.reserved.remove(&event.run);
                    }
                    // Without output there is nothing to keep.
                    EventKind::StepFinished { step, frames: 0, .. } => {
                        let steps = inner.book.runs.get(&event.run).and_then(|book| book.steps.get(step));
                        gone.extend(steps.filter(|s| s.exec.is_some()).map(|s| slot(event.run, s.seq)));
                    }
                    _ => {}
                },
                _ => {}
            }
            // A removal can be asked for twice before it is done; nothing else can fail to fit.
            if let Err(error) = inner.book.apply(record) {
                tracing::debug!(%error, "a record changed nothing");
            }
            if let Some(run) = run {
                inner.touch(run);
            }
        }
        inner.wake();
        gone
    }

    /// False when the disk has no room beyond what is promised to others.
    fn make_room(&mut self, all: &[Vec<Piece>]) -> bool {
        let (mut by_run, mut beside): (HashMap<Option<RunId>, u64>, u64) = (HashMap::new(), 0);
        for piece in all.iter().flatten() {
            *by_run.entry(piece.run).or_default() += piece.promised;
            beside += (piece.text.len() as u64 + 1).saturating_sub(piece.promised);
        }
        let promised: u64 = self.reserved.values().sum();
        let own = |run: &Option<RunId>| run.and_then(|run| self.reserved.get(&run)).copied().unwrap_or(0);
        let beyond: u64 = by_run.iter().map(|(run, bytes)| bytes.saturating_sub(own(run))).sum();
        let wanted = promised + beyond + beside + Journal::cost(2);
        self.journal.ensure_room(wanted).is_ok()
    }

    /// Leaves behind what is no longer needed, once that is most of the file.
    fn compact(&mut self) {
        let live: u64 = self.live.values().sum();
        let used = self.journal.used();
        if used < self.chunk / 2 || used < 2 * live + 4096 || self.shared.failed().is_some() {
            return;
        }
        let records = self.shared.lock().book.records();
        self.live.clear();
        let mut payloads: Vec<Vec<u8>> = Vec::new();
        let mut text = String::from("[");
        for piece in pieces(&records) {
            if let Some(run) = piece.run {
                *self.live.entry(run).or_default() += piece.text.len() as u64 + 1;
            }
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(&piece.text);
            if text.len() > FRAME_BYTES {
                payloads.push((std::mem::replace(&mut text, "[".to_owned()) + "]").into_bytes());
            }
        }
        if text.len() > 1 {
            payloads.push((text + "]").into_bytes());
        }
        let spare = self.reserved.values().sum::<u64>() + self.chunk / 4;
        match self.journal.rewrite(&payloads, spare) {
            Ok(()) => {}
            Err(error @ JournalError::Replaced(_)) => self.shared.fail(&with_cause(&error)),
            Err(error) => {
                tracing::warn!(error = with_cause(&error), "the journal could not be made shorter");
            }
        }
    }
}

fn with_cause(error: &JournalError) -> String {
    let cause = std::error::Error::source(error).map_or(String::new(), |cause| format!(": {cause}"));
    format!("{error}{cause}")
}

fn refuse(message: &mut Message, error: CommitError) -> bool {
    if let Some(reply) = message.reply.take() {
        let _ = reply.send(Err(error));
    }
    false
}

fn size_hint(record: &Record) -> usize {
    match record {
        Record::Accepted { plan, .. } => 2 * plan.len() + 200,
        Record::Event(event) => match &event.kind {
            EventKind::ResourceFinished { diff, .. } => 2 * diff.len() + 1000,
            _ => 1000,
        },
        _ => 200,
    }
}

fn drop_text(record: &mut Record) {
    let Record::Event(event) = record else { return };
    if let EventKind::ResourceFinished { diff, .. } = &mut event.kind
        && !diff.is_empty()
    {
        *diff = "the diff found no room on the disk\n".to_owned();
    }
}

#[cfg(test)]
mod tests {
    use postern_proto::event::{Outcome, RunEvent};
    use postern_proto::ids::PlanHash;

    use super::*;
    use crate::journal::{Disk, FileDisk, file_disk};

    fn state(dir: &std::path::Path, journal: Journal) -> WriterState {
        WriterState {
            journal,
            shared: Arc::new(Shared::default()),
            spool_dir: dir.to_owned(),
            chunk: 4096,
            reserved: HashMap::new(),
            live: HashMap::new(),
            lock: std::fs::File::create(dir.join("lock")).unwrap(),
        }
    }

    fn message(record: Record) -> Message {
        Message { records: vec![record], reserve: None, reply: None }
    }

    /// The plan and the diffs are not what the room was set aside for.
    #[test]
    fn room_for_state_is_not_spent_on_text() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::create(&dir.path().join("journal"), 4096, file_disk).unwrap();
        let mut state = state(dir.path(), journal);
        let run = RunId::generate();
        state.reserved.insert(run, 5000);
        let boot = "0192f0c4-0000-7000-8000-000000000001".parse().unwrap();
        let (plan, hash) =
            (format!("{{\"schema\":1,\"resources\":[]{}}}", " ".repeat(9000)), PlanHash::of(b""));
        state.write(vec![message(Record::Accepted {
            seq: 1,
            run,
            plan,
            hash,
            terms: Default::default(),
            boot,
        })]);
        assert_eq!(state.reserved[&run], 5000);
        let kind = EventKind::ResourceFinished {
            address: "t:file:f".parse().unwrap(),
            attempt: 1,
            outcome: Outcome::Changed,
            message: String::new(),
            diff: "\"\n".repeat(4000),
            duration_ns: 1,
            seen: String::new(),
        };
        state.write(vec![message(Record::Event(RunEvent { run, seq: 1, time_ns: 0, kind }))]);
        assert!((4500..5000).contains(&state.reserved[&run]), "{}", state.reserved[&run]);
        assert!(state.journal.room() >= state.reserved[&run]);
    }

    /// A disk with room for this many bytes.
    struct Small(FileDisk, u64);

    impl Disk for Small {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
            self.0.write_at(offset, bytes)
        }

        fn sync(&mut self) -> std::io::Result<()> {
            self.0.sync()
        }

        fn grow(&mut self, from: u64, to: u64) -> std::io::Result<()> {
            if to > self.1 { Err(std::io::Error::from_raw_os_error(28)) } else { self.0.grow(from, to) }
        }
    }

    /// More room for a run that is at work: it is there or it is refused, and nothing is written either way.
    #[test]
    fn more_room_is_set_aside_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::create(&path, 4096, |file| Box::new(Small(FileDisk(file), 100_000))).unwrap();
        let mut state = state(dir.path(), journal);
        let run = RunId::generate();
        state.reserved.insert(run, 5000);
        let used = state.journal.used();
        let mut ask = |bytes| {
            let (reply, mut answer) = oneshot::channel();
            state.write(vec![Message { records: vec![], reserve: Some((run, bytes)), reply: Some(reply) }]);
            assert_eq!(state.journal.used(), used);
            (answer.try_recv().unwrap(), state.reserved[&run], state.journal.room())
        };
        let (answer, reserved, room) = ask(70_000);
        assert_eq!((answer, reserved), (Ok(()), 75_000));
        assert!(room >= 75_000, "{room}");
        let (answer, reserved, _) = ask(70_000);
        assert!(matches!(answer, Err(CommitError::NoRoom(_))), "{answer:?}");
        assert_eq!(reserved, 75_000);
    }

    struct Nameless(FileDisk);

    impl Disk for Nameless {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
            self.0.write_at(offset, bytes)
        }

        fn sync(&mut self) -> std::io::Result<()> {
            self.0.sync()
        }

        fn grow(&mut self, from: u64, to: u64) -> std::io::Result<()> {
            self.0.grow(from, to)
        }

        fn sync_name(&mut self, _: &std::path::Path) -> std::io::Result<()> {
            Err(std::io::Error::from_raw_os_error(5))
        }
    }

    /// The file that is still open has lost its name: nothing is appended to it any more.
    #[test]
    fn a_compaction_that_lost_the_old_file_stops_the_engine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        drop(Journal::create(&path, 4096, file_disk).unwrap());
        let (journal, _) = Journal::open(&path, 4096, |file| Box::new(Nameless(FileDisk(file)))).unwrap();
        let mut state = state(dir.path(), journal);
        for epoch in 1..600 {
            state.write(vec![message(Record::Epoch(epoch))]);
        }
        assert!(state.shared.failed().is_none());
        state.compact();
        let why = state.shared.failed().unwrap();
        assert!(why.contains("successor"), "{why}");
        let before = state.journal.used();
        state.write(vec![message(Record::Epoch(600))]);
        assert_eq!(state.journal.used(), before);
    }
}
