//! `apt_repository`: a source of apt's, with a key that is pinned by its fingerprint.
//!
//! The key lies beside the source under a name of Postern's and is trusted for this source alone. Only what
//! was looked at is written: the packets of the pinned keys, in the binary form.
//!
//! A source that does not work would break every later `apt-get update` on the host, so a new one is tried by
//! itself first, from files that apt does not look for.

use std::time::Duration;

use postern_proto::openpgp;
use postern_proto::spec::{AptRepositorySpec, Presence};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::apt::sources::{self, PARTS, Source, list_prefix};
use super::apt::{
    FETCHED, LISTS, LISTS_LOCK, UPDATE_LIMIT, apt, lists_outdated, quiet, update, update_before_others,
};
use super::diff::unified;
use super::owned::{self, Owned};
use super::{Depth, Exec, ObserveError, Resource, Step, Undo};
use crate::sys::Sys;

/// Where keys for single sources lie.
const KEYRINGS: &str = "/etc/apt/keyrings";
/// What fetching a key may take.
const KEY_TIME: Duration = Duration::from_secs(180);
/// What a question to apt may take.
const ASK_LIMIT: Duration = Duration::from_secs(60);
/// Part of apt: it has apt's proxies, certificates and methods.
const HELPER: &str = "/usr/lib/apt/apt-helper";

pub(super) struct AptRepository;

/// What is there of it.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    sources: Option<Owned>,
    key: Option<Owned>,
    /// The directory of keys.
    keyrings: bool,
    /// What apt has fetched of it, file names.
    lists: Vec<String>,
    /// Whether every one of its releases is among them.
    fetched: bool,
    /// Whether what apt has of the other sources is old.
    lists_old: bool,
}

fn sources_path(spec: &AptRepositorySpec) -> String {
    format!("{PARTS}/postern-{}.sources", spec.name)
}

fn key_path(spec: &AptRepositorySpec) -> String {
    format!("{KEYRINGS}/postern-{}.gpg", spec.name)
}

/// Where a fetched key waits to be looked at. Only root writes in this directory.
fn staging_path(spec: &AptRepositorySpec) -> String {
    format!("/run/postern-key-{}", spec.name)
}

/// Where a source is tried before it is put in place; the end of its name tells apt its form.
fn trial_path(spec: &AptRepositorySpec) -> String {
    format!("/run/postern-trial-{}.sources", spec.name)
}

/// The key that it is tried with. apt reads it as a user of its own.
fn trial_key_path(spec: &AptRepositorySpec) -> String {
    format!("/run/postern-trial-{}.gpg", spec.name)
}

/// The content of the file of sources.
fn text(spec: &AptRepositorySpec) -> String {
    text_signed_by(spec, &key_path(spec))
}

fn text_signed_by(spec: &AptRepositorySpec, key: &str) -> String {
    let mut text = format!(
        "# Written by Postern: changes are overwritten.\nTypes: {}\nURIs: {}\nSuites: {}\n",
        spec.types.join(" "),
        spec.uris.join(" "),
        spec.suites.join(" ")
    );
    for (field, list) in [("Components", &spec.components), ("Architectures", &spec.architectures)] {
        if !list.is_empty() {
            text += &format!("{field}: {}\n", list.join(" "));
        }
    }
    text + &format!("Signed-By: {key}\n")
}

impl Resource for AptRepository {
    type Spec = AptRepositorySpec;
    type Seen = Seen;

