//! The journal: one append-only, preallocated file of checksummed records, synced before anything acts on it.

mod disk;
mod frame;
#[cfg(test)]
mod tests;

pub use disk::{Disk, FileDisk, WrapDisk, file_disk};
/// The newest format this build reads, and the one it writes.
pub const FORMAT: u32 = frame::FORMAT;

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// There is none.
    #[error("there is no journal")]
    Missing,
    /// It is damaged.
    #[error("damaged at byte {offset}: {what}")]
    Corrupt {
        /// Where.
        offset: u64,
        /// How.
        what: String,
    },
    /// A newer agent wrote it.
    #[error("has format {0}, this build knows {FORMAT}")]
    TooNew(u32),
    /// A successor was put in its place, and it is not known whether that lasts: neither file may be used.
    #[error("its successor is in place, but its directory cannot be synced")]
    Replaced(#[source] io::Error),
    /// The disk.
    #[error("cannot {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError::Io { doing, source }
}

/// A journal's file, its bytes, and the frames in them.
fn read(path: &Path, write: bool) -> Result<(File, Vec<u8>, frame::Scan), JournalError> {
    let mut options = OpenOptions::new();
    options.read(true).write(write).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    let mut file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(JournalError::Missing),
        Err(error) => return Err(io_error("open it")(error)),
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io_error("read it"))?;
    match frame::check_header(&bytes) {
        Ok(()) => {}
        Err(frame::HeaderError::TooNew(format)) => return Err(JournalError::TooNew(format)),
        Err(frame::HeaderError::Corrupt) => {
            let what = "not the header of a journal".to_owned();
            return Err(JournalError::Corrupt { offset: 0, what });
        }
    }
    let scan = frame::scan(&bytes)
        .map_err(|damage| JournalError::Corrupt { offset: damage.offset, what: damage.what })?;
    Ok((file, bytes, scan))
}

/// An open journal. One writer; the caller holds a lock on the directory.
pub struct Journal {
    disk: Box<dyn Disk>,
    wrap: WrapDisk,
    path: PathBuf,
    /// Where the next frame goes.
    tail: u64,
    /// How far the file is allocated.
    capacity: u64,
    chunk: u64,
    seq: u64,
}

impl Journal {
    /// Makes a new journal, all or nothing: it appears under its name when it is on the disk.
    pub fn create(path: &Path, chunk: u64, wrap: WrapDisk) -> Result<Self, JournalError> {
        Self::write_new(path, chunk, 0, &[], wrap)
    }

    /// Opens the journal and gives the payloads in it. A frame that was being written when the power went is
    /// cut off; any other damage is an error.
    pub fn open(path: &Path, chunk: u64, wrap: WrapDisk) -> Result<(Self, Vec<Vec<u8>>), JournalError> {
        let (file, bytes, scan) = read(path, true)?;
        let mut journal = Self {
            disk: wrap(file),
            wrap,
            path: path.to_owned(),
            tail: scan.end,
            capacity: (bytes.len() as u64).max(scan.end),
            chunk,
            seq: scan.frames.len() as u64 + 1,
        };
        if scan.torn {
            let last = bytes.iter().rposition(|b| *b != 0).map_or(scan.end, |at| at as u64 + 1);
            let zeros = vec![0; last.saturating_sub(scan.end) as usize];
            journal.disk.write_at(scan.end, &zeros).map_err(io_error("cut off its unfinished end"))?;
            journal.disk.sync().map_err(io_error("cut off its unfinished end"))?;
        }
        let payloads = scan.frames.into_iter().map(|range| bytes[range].to_vec()).collect();
        Ok((journal, payloads))
    }

    /// The payloads of a journal that another process may be writing; changes nothing and takes no lock.
    pub fn peek(path: &Path) -> Result<Vec<Vec<u8>>, JournalError> {
        let (_, bytes, scan) = read(path, false)?;
        Ok(scan.frames.into_iter().map(|range| bytes[range].to_vec()).collect())
    }

    /// Bytes that can be written without asking the file system for more.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.capacity - self.tail
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.tail - frame::HEADER_LEN
    }

    /// How many bytes of the file a payload takes.
    #[must_use]
    pub fn cost(payload: usize) -> u64 {
        frame::frame_len(payload)
    }

    /// The longest payload of one frame, bytes.
    pub const MAX_PAYLOAD: usize = frame::MAX_PAYLOAD;

    /// Makes sure of this much room; fails when the disk has none.
    pub fn ensure_room(&mut self, bytes: u64) -> io::Result<()> {
        if self.room() < bytes {
            let target = (self.tail + bytes).next_multiple_of(self.chunk);
            self.disk.grow(self.capacity, target)?;
            self.capacity = target;
        }
        Ok(())
    }

    /// Writes one frame and returns when it is on the disk. After an error the journal must not be used any
    /// more: what the disk holds is not known, and a later success would not change that.
    pub fn append(&mut self, payload: &[u8]) -> io::Result<()> {
        if payload.is_empty() || payload.len() > frame::MAX_PAYLOAD || payload.ends_with(&[0]) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a payload for a journal"));
        }
        let bytes = frame::encode(self.seq, payload);
        self.ensure_room(bytes.len() as u64)?;
        self.disk.write_at(self.tail, &bytes)?;
        self.disk.sync()?;
        self.tail += bytes.len() as u64;
        self.seq += 1;
        Ok(())
    }

    /// Replaces the file by one that holds only these payloads, with `spare` bytes of room. After
    /// [`JournalError::Replaced`] the journal must not be used any more: what would be appended here is in a
    /// file without a name, or in one whose name a power cut may take back.
    pub fn rewrite(&mut self, payloads: &[Vec<u8>], spare: u64) -> Result<(), JournalError> {
        *self = Self::write_new(&self.path, self.chunk, spare, payloads, self.wrap)?;
        Ok(())
    }

    fn write_new(
        path: &Path,
        chunk: u64,
        spare: u64,
        payloads: &[Vec<u8>],
        wrap: WrapDisk,
    ) -> Result<Self, JournalError> {
        let fresh = path.with_extension("new");
        let result = Self::write_fresh(&fresh, path, chunk, spare, payloads, wrap);
        if result.is_err() {
            // The old file is untouched; a half-written new one only takes room.
            let _ = std::fs::remove_file(&fresh);
        }
        result
    }

    fn write_fresh(
        fresh: &Path,
        path: &Path,
        chunk: u64,
        spare: u64,
        payloads: &[Vec<u8>],
        wrap: WrapDisk,
    ) -> Result<Self, JournalError> {
        match std::fs::remove_file(fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove a half-written successor")(error));
            }
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        let mut disk = wrap(options.open(fresh).map_err(io_error("create it"))?);
        let mut bytes = frame::header(FORMAT);
        for (i, payload) in payloads.iter().enumerate() {
            bytes.extend(frame::encode(i as u64 + 1, payload));
        }
        let tail = bytes.len() as u64;
        let capacity = (tail + spare).max(1).next_multiple_of(chunk);
        disk.grow(0, capacity).map_err(io_error("make room for it"))?;
        disk.write_at(0, &bytes).map_err(io_error("write it"))?;
        disk.sync().map_err(io_error("sync it"))?;
        std::fs::rename(fresh, path).map_err(io_error("put it in place"))?;
        disk.sync_name(path).map_err(JournalError::Replaced)?;
        Ok(Self { disk, wrap, path: path.to_owned(), tail, capacity, chunk, seq: payloads.len() as u64 + 1 })
    }
}

/// Makes a rename or creation in the directory of `path` durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir)?.sync_all()
}
