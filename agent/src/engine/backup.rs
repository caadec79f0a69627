//! What runs replaced, kept below the state directory so that they can be undone: one directory a run, in it
//! two records a resource, as it was before the run's first step and after the run's last look.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use postern_proto::ids::{Address, PlanHash, RunId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::journal::sync_dir;

/// The format of the records.
const VERSION: u32 = 1;

/// The run that the records beside it are of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    version: u32,
    /// Its plan.
    pub(super) plan: PlanHash,
    /// The run that it undid. Its resources were taken in reverse order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) undid: Option<RunId>,
}

/// A resource before the first step of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Before {
    version: u32,
    pub(super) address: Address,
    pub(super) kind: String,
    /// What was seen of it, as its kind has it.
    pub(super) seen: Value,
    /// The late values that its spec was filled in with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) late: BTreeMap<String, String>,
    /// Why `seen` was not kept, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) withheld: Option<String>,
}

impl Before {
    pub(super) fn new(address: Address, kind: String, seen: Value, late: BTreeMap<String, String>) -> Self {
        Self { version: VERSION, address, kind, seen, late, withheld: None }
    }

    /// Without what was seen.
    pub(super) fn withhold(mut self, why: &str) -> Self {
        (self.seen, self.withheld) = (Value::Null, Some(why.to_owned()));
        self
    }
}

/// A resource after the last look of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct After {
    version: u32,
    /// See `Resource::essence`.
    pub(super) essence: Value,
    /// See `Resource::trace`.
    pub(super) trace: Value,
}

impl After {
    pub(super) fn new(essence: Value, trace: Value) -> Self {
        Self { version: VERSION, essence, trace }
    }
}

/// Why a record cannot be used. Missing is not among them: that is `None`.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is damaged, so what was kept cannot be trusted: {what}", path = path.display())]
    Corrupt { path: PathBuf, what: String },
    #[error("{path} has format {found}, this agent knows up to {VERSION}: run the newer agent", path = path.display())]
    TooNew { path: PathBuf, found: u64 },
}

/// What is kept of one run.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    dir: PathBuf,
}

impl Kept {
    pub(super) fn of(backup_dir: &Path, run: RunId) -> Self {
        Self { dir: backup_dir.join(run.to_string()) }
    }

    /// Those of all runs, the oldest first.
    fn all(backup_dir: &Path) -> Vec<Self> {
        let names = fs::read_dir(backup_dir).into_iter().flatten().flatten();
        let mut runs: Vec<RunId> =
            names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        // Their names begin with their time.
        runs.sort_unstable();
        runs.into_iter().map(|run| Self::of(backup_dir, run)).collect()
    }

    /// The places in its plan of which there is a record, and when that was written, nanoseconds since the Unix epoch.
    fn written(&self) -> Vec<(usize, i128)> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let record = |entry: fs::DirEntry| {
            let index = entry.file_name().to_str()?.strip_suffix(".before.json")?.parse().ok()?;
            let meta = entry.metadata().ok()?;
            Some((index, i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())))
        };
        let mut records: Vec<_> = entries.filter_map(record).collect();
        records.sort_unstable();
        records
    }

    fn before_path(&self, index: usize) -> PathBuf {
        self.dir.join(format!("{index}.before.json"))
    }

    fn after_path(&self, index: usize) -> PathBuf {
        self.dir.join(format!("{index}.after.json"))
    }

    pub(super) fn head(&self) -> Result<Option<Head>, RecordError> {
        read(&self.dir.join("run.json"))
    }

    pub(super) fn before(&self, index: usize) -> Result<Option<Before>, RecordError> {
        read(&self.before_path(index))
    }

    pub(super) fn after(&self, index: usize) -> Result<Option<After>, RecordError> {
        read(&self.after_path(index))
    }

    /// Makes the directory, where it is not there.
    fn begin(&self, plan: PlanHash, undid: Option<RunId>) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let head = self.dir.join("run.json");
        if !head.try_exists()? {
            write(&head, &Head { version: VERSION, plan, undid })?;
            sync_dir(&head)?;
            sync_dir(&self.dir)?;
        }
        Ok(())
    }

    /// Keeps these states; they are on the disk when this returns. Where `again` says that a step had begun
    /// before, the state that was kept then stays the one before the run.
    pub(super) fn keep(
        &self,
        plan: PlanHash,
        undid: Option<RunId>,
        states: &[(usize, bool, Before)],
    ) -> Result<(), String> {
        let said = |error: io::Error| {
            format!("what is to be changed cannot be kept in {}: {error}", self.dir.display())
        };
        self.begin(plan, undid).map_err(said)?;
        for (index, again, before) in states {
            let path = self.before_path(*index);
            if !*again {
                write(&path, before).map_err(said)?;
            } else if !path.try_exists().map_err(said)? {
                let why = "what it was before the run's first try was not kept";
                write(&path, &before.clone().withhold(why)).map_err(said)?;
            }
        }
        sync_dir(&self.before_path(0)).map_err(said)
    }

    /// Keeps what a resource was after the run.
    pub(super) fn keep_after(&self, index: usize, after: &After) -> io::Result<()> {
        write(&self.after_path(index), after)
    }
}

