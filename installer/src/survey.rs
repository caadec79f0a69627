//! What a host is: the survey's output parsed into facts. Pure; the script is `scripts/survey.sh`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_proto::host::{AGENT_BINARY, AgentConfig, CONFIG_FILE, StatusReport, UNIT_FILE};

/// How the login user becomes root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sudo {
    /// It is root.
    #[default]
    Root,
    /// By sudo, without a password.
    Free,
    /// By sudo, if at all, with a password.
    Password,
    /// There is no sudo.
    Missing,
}

/// A place on the host's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The directory.
    pub path: String,
    /// Whether it can be written, as far as the surveying user can tell.
    pub writable: bool,
    /// Free, in KiB, when `df` says.
    pub free_kib: Option<u64>,
    /// Free inodes, where the file system counts them.
    pub free_inodes: Option<u64>,
}

/// What cloud-init is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CloudInit {
    /// It is not on this host, or it is disabled.
    #[default]
    Absent,
    /// It works, or it will: what it does.
    Busy(String),
    /// It is done; what it says went wrong.
    Done {
        /// Its own errors.
        errors: Vec<String>,
    },
}

/// An agent that is on the host already.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExistingAgent {
    /// SHA-256 of the program, in hex.
    pub sha256: Option<String>,
    /// SHA-256 of its configuration file.
    pub config_sha256: Option<String>,
    /// SHA-256 of its unit.
    pub unit_sha256: Option<String>,
    /// The configuration, when it can be read and parsed.
    pub config: Option<AgentConfig>,
    /// What `postern-agent status` said.
    pub status: Option<StatusReport>,
    /// Its exit code.
    pub status_code: Option<i32>,
    /// systemd's ActiveState.
    pub active_state: String,
    /// Whether the unit starts at boot.
    pub enabled: bool,
    /// Whether it runs with a temporary route.
    pub temporary: bool,
    /// Whether there is a state directory.
    pub has_state: bool,
}

/// What the survey saw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostFacts {
    /// The host's own name.
    pub name: String,
    /// `debian`, `ubuntu`.
    pub os_id: String,
    /// What it is like: `debian` for many.
    pub os_like: Vec<String>,
    /// `12`, `24.04`; empty for a rolling release.
    pub os_version: String,
    /// For people.
    pub os_name: String,
    /// `uname -m`.
    pub machine: String,
    /// Kernel and its version.
    pub kernel: String,
    /// Name of process 1.
    pub init: String,
    /// Whether systemd is running as the init.
    pub systemd: bool,
    /// The login user's id.
    pub uid: u32,
    /// Whether the survey was made as root.
    pub surveyed_as_root: bool,
    /// How to become root.
    pub sudo: Sudo,
    /// The login user's home.
    pub home: String,
    /// Memory, KiB.
    pub memory_kib: u64,
    /// Memory that programs could get now, KiB.
    pub memory_available_kib: u64,
    /// Swap, KiB.
    pub swap_kib: u64,
    /// The places that are written.
    pub disks: Vec<Disk>,
    /// The host's clock minus ours, seconds.
    pub clock_offset_s: i64,
    /// cloud-init.
    pub cloud_init: CloudInit,
    /// Who holds dpkg's lock, for people.
    pub package_lock: Option<String>,
    /// Programs the bootstrap needs and does not find.
    pub missing_tools: Vec<String>,
    /// An agent that is there.
    pub agent: Option<ExistingAgent>,
    /// Where the host sees the SSH connection come from.
    pub ssh_client: Option<IpAddr>,
    /// The addresses that it says it has, without those of networks that are inside of it.
    pub addresses: Vec<IpAddr>,
}

/// Why the survey's output is no survey.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum SurveyError {
    #[error("the survey did not start: the host answered {0:?}")]
    NotStarted(String),
    #[error("the survey broke off after {0:?}")]
    Incomplete(String),
}

