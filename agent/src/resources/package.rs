//! `package`: Debian packages by apt, several adjacent ones in one transaction.
//!
//! Recommended packages are not installed: a profile names what it wants, and a server that grows by what
//! the distribution recommends is not the one that was declared.

use std::time::Duration;

use postern_proto::spec::{PackageSpec, Presence};
use serde::{Deserialize, Serialize};

use super::{Depth, Exec, ObserveError, Resource, Step, Undo};
use crate::sys::Sys;

/// The most that is read of dpkg's status, bytes; a desktop's has 5 MB.
const STATUS_LIMIT: u64 = 64 << 20;
/// What one transaction may take.
const INSTALL_LIMIT: Duration = Duration::from_secs(3600);
/// What fetching the lists may take.
const UPDATE_LIMIT: Duration = Duration::from_secs(900);
/// What a look into apt's cache may take.
const POLICY_LIMIT: Duration = Duration::from_secs(60);
/// Lists older than this are fetched anew before something is installed.
const LISTS_OLD: Duration = Duration::from_secs(24 * 3600);
/// apt itself waits so long for whoever holds the lock (T11), seconds.
const LOCK_WAIT: &str = "DPkg::Lock::Timeout=900";
/// Where apt keeps its lists.
const LISTS: &str = "/var/lib/apt/lists";
/// The lock apt and unattended-upgrades take first.
const FRONTEND_LOCK: &str = "/var/lib/dpkg/lock-frontend";
/// What `apt-get update` locks. apt's own timeout does not cover it (T11): it fails at once.
const LISTS_LOCK: &str = "/var/lib/apt/lists/lock";
/// What a transaction locks for its downloads; not covered either.
const ARCHIVES_LOCK: &str = "/var/cache/apt/archives/lock";
/// The most providers of a virtual package that are named.
const PROVIDERS: usize = 8;
/// T12: nothing asks, whatever happens to configuration files that were edited here.
const OPTIONS: [&str; 9] = [
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

pub(super) struct Package;

/// What dpkg and apt know of the package.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// The installed version.
    installed: Option<String>,
    /// Whether apt's lists are to be fetched before it is installed.
    fetch_lists: bool,
    /// Whether dpkg was cut off and has to finish first.
    unfinished: bool,
}

/// What apt's lists have for a package.
#[derive(Debug, PartialEq, Eq)]
enum Known {
    Yes,
    No,
    /// It has no version of its own; these packages provide it.
    Virtual(Vec<String>),
}

impl Resource for Package {
    type Spec = PackageSpec;
    type Seen = Seen;

    async fn observe(spec: &PackageSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let status = host.read("/var/lib/dpkg/status", STATUS_LIMIT)?.ok_or_else(|| {
            ObserveError::Obstacle("this host has no dpkg: packages need Debian or a child of it".to_owned())
        })?;
        let status = String::from_utf8_lossy(&status);
        let mut seen =
            Seen { installed: installed(&status, &spec.name), fetch_lists: false, unfinished: false };
        if in_state(spec, &seen) {
            return Ok(seen);
        }
        let present = spec.state == Presence::Present;
        // With a journal left behind apt refuses all work. A package that was unpacked only is not in the way
        // of a removal, and may be the one to be removed because it cannot be configured.
        let names = host.list("/var/lib/dpkg/updates")?;
        seen.unfinished = is_journal(&names) || present && has_unconfigured(&status);
        if present {
            let outdated = depth == Depth::Cheap && lists_outdated(host)?;
            seen.fetch_lists = outdated
                || match known(spec, host).await? {
                    Known::Yes => false,
                    Known::No => true,
                    Known::Virtual(by) => {
                        return Err(ObserveError::Obstacle(virtual_package(&spec.name, &by)));
                    }
                };
        }
        Ok(seen)
    }

