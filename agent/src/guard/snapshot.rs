//! What lies at the paths that a change touches, and the way back to it.

use serde::{Deserialize, Serialize};

use crate::resources::Step;
use crate::sys::{FileKind, NewFile, Sys, SysError};

/// The largest file that is kept, bytes.
const LIMIT: u64 = 16 << 20;

/// All that the way back needs. It is complete by itself: whoever carries it out may be another process, in
/// another boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The format.
    pub(super) version: u32,
    /// What is changed, for people.
    pub(super) what: String,
    /// In the order in which the steps touch them.
    pub(super) paths: Vec<Kept>,
    /// See [`crate::resources::Protect::first`].
    #[serde(default)]
    pub(super) first: Vec<Vec<String>>,
    /// See [`crate::resources::Protect::reload`].
    pub(super) reload: Vec<Vec<String>>,
}

/// One path as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    path: String,
    was: Was,
}

/// What was at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Was {
    Missing,
    File {
        #[serde(with = "crate::resources::base64_bytes")]
        content: Vec<u8>,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    Directory {
        mode: u32,
        uid: u32,
        gid: u32,
    },
    Link {
        target: String,
    },
    /// A value of the kernel's.
    Kernel {
        value: String,
    },
}

/// The path that a step changes; none where it only runs something.
fn touched(step: &Step) -> Option<(&str, bool)> {
    Some(match step {
        Step::WriteFile(file) => (&file.path, false),
        Step::SetAttributes { path, .. }
        | Step::Remove { path }
        | Step::MakeDirectory { path, .. }
        | Step::RemoveDirectory { path }
        | Step::Symlink { path, .. }
        | Step::InstallKey { path, .. } => (path, false),
        Step::WriteKernel { path, .. } => (path, true),
        Step::Exec(_) | Step::HttpUnix(_) | Step::Reboot { .. } => return None,
    })
}

/// Every path that these steps touch, and these besides, as it is now; and what `earlier` leads back to, which was
/// changed before.
pub(super) fn keep(
    sys: &Sys,
    steps: &[Step],
    also: &[String],
    earlier: &[Step],
) -> Result<Vec<Kept>, SysError> {
    let mut kept: Vec<Kept> = Vec::new();
    for step in earlier {
        kept.extend(Kept::led_to(sys, step)?);
    }
    let also = also.iter().map(|path| (path.as_str(), false));
    for (path, kernel) in steps.iter().filter_map(touched).chain(also) {
        if kept.iter().any(|old| old.path == path) {
            continue;
        }
        let was = if kernel { kernel_value(sys, path)? } else { look(sys, path)? };
        kept.push(Kept { path: path.to_owned(), was });
    }
    Ok(kept)
}

fn kernel_value(sys: &Sys, path: &str) -> Result<Was, SysError> {
    let value = sys.read(path, LIMIT)?;
    Ok(value.map_or(Was::Missing, |value| Was::Kernel {
        value: String::from_utf8_lossy(&value).trim_end().to_owned(),
    }))
}

fn look(sys: &Sys, path: &str) -> Result<Was, SysError> {
    let Some(meta) = sys.meta(path)? else { return Ok(Was::Missing) };
    let (mode, uid, gid) = (meta.mode, meta.uid, meta.gid);
    Ok(match meta.kind {
        FileKind::File => match sys.read(path, LIMIT)? {
            Some(content) => Was::File { content, mode, uid, gid },
            None => Was::Missing,
        },
        FileKind::Directory => Was::Directory { mode, uid, gid },
        FileKind::Symlink => Was::Link { target: sys.link_target(path)? },
        // No step leaves anything else in its place, so there is nothing to bring back.
        FileKind::Other => Was::Missing,
    })
}

impl Kept {
    /// What a step would leave at its path; `None` where it touches none, or leaves what others decide.
    fn led_to(sys: &Sys, step: &Step) -> Result<Option<Self>, SysError> {
        let (path, was) = match step {
            // The content is as it was, and so is here now.
            Step::SetAttributes { path, mode, uid, gid, .. } => match look(sys, path)? {
                Was::File { content, .. } => (path, Was::File { content, mode: *mode, uid: *uid, gid: *gid }),
                Was::Directory { .. } => (path, Was::Directory { mode: *mode, uid: *uid, gid: *gid }),
                _ => return Ok(None),
            },
            Step::WriteFile(file) => {
                let (content, mode, uid, gid) = (file.content.clone(), file.mode, file.uid, file.gid);
                (&file.path, Was::File { content, mode, uid, gid })
            }
            Step::Remove { path } => (path, Was::Missing),
            Step::Symlink { path, target } => (path, Was::Link { target: target.clone() }),
            _ => return Ok(None),
        };
        Ok(Some(Self { path: path.clone(), was }))
    }

