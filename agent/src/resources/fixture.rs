//! A host for tests: a directory, with programs of its own.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::sys::Sys;

/// It is removed with this.
pub(super) struct Fixture {
    pub(super) dir: tempfile::TempDir,
    pub(super) sys: Sys,
}

impl Fixture {
    /// Its own programs come before those of this machine.
    pub(super) fn new() -> Self {
        let host = Self::without_programs();
        // Some of the programs run as another user.
        std::fs::set_permissions(host.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir(host.at("bin")).unwrap();
        let path = format!("{}:/usr/bin:/bin", host.at("bin").display());
        let sys = Sys::rooted(host.dir.path().to_owned(), path);
        Self { sys, ..host }
    }

    pub(super) fn without_programs() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        Self { dir, sys }
    }

    /// Where a path of the host lies.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    pub(super) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(super) fn program(&self, name: &str, script: &str) {
        let path = self.at("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}