    async fn observe(spec: &AptRepositorySpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let mut seen = Seen {
            sources: Owned::look(host, &sources_path(spec))?,
            key: Owned::look(host, &key_path(spec))?,
            keyrings: host.exists(KEYRINGS)?,
            ..Seen::default()
        };
        let declared = declared(spec);
        if spec.state == Presence::Present
            && let Some((file, source)) = foreign(spec, &declared, host)?
        {
            // apt would refuse all work: one source cannot have two keys.
            return Err(ObserveError::Obstacle(format!(
                "{file} has {} {} already, and apt refuses a source that is there twice with different keys: \
                 remove that entry",
                source.uri, source.suite
            )));
        }
        let mut all = declared.clone();
        if let Some(there) = &seen.sources {
            all.extend(sources::deb822(&String::from_utf8_lossy(&there.content)));
        }
        let names = host.list(LISTS)?;
        let of = |source: &Source, name: &str| name.starts_with(&list_prefix(source));
        seen.lists = names.iter().filter(|name| all.iter().any(|one| of(one, name))).cloned().collect();
        seen.lists.sort_unstable();
        seen.fetched = declared.iter().all(|one| {
            let prefix = list_prefix(one);
            ["InRelease", "Release"].iter().any(|end| names.contains(&format!("{prefix}{end}")))
        });
        if in_state(spec, &seen) {
            if depth == Depth::Proof && spec.state == Presence::Present {
                prove(spec, host).await?;
            }
            return Ok(seen);
        }
        seen.lists_old = depth == Depth::Cheap && lists_outdated(host)?;
        Ok(seen)
    }

    fn plan(spec: &AptRepositorySpec, seen: &Seen) -> Vec<Step> {
        if in_state(spec, seen) {
            return Vec::new();
        }
        let (sources, key) = (sources_path(spec), key_path(spec));
        let mut steps = Vec::new();
        if spec.state == Presence::Absent {
            if seen.sources.is_some() {
                steps.push(Step::Remove { path: sources });
                steps.extend(forget(&seen.lists));
            }
            if seen.key.is_some() {
                steps.push(Step::Remove { path: key });
            }
            return steps;
        }
        // Fetching one source touches what tells the age of all lists.
        if seen.lists_old {
            steps.push(update_before_others());
        }
        if !seen.keyrings {
            steps.push(Step::MakeDirectory { path: KEYRINGS.to_owned(), mode: 0o755, uid: 0, gid: 0 });
        }
        let same = (text_is(spec, seen), key_is(spec, seen));
        if same == (true, true) {
            steps.push(update_one(&sources));
            return steps;
        }
        let (trial, trial_key) = (trial_path(spec), trial_key_path(spec));
        if !same.1 {
            steps.extend(key_steps(spec, &trial_key));
        }
        // What is there was fetched by another definition or verified by another key.
        steps.extend(forget(&seen.lists));
        let tried_with = if same.1 { &key } else { &trial_key };
        steps.push(owned::put(&trial, text_signed_by(spec, tried_with).into_bytes()));
        steps.push(update_one(&trial));
        // It works. The key is there before the source that names it.
        if !same.1 {
            steps.push(Step::InstallKey { from: trial_key, path: key, pinned: spec.pinned() });
        }
        if !same.0 {
            steps.push(owned::put(&sources, text(spec).into_bytes()));
            // What it says was fetched just before, from where it was tried: without this the file would be newer than
            // apt's lists, and whoever installs something next would fetch all of them again.
            let argv = ["touch", "-c", "--", FETCHED];
            steps.push(Step::Exec(Exec::new(&argv, ASK_LIMIT)));
        }
        steps.push(Step::Remove { path: trial });
        steps
    }

    fn essence(_: &AptRepositorySpec, seen: &Seen) -> serde_json::Value {
        // Not the lists: they come and go with every update.
        json!({"sources": owned::essence(seen.sources.as_ref()), "key": owned::essence(seen.key.as_ref())})
    }

    fn undo(spec: &AptRepositorySpec, before: &Seen, _: &serde_json::Value, now: &Seen) -> Undo {
        let sources = owned::back(&sources_path(spec), before.sources.as_ref(), now.sources.as_ref());
        let key = owned::back(&key_path(spec), before.key.as_ref(), now.key.as_ref());
        let changes = sources.is_some() || key.is_some();
        let lists = if changes { forget(&now.lists) } else { None };
        // What comes back with it, such as its packages, is found only in its lists. All are fetched: one alone would make
        // the others look as fresh as it is.
        let fetch = (changes && before.sources.is_some() && !before.lists.is_empty()).then(update);
        // A source is never there without its key.
        let steps = match before.sources {
            Some(_) => [key, lists, sources, fetch],
            None => [sources, lists, key, fetch],
        };
        Undo::Steps(steps.into_iter().flatten().collect())
    }

