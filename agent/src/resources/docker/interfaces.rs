//! The host's own networks: which address a Swarm may be reached at, and what fits into a packet.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;

use super::super::ObserveError;
use crate::sys::Sys;

const ASK_LIMIT: Duration = Duration::from_secs(10);
/// What engines, hypervisors and their like make for what runs on the host: nobody outside reaches it there.
const INNER: [&str; 9] = ["lo", "docker", "br-", "veth", "virbr", "vnet", "tap", "cni", "flannel"];

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Interface {
    pub(super) ifname: String,
    pub(super) mtu: u64,
    /// `ether` for those of a network; `none` for tunnels.
    pub(super) link_type: String,
    pub(super) flags: Vec<String>,
    pub(super) addr_info: Vec<Address>,
}

/// One address of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Address {
    pub(super) local: String,
    pub(super) scope: String,
    pub(super) deprecated: bool,
    pub(super) temporary: bool,
    pub(super) tentative: bool,
    pub(super) dadfailed: bool,
}

/// What the host has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Networks {
    pub(super) interfaces: Vec<Interface>,
    /// By which its packets leave, the one that counts first.
    pub(super) ways_out: Vec<String>,
}

impl Networks {
    pub(super) async fn look(host: &Sys) -> Result<Self, ObserveError> {
        let interfaces = parse(&ip(host, &["address", "show"]).await?)?;
        let mut routes: Vec<Route> = Vec::new();
        for family in ["-4", "-6"] {
            let mut some: Vec<Route> = parse(&ip(host, &[family, "route", "show", "default"]).await?)?;
            some.sort_by_key(|route| route.metric);
            routes.extend(some);
        }
        let ways_out = routes.into_iter().map(|route| route.dev).filter(|dev| !dev.is_empty()).collect();
        Ok(Self { interfaces, ways_out })
    }

    /// Every address that the host has.
    pub(super) fn all(&self) -> BTreeSet<IpAddr> {
        let all = self.interfaces.iter().flat_map(|one| &one.addr_info);
        all.filter_map(|address| address.local.parse().ok()).collect()
    }

    /// The address that a Swarm is to be reached at: one of a network that others are in, a private one first, then
    /// one of the interface of the default route, IPv4 before IPv6, the lowest. Nothing but the host itself decides, so
    /// it is the same each time. Pure.
    pub(super) fn advertised(&self) -> Option<IpAddr> {
        let mut found: Vec<(u8, bool, IpAddr)> = Vec::new();
        for one in self.interfaces.iter().filter(|one| is_outer(one)) {
            let usable = one.addr_info.iter().filter(|address| {
                let passing =
                    address.deprecated || address.temporary || address.tentative || address.dadfailed;
                address.scope == "global" && !passing
            });
            for address in usable.filter_map(|address| address.local.parse().ok()) {
                found.push((rank(address), self.ways_out.first() != Some(&one.ifname), address));
            }
        }
        found.into_iter().min().map(|(.., address)| address)
    }

    /// The interface that has an address.
    fn of(&self, address: IpAddr) -> Option<&Interface> {
        let has = |one: &&Interface| one.addr_info.iter().any(|it| it.local.parse() == Ok(address));
        self.interfaces.iter().find(has)
    }

    /// What fits into a packet of an overlay whose nodes are reached at `node`: what fits into one of the interface of
    /// the default route, or of the node's own where that is less, without the headers around it: 50 bytes over IPv4
    /// and 70 over IPv6 (RFC 7348: Ethernet 14, VXLAN 8, UDP 8, IP 20 or 40). `None` where neither is known. Pure.
    pub(super) fn overlay_mtu(&self, node: Option<IpAddr>) -> Option<u64> {
        let headers = if node.is_some_and(|node| node.is_ipv6()) { 70 } else { 50 };
        let own = node.and_then(|node| self.of(node)).map(|one| one.mtu);
        let least = own.into_iter().chain(self.mtu()).min()?;
        Some(least.saturating_sub(headers))
    }

