//! `firewall`: what may come in.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::network::Network;
use super::{Field, Holds, ResourceSpec, SpecError};

/// The ports that are open; all others are not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirewallSpec {
    /// Rules like `22/tcp`, `80,443/tcp`, `60000-61000/udp`, `5432/tcp from 192.0.2.0/24`,
    /// `22/tcp limit 10/minute`; several in one text are separated by semicolons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Whether the port of SSH must be among them.
    #[serde(default)]
    pub ssh: SshPort,
    /// What is done about ports that Docker publishes.
    #[serde(default)]
    pub docker: DockerPorts,
    /// Another firewall (ufw, firewalld) is switched off; where this is not said, it is a reason to stop.
    #[serde(default)]
    pub takeover: bool,
}

/// Whether SSH is to stay reachable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SshPort {
    /// Refused where a port that sshd listens on is not allowed.
    #[default]
    Open,
    /// Nobody gets in by SSH: no port on which sshd listens is let in, whatever the rules say.
    Closed,
}

impl SshPort {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }

    /// What a word says.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Open, Self::Closed].into_iter().find(|it| it.as_str() == word)
    }
}

/// What is done about ports that Docker publishes, which no rule of INPUT sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DockerPorts {
    /// Only those that are allowed can be reached from outside.
    #[default]
    Filtered,
    /// Docker decides.
    Ignored,
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As iptables has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// How many new connections one address may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At most this many…
    pub count: u32,
    /// …in this many seconds: 1, 60 or 3600.
    pub seconds: u32,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// First and last port of each range.
    pub ports: Vec<(u16, u16)>,
    /// Their protocol.
    pub protocol: Protocol,
    /// From where; anywhere when empty.
    pub from: Vec<Network>,
    /// How often; as often as one likes when `None`.
    pub limit: Option<Rate>,
}

/// What a rule looks like, for messages.
const FORM: &str = "want PORTS/tcp or PORTS/udp, then maybe `from ADDRESS…` and `limit NUMBER/minute`, \
                    like 80,443/tcp or 22/tcp from 192.0.2.0/24";
/// The most rules for one family of addresses: more belongs into a set.
const MOST_RULES: usize = 500;

impl Allow {
    /// The rules of one text; a blank one has none. The error is for people.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, String> {
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        text.split(';').map(|rule| Self::parse(rule.trim())).collect()
    }

    fn parse(rule: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{rule:?}: {why}");
        let mut words = rule.split_whitespace();
        let (ports, protocol) =
            words.next().and_then(|word| word.split_once('/')).ok_or_else(|| wrong(FORM))?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => return Err(wrong(&format!("the protocol {other:?} has no ports: want tcp or udp"))),
        };
        let ports = ports.split(',').map(|part| range(part).ok_or_else(|| wrong(&no_port(part))));
        let mut allow =
            Self { ports: ports.collect::<Result<_, _>>()?, protocol, from: Vec::new(), limit: None };
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            match word {
                "from" if allow.from.is_empty() => {
                    while let Some(list) = words.next_if(|word| *word != "limit") {
                        for one in list.split(',').filter(|one| !one.is_empty()) {
                            allow.from.push(Network::parse(one).map_err(|why| wrong(&why))?);
                        }
                    }
                    if allow.from.is_empty() {
                        return Err(wrong("`from` wants an address or a network"));
                    }
                }
                "limit" if allow.limit.is_none() => {
                    let rate = words.next().and_then(rate);
                    let why = "`limit` wants a number of new connections for each address, like 10/minute \
                               (or /second, /hour; 1 to 10000)";
                    allow.limit = Some(rate.ok_or_else(|| wrong(why))?);
                }
                other => return Err(wrong(&format!("{other:?} is not understood: {FORM}"))),
            }
        }
        Ok(allow)
    }

    /// Whether a connection to this port can pass, from some address at least.
    #[must_use]
    pub fn has(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && self.ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }
}

