//! What the kinds about Docker share: how its engine is asked and told, and what it says of itself.

pub(super) mod daemon;
mod hold;
mod interfaces;
mod make_call;
pub(super) mod network;
pub(super) mod service;
mod settle;
pub(super) mod swarm;
mod volume;

pub(crate) use hold::hold_ports;
pub(crate) use make_call::http_unix;
pub(crate) use settle::settle_service;
pub(crate) use volume::{forget_restores, open_volume, seal_volume, volume_key, volume_piece};

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{HttpUnix, ObserveError, Step};
use crate::sys::{CallError, Sys};

/// Where the engine listens.
const SOCKET: &str = "/run/docker.sock";
/// For one question: an engine that pulls or starts something else answers later than an idle one.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// For what it is told, seconds.
const TELL_LIMIT_S: u64 = 120;
/// On services that are ours.
const MANAGED: &str = "postern.managed";
/// On networks, configs and secrets that are ours; for the latter two the service that they belong to.
const OWNER: &str = "postern.service";

/// What an engine says of itself (`GET /info`), as far as anybody here wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Info {
    logging_driver: String,
    live_restore_enabled: bool,
    swarm: SwarmInfo,
}

/// Its part in a Swarm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct SwarmInfo {
    #[serde(rename = "NodeID")]
    node_id: String,
    node_addr: String,
    /// `inactive`, `pending`, `active`, `error` or `locked`.
    local_node_state: String,
    /// It is a manager.
    control_available: bool,
    error: String,
}

fn obstacle(error: &CallError) -> ObserveError {
    ObserveError::Obstacle(match error {
        CallError::Away { .. } => {
            format!("Docker's engine does not run: {error} (declare its package and service before this)")
        }
        _ => error.to_string(),
    })
}

/// Asks the engine; `None` where there is no such thing.
async fn ask(host: &Sys, path: &str) -> Result<Option<Value>, ObserveError> {
    host.ask(SOCKET, path, ASK_LIMIT).await.map_err(|error| obstacle(&error))
}

/// A list of the engine's.
async fn list(host: &Sys, path: &str) -> Result<Vec<Value>, ObserveError> {
    match ask(host, path).await? {
        Some(Value::Array(items)) => Ok(items),
        Some(Value::Null) | None => Ok(Vec::new()),
        Some(_) => Err(ObserveError::Obstacle(format!("the engine's answer to {path} is no list"))),
    }
}

/// The same of things that only a manager of a Swarm has; none where this is no manager.
async fn managed_list(host: &Sys, path: &str) -> Result<Vec<Value>, ObserveError> {
    match host.ask(SOCKET, path, ASK_LIMIT).await {
        Err(CallError::Refused { status, .. }) if status.as_u16() == 503 => Ok(Vec::new()),
        Err(error) => Err(obstacle(&error)),
        Ok(Some(Value::Array(items))) => Ok(items),
        Ok(_) => Ok(Vec::new()),
    }
}

async fn info(host: &Sys) -> Result<Info, ObserveError> {
    let said = ask(host, "/info").await?.unwrap_or_default();
    serde_json::from_value(said).map_err(|error| {
        ObserveError::Obstacle(format!("what the engine says of itself cannot be read: {error}"))
    })
}

/// A step that tells the engine something; what goes without saying is a Swarm's patience with it.
fn tell(what: String, method: &str, path: String, body: Value) -> HttpUnix {
    HttpUnix {
        what,
        socket: SOCKET.to_owned(),
        method: method.to_owned(),
        path,
        registry_auth: String::new(),
        body,
        progress: false,
        fine: Vec::new(),
        limit_s: TELL_LIMIT_S,
    }
}

/// A step that removes something, if it is still there.
fn remove(what: &str, kind: &str, name: &str) -> Step {
    let mut call =
        tell(format!("remove {what} {name}"), "DELETE", format!("/{kind}/{}", encoded(name)), Value::Null);
    call.fine = vec![404];
    Step::HttpUnix(call)
}

/// Percent-encoded for a path or a query (RFC 3986: all but the unreserved characters).
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut done, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            done.push(char::from(byte));
        } else {
            done += &format!("%{byte:02X}");
        }
        done
    })
}

/// `filters` of a list.
fn filters(name: &str, value: &str) -> String {
    encoded(&json!({name: [value]}).to_string())
}

/// A text at a place in JSON; empty where there is none.
fn text<'a>(json: &'a Value, pointer: &str) -> &'a str {
    json.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod fake;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_says_is_read_as_far_as_it_goes() {
        let said = json!({"LoggingDriver": "local", "Containers": 3, "Swarm": {"NodeID": "n", "LocalNodeState": "active",
            "ControlAvailable": true, "NodeAddr": "192.0.2.1", "RemoteManagers": null}});
        let info: Info = serde_json::from_value(said).unwrap();
        assert_eq!(
            (&*info.logging_driver, &*info.swarm.node_id, info.swarm.control_available),
            ("local", "n", true)
        );
        // What was kept of it is read again.
        let kept = serde_json::to_value(&info).unwrap();
        assert_eq!(serde_json::from_value::<Info>(kept).unwrap(), info);
        assert_eq!(encoded("a/b:c {\"x\"}"), "a%2Fb%3Ac%20%7B%22x%22%7D");
    }
}
