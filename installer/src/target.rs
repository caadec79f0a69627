//! Which host is meant and how it is reached: `user@host:port` and the ssh configuration put together.

use std::path::{Path, PathBuf};

use crate::ssh_config::{HostSettings, Query, SshConfig};

/// How many jump hosts a chain may have.
const MAX_JUMPS: usize = 8;
/// Key files that are tried when the configuration names none, in OpenSSH's order.
const DEFAULT_IDENTITIES: [&str; 3] = ["id_rsa", "id_ecdsa", "id_ed25519"];

/// Why a target makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    /// Not `user@host:port`.
    #[error("{text:?} is not a target: {why}; want [USER@]HOST[:PORT]")]
    Syntax {
        /// What was given.
        text: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A chain of jump hosts that is too long or goes round.
    #[error("the way to {host:?} has more than 8 jump hosts: does ProxyJump go round in a circle?")]
    TooManyJumps {
        /// Whose chain.
        host: String,
    },
    /// `ProxyCommand` is not supported for a bootstrap.
    #[error(
        "the ssh configuration reaches {host:?} by a ProxyCommand, which is not supported; use ProxyJump, or \
         ProxyJump none"
    )]
    ProxyCommand {
        /// For which host.
        host: String,
    },
    /// A name that a shell would read as more than a name.
    #[error("{text:?} cannot be put into a command: want letters, digits, dots, dashes and colons")]
    NotPlain {
        /// Which name.
        text: String,
    },
}

/// What the command line says over the configuration, and whose configuration it is.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// User, when not in the target.
    pub user: Option<String>,
    /// Port, when not in the target.
    pub port: Option<u16>,
    /// Jump hosts as `ProxyJump` has them, or `none`.
    pub jump: Option<String>,
    /// The program that makes the connection, as `ProxyCommand` has it, where the configuration names no way: for
    /// [`crate::log_in`]. Without it a `ProxyCommand` of the configuration is refused, since what stands on record of a
    /// host that was taken over is an address.
    pub proxy_command: Option<String>,
    /// Who runs this: the user to log in as when nothing else says one.
    pub local_user: String,
    /// What `~` stands for.
    pub home: PathBuf,
}

/// Who logs in where, and with what.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Login {
    /// Key files, in order.
    pub identity_files: Vec<PathBuf>,
    /// Whether the files were named by the configuration (then one that is missing is worth a word).
    pub identities_named: bool,
    /// Only keys of `identity_files` are offered, though the agent may hold them.
    pub identities_only: bool,
    /// The agent's socket for this host; `Some(None)` means that none is to be used.
    pub identity_agent: Option<Option<PathBuf>>,
    /// Files with host keys; the first is appended to.
    pub known_hosts_files: Vec<PathBuf>,
    /// The name under which the host's key is on record, when it is not the host's.
    pub host_key_alias: Option<String>,
    /// Whether an unknown host key is refused without asking (`StrictHostKeyChecking yes`).
    pub strict: bool,
}

/// A host on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Who logs in.
    pub user: String,
    /// Name or address to connect to.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What it was called.
    pub named: String,
    /// How to log in.
    pub login: Login,
    /// The program that connects to it, for a shell.
    pub proxy: Option<String>,
}

/// The host to bootstrap and the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Who logs in.
    pub user: String,
    /// Name or address to connect to.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What it was called on the command line.
    pub named: String,
    /// How to log in.
    pub login: Login,
    /// The program that connects to it, for a shell; there are no hosts on the way then.
    pub proxy: Option<String>,
    /// Hosts on the way, nearest first.
    pub jumps: Vec<Hop>,
}

impl Target {
    /// Puts `[USER@]HOST[:PORT]` (or `ssh://…`) together with the configuration. What is in the text wins
    /// over `overrides`, which win over the configuration.
    pub fn resolve(text: &str, config: &SshConfig, overrides: &Overrides) -> Result<Self, TargetError> {
        let named = Named::parse(text)?;
        let mut count = 0;
        let (last, jumps) =
            resolve_hop(&named, config, overrides, overrides.jump.as_deref(), true, &mut count)?;
        Ok(Self {
            user: last.user,
            host: last.host,
            port: last.port,
            named: last.named,
            login: last.login,
            proxy: last.proxy,
            jumps,
        })
    }

