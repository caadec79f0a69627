//! `file`: a regular file's content, owner and mode.

use postern_proto::spec::{FileSpec, Presence};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::diff::{attributes, hidden, unified};
use super::{Depth, ObserveError, Protect, Resource, Step, Undo, WriteFile, base64_bytes};
use crate::sys::{FileKind, Meta, Sys};

/// The most that is read of a file that is there, bytes: far more than a plan can hold.
const READ_LIMIT: u64 = 16 << 20;

/// Files that decide how names are found, read anew at each look-up: with a wrong one the controller is not found
/// any more.
const AT_ONCE: &[&str] = &["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];

pub(super) struct File;

/// What is at the path, and whom the declared owner is here.
#[derive(Serialize, Deserialize)]
pub(super) struct Seen {
    there: Option<(Meta, Content)>,
    uid: u32,
    gid: u32,
}

/// What a file or a link holds.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Content {
    #[serde(with = "base64_bytes")]
    Bytes(Vec<u8>),
    /// More than [`READ_LIMIT`].
    TooLong,
    Link(String),
}

impl Content {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::TooLong | Self::Link(_) => &[],
        }
    }
}

impl Resource for File {
    type Spec = FileSpec;
    type Seen = Seen;

    async fn observe(spec: &FileSpec, host: &Sys, _depth: Depth) -> Result<Seen, ObserveError> {
        let path = &spec.path;
        let there = match host.meta(path)? {
            None => None,
            Some(meta) if meta.kind == FileKind::File => {
                match host.read_owned(path, READ_LIMIT) {
                    // What is longer than anything a plan declares is different; its end is not needed to know.
                    Err(crate::sys::SysError::TooLarge { .. }) => Some((meta, Content::TooLong)),
                    other => other?.map(|(meta, bytes)| (meta, Content::Bytes(bytes))),
                }
            }
            // To remove a link follows nothing.
            Some(meta) if meta.kind == FileKind::Symlink && spec.state == Presence::Absent => {
                Some((meta, Content::Link(host.link_target(path)?)))
            }
            Some(meta) => {
                let what = meta.kind.as_str();
                return Err(ObserveError::Obstacle(format!(
                    "{path} is {what}: remove it or choose another path"
                )));
            }
        };
        if spec.state == Presence::Absent {
            return Ok(Seen { there, uid: 0, gid: 0 });
        }
        if there.is_none() {
            let parent = path.rsplit_once('/').map_or("/", |(dir, _)| if dir.is_empty() { "/" } else { dir });
            if host.mtime_ns(parent)?.is_none() {
                return Err(ObserveError::Obstacle(format!(
                    "the directory {parent} for {path} is not there"
                )));
            }
        }
        Ok(Seen { there, uid: host.user(&spec.owner)?.uid, gid: host.group(&spec.group)? })
    }

    fn plan(spec: &FileSpec, seen: &Seen) -> Vec<Step> {
        let path = spec.path.clone();
        let (uid, gid, mode) = (seen.uid, seen.gid, spec.mode.bits().unwrap_or(0o644));
        match (&spec.content, &seen.there, spec.state) {
            (_, None, Presence::Absent) | (None, _, Presence::Present) => Vec::new(),
            (_, Some(_), Presence::Absent) => vec![Step::Remove { path }],
            (Some(content), Some((meta, Content::Bytes(bytes))), Presence::Present)
                if content.as_bytes() == bytes && content.len() as u64 == meta.len =>
            {
                if (meta.mode, meta.uid, meta.gid) == (mode, uid, gid) {
                    Vec::new()
                } else {
                    vec![Step::SetAttributes { path, mode, uid, gid, seen: Some(meta.id) }]
                }
            }
            (Some(content), _, Presence::Present) => {
                let content = content.clone().into_bytes();
                vec![Step::WriteFile(WriteFile {
                    path,
                    content,
                    mode,
                    uid,
                    gid,
                    validate: spec.validate.clone(),
                })]
            }
        }
    }

    fn protect(spec: &FileSpec, _: &Seen) -> Option<Protect> {
        AT_ONCE.contains(&spec.path.as_str()).then(Protect::default)
    }

