//! How the kinds that use apt run it: nothing asks a question (T12), locks are waited for and their holder is
//! named (T11); and where it gets packages from.

pub(super) mod proxies;
pub(super) mod servers;
pub(super) mod sources;

use std::time::Duration;

use super::{Exec, ObserveError, Step};
use crate::sys::Sys;

/// What one transaction may take.
pub(super) const INSTALL_LIMIT: Duration = Duration::from_secs(3600);
/// What fetching the lists may take.
pub(super) const UPDATE_LIMIT: Duration = Duration::from_secs(900);
/// Lists older than this are fetched anew before something is installed.
const LISTS_OLD: Duration = Duration::from_secs(24 * 3600);
/// apt itself waits so long for whoever holds the lock (T11), seconds.
const LOCK_WAIT: &str = "DPkg::Lock::Timeout=900";
/// Where apt keeps its lists.
pub(super) const LISTS: &str = "/var/lib/apt/lists";
/// apt touches it whenever it fetched, whether or not anything was new.
pub(super) const FETCHED: &str = "/var/lib/apt/lists/partial";
/// The lock apt and unattended-upgrades take first.
pub(super) const FRONTEND_LOCK: &str = "/var/lib/dpkg/lock-frontend";
/// What `apt-get update` locks. apt's own timeout does not cover it (T11): it fails at once.
pub(super) const LISTS_LOCK: &str = "/var/lib/apt/lists/lock";
/// What a transaction locks for its downloads; not covered either.
pub(super) const ARCHIVES_LOCK: &str = "/var/cache/apt/archives/lock";
/// T12: nothing asks, whatever happens to configuration files that were edited here.
pub(super) const OPTIONS: [&str; 9] = [
    "-y",
    "-o",
    LOCK_WAIT,
    "-o",
    "Dpkg::Options::=--force-confdef",
    "-o",
    "Dpkg::Options::=--force-confold",
    "-o",
    "Dpkg::Use-Pty=0",
];

/// `apt-get` with what installs or removes.
pub(super) fn transaction(args: &[&str]) -> Step {
    apt(args, &[FRONTEND_LOCK, ARCHIVES_LOCK], INSTALL_LIMIT)
}

/// `apt-get update` of everything.
pub(super) fn update() -> Step {
    apt(&["update"], &[LISTS_LOCK], UPDATE_LIMIT)
}

/// The same where the sources change right after it: apt reads all packages into a cache of its own then, which takes
/// longer than fetching them, and here would do so for nothing (`configure-index` of apt's examples).
pub(super) fn update_before_others() -> Step {
    apt(&["update", "-o", "pkgCacheFile::Generate=false"], &[LISTS_LOCK], UPDATE_LIMIT)
}

/// `apt-get`.
pub(super) fn apt(args: &[&str], locks: &[&str], limit: Duration) -> Step {
    let argv: Vec<&str> = std::iter::once("apt-get").chain(OPTIONS).chain(args.iter().copied()).collect();
    quiet(&argv, locks, limit)
}

/// A program of dpkg's family that asks nothing (T12).
pub(super) fn quiet(argv: &[&str], locks: &[&str], limit: Duration) -> Step {
    let mut exec = Exec::new(argv, limit);
    exec.env = [
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("DEBIAN_PRIORITY", "critical"),
        ("NEEDRESTART_MODE", "a"),
        ("APT_LISTCHANGES_FRONTEND", "none"),
        ("UCF_FORCE_CONFFOLD", "1"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    exec.waits_for = locks.iter().map(|lock| (*lock).to_owned()).collect();
    Step::Exec(exec)
}

/// Whether apt's lists are missing, old, or older than what says where they come from.
pub(super) fn lists_outdated(host: &Sys) -> Result<bool, ObserveError> {
    const SOURCES: &str = "/etc/apt/sources.list.d";
    let names = host.list(LISTS)?;
    if !names.iter().any(|name| name.contains("_Packages") || name.ends_with("_InRelease")) {
        return Ok(true);
    }
    let stamps = ["/var/lib/apt/periodic/update-success-stamp", LISTS, FETCHED];
    let mut fetched = None;
    for path in stamps {
        fetched = fetched.max(host.mtime_ns(path)?);
    }
    let Some(fetched) = fetched else { return Ok(true) };
    if i128::from(crate::sys::now_ns()).saturating_sub(fetched) > LISTS_OLD.as_nanos() as i128 {
        return Ok(true);
    }
    // The directory itself: a source that was taken away counts, too.
    let files = host.list(SOURCES)?.into_iter().map(|name| format!("{SOURCES}/{name}"));
    for path in ["/etc/apt/sources.list".to_owned(), SOURCES.to_owned()].into_iter().chain(files) {
        // Not the time of its content, which for a file out of a package is when that was built.
        if host.ctime_ns(&path)?.is_some_and(|changed| changed > fetched) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_outdated_by_table() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        let at = |path: &str| dir.path().join(path);
        assert!(lists_outdated(&sys).unwrap(), "none");
        std::fs::create_dir_all(at("etc/apt/sources.list.d")).unwrap();
        std::fs::write(at("etc/apt/sources.list.d/a.sources"), "").unwrap();
        std::fs::create_dir_all(at("var/lib/apt/lists/partial")).unwrap();
        assert!(lists_outdated(&sys).unwrap(), "empty");
        std::fs::write(at("var/lib/apt/lists/deb_InRelease"), "").unwrap();
        let fetched = |seconds_ago: u64| {
            let when = std::time::SystemTime::now() - Duration::from_secs(seconds_ago);
            for path in ["var/lib/apt/lists", "var/lib/apt/lists/partial"] {
                std::fs::File::open(at(path)).unwrap().set_modified(when).unwrap();
            }
        };
        fetched(0);
        assert!(!lists_outdated(&sys).unwrap(), "just fetched");
        fetched(60);
        assert!(lists_outdated(&sys).unwrap(), "a source is newer");
        std::fs::remove_dir_all(at("etc/apt")).unwrap();
        assert!(!lists_outdated(&sys).unwrap(), "no source is newer");
        fetched(25 * 3600);
        assert!(lists_outdated(&sys).unwrap(), "old");
    }
}
