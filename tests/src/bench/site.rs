//! A lab host at a distance: with a round-trip time between it and this machine, on SSH and on the agent's link.
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;

use crate::lab::{Host, Image};
use crate::proxy::{FaultProxy, Faults};
use crate::rig::{BOOT_DEADLINE, Rig};

/// A host that has its agent, and the way to it.
pub(super) struct Site {
    /// The host.
    pub(super) host: Host,
    /// Where sshd is reached: the host itself, or the proxy before it.
    pub(super) ssh_address: SocketAddr,
    /// A `known_hosts` file for that address.
    pub(super) known_hosts: PathBuf,
    /// A folder of its own, in which baselines keep what they need.
    pub(super) work: PathBuf,
    /// Held while it lasts: with these gone, so is the way.
    _proxies: Option<(FaultProxy, FaultProxy, Runtime)>,
}

impl Site {
    /// Makes a host that is so far away and takes it over; no delay is a direct way.
    ///
    /// The delay is a proxy's, for each byte each way. The proxy itself accepts at once, so the TCP handshake of a new
    /// connection takes no round trip, which favours what logs in anew each time.
    pub(super) fn make(rig: &Rig, name: &str, image: Image, round_trip: Duration) -> Result<Site> {
        let host = rig.host(name, image)?;
        host.wait_booted(BOOT_DEADLINE)?;
        let work = rig.state_dir().join(name);
        std::fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        let proxies = match round_trip {
            Duration::ZERO => None,
            _ => Some(proxies(rig, &host, round_trip / 2)?),
        };
        let (ssh_address, link) = match &proxies {
            None => (host.ssh_address(), None),
            Some((ssh, link, _)) => (ssh.addr(), Some(link.addr())),
        };
        match link {
            None => super::up(rig, &host, &[])?,
            Some(link) => {
                rig.lab.allow_port(link.port()).context("open the proxy's port to the lab")?;
                super::up(rig, &host, &["--controller", &link.to_string()])?;
            }
        }
        let known_hosts = work.join("known_hosts");
        write_known_hosts(&known_hosts, &host, ssh_address)?;
        Ok(Site { host, ssh_address, known_hosts, work, _proxies: proxies })
    }

    /// ssh to the host as root, by the way that is to be measured.
    pub(super) fn ssh(&self) -> Command {
        let name = format!("HostName={}", self.ssh_address.ip());
        let port = format!("Port={}", self.ssh_address.port());
        let known = format!("UserKnownHostsFile={}", self.known_hosts.display());
        self.host.ssh_with("root", &[&name, &port, &known])
    }
}

fn proxies(rig: &Rig, host: &Host, delay: Duration) -> Result<(FaultProxy, FaultProxy, Runtime)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot make a runtime")?;
    let controller = SocketAddr::from((Ipv4Addr::LOCALHOST, rig.port()));
    let (ssh, link) = runtime
        .block_on(async {
            let ssh = FaultProxy::start(host.ssh_address()).await?;
            let link = FaultProxy::start_on((rig.lab.gateway_v4(), 0).into(), controller).await?;
            ssh.set(Faults::delay(delay)).await?;
            link.set(Faults::delay(delay)).await?;
            std::io::Result::Ok((ssh, link))
        })
        .context("cannot start a proxy")?;
    Ok((ssh, link, runtime))
}

/// A `known_hosts` file with a host's keys, for the address at which it is reached.
pub(super) fn write_known_hosts(path: &Path, host: &Host, address: SocketAddr) -> Result<()> {
    let name = match address.port() {
        22 => address.ip().to_string(),
        port => format!("[{}]:{port}", address.ip()),
    };
    let lines: String =
        host.host_keys.iter().map(|key| format!("{name} {} {}\n", key.algorithm, key.key)).collect();
    std::fs::write(path, lines).with_context(|| format!("cannot write {}", path.display()))
}
