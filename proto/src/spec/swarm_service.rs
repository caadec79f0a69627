//! `swarm_service`: a service of a Swarm, with the configs and secrets that its containers find as files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::docker_network::check_name;
use super::{Field, Holds, PRESENCE, Presence, ResourceSpec, SpecError, check_path};

/// A config or a secret of Docker's may have 500 kB (1 MB in newer ones): moby, swarmkit `MaxSecretSize`.
const LARGEST: usize = 500 * 1024;

/// One service. An entry of a list or map whose text is empty counts as left out, so that a profile can decide on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwarmServiceSpec {
    /// Its name.
    pub name: String,
    /// What its containers are made of, with a tag or digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Who the image's registry lets have it; nobody is named where it wants no login.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub registry_user: String,
    /// By which password or token.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub registry_password: String,
    /// Given to the image's own program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment of its containers. Whoever may ask the engine sees it: no place for secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// More of it, in lines of `NAME=VALUE`: what comes from one variable of a profile.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub env_lines: String,
    /// Labels of the service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// More of them, in lines of `NAME=VALUE`: there, a name may come from a variable.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label_lines: String,
    /// Networks that it is in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// See [`Port`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// See [`Mount`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<String>,
    /// Where it may run, in Docker's words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    /// Files by their paths in the container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub configs: BTreeMap<String, String>,
    /// The same, kept encrypted by the Swarm and never shown again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    /// Whether it is well, by a program in the container; nobody asks when there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<String>,
    /// How many tasks.
    #[serde(default = "one")]
    pub replicas: u64,
    /// Which comes first in an update: the end of the old task, or the new one.
    #[serde(default)]
    pub update_order: UpdateOrder,
    /// The most memory of one task, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// Seconds that a task is given to end by itself.
    #[serde(default = "ten")]
    pub stop_s: u64,
    /// Seconds for a change to be through.
    #[serde(default = "two_minutes")]
    pub wait_s: u64,
    /// There or not.
    #[serde(default)]
    pub state: Presence,
}

fn one() -> u64 {
    1
}

fn ten() -> u64 {
    10
}

fn two_minutes() -> u64 {
    120
}

/// Which comes first in an update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    /// The old task ends, then the new one begins: both could not have the same port of the host.
    #[default]
    StopFirst,
    /// The new task begins, then the old one ends.
    StartFirst,
}

impl UpdateOrder {
    /// Docker's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StopFirst => "stop-first",
            Self::StartFirst => "start-first",
        }
    }
}

/// A published port: `[PUBLISHED:]TARGET[/tcp|/udp] [host|ingress]`; tcp and host when left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    /// On the host.
    pub published: u16,
    /// In the container.
    pub target: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// `host`: on the host that the task runs on. `ingress`: on every node, spread by the Swarm.
    pub mode: String,
}

impl std::str::FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?}: want [PUBLISHED:]TARGET[/tcp|/udp] [host|ingress]");
        let mut words = text.split_whitespace();
        let (numbers, mode) = (words.next().ok_or_else(bad)?, words.next().unwrap_or("host"));
        let (numbers, protocol) = numbers.split_once('/').unwrap_or((numbers, "tcp"));
        let (published, target) = numbers.split_once(':').unwrap_or((numbers, numbers));
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad);
        if words.next().is_some()
            || !["tcp", "udp"].contains(&protocol)
            || !["host", "ingress"].contains(&mode)
        {
            return Err(bad());
        }
        let (protocol, mode) = (protocol.to_owned(), mode.to_owned());
        Ok(Self { published: port(published)?, target: port(target)?, protocol, mode })
    }
}

/// What is mounted: `SOURCE:TARGET[:ro]`. A source with a slash before it is a path of the host, which must be there;
/// any other is a volume, which is made where there is none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mount {
    /// A path of the host, or a volume's name.
    pub source: String,
    /// In the container.
    pub target: String,
    /// It cannot be written.
    pub read_only: bool,
}

impl Mount {
    /// A path of the host, and no volume.
    #[must_use]
    pub fn is_bind(&self) -> bool {
        self.source.starts_with('/')
    }
}

impl std::str::FromStr for Mount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?}: want SOURCE:TARGET or SOURCE:TARGET:ro");
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, read_only) = match parts.as_slice() {
            [source, target] => (*source, *target, false),
            [source, target, "ro"] => (*source, *target, true),
            _ => return Err(bad()),
        };
        let mut errors = Vec::new();
        check_path("mounts", target, &mut errors);
        if source.starts_with('/') {
            check_path("mounts", source, &mut errors);
        } else {
            check_name("mounts", source, &mut errors);
        }
        match errors.into_iter().next() {
            Some(error) => Err(error.message),
            None => Ok(Self { source: source.to_owned(), target: target.to_owned(), read_only }),
        }
    }
}

fn given(list: &[String]) -> impl Iterator<Item = &str> {
    list.iter().map(|text| text.trim()).filter(|text| !text.is_empty())
}

