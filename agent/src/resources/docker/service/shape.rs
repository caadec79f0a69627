//! What of a service is ours to say: as it is declared, as a Swarm has it, and how the one becomes the other. Pure.
//!
//! For a service that bears our label, each list and map that a spec has a field for is ours as a whole: a port, a
//! label or a variable that somebody added is taken out again. What a spec has no word for (a host name,
//! reservations, an update's speed) stays as it is.

use std::collections::{BTreeMap, BTreeSet};

use postern_proto::ids::PlanHash;
use postern_proto::spec::{Mount, Port, SwarmServiceSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::{MANAGED, encoded, text};

/// A service in the terms of its spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    pub(super) image: String,
    pub(super) args: Vec<String>,
    /// `NAME=VALUE`.
    pub(super) env: BTreeSet<String>,
    pub(super) labels: BTreeMap<String, String>,
    /// By name.
    pub(super) networks: BTreeSet<String>,
    pub(super) ports: BTreeSet<Port>,
    pub(super) mounts: BTreeSet<Mount>,
    pub(super) constraints: BTreeSet<String>,
    /// The path in the container, and what the config is called.
    pub(super) configs: BTreeMap<String, String>,
    /// The same of secrets.
    pub(super) secrets: BTreeMap<String, String>,
    /// Empty where nobody asks.
    pub(super) health: Vec<String>,
    pub(super) replicas: u64,
    pub(super) order: String,
    pub(super) memory_bytes: u64,
    pub(super) stop_ns: u64,
}

const SECOND: u64 = 1_000_000_000;
/// What a task may fail within so that an update counts as failed: Docker's own default.
const MONITOR_NS: u64 = 5 * SECOND;
/// Docker's limit on names of configs and secrets is 64 (moby, swarmkit `validateConfigSpec`); a hash has 24.
const STEM: usize = 36;

/// A name that says which content it is.
pub(super) fn content_name(service: &str, hash: &[u8; 32]) -> String {
    let stem: String = service.chars().take(STEM).collect();
    let hash: String = hash.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("{stem}-{hash}")
}

/// What a config is called. Everybody may see what is in it, so its hash needs no key.
pub(super) fn config_name(service: &str, path: &str, content: &str) -> String {
    content_name(service, PlanHash::of(format!("{service}\0{path}\0{content}").as_bytes()).as_bytes())
}

impl Shape {
    /// As it is declared, with these names for its secrets.
    pub(super) fn wanted(spec: &SwarmServiceSpec, secret_names: &BTreeMap<String, String>) -> Self {
        let mut labels: BTreeMap<String, String> =
            spec.labels().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        labels.insert(MANAGED.to_owned(), "true".to_owned());
        let configs = spec.configs().into_iter();
        Self {
            image: spec.image.clone().unwrap_or_default(),
            args: spec.args().map(str::to_owned).collect(),
            env: spec.env().into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            labels,
            networks: spec.networks().map(str::to_owned).collect(),
            ports: spec.ports().collect(),
            mounts: spec.mounts().collect(),
            constraints: spec.constraints().map(str::to_owned).collect(),
            configs: configs
                .map(|(path, content)| (path.to_owned(), config_name(&spec.name, path, content)))
                .collect(),
            secrets: secret_names.clone(),
            health: spec.health.clone(),
            replicas: spec.replicas,
            order: spec.update_order.as_str().to_owned(),
            memory_bytes: spec.memory_mb.unwrap_or(0) << 20,
            stop_ns: spec.stop_s.saturating_mul(SECOND),
        }
    }

