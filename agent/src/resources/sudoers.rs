//! `sudoers`: one rule of sudo in a file of its own, seen to be in force.

use std::time::Duration;

use postern_proto::ids::PlanHash;
use postern_proto::spec::{Presence, SudoersSpec};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::diff::unified;
use super::{Depth, ObserveError, Resource, Step, Undo, WriteFile, base64_bytes};
use crate::sys::{As, FileKind, Sys};

/// The most that is read of the file, bytes.
const LIMIT: u64 = 1 << 20;
/// The time sudo may take to say what is in force: it looks names up.
const ASK_LIMIT: Duration = Duration::from_secs(30);
const VISUDO: &str = "/usr/sbin/visudo";
/// sudo refuses a file that others can write to.
const MODE: u32 = 0o440;

pub(super) struct Sudoers;

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    there: Option<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Rule {
    mode: u32,
    uid: u32,
    gid: u32,
    #[serde(with = "base64_bytes")]
    bytes: Vec<u8>,
}

impl Resource for Sudoers {
    type Spec = SudoersSpec;
    type Seen = Seen;

    async fn observe(spec: &SudoersSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let path = spec.path();
        let obstacle = |why: String| Err(ObserveError::Obstacle(why));
        match host.meta(&path)? {
            Some(meta) if meta.kind != FileKind::File => {
                return obstacle(format!("{path} is {}: remove it", meta.kind.as_str()));
            }
            _ => {}
        }
        let rule = host.read_owned(&path, LIMIT)?;
        let there = rule.map(|(meta, bytes)| Rule { mode: meta.mode, uid: meta.uid, gid: meta.gid, bytes });
        let seen = Seen { there };
        if spec.state == Presence::Absent {
            return Ok(seen);
        }
        if !host.exists(VISUDO)? {
            return obstacle(
                "sudo is not installed: put `package: {name: sudo}` before this resource".to_owned(),
            );
        }
        match spec.user.strip_prefix('%') {
            Some(group) => host.group(group).map(drop)?,
            None => host.user(&spec.user).map(drop)?,
        }
        if spec.run_as != "ALL" {
            host.user(&spec.run_as)?;
        }
        if depth == Depth::Proof
            && let Some(why) = prove(spec, host).await?
        {
            return obstacle(why);
        }
        Ok(seen)
    }

    fn plan(spec: &SudoersSpec, seen: &Seen) -> Vec<Step> {
        let path = spec.path();
        let content = spec.content().into_bytes();
        match (&seen.there, spec.state) {
            (None, Presence::Absent) => Vec::new(),
            (Some(_), Presence::Absent) => vec![Step::Remove { path }],
            (Some(rule), Presence::Present) if rule.bytes == content => {
                if (rule.mode, rule.uid, rule.gid) == (MODE, 0, 0) {
                    return Vec::new();
                }
                vec![Step::SetAttributes { path, mode: MODE, uid: 0, gid: 0, seen: None }]
            }
            (_, Presence::Present) => {
                let validate = Some([VISUDO, "-cf", "{path}"].map(str::to_owned).to_vec());
                vec![Step::WriteFile(WriteFile { path, content, mode: MODE, uid: 0, gid: 0, validate })]
            }
        }
    }

    fn diff(spec: &SudoersSpec, seen: &Seen) -> String {
        let old = seen.there.as_ref().map(|rule| &*rule.bytes);
        let new = (spec.state == Presence::Present).then(|| spec.content());
        let mut text = unified(&spec.path(), old, new.as_deref().map(str::as_bytes));
        if text.is_empty() && !Self::plan(spec, seen).is_empty() {
            text = format!("{}: owner and mode\n", spec.path());
        }
        text
    }

    fn essence(_: &SudoersSpec, seen: &Seen) -> serde_json::Value {
        let Some(rule) = &seen.there else { return serde_json::Value::Null };
        let hash = PlanHash::of(&rule.bytes);
        json!({"sha256": hash, "mode": rule.mode, "uid": rule.uid, "gid": rule.gid})
    }