/// Lines of `NAME=VALUE`; blank ones and those that begin with # count for nothing.
fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let told = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    told.map(|line| line.split_once('=').unwrap_or((line, "")))
}

fn map(from: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    from.iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect()
}

impl SwarmServiceSpec {
    /// The arguments that were given.
    pub fn args(&self) -> impl Iterator<Item = &str> {
        self.args.iter().map(String::as_str).filter(|text| !text.is_empty())
    }

    /// The environment that was given.
    #[must_use]
    pub fn env(&self) -> BTreeMap<&str, &str> {
        let lines = lines(&self.env_lines).filter(|(_, value)| !value.is_empty());
        map(&self.env).into_iter().chain(lines).collect()
    }

    /// The labels that were given.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<&str, &str> {
        let lines = lines(&self.label_lines).filter(|(_, value)| !value.is_empty());
        map(&self.labels).into_iter().chain(lines).collect()
    }

    /// The networks that were given.
    pub fn networks(&self) -> impl Iterator<Item = &str> {
        given(&self.networks)
    }

    /// The constraints that were given.
    pub fn constraints(&self) -> impl Iterator<Item = &str> {
        given(&self.constraints)
    }

    /// The ports that were given, as far as they can be read.
    pub fn ports(&self) -> impl Iterator<Item = Port> {
        given(&self.ports).filter_map(|text| text.parse().ok())
    }

    /// The mounts that were given, as far as they can be read.
    pub fn mounts(&self) -> impl Iterator<Item = Mount> {
        given(&self.mounts).filter_map(|text| text.parse().ok())
    }

    /// The configs that were given.
    #[must_use]
    pub fn configs(&self) -> BTreeMap<&str, &str> {
        map(&self.configs)
    }

    /// The secrets that were given.
    #[must_use]
    pub fn secrets(&self) -> BTreeMap<&str, &str> {
        map(&self.secrets)
    }

    fn validate_lists(&self, errors: &mut Vec<SpecError>) {
        for text in given(&self.ports) {
            if let Err(why) = text.parse::<Port>() {
                errors.push(SpecError::new("ports", why));
            }
        }
        for text in given(&self.mounts) {
            if let Err(why) = text.parse::<Mount>() {
                errors.push(SpecError::new("mounts", why));
            }
        }
        for text in self.networks() {
            check_name("networks", text, errors);
        }
        for text in self.constraints() {
            if !text.contains("==") && !text.contains("!=") {
                errors.push(SpecError::new(
                    "constraints",
                    format!("{text:?}: want NAME==VALUE or NAME!=VALUE"),
                ));
            }
        }
        for (field, text) in [("env_lines", &self.env_lines), ("label_lines", &self.label_lines)] {
            if let Some(line) = text.lines().map(str::trim).find(|line| {
                !line.is_empty() && !line.starts_with('#') && line.find('=').is_none_or(|at| at == 0)
            }) {
                errors.push(SpecError::new(field, format!("{line:?}: want NAME=VALUE")));
            }
        }
        for name in self.env.keys() {
            if name.is_empty() || name.contains(['=', '\0']) {
                errors.push(SpecError::new(format!("env.{name}"), "not a name of the environment"));
            }
        }
        for name in
            self.labels.keys().map(String::as_str).chain(lines(&self.label_lines).map(|(name, _)| name))
        {
            if name.is_empty() || name.starts_with("postern.") {
                errors.push(SpecError::new(
                    format!("labels.{name}"),
                    "labels that begin with postern. are our own",
                ));
            }
        }
        for (field, files) in [("configs", &self.configs), ("secrets", &self.secrets)] {
            for (path, text) in files {
                let field = format!("{field}.{path}");
                check_path(&field, path, errors);
                if text.len() > LARGEST {
                    errors
                        .push(SpecError::new(field, format!("has {} bytes, {LARGEST} at most", text.len())));
                }
            }
        }
    }
}

