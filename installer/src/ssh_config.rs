//! `~/.ssh/config`: the part of ssh_config(5) that says how a host is reached. Everything else is ignored.

use std::path::{Path, PathBuf};

/// How deep `Include` may nest; OpenSSH's own limit.
const MAX_DEPTH: usize = 16;
/// The largest configuration file that is read, bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that exists cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line makes no sense.
    #[error("{}, line {line}: {why}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
}

/// One parsed configuration: files in the order given, the first value of a keyword wins.
#[derive(Clone, Debug, Default)]
pub struct SshConfig {
    items: Vec<Item>,
}

#[derive(Clone, Debug)]
enum Item {
    /// Opens a block: what follows counts only where this matches.
    Host(Vec<Pattern>),
    Match(Vec<Criterion>),
    /// What a file that was included is wrapped in: its blocks end with it.
    Push,
    Pop,
    Setting {
        keyword: String,
        arguments: Vec<String>,
    },
}

#[derive(Clone, Debug)]
struct Pattern {
    negated: bool,
    text: String,
}

#[derive(Clone, Debug)]
struct Criterion {
    negated: bool,
    kind: CriterionKind,
}

#[derive(Clone, Debug)]
enum CriterionKind {
    All,
    Host(Vec<Pattern>),
    OriginalHost(Vec<Pattern>),
    User(Vec<Pattern>),
    LocalUser(Vec<Pattern>),
    /// `exec`, `canonical`, `final` and what we do not know: never true here.
    Never,
}

/// What a host's blocks say, first value wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostSettings {
    pub(crate) host_name: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) user: Option<String>,
    pub(crate) identity_files: Vec<String>,
    pub(crate) identities_only: Option<bool>,
    pub(crate) identity_agent: Option<String>,
    pub(crate) proxy_jump: Option<String>,
    pub(crate) proxy_command: Option<String>,
    pub(crate) known_hosts: Option<Vec<String>>,
    pub(crate) strict: Option<String>,
    pub(crate) host_key_alias: Option<String>,
}

/// Who asks, for `Match`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a> {
    pub(crate) host: &'a str,
    /// The user named on the command line.
    pub(crate) user: Option<&'a str>,
    pub(crate) local_user: &'a str,
}

impl SshConfig {
    /// Reads files in order (`~/.ssh/config` first, then the system's). A file that does not exist is as
    /// good as an empty one. `home` is what `~` stands for.
    pub fn load(files: &[PathBuf], home: &Path) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for file in files {
            config.items.push(Item::Push);
            config.read_file(file, home, 0)?;
            config.items.push(Item::Pop);
        }
        Ok(config)
    }

    /// Parses one text; `Include` is resolved on disk against `home`.
    pub fn parse(text: &str, home: &Path) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        config.read_text(text, Path::new("ssh_config"), home, 0)?;
        Ok(config)
    }

    fn read_file(&mut self, path: &Path, home: &Path, depth: usize) -> Result<(), ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let size = match std::fs::metadata(path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(read(error)),
        };
        if size > MAX_FILE {
            return Err(read(std::io::Error::other("larger than 1 MiB")));
        }
        let bytes = std::fs::read(path).map_err(read)?;
        self.read_text(&String::from_utf8_lossy(&bytes), path, home, depth)
    }

    fn read_text(&mut self, text: &str, path: &Path, home: &Path, depth: usize) -> Result<(), ConfigError> {
        for (index, line) in text.lines().enumerate() {
            let syntax = |why: String| ConfigError::Syntax { path: path.to_owned(), line: index + 1, why };
            let Some((keyword, arguments)) = split_line(line).map_err(syntax)? else { continue };
            match keyword.as_str() {
                "host" => self.items.push(Item::Host(patterns(&arguments))),
                "match" => self.items.push(Item::Match(criteria(&arguments).map_err(syntax)?)),
                "include" => {
                    if depth >= MAX_DEPTH {
                        return Err(syntax("too many nested Include".into()));
                    }
                    for argument in &arguments {
                        for file in expand_glob(argument, home) {
                            self.items.push(Item::Push);
                            self.read_file(&file, home, depth + 1)?;
                            self.items.push(Item::Pop);
                        }
                    }
                }
                _ => self.items.push(Item::Setting { keyword, arguments }),
            }
        }
        Ok(())
    }

    /// What the configuration says of a host.
    pub(crate) fn lookup(&self, query: Query<'_>) -> HostSettings {
        let mut settings = HostSettings::default();
        // An included file inherits whether the block around its Include is active, and what blocks it opens
        // end with it.
        let mut active = true;
        let mut outer = Vec::new();
        for item in &self.items {
            match item {
                Item::Push => outer.push(active),
                Item::Pop => active = outer.pop().unwrap_or(true),
                Item::Host(list) => {
                    active = outer.last().copied().unwrap_or(true) && match_list(list, query.host);
                }
                Item::Match(list) => {
                    active = outer.last().copied().unwrap_or(true)
                        && list.iter().all(|criterion| criterion.holds(query, &settings));
                }
                Item::Setting { keyword, arguments } if active => settings.set(keyword, arguments),
                Item::Setting { .. } => {}
            }
        }
        settings
    }
}

