//! Performs the steps that run no recorded process.

use std::time::Duration;

use postern_proto::openpgp::{self, Fingerprint};

use crate::resources::Step;
use crate::sys::{NewFile, Sys};

/// The time a validation may take.
const VALIDATE_LIMIT: Duration = Duration::from_secs(60);

/// Does it. The error is for people.
pub(super) async fn act(sys: Sys, step: Step) -> Result<(), String> {
    let handle = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || match &step {
        Step::Exec(_) | Step::HttpUnix(_) => Err("a process needs a supervisor".to_owned()),
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
        Step::SetAttributes { path, mode, uid, gid, seen } => {
            sys.set_attributes(path, *mode, *uid, *gid, *seen).map_err(|error| error.to_string())
        }
        Step::Remove { path } => sys.remove(path).map_err(|error| error.to_string()),
        Step::MakeDirectory { path, mode, uid, gid } => {
            sys.make_directory(path, *mode, *uid, *gid).map_err(|error| error.to_string())
        }
        Step::RemoveDirectory { path } => sys.remove_directory(path).map_err(|error| error.to_string()),
        Step::Symlink { path, target } => sys.symlink(path, target).map_err(|error| error.to_string()),
        Step::WriteKernel { path, value } => sys.write_kernel(path, value).map_err(|error| error.to_string()),
        Step::InstallKey { from, path, pinned } => install_key(&sys, from, path, pinned),
        Step::Reboot { .. } => Err("a restart is the engine's to do".to_owned()),
    });
    done.await.unwrap_or_else(|error| Err(format!("the step broke off: {error}")))
}

fn install_key(sys: &Sys, from: &str, path: &str, pinned: &[Fingerprint]) -> Result<(), String> {
    let fetched = sys.read(from, openpgp::KEY_LIMIT as u64);
    // Nobody else needs it; one that is refused must not be found by whoever looks there.
    let removed = sys.remove(from);
    let fetched = fetched.map_err(|error| error.to_string())?;
    removed.map_err(|error| error.to_string())?;
    let fetched = fetched.ok_or_else(|| format!("{from} is not there: the key was not fetched"))?;
    let keys = openpgp::read_pinned(&fetched, pinned)
        .map_err(|error| format!("the key that was fetched is refused: {error}; nothing was written"))?;
    let new = NewFile { path, content: &keys.packets, mode: 0o644, uid: 0, gid: 0 };
    sys.replace(&new, |_| Ok(())).map_err(|error| error.to_string()).flatten()
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
    use std::fs;

    /// Another key than the pinned one is refused with both named, nothing is written, and it does not stay.
    #[tokio::test]
    async fn a_key_with_another_fingerprint_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["run", "etc"] {
            fs::create_dir(dir.path().join(path)).unwrap();
        }
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        let pinned: Fingerprint = "0123456789ABCDEF0123456789ABCDEF01234567".parse().unwrap();
        let step = |pinned| Step::InstallKey {
            from: "/run/key".to_owned(),
            path: "/etc/key".to_owned(),
            pinned: vec![pinned],
        };
        let missing = act(sys.clone(), step(pinned)).await.unwrap_err();
        assert!(missing.contains("was not fetched"), "{missing}");
        // A packet of a version 4 key; what is in it does not matter for its fingerprint.
        let packet = [&[0xc6, 10, 4], &[7; 9][..]].concat();
        let own = openpgp::read(&packet).unwrap().fingerprints[0];
        for (bytes, why) in [(&packet[..], own.to_string()), (b"<html>", "not an OpenPGP key".to_owned())] {
            fs::write(dir.path().join("run/key"), bytes).unwrap();
            let refused = act(sys.clone(), step(pinned)).await.unwrap_err();
            assert!(refused.contains(&why) && refused.contains("nothing was written"), "{refused}");
            assert!(!dir.path().join("etc/key").exists() && !dir.path().join("run/key").exists());
        }
        fs::write(dir.path().join("run/key"), &packet).unwrap();
        // Only root can give it to root.
        if rustix::process::geteuid().is_root() {
            act(sys, step(own)).await.unwrap();
            assert_eq!(fs::read(dir.path().join("etc/key")).unwrap(), packet);
            assert!(!dir.path().join("run/key").exists());
        }
    }
}