    fn diff(spec: &AptRepositorySpec, seen: &Seen) -> String {
        let old = seen.sources.as_ref().map(|there| there.content.as_slice());
        let new = (spec.state == Presence::Present).then(|| text(spec));
        let mut shown = String::new();
        if old != new.as_deref().map(str::as_bytes) {
            shown += &unified(&sources_path(spec), old, new.as_deref().map(str::as_bytes));
        }
        let there = seen.key.as_ref().map_or("none".to_owned(), |there| key_says(&there.content));
        if spec.state == Presence::Absent {
            if seen.key.is_some() {
                shown += &format!("{}: {there} -> none\n", key_path(spec));
            }
        } else if !key_is(spec, seen) {
            let want = spec.pinned().iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
            shown += &format!("{}: {there} -> {want}\n", key_path(spec));
        }
        if spec.state == Presence::Present && !seen.fetched {
            shown += &format!("{}: apt has not fetched it\n", spec.name);
        }
        shown
    }
}

/// What a key file holds, for people.
fn key_says(content: &[u8]) -> String {
    match openpgp::read(content) {
        Ok(keys) => keys.fingerprints.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        Err(error) => error.to_string(),
    }
}

fn key_steps(spec: &AptRepositorySpec, path: &str) -> Vec<Step> {
    match (&spec.key, &spec.key_url) {
        (Some(key), _) => {
            // A spec whose key is another one is not valid, so no plan has it.
            let read = openpgp::read_pinned(key.as_bytes(), &spec.pinned());
            read.map(|keys| owned::put(path, keys.packets)).into_iter().collect()
        }
        (None, Some(url)) => {
            let from = staging_path(spec);
            let fetch = Exec::new(&[HELPER, "download-file", url, &from], KEY_TIME);
            vec![Step::Exec(fetch), Step::InstallKey { from, path: path.to_owned(), pinned: spec.pinned() }]
        }
        (None, None) => Vec::new(),
    }
}

/// Fetches this source and no other: a signature that is bad or an address that is dead fails here.
fn update_one(sources: &str) -> Step {
    let only = format!("Dir::Etc::sourcelist={sources}");
    let args = [
        "update",
        "-o",
        &only,
        "-o",
        "Dir::Etc::sourceparts=-",
        "-o",
        "APT::Get::List-Cleanup=0",
        "-o",
        "APT::Update::Error-Mode=any",
    ];
    apt(&args, &[LISTS_LOCK], UPDATE_LIMIT)
}

