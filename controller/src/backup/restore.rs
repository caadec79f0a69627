//! From an archive to a state directory: all of it verified beside its place, then renamed into it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_proto::SERVER_NAME;

use super::{FILES, FORMAT, MANIFEST, Manifest, VERSION, copy};
use crate::archive::{self, Entry, HeadError};
use crate::ca::{Authority, CaError};
use crate::seal::{self, KeyError, SealKey};
use crate::store::{Store, StoreError};

/// No manifest is larger, bytes.
const MAX_MANIFEST: u64 = 1024 * 1024;
/// No file but the database is larger, bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Why nothing was restored. The state directory is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Nobody said that it is meant.
    #[error(
        "a restore makes this the controller of all its hosts, as it was at the time of the backup: what was \
         revoked, removed or run since then is not known to it, and the controller that the backup is of must \
         never run again. Say that this is accepted"
    )]
    NotAccepted,
    /// There is no such archive.
    #[error("there is no backup {0}")]
    Missing(PathBuf),
    /// It is not a backup, or not all of one.
    #[error("the backup {path} is corrupt: {why}")]
    Corrupt {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A newer version wrote it.
    #[error("the backup {path} has version {found}, this postern knows {VERSION}: use a newer postern")]
    TooNew {
        /// The archive.
        path: PathBuf,
        /// What it says.
        found: u32,
    },
    /// There is something already.
    #[error("{0} is not empty: a backup is restored only into a state directory that is empty or not there")]
    NotEmpty(PathBuf),
    /// The key that its secrets are encrypted with is missing or wrong.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate authority in it cannot be used.
    #[error("the backup's authority")]
    Authority(#[source] CaError),
    /// The database in it cannot be used.
    #[error("the backup's database")]
    Store(#[source] StoreError),
    /// The disk would not.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The controller that this is now.
    pub cluster: String,
    /// How often it was restored, counted from 1 for never.
    pub generation: u64,
    /// When the backup was made, milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// Which version of the program made it.
    pub made_by: String,
    /// The key of the secrets was in it; otherwise it must be named wherever the daemon starts.
    pub has_key: bool,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError + use<> {
    let path = path.to_owned();
    move |source| RestoreError::Io { action, path, source }
}

/// Makes a state directory from an archive. `key_file` names the key of the secrets where the archive does not
/// hold it; `accepted` says that an operator knows what [`RestoreError::NotAccepted`] tells. Blocks.
pub fn restore(
    archive: &Path,
    state_dir: &Path,
    key_file: Option<&Path>,
    accepted: bool,
    now_ms: i64,
) -> Result<Restored, RestoreError> {
    if !accepted {
        return Err(RestoreError::NotAccepted);
    }
    require_empty(state_dir)?;
    let manifest = unpack(archive, None)?;
    let parent = match state_dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let name = state_dir.file_name().unwrap_or_default().to_string_lossy();
    let scratch = parent.join(format!(".{name}.restoring"));
    discard(&scratch)?;
    let parents = fs::DirBuilder::new().recursive(true).mode(0o700).create(&parent);
    parents.map_err(failed("creating", &parent))?;
    let result = fill(archive, &scratch, key_file, now_ms, &manifest).and_then(|filled| {
        // Over an empty directory, never over one that something came to meanwhile.
        fs::rename(&scratch, state_dir).map_err(failed("renaming into place", state_dir))?;
        sync(&parent)?;
        Ok(filled)
    });
    if result.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_dir_all(&scratch);
    }
    let (generation, has_key) = result?;
    Ok(Restored {
        generation,
        cluster: manifest.cluster,
        created_ms: manifest.created_ms,
        made_by: manifest.postern,
        has_key,
    })
}

fn require_empty(state_dir: &Path) -> Result<(), RestoreError> {
    match fs::read_dir(state_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(RestoreError::NotEmpty(state_dir.to_owned()))
        }
        Err(error) => Err(failed("reading", state_dir)(error)),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(RestoreError::NotEmpty(state_dir.to_owned())),
        },
    }
}

fn discard(dir: &Path) -> Result<(), RestoreError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", dir)(error)),
        _ => Ok(()),
    }
}

fn sync(dir: &Path) -> Result<(), RestoreError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("syncing", dir))
}

/// Reads an archive from end to end. True when the key of its secrets is in it. Blocks.
pub fn verify(archive: &Path) -> Result<bool, RestoreError> {
    unpack(archive, None).map(|manifest| manifest.has_key())
}

/// The key of what is in the archive, and whether it was in it.
fn key(scratch: &Path, key_file: Option<&Path>, want: &str) -> Result<(SealKey, bool), RestoreError> {
    let inside = scratch.join(seal::KEY_FILE);
    let found = SealKey::read(&inside)?;
    match (found, key_file) {
        // Of a version that took along what lay in the state, although another file was used.
        (Some(found), Some(elsewhere)) if found.check(want).is_err() => {
            fs::remove_file(&inside).map_err(failed("removing", &inside))?;
            key(scratch, Some(elsewhere), want)
        }
        (Some(found), _) => {
            found.check(want)?;
            Ok((found, true))
        }
        (None, _) => {
            let path = seal::key_path(scratch, key_file);
            let found = SealKey::read(&path)?.ok_or(KeyError::Missing { path })?;
            found.check(want)?;
            Ok((found, false))
        }
    }
}

