//! A file that a command leaves for its user: for this user alone, whole or not at all, never over another one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::error::CliError;

/// On its way. Dropped before [`Fresh::keep`], nothing stays.
#[derive(Debug)]
pub(crate) struct Fresh {
    path: PathBuf,
    /// Beside it, until all of it is on disk.
    part: PathBuf,
    file: File,
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> CliError {
    CliError::usage("file", format!("{doing} {}: {error}", path.display()))
}

fn there(path: &Path) -> CliError {
    CliError::usage("file-exists", format!("{} is there already; nothing was written", path.display()))
        .hint("name another file, or move that one away")
}

impl Fresh {
    /// Begins it. An error where something has that name already.
    pub(crate) fn create(path: &Path) -> Result<Self, CliError> {
        match std::fs::symlink_metadata(path) {
            Ok(_) => return Err(there(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("looking at", path, &error)),
        }
        let name = path
            .file_name()
            .ok_or_else(|| CliError::usage("file", format!("{} is no name for a file", path.display())))?;
        let part = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
        let part = path.with_file_name(part);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(&part).map_err(|error| failed("writing", path, &error))?;
        Ok(Self { path: path.to_owned(), part, file })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.file.write_all(bytes).map_err(|error| failed("writing", &self.path, &error))
    }

    /// Where it lies until it is kept.
    pub(crate) fn part(&self) -> &Path {
        &self.part
    }

    /// All of it was written: on disk, then under its name.
    pub(crate) fn keep(self) -> Result<(), CliError> {
        let fail = |error: &io::Error| failed("writing", &self.path, error);
        self.file.sync_all().map_err(|error| fail(&error))?;
        // Something may have got that name since.
        match renameat_with(CWD, &self.part, CWD, &self.path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(there(&self.path)),
            Err(error) => return Err(fail(&error.into())),
        }
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(|error| fail(&error))
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // After `keep` it has the other name, and there is nothing to remove.
        let _ = std::fs::remove_file(&self.part);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn whole_or_not_at_all_and_for_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut fresh = Fresh::create(&path).unwrap();
        fresh.write(b"half").unwrap();
        assert_eq!(std::fs::metadata(&fresh.part).unwrap().permissions().mode() & 0o777, 0o600);
        drop(fresh);
        assert!(names(dir.path()).is_empty());
        let mut fresh = Fresh::create(&path).unwrap();
        fresh.write(b"whole").unwrap();
        fresh.keep().unwrap();
        assert_eq!(names(dir.path()), ["a"]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        // Made after the look.
        let mut fresh = Fresh::create(&path).unwrap();
        fresh.write(b"new").unwrap();
        std::fs::write(&path, "old").unwrap();
        assert_eq!(fresh.keep().unwrap_err().code, "file-exists");
        assert_eq!(Fresh::create(&path).unwrap_err().code, "file-exists");
        // A link that leads nowhere is something too.
        std::os::unix::fs::symlink("gone", dir.path().join("b")).unwrap();
        assert_eq!(Fresh::create(&dir.path().join("b")).unwrap_err().code, "file-exists");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(dir.path()), ["a", "b"]);
    }
}
