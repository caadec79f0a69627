//! What a spec means in rules, in the words that iptables-save has for them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use postern_proto::spec::{Allow, DockerPorts, FirewallSpec};

use super::{CHAINS, DOCKER_CHAIN, Family, INPUT_CHAIN};

/// Interfaces that Docker makes: what comes in by them comes from a container.
const DOCKER_SIDE: [&str; 3] = ["docker0", "docker_gwbridge", "br-+"];
/// ICMP that a host needs: unreachable (path MTU is one of them), time exceeded, bad parameter; and echo, so
/// that people can tell a dead host from a closed one.
const ICMP: [u8; 4] = [3, 8, 11, 12];
/// The same for ICMPv6 (RFC 4890): errors with packet-too-big, echo, group membership, neighbour discovery.
/// Without the last (133 to 137) there is no IPv6 at all.
const ICMPV6: [u8; 14] = [1, 2, 3, 4, 128, 130, 131, 132, 133, 134, 135, 136, 137, 143];

/// Before the ports of SSH that are let in by no rule, in a comment of the file. What is to be let in again by hand,
/// and what goes on being shut while no sshd listens, is known by it.
const SHUT: &str = "# SSH is kept out at: ";

/// The ports of SSH that such a file keeps out.
pub(crate) fn shut_in(file: &str) -> BTreeSet<u16> {
    let line = file.lines().find_map(|line| line.strip_prefix(SHUT)).unwrap_or_default();
    line.split(' ').filter_map(|port| port.parse().ok()).collect()
}

/// The file with these TCP ports let in from everywhere; `None` where it has none of our chains.
pub(crate) fn let_in(file: &str, ports: &BTreeSet<u16>) -> Option<String> {
    let end = format!("-A {INPUT_CHAIN} -j DROP");
    let mut found = false;
    let mut text = String::new();
    for line in file.lines().filter(|line| !line.starts_with(SHUT)) {
        if line == end && !found {
            found = true;
            for port in ports {
                let rule = format!("-A {INPUT_CHAIN} {}", tcp_to(*port));
                if !file.lines().any(|line| line == rule) {
                    text += &(rule + "\n");
                }
            }
        }
        text += line;
        text.push('\n');
    }
    found.then_some(text)
}

/// What lets everybody in at a port.
fn tcp_to(port: u16) -> String {
    format!("-p tcp -m tcp --dport {port} -j RETURN")
}

/// The rules of one family: what iptables-restore takes, but for the jumps to our chains. `shut` are the ports of SSH
/// that are not let in, whatever the spec says.
pub(crate) fn text(spec: &FirewallSpec, shut: &BTreeSet<u16>, family: Family) -> String {
    let mut text = "# Written by Postern, which writes it again at each run.\n".to_owned();
    if !shut.is_empty() {
        let ports: Vec<_> = shut.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "{SHUT}{}", ports.join(" "));
    }
    text += "*filter\n";
    let filtered = spec.docker == DockerPorts::Filtered;
    for chain in CHAINS.iter().filter(|chain| filtered || **chain != DOCKER_CHAIN) {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    let mut rule = |chain: &str, rule: &str| {
        let _ = writeln!(text, "-A {chain} {rule}");
    };
    let rules = spec.rules_without(shut);
    for line in input(&rules, family) {
        rule(INPUT_CHAIN, &line);
    }
    if filtered {
        for line in docker(&rules, family) {
            rule(DOCKER_CHAIN, &line);
        }
    }
    text + "COMMIT\n"
}

