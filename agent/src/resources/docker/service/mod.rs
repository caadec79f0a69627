//! `swarm_service`: a service whose tasks run as it is declared, with configs and secrets named by their content.
//!
//! A Swarm cannot change a config or a secret, nor remove one that is in use. So what is new gets a name of its own, the
//! service is updated to it, and what nothing uses any more is removed once the update is through.

mod renew;
mod shape;
#[cfg(test)]
mod tests;

pub(super) use renew::{NotRenewed, Renewed, renew};

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use postern_proto::host::AGENT_BINARY;
use postern_proto::spec::{Presence, SwarmServiceSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::diff::unified;
use super::super::{Depth, Exec, ObserveError, Resource, Step, Undo};
use super::settle::{self, Tasks};
use super::{
    MANAGED, OWNER, ask, encoded, filters, hold, info, list, managed_list, obstacle, remove, tell, text,
};
use crate::sys::Sys;
use shape::Shape;

/// An image comes over the network, and some have gigabytes.
const PULL_LIMIT_S: u64 = 30 * 60;
/// A wait ends itself; its process is ended only where it does not.
const GRACE: Duration = Duration::from_secs(60);

pub(in crate::resources) struct SwarmService;

/// A service as the engine has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Service {
    id: String,
    /// What an update must name, so that nobody's change is lost.
    index: u64,
    spec: Value,
    settled: bool,
    tasks: Tasks,
    /// See [`settle::is_stuck`].
    #[serde(default)]
    stuck: bool,
}

/// What is there. Values of secrets are not: nobody can read them from a Swarm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::resources) struct Seen {
    service: Option<Service>,
    /// Our configs of this service, with their content in base64.
    configs: BTreeMap<String, String>,
    /// Our secrets of this service.
    secrets: BTreeSet<String>,
    /// What the declared secrets are called: the path in the container, and the name.
    secret_names: BTreeMap<String, String>,
    /// The declared image is on the host.
    image: bool,
    /// Names of networks by their ids.
    networks: BTreeMap<String, String>,
}

impl Seen {
    fn shape(&self) -> Option<Shape> {
        self.service.as_ref().map(|service| Shape::of(&service.spec, &self.networks))
    }
}

impl Resource for SwarmService {
    type Spec = SwarmServiceSpec;
    type Seen = Seen;

    async fn observe(spec: &SwarmServiceSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let manager = info(host).await?.swarm.control_available;
        if !manager {
            if spec.state == Presence::Absent || depth == Depth::Whole {
                return Ok(Seen::default());
            }
            let why = "a service needs a Swarm that this host is a manager of: declare `swarm` before it";
            return Err(ObserveError::Obstacle(why.to_owned()));
        }
        let seen = look(spec, host).await?;
        if depth == Depth::Whole {
            return Ok(seen);
        }
        let name = &spec.name;
        if let Some(service) = &seen.service
            && service.spec["Labels"].get(MANAGED).is_none()
        {
            return Err(ObserveError::Obstacle(format!(
                "the service {name} was not made by Postern: remove it (`docker service rm {name}`), or give another name"
            )));
        }
        let known: BTreeSet<&str> = seen.networks.values().map(String::as_str).collect();
        if spec.state == Presence::Present
            && let Some(missing) = spec.networks().find(|name| !known.contains(name))
        {
            return Err(ObserveError::Obstacle(format!(
                "there is no network {missing}: declare it by `docker_network` before this"
            )));
        }
        Ok(seen)
    }

    fn plan(spec: &SwarmServiceSpec, seen: &Seen) -> Vec<Step> {
        if spec.state == Presence::Absent {
            return gone(&spec.name, spec.wait_s, seen);
        }
        let wanted = Shape::wanted(spec, &seen.secret_names);
        let mut steps = Vec::new();
        if seen.shape().as_ref() != Some(&wanted) {
            if !seen.image {
                steps.push(pull(&wanted.image, spec));
            }
            for (path, content) in spec.configs() {
                let name = shape::config_name(&spec.name, path, content);
                if !seen.configs.contains_key(&name) {
                    steps.push(make("config", &spec.name, &name, &STANDARD.encode(content)));
                }
            }
            for (path, content) in spec.secrets() {
                if let Some(name) = seen.secret_names.get(path)
                    && !seen.secrets.contains(name)
                {
                    steps.push(make("secret", &spec.name, name, &STANDARD.encode(content)));
                }
            }
            let base = seen.service.as_ref().map_or(Value::Null, |service| service.spec.clone());
            let change = change(&spec.name, seen, wanted.service(&spec.name, &base), spec.wait_s);
            if seen.service.is_none() {
                // Nothing uses what an earlier service left, and nothing is to follow the wait.
                return [steps, unused(seen, &wanted), change].concat();
            }
            steps.extend(change);
        } else if let Some(there) = seen.service.as_ref().filter(|service| service.stuck) {
            // Perhaps because somebody has removed the image: the Swarm has no login to get it again.
            if !seen.image {
                steps.push(pull(&wanted.image, spec));
            }
            // It says what is wanted already; counting it up is what makes a Swarm go on.
            steps.extend(change(&spec.name, seen, renew::again(&there.spec), spec.wait_s));
        } else if seen.service.as_ref().is_some_and(|service| !service.settled) {
            // Somebody may have removed the image, and the Swarm has no login to get it again.
            if !seen.image {
                steps.push(pull(&wanted.image, spec));
            }
            steps.push(wait(&spec.name, spec.wait_s, false));
        }
        steps.extend(unused(seen, &wanted));
        steps
    }

