//! The recovery kit: what is needed where the agent's link is lost and SSH is shut. It is written before the port is
//! closed, whole or not at all, and never over anything. Where nothing comes of the closing it goes again: whoever has it
//! has all hosts.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::backup::archive;
use crate::cli::error::CliError;
use crate::cli::fresh::Fresh;
use crate::cli::{clean, json as documents};
use crate::client::{Client, HostInfo, Info};
use crate::seal::KEY_FILE_VARIABLE;

/// What is typed on the provider's console, as root.
pub(super) const CONSOLE: &str = "/usr/local/bin/postern-agent ssh-port open";
/// Files of a kit.
const STATE: &str = "state.backup";
const AUTHORITY: &str = "controller-ca.pem";
const HOST: &str = "host.json";
const README: &str = "README.txt";
const FILES: [&str; 4] = [STATE, AUTHORITY, HOST, README];

/// A kit that is on the disk.
#[derive(Debug)]
pub(super) struct Kit {
    pub(super) dir: PathBuf,
    /// Of the backup.
    bytes: u64,
    /// The key of the secrets is in the backup.
    has_key: bool,
    /// What it lies below was not there before, and is nobody's yet.
    made_parent: bool,
}

impl Kit {
    /// Removes what was written, and nothing else: where somebody has put something beside it, the directory is his.
    pub(super) fn remove(&self) -> Result<(), CliError> {
        for file in FILES.map(|name| self.dir.join(name)) {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(failed("removing", &file, &error));
                }
                _ => {}
            }
        }
        match std::fs::remove_dir(&self.dir) {
            Err(error) if error.kind() != ErrorKind::DirectoryNotEmpty => {
                return Err(failed("removing", &self.dir, &error));
            }
            _ => {}
        }
        leave(self.dir.parent().filter(|_| self.made_parent));
        Ok(())
    }

    /// For people.
    pub(super) fn evidence(&self) -> String {
        let key = match self.has_key {
            true => "",
            false => ", without the key of the secrets, which lies elsewhere",
        };
        format!("{}, not encrypted: a backup of {} bytes{key}", self.dir.display(), self.bytes)
    }
}

fn failed(doing: &str, path: &Path, error: &std::io::Error) -> CliError {
    CliError::failed("recovery-kit", format!("{doing} {}: {error}", path.display()))
}

/// Of others, too, where they have put something there since.
fn leave(made: Option<&Path>) {
    if let Some(made) = made {
        let _ = std::fs::remove_dir(made);
    }
}

/// A part of one, which nobody is to take for a kit. Also where the command is interrupted.
struct Unfinished<'a> {
    dir: &'a Path,
    made: Option<&'a Path>,
    keep: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(self.dir);
            leave(self.made);
        }
    }
}

/// Writes one into a directory of its own below `parent`.
pub(super) async fn write(client: &mut Client, host: &HostInfo, parent: &Path) -> Result<Kit, CliError> {
    let info = client.info().await?;
    let made_parent = !parent.exists();
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(|e| failed("making", parent, &e))?;
    let made = made_parent.then_some(parent);
    let now = jiff::Timestamp::now();
    // A host's name has no character that a path could not have.
    let dir = parent.join(format!("{}-{}", host.name, now.strftime("%Y%m%dT%H%M%SZ")));
    DirBuilder::new().mode(0o700).create(&dir).map_err(|error| {
        leave(made);
        failed("making", &dir, &error)
    })?;
    let mut unfinished = Unfinished { dir: &dir, made, keep: false };
    let (bytes, has_key) = fill(client, &info, host, &dir, &now.to_string()).await?;
    let sync = |path: &Path| File::open(path).and_then(|dir| dir.sync_all());
    sync(&dir).and_then(|()| sync(parent)).map_err(|error| failed("syncing", parent, &error))?;
    unfinished.keep = true;
    drop(unfinished);
    Ok(Kit { dir, bytes, has_key, made_parent })
}