fn no_port(part: &str) -> String {
    format!("{part:?} is no port: want 1 to 65535, or two of them like 6000-6010")
}

fn range(part: &str) -> Option<(u16, u16)> {
    let port = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<u16>().ok().filter(|port| plain && *port > 0)
    };
    match part.split_once('-') {
        None => port(part).map(|port| (port, port)),
        Some((first, last)) => Some((port(first)?, port(last)?)).filter(|(first, last)| first <= last),
    }
}

fn rate(word: &str) -> Option<Rate> {
    let (count, unit) = word.split_once('/')?;
    let count = count.parse().ok().filter(|count| (1..=10_000).contains(count))?;
    let seconds = match unit {
        "second" => 1,
        "minute" => 60,
        "hour" => 3600,
        _ => return None,
    };
    Some(Rate { count, seconds })
}

/// These ranges without some ports.
fn without(ranges: &[(u16, u16)], shut: &BTreeSet<u16>) -> Vec<(u16, u16)> {
    let mut left = Vec::new();
    for (first, last) in ranges {
        let mut from = u32::from(*first);
        for port in shut.range(*first..=*last) {
            left.extend(port.checked_sub(1).filter(|end| u32::from(*end) >= from).map(|end| (from, end)));
            from = u32::from(*port) + 1;
        }
        left.extend((from <= u32::from(*last)).then_some((from, *last)));
    }
    // What begins behind the last port there is has no last either.
    left.into_iter().filter_map(|(from, last)| Some((u16::try_from(from).ok()?, last))).collect()
}

impl FirewallSpec {
    /// Its rules without those for these TCP ports. Each keeps its place, also where nothing is left of it: counts of
    /// connections go by that.
    #[must_use]
    pub fn rules_without(&self, shut: &BTreeSet<u16>) -> Vec<Allow> {
        let mut rules = self.rules();
        for rule in rules.iter_mut().filter(|rule| rule.protocol == Protocol::Tcp) {
            rule.ports = without(&rule.ports, shut);
        }
        rules
    }

    /// Its rules, those that can be read.
    #[must_use]
    pub fn rules(&self) -> Vec<Allow> {
        self.allow.iter().filter_map(|text| Allow::parse_all(text).ok()).flatten().collect()
    }
}

