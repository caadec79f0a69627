//! `authorized_key`: one key in a user's own `.ssh/authorized_keys`; every other line stays as it is.

use std::time::Duration;

use postern_proto::spec::{AuthorizedKeySpec, LoginKey, Presence};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Depth, ObserveError, Resource, Step, Undo, WriteFile, base64_bytes};
use crate::sys::{Account, FileId, FileKind, Meta, Sys, SysError};

/// The most that is read of the file, bytes.
const LIMIT: u64 = 1 << 20;
/// The time sshd may take to say what it would do.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// Debian's sshd, and the directory it cannot say anything without.
const SSHD: [&str; 2] = ["/usr/sbin/sshd", "/run/sshd"];

pub(super) struct AuthorizedKey;

/// What is in the user's home.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    home: String,
    uid: u32,
    gid: u32,
    dir: Option<Dir>,
    file: Option<Keys>,
    /// Which ones were looked at.
    #[serde(default)]
    dir_id: Option<FileId>,
    #[serde(default)]
    file_id: Option<FileId>,
}

/// `.ssh`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Dir {
    mode: u32,
    uid: u32,
    gid: u32,
    /// Nothing but the file is in it.
    alone: bool,
}

/// `.ssh/authorized_keys`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Keys {
    mode: u32,
    uid: u32,
    gid: u32,
    #[serde(with = "base64_bytes")]
    bytes: Vec<u8>,
}

impl Seen {
    fn dir_path(&self) -> String {
        format!("{}/.ssh", self.home)
    }

    fn path(&self) -> String {
        format!("{}/.ssh/authorized_keys", self.home)
    }

    /// Makes the directory, or gives the one that was seen this mode and owner.
    fn own_dir(&self, mode: u32, uid: u32, gid: u32) -> Step {
        let path = self.dir_path();
        match self.dir_id {
            Some(_) => Step::SetAttributes { path, mode, uid, gid, seen: self.dir_id },
            None => Step::MakeDirectory { path, mode, uid, gid },
        }
    }

    fn bytes(&self) -> &[u8] {
        self.file.as_ref().map_or(&[], |file| &file.bytes)
    }
}

impl Resource for AuthorizedKey {
    type Spec = AuthorizedKeySpec;
    type Seen = Seen;

    async fn observe(spec: &AuthorizedKeySpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let user = match host.user(&spec.user) {
            Ok(user) => user,
            // Who is not there has no keys.
            Err(SysError::NoAccount { .. }) if spec.state == Presence::Absent => return Ok(Seen::default()),
            Err(error) => return Err(error.into()),
        };
        let seen = look(spec, &user, host)?;
        if depth == Depth::Proof && spec.state == Presence::Present {
            prove(spec, &user, &seen, host).await?;
        }
        Ok(seen)
    }

    fn plan(spec: &AuthorizedKeySpec, seen: &Seen) -> Vec<Step> {
        let Ok(key) = LoginKey::parse(&spec.key) else { return Vec::new() };
        let path = seen.path();
        let new = declared(spec, &key, seen.bytes());
        if spec.state == Presence::Absent {
            let write =
                |file: &Keys| (file.bytes != new).then(|| write(path, new, (file.mode, file.uid, file.gid)));
            return seen.file.as_ref().and_then(write).into_iter().collect();
        }
        let (uid, gid) = (seen.uid, seen.gid);
        let mut steps = Vec::new();
        if seen.dir.as_ref().is_none_or(|dir| (dir.mode, dir.uid) != (0o700, uid)) {
            steps.push(seen.own_dir(0o700, uid, gid));
        }
        match &seen.file {
            Some(file) if file.bytes == new && (file.mode, file.uid) == (0o600, uid) => {}
            Some(file) if file.bytes == new => {
                steps.push(Step::SetAttributes { path, mode: 0o600, uid, gid, seen: seen.file_id });
            }
            _ => steps.push(write(path, new, (0o600, uid, gid))),
        }
        steps
    }

    fn diff(spec: &AuthorizedKeySpec, seen: &Seen) -> String {
        let Ok(key) = LoginKey::parse(&spec.key) else { return String::new() };
        // Only our lines: what others wrote there, commands with their arguments too, is theirs.
        let (old, new) = (seen.bytes(), declared(spec, &key, seen.bytes()));
        let told = |bytes: &[u8]| -> Vec<String> {
            let ours = lines(bytes).filter_map(|line| entry(line, &key));
            ours.map(|entry| entry.told(&key)).collect()
        };
        let (before, after) = (told(old), told(&new));
        let mut text = String::new();
        if before != after {
            for line in &before {
                text += &format!("{}: - {line}\n", seen.path());
            }
            for line in &after {
                text += &format!("{}: + {line}\n", seen.path());
            }
        }
        if text.is_empty() && !Self::plan(spec, seen).is_empty() {
            text = format!("{}: owner and mode\n", seen.path());
        }
        text
    }