    fn plan(spec: &PackageSpec, seen: &Seen) -> Vec<Step> {
        if in_state(spec, seen) {
            return Vec::new();
        }
        let name = match &spec.version {
            Some(version) => format!("{}={version}", spec.name),
            None => spec.name.clone(),
        };
        let mut steps = Vec::new();
        if seen.unfinished {
            steps.push(finish());
        }
        if seen.fetch_lists {
            steps.push(apt(&["update"], &[LISTS_LOCK], UPDATE_LIMIT));
        }
        steps.push(match spec.state {
            // A declared version may be older than the one that is there.
            Presence::Present if spec.version.is_some() => {
                transaction(&["install", "--no-install-recommends", "--allow-downgrades", &name])
            }
            Presence::Present => transaction(&["install", "--no-install-recommends", &name]),
            Presence::Absent => transaction(&["remove", &name]),
        });
        steps
    }

    fn essence(_: &PackageSpec, seen: &Seen) -> serde_json::Value {
        serde_json::json!({ "installed": seen.installed })
    }

    fn undo(_: &PackageSpec, _: &Seen, _: &serde_json::Value, _: &Seen) -> Undo {
        Undo::Cannot("not yet".to_owned())
    }

    fn diff(spec: &PackageSpec, seen: &Seen) -> String {
        let want = match (spec.state, &spec.version) {
            (Presence::Absent, _) => "not installed",
            (Presence::Present, Some(version)) => version,
            (Presence::Present, None) => "installed",
        };
        format!("{}: {} -> {want}\n", spec.name, seen.installed.as_deref().unwrap_or("not installed"))
    }

    fn merge_key(spec: &PackageSpec) -> Option<&'static str> {
        Some(match (spec.state, &spec.version) {
            (Presence::Absent, _) => "remove",
            (Presence::Present, None) => "install",
            (Presence::Present, Some(_)) => "install-version",
        })
    }

    /// dpkg's unfinished work and one `apt-get update` where any needs it, one transaction with every name.
    fn merge(plans: Vec<Vec<Step>>) -> Vec<Step> {
        let mut merged: Vec<Exec> = Vec::new();
        for step in plans.into_iter().flatten() {
            let Step::Exec(exec) = step else { continue };
            let of = stage(&exec);
            match merged.iter_mut().find(|other| stage(other) == of) {
                Some(other) if of == Stage::Transaction => other.argv.extend(exec.argv.last().cloned()),
                Some(_) => {}
                None => merged.push(exec),
            }
        }
        merged.sort_by_key(stage);
        merged.into_iter().map(Step::Exec).collect()
    }
}

/// What a step is for, in the order of doing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Finish,
    Update,
    Transaction,
}

fn stage(exec: &Exec) -> Stage {
    match exec.argv.get(1 + OPTIONS.len()).map(String::as_str) {
        _ if exec.argv.first().is_some_and(|program| program == "dpkg") => Stage::Finish,
        Some("update") => Stage::Update,
        _ => Stage::Transaction,
    }
}

fn transaction(args: &[&str]) -> Step {
    apt(args, &[FRONTEND_LOCK, ARCHIVES_LOCK], INSTALL_LIMIT)
}

fn apt(args: &[&str], locks: &[&str], limit: Duration) -> Step {
    let argv: Vec<&str> = std::iter::once("apt-get").chain(OPTIONS).chain(args.iter().copied()).collect();
    quiet(&argv, locks, limit)
}

/// What dpkg itself asks for after a power cut in its middle.
fn finish() -> Step {
    let argv = ["dpkg", "--force-confdef", "--force-confold", "--configure", "-a"];
    quiet(&argv, &[FRONTEND_LOCK], INSTALL_LIMIT)
}