    /// As a Swarm has it, with these names of its networks by their ids.
    pub(super) fn of(service: &Value, networks: &BTreeMap<String, String>) -> Self {
        let task = &service["TaskTemplate"];
        let container = &task["ContainerSpec"];
        let strings = |list: &Value| -> Vec<String> {
            list.as_array().into_iter().flatten().filter_map(|it| it.as_str().map(str::to_owned)).collect()
        };
        let items = |list: &Value| list.as_array().cloned().unwrap_or_default();
        let files = |list: &Value, name: &str| -> BTreeMap<String, String> {
            let pair =
                |it: &Value| (text(it, "/File/Name").to_owned(), it[name].as_str().unwrap_or("").to_owned());
            items(list).iter().map(pair).collect()
        };
        let number = |port: &Value| port.as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
        let labels = service["Labels"].as_object().cloned().unwrap_or_default();
        Self {
            image: text(container, "/Image").to_owned(),
            args: strings(&container["Args"]),
            env: strings(&container["Env"]).into_iter().collect(),
            labels: labels
                .into_iter()
                .map(|(name, value)| (name, value.as_str().unwrap_or("").to_owned()))
                .collect(),
            networks: items(&task["Networks"])
                .iter()
                .map(|net| {
                    networks.get(text(net, "/Target")).map_or(text(net, "/Target"), String::as_str).to_owned()
                })
                .collect(),
            ports: items(&service["EndpointSpec"]["Ports"])
                .iter()
                .map(|port| Port {
                    published: number(&port["PublishedPort"]),
                    target: number(&port["TargetPort"]),
                    protocol: text(port, "/Protocol").to_owned(),
                    mode: text(port, "/PublishMode").to_owned(),
                })
                .collect(),
            mounts: items(&container["Mounts"])
                .iter()
                .map(|mount| Mount {
                    source: text(mount, "/Source").to_owned(),
                    target: text(mount, "/Target").to_owned(),
                    read_only: mount["ReadOnly"].as_bool().unwrap_or(false),
                })
                .collect(),
            constraints: strings(&task["Placement"]["Constraints"]).into_iter().collect(),
            configs: files(&container["Configs"], "ConfigName"),
            secrets: files(&container["Secrets"], "SecretName"),
            health: strings(&container["Healthcheck"]["Test"])
                .into_iter()
                .filter(|word| word != "CMD")
                .collect(),
            replicas: service["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(0),
            order: service["UpdateConfig"]["Order"].as_str().unwrap_or("stop-first").to_owned(),
            memory_bytes: task["Resources"]["Limits"]["MemoryBytes"].as_u64().unwrap_or(0),
            stop_ns: container["StopGracePeriod"].as_u64().unwrap_or(10 * SECOND),
        }
    }

    /// The service as the engine takes it: what stands in `base`, with all that is ours put in its place.
    pub(super) fn service(&self, name: &str, base: &Value) -> Value {
        let mut service = base.as_object().cloned().unwrap_or_default();
        service.insert("Name".to_owned(), name.into());
        service.insert("Labels".to_owned(), json!(self.labels));
        let mount = |mount: &Mount| {
            let kind = if mount.is_bind() { "bind" } else { "volume" };
            json!({"Type": kind, "Source": mount.source, "Target": mount.target, "ReadOnly": mount.read_only})
        };
        within(&mut service, &["TaskTemplate", "ContainerSpec"], |container| {
            let files = |kind: &str, of: &BTreeMap<String, String>| -> Value {
                of.iter().map(|(path, name)| reference(kind, path, name)).collect()
            };
            set(container, "Image", json!(self.image));
            set(container, "Args", json!(self.args));
            set(container, "Env", json!(self.env));
            set(container, "Mounts", self.mounts.iter().map(mount).collect());
            set(container, "Configs", files("Config", &self.configs));
            set(container, "Secrets", files("Secret", &self.secrets));
            set(container, "StopGracePeriod", self.stop_ns.into());
            // One of the image's own is left to it.
            container.remove("Healthcheck");
            if !self.health.is_empty() {
                let test: Vec<&str> =
                    ["CMD"].into_iter().chain(self.health.iter().map(String::as_str)).collect();
                // Asked each second at its start, so that one that is well is in use at once and not after ten. Engines
                // before 25 (API 1.44) read over that.
                let health = json!({"Test": test, "Interval": 10 * SECOND, "Timeout": 5 * SECOND, "Retries": 3,
                    "StartPeriod": 30 * SECOND, "StartInterval": SECOND});
                set(container, "Healthcheck", health);
            }
        });
        within(&mut service, &["TaskTemplate"], |task| {
            set(task, "Networks", self.networks.iter().map(|net| json!({"Target": net})).collect());
        });
        within(&mut service, &["TaskTemplate", "Placement"], |placement| {
            set(placement, "Constraints", json!(self.constraints));
        });
        within(&mut service, &["TaskTemplate", "Resources", "Limits"], |limits| match self.memory_bytes {
            0 => drop(limits.remove("MemoryBytes")),
            bytes => set(limits, "MemoryBytes", bytes.into()),
        });
        service.insert("Mode".to_owned(), json!({"Replicated": {"Replicas": self.replicas}}));
        within(&mut service, &["UpdateConfig"], |update| {
            set(update, "Order", self.order.clone().into());
            // One that fails brings back what ran before; how fast it goes may be somebody's own choice.
            set(update, "FailureAction", "rollback".into());
            update.entry("Parallelism").or_insert_with(|| 1.into());
            update.entry("Monitor").or_insert_with(|| MONITOR_NS.into());
        });
        // The way back has the same ports to hand over.
        within(&mut service, &["RollbackConfig"], |back| set(back, "Order", self.order.clone().into()));
        let port = |port: &Port| {
            json!({"Protocol": port.protocol, "TargetPort": port.target, "PublishedPort": port.published,
                "PublishMode": port.mode})
        };
        within(&mut service, &["EndpointSpec"], |endpoint| {
            endpoint.entry("Mode").or_insert_with(|| "vip".into());
            set(endpoint, "Ports", self.ports.iter().map(port).collect());
        });
        Value::Object(service)
    }

    /// The TCP ports of the host that go from one task to the next, where the old one ends first.
    pub(super) fn handed_over(&self) -> Vec<u16> {
        let held = self.ports.iter().filter(|port| port.mode == "host" && port.protocol == "tcp");
        held.map(|port| port.published).collect()
    }
}

/// A service as it was, with what the engine now has for its networks, configs and secrets: their ids may be others.
pub(super) fn as_it_was(service: &Value, networks: &BTreeMap<String, String>) -> Value {
    let mut service = service.clone();
    if let Some(list) = service["TaskTemplate"]["Networks"].as_array_mut() {
        for net in list {
            if let Some(name) = networks.get(text(net, "/Target")) {
                net["Target"] = name.clone().into();
            }
        }
    }
    for (list, kind) in [("Configs", "Config"), ("Secrets", "Secret")] {
        if let Some(list) = service["TaskTemplate"]["ContainerSpec"][list].as_array_mut() {
            for file in list {
                let name = file[format!("{kind}Name")].as_str().unwrap_or_default().to_owned();
                file[format!("{kind}ID")] = id_of(kind, &name);
            }
        }
    }
    service
}

fn id_of(kind: &str, name: &str) -> Value {
    json!({"$id": format!("/{}s/{}", kind.to_lowercase(), encoded(name))})
}

/// A config or secret in a container. Readable by whomever its program runs as, as Docker's own client has it.
fn reference(kind: &str, path: &str, name: &str) -> Value {
    json!({
        "File": {"Name": path, "UID": "0", "GID": "0", "Mode": 0o444},
        format!("{kind}ID"): id_of(kind, name),
        format!("{kind}Name"): name,
    })
}

/// Changes an object in an object, made where there is none.
fn within(of: &mut Map<String, Value>, path: &[&str], change: impl FnOnce(&mut Map<String, Value>)) {
    let Some((name, rest)) = path.split_first() else { return change(of) };
    let mut inner = match of.remove(*name) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    within(&mut inner, rest, change);
    of.insert((*name).to_owned(), Value::Object(inner));
}

fn set(of: &mut Map<String, Value>, name: &str, value: Value) {
    of.insert(name.to_owned(), value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_proto::spec::ResourceSpec as _;

    fn spec() -> SwarmServiceSpec {
        let spec: SwarmServiceSpec = serde_json::from_value(json!({
            "name": "traefik", "image": "traefik:v3", "args": ["--a", ""], "env": {"A": "b", "NONE": ""},
            "labels": {"x": "y", "none": ""}, "networks": ["proxy", ""], "ports": ["80", "443/udp", "8080:80 ingress", ""],
            "mounts": ["/run/docker.sock:/run/docker.sock:ro", "acme:/acme"], "constraints": ["node.role==manager"],
            "configs": {"/etc/t.yml": "text", "/none": ""}, "secrets": {"/run/secrets/t": "token"}, "memory_mb": 64, "health": ["t", "ping"],
        }))
        .unwrap();
        assert_eq!(spec.validate(), []);
        spec
    }

    fn names() -> BTreeMap<String, String> {
        [("/run/secrets/t".to_owned(), "traefik-1".to_owned())].into()
    }

    #[test]
    fn what_is_declared_is_what_the_swarm_has() {
        let wanted = Shape::wanted(&spec(), &names());
        let made = wanted.service("traefik", &Value::Null);
        // Docker has ids where it was given names.
        let mut there = made.clone();
        there["TaskTemplate"]["Networks"][0]["Target"] = "net-id".into();
        let networks = [("net-id".to_owned(), "proxy".to_owned())].into();
        assert_eq!(Shape::of(&there, &networks), wanted);
        assert_eq!(wanted.handed_over(), [80]);
        assert_eq!(wanted.env.len() + wanted.args.len() + wanted.configs.len() + wanted.networks.len(), 4);
        assert_eq!(made["TaskTemplate"]["ContainerSpec"]["Mounts"][1]["Type"], "volume");
        // 10 s and 1 s, in nanoseconds.
        let health = &made["TaskTemplate"]["ContainerSpec"]["Healthcheck"];
        let asked = (health["Interval"].as_u64(), health["StartInterval"].as_u64());
        assert_eq!(asked, (Some(10_000_000_000), Some(1_000_000_000)));
        let id = json!({"$id": "/secrets/traefik-1"});
        assert_eq!(made["TaskTemplate"]["ContainerSpec"]["Secrets"][0]["SecretID"], id);
    }

    #[test]
    fn what_a_spec_has_no_word_for_stays() {
        let wanted = Shape::wanted(&spec(), &names());
        let mut there = wanted.service("traefik", &Value::Null);
        there["TaskTemplate"]["ContainerSpec"]["Hostname"] = "web".into();
        there["UpdateConfig"]["Parallelism"] = 3.into();
        there["TaskTemplate"]["Resources"]["Reservations"] = json!({"MemoryBytes": 7});
        there["Labels"]["somebody"] = "else".into();
        assert_ne!(Shape::of(&there, &BTreeMap::new()), wanted, "a label of somebody's is a difference");
        let again = wanted.service("traefik", &there);
        there["Labels"].as_object_mut().unwrap().remove("somebody");
        assert_eq!(again, there);
    }

    #[test]
    fn trap_20_names_follow_the_content() {
        let one = config_name("traefik", "/a", "x");
        assert_eq!(one, config_name("traefik", "/a", "x"));
        assert_ne!(one, config_name("traefik", "/a", "y"));
        assert_ne!(one, config_name("traefik", "/b", "x"));
        assert!(config_name(&"x".repeat(63), "/a", "x").len() <= 64);
    }
}