    fn essence(_spec: &FileSpec, seen: &Seen) -> serde_json::Value {
        match &seen.there {
            None => serde_json::Value::Null,
            Some((meta, content)) => {
                let (mode, uid, gid, len) = (meta.mode, meta.uid, meta.gid, meta.len);
                match content {
                    Content::Link(target) => json!({"link": target}),
                    Content::TooLong => {
                        json!({"len": len, "time": meta.mtime_ns.to_string(), "mode": mode, "uid": uid, "gid": gid})
                    }
                    Content::Bytes(bytes) => {
                        let hash = postern_proto::ids::PlanHash::of(bytes);
                        json!({"sha256": hash, "mode": mode, "uid": uid, "gid": gid})
                    }
                }
            }
        }
    }

    fn undo(spec: &FileSpec, before: &Seen, _trace: &serde_json::Value, now: &Seen) -> Undo {
        let path = spec.path.clone();
        let Some((meta, content)) = &before.there else {
            return Undo::Steps(vec![Step::Remove { path }]);
        };
        let (mode, uid, gid) = (meta.mode, meta.uid, meta.gid);
        Undo::Steps(vec![match content {
            Content::Link(target) => Step::Symlink { path, target: target.clone() },
            _ if now.there.as_ref().is_some_and(|(_, there)| there == content)
                && *content != Content::TooLong =>
            {
                let seen = now.there.as_ref().map(|(there, _)| there.id);
                Step::SetAttributes { path, mode, uid, gid, seen }
            }
            Content::TooLong => {
                let limit = READ_LIMIT >> 20;
                return Undo::Cannot(format!("{path} had more than {limit} MiB and was not kept"));
            }
            Content::Bytes(bytes) => {
                Step::WriteFile(WriteFile { path, content: bytes.clone(), mode, uid, gid, validate: None })
            }
        }])
    }

    fn diff(spec: &FileSpec, seen: &Seen) -> String {
        // The mode says whom the content is for; journal and database are read by others (I7, I11).
        let others = |mode: u32| mode & 0o004 != 0;
        let was_open = seen.there.as_ref().is_none_or(|(meta, _)| others(meta.mode));
        let stays_open = spec.state == Presence::Absent || others(spec.mode.bits().unwrap_or(0o644));
        difference(spec, seen, if was_open && stays_open { unified } else { hidden })
    }

    fn hidden_diff(spec: &FileSpec, seen: &Seen) -> String {
        difference(spec, seen, hidden)
    }

    fn may_hold_secrets(seen: &Seen) -> bool {
        // Of a file that is not there, or that is too long to be kept, or of a link, no content is kept.
        matches!(&seen.there, Some((_, Content::Bytes(bytes))) if !bytes.is_empty())
    }
}

