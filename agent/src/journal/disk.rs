//! The journal's file: what is written, grown and synced; tests put failing ones in its place.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// A file whose space is really there before it is used.
pub trait Disk: Send {
    /// Writes all of it.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns when what was written is on the disk.
    fn sync(&mut self) -> io::Result<()>;
    /// Makes room from `from` to `to`, zeroed and allocated.
    fn grow(&mut self, from: u64, to: u64) -> io::Result<()>;
    /// Returns when the file's name is on the disk.
    fn sync_name(&mut self, path: &Path) -> io::Result<()> {
        super::sync_dir(path)
    }
}

/// A real file.
pub struct FileDisk(pub File);

impl Disk for FileDisk {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn grow(&mut self, from: u64, to: u64) -> io::Result<()> {
        // fallocate says at once that the disk is full. The zeros after it turn the blocks from "reserved"
        // into "written", so that a later write changes no metadata and its fdatasync is one write.
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), from, to - from) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        let zeros = [0u8; 64 * 1024];
        let mut at = from;
        while at < to {
            let part = zeros.len().min((to - at) as usize);
            self.0.write_all_at(&zeros[..part], at)?;
            at += part as u64;
        }
        self.0.sync_all()
    }
}

/// Puts a disk around an opened file.
pub type WrapDisk = fn(File) -> Box<dyn Disk>;

/// The real one.
pub fn file_disk(file: File) -> Box<dyn Disk> {
    Box::new(FileDisk(file))
}
