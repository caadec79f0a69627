//! The lab's network: addresses, one bridge a run, one namespace a host, and firewall chains of its own.
//!
//! A guest reaches its gateway address on opened ports, and what lies outside by address translation. It does not
//! reach other guests, nor any other address or port of the machine. Every name is made from the run's index, so
//! that a run can be removed by someone who knows nothing but that.
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use super::error::{LabError, Result};
use super::store::{HostRecord, Places, load, save};
use super::sys::{Cmd, read_text, remove};

/// The address plan of one run. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Net {
    pub(super) run: u8,
}

impl Net {
    pub(super) fn bridge(self) -> String {
        format!("plb{}", self.run)
    }

    pub(super) fn v4(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.run, last)
    }

    pub(super) fn v6(self, last: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfdb0, 0x57e2, 0x1ab0, self.run.into(), 0, 0, 0, last.into())
    }

    pub(super) fn gateway_v4(self) -> Ipv4Addr {
        self.v4(1)
    }

    pub(super) fn gateway_v6(self) -> Ipv6Addr {
        self.v6(1)
    }

    /// The machine's end of a host's cable.
    pub(super) fn veth(self, slot: u8) -> String {
        format!("plv{}h{slot}", self.run)
    }

    /// Prefix of namespaces, of control groups and of nspawn's machine names.
    pub(super) fn prefix(self) -> String {
        format!("postern-lab-{}-", self.run)
    }

    pub(super) fn unique(self, name: &str) -> String {
        format!("{}{name}", self.prefix())
    }

    pub(super) fn chain(self, what: &str) -> String {
        format!("PLAB-{}-{what}", self.run)
    }

    fn subnet_v4(self) -> String {
        format!("{}/24", self.v4(0))
    }

    /// Fixed, or neighbours keep a stale entry after a reboot. The guest's end is 0, the machine's 1.
    pub(super) fn mac(self, end: u8, last: u8) -> String {
        format!("02:50:4c:{end:02x}:{:02x}:{last:02x}", self.run)
    }
}

/// First slot's address is `.11`; the gateway is `.1`.
pub(super) const SLOT_BASE: u8 = 10;
/// Hosts in one run.
pub(super) const MAX_SLOTS: u8 = 200;

/// Whether the run's range is free of addresses and routes that are not the lab's.
pub(super) fn range_is_free(net: Net) -> Result<bool> {
    let text =
        Cmd::new(["ip", "-4", "route", "show", "table", "all", "root", &net.subnet_v4()]).run()?.text();
    Ok(text.lines().all(|l| l.trim().is_empty()))
}

/// Makes the bridge and the firewall chains.
pub(super) fn create(net: Net) -> Result<()> {
    let (bridge, v4, v6) = (net.bridge(), net.gateway_v4(), net.gateway_v6());
    // A bridge without an address of its own takes the lowest of its ports and changes as hosts come and go.
    let batch = format!(
        "link add {bridge} address {} type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
         addr add {v4}/24 dev {bridge}\n\
         addr add {v6}/64 dev {bridge} nodad\n\
         link set {bridge} up\n",
        net.mac(1, 0)
    );
    Cmd::new(["ip", "-batch", "-"]).input(batch).run()?;
    Cmd::new(["iptables-restore", "-w", "10", "--noflush"]).input(rules_v4(net)).run()?;
    Cmd::new(["ip6tables-restore", "-w", "10", "--noflush"]).input(rules_v6(net)).run()?;
    Ok(())
}

fn filter_rules(net: Net, echo: &str) -> String {
    let (b, inp, fwd, out) = (net.bridge(), net.chain("IN"), net.chain("FWD"), net.chain("OUT"));
    format!(
        "*filter\n:{inp} - [0:0]\n:{fwd} - [0:0]\n:{out} - [0:0]\n\
         -A {inp} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
         {echo}\
         -A {inp} -j DROP\n\
         -A {fwd} -i {b} -o plb+ -j DROP\n\
         -A {fwd} -i plb+ -o {b} -j DROP\n\
         -A {fwd} -i {b} -j ACCEPT\n\
         -A {fwd} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
         -A {fwd} -j DROP\n\
         -I INPUT 1 -i {b} -j {inp}\n\
         -I FORWARD 1 -i {b} -j {fwd}\n\
         -I FORWARD 1 -o {b} -j {fwd}\n\
         -I OUTPUT 1 -o {b} -j {out}\n\
         COMMIT\n"
    )
}

fn rules_v4(net: Net) -> String {
    let echo = format!(
        "-A {} -d {} -p icmp --icmp-type echo-request -j ACCEPT\n",
        net.chain("IN"),
        net.gateway_v4()
    );
    let (nat, b) = (net.chain("NAT"), net.bridge());
    let nat = format!(
        "*nat\n:{nat} - [0:0]\n-A {nat} -j MASQUERADE\n-I POSTROUTING 1 -s {} ! -o {b} -j {nat}\nCOMMIT\n",
        net.subnet_v4()
    );
    filter_rules(net, &echo) + &nat
}