    /// What fits into a packet of the interface of the default route.
    pub(super) fn mtu(&self) -> Option<u64> {
        let out = self.ways_out.first()?;
        self.interfaces.iter().find(|one| one.ifname == *out).map(|one| one.mtu).filter(|mtu| *mtu > 0)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Route {
    dev: String,
    metric: u64,
}

fn is_outer(one: &Interface) -> bool {
    let inner = INNER.iter().any(|start| one.ifname.starts_with(start));
    one.link_type == "ether" && !inner && one.flags.iter().any(|flag| flag == "UP")
}

fn rank(address: IpAddr) -> u8 {
    match address {
        // RFC 1918, RFC 4193.
        IpAddr::V4(v4) if v4.is_private() => 0,
        IpAddr::V6(v6) if v6.is_unique_local() => 1,
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 3,
    }
}

async fn ip(host: &Sys, args: &[&str]) -> Result<String, ObserveError> {
    let mut argv = vec!["ip", "-json"];
    argv.extend(args);
    let said = host.run(&argv, &[], ASK_LIMIT).await?;
    if !said.ok() {
        let line = said.last_line();
        return Err(ObserveError::Obstacle(format!("{} failed: {line}", argv.join(" "))));
    }
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

/// iproute2 says nothing at all where a list is empty.
fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<Vec<T>, ObserveError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(text).map_err(|error| {
        ObserveError::Obstacle(format!("what ip says of the networks cannot be read: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(out: &[&str], interfaces: &[(&str, &[&str])]) -> Networks {
        let interface = |(name, addresses): &(&str, &[&str])| Interface {
            ifname: (*name).to_owned(),
            mtu: if name.starts_with("ens") { 1450 } else { 1500 },
            link_type: if name.starts_with("wg") { "none" } else { "ether" }.to_owned(),
            flags: vec!["UP".to_owned()],
            addr_info: addresses
                .iter()
                .map(|text| {
                    let (local, scope) = text.split_once(' ').unwrap_or((text, "global"));
                    let is = |word| scope == word;
                    Address {
                        local: local.to_owned(),
                        scope: if is("link") { "link" } else { "global" }.to_owned(),
                        deprecated: is("deprecated"),
                        temporary: is("temporary"),
                        tentative: is("tentative"),
                        dadfailed: false,
                    }
                })
                .collect(),
        };
        let ways_out = out.iter().map(|dev| (*dev).to_owned()).collect();
        Networks { interfaces: interfaces.iter().map(interface).collect(), ways_out }
    }

    #[test]
    fn trap_18_a_local_address_is_chosen_by_table() {
        type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a [&'a str])], Option<&'a str>);
        let cases: &[Case<'_>] = &[
            // One address.
            (&["eth0"], &[("lo", &["127.0.0.1"]), ("eth0", &["203.0.113.7"])], Some("203.0.113.7")),
            // A private one first, also of another interface.
            (
                &["eth0"],
                &[("eth0", &["203.0.113.7", "2001:db8::7"]), ("ens10", &["10.0.0.2"])],
                Some("10.0.0.2"),
            ),
            // Of two private ones that of the default route, whichever is lower.
            (&["eth0"], &[("ens10", &["10.0.0.2"]), ("eth0", &["192.168.1.2"])], Some("192.168.1.2")),
            // Several of one interface: the lowest, in whatever order they come.
            (&["eth0"], &[("eth0", &["10.0.0.9", "10.0.0.10"])], Some("10.0.0.9")),
            (&["eth0"], &[("eth0", &["10.0.0.10", "10.0.0.9"])], Some("10.0.0.9")),
            // Two public ones, and no default route.
            (&[], &[("eth1", &["198.51.100.9"]), ("eth0", &["203.0.113.7"])], Some("198.51.100.9")),
            // IPv6 alone; link-local and passing ones do not count.
            (
                &["eth0"],
                &[(
                    "eth0",
                    &["fe80::1 link", "2001:db8::1 temporary", "2001:db8::2 deprecated", "2001:db8::7"],
                )],
                Some("2001:db8::7"),
            ),
            (&["eth0"], &[("eth0", &["2001:db8::7", "fd00::7"])], Some("fd00::7")),
            // Neither what Docker made, nor a tunnel.
            (
                &["eth0"],
                &[
                    ("docker0", &["172.17.0.1"]),
                    ("docker_gwbridge", &["172.18.0.1"]),
                    ("br-1a2b", &["172.19.0.1"]),
                    ("wg0", &["10.9.0.1"]),
                    ("eth0", &["203.0.113.7"]),
                ],
                Some("203.0.113.7"),
            ),
            (&[], &[("lo", &["127.0.0.1"]), ("docker0", &["172.17.0.1"])], None),
            (&[], &[], None),
        ];
        for (out, interfaces, want) in cases {
            let got = networks(out, interfaces).advertised().map(|address| address.to_string());
            assert_eq!(got.as_deref(), *want, "{interfaces:?}");
        }
    }

    #[test]
    fn trap_19_what_fits_into_an_overlay_by_table() {
        let both = networks(&["eth0"], &[("eth0", &["203.0.113.7", "fd00::7"]), ("ens10", &["10.0.0.2"])]);
        let cloud = networks(&["ens3"], &[("ens3", &["10.0.0.2"])]);
        let alone = networks(&[], &[("ens3", &["10.0.0.2"])]);
        for (networks, node, want) in [
            (&both, Some("203.0.113.7"), Some(1450)),
            (&both, Some("fd00::7"), Some(1430)),
            (&both, Some("10.0.0.2"), Some(1400)),
            (&both, None, Some(1450)),
            (&cloud, Some("10.0.0.2"), Some(1400)),
            (&alone, Some("10.0.0.2"), Some(1400)),
            (&alone, None, None),
        ] {
            let node = node.map(|node| node.parse().unwrap());
            assert_eq!(networks.overlay_mtu(node), want, "{node:?}");
        }
    }

    #[tokio::test]
    async fn what_iproute_says_is_read() {
        let fake = super::super::fake::Fake::new();
        fake.program(
            "ip",
            "case \"$*\" in\n*address*) echo '[{\"ifindex\":2,\"ifname\":\"eth0\",\"mtu\":1450,\"link_type\":\"ether\",\
             \"flags\":[\"BROADCAST\",\"UP\"],\"addr_info\":[{\"family\":\"inet\",\"local\":\"10.0.0.2\",\"prefixlen\":24,\
             \"scope\":\"global\"}]}]';;\n*-4*) echo '[{\"dst\":\"default\",\"dev\":\"eth1\",\"metric\":9},\
             {\"dst\":\"default\",\"dev\":\"eth0\"}]';;\n*) echo;;\nesac",
        );
        let networks = Networks::look(&fake.sys).await.unwrap();
        assert_eq!(networks.ways_out, ["eth0", "eth1"]);
        assert_eq!(networks.advertised().unwrap().to_string(), "10.0.0.2");
        assert_eq!(networks.mtu(), Some(1450));
    }
}