    /// A new service starts by itself. One that is updated may have ports held, and is waited for at once.
    fn waits(spec: &SwarmServiceSpec, seen: &Seen) -> usize {
        usize::from(spec.state == Presence::Present && seen.service.is_none())
    }

    fn diff(spec: &SwarmServiceSpec, seen: &Seen) -> String {
        let was = seen.shape();
        let show = |shape: &Shape| serde_json::to_string_pretty(shape).unwrap_or_default() + "\n";
        let old = was.as_ref().map(show);
        let new = (spec.state == Presence::Present).then(|| show(&Shape::wanted(spec, &seen.secret_names)));
        let title = format!("service {}", spec.name);
        let mut shown =
            unified(&title, old.as_ref().map(String::as_bytes), new.as_ref().map(String::as_bytes));
        let now = was.map(|shape| shape.configs).unwrap_or_default();
        let wanted = if spec.state == Presence::Present { spec.configs() } else { BTreeMap::new() };
        let paths: BTreeSet<&str> = now.keys().map(String::as_str).chain(wanted.keys().copied()).collect();
        for path in paths {
            let old = now.get(path).and_then(|name| STANDARD.decode(seen.configs.get(name)?).ok());
            shown += &unified(path, old.as_deref(), wanted.get(path).map(|content| content.as_bytes()));
        }
        if shown.is_empty()
            && let Some(service) = &seen.service
            && !Self::plan(spec, seen).is_empty()
        {
            shown = match service.settled {
                true => format!("service {}: configs or secrets that it does not use any more\n", spec.name),
                false => format!("service {}: its tasks do not run as it says\n", spec.name),
            };
        }
        shown
    }

    fn hidden_diff(spec: &SwarmServiceSpec, seen: &Seen) -> String {
        // Secrets are names in it, and those tell nothing without this host's key.
        Self::diff(spec, seen)
    }

    fn may_hold_secrets(_: &Seen) -> bool {
        false
    }

    fn essence(_: &SwarmServiceSpec, seen: &Seen) -> Value {
        seen.shape().map_or(Value::Null, |shape| json!(shape))
    }

    fn undo(spec: &SwarmServiceSpec, before: &Seen, _: &Value, now: &Seen) -> Undo {
        let (Some(was), Some(shape)) = (&before.service, before.shape()) else {
            return Undo::Steps(gone(&spec.name, spec.wait_s, now));
        };
        if let Some(lost) = shape.secrets.values().find(|name| !now.secrets.contains(*name)) {
            return Undo::Cannot(format!(
                "the service had the secret {lost}, which was removed when nothing used it any more, and nobody can read \
                 its value again: set the older value by `postern secret set` and apply"
            ));
        }
        let mut steps = Vec::new();
        for name in shape.configs.values().filter(|name| !now.configs.contains_key(*name)) {
            match before.configs.get(name) {
                Some(content) => steps.push(make("config", &spec.name, name, content)),
                None => return Undo::Cannot(format!("what was in the config {name} was not kept")),
            }
        }
        steps.extend(change(&spec.name, now, shape::as_it_was(&was.spec, &before.networks), spec.wait_s));
        steps.extend(unused(now, &shape));
        Undo::Steps(steps)
    }
}

fn pull(image: &str, spec: &SwarmServiceSpec) -> Step {
    // A tag is apart from the name; a port of the registry is not.
    let (name, tag) = match (image.split_once('@'), image.rsplit_once(':')) {
        (Some((name, digest)), _) => (name, digest),
        (None, Some((name, tag))) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    };
    let path = format!("/images/create?fromImage={}&tag={}", encoded(name), encoded(tag));
    let mut call = tell(format!("pull the image {image}"), "POST", path, Value::Null);
    call.progress = true;
    call.limit_s = PULL_LIMIT_S;
    call.registry_auth = registry_auth(image, spec);
    Step::HttpUnix(call)
}

/// The login for the pull; empty where there is none. The Swarm is not given it: a task is made of the image that the pull
/// brought, whatever the registry says to the Swarm's own question (moby, executor/container, `Prepare`), so nothing of it
/// is left in the engine.
fn registry_auth(image: &str, spec: &SwarmServiceSpec) -> String {
    if spec.registry_user.is_empty() {
        return String::new();
    }
    // A first part that can be a host's name is one; anything else is of Docker Hub, which goes by this address.
    let first = image.split_once('/').map(|(first, _)| first);
    let host = first.filter(|first| first.contains(['.', ':']) || *first == "localhost");
    let login = json!({
        "username": spec.registry_user,
        "password": spec.registry_password,
        "serveraddress": host.unwrap_or("https://index.docker.io/v1/"),
    });
    URL_SAFE.encode(login.to_string())
}