fn input(rules: &[Allow], family: Family) -> Vec<String> {
    let mut lines =
        vec!["-i lo -j RETURN".to_owned(), "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN".to_owned()];
    // Before what conntrack takes for invalid: it does not follow neighbour discovery.
    match family {
        Family::V4 => {
            lines.extend(ICMP.iter().map(|kind| format!("-p icmp -m icmp --icmp-type {kind} -j RETURN")));
        }
        Family::V6 => {
            let line = |kind| format!("-p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j RETURN");
            lines.extend(ICMPV6.iter().map(line));
        }
    }
    lines.push("-m conntrack --ctstate INVALID -j DROP".to_owned());
    // An answer of DHCP comes to an address that the host does not have yet, so it belongs to no connection.
    lines.push(match family {
        Family::V4 => "-p udp -m udp --sport 67 --dport 68 -j RETURN".to_owned(),
        Family::V6 => "-s fe80::/10 -p udp -m udp --sport 547 --dport 546 -j RETURN".to_owned(),
    });
    allowed(
        rules,
        family,
        |protocol, ports| format!("-p {protocol} -m {protocol} --dport {ports}"),
        &mut lines,
    );
    lines.push("-j DROP".to_owned());
    lines
}

/// What Docker publishes is sent on to a container before any rule of INPUT sees it, with another port maybe:
/// the one that was asked for is what conntrack remembers.
fn docker(rules: &[Allow], family: Family) -> Vec<String> {
    let mut lines: Vec<String> = DOCKER_SIDE.iter().map(|side| format!("-i {side} -j RETURN")).collect();
    lines.push("-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN".to_owned());
    let to = |protocol: &str, ports: &str| {
        format!("-p {protocol} -m conntrack --ctstate DNAT --ctorigdstport {ports} --ctdir ORIGINAL")
    };
    allowed(rules, family, to, &mut lines);
    lines.push("-m conntrack --ctstate DNAT -j DROP".to_owned());
    // A neighbour can send to a container's own address, past every published port.
    lines.extend(DOCKER_SIDE.iter().map(|side| format!("-o {side} -j DROP")));
    lines
}