/// The size of the backup, and whether the key of the secrets is in it.
async fn fill(
    client: &mut Client,
    info: &Info,
    host: &HostInfo,
    dir: &Path,
    made: &str,
) -> Result<(u64, bool), CliError> {
    let (bytes, has_key) = archive(client, &dir.join(STATE)).await?;
    put(&dir.join(AUTHORITY), info.server_ca_pem.as_bytes())?;
    let identity = json!({
        "schema": "postern/recovery-kit/v1",
        "made": made,
        "host": documents::host(host),
        "controller": {
            "cluster_id": info.cluster_id, "server_name": info.server_name, "advertised": info.advertised,
            "listen": info.listen,
        },
        "console": CONSOLE,
        "backup": {"file": STATE, "bytes": bytes, "has_key": has_key},
    });
    let identity = serde_json::to_vec_pretty(&identity)
        .map_err(|error| CliError::usage("internal", format!("writing JSON: {error}")))?;
    put(&dir.join(HOST), &identity)?;
    put(&dir.join(README), readme(host, made, has_key).as_bytes())?;
    Ok((bytes, has_key))
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let mut file = Fresh::create(path)?;
    file.write(bytes)?;
    file.keep()
}

fn readme(host: &HostInfo, made: &str, has_key: bool) -> String {
    let name = clean::line(&host.name);
    let key = match has_key {
        true => String::new(),
        false => format!(
            "The key of the secrets is NOT in it: the daemon used the file that {KEY_FILE_VARIABLE} names. Keep a copy\n\
             of that file as well, nothing can be restored without it.\n"
        ),
    };
    format!(
        "Recovery kit of {name}, made {made}, before its port of SSH was closed.\n\
         Its id is {id}.\n\
         \n\
         Nothing in here is encrypted. Whoever has {STATE} has all hosts of this controller: keep the kit where only\n\
         you can read it, and not on the controller alone.\n\
         \n\
         SSH again, over the agent's link (the usual way):\n\
         \n\
         \x20   postern ssh-port open {name}\n\
         \n\
         SSH again without the controller: on the provider's console, as root:\n\
         \n\
         \x20   {CONSOLE}\n\
         \n\
         That lasts over a restart. Tell the controller with the command above when it is back, or its next run closes\n\
         the port again. Where even that program does not run, this opens everything until the next start of the host:\n\
         \n\
         \x20   iptables -D INPUT -j POSTERN-INPUT; ip6tables -D INPUT -j POSTERN-INPUT\n\
         \n\
         The controller again, on a new machine (the old one must never run again):\n\
         \n\
         \x20   postern restore {STATE} --accept\n\
         \n\
         {key}\
         It must be reachable at an address that the agents know; {HOST} has them. This backup was made before the port\n\
         was closed: after it, close the port again with `postern ssh-port close`, or the next run opens it.\n\
         \n\
         {AUTHORITY} is the certificate by which agents know this controller. {HOST} says which host this is.\n",
        id = host.id,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_is_removed() {
        let top = tempfile::tempdir().unwrap();
        let kits = top.path().join("kits");
        let kit = |name: &str, made_parent| {
            let dir = kits.join(name);
            std::fs::create_dir_all(&dir).unwrap();
            FILES.iter().for_each(|file| std::fs::write(dir.join(file), "").unwrap());
            Kit { dir, bytes: 0, has_key: true, made_parent }
        };
        let (before, own) = (kit("web1-before", true), kit("web1-own", true));
        own.remove().unwrap();
        assert!(!own.dir.exists() && before.dir.join(STATE).exists());
        // Somebody's own file stays.
        std::fs::write(before.dir.join("notes"), "").unwrap();
        before.remove().unwrap();
        assert!(before.dir.join("notes").exists() && !before.dir.join(STATE).exists());
        std::fs::remove_dir_all(&before.dir).unwrap();
        // What cannot be removed is told.
        let stuck = kit("web1-stuck", false);
        std::fs::remove_file(stuck.dir.join(STATE)).unwrap();
        std::fs::create_dir(stuck.dir.join(STATE)).unwrap();
        let error = stuck.remove().unwrap_err();
        assert!(error.message.contains("web1-stuck/state.backup"), "{}", error.message);
        std::fs::remove_dir_all(&stuck.dir).unwrap();
        kit("web1-last", false).remove().unwrap();
        assert!(kits.exists(), "it was there before");
        kit("web1-last", true).remove().unwrap();
        assert!(!kits.exists());
    }

    #[test]
    fn the_text_has_all_ways_back() {
        let host = crate::cli::apply::tests::host("web1");
        let text = readme(&host, "2026-03-01T12:00:00Z", false);
        for want in [
            "postern-agent ssh-port open",
            "postern ssh-port open web1",
            "postern restore state.backup",
            "NOT in it",
        ] {
            assert!(text.contains(want), "{want}: {text}");
        }
        assert!(text.lines().all(|line| line.len() <= 120), "{text}");
        assert!(!readme(&host, "", true).contains("NOT in it"));
    }
}
