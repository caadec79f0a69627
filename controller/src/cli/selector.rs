//! Which hosts are meant: names and ids, `all`, `name=web-*`, `label role=web`, `os=debian`.

use super::error::CliError;
use crate::client::HostInfo;

/// Every host. No host is called so.
pub(crate) const ALL: &str = "all";

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    /// Exactly this name or id.
    Is(String),
    Name(String),
    Label(String, String),
    Os(String),
}

/// Conditions: a host is meant when it is one of those named, if any is, and fits everything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selector {
    terms: Vec<Term>,
}

impl Selector {
    pub(crate) fn parse(words: &[String]) -> Result<Self, CliError> {
        // `"$HOST"` with nothing in it: narrowing nothing down would mean every host.
        if words.iter().any(|word| word.trim().is_empty()) {
            return Err(CliError::usage("empty-selector", "a selector is empty and would choose every host").hint(
                "is a variable unset? Name the hosts, or say `all` (or `name=*`) where every host is meant",
            ));
        }
        let mut terms = Vec::new();
        let mut words = words.iter().flat_map(|word| word.split_whitespace());
        while let Some(word) = words.next() {
            let term = match word.split_once('=') {
                None if word == "label" => {
                    let pair = words.next().and_then(|pair| pair.split_once('='));
                    let (key, value) = pair
                        .filter(|(key, _)| !key.is_empty())
                        .ok_or_else(|| bad("label", "label KEY=VALUE"))?;
                    Term::Label(key.into(), value.into())
                }
                None if word == ALL => Term::Name("*".into()),
                None => Term::Is(word.into()),
                Some(("name", pattern)) if !pattern.is_empty() => Term::Name(pattern.into()),
                Some(("os", os)) if !os.is_empty() => Term::Os(os.into()),
                Some(_) => return Err(bad(word, "NAME, ID, all, name=web-*, label role=web or os=debian")),
            };
            terms.push(term);
        }
        Ok(Self { terms })
    }

    /// True when it names one host and nothing else: its output is then not prefixed.
    pub(crate) fn is_one_name(&self) -> bool {
        matches!(self.terms.as_slice(), [Term::Is(_)])
    }

    /// The hosts that are meant; an error when a name is unknown or none is left.
    pub(crate) fn choose(&self, hosts: Vec<HostInfo>) -> Result<Vec<HostInfo>, CliError> {
        let named: Vec<&str> = self
            .terms
            .iter()
            .filter_map(|term| match term {
                Term::Is(name) => Some(name.as_str()),
                _ => None,
            })
            .collect();
        for name in &named {
            if !hosts.iter().any(|host| is(host, name)) {
                return Err(CliError::usage("not-found", format!("there is no host {name:?}"))
                    .hint("`postern hosts` lists them; `postern up` takes a new one over"));
            }
        }
        let fits = |host: &HostInfo| {
            (named.is_empty() || named.iter().any(|name| is(host, name)))
                && self.terms.iter().all(|term| match term {
                    Term::Is(_) => true,
                    Term::Name(pattern) => glob(pattern, &host.name),
                    Term::Label(key, pattern) => {
                        host.labels.get(key).is_some_and(|value| glob(pattern, value))
                    }
                    Term::Os(os) => host.os_id.eq_ignore_ascii_case(os),
                })
        };
        let chosen: Vec<_> = hosts.into_iter().filter(fits).collect();
        if chosen.is_empty() && !self.terms.is_empty() {
            return Err(CliError::usage("no-host", "no host fits")
                .hint("`postern hosts` lists them with their labels"));
        }
        Ok(chosen)
    }
}

fn bad(word: &str, want: &str) -> CliError {
    CliError::usage("bad-selector", format!("{word:?} does not select hosts: want {want}"))
}

fn is(host: &HostInfo, name: &str) -> bool {
    host.name == name || host.id.to_string() == name
}

/// `*` stands for any text, also for none. Linear in the text for each star.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or(""),
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Link;
    use postern_proto::ids::HostId;

    fn host(name: &str, os: &str, label: (&str, &str)) -> HostInfo {
        HostInfo {
            id: HostId::generate(),
            name: name.into(),
            ssh_address: String::new(),
            labels: [(label.0.to_owned(), label.1.to_owned())].into(),
            link: Link::Up,
            agent_version: String::new(),
            os_id: os.into(),
            os_version: String::new(),
            arch: String::new(),
            hostname: String::new(),
            last_seen_ms: 0,
            peer: String::new(),
            detail: String::new(),
            vars: Default::default(),
            profiles: Vec::new(),
            also_at: Vec::new(),
            room: Default::default(),
            ssh: Default::default(),
        }
    }

    #[test]
    fn selectors_by_table() {
        let hosts = || {
            vec![
                host("db-1", "debian", ("role", "db")),
                host("web-1", "debian", ("role", "web")),
                host("web-2", "ubuntu", ("role", "web")),
            ]
        };
        let choose = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            let chosen = Selector::parse(&words).and_then(|selector| selector.choose(hosts()));
            match chosen {
                Ok(hosts) => hosts.into_iter().map(|host| host.name).collect::<Vec<_>>().join(" "),
                Err(error) => error.code,
            }
        };
        for (words, want) in [
            (&[][..], "db-1 web-1 web-2"),
            (&["web-1"], "web-1"),
            (&["web-1", "db-1"], "db-1 web-1"),
            (&["all"], "db-1 web-1 web-2"),
            (&["all", "os=ubuntu"], "web-2"),
            (&[""], "empty-selector"),
            (&["  "], "empty-selector"),
            (&["web-1", ""], "empty-selector"),
            (&["web-3"], "not-found"),
            (&["name=web-*"], "web-1 web-2"),
            (&["name=*-1"], "db-1 web-1"),
            (&["name=w*b*2"], "web-2"),
            (&["name=web"], "no-host"),
            (&["name=*"], "db-1 web-1 web-2"),
            (&["label role=web"], "web-1 web-2"),
            (&["label", "role=w*", "os=debian"], "web-1"),
            (&["web-1", "web-2", "os=ubuntu"], "web-2"),
            (&["label"], "bad-selector"),
            (&["label", "role"], "bad-selector"),
            (&["colour=red"], "bad-selector"),
            (&["name="], "bad-selector"),
        ] {
            assert_eq!(choose(words), want, "{words:?}");
        }
    }
}
