//! `user`: an account, by Debian's own programs; what is there is read from the files they keep.

use std::time::Duration;

use postern_proto::ids::PlanHash;
use postern_proto::spec::{Presence, UserSpec};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Depth, Exec, ObserveError, Resource, Step, Undo};
use crate::sys::{Sys, SysError};

/// The most that is read of passwd, shadow or group, bytes.
const LIMIT: u64 = 4 << 20;
/// The time a change may take: a home that is made may be on a slow disk.
const ACT_LIMIT: Duration = Duration::from_secs(120);
/// The time a question may take: names may come from a server, too.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// What every program that changes accounts locks (lckpwdf(3)).
const LOCK: &str = "/etc/.pwd.lock";
/// Numbers from here on are people's (Debian Policy 9.2.2); the last is `nobody`.
const PEOPLE: std::ops::Range<u32> = 1000..65534;

pub(super) struct User;

/// What the files say.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    there: Option<Row>,
    /// The group that bears its name.
    namesake: Option<Namesake>,
    home_there: bool,
}

/// A user's lines in passwd, shadow and group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    uid: u32,
    gid: u32,
    /// The name of its primary group.
    group: Option<String>,
    comment: String,
    home: String,
    shell: String,
    /// The groups that list it, sorted.
    groups: Vec<String>,
    /// The second field in shadow: kept here for the way back, and shown to nobody.
    password: Option<String>,
    /// The six fields after it: last change, least and most days, warning, inactive, expiry.
    ageing: Vec<String>,
}

/// A group as far as `userdel` cares: it removes one that nobody else is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Namesake {
    gid: u32,
    others: bool,
}

impl Row {
    /// Tells passwords apart without holding one.
    fn password_mark(&self) -> Option<String> {
        self.password.as_ref().map(|field| PlanHash::of(field.as_bytes()).to_string())
    }
}

impl Resource for User {
    type Spec = UserSpec;
    type Seen = Seen;

    async fn observe(spec: &UserSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let files = Files::read(host)?;
        let seen = files.seen(&spec.name, host)?;
        if let Some(why) = obstacle(spec, &seen, &files, host)? {
            return Err(ObserveError::Obstacle(why));
        }
        if depth == Depth::Proof {
            prove(spec, &seen, host).await?;
        }
        Ok(seen)
    }

    fn plan(spec: &UserSpec, seen: &Seen) -> Vec<Step> {
        match (&seen.there, spec.state) {
            (None, Presence::Absent) => Vec::new(),
            (Some(_), Presence::Absent) => vec![exec(&["userdel", "--", &spec.name])],
            (None, Presence::Present) => {
                let mut steps = vec![make(spec, seen)];
                steps.extend(spec.password_hash.as_ref().map(|hash| set_password(&spec.name, hash)));
                steps
            }
            (Some(row), Presence::Present) => change(spec, row, seen.home_there),
        }
    }

    fn diff(spec: &UserSpec, seen: &Seen) -> String {
        let name = &spec.name;
        let lines = match (&seen.there, spec.state) {
            (None, Presence::Absent) => Vec::new(),
            (Some(row), Presence::Absent) => {
                vec![format!("is removed (uid {}); its home {} stays", row.uid, row.home)]
            }
            (None, Presence::Present) => {
                let uid = spec.uid.map_or("the next free uid".to_owned(), |uid| format!("uid {uid}"));
                let mut lines = vec![format!("is made ({uid}, {})", spec.new_shell())];
                lines.extend((!spec.groups.is_empty()).then(|| format!("groups: {}", spec.groups.join(" "))));
                lines.extend(spec.password_hash.as_ref().map(|_| "its password is set".to_owned()));
                lines
            }
            (Some(row), Presence::Present) => differences(spec, row, seen.home_there),
        };
        lines.iter().map(|line| format!("{name}: {line}\n")).collect()
    }

    fn hidden_diff(spec: &UserSpec, seen: &Seen) -> String {
        // It says of a password only that it is set.
        Self::diff(spec, seen)
    }

    fn may_hold_secrets(seen: &Seen) -> bool {
        // A lock alone (`!`, `*`) is no hash.
        let hash =
            |row: &Row| row.password.as_ref().is_some_and(|field| field.contains(|c| c != '!' && c != '*'));
        seen.there.as_ref().is_some_and(hash)
    }