/// Unpacks, checks that the parts belong together, and marks the state as restored. The state's new generation,
/// and whether its key was in the archive.
fn fill(
    archive: &Path,
    scratch: &Path,
    key_file: Option<&Path>,
    now_ms: i64,
    manifest: &Manifest,
) -> Result<(u64, bool), RestoreError> {
    for dir in [scratch.to_owned(), scratch.join("ca")] {
        fs::DirBuilder::new().mode(0o700).create(&dir).map_err(failed("creating", &dir))?;
    }
    unpack(archive, Some(scratch))?;
    let (key, has_key) = key(scratch, key_file, &manifest.secrets_key)?;
    let ca = Authority::open(scratch, &key).map_err(RestoreError::Authority)?;
    let generation = Store::mark_restored(scratch, &ca.fingerprint(), &Arc::new(key), now_ms)
        .map_err(RestoreError::Store)?;
    sync(&scratch.join("ca"))?;
    sync(scratch)?;
    Ok((generation, has_key))
}

/// Reads an archive from end to end and compares all of it with its manifest; writes it down where `into` is
/// given.
fn unpack(path: &Path, into: Option<&Path>) -> Result<Manifest, RestoreError> {
    let corrupt = |why: String| RestoreError::Corrupt { path: path.to_owned(), why };
    // An archive that ends too soon is no error of the disk.
    let reading = |source: io::Error| match source.raw_os_error() {
        Some(_) => failed("reading", path)(source),
        None => corrupt(source.to_string()),
    };
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RestoreError::Missing(path.to_owned()));
        }
        other => other.map_err(failed("opening", path))?,
    };
    let mut archive = tar::Archive::new(io::BufReader::new(file));
    let mut entries = archive.entries().map_err(reading)?;
    let first = entries.next().ok_or_else(|| corrupt("it is empty".into()))?.map_err(reading)?;
    let manifest = manifest(path, first)?;
    for wanted in &manifest.files {
        let what = wanted.path.as_str();
        let entry = entries.next().ok_or_else(|| corrupt(format!("{what} is missing")))?.map_err(reading)?;
        if !entry.header().entry_type().is_file() || &*entry.path_bytes() != what.as_bytes() {
            return Err(corrupt(format!("{what} is not where it should be")));
        }
        let (bytes, sha256) = match into {
            None => copy(entry, &mut io::sink()).map_err(reading)?,
            Some(dir) => write(&dir.join(what), entry)?,
        };
        if (bytes, &sha256) != (wanted.bytes, &wanted.sha256) {
            return Err(corrupt(format!("{what} is not what was written")));
        }
    }
    if entries.next().is_some() {
        return Err(corrupt("it has more in it than it says".into()));
    }
    Ok(manifest)
}

fn write(path: &Path, from: impl Read) -> Result<(u64, String), RestoreError> {
    let create = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let copied = copy(from, &mut file)?;
        file.flush()?;
        file.sync_all()?;
        Ok(copied)
    };
    create().map_err(failed("writing", path))
}

fn manifest(path: &Path, entry: impl Read) -> Result<Manifest, RestoreError> {
    let corrupt = |why: String| RestoreError::Corrupt { path: path.to_owned(), why };
    let mut text = Vec::new();
    entry.take(MAX_MANIFEST).read_to_end(&mut text).map_err(|error| corrupt(error.to_string()))?;
    let manifest: Manifest = archive::head(&text, FORMAT, VERSION).map_err(|wrong| match wrong {
        HeadError::Other => corrupt("it is no backup of postern".into()),
        HeadError::TooNew(found) => RestoreError::TooNew { path: path.to_owned(), found },
        HeadError::Malformed(error) => corrupt(format!("{MANIFEST}: {error}")),
    })?;
    if manifest.server_name != SERVER_NAME {
        return Err(corrupt("it is of a controller with another server name".into()));
    }
    check(&manifest.files).map_err(corrupt)?;
    Ok(manifest)
}

/// Only what a state consists of, each once, and all that it needs.
fn check(entries: &[Entry]) -> Result<(), String> {
    for (at, entry) in entries.iter().enumerate() {
        let path = &entry.path;
        let known = FILES.iter().any(|(name, _)| name == path);
        if !known || entries.iter().take(at).any(|other| other.path == *path) {
            return Err(format!("{MANIFEST} names {path:?}, which does not belong there"));
        }
        if path != super::DATABASE && entry.bytes > MAX_FILE {
            return Err(format!("{path} has {} bytes, the limit is {MAX_FILE}", entry.bytes));
        }
    }
    let missing = |name: &str| entries.iter().all(|entry| entry.path != name);
    match FILES.iter().find(|(name, required)| *required && missing(name)) {
        Some((name, _)) => Err(format!("{MANIFEST} does not name {name}")),
        None => Ok(()),
    }
}
