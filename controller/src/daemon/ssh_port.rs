//! What a plan makes of the port of SSH, and its words on the wire. Pure.

use std::collections::BTreeSet;

use postern_proto::ids::Address;
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

/// What the plan makes of it: open where some firewall of it says so; `None` where it has none.
pub(crate) fn of(plan: &Plan) -> Option<SshPort> {
    most_open(plan.resources.iter())
}

/// The same of those resources alone that were touched.
pub(crate) fn of_touched(plan: &Plan, touched: &BTreeSet<Address>) -> Option<SshPort> {
    most_open(plan.resources.iter().filter(|resource| touched.contains(&resource.address)))
}

fn most_open<'a>(resources: impl Iterator<Item = &'a PlannedResource> + Clone) -> Option<SshPort> {
    let mut all = resources.filter_map(said);
    all.clone().find(|port| *port == SshPort::Open).or_else(|| all.next())
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
        let (says_open, says_closed) = (Some(SshPort::Open), Some(SshPort::Closed));
        for (resources, says, is_open, is_closed) in [
            (vec![closed()], says_closed, false, true),
            (vec![open()], says_open, true, false),
            (vec![("firewall", json!({"ssh": 7}))], says_open, true, false),
            (vec![closed(), file()], says_closed, false, false),
            (vec![closed(), open()], says_open, false, false),
            (vec![file()], None, false, false),
            (vec![], None, false, false),
        ] {
            let plan = plan(&resources);
            assert_eq!(of(&plan), says, "{resources:?}");
            assert_eq!(check_plan(&plan, Some(SshPort::Open)).is_ok(), is_open, "{resources:?}");
            assert_eq!(check_plan(&plan, Some(SshPort::Closed)).is_ok(), is_closed, "{resources:?}");
            assert!(check_plan(&plan, None).is_ok());
        }
        for port in [None, Some(SshPort::Open), Some(SshPort::Closed)] {
            assert_eq!(from_message(message(port)), port);
        }
    }
}
