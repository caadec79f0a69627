//! Files of the host: what lies where, and bounded reads.

mod change;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use serde::{Deserialize, Serialize};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::{Sys, SysError};
pub use change::NewFile;

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

impl FileKind {
    /// For messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "a file",
            Self::Directory => "a directory",
            Self::Symlink => "a symbolic link",
            Self::Other => "not a regular file",
        }
    }
}

/// What `lstat` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size, bytes.
    pub len: u64,
    /// When its content was changed, nanoseconds since the Unix epoch.
    pub mtime_ns: i128,
    /// Which one it is.
    #[serde(default)]
    pub id: FileId,
}

/// Tells what was looked at from what has been put in its place since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    dev: u64,
    ino: u64,
    /// When the kernel last saw its inode change, which no program can set: nanoseconds since the Unix epoch.
    ctime_ns: i64,
}

impl FileId {
    /// True for the same file with nothing about it changed, and for the same directory with whatever in it.
    fn is_still(self, now: &Meta) -> bool {
        let same = (self.dev, self.ino) == (now.id.dev, now.id.ino);
        same && (now.kind == FileKind::Directory || self.ctime_ns == now.id.ctime_ns)
    }
}

fn nanos(seconds: impl Into<i128>, nanos: impl Into<i128>) -> i128 {
    seconds.into() * 1_000_000_000 + nanos.into()
}

fn meta_of(stat: &rustix::fs::Stat) -> Meta {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    };
    Meta {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        len: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: nanos(stat.st_mtime, stat.st_mtime_nsec),
        id: FileId {
            dev: stat.st_dev,
            ino: stat.st_ino,
            ctime_ns: i64::try_from(nanos(stat.st_ctime, stat.st_ctime_nsec)).unwrap_or(i64::MAX),
        },
    }
}

/// `Ok(None)` for what is not there.
fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Sys {
    /// What lies at a path itself; a link there is not followed, nor one on the way that others control.
    pub fn meta(&self, path: &str) -> Result<Option<Meta>, SysError> {
        let found = self
            .parent(path)
            .and_then(|(dir, name)| Ok(meta_of(&rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?)));
        optional(found).map_err(SysError::file("look at", path))
    }

    /// Whether anything lies at a path, links on the way followed as any program would.
    pub fn exists(&self, path: &str) -> Result<bool, SysError> {
        let found = optional(fs::symlink_metadata(self.real(path)));
        Ok(found.map_err(SysError::file("look at", path))?.is_some())
    }

    /// The modification time of what a path leads to, links followed; nanoseconds since the Unix epoch.
    pub fn mtime_ns(&self, path: &str) -> Result<Option<i128>, SysError> {
        let found = optional(fs::metadata(self.real(path))).map_err(SysError::file("look at", path))?;
        Ok(found.map(|meta| i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())))
    }

    /// When the kernel last saw a path's inode change, links followed; nanoseconds since the Unix epoch. No
    /// program sets it, so it is neither a package's build date nor in the future.
    pub fn ctime_ns(&self, path: &str) -> Result<Option<i128>, SysError> {
        let found = optional(fs::metadata(self.real(path))).map_err(SysError::file("look at", path))?;
        Ok(found.map(|meta| i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec())))
    }

    /// A whole file; `None` when there is none, an error when it is a link.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, SysError> {
        let opened = optional(self.open(path)).map_err(SysError::file("open", path))?;
        let Some(file) = opened else { return Ok(None) };
        bounded(file, path, limit).map(Some)
    }

    /// The same, links followed as any program would: for what is looked at only.
    pub fn read_through(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, SysError> {
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let opened = optional(fs::OpenOptions::new().read(true).custom_flags(flags).open(self.real(path)))
            .map_err(SysError::file("open", path))?;
        let Some(file) = opened else { return Ok(None) };
        // Anything but a file could keep us waiting.
        if !file.metadata().map_err(SysError::file("look at", path))?.is_file() {
            return Ok(None);
        }
        bounded(file, path, limit).map(Some)
    }

    /// A whole regular file and whose it is, by one descriptor: nobody can change one for the other in
    /// between.
    pub fn read_owned(&self, path: &str, limit: u64) -> Result<Option<(Meta, Vec<u8>)>, SysError> {
        let opened = optional(self.open(path)).map_err(SysError::file("open", path))?;
        let Some(file) = opened else { return Ok(None) };
        let stat =
            rustix::fs::fstat(&file).map_err(io::Error::from).map_err(SysError::file("look at", path))?;
        Ok(Some((meta_of(&stat), bounded(file, path, limit)?)))
    }

    /// What a symbolic link says, unfollowed.
    pub fn link_target(&self, path: &str) -> Result<String, SysError> {
        let target = self.parent(path).and_then(|(dir, name)| {
            let target = rustix::fs::readlinkat(&dir, name, Vec::new())?;
            target.into_string().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not text"))
        });
        target.map_err(SysError::file("read the link", path))
    }

    pub(super) fn open(&self, path: &str) -> io::Result<File> {
        let (dir, name) = self.parent(path)?;
        // NONBLOCK, so that a pipe in a file's place does not hang us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&dir, name, flags, Mode::empty())?))
    }

    /// Names in a directory; none when it is not there.
    pub fn list(&self, path: &str) -> Result<Vec<String>, SysError> {
        let Some(entries) = optional(fs::read_dir(self.real(path))).map_err(SysError::file("list", path))?
        else {
            return Ok(Vec::new());
        };
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// The first names in a directory, at most this many; none when it is empty or not there. A link in its
    /// place is not followed.
    pub fn entries(&self, path: &str, most: usize) -> Result<Vec<String>, SysError> {
        let read = self.parent(path).and_then(|(dir, name)| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let entries = rustix::fs::Dir::new(rustix::fs::openat(&dir, name, flags, Mode::empty())?)?;
            let mut names = Vec::new();
            for entry in entries {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if names.len() == most {
                    break;
                }
                if name != "." && name != ".." {
                    names.push(name);
                }
            }
            Ok(names)
        });
        Ok(optional(read).map_err(SysError::file("list", path))?.unwrap_or_default())
    }

    /// Whether a path leads to a directory; links on the way and at its end are followed where only root
    /// could have made them, and an error otherwise.
    pub fn is_directory(&self, path: &str) -> Result<bool, SysError> {
        let found = optional(self.directory(path)).map_err(SysError::file("look at", path))?;
        Ok(found.is_some())
    }
}