/// Parses a survey; `now_s` is our clock when it arrived.
pub(crate) fn parse(output: &str, now_s: i64) -> Result<HostFacts, SurveyError> {
    // A login shell may print things of its own before.
    let Some(start) = lines(output).position(|(key, value)| (key, value) == ("begin", "survey")) else {
        return Err(SurveyError::NotStarted(shorten(output)));
    };
    let mut facts = HostFacts::default();
    let mut cloud = Cloud::default();
    let mut agent = AgentLines::default();
    let mut ended = false;
    for (key, value) in lines(output).skip(start + 1) {
        match key {
            "uid" => facts.uid = value.parse().unwrap_or(u32::MAX),
            "euid" => facts.surveyed_as_root = value == "0",
            "home" => value.clone_into(&mut facts.home),
            "address" => facts.addresses.extend(address_line(value)),
            "ssh_connection" => facts.ssh_client = value.split(' ').next().and_then(parse_ip),
            "sudo" => {
                facts.sudo = match value {
                    "root" => Sudo::Root,
                    "free" => Sudo::Free,
                    "missing" => Sudo::Missing,
                    _ => Sudo::Password,
                }
            }
            "os" => os_line(value, &mut facts),
            "uname" => uname_line(value, &mut facts),
            "systemd" => facts.systemd = true,
            "init" => value.clone_into(&mut facts.init),
            "memory" => memory_line(value, &mut facts),
            "writable" | "free.k" | "free.i" => disk_line(key, value, &mut facts.disks),
            "missing" => facts.missing_tools.push(value.to_owned()),
            "lock" => facts.package_lock = Some(lock_line(value)),
            "now" => facts.clock_offset_s = value.parse::<i64>().unwrap_or(now_s).saturating_sub(now_s),
            "end" => ended = true,
            "cloud" | "system" => cloud.line(key, value),
            _ if key.starts_with("cloud.") => cloud.line(key, value),
            _ if key.starts_with("agent.") => agent.line(key, value),
            _ => {}
        }
    }
    if !ended {
        return Err(SurveyError::Incomplete(shorten(output.lines().last().unwrap_or_default())));
    }
    facts.cloud_init = cloud.decide();
    facts.agent = agent.finish();
    Ok(facts)
}

/// Parses what only asks for cloud-init.
pub(crate) fn parse_cloud_init(output: &str) -> Result<CloudInit, SurveyError> {
    parse(output, 0).map(|facts| facts.cloud_init)
}

fn lines(output: &str) -> impl Iterator<Item = (&str, &str)> {
    output.lines().filter_map(|line| line.split_once('='))
}