    fn essence(spec: &UserSpec, seen: &Seen) -> serde_json::Value {
        let Some(row) = &seen.there else { return serde_json::Value::Null };
        if spec.state == Presence::Absent {
            return json!({
                "uid": row.uid, "gid": row.gid, "comment": row.comment, "home": row.home, "shell": row.shell,
                "groups": row.groups, "password": row.password_mark(), "ageing": row.ageing,
            });
        }
        // Only what is declared: the rest is somebody else's to change.
        let groups: Vec<&String> = if spec.exclusive_groups {
            row.groups.iter().collect()
        } else {
            let mut ours: Vec<_> = spec.groups.iter().filter(|group| row.is_in(group)).collect();
            ours.sort();
            ours.dedup();
            ours
        };
        json!({
            "uid": row.uid, "home": row.home, "groups": groups,
            "group": spec.group.as_ref().map(|_| row.gid),
            "comment": spec.comment.as_ref().map(|_| &row.comment),
            "shell": spec.shell.as_ref().map(|_| &row.shell),
            "password": spec.password_hash.as_ref().map(|_| row.password_mark()),
        })
    }

    fn undo(spec: &UserSpec, before: &Seen, _trace: &serde_json::Value, now: &Seen) -> Undo {
        Undo::Steps(match (&before.there, &now.there) {
            (None, None) => Vec::new(),
            (None, Some(_)) => {
                let mut steps = vec![exec(&["userdel", "--", &spec.name])];
                // It takes its group along, which may have been there before it.
                let alone = now.namesake.as_ref().is_some_and(|group| {
                    !group.others && now.there.as_ref().is_some_and(|row| row.gid == group.gid)
                });
                if let (Some(group), true) = (&before.namesake, alone) {
                    steps.push(make_group(&spec.name, group.gid));
                }
                steps
            }
            (Some(old), None) => make_again(&spec.name, old, now),
            (Some(old), Some(new)) => change_back(spec, old, new),
        })
    }
}

impl Row {
    fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|name| name == group) || self.group.as_deref() == Some(group)
    }
}

/// passwd, shadow and group.
struct Files {
    passwd: String,
    shadow: String,
    group: String,
}

fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

fn row<'a>(text: &'a str, name: &str) -> Option<Vec<&'a str>> {
    rows(text).find(|row| row.first() == Some(&name))
}

impl Files {
    fn read(host: &Sys) -> Result<Self, SysError> {
        let text = |path: &str| -> Result<String, SysError> {
            let bytes = host.read(path, LIMIT)?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Self { passwd: text("/etc/passwd")?, shadow: text("/etc/shadow")?, group: text("/etc/group")? })
    }

    fn gid(&self, group: &str) -> Option<u32> {
        row(&self.group, group)?.get(2)?.parse().ok()
    }

    fn group_name(&self, gid: u32) -> Option<String> {
        let found = rows(&self.group).find(|row| row.get(2).and_then(|id| id.parse().ok()) == Some(gid));
        found.map(|row| row[0].to_owned())
    }

    fn user_name(&self, uid: u32) -> Option<&str> {
        let found = rows(&self.passwd).find(|row| row.get(2).and_then(|id| id.parse().ok()) == Some(uid));
        found.map(|row| row[0])
    }

    fn seen(&self, name: &str, host: &Sys) -> Result<Seen, ObserveError> {
        let there = match row(&self.passwd, name) {
            None => None,
            Some(fields) => Some(self.row(name, &fields).ok_or_else(|| {
                ObserveError::Obstacle(format!("the line of {name} in /etc/passwd cannot be read: mend it"))
            })?),
        };
        let home_there = match &there {
            Some(row) => host.exists(&row.home)?,
            None => false,
        };
        Ok(Seen { there, namesake: self.namesake(name), home_there })
    }

