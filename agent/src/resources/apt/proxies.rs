//! Which proxy apt asks for a server, by its configuration (`apt-config dump`). Pure.

use std::collections::HashMap;

use super::servers::Server;

/// How apt gets to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources) enum Way {
    /// By itself.
    Direct,
    /// By this proxy, a URL that may have a password in it.
    Proxy(String),
    /// A program of the host's says so each time.
    Asked,
}

/// apt's settings of proxies, by their names in small letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::resources) struct Proxies(HashMap<String, String>);

impl Proxies {
    /// From the lines of `apt-config dump`.
    pub(in crate::resources) fn parse(dump: &str) -> Self {
        let setting = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            let value = value.trim().trim_end_matches(';').trim_matches('"');
            let name = name.to_ascii_lowercase();
            (name.contains("::proxy") && !value.is_empty()).then(|| (name, value.to_owned()))
        };
        Self(dump.lines().filter_map(setting).collect())
    }

    /// What apt would do for this server (apt-transport-http(1)): what is said for that server alone comes first,
    /// then a program that finds one, then the proxy for all. What is not said for TLS is taken from what is said
    /// without.
    pub(in crate::resources) fn way(&self, to: &Server) -> Way {
        let schemes: &[&str] = if to.tls { &["https", "http"] } else { &["http"] };
        let find = |name: &str| {
            let of = |scheme: &&str| self.0.get(&format!("acquire::{scheme}::{}", name.to_ascii_lowercase()));
            schemes.iter().find_map(of)
        };
        let as_said = |value: &String| match value.eq_ignore_ascii_case("direct") {
            true => Way::Direct,
            false => Way::Proxy(value.clone()),
        };
        if let Some(own) = find(&format!("proxy::{}", to.host)) {
            return as_said(own);
        }
        if find("proxy-auto-detect").or_else(|| find("proxyautodetect")).is_some() {
            return Way::Asked;
        }
        find("proxy").map_or(Way::Direct, as_said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_29_proxies_of_apt_by_table() {
        let server = |tls, host: &str| Server { tls, host: host.to_owned(), port: 1 };
        let proxy = |url: &str| Way::Proxy(url.to_owned());
        let dump = "Acquire \"\";\nAcquire::http \"\";\nAcquire::http::Proxy \"http://p:3128\";\n\
                    Acquire::http::Proxy::Own.example \"DIRECT\";\nAcquire::http::Pipeline-Depth \"0\";\n";
        for (dump, tls, host, want) in [
            ("", false, "a", Way::Direct),
            ("Acquire::http::Proxy \"\";\n", false, "a", Way::Direct),
            (dump, false, "a", proxy("http://p:3128")),
            (dump, true, "a", proxy("http://p:3128")),
            (dump, false, "own.example", Way::Direct),
            ("acquire::HTTPS::proxy \"http://u:w@q\";\n", true, "a", proxy("http://u:w@q")),
            ("Acquire::https::Proxy \"http://q\";\n", false, "a", Way::Direct),
            ("Acquire::http::Proxy-Auto-Detect \"/usr/bin/x\";\n", false, "a", Way::Asked),
            ("Acquire::http::ProxyAutoDetect \"/usr/bin/x\";\n", true, "a", Way::Asked),
        ] {
            assert_eq!(Proxies::parse(dump).way(&server(tls, host)), want, "{dump} {host}");
        }
    }
}