fn shorten(text: &str) -> String {
    text.trim().chars().take(200).collect()
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    // A link-local address comes with a zone.
    text.split('%').next()?.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// `eth0 192.0.2.1/24`. Bridges and cables of containers and virtual machines are not where a host is reached.
fn address_line(line: &str) -> Option<IpAddr> {
    let (interface, address) = line.split_once(' ')?;
    let inside = ["docker", "br-", "veth", "virbr", "cni", "lxc", "podman", "tap", "fwbr"];
    if inside.iter().any(|prefix| interface.starts_with(prefix)) {
        return None;
    }
    parse_ip(address.split('/').next()?)
}

fn os_line(line: &str, facts: &mut HostFacts) {
    let Some((key, value)) = line.split_once('=') else { return };
    let value = value.trim().trim_matches(['"', '\'']);
    match key {
        "ID" => facts.os_id = value.to_ascii_lowercase(),
        "ID_LIKE" => facts.os_like = value.split_whitespace().map(str::to_ascii_lowercase).collect(),
        "VERSION_ID" => value.clone_into(&mut facts.os_version),
        "PRETTY_NAME" => value.clone_into(&mut facts.os_name),
        _ => {}
    }
}

fn memory_line(line: &str, facts: &mut HostFacts) {
    let Some((key, value)) = line.split_once(' ') else { return };
    let Ok(value) = value.trim().parse() else { return };
    match key {
        "MemTotal:" => facts.memory_kib = value,
        "MemAvailable:" => facts.memory_available_kib = value,
        "SwapTotal:" => facts.swap_kib = value,
        _ => {}
    }
}

fn uname_line(line: &str, facts: &mut HostFacts) {
    let words: Vec<&str> = line.split(' ').collect();
    if let [system, name, release, machine] = words.as_slice() {
        facts.kernel = format!("{system} {release}");
        (*name).clone_into(&mut facts.name);
        (*machine).clone_into(&mut facts.machine);
    }
}

fn disk_line(key: &str, line: &str, disks: &mut Vec<Disk>) {
    let mut words = line.split(' ');
    let Some(path) = words.next() else { return };
    let index = disks.iter().position(|disk| disk.path == path).unwrap_or_else(|| {
        let unknown = Disk { path: path.to_owned(), writable: false, free_kib: None, free_inodes: None };
        disks.push(unknown);
        disks.len() - 1
    });
    let Some(disk) = disks.get_mut(index) else { return };
    match key {
        "writable" => disk.writable = words.next() == Some("yes"),
        _ => {
            let total: Option<u64> = words.next().and_then(|word| word.parse().ok());
            let free = words.next().and_then(|word| word.parse().ok());
            if key == "free.k" {
                disk.free_kib = free;
            } else {
                // btrfs and others say 0 of 0: they have no such limit.
                disk.free_inodes = free.filter(|_| total.is_some_and(|total| total > 0));
            }
        }
    }
}

fn lock_line(line: &str) -> String {
    match line.split_once(' ') {
        Some((pid, name)) if !name.is_empty() => format!("{} (pid {pid})", shorten(name)),
        _ => format!("pid {}", line.trim()),
    }
}

/// What the lines about cloud-init add up to.
#[derive(Debug, Default)]
struct Cloud {
    present: bool,
    system: String,
    result: Option<Vec<String>>,
    processes: Vec<String>,
    units: Vec<BTreeMap<String, String>>,
}

impl Cloud {
    fn line(&mut self, key: &str, value: &str) {
        match key {
            "cloud" => self.present = value == "present",
            "system" => value.clone_into(&mut self.system),
            "cloud.process" => self.processes.push(value.to_owned()),
            "cloud.result" => self.result = Some(result_errors(value)),
            "cloud.unit" => {
                let Some((key, value)) = value.split_once('=') else { return };
                // systemctl separates units by an empty line, which does not get here: a key that is
                // there already begins the next unit.
                if self.units.last().is_none_or(|unit| unit.contains_key(key)) {
                    self.units.push(BTreeMap::new());
                }
                if let Some(unit) = self.units.last_mut() {
                    unit.insert(key.to_owned(), value.to_owned());
                }
            }
            _ => {}
        }
    }

    fn decide(self) -> CloudInit {
        if !self.present {
            return CloudInit::Absent;
        }
        let is = |unit: &BTreeMap<String, String>, key: &str, value: &str| {
            unit.get(key).is_some_and(|found| found == value)
        };
        if let Some(process) = self.processes.first() {
            let mut words = process.splitn(3, ' ');
            let (unit, pid) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let what = words.next().unwrap_or_default().trim();
            return CloudInit::Busy(format!("{unit}: {} (pid {pid})", shorten(what)));
        }
        if let Some(unit) = self
            .units
            .iter()
            .find(|unit| is(unit, "ActiveState", "activating") || is(unit, "ActiveState", "reloading"))
        {
            return CloudInit::Busy(format!("{} runs", unit.get("Id").map_or("cloud-init", String::as_str)));
        }
        let installed = self.units.iter().any(|unit| is(unit, "LoadState", "loaded"));
        let booting = matches!(self.system.as_str(), "starting" | "initializing");
        match self.result {
            Some(errors) => CloudInit::Done { errors },
            None if installed && booting => CloudInit::Busy("the host is still booting".into()),
            // Not enabled, or it failed before it could write a result: nothing will come any more.
            None => CloudInit::Done { errors: Vec::new() },
        }
    }
}

fn result_errors(base64: &str) -> Vec<String> {
    STANDARD
        .decode(base64)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
        .and_then(|json| json.pointer("/v1/errors").and_then(|errors| errors.as_array().cloned()))
        .unwrap_or_default()
        .iter()
        .take(10)
        .map(|error| shorten(error.as_str().unwrap_or_default()))
        .collect()
}

#[derive(Debug, Default)]
struct AgentLines {
    agent: ExistingAgent,
    seen: bool,
}

impl AgentLines {
    fn line(&mut self, key: &str, value: &str) {
        self.seen = true;
        match key {
            "agent.state" => self.agent.has_state = true,
            "agent.temporary" => self.agent.temporary = true,
            "agent.sha256" => {
                let Some((sum, file)) = value.split_once(' ') else { return };
                let slot = match file.trim() {
                    AGENT_BINARY => &mut self.agent.sha256,
                    CONFIG_FILE => &mut self.agent.config_sha256,
                    UNIT_FILE => &mut self.agent.unit_sha256,
                    _ => return,
                };
                *slot = Some(sum.to_owned());
            }
            "agent.config" => {
                self.agent.config =
                    STANDARD.decode(value).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            }
            "agent.status" => {
                let Some((json, code)) = value.rsplit_once('@') else { return };
                self.agent.status_code = code.trim().parse().ok();
                self.agent.status = serde_json::from_str(json.trim()).ok();
            }
            "agent.show" => match value.split_once('=') {
                Some(("ActiveState", state)) => state.clone_into(&mut self.agent.active_state),
                Some(("UnitFileState", state)) => self.agent.enabled = state == "enabled",
                _ => {}
            },
            _ => {}
        }
    }

    fn finish(self) -> Option<ExistingAgent> {
        self.seen.then_some(self.agent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "Welcome to the machine\nfoo=bar\nbegin=survey\nuid=1000\nhome=/home/u\n\
        ssh_connection=::ffff:192.0.2.9 50000 192.0.2.1 22\nsudo=password\neuid=1000\nos=ID=debian\n\
        os=VERSION_ID=\"12\"\nos=PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nuname=Linux web 6.1.0 x86_64\n\
        systemd=yes\ninit=systemd\nmemory=MemTotal: 2014356\n\
        memory=MemAvailable: 1700000\nmemory=SwapTotal: 0\nwritable=/usr/local/bin no\n\
        writable=/tmp yes\nfree.k=/usr/local/bin 2000000 1000000\nfree.k=/tmp 9 5\n\
        free.i=/usr/local/bin 9000 5000\nfree.i=/tmp 0 0\nmissing=gzip\nlock=812 apt-get\nnow=1100\nend=survey\n";

    #[test]
    fn a_survey() {
        let facts = parse(DEBIAN, 1000).unwrap();
        assert_eq!((facts.uid, facts.surveyed_as_root, facts.sudo), (1000, false, Sudo::Password));
        assert_eq!((facts.os_id.as_str(), facts.os_version.as_str()), ("debian", "12"));
        assert_eq!(facts.ssh_client, Some("192.0.2.9".parse().unwrap()));
        assert_eq!(facts.clock_offset_s, 100);
        assert_eq!((facts.kernel.as_str(), facts.name.as_str()), ("Linux 6.1.0", "web"));
        assert_eq!((facts.machine.as_str(), facts.memory_kib), ("x86_64", 2_014_356));
        assert_eq!(facts.disks.len(), 2);
        assert_eq!(facts.disks[0].free_inodes, Some(5000));
        assert!(!facts.disks[0].writable && facts.disks[1].writable);
        assert_eq!((facts.disks[1].free_kib, facts.disks[1].free_inodes), (Some(5), None));
        assert_eq!(facts.missing_tools, ["gzip"]);
        assert_eq!(facts.package_lock.as_deref(), Some("apt-get (pid 812)"));
        assert_eq!((facts.cloud_init, facts.agent), (CloudInit::Absent, None));
    }

    #[test]
    fn what_is_not_a_survey() {
        assert!(matches!(parse("", 0), Err(SurveyError::NotStarted(_))));
        assert!(matches!(
            parse("This account is currently not available.", 0),
            Err(SurveyError::NotStarted(text)) if text.contains("not available")
        ));
        assert!(matches!(parse("begin=survey\nuid=0\n", 0), Err(SurveyError::Incomplete(_))));
        // Whatever a host says, parsing ends without a panic.
        for end in 0..DEBIAN.len() {
            let _ = parse(&DEBIAN[..end], 0);
        }
        let wild = format!(
            "begin=survey\nnow={}\nfree.k=\nwritable=\nuname= \nos==\nagent.status=@\nend=",
            i64::MIN
        );
        assert!(parse(&wild, i64::MAX).is_ok());
    }

    fn cloud(lines: &str) -> CloudInit {
        parse_cloud_init(&format!("begin=survey\n{lines}\nend=survey\n")).unwrap()
    }

    #[test]
    fn trap_11_cloud_init_is_busy_as_long_as_something_of_it_runs() {
        let unit = |id: &str, state: &str| {
            format!("cloud.unit=Id={id}\ncloud.unit=LoadState=loaded\ncloud.unit=ActiveState={state}\n")
        };
        let result = |json: &str| format!("cloud.result={}\n", STANDARD.encode(json));
        let done = CloudInit::Done { errors: vec![] };
        assert_eq!(cloud("cloud=none"), CloudInit::Absent);
        assert_eq!(cloud("cloud=disabled"), CloudInit::Absent);
        // Its result is there, and its last stage is still at work: this is where `status --wait` returns.
        let text = format!(
            "cloud=present\nsystem=running\n{}{}{}",
            unit("cloud-config.service", "active"),
            unit("cloud-final.service", "activating"),
            result("{\"v1\":{\"errors\":[]}}")
        );
        assert_eq!(cloud(&text), CloudInit::Busy("cloud-final.service runs".into()));
        let text = format!(
            "cloud=present\nsystem=running\ncloud.process=cloud-final 77 apt-get -y install x \n{}",
            result("{}")
        );
        assert_eq!(cloud(&text), CloudInit::Busy("cloud-final: apt-get -y install x (pid 77)".into()));
        let text = format!("cloud=present\nsystem=starting\n{}", unit("cloud-final.service", "inactive"));
        assert_eq!(cloud(&text), CloudInit::Busy("the host is still booting".into()));
        let text = format!("cloud=present\nsystem=degraded\n{}", unit("cloud-final.service", "inactive"));
        assert_eq!(cloud(&text), done);
        let text = format!(
            "cloud=present\nsystem=starting\n{}{}",
            unit("cloud-final.service", "active"),
            result("{\"v1\":{\"errors\":[\"bad thing\"]}}")
        );
        assert_eq!(cloud(&text), CloudInit::Done { errors: vec!["bad thing".into()] });
        assert_eq!(cloud("cloud=present\nsystem=running\ncloud.result=@@"), done);
    }

    #[test]
    fn an_agent_that_is_there() {
        let config = r#"{"version":1,"host_id":"0198c0de-0000-7000-8000-000000000001","controllers":["a:1"],"server_name":"n","server_ca_pem":"p"}"#;
        let status =
            r#"{"version":"0.1.0","host_id":null,"unfinished_runs":0,"certificate_not_after_s":null}"#;
        let text = format!(
            "begin=survey\nagent.state=yes\nagent.sha256=aa  {AGENT_BINARY}\nagent.sha256=bb  {CONFIG_FILE}\n\
             agent.config={}\nagent.status={status} @0 \nagent.show=ActiveState=active\n\
             agent.show=UnitFileState=enabled\nend=survey\n",
            STANDARD.encode(config)
        );
        let agent = parse(&text, 0).unwrap().agent.unwrap();
        assert_eq!(agent.sha256.as_deref(), Some("aa"));
        assert_eq!(agent.config_sha256.as_deref(), Some("bb"));
        assert_eq!(agent.unit_sha256, None);
        assert_eq!(agent.config.unwrap().controllers, ["a:1"]);
        assert_eq!((agent.status_code, agent.status.unwrap().version.as_str()), (Some(0), "0.1.0"));
        assert!(agent.enabled && agent.has_state && agent.active_state == "active");
        // A program that does not run.
        let agent = parse("begin=survey\nagent.status=@126\nend=\n", 0).unwrap().agent.unwrap();
        assert_eq!((agent.status, agent.status_code), (None, Some(126)));
    }
}
