//! `directory`: a directory's owner and mode; never what is in it.

use postern_proto::spec::{DirectorySpec, Presence};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::diff::attributes;
use super::{Depth, ObserveError, Resource, Step, Undo};
use crate::sys::{FileKind, Meta, Sys};

/// How many names of what is in a directory are told.
const NAMED: usize = 3;
/// Parents that it makes on its way.
const PARENT_MODE: u32 = 0o755;

pub(super) struct Directory;

/// What is at the path, and whom the declared owner is here.
#[derive(Serialize, Deserialize)]
pub(super) struct Seen {
    there: Option<Meta>,
    /// The first names in it.
    entries: Vec<String>,
    /// Parents that are not there, the topmost first.
    missing: Vec<String>,
    /// How many parents, from the nearest on, hold nothing but the way here.
    lonely: usize,
    uid: u32,
    gid: u32,
}

impl Resource for Directory {
    type Spec = DirectorySpec;
    type Seen = Seen;

    async fn observe(spec: &DirectorySpec, host: &Sys, _depth: Depth) -> Result<Seen, ObserveError> {
        let path = &spec.path;
        let there = host.meta(path)?;
        if let Some(meta) = there.as_ref().filter(|meta| meta.kind != FileKind::Directory) {
            let what = meta.kind.as_str();
            return Err(ObserveError::Obstacle(format!(
                "{path} is {what}: remove it or choose another path"
            )));
        }
        let entries = if there.is_some() { host.entries(path, NAMED + 1)? } else { Vec::new() };
        let mut seen = Seen { there, entries, missing: Vec::new(), lonely: 0, uid: 0, gid: 0 };
        if spec.state == Presence::Absent {
            if !seen.entries.is_empty() {
                let holds = named(&seen.entries);
                let why =
                    format!("{path} is not empty, it holds {holds}: what is in it is not removed with it");
                return Err(ObserveError::Obstacle(why));
            }
            return Ok(seen);
        }
        (seen.uid, seen.gid) = (host.user(&spec.owner)?.uid, host.group(&spec.group)?);
        if seen.there.is_none() {
            seen.missing = missing(path, host)?;
            if let (Some(first), false) = (seen.missing.first(), spec.parents) {
                let why = format!("the directory {first} for {path} is not there (parents: true makes it)");
                return Err(ObserveError::Obstacle(why));
            }
        } else if spec.parents {
            seen.lonely = lonely(path, host)?;
        }
        Ok(seen)
    }

    fn plan(spec: &DirectorySpec, seen: &Seen) -> Vec<Step> {
        let path = spec.path.clone();
        let (uid, gid, mode) = (seen.uid, seen.gid, bits(spec));
        match (&seen.there, spec.state) {
            (None, Presence::Absent) => Vec::new(),
            (Some(_), Presence::Absent) => vec![Step::RemoveDirectory { path }],
            (Some(meta), Presence::Present) if (meta.mode, meta.uid, meta.gid) == (mode, uid, gid) => {
                Vec::new()
            }
            (Some(meta), Presence::Present) => {
                vec![Step::SetAttributes { path, mode, uid, gid, seen: Some(meta.id) }]
            }
            (None, Presence::Present) => {
                let mut steps = make_parents(seen);
                steps.push(Step::MakeDirectory { path, mode, uid, gid });
                steps
            }
        }
    }

    fn essence(_: &DirectorySpec, seen: &Seen) -> serde_json::Value {
        let attributes = |meta: &Meta| json!({"mode": meta.mode, "uid": meta.uid, "gid": meta.gid});
        seen.there.as_ref().map_or(serde_json::Value::Null, attributes)
    }

    fn undo(spec: &DirectorySpec, before: &Seen, _trace: &serde_json::Value, now: &Seen) -> Undo {
        let path = spec.path.clone();
        Undo::Steps(match (&before.there, &now.there) {
            (None, None) => Vec::new(),
            (None, Some(_)) if !now.entries.is_empty() => {
                let holds = named(&now.entries);
                return Undo::Cannot(format!("{path} holds {holds} by now, so it stays"));
            }
            (None, Some(_)) => {
                // Parents it made go with it, up to the first that others use.
                let parents = before.missing.iter().rev().take(now.lonely).cloned();
                let remove = |path| Step::RemoveDirectory { path };
                std::iter::once(path).chain(parents).map(remove).collect()
            }
            (Some(meta), None) => {
                let mut steps = make_parents(now);
                steps.push(Step::MakeDirectory { path, mode: meta.mode, uid: meta.uid, gid: meta.gid });
                steps
            }
            (Some(Meta { mode, uid, gid, .. }), Some(there)) => {
                let (mode, uid, gid, seen) = (*mode, *uid, *gid, Some(there.id));
                vec![Step::SetAttributes { path, mode, uid, gid, seen }]
            }
        })
    }

