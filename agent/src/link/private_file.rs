//! Files that only root may read: made 0600, never through a symbolic link, replaced as a whole or not at all.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Makes a directory (0700, with its parents) or checks that what is there is one and not a symbolic link.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let meta = std::fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Err(io::Error::other(format!("{} is not a directory", path.display())));
    }
    if meta.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// The content, or `None` where there is no such file. A symbolic link is an error.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!("{} is not a regular file", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("{} is larger than {limit} bytes", path.display())));
    }
    Ok(Some(bytes))
}

/// A new content that is on disk beside the old one and not yet in its place.
#[must_use = "dropped, it takes no effect"]
pub(crate) struct Prepared {
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

/// Writes the new content beside the file, so that a full disk is found out before anything is replaced.
pub(crate) fn prepare(target: &Path, bytes: &[u8]) -> io::Result<Prepared> {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let temporary = target.with_file_name(name);
    // What an interrupted write left is ours to remove; the exclusive create below follows nothing.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(&temporary, flags, Mode::RUSR | Mode::WUSR)?);
    let prepared = Prepared { temporary, target: target.into(), committed: false };
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(prepared)
}

impl Prepared {
    /// Puts the new content in place; durable on return.
    pub(crate) fn commit(mut self) -> io::Result<()> {
        std::fs::rename(&self.temporary, &self.target)?;
        self.committed = true;
        sync_dir(self.target.parent().unwrap_or(Path::new("/")))
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if !self.committed {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Makes renames and removals in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn trap_48_private_at_creation_and_no_symlink_is_followed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("state/identity");
        private_dir(&dir).unwrap();
        assert_eq!((mode(&dir), mode(&root.path().join("state"))), (0o700, 0o700));

        let file = dir.join("f");
        assert_eq!(read(&file, 10).unwrap(), None);
        prepare(&file, b"one").unwrap().commit().unwrap();
        assert_eq!((mode(&file), read(&file, 10).unwrap().unwrap().as_slice()), (0o600, b"one".as_slice()));
        assert!(read(&file, 2).is_err(), "larger than the limit");

        let outside = root.path().join("outside");
        std::fs::write(&outside, b"mine").unwrap();
        let link = dir.join("link");
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        assert!(read(&link, 10).is_err());
        // A planted temporary name is removed, not written through.
        std::os::unix::fs::symlink(&outside, dir.join("f.new")).unwrap();
        prepare(&file, b"two").unwrap().commit().unwrap();
        assert_eq!(std::fs::read(&outside).unwrap(), b"mine");
        assert_eq!(read(&file, 10).unwrap().unwrap(), b"two");

        let linked_dir = root.path().join("linked");
        std::os::unix::fs::symlink(&dir, &linked_dir).unwrap();
        assert!(private_dir(&linked_dir).is_err());
    }

    #[test]
    fn what_is_not_committed_leaves_the_old_content_and_no_litter() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("f");
        prepare(&file, b"one").unwrap().commit().unwrap();
        drop(prepare(&file, b"two").unwrap());
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