    pub(crate) fn as_hop(&self) -> Hop {
        Hop {
            user: self.user.clone(),
            host: self.host.clone(),
            port: self.port,
            named: self.named.clone(),
            login: self.login.clone(),
            proxy: self.proxy.clone(),
        }
    }
}

impl Hop {
    /// `host:port`, with brackets where they are needed.
    pub(crate) fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

fn resolve_hop(
    named: &Named,
    config: &SshConfig,
    overrides: &Overrides,
    jump: Option<&str>,
    is_target: bool,
    count: &mut usize,
) -> Result<(Hop, Vec<Hop>), TargetError> {
    *count += 1;
    if *count > MAX_JUMPS + 1 {
        return Err(TargetError::TooManyJumps { host: named.host.clone() });
    }
    let user = named.user.clone().or_else(|| overrides.user.clone().filter(|_| is_target));
    let settings =
        config.lookup(Query { host: &named.host, user: user.as_deref(), local_user: &overrides.local_user });
    let user = user.or_else(|| settings.user.clone()).unwrap_or_else(|| overrides.local_user.clone());
    let port = named.port.or(overrides.port.filter(|_| is_target)).or(settings.port).unwrap_or(22);
    let host = match &settings.host_name {
        Some(name) => expand(name, &Tokens { host: &named.host, port, user: &user, overrides }),
        None => named.host.clone(),
    };
    let login = login(&settings, &Tokens { host: &host, port, user: &user, overrides });

    let (mut jumps, mut proxy) = (Vec::new(), None);
    match jump.or(settings.proxy_jump.as_deref()) {
        Some(chain) if !chain.eq_ignore_ascii_case("none") => {
            for (index, text) in chain.split(',').enumerate() {
                let next = Named::parse(text.trim())?;
                // Only the first hop of a chain has a way of its own: each later one is reached through the
                // one before it.
                let way = if index == 0 { None } else { Some("none") };
                let (hop, before) = resolve_hop(&next, config, overrides, way, false, count)?;
                jumps.extend(before);
                jumps.push(hop);
            }
        }
        _ => {
            let command = settings.proxy_command.as_deref().filter(|text| !text.eq_ignore_ascii_case("none"));
            match (&overrides.proxy_command, command) {
                (Some(other), own) if is_target => {
                    for text in [&named.host, &host, &user] {
                        plain(text)?;
                    }
                    let tokens = Tokens { host: &host, port, user: &user, overrides };
                    proxy = Some(expand(own.unwrap_or(other), &tokens));
                }
                (_, Some(_)) if jump.is_none() => {
                    return Err(TargetError::ProxyCommand { host: named.host.clone() });
                }
                _ => {}
            }
        }
    }
    Ok((Hop { user, host, port, named: named.host.clone(), login, proxy }, jumps))
}

/// A shell reads the command that it stands in.
fn plain(text: &str) -> Result<(), TargetError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    match !text.starts_with('-') && text.chars().all(fits) {
        true => Ok(()),
        false => Err(TargetError::NotPlain { text: text.to_owned() }),
    }
}