    fn diff(spec: &DirectorySpec, seen: &Seen) -> String {
        let path = &spec.path;
        match (&seen.there, spec.state) {
            (_, Presence::Absent) => format!("{path}: the empty directory is removed\n"),
            (Some(meta), Presence::Present) => {
                attributes(path, meta, bits(spec), (seen.uid, &spec.owner), (seen.gid, &spec.group))
            }
            (None, Presence::Present) => {
                let line = |path: &String| format!("{path}: the directory is made\n");
                let own = format!("{path}: the directory is made, {:04o} of {}\n", bits(spec), spec.owner);
                seen.missing.iter().map(line).chain([own]).collect()
            }
        }
    }
}

fn bits(spec: &DirectorySpec) -> u32 {
    spec.mode.bits().unwrap_or(PARENT_MODE)
}

/// What makes those that are missing on the way.
fn make_parents(seen: &Seen) -> Vec<Step> {
    let parent =
        |path: &String| Step::MakeDirectory { path: path.clone(), mode: PARENT_MODE, uid: 0, gid: 0 };
    seen.missing.iter().map(parent).collect()
}

/// The first few names, for people.
fn named(entries: &[String]) -> String {
    let first: Vec<&str> = entries.iter().take(NAMED).map(String::as_str).collect();
    let more = if entries.len() > NAMED { " and more" } else { "" };
    format!("{}{more}", first.join(", "))
}

/// The directories above a path, the nearest first, without the root.
fn above(path: &str) -> impl Iterator<Item = &str> {
    let nearest = |path: &str| path.rfind('/').filter(|at| *at > 0);
    std::iter::successors(nearest(path).map(|at| &path[..at]), move |path| {
        nearest(path).map(|at| &path[..at])
    })
}

/// Which of the directories above a path are not there, the topmost first.
fn missing(path: &str, host: &Sys) -> Result<Vec<String>, ObserveError> {
    let mut missing = Vec::new();
    for parent in above(path) {
        match host.meta(parent)? {
            None => missing.push(parent.to_owned()),
            Some(_) if host.is_directory(parent)? => break,
            Some(meta) => {
                let what = match meta.kind {
                    FileKind::Symlink => "a symbolic link that leads to no directory",
                    kind => kind.as_str(),
                };
                return Err(ObserveError::Obstacle(format!("{parent}, which {path} is to be in, is {what}")));
            }
        }
    }
    missing.reverse();
    Ok(missing)
}

