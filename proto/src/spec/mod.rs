//! The specs of resources: one file a kind, one row in [`KINDS`].

mod apt_repository;
mod authorized_key;
mod command;
mod directory;
mod docker_daemon;
mod docker_network;
mod fail2ban;
mod field;
mod file;
mod firewall;
mod network;
mod package;
mod preflight;
mod reboot;
mod security_updates;
mod service;
mod sshd;
mod sudoers;
mod swap;
mod swarm;
mod swarm_service;
mod sysctl;
mod time_sync;
mod user;

pub use apt_repository::AptRepositorySpec;
pub use authorized_key::{AuthorizedKeySpec, LoginKey};
pub use command::{CommandSpec, Run};
pub use directory::DirectorySpec;
pub use docker_daemon::DockerDaemonSpec;
pub use docker_network::{DockerNetworkSpec, NetworkDriver};
pub use fail2ban::Fail2banSpec;
pub use field::{Field, Holds, Takes};
pub use file::{FileMode, FileSpec};
pub use firewall::{Allow, DockerPorts, FirewallSpec, Protocol, Rate, SshPort};
pub use network::Network;
pub use package::PackageSpec;
pub use preflight::{PreflightSpec, Reach};
pub use reboot::RebootSpec;
pub use security_updates::SecurityUpdatesSpec;
pub use service::{Running, ServiceSpec};
pub use sshd::{RootLogin, SshdSpec};
pub use sudoers::SudoersSpec;
pub use swap::SwapSpec;
pub use swarm::SwarmSpec;
pub use swarm_service::{Mount, Port, SwarmServiceSpec, UpdateOrder};
pub use sysctl::{SysctlSpec, sysctl_key};
pub use time_sync::TimeSyncSpec;
pub use user::UserSpec;

use crate::text;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A spec: the same struct for a profile's YAML and for the wire.
pub trait ResourceSpec: Serialize + DeserializeOwned {
    /// The word in profiles and addresses.
    const KIND: &'static str;
    /// The newest schema version of this spec.
    const SCHEMA: u32;
    /// Every field, in the order people are told them.
    const FIELDS: &'static [Field];
    /// One sentence for people: what it is.
    const DOC: &'static str;
    /// What `run undo` does not bring back, for people; empty when it brings back all of it.
    const CANNOT_UNDO: &'static str;

    /// The late values it yields.
    fn yields(&self) -> Option<&str> {
        None
    }

    /// What the address ends in when a profile gives no name: the package, the path, the unit.
    fn natural_name(&self) -> String;

    /// All that is wrong beyond types: empty is valid.
    fn validate(&self) -> Vec<SpecError>;
}

/// One thing that is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct SpecError {
    /// The field it is about, dotted where nested; empty for the whole spec.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl SpecError {
    /// About one field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// The words of [`Presence`].
pub(crate) const PRESENCE: Holds = Holds::OneOf(&["present", "absent"]);

/// Whether a thing is to be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// It is to be there.
    #[default]
    Present,
    /// It is not to be there.
    Absent,
}

/// A row of [`KINDS`].
pub struct KindInfo {
    /// The word in profiles and addresses.
    pub name: &'static str,
    /// The newest schema version.
    pub schema: u32,
    /// Every field, in the order people are told them.
    pub fields: &'static [Field],
    /// See [`ResourceSpec::DOC`].
    pub doc: &'static str,
    /// See [`ResourceSpec::CANNOT_UNDO`].
    pub cannot_undo: &'static str,
    /// All that is wrong with a spec given as JSON, in which texts may have holes.
    pub check: fn(&serde_json::Value) -> Vec<SpecError>,
    /// The name of the late value it yields.
    pub yields: fn(&serde_json::Value) -> Option<String>,
    /// What the address ends in when a profile gives no name; `None` when the spec does not parse.
    pub natural_name: fn(&serde_json::Value) -> Option<String>,
}

impl KindInfo {
    const fn of<S: ResourceSpec>() -> Self {
        Self {
            name: S::KIND,
            schema: S::SCHEMA,
            fields: S::FIELDS,
            doc: S::DOC,
            cannot_undo: S::CANNOT_UNDO,
            yields: yields::<S>,
            check: check::<S>,
            natural_name: natural_name::<S>,
        }
    }
}

