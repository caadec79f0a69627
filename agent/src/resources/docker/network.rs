//! `docker_network`: a network of Docker's with the MTU that its way has.

use std::collections::BTreeSet;

use postern_proto::spec::{DockerNetworkSpec, NetworkDriver, Presence};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::{Depth, ObserveError, Resource, Step, Undo};
use super::interfaces::Networks;
use super::{MANAGED, ask, filters, info, list, managed_list, remove, tell, text};
use crate::sys::Sys;

/// Where Docker keeps a network's MTU, for bridges and overlays alike (moby, libnetwork `netlabel.DriverMTU`).
const MTU: &str = "com.docker.network.driver.mtu";
/// What Docker takes off that number for an overlay, so that it is the MTU of what carries it (moby, libnetwork,
/// drivers/overlay, `maxMTU`): told 1500, or nothing, it gives containers 1450. Seen on 20.10 and 26.1.
const TAKEN_OFF: u64 = 50;
/// What it goes by where it is told nothing.
const TOLD_NOTHING: u64 = 1500;

pub(in crate::resources) struct DockerNetwork;

/// A network as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Network {
    id: String,
    driver: String,
    attachable: bool,
    internal: bool,
    /// What containers have.
    mtu: u64,
    labels: Value,
    options: Value,
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::resources) struct Seen {
    network: Option<Network>,
    /// Services and containers in it.
    users: BTreeSet<String>,
    /// What fits into its packets, and so what containers are to have.
    mtu: Option<u64>,
}

impl Resource for DockerNetwork {
    type Spec = DockerNetworkSpec;
    type Seen = Seen;

    async fn observe(spec: &DockerNetworkSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let seen = look(spec, host).await?;
        if depth == Depth::Whole {
            return Ok(seen);
        }
        if spec.state == Presence::Present && seen.mtu.is_none() {
            return Err(ObserveError::Obstacle(
                "this host has no default route to derive the MTU from: give `mtu`".to_owned(),
            ));
        }
        let differs = differences(spec, &seen);
        if let Some(network) = &seen.network
            && (spec.state == Presence::Absent || !differs.is_empty())
            && !seen.users.is_empty()
        {
            let (name, users) = (&spec.name, some(&seen.users));
            return Err(ObserveError::Obstacle(if differs.is_empty() {
                format!("the network {name} is in use ({users}): take these out of it first")
            } else {
                format!(
                    "the network {name} ({}) has {}, which cannot be changed while it is in use ({users}): take these \
                     out of it and apply again, and it is made anew; or declare it as it is",
                    network.driver,
                    differs.join(", ")
                )
            }));
        }
        Ok(seen)
    }

    fn plan(spec: &DockerNetworkSpec, seen: &Seen) -> Vec<Step> {
        let there = seen.network.is_some();
        match spec.state {
            Presence::Absent if there => vec![remove("the network", "networks", &spec.name)],
            Presence::Absent => Vec::new(),
            Presence::Present if there && differences(spec, seen).is_empty() => Vec::new(),
            Presence::Present => {
                let mut steps = Vec::new();
                if there {
                    steps.push(remove("the network", "networks", &spec.name));
                }
                let mtu = seen.mtu.unwrap_or(TOLD_NOTHING);
                let options = json!({MTU: (mtu + taken_off(spec.driver.as_str())).to_string()});
                let wanted = Network {
                    id: String::new(),
                    driver: spec.driver.as_str().to_owned(),
                    attachable: spec.attachable,
                    internal: spec.internal,
                    mtu,
                    labels: json!({MANAGED: "true"}),
                    options,
                };
                steps.push(create(&spec.name, &wanted));
                steps
            }
        }
    }

    fn diff(spec: &DockerNetworkSpec, seen: &Seen) -> String {
        if Self::plan(spec, seen).is_empty() {
            return String::new();
        }
        let was = seen
            .network
            .as_ref()
            .map(|net| format!("-network {}: {}, MTU {}\n", spec.name, net.driver, net.mtu));
        let mut shown = was.unwrap_or_default();
        if spec.state == Presence::Present {
            let mtu = seen.mtu.unwrap_or(TOLD_NOTHING);
            shown += &format!("+network {}: {}, MTU {mtu}\n", spec.name, spec.driver.as_str());
        }
        shown
    }