fn allowed(rules: &[Allow], family: Family, to: impl Fn(&str, &str) -> String, lines: &mut Vec<String>) {
    for (number, rule) in rules.iter().enumerate() {
        let limit = rule.limit.map_or(String::new(), |rate| {
            let unit = match rate.seconds {
                1 => "sec",
                60 => "min",
                _ => "hour",
            };
            let count = rate.count;
            // One count for all ports of a rule. The kernel forgets an address after an hour of silence.
            format!(
                " -m hashlimit --hashlimit-upto {count}/{unit} --hashlimit-burst {} --hashlimit-mode srcip \
                 --hashlimit-name postern-{number} --hashlimit-htable-expire 3600000",
                count.min(100)
            )
        });
        for (first, last) in &rule.ports {
            let ports = if first == last { first.to_string() } else { format!("{first}:{last}") };
            let to = to(rule.protocol.as_str(), &ports);
            if rule.from.is_empty() {
                lines.push(format!("{to}{limit} -j RETURN"));
            }
            for from in rule.from.iter().filter(|from| from.is_v4() == (family == Family::V4)) {
                // Every address in the other words for it: iptables leaves it out.
                let from = if from.prefix == 0 { String::new() } else { format!("-s {from} ") };
                lines.push(format!("{from}{to}{limit} -j RETURN"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lines(json: serde_json::Value, family: Family, chain: &str) -> Vec<String> {
        let spec: FirewallSpec = serde_json::from_value(json).unwrap();
        let start = format!("-A {chain} ");
        text(&spec, &BTreeSet::new(), family)
            .lines()
            .filter_map(|line| line.strip_prefix(&start).map(str::to_owned))
            .collect()
    }

    /// T03: without these there is no IPv6.
    #[test]
    fn trap_03_neighbour_discovery_comes_before_every_drop() {
        let lines = lines(json!({}), Family::V6, INPUT_CHAIN);
        let drop = lines.iter().position(|line| line.ends_with("-j DROP")).unwrap();
        for kind in [2, 133, 134, 135, 136, 137] {
            let rule = format!("-p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j RETURN");
            assert!(lines[..drop].contains(&rule), "{kind}: {lines:?}");
        }
        assert_eq!(lines.last().unwrap(), "-j DROP");
    }

    /// T02: what Docker published is known by the port that was asked for.
    #[test]
    fn trap_02_docker_is_filtered_by_the_original_port() {
        let spec = json!({"allow": ["80,443/tcp", "53/udp from 192.0.2.0/24"]});
        let got = lines(spec.clone(), Family::V4, DOCKER_CHAIN);
        let want = "-p tcp -m conntrack --ctstate DNAT --ctorigdstport 443 --ctdir ORIGINAL -j RETURN";
        let from = "-s 192.0.2.0/24 -p udp -m conntrack --ctstate DNAT --ctorigdstport 53 --ctdir ORIGINAL -j RETURN";
        let drop = got.iter().position(|line| line == "-m conntrack --ctstate DNAT -j DROP").unwrap();
        assert!(got[..drop].contains(&want.to_owned()) && got[..drop].contains(&from.to_owned()), "{got:?}");
        assert!(got[drop..].contains(&"-o docker0 -j DROP".to_owned()), "{got:?}");
        // A rule for addresses of the other family only is none.
        assert!(!lines(spec, Family::V6, DOCKER_CHAIN).iter().any(|line| line.contains("udp")));
        let ignored = json!({"allow": ["80/tcp"], "docker": "ignored"});
        let spec: FirewallSpec = serde_json::from_value(ignored).unwrap();
        assert!(!text(&spec, &BTreeSet::new(), Family::V4).contains(DOCKER_CHAIN));
    }

    #[test]
    fn ssh_is_kept_out_and_let_in_again() {
        let allow = json!({"allow": ["22/tcp limit 9/minute", "20-30/tcp", "443/tcp"], "ssh": "closed"});
        let spec: FirewallSpec = serde_json::from_value(allow).unwrap();
        let shut = BTreeSet::from([22, 2222]);
        for family in Family::ALL {
            let file = text(&spec, &shut, family);
            assert_eq!(shut_in(&file), shut);
            assert!(!file.contains("dport 22") && !file.contains("origdstport 22"), "{file}");
            assert!(file.contains("--dport 20:21 ") && file.contains("--dport 23:30 "), "{file}");
            let open = let_in(&file, &shut).unwrap();
            let rules: Vec<_> = open.lines().collect();
            let end = rules.iter().position(|line| *line == "-A POSTERN-INPUT -j DROP").unwrap();
            for port in &shut {
                assert!(rules[..end].contains(&format!("-A POSTERN-INPUT {}", tcp_to(*port)).as_str()));
            }
            // Said twice, it is the same; and what is open by a rule of its own gets no second one.
            assert_eq!(let_in(&open, &shut), Some(open.clone()));
            assert_eq!(shut_in(&open), BTreeSet::new());
        }
        assert_eq!(let_in("*filter\nCOMMIT\n", &shut), None);
        assert_eq!(shut_in("# SSH is kept out at: 22 x 70000\n"), [22].into());
    }

    #[test]
    fn ranges_limits_and_addresses() {
        let spec = json!({"allow": ["22/tcp limit 10/minute", "6000-6010/udp from 2001:db8::/32 0.0.0.0/0"]});
        let allowed = |family| {
            let all = lines(spec.clone(), family, INPUT_CHAIN);
            all.into_iter()
                .filter(|line| line.contains("-m hash") || line.contains("6000"))
                .collect::<Vec<_>>()
        };
        let limited = "-p tcp -m tcp --dport 22 -m hashlimit --hashlimit-upto 10/min --hashlimit-burst 10 \
                       --hashlimit-mode srcip --hashlimit-name postern-0 --hashlimit-htable-expire 3600000 \
                       -j RETURN";
        assert_eq!(allowed(Family::V4), [limited, "-p udp -m udp --dport 6000:6010 -j RETURN"]);
        let v6 = "-s 2001:db8::/32 -p udp -m udp --dport 6000:6010 -j RETURN";
        assert_eq!(allowed(Family::V6), [limited, v6]);
    }
}
