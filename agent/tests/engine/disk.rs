//! What an engine keeps on the disk: read by nobody else, never taken for another thing, and nothing is done that could
//! not be written.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use postern_agent::engine::{EngineError, OpenError, Outgoing, open, open_on};
use postern_agent::journal::{Disk, FileDisk};
use postern_proto::event::{EventKind, Outcome, RunEvent, RunState, StepEnd};
use serde_json::json;

use crate::support::*;

/// I12: missing, corrupt and too new are three answers, and none of them is a first start.
#[tokio::test]
async fn missing_corrupt_and_too_new_state() {
    let mut host = Host::new();
    let work = host.open();
    complete(&work, host.shell("true")).await;
    assert!(matches!(open(host.config()).err(), Some(OpenError::InUse { .. })));
    work.kill().await;
    let path = host.state().join("journal");
    let good = std::fs::read(&path).unwrap();
    let opened = || open(host.config()).err();

    std::fs::remove_file(&path).unwrap();
    assert!(matches!(opened(), Some(OpenError::Missing { .. })));
    let mut bad = good.clone();
    bad[600] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    assert!(matches!(opened(), Some(OpenError::Corrupt { .. })));
    let mut newer = b"PSTNJRNL\x02\0\0\0".to_vec();
    newer.extend(crc32fast::hash(&newer).to_le_bytes());
    newer.resize(4096, 0);
    std::fs::write(&path, &newer).unwrap();
    assert!(matches!(opened(), Some(OpenError::TooNew { found: 2, known: 1, .. })));
    std::fs::write(&path, &good).unwrap();
    assert!(opened().is_none());
}

#[tokio::test]
async fn trap_48_state_is_private_from_the_start() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut host = Host::new();
    let work = host.open();
    let run = complete_unacked(&work, host.shell("echo x")).await;
    assert!(run.is_over());
    let mut looked = 0;
    let mut dirs = vec![host.state()];
    while let Some(dir) = dirs.pop() {
        assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700, "{dir:?}");
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            looked += 1;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
        }
    }
    assert!(looked >= 4, "journal, marker, lock and a spool: {looked}");
}

/// A journal that has been through many runs stays small, and knows everything that matters.
#[tokio::test]
async fn the_journal_is_made_shorter() {
    let mut host = Host::tuned(|config| config.limits.journal_chunk = 32 * 1024);
    let work = host.open();
    let kept = host.shell("echo keep");
    let kept_told = complete_unacked(&work, kept.clone()).await;
    for _ in 0..40 {
        complete(&work, host.command(json!({"argv": ["true"], "env": {"A": "x".repeat(1500)}}))).await;
    }
    let size = std::fs::metadata(host.state().join("journal")).unwrap().len();
    assert!(size <= 256 * 1024, "{size}");
    work.kill().await;
    let work = host.open();
    let snapshot = work.engine.snapshot().await;
    assert_eq!((snapshot.dispatch_floor, snapshot.dispatches_above.len()), (41, 0));
    let again = whole(&work, kept.run).await;
    assert_eq!((&again.events, &again.frames), (&kept_told.events, &kept_told.frames));
    work.engine.dispatch(kept).await.unwrap();
    let ended =
        |event: &&RunEvent| matches!(event.kind, EventKind::StepFinished { end: StepEnd::Exit(0), .. });
    assert_eq!(again.events.iter().filter(ended).count(), 1);
}

/// Syncs that still succeed; only one test uses it.
static SYNCS_LEFT: AtomicI64 = AtomicI64::new(i64::MAX);

/// A disk that fails from some sync on, as one with a dying sector does.
struct Failing(FileDisk);

impl Disk for Failing {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        if SYNCS_LEFT.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.0.sync()
    }

    fn grow(&mut self, from: u64, to: u64) -> io::Result<()> {
        self.0.grow(from, to)
    }
}

/// Set once the disk is full; only one test uses it.
static FULL: AtomicBool = AtomicBool::new(false);

/// A disk on which the journal cannot grow any more.
struct Filling(FileDisk);

