//! By which ways a server may be reached, and whether one of them leads there.

use std::time::Duration;

use postern_proto::spec::Reach;

use super::super::apt::proxies::{Proxies, Way as Apt};
use super::super::apt::servers::Server;
use super::verdict::Gone;
use crate::link::route::{Proxy, Target};
use crate::sys::{Sys, first_of};

/// The proxies that this host knows of.
pub(super) struct Known {
    pub(super) apt: Proxies,
    pub(super) others: Vec<Proxy>,
}

/// One way to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A connection to the server itself.
    Direct(Target),
    /// A connection to the proxy that fetches from it: what it does then is its own affair.
    Door(Target),
    /// A connection that a proxy makes.
    By(Proxy, Target),
}

/// Something to be reached, by any of these ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Goal {
    /// It is what apt gets packages from.
    pub(super) of_apt: bool,
    pub(super) ways: Vec<Way>,
}

/// What is to be reached. What nobody can tell (a program of the host's finds apt's proxy) is no goal.
pub(super) fn goals(targets: &[Reach], servers: &[Vec<Server>], known: &Known) -> Vec<Goal> {
    let mut goals: Vec<Goal> = Vec::new();
    for target in targets {
        let found: Vec<Goal> = match target {
            Reach::Apt => servers.iter().filter_map(|any| of_apt(any, &known.apt)).collect(),
            Reach::Server { host, port } => vec![of_server(host, *port, known)],
        };
        for goal in found {
            if !goals.contains(&goal) {
                goals.push(goal);
            }
        }
    }
    goals
}

fn of_apt(any: &[Server], proxies: &Proxies) -> Option<Goal> {
    let mut ways: Vec<Way> = Vec::new();
    for server in any {
        let way = match proxies.way(server) {
            Apt::Direct => Way::Direct(Target { host: server.host.clone(), port: server.port }),
            Apt::Proxy(url) => Way::Door(place(&url)?),
            Apt::Asked => return None,
        };
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    Some(Goal { of_apt: true, ways })
}

fn of_server(host: &str, port: u16, known: &Known) -> Goal {
    let target = Target { host: host.to_owned(), port };
    let server = Server { tls: port == 443, host: host.to_owned(), port };
    let apt = match known.apt.way(&server) {
        Apt::Proxy(url) => url.parse().ok(),
        Apt::Direct | Apt::Asked => None,
    };
    let mut ways = vec![Way::Direct(target.clone())];
    for proxy in known.others.iter().cloned().chain(apt) {
        let way = Way::By(proxy, target.clone());
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    Goal { of_apt: false, ways }
}

/// Where a proxy listens, whatever it speaks.
fn place(url: &str) -> Option<Target> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let usual = match scheme.to_ascii_lowercase().as_str() {
        "https" => 443,
        scheme if scheme.starts_with("socks") => 1080,
        _ => 80,
    };
    let authority = rest.split('/').next().unwrap_or_default();
    Target::with_port(authority.rsplit('@').next().unwrap_or_default(), usual).ok()
}

/// The value of a variable in the text of `/etc/environment`.
pub(super) fn variable(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().map(|line| line.trim().trim_start_matches("export ").trim_start());
    let values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values.map(|value| value.trim().trim_matches(['"', '\'']).to_owned()).next_back()
}

/// Tries all its ways side by side; what is gone where none leads there.
pub(super) async fn attempt(goal: &Goal, host: &Sys, limit: Duration) -> Option<Gone> {
    let tries = goal.ways.iter().map(|way| async move {
        match way {
            Way::Direct(target) | Way::Door(target) => host.connects(target, limit).await,
            Way::By(proxy, target) => host.connects_by(proxy, target, limit).await,
        }
        .map_err(|why| format!("{}: {why}", shown(way)))
    });
    let whys = first_of(tries).await.err()?;
    Some(Gone::Server { of_apt: goal.of_apt, whys })
}

fn shown(way: &Way) -> String {
    match way {
        Way::Direct(target) => target.to_string(),
        Way::Door(target) => format!("its proxy {target}"),
        Way::By(proxy, target) => format!("{target} by the proxy {}", proxy.at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(host: &str) -> Server {
        Server { tls: false, host: host.to_owned(), port: 80 }
    }

    /// A host behind a proxy is asked for its proxy, and nobody is told of what cannot be known.
    #[test]
    fn trap_29_ways_by_table() {
        let reach = |text: &str| Reach::parse(text).unwrap();
        let mirrors = [vec![server("a"), server("b")], vec![server("c")], vec![server("c")]];
        let known = |dump: &str, others: &[&str]| Known {
            apt: Proxies::parse(dump),
            others: others.iter().map(|url| url.parse().unwrap()).collect(),
        };
        let proxy = "Acquire::http::Proxy \"http://u:secret@p:3128/\";\n";
        for (targets, known, want) in [
            (vec!["apt"], known("", &[]), vec!["a:80, b:80", "c:80"]),
            (vec!["apt", "apt"], known(proxy, &["http://q:1"]), vec!["its proxy p:3128"]),
            (vec!["apt"], known("Acquire::http::Proxy-Auto-Detect \"/x\";\n", &[]), vec![]),
            (vec!["apt"], known("Acquire::http::Proxy::c \"DIRECT\";\n", &[]), vec!["a:80, b:80", "c:80"]),
            (vec!["d:443"], known("", &[]), vec!["d:443"]),
            (
                vec!["d:443", "apt"],
                known(proxy, &["http://q:1", "http://q:1"]),
                vec!["d:443, d:443 by the proxy q:1, d:443 by the proxy p:3128", "its proxy p:3128"],
            ),
            (vec!["d:443"], known("Acquire::http::Proxy \"socks5h://s\";\n", &[]), vec!["d:443"]),
        ] {
            let targets: Vec<Reach> = targets.into_iter().map(reach).collect();
            let goals = goals(&targets, &mirrors, &known);
            let ways = |goal: &Goal| goal.ways.iter().map(shown).collect::<Vec<_>>().join(", ");
            assert_eq!(goals.iter().map(ways).collect::<Vec<_>>(), want, "{targets:?}");
        }
        for (url, want) in [
            ("http://u:p@p.example:3128/", Some("p.example:3128")),
            ("p.example", Some("p.example:80")),
            ("socks5h://s", Some("s:1080")),
            ("https://t/", Some("t:443")),
            ("http://[2001:db8::1]:8", Some("[2001:db8::1]:8")),
            ("http://a b", None),
        ] {
            assert_eq!(place(url).map(|place| place.to_string()).as_deref(), want, "{url}");
        }
    }

    #[test]
    fn variables_by_table() {
        let text = "# x\nPATH=\"/bin\"\nhttps_proxy=http://a\n export https_proxy='http://b'\nno_proxy=\n";
        assert_eq!(variable(text, "https_proxy").as_deref(), Some("http://b"));
        assert_eq!(variable(text, "PATH").as_deref(), Some("/bin"));
        assert_eq!(variable(text, "no_proxy").as_deref(), Some(""));
        assert_eq!(variable(text, "proxy"), None);
    }
}