    fn essence(spec: &AuthorizedKeySpec, seen: &Seen) -> serde_json::Value {
        let (Ok(key), Some(file)) = (LoginKey::parse(&spec.key), &seen.file) else {
            return serde_json::Value::Null;
        };
        // Other keys are other resources', or somebody else's.
        let ours = lines(&file.bytes).filter(|line| entry(line, &key).is_some());
        let ours: Vec<_> = ours.map(|line| String::from_utf8_lossy(line).trim_end().to_owned()).collect();
        if ours.is_empty() {
            return serde_json::Value::Null;
        }
        let dir = seen.dir.as_ref().map(|dir| json!([dir.mode, dir.uid]));
        json!({"lines": ours, "mode": file.mode, "uid": file.uid, "gid": file.gid, "dir": dir})
    }

    fn undo(spec: &AuthorizedKeySpec, before: &Seen, _trace: &serde_json::Value, now: &Seen) -> Undo {
        match LoginKey::parse(&spec.key) {
            Ok(key) => Undo::Steps(way_back(&key, before, now)),
            Err(why) => Undo::Cannot(format!("the key cannot be read: {why}")),
        }
    }
}

fn write(path: String, content: Vec<u8>, (mode, uid, gid): (u32, u32, u32)) -> Step {
    Step::WriteFile(WriteFile { path, content, mode, uid, gid, validate: None })
}

/// Lines with what ends them.
pub(super) fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n')
}

/// A line that holds the key.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    options: Vec<u8>,
    comment: Vec<u8>,
}

impl Entry {
    /// With this option a key is no login's but an authority's, which is another thing.
    fn is_authority(&self) -> bool {
        is_authority(&self.options)
    }

    fn told(&self, key: &LoginKey) -> String {
        let options = if self.options.is_empty() { "" } else { "with options " };
        let (own, comment) = (String::from_utf8_lossy(&self.options), String::from_utf8_lossy(&self.comment));
        format!("{} {} {comment} {options}{own}", key.algorithm, key.fingerprint).trim_end().to_owned()
    }
}

fn is_authority(options: &[u8]) -> bool {
    options.split(|byte| *byte == b',').any(|option| option.eq_ignore_ascii_case(b"cert-authority"))
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

pub(super) fn trim_start(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !is_blank(byte)).unwrap_or(text.len());
    &text[start..]
}

/// A line as sshd reads it: a key, or options and then a key. `None` when it is not this key's.
fn entry(line: &[u8], key: &LoginKey) -> Option<Entry> {
    let text = trim_start(line.trim_ascii_end());
    if text.first() == Some(&b'#') {
        return None;
    }
    if let Some(comment) = after_key(text, key) {
        return Some(Entry { options: Vec::new(), comment });
    }
    let (options, rest) = text.split_at(end_of_options(text)?);
    Some(Entry { options: options.to_owned(), comment: after_key(trim_start(rest), key)? })
}

/// What comes after the key, where the text begins with it.
fn after_key(text: &[u8], key: &LoginKey) -> Option<Vec<u8>> {
    let rest = text.strip_prefix(key.algorithm.as_bytes())?;
    let base64 = rest.first().filter(|byte| is_blank(byte)).map(|_| trim_start(rest))?;
    let rest = base64.strip_prefix(key.base64.as_bytes())?;
    let ends = rest.first().is_none_or(is_blank);
    ends.then(|| trim_start(rest).to_owned())
}

/// The first blank outside of quotes.
pub(super) fn end_of_options(text: &[u8]) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'"' if !escaped => quoted = !quoted,
            byte if is_blank(byte) && !quoted => return Some(at),
            _ => {}
        }
        escaped = *byte == b'\\' && !escaped;
    }
    None
}

/// The file as it is to be.
fn declared(spec: &AuthorizedKeySpec, key: &LoginKey, old: &[u8]) -> Vec<u8> {
    let present = spec.state == Presence::Present;
    let options = spec.options.as_deref().unwrap_or_default();
    let mut new = Vec::new();
    let mut found = false;
    for line in lines(old) {
        let ours = entry(line, key)
            .filter(|entry| !present || entry.is_authority() == is_authority(options.as_bytes()));
        match ours {
            None => new.extend_from_slice(line),
            // A second line could allow what the first does not.
            Some(_) if !present || found => {}
            Some(entry) if entry.options == options.as_bytes() => {
                new.extend_from_slice(line);
                found = true;
            }
            Some(entry) => {
                add_line(&mut new, options, key, &entry.comment);
                found = true;
            }
        }
    }
    if present && !found {
        add_line(&mut new, options, key, key.comment.as_bytes());
    }
    new
}