/// A program of dpkg's family that asks nothing (T12).
fn quiet(argv: &[&str], locks: &[&str], limit: Duration) -> Step {
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

fn in_state(spec: &PackageSpec, seen: &Seen) -> bool {
    match (spec.state, &seen.installed, &spec.version) {
        (Presence::Absent, installed, _) => installed.is_none(),
        (Presence::Present, None, _) => false,
        (Presence::Present, Some(_), None) => true,
        (Presence::Present, Some(installed), Some(version)) => installed == version,
    }
}

/// The version of a package that dpkg has whole on this host.
fn installed(status: &str, name: &str) -> Option<String> {
    let (name, arch) = name.split_once(':').map_or((name, None), |(name, arch)| (name, Some(arch)));
    let mut at = 0;
    let wanted = format!("Package: {name}\n");
    // One search for the name, not a parse of thousands of paragraphs.
    while let Some(found) = status.get(at..)?.find(&wanted) {
        let from = at + found;
        let paragraph = status.get(from..)?.split("\n\n").next().unwrap_or_default();
        at = from + wanted.len();
        let begins = from == 0 || status[..from].ends_with("\n\n");
        let field = |field: &str| {
            paragraph.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": ")).map(str::trim)
        };
        let whole = field("Status").is_some_and(|status| {
            // want, error flag, state: hold is a wish about upgrades, not about being there.
            let mut words = status.split(' ').skip(1);
            (words.next(), words.next()) == (Some("ok"), Some("installed"))
        });
        let fits = arch.is_none_or(|arch| field("Architecture").is_some_and(|a| a == arch || a == "all"));
        if begins && whole && fits {
            return field("Version").map(str::to_owned);
        }
    }
    None
}

