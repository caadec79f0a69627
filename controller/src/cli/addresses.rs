//! At which addresses a host is told to look for this controller. Pure.

use std::net::{IpAddr, SocketAddr};

use postern_proto::DEFAULT_PORT;

/// `ADDR[:PORT]` with its port, and brackets where they are needed.
pub(crate) fn with_port(text: &str, port: u16) -> Result<String, String> {
    let want = |why: &str| Err(format!("{text:?} is no address: {why}; want HOST, HOST:PORT or [IPV6]:PORT"));
    if text.is_empty()
        || text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '@'))
    {
        return want("it has a character that no address has");
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port).to_string());
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 { want("port 0") } else { Ok(address.to_string()) };
    }
    let (host, port) = match text.rsplit_once(':').filter(|_| !text.ends_with(']')) {
        Some((host, number)) => match number.parse() {
            Ok(number) if number != 0 => (host, number),
            _ => return want("its port is no number from 1 to 65535"),
        },
        None => (text, port),
    };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match inner {
        Some(ip) if ip.parse::<std::net::Ipv6Addr>().is_ok() => Ok(format!("{host}:{port}")),
        Some(_) => want("what is in brackets is no IPv6 address"),
        None if host.is_empty() || host.contains([':', '[', ']']) => want("it has no host name"),
        None => Ok(format!("{host}:{port}")),
    }
}

/// Where the daemon listens for agents, as it says.
pub(crate) fn listener(listen: &str) -> Option<SocketAddr> {
    listen.parse().ok()
}

/// The addresses to add to those that an operator named: our ends of the SSH connection, with the daemon's
/// port. Where the daemon listens on one address only, that one. Loopback only for a host that is this
/// machine, as everywhere else it leads nowhere or to a stranger.
pub(crate) fn from_ssh(
    seen_from_host: IpAddr,
    local: IpAddr,
    listen: SocketAddr,
    target_is_local: bool,
) -> Vec<String> {
    let candidates = if listen.ip().is_unspecified() {
        // A v4 listener cannot be reached over v6; a v6 one on all addresses takes both.
        let reachable = |ip: &IpAddr| listen.is_ipv6() || ip.to_canonical().is_ipv4();
        [seen_from_host, local].into_iter().filter(reachable).collect()
    } else {
        vec![listen.ip()]
    };
    let mut addresses = Vec::new();
    for ip in candidates.into_iter().map(|ip| ip.to_canonical()) {
        let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let useful = !ip.is_unspecified() && !ip.is_multicast() && !link_local;
        let address = SocketAddr::new(ip, listen.port()).to_string();
        if useful && (!ip.is_loopback() || target_is_local) && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// The target is this machine by loopback, without hosts on the way.
pub(crate) fn is_local(host: &str, jumps: usize) -> bool {
    let name = host.eq_ignore_ascii_case("localhost");
    jumps == 0 && (name || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback()))
}

/// `--listen`: an address with port, or a port for all addresses.
pub(crate) fn to_listen(text: &str) -> Result<(Option<IpAddr>, u16), String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok((None, port));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok((Some(address.ip()), address.port()));
    }
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok((Some(ip), DEFAULT_PORT)),
        Err(_) => Err(format!("{text:?} is nothing to listen on: want PORT, IP or IP:PORT")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_added_by_table() {
        for (text, want) in [
            ("example.org", "example.org:7300"),
            ("example.org:443", "example.org:443"),
            ("203.0.113.1", "203.0.113.1:7300"),
            ("203.0.113.1:9", "203.0.113.1:9"),
            ("2001:db8::1", "[2001:db8::1]:7300"),
            ("[2001:db8::1]", "[2001:db8::1]:7300"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
        ] {
            assert_eq!(with_port(text, 7300).as_deref(), Ok(want), "{text}");
        }
        for bad in
            ["", "a b", "a:", "a:0", "a:99999", ":1", "[x]:1", "a:b:1", "https://a", "u@h", "1.2.3.4:0"]
        {
            assert!(with_port(bad, 7300).is_err(), "{bad}");
        }
    }

    #[test]
    fn loopback_is_told_to_loopback_only() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let all = "[::]:7300".parse().unwrap();
        let told = |seen, local, listen, here| from_ssh(ip(seen), ip(local), listen, here).join(" ");
        assert_eq!(told("203.0.113.9", "192.168.1.2", all, false), "203.0.113.9:7300 192.168.1.2:7300");
        assert_eq!(told("203.0.113.9", "203.0.113.9", all, false), "203.0.113.9:7300");
        assert_eq!(told("::ffff:203.0.113.9", "203.0.113.9", all, false), "203.0.113.9:7300");
        assert_eq!(told("127.0.0.1", "127.0.0.1", all, false), "");
        assert_eq!(told("127.0.0.1", "127.0.0.1", all, true), "127.0.0.1:7300");
        assert_eq!(told("fe80::1", "2001:db8::1", all, false), "[2001:db8::1]:7300");
        let v4 = "0.0.0.0:7300".parse().unwrap();
        assert_eq!(told("2001:db8::1", "10.0.0.1", v4, false), "10.0.0.1:7300");
        let one = "10.9.9.9:1234".parse().unwrap();
        assert_eq!(told("203.0.113.9", "192.168.1.2", one, false), "10.9.9.9:1234");
        let here = "127.0.0.1:1234".parse().unwrap();
        assert_eq!(told("203.0.113.9", "192.168.1.2", here, false), "");
        assert_eq!(told("127.0.0.1", "127.0.0.1", here, true), "127.0.0.1:1234");
    }

    #[test]
    fn listen_by_table() {
        assert_eq!(to_listen("80"), Ok((None, 80)));
        assert_eq!(to_listen("[::1]:80"), Ok((Some("::1".parse().unwrap()), 80)));
        assert_eq!(to_listen("10.0.0.1"), Ok((Some("10.0.0.1".parse().unwrap()), 7300)));
        assert!(to_listen("example.org:80").is_err());
        assert!(is_local("localhost", 0) && is_local("127.0.0.2", 0) && is_local("::1", 0));
        assert!(
            !is_local("localhost", 1) && !is_local("192.168.0.1", 0) && !is_local("localhost.example", 0)
        );
    }
}
