//! `sshd`: keys only, sound algorithms, in a file that is read before all others, and seen to be in force.

mod algorithms;
mod files;
mod keys;
mod reload;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use postern_proto::guard::Predicate;
use postern_proto::host::AGENT_BINARY;
use postern_proto::spec::SshdSpec;
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::files::Line;
pub(crate) use self::reload::reload;
use super::diff::unified;
use super::listen::{self, Listen};
use super::owned::{self, Owned};
use super::{Depth, Exec, ObserveError, Protect, Resource, Step, Undo, WriteFile};
use crate::sys::{Sys, SysError};

const CONF: &str = "/etc/ssh/sshd_config.d/00-postern.conf";
const CONF_DIR: &str = "/etc/ssh/sshd_config.d";
/// What `ssh.socket` listens on, where that is asked for.
const SOCKET_CONF: &str = "/etc/systemd/system/ssh.socket.d/postern.conf";
const SOCKET_CONF_DIR: &str = "/etc/systemd/system/ssh.socket.d";
const SSHD: &str = "/usr/sbin/sshd";
const SERVICE: &str = "ssh.service";
const SOCKET: &str = "ssh.socket";
/// sshd wants it, and it is there only once one ran.
const RUN_DIR: &str = "/run/sshd";
/// Written at a start, and again when it reads its files anew.
const PID_FILE: &str = "/run/sshd.pid";
const ASK_LIMIT: Duration = Duration::from_secs(30);
const ACT_LIMIT: Duration = Duration::from_secs(120);
/// How long sshd may take to listen again after it read its files.
const SETTLE: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Addresses that a connection could come from, and a user that is nobody in particular: `Match` of others may
/// be about them.
const ADDRESSES: [&str; 3] = ["192.0.2.1", "2001:db8::1", "127.0.0.1"];
const ANYBODY: &str = "somebody-else";

pub(super) struct Sshd;

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    conf: Option<Owned>,
    socket_conf: Option<Owned>,
    socket_dir: bool,
    /// Keyword and value, with what this OpenSSH knows.
    settings: Vec<(String, String)>,
    /// sshd runs as a service.
    active: bool,
    /// systemd listens in its place.
    socket: bool,
    /// A file of its configuration is newer than when it read them.
    stale: bool,
    /// What it needs to check its files is there.
    run_dir: bool,
    /// Listened on now.
    ports: BTreeSet<u16>,
    /// The keys of those who must get in.
    keys: BTreeMap<String, Vec<String>>,
}

impl Resource for Sshd {
    type Spec = SshdSpec;
    type Seen = Seen;

    async fn observe(spec: &SshdSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let obstacle = |why: String| Err(ObserveError::Obstacle(why));
        if !host.exists(SSHD)? {
            return obstacle(
                "the package openssh-server is not installed: declare it before this".to_owned(),
            );
        }
        let mut seen = look(spec, host).await?;
        // Around an undo what is declared is being taken back, and nothing is in its way; a guard still wants to
        // know who logs in.
        let whole = depth == Depth::Whole;
        let config = match effective(host, SSHD, "root", ADDRESSES[2]).await {
            _ if !seen.run_dir => None,
            Err(ObserveError::Obstacle(_)) if whole => None,
            config => Some(config?),
        };
        let patterns = config.as_ref();
        let patterns = patterns.and_then(|config| config.get("authorizedkeysfile"));
        let mut missing = Vec::new();
        for user in &spec.users {
            match keys::usable(host, user, patterns.map_or(keys::USUAL, String::as_str))? {
                Ok(keys) => drop(seen.keys.insert(user.clone(), keys)),
                Err(why) => missing.push(why),
            }
        }
        if whole {
            return Ok(seen);
        }
        if seen.keys.is_empty() {
            let why = missing.join("; ");
            return obstacle(format!(
                "nobody could log in any more: {why}; put `authorized_key` before this"
            ));
        }
        let config = files::read(host, CONF)?;
        if let Some(why) = config.not_read() {
            return obstacle(why);
        }
        let lines: Vec<String> = config.overriding(&seen.settings).into_iter().map(Line::told).collect();
        if !lines.is_empty() {
            return obstacle(format!(
                "other lines count before {CONF}: {}; remove them, or what they ask for from this resource",
                lines.join("; ")
            ));
        }
        if depth == Depth::Proof {
            let until = tokio::time::Instant::now() + SETTLE;
            while (seen.stale || !listens(spec, &seen)) && tokio::time::Instant::now() < until {
                tokio::time::sleep(LOOK_AGAIN).await;
                let keys = std::mem::take(&mut seen.keys);
                seen = Seen { keys, ..look(spec, host).await? };
            }
            if let Some(why) = prove(spec, host, SSHD, &seen).await? {
                return obstacle(why);
            }
        }
        Ok(seen)
    }

