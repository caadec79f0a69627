//! The way back from a transaction: what it added, removed and changed, from the packages before and after.
//!
//! A transaction is known by all that is installed before it and after it, not by what it said: dependencies,
//! conflicts and marks are in there, too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::apt::{FRONTEND_LOCK, INSTALL_LIMIT, quiet, transaction};
use super::super::{Exec, ObserveError, Step, Undo};
use crate::sys::{DpkgState, Sys};

/// What apt knows beyond dpkg: what was installed for others only.
const EXTENDED: &str = "/var/lib/apt/extended_states";
/// The most that is read of it, bytes.
const EXTENDED_LIMIT: u64 = 16 << 20;
/// The time apt takes for marks.
const MARK_LIMIT: std::time::Duration = std::time::Duration::from_secs(120);

/// All packages of a host, `NAME` or `NAME:ARCH`.
pub(super) type Snapshot = BTreeMap<String, Have>;

/// One package of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Have {
    /// The installed version; none where only configuration files are left.
    #[serde(default, rename = "v", skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// It was installed because others need it.
    #[serde(default, rename = "a", skip_serializing_if = "is_false")]
    auto: bool,
    #[serde(default, rename = "h", skip_serializing_if = "is_false")]
    hold: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// What is there now.
pub(super) fn snapshot(host: &Sys) -> Result<Snapshot, ObserveError> {
    let Some(dpkg) = host.dpkg()? else { return Ok(Snapshot::new()) };
    let extended = host.read(EXTENDED, EXTENDED_LIMIT)?.unwrap_or_default();
    let extended = String::from_utf8_lossy(&extended);
    let auto = automatic(&extended);
    let mut all = Snapshot::new();
    for (name, package) in dpkg.all() {
        let installed = match package.state {
            DpkgState::Whole | DpkgState::Triggers | DpkgState::Unconfigured => true,
            DpkgState::ConfigFiles => false,
            DpkgState::HalfInstalled | DpkgState::Other => continue,
        };
        let every = &*package.arch == "all";
        // apt writes its own architecture for a package that is of every one.
        let auto = installed
            && auto.get(name).is_some_and(|of| every || of.iter().any(|arch| **arch == *package.arch));
        let id = if every { name.to_owned() } else { format!("{name}:{}", package.arch) };
        let version = installed.then(|| package.version.to_string());
        all.insert(id, Have { version, auto, hold: installed && package.hold });
    }
    Ok(all)
}

/// What apt marked as installed for others, with its architectures.
fn automatic(extended: &str) -> BTreeMap<&str, Vec<&str>> {
    let paragraphs = extended.split("\n\n");
    let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for paragraph in paragraphs {
        let field = |name: &str| {
            paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
        };
        if let (Some("1"), Some(name)) = (field("Auto-Installed"), field("Package")) {
            all.entry(name).or_default().push(field("Architecture").unwrap_or_default());
        }
    }
    all
}

/// What a transaction did.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trace {
    /// Not known before.
    #[serde(default)]
    added: Vec<String>,
    /// Added where configuration files had been left.
    #[serde(default)]
    added_again: Vec<String>,
    /// Those of both that were installed because others need them.
    #[serde(default)]
    pulled: Vec<String>,
    /// Installed before and not after, with the version that was there.
    #[serde(default)]
    removed: BTreeMap<String, String>,
    /// Another version after than before: the one before, and the one after.
    #[serde(default)]
    changed: BTreeMap<String, (String, String)>,
    /// Marks as they were before, of what was there before and whose marks are to be set again: the word of
    /// `apt-mark`, and the packages.
    #[serde(default)]
    marks: BTreeMap<String, Vec<String>>,
}

/// A package's name without its architecture.
fn bare(id: &str) -> &str {
    id.split(':').next().unwrap_or(id)
}

