//! Performs the steps that run no recorded process, and keeps what they replace.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::journal::sync_dir;
use crate::resources::Step;
use crate::sys::{FileKind, NewFile, Sys, SysError};

/// The longest file that is kept for an undo, bytes.
const KEEP_LIMIT: u64 = 64 << 20;
/// The time a validation may take.
const VALIDATE_LIMIT: Duration = Duration::from_secs(60);

/// What a step replaced, as it was. Beside it lies the content under the same name with `.data`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// [`Kept::VERSION`].
    pub(super) version: u32,
    /// Which file.
    pub(super) path: String,
    /// What it was; `None` when there was nothing.
    pub(super) was: Option<Was>,
}

/// A file as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Was {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// SHA-256 of the content in `.data`, hex; `None` when it was too long to keep.
    pub(super) sha256: Option<String>,
}

impl Kept {
    pub(super) const VERSION: u32 = 1;
}

fn path_of(step: &Step) -> Option<&str> {
    match step {
        Step::Exec(_) | Step::Reboot { .. } => None,
        Step::MakeDirectory { path, .. }
        | Step::RemoveDirectory { path }
        | Step::Symlink { path, .. }
        | Step::WriteKernel { path, .. } => Some(path),
        Step::WriteFile(file) => Some(&file.path),
        Step::SetAttributes { path, .. } | Step::Remove { path } => Some(path),
    }
}

/// Keeps what the step is about to replace; on the disk when this returns.
pub(super) fn keep(sys: &Sys, dir: &Path, name: &str, step: &Step) -> Result<(), String> {
    let Some(path) = path_of(step) else { return Ok(()) };
    let said = |error: &dyn std::fmt::Display| format!("cannot keep what was at {path}: {error}");
    let (data, file) = (dir.join(format!("{name}.data")), dir.join(format!("{name}.json")));
    for stale in [&data, &file] {
        // Written by an agent that ended before the step had begun: nothing was replaced then.
        match fs::remove_file(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(said(&error)),
            _ => {}
        }
    }
    let meta = sys.meta(path).map_err(|error| said(&error))?;
    let was = match meta {
        Some(meta) if meta.kind == FileKind::File => {
            let content = match sys.read(path, KEEP_LIMIT) {
                Ok(content) => content,
                Err(SysError::TooLarge { .. }) => None,
                Err(error) => return Err(said(&error)),
            };
            let sha256 = match &content {
                Some(content) => {
                    write_private(&data, content).map_err(|error| said(&error))?;
                    Some(postern_proto::ids::PlanHash::of(content).to_string())
                }
                None => None,
            };
            Some(Was { mode: meta.mode, uid: meta.uid, gid: meta.gid, sha256 })
        }
        _ => None,
    };
    let kept = Kept { version: Kept::VERSION, path: path.to_owned(), was };
    let text = serde_json::to_vec(&kept).map_err(|error| said(&error))?;
    write_private(&file, &text).and_then(|()| sync_dir(&file)).map_err(|error| said(&error))
}

fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Removes the oldest of what is kept until it is no more than `limit` bytes.
pub(super) fn prune(dir: &Path, limit: u64) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut files: Vec<(std::time::SystemTime, u64, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            Some((meta.modified().ok()?, meta.len(), entry.path()))
        })
        .collect();
    files.sort();
    let mut total: u64 = files.iter().map(|(_, len, _)| *len).sum();
    for (_, len, path) in files {
        if total <= limit {
            return;
        }
        if fs::remove_file(path).is_ok() {
            total -= len;
        }
    }
}

/// Does it. The error is for people.
pub(super) async fn act(sys: Sys, step: Step) -> Result<(), String> {
    let handle = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || match &step {
        Step::Exec(_) => Err("a process needs a supervisor".to_owned()),
        Step::WriteFile(file) => {
            let new = NewFile {
                path: &file.path,
                content: &file.content,
                mode: file.mode,
                uid: file.uid,
                gid: file.gid,
            };
            let check = |path: &str| match &file.validate {
                None => Ok(()),
                Some(argv) => handle.block_on(validate(&sys, argv, path)),
            };
            sys.replace(&new, check).map_err(|error| error.to_string()).flatten()
        }
        Step::SetAttributes { path, mode, uid, gid } => {
            sys.set_attributes(path, *mode, *uid, *gid).map_err(|error| error.to_string())
        }
        Step::Remove { path } => sys.remove(path).map_err(|error| error.to_string()),
        Step::MakeDirectory { path, mode, uid, gid } => {
            sys.make_directory(path, *mode, *uid, *gid).map_err(|error| error.to_string())
        }
        Step::RemoveDirectory { path } => sys.remove_directory(path).map_err(|error| error.to_string()),
        Step::Symlink { path, target } => sys.symlink(path, target).map_err(|error| error.to_string()),
        Step::WriteKernel { path, value } => sys.write_kernel(path, value).map_err(|error| error.to_string()),
        Step::Reboot { .. } => Err("a restart is the engine's to do".to_owned()),
    });
    done.await.unwrap_or_else(|error| Err(format!("the step broke off: {error}")))
}

async fn validate(sys: &Sys, argv: &[String], path: &str) -> Result<(), String> {
    let real = sys.real(path);
    let argv: Vec<String> = argv.iter().map(|arg| arg.replace("{path}", &real.to_string_lossy())).collect();
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    let said = sys.run(&words, &[], VALIDATE_LIMIT).await.map_err(|error| error.to_string())?;
    if said.ok() {
        return Ok(());
    }
    let how = said.code.map_or("a signal".to_owned(), |code| format!("exit status {code}"));
    Err(format!("{} does not accept the new content ({how}): {}", argv[0], said.last_line()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Killed between the copy and the record of the step, the agent does the same again after its restart.
    #[test]
    fn what_was_kept_by_a_cut_off_attempt_is_kept_again() {
        let dir = tempfile::tempdir().unwrap();
        let (root, backup) = (dir.path().join("root"), dir.path().join("backup"));
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir(&backup).unwrap();
        let sys = Sys::rooted(root.clone(), String::new());
        let step = Step::Remove { path: "/etc/f".to_owned() };
        for content in ["first", "second"] {
            fs::write(root.join("etc/f"), content).unwrap();
            keep(&sys, &backup, "r.2", &step).unwrap();
            assert_eq!(fs::read_to_string(backup.join("r.2.data")).unwrap(), content);
        }
        fs::remove_file(root.join("etc/f")).unwrap();
        keep(&sys, &backup, "r.2", &step).unwrap();
        let kept: Kept = serde_json::from_slice(&fs::read(backup.join("r.2.json")).unwrap()).unwrap();
        assert_eq!((kept.was, backup.join("r.2.data").exists()), (None, false));
    }
}