fn rules_v6(net: Net) -> String {
    let inp = net.chain("IN");
    // Without neighbour discovery there is no IPv6 at all.
    let mut echo: String =
        [133, 135, 136].iter().map(|t| format!("-A {inp} -p icmpv6 --icmpv6-type {t} -j ACCEPT\n")).collect();
    echo += &format!("-A {inp} -d {} -p icmpv6 --icmpv6-type 128 -j ACCEPT\n", net.gateway_v6());
    filter_rules(net, &echo)
}

/// Opens (or shuts again) a port of the gateway address to this run's guests; `protocol` is `tcp` or `udp`.
pub(super) fn open_port(net: Net, protocol: &str, port: u16, open: bool) -> Result<()> {
    let gateways = [("iptables", net.gateway_v4().to_string()), ("ip6tables", net.gateway_v6().to_string())];
    for (tool, gateway) in gateways {
        let chain = net.chain("IN");
        let port = port.to_string();
        let rule = ["-d", &gateway, "-p", protocol, "--dport", &port, "-j", "ACCEPT"];
        let call = |action: &[&str]| {
            let head = [tool, "-w", "10"];
            Cmd::new(head.iter().chain(action).chain(&rule)).output()
        };
        let there = call(&["-C", &chain])?.success();
        match (there, open) {
            (false, true) => call(&["-I", &chain, "1"])?.ok()?,
            (true, false) => call(&["-D", &chain])?.ok()?,
            _ => continue,
        };
    }
    Ok(())
}

/// Packets that the machine has sent to the host's TCP port, v4 and v6. Counting starts at the first call.
pub(super) fn packets_to(net: Net, host: &HostRecord, port: u16) -> Result<u64> {
    let mut sum = 0;
    for (tool, save, address) in [
        ("iptables", "iptables-save", host.v4.to_string()),
        ("ip6tables", "ip6tables-save", host.v6.to_string()),
    ] {
        let text = Cmd::new([save, "-c", "-t", "filter"]).run()?.text();
        match counter(&text, &net.chain("OUT"), &address, port) {
            Some(packets) => sum += packets,
            None => {
                let (chain, port) = (net.chain("OUT"), port.to_string());
                Cmd::new([tool, "-w", "10", "-A", &chain, "-d", &address, "-p", "tcp", "--dport", &port])
                    .run()?;
            }
        }
    }
    Ok(sum)
}

/// Finds `[packets:bytes] -A CHAIN -d ADDRESS/… -p tcp -m tcp --dport PORT`.
fn counter(text: &str, chain: &str, address: &str, port: u16) -> Option<u64> {
    let port = port.to_string();
    text.lines().find_map(|line| {
        let mut words = line.split(' ');
        let count = words.next()?.strip_prefix('[')?.split(':').next()?;
        let words: Vec<&str> = words.collect();
        let follows = |flag: &str| words.iter().position(|w| *w == flag).and_then(|at| words.get(at + 1));
        let same = follows("-A")? == &chain
            && follows("-d")?.split('/').next() == Some(address)
            && follows("--dport")? == &port;
        if same { count.parse().ok() } else { None }
    })
}

/// Makes a host's namespace, cable and addresses anew; what was in an earlier one is gone.
pub(super) fn rebuild_host(host: &HostRecord) -> Result<()> {
    let net = Net { run: host.run };
    remove_host(net, host.slot, &host.name)?;
    let (ns, veth, bridge) = (net.unique(&host.name), net.veth(host.slot), net.bridge());
    let outer = format!(
        "netns add {ns}\n\
         link add {veth} address {} type veth peer name eth0 address {} netns {ns}\n\
         link set {veth} master {bridge}\n\
         link set {veth} type bridge_slave isolated on\n\
         link set {veth} up\n",
        net.mac(1, host.slot),
        net.mac(0, host.slot),
    );
    Cmd::new(["ip", "-batch", "-"]).input(outer).run()?;
    let inner = format!(
        "link set lo up\nlink set eth0 up\n\
         addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
         route add default via {}\n",
        host.v4,
        host.v6,
        net.gateway_v4()
    );
    Cmd::new(["ip", "-n", &ns, "-batch", "-"]).input(inner).run()?;
    Ok(())
}

/// Makes the cable of a virtual machine anew: a tap in the place of the veth pair, and no namespace, as the guest
/// has a network stack of its own.
pub(super) fn rebuild_tap(host: &HostRecord) -> Result<()> {
    let net = Net { run: host.run };
    remove_host(net, host.slot, &host.name)?;
    let (tap, bridge) = (net.veth(host.slot), net.bridge());
    let batch = format!(
        "tuntap add dev {tap} mode tap\n\
         link set {tap} address {}\n\
         link set {tap} master {bridge}\n\
         link set {tap} type bridge_slave isolated on\n\
         link set {tap} up\n",
        net.mac(1, host.slot),
    );
    Cmd::new(["ip", "-batch", "-"]).input(batch).run().map(drop)
}