impl Disk for Filling {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }

    fn grow(&mut self, from: u64, to: u64) -> io::Result<()> {
        if FULL.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(28));
        }
        self.0.grow(from, to)
    }
}

/// More steps than room was set aside for when the run was taken: on a full disk none of them is begun, and the
/// run is told to its end.
#[tokio::test]
async fn trap_36_steps_beyond_what_was_counted_on_are_refused_before_the_first_one_acts() {
    // Parents are made for root.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for full in [false, true] {
        let mut host = Host::tuned(|config| config.limits.journal_chunk = 4096);
        let go = host.path("go");
        let wait = json!({"shell": format!("while ! test -e {go}; do sleep 0.01; done")});
        let deep = json!({"path": "/d".repeat(60), "owner": "me", "group": "us", "parents": true});
        let run = host.dispatch(&[("c", "command", wait), ("d", "directory", deep)]);
        let id = run.run;
        FULL.store(false, Ordering::SeqCst);
        let disk = |file| Box::new(Filling(FileDisk(file))) as _;
        let (engine, driver) = open_on(host.config(), disk).unwrap();
        let work = Work { engine, driver: tokio::spawn(driver) };
        let mut outbox = work.engine.attach(vec![], vec![]).await;
        work.engine.dispatch(run).await.unwrap();
        FULL.store(full, Ordering::SeqCst);
        std::fs::write(&go, "").unwrap();
        let mut told = Told::default();
        to_the_end(&work.engine, &mut outbox, id, &mut told).await;
        let want = if full { Outcome::Failed } else { Outcome::Changed };
        assert_eq!(told.outcomes(), [(1, Outcome::Changed), (1, want)], "{:?}", told.messages());
        assert_eq!(told.steps_started(), if full { 1 } else { 61 });
        assert_eq!(host.root().join("d").exists(), !full);
        if full {
            assert!(told.messages()[1].contains("has no room"), "{:?}", told.messages());
        }
    }
}

/// EIO at any sync of the journal: what is not on the disk is not done and not told, and the engine says so.
#[tokio::test]
async fn trap_36_an_engine_whose_disk_fails_stops_and_never_lies() {
    for syncs in 0..4 {
        let mut host = Host::new();
        let marks = host.path("marks");
        SYNCS_LEFT.store(i64::MAX, Ordering::SeqCst);
        let (engine, driver) = open_on(host.config(), |file| Box::new(Failing(FileDisk(file)))).unwrap();
        let work = Work { engine, driver: tokio::spawn(driver) };
        let mut outbox = work.engine.attach(vec![], vec![]).await;
        SYNCS_LEFT.store(syncs, Ordering::SeqCst);
        let dispatch = host.shell(&format!("echo x >>{marks}"));
        let taken = work.engine.dispatch(dispatch.clone()).await;
        assert_eq!(taken.is_ok(), syncs > 0, "accepted means: on the disk");
        let mut told = Told::default();
        while let Ok(Some(Outgoing::Event(event))) =
            tokio::time::timeout(Duration::from_millis(300), outbox.next()).await
        {
            told.take(Outgoing::Event(event));
        }
        // One sync: accepted and started; two: finished.
        assert_eq!(told.events.len(), [0, 3, 6, 6][syncs as usize], "after {syncs} syncs");
        assert_eq!(lines(&marks), usize::from(syncs > 0), "nothing is done before it is on the disk");
        if syncs < 2 {
            let ended = work.driver.await.unwrap();
            assert!(matches!(ended, Err(EngineError::Journal(_))), "{ended:?}");
            let refused = work.engine.dispatch(host.shell("true")).await.unwrap_err();
            assert!(refused.message.contains("journal"), "{refused}");
            drop(outbox);
            drop(work.engine);
            tokio::time::sleep(Duration::from_millis(50)).await;
            // A healthy disk again: what happened is found out, and done once.
            let work = host.open();
            if syncs == 0 {
                complete(&work, dispatch).await;
            } else {
                let told = whole(&work, dispatch.run).await;
                assert_eq!(told.end().0, RunState::Ok);
            }
            assert_eq!(lines(&marks), 1);
        }
    }
}