/// What a resource was before the first run that has changed it since then, and what it was after the last one that
/// did; `run` counts in any case. Nanoseconds since the Unix epoch, by the host's clock: ids have the controller's.
pub(super) fn first_before(
    backup_dir: &Path,
    run: RunId,
    since_ns: Option<i128>,
    address: &Address,
) -> Result<Option<(Before, Option<After>)>, RecordError> {
    let (mut first, mut last) = (None, None);
    let this = Kept::of(backup_dir, run).dir;
    for kept in Kept::all(backup_dir) {
        for (index, written) in kept.written() {
            if kept.dir != this && since_ns.is_none_or(|since| written < since) {
                continue;
            }
            let Some(before) = kept.before(index)?.filter(|it| it.address == *address) else { continue };
            first.get_or_insert(before);
            last = kept.after(index)?;
        }
    }
    Ok(first.map(|first| (first, last)))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    let path = path.to_owned();
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::Read { path, source }),
        Ok(bytes) => bytes,
    };
    let corrupt = |what: String| RecordError::Corrupt { path: path.clone(), what };
    let json: Value = serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
    match json.get("version").and_then(Value::as_u64) {
        None | Some(0) => return Err(corrupt("it has no version".to_owned())),
        Some(found) if found > u64::from(VERSION) => return Err(RecordError::TooNew { path, found }),
        Some(_) => {}
    }
    serde_json::from_value(json).map(Some).map_err(|error| corrupt(error.to_string()))
}

/// Whole or not at all, and only for root to read.
fn write(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(&new)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// Removes the oldest runs' records until all of them take no more than `limit` bytes. Those of `busy` stay.
pub(super) fn prune(dir: &Path, limit: u64, busy: &BTreeSet<RunId>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut runs: Vec<(Option<RunId>, u64, PathBuf)> = entries
        .flatten()
        .map(|entry| {
            // Names of runs begin with their time. What has another name is of an older format, and older.
            let run = entry.file_name().to_str().and_then(|name| name.parse().ok());
            (run, size(&entry.path()), entry.path())
        })
        .collect();
    runs.sort();
    let mut total: u64 = runs.iter().map(|(_, bytes, _)| *bytes).sum();
    for (run, bytes, path) in runs {
        if total <= limit {
            return;
        }
        if run.is_some_and(|run| busy.contains(&run)) {
            continue;
        }
        // The head goes first: half of a run is never taken for all of it.
        let _ = fs::remove_file(path.join("run.json"));
        let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if gone.is_ok() {
            total -= bytes;
        }
    }
}

fn size(path: &Path) -> u64 {
    match fs::read_dir(path) {
        Ok(entries) => {
            entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
        }
        Err(_) => fs::symlink_metadata(path).map_or(0, |meta| meta.len()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    fn before(seen: &str) -> Before {
        let address = "t:file:f".parse().unwrap();
        Before::new(address, "file".to_owned(), json!(seen), BTreeMap::new())
    }

    #[test]
    fn a_try_after_a_step_keeps_the_first_state() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::of(dir.path(), RunId::generate());
        let plan = PlanHash::of(b"");
        assert!(kept.head().unwrap().is_none() && kept.before(3).unwrap().is_none());
        // Cut off before any step: nothing was replaced, so the second look is as good as the first.
        kept.keep(plan, None, &[(3, false, before("first"))]).unwrap();
        kept.keep(plan, None, &[(3, false, before("second"))]).unwrap();
        assert_eq!(kept.before(3).unwrap().unwrap().seen, "second");
        kept.keep(plan, None, &[(3, true, before("third")), (4, true, before("fourth"))]).unwrap();
        assert_eq!(kept.before(3).unwrap().unwrap().seen, "second");
        let lost = kept.before(4).unwrap().unwrap();
        assert_eq!((lost.seen, lost.withheld.is_some()), (Value::Null, true));
        for (path, mode) in [(kept.before_path(3), 0o600), (kept.dir, 0o700)] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
        }
    }

    /// I12: three different answers.
    #[test]
    fn missing_corrupt_and_too_new_records() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::of(dir.path(), RunId::generate());
        kept.keep(PlanHash::of(b""), None, &[(0, false, before("x"))]).unwrap();
        assert!(kept.after(0).unwrap().is_none());
        for text in ["", "{", "{}", "[1]", "{\"version\":1}", "{\"version\":\"1\"}", "\0\0\0"] {
            fs::write(kept.before_path(0), text).unwrap();
            assert!(matches!(kept.before(0), Err(RecordError::Corrupt { .. })), "{text}");
        }
        fs::write(kept.before_path(0), "{\"version\":2,\"other\":true}").unwrap();
        assert!(matches!(kept.before(0), Err(RecordError::TooNew { found: 2, .. })));
    }

    #[test]
    fn whole_runs_go_oldest_first_and_busy_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut runs: Vec<RunId> = (0..4).map(|_| RunId::generate()).collect();
        runs.sort();
        for run in &runs {
            let kept = Kept::of(dir.path(), *run);
            kept.keep(PlanHash::of(b""), None, &[(0, false, before(&"x".repeat(1000)))]).unwrap();
        }
        fs::write(dir.path().join("of-an-older-format.data"), "old").unwrap();
        prune(dir.path(), 2600, &BTreeSet::from([runs[0]]));
        let left: Vec<bool> =
            runs.iter().map(|run| Kept::of(dir.path(), *run).head().unwrap().is_some()).collect();
        assert_eq!(left, [true, false, false, true]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
