//! The end state that all ways are to bring about, seen on the host and from outside.
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::ADMIN;
use crate::lab::Host;
use crate::load::get;
use crate::rig::{BOOT_DEADLINE, finish, wait_for};

const CHECK: &str = include_str!("../../../bench/provision/check.sh");
const CHECK_DEADLINE: Duration = Duration::from_secs(120);
const LOGIN: Duration = Duration::from_secs(30);
/// For a connection that nobody answers; one that is taken is within a millisecond here.
const SILENCE: Duration = Duration::from_secs(1);
/// A Swarm listens there, on every address.
const CLOSED: u16 = 2377;
/// What starts at boot.
const RESTARTED: Duration = Duration::from_secs(120);

/// An error that says what is not as it should be.
pub(super) fn check(host: &Host) -> Result<()> {
    let said = host.exec_with(&["bash", "-s"], CHECK.as_bytes(), CHECK_DEADLINE)?;
    ensure!(
        said.success() && said.text().trim() == "all is so",
        "{} is not in the state that was to be brought about:\n{}\n{}",
        host.name,
        said.text(),
        said.error_text()
    );
    ports(host)?;
    logins(host)
}

/// The same once it has started again, Docker's services included.
pub(super) fn check_after_restart(host: &Host) -> Result<()> {
    host.wait_ssh(BOOT_DEADLINE)?;
    host.wait_booted(BOOT_DEADLINE)?;
    let up = "docker service ls --format '{{.Replicas}}' | grep -qx 1/1 && chronyc -n tracking | grep -q ': Normal' && \
              fail2ban-client status sshd";
    wait_for("what starts at boot is up", RESTARTED, || Ok(host.exec(&["sh", "-c", up])?.success()))?;
    check(host)
}

fn ports(host: &Host) -> Result<()> {
    let listens = host.sh(&format!("ss -Hltn 'sport = :{CLOSED}' | wc -l"))?;
    ensure!(listens.trim() != "0", "nobody listens at port {CLOSED}, so it proves no firewall");
    for address in [IpAddr::from(host.v4), IpAddr::from(host.v6)] {
        let open = |port| TcpStream::connect_timeout(&SocketAddr::new(address, port), SILENCE);
        open(22).with_context(|| format!("{address} does not answer SSH"))?;
        let answer = open(CLOSED);
        let silent = answer.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut);
        ensure!(silent, "the firewall drops nothing at port {CLOSED} of {address}: {answer:?}");
    }
    for port in [80, 443] {
        TcpStream::connect_timeout(&SocketAddr::new(host.v4.into(), port), SILENCE)
            .with_context(|| format!("port {port} is not open"))?;
    }
    get(SocketAddr::new(host.v4.into(), 80), "/").map(drop).or_else(|error| {
        // A page that is not there is an answer, too.
        if error.to_string().contains("404") { Ok(()) } else { Err(error) }
    })
}

fn logins(host: &Host) -> Result<()> {
    let mut ssh = host.ssh(ADMIN);
    ssh.arg("sudo -n id -u");
    let administrator = finish(ssh, LOGIN)?;
    ensure!(administrator.stdout.trim() == "0", "{ADMIN} cannot log in and become root: {administrator:?}");
    let mut ssh = host.ssh("root");
    ssh.arg("true");
    let root = finish(ssh, LOGIN)?;
    ensure!(
        root.code == Some(255) && root.stderr.contains("Permission denied (publickey)."),
        "root is not refused with keys as the only way in: {root:?}"
    );
    Ok(())
}
