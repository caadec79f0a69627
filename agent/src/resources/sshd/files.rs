//! sshd's files as sshd reads them: in order, with what they include, and which lines stand in the way of ours.
//!
//! Outside of `Match` the first value counts; inside, a value counts before all that stand outside.

use crate::sys::{Sys, SysError};

const MAIN: &str = "/etc/ssh/sshd_config";
/// Where relative paths of `Include` begin.
const HOME: &str = "/etc/ssh";
/// The most that is read of one file, bytes.
const LIMIT: u64 = 1 << 20;
/// As sshd has it: SERVCONF_MAX_DEPTH.
const DEPTH: usize = 16;

/// A line with a keyword.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) file: String,
    /// From 1.
    pub(super) number: usize,
    /// In small letters.
    pub(super) keyword: String,
    pub(super) value: String,
    /// The criteria of the block it stands in.
    pub(super) matching: Option<String>,
    /// It is read before our file.
    early: bool,
}

impl Line {
    /// For people.
    pub(super) fn told(&self) -> String {
        let block =
            self.matching.as_ref().map_or(String::new(), |criteria| format!(" (in `Match {criteria}`)"));
        format!("{}:{}: {} {}{block}", self.file, self.number, self.keyword, self.value)
    }
}

/// All lines, in the order they are read, and all files that were read.
#[derive(Debug, Default)]
pub(super) struct Config {
    lines: Vec<Line>,
    pub(super) files: Vec<String>,
    /// The criteria of the block that our file is read in, once it is read; `Some(None)` for every connection.
    ours: Option<Option<String>>,
}

/// Reads all of it; `ours` counts as there where it is not yet.
pub(super) fn read(host: &Sys, ours: &str) -> Result<Config, SysError> {
    let mut config = Config::default();
    config.file(host, MAIN, ours, None, 0)?;
    Ok(config)
}

impl Config {
    fn file(
        &mut self,
        host: &Sys,
        path: &str,
        ours: &str,
        outer: Option<&str>,
        depth: usize,
    ) -> Result<(), SysError> {
        if depth > DEPTH {
            return Ok(());
        }
        self.files.push(path.to_owned());
        if path == ours {
            self.ours.get_or_insert_with(|| outer.map(str::to_owned));
            return Ok(());
        }
        let bytes = host.read_through(path, LIMIT)?.unwrap_or_default();
        let mut matching = outer.map(str::to_owned);
        for (at, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
            let Some((keyword, value)) = split(line) else { continue };
            match keyword.as_str() {
                "match" => matching = Some(value),
                "include" => {
                    for pattern in value.split_whitespace() {
                        for found in expand(host, pattern.trim_matches('"'), ours)? {
                            self.file(host, &found, ours, matching.as_deref(), depth + 1)?;
                        }
                    }
                }
                _ => {
                    let (file, matching, early) = (path.to_owned(), matching.clone(), self.ours.is_none());
                    self.lines.push(Line { file, number: at + 1, keyword, value, matching, early });
                }
            }
        }
        Ok(())
    }

    /// Why our file does not count for every connection.
    pub(super) fn not_read(&self) -> Option<String> {
        let dir = "/etc/ssh/sshd_config.d";
        match &self.ours {
            Some(None) => None,
            Some(Some(criteria)) => {
                Some(format!("{MAIN} reads {dir} only in `Match {criteria}`: move the Include to its top"))
            }
            None => {
                Some(format!("{MAIN} does not read {dir}: add the line `Include {dir}/*.conf` at its top"))
            }
        }
    }

    /// The lines that count before these settings, and say something else.
    pub(super) fn overriding(&self, settings: &[(String, String)]) -> Vec<&Line> {
        let other = |line: &&Line| {
            let ours = settings.iter().find(|(keyword, _)| keyword.eq_ignore_ascii_case(&line.keyword));
            let first = line.matching.is_some() || line.early;
            first && ours.is_some_and(|(keyword, value)| !same(keyword, value, &line.value))
        };
        self.lines.iter().filter(other).collect()
    }
}

/// Two values that sshd takes for the same.
pub(super) fn same(keyword: &str, ours: &str, theirs: &str) -> bool {
    let plain = |value: &str| {
        let value = value.trim().trim_matches('"').to_lowercase();
        match (keyword.to_ascii_lowercase().as_str(), value.as_str()) {
            ("permitrootlogin", "without-password") => "prohibit-password".to_owned(),
            // A time may have a unit.
            ("logingracetime", _) => value.strip_suffix('s').map_or(value.clone(), str::to_owned),
            _ => value,
        }
    };
    plain(ours) == plain(theirs)
}

/// Keyword and value; `None` for what is none.
fn split(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(line.len());
    let value = line[end..].trim_start_matches(|c: char| c.is_whitespace() || c == '=');
    // A comment may stand after a value.
    let value = value.split(" #").next().unwrap_or_default();
    let keyword = line[..end].trim_matches('"').to_lowercase();
    // What was called otherwise before.
    let keyword = match keyword.as_str() {
        "challengeresponseauthentication" => "kbdinteractiveauthentication".to_owned(),
        _ => keyword,
    };
    Some((keyword, value.trim().to_owned()))
}