    fn undo(spec: &SudoersSpec, before: &Seen, _: &serde_json::Value, now: &Seen) -> Undo {
        let path = spec.path();
        let Some(old) = &before.there else { return Undo::Steps(vec![Step::Remove { path }]) };
        let (mode, uid, gid) = (old.mode, old.uid, old.gid);
        Undo::Steps(vec![if now.there.as_ref().is_some_and(|rule| rule.bytes == old.bytes) {
            Step::SetAttributes { path, mode, uid, gid, seen: None }
        } else {
            let content = old.bytes.clone();
            Step::WriteFile(WriteFile { path, content, mode, uid, gid, validate: None })
        }])
    }
}

/// Why the rule is not in force; `None` when it is.
async fn prove(spec: &SudoersSpec, host: &Sys) -> Result<Option<String>, ObserveError> {
    let path = spec.path();
    let said = host.run(&["visudo", "-c"], &[], ASK_LIMIT).await?;
    if !said.ok() {
        let why = said.last_line();
        return Ok(Some(format!("sudo's files as a whole are not in order (visudo -c): {why}")));
    }
    let text = [&said.stdout[..], &said.stderr[..]].concat();
    if !String::from_utf8_lossy(&text).lines().any(|line| line.starts_with(&*format!("{path}:"))) {
        return Ok(Some(format!(
            "sudo does not read {path}: is `@includedir /etc/sudoers.d` in /etc/sudoers?"
        )));
    }
    let user = &spec.user;
    if user.starts_with('%') {
        return Ok(None);
    }
    let said = host.run(&["sudo", "-n", "-l", "-U", user], &[], ASK_LIMIT).await?;
    let listing = String::from_utf8_lossy(&said.stdout);
    if let Some(why) = overridden(spec, &listing) {
        return Ok(Some(why));
    }
    let everything = spec.nopasswd && spec.run_as == "ALL" && spec.commands.iter().any(|c| c == "ALL");
    if !everything {
        return Ok(None);
    }
    let who = As { user: Some(user), cwd: "/" };
    let said = host.run_as(who, &["sudo", "-n", "true"], &[], ASK_LIMIT).await?;
    let why = said.last_line();
    Ok((!said.ok()).then(|| format!("`sudo -n true` as {user} fails in spite of {path}: {why}")))
}

/// Looks for each command in what `sudo -l` lists, where the last match wins.
fn overridden(spec: &SudoersSpec, listing: &str) -> Option<String> {
    let user = &spec.user;
    for command in spec.listed() {
        let mut last = None;
        for line in listing.lines() {
            for (listed, nopasswd) in listed_commands(line, &spec.run_as) {
                if listed == command || listed == "ALL" {
                    last = Some((nopasswd, line));
                }
            }
        }
        match last {
            None => return Some(format!("sudo does not list {command} for {user} (sudo -l -U {user})")),
            Some((nopasswd, line)) if nopasswd != spec.nopasswd => {
                return Some(format!(
                    "another rule wins over {} for {command}: the last one that matches counts, and that is \
                     \"{}\"; look through /etc/sudoers and the files in /etc/sudoers.d",
                    spec.path(),
                    line.trim()
                ));
            }
            Some(_) => {}
        }
    }
    None
}

/// The commands of a line `(ALL : ALL) NOPASSWD: /a, PASSWD: /b` for this `run_as`, and whether each is without
/// a password.
fn listed_commands<'a>(line: &'a str, run_as: &str) -> Vec<(&'a str, bool)> {
    let Some((whom, list)) = line.trim().strip_prefix('(').and_then(|rest| rest.split_once(") ")) else {
        return Vec::new();
    };
    let users = whom.split(':').next().unwrap_or_default();
    if !users.split(',').map(str::trim).any(|user| user == "ALL" || user == run_as) {
        return Vec::new();
    }
    let mut nopasswd = false;
    let mut commands = Vec::new();
    for mut item in items(list) {
        while let Some((tag, rest)) = item.split_once(": ") {
            if tag.is_empty() || !tag.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
                break;
            }
            match tag {
                "NOPASSWD" => nopasswd = true,
                "PASSWD" => nopasswd = false,
                _ => {}
            }
            item = rest;
        }
        commands.push((item, nopasswd));
    }
    commands
}

