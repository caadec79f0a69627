//! The state directory: safe to use, locked, and complete or on its first start.

use std::fs;
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::config::StartError;
use crate::ca::{Authority, CaError};
use crate::seal::{self, KeyError, SealKey};
use crate::store::Store;

/// Lies there while a first start is under way. Nothing has been handed out before it is gone, so what is
/// found with it is made anew.
const UNFINISHED: &str = "first-start";

/// The state, for this process alone as long as this lives.
pub(crate) struct State {
    pub(crate) ca: Authority,
    pub(crate) store: Store,
    pub(crate) lock: Lock,
}

/// Released by the kernel when the process ends, however it ends.
pub(crate) struct Lock {
    _file: fs::File,
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StartError + use<> {
    let path = path.to_owned();
    move |source| StartError::State { action, path, source }
}

/// Opens the state in `dir`, or makes one where there is nothing.
pub(crate) fn open(dir: &Path, key_file: Option<&Path>, now: SystemTime) -> Result<State, StartError> {
    secure(dir)?;
    let lock = lock(dir)?;
    let unfinished = dir.join(UNFINISHED);
    let started_over = fs::symlink_metadata(&unfinished).is_ok();
    let (ca, store) = (Authority::exists(dir)?, Store::exists(dir)?);
    if started_over && ca && store && is_used(dir, key_file)? {
        // Restored over a first start that was cut off: what is used is not made anew.
        tracing::warn!(dir = %dir.display(), "a first start was cut off, and a state that is used is there: it is kept");
        fs::remove_file(&unfinished).map_err(io("removing", &unfinished))?;
        sync(dir)?;
    } else if started_over || (!ca && !store) {
        if started_over {
            tracing::warn!(dir = %dir.display(), "a first start was cut off; it is made anew");
        }
        first_start(dir, key_file, &unfinished, now)?;
    }
    let key = Arc::new(key(dir, key_file)?);
    // One without the other is not a first start: each says that it is missing.
    let ca = Authority::open(dir, &key)?;
    let store = Store::open(dir, &ca.fingerprint(), Arc::clone(&key))?;
    // After the store has noted which key it is.
    if Authority::encrypt(dir, &key)? {
        tracing::info!("the private keys of the authority were in clear; they are encrypted now");
    }
    crate::backup::clear(dir).map_err(io("removing what a backup left behind in", dir))?;
    Ok(State { ca, store, lock })
}

/// The key of what is encrypted. One in the state directory is made where nothing was ever encrypted; one that
/// lies elsewhere is only read.
fn key(dir: &Path, elsewhere: Option<&Path>) -> Result<SealKey, StartError> {
    let path = seal::key_path(dir, elsewhere);
    if let Some(key) = SealKey::read(&path)? {
        return Ok(key);
    }
    if elsewhere.is_some() || Authority::is_sealed(dir)? || Store::key_id(dir)?.is_some() {
        return Err(KeyError::Missing { path }.into());
    }
    Ok(SealKey::create(&path)?)
}

/// True when the database knows a host or a secret. Where that cannot be told, or the key is missing or the
/// wrong one, nothing may be removed: that is an error.
fn is_used(dir: &Path, key_file: Option<&Path>) -> Result<bool, StartError> {
    let key = key(dir, key_file)?;
    match Authority::open(dir, &key) {
        // An authority that is not whole is what a start that was cut off leaves; the database decides.
        Ok(_) | Err(CaError::Missing(_) | CaError::Corrupt { .. }) => Ok(Store::is_used(dir)?),
        Err(CaError::Key(error)) => Err(error.into()),
        Err(error) => Err(error.into()),
    }
}

fn sync(dir: &Path) -> Result<(), StartError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("syncing", dir))
}

fn first_start(
    dir: &Path,
    key_file: Option<&Path>,
    unfinished: &Path,
    now: SystemTime,
) -> Result<(), StartError> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(unfinished)
        .map_err(io("creating", unfinished))?;
    sync(dir)?;
    Store::discard(dir)?;
    Authority::discard(dir)?;
    let ca = Authority::create(dir, now, &key(dir, key_file)?)?;
    Store::create(dir, &ca.fingerprint())?;
    fs::remove_file(unfinished).map_err(io("removing", unfinished))?;
    sync(dir)
}

/// 0700 and ours, made so where it is not there.
fn secure(dir: &Path) -> Result<(), StartError> {
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(io("creating", dir)(error)),
        _ => {}
    }
    let meta = fs::metadata(dir).map_err(io("reading", dir))?;
    let unsafe_because = |why: String| Err(StartError::Unsafe { path: dir.to_owned(), why });
    if !meta.is_dir() {
        return unsafe_because("it is not a directory".into());
    }
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        return unsafe_because(format!("it belongs to user {}, this is user {me}", meta.uid()));
    }
    if meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o777;
        return unsafe_because(format!("others can enter it (mode {mode:o}); run chmod 700 on it"));
    }
    Ok(())
}

fn lock(dir: &Path) -> Result<Lock, StartError> {
    let path: PathBuf = dir.join("lock");
    let mut file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io("opening", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // It may just be writing this; the answer is the same without.
            let _ = (&mut file).take(200).read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another daemon".to_owned(),
                holder => super::text::neutral(holder),
            };
            return Err(StartError::InUse { state_dir: dir.to_owned(), holder });
        }
        Err(fs::TryLockError::Error(source)) => return Err(io("locking", &path)(source)),
    }
    let holder = format!("process {} (postern {})\n", std::process::id(), env!("CARGO_PKG_VERSION"));
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(holder.as_bytes()))
        .map_err(io("writing", &path))?;
    Ok(Lock { _file: file })
}