impl HostSettings {
    fn set(&mut self, keyword: &str, arguments: &[String]) {
        let Some(first) = arguments.first() else { return };
        let text = |slot: &mut Option<String>| {
            if slot.is_none() {
                *slot = Some(first.clone());
            }
        };
        match keyword {
            "hostname" => text(&mut self.host_name),
            "user" => text(&mut self.user),
            "identityagent" => text(&mut self.identity_agent),
            // ProxyJump and ProxyCommand compete: whichever comes first.
            "proxyjump" if self.proxy_command.is_none() => text(&mut self.proxy_jump),
            "proxycommand" if self.proxy_jump.is_none() => text(&mut self.proxy_command),
            "stricthostkeychecking" => text(&mut self.strict),
            "hostkeyalias" => text(&mut self.host_key_alias),
            "port" => self.port = self.port.or_else(|| first.parse().ok().filter(|port| *port != 0)),
            "identitiesonly" => {
                self.identities_only.get_or_insert(first.eq_ignore_ascii_case("yes") || first == "true");
            }
            "identityfile" if !self.identity_files.contains(first) => self.identity_files.push(first.clone()),
            "userknownhostsfile" => {
                self.known_hosts.get_or_insert_with(|| arguments.to_vec());
            }
            _ => {}
        }
    }
}

impl Criterion {
    fn holds(&self, query: Query<'_>, so_far: &HostSettings) -> bool {
        let yes = match &self.kind {
            CriterionKind::All => true,
            CriterionKind::Never => return false,
            CriterionKind::Host(list) => match_list(list, so_far.host_name.as_deref().unwrap_or(query.host)),
            CriterionKind::OriginalHost(list) => match_list(list, query.host),
            CriterionKind::User(list) => {
                match_list(list, query.user.or(so_far.user.as_deref()).unwrap_or(query.local_user))
            }
            CriterionKind::LocalUser(list) => match_list(list, query.local_user),
        };
        yes != self.negated
    }
}

fn criteria(arguments: &[String]) -> Result<Vec<Criterion>, String> {
    let mut list = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let (negated, word) = match word.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, word.as_str()),
        };
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word, None),
        };
        let name = name.to_ascii_lowercase();
        let kind = match name.as_str() {
            "all" => CriterionKind::All,
            "canonical" | "final" => CriterionKind::Never,
            _ => {
                let Some(value) = inline.or_else(|| words.next().cloned()) else {
                    return Err(format!("Match {name} without a value"));
                };
                let list = patterns(&value.split(',').map(str::to_owned).collect::<Vec<_>>());
                match name.as_str() {
                    "host" => CriterionKind::Host(list),
                    "originalhost" => CriterionKind::OriginalHost(list),
                    "user" => CriterionKind::User(list),
                    "localuser" => CriterionKind::LocalUser(list),
                    _ => CriterionKind::Never,
                }
            }
        };
        list.push(Criterion { negated, kind });
    }
    if list.is_empty() { Err("Match without a condition".into()) } else { Ok(list) }
}

fn patterns(words: &[String]) -> Vec<Pattern> {
    words
        .iter()
        .map(|word| match word.strip_prefix('!') {
            Some(rest) => Pattern { negated: true, text: rest.to_owned() },
            None => Pattern { negated: false, text: word.clone() },
        })
        .collect()
}