    fn row(&self, name: &str, fields: &[&str]) -> Option<Row> {
        let [_, _, uid, gid, comment, home, shell] = fields else { return None };
        let gid = gid.parse().ok()?;
        let listed = |row: &Vec<&str>| row.get(3).is_some_and(|users| users.split(',').any(|u| u == name));
        let mut groups: Vec<String> = rows(&self.group).filter(listed).map(|r| r[0].to_owned()).collect();
        groups.sort();
        let shadow = row(&self.shadow, name).unwrap_or_default();
        Some(Row {
            uid: uid.parse().ok()?,
            gid,
            group: self.group_name(gid),
            comment: (*comment).to_owned(),
            home: (*home).to_owned(),
            shell: (*shell).to_owned(),
            groups,
            password: shadow.get(1).map(|field| (*field).to_owned()),
            ageing: shadow.iter().skip(2).take(6).map(|field| (*field).to_owned()).collect(),
        })
    }

    fn namesake(&self, name: &str) -> Option<Namesake> {
        let gid = self.gid(name)?;
        let members = row(&self.group, name)?.get(3).copied().unwrap_or_default();
        let listed = members.split(',').any(|user| !user.is_empty() && user != name);
        let id = gid.to_string();
        let primary =
            rows(&self.passwd).any(|row| row.first() != Some(&name) && row.get(3) == Some(&id.as_str()));
        Some(Namesake { gid, others: listed || primary })
    }
}

/// Why what is declared cannot be brought about by any step.
fn obstacle(spec: &UserSpec, seen: &Seen, files: &Files, host: &Sys) -> Result<Option<String>, SysError> {
    let name = &spec.name;
    if spec.state == Presence::Absent {
        return Ok(None);
    }
    // A secret is only known here.
    if !spec.password_is_hashed() {
        return Ok(Some(format!(
            "the password_hash of {name} is no hash as crypt(5) has it; `openssl passwd -6` makes one"
        )));
    }
    for group in spec.groups.iter().chain(&spec.group) {
        if files.gid(group).is_none() {
            return Ok(Some(format!(
                "there is no group {group} on this host: put what makes it before this user"
            )));
        }
    }
    let same_shell = |row: &Row| spec.shell.as_ref().is_none_or(|shell| *shell == row.shell);
    let shell = spec.new_shell();
    if !seen.there.as_ref().is_some_and(same_shell) && !host.exists(shell)? {
        return Ok(Some(format!("the shell {shell} is not on this host: put its package before this user")));
    }
    Ok(match (&seen.there, spec.uid) {
        (Some(row), Some(uid)) if row.uid != uid => Some(format!(
            "{name} has the uid {}, not {uid}: its files would stay behind, so this is left to you",
            row.uid
        )),
        (Some(row), _) if spec.home.as_ref().is_some_and(|home| *home != row.home) => Some(format!(
            "the home of {name} is {}, not {}: a home is not moved, do it with `usermod --move-home`",
            row.home,
            spec.home.as_deref().unwrap_or_default()
        )),
        (None, Some(uid)) => {
            files.user_name(uid).map(|other| format!("the uid {uid} is that of {other}: choose another"))
        }
        _ => None,
    })
}

/// What the host's programs are told when they ask for this name.
async fn prove(spec: &UserSpec, seen: &Seen, host: &Sys) -> Result<(), ObserveError> {
    let name = &spec.name;
    let said = host.run(&["getent", "--", "passwd", name], &[], ASK_LIMIT).await?;
    let text = String::from_utf8_lossy(&said.stdout);
    let line = text.lines().next().unwrap_or_default();
    if let Some(why) = disagrees(name, seen.there.as_ref(), line) {
        return Err(ObserveError::Obstacle(why));
    }
    let (Some(row), Presence::Present, true) = (&seen.there, spec.state, seen.home_there) else {
        return Ok(());
    };
    match host.meta(&row.home)? {
        Some(home) if home.uid != 0 && home.uid != row.uid => Err(ObserveError::Obstacle(format!(
            "{} was there before and belongs to uid {}, not to {name} (uid {}): `chown -R` it, or remove it",
            row.home, home.uid, row.uid
        ))),
        _ => Ok(()),
    }
}

/// Where the answer for a name is not what the files say: another source may come first.
fn disagrees(name: &str, there: Option<&Row>, line: &str) -> Option<String> {
    let other = "see `passwd:` in /etc/nsswitch.conf";
    let Some(row) = there else {
        return (!line.is_empty())
            .then(|| format!("{name} is not in /etc/passwd, but another source knows it: {other}"));
    };
    let fields: Vec<&str> = line.split(':').collect();
    let (uid, gid) = (row.uid.to_string(), row.gid.to_string());
    let same = matches!(fields[..], [_, _, u, g, _, home, shell] if u == uid && g == gid && home == row.home && shell == row.shell);
    (!same).then(|| {
        format!("programs that ask for {name} are not told what /etc/passwd says, but {line:?}: {other}")
    })
}