    fn plan(spec: &SshdSpec, seen: &Seen) -> Vec<Step> {
        let mut steps = Vec::new();
        let conf = !conf_is(seen);
        if conf {
            if !seen.run_dir {
                let path = RUN_DIR.to_owned();
                steps.push(Step::MakeDirectory { path, mode: 0o755, uid: 0, gid: 0 });
            }
            let validate = Some([SSHD, "-t", "-f", "{path}"].map(str::to_owned).to_vec());
            let (path, content) = (CONF.to_owned(), text(&seen.settings).into_bytes());
            steps.push(Step::WriteFile(WriteFile { path, content, mode: 0o644, uid: 0, gid: 0, validate }));
        }
        let socket =
            !owned::is(seen.socket_conf.as_ref(), socket_text(spec, seen).as_deref().map(str::as_bytes));
        if socket {
            match socket_text(spec, seen) {
                Some(text) => {
                    if !seen.socket_dir {
                        let path = SOCKET_CONF_DIR.to_owned();
                        steps.push(Step::MakeDirectory { path, mode: 0o755, uid: 0, gid: 0 });
                    }
                    steps.push(owned::put(SOCKET_CONF, text.into_bytes()));
                }
                None => steps.push(Step::Remove { path: SOCKET_CONF.to_owned() }),
            }
        }
        steps.extend(in_force(
            seen,
            conf || seen.stale || !listens(spec, seen),
            socket || !listens(spec, seen),
        ));
        steps
    }

    fn diff(spec: &SshdSpec, seen: &Seen) -> String {
        let old = |there: &Option<Owned>| there.as_ref().map(|there| there.content.clone());
        let mut shown = unified(CONF, old(&seen.conf).as_deref(), Some(text(&seen.settings).as_bytes()));
        let socket = socket_text(spec, seen);
        shown +=
            &unified(SOCKET_CONF, old(&seen.socket_conf).as_deref(), socket.as_deref().map(str::as_bytes));
        if seen.stale {
            shown += "sshd has not read its files since they were changed\n";
        }
        if !listens(spec, seen) {
            shown += &format!("sshd listens on {:?}\n", seen.ports);
        }
        if shown.is_empty() && !Self::plan(spec, seen).is_empty() {
            shown = format!("{CONF}: owner and mode\n");
        }
        shown
    }

    fn essence(_: &SshdSpec, seen: &Seen) -> serde_json::Value {
        json!({
            "conf": owned::essence(seen.conf.as_ref()),
            "socket": owned::essence(seen.socket_conf.as_ref()),
        })
    }

    fn undo(_: &SshdSpec, before: &Seen, _: &serde_json::Value, now: &Seen) -> Undo {
        let conf = owned::back(CONF, before.conf.as_ref(), now.conf.as_ref());
        let socket = owned::back(SOCKET_CONF, before.socket_conf.as_ref(), now.socket_conf.as_ref());
        let (was_conf, was_socket) = (conf.is_some(), socket.is_some());
        let mut steps: Vec<Step> = conf.into_iter().chain(socket).collect();
        if was_socket && !before.socket_dir {
            steps.push(Step::RemoveDirectory { path: SOCKET_CONF_DIR.to_owned() });
        }
        steps.extend(in_force(now, was_conf, was_socket));
        Undo::Steps(steps)
    }