fn end_line(bytes: &mut Vec<u8>) {
    if bytes.last().is_some_and(|byte| *byte != b'\n') {
        bytes.push(b'\n');
    }
}

fn add_line(bytes: &mut Vec<u8>, options: &str, key: &LoginKey, comment: &[u8]) {
    end_line(bytes);
    let words = [options.as_bytes(), key.algorithm.as_bytes(), key.base64.as_bytes(), comment];
    let words: Vec<&[u8]> = words.into_iter().filter(|word| !word.is_empty()).collect();
    bytes.extend(words.join(&b' '));
    bytes.push(b'\n');
}

/// The file without the key, and the lines that hold it.
fn parted(bytes: &[u8], key: &LoginKey) -> (Vec<u8>, Vec<u8>) {
    let (mut rest, mut ours) = (Vec::new(), Vec::new());
    for line in lines(bytes) {
        if entry(line, key).is_some() { &mut ours } else { &mut rest }.extend_from_slice(line);
    }
    (rest, ours)
}

fn way_back(key: &LoginKey, before: &Seen, now: &Seen) -> Vec<Step> {
    let path = now.path();
    let mut steps = Vec::new();
    if let Some(dir) = &before.dir {
        let attributes = |dir: &Dir| (dir.mode, dir.uid, dir.gid);
        if now.dir.as_ref().map(attributes) != Some(attributes(dir)) {
            steps.push(now.own_dir(dir.mode, dir.uid, dir.gid));
        }
    }
    let (mut rest, _) = parted(now.bytes(), key);
    let Some(old) = &before.file else {
        match &now.file {
            Some(file) if !rest.is_empty() => {
                steps.push(write(path, rest, (file.mode, file.uid, file.gid)));
            }
            _ => {
                steps.push(Step::Remove { path });
                if before.dir.is_none() && now.dir.as_ref().is_some_and(|dir| dir.alone) {
                    steps.push(Step::RemoveDirectory { path: now.dir_path() });
                }
            }
        }
        return steps;
    };
    let (mut old_rest, ours) = parted(&old.bytes, key);
    let mut here = rest.clone();
    end_line(&mut here);
    end_line(&mut old_rest);
    let content = if here == old_rest {
        old.bytes.clone()
    } else {
        // Others changed their lines since: theirs stay, ours come back at the end.
        if !ours.is_empty() {
            end_line(&mut rest);
        }
        rest.extend(ours);
        rest
    };
    let same = now.file.as_ref().is_some_and(|file| file.bytes == content);
    let (mode, uid, gid) = (old.mode, old.uid, old.gid);
    steps.push(if same {
        Step::SetAttributes { path, mode, uid, gid, seen: now.file_id }
    } else {
        write(path, content, (mode, uid, gid))
    });
    steps
}

/// Everything on the way is the user's to change at any time: nothing there is followed.
fn look(spec: &AuthorizedKeySpec, user: &Account, host: &Sys) -> Result<Seen, ObserveError> {
    let home = user.home.trim_end_matches('/').to_owned();
    let mut seen = Seen { home, uid: user.uid, gid: user.gid, ..Seen::default() };
    let (name, dir, path) = (&spec.user, seen.dir_path(), seen.path());
    let obstacle = |why: String| Err(ObserveError::Obstacle(why));
    let is_home =
        host.meta(&format!("{}/.", seen.home))?.is_some_and(|meta| meta.kind == FileKind::Directory);
    if !is_home {
        if spec.state == Presence::Absent {
            return Ok(seen);
        }
        return obstacle(format!("the home of {name}, {:?}, is not a directory on this host", user.home));
    }
    let Some(meta) = host.meta(&dir)? else { return Ok(seen) };
    if meta.kind != FileKind::Directory {
        let what = meta.kind.as_str();
        return obstacle(format!("{dir} is {what}, which is not followed: make it a directory"));
    }
    let alone = host.list(&dir)?.iter().all(|name| name == "authorized_keys");
    seen.dir = Some(Dir { mode: meta.mode, uid: meta.uid, gid: meta.gid, alone });
    seen.dir_id = Some(meta.id);
    match host.meta(&path)? {
        None => return Ok(seen),
        Some(meta) if meta.kind != FileKind::File => {
            let what = meta.kind.as_str();
            return obstacle(format!("{path} is {what}, which is not followed: make it a file"));
        }
        Some(_) => {}
    }
    if let Some((meta, bytes)) = host.read_owned(&path, LIMIT)? {
        // Moved or linked here by its user, a private file of root's would be given away with the copy.
        let theirs = meta.uid == user.uid || meta.uid == 0 && meta.mode & 0o004 != 0;
        if meta.kind != FileKind::File || !theirs {
            return obstacle(format!(
                "{path} belongs to uid {} (mode {:04o}), so sshd cannot read it for {name}: look whose it is, \
                 then `chown {name}` it or remove it",
                meta.uid, meta.mode
            ));
        }
        seen.file = Some(Keys { mode: meta.mode, uid: meta.uid, gid: meta.gid, bytes });
        seen.file_id = Some(meta.id);
    }
    Ok(seen)
}

