//! The web servers that apt gets packages from, as its sources on this host name them.

use std::fmt;

use super::sources;
use crate::sys::{Sys, SysError};

/// The most that is read of a list of mirrors, bytes.
const LIMIT: u64 = 1 << 20;

/// A web server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources) struct Server {
    /// By TLS.
    pub(in crate::resources) tls: bool,
    /// A name, or an address without brackets.
    pub(in crate::resources) host: String,
    /// TCP.
    pub(in crate::resources) port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Server {
    /// Of a URI that is on the web; `None` for any other.
    pub(in crate::resources) fn of(uri: &str) -> Option<Self> {
        let (scheme, rest) = uri.split_once("://")?;
        let (tls, usual) = match scheme.strip_prefix("mirror+").unwrap_or(scheme) {
            "https" => (true, 443),
            // Without more to it, a list of mirrors is fetched by HTTP.
            "http" | "mirror" => (false, 80),
            _ => return None,
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let place = authority.rsplit('@').next().unwrap_or_default();
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, rest)) => (address, rest.strip_prefix(':')),
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Some(usual), |port| port.parse().ok())?;
        (!host.is_empty()).then(|| Self { tls, host: host.to_owned(), port })
    }
}

/// Every place that apt gets packages from: the servers of which any one is enough. One that is named several times
/// is there once; what is not on the web is left out.
pub(in crate::resources) fn servers(host: &Sys) -> Result<Vec<Vec<Server>>, SysError> {
    let mut all: Vec<Vec<Server>> = Vec::new();
    for source in sources::all(host)?.into_iter().flat_map(|(_, sources)| sources) {
        // Debian's cloud images have it so: a file with the mirrors of that cloud.
        let file = source.uri.strip_prefix("mirror+file:").map(|path| path.trim_start_matches("//"));
        let any = match file {
            Some(path) => listed(&host.read_through(path, LIMIT)?.unwrap_or_default()),
            None => Server::of(&source.uri).into_iter().collect(),
        };
        if !any.is_empty() && !all.contains(&any) {
            all.push(any);
        }
    }
    Ok(all)
}

/// A list of mirrors: a URI a line, and maybe more about it after a tab.
fn listed(text: &[u8]) -> Vec<Server> {
    let text = String::from_utf8_lossy(text);
    let uris = text.lines().filter_map(|line| line.split_whitespace().next());
    uris.filter_map(Server::of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_by_table() {
        for (uri, want) in [
            ("http://deb.debian.org/debian", Some((false, "deb.debian.org", 80))),
            ("https://m.example:8443/debian", Some((true, "m.example", 8443))),
            ("https://u:p@b.example", Some((true, "b.example", 443))),
            ("http://[2001:db8::1]:8080/x", Some((false, "2001:db8::1", 8080))),
            ("http://[2001:db8::1]", Some((false, "2001:db8::1", 80))),
            ("mirror://m.example/list", Some((false, "m.example", 80))),
            ("mirror+https://m.example/list", Some((true, "m.example", 443))),
            ("file:/srv", None),
            ("cdrom://x/", None),
            ("http:///x", None),
            ("http://a:many/x", None),
        ] {
            let want = want.map(|(tls, host, port)| Server { tls, host: host.to_owned(), port });
            assert_eq!(Server::of(uri), want, "{uri}");
        }
        assert_eq!(Server::of("http://[2001:db8::1]").unwrap().to_string(), "[2001:db8::1]:80");
    }

    #[test]
    fn all_that_apt_reads_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        assert_eq!(servers(&sys).unwrap(), [[]; 0]);
        for (path, text) in [
            (
                "etc/apt/sources.list",
                "deb http://a.example/debian s main\ndeb-src http://a.example/debian s main\n",
            ),
            ("etc/apt/sources.list.d/b.list", "# deb http://no.example s main\ndeb file:/srv s main\n"),
            (
                "etc/apt/sources.list.d/c.sources",
                "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/m.list\nSuites: s t\n\n\
                 Types: deb\nEnabled: no\nURIs: http://off.example\nSuites: s\n",
            ),
            ("etc/apt/sources.list.d/d.list.save", "deb http://saved.example s main\n"),
            ("etc/apt/mirrors/m.list", "https://m1.example/debian\tpriority:1\nhttp://m2.example/debian\n\n"),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let shown: Vec<Vec<String>> =
            servers(&sys).unwrap().iter().map(|any| any.iter().map(Server::to_string).collect()).collect();
        assert_eq!(shown, [vec!["a.example:80"], vec!["m1.example:443", "m2.example:80"]]);
    }
}