/// What a pattern stands for, in order. Patterns in the last part of the path only.
fn expand(host: &Sys, pattern: &str, ours: &str) -> Result<Vec<String>, SysError> {
    let pattern = if pattern.starts_with('/') { pattern.to_owned() } else { format!("{HOME}/{pattern}") };
    let (dir, last) = pattern.rsplit_once('/').unwrap_or(("", &pattern));
    let mut names = host.list(dir)?;
    if let Some((_, name)) = ours.rsplit_once('/').filter(|(ours_dir, _)| *ours_dir == dir)
        && !names.iter().any(|there| there == name)
    {
        names.push(name.to_owned());
    }
    names.retain(|name| (!name.starts_with('.') || last.starts_with('.')) && glob(last, name));
    names.sort();
    Ok(names.into_iter().map(|name| format!("{dir}/{name}")).collect())
}

/// `*` and `?`.
fn glob(pattern: &str, name: &str) -> bool {
    match pattern.chars().next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = &pattern[1..];
            name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| glob(rest, &name[at..]))
        }
        Some(c) => {
            let mut chars = name.chars();
            chars.next().is_some_and(|first| c == '?' || c == first)
                && glob(&pattern[c.len_utf8()..], chars.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "/etc/ssh/sshd_config.d/00-postern.conf";
    const INCLUDE: &str = "Include /etc/ssh/sshd_config.d/*.conf\n";

    /// The lines that are in our way, as people are told them.
    fn in_the_way(files: &[(&str, &str)]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join("etc/ssh").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        let config = read(&sys, OURS).unwrap();
        if let Some(why) = config.not_read() {
            return vec![why];
        }
        let settings = [("PasswordAuthentication", "no"), ("PermitRootLogin", "prohibit-password")];
        let settings = settings.map(|(keyword, value)| (keyword.to_owned(), value.to_owned()));
        config.overriding(&settings).into_iter().map(Line::told).collect()
    }

    /// T05: what a provider wrote comes after ours; what would come before it is named, with its line.
    #[test]
    fn trap_05_lines_that_count_before_ours_are_named() {
        let main = |more: &str| format!("{INCLUDE}{more}");
        for (files, want) in [
            (vec![("sshd_config", main("PasswordAuthentication yes\n"))], vec![]),
            (
                vec![
                    ("sshd_config", main("")),
                    ("sshd_config.d/50-cloud-init.conf", "PasswordAuthentication yes\n".into()),
                ],
                vec![],
            ),
            (
                vec![
                    ("sshd_config", main("")),
                    ("sshd_config.d/00-a.conf", "\npasswordauthentication=yes\n".into()),
                ],
                vec!["/etc/ssh/sshd_config.d/00-a.conf:2: passwordauthentication yes"],
            ),
            (
                vec![
                    ("sshd_config", main("")),
                    (
                        "sshd_config.d/00-a.conf",
                        "PermitRootLogin without-password\nX11Forwarding yes\n".into(),
                    ),
                ],
                vec![],
            ),
            (
                vec![("sshd_config", format!("PermitRootLogin yes\n{INCLUDE}"))],
                vec!["/etc/ssh/sshd_config:1: permitrootlogin yes"],
            ),
            (
                vec![("sshd_config", main("Match Address 192.0.2.0/24\n  PasswordAuthentication yes # x\n"))],
                vec!["/etc/ssh/sshd_config:3: passwordauthentication yes (in `Match Address 192.0.2.0/24`)"],
            ),
            (
                vec![(
                    "sshd_config",
                    main("Match User git\n  PasswordAuthentication no\n  X11Forwarding no\n"),
                )],
                vec![],
            ),
            (
                vec![
                    ("sshd_config", main("Include more\n")),
                    ("more", "Match all\nPermitRootLogin yes\n".into()),
                ],
                vec!["/etc/ssh/more:2: permitrootlogin yes (in `Match all`)"],
            ),
            (
                vec![("sshd_config", "Port 22\n".into())],
                vec![
                    "/etc/ssh/sshd_config does not read /etc/ssh/sshd_config.d: add the line `Include /etc/ssh/sshd_config.d/*.conf` at its top",
                ],
            ),
            (vec![("sshd_config", format!("Include {OURS}\n"))], vec![]),
            (
                vec![("sshd_config", format!("Match User x\n{INCLUDE}"))],
                vec![
                    "/etc/ssh/sshd_config reads /etc/ssh/sshd_config.d only in `Match User x`: move the Include to its top",
                ],
            ),
        ] {
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
            assert_eq!(in_the_way(&files), want, "{files:?}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name, want) in [
            ("*.conf", "a.conf", true),
            ("*.conf", "a.conf.bak", false),
            ("a?c", "abc", true),
            ("*", "", true),
            ("?", "", false),
            ("**x*", "axb", true),
        ] {
            assert_eq!(glob(pattern, name), want, "{pattern} {name}");
        }
    }
}
