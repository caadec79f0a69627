//! Somebody else on a lab's network: a namespace with addresses of its own, from which a host is seen as by a
//! stranger. Unlike hosts, a peer reaches every host of its lab, and every host reaches it.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::{LabError, Result};
use super::net::{MAX_SLOTS, Net, SLOT_BASE, remove_host};
use super::run::Inner;
use super::sys::{Cmd, SAFE_PATH};

/// Peers of one lab.
pub(super) const MAX_PEERS: u8 = 40;

/// A namespace on the lab's network; removed when dropped.
#[derive(Debug)]
pub struct Peer {
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    name: String,
    net: Net,
    slot: u8,
    _owner: Arc<Inner>,
}

impl Peer {
    pub(super) fn make(owner: Arc<Inner>, number: u8) -> Result<Self> {
        // Beyond those of hosts.
        let (net, slot) = (owner.net, MAX_SLOTS + number);
        let (v4, v6) = (net.v4(SLOT_BASE + slot), net.v6(SLOT_BASE + slot));
        let peer = Self { v4, v6, name: format!("peer-{number}"), net, slot, _owner: owner };
        let (ns, veth, bridge) = (peer.namespace(), net.veth(slot), net.bridge());
        // Not isolated, as hosts are from each other.
        let outer = format!(
            "netns add {ns}\n\
             link add {veth} address {} type veth peer name eth0 address {} netns {ns}\n\
             link set {veth} master {bridge}\n\
             link set {veth} up\n",
            net.mac(1, slot),
            net.mac(0, slot),
        );
        Cmd::new(["ip", "-batch", "-"]).input(outer).run()?;
        let inner = format!(
            "link set lo up\nlink set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n"
        );
        Cmd::new(["ip", "-n", &ns, "-batch", "-"]).input(inner).run()?;
        for (tool, address) in peer.families() {
            let (raw, bridge) = (net.chain("RAW"), net.bridge());
            let call = |args: &[&str]| Cmd::new([tool, "-w", "10", "-t", "raw"].iter().chain(args)).output();
            // It may be there already, from another peer.
            call(&["-N", &raw])?;
            if !call(&["-C", "PREROUTING", "-i", &bridge, "-j", &raw])?.success() {
                call(&["-I", "PREROUTING", "-i", &bridge, "-j", &raw])?.ok()?;
            }
            peer.let_through(tool, address, "-I")?;
        }
        Ok(peer)
    }

    fn namespace(&self) -> String {
        self.net.unique(&self.name)
    }

    fn families(&self) -> [(&'static str, IpAddr); 2] {
        [("iptables", self.v4.into()), ("ip6tables", self.v6.into())]
    }

    /// Where the machine filters what goes over bridges, too: lets this peer's packets by, and does not keep a record
    /// of each, of which a scan would make more than there is room for.
    fn let_through(&self, tool: &str, address: IpAddr, action: &str) -> Result<()> {
        let (raw, forward) = (self.net.chain("RAW"), self.net.chain("FWD"));
        let solicited = match address {
            IpAddr::V4(_) => String::new(),
            // A host asks all who may have an address, before it sends anything there.
            IpAddr::V6(_) => {
                format!("{action} {forward} -p icmpv6 --icmpv6-type 135 -d ff02::/16 -j ACCEPT\n")
            }
        };
        let rules = format!(
            "*raw\n{action} {raw} -s {address} -j CT --notrack\n{action} {raw} -d {address} -j CT --notrack\nCOMMIT\n\
             *filter\n{action} {forward} -s {address} -j ACCEPT\n{action} {forward} -d {address} -j ACCEPT\n{solicited}\
             COMMIT\n"
        );
        Cmd::new([&format!("{tool}-restore"), "-w", "10", "--noflush"]).input(rules).run().map(drop)
    }

    /// A program as it runs here: same files, other network. Add its arguments.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.env("PATH", SAFE_PATH).args(["netns", "exec", &self.namespace(), program]);
        command
    }

    /// Calls this on a thread of its own whose sockets are this peer's.
    pub fn within<T: Send>(&self, call: impl FnOnce() -> T + Send) -> Result<T> {
        let path = Path::new("/run/netns").join(self.namespace());
        let namespace = std::fs::File::open(&path).map_err(LabError::io("open", &path))?;
        let entered = || -> Result<T> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|error| LabError::io("enter", &path)(error.into()))?;
            Ok(call())
        };
        std::thread::scope(|scope| {
            scope.spawn(entered).join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
        })
    }
}

impl Drop for Peer {
    /// What cannot be removed goes with the lab.
    fn drop(&mut self) {
        for (tool, address) in self.families() {
            let _ = self.let_through(tool, address, "-D");
        }
        let _ = remove_host(self.net, self.slot, &self.name);
    }
}
