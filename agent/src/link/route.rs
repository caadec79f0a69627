//! Ways to a controller: addresses, and which proxy (if any) leads to each. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_proto::DEFAULT_PORT;
use postern_proto::host::AgentConfig;
use zeroize::Zeroizing;

/// Why a text is no address or proxy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RouteError {
    /// Not `host:port`.
    #[error("{text:?} is not an address: {why}")]
    Address {
        /// The text.
        text: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Not a proxy that can be used. The text is not shown: it may hold a password.
    #[error("the proxy cannot be used: {0}")]
    Proxy(&'static str),
}

/// Where something listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A name, or an address without brackets.
    pub host: String,
    /// TCP.
    pub port: u16,
}

impl Target {
    /// The address, where the host is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// The same as parsing it, with this port where the text has none.
    pub fn with_port(text: &str, default_port: u16) -> Result<Self, RouteError> {
        let fail = |why| Err(RouteError::Address { text: text.chars().take(255).collect(), why });
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let Some((host, rest)) = rest.split_once(']') else { return fail("the bracket is not closed") };
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return fail("want an IPv6 address in the brackets");
            }
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return fail("want a port after the brackets"),
            }
        } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
            (text, None)
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || host.len() > 253 || !host.chars().all(valid) {
            return fail("want a host name or an IP address");
        }
        let port = match port {
            None => default_port,
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return fail("want a port from 1 to 65535"),
                Ok(port) => port,
            },
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl FromStr for Target {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        Self::with_port(text, DEFAULT_PORT)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// An HTTP CONNECT proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Where it listens.
    pub at: Target,
    /// The value of `Proxy-Authorization`, where the URL has a user.
    pub authorization: Option<Zeroizing<String>>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({})", self.at)
    }
}

impl FromStr for Proxy {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        let rest = match text.trim().split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
                return Err(RouteError::Proxy("TLS to the proxy itself is not supported, want http://"));
            }
            Some(_) => {
                return Err(RouteError::Proxy("only HTTP CONNECT proxies are supported, want http://"));
            }
            None => text.trim(),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, at) = match authority.rsplit_once('@') {
            Some((user, at)) => (Some(user), at),
            None => (None, authority),
        };
        let at = Target::with_port(at, 80)
            .map_err(|_| RouteError::Proxy("want http://[user:password@]host:port"))?;
        let authorization = match user {
            None => None,
            Some(user) => {
                let (name, password) = user.split_once(':').unwrap_or((user, ""));
                let mut plain = Zeroizing::new(percent_decode(name)?);
                plain.push(b':');
                plain.extend_from_slice(&Zeroizing::new(percent_decode(password)?));
                Some(Zeroizing::new(format!("Basic {}", STANDARD.encode(&*plain))))
            }
        };
        Ok(Self { at, authorization })
    }
}

fn percent_decode(text: &str) -> Result<Vec<u8>, RouteError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |it: Option<u8>| it.and_then(|it| char::from(it).to_digit(16));
        match (digit(bytes.next()), digit(bytes.next())) {
            (Some(high), Some(low)) => out.push((high * 16 + low) as u8),
            _ => return Err(RouteError::Proxy("its user or password has a broken %XX")),
        }
    }
    Ok(out)
}

/// The environment's say about proxies, read once by `main`.
#[derive(Clone, Default)]
pub struct ProxyEnv {
    /// `https_proxy`, else `HTTPS_PROXY`, else `all_proxy`, else `ALL_PROXY`.
    pub proxy: Option<String>,
    /// `no_proxy`, else `NO_PROXY`.
    pub no_proxy: Option<String>,
}

impl ProxyEnv {
    /// From something that looks variables up. Empty ones count as not there.
    #[must_use]
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| {
            names.iter().find_map(|name| lookup(name).filter(|value| !value.trim().is_empty()))
        };
        Self {
            proxy: first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            no_proxy: first(&["no_proxy", "NO_PROXY"]),
        }
    }
}

