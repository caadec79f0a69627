//! `package`: Debian packages by apt, several adjacent ones in one transaction.
//!
//! Recommended packages are not installed: a profile names what it wants, and a server that grows by what
//! the distribution recommends is not the one that was declared.

use std::time::Duration;

use postern_proto::spec::{PackageSpec, Presence};

use super::{Depth, Exec, ObserveError, Resource, Step};
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
/// Lists younger than this are not fetched again because a package is not in them.
const LISTS_FRESH: Duration = Duration::from_secs(600);
/// apt itself waits so long for whoever holds the lock (T11), seconds.
const LOCK_WAIT: &str = "DPkg::Lock::Timeout=900";
/// The lock apt and unattended-upgrades take first.
const LOCK: &str = "/var/lib/dpkg/lock-frontend";
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
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// The installed version.
    installed: Option<String>,
    /// Whether apt's lists are to be fetched before it is installed.
    fetch_lists: bool,
}

impl Resource for Package {
    type Spec = PackageSpec;
    type Seen = Seen;

    async fn observe(spec: &PackageSpec, host: &Sys, _depth: Depth) -> Result<Seen, ObserveError> {
        let status = host.read("/var/lib/dpkg/status", STATUS_LIMIT)?.ok_or_else(|| {
            ObserveError::Obstacle("this host has no dpkg: packages need Debian or a child of it".to_owned())
        })?;
        let installed = installed(&String::from_utf8_lossy(&status), &spec.name);
        let mut seen = Seen { installed, fetch_lists: false };
        if spec.state == Presence::Present && !in_state(spec, &seen) {
            seen.fetch_lists = match lists_age(host)? {
                None => true,
                Some(age) if age > LISTS_OLD => true,
                Some(age) if age < LISTS_FRESH => false,
                Some(_) => !is_known(spec, host).await?,
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
        if seen.fetch_lists {
            steps.push(apt(&["update"], UPDATE_LIMIT));
        }
        steps.push(match spec.state {
            // A declared version may be older than the one that is there.
            Presence::Present if spec.version.is_some() => {
                apt(&["install", "--no-install-recommends", "--allow-downgrades", &name], INSTALL_LIMIT)
            }
            Presence::Present => apt(&["install", "--no-install-recommends", &name], INSTALL_LIMIT),
            Presence::Absent => apt(&["remove", &name], INSTALL_LIMIT),
        });
        steps
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

    /// One `apt-get update` where any needs it, one transaction with every name.
    fn merge(plans: Vec<Vec<Step>>) -> Vec<Step> {
        let mut merged: Vec<Exec> = Vec::new();
        for step in plans.into_iter().flatten() {
            let Step::Exec(exec) = step else { continue };
            let verb = verb(&exec).map(str::to_owned);
            match merged.iter_mut().find(|other| self::verb(other) == verb.as_deref()) {
                Some(_) if verb.as_deref() == Some("update") => {}
                Some(other) => other.argv.extend(exec.argv.last().cloned()),
                None if verb.as_deref() == Some("update") => merged.insert(0, exec),
                None => merged.push(exec),
            }
        }
        merged.into_iter().map(Step::Exec).collect()
    }
}

fn verb(exec: &Exec) -> Option<&str> {
    exec.argv.get(1 + OPTIONS.len()).map(String::as_str)
}

fn apt(args: &[&str], limit: Duration) -> Step {
    let argv: Vec<&str> = std::iter::once("apt-get").chain(OPTIONS).chain(args.iter().copied()).collect();
    let mut exec = Exec::new(&argv, limit);
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
    exec.waits_for = Some(LOCK.to_owned());
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

/// How old apt's lists are; `None` when there are none.
fn lists_age(host: &Sys) -> Result<Option<Duration>, ObserveError> {
    const LISTS: &str = "/var/lib/apt/lists";
    let names = host.list(LISTS)?;
    if !names.iter().any(|name| name.contains("_Packages") || name.ends_with("_InRelease")) {
        return Ok(None);
    }
    // apt touches the directory whenever it fetched, whether or not anything was new.
    let stamps = ["/var/lib/apt/periodic/update-success-stamp", LISTS, "/var/lib/apt/lists/partial"];
    let mut newest = None;
    for path in stamps {
        newest = newest.max(host.mtime_ns(path)?);
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let age = newest.map(|changed| (now.as_nanos() as i128).saturating_sub(changed).max(0));
    Ok(age.map(|age| Duration::from_nanos(u64::try_from(age).unwrap_or(u64::MAX))))
}

/// Whether apt's lists have something to install for it.
async fn is_known(spec: &PackageSpec, host: &Sys) -> Result<bool, ObserveError> {
    let said = host.run(&["apt-cache", "policy", "--", &spec.name], &[], POLICY_LIMIT).await?;
    let text = String::from_utf8_lossy(&said.stdout);
    let candidate = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(match (candidate, &spec.version) {
        (None | Some("(none)"), _) => false,
        (Some(_), None) => true,
        (Some(_), Some(version)) => text.contains(version.as_str()),
    })
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
        Seen { installed: installed.map(str::to_owned), fetch_lists }
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
    fn trap_12_nothing_can_ask_a_question() {
        let steps = Package::plan(&spec(serde_json::json!({"name": "a1"})), &seen(None, true));
        for step in steps {
            let Step::Exec(exec) = step else { panic!() };
            let has = |name: &str, value: &str| exec.env.contains(&(name.to_owned(), value.to_owned()));
            assert!(has("DEBIAN_FRONTEND", "noninteractive") && has("NEEDRESTART_MODE", "a"), "{exec:?}");
            assert!(exec.argv.iter().any(|arg| arg == "Dpkg::Options::=--force-confold"));
            // T11: it waits for the lock, and the engine names who holds it.
            assert!(exec.argv.iter().any(|arg| arg.starts_with("DPkg::Lock::Timeout=")));
            assert_eq!(exec.waits_for.as_deref(), Some("/var/lib/dpkg/lock-frontend"));
        }
    }
}