/// A negated pattern that matches vetoes; at least one other must match.
fn match_list(list: &[Pattern], text: &str) -> bool {
    let mut found = false;
    for pattern in list {
        if matches(&pattern.text, text) {
            if pattern.negated {
                return false;
            }
            found = true;
        }
    }
    found
}

/// `*` and `?`, without regard to case, as host names have none.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.to_lowercase().chars().collect();
    let text: Vec<char> = text.to_lowercase().chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p, t));
                p += 1;
            }
            Some('?') => {
                p += 1;
                t += 1;
            }
            Some(c) if Some(c) == text.get(t) => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((star, from)) => {
                    retry = Some((star, from + 1));
                    p = star + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Keyword in lower case and arguments; `Keyword value`, `Keyword=value`, quotes, `#` comments.
fn split_line(line: &str) -> Result<Option<(String, Vec<String>)>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let end = line.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(line.len());
    let (keyword, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    // These take the rest of the line as it is.
    let keyword = keyword.to_ascii_lowercase();
    if keyword == "proxycommand" || keyword == "localcommand" || keyword == "remotecommand" {
        return Ok(Some((keyword, vec![rest.to_owned()])));
    }
    let mut arguments = Vec::new();
    let mut current = String::new();
    let mut open = false;
    let mut started = false;
    let mut chars = rest.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                open = !open;
                started = true;
            }
            '\\' if chars.peek().is_some_and(|next| matches!(next, '"' | '\\')) => {
                current.extend(chars.next());
                started = true;
            }
            c if c.is_whitespace() && !open => {
                if started {
                    arguments.push(std::mem::take(&mut current));
                    started = false;
                }
            }
            '#' if !open && !started => break,
            c => {
                current.push(c);
                started = true;
            }
        }
    }
    if open {
        return Err("a quote is not closed".into());
    }
    if started {
        arguments.push(current);
    }
    Ok(Some((keyword, arguments)))
}