impl ResourceSpec for FirewallSpec {
    const KIND: &'static str = "firewall";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::optional(
            "allow",
            Holds::TextList,
            "What may come in: 80,443/tcp, or 5432/tcp from 192.0.2.0/24, or 22/tcp limit 10/minute. Nothing \
             when left out.",
        ),
        Field::optional(
            "ssh",
            Holds::OneOf(&["open", "closed"]),
            "open or closed; open when left out. open: a port on which sshd listens must be in allow. closed: no such \
             port is let in, also where it is in allow.",
        ),
        Field::optional(
            "docker",
            Holds::OneOf(&["filtered", "ignored"]),
            "filtered or ignored; filtered when left out. filtered: a port that Docker publishes is reached \
             from outside only where it is allowed.",
        ),
        Field::optional(
            "takeover",
            Holds::Bool,
            "Switches ufw and firewalld off where one is on; false when left out, and then that is refused.",
        ),
    ];
    const DOC: &'static str = "What may come in over IPv4 and IPv6, in chains of its own; needs the package \
                               iptables.";
    const CANNOT_UNDO: &'static str = "connections that were opened or cut in the meantime; a port of SSH that is declared closed \
                                       is not let in again by it";

    fn natural_name(&self) -> String {
        "inbound".to_owned()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        let mut rules = 0;
        for text in &self.allow {
            match Allow::parse_all(text) {
                Ok(all) => {
                    rules += all.iter().map(|rule| rule.ports.len() * rule.from.len().max(1)).sum::<usize>()
                }
                Err(why) => errors.push(SpecError::new("allow", why)),
            }
        }
        if rules > MOST_RULES {
            errors.push(SpecError::new("allow", format!("has {rules} rules, the limit is {MOST_RULES}")));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_are_shut_are_cut_out_of_every_rule() {
        for (ranges, shut, want) in [
            (&[(22, 22)][..], &[22][..], &[][..]),
            (&[(22, 22)], &[], &[(22, 22)]),
            (&[(20, 30)], &[22], &[(20, 21), (23, 30)]),
            (&[(20, 30), (80, 80)], &[20, 21, 30], &[(22, 29), (80, 80)]),
            (&[(1, 65535)], &[1, 65535, 22], &[(2, 21), (23, 65534)]),
            (&[(65535, 65535)], &[65535], &[]),
        ] {
            assert_eq!(without(ranges, &shut.iter().copied().collect()), want, "{ranges:?} {shut:?}");
        }
        let text = ["22,80/tcp".to_owned(), "22/udp".to_owned(), "22/tcp from 192.0.2.1".to_owned()];
        let spec = FirewallSpec { allow: text.to_vec(), ..serde_json::from_str("{}").unwrap() };
        let left: Vec<_> = spec.rules_without(&[22].into()).into_iter().map(|rule| rule.ports).collect();
        assert_eq!(left, [vec![(80, 80)], vec![(22, 22)], vec![]]);
    }

    #[test]
    fn rules_by_table() {
        let read = |text: &str| {
            Allow::parse_all(text).map(|rules| {
                let one = |rule: &Allow| {
                    let from: Vec<_> = rule.from.iter().map(Network::to_string).collect();
                    let limit = rule.limit.map(|rate| (rate.count, rate.seconds));
                    format!("{:?} {} {from:?} {limit:?}", rule.ports, rule.protocol.as_str())
                };
                rules.iter().map(one).collect::<Vec<_>>().join("; ")
            })
        };
        for (text, want) in [
            ("22/tcp", Ok("[(22, 22)] tcp [] None")),
            ("80,443/tcp", Ok("[(80, 80), (443, 443)] tcp [] None")),
            ("60000-61000,9/udp", Ok("[(60000, 61000), (9, 9)] udp [] None")),
            (
                "5432/tcp from 192.0.2.0/24 2001:db8::1,203.0.113.9",
                Ok("[(5432, 5432)] tcp [\"192.0.2.0/24\", \"2001:db8::1/128\", \"203.0.113.9/32\"] None"),
            ),
            ("22/tcp limit 10/minute", Ok("[(22, 22)] tcp [] Some((10, 60))")),
            ("22/tcp from 192.0.2.1 limit 2/second", Ok("[(22, 22)] tcp [\"192.0.2.1/32\"] Some((2, 1))")),
            ("22/tcp; 443/udp", Ok("[(22, 22)] tcp [] None; [(443, 443)] udp [] None")),
            ("", Ok("")),
            ("  ", Ok("")),
            ("22", Err("want PORTS/tcp")),
            ("ssh/tcp", Err("\"ssh\" is no port")),
            ("22/sctp", Err("\"sctp\" has no ports")),
            ("0/tcp", Err("\"0\" is no port")),
            ("+22/tcp", Err("\"+22\" is no port")),
            ("65536/tcp", Err("\"65536\" is no port")),
            ("10-9/tcp", Err("\"10-9\" is no port")),
            ("22,/tcp", Err("\"\" is no port")),
            ("22/tcp;", Err("want PORTS/tcp")),
            ("22/tcp from", Err("`from` wants")),
            ("22/tcp from 192.0.2.1/24", Err("want 192.0.2.0/24")),
            ("22/tcp limit 10", Err("`limit` wants")),
            ("22/tcp limit 0/minute", Err("`limit` wants")),
            ("22/tcp to 10.0.0.1", Err("\"to\" is not understood")),
            ("22/tcp\n-j ACCEPT", Err("\"-j\" is not understood")),
        ] {
            match (read(text), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{text}"),
                (Err(why), Err(want)) => assert!(why.contains(want), "{text}: {why}"),
                (got, want) => panic!("{text}: {got:?}, wanted {want:?}"),
            }
        }
    }
}
