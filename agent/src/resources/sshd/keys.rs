//! Whether a user can log in with a key at all: nobody is to be locked out.

use postern_proto::spec::LoginKey;

use crate::resources::authorized_key::{end_of_options, expanded, lines, loose, trim_start};
use crate::sys::{FileKind, Sys, SysError};

/// The most that is read of one file, bytes.
const LIMIT: u64 = 1 << 20;
/// What sshd looks into by itself.
pub(super) const USUAL: &str = ".ssh/authorized_keys .ssh/authorized_keys2";
/// Shells that nobody can work in.
const NO_SHELLS: [&str; 4] = ["/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false"];

/// The keys that log a user in, as `TYPE BASE64`; or why there is none, for people.
pub(super) fn usable(
    host: &Sys,
    name: &str,
    patterns: &str,
) -> Result<Result<Vec<String>, String>, SysError> {
    let user = match host.user(name) {
        Ok(user) => user,
        Err(error @ SysError::NoAccount { .. }) => return Ok(Err(error.to_string())),
        Err(error) => return Err(error),
    };
    let shell = shell(host, name)?;
    if NO_SHELLS.contains(&shell.as_str()) {
        return Ok(Err(format!("the shell of {name} is {shell}")));
    }
    let home = user.home.trim_end_matches('/').to_owned();
    if let Some(why) = host.meta(&format!("{home}/."))?.and_then(|meta| loose(&home, &meta, &user)) {
        return Ok(Err(why));
    }
    let mut keys = Vec::new();
    let mut looked = Vec::new();
    for pattern in patterns.split_whitespace().filter(|pattern| *pattern != "none") {
        let path = expanded(pattern, &user, &home);
        looked.push(path.clone());
        let dir = path.rsplit_once('/').map_or("/", |(dir, _)| dir);
        let Some((meta, bytes)) = host.read_owned(&path, LIMIT)? else { continue };
        let within = host.meta(dir)?.filter(|_| path.starts_with(&*home));
        let wrong = loose(&path, &meta, &user).or(within.and_then(|meta| loose(dir, &meta, &user)));
        if let Some(why) = wrong.filter(|_| meta.kind == FileKind::File) {
            return Ok(Err(why));
        }
        keys.extend(lines(&bytes).filter_map(key));
    }
    if keys.is_empty() {
        return Ok(Err(format!("there is no key for {name} in {}", looked.join(" or "))));
    }
    Ok(Ok(keys))
}

/// A line's key, where it opens a session like any other: not one for a single command, or from somewhere only.
fn key(line: &[u8]) -> Option<String> {
    let text = trim_start(line.trim_ascii_end());
    if text.first() == Some(&b'#') {
        return None;
    }
    let read = |text: &[u8]| LoginKey::parse(std::str::from_utf8(text).ok()?).ok();
    let found = match read(text) {
        Some(key) => key,
        None => {
            let (options, rest) = text.split_at(end_of_options(text)?);
            let options = String::from_utf8_lossy(options).to_lowercase();
            let bound = ["command=", "from=", "expiry-time=", "cert-authority", "principals="];
            if bound.iter().any(|option| options.contains(option)) {
                return None;
            }
            read(trim_start(rest))?
        }
    };
    Some(format!("{} {}", found.algorithm, found.base64))
}

/// passwd(5): the seventh field; empty stands for a shell that works.
fn shell(host: &Sys, name: &str) -> Result<String, SysError> {
    let bytes = host.read_through("/etc/passwd", 16 << 20)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let row = text.lines().find(|line| line.split(':').next() == Some(name));
    Ok(row.and_then(|row| row.split(':').nth(6)).unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGT2/5hLlLC12ZgUEoud+FIUtp0Szc6E48Spq1r+GtnI";

    fn look(text: &str, mode: u32, shell: &str) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let ssh = dir.path().join("home/ada/.ssh");
        std::fs::create_dir_all(&ssh).unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        std::fs::write(dir.path().join("etc/passwd"), format!("ada:x:{uid}:{gid}::/home/ada:{shell}\n"))
            .unwrap();
        std::fs::set_permissions(dir.path().join("home/ada"), std::fs::Permissions::from_mode(0o755))
            .unwrap();
        std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(ssh.join("authorized_keys"), text).unwrap();
        std::fs::set_permissions(ssh.join("authorized_keys"), std::fs::Permissions::from_mode(mode)).unwrap();
        usable(&Sys::rooted(dir.path().to_owned(), String::new()), "ada", USUAL).unwrap()
    }

    #[test]
    fn keys_that_log_in_by_table() {
        let bash = "/bin/bash";
        for (text, mode, shell, want) in [
            (format!("# x\n{KEY} ada@home\n"), 0o600, bash, Ok(1)),
            (format!("no-pty,no-X11-forwarding {KEY}\n"), 0o644, bash, Ok(1)),
            (
                format!("command=\"/bin/x y\" {KEY}\n"),
                0o600,
                bash,
                Err("there is no key for ada in /home/ada/.ssh"),
            ),
            (format!("from=\"192.0.2.1\" {KEY}\n"), 0o600, bash, Err("there is no key")),
            (format!("#{KEY}\n"), 0o600, bash, Err("there is no key")),
            (String::new(), 0o600, bash, Err("there is no key")),
            (format!("{KEY}\n"), 0o666, bash, Err("sshd ignores the key: others can write")),
            (format!("{KEY}\n"), 0o600, "/usr/sbin/nologin", Err("the shell of ada is")),
        ] {
            match (look(&text, mode, shell), want) {
                (Ok(keys), Ok(count)) => assert_eq!((keys.len(), &*keys[0]), (count, KEY), "{text}"),
                (Err(why), Err(want)) => assert!(why.starts_with(want), "{why}"),
                (got, want) => panic!("{text}: {got:?}, wanted {want:?}"),
            }
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "").unwrap();
        let ghost = usable(&Sys::rooted(dir.path().to_owned(), String::new()), "ghost", USUAL).unwrap();
        assert!(ghost.unwrap_err().contains("no user \"ghost\""));
    }
}