/// Whether sshd would really use the file.
async fn prove(
    spec: &AuthorizedKeySpec,
    user: &Account,
    seen: &Seen,
    host: &Sys,
) -> Result<(), ObserveError> {
    let home = host.meta(&format!("{}/.", seen.home))?;
    if !host.exists(SSHD[0])? || !host.exists(SSHD[1])? {
        // Nobody can log in, so nothing is in force yet; the modes are those that sshd asks for by itself.
        return match home.and_then(|home| loose(&seen.home, &home, user)) {
            Some(why) => Err(ObserveError::Obstacle(why)),
            None => Ok(()),
        };
    }
    let connection = format!("user={},host=localhost,addr=127.0.0.1", spec.user);
    let said = host.run(&[SSHD[0], "-T", "-C", &connection], &[], ASK_LIMIT).await?;
    if !said.ok() {
        let why = said.last_line();
        return Err(ObserveError::Obstacle(format!("sshd cannot say what is in force (sshd -T): {why}")));
    }
    let config = String::from_utf8_lossy(&said.stdout);
    match refused(&config, spec, user, seen, home.as_ref()) {
        Some(why) => Err(ObserveError::Obstacle(why)),
        None => Ok(()),
    }
}

/// What sshd's StrictModes asks of every directory on the way up to the home (auth_secure_path).
pub(super) fn loose(path: &str, meta: &Meta, user: &Account) -> Option<String> {
    let name = &user.name;
    if meta.uid != 0 && meta.uid != user.uid {
        return Some(format!("sshd ignores the key: {path} belongs to uid {}, not to {name}", meta.uid));
    }
    (meta.mode & 0o022 != 0).then(|| {
        format!("sshd ignores the key: others can write to {path} (mode {:04o}); `chmod go-w` it", meta.mode)
    })
}

/// Why sshd, as it is configured, does not let the user in with this key.
fn refused(
    config: &str,
    spec: &AuthorizedKeySpec,
    user: &Account,
    seen: &Seen,
    home: Option<&Meta>,
) -> Option<String> {
    let get = |name: &str| {
        let row = config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        row.unwrap_or_default().trim()
    };
    if get("pubkeyauthentication") == "no" {
        return Some("sshd takes no keys: PubkeyAuthentication is no".to_owned());
    }
    if user.uid == 0 {
        let forced = spec.options.as_deref().is_some_and(|options| options.contains("command="));
        match get("permitrootlogin") {
            "no" => return Some("sshd lets root in by no key: PermitRootLogin is no".to_owned()),
            "forced-commands-only" if !forced => {
                return Some(
                    "sshd lets root in by keys with a command only: PermitRootLogin is forced-commands-only"
                        .to_owned(),
                );
            }
            _ => {}
        }
    }
    let path = seen.path();
    let patterns = get("authorizedkeysfile");
    if !patterns.split_whitespace().any(|pattern| expanded(pattern, user, &seen.home) == path) {
        return Some(format!(
            "sshd does not look into {path}: AuthorizedKeysFile is {patterns:?}; see /etc/ssh/sshd_config.d"
        ));
    }
    if get("strictmodes") == "no" {
        return None;
    }
    home.and_then(|home| loose(&seen.home, home, user))
}

/// sshd_config(5), AuthorizedKeysFile: the tokens, and where a path begins that is not absolute.
pub(super) fn expanded(pattern: &str, user: &Account, home: &str) -> String {
    let mut text = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '%' { chars.next() } else { None }) {
            ('%', Some('%')) => text.push('%'),
            ('%', Some('h')) => text.push_str(home),
            ('%', Some('u')) => text.push_str(&user.name),
            ('%', Some('U')) => text.push_str(&user.uid.to_string()),
            ('%', Some(other)) => text.extend(['%', other]),
            _ => text.push(c),
        }
    }
    if text.starts_with('/') { text } else { format!("{home}/{text}") }
}

#[cfg(test)]
mod tests;