    fn essence(_: &DockerNetworkSpec, seen: &Seen) -> Value {
        // Not its id: one that is made anew has another.
        seen.network
            .as_ref()
            .map_or(Value::Null, |net| json!([net.driver, net.attachable, net.internal, net.mtu]))
    }

    fn undo(spec: &DockerNetworkSpec, before: &Seen, _: &Value, now: &Seen) -> Undo {
        if now.network.is_some() && !now.users.is_empty() {
            let users = some(&now.users);
            return Undo::Cannot(format!(
                "the network {} is in use ({users}): take these out of it first",
                spec.name
            ));
        }
        let mut steps = Vec::new();
        if now.network.is_some() {
            steps.push(remove("the network", "networks", &spec.name));
        }
        if let Some(network) = &before.network {
            steps.push(create(&spec.name, network));
        }
        Undo::Steps(steps)
    }
}

fn some(names: &BTreeSet<String>) -> String {
    names.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// What of a network that is there is not as declared, with what it is now.
fn differences(spec: &DockerNetworkSpec, seen: &Seen) -> Vec<String> {
    let Some(network) = &seen.network else { return Vec::new() };
    if spec.state == Presence::Absent {
        return Vec::new();
    }
    let mut differ = Vec::new();
    if network.driver != spec.driver.as_str() {
        differ.push(format!("the driver {} and not {}", network.driver, spec.driver.as_str()));
    }
    let (mtu, wanted) = (network.mtu, seen.mtu.unwrap_or(network.mtu));
    if mtu != wanted {
        differ.push(format!("the MTU {mtu} and not {wanted}"));
    }
    for (word, is, wanted) in
        [("attachable", network.attachable, spec.attachable), ("internal", network.internal, spec.internal)]
    {
        if is != wanted {
            differ.push(format!("{word}: {is} and not {wanted}"));
        }
    }
    differ
}

/// What Docker takes off what it is told.
fn taken_off(driver: &str) -> u64 {
    if driver == NetworkDriver::Overlay.as_str() { TAKEN_OFF } else { 0 }
}

fn create(name: &str, network: &Network) -> Step {
    let body = json!({"Name": name, "CheckDuplicate": true, "Driver": network.driver, "Attachable": network.attachable,
        "Internal": network.internal, "Options": network.options, "Labels": network.labels});
    let what = format!("make the network {name} ({}, MTU {})", network.driver, network.mtu);
    Step::HttpUnix(tell(what, "POST", "/networks/create".to_owned(), body))
}

async fn look(spec: &DockerNetworkSpec, host: &Sys) -> Result<Seen, ObserveError> {
    let node = info(host).await?.swarm;
    if spec.driver == NetworkDriver::Overlay && spec.state == Presence::Present && !node.control_available {
        return Err(ObserveError::Obstacle(
            "an overlay needs a Swarm that this host is a manager of: declare `swarm` before it".to_owned(),
        ));
    }
    let networks = Networks::look(host).await?;
    let derived = match spec.driver {
        NetworkDriver::Overlay => networks.overlay_mtu(node.node_addr.parse().ok()),
        NetworkDriver::Bridge => networks.mtu(),
    };
    let mut seen = Seen { mtu: spec.mtu.or(derived), ..Seen::default() };
    // The filter matches parts of names, too.
    let all = list(host, &format!("/networks?filters={}", filters("name", &spec.name))).await?;
    let found: Vec<_> = all.iter().filter(|net| text(net, "/Name") == spec.name).collect();
    let found = match found.as_slice() {
        [] => return Ok(seen),
        [one] => text(one, "/Id").to_owned(),
        _ => {
            let name = &spec.name;
            return Err(ObserveError::Obstacle(format!(
                "several networks are called {name}: remove all but one"
            )));
        }
    };
    let Some(net) = ask(host, &format!("/networks/{found}")).await? else { return Ok(seen) };
    let flag = |name: &str| net[name].as_bool().unwrap_or(false);
    seen.network = Some(Network {
        id: found.clone(),
        driver: text(&net, "/Driver").to_owned(),
        attachable: flag("Attachable"),
        internal: flag("Internal"),
        mtu: net["Options"][MTU]
            .as_str()
            .and_then(|mtu| mtu.parse::<u64>().ok())
            .unwrap_or(TOLD_NOTHING)
            .saturating_sub(taken_off(text(&net, "/Driver"))),
        labels: net["Labels"].clone(),
        options: net["Options"].clone(),
    });
    for (id, container) in net["Containers"].as_object().into_iter().flatten() {
        // What the engine puts into each overlay itself.
        if !id.starts_with("lb-") {
            seen.users.insert(format!("container {}", text(container, "/Name")));
        }
    }
    for service in managed_list(host, "/services").await? {
        let networks = service.pointer("/Spec/TaskTemplate/Networks").and_then(Value::as_array);
        if networks.into_iter().flatten().any(|net| text(net, "/Target") == found) {
            seen.users.insert(format!("service {}", text(&service, "/Spec/Name")));
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[tokio::test]
    async fn trap_19_what_there_is_decides_by_table() {
        let net = |driver: &str, mtu: Option<&str>, users: bool| {
            let options = mtu.map_or(
                json!({}),
                |mtu| json!({MTU: mtu, "com.docker.network.driver.overlay.vxlanid_list": "4097"}),
            );
            let containers =
                if users { json!({"c": {"Name": "web.1"}}) } else { json!({"lb-x": {"Name": "x-endpoint"}}) };
            json!({"Name": "x", "Id": "i", "Driver": driver, "Attachable": true, "Options": options, "Containers": containers})
        };
        let make = "make the network x (overlay, MTU 1400)";
        let cases = [
            (None, json!({}), Ok(vec![make])),
            (Some(net("overlay", Some("1450"), true)), json!({}), Ok(vec![])),
            (Some(net("overlay", Some("1500"), false)), json!({}), Ok(vec!["remove the network x", make])),
            (Some(net("overlay", None, false)), json!({}), Ok(vec!["remove the network x", make])),
            (
                Some(net("overlay", None, true)),
                json!({}),
                Err("the network x (overlay) has the MTU 1450 and not 1400"),
            ),
            (Some(net("overlay", None, true)), json!({"mtu": 1450}), Ok(vec![])),
            (
                Some(net("bridge", Some("1400"), true)),
                json!({}),
                Err("the network x (bridge) has the driver bridge"),
            ),
            (Some(net("overlay", None, false)), json!({"state": "absent"}), Ok(vec!["remove the network x"])),
            (
                Some(net("overlay", None, true)),
                json!({"state": "absent"}),
                Err("the network x is in use (container web.1)"),
            ),
            (None, json!({"state": "absent"}), Ok(vec![])),
        ];
        for (there, changed, want) in cases {
            let fake = Fake::new();
            let swarm = json!({"LocalNodeState": "active", "ControlAvailable": true, "NodeAddr": "10.0.0.2"});
            fake.answers("GET /info", 200, json!({"Swarm": swarm}));
            fake.answers("GET /services", 200, json!([]));
            // Another one whose name begins the same.
            let mut all = vec![json!({"Name": "x2", "Id": "j"})];
            if let Some(net) = &there {
                all.push(json!({"Name": "x", "Id": "i"}));
                fake.answers("GET /networks/i", 200, net.clone());
            }
            fake.answers("GET /networks", 200, all.into());
            fake.program(
                "ip",
                "case \"$*\" in\n*address*) echo '[{\"ifname\":\"eth0\",\"mtu\":1450,\"link_type\":\"ether\",\
                 \"flags\":[\"UP\"],\"addr_info\":[{\"local\":\"10.0.0.2\",\"scope\":\"global\"}]}]';;\n\
                 *-4*) echo '[{\"dst\":\"default\",\"dev\":\"eth0\"}]';;\n*) echo;;\nesac",
            );
            let mut declared = json!({"name": "x", "attachable": true});
            for (name, value) in changed.as_object().unwrap() {
                declared[name] = value.clone();
            }
            let spec: DockerNetworkSpec = serde_json::from_value(declared).unwrap();
            match (DockerNetwork::observe(&spec, &fake.sys, Depth::Cheap).await, want) {
                (Ok(seen), Ok(want)) => {
                    let steps: Vec<_> = DockerNetwork::plan(&spec, &seen).iter().map(Step::summary).collect();
                    assert_eq!(steps, want, "{there:?} {changed}");
                    if let Some(Step::HttpUnix(call)) = DockerNetwork::plan(&spec, &seen).last()
                        && call.method == "POST"
                    {
                        assert_eq!(call.body["Options"][MTU], "1450", "Docker takes 50 off itself");
                    }
                }
                (Err(error), Err(want)) => assert!(error.to_string().starts_with(want), "{error}"),
                (got, want) => panic!("{there:?} {changed}: {got:?}, wanted {want:?}"),
            }
        }
    }
}
