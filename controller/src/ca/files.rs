//! Where the authority lies on disk: written whole or not at all, and read back with three different answers.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::CaError;
use crate::seal::{self, OpenTextError, SealKey};

/// The version of this layout. In 1 the keys were in clear; in 2 they are encrypted, apart from what a start
/// that was cut off has not come to yet.
pub(super) const FORMAT: u32 = 2;
/// The files that hold private keys.
const KEYS: [&str; 3] = ["root.key", "servers.key", "agents.key"];
/// No file of an authority is larger, bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Certificate and key of one authority, PEM.
pub(super) struct Part {
    pub(super) certificate: String,
    pub(super) key: Zeroizing<String>,
}

/// All of it.
pub(super) struct Material {
    pub(super) root: Part,
    pub(super) servers: Part,
    pub(super) agents: Part,
}

pub(super) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("ca")
}

fn scratch(state_dir: &Path) -> PathBuf {
    state_dir.join("ca.new")
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CaError + use<> {
    let path = path.to_owned();
    move |source| CaError::Io { action, path, source }
}

/// Writes beside the place and renames, so that a crash leaves all or nothing.
pub(super) fn write(state_dir: &Path, material: &Material, key: &SealKey) -> Result<(), CaError> {
    let (target, scratch) = (directory(state_dir), scratch(state_dir));
    if fs::symlink_metadata(&target).is_ok() {
        return Err(CaError::Corrupt { path: target, why: "it is in the way of a first start".into() });
    }
    remove(&scratch)?;
    fs::DirBuilder::new().mode(0o700).create(&scratch).map_err(io("creating", &scratch))?;
    let sealed = |name: &str, clear: &str| key.seal_text(&place(name), clear);
    let files = [
        ("format", format!("{FORMAT}\n")),
        ("root.crt", material.root.certificate.clone()),
        ("root.key", sealed("root.key", &material.root.key)),
        ("servers.crt", material.servers.certificate.clone()),
        ("servers.key", sealed("servers.key", &material.servers.key)),
        ("agents.crt", material.agents.certificate.clone()),
        ("agents.key", sealed("agents.key", &material.agents.key)),
    ];
    for (name, content) in files {
        write_new(&scratch.join(name), &content)?;
    }
    sync(&scratch)?;
    fs::rename(&scratch, &target).map_err(io("renaming into place", &target))?;
    sync(state_dir)
}

/// What a sealed key is of: it opens in no other's place.
fn place(name: &str) -> String {
    format!("ca/{name}")
}

fn write_new(path: &Path, content: &str) -> Result<(), CaError> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.write_all(content.as_bytes())?;
            file.sync_all()
        })
        .map_err(io("writing", path))
}

/// One file, old or new and never half.
fn replace(dir: &Path, name: &str, content: &str) -> Result<(), CaError> {
    let (path, scratch) = (dir.join(name), dir.join(format!("{name}.new")));
    match fs::remove_file(&scratch) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io("removing", &scratch)(error)),
        _ => {}
    }
    write_new(&scratch, content)?;
    fs::rename(&scratch, &path).map_err(io("renaming into place", &path))?;
    sync(dir)
}

/// True when something lies where an authority would.
pub(super) fn exists(state_dir: &Path) -> Result<bool, CaError> {
    let dir = directory(state_dir);
    match fs::symlink_metadata(&dir) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io("looking for", &dir)(error)),
    }
}

/// True when some private key here is encrypted. An error where one could not be looked at.
pub(super) fn has_sealed(state_dir: &Path) -> Result<bool, CaError> {
    let dir = directory(state_dir);
    for name in KEYS {
        match read_file(&dir, name) {
            Ok(text) if seal::is_sealed_text(&text) => return Ok(true),
            Ok(_) | Err(CaError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Encrypts what is still in clear, file by file: each says itself what it is, so that a start that is cut off
/// here goes on at the next one. An older build finds a format that is too new, not a key that is none.
pub(super) fn encrypt(state_dir: &Path, key: &SealKey) -> Result<bool, CaError> {
    let dir = directory(state_dir);
    let mut changed = false;
    if read_file(&dir, "format")?.trim_end() != FORMAT.to_string() {
        replace(&dir, "format", &format!("{FORMAT}\n"))?;
        changed = true;
    }
    for name in KEYS {
        let text = Zeroizing::new(read_file(&dir, name)?);
        if !seal::is_sealed_text(&text) {
            replace(&dir, name, &key.seal_text(&place(name), &text))?;
            changed = true;
        }
    }
    Ok(changed)
}

fn sync(dir: &Path) -> Result<(), CaError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("syncing", dir))
}

fn remove(dir: &Path) -> Result<(), CaError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io("removing", dir)(error)),
        _ => Ok(()),
    }
}

pub(super) fn discard(state_dir: &Path) -> Result<(), CaError> {
    remove(&directory(state_dir))?;
    remove(&scratch(state_dir))
}

pub(super) fn read(state_dir: &Path, key: &SealKey) -> Result<Material, CaError> {
    let dir = directory(state_dir);
    match fs::symlink_metadata(&dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(CaError::Missing(dir)),
        Err(error) => return Err(io("reading", &dir)(error)),
        Ok(meta) if !meta.is_dir() => {
            return Err(CaError::Corrupt { path: dir, why: "not a directory".into() });
        }
        Ok(_) => {}
    }
    let format = read_file(&dir, "format")?;
    match format.trim_end().parse::<u32>() {
        Ok(1..=FORMAT) => {}
        Ok(found) if found > FORMAT => {
            return Err(CaError::TooNew { path: dir, found, known: FORMAT });
        }
        _ => {
            return Err(CaError::Corrupt { path: dir.join("format"), why: "not a format number".into() });
        }
    }
    let part = |name: &str| {
        Ok::<_, CaError>(Part {
            certificate: read_file(&dir, &format!("{name}.crt"))?,
            key: read_key(&dir, &format!("{name}.key"), key)?,
        })
    };
    Ok(Material { root: part("root")?, servers: part("servers")?, agents: part("agents")? })
}

fn read_key(dir: &Path, name: &str, key: &SealKey) -> Result<Zeroizing<String>, CaError> {
    let text = Zeroizing::new(read_file(dir, name)?);
    if !seal::is_sealed_text(&text) {
        return Ok(text);
    }
    key.open_text(&place(name), &text).map_err(|error| match error {
        OpenTextError::Key(error) => CaError::Key(error),
        OpenTextError::Broken(error) => CaError::Corrupt { path: dir.join(name), why: error.to_string() },
    })
}

fn read_file(dir: &Path, name: &str) -> Result<String, CaError> {
    let path = dir.join(name);
    let corrupt = |why: &str| CaError::Corrupt { path: path.clone(), why: why.to_owned() };
    let meta = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(corrupt("the file is missing")),
        other => other.map_err(io("reading", &path))?,
    };
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(corrupt("not a file of this kind"));
    }
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::InvalidData => Err(corrupt("not text")),
        other => other.map_err(io("reading", &path)),
    }
}