fn bounded(file: File, path: &str, limit: u64) -> Result<Vec<u8>, SysError> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(SysError::file("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(SysError::TooLarge { path: path.to_owned(), bytes: bytes.len() as u64, limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sys() -> (tempfile::TempDir, Sys) {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        (dir, sys)
    }

    #[test]
    fn directories_by_table() {
        let (dir, sys) = sys();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("full/inner")).unwrap();
        fs::create_dir(at("empty")).unwrap();
        for name in ["a", "b", "c"] {
            fs::write(at("full").join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("full", at("link")).unwrap();
        assert_eq!(sys.entries("/full", 9).unwrap().len(), 4);
        assert_eq!(sys.entries("/full", 2).unwrap().len(), 2);
        assert_eq!(sys.entries("/empty", 9).unwrap(), [] as [&str; 0]);
        assert_eq!(sys.entries("/none", 9).unwrap(), [] as [&str; 0]);
        assert_eq!(sys.entries("/link", 9).unwrap(), [] as [&str; 0], "T48: a link in its place");
        for (path, want) in [("/full", true), ("/link", true), ("/none", false), ("/full/a", false)] {
            assert_eq!(sys.is_directory(path).unwrap(), want, "{path}");
        }
    }

    #[test]
    fn reads_are_bounded_and_absence_is_no_error() {
        let (dir, sys) = sys();
        fs::write(dir.path().join("a"), vec![1; 11]).unwrap();
        assert_eq!(sys.read("/a", 11).unwrap().unwrap().len(), 11);
        assert!(matches!(sys.read("/a", 10), Err(SysError::TooLarge { limit: 10, .. })));
        assert!(sys.read("/none", 10).unwrap().is_none());
        assert!(sys.read("/a/b", 10).unwrap().is_none());
        assert!(sys.read("/", 10).is_err());
        assert!(sys.meta("/none").unwrap().is_none());
        sys.remove("/none").unwrap();
        sys.remove("/a").unwrap();
        assert!(sys.meta("/a").unwrap().is_none());
    }
}
