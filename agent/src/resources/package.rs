//! `package`: Debian packages by apt, several adjacent ones in one transaction.
//!
//! Recommended packages are not installed: a profile names what it wants, and a server that grows by what
//! the distribution recommends is not the one that was declared.

mod back;

use std::time::Duration;

use postern_proto::spec::{PackageSpec, Presence};
use serde::{Deserialize, Serialize};

use super::apt::{FRONTEND_LOCK, INSTALL_LIMIT, OPTIONS, lists_outdated, quiet, transaction, update};
use super::{Depth, Exec, ObserveError, Resource, Step, Undo};
use crate::sys::{Dpkg, Sys};
use back::{Snapshot, Trace, mark, snapshot};

/// What a look into apt's cache may take.
const POLICY_LIMIT: Duration = Duration::from_secs(60);
/// Where dpkg keeps what it has not taken over into its status yet, one package a file.
const UPDATES: &str = "/var/lib/dpkg/updates";
/// The most that is read of one of these files, bytes.
const UPDATE_BYTES: u64 = 1 << 20;
/// The most providers of a virtual package that are named.
const PROVIDERS: usize = 8;

pub(super) struct Package;

/// What dpkg and apt know of the package.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// The installed version.
    installed: Option<String>,
    /// Whether it is held at that version.
    held: bool,
    /// Whether apt's lists are to be fetched before it is installed.
    fetch_lists: bool,
    /// Whether dpkg was cut off and has to finish first.
    unfinished: bool,
    /// Packages at which it was cut off while it unpacked them.
    #[serde(default)]
    half: Vec<String>,
    /// All packages of the host: before a change and after it, for the way back.
    all: Option<Snapshot>,
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
        let dpkg = host.dpkg()?.ok_or_else(|| {
            ObserveError::Obstacle("this host has no dpkg: packages need Debian or a child of it".to_owned())
        })?;
        let own = dpkg.installed(&spec.name);
        let mut seen = Seen {
            installed: own.map(|own| own.version.to_string()),
            held: own.is_some_and(|own| own.hold),
            ..Seen::default()
        };
        let reached = in_state(spec, &seen);
        if depth != Depth::Cheap || !reached {
            seen.all = Some(snapshot(host)?);
        }
        if reached {
            return Ok(seen);
        }
        let present = spec.state == Presence::Present;
        // With a journal left behind apt refuses all work. A package that was unpacked only is not in the way
        // of a removal, and may be the one to be removed because it cannot be configured.
        let journal = journal(host.list(UPDATES)?);
        seen.unfinished = !journal.is_empty() || present && dpkg.has_unconfigured();
        if present {
            seen.half = half_unpacked(host, &dpkg, &journal)?;
        }
        if present && !is_there(spec, &seen) {
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
            steps.push(update());
        }
        if !seen.half.is_empty() {
            steps.push(again(&seen.half));
        }
        let mut args = vec!["install", "--no-install-recommends"];
        match spec.state {
            Presence::Absent => steps.push(transaction(&["remove", &name])),
            Presence::Present if is_there(spec, seen) => {}
            Presence::Present => {
                // A declared version may be older than the one that is there.
                if spec.version.is_some() {
                    args.push("--allow-downgrades");
                }
                // Only what the profile holds itself: a hold of somebody else's stops apt.
                if spec.version.is_some() && spec.hold.is_some() {
                    args.push("--allow-change-held-packages");
                }
                args.push(&name);
                steps.push(transaction(&args));
            }
        }
        match spec.hold {
            Some(hold) if hold != seen.held => {
                steps.push(mark(if hold { "hold" } else { "unhold" }, &[&spec.name]));
            }
            _ => {}
        }
        steps
    }

    fn essence(spec: &PackageSpec, seen: &Seen) -> serde_json::Value {
        serde_json::json!({ "installed": seen.installed, "held": spec.hold.map(|_| seen.held) })
    }

    fn trace(_: &PackageSpec, before: &Seen, after: &Seen) -> serde_json::Value {
        match (&before.all, &after.all) {
            (Some(before), Some(after)) => {
                serde_json::to_value(back::trace(before, after)).unwrap_or_default()
            }
            _ => serde_json::Value::Null,
        }
    }

    /// Packages that were brought about together have the same trace: undone with the first of them, the
    /// others are found as they were before.
    fn undo(_: &PackageSpec, _: &Seen, trace: &serde_json::Value, now: &Seen) -> Undo {
        match Trace::deserialize(trace) {
            Ok(trace) => trace.undo(now.all.as_ref()),
            Err(_) => Undo::Cannot("what the run did to this host's packages is not known".to_owned()),
        }
    }

    fn spared(_: &PackageSpec, trace: &serde_json::Value, now: &Seen) -> Option<String> {
        Trace::deserialize(trace).ok()?.spared(now.all.as_ref())
    }

    fn diff(spec: &PackageSpec, seen: &Seen) -> String {
        let want = match (spec.state, &spec.version) {
            (Presence::Absent, _) => "not installed",
            (Presence::Present, Some(version)) => version,
            (Presence::Present, None) => "installed",
        };
        let is = seen.installed.as_deref().unwrap_or("not installed");
        let mut text = String::new();
        if !is_there(spec, seen) {
            text += &format!("{}: {is} -> {want}\n", spec.name);
        }
        match spec.hold {
            Some(true) if !seen.held => text += &format!("{}: is held at its version\n", spec.name),
            Some(false) if seen.held => text += &format!("{}: is held no longer\n", spec.name),
            _ => {}
        }
        text
    }

    fn merge_key(spec: &PackageSpec) -> Option<&'static str> {
        Some(match (spec.state, &spec.version) {
            (Presence::Absent, _) => "remove",
            (Presence::Present, None) => "install",
            (Presence::Present, Some(_)) if spec.hold.is_some() => "install-version-held",
            (Presence::Present, Some(_)) => "install-version",
        })
    }

    /// dpkg's unfinished work, one `apt-get update` where any needs it, what is half unpacked, one transaction with
    /// every name, and the holds.
    fn merge(plans: Vec<Vec<Step>>) -> Vec<Step> {
        let mut merged: Vec<Exec> = Vec::new();
        for step in plans.into_iter().flatten() {
            let Step::Exec(exec) = step else { continue };
            let of = stage(&exec);
            match merged.iter_mut().find(|other| stage(other) == of) {
                Some(other) if of >= Stage::Transaction => other.argv.extend(exec.argv.last().cloned()),
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
    Again,
    Transaction,
    Hold,
    Unhold,
}

fn stage(exec: &Exec) -> Stage {
    let word = |at: usize| exec.argv.get(at).map(String::as_str);
    match (word(0), word(1), word(1 + OPTIONS.len())) {
        (Some("dpkg"), ..) => Stage::Finish,
        (Some("apt-mark"), Some("hold"), _) => Stage::Hold,
        (Some("apt-mark"), ..) => Stage::Unhold,
        (.., Some("update")) => Stage::Update,
        _ if word(2 + OPTIONS.len()) == Some(REINSTALL) => Stage::Again,
        _ => Stage::Transaction,
    }
}

/// What dpkg itself asks for after a power cut in its middle.
fn finish() -> Step {
    let argv = ["dpkg", "--force-confdef", "--force-confold", "--configure", "-a"];
    quiet(&argv, &[FRONTEND_LOCK], INSTALL_LIMIT)
}

/// The option without which apt takes a package that is half unpacked for installed, does nothing and ends well.
const REINSTALL: &str = "--reinstall";

/// Unpacks again what dpkg was cut off at. All of it: the one that was declared may need the others.
fn again(half: &[String]) -> Step {
    let args = ["install", REINSTALL, "--no-install-recommends"];
    transaction(&args.into_iter().chain(half.iter().map(String::as_str)).collect::<Vec<_>>())
}

fn in_state(spec: &PackageSpec, seen: &Seen) -> bool {
    is_there(spec, seen) && spec.hold.is_none_or(|hold| hold == seen.held)
}

/// Whether it is installed as declared, or not there as declared.
fn is_there(spec: &PackageSpec, seen: &Seen) -> bool {
    match (spec.state, &seen.installed, &spec.version) {
        (Presence::Absent, installed, _) => installed.is_none(),
        (Presence::Present, None, _) => false,
        (Presence::Present, Some(_), None) => true,
        (Presence::Present, Some(installed), Some(version)) => installed == version,
    }
}

/// Of these names in dpkg's `updates` directory those of a journal that was not merged, oldest first: numbers, as dpkg
/// and apt look for them.
fn journal(mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    names.sort_unstable();
    names
}

/// What dpkg was cut off at while it unpacked it. The last of it stands in the journal alone.
fn half_unpacked(host: &Sys, dpkg: &Dpkg, journal: &[String]) -> Result<Vec<String>, ObserveError> {
    let mut later = Vec::with_capacity(journal.len());
    for name in journal {
        let text = host.read(&format!("{UPDATES}/{name}"), UPDATE_BYTES)?.unwrap_or_default();
        later.push(Dpkg::parse(&String::from_utf8_lossy(&text)));
    }
    Ok(dpkg.half_installed(&later))
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

    fn spec(json: serde_json::Value) -> PackageSpec {
        serde_json::from_value(json).unwrap()
    }

    fn seen(installed: Option<&str>, fetch_lists: bool) -> Seen {
        Seen { installed: installed.map(str::to_owned), fetch_lists, ..Seen::default() }
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
            (
                serde_json::json!({"name": "a1", "hold": true}),
                seen(None, false),
                vec!["apt-get -y install --no-install-recommends a1", "apt-mark hold a1"],
            ),
            (
                serde_json::json!({"name": "a1", "hold": false, "version": "2"}),
                Seen { held: true, ..seen(Some("1"), false) },
                vec![
                    "apt-get -y install --no-install-recommends --allow-downgrades \
                     --allow-change-held-packages a1=2",
                    "apt-mark unhold a1",
                ],
            ),
            (
                serde_json::json!({"name": "a1", "hold": true}),
                seen(Some("1"), false),
                vec!["apt-mark hold a1"],
            ),
            (serde_json::json!({"name": "a1"}), Seen { held: true, ..seen(Some("1"), false) }, vec![]),
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
        let held = |name: &str, installed: Option<&str>| {
            let spec = spec(serde_json::json!({"name": name, "hold": true}));
            Package::plan(&spec, &seen(installed, false))
        };
        let merged = Package::merge(vec![held("aa", Some("1")), held("bb", None), plan("cc", false)]);
        let lines: Vec<_> = merged.iter().map(Step::summary).collect();
        assert_eq!(lines, ["apt-get -y install --no-install-recommends bb cc", "apt-mark hold aa bb"]);
    }

    #[test]
    fn dpkg_that_was_cut_off_finishes_first() {
        let journals: [(&[&str], &[&str]); 3] =
            [(&["0002", "tmp.i", "0001"], &["0001", "0002"]), (&["tmp.i"], &[]), (&[], &[])];
        for (names, want) in journals {
            assert_eq!(journal(names.iter().map(|name| (*name).to_owned()).collect()), want, "{names:?}");
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
        let half = Seen { half: vec!["dd:amd64".to_owned(), "ee".to_owned()], ..seen(None, true) };
        let plan = |name: &str| Package::plan(&spec(serde_json::json!({"name": name})), &half);
        let lines: Vec<_> = Package::merge(vec![plan("aa"), plan("ee")]).iter().map(Step::summary).collect();
        assert_eq!(
            lines,
            [
                "apt-get -y update",
                "apt-get -y install --reinstall --no-install-recommends dd:amd64 ee",
                "apt-get -y install --no-install-recommends aa ee",
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