    /// Which.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Puts back what was there. Safe to repeat; what is as it was is not touched.
    pub(super) fn put_back(&self, sys: &Sys) -> Result<(), SysError> {
        let path = self.path.as_str();
        let is = match &self.was {
            Was::Kernel { .. } => kernel_value(sys, path),
            _ => look(sys, path),
        };
        if is.is_ok_and(|is| is == self.was) {
            return Ok(());
        }
        let there = sys.meta(path)?;
        let is_directory = there.as_ref().is_some_and(|meta| meta.kind == FileKind::Directory);
        match &self.was {
            // Others may have put something into it since; then it stays, and harms nobody.
            Was::Missing if is_directory && !sys.entries(path, 1)?.is_empty() => Ok(()),
            Was::Missing if is_directory => sys.remove_directory(path),
            Was::Missing => sys.remove(path),
            Was::File { content, mode, uid, gid } => {
                if is_directory {
                    sys.remove_directory(path)?;
                }
                let new = NewFile { path, content, mode: *mode, uid: *uid, gid: *gid };
                // Nothing is checked: it is what was in force before.
                sys.replace(&new, |_| Ok(())).map(|_| ())
            }
            Was::Directory { mode, uid, gid } => {
                if there.is_some() && !is_directory {
                    sys.remove(path)?;
                }
                sys.make_directory(path, *mode, *uid, *gid)
            }
            Was::Link { target } => {
                if is_directory {
                    sys.remove_directory(path)?;
                }
                sys.symlink(path, target)
            }
            Was::Kernel { value } => sys.write_kernel(path, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::WriteFile;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    /// Whatever the steps do to a path, it comes back; also when the way back is gone twice.
    #[test]
    fn every_step_that_changes_a_path_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        let at = |path: &str| dir.path().join(path.trim_start_matches('/'));
        let meta = fs::metadata(dir.path()).unwrap();
        let (uid, gid) = (meta.uid(), meta.gid());
        fs::write(at("/file"), "old").unwrap();
        fs::set_permissions(at("/file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(at("/removed"), "precious").unwrap();
        fs::write(at("/value"), "1\n").unwrap();
        fs::create_dir(at("/dir")).unwrap();
        std::os::unix::fs::symlink("file", at("/link")).unwrap();
        let write = |path: &str| {
            let (path, content) = (path.to_owned(), b"new".to_vec());
            Step::WriteFile(WriteFile { path, content, mode: 0o600, uid, gid, validate: None })
        };
        let steps = [
            write("/file"),
            write("/fresh"),
            // Twice: it is the first look that counts.
            write("/file"),
            Step::Remove { path: "/removed".into() },
            Step::MakeDirectory { path: "/newdir".into(), mode: 0o700, uid, gid },
            Step::RemoveDirectory { path: "/dir".into() },
            Step::Symlink { path: "/link".into(), target: "elsewhere".into() },
            Step::WriteKernel { path: "/value".into(), value: "0".into() },
        ];
        // What was changed before comes back to what it was before that.
        fs::write(at("/earlier"), "changed before").unwrap();
        fs::write(at("/made-earlier"), "made before").unwrap();
        let (path, content) = ("/earlier".to_owned(), b"first".to_vec());
        fs::write(at("/opened"), "secret").unwrap();
        fs::set_permissions(at("/opened"), fs::Permissions::from_mode(0o644)).unwrap();
        let earlier = [
            Step::SetAttributes { path: "/opened".into(), mode: 0o600, uid, gid, seen: None },
            Step::WriteFile(WriteFile { path, content, mode: 0o600, uid, gid, validate: None }),
            Step::Remove { path: "/made-earlier".into() },
        ];
        let also = ["/also".to_owned(), "/earlier".to_owned()];
        let kept = keep(&sys, &steps, &also, &earlier).unwrap();
        assert_eq!(kept.len(), 11);
        fs::write(at("/also"), "new").unwrap();
        let text = serde_json::to_string(&kept).unwrap();
        let kept: Vec<Kept> = serde_json::from_str(&text).unwrap();
        fs::write(at("/file"), "new").unwrap();
        fs::set_permissions(at("/file"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(at("/fresh"), "new").unwrap();
        fs::remove_file(at("/removed")).unwrap();
        fs::create_dir(at("/newdir")).unwrap();
        fs::remove_dir(at("/dir")).unwrap();
        fs::remove_file(at("/link")).unwrap();
        std::os::unix::fs::symlink("elsewhere", at("/link")).unwrap();
        fs::write(at("/value"), "0\n").unwrap();
        for _ in 0..2 {
            for kept in &kept {
                kept.put_back(&sys).unwrap();
            }
            assert_eq!(fs::read(at("/file")).unwrap(), b"old");
            assert_eq!(fs::metadata(at("/file")).unwrap().permissions().mode() & 0o7777, 0o640);
            assert_eq!(fs::read(at("/removed")).unwrap(), b"precious");
            assert!(
                !at("/also").exists()
                    && !at("/fresh").exists()
                    && !at("/made-earlier").exists()
                    && !at("/newdir").exists()
                    && at("/dir").is_dir()
            );
            assert_eq!(fs::read(at("/earlier")).unwrap(), b"first");
            assert_eq!(fs::metadata(at("/opened")).unwrap().permissions().mode() & 0o7777, 0o600);
            assert_eq!(fs::read_link(at("/link")).unwrap().to_str(), Some("file"));
            assert_eq!(fs::read(at("/value")).unwrap(), b"1\n");
        }
    }
}
