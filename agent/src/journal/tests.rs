//! The journal under cuts, flips, power loss and full disks.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;

use super::*;

const CHUNK: u64 = 4096;

fn journal_in(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("journal")
}

fn payloads(n: usize) -> Vec<Vec<u8>> {
    (0..n).map(|i| format!("[{}]", "x".repeat(i * 37 % 900 + 1)).into_bytes()).collect()
}

fn written(dir: &tempfile::TempDir, payloads: &[Vec<u8>]) -> Vec<u8> {
    let mut journal = Journal::create(&journal_in(dir), CHUNK, file_disk).unwrap();
    for payload in payloads {
        journal.append(payload).unwrap();
    }
    fs::read(journal_in(dir)).unwrap()
}

fn reopen(dir: &tempfile::TempDir, bytes: &[u8]) -> Result<Vec<Vec<u8>>, JournalError> {
    fs::write(journal_in(dir), bytes).unwrap();
    Journal::open(&journal_in(dir), CHUNK, file_disk).map(|(_, payloads)| payloads)
}

#[test]
fn what_is_written_is_read_and_more_can_follow() {
    let dir = tempfile::tempdir().unwrap();
    let all = payloads(30);
    written(&dir, &all[..20]);
    for payload in &all[20..] {
        let (mut journal, _) = Journal::open(&journal_in(&dir), CHUNK, file_disk).unwrap();
        journal.append(payload).unwrap();
    }
    let (_, read) = Journal::open(&journal_in(&dir), CHUNK, file_disk).unwrap();
    assert_eq!(read, all);
}

#[test]
fn missing_corrupt_and_too_new_are_three_answers() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Journal::open(&journal_in(&dir), CHUNK, file_disk), Err(JournalError::Missing)));
    let mut bytes = written(&dir, &payloads(2));
    bytes[..512].copy_from_slice(&frame::header(FORMAT + 1));
    assert!(matches!(reopen(&dir, &bytes), Err(JournalError::TooNew(2))));
    bytes[3] ^= 1;
    assert!(matches!(reopen(&dir, &bytes), Err(JournalError::Corrupt { offset: 0, .. })));
    assert!(matches!(reopen(&dir, b""), Err(JournalError::Corrupt { .. })));
}

#[test]
fn a_link_in_place_of_the_journal_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    written(&dir, &payloads(1));
    fs::rename(journal_in(&dir), dir.path().join("other")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("other"), journal_in(&dir)).unwrap();
    assert!(matches!(Journal::open(&journal_in(&dir), CHUNK, file_disk), Err(JournalError::Io { .. })));
}

#[test]
fn trap_48_created_for_root_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    written(&dir, &[]);
    assert_eq!(fs::metadata(journal_in(&dir)).unwrap().permissions().mode() & 0o7777, 0o600);
}

/// Cut at every byte: what is whole before the cut is there, the rest is gone, and appending goes on.
#[test]
fn cut_at_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let all = payloads(6);
    let bytes = written(&dir, &all);
    let ends: Vec<u64> = all
        .iter()
        .scan(frame::HEADER_LEN, |at, payload| {
            *at += Journal::cost(payload.len());
            Some(*at)
        })
        .collect();
    let last = *ends.last().unwrap() as usize;
    for cut in frame::HEADER_LEN as usize..=last {
        // The padding of a frame is zero: a cut inside it takes nothing away.
        let whole = all.iter().zip(&ends).take_while(|(payload, end)| {
            let pad = Journal::cost(payload.len()) as usize - 24 - payload.len();
            **end as usize - pad <= cut
        });
        let whole = whole.count();
        for zeroed in [true, false] {
            let mut bytes = bytes.clone();
            if zeroed {
                bytes[cut..].fill(0);
            } else {
                bytes.truncate(cut);
            }
            let read = reopen(&dir, &bytes).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            assert_eq!(read, all[..whole], "cut at {cut}");
            let (mut journal, _) = Journal::open(&journal_in(&dir), CHUNK, file_disk).unwrap();
            journal.append(b"[more]").unwrap();
            let (_, read) = Journal::open(&journal_in(&dir), CHUNK, file_disk).unwrap();
            assert_eq!(read.last().unwrap(), b"[more]");
            assert_eq!(read.len(), whole + 1);
        }
    }
}

/// One flipped bit in anything that was synced is damage: it is never read as something else, nor cut off.
#[test]
fn every_flipped_bit_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let all = payloads(5);
    let bytes = written(&dir, &all);
    let mut at = frame::HEADER_LEN as usize;
    for payload in &all {
        let end = at + 24 + payload.len();
        for byte in at..end {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[byte] ^= 1 << bit;
                let scan = frame::scan(&bytes);
                assert!(scan.is_err(), "byte {byte} bit {bit}: {scan:?}");
            }
        }
        at += Journal::cost(payload.len()) as usize;
    }
    for byte in 0..16 {
        let mut bytes = bytes.clone();
        bytes[byte] ^= 4;
        assert!(frame::check_header(&bytes).is_err(), "byte {byte}");
    }
}

