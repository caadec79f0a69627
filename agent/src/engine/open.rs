//! Opens an engine's state: first start, restart, or one of the three ways in which it cannot be opened.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::book::{Book, Record, slot};
use super::owner::Owner;
use super::run::room_for;
use super::shared::Shared;
use super::writer::{Writer, WriterState};
use super::{Ctx, Engine, EngineConfig, EngineError, ORDERS, OpenError, approve, backup};
use crate::journal::{FORMAT, Journal, JournalError, WrapDisk, file_disk, sync_dir};

/// The journal.
const JOURNAL: &str = "journal";
/// Says that there was a journal here.
const MARKER: &str = "engine.json";
/// Held while the state is in use.
const LOCK: &str = "engine.lock";
/// Output of steps.
const SPOOL: &str = "spool";
/// What runs replaced.
const BACKUP: &str = "backup";
/// Makes digests of what was seen this host's own.
const SEEN_KEY: &str = "seen.key";
/// How long the lock of an engine that is ending is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Opens the state, recovers what was in the middle, and gives a handle and the driver to spawn.
///
/// The driver ends with an error when the journal can no longer be written: the agent then takes no more
/// work and must say so. Blocks for a moment; call it before the driver's runtime is busy.
pub fn open(
    config: EngineConfig,
) -> Result<(Engine, impl Future<Output = Result<(), EngineError>> + Send + 'static), OpenError> {
    open_on(config, file_disk)
}

/// As [`open`], with the journal on a disk of the caller's: for tests with one that fails.
pub fn open_on(
    config: EngineConfig,
    wrap: WrapDisk,
) -> Result<(Engine, impl Future<Output = Result<(), EngineError>> + Send + 'static), OpenError> {
    let dir = config.state_dir.clone();
    let (spool_dir, backup_dir) = (dir.join(SPOOL), dir.join(BACKUP));
    for dir in [&dir, &spool_dir, &backup_dir] {
        make_private_dir(dir)?;
    }
    let lock = lock(&dir)?;
    let (journal, payloads) = journal(&dir, config.limits.journal_chunk, wrap)?;
    let (book, live) = read(&dir.join(JOURNAL), &payloads)?;
    remove_strays(&spool_dir, &book);
    backup::prune(&backup_dir, config.limits.backup_bytes, &book.unfinished());
    let reserved: HashMap<_, _> = book
        .runs
        .iter()
        .filter(|(_, run)| run.end.is_none())
        .map(|(run, book)| (*run, room_for(&book.plan)))
        .collect();
    let shared = Arc::new(Shared::new(book));
    let state = WriterState {
        journal,
        shared: Arc::clone(&shared),
        spool_dir: spool_dir.clone(),
        chunk: config.limits.journal_chunk,
        reserved,
        live,
        lock,
    };
    let writer = Writer::start(state).map_err(failed("start the thread for", &dir))?;
    let seen_key = dir.join(SEEN_KEY);
    let seen_key = approve::Key::open(&seen_key).map_err(failed("read or make", &seen_key))?;
    let mut config = config;
    config.sys = config.sys.with_key(seen_key.for_names());
    let ctx = Arc::new(Ctx { shared, writer, config, spool_dir, backup_dir, seen_key });
    let (orders, inbox) = mpsc::channel(ORDERS);
    let owner = Owner::new(Arc::clone(&ctx), inbox);
    Ok((Engine { ctx, orders }, owner.drive()))
}

/// How many runs are not over, without a lock and without changing anything: another process may be at work
/// on them. A state that was never used has none.
pub fn unfinished(state_dir: &Path) -> Result<u32, OpenError> {
    let path = state_dir.join(JOURNAL);
    let payloads = match Journal::peek(&path) {
        Err(JournalError::Missing) if !state_dir.join(MARKER).exists() => return Ok(0),
        other => other.map_err(|error| said(error, &path))?,
    };
    let (book, _) = read(&path, &payloads)?;
    Ok(u32::try_from(book.runs.values().filter(|run| run.end.is_none()).count()).unwrap_or(u32::MAX))
}

