//! The archives that this program writes: a tar whose first entry, in JSON, says what it is and names the files that
//! follow with their size and SHA-256.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// One file of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// Hex.
    pub(crate) sha256: String,
}

/// Why the first entry cannot be used.
#[derive(Debug)]
pub(crate) enum HeadError {
    /// It is of something else.
    Other,
    /// A newer version wrote it: which one of the archive.
    TooNew(u32),
    /// It is what was asked for, and damaged.
    Malformed(serde_json::Error),
}

/// What is asked of an archive of any version.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

/// Reads the first entry of an archive that is to have this format, and at most this version.
pub(crate) fn head<T: DeserializeOwned>(text: &[u8], format: &str, version: u32) -> Result<T, HeadError> {
    let head: Head = serde_json::from_slice(text).map_err(|_| HeadError::Other)?;
    if head.format != format {
        return Err(HeadError::Other);
    }
    if head.version > version {
        return Err(HeadError::TooNew(head.version));
    }
    serde_json::from_slice(text).map_err(HeadError::Malformed)
}

/// Adds a file that only its owner can read.
pub(crate) fn append(
    archive: &mut tar::Builder<impl Write>,
    name: &str,
    bytes: u64,
    from: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_mtime(0);
    archive.append_data(&mut header, name, from)
}
