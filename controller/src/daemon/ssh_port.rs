//! What a plan makes of the port of SSH, and its words on the wire. Pure.

use postern_proto::plan::{Plan, PlannedResource};
use postern_proto::spec::{FirewallSpec, ResourceSpec as _, SshPort};
use postern_proto::v1;
use tonic::Status;

pub(crate) fn message(port: Option<SshPort>) -> v1::SshPort {
    match port {
        None => v1::SshPort::Unspecified,
        Some(SshPort::Open) => v1::SshPort::Open,
        Some(SshPort::Closed) => v1::SshPort::Closed,
    }
}

pub(crate) fn from_message(port: v1::SshPort) -> Option<SshPort> {
    match port {
        v1::SshPort::Unspecified => None,
        v1::SshPort::Open => Some(SshPort::Open),
        v1::SshPort::Closed => Some(SshPort::Closed),
    }
}

/// What the resource says of it; `None` where it is no firewall.
fn said(resource: &PlannedResource) -> Option<SshPort> {
    if resource.kind != FirewallSpec::KIND {
        return None;
    }
    let word = resource.spec.get("ssh").and_then(serde_json::Value::as_str);
    // What cannot be understood is refused by the agent; until then it is taken for the worse.
    Some(word.and_then(SshPort::from_word).unwrap_or(SshPort::Open))
}

/// Whether some firewall of the plan lets SSH in.
pub(crate) fn lets_in(plan: &Plan) -> bool {
    plan.resources.iter().filter_map(said).any(|port| port == SshPort::Open)
}

/// A run by which the port is opened or closed does that and nothing else.
pub(crate) fn check_plan(plan: &Plan, wanted: Option<SshPort>) -> Result<(), Status> {
    let Some(wanted) = wanted else { return Ok(()) };
    let all: Vec<_> = plan.resources.iter().map(said).collect();
    if all.is_empty() || all.iter().any(|said| *said != Some(wanted)) {
        return Err(Status::invalid_argument(format!(
            "a run that makes the port of SSH {} has a firewall that says so, and nothing else",
            wanted.as_str()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use postern_proto::plan::PLAN_SCHEMA;
    use serde_json::json;

    use super::*;

    fn plan(resources: &[(&str, serde_json::Value)]) -> Plan {
        let resource = |(kind, spec): &(&str, serde_json::Value)| PlannedResource {
            address: format!("a:{kind}:x").parse().unwrap(),
            kind: (*kind).to_owned(),
            schema: 1,
            spec: spec.clone(),
            needs: None,
        };
        Plan { schema: PLAN_SCHEMA, resources: resources.iter().map(resource).collect() }
    }

    #[test]
    fn what_a_plan_makes_of_it() {
        let closed = || ("firewall", json!({"ssh": "closed"}));
        let open = || ("firewall", json!({"allow": ["22/tcp"]}));
        let file = || ("file", json!({"path": "/x", "ssh": "open"}));
        for (resources, lets, is_open, is_closed) in [
            (vec![closed()], false, false, true),
            (vec![open()], true, true, false),
            (vec![("firewall", json!({"ssh": 7}))], true, true, false),
            (vec![closed(), file()], false, false, false),
            (vec![open(), closed()], true, false, false),
            (vec![file()], false, false, false),
            (vec![], false, false, false),
        ] {
            let plan = plan(&resources);
            assert_eq!(lets_in(&plan), lets, "{resources:?}");
            assert_eq!(check_plan(&plan, Some(SshPort::Open)).is_ok(), is_open, "{resources:?}");
            assert_eq!(check_plan(&plan, Some(SshPort::Closed)).is_ok(), is_closed, "{resources:?}");
            assert!(check_plan(&plan, None).is_ok());
        }
        for port in [None, Some(SshPort::Open), Some(SshPort::Closed)] {
            assert_eq!(from_message(message(port)), port);
        }
    }
}