/// Plugs a host's cable out or in.
pub(super) fn set_link(host: &HostRecord, up: bool) -> Result<()> {
    let veth = Net { run: host.run }.veth(host.slot);
    Cmd::new(["ip", "link", "set", &veth, if up { "up" } else { "down" }]).run().map(drop)
}

/// Removes a host's cable and namespace.
pub(super) fn remove_host(net: Net, slot: u8, name: &str) -> Result<()> {
    // The namespace is only freed when its last process is gone; the cable must not wait for that.
    remove_link(&net.veth(slot))?;
    remove_namespace(&net.unique(name))
}

fn remove_link(link: &str) -> Result<()> {
    if PathBuf::from("/sys/class/net").join(link).exists() {
        Cmd::new(["ip", "link", "delete", link]).run()?;
    }
    Ok(())
}

fn remove_namespace(ns: &str) -> Result<()> {
    if PathBuf::from("/run/netns").join(ns).exists() {
        Cmd::new(["ip", "netns", "delete", ns]).run()?;
    }
    Ok(())
}

/// Removes everything of a run's network, whatever is there of it.
pub(super) fn destroy(net: Net) -> Result<()> {
    let veth = format!("plv{}h", net.run);
    for link in names("/sys/class/net") {
        if link.starts_with(&veth) {
            remove_link(&link)?;
        }
    }
    for ns in names("/run/netns") {
        if ns.starts_with(&net.prefix()) {
            remove_namespace(&ns)?;
        }
    }
    remove_link(&net.bridge())?;
    for tool in ["iptables", "ip6tables"] {
        for table in ["filter", "nat", "raw"] {
            remove_chains(tool, table, &format!("PLAB-{}-", net.run))?;
        }
    }
    Ok(())
}

fn names(dir: &str) -> Vec<String> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Removes the jumps to our chains, then the chains. Nothing else is touched.
fn remove_chains(tool: &str, table: &str, prefix: &str) -> Result<()> {
    let call = |args: &[&str]| Cmd::new([tool, "-w", "10", "-t", table].iter().chain(args)).output();
    let listing = call(&["-S"])?;
    if !listing.success() {
        // No such table in this kernel: then nothing of ours is in it.
        return Ok(());
    }
    let text = listing.text();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let jumps = words.windows(2).any(|w| w[0] == "-j" && w[1].starts_with(prefix));
        if words.first() == Some(&"-A") && jumps {
            let mut delete = words.clone();
            delete[0] = "-D";
            call(&delete)?.ok()?;
        }
    }
    for line in text.lines() {
        if let Some(chain) = line.strip_prefix("-N ").filter(|c| c.starts_with(prefix)) {
            call(&["-F", chain])?.ok()?;
            call(&["-X", chain])?.ok()?;
        }
    }
    Ok(())
}

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// Switches forwarding on and writes down what it was, so that the last run can put it back.
pub(super) fn forward_on(places: &Places) -> Result<()> {
    let _lock = places.lock_shared()?;
    let saved = places.state.join("ip_forward.json");
    let now = read_text(FORWARD)?.trim().to_owned();
    if load::<String>(&saved)?.is_none() {
        save(&saved, &now)?;
    }
    if now != "1" {
        std::fs::write(FORWARD, "1").map_err(LabError::io("write", FORWARD))?;
    }
    Ok(())
}

/// Puts forwarding back when no run is left.
pub(super) fn forward_restore(places: &Places) -> Result<()> {
    let _lock = places.lock_shared()?;
    if !places.indexes().is_empty() {
        return Ok(());
    }
    let saved = places.state.join("ip_forward.json");
    if let Some(was) = load::<String>(&saved)? {
        std::fs::write(FORWARD, was).map_err(LabError::io("write", FORWARD))?;
        remove(&saved)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_counter_of_one_host_and_port() {
        let text = "*filter\n:PLAB-3-OUT - [0:0]\n\
                    [9:540] -A PLAB-3-OUT -d 10.213.3.12/32 -p tcp -m tcp --dport 22\n\
                    [7:420] -A PLAB-3-OUT -d 10.213.3.11/32 -p tcp -m tcp --dport 22\nCOMMIT";
        assert_eq!(counter(text, "PLAB-3-OUT", "10.213.3.11", 22), Some(7));
        assert_eq!(counter(text, "PLAB-3-OUT", "10.213.3.11", 2222), None);
        assert_eq!(counter(text, "PLAB-30-OUT", "10.213.3.11", 22), None);
    }

    #[test]
    fn names_fit_into_an_interface_name() {
        let net = Net { run: 199 };
        assert!(net.bridge().len() <= 15 && net.veth(MAX_SLOTS).len() <= 15);
    }
}
