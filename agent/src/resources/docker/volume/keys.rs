//! What a restore has on the host while it goes on, below `/run`: a reboot forgets it. The private key is used once, and
//! goes also where its restore is cut off before that.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use postern_proto::host::RUN_DIR;
use postern_proto::parcel::MOST_SEALED;
use postern_proto::sealed::{KEY, PrivateKey};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use zeroize::Zeroizing;

use crate::link::private_file::{prepare, private_dir, read};
use crate::sys::Sys;

/// The private key.
const PRIVATE: &str = "key";
/// Cipher text that came before the rest of it.
const PIECES: &str = "sealed";

fn dir(sys: &Sys) -> PathBuf {
    sys.real(RUN_DIR).join("volumes")
}

fn failed(doing: &str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> String {
    let what = format!("cannot {doing} {}", path.display());
    move |error| format!("{what}: {error}")
}

fn write(sys: &Sys, name: &str, bytes: &[u8]) -> Result<(), String> {
    let (dir, path) = (dir(sys), dir(sys).join(name));
    private_dir(&dir).map_err(failed("make", &dir))?;
    prepare(&path, bytes)
        .and_then(crate::link::private_file::Prepared::commit)
        .map_err(failed("write", &path))
}

/// For as long as it lives nobody else changes anything here. It is on the directory itself, so that nothing is left.
pub(super) struct Lock {
    dir: OwnedFd,
}

impl Drop for Lock {
    /// By word and not by closing it: a program that is just being started has it open too, until it runs.
    fn drop(&mut self) {
        let _ = flock(&self.dir, FlockOperation::Unlock);
    }
}

/// One restore at a time: a second one would take the key of the first, and restart what that one waits for.
pub(super) fn lock(sys: &Sys) -> Result<Lock, String> {
    try_lock(sys)?.ok_or_else(|| "another restore goes on here: wait for it, then restore again".to_owned())
}

fn try_lock(sys: &Sys) -> Result<Option<Lock>, String> {
    let dir = dir(sys);
    private_dir(&dir).map_err(failed("make", &dir))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&dir, flags, Mode::empty());
    let opened = opened.map_err(|error| failed("open", &dir)(error.into()))?;
    match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock { dir: opened })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(failed("lock", &dir)(error.into())),
    }
}

fn remove(sys: &Sys, name: &str) -> Result<(), String> {
    let path = dir(sys).join(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
        _ => Ok(()),
    }
}

fn get(sys: &Sys, name: &str, limit: usize) -> Result<Option<Vec<u8>>, String> {
    let path = dir(sys).join(name);
    read(&path, limit as u64).map_err(failed("read", &path))
}

/// Keeps a key in the place of any other; what was sealed to that one is nobody's any more.
pub(super) fn keep(sys: &Sys, key: &PrivateKey) -> Result<(), String> {
    remove(sys, PIECES)?;
    write(sys, PRIVATE, key.bytes())
}

/// Keeps a piece behind those that came before it.
pub(super) fn add(sys: &Sys, offset: usize, piece: &[u8]) -> Result<(), String> {
    let mut all = get(sys, PIECES, MOST_SEALED)?.unwrap_or_default();
    if all.len() != offset {
        return Err(format!(
            "a piece at {offset} does not follow the {} bytes that are here: restore again",
            all.len()
        ));
    }
    if all.len() + piece.len() > MOST_SEALED {
        return Err(format!("more than {MOST_SEALED} bytes"));
    }
    all.extend_from_slice(piece);
    write(sys, PIECES, &all)
}

/// The key and the pieces; neither is here afterwards.
pub(super) fn take(sys: &Sys) -> Result<(PrivateKey, Vec<u8>), String> {
    let key = get(sys, PRIVATE, KEY)?.map(Zeroizing::new);
    let pieces = get(sys, PIECES, MOST_SEALED)?.unwrap_or_default();
    remove(sys, PRIVATE)?;
    remove(sys, PIECES)?;
    let bytes = key.as_ref().and_then(|key| key.as_slice().first_chunk::<KEY>());
    let bytes = bytes.ok_or("the key that this was sealed to is not here any more: restore again")?;
    Ok((PrivateKey::new(Zeroizing::new(*bytes)), pieces))
}

/// Removes the key and the pieces where nothing was added to them for so long; whether there was something. What
/// another process is at work with stays.
pub(super) fn forget(sys: &Sys, idle: Duration) -> Result<bool, String> {
    let all = [PRIVATE, PIECES].map(|name| dir(sys).join(name));
    let written = || all.iter().filter_map(|path| path.symlink_metadata().ok()?.modified().ok()).max();
    // The clock may have been put back meanwhile.
    let age = |last| SystemTime::now().duration_since(last).unwrap_or_else(|error| error.duration());
    let is_old = || written().is_some_and(|last| age(last) >= idle);
    // Looked at before the lock, too: a restore that goes on would find it taken for a moment.
    if !is_old() {
        return Ok(false);
    }
    let Some(_lock) = try_lock(sys)? else { return Ok(false) };
    if !is_old() {
        return Ok(false);
    }
    remove(sys, PRIVATE)?;
    remove(sys, PIECES)?;
    Ok(true)
}

fn mark(volume: &str) -> String {
    format!("unread-{}", super::encoded(volume))
}

/// Files were put into the volume, and the service that reads them has not been started since.
pub(super) fn is_unread(sys: &Sys, volume: &str) -> Result<bool, String> {
    Ok(get(sys, &mark(volume), 1)?.is_some())
}

/// Said before the first file is put: that need survives whatever cuts us off, but for a reboot, which starts the
/// service anew.
pub(super) fn set_unread(sys: &Sys, volume: &str, unread: bool) -> Result<(), String> {
    if unread { write(sys, &mark(volume), b"") } else { remove(sys, &mark(volume)) }
}