fn login(settings: &HostSettings, tokens: &Tokens<'_>) -> Login {
    let home = &tokens.overrides.home;
    let path = |text: &String| tilde(&expand(text, tokens), home);
    let named: Vec<PathBuf> =
        settings.identity_files.iter().filter(|text| !text.eq_ignore_ascii_case("none")).map(path).collect();
    let identities_named = !settings.identity_files.is_empty();
    let identity_files = if identities_named {
        named
    } else {
        DEFAULT_IDENTITIES.iter().map(|name| home.join(".ssh").join(name)).collect()
    };
    let identity_agent = settings.identity_agent.as_ref().and_then(|text| match text.as_str() {
        // The caller's own socket, as without the keyword.
        "SSH_AUTH_SOCK" => None,
        text if text.eq_ignore_ascii_case("none") => Some(None),
        // An environment variable's name: this library reads no environment.
        text if text.starts_with('$') => None,
        _ => Some(Some(path(text))),
    });
    let mut known_hosts_files: Vec<PathBuf> = match &settings.known_hosts {
        Some(files) => files.iter().filter(|text| !text.eq_ignore_ascii_case("none")).map(path).collect(),
        None => vec![home.join(".ssh/known_hosts"), home.join(".ssh/known_hosts2")],
    };
    known_hosts_files.push(PathBuf::from("/etc/ssh/ssh_known_hosts"));
    Login {
        identity_files,
        identities_named,
        identities_only: settings.identities_only.unwrap_or(false),
        identity_agent,
        known_hosts_files,
        host_key_alias: settings.host_key_alias.clone(),
        // `no`, `off` and `accept-new` accept keys unseen, which we never do: they ask like `ask`.
        strict: settings.strict.as_deref().is_some_and(|text| text.eq_ignore_ascii_case("yes")),
    }
}

struct Tokens<'a> {
    host: &'a str,
    port: u16,
    user: &'a str,
    overrides: &'a Overrides,
}

/// ssh_config's percent tokens, those that make sense before a connection.
fn expand(text: &str, tokens: &Tokens<'_>) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('h' | 'n') => out.push_str(tokens.host),
            Some('p') => out.push_str(&tokens.port.to_string()),
            Some('r') => out.push_str(tokens.user),
            Some('u') => out.push_str(&tokens.overrides.local_user),
            Some('d') => out.push_str(&tokens.overrides.home.to_string_lossy()),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

fn tilde(text: &str, home: &Path) -> PathBuf {
    match text.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None => PathBuf::from(text),
    }
}

/// `[USER@]HOST[:PORT]` taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    user: Option<String>,
    host: String,
    port: Option<u16>,
}

