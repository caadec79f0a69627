//! `swarm`: this host as a manager, at an address of its own.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use postern_proto::spec::{Presence, SwarmSpec};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::{Depth, ObserveError, Resource, Step, Undo};
use super::interfaces::Networks;
use super::{SwarmInfo, ask, info, managed_list, tell, text};
use crate::sys::Sys;

/// How long a node may take to be ready.
const SETTLE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Where managers listen to each other: Docker's own number.
const PORT: u16 = 2377;

pub(in crate::resources) struct Swarm;

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::resources) struct Seen {
    node: SwarmInfo,
    /// Its node is ready and takes tasks.
    ready: bool,
    /// What it would be reached at; `None` where the host has no address for that.
    advertised: Option<IpAddr>,
    /// Services that run in it.
    services: BTreeSet<String>,
}

impl Seen {
    fn is_in(&self) -> bool {
        self.node.local_node_state == "active"
    }
}

impl Resource for Swarm {
    type Spec = SwarmSpec;
    type Seen = Seen;

    async fn observe(spec: &SwarmSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let networks = Networks::look(host).await?;
        let mut seen = look(spec, host, &networks).await?;
        if depth == Depth::Whole {
            return Ok(seen);
        }
        if let Some(why) = in_the_way(spec, host, &seen, &networks).await? {
            return Err(ObserveError::Obstacle(why));
        }
        let until = tokio::time::Instant::now() + SETTLE;
        while depth == Depth::Proof && spec.state == Presence::Present && !seen.ready {
            if tokio::time::Instant::now() >= until {
                return Err(ObserveError::Obstacle(format!(
                    "the node is in a Swarm and not ready after {} s: see `docker node ls`",
                    SETTLE.as_secs()
                )));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            seen = look(spec, host, &networks).await?;
        }
        Ok(seen)
    }

    fn plan(spec: &SwarmSpec, seen: &Seen) -> Vec<Step> {
        match (spec.state, seen.is_in(), seen.advertised) {
            (Presence::Present, false, Some(address)) => vec![init(address)],
            (Presence::Absent, true, _) => vec![leave()],
            _ => Vec::new(),
        }
    }

    fn diff(spec: &SwarmSpec, seen: &Seen) -> String {
        match Self::plan(spec, seen).is_empty() {
            true => String::new(),
            false if seen.is_in() => format!("-node at {} in a Swarm\n", seen.node.node_addr),
            false => {
                format!(
                    "+node at {} in a Swarm of its own\n",
                    seen.advertised.map_or(String::new(), |a| a.to_string())
                )
            }
        }
    }

    fn essence(_: &SwarmSpec, seen: &Seen) -> serde_json::Value {
        // Not the node's id: a Swarm that is made anew has another one.
        json!({"state": seen.node.local_node_state, "manager": seen.node.control_available})
    }

    fn undo(_: &SwarmSpec, before: &Seen, _: &serde_json::Value, now: &Seen) -> Undo {
        match (before.is_in(), now.is_in()) {
            (false, true) if !now.services.is_empty() => Undo::Cannot(format!(
                "services run in the Swarm ({}): remove them first, for leaving it would end them",
                some(&now.services)
            )),
            (false, true) => Undo::Steps(vec![leave()]),
            (true, false) if before.node.control_available => match before.node.node_addr.parse() {
                Ok(address) => Undo::Steps(vec![init(address)]),
                Err(_) => Undo::Cannot("the address that the Swarm had is not known".to_owned()),
            },
            (true, false) => {
                Undo::Cannot("it was a worker in a Swarm of others, who alone can take it in".to_owned())
            }
            _ => Undo::Steps(Vec::new()),
        }
    }
}

fn some(names: &BTreeSet<String>) -> String {
    let first: Vec<&str> = names.iter().take(5).map(String::as_str).collect();
    let more = if names.len() > first.len() { ", …" } else { "" };
    format!("{}{more}", first.join(", "))
}

async fn look(spec: &SwarmSpec, host: &Sys, networks: &Networks) -> Result<Seen, ObserveError> {
    let node = info(host).await?.swarm;
    let mut seen = Seen { node, ..Seen::default() };
    seen.advertised = spec.address().or_else(|| networks.advertised());
    if !seen.is_in() || !seen.node.control_available {
        return Ok(seen);
    }
    let path = format!("/nodes/{}", seen.node.node_id);
    if let Some(node) = ask(host, &path).await? {
        seen.ready = text(&node, "/Status/State") == "ready" && text(&node, "/Spec/Availability") == "active";
    }
    let services = managed_list(host, "/services").await?;
    seen.services = services.iter().map(|service| text(service, "/Spec/Name").to_owned()).collect();
    Ok(seen)
}

/// Why what is declared cannot be.
async fn in_the_way(
    spec: &SwarmSpec,
    host: &Sys,
    seen: &Seen,
    networks: &Networks,
) -> Result<Option<String>, ObserveError> {
    let (node, own) = (&seen.node, networks.all());
    if spec.state == Presence::Absent {
        let busy = seen.is_in() && !seen.services.is_empty();
        return Ok(busy.then(|| {
            format!("services run in the Swarm ({}): declare them absent before this", some(&seen.services))
        }));
    }
    match node.local_node_state.as_str() {
        "" | "inactive" => {}
        "active" if !node.control_available => {
            return Ok(Some(
                "this node is a worker in a Swarm of others, and only its managers can give it services: promote it \
                 there (`docker node promote`), or take it out (`docker swarm leave`)"
                    .to_owned(),
            ));
        }
        "active" => {
            let address: Option<IpAddr> = node.node_addr.parse().ok();
            let gone = address.is_none_or(|address| !own.contains(&address));
            let other = spec.address().is_some_and(|wanted| Some(wanted) != address);
            if gone || other {
                let has = if gone {
                    "which this host does not have"
                } else {
                    "which is not the one that is declared"
                };
                return Ok(Some(format!(
                    "the Swarm has this node at {}, {has}: it cannot be changed in place; `docker swarm leave --force` \
                     ends all services, and then it can be made anew",
                    node.node_addr
                )));
            }
        }
        state => {
            let why = if node.error.is_empty() { "see `docker info`" } else { &node.error };
            return Ok(Some(format!("the node's part in its Swarm is {state}: {why}")));
        }
    }
    if info(host).await?.live_restore_enabled {
        return Ok(Some(
            "Docker's engine has live-restore on, which cannot be together with Swarm: take it out of \
             /etc/docker/daemon.json"
                .to_owned(),
        ));
    }
    match seen.advertised {
        None => Ok(Some(
            "this host has no address that a Swarm could be reached at: give one by `advertise`".to_owned(),
        )),
        Some(address) if !own.contains(&address) => {
            Ok(Some(format!("this host does not have the address {address}")))
        }
        Some(_) => Ok(None),
    }
}

fn init(address: IpAddr) -> Step {
    // On all addresses, so that the engine starts at boot also where this one comes later.
    let all = if address.is_ipv6() { format!("[::]:{PORT}") } else { format!("0.0.0.0:{PORT}") };
    let body =
        json!({"ListenAddr": all, "AdvertiseAddr": address.to_string(), "DataPathAddr": address.to_string()});
    Step::HttpUnix(tell(
        format!("make a Swarm with this node at {address}"),
        "POST",
        "/swarm/init".to_owned(),
        body,
    ))
}

fn leave() -> Step {
    let path = "/swarm/leave?force=true".to_owned();
    Step::HttpUnix(tell("leave the Swarm".to_owned(), "POST", path, serde_json::Value::Null))
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;
    use serde_json::Value;

    fn fake(swarm: &Value, live_restore: bool) -> Fake {
        let fake = Fake::new();
        fake.answers("GET /info", 200, json!({"LiveRestoreEnabled": live_restore, "Swarm": swarm}));
        fake.answers(
            "GET /nodes/n",
            200,
            json!({"Status": {"State": "ready"}, "Spec": {"Availability": "active"}}),
        );
        fake.answers("GET /services", 200, json!([{"Spec": {"Name": "web"}}]));
        fake.program(
            "ip",
            "case \"$*\" in\n*address*) echo '[{\"ifname\":\"eth0\",\"mtu\":1500,\"link_type\":\"ether\",\
             \"flags\":[\"UP\"],\"addr_info\":[{\"local\":\"10.0.0.2\",\"scope\":\"global\"}]}]';;\n*) echo;;\nesac",
        );
        fake
    }

    #[tokio::test]
    async fn what_there_is_decides_by_table() {
        let active = |manager: bool, at: &str| json!({"LocalNodeState": "active", "NodeID": "n", "NodeAddr": at, "ControlAvailable": manager});
        let none = json!({"LocalNodeState": "inactive"});
        let cases = [
            (none.clone(), false, json!({}), Ok(vec!["make a Swarm with this node at 10.0.0.2"])),
            (
                none.clone(),
                false,
                json!({"advertise": "10.0.0.9"}),
                Err("this host does not have the address"),
            ),
            (none.clone(), true, json!({}), Err("Docker's engine has live-restore on")),
            (none, false, json!({"state": "absent"}), Ok(vec![])),
            (active(true, "10.0.0.2"), false, json!({}), Ok(vec![])),
            (
                active(true, "10.0.0.3"),
                false,
                json!({}),
                Err("the Swarm has this node at 10.0.0.3, which this"),
            ),
            (active(false, "10.0.0.2"), false, json!({}), Err("this node is a worker")),
            (
                active(true, "10.0.0.2"),
                false,
                json!({"state": "absent"}),
                Err("services run in the Swarm (web)"),
            ),
            (
                json!({"LocalNodeState": "locked"}),
                false,
                json!({}),
                Err("the node's part in its Swarm is locked"),
            ),
        ];
        for (swarm, live, spec, want) in cases {
            let fake = fake(&swarm, live);
            let typed: SwarmSpec = serde_json::from_value(spec.clone()).unwrap();
            match (Swarm::observe(&typed, &fake.sys, Depth::Cheap).await, want) {
                (Ok(seen), Ok(want)) => {
                    let steps: Vec<_> = Swarm::plan(&typed, &seen).iter().map(Step::summary).collect();
                    assert_eq!(steps, want, "{swarm} {spec}");
                    assert_eq!(Swarm::diff(&typed, &seen).is_empty(), want.is_empty());
                }
                (Err(error), Err(want)) => assert!(error.to_string().starts_with(want), "{error}"),
                (got, want) => panic!("{swarm} {spec}: {got:?}, wanted {want:?}"),
            }
        }
    }

    #[test]
    fn it_is_not_left_while_services_run() {
        let spec: SwarmSpec = serde_json::from_value(json!({})).unwrap();
        let node = SwarmInfo {
            local_node_state: "active".to_owned(),
            control_available: true,
            ..SwarmInfo::default()
        };
        let mut now = Seen { node, ..Seen::default() };
        let undo = |now: &Seen| Swarm::undo(&spec, &Seen::default(), &Value::Null, now);
        assert_eq!(undo(&now), Undo::Steps(vec![leave()]));
        now.services.insert("web".to_owned());
        assert!(matches!(undo(&now), Undo::Cannot(why) if why.contains("(web)")));
    }
}
