//! The way to a file: component by component, through no link that others than root could have put there.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

use super::Sys;

/// The most links on one way, as in the kernel.
const LINKS: usize = 40;

/// A directory that only says where it is: enough to name files in it.
const HERE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Sys {
    /// The directory a path lies in, and the name it has there. What the name itself is, is not looked at.
    pub(super) fn parent<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
        let path = path.trim_end_matches('/');
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        match name {
            "" | "." => Ok((self.walk(path)?, ".")),
            ".." => Err(io::Error::new(io::ErrorKind::InvalidInput, "the path ends in ..")),
            name => Ok((self.walk(above)?, name)),
        }
    }

    /// A directory that can be listed and synced.
    pub(super) fn directory(&self, path: &str) -> io::Result<File> {
        let here = self.walk(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&here, ".", flags, Mode::empty())?))
    }

    fn walk(&self, path: &str) -> io::Result<OwnedFd> {
        let mut here = vec![rustix::fs::open(self.real("/"), HERE & !OFlags::NOFOLLOW, Mode::empty())?];
        let mut todo: Vec<String> = path.rsplit('/').map(str::to_owned).collect();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == ".." && here.len() > 1 {
                here.pop();
            }
            if matches!(&*name, "" | "." | "..") {
                continue;
            }
            // Never empty: its first is only taken with another above it.
            let Some(dir) = here.last() else { break };
            match rustix::fs::openat(dir, &*name, HERE, Mode::empty()) {
                Ok(next) => here.push(next),
                Err(rustix::io::Errno::NOTDIR) => {
                    let target = follow(dir, &name)?;
                    links += 1;
                    if links > LINKS {
                        return Err(rustix::io::Errno::LOOP.into());
                    }
                    if target.starts_with('/') {
                        here.truncate(1);
                    }
                    todo.extend(target.rsplit('/').map(str::to_owned));
                }
                Err(error) => return Err(error.into()),
            }
        }
        here.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Where a link leads, if it is one and only root could have made it.
fn follow(dir: &OwnedFd, name: &str) -> io::Result<String> {
    let link = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(link.st_mode) != FileType::Symlink {
        return Err(rustix::io::Errno::NOTDIR.into());
    }
    let around = rustix::fs::fstat(dir)?;
    if !ours(&link) || !ours(&around) || around.st_mode & 0o022 != 0 {
        let why = format!("{name:?} on the way is a symbolic link that others than root control");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
    target.into_string().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a link that is not UTF-8"))
}

fn ours(stat: &Stat) -> bool {
    stat.st_uid == 0 || stat.st_uid == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::super::{NewFile, Sys};

    /// T48: what is written below a directory of somebody else's does not land where their link leads.
    #[test]
    fn trap_48_links_that_others_could_have_made_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        for path in ["real/deep", "shared", "other"] {
            fs::create_dir_all(at(path)).unwrap();
        }
        fs::set_permissions(at("shared"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(at("real/deep/f"), "x").unwrap();
        symlink("/real/deep", at("absolute")).unwrap();
        symlink("real/../real/./deep", at("relative")).unwrap();
        symlink("../../../../real", at("above")).unwrap();
        symlink("../real", at("shared/link")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("f", at("real/deep/last")).unwrap();
        let mut cases = vec![
            ("/real/deep/f", Ok(true)),
            ("//real//deep/./f", Ok(true)),
            ("/absolute/f", Ok(true)),
            ("/relative/f", Ok(true)),
            ("/above/deep/f", Ok(true)),
            ("/none/f", Ok(false)),
            ("/real/deep/f/g", Ok(false)),
            ("/shared/link/deep/f", Err("symbolic link that others than root control")),
            ("/loop/f", Err("Too many")),
            ("/real/deep/last", Err("Too many")),
            ("/real/..", Err("ends in ..")),
        ];
        // Only root can make a link that belongs to somebody else.
        if rustix::process::geteuid().is_root() {
            symlink("/real", at("other/link")).unwrap();
            std::os::unix::fs::lchown(at("other/link"), Some(4242), None).unwrap();
            symlink("/real", at("real/mine")).unwrap();
            cases.push(("/other/link/deep/f", Err("others than root control")));
            cases.push(("/real/mine/deep/f", Ok(true)));
        }
        for (path, want) in cases {
            match (sys.read(path, 10), want) {
                (Ok(got), Ok(there)) => assert_eq!(got.is_some(), there, "{path}"),
                (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{path}: {error}"),
                (got, want) => panic!("{path}: {got:?}, wanted {want:?}"),
            }
        }
        let new = |path| NewFile { path, content: b"new", mode: 0o600, uid: 0, gid: 0 };
        let refused = sys.replace(&new("/shared/link/deep/f"), |_| Ok(())).unwrap_err();
        assert!(refused.to_string().contains("others than root control"), "{refused}");
        assert!(sys.set_attributes("/shared/link/deep/f", 0o777, 0, 0, None).is_err());
        assert!(sys.set_attributes("/real/deep/last", 0o777, 0, 0, None).is_err());
        assert!(sys.remove("/shared/link/deep/f").is_err());
        assert_eq!(fs::read(at("real/deep/f")).unwrap(), b"x");
        // To look whether something is there follows links, as every program would.
        assert!(sys.exists("/shared/link/deep/f").unwrap() && !sys.exists("/shared/link/none").unwrap());
        // A link itself is removed, not what it leads to.
        sys.remove("/real/deep/last").unwrap();
        assert!(!at("real/deep/last").is_symlink() && at("real/deep/f").exists());
    }
}