fn account_change(argv: &[&str]) -> Exec {
    Exec { waits_for: vec![LOCK.to_owned()], ..Exec::new(argv, ACT_LIMIT) }
}

fn exec(argv: &[&str]) -> Step {
    Step::Exec(account_change(argv))
}

/// Over stdin: an argument vector is for everyone to see.
fn set_password(name: &str, hash: &str) -> Step {
    let stdin = Some(format!("{name}:{hash}\n"));
    Step::Exec(Exec { stdin, ..account_change(&["chpasswd", "--encrypted"]) })
}

fn make_group(name: &str, gid: u32) -> Step {
    exec(&["groupadd", "--gid", &gid.to_string(), "--", name])
}

fn make(spec: &UserSpec, seen: &Seen) -> Step {
    let mut argv = vec!["useradd", "--shell", spec.new_shell()];
    argv.push(if spec.system { "--no-create-home" } else { "--create-home" });
    if spec.system {
        argv.push("--system");
    }
    let uid = spec.uid.map(|uid| uid.to_string());
    if let Some(uid) = &uid {
        argv.extend(["--uid", uid]);
    }
    match (&spec.group, &seen.namesake) {
        (Some(group), _) => argv.extend(["--gid", group]),
        (None, Some(_)) => argv.extend(["--gid", &spec.name]),
        (None, None) => argv.push("--user-group"),
    }
    let groups = spec.groups.join(",");
    if !groups.is_empty() {
        argv.extend(["--groups", &groups]);
    }
    if let Some(home) = &spec.home {
        argv.extend(["--home-dir", home]);
    }
    if let Some(comment) = &spec.comment {
        argv.extend(["--comment", comment]);
    }
    argv.extend(["--", &spec.name]);
    exec(&argv)
}

fn change(spec: &UserSpec, row: &Row, home_there: bool) -> Vec<Step> {
    let mut options: Vec<&str> = Vec::new();
    for (option, want, is) in [
        ("--shell", &spec.shell, Some(&row.shell)),
        ("--comment", &spec.comment, Some(&row.comment)),
        ("--gid", &spec.group, row.group.as_ref()),
    ] {
        if let Some(want) = want
            && Some(want) != is
        {
            options.extend([option, want]);
        }
    }
    let groups = new_groups(spec, row);
    if let Some(groups) = &groups {
        options.extend(if spec.exclusive_groups { &["--groups"][..] } else { &["--append", "--groups"] });
        options.push(groups);
    }
    let mut steps = Vec::new();
    if !options.is_empty() {
        let argv: Vec<&str> = ["usermod"].into_iter().chain(options).chain(["--", &spec.name]).collect();
        steps.push(exec(&argv));
    }
    if lacks_home(spec, row, home_there) {
        // As pam_mkhomedir would, from /etc/skel; for nobody else to read.
        steps.push(exec(&["mkhomedir_helper", &spec.name, "0077"]));
    }
    if let Some(hash) = &spec.password_hash
        && row.password.as_ref() != Some(hash)
    {
        steps.push(set_password(&spec.name, hash));
    }
    steps
}

/// The groups to add; all of them where it is to be in no others; `None` when it is as declared.
fn new_groups(spec: &UserSpec, row: &Row) -> Option<String> {
    if !spec.exclusive_groups {
        let missing: Vec<_> =
            spec.groups.iter().filter(|group| !row.is_in(group)).map(String::as_str).collect();
        return (!missing.is_empty()).then(|| missing.join(","));
    }
    let primary = spec.group.as_ref().or(row.group.as_ref());
    let mut want: Vec<_> = spec.groups.iter().filter(|group| Some(*group) != primary).collect();
    want.sort();
    want.dedup();
    let is: Vec<_> = row.groups.iter().filter(|group| Some(*group) != primary).collect();
    (want != is).then(|| want.into_iter().map(String::as_str).collect::<Vec<_>>().join(","))
}