fn check<S: ResourceSpec>(json: &serde_json::Value) -> Vec<SpecError> {
    let mut errors = text::misplaced(S::FIELDS, json);
    match S::deserialize(text::stand_in(json)) {
        // What stands in a hole that should not be there is not what is wrong with the field.
        Ok(spec) => {
            let found = spec.validate().into_iter();
            let new: Vec<_> =
                found.filter(|new| errors.iter().all(|error| error.field != new.field)).collect();
            errors.extend(new);
        }
        Err(error) => errors.push(SpecError::new("", error.to_string())),
    }
    errors
}

fn natural_name<S: ResourceSpec>(json: &serde_json::Value) -> Option<String> {
    S::deserialize(text::stand_in(json)).ok().map(|spec| spec.natural_name())
}

fn yields<S: ResourceSpec>(json: &serde_json::Value) -> Option<String> {
    S::deserialize(text::stand_in(json)).ok().and_then(|spec| spec.yields().map(str::to_owned))
}

/// Every kind of resource.
pub const KINDS: &[KindInfo] = &[
    KindInfo::of::<AptRepositorySpec>(),
    KindInfo::of::<AuthorizedKeySpec>(),
    KindInfo::of::<CommandSpec>(),
    KindInfo::of::<DirectorySpec>(),
    KindInfo::of::<DockerDaemonSpec>(),
    KindInfo::of::<DockerNetworkSpec>(),
    KindInfo::of::<Fail2banSpec>(),
    KindInfo::of::<FileSpec>(),
    KindInfo::of::<FirewallSpec>(),
    KindInfo::of::<PackageSpec>(),
    KindInfo::of::<PreflightSpec>(),
    KindInfo::of::<RebootSpec>(),
    KindInfo::of::<SecurityUpdatesSpec>(),
    KindInfo::of::<ServiceSpec>(),
    KindInfo::of::<SshdSpec>(),
    KindInfo::of::<SudoersSpec>(),
    KindInfo::of::<SwapSpec>(),
    KindInfo::of::<SwarmSpec>(),
    KindInfo::of::<SwarmServiceSpec>(),
    KindInfo::of::<SysctlSpec>(),
    KindInfo::of::<TimeSyncSpec>(),
    KindInfo::of::<UserSpec>(),
];

/// The row of a kind.
#[must_use]
pub fn kind(name: &str) -> Option<&'static KindInfo> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// An absolute path without `.` or `..`, control characters or a trailing slash.
pub(crate) fn check_path(field: &str, path: &str, errors: &mut Vec<SpecError>) {
    let why = if !path.starts_with('/') {
        "want an absolute path"
    } else if path.len() > 4095 {
        "longer than 4095 bytes"
    } else if path.chars().any(char::is_control) {
        "has a control character"
    } else if path.len() > 1 && path.ends_with('/') {
        "ends in a slash"
    } else if path.split('/').any(|part| part == "." || part == "..") {
        "has a . or .. in it"
    } else {
        return;
    };
    errors.push(SpecError::new(field, format!("{path:?}: {why}")));
}

