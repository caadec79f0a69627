//! Where the SSH server listens, and how it is started.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::sys::{Sys, SysError};

use super::ObserveError;

const ASK_LIMIT: Duration = Duration::from_secs(30);
/// How long a server that is up may listen on nothing, as it does while it starts and while it reads its files anew:
/// that takes it milliseconds.
const SETTLE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A table of sockets of a busy host, bytes.
const TABLE_LIMIT: u64 = 32 << 20;

/// The properties that systemd says of some units, by unit.
pub(super) type Units = BTreeMap<String, BTreeMap<String, String>>;

/// Asks systemd for these properties of these units; one that it does not know is `not-found` as its `LoadState`.
async fn units(host: &Sys, properties: &str, names: &[&str]) -> Result<Units, ObserveError> {
    let properties = format!("--property=Id,{properties}");
    let mut argv = vec!["systemctl", "show", "--no-pager", &properties, "--"];
    argv.extend(names);
    let said = host.run(&argv, &[], ASK_LIMIT).await?;
    if !said.ok() {
        let why = said.last_line();
        return Err(ObserveError::Obstacle(format!("systemctl show {} failed: {why}", names.join(" "))));
    }
    Ok(parse_units(&String::from_utf8_lossy(&said.stdout)))
}

/// Blocks of `NAME=VALUE` with blank lines between them. A name that comes again (`Listen`) adds a line.
fn parse_units(text: &str) -> Units {
    let mut units = Units::new();
    for block in text.split("\n\n") {
        let mut unit: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in block.lines().filter_map(|line| line.split_once('=')) {
            let all = unit.entry(name.to_owned()).or_default();
            if !all.is_empty() {
                all.push('\n');
            }
            all.push_str(value);
        }
        if let Some(id) = unit.remove("Id") {
            units.insert(id, unit);
        }
    }
    units
}

/// One property of one unit; empty where there is none.
pub(super) fn property<'a>(units: &'a Units, unit: &str, name: &str) -> &'a str {
    units.get(unit).and_then(|unit| unit.get(name)).map_or("", String::as_str)
}

/// How SSH is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listen {
    /// TCP ports that are listened on now.
    pub(super) ports: BTreeSet<u16>,
    /// systemd listens (`ssh.socket`), not sshd: what sshd_config says of ports counts for nothing.
    pub(super) socket: bool,
}

/// What `units` has to have been asked for.
pub(super) const SSH_PROPERTIES: &str = "ActiveState,UnitFileState,LoadState,MainPID,Listen";
/// The same, which units.
pub(super) const SSH_UNITS: [&str; 2] = ["ssh.service", "ssh.socket"];

/// What systemd says of these units, and where SSH is served. A server in the middle of a reload is waited for:
/// taken for one that listens nowhere, its port would count as one that may be closed.
pub(super) async fn served(
    host: &Sys,
    properties: &str,
    names: &[&str],
) -> Result<(Units, Listen), ObserveError> {
    served_within(host, properties, names, SETTLE).await
}

/// Where SSH is served just now, for people and for what is only told: a server in the middle of a reload is not waited
/// for, and where nothing is known there is none.
pub(crate) async fn ssh_ports(host: &Sys) -> BTreeSet<u16> {
    let served = served_within(host, SSH_PROPERTIES, &SSH_UNITS, Duration::ZERO).await;
    served.map(|(_, listen)| listen.ports).unwrap_or_default()
}

async fn served_within(
    host: &Sys,
    properties: &str,
    names: &[&str],
    limit: Duration,
) -> Result<(Units, Listen), ObserveError> {
    let until = tokio::time::Instant::now() + limit;
    loop {
        let units = units(host, properties, names).await?;
        let listen = listen(host, &units)?;
        let settled = listen.socket || !listen.ports.is_empty() || !is_up(&units, SSH_UNITS[0]);
        if settled || tokio::time::Instant::now() >= until {
            return Ok((units, listen));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Whether a unit runs, also while it is told to read its files.
pub(super) fn is_up(units: &Units, unit: &str) -> bool {
    matches!(property(units, unit, "ActiveState"), "active" | "reloading")
}

/// Where SSH is served now, by what is listened on and not by what is written down.
fn listen(host: &Sys, units: &Units) -> Result<Listen, SysError> {
    if property(units, "ssh.socket", "ActiveState") == "active" {
        let ports = property(units, "ssh.socket", "Listen").lines().filter_map(socket_port).collect();
        return Ok(Listen { ports, socket: true });
    }
    let pid = property(units, "ssh.service", "MainPID");
    if pid.is_empty() || pid == "0" || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Listen::default());
    }
    let mut inodes = BTreeSet::new();
    for fd in host.list(&format!("/proc/{pid}/fd"))? {
        let link = host.link_target(&format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
        if let Some(inode) = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
            inodes.insert(inode.to_owned());
        }
    }
    let mut ports = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = host.read_through(table, TABLE_LIMIT)?.unwrap_or_default();
        ports.extend(listening(&String::from_utf8_lossy(&text), &inodes));
    }
    Ok(Listen { ports, socket: false })
}