/// A person without a home: one that was cut off while it was made, or that lost it.
fn lacks_home(spec: &UserSpec, row: &Row, home_there: bool) -> bool {
    !home_there && !spec.system && PEOPLE.contains(&row.uid)
}

fn differences(spec: &UserSpec, row: &Row, home_there: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let none = "none".to_owned();
    for (what, want, is) in [
        ("shell", &spec.shell, &row.shell),
        ("comment", &spec.comment, &row.comment),
        ("primary group", &spec.group, row.group.as_ref().unwrap_or(&none)),
    ] {
        lines.extend(
            want.as_ref().filter(|want| *want != is).map(|want| format!("{what}: {is:?} -> {want:?}")),
        );
    }
    if let Some(groups) = new_groups(spec, row) {
        let groups = groups.replace(',', " ");
        lines.push(if spec.exclusive_groups {
            format!("groups: {} -> {groups}", row.groups.join(" "))
        } else {
            format!("groups: + {groups}")
        });
    }
    if lacks_home(spec, row, home_there) {
        lines.push(format!("its home {} is made", row.home));
    }
    if spec.password_hash.is_some() && row.password != spec.password_hash {
        lines.push("its password is set".to_owned());
    }
    lines
}

/// A password and when it was changed, as they were.
fn restore_password(name: &str, old: &Row) -> Vec<Step> {
    let Some(field) = &old.password else { return Vec::new() };
    let mut steps = vec![set_password(name, field)];
    if let [last, least, most, warn, inactive, expiry] = &old.ageing[..] {
        // -1 is how chage spells an empty field.
        let or = |field: &str| if field.is_empty() { "-1".to_owned() } else { field.to_owned() };
        let fields = [last, least, most, warn, inactive, expiry].map(|field| or(field));
        let options =
            ["--lastday", "--mindays", "--maxdays", "--warndays", "--inactive", "--expiredate"].into_iter();
        let mut argv = vec!["chage"];
        for (option, value) in options.zip(&fields) {
            argv.extend([option, value]);
        }
        argv.extend(["--", name]);
        steps.push(exec(&argv));
    }
    steps
}

fn make_again(name: &str, old: &Row, now: &Seen) -> Vec<Step> {
    let mut steps = Vec::new();
    if old.group.as_deref() == Some(name) && now.namesake.is_none() {
        steps.push(make_group(name, old.gid));
    }
    let (uid, gid, groups) = (old.uid.to_string(), old.gid.to_string(), old.groups.join(","));
    let mut argv = vec!["useradd", "--no-create-home", "--uid", &uid, "--gid", &gid];
    argv.extend(["--home-dir", &old.home, "--shell", &old.shell, "--comment", &old.comment]);
    if !groups.is_empty() {
        argv.extend(["--groups", &groups]);
    }
    argv.extend(["--", name]);
    steps.push(exec(&argv));
    steps.extend(restore_password(name, old));
    steps
}

fn change_back(spec: &UserSpec, old: &Row, new: &Row) -> Vec<Step> {
    let name = &spec.name;
    let mut options: Vec<&str> = Vec::new();
    let (gid, groups) = (old.gid.to_string(), old.groups.join(","));
    if spec.shell.is_some() && old.shell != new.shell {
        options.extend(["--shell", &old.shell]);
    }
    if spec.comment.is_some() && old.comment != new.comment {
        options.extend(["--comment", &old.comment]);
    }
    if spec.group.is_some() && old.gid != new.gid {
        options.extend(["--gid", &gid]);
    }
    if spec.exclusive_groups && old.groups != new.groups {
        options.extend(["--groups", &groups]);
    }
    let mut steps = Vec::new();
    if !options.is_empty() {
        let argv: Vec<&str> = ["usermod"].into_iter().chain(options).chain(["--", name]).collect();
        steps.push(exec(&argv));
    }
    if !spec.exclusive_groups {
        let ours = |group: &&String| spec.groups.contains(group) && !old.groups.contains(group);
        let added = new.groups.iter().filter(ours);
        steps.extend(added.map(|group| exec(&["gpasswd", "--delete", name, group])));
    }
    if spec.password_hash.is_some() && old.password != new.password {
        steps.extend(restore_password(name, old));
    }
    steps
}

#[cfg(test)]
mod tests;