pub(super) fn trace(before: &Snapshot, after: &Snapshot) -> Trace {
    let mut trace = Trace::default();
    let version = |all: &Snapshot, id: &str| all.get(id).and_then(|have| have.version.clone());
    for (id, have) in before {
        let Some(was) = &have.version else { continue };
        let now = after.get(id).filter(|now| now.version.is_some());
        match now.and_then(|now| now.version.as_ref()) {
            Some(is) if is == was => {}
            Some(is) => drop(trace.changed.insert(id.clone(), (was.clone(), is.clone()))),
            None => drop(trace.removed.insert(id.clone(), was.clone())),
        }
        // apt takes what is installed by name for wanted, and a new version of something held as free.
        let touched = now.is_none_or(|now| now.version.as_deref() != Some(was));
        let mut mark = |word: &str| trace.marks.entry(word.to_owned()).or_default().push(id.clone());
        match (have.auto, now.is_some_and(|now| now.auto)) {
            (true, _) if touched => mark("auto"),
            (true, false) => mark("auto"),
            (false, true) => mark("manual"),
            _ => {}
        }
        match (have.hold, now.is_some_and(|now| now.hold)) {
            (true, _) if touched => mark("hold"),
            (true, false) => mark("hold"),
            (false, true) => mark("unhold"),
            _ => {}
        }
    }
    for (id, have) in after {
        if have.version.is_none() || version(before, id).is_some() {
            continue;
        }
        // From one architecture to all, or back: the same package.
        if let Some((old, _)) = trace.removed.iter().find(|(old, _)| bare(old) == bare(id)) {
            let old = old.clone();
            let was = trace.removed.remove(&old).unwrap_or_default();
            trace.changed.insert(old, (was, have.version.clone().unwrap_or_default()));
            continue;
        }
        if have.auto {
            trace.pulled.push(id.clone());
        }
        if before.contains_key(id) {
            trace.added_again.push(id.clone());
        } else {
            trace.added.push(id.clone());
        }
    }
    trace
}