/// A list at its commas; one within a command has a backslash before it.
fn items(list: &str) -> Vec<&str> {
    let mut items = Vec::new();
    let mut start = 0;
    for (at, comma) in list.match_indices(", ") {
        if !list[..at].ends_with('\\') {
            items.push(&list[start..at]);
            start = at + comma.len();
        }
    }
    items.push(&list[start..]);
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn fixture() -> (tempfile::TempDir, Sys) {
        let dir = tempfile::tempdir().unwrap();
        for path in ["etc/sudoers.d", "usr/sbin"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::fs::write(dir.path().join("usr/sbin/visudo"), "").unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "ada.l:x:1000:1000::/home/ada:/bin/bash\n").unwrap();
        std::fs::write(dir.path().join("etc/group"), "ops:x:1001:\n").unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        (dir, sys)
    }

    fn spec(json: serde_json::Value) -> SudoersSpec {
        serde_json::from_value(json).unwrap()
    }

    fn shown(steps: &[Step]) -> Vec<String> {
        steps.iter().map(Step::summary).collect()
    }

    #[tokio::test]
    async fn plans_and_ways_back_by_table() {
        const FILE: &str = "/etc/sudoers.d/90-postern-ada=2el";
        let ours = spec(json!({"user": "ada.l"})).content();
        let absent = json!({"user": "ada.l", "state": "absent"});
        let present = json!({"user": "ada.l"});
        // What is there, what is declared, the plan, and the way back.
        let cases = [
            (None, &present, vec![format!("write {FILE}")], vec![format!("remove {FILE}")]),
            (
                Some(("other\n", 0o440)),
                &present,
                vec![format!("write {FILE}")],
                vec![format!("write {FILE}")],
            ),
            (
                Some((&*ours, 0o644)),
                &present,
                vec![format!("set owner and mode 0440 of {FILE}")],
                vec![format!("set owner and mode 0644 of {FILE}")],
            ),
            (Some((&*ours, 0o440)), &absent, vec![format!("remove {FILE}")], vec![format!("write {FILE}")]),
            (None, &absent, vec![], vec![]),
        ];
        for (there, json, plan, back) in cases {
            let (dir, sys) = fixture();
            if let Some((text, mode)) = there {
                let path = dir.path().join(&FILE[1..]);
                std::fs::write(&path, text).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            }
            let spec = spec(json.clone());
            let mut before = Sudoers::observe(&spec, &sys, Depth::Cheap).await.unwrap();
            if let Some(rule) = &mut before.there {
                // Tests need not be root.
                (rule.uid, rule.gid) = (0, 0);
            }
            let steps = Sudoers::plan(&spec, &before);
            assert_eq!(shown(&steps), plan, "{json}");
            if let Some(Step::WriteFile(file)) = steps.first() {
                assert_eq!((file.mode, file.uid, file.gid), (0o440, 0, 0));
                assert_eq!(file.validate.as_deref().unwrap()[1..], ["-cf", "{path}"]);
            }
            assert_eq!(Sudoers::diff(&spec, &before).is_empty(), plan.is_empty(), "{json}");
            let there = (spec.state == Presence::Present).then(|| Rule {
                mode: MODE,
                uid: 0,
                gid: 0,
                bytes: ours.clone().into_bytes(),
            });
            let now = Seen { there };
            assert_eq!(Sudoers::plan(&spec, &now), [], "{json}");
            let same = Sudoers::essence(&spec, &before) == Sudoers::essence(&spec, &now);
            assert_eq!(same, plan.is_empty(), "{json}");
            if !same {
                let Undo::Steps(steps) = Sudoers::undo(&spec, &before, &serde_json::Value::Null, &now) else {
                    panic!("{json}");
                };
                assert_eq!(shown(&steps), back, "{json}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_missing_is_said() {
        let (dir, sys) = fixture();
        for (json, want) in [
            (json!({"user": "ghost"}), "there is no user \"ghost\""),
            (json!({"user": "%ghost"}), "there is no group \"ghost\""),
            (json!({"user": "%ops", "run_as": "ghost"}), "there is no user \"ghost\""),
        ] {
            let error = Sudoers::observe(&spec(json), &sys, Depth::Cheap).await.unwrap_err();
            assert!(error.to_string().starts_with(want), "{error}");
        }
        std::fs::remove_file(dir.path().join("usr/sbin/visudo")).unwrap();
        let error = Sudoers::observe(&spec(json!({"user": "ada.l"})), &sys, Depth::Cheap).await.unwrap_err();
        assert!(error.to_string().contains("put `package: {name: sudo}` before"), "{error}");
        let gone = spec(json!({"user": "ghost", "state": "absent"}));
        assert!(Sudoers::observe(&gone, &sys, Depth::Proof).await.is_ok());
    }

    /// As sudo 1.9.13 and 1.9.16 list it.
    #[test]
    fn the_last_rule_that_matches_counts() {
        let all = json!({"user": "ada"});
        let some = json!({"user": "ada", "commands": ["/usr/bin/id", "/bin/x a:b, c=d"]});
        let asked = json!({"user": "ada", "commands": ["/usr/bin/id"], "nopasswd": false});
        let web = json!({"user": "ada", "commands": ["/usr/bin/id"], "run_as": "www-data"});
        let two = "(ALL : ALL) NOPASSWD: /usr/bin/id, /bin/x a\\:b\\, c\\=d";
        let later = format!("{two}\n    (ALL : ALL) /bin/y, NOPASSWD: SETENV: /bin/z, PASSWD: /usr/bin/id");
        for (json, listing, want) in [
            (&all, "User ada may run:\n    (ALL : ALL) NOPASSWD: ALL", None),
            (&all, "    (ALL : ALL) NOPASSWD: ALL\n    (ALL : ALL) ALL", Some("another rule wins")),
            (&all, "    (ALL : ALL) ALL\n    (ALL) NOPASSWD: ALL", None),
            // A rule for one target only leaves the others as they are; `sudo -n true` shows what root's does.
            (&all, "    (ALL) NOPASSWD: ALL\n    (postgres) ALL", None),
            (&all, "User ada is not allowed to run sudo on h.", Some("sudo does not list ALL")),
            (&some, two, None),
            (&some, &*later, Some("(ALL : ALL) /bin/y")),
            (&some, "(ALL) NOPASSWD: /usr/bin/id", Some("sudo does not list /bin/x a\\:b")),
            (&asked, "(ALL : ALL) /usr/bin/id", None),
            (&asked, "(ALL : ALL) NOPASSWD: ALL\n(ALL : ALL) PASSWD: /usr/bin/id", None),
            (&asked, "(ALL : ALL) /usr/bin/id\n(ALL : ALL) NOPASSWD: ALL", Some("another rule wins")),
            (&web, "(www-data, games) NOPASSWD: /usr/bin/id\n(root) ALL", None),
            (&web, "(root) NOPASSWD: /usr/bin/id", Some("sudo does not list")),
        ] {
            let why = overridden(&spec(json.clone()), listing);
            match (why, want) {
                (None, None) => {}
                (Some(why), Some(want)) => assert!(why.contains(want), "{listing}: {why}"),
                (got, want) => panic!("{listing}: {got:?}, wanted {want:?}"),
            }
        }
    }
}