    fn protect(spec: &SshdSpec, seen: &Seen) -> Option<Protect> {
        let declared: BTreeSet<u16> = spec.port_numbers().into_iter().collect();
        let ports = if declared.is_empty() { &seen.ports } else { &declared };
        let inbound = ports.iter().map(|port| Predicate::Inbound { port: *port });
        let login = |(user, keys): (&String, &Vec<String>)| {
            let port = ports.iter().find(|port| seen.ports.contains(port)).or(ports.first());
            port.map(|port| Predicate::Login { port: *port, user: user.clone(), keys: keys.clone() })
        };
        // What is to be so afterwards, which it is not where it is being taken back.
        let users = spec.users.iter().map(String::as_str).chain(["root"]).filter(|_| !conf_is(seen));
        let refused = users.filter_map(|user| {
            let port = ports.iter().find(|port| seen.ports.contains(port)).or(ports.first());
            port.map(|port| Predicate::NoPassword { port: *port, user: user.to_owned() })
        });
        let predicates = inbound.chain(seen.keys.iter().filter_map(login)).chain(refused).collect();
        let words = |argv: &[&str]| argv.iter().map(|word| (*word).to_owned()).collect();
        let mut reload = vec![words(&["systemctl", "daemon-reload"])];
        if seen.socket {
            reload.push(words(&["systemctl", "stop", SOCKET, SERVICE]));
            reload.push(words(&["systemctl", "start", SOCKET]));
        } else if seen.active {
            reload.push(words(&["systemctl", "reload-or-restart", SERVICE]));
        }
        Some(Protect { predicates, reload, ..Protect::default() })
    }
}

/// The steps that make what runs read its files. A reload leaves open sessions alone, and so does a stop:
/// Debian's unit ends the listening process only.
fn in_force(seen: &Seen, conf: bool, socket: bool) -> Vec<Step> {
    let systemctl = |argv: &[&str]| Step::Exec(Exec::new(&[&["systemctl"], argv].concat(), ACT_LIMIT));
    let mut steps = Vec::new();
    if !seen.socket {
        // Not systemd's own reload: that is over before sshd has read anything.
        let reload = || Step::Exec(Exec::new(&[AGENT_BINARY, "reload-ssh"], ACT_LIMIT));
        steps.extend((conf && seen.active).then(reload));
        return steps;
    }
    // A connection may have started the service since it was looked at; the next one starts it anew.
    if socket {
        steps.push(systemctl(&["daemon-reload"]));
        // Together: a service that a connection starts in between would keep the socket from being made anew.
        steps.push(systemctl(&["stop", "--", SOCKET, SERVICE]));
        steps.push(systemctl(&["start", "--", SOCKET]));
    } else if conf {
        steps.push(systemctl(&["stop", "--", SERVICE]));
    }
    steps
}

/// Keyword and value, in the order they are written.
fn settings(spec: &SshdSpec, algorithms: Vec<(String, String)>) -> Vec<(String, String)> {
    let fixed = [
        ("PermitRootLogin", spec.root_login.as_str().to_owned()),
        ("PubkeyAuthentication", "yes".to_owned()),
        ("AuthenticationMethods", "publickey".to_owned()),
        ("PasswordAuthentication", "no".to_owned()),
        ("KbdInteractiveAuthentication", "no".to_owned()),
        ("HostbasedAuthentication", "no".to_owned()),
        ("PermitEmptyPasswords", "no".to_owned()),
        ("X11Forwarding", "no".to_owned()),
        ("MaxAuthTries", spec.max_auth_tries.to_string()),
        ("LoginGraceTime", spec.login_grace_s.to_string()),
    ];
    let ports = spec.port_numbers().into_iter().map(|port| ("Port".to_owned(), port.to_string()));
    let fixed = fixed.into_iter().map(|(keyword, value)| (keyword.to_owned(), value));
    ports.chain(fixed).chain(algorithms).collect()
}

fn text(settings: &[(String, String)]) -> String {
    let mut text =
        "# Written by Postern, which writes it again at each run. The first value counts: this file is \
                    read before all others.\n"
            .to_owned();
    for (keyword, value) in settings {
        let _ = writeln!(text, "{keyword} {value}");
    }
    text
}

/// What `ssh.socket` is told, where it listens and ports are declared: it does not read sshd's files.
fn socket_text(spec: &SshdSpec, seen: &Seen) -> Option<String> {
    let ports = spec.port_numbers();
    if !seen.socket || ports.is_empty() {
        return None;
    }
    let mut text =
        "# Written by Postern, which writes it again at each run.\n[Socket]\nListenStream=\n".to_owned();
    for port in ports {
        let _ = writeln!(text, "ListenStream={port}");
    }
    Some(text)
}

fn conf_is(seen: &Seen) -> bool {
    owned::is(seen.conf.as_ref(), Some(text(&seen.settings).as_bytes()))
}