fn said(error: JournalError, path: &Path) -> OpenError {
    let path = path.to_owned();
    match error {
        JournalError::Missing => OpenError::Missing { path },
        JournalError::Corrupt { offset, what } => OpenError::Corrupt { path, offset, what },
        JournalError::TooNew(found) => OpenError::TooNew { path, found, known: FORMAT },
        JournalError::Replaced(source) => OpenError::Io { doing: "sync the directory of", path, source },
        JournalError::Io { doing, source } => OpenError::Io { doing, path, source },
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { doing, path, source }
}

fn make_private_dir(path: &Path) -> Result<(), OpenError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_dir(path).map_err(failed("sync the directory of", path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("make the directory", path)(error)),
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    let file = options.open(&path).map_err(failed("open", &path))?;
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                return Err(OpenError::InUse { path: dir.to_owned() });
            }
            // An engine that is ending gives it back within moments.
            Err(TryLockError::WouldBlock) => std::thread::park_timeout(Duration::from_millis(5)),
        }
    }
}

fn journal(dir: &Path, chunk: u64, wrap: WrapDisk) -> Result<(Journal, Vec<Vec<u8>>), OpenError> {
    let (path, marker) = (dir.join(JOURNAL), dir.join(MARKER));
    let known_here = marker.try_exists().map_err(failed("look for", &marker))?;
    let opened = match Journal::open(&path, chunk, wrap) {
        Err(JournalError::Missing) if !known_here => {
            Journal::create(&path, chunk, wrap).map(|journal| (journal, Vec::new()))
        }
        other => other,
    };
    let opened = opened.map_err(|error| said(error, &path))?;
    if !known_here {
        // After the journal: a crash in between leaves a journal, which is opened as what it is.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        let text = format!("{{\"journal_format\":{FORMAT}}}\n");
        let written = options.open(&marker).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.and_then(|()| sync_dir(&marker)).map_err(failed("write", &marker))?;
    }
    Ok(opened)
}

type Live = HashMap<postern_proto::ids::RunId, u64>;

/// The book, and what each run takes in the journal.
fn read(path: &Path, payloads: &[Vec<u8>]) -> Result<(Book, Live), OpenError> {
    let (mut book, mut live) = (Book::default(), Live::new());
    for (number, payload) in payloads.iter().enumerate() {
        let corrupt = |what: String| OpenError::Corrupt {
            path: PathBuf::from(path),
            offset: 0,
            what: format!("record {}: {what}", number + 1),
        };
        let lines: Vec<&RawValue> =
            serde_json::from_slice(payload).map_err(|error| corrupt(error.to_string()))?;
        for line in lines {
            let record: Record =
                serde_json::from_str(line.get()).map_err(|error| corrupt(error.to_string()))?;
            let (run, removed) = (record.run(), matches!(record, Record::Removed { .. }));
            // A run may have been removed twice before the first removal was on the disk.
            if removed && run.is_some_and(|run| !book.runs.contains_key(&run)) {
                continue;
            }
            book.apply(record).map_err(corrupt)?;
            match run {
                Some(run) if removed => drop(live.remove(&run)),
                Some(run) => *live.entry(run).or_default() += line.get().len() as u64 + 1,
                None => {}
            }
        }
    }
    Ok((book, live))
}

/// Spools that no run needs: their removal was cut off.
fn remove_strays(spool_dir: &Path, book: &Book) {
    let needed: HashSet<String> = book
        .runs
        .iter()
        .flat_map(|(run, book)| book.steps.values().map(|step| slot(*run, step.seq)))
        .collect();
    let Ok(entries) = fs::read_dir(spool_dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_none_or(|name| !needed.contains(name)) {
            // Harmless if it stays: it is tried again at the next start.
            let _ = fs::remove_file(entry.path());
        }
    }
}
