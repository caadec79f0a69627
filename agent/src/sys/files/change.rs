//! Changes of the host's files that are whole or not there, and durable; no link is followed that others could have made.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};

use super::{FileId, FileKind, meta_of, optional};
use crate::sys::{Sys, SysError};

/// A file to be put in place.
pub struct NewFile<'a> {
    /// Where.
    pub path: &'a str,
    /// What is in it.
    pub content: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Sys {
    /// Puts a file in place in one step: readers see the old one or the new one. `check` is called with the
    /// finished file under its temporary name (a path of the host) and can still stop it.
    pub fn replace(
        &self,
        new: &NewFile<'_>,
        check: impl FnOnce(&str) -> Result<(), String>,
    ) -> Result<Result<(), String>, SysError> {
        let (dir_path, name) = new.path.rsplit_once('/').unwrap_or(("", new.path));
        let dir_path = if dir_path.is_empty() { "/" } else { dir_path };
        let dir = self.directory(dir_path).map_err(SysError::file("open the directory", dir_path))?;
        // A name of its own kind, so that a rest of an earlier attempt is found and removed.
        let temporary = format!(".{name}.postern-new");
        let written =
            write_temporary(&dir, &temporary, new).map_err(SysError::file("write beside", new.path));
        let outcome = written.and_then(|()| {
            let path = format!("{}/{temporary}", dir_path.trim_end_matches('/'));
            if let Err(why) = check(&path) {
                return Ok(Err(why));
            }
            rustix::fs::renameat(&dir, &*temporary, &dir, name)
                .map_err(io::Error::from)
                .and_then(|()| dir.sync_all())
                .map_err(SysError::file("put in place", new.path))?;
            Ok(Ok(()))
        });
        if !matches!(outcome, Ok(Ok(()))) {
            let _ = rustix::fs::unlinkat(&dir, &*temporary, AtFlags::empty());
        }
        outcome
    }

    /// Sets owner and mode of a regular file or a directory, never through a link. Where its directory is
    /// somebody else's, another file may have been put in its place since it was looked at: `seen` is what was
    /// seen then.
    pub fn set_attributes(
        &self,
        path: &str,
        mode: u32,
        uid: u32,
        gid: u32,
        seen: Option<FileId>,
    ) -> Result<(), SysError> {
        let file = self.open(path).map_err(SysError::file("open", path))?;
        let known = rustix::fs::fstat(&file).map_err(io::Error::from).and_then(|stat| {
            let meta = meta_of(&stat);
            let refused = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            if !matches!(meta.kind, FileKind::File | FileKind::Directory) {
                return refused("neither a file nor a directory".to_owned());
            }
            if seen.is_some_and(|seen| !seen.is_still(&meta)) {
                return refused("it was changed or exchanged since it was looked at; left alone".to_owned());
            }
            if meta.kind == FileKind::File && stat.st_nlink > 1 && meta.uid != uid {
                // A second name of a file of somebody else's is made by whoever may write the directory.
                return refused(format!(
                    "it has {} names (hard links) and belongs to uid {}: it may be another's file, so it is left \
                     alone; remove the name here or the others",
                    stat.st_nlink, meta.uid
                ));
            }
            Ok(())
        });
        known
            .and_then(|()| own(&file, mode, uid, gid))
            .and_then(|()| file.sync_all())
            .map_err(SysError::file("set owner and mode of", path))
    }

    /// Makes a directory with exactly this mode and owner. One that is there by now gets them if it is its owner's
    /// already, or empty and root's, as a try that was cut off leaves it; any other is somebody else's.
    pub fn make_directory(&self, path: &str, mode: u32, uid: u32, gid: u32) -> Result<(), SysError> {
        let made = self.parent(path).and_then(|(dir, name)| {
            match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let new = File::from(rustix::fs::openat(&dir, name, flags, Mode::empty())?);
            // Also one that was just made may have been exchanged for another.
            let owner = rustix::fs::fstat(&new)?.st_uid;
            let ours = owner == rustix::process::geteuid().as_raw() && is_empty(&new)?;
            if owner != uid && !ours {
                let why = format!("another directory, of uid {owner}, is there by now; left alone");
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
            }
            own(&new, mode, uid, gid)?;
            new.sync_all()?;
            sync_in(&dir)
        });
        made.map_err(SysError::file("make the directory", path))
    }

    /// Removes an empty directory; what is not there is fine.
    pub fn remove_directory(&self, path: &str) -> Result<(), SysError> {
        let removed = self.parent(path).and_then(|(dir, name)| {
            rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)?;
            sync_in(&dir)
        });
        optional(removed).map_err(SysError::file("remove the directory", path))?;
        Ok(())
    }

    /// Puts a symbolic link in place, over a file or link that is there.
    pub fn symlink(&self, path: &str, target: &str) -> Result<(), SysError> {
        let made = self.parent(path).and_then(|(dir, name)| {
            let temporary = format!(".{name}.postern-new");
            match rustix::fs::unlinkat(&dir, &*temporary, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            rustix::fs::symlinkat(target, &dir, &*temporary)?;
            rustix::fs::renameat(&dir, &*temporary, &dir, name)?;
            sync_in(&dir)
        });
        made.map_err(SysError::file("link", path))
    }

    /// Writes a value into a file of the kernel's, in place: there is no other one to rename over it.
    pub fn write_kernel(&self, path: &str, value: &str) -> Result<(), SysError> {
        let written = self.parent(path).and_then(|(dir, name)| {
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(rustix::fs::openat(&dir, name, flags, Mode::empty())?);
            file.write_all(format!("{value}\n").as_bytes())
        });
        written.map_err(SysError::file("write", path))
    }

    /// Removes a file or a link, not what it leads to; what is not there is fine.
    pub fn remove(&self, path: &str) -> Result<(), SysError> {
        let removed = self.parent(path).and_then(|(dir, name)| {
            rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
            sync_in(&dir)
        });
        optional(removed).map_err(SysError::file("remove", path))?;
        Ok(())
    }
}