/// A hole that looks like a torn end, with a whole record behind it: that was synced once, so it is damage.
#[test]
fn a_hole_before_a_whole_record_is_not_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let all = [vec![b'a'; 3000], vec![b'b'; 700], vec![b'c'; 50]];
    let bytes = written(&dir, &all);
    for from in [512, 1024, 1536, 2048, 2560] {
        let mut holed = bytes.clone();
        holed[from..from + 512].fill(0);
        assert!(matches!(reopen(&dir, &holed), Err(JournalError::Corrupt { .. })), "hole at {from}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    // A power cut while the last frame is written leaves any subset of its sectors: all before it is there,
    // and the frame itself is there whole or not at all.
    #[test]
    fn power_cut_leaves_any_sectors(before in 0..8usize, last in 1..5000usize, mask in any::<u64>()) {
        let dir = tempfile::tempdir().unwrap();
        let mut all = payloads(before);
        let old = written(&dir, &all);
        all.push(format!("[{}]", "y".repeat(last)).into_bytes());
        let dir = tempfile::tempdir().unwrap();
        let new = written(&dir, &all);
        let mut mixed = new.clone();
        for (i, sector) in mixed.chunks_mut(512).enumerate() {
            if mask & (1 << (i % 64)) == 0 {
                let from = i * 512;
                let source = old.get(from..(from + 512).min(old.len())).unwrap_or(&[]);
                sector.fill(0);
                sector[..source.len()].copy_from_slice(source);
            }
        }
        let whole = mixed == new;
        let read = reopen(&dir, &mixed).unwrap();
        prop_assert_eq!(&read[..before], &all[..before]);
        prop_assert_eq!(read.len(), if whole { before + 1 } else { before });
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut file = frame::header(FORMAT);
        file.extend(bytes);
        let _ = frame::scan(&file);
    }
}

/// Only one test at a time counts bytes.
static BUDGET: Mutex<()> = Mutex::new(());
static BYTES_LEFT: AtomicI64 = AtomicI64::new(i64::MAX);

struct LimitedDisk(FileDisk);

impl LimitedDisk {
    fn take(&self, bytes: u64) -> io::Result<()> {
        if BYTES_LEFT.fetch_sub(bytes as i64, Ordering::SeqCst) < bytes as i64 {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

impl Disk for LimitedDisk {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Within what is allocated a write needs no new room.
        self.0.write_at(offset, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }

    fn grow(&mut self, from: u64, to: u64) -> io::Result<()> {
        self.take(to - from)?;
        self.0.grow(from, to)
    }
}

fn limited(file: File) -> Box<dyn Disk> {
    Box::new(LimitedDisk(FileDisk(file)))
}

#[test]
fn full_disk_refuses_room_and_keeps_what_was_promised() {
    let _only_one = BUDGET.lock().unwrap();
    let dir = tempfile::tempdir().unwrap();
    BYTES_LEFT.store(3 * CHUNK as i64, Ordering::SeqCst);
    let mut journal = Journal::create(&journal_in(&dir), CHUNK, limited).unwrap();
    journal.ensure_room(2 * CHUNK).unwrap();
    assert!(journal.ensure_room(4 * CHUNK).is_err());
    // What was made room for can be written to the last byte of it.
    let before = journal.room();
    while journal.room() >= Journal::cost(100) {
        journal.append(&[b'z'; 100]).unwrap();
    }
    assert!(before >= 2 * CHUNK);
    assert!(journal.append(&[b'z'; 100]).is_err());
    let (_, read) = Journal::open(&journal_in(&dir), CHUNK, limited).unwrap();
    assert_eq!(read.len() as u64, before / Journal::cost(100));
    // A successor that finds no room leaves the old file as it was.
    let (mut journal, _) = Journal::open(&journal_in(&dir), CHUNK, limited).unwrap();
    assert!(journal.rewrite(&[vec![b'a'; 20]], 0).is_err());
    let (_, again) = Journal::open(&journal_in(&dir), CHUNK, limited).unwrap();
    assert_eq!(again, read);
    assert!(!journal_in(&dir).with_extension("new").exists());
    BYTES_LEFT.store(i64::MAX, Ordering::SeqCst);
}

#[test]
fn rewriting_keeps_only_what_is_given_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let all = payloads(40);
    written(&dir, &all);
    let (mut journal, _) = Journal::open(&journal_in(&dir), CHUNK, file_disk).unwrap();
    journal.rewrite(&all[30..], 100).unwrap();
    journal.append(b"[next]").unwrap();
    let (_, read) = Journal::open(&journal_in(&dir), CHUNK, file_disk).unwrap();
    assert_eq!(read[..10], all[30..]);
    assert_eq!(read[10], b"[next]");
}

struct Nameless(FileDisk);

impl Disk for Nameless {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }

    fn grow(&mut self, from: u64, to: u64) -> io::Result<()> {
        self.0.grow(from, to)
    }

    fn sync_name(&mut self, _: &std::path::Path) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(5))
    }
}

/// The old file has lost its name by then: that is no ordinary failure to make the journal shorter.
#[test]
fn a_successor_whose_name_may_not_last_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    written(&dir, &payloads(3));
    let nameless = |file| -> Box<dyn Disk> { Box::new(Nameless(FileDisk(file))) };
    let (mut journal, _) = Journal::open(&journal_in(&dir), CHUNK, nameless).unwrap();
    let result = journal.rewrite(&[b"[1]".to_vec()], 0);
    assert!(matches!(result, Err(JournalError::Replaced(_))), "{result:?}");
}