/// One way to a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The controller.
    pub target: Target,
    /// Through this.
    pub proxy: Option<Proxy>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.proxy {
            None => self.target.fmt(f),
            Some(proxy) => write!(f, "{} through the proxy {}", self.target, proxy.at),
        }
    }
}

/// Every way, in the order they are tried.
pub fn routes(config: &AgentConfig, env: &ProxyEnv) -> Result<Vec<Route>, RouteError> {
    let (proxy, from_env) = match (&config.proxy, &env.proxy) {
        (Some(text), _) => (Some(text.parse::<Proxy>()?), false),
        (None, Some(text)) => (Some(text.parse::<Proxy>()?), true),
        (None, None) => (None, false),
    };
    let except = env.no_proxy.as_deref().unwrap_or_default();
    let mut routes = Vec::new();
    for text in &config.controllers {
        let target: Target = text.parse()?;
        // A proxy that somebody set for the whole environment is not meant for the host itself.
        let direct = excepted(except, &target) || (from_env && is_loopback(&target));
        routes.push(Route { target, proxy: proxy.clone().filter(|_| !direct) });
    }
    if let Some(text) = &config.temporary_route {
        // The end of a forwarding on this host: no proxy leads there.
        routes.push(Route { target: text.parse()?, proxy: None });
    }
    Ok(routes)
}

fn is_loopback(target: &Target) -> bool {
    target.host.eq_ignore_ascii_case("localhost") || target.ip().is_some_and(|ip| ip.is_loopback())
}

/// Whether `no_proxy` names the target: `*`, a name with its subdomains, an address or a block of addresses,
/// each with an optional port.
fn excepted(list: &str, target: &Target) -> bool {
    let host = target.host.to_ascii_lowercase();
    list.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        let entry = entry.to_ascii_lowercase();
        if entry == "*" {
            return true;
        }
        if let (Some((block, bits)), Some(ip)) = (entry.split_once('/'), target.ip()) {
            return in_block(ip, block, bits);
        }
        let Ok(named) = Target::with_port(entry.trim_start_matches("*.").trim_start_matches('.'), 0) else {
            return false;
        };
        if named.port != 0 && named.port != target.port {
            return false;
        }
        match (named.ip(), target.ip()) {
            (Some(named), Some(ip)) => named == ip,
            (None, None) => {
                host == named.host || host.strip_suffix(&named.host).is_some_and(|rest| rest.ends_with('.'))
            }
            _ => false,
        }
    })
}

