//! Plans that close, open and keep closed the port of SSH: what profiles say, with one word of the firewall's changed.

use std::collections::BTreeSet;

use postern_proto::plan::Plan;
use postern_proto::spec::{FirewallSpec, Protocol, ResourceSpec as _, SshPort};
use serde_json::Value;

use crate::cli::error::CliError;
use crate::client::HostInfo;

/// Ports that are looked at beside that of SSH.
const CONTROLS: usize = 8;

/// Has every firewall of the plan keep SSH out. Its rules stay as they are: which ports are sshd's is known on the host.
pub(crate) fn keep_ssh_out(plan: &mut Plan) {
    for resource in plan.resources.iter_mut().filter(|resource| resource.kind == FirewallSpec::KIND) {
        if let Value::Object(spec) = &mut resource.spec {
            spec.insert("ssh".to_owned(), SshPort::Closed.as_str().into());
        }
    }
}

/// The plan's firewall alone, to make the port so: nothing else of what is assigned is touched by it.
pub(super) fn firewall_alone(host: &HostInfo, mut plan: Plan, wanted: SshPort) -> Result<Plan, CliError> {
    plan.resources.retain(|resource| resource.kind == FirewallSpec::KIND);
    if plan.resources.is_empty() {
        let error = CliError::failed(
            "no-firewall",
            format!(
                "{} has no firewall of Postern's: nothing that is assigned to it declares one",
                host.name
            ),
        );
        return Err(match wanted {
            SshPort::Closed => error.hint(format!("apply base first: postern apply base -H {}", host.name)),
            SshPort::Open => error.hint(format!(
                "where one is left there: postern exec {} -- /usr/local/bin/postern-agent ssh-port open",
                host.name
            )),
        });
    }
    for resource in &mut plan.resources {
        // What it needed is there already, and not in this plan.
        resource.needs = None;
    }
    match wanted {
        SshPort::Closed => keep_ssh_out(&mut plan),
        SshPort::Open => {
            let closed =
                |spec: &Value| spec.get("ssh").and_then(Value::as_str) == Some(SshPort::Closed.as_str());
            if let Some(own) = plan.resources.iter().find(|resource| closed(&resource.spec)) {
                return Err(CliError::failed(
                    "profile-closes",
                    format!(
                        "{} of what is assigned to {} says `ssh: closed` by itself",
                        own.address, host.name
                    ),
                )
                .hint("change that in the profile and apply it"));
            }
        }
    }
    Ok(plan)
}

/// Other ports that the firewalls of the plan open for everybody: while one of them answers, silence of SSH is not the
/// network's.
pub(super) fn controls(plan: &Plan, ssh: &BTreeSet<u16>) -> BTreeSet<u16> {
    let specs = plan.resources.iter().filter(|resource| resource.kind == FirewallSpec::KIND);
    let specs =
        specs.filter_map(|resource| serde_json::from_value::<FirewallSpec>(resource.spec.clone()).ok());
    let rules = specs.flat_map(|spec| spec.rules_without(ssh));
    let open = rules.filter(|rule| rule.protocol == Protocol::Tcp && rule.from.is_empty());
    let single = open.flat_map(|rule| rule.ports.into_iter().filter(|(first, last)| first == last));
    single.map(|(port, _)| port).take(CONTROLS).collect()
}

#[cfg(test)]
mod tests {
    use postern_proto::plan::{PLAN_SCHEMA, PlannedResource};
    use serde_json::json;

    use super::*;

    fn plan(resources: &[(&str, Value)]) -> Plan {
        let resource = |(kind, spec): &(&str, Value)| PlannedResource {
            address: format!("a:{kind}:x").parse().unwrap(),
            kind: (*kind).to_owned(),
            schema: 1,
            spec: spec.clone(),
            needs: Some(vec!["a:file:x".parse().unwrap()]),
        };
        Plan { schema: PLAN_SCHEMA, resources: resources.iter().map(resource).collect() }
    }

    #[test]
    fn only_the_firewall_is_changed_and_only_its_word() {
        let file = ("file", json!({"path": "/x"}));
        let firewall = (
            "firewall",
            json!({"allow": ["22/tcp; 443/tcp", "80,9000-9010/tcp", "5/udp", "6/tcp from 192.0.2.1"]}),
        );
        let host = crate::cli::apply::tests::host("web1");
        let both = plan(&[file.clone(), firewall.clone()]);
        let mut kept = both.clone();
        keep_ssh_out(&mut kept);
        assert_eq!(
            (&kept.resources[0], &kept.resources[1].spec["ssh"]),
            (&both.resources[0], &json!("closed"))
        );
        assert_eq!(kept.resources[1].spec["allow"], firewall.1["allow"]);
        let closing = firewall_alone(&host, both.clone(), SshPort::Closed).unwrap();
        assert_eq!((closing.resources.len(), &closing.resources[0].needs), (1, &None));
        assert_eq!(closing.resources[0].spec, kept.resources[1].spec);
        assert_eq!(controls(&closing, &[22].into()), [80, 443].into());
        let opening = firewall_alone(&host, both, SshPort::Open).unwrap();
        assert_eq!(opening.resources[0].spec, firewall.1);
        for wanted in [SshPort::Open, SshPort::Closed] {
            let none = plan(std::slice::from_ref(&file));
            assert_eq!(firewall_alone(&host, none, wanted).unwrap_err().code, "no-firewall");
        }
        let own = plan(&[("firewall", json!({"ssh": "closed"}))]);
        assert_eq!(firewall_alone(&host, own, SshPort::Open).unwrap_err().code, "profile-closes");
    }
}
