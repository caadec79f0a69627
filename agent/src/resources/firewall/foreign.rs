//! Other firewalls on the host: with two of them, each breaks what the other does.

use std::time::Duration;

use postern_proto::spec::{DockerPorts, FirewallSpec};

use crate::firewall::{CHAINS, Table};
use crate::resources::ObserveError;
use crate::resources::listen::{Units, property};
use crate::sys::Sys;

const ASK_LIMIT: Duration = Duration::from_secs(30);
const NFT: &str = "/usr/sbin/nft";
const UFW_PROGRAM: &str = "/usr/sbin/ufw";
const UFW: &str = "/etc/ufw/ufw.conf";
const DAEMON_JSON: &str = "/etc/docker/daemon.json";
/// The most that is read of a settings file, bytes.
const LIMIT: u64 = 1 << 20;
/// What `units` has to have been asked for.
pub(super) const UNITS: [&str; 2] = ["firewalld.service", "nftables.service"];

/// What else manages packets here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Names of those that can be switched off.
    pub(super) switchable: Vec<String>,
    /// Names of those that are there and are switched off.
    pub(super) off: Vec<String>,
    /// Why ours cannot be, for people.
    pub(super) obstacle: Option<String>,
}

/// Looks for other firewalls.
pub(super) async fn look(
    spec: &FirewallSpec,
    host: &Sys,
    units: &Units,
    tables: &[Table],
) -> Result<Found, ObserveError> {
    let read = |path| {
        host.read_through(path, LIMIT)
            .map(|bytes| String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
    };
    let mut found = Found::default();
    let ufw = ufw_is_on(&read(UFW)?)
        && tables.iter().any(|table| table.has("ufw-before-input") || table.has("ufw6-before-input"));
    let firewalld = is_on(units, "firewalld.service");
    for (name, there, on) in [
        ("ufw", host.exists(UFW_PROGRAM)?, ufw),
        ("firewalld", property(units, "firewalld.service", "LoadState") == "loaded", firewalld),
    ] {
        if on {
            found.switchable.push(name.to_owned());
        } else if there {
            found.off.push(name.to_owned());
        }
    }
    let nft = if host.exists(NFT)? {
        let said = host.run(&["nft", "list", "chains"], &[], ASK_LIMIT).await?;
        String::from_utf8_lossy(&said.stdout).into_owned()
    } else {
        String::new()
    };
    let docker = spec.docker == DockerPorts::Filtered
        && (nftables_backend(&read(DAEMON_JSON)?) || nft.contains(" docker-bridges {"));
    found.obstacle = if !found.switchable.is_empty() && !spec.takeover {
        let names = found.switchable.join(" and ");
        Some(format!(
            "{names} manages this host's firewall: switch it off, or say `takeover: true` and it is switched off here"
        ))
    } else if is_on(units, "nftables.service") {
        Some(
            "nftables.service loads rules of its own, and removes those of everybody else when it starts: run \
             `systemctl disable nftables` and restart the host, or leave this resource out"
                .to_owned(),
        )
    } else if docker {
        Some(
            "Docker filters with nftables here (firewall-backend), past every chain that this could use: set \
             its firewall-backend to iptables, or say `docker: ignored`"
                .to_owned(),
        )
    } else {
        let dropping = found.switchable.is_empty().then(|| dropping(&nft, tables)).flatten();
        dropping.map(|why| format!("{why}: another firewall manages this host; remove it first"))
    };
    Ok(found)
}

/// Started, or to be started at boot.
fn is_on(units: &Units, unit: &str) -> bool {
    matches!(property(units, unit, "ActiveState"), "active" | "activating")
        || property(units, unit, "UnitFileState") == "enabled"
}

fn ufw_is_on(conf: &str) -> bool {
    let set =
        |line: &str| line.trim().strip_prefix("ENABLED=").map(|value| value.trim_matches('"').to_lowercase());
    conf.lines().filter_map(set).next_back().is_some_and(|value| value == "yes")
}

fn nftables_backend(daemon_json: &str) -> bool {
    let json: serde_json::Value = serde_json::from_str(daemon_json).unwrap_or_default();
    json["firewall-backend"] == "nftables"
}

/// What drops packets that we would let in, by a policy or at the end of a chain.
fn dropping(nft: &str, tables: &[Table]) -> Option<String> {
    for table in tables {
        if table.policy("INPUT") == "DROP" {
            return Some("the policy of INPUT is DROP (iptables -S INPUT)".to_owned());
        }
        let mut rules = table.rules("INPUT").iter();
        if let Some(rule) = rules.find(|rule| *rule == "-j DROP" || rule.starts_with("-j REJECT")) {
            return Some(format!("INPUT has the rule `{rule}` for everything (iptables -S INPUT)"));
        }
    }
    nft_policy(nft)
}

/// A chain for what comes in whose policy is drop, in a table that is not iptables' own.
fn nft_policy(chains: &str) -> Option<String> {
    let (mut table, mut chain) = ("", "");
    for line in chains.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(" {");
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {");
        } else if line.contains(" hook input ")
            && line.contains("policy drop;")
            && !matches!(table, "ip filter" | "ip6 filter")
            && !CHAINS.contains(&chain)
        {
            return Some(format!("the chain {chain} of nftables' table {table} drops what comes in"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_30b_other_firewalls_by_their_traces() {
        assert!(ufw_is_on("# x\nENABLED=yes\n") && ufw_is_on("ENABLED=no\nENABLED=\"YES\""));
        assert!(!ufw_is_on("#ENABLED=yes\nENABLED=no\n") && !ufw_is_on(""));
        assert!(nftables_backend(r#"{"firewall-backend": "nftables"}"#));
        assert!(!nftables_backend(r#"{"firewall-backend": "iptables"}"#) && !nftables_backend(""));
        let nft = "table inet filter {\n\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\n";
        assert!(nft_policy(nft).unwrap().contains("the chain input of nftables' table inet filter"));
        let open = nft.replace("policy drop", "policy accept");
        let iptables = nft.replace("inet filter", "ip filter");
        assert_eq!((nft_policy(&open), nft_policy(&iptables), nft_policy("")), (None, None, None));
        let table = |text: &str| [Table::parse(&format!("*filter\n{text}"))];
        assert!(dropping("", &table(":INPUT DROP [0:0]\n")).unwrap().contains("policy of INPUT"));
        assert!(dropping("", &table(":INPUT ACCEPT [0:0]\n-A INPUT -j REJECT --reject-with x\n")).is_some());
        assert_eq!(dropping("", &table(":INPUT ACCEPT [0:0]\n-A INPUT -s 192.0.2.1/32 -j DROP\n")), None);
    }
}