impl Trace {
    /// The way back. `now` is what is there, where that is known.
    pub(super) fn undo(&self, now: Option<&Snapshot>) -> Undo {
        if let Some(now) = now {
            for (id, (_, left)) in &self.changed {
                let is = now.get(id).and_then(|have| have.version.as_deref());
                if is.is_some_and(|is| is != left) {
                    let is = is.unwrap_or_default();
                    return Undo::Cannot(format!(
                        "{id} is {is} now; the run left it at {left}, and something has changed it since"
                    ));
                }
            }
        }
        let wanted = self.wanted(now);
        let goes =
            |id: &&String| now.is_none_or(|now| now.contains_key(*id)) && !wanted.contains(&id.as_str());
        let again: Vec<&str> = self.added_again.iter().filter(goes).map(String::as_str).collect();
        let added: Vec<&str> = self.added.iter().filter(goes).map(String::as_str).collect();
        let back: Vec<String> = self
            .removed
            .iter()
            .chain(self.changed.iter().map(|(id, (was, _))| (id, was)))
            .map(|(id, version)| format!("{id}={version}"))
            .collect();
        let mut steps = Vec::new();
        // What may fail comes first, while nothing is done yet: a version that is no longer to be had, and a
        // package that came later and needs one of these.
        if !back.is_empty() {
            steps.push(install(&["--download-only"], &back));
        }
        let all: Vec<&str> = added.iter().chain(&again).copied().collect();
        if !all.is_empty() {
            steps.push(dpkg(&["--no-act", "--remove"], &all));
        }
        if !again.is_empty() {
            steps.push(dpkg(&["--remove"], &all));
        }
        if !added.is_empty() {
            steps.push(dpkg(&["--purge"], &added));
        }
        if !back.is_empty() {
            steps.push(install(&[], &back));
        }
        for (word, of) in &self.marks {
            steps.push(mark(word, &of.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        if let (true, Some(spared)) = (steps.is_empty(), self.spared(now)) {
            return Undo::Cannot(format!("left alone: {spared}"));
        }
        if steps.is_empty() {
            return Undo::Cannot("what the run did to this host's packages is not known".to_owned());
        }
        Undo::Steps(steps)
    }
}

impl Trace {
    /// What the run had pulled in for others, and somebody has said since that he wants for itself
    /// (`apt-mark manual`, `apt install`).
    fn wanted(&self, now: Option<&Snapshot>) -> Vec<&str> {
        let Some(now) = now else { return Vec::new() };
        let marked = |id: &&String| now.get(*id).is_some_and(|have| have.version.is_some() && !have.auto);
        self.pulled.iter().filter(marked).map(String::as_str).collect()
    }

    /// What its way back leaves as it is, for people.
    pub(super) fn spared(&self, now: Option<&Snapshot>) -> Option<String> {
        let wanted = self.wanted(now);
        (!wanted.is_empty()).then(|| {
            format!("{}: pulled in by the run, and marked as wanted for itself since", wanted.join(", "))
        })
    }
}

fn install(more: &[&str], packages: &[String]) -> Step {
    let mut args =
        vec!["install", "--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages"];
    args.extend(more);
    args.extend(packages.iter().map(String::as_str));
    transaction(&args)
}

/// By dpkg and not by apt: it takes exactly these and refuses when something else needs one of them, where apt
/// would remove that as well.
fn dpkg(args: &[&str], packages: &[&str]) -> Step {
    let hold = ["--force-hold"];
    let argv: Vec<&str> = ["dpkg"].iter().chain(&hold).chain(args).chain(packages).copied().collect();
    quiet(&argv, &[FRONTEND_LOCK], INSTALL_LIMIT)
}

/// `apt-mark`, which says `auto`, `manual`, `hold` or `unhold`.
pub(super) fn mark(word: &str, packages: &[&str]) -> Step {
    let argv: Vec<&str> = ["apt-mark", word].iter().chain(packages).copied().collect();
    let mut exec = Exec::new(&argv, MARK_LIMIT);
    exec.waits_for = vec![FRONTEND_LOCK.to_owned()];
    Step::Exec(exec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(packages: &[(&str, Option<&str>, &str)]) -> Snapshot {
        let have = |version: Option<&str>, marks: &str| Have {
            version: version.map(str::to_owned),
            auto: marks.contains('a'),
            hold: marks.contains('h'),
        };
        packages.iter().map(|(id, version, marks)| ((*id).to_owned(), have(*version, marks))).collect()
    }

    fn lines(undo: &Undo) -> Vec<String> {
        match undo {
            Undo::Steps(steps) => steps.iter().map(Step::summary).collect(),
            Undo::Cannot(why) => vec![why.clone()],
        }
    }

    const INSTALL: &str =
        "apt-get -y install --no-install-recommends --allow-downgrades --allow-change-held-packages";

    #[test]
    fn the_way_back_by_table() {
        let empty = all(&[]);
        let lib = all(&[("lib:amd64", Some("1"), "a")]);
        let conf = all(&[("old:amd64", None, "")]);
        type Case<'a> = (&'a str, Snapshot, Snapshot, Vec<String>);
        let cases: Vec<Case<'_>> = vec![
            (
                "added with what it needs",
                lib.clone(),
                all(&[("lib:amd64", Some("1"), "a"), ("app", Some("3"), ""), ("dep:amd64", Some("2"), "a")]),
                vec![
                    "dpkg --force-hold --no-act --remove app dep:amd64".into(),
                    "dpkg --force-hold --purge app dep:amd64".into(),
                ],
            ),
            (
                "configuration files were left",
                conf,
                all(&[("old:amd64", Some("1"), ""), ("new", Some("1"), "")]),
                vec![
                    "dpkg --force-hold --no-act --remove new old:amd64".into(),
                    "dpkg --force-hold --remove new old:amd64".into(),
                    "dpkg --force-hold --purge new".into(),
                ],
            ),
            (
                "removed, and it was there for others",
                lib.clone(),
                all(&[("lib:amd64", None, "")]),
                vec![
                    format!("{INSTALL} --download-only lib:amd64=1"),
                    format!("{INSTALL} lib:amd64=1"),
                    "apt-mark auto lib:amd64".into(),
                ],
            ),
            (
                "another version, and one that it drove out",
                all(&[("app", Some("1"), "h"), ("rival", Some("5"), "")]),
                all(&[("app", Some("2"), "h"), ("dep", Some("1"), "a")]),
                vec![
                    format!("{INSTALL} --download-only rival=5 app=1"),
                    "dpkg --force-hold --no-act --remove dep".into(),
                    "dpkg --force-hold --purge dep".into(),
                    format!("{INSTALL} rival=5 app=1"),
                    "apt-mark hold app".into(),
                ],
            ),
            (
                "of another architecture",
                all(&[("app:amd64", Some("1"), "")]),
                all(&[("app", Some("2"), "")]),
                vec![format!("{INSTALL} --download-only app:amd64=1"), format!("{INSTALL} app:amd64=1")],
            ),
            (
                "marks alone",
                lib.clone(),
                all(&[("lib:amd64", Some("1"), "h")]),
                vec!["apt-mark auto lib:amd64".into(), "apt-mark unhold lib:amd64".into()],
            ),
            (
                "nothing",
                empty.clone(),
                empty,
                vec!["what the run did to this host's packages is not known".into()],
            ),
        ];
        for (what, before, after, want) in cases {
            let trace = trace(&before, &after);
            assert_eq!(lines(&trace.undo(None)), want, "{what}");
            let json = serde_json::to_value(&trace).unwrap();
            assert_eq!(serde_json::from_value::<Trace>(json).unwrap(), trace, "{what}");
        }
    }

    #[test]
    fn what_changed_since_is_left_alone() {
        let (before, after) =
            (all(&[("app", Some("1"), "")]), all(&[("app", Some("2"), ""), ("dep", Some("1"), "")]));
        let trace = trace(&before, &after);
        let later = all(&[("app", Some("3"), ""), ("dep", Some("1"), "")]);
        assert!(lines(&trace.undo(Some(&later)))[0].starts_with("app is 3 now"));
        let without = lines(&trace.undo(Some(&all(&[("app", Some("2"), "")]))));
        assert!(without.iter().all(|line| !line.starts_with("dpkg")), "{without:?}");
    }

    /// Whoever marks a package as wanted keeps it, whatever pulled it in.
    #[test]
    fn what_somebody_wants_for_itself_since_stays() {
        let before = all(&[("old:amd64", None, "")]);
        let after = all(&[
            ("app", Some("1"), ""),
            ("dep", Some("1"), "a"),
            ("lib:amd64", Some("1"), "a"),
            ("old:amd64", Some("2"), "a"),
        ]);
        let trace = trace(&before, &after);
        assert_eq!((lines(&trace.undo(Some(&after))).len(), trace.spared(Some(&after))), (3, None));
        let mut now = after.clone();
        for id in ["lib:amd64", "old:amd64"] {
            now.get_mut(id).unwrap().auto = false;
        }
        let want = ["dpkg --force-hold --no-act --remove app dep", "dpkg --force-hold --purge app dep"];
        assert_eq!(lines(&trace.undo(Some(&now))), want);
        let spared = trace.spared(Some(&now)).unwrap();
        assert!(spared.starts_with("lib:amd64, old:amd64: pulled in by the run"), "{spared}");
        // Nothing else is left of what the run did.
        now.retain(|id, _| id == "lib:amd64");
        let alone = lines(&trace.undo(Some(&now)));
        assert!(alone[0].starts_with("left alone: lib:amd64: pulled in"), "{alone:?}");
        // One that is gone, or has only its configuration left, is nobody's wish.
        now.insert("lib:amd64".to_owned(), Have::default());
        assert_eq!(trace.spared(Some(&now)), None);
        // Records of an older agent know of no such packages.
        let mut json = serde_json::to_value(&trace).unwrap();
        json.as_object_mut().unwrap().remove("pulled");
        assert_eq!(serde_json::from_value::<Trace>(json).unwrap().pulled, Vec::<String>::new());
    }

    #[test]
    fn a_host_is_seen_with_its_marks() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["var/lib/dpkg", "var/lib/apt"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let status = "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n\
                      Package: b\nStatus: hold ok installed\nArchitecture: all\nVersion: 2\n\n\
                      Package: c\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 3\n\n\
                      Package: d\nStatus: install ok half-configured\nArchitecture: amd64\nVersion: 4\n";
        std::fs::write(dir.path().join("var/lib/dpkg/status"), status).unwrap();
        let extended = "Package: b\nArchitecture: amd64\nAuto-Installed: 1\n\n\
                        Package: a\nArchitecture: i386\nAuto-Installed: 1\n\n\
                        Package: d\nArchitecture: amd64\nAuto-Installed: 0\n";
        std::fs::write(dir.path().join("var/lib/apt/extended_states"), extended).unwrap();
        let seen = snapshot(&Sys::rooted(dir.path().to_owned(), String::new())).unwrap();
        let want = all(&[
            ("a:amd64", Some("1"), ""),
            ("b", Some("2"), "ah"),
            ("c:amd64", None, ""),
            ("d:amd64", Some("4"), ""),
        ]);
        assert_eq!(seen, want);
    }
}
