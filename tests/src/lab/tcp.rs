//! Reading the kernel's table of TCP sockets.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// State of a socket, as far as tests care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// Open.
    Established,
    /// Waiting for peers.
    Listen,
    /// Any other, by the kernel's number: opening, closing or waiting.
    Other(u8),
}

/// One TCP socket of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpConnection {
    /// The guest's end.
    pub local: SocketAddr,
    /// The other end; all zero for a listening socket.
    pub remote: SocketAddr,
    /// Its state.
    pub state: TcpState,
}

/// Parses `/proc/net/tcp` or `tcp6`. Lines that cannot be read are left out. An IPv4 address that the kernel shows as
/// IPv6 comes out as IPv4.
pub(super) fn parse_table(text: &str) -> Vec<TcpConnection> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote) = (address(words.next()?)?, address(words.next()?)?);
        let state = match u8::from_str_radix(words.next()?, 16).ok()? {
            1 => TcpState::Established,
            10 => TcpState::Listen,
            other => TcpState::Other(other),
        };
        Some(TcpConnection { local, remote, state })
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// `0100007F:0016`: words of 32 bits in the machine's byte order, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for at in (0..ip.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_tables() {
        let v4 =
            "  sl  local_address rem_address   st\n   0: 0B03D50A:0016 0103D50A:C350 01 00000000:00000000\n";
        assert_eq!(
            parse_table(v4),
            [TcpConnection {
                local: "10.213.3.11:22".parse().unwrap(),
                remote: "10.213.3.1:50000".parse().unwrap(),
                state: TcpState::Established
            }]
        );
        let v6 =
            "head\n 0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A x\n";
        let found = parse_table(v6);
        assert_eq!((found[0].local.port(), found[0].state), (22, TcpState::Listen));
        assert!(parse_table("head\ngarbage\n 1: zz:1 y:2 3").is_empty());
    }
}