impl Named {
    fn parse(text: &str) -> Result<Self, TargetError> {
        let fail = |why| TargetError::Syntax { text: text.chars().take(200).collect(), why };
        let rest = text.strip_prefix("ssh://").map_or(text, |rest| rest.trim_end_matches('/'));
        // The last @: user names may hold one, host names may not.
        let (user, rest) = match rest.rsplit_once('@') {
            Some(("", _)) => return Err(fail("the user is empty")),
            Some((user, rest)) => (Some(user.to_owned()), rest),
            None => (None, rest),
        };
        let (host, port) = if let Some(inner) = rest.strip_prefix('[') {
            let (host, after) = inner.split_once(']').ok_or_else(|| fail("a bracket is not closed"))?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(fail("something follows the bracket")),
            }
        } else {
            match rest.split_once(':') {
                // More than one colon and no bracket: an IPv6 address by itself.
                Some((_, port)) if port.contains(':') => (rest, None),
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            }
        };
        if host.is_empty() {
            return Err(fail("the host is empty"));
        }
        let fits =
            |text: &str| !text.starts_with('-') && !text.chars().any(|c| c.is_whitespace() || c.is_control());
        if !fits(host) || !user.as_deref().is_none_or(fits) {
            return Err(fail("it has a blank, a control character or a leading dash"));
        }
        let port = match port.map(str::parse::<u16>) {
            None => None,
            Some(Ok(port)) if port != 0 => Some(port),
            Some(_) => return Err(fail("the port is not a number from 1 to 65535")),
        };
        Ok(Self { user, host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides() -> Overrides {
        Overrides { local_user: "me".into(), home: "/home/me".into(), ..Overrides::default() }
    }

    fn resolve(text: &str, config: &str) -> Result<Target, TargetError> {
        let config = SshConfig::parse(config, Path::new("/nonexistent")).unwrap();
        Target::resolve(text, &config, &overrides())
    }

    #[test]
    fn texts() {
        for (text, user, host, port) in [
            ("h", None, "h", None),
            ("root@203.0.113.10:2222", Some("root"), "203.0.113.10", Some(2222)),
            ("a@b@h", Some("a@b"), "h", None),
            ("[2001:db8::1]:22", None, "2001:db8::1", Some(22)),
            ("root@[2001:db8::1]", Some("root"), "2001:db8::1", None),
            ("root@2001:db8::1", Some("root"), "2001:db8::1", None),
            ("ssh://root@h:22/", Some("root"), "h", Some(22)),
        ] {
            let named = Named::parse(text).unwrap();
            assert_eq!(
                (named.user.as_deref(), named.host.as_str(), named.port),
                (user, host, port),
                "{text}"
            );
        }
        for bad in
            ["", "@h", "root@", "h:0", "h:65536", "h:x", "h:", "[::1", "[::1]x", "-oProxyCommand=x", "a b"]
        {
            assert!(Named::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_configuration_is_honoured() {
        let config = "Host web\nHostName %h.example.com\nUser deploy\nPort 2200\nIdentityFile ~/.ssh/%r_key\n\
                      UserKnownHostsFile ~/kh\nStrictHostKeyChecking yes\nIdentityAgent none\nHostKeyAlias alias";
        let target = resolve("web", config).unwrap();
        assert_eq!(
            (target.user.as_str(), target.host.as_str(), target.port),
            ("deploy", "web.example.com", 2200)
        );
        assert_eq!(target.login.identity_files, [PathBuf::from("/home/me/.ssh/deploy_key")]);
        assert_eq!(target.login.known_hosts_files[0], PathBuf::from("/home/me/kh"));
        assert_eq!(target.login.identity_agent, Some(None));
        assert!(target.login.strict && target.login.identities_named);
        assert_eq!(target.login.host_key_alias.as_deref(), Some("alias"));
        // What is typed wins.
        let target = resolve("root@web:22", config).unwrap();
        assert_eq!((target.user.as_str(), target.port), ("root", 22));
        let plain = resolve("h", "Host h\nStrictHostKeyChecking accept-new").unwrap();
        assert_eq!((plain.user.as_str(), plain.port, plain.login.strict), ("me", 22, false));
        assert_eq!(plain.login.identity_files.len(), 3);
    }

    #[test]
    fn jump_chains() {
        let config =
            "Host inner\nProxyJump mid\nHost mid\nProxyJump admin@edge:2022\nHost edge\nHostName 192.0.2.1";
        let target = resolve("inner", config).unwrap();
        let way: Vec<_> = target.jumps.iter().map(|hop| (hop.user.as_str(), hop.address())).collect();
        assert_eq!(way, [("admin", "192.0.2.1:2022".to_owned()), ("me", "mid:22".to_owned())]);
        // In a list, only the first has a way of its own.
        let target = resolve("x", "Host x\nProxyJump a,mid\nHost mid\nProxyJump loop").unwrap();
        assert_eq!(target.jumps.iter().map(|hop| hop.host.as_str()).collect::<Vec<_>>(), ["a", "mid"]);
        assert!(resolve("x", "Host *\nProxyJump none").unwrap().jumps.is_empty());
        assert_eq!(
            resolve("x", "Host *\nProxyJump x").unwrap_err(),
            TargetError::TooManyJumps { host: "x".into() }
        );
        assert_eq!(
            resolve("x", "Host x\nProxyCommand nc %h %p").unwrap_err(),
            TargetError::ProxyCommand { host: "x".into() }
        );
        // The command line's jump wins, and does not apply to the jump itself.
        let config = SshConfig::parse("Host *\nProxyCommand nc", Path::new("/")).unwrap();
        let none = Overrides { jump: Some("none".into()), ..overrides() };
        assert!(Target::resolve("x", &config, &none).unwrap().jumps.is_empty());
    }
}