fn is_empty(dir: &File) -> io::Result<bool> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes what happened in a directory durable; the descriptor itself may be one that cannot be synced.
fn sync_in(dir: &impl std::os::fd::AsFd) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    File::from(rustix::fs::openat(dir, ".", flags, Mode::empty())?).sync_all()
}

fn own(file: &File, mode: u32, uid: u32, gid: u32) -> io::Result<()> {
    let meta = file.metadata()?;
    if (meta.uid(), meta.gid()) != (uid, gid) {
        rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    // After the change of owner, which clears some bits.
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    Ok(())
}

fn write_temporary(dir: &File, name: &str, new: &NewFile<'_>) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(new.content)?;
    own(&file, new.mode, new.uid, new.gid)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::FileType;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn sys() -> (tempfile::TempDir, Sys, u32, u32) {
        let dir = tempfile::tempdir().unwrap();
        let meta = fs::metadata(dir.path()).unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        (dir, sys, meta.uid(), meta.gid())
    }

    #[test]
    fn trap_48_a_link_at_the_temporary_name_is_not_followed() {
        let (dir, sys, uid, gid) = sys();
        fs::write(dir.path().join("victim"), "old").unwrap();
        std::os::unix::fs::symlink(dir.path().join("victim"), dir.path().join(".a.postern-new")).unwrap();
        let new = NewFile { path: "/a", content: b"new", mode: 0o640, uid, gid };
        sys.replace(&new, |_| Ok(())).unwrap().unwrap();
        assert_eq!(fs::read(dir.path().join("victim")).unwrap(), b"old");
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"new");
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o7777, 0o640);
        assert!(!dir.path().join(".a.postern-new").exists());
    }

    #[test]
    fn a_refused_file_leaves_everything_as_it_was() {
        let (dir, sys, uid, gid) = sys();
        fs::write(dir.path().join("a"), "old").unwrap();
        let new = NewFile { path: "/a", content: b"bad", mode: 0o644, uid, gid };
        let mut seen = String::new();
        let refused = sys.replace(&new, |path| {
            seen = fs::read_to_string(dir.path().join(path.trim_start_matches('/'))).unwrap();
            Err("no".to_owned())
        });
        assert_eq!(refused.unwrap(), Err("no".to_owned()));
        assert_eq!(seen, "bad");
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn directories_by_table() {
        let (dir, sys, uid, gid) = sys();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("full/inner")).unwrap();
        fs::create_dir(at("empty")).unwrap();
        std::os::unix::fs::symlink("full", at("link")).unwrap();
        let mode = |path: &str| fs::metadata(at(path)).unwrap().permissions().mode() & 0o7777;
        sys.set_attributes("/empty", 0o2711, uid, gid, None).unwrap();
        assert_eq!(mode("empty"), 0o2711);
        assert!(sys.set_attributes("/link", 0o700, uid, gid, None).is_err());
        assert_ne!(mode("full"), 0o700);
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(sys.set_attributes("/pipe", 0o666, uid, gid, None).is_err());
        assert_eq!(mode("pipe"), 0o600);
        sys.remove_directory("/empty").unwrap();
        assert!(sys.remove_directory("/full").is_err() && at("full/inner").exists());
    }

    /// T48: between the look and the change, the owner of the directory puts something else there.
    #[test]
    fn trap_48_owner_and_mode_are_set_of_what_was_looked_at_and_nothing_else() {
        let (dir, sys, uid, gid) = sys();
        let at = |path: &str| dir.path().join(path);
        let mode = |path: &str| fs::metadata(at(path)).unwrap().permissions().mode() & 0o7777;
        let look = |path: &str| Some(sys.meta(path).unwrap().unwrap().id);
        let set = |seen| sys.set_attributes("/a", 0o4711, uid, gid, seen).map_err(|error| error.to_string());
        let write = |content: &str| {
            let _ = fs::remove_file(at("a"));
            fs::write(at("a"), content).unwrap();
            fs::set_permissions(at("a"), fs::Permissions::from_mode(0o600)).unwrap();
        };
        fs::write(at("other"), "x").unwrap();
        fs::set_permissions(at("other"), fs::Permissions::from_mode(0o600)).unwrap();
        write("x");
        set(look("/a")).unwrap();
        assert_eq!(mode("a"), 0o4711, "what was looked at");
        // The clock of a file system may count in hundredths.
        let pause = || std::thread::park_timeout(std::time::Duration::from_millis(20));
        let exchanges: [(&str, &dyn Fn()); 3] = [
            ("other content", &|| fs::write(at("a"), "y").unwrap()),
            ("another file", &|| fs::rename(at("other"), at("a")).unwrap()),
            ("another name", &|| {
                fs::remove_file(at("a")).unwrap();
                fs::hard_link(at("more"), at("a")).unwrap();
            }),
        ];
        fs::write(at("more"), "x").unwrap();
        for (what, exchange) in exchanges {
            write("x");
            let seen = look("/a");
            pause();
            exchange();
            let why = set(seen).unwrap_err();
            assert!(why.contains("since it was looked at"), "{what}: {why}");
            assert_ne!(mode("a"), 0o4711, "{what}");
        }
        // A directory is the same one, whatever is made in it meanwhile.
        fs::create_dir(at("d")).unwrap();
        let seen = look("/d");
        pause();
        fs::write(at("d/new"), "").unwrap();
        sys.set_attributes("/d", 0o2711, uid, gid, seen).unwrap();
        fs::rename(at("d"), at("old")).unwrap();
        fs::create_dir(at("d")).unwrap();
        assert!(sys.set_attributes("/d", 0o2711, uid, gid, seen).is_err());
        // Only root can have files of others.
        if rustix::process::geteuid().is_root() {
            fs::write(at("victim"), "x").unwrap();
            fs::hard_link(at("victim"), at("link-of")).unwrap();
            for seen in [look("/link-of"), None] {
                let why = sys.set_attributes("/link-of", 0o600, 4242, gid, seen).unwrap_err().to_string();
                assert!(why.contains("2 names (hard links) and belongs to uid 0"), "{why}");
            }
            assert_eq!(fs::metadata(at("victim")).unwrap().uid(), 0);
            sys.set_attributes("/link-of", 0o640, 0, 0, look("/link-of")).unwrap();
            assert_eq!(mode("victim"), 0o640, "its own owner's may have two names");
        }
    }

    /// T48: a directory that is there by now is not given away.
    #[test]
    fn trap_48_a_directory_of_somebody_else_is_not_given_away() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (dir, sys, ..) = sys();
        let at = |path: &str| dir.path().join(path);
        let owner = |path: &str| fs::metadata(at(path)).unwrap().uid();
        for path in ["roots/secret", "empty", "theirs", "others"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        std::os::unix::fs::chown(at("theirs"), Some(4242), None).unwrap();
        fs::write(at("theirs/x"), "").unwrap();
        std::os::unix::fs::chown(at("others"), Some(4243), None).unwrap();
        for (path, given) in
            [("roots", false), ("others", false), ("empty", true), ("theirs", true), ("new", true)]
        {
            let before = owner_of(&at(path));
            let made = sys.make_directory(&format!("/{path}"), 0o700, 4242, 4242);
            assert_eq!(made.is_ok(), given, "{path}: {made:?}");
            assert_eq!(owner(path), if given { 4242 } else { before }, "{path}");
        }
    }

    fn owner_of(path: &std::path::Path) -> u32 {
        fs::metadata(path).map_or(0, |meta| meta.uid())
    }
}