impl ResourceSpec for SwarmServiceSpec {
    const KIND: &'static str = "swarm_service";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required("name", Holds::Text, "Its name."),
        Field::optional("image", Holds::Text, "What its containers are made of, with a tag or digest."),
        Field::optional(
            "registry_user",
            Holds::Text,
            "Whom the image's registry lets have it, where it wants a login.",
        ),
        Field::optional(
            "registry_password",
            Holds::Text,
            "The password or token of that user; used for the pull alone, and kept nowhere on the host.",
        )
        .secret(),
        Field::optional("args", Holds::TextList, "Given to the image's own program.").late(),
        Field::optional("env", Holds::TextMap, "Environment of its containers; no place for secrets.").late(),
        Field::optional("env_lines", Holds::Text, "More of it, in lines of NAME=VALUE.").late(),
        Field::optional("labels", Holds::TextMap, "Labels of the service.").late(),
        Field::optional(
            "label_lines",
            Holds::Text,
            "More labels, in lines of NAME=VALUE, names from variables too.",
        )
        .late(),
        Field::optional("networks", Holds::TextList, "Networks that it is in."),
        Field::optional(
            "ports",
            Holds::TextList,
            "Published ports, [PUBLISHED:]TARGET[/tcp|/udp] [host|ingress]: \"80\", \"8080:80/tcp ingress\".",
        ),
        Field::optional(
            "mounts",
            Holds::TextList,
            "SOURCE:TARGET or SOURCE:TARGET:ro; a source that begins with / is a path of the host, any other a volume.",
        ),
        Field::optional("constraints", Holds::TextList, "Where it may run: \"node.role==manager\"."),
        Field::optional("configs", Holds::TextMap, "Files, by their paths in the container.").late(),
        Field::optional("secrets", Holds::TextMap, "Secret files, by their paths in the container.").secret(),
        Field::optional(
            "health",
            Holds::TextList,
            "A program in the container that says by its exit status whether it is well; asked every ten seconds.",
        ),
        Field::optional("replicas", Holds::Count, "How many tasks; 1 when left out."),
        Field::optional(
            "update_order",
            Holds::OneOf(&["stop-first", "start-first"]),
            "Which comes first in an update: the old task's end (when left out), or the new task's begin.",
        ),
        Field::optional("memory_mb", Holds::Count, "The most memory of one task, MiB."),
        Field::optional(
            "stop_s",
            Holds::Count,
            "Seconds that a task is given to end by itself; 10 when left out.",
        ),
        Field::optional("wait_s", Holds::Count, "Seconds for a change to be through; 120 when left out."),
        Field::optional("state", PRESENCE, "present or absent; present when left out. Volumes stay."),
    ];
    const DOC: &'static str = "A service of a Swarm, with configs and secrets that are given by content.";
    const CANNOT_UNDO: &'static str =
        "volumes and what is in them; older values of secrets, which nobody can read again";

    fn natural_name(&self) -> String {
        self.name.clone()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        check_name("name", &self.name, &mut errors);
        if self.state == Presence::Absent {
            return errors;
        }
        match self.image.as_deref() {
            None => errors.push(SpecError::new("image", "missing")),
            Some(image) => {
                let last = image.rsplit('/').next().unwrap_or_default();
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@".contains(c);
                if image.is_empty() || image.len() > 400 || !image.chars().all(plain) {
                    errors.push(SpecError::new("image", format!("{image:?} is not the name of an image")));
                } else if !last.contains(':') {
                    let message = format!("{image:?} has no tag: what it means would change by itself");
                    errors.push(SpecError::new("image", message));
                }
            }
        }
        match (self.registry_user.is_empty(), self.registry_password.is_empty()) {
            (false, true) => {
                errors.push(SpecError::new("registry_password", "missing, with a registry_user"))
            }
            (true, false) => {
                errors.push(SpecError::new("registry_user", "missing, with a registry_password"))
            }
            _ => {}
        }
        if self.registry_user.contains(|c: char| c.is_control() || c == ':') {
            errors.push(SpecError::new(
                "registry_user",
                format!("{:?} is not the name of a user", self.registry_user),
            ));
        }
        self.validate_lists(&mut errors);
        for (field, value, least, most) in [
            ("replicas", self.replicas, 0, 1000),
            ("stop_s", self.stop_s, 1, 3600),
            ("wait_s", self.wait_s, 5, 3600),
            ("memory_mb", self.memory_mb.unwrap_or(4), 4, 1 << 24),
        ] {
            if !(least..=most).contains(&value) {
                errors.push(SpecError::new(field, format!("want {least} to {most}")));
            }
        }
        let own_port = self.ports().any(|port| port.mode == "host");
        if own_port && self.update_order == UpdateOrder::StartFirst {
            let message =
                "the new task would wait for the old one's port: leave it out, or publish by ingress";
            errors.push(SpecError::new("update_order", message));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_mounts_by_table() {
        let port = |published, target, protocol: &str, mode: &str| Port {
            published,
            target,
            protocol: protocol.to_owned(),
            mode: mode.to_owned(),
        };
        for (text, want) in [
            ("80", Some(port(80, 80, "tcp", "host"))),
            ("443/udp", Some(port(443, 443, "udp", "host"))),
            ("8080:80/tcp ingress", Some(port(8080, 80, "tcp", "ingress"))),
            ("0", None),
            ("80:", None),
            ("80/sctp", None),
            ("80 host ingress", None),
            ("80 mesh", None),
            ("65536", None),
        ] {
            assert_eq!(text.parse().ok(), want, "{text}");
        }
        let mount = |source: &str, target: &str, read_only| Mount {
            source: source.to_owned(),
            target: target.to_owned(),
            read_only,
        };
        for (text, want) in [
            ("/run/a:/run/a:ro", Some(mount("/run/a", "/run/a", true))),
            ("data:/data", Some(mount("data", "/data", false))),
            ("data:/data:rw", None),
            ("data:data", None),
            ("../x:/x", None),
            ("/x", None),
        ] {
            assert_eq!(text.parse().ok(), want, "{text}");
        }
    }
}