/// Whether these names in dpkg's `updates` directory are a journal that was not merged: numbers, as dpkg and
/// apt look for them.
fn is_journal(names: &[String]) -> bool {
    names.iter().any(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether dpkg has packages whose configuration it did not come to.
fn has_unconfigured(status: &str) -> bool {
    let states = status.lines().filter_map(|line| line.strip_prefix("Status: "));
    states.filter_map(|state| state.split(' ').nth(2)).any(|s| matches!(s, "unpacked" | "half-configured"))
}

/// Whether apt's lists are missing, old, or older than what says where they come from.
fn lists_outdated(host: &Sys) -> Result<bool, ObserveError> {
    const SOURCES: &str = "/etc/apt/sources.list.d";
    let names = host.list(LISTS)?;
    if !names.iter().any(|name| name.contains("_Packages") || name.ends_with("_InRelease")) {
        return Ok(true);
    }
    // apt touches the directory whenever it fetched, whether or not anything was new.
    let stamps = ["/var/lib/apt/periodic/update-success-stamp", LISTS, "/var/lib/apt/lists/partial"];
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

/// What apt's lists have for it.
async fn known(spec: &PackageSpec, host: &Sys) -> Result<Known, ObserveError> {
    let said = host.run(&["apt-cache", "policy", "--", &spec.name], &[], POLICY_LIMIT).await?;
    let text = String::from_utf8_lossy(&said.stdout);
    match (candidate(&text), &spec.version) {
        (true, None) => return Ok(Known::Yes),
        (true, Some(version)) if has_version(&text, version) => return Ok(Known::Yes),
        (true, Some(_)) => return Ok(Known::No),
        (false, _) => {}
    }
    let said = host.run(&["apt-cache", "showpkg", "--", &spec.name], &[], POLICY_LIMIT).await?;
    let by = providers(&String::from_utf8_lossy(&said.stdout));
    Ok(if by.is_empty() { Known::No } else { Known::Virtual(by) })
}

/// Whether `apt-cache policy` has something to install.
fn candidate(policy: &str) -> bool {
    let found = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    found.is_some_and(|version| version != "(none)")
}

/// Whether the version table of `apt-cache policy` has exactly this version.
fn has_version(policy: &str, version: &str) -> bool {
    let table = policy.lines().skip_while(|line| line.trim() != "Version table:").skip(1);
    table.into_iter().any(|line| {
        // ` *** 1.2-3 500`, and below each its sources: `500 http://… trixie/main amd64 Packages`.
        let mut words = line.trim().trim_start_matches("*** ").split_whitespace();
        words.next() == Some(version) && words.next().is_some_and(|pin| pin.parse::<i32>().is_ok())
    })
}

/// The packages that `apt-cache showpkg` says provide this one.
fn providers(showpkg: &str) -> Vec<String> {
    let lines = showpkg.lines().skip_while(|line| line.trim() != "Reverse Provides:").skip(1);
    let mut names: Vec<String> =
        lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn virtual_package(name: &str, by: &[String]) -> String {
    let more = if by.len() > PROVIDERS { ", …" } else { "" };
    let by = by.get(..PROVIDERS).unwrap_or(by).join(", ");
    format!("{name} is a virtual package: declare one that provides it: {by}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Package: curl\nStatus: install ok installed\nArchitecture: amd64\n\
                          Version: 7.88.1-10\nDescription: x\n Package: sneaky\n\n\
                          Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                          Package: half\nStatus: install reinstreq half-installed\nVersion: 2\n\n\
                          Package: held\nStatus: hold ok installed\nArchitecture: all\nVersion: 3\n\n\
                          Package: multi\nStatus: install ok installed\nArchitecture: i386\nVersion: 4\n\n\
                          Package: multi\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5\n";

    #[test]
    fn dpkg_status_by_table() {
        let cases = [
            ("curl", Some("7.88.1-10")),
            ("cur", None),
            ("url", None),
            ("sneaky", None),
            ("gone", None),
            ("half", None),
            ("held", Some("3")),
            ("held:arm64", Some("3")),
            ("multi:amd64", Some("5")),
            ("multi:arm64", None),
        ];
        for (name, want) in cases {
            assert_eq!(installed(STATUS, name).as_deref(), want, "{name}");
        }
        assert_eq!(installed("", "curl"), None);
    }

    fn spec(json: serde_json::Value) -> PackageSpec {
        serde_json::from_value(json).unwrap()
    }

    fn seen(installed: Option<&str>, fetch_lists: bool) -> Seen {
        Seen { installed: installed.map(str::to_owned), fetch_lists, unfinished: false }
    }

    #[test]
    fn plans_by_table() {
        let cases = [
            (serde_json::json!({"name": "a1"}), seen(Some("1"), false), vec![]),
            (
                serde_json::json!({"name": "a1"}),
                seen(None, false),
                vec!["apt-get -y install --no-install-recommends a1"],
            ),
            (
                serde_json::json!({"name": "a1", "version": "2"}),
                seen(Some("1"), true),
                vec![
                    "apt-get -y update",
                    "apt-get -y install --no-install-recommends --allow-downgrades a1=2",
                ],
            ),
            (serde_json::json!({"name": "a1", "version": "2"}), seen(Some("2"), false), vec![]),
            (serde_json::json!({"name": "a1", "state": "absent"}), seen(None, false), vec![]),
            (
                serde_json::json!({"name": "a1", "state": "absent"}),
                seen(Some("1"), false),
                vec!["apt-get -y remove a1"],
            ),
        ];
        for (json, seen, want) in cases {
            let steps: Vec<_> = Package::plan(&spec(json.clone()), &seen).iter().map(Step::summary).collect();
            assert_eq!(steps, want, "{json}");
        }
    }

    #[test]
    fn adjacent_packages_are_one_transaction() {
        let plan =
            |name: &str, fetch| Package::plan(&spec(serde_json::json!({"name": name})), &seen(None, fetch));
        let merged = Package::merge(vec![plan("aa", false), plan("bb", true), plan("cc", true)]);
        let lines: Vec<_> = merged.iter().map(Step::summary).collect();
        assert_eq!(lines, ["apt-get -y update", "apt-get -y install --no-install-recommends aa bb cc"]);
    }

    #[test]
    fn dpkg_that_was_cut_off_finishes_first() {
        let states = [
            ("Status: install ok installed\n", false),
            ("Status: install ok unpacked\n", true),
            ("Package: a\nStatus: install ok half-configured\n", true),
            ("Status: install ok triggers-pending\n", false),
            ("Description: Status: install ok unpacked\n", false),
            ("", false),
        ];
        for (status, want) in states {
            assert_eq!(has_unconfigured(status), want, "{status:?}");
        }
        let journals = [(&["0001", "tmp.i"][..], true), (&["tmp.i"], false), (&[], false)];
        for (names, want) in journals {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(is_journal(&names), want, "{names:?}");
        }
        let cut = Seen { unfinished: true, ..seen(None, true) };
        let plan = |name: &str| Package::plan(&spec(serde_json::json!({"name": name})), &cut);
        let whole = Package::plan(&spec(serde_json::json!({"name": "cc"})), &seen(None, false));
        let merged = Package::merge(vec![whole, plan("aa"), plan("bb")]);
        let lines: Vec<_> = merged.iter().map(Step::summary).collect();
        assert_eq!(
            lines,
            [
                "dpkg --force-confdef --force-confold --configure -a",
                "apt-get -y update",
                "apt-get -y install --no-install-recommends cc aa bb",
            ]
        );
        let Step::Exec(finish) = &merged[0] else { panic!() };
        assert!(finish.env.iter().any(|(name, _)| name == "DEBIAN_FRONTEND"), "{finish:?}");
        assert_eq!(finish.waits_for, ["/var/lib/dpkg/lock-frontend"]);
    }

    #[test]
    fn what_apt_cache_says_is_understood() {
        let policy = "x:\n  Installed: 1.2.3\n  Candidate: 1.2.4-1\n  Version table:\n     1.2.4-1 500\n        \
                      500 http://mirror.example/debian 1.2 amd64 Packages\n *** 1.2.3 100\n        \
                      100 /var/lib/dpkg/status\n";
        let versions = [("1.2.4-1", true), ("1.2.3", true), ("1.2", false), ("1.2.4", false), ("500", false)];
        for (version, want) in versions {
            assert_eq!(has_version(policy, version), want, "{version}");
        }
        assert!(candidate(policy));
        assert!(!candidate("mta:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n"));
        assert!(!candidate(""));
        let shown = "Package: mta\nVersions: \n\nReverse Depends: \n  mutt,mta\nDependencies: \nProvides: \n\
                     Reverse Provides: \npostfix 3.5 (= )\nexim4 4.9 (= )\npostfix 3.4 (= )\n";
        assert_eq!(providers(shown), ["exim4", "postfix"]);
        assert!(providers("").is_empty());
        let said = virtual_package("mta", &providers(shown));
        assert_eq!(said, "mta is a virtual package: declare one that provides it: exim4, postfix");
    }

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

    #[test]
    fn trap_12_nothing_can_ask_a_question() {
        let steps = Package::plan(&spec(serde_json::json!({"name": "a1"})), &seen(None, true));
        for step in steps {
            let Step::Exec(exec) = step else { panic!() };
            let has = |name: &str, value: &str| exec.env.contains(&(name.to_owned(), value.to_owned()));
            assert!(has("DEBIAN_FRONTEND", "noninteractive") && has("NEEDRESTART_MODE", "a"), "{exec:?}");
            assert!(exec.argv.iter().any(|arg| arg == "Dpkg::Options::=--force-confold"));
            // T11: it waits for the lock, and the engine names who holds it.
            assert!(exec.argv.iter().any(|arg| arg.starts_with("DPkg::Lock::Timeout=")));
            let want: &[&str] = match stage(&exec) {
                Stage::Update => &["/var/lib/apt/lists/lock"],
                _ => &["/var/lib/dpkg/lock-frontend", "/var/cache/apt/archives/lock"],
            };
            assert_eq!(exec.waits_for, want);
        }
    }
}