/// A user or group name as `useradd` on Debian takes it.
pub(crate) fn check_account(field: &str, name: &str, errors: &mut Vec<SpecError>) {
    let mut chars = name.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let rest = chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    if !first || !rest || name.len() > 32 {
        errors.push(SpecError::new(
            field,
            format!("{name:?}: want a letter or _ and then up to 31 letters, digits, _, - or ."),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A repository that is valid, with these fields changed.
    fn repository(changed: serde_json::Value) -> serde_json::Value {
        let mut spec = json!({
            "name": "docker", "uris": ["https://a.example/debian"], "suites": ["bookworm"],
            "components": ["main"], "key_url": "https://a.example/key",
            "fingerprints": ["0123 4567 89AB CDEF 0123  4567 89AB CDEF 0123 4567"],
        });
        for (name, value) in changed.as_object().unwrap() {
            spec[name] = value.clone();
        }
        spec
    }
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGT2/5hLlLC12ZgUEoud+FIUtp0Szc6E48Spq1r+GtnI a b";

    /// Kind, spec, the fields that are wrong.
    #[test]
    fn specs_by_table() {
        let cases: &[(&str, serde_json::Value, &[&str])] = &[
            ("package", json!({"name": "curl"}), &[]),
            ("package", json!({"name": "libstdc++6", "state": "absent"}), &[]),
            ("package", json!({"name": "curl; rm -rf /"}), &["name"]),
            ("package", json!({"name": "-o"}), &["name"]),
            ("package", json!({"name": "curl", "version": "7.88.1-10+deb12u1"}), &[]),
            ("package", json!({"name": "curl", "version": "1 2"}), &["version"]),
            ("package", json!({"name": "curl", "state": "absent", "version": "1"}), &["version"]),
            ("package", json!({"name": "curl", "hold": true, "version": "1"}), &[]),
            ("package", json!({"name": "curl", "state": "absent", "hold": false}), &["hold"]),
            ("package", json!({"name": "curl", "colour": "red"}), &[""]),
            ("package", json!({"name": 7}), &[""]),
            ("file", json!({"path": "/etc/motd", "content": "hi\n"}), &[]),
            ("file", json!({"path": "/etc/motd", "content": "hi\n", "mode": "0640", "owner": "root"}), &[]),
            ("file", json!({"path": "/etc/motd", "state": "absent"}), &[]),
            ("file", json!({"path": "/etc/motd"}), &["content"]),
            ("file", json!({"path": "/etc/motd", "state": "absent", "content": "x"}), &["content"]),
            ("file", json!({"path": "/etc/../motd", "content": ""}), &["path"]),
            ("file", json!({"path": "/", "content": ""}), &["path"]),
            ("file", json!({"path": "/etc/motd", "content": "", "mode": "rw"}), &["mode"]),
            ("file", json!({"path": "/etc/motd", "content": "", "mode": "10644"}), &["mode"]),
            ("file", json!({"path": "/a", "content": "", "owner": "a b", "group": ""}), &["owner", "group"]),
            ("file", json!({"path": "/a", "content": "", "validate": ["visudo", "-cf"]}), &["validate"]),
            ("file", json!({"path": "/a", "content": "", "validate": ["visudo", "-cf", "{path}"]}), &[]),
            ("directory", json!({"path": "/srv/a"}), &[]),
            ("directory", json!({"path": "/srv/a", "mode": "2770", "owner": "a", "parents": true}), &[]),
            ("directory", json!({"path": "/srv/a", "state": "absent"}), &[]),
            ("directory", json!({"path": "/srv/a", "state": "absent", "parents": true}), &["parents"]),
            ("directory", json!({"path": "/"}), &["path"]),
            ("directory", json!({"path": "/srv/a/"}), &["path"]),
            ("directory", json!({"path": "srv", "mode": "rwx", "owner": ""}), &["path", "mode", "owner"]),
            ("sysctl", json!({"name": "net.ipv4.ip_forward", "value": "1"}), &[]),
            ("sysctl", json!({"name": "net.ipv4.conf.eth0/1.rp_filter", "value": "1\t2"}), &[]),
            ("sysctl", json!({"name": "kernel.core_pattern", "value": ""}), &[]),
            ("sysctl", json!({"name": "net.ipv4.ip_forward", "state": "absent"}), &[]),
            ("sysctl", json!({"name": "net.ipv4.ip_forward"}), &["value"]),
            ("sysctl", json!({"name": "net.a", "state": "absent", "value": "1"}), &["value"]),
            ("sysctl", json!({"name": "net.a", "value": "1\nkernel.sysrq = 1"}), &["value"]),
            ("sysctl", json!({"name": "net", "value": "1"}), &["name"]),
            ("sysctl", json!({"name": "net..a", "value": "1"}), &["name"]),
            ("sysctl", json!({"name": "net/../a", "value": "1"}), &["name"]),
            ("sysctl", json!({"name": "net.//.a", "value": "1"}), &["name"]),
            ("sysctl", json!({"name": "/net/a", "value": "1"}), &["name"]),
            ("sysctl", json!({"name": "net.ipv4.*", "value": "1"}), &["name"]),
            ("sysctl", json!({"name": "net.a b", "value": "1"}), &["name"]),
            ("sysctl", json!({"name": "-net.a", "value": "1"}), &["name"]),
            ("sysctl", json!({"name": "net.a", "value": {"$text": [{"late": "b"}]}}), &[]),
            ("docker_daemon", json!({"log_driver": "json-file", "log_opts": {"max-size": "10m"}}), &[]),
            ("docker_daemon", json!({"settings": {"live-restore": "true", "dns": "[\"192.0.2.1\"]"}}), &[]),
            ("docker_daemon", json!({}), &[""]),
            (
                "docker_daemon",
                json!({"settings": {"a": "b", "log-opts": "{}"}}),
                &["settings.a", "settings.log-opts"],
            ),
            ("swarm", json!({}), &[]),
            ("swarm", json!({"advertise": "2001:db8::7"}), &[]),
            ("swarm", json!({"advertise": "eth0"}), &["advertise"]),
            ("swarm", json!({"advertise": "127.0.0.1"}), &["advertise"]),
            ("docker_network", json!({"name": "proxy", "attachable": true, "mtu": 1400}), &[]),
            ("docker_network", json!({"name": "ingress", "mtu": 9}), &["name", "mtu"]),
            ("docker_network", json!({"name": "-a"}), &["name"]),
            ("swarm_service", json!({"name": "a", "image": "traefik:v3"}), &[]),
            ("swarm_service", json!({"name": "a", "state": "absent"}), &[]),
            ("swarm_service", json!({"name": "a"}), &["image"]),
            ("swarm_service", json!({"name": "a", "image": "host:5000/traefik"}), &["image"]),
            (
                "swarm_service",
                json!({"name": "a", "image": "a:1", "ports": ["x", ""], "mounts": ["y"]}),
                &["ports", "mounts"],
            ),
            (
                "swarm_service",
                json!({"name": "a", "image": "a:1", "ports": ["80"], "update_order": "start-first"}),
                &["update_order"],
            ),
            (
                "swarm_service",
                json!({"name": "a", "image": "a:1", "labels": {"postern.x": "y"}}),
                &["labels.postern.x"],
            ),
            (
                "swarm_service",
                json!({"name": "a", "image": "a:1", "configs": {"etc/x": "y"}}),
                &["configs.etc/x"],
            ),
            (
                "swarm_service",
                json!({"name": "a", "image": "a:1", "secrets": {"/s": {"$text": [{"secret": {"id": "b", "version": 1}}]}}}),
                &[],
            ),
            (
                "swarm_service",
                json!({"name": "a", "image": "a:1", "env": {"S": {"$text": [{"secret": {"id": "b", "version": 1}}]}}}),
                &["env"],
            ),
            ("reboot", json!({"name": "after the kernel"}), &[]),
            ("reboot", json!({"name": "a", "if_required": false, "if_newer": ["/etc/default/grub"]}), &[]),
            ("reboot", json!({"name": "a", "if_required": false}), &[""]),
            ("reboot", json!({"name": " "}), &["name"]),
            ("reboot", json!({"name": "a", "if_newer": ["x"]}), &["if_newer"]),
            ("service", json!({"name": "ssh", "state": "running", "enabled": true}), &[]),
            ("service", json!({"name": "cron.timer", "enabled": false}), &[]),
            ("service", json!({"name": "ssh"}), &[""]),
            ("service", json!({"name": "a/b", "enabled": true}), &["name"]),
            ("service", json!({"name": "--now", "enabled": true}), &["name"]),
            ("service", json!({"name": "x", "state": "stopped", "restart_on": ["/etc/x"]}), &["restart_on"]),
            ("service", json!({"name": "x", "state": "running", "restart_on": ["x"]}), &["restart_on"]),
            ("command", json!({"argv": ["true"]}), &[]),
            ("command", json!({"shell": "echo $HOME"}), &[]),
            ("command", json!({}), &[""]),
            ("command", json!({"argv": ["true"], "shell": "true"}), &[""]),
            ("command", json!({"argv": []}), &["argv"]),
            ("command", json!({"argv": [""]}), &["argv"]),
            ("command", json!({"argv": ["a\u{0}b"]}), &["argv"]),
            ("command", json!({"argv": ["true"], "creates": "x"}), &["creates"]),
            ("command", json!({"argv": ["true"], "unless": []}), &["unless"]),
            ("command", json!({"argv": ["true"], "revert": []}), &["revert"]),
            ("command", json!({"argv": ["true"], "revert": ["true"]}), &[]),
            ("command", json!({"argv": ["true"], "revert": ["true"], "late": "a"}), &["revert"]),
            ("command", json!({"argv": ["true"], "revert": ["true"], "watch": ["inbound 22", "dns a"]}), &[]),
            ("command", json!({"argv": ["true"], "watch": ["inbound 22"]}), &["watch"]),
            (
                "command",
                json!({"argv": ["true"], "revert": ["true"], "watch": ["dns a", "ssh"]}),
                &["watch[1]"],
            ),
            ("command", json!({"argv": ["true"], "user": "r t"}), &["user"]),
            ("command", json!({"argv": ["true"], "timeout_s": 0}), &["timeout_s"]),
            ("command", json!({"argv": ["true"], "env": {"A=B": "c"}}), &["env.A=B"]),
            ("command", json!({"argv": ["a", {"$text": [{"late": "b"}]}]}), &[]),
            ("command", json!({"argv": [{"$text": [{"secret": {"id": "b", "version": 1}}]}]}), &["argv"]),
            (
                "command",
                json!({"argv": ["a"], "env": {"B": {"$text": [{"secret": {"id": "b", "version": 1}}]}}}),
                &[],
            ),
            (
                "command",
                json!({"argv": ["a"], "env": {"B": {"$text": [{"secret": {"id": "b", "version": 0}}]}}}),
                &["env"],
            ),
            ("command", json!({"argv": ["a"], "user": {"$text": [{"late": "b"}]}}), &["user"]),
            ("command", json!({"argv": ["a"], "late": "b"}), &[]),
            ("command", json!({"argv": ["a"], "late": "b", "creates": "/x"}), &["late"]),
            ("command", json!({"argv": ["a"], "late": "b c"}), &["late"]),
            ("package", json!({"name": {"$text": [{"late": "b"}]}}), &["name"]),
            ("authorized_key", json!({"user": "ada", "key": "hello"}), &["key"]),
            ("authorized_key", json!({"user": "a b", "key": KEY}), &["user"]),
            ("authorized_key", json!({"user": "ada.l", "key": KEY, "options": "restrict,pty"}), &[]),
            ("authorized_key", json!({"user": "ada", "key": KEY, "options": "a\nssh-rsa A"}), &["options"]),
            (
                "authorized_key",
                json!({"user": "ada", "key": KEY, "options": "pty", "state": "absent"}),
                &["options"],
            ),
            ("sudoers", json!({"user": "ada.l"}), &[]),
            ("sudoers", json!({"user": "%sudo", "nopasswd": false, "commands": ["/usr/bin/id -u"]}), &[]),
            ("sudoers", json!({"user": "ADA", "run_as": "ROOT"}), &["user", "run_as"]),
            ("sudoers", json!({"user": "ALL"}), &["user"]),
            ("sudoers", json!({"user": "%%x"}), &["user"]),
            ("sudoers", json!({"user": "ada ALL=ALL", "run_as": "root) ALL"}), &["user", "run_as"]),
            ("sudoers", json!({"user": "ada", "commands": []}), &["commands"]),
            (
                "sudoers",
                json!({"user": "ada", "commands": ["id", "/bin/*", "!/bin/sh", "/bin/a\nx ALL=ALL", "/bin/"]}),
                &["commands", "commands", "commands", "commands", "commands"],
            ),
            ("user", json!({"name": "ada.l"}), &[]),
            ("user", json!({"name": "ada", "uid": 1500, "groups": ["adm"], "shell": "/bin/sh"}), &[]),
            ("user", json!({"name": "a:b"}), &["name"]),
            ("user", json!({"name": "-ada"}), &["name"]),
            ("user", json!({"name": "root", "state": "absent"}), &["name"]),
            ("user", json!({"name": "ada", "state": "absent", "groups": ["adm"]}), &["groups"]),
            ("user", json!({"name": "ada", "uid": 0}), &["uid"]),
            ("user", json!({"name": "ada", "uid": 4294967295u32}), &["uid"]),
            ("user", json!({"name": "ada", "uid": -1}), &[""]),
            ("user", json!({"name": "ada", "shell": "bash", "home": "/ho:me"}), &["shell", "home"]),
            ("user", json!({"name": "ada", "group": "a b", "groups": [""]}), &["group", "groups"]),
            ("user", json!({"name": "ada", "comment": "Ada\nroot::0"}), &["comment"]),
            ("user", json!({"name": "ada", "comment": "Ada Lovelace, analyst"}), &[]),
            ("user", json!({"name": "ada", "password_hash": "$6$salt$0123456789abcdefghij"}), &[]),
            ("user", json!({"name": "ada", "password_hash": "!"}), &[]),
            ("user", json!({"name": "ada", "password_hash": "hunter2"}), &["password_hash"]),
            (
                "user",
                json!({"name": "ada", "password_hash": "$6$s$0123456789abcdefghij:0"}),
                &["password_hash"],
            ),
            (
                "user",
                json!({"name": "ada", "password_hash": {"$text": [{"secret": {"id": "b", "version": 1}}]}}),
                &[],
            ),
            ("user", json!({"name": {"$text": [{"secret": {"id": "b", "version": 1}}]}}), &["name"]),
            ("apt_repository", repository(json!({})), &[]),
            ("apt_repository", json!({"name": "x", "state": "absent"}), &[]),
            ("apt_repository", json!({"name": "x"}), &["uris", "suites", "fingerprints", "key"]),
            ("apt_repository", json!({"name": "../x", "state": "absent"}), &["name"]),
            ("apt_repository", repository(json!({"uris": ["ftp://a"]})), &["uris"]),
            ("apt_repository", repository(json!({"uris": ["https://u:p@a"]})), &["uris"]),
            ("apt_repository", repository(json!({"uris": ["https://a b"]})), &["uris"]),
            ("apt_repository", repository(json!({"suites": ["s\nTrusted: yes"]})), &["suites"]),
            ("apt_repository", repository(json!({"components": []})), &["components"]),
            ("apt_repository", repository(json!({"suites": ["./"]})), &["components"]),
            ("apt_repository", repository(json!({"suites": ["./"], "components": []})), &[]),
            ("apt_repository", repository(json!({"types": ["rpm"]})), &["types"]),
            ("apt_repository", repository(json!({"fingerprints": ["0123ABCD"]})), &["fingerprints"]),
            ("apt_repository", repository(json!({"key": "x"})), &["key"]),
            ("apt_repository", repository(json!({"key": "x", "key_url": null})), &["key"]),
            ("apt_repository", repository(json!({"key_url": "file:///x"})), &["key_url"]),
            ("apt_repository", repository(json!({"key_url": "http://a/key"})), &[]),
            ("firewall", json!({}), &[]),
            ("firewall", json!({"allow": ["22/tcp", "80,443/tcp; 443/udp"], "docker": "ignored"}), &[]),
            ("firewall", json!({"allow": ["22", "443/quic"], "ssh": "closed"}), &["allow", "allow"]),
            ("firewall", json!({"allow": ["22/tcp from 192.0.2.7/24"]}), &["allow"]),
            ("firewall", json!({"ssh": "maybe"}), &[""]),
            ("fail2ban", json!({}), &[]),
            ("fail2ban", json!({"ignore": ["192.0.2.1, 2001:db8::/32", ""], "ports": ["22"]}), &[]),
            (
                "fail2ban",
                json!({"ignore": ["home.example"], "ports": ["0", "ssh"]}),
                &["ignore", "ports", "ports"],
            ),
            ("fail2ban", json!({"ban_s": 0, "within_s": 0, "tries": 0}), &["ban_s", "within_s", "tries"]),
            ("sshd", json!({"users": ["ada.l", "root"]}), &[]),
            ("sshd", json!({"users": ["root"], "root_login": "prohibit-password", "ports": ["22"]}), &[]),
            ("sshd", json!({"users": []}), &["users"]),
            ("sshd", json!({"users": ["root"]}), &["users"]),
            ("sshd", json!({"users": ["a b"], "ports": ["0", "ssh"]}), &["users", "ports", "ports"]),
            ("sshd", json!({"users": ["a"], "root_login": "yes"}), &[""]),
            (
                "sshd",
                json!({"users": ["a"], "max_auth_tries": 0, "login_grace_s": 0}),
                &["max_auth_tries", "login_grace_s"],
            ),
            ("security_updates", json!({}), &[]),
            (
                "security_updates",
                json!({"reboot": "04:30", "origins": ["origin=Docker,label=Docker CE"]}),
                &[],
            ),
            ("security_updates", json!({"reboot": "24:00"}), &["reboot"]),
            ("security_updates", json!({"reboot": "4:30"}), &["reboot"]),
            ("security_updates", json!({"origins": ["Docker"]}), &["origins"]),
            ("security_updates", json!({"origins": ["o=a\"; };"]}), &["origins"]),
            ("preflight", json!({"name": "x"}), &[""]),
            ("preflight", json!({"name": "x", "memory_mb": 700}), &[]),
            ("preflight", json!({"name": " ", "resolves": ["deb.debian.org"]}), &["name"]),
            (
                "preflight",
                json!({"name": "x", "memory_mb": 0, "disk_free_mb": 0, "var_free_mb": 0, "clock_s": 1}),
                &["memory_mb", "disk_free_mb", "var_free_mb", "clock_s"],
            ),
            (
                "preflight",
                json!({"name": "x", "reaches": ["apt", "a.example:443"], "packages": ["curl"]}),
                &[],
            ),
            (
                "preflight",
                json!({"name": "x", "resolves": ["http://a"], "reaches": ["a"], "packages": ["a b"]}),
                &["resolves", "reaches", "packages"],
            ),
            ("preflight", json!({"name": "x", "resolves": vec!["a"; 33]}), &["resolves"]),
            ("swap", json!({"size_mb": 512}), &[]),
            ("swap", json!({"path": "/var/swap-1", "size_mb": 512}), &[]),
            ("swap", json!({"state": "absent"}), &[]),
            ("swap", json!({}), &["size_mb"]),
            ("swap", json!({"size_mb": 512, "state": "absent"}), &["size_mb"]),
            ("swap", json!({"size_mb": 1}), &["size_mb"]),
            ("swap", json!({"path": "swap", "size_mb": 512}), &["path"]),
            ("swap", json!({"path": "/a b", "size_mb": 512}), &["path"]),
            ("swap", json!({"path": "/a%b", "size_mb": 512}), &["path"]),
            ("swap", json!({"path": "/", "size_mb": 512}), &["path"]),
            ("time_sync", json!({}), &[]),
            ("time_sync", json!({"servers": ["time.example", "2001:db8::1"], "max_offset_ms": 50}), &[]),
            ("time_sync", json!({"servers": ["a b"]}), &["servers"]),
            ("time_sync", json!({"max_offset_ms": 0}), &["max_offset_ms"]),
        ];
        for (name, spec, want) in cases {
            let got = (kind(name).unwrap().check)(spec);
            let fields: Vec<_> = got.iter().map(|error| error.field.as_str()).collect();
            assert_eq!(fields, *want, "{name} {spec}: {got:?}");
        }
    }

    #[test]
    fn natural_names() {
        let name = |kind_name: &str, spec| (kind(kind_name).unwrap().natural_name)(&spec);
        assert_eq!(name("package", json!({"name": "curl"})).unwrap(), "curl");
        assert_eq!(name("file", json!({"path": "/etc/motd", "content": ""})).unwrap(), "/etc/motd");
        assert_eq!(name("service", json!({"name": "ssh", "enabled": true})).unwrap(), "ssh");
        assert_eq!(name("directory", json!({"path": "/srv/a"})).unwrap(), "/srv/a");
        assert_eq!(name("sysctl", json!({"name": "net/ipv4/conf/a.1/b"})).unwrap(), "net.ipv4.conf.a/1.b");
        assert_eq!(name("reboot", json!({"name": "late kernel"})).unwrap(), "late kernel");
        assert_eq!(name("command", json!({"argv": ["apt-get", "update"]})).unwrap(), "apt-get update");
        assert_eq!(name("command", json!({"argv": 7})), None);
    }
}