fn in_block(ip: IpAddr, block: &str, bits: &str) -> bool {
    let Ok(bits) = bits.parse::<u32>() else { return false };
    match (ip, block.parse::<IpAddr>()) {
        (IpAddr::V4(ip), Ok(IpAddr::V4(block))) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            u32::from(ip) & mask == u32::from(block) & mask
        }
        (IpAddr::V6(ip), Ok(IpAddr::V6(block))) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            u128::from(ip) & mask == u128::from(block) & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_proto::ids::HostId;

    #[test]
    fn addresses() {
        for (text, host, port, shown) in [
            ("c.example:7301", "c.example", 7301, "c.example:7301"),
            ("c.example", "c.example", 7300, "c.example:7300"),
            ("192.0.2.1:1", "192.0.2.1", 1, "192.0.2.1:1"),
            ("[2001:db8::1]:443", "2001:db8::1", 443, "[2001:db8::1]:443"),
            ("[2001:db8::1]", "2001:db8::1", 7300, "[2001:db8::1]:7300"),
            ("2001:db8::1", "2001:db8::1", 7300, "[2001:db8::1]:7300"),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!((target.host.as_str(), target.port, target.to_string().as_str()), (host, port, shown));
        }
        for bad in
            ["", ":1", "c:0", "c:65536", "c:x", "[::1", "[c]:1", "[::1]x", "a b:1", "a\r\nX: y:1", "a/b"]
        {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn trap_50_proxies() {
        let proxy: Proxy = "http://us%40er:p%3Aw@proxy.example:3128/".parse().unwrap();
        assert_eq!(proxy.at.to_string(), "proxy.example:3128");
        assert_eq!(
            proxy.authorization.as_ref().map(|it| it.as_str()),
            Some(format!("Basic {}", STANDARD.encode("us@er:p:w")).as_str())
        );
        assert!(!format!("{proxy:?}").contains("p:w"));
        assert_eq!("proxy".parse::<Proxy>().unwrap().at.port, 80);
        assert_eq!("http://[2001:db8::5]:8080".parse::<Proxy>().unwrap().at.host, "2001:db8::5");
        for bad in ["https://p:1", "socks5://p:1", "http://", "http://u:%zz@p:1"] {
            let error = bad.parse::<Proxy>().unwrap_err().to_string();
            assert!(!error.contains("%zz"), "a password is shown: {error}");
        }
    }

    fn config(controllers: &[&str], proxy: Option<&str>, temporary: Option<&str>) -> AgentConfig {
        AgentConfig {
            version: 1,
            host_id: HostId::generate(),
            controllers: controllers.iter().map(ToString::to_string).collect(),
            server_name: "x".into(),
            server_ca_pem: String::new(),
            proxy: proxy.map(Into::into),
            temporary_route: temporary.map(Into::into),
            limits: Default::default(),
        }
    }

    fn via(config: &AgentConfig, env: &[(&str, &str)]) -> Vec<String> {
        let env = ProxyEnv::from_lookup(|name| {
            env.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned())
        });
        let routes = routes(config, &env).unwrap();
        routes.into_iter().map(|it| it.proxy.map_or("direct".into(), |proxy| proxy.at.host)).collect()
    }

    #[test]
    fn trap_50_config_then_environment_and_no_proxy_is_honoured() {
        let two = config(&["c.example:1", "10.1.2.3:1"], None, Some("127.0.0.1:9"));
        assert_eq!(via(&two, &[]), ["direct", "direct", "direct"]);
        assert_eq!(via(&two, &[("HTTPS_PROXY", "http://up")]), ["up", "up", "direct"]);
        assert_eq!(via(&two, &[("https_proxy", ""), ("all_proxy", "http://all")]), ["all", "all", "direct"]);
        let env = [("https_proxy", "http://low"), ("HTTPS_PROXY", "http://up"), ("no_proxy", "10.0.0.0/8")];
        assert_eq!(via(&two, &env), ["low", "direct", "direct"]);
        let fixed = config(&["c.example:1", "127.0.0.1:1"], Some("http://fixed"), None);
        assert_eq!(via(&fixed, &[("https_proxy", "http://low")]), ["fixed", "fixed"]);
        assert_eq!(via(&fixed, &[("NO_PROXY", "example, 127.0.0.1")]), ["direct", "direct"]);
        let local = config(&["localhost:1", "[::1]:1"], None, None);
        assert_eq!(via(&local, &[("https_proxy", "http://low")]), ["direct", "direct"]);
    }

    #[test]
    fn trap_50_what_no_proxy_names() {
        let target = |text: &str| text.parse::<Target>().unwrap();
        for (list, yes, no) in [
            ("*", "c.example:1", ""),
            (".example", "c.example:1", "notexample:1"),
            ("*.example", "c.example:1", "example.org:1"),
            ("example", "example:1", "xexample:1"),
            ("c.example:7", "c.example:7", "c.example:8"),
            ("192.0.2.0/24", "192.0.2.9:1", "192.0.3.9:1"),
            ("0.0.0.0/0", "192.0.2.9:1", "[::1]:1"),
            ("2001:db8::/32", "[2001:db8::9]:1", "[2001:db9::9]:1"),
            ("2001:db8::1", "[2001:db8::1]:1", "[2001:db8::2]:1"),
            ("a, b ,c.example", "c.example:1", "d.example:1"),
            ("192.0.2.0/99", "", "192.0.2.1:1"),
        ] {
            assert!(yes.is_empty() || excepted(list, &target(yes)), "{list} names {yes}");
            assert!(no.is_empty() || !excepted(list, &target(no)), "{list} does not name {no}");
        }
    }
}
