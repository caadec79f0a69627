//! Units that the way to the host may lie over, and how a change of one is guarded.

use postern_proto::guard::Predicate;
use postern_proto::host::AGENT_BINARY;
use postern_proto::spec::ServiceSpec;

use super::super::Protect;
use super::Seen;

/// What listens, what sets up addresses, names and routes, what filters, what carries a tunnel. The last ones are
/// names of instances. `netfilter-persistent` is not among them: nothing takes back what it loads.
const CARRIES: &[&str] = &[
    "ssh.service",
    "sshd.service",
    "ssh.socket",
    "networking.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-resolved.service",
    "NetworkManager.service",
    "dhcpcd.service",
    "nftables.service",
    "ufw.service",
    "firewalld.service",
    "tailscaled.service",
    "cloudflared.service",
    "ifup@",
    "wg-quick@",
    "openvpn@",
];

pub(super) fn carries(unit: &str) -> bool {
    CARRIES.iter().any(|name| unit == *name || name.ends_with('@') && unit.starts_with(name))
}

/// What is watched, and what takes the change back; `None` for a unit that nobody comes in by.
pub(super) fn protect(spec: &ServiceSpec, seen: &Seen) -> Option<Protect> {
    let unit = spec.unit();
    if !carries(&unit) {
        return None;
    }
    let words = |argv: &[&str]| argv.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let (mut first, mut reload) = (Vec::new(), vec![words(&["systemctl", "daemon-reload"])]);
    if spec.enabled.is_some_and(|enabled| enabled != seen.is_enabled()) {
        let verb = if seen.is_enabled() { "enable" } else { "disable" };
        reload.push(words(&["systemctl", verb, "--", &unit]));
    }
    if spec.state.is_some() && seen.is_up() {
        reload.push(words(&["systemctl", "restart", "--", &unit]));
    } else if spec.state.is_some() {
        // What takes its work back may have to read the very file that is going to be gone.
        first.push(words(&["systemctl", "stop", "--", &unit]));
    }
    if unit == "nftables.service" {
        // It flushes what is not its own.
        reload.push(words(&[AGENT_BINARY, "firewall", "load"]));
    }
    let predicates = seen.ssh.iter().map(|port| Predicate::Inbound { port: *port }).collect();
    let (reads, reads_since_ns) = (spec.restart_on.clone(), seen.started_ns);
    Some(Protect { predicates, reads, reads_since_ns, first, reload, ..Protect::default() })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{seen, spec};
    use super::*;

    #[test]
    fn what_the_way_to_the_host_lies_over_is_guarded() {
        let of = |name: &str, state: &str, seen: &Seen| {
            let spec = spec(serde_json::json!({"name": name, "state": state, "restart_on": ["/etc/x"]}));
            protect(&spec, seen)
        };
        let up = Seen { ssh: [22].into(), ..seen("active", "enabled") };
        for name in ["nginx", "docker", "ssh-agent", "wg-quick", "network.target"] {
            assert_eq!(of(name, "running", &up), None, "{name}");
        }
        for name in ["ssh", "ssh.socket", "systemd-networkd", "wg-quick@wg0"] {
            assert!(of(name, "running", &up).is_some(), "{name}");
        }
        let last = |protect: &Protect| protect.reload.last().unwrap().join(" ");
        let restarted = of("networking", "running", &up).unwrap();
        assert_eq!(restarted.predicates, [Predicate::Inbound { port: 22 }]);
        assert_eq!(
            (last(&restarted), restarted.reads[0].as_str()),
            ("systemctl restart -- networking.service".into(), "/etc/x")
        );
        assert_eq!(restarted.reload.len(), 2, "whether it starts at boot is not declared: {restarted:?}");
        assert_eq!(last(&of("ssh", "stopped", &up).unwrap()), "systemctl restart -- ssh.service");
        // Before its file is gone, which it may have to read.
        let new = of("wg-quick@wg0", "running", &seen("inactive", "disabled")).unwrap();
        assert_eq!(new.first[0].join(" "), "systemctl stop -- wg-quick@wg0.service");
        assert_eq!(last(&new), "systemctl daemon-reload");
        let filter = of("nftables", "running", &seen("inactive", "disabled")).unwrap();
        assert!(last(&filter).ends_with("firewall load"));
        let boot = |state: &str, enabled: bool| {
            let spec = spec(serde_json::json!({"name": "ssh", "enabled": enabled}));
            last(&protect(&spec, &seen("active", state)).unwrap())
        };
        assert_eq!(boot("enabled", false), "systemctl enable -- ssh.service");
        assert_eq!(boot("disabled", true), "systemctl disable -- ssh.service");
        assert_eq!(boot("enabled", true), "systemctl daemon-reload");
    }
}
