//! Names to addresses without libc and NSS: the hosts file, then the name servers of resolv.conf.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Resolver, system_conf};

/// How long one look-up may take over all servers and repeats.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long one server may take for one try.
const TRY: Duration = Duration::from_secs(3);
/// More addresses than this for one name are not tried.
const MAX_ADDRESSES: usize = 16;

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The servers know no address for it.
    #[error("name not found")]
    NotFound,
    /// No server gave an answer.
    #[error("no name server answered: {0}")]
    NoAnswer(String),
}

/// Where names are looked up. The files are read at every look-up, so that changes need no restart.
#[derive(Clone, Debug)]
pub struct Names {
    /// `/etc/hosts`.
    pub hosts: PathBuf,
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The port of the name servers; 53 but in tests.
    pub port: u16,
}

impl Default for Names {
    fn default() -> Self {
        Self { hosts: "/etc/hosts".into(), resolv_conf: "/etc/resolv.conf".into(), port: 53 }
    }
}

impl Names {
    /// Every address of a name, at least one, v6 and v4 taking turns.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, NameError> {
        let bare = name.trim_end_matches('.');
        let found = in_hosts_file(&std::fs::read_to_string(&self.hosts).unwrap_or_default(), bare);
        if !found.is_empty() {
            return Ok(take_turns(found));
        }
        if bare.eq_ignore_ascii_case("localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let lookup = tokio::time::timeout(DEADLINE, self.ask(name)).await;
        let found = lookup.map_err(|_| NameError::NoAnswer("timed out".into()))??;
        if found.is_empty() { Err(NameError::NotFound) } else { Ok(take_turns(found)) }
    }

    async fn ask(&self, name: &str) -> Result<Vec<IpAddr>, NameError> {
        let (config, options) = self.servers();
        let resolver = Resolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .map_err(|error| NameError::NoAnswer(error.to_string()))?;
        match resolver.lookup_ip(name).await {
            Ok(found) => Ok(found.iter().collect()),
            Err(error) if error.is_nx_domain() || error.is_no_records_found() => Err(NameError::NotFound),
            Err(error) => Err(NameError::NoAnswer(error.to_string())),
        }
    }

    fn servers(&self) -> (ResolverConfig, ResolverOpts) {
        let read = std::fs::read(&self.resolv_conf).map_err(NetError::from);
        let (mut config, mut options) = read.and_then(system_conf::parse_resolv_conf).unwrap_or_else(|_| {
            // As libc does: without a usable file, the host itself is the name server.
            let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
            (ResolverConfig::from_parts(None, Vec::new(), vec![local]), ResolverOpts::default())
        });
        options.timeout = options.timeout.min(TRY);
        options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        options.use_hosts_file = ResolveHosts::Never;
        // One look-up a dial: nothing to keep, and the next dial is to see what changed.
        options.cache_size = 1;
        if self.port != 53 {
            let (domain, search, mut servers) = config.into_parts();
            for connection in servers.iter_mut().flat_map(|server| &mut server.connections) {
                connection.port = self.port;
            }
            config = ResolverConfig::from_parts(domain, search, servers);
        }
        (config, options)
    }
}

fn in_hosts_file(text: &str, name: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(Ok(ip)) = words.next().map(str::parse::<IpAddr>) else { continue };
        if words.any(|word| word.trim_end_matches('.').eq_ignore_ascii_case(name)) && !found.contains(&ip) {
            found.push(ip);
        }
    }
    found
}

/// v6 first, then by turns: where one family is dead, the other is second at the latest (RFC 8305, section 4).
fn take_turns(found: Vec<IpAddr>) -> Vec<IpAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) = found.into_iter().partition(IpAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut out = Vec::new();
    loop {
        let (six, four) = (v6.next(), v4.next());
        if (six.is_none() && four.is_none()) || out.len() >= MAX_ADDRESSES {
            return out;
        }
        out.extend(six.into_iter().chain(four));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UdpSocket;

    #[test]
    fn the_hosts_file() {
        let text = "127.0.0.1 localhost\n# 192.0.2.9 c.example\n192.0.2.1 other C.Example. # note\n\
                    2001:db8::1\tc.example\nnonsense c.example\n192.0.2.1 c.example\n";
        let found = in_hosts_file(text, "c.example");
        assert_eq!(found, ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
        assert_eq!(take_turns(found)[0], "2001:db8::1".parse::<IpAddr>().unwrap());
        assert!(in_hosts_file(text, "example").is_empty());
    }

    /// A name server on loopback that knows one A record, for `known.test`.
    async fn name_server() -> u16 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut query = [0u8; 512];
            while let Ok((len, from)) = socket.recv_from(&mut query).await {
                let end = 12 + query[12..len].iter().position(|byte| *byte == 0).unwrap() + 5;
                let known = query[12..].starts_with(b"\x05known\x04test\0");
                let is_a = query[end - 4..end - 2] == [0, 1];
                let mut answer = query[..2].to_vec();
                answer.extend([0x81, if known { 0x80 } else { 0x83 }, 0, 1]);
                answer.extend([0, u8::from(known && is_a), 0, 0, 0, 0]);
                answer.extend(&query[12..end]);
                if known && is_a {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
                }
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        port
    }

    fn names(dir: &std::path::Path, port: u16) -> Names {
        let (hosts, resolv_conf) = (dir.join("hosts"), dir.join("resolv.conf"));
        std::fs::write(&resolv_conf, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
        std::fs::write(&hosts, "192.0.2.5 listed.test\n").unwrap();
        Names { hosts, resolv_conf, port }
    }

    #[tokio::test]
    async fn names_are_found_without_libc() {
        let dir = tempfile::tempdir().unwrap();
        let names = names(dir.path(), name_server().await);
        assert_eq!(names.resolve("listed.test").await.unwrap(), ["192.0.2.5".parse::<IpAddr>().unwrap()]);
        assert_eq!(names.resolve("known.test").await.unwrap(), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert!(matches!(names.resolve("unknown.test").await, Err(NameError::NotFound)));
        assert_eq!(names.resolve("localhost").await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_dead_name_server_is_not_a_name_that_does_not_exist() {
        let dir = tempfile::tempdir().unwrap();
        // Bound and closed again: nothing answers there.
        let port = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let error = names(dir.path(), port).resolve("known.test").await.unwrap_err();
        assert!(matches!(error, NameError::NoAnswer(_)), "{error}");
    }
}