/// Removes what apt fetched of it.
fn forget(lists: &[String]) -> Option<Step> {
    let paths: Vec<String> = lists.iter().map(|name| format!("{LISTS}/{name}")).collect();
    let argv: Vec<&str> = ["rm", "-f", "--"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    (!paths.is_empty()).then(|| quiet(&argv, &[LISTS_LOCK], ASK_LIMIT))
}

fn in_state(spec: &AptRepositorySpec, seen: &Seen) -> bool {
    match spec.state {
        Presence::Absent => seen.sources.is_none() && seen.key.is_none(),
        Presence::Present => seen.fetched && text_is(spec, seen) && key_is(spec, seen),
    }
}

fn text_is(spec: &AptRepositorySpec, seen: &Seen) -> bool {
    owned::is(seen.sources.as_ref(), Some(text(spec).as_bytes()))
}

fn key_is(spec: &AptRepositorySpec, seen: &Seen) -> bool {
    let Some(there) = seen.key.as_ref().filter(|there| there.has_right_mode()) else { return false };
    let Ok(keys) = openpgp::read_pinned(&there.content, &spec.pinned()) else { return false };
    match &spec.key {
        Some(key) => openpgp::read(key.as_bytes()).is_ok_and(|wanted| wanted.packets == there.content),
        None => keys.packets == there.content,
    }
}

fn declared(spec: &AptRepositorySpec) -> Vec<Source> {
    let of = |uri: &String| spec.suites.iter().map(|suite| Source::new(uri, suite)).collect::<Vec<_>>();
    spec.uris.iter().flat_map(of).collect()
}

/// The first file of somebody else's that has one of these sources.
fn foreign(
    spec: &AptRepositorySpec,
    declared: &[Source],
    host: &Sys,
) -> Result<Option<(String, Source)>, ObserveError> {
    let ours = sources_path(spec);
    for (path, all) in sources::all(host)?.into_iter().filter(|(path, _)| *path != ours) {
        if let Some(found) = all.into_iter().find(|one| declared.contains(one)) {
            return Ok(Some((path, found)));
        }
    }
    Ok(None)
}

/// Asks apt itself what it has of the source, and whether it trusts that.
async fn prove(spec: &AptRepositorySpec, host: &Sys) -> Result<(), ObserveError> {
    let format = "$(SOURCESENTRY)\t$(TRUSTED)\t$(FILENAME)";
    let said = host.run(&["apt-get", "indextargets", "--format", format], &[], ASK_LIMIT).await?;
    if !said.ok() {
        return Err(ObserveError::Obstacle(format!("apt-get indextargets failed: {}", said.last_line())));
    }
    let wanted = format!("{}:", sources_path(spec));
    let text = String::from_utf8_lossy(&said.stdout);
    let trusted = text.lines().filter(|line| line.starts_with(&wanted)).any(|line| line.contains("\tyes\t"));
    if trusted {
        return Ok(());
    }
    Err(ObserveError::Obstacle(format!(
        "apt has nothing that it trusts of the repository {}: does it have the components {:?} for this architecture?",
        spec.name, spec.components
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet of a version 4 key; what is in it does not matter for its fingerprint.
    const PACKET: [u8; 12] = [0xc6, 10, 4, 7, 7, 7, 7, 7, 7, 7, 7, 7];

    fn spec(changed: serde_json::Value) -> AptRepositorySpec {
        let own = openpgp::read(&PACKET).unwrap().fingerprints[0].to_string();
        let mut spec = json!({
            "name": "lab", "uris": ["http://a.example/debian/"], "suites": ["s", "s-updates"],
            "components": ["main"], "key_url": "http://a.example/key", "fingerprints": [own],
        });
        for (name, value) in changed.as_object().unwrap() {
            spec[name] = value.clone();
        }
        serde_json::from_value(spec).unwrap()
    }

    fn lines(steps: &[Step]) -> Vec<String> {
        steps.iter().map(Step::summary).collect()
    }

    const SOURCES: &str = "/etc/apt/sources.list.d/postern-lab.sources";
    const KEY: &str = "/etc/apt/keyrings/postern-lab.gpg";
    const UPDATE: &str = "apt-get -y update";
    const LIST: &str = "a.example_debian_dists_s_InRelease";

    #[test]
    fn plans_by_table() {
        let present = spec(json!({}));
        let absent = spec(json!({"state": "absent"}));
        let whole = || Seen {
            sources: Some(Owned::new(text(&present).as_bytes())),
            key: Some(Owned::new(&PACKET)),
            keyrings: true,
            lists: vec![LIST.to_owned()],
            fetched: true,
            lists_old: false,
        };
        let trial = "write /run/postern-trial-lab.sources";
        let (try_key, try_end) =
            ("check the key and write /run/postern-trial-lab.gpg", "remove /run/postern-trial-lab.sources");
        let fetch = "/usr/lib/apt/apt-helper download-file http://a.example/key /run/postern-key-lab";
        let (check, write) = (format!("check the key and write {KEY}"), format!("write {SOURCES}"));
        let forget = format!("rm -f -- /var/lib/apt/lists/{LIST}");
        let fetched = "touch -c -- /var/lib/apt/lists/partial";
        let foreign = Some(Owned::new(&[0xc6, 1, 4]));
        let loose = Some(Owned { mode: 0o666, ..Owned::new(&PACKET) });
        let cases: Vec<(&str, &AptRepositorySpec, Seen, Vec<&str>)> = vec![
            ("whole", &present, whole(), vec![]),
            (
                "nothing",
                &present,
                Seen { lists_old: true, ..Seen::default() },
                vec![
                    UPDATE,
                    "make the directory /etc/apt/keyrings (0755)",
                    fetch,
                    try_key,
                    trial,
                    UPDATE,
                    &check,
                    &write,
                    fetched,
                    try_end,
                ],
            ),
            ("not fetched", &present, Seen { fetched: false, ..whole() }, vec![UPDATE]),
            (
                "another key",
                &present,
                Seen { key: foreign, ..whole() },
                vec![fetch, try_key, &forget, trial, UPDATE, &check, try_end],
            ),
            (
                "a key that all can change",
                &present,
                Seen { key: loose, ..whole() },
                vec![fetch, try_key, &forget, trial, UPDATE, &check, try_end],
            ),
            (
                "another source",
                &present,
                Seen { sources: Some(Owned::new(b"")), ..whole() },
                vec![&forget, trial, UPDATE, &write, fetched, try_end],
            ),
            ("gone", &absent, Seen::default(), vec![]),
            (
                "to go",
                &absent,
                whole(),
                vec![
                    "remove /etc/apt/sources.list.d/postern-lab.sources",
                    &forget,
                    "remove /etc/apt/keyrings/postern-lab.gpg",
                ],
            ),
        ];
        for (what, spec, seen, want) in cases {
            assert_eq!(lines(&AptRepository::plan(spec, &seen)), want, "{what}");
            if !want.is_empty() {
                assert!(!AptRepository::diff(spec, &seen).is_empty(), "{what}");
            }
        }
        // apt's cache of all packages would be made in vain by the first, and is by the last that fetches.
        let nothing = AptRepository::plan(&present, &Seen { lists_old: true, ..Seen::default() });
        let made = nothing.iter().filter_map(|step| match step {
            Step::Exec(exec) if exec.argv.contains(&"update".to_owned()) => {
                Some(!exec.argv.contains(&"pkgCacheFile::Generate=false".to_owned()))
            }
            _ => None,
        });
        assert_eq!(made.collect::<Vec<_>>(), [false, true]);
        let Undo::Steps(steps) = AptRepository::undo(&present, &Seen::default(), &json!(null), &whole())
        else {
            panic!()
        };
        assert_eq!(lines(&steps), lines(&AptRepository::plan(&absent, &whole())));
        let before = Seen { sources: Some(Owned::new(b"old")), ..whole() };
        let Undo::Steps(steps) = AptRepository::undo(&present, &before, &json!(null), &whole()) else {
            panic!()
        };
        assert_eq!(lines(&steps), [&forget, &write, UPDATE]);
        // The way back of an undo.
        for (lists, fetch) in [(vec![LIST.to_owned()], Some(UPDATE)), (Vec::new(), None)] {
            let before = Seen { lists, ..whole() };
            let Undo::Steps(steps) = AptRepository::undo(&present, &before, &json!(null), &Seen::default())
            else {
                panic!()
            };
            let (key, sources) = (format!("write {KEY}"), write.clone());
            let want: Vec<&str> = [key.as_str(), &sources].into_iter().chain(fetch).collect();
            assert_eq!(lines(&steps), want);
        }
    }

    #[tokio::test]
    async fn the_same_source_of_somebody_else_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let parts = dir.path().join("etc/apt/sources.list.d");
        std::fs::create_dir_all(&parts).unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        let foreign = "Types: deb\nURIs: http://a.example/debian\nSuites: other s-updates\nComponents: x\n";
        for (name, seen) in [("docker.sources", true), ("postern-lab.sources", false), ("docker.save", false)]
        {
            std::fs::write(parts.join(name), foreign).unwrap();
            let looked = AptRepository::observe(&spec(json!({})), &sys, Depth::Cheap).await;
            let error = looked.err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(
                error.contains(&format!("{name} has http://a.example/debian s-updates")),
                seen,
                "{error}"
            );
            let gone = AptRepository::observe(&spec(json!({"state": "absent"})), &sys, Depth::Cheap).await;
            assert!(gone.is_ok());
            std::fs::remove_file(parts.join(name)).unwrap();
        }
        // Once it is there, a look finds what apt fetched by its names.
        std::fs::create_dir_all(dir.path().join("var/lib/apt/lists")).unwrap();
        for (suite, fetched) in [("s", false), ("s-updates", true)] {
            let name = format!("var/lib/apt/lists/a.example_debian_dists_{suite}_InRelease");
            std::fs::write(dir.path().join(name), "").unwrap();
            let seen = AptRepository::observe(&spec(json!({})), &sys, Depth::Cheap).await.unwrap();
            assert_eq!(seen.fetched, fetched);
            assert!(seen.lists.iter().any(|name| name == LIST));
        }
    }
}