/// `0.0.0.0:22 (Stream)`.
fn socket_port(line: &str) -> Option<u16> {
    let address = line.strip_suffix(" (Stream)")?;
    address.rsplit_once(':').map_or(Some(address), |(_, port)| Some(port))?.parse().ok()
}

/// proc(5): the second column is address and port in hexadecimal, the fourth the state (0A: listening), the tenth
/// the inode.
fn listening(table: &str, inodes: &BTreeSet<String>) -> Vec<u16> {
    let port = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let ours = *columns.get(3)? == "0A" && inodes.contains(*columns.get(9)?);
        let (_, port) = columns.get(1)?.rsplit_once(':')?;
        ours.then(|| u16::from_str_radix(port, 16).ok()).flatten()
    };
    table.lines().filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_says_of_several_units() {
        let text = "ActiveState=active\nListen=0.0.0.0:22 (Stream)\nListen=[::]:2222 (Stream)\nId=ssh.socket\n\n\
                    ActiveState=inactive\nId=ssh.service\n";
        let units = parse_units(text);
        let sys = Sys::host();
        let got = listen(&sys, &units).unwrap();
        assert_eq!(got, Listen { ports: [22, 2222].into(), socket: true });
        assert_eq!(property(&units, "ssh.service", "ActiveState"), "inactive");
        assert_eq!(property(&units, "x.service", "ActiveState"), "");
    }

    #[test]
    fn listening_sockets_of_one_process() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n\
            1: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n\
            2: 0100007F:0016 0100007F:8000 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n";
        assert_eq!(listening(table, &["4711".to_owned()].into()), [22]);
        assert_eq!(socket_port("[::]:22 (Stream)"), Some(22));
        assert_eq!(socket_port("22 (Stream)"), Some(22));
        assert_eq!(socket_port("/run/x (Datagram)"), None);
    }

    /// A host whose sshd, `state` in systemd's words, listens once it was looked at that often; and how often it
    /// was looked at.
    async fn looks(state: &str, listens_at: u32) -> (Listen, usize) {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in ["proc/7/fd", "proc/net"] {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        std::os::unix::fs::symlink("socket:[4711]", at("proc/7/fd/3")).unwrap();
        let table = "head\n0: 00000000:0016 00000000:0000 0A 0:0 0:0 0 0 0 4711 1\n";
        std::fs::write(at("table"), table).unwrap();
        let script = format!(
            "#!/bin/sh\ncd {}\necho x >>asked; test $(wc -l <asked) -lt {listens_at} || cp table proc/net/tcp\n\
             printf 'MainPID=7\\nActiveState={state}\\nId=ssh.service\\n'\n",
            dir.path().display()
        );
        std::fs::write(at("systemctl"), script).unwrap();
        std::fs::set_permissions(at("systemctl"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        let sys = Sys::rooted(dir.path().to_owned(), path);
        // Two looks at least are within it, also on a slow machine.
        let limit = Duration::from_secs(if listens_at > 100 { 1 } else { 30 });
        let (_, listen) = served_within(&sys, SSH_PROPERTIES, &SSH_UNITS, limit).await.unwrap();
        (listen, std::fs::read_to_string(at("asked")).unwrap().lines().count())
    }

    #[tokio::test]
    async fn a_server_that_reads_its_files_anew_is_waited_for() {
        let ssh = Listen { ports: [22].into(), socket: false };
        assert_eq!(looks("active", 1).await, (ssh.clone(), 1));
        assert_eq!(looks("active", 3).await, (ssh.clone(), 3));
        assert_eq!(looks("reloading", 3).await, (ssh, 3));
        // One that is down listens nowhere, and one that never does is not waited for without end.
        assert_eq!(looks("failed", 3).await, (Listen::default(), 1));
        let (never, looked) = looks("active", 1000).await;
        assert!(never == Listen::default() && looked > 1, "{looked}");
    }

    /// This process listens, and is found to do so.
    #[test]
    fn a_process_that_listens_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = format!("MainPID={}\nActiveState=active\nId=ssh.service\n", std::process::id());
        let got = listen(&Sys::host(), &parse_units(&text)).unwrap();
        assert!(got.ports.contains(&port) && !got.socket, "{got:?}");
    }
}