/// Files that an `Include` names, in order of their names. Wildcards in the last component only, which is
/// how it is used; relative paths are relative to `~/.ssh`.
fn expand_glob(argument: &str, home: &Path) -> Vec<PathBuf> {
    let path = match argument.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None if argument.starts_with('/') => PathBuf::from(argument),
        None => home.join(".ssh").join(argument),
    };
    let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else {
        return Vec::new();
    };
    if !name.contains(['*', '?']) {
        return vec![path];
    }
    let Some(parent) = path.parent() else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| {
            let entry = entry.file_name();
            let entry = entry.to_string_lossy();
            // As glob(7): a wildcard does not match a leading dot.
            (!entry.starts_with('.') || name.starts_with('.')) && matches(&name, &entry)
        })
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(host: &str) -> Query<'_> {
        Query { host, user: None, local_user: "me" }
    }

    fn look(text: &str, host: &str) -> HostSettings {
        SshConfig::parse(text, Path::new("/nonexistent")).unwrap().lookup(query(host))
    }

    #[test]
    fn wildcards() {
        for (pattern, text, want) in [
            ("*", "", true),
            ("*", "x", true),
            ("web-*", "web-1", true),
            ("web-*", "web", false),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("10.0.?.1", "10.0.5.1", true),
            ("10.0.?.1", "10.0.55.1", false),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
            ("WEB", "web", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, text), want, "{pattern:?} on {text:?}");
        }
    }

    #[test]
    fn lines() {
        for (line, want) in [
            ("", None),
            ("  # x", None),
            ("Port 22", Some(("port", vec!["22"]))),
            ("Port=22", Some(("port", vec!["22"]))),
            ("Port = 22", Some(("port", vec!["22"]))),
            ("\tHost  a  !b # c", Some(("host", vec!["a", "!b"]))),
            ("IdentityFile \"/a b/c\"", Some(("identityfile", vec!["/a b/c"]))),
            ("IdentityFile \"\"", Some(("identityfile", vec![""]))),
            ("ProxyCommand ssh -W \"%h\" x # y", Some(("proxycommand", vec!["ssh -W \"%h\" x # y"]))),
            ("Compression", Some(("compression", vec![]))),
        ] {
            let got = split_line(line).unwrap();
            let want = want.map(|(k, a): (&str, Vec<&str>)| {
                (k.to_owned(), a.into_iter().map(str::to_owned).collect::<Vec<_>>())
            });
            assert_eq!(got, want, "{line:?}");
        }
        assert!(split_line("User \"x").is_err());
    }

    #[test]
    fn the_first_value_wins_and_identities_add_up() {
        let text = "
            User early
            Host web-* !web-9
                HostName %h.example.com
                Port 2222
                IdentityFile ~/.ssh/web
                IdentityFile ~/.ssh/web
                IdentitiesOnly yes
            Host *
                User late
                Port 23
                IdentityFile ~/.ssh/any
                SendEnv LANG
                UserKnownHostsFile /a /b
        ";
        let web = look(text, "web-1");
        assert_eq!(web.host_name.as_deref(), Some("%h.example.com"));
        assert_eq!(web.port, Some(2222));
        assert_eq!(web.user.as_deref(), Some("early"));
        assert_eq!(web.identity_files, ["~/.ssh/web", "~/.ssh/any"]);
        assert_eq!(web.identities_only, Some(true));
        assert_eq!(web.known_hosts, Some(vec!["/a".to_owned(), "/b".to_owned()]));
        let other = look(text, "web-9");
        assert_eq!((other.port, other.host_name), (Some(23), None));
    }

    #[test]
    fn match_blocks() {
        let text = "
            Match originalhost db user root
                Port 1
            Match host db,db2 !localuser me
                Port 2
            Match exec \"true\"
                Port 3
            Match !exec \"true\"
                Port 3
            Match final all
                Port 4
            Match localuser me host d*
                Port 5
            Match all
                Port 6
        ";
        assert_eq!(look(text, "db").port, Some(5));
        assert_eq!(look(text, "web").port, Some(6));
        let config = SshConfig::parse(text, Path::new("/nonexistent")).unwrap();
        let root = Query { host: "db", user: Some("root"), local_user: "me" };
        assert_eq!(config.lookup(root).port, Some(1));
        let other = Query { host: "db", user: None, local_user: "you" };
        assert_eq!(config.lookup(other).port, Some(2));
        // `Match host` sees the name after HostName.
        let text = "Host short\nHostName long.example.com\nMatch host *.example.com\nUser mapped";
        assert_eq!(look(text, "short").user.as_deref(), Some("mapped"));
        assert!(SshConfig::parse("Match", Path::new("/")).is_err());
        assert!(SshConfig::parse("Match host", Path::new("/")).is_err());
    }

    #[test]
    fn a_jump_and_a_command_compete() {
        let jump = look("Host a\nProxyJump j\nHost *\nProxyCommand c", "a");
        assert_eq!((jump.proxy_jump.as_deref(), jump.proxy_command), (Some("j"), None));
        let command = look("Host a\nProxyCommand c\nHost *\nProxyJump j", "a");
        assert_eq!((command.proxy_jump, command.proxy_command.as_deref()), (None, Some("c")));
    }

    #[test]
    fn includes() {
        let home = tempfile::tempdir().unwrap();
        let ssh = home.path().join(".ssh");
        std::fs::create_dir_all(ssh.join("conf.d")).unwrap();
        std::fs::write(ssh.join("conf.d/b"), "User from-b\nPort 7").unwrap();
        std::fs::write(ssh.join("conf.d/a"), "Host web\nUser from-a\nHost *").unwrap();
        std::fs::write(ssh.join("conf.d/.hidden"), "User hidden").unwrap();
        let config = ssh.join("config");
        // An included Host block ends with its file; an Include inside a block counts only there.
        std::fs::write(&config, "Include conf.d/*\nInclude missing\nHost x\nInclude only-x\nHost *\nPort 9")
            .unwrap();
        std::fs::write(ssh.join("only-x"), "Host *\nHostName inner").unwrap();
        let config = SshConfig::load(&[config, home.path().join("absent")], home.path()).unwrap();
        assert_eq!(config.lookup(query("web")).user.as_deref(), Some("from-a"));
        assert_eq!(config.lookup(query("other")).user.as_deref(), Some("from-b"));
        assert_eq!(config.lookup(query("other")).port, Some(7));
        assert_eq!(config.lookup(query("other")).host_name, None);
        assert_eq!(config.lookup(query("x")).host_name.as_deref(), Some("inner"));

        std::fs::write(ssh.join("loop"), "Include loop").unwrap();
        let error = SshConfig::load(&[ssh.join("loop")], home.path()).unwrap_err();
        assert!(error.to_string().contains("too many nested"), "{error}");
    }
}