/// Whether the ports are those that are declared; nothing is asked of a server that does not run.
fn listens(spec: &SshdSpec, seen: &Seen) -> bool {
    let declared: BTreeSet<u16> = spec.port_numbers().into_iter().collect();
    if !seen.active && !seen.socket {
        return true;
    }
    if declared.is_empty() { !seen.ports.is_empty() } else { seen.ports == declared }
}

async fn look(spec: &SshdSpec, host: &Sys) -> Result<Seen, ObserveError> {
    let said = host.run(&["sh", "-c", algorithms::QUERY], &[], ASK_LIMIT).await?;
    let Some(known) = algorithms::known(&String::from_utf8_lossy(&said.stdout)) else {
        let why = said.last_line();
        return Err(ObserveError::Obstacle(format!(
            "this OpenSSH knows no algorithm that is sound (ssh -Q): {why}"
        )));
    };
    let (units, listen) = listen::served(host, listen::SSH_PROPERTIES, &listen::SSH_UNITS).await?;
    let Listen { ports, socket } = listen;
    let active = listen::is_up(&units, SERVICE);
    Ok(Seen {
        conf: Owned::look(host, CONF)?,
        socket_conf: Owned::look(host, SOCKET_CONF)?,
        socket_dir: host.exists(SOCKET_CONF_DIR)?,
        settings: settings(spec, known),
        active,
        socket,
        stale: active && stale(host)?,
        run_dir: host.exists(RUN_DIR)?,
        ports,
        keys: BTreeMap::new(),
    })
}

/// T07: whether a file, or the directory that one was taken out of, changed since sshd read them.
fn stale(host: &Sys) -> Result<bool, SysError> {
    let Some(read) = host.mtime_ns(PID_FILE)? else { return Ok(false) };
    let now = i128::from(crate::sys::now_ns());
    let mut paths = files::read(host, CONF)?.files;
    paths.push(CONF_DIR.to_owned());
    for path in paths {
        if host.ctime_ns(&path)?.is_some_and(|changed| is_newer(changed, read, now)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All of the same clock, nanoseconds. A change that is still to come is of a clock that was wrong.
fn is_newer(changed: i128, read: i128, now: i128) -> bool {
    changed > read && changed <= now
}

/// What sshd, this program, would do with this connection, keywords in small letters.
async fn effective(
    host: &Sys,
    sshd: &str,
    user: &str,
    address: &str,
) -> Result<BTreeMap<String, String>, ObserveError> {
    let connection = format!("user={user},host=localhost,addr={address}");
    let said = host.run(&[sshd, "-T", "-C", &connection], &[], ASK_LIMIT).await?;
    if !said.ok() {
        let why = said.last_line();
        return Err(ObserveError::Obstacle(format!("sshd's files are not in order (sshd -t): {why}")));
    }
    let text = String::from_utf8_lossy(&said.stdout);
    let mut config = BTreeMap::new();
    for (keyword, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        config.entry(keyword.to_owned()).or_insert_with(|| value.trim().to_owned());
    }
    Ok(config)
}

/// Why it is not in force; `None` when it is.
async fn prove(spec: &SshdSpec, host: &Sys, sshd: &str, seen: &Seen) -> Result<Option<String>, ObserveError> {
    let users: BTreeSet<&str> = spec.users.iter().map(String::as_str).chain(["root", ANYBODY]).collect();
    for user in users {
        for address in ADDRESSES {
            let config = effective(host, sshd, user, address).await?;
            if let Some(why) = otherwise(&seen.settings, &config) {
                return Ok(Some(format!(
                    "for {user} from {address}, sshd would have {why} in spite of {CONF}"
                )));
            }
        }
    }
    if !listens(spec, seen) {
        return Ok(Some(format!(
            "sshd listens on {:?}, not on {:?}: see `journalctl -u ssh`",
            seen.ports,
            spec.port_numbers()
        )));
    }
    Ok(None)
}

/// The first setting that is another one in force.
fn otherwise(settings: &[(String, String)], config: &BTreeMap<String, String>) -> Option<String> {
    // Ports are many, and what is listened on is looked at by itself.
    let settings = settings.iter().filter(|(keyword, _)| keyword != "Port");
    settings.into_iter().find_map(|(keyword, value)| {
        let is = config.get(&keyword.to_lowercase()).map_or("", String::as_str);
        (!files::same(keyword, value, is)).then(|| format!("{keyword} {is}"))
    })
}

#[cfg(test)]
mod tests;
