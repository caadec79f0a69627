//! The whole state of a controller as one archive, and back.
//!
//! The archive is a tar. Its first entry is a manifest with the size and SHA-256 of every file that follows.
//! A restore trusts nothing in it before all of it was read and found to be what the manifest says.

mod restore;

pub use restore::{RestoreError, Restored, restore, verify};

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use postern_proto::SERVER_NAME;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use zeroize::Zeroizing;

use crate::archive::{Entry, append};
use crate::seal::KEY_FILE;
use crate::store::{Store, StoreError};

/// What an archive says it is.
const FORMAT: &str = "postern-backup";
/// The version of the archive.
const VERSION: u32 = 1;
/// The first entry.
const MANIFEST: &str = "postern-backup.json";
/// The database, as an entry.
const DATABASE: &str = "postern.db";
/// What an archive may hold, and whether it must.
const FILES: [(&str, bool); 10] = [
    (DATABASE, true),
    ("ca/format", true),
    ("ca/root.crt", true),
    ("ca/root.key", true),
    ("ca/servers.crt", true),
    ("ca/servers.key", true),
    ("ca/agents.crt", true),
    ("ca/agents.key", true),
    // Not in it when the key that is used lies elsewhere.
    (KEY_FILE, false),
    // Where a private daemon was found by its agents.
    ("port", false),
];
/// Copied and hashed at a time, bytes.
const PIECE: usize = 128 * 1024;

/// What stands at the head of an archive.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u32,
    /// Which version of the program wrote it.
    postern: String,
    created_ms: i64,
    cluster: String,
    server_name: String,
    /// The id of the key that the secrets in it are encrypted with.
    secrets_key: String,
    files: Vec<Entry>,
}

impl Manifest {
    fn has_key(&self) -> bool {
        self.files.iter().any(|entry| entry.path == KEY_FILE)
    }
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database could not be copied.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk would not, or whoever takes the archive.
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

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError + use<> {
    let path = path.to_owned();
    move |source| BackupError::Io { action, path, source }
}

/// Where the copy of the database lies while it is sent.
fn scratch(state_dir: &Path) -> PathBuf {
    state_dir.join("backup.tmp")
}

/// Removes what a backup that was cut off left behind.
pub(crate) fn clear(state_dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(scratch(state_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes the state as one archive. The daemon goes on meanwhile: the copy is of one moment. Blocks.
pub(crate) fn write(
    store: &Store,
    state_dir: &Path,
    created_ms: i64,
    out: &mut impl Write,
) -> Result<(), BackupError> {
    let scratch = scratch(state_dir);
    clear(state_dir).map_err(failed("removing", &scratch))?;
    fs::DirBuilder::new().mode(0o700).create(&scratch).map_err(failed("creating", &scratch))?;
    let written = Store::snapshot(state_dir, &scratch.join(DATABASE))
        .map_err(BackupError::from)
        .and_then(|()| archive(store, state_dir, &scratch, created_ms, out));
    let cleared = clear(state_dir).map_err(failed("removing", &scratch));
    written.and(cleared)
}

fn archive(
    store: &Store,
    state_dir: &Path,
    scratch: &Path,
    created_ms: i64,
    out: &mut impl Write,
) -> Result<(), BackupError> {
    let (mut files, mut sources) = (Vec::new(), Vec::new());
    for (name, required) in FILES {
        let path = if name == DATABASE { scratch.join(name) } else { state_dir.join(name) };
        // A key that is not used opens nothing in here, and may open something else.
        let unused = name == KEY_FILE && store.secrets_key_file() != path;
        if unused || (!required && !is_there(&path)?) {
            continue;
        }
        let reading = failed("reading", &path);
        let (bytes, sha256) =
            fs::File::open(&path).and_then(|file| copy(file, &mut io::sink())).map_err(reading)?;
        files.push(Entry { path: name.to_owned(), bytes, sha256 });
        sources.push(path);
    }
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        version: VERSION,
        postern: env!("CARGO_PKG_VERSION").to_owned(),
        created_ms,
        cluster: store.cluster().to_string(),
        server_name: SERVER_NAME.to_owned(),
        secrets_key: store.secrets_key().to_string(),
        files,
    };
    let head =
        serde_json::to_vec_pretty(&manifest).map_err(|error| failed("writing", scratch)(error.into()))?;
    let mut archive = tar::Builder::new(out);
    let sending = || failed("sending the archive of", state_dir);
    append(&mut archive, MANIFEST, head.len() as u64, head.as_slice()).map_err(sending())?;
    for (entry, path) in manifest.files.iter().zip(&sources) {
        let file = fs::File::open(path).map_err(failed("reading", path))?;
        append(&mut archive, &entry.path, entry.bytes, file.take(entry.bytes)).map_err(sending())?;
    }
    archive.into_inner().and_then(|out| out.flush()).map_err(sending())
}

fn is_there(path: &Path) -> Result<bool, BackupError> {
    fs::exists(path).map_err(failed("looking for", path))
}

/// Copies all there is; how much it was, and its SHA-256 in hex.
fn copy(mut from: impl Read, to: &mut impl Write) -> io::Result<(u64, String)> {
    let mut hash = sha2::Sha256::new();
    let mut piece = Zeroizing::new(vec![0; PIECE]);
    let mut bytes = 0u64;
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok((bytes, crate::ca::hex(&hash.finalize()))),
            Ok(count) => {
                let read = piece.get(..count).unwrap_or_default();
                hash.update(read);
                to.write_all(read)?;
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
