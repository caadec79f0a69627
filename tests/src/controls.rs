//! What tests put on a host, or note of it, to compare with: programs that answer on ports, and the rules of others.

use anyhow::{Context, Result};

use crate::lab::{Host, TcpState};

/// Answers on these TCP ports, IPv4 and IPv6, whatever is asked; also after a restart.
pub fn listen(host: &Host, ports: &[u16]) -> Result<()> {
    for port in ports {
        host.sh(&format!(
            "printf '[Socket]\\nListenStream=[::]:{port}\\nBindIPv6Only=both\\nAccept=yes\\n[Install]\\nWantedBy=sockets.target\\n' >/etc/systemd/system/lab{port}.socket
             printf '[Service]\\nExecStart=/bin/cat\\nStandardInput=socket\\n' >/etc/systemd/system/lab{port}@.service
             systemctl daemon-reload; systemctl enable --quiet --now lab{port}.socket"
        ))?;
    }
    Ok(())
}

/// Whether somebody on the host listens on this TCP port, whoever may reach it.
pub fn listens(host: &Host, port: u16) -> Result<bool> {
    let all = host.tcp_connections()?;
    Ok(all.iter().any(|it| it.state == TcpState::Listen && it.local.port() == port))
}

const ECHO: &str = "\
import socket, sys
here = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
here.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
here.bind(('::', int(sys.argv[1])))
while True:
    here.sendto(*here.recvfrom(512))
";

/// Sends back what comes to this UDP port, IPv4 and IPv6; also after a restart. The host needs Python.
pub fn echo(host: &Host, port: u16) -> Result<()> {
    host.exec_with(
        &["tee", "/usr/local/lib/lab-echo.py"],
        ECHO.as_bytes(),
        std::time::Duration::from_secs(20),
    )?
    .ok()?;
    host.sh(&format!(
        "printf '[Service]\\nExecStart=/usr/bin/python3 /usr/local/lib/lab-echo.py {port}\\n[Install]\\nWantedBy=multi-user.target\\n' >/etc/systemd/system/lab-echo.service
         systemctl daemon-reload; systemctl enable --quiet --now lab-echo.service"
    ))
    .context("start a UDP echo")?;
    Ok(())
}

/// Whether that port answers on the host itself, whoever may reach it.
pub fn echoes(host: &Host, port: u16) -> Result<bool> {
    let ask = format!(
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2); \
         s.sendto(b'x', ('127.0.0.1', {port})); print(s.recv(9))"
    );
    Ok(host.exec(&["python3", "-c", &ask])?.success())
}

/// The chains and rules of everybody else, all tables, without counters and what is ours. Where Docker is, its
/// empty chain for rules of others is made for IPv6, too.
pub fn others(host: &Host) -> Result<String> {
    Ok(host.sh(
        "for s in iptables-save ip6tables-save; do $s | grep -v -e '^[#*]' -e POSTERN -e '^:DOCKER-USER' -e '^:[A-Z]* ACCEPT' -e COMMIT | sed 's/ \\[.*//'; done",
    )?)
}