/// A config or a secret; one of the same name has the same content.
fn make(kind: &str, service: &str, name: &str, data: &str) -> Step {
    let body = json!({"Name": name, "Data": data, "Labels": {MANAGED: "true", OWNER: service}});
    let mut call = tell(format!("make the {kind} {name}"), "POST", format!("/{kind}s/create"), body);
    call.fine = vec![409];
    Step::HttpUnix(call)
}

/// Makes or updates the service, and waits until it is so. Ports that go from one task to the next are held meanwhile.
fn change(name: &str, seen: &Seen, service: Value, wait_s: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    match &seen.service {
        None => {
            let what = format!("make the service {name}");
            steps.push(Step::HttpUnix(tell(what, "POST", "/services/create".to_owned(), service)));
        }
        Some(there) => {
            let next = Shape::of(&service, &seen.networks);
            let ports: Vec<String> = next.handed_over().iter().map(u16::to_string).collect();
            let runs = there.tasks.running + there.tasks.old > 0;
            if runs && next.order == "stop-first" && !ports.is_empty() && ports.len() <= hold::MOST_PORTS {
                let seconds = wait_s.min(hold::LONGEST_S).to_string();
                let argv = [AGENT_BINARY, "hold-ports", &ports.join(","), &seconds];
                steps.push(Step::Exec(Exec::new(&argv, GRACE)));
            }
            let path = format!("/services/{}/update?version={}", there.id, there.index);
            steps.push(Step::HttpUnix(tell(format!("update the service {name}"), "POST", path, service)));
        }
    }
    steps.push(wait(name, wait_s, true));
    steps
}

fn wait(name: &str, wait_s: u64, updated: bool) -> Step {
    let seconds = wait_s.to_string();
    let mut argv = vec![AGENT_BINARY, "settle-service", name, &seconds];
    argv.extend(updated.then_some("updated"));
    Step::Exec(Exec::new(&argv, Duration::from_secs(wait_s) + GRACE))
}

/// Removes the service, waits for its containers, and removes what was its own.
fn gone(name: &str, wait_s: u64, seen: &Seen) -> Vec<Step> {
    let mut steps = Vec::new();
    if seen.service.is_some() {
        steps.extend([remove("the service", "services", name), wait(name, wait_s, false)]);
    }
    steps.extend(unused(seen, &Shape::default()));
    steps
}

/// Removes our configs and secrets that a service of this shape does not use.
fn unused(seen: &Seen, shape: &Shape) -> Vec<Step> {
    let configs: BTreeSet<&String> = shape.configs.values().collect();
    let secrets: BTreeSet<&String> = shape.secrets.values().collect();
    let old_configs = seen.configs.keys().filter(|name| !configs.contains(name));
    let old_secrets = seen.secrets.iter().filter(|name| !secrets.contains(name));
    let steps = old_configs.map(|name| remove("the config", "configs", name));
    steps.chain(old_secrets.map(|name| remove("the secret", "secrets", name))).collect()
}

async fn look(spec: &SwarmServiceSpec, host: &Sys) -> Result<Seen, ObserveError> {
    let mut seen = Seen::default();
    for net in list(host, "/networks").await? {
        seen.networks.insert(text(&net, "/Id").to_owned(), text(&net, "/Name").to_owned());
    }
    if let Some((service, tasks)) = settle::look(host, &spec.name).await.map_err(|error| obstacle(&error))?
        && text(&service, "/Spec/Name") == spec.name
    {
        let tasks = Tasks::of(&service, &tasks);
        seen.service = Some(Service {
            id: text(&service, "/ID").to_owned(),
            index: service["Version"]["Index"].as_u64().unwrap_or(0),
            settled: tasks.settled(&service),
            stuck: settle::is_stuck(&service),
            spec: service["Spec"].clone(),
            tasks,
        });
    }
    let ours = filters("label", &format!("{OWNER}={}", spec.name));
    for config in managed_list(host, &format!("/configs?filters={ours}")).await? {
        let name = text(&config, "/Spec/Name").to_owned();
        seen.configs.insert(name, text(&config, "/Spec/Data").to_owned());
    }
    for secret in managed_list(host, &format!("/secrets?filters={ours}")).await? {
        seen.secrets.insert(text(&secret, "/Spec/Name").to_owned());
    }
    for (path, value) in spec.secrets() {
        // With a key: a short token could be guessed from its plain hash, which whoever may ask the engine sees.
        let hash = host.keyed_hash(&format!("{}\0{path}\0{value}", spec.name));
        let hash = hash
            .ok_or_else(|| ObserveError::Obstacle("this agent has no key for names of secrets".to_owned()))?;
        seen.secret_names.insert(path.to_owned(), shape::content_name(&spec.name, &hash));
    }
    if let Some(image) = &spec.image {
        seen.image = ask(host, &format!("/images/{}/json", encoded(image))).await?.is_some();
    }
    Ok(seen)
}