/// How many of the directories above a path, from the nearest on, hold nothing else.
fn lonely(path: &str, host: &Sys) -> Result<usize, ObserveError> {
    let mut count = 0;
    for parent in above(path) {
        if host.entries(parent, 2)?.len() != 1 {
            break;
        }
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    fn fixture() -> (tempfile::TempDir, Sys) {
        let dir = tempfile::tempdir().unwrap();
        let meta = std::fs::metadata(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let passwd = format!("me:x:{}:{}::/:\n", meta.uid(), meta.gid());
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("etc/group"), format!("us:x:{}:\n", meta.gid())).unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        (dir, sys)
    }

    fn spec(mut json: serde_json::Value) -> DirectorySpec {
        json["owner"] = "me".into();
        json["group"] = "us".into();
        serde_json::from_value(json).unwrap()
    }

    async fn look(spec: &DirectorySpec, sys: &Sys) -> Seen {
        Directory::observe(spec, sys, Depth::Cheap).await.unwrap()
    }

    /// As the engine would, for the steps of this kind.
    fn act(steps: &[Step], sys: &Sys) {
        for step in steps {
            match step {
                Step::MakeDirectory { path, mode, uid, gid } => sys.make_directory(path, *mode, *uid, *gid),
                Step::RemoveDirectory { path } => sys.remove_directory(path),
                Step::SetAttributes { path, mode, uid, gid, seen } => {
                    sys.set_attributes(path, *mode, *uid, *gid, *seen)
                }
                other => panic!("{other:?}"),
            }
            .unwrap();
        }
    }

    fn steps(undo: Undo) -> Vec<Step> {
        match undo {
            Undo::Steps(steps) => steps,
            Undo::Cannot(why) => panic!("{why}"),
        }
    }

    #[tokio::test]
    async fn plans_by_table() {
        let (dir, sys) = fixture();
        let at = |path: &str| dir.path().join(path);
        for (path, mode) in [("ours", 0o755), ("open", 0o777), ("full", 0o755)] {
            std::fs::create_dir(at(path)).unwrap();
            std::fs::set_permissions(at(path), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        for name in ["a", "b", "c", "d"] {
            std::fs::write(at("full").join(name), "").unwrap();
        }
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("ours", at("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        let cases = [
            (json!({"path": "/ours"}), Ok(vec![])),
            (json!({"path": "/ours", "parents": true}), Ok(vec![])),
            (json!({"path": "/link/new"}), Ok(vec!["make the directory /link/new (0755)"])),
            (json!({"path": "/new", "mode": "2770"}), Ok(vec!["make the directory /new (2770)"])),
            (json!({"path": "/open"}), Ok(vec!["set owner and mode 0755 of /open"])),
            (json!({"path": "/none", "state": "absent"}), Ok(vec![])),
            (json!({"path": "/no/ne", "state": "absent"}), Ok(vec![])),
            (json!({"path": "/ours", "state": "absent"}), Ok(vec!["remove the directory /ours"])),
            (
                json!({"path": "/a/b/c", "mode": "700", "parents": true}),
                Ok(vec![
                    "make the directory /a (0755)",
                    "make the directory /a/b (0755)",
                    "make the directory /a/b/c (0700)",
                ]),
            ),
            (json!({"path": "/a/b/c"}), Err("the directory /a for /a/b/c is not there")),
            (json!({"path": "/file/b", "parents": true}), Err("/file, which /file/b is to be in, is a file")),
            (
                json!({"path": "/dangling/b", "parents": true}),
                Err("/dangling, which /dangling/b is to be in"),
            ),
            (json!({"path": "/file"}), Err("/file is a file: remove it")),
            (json!({"path": "/link"}), Err("/link is a symbolic link")),
            (json!({"path": "/link", "state": "absent"}), Err("/link is a symbolic link")),
            (json!({"path": "/full", "state": "absent"}), Err("/full is not empty, it holds ")),
        ];
        for (json, want) in cases {
            let spec = spec(json.clone());
            match (Directory::observe(&spec, &sys, Depth::Cheap).await, want) {
                (Ok(seen), Ok(want)) => {
                    let steps: Vec<_> = Directory::plan(&spec, &seen).iter().map(Step::summary).collect();
                    assert_eq!(steps, want, "{json}");
                    assert_eq!(Directory::diff(&spec, &seen).is_empty() || want.is_empty(), want.is_empty());
                }
                (Err(error), Err(want)) => assert!(error.to_string().starts_with(want), "{error}"),
                (got, want) => panic!("{json}: {:?}, wanted {want:?}", got.map(|_| ())),
            }
        }
        let full = spec(json!({"path": "/full", "state": "absent"}));
        let error = Directory::observe(&full, &sys, Depth::Cheap).await.err().unwrap().to_string();
        assert!(error.contains(" and more: "), "{error}");
    }

    /// The contract of every kind: nothing left to do after the steps, and undone it is as before.
    #[tokio::test]
    async fn what_was_done_is_undone() {
        // Only root can give a directory to root, as it does with parents.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (dir, sys) = fixture();
        std::fs::create_dir(dir.path().join("old")).unwrap();
        std::fs::set_permissions(dir.path().join("old"), std::fs::Permissions::from_mode(0o1733)).unwrap();
        let cases = [
            json!({"path": "/new"}),
            json!({"path": "/a/b/c", "parents": true, "mode": "0711"}),
            json!({"path": "/old"}),
            json!({"path": "/old", "state": "absent"}),
        ];
        for json in cases {
            let spec = spec(json.clone());
            let before = look(&spec, &sys).await;
            act(&Directory::plan(&spec, &before), &sys);
            let after = look(&spec, &sys).await;
            assert_eq!(Directory::plan(&spec, &after), [], "{json}");
            let kept: Seen = serde_json::from_value(serde_json::to_value(&before).unwrap()).unwrap();
            act(&steps(Directory::undo(&spec, &kept, &json!(null), &after)), &sys);
            let now = look(&spec, &sys).await;
            assert_eq!(Directory::essence(&spec, &now), Directory::essence(&spec, &before), "{json}");
            assert!(!dir.path().join("a").exists(), "{json}");
            // And the way back from that.
            act(&steps(Directory::undo(&spec, &after, &json!(null), &now)), &sys);
            let again = look(&spec, &sys).await;
            assert_eq!(Directory::essence(&spec, &again), Directory::essence(&spec, &after), "{json}");
            act(&steps(Directory::undo(&spec, &kept, &json!(null), &again)), &sys);
        }
    }

    #[tokio::test]
    async fn what_others_use_by_now_stays() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (dir, sys) = fixture();
        let spec = spec(json!({"path": "/a/b/c", "parents": true}));
        let before = look(&spec, &sys).await;
        act(&Directory::plan(&spec, &before), &sys);
        std::fs::write(dir.path().join("a/other"), "").unwrap();
        let undo = steps(Directory::undo(&spec, &before, &json!(null), &look(&spec, &sys).await));
        let said: Vec<_> = undo.iter().map(Step::summary).collect();
        assert_eq!(said, ["remove the directory /a/b/c", "remove the directory /a/b"]);
        std::fs::write(dir.path().join("a/b/c/kept"), "").unwrap();
        let undo = Directory::undo(&spec, &before, &json!(null), &look(&spec, &sys).await);
        assert_eq!(undo, Undo::Cannot("/a/b/c holds kept by now, so it stays".to_owned()));
    }
}