/// What the steps change; the content as `show` has it.
fn difference(
    spec: &FileSpec,
    seen: &Seen,
    show: impl Fn(&str, Option<&[u8]>, Option<&[u8]>) -> String,
) -> String {
    let old = seen.there.as_ref().map(|(_, content)| content.bytes());
    let new = spec.content.as_deref().map(str::as_bytes);
    if seen.there.as_ref().is_some_and(|(_, content)| matches!(content, Content::Link(_))) {
        return format!("{}: a symbolic link is removed\n", spec.path);
    }
    let mut text = show(&spec.path, old, new);
    if let (Some((meta, _)), Some(mode), Presence::Present) = (&seen.there, spec.mode.bits(), spec.state) {
        text += &attributes(&spec.path, meta, mode, (seen.uid, &spec.owner), (seen.gid, &spec.group));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> (tempfile::TempDir, Sys) {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let meta = std::fs::metadata(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let passwd = format!("me:x:{}:{}::/:\n", meta.uid(), meta.gid());
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("etc/group"), format!("us:x:{}:\n", meta.gid())).unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        (dir, sys)
    }

    fn spec(json: serde_json::Value) -> FileSpec {
        let mut json = json;
        json["owner"] = "me".into();
        json["group"] = "us".into();
        serde_json::from_value(json).unwrap()
    }

    /// T46, I7: what is written to a private file, or was in one, is not in a diff.
    #[tokio::test]
    async fn trap_46_the_content_of_private_files_is_not_shown() {
        use std::os::unix::fs::PermissionsExt as _;
        let (dir, sys) = fixture();
        let path = dir.path().join("a");
        let cases = [
            (Some(0o644), "0644", true),
            (Some(0o600), "0600", false),
            (Some(0o600), "0644", false),
            (Some(0o644), "0640", false),
            (None, "0644", true),
            (None, "0600", false),
        ];
        for (old, new, shown) in cases {
            let _ = std::fs::remove_file(&path);
            if let Some(mode) = old {
                std::fs::write(&path, "before\n").unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            }
            let present = spec(serde_json::json!({"path": "/a", "content": "after\n", "mode": new}));
            let seen = File::observe(&present, &sys, Depth::Cheap).await.unwrap();
            let diff = File::diff(&present, &seen);
            assert_eq!(diff.contains("after"), shown, "{old:?} {new}: {diff}");
            assert_eq!(diff.contains("before"), shown && old.is_some(), "{old:?} {new}: {diff}");
            assert!(shown || diff.contains("6 bytes"), "{old:?} {new}: {diff}");
            let absent = spec(serde_json::json!({"path": "/a", "state": "absent"}));
            let seen = File::observe(&absent, &sys, Depth::Cheap).await.unwrap();
            let shown = old == Some(0o644);
            assert_eq!(File::diff(&absent, &seen).contains("before"), shown, "{old:?} removed");
        }
    }

    #[tokio::test]
    async fn plans_by_table() {
        let (dir, sys) = fixture();
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(dir.path().join("same"), "x").unwrap();
        std::fs::set_permissions(dir.path().join("same"), std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(dir.path().join("loose"), "x").unwrap();
        std::fs::set_permissions(dir.path().join("loose"), std::fs::Permissions::from_mode(0o666)).unwrap();
        std::os::unix::fs::symlink("same", dir.path().join("link")).unwrap();
        let cases = [
            (serde_json::json!({"path": "/same", "content": "x"}), Ok(vec![])),
            (serde_json::json!({"path": "/same", "content": "y"}), Ok(vec!["write /same"])),
            (serde_json::json!({"path": "/same", "content": ""}), Ok(vec!["write /same"])),
            (serde_json::json!({"path": "/new", "content": ""}), Ok(vec!["write /new"])),
            (
                serde_json::json!({"path": "/loose", "content": "x"}),
                Ok(vec!["set owner and mode 0644 of /loose"]),
            ),
            (serde_json::json!({"path": "/none", "state": "absent"}), Ok(vec![])),
            (serde_json::json!({"path": "/same", "state": "absent"}), Ok(vec!["remove /same"])),
            (serde_json::json!({"path": "/link", "state": "absent"}), Ok(vec!["remove /link"])),
            (serde_json::json!({"path": "/etc", "state": "absent"}), Err("/etc is a directory")),
            (serde_json::json!({"path": "/etc", "content": "x"}), Err("/etc is a directory")),
            (serde_json::json!({"path": "/link", "content": "x"}), Err("/link is a symbolic link")),
            (serde_json::json!({"path": "/no/dir", "content": "x"}), Err("the directory /no for")),
        ];
        for (json, want) in cases {
            let spec = spec(json.clone());
            match (File::observe(&spec, &sys, Depth::Cheap).await, want) {
                (Ok(seen), Ok(want)) => {
                    let steps: Vec<_> = File::plan(&spec, &seen).iter().map(Step::summary).collect();
                    assert_eq!(steps, want, "{json}");
                    assert_eq!(File::diff(&spec, &seen).is_empty(), want.is_empty(), "{json}");
                }
                (Err(error), Err(want)) => assert!(error.to_string().starts_with(want), "{error}"),
                (got, want) => panic!("{json}: {:?}, wanted {want:?}", got.map(|_| ())),
            }
        }
        let mut nobody = spec(serde_json::json!({"path": "/new", "content": ""}));
        nobody.owner = "ghost".to_owned();
        let error = File::observe(&nobody, &sys, Depth::Cheap).await.err().unwrap();
        assert_eq!(error.to_string(), "there is no user \"ghost\" on this host");
    }
}
