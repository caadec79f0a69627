//! The filter table as iptables-save prints it: whose chains there are, and what is in them.

use std::collections::BTreeMap;

use super::CHAINS;

/// The filter table of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    chains: BTreeMap<String, Chain>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    /// `-` for a chain that is not the kernel's own.
    policy: String,
    /// Without `-A CHAIN`.
    rules: Vec<String>,
}

/// How a jump to one of our chains stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Jump {
    /// There is none.
    Missing,
    /// A rule before it lets packets by.
    Late,
    /// What comes is ours to see.
    Right,
}

impl Table {
    /// Reads what iptables-save printed, or a file for iptables-restore.
    pub(crate) fn parse(text: &str) -> Self {
        let mut table = Self::default();
        let mut filter = false;
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('*') {
                filter = name == "filter";
            } else if let (true, Some(chain)) = (filter, line.strip_prefix(':')) {
                let mut words = chain.split(' ');
                let name = words.next().unwrap_or_default().to_owned();
                table.chains.entry(name).or_default().policy = words.next().unwrap_or_default().to_owned();
            } else if let (true, Some(rule)) = (filter, line.strip_prefix("-A "))
                && let Some((chain, rule)) = rule.split_once(' ')
            {
                table.chains.entry(chain.to_owned()).or_default().rules.push(rule.to_owned());
            }
        }
        table
    }

    /// Whether there is such a chain.
    pub(crate) fn has(&self, chain: &str) -> bool {
        self.chains.contains_key(chain)
    }

    /// The rules of a chain, in order.
    pub(crate) fn rules(&self, chain: &str) -> &[String] {
        self.chains.get(chain).map_or(&[], |chain| &chain.rules)
    }

    /// Whether our chain for what comes in has a rule by which somebody gets in at this TCP port.
    pub(crate) fn lets_in(&self, port: u16) -> bool {
        let has = |ports: &str| {
            let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
            let number = |text: &str| text.parse::<u16>().ok();
            number(first).zip(number(last)).is_some_and(|(first, last)| (first..=last).contains(&port))
        };
        self.rules(super::INPUT_CHAIN).iter().any(|rule| {
            let words: Vec<&str> = rule.split(' ').collect();
            let after = |word: &str| words.iter().skip_while(|it| **it != word).nth(1).copied();
            after("-p") == Some("tcp")
                && matches!(after("-j"), Some("RETURN" | "ACCEPT"))
                && after("--dport").is_some_and(has)
        })
    }

    /// What becomes of a packet that no rule of this chain decided about: `ACCEPT`, `DROP`, or `-`.
    pub(crate) fn policy(&self, chain: &str) -> &str {
        self.chains.get(chain).map_or("", |chain| &chain.policy)
    }

    /// Chains that are not ours.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = &str> {
        self.chains.keys().map(String::as_str).filter(|name| !CHAINS.contains(name))
    }

    /// Our chains and what is in them, in words that do not depend on who wrote them.
    pub(crate) fn ours(&self) -> Vec<String> {
        let chains = CHAINS.iter().filter(|name| self.has(name));
        let lines = chains.flat_map(|name| {
            let rules = self.rules(name).iter().map(move |rule| format!("{name} {}", normal(rule)));
            std::iter::once((*name).to_owned()).chain(rules)
        });
        lines.collect()
    }

    /// How the jump from a chain to one of ours stands.
    pub(crate) fn jump(&self, from: &str, to: &str) -> Jump {
        let jump = format!("-j {to}");
        let rules = self.rules(from);
        let Some(at) = rules.iter().position(|rule| *rule == jump) else { return Jump::Missing };
        // In a chain that others call, what returns has also gone by.
        let called = self.policy(from) == "-";
        let by = |rule: &String| self.lets_by(rule, called, 0);
        if rules[..at].iter().any(by) { Jump::Late } else { Jump::Right }
    }

    /// Whether a rule may take packets away from the rules after it, and not to drop them.
    fn lets_by(&self, rule: &str, called: bool, depth: usize) -> bool {
        match target(rule) {
            Some("DROP" | "REJECT" | "LOG" | "NFLOG" | "MARK" | "CONNMARK") | None => false,
            Some("ACCEPT") => true,
            Some("RETURN") => called,
            // What does not end by itself is not gone by; what is in a chain that is called stands there.
            Some(chain) if self.has(chain) && depth < 16 => {
                !CHAINS.contains(&chain)
                    && self.rules(chain).iter().any(|rule| self.lets_by(rule, false, depth + 1))
            }
            Some(_) => true,
        }
    }
}

/// What a rule does.
fn target(rule: &str) -> Option<&str> {
    let mut words = rule.split(' ');
    words.find(|word| matches!(*word, "-j" | "-g"))?;
    words.next()
}

/// A rule without what iptables may say or leave unsaid.
fn normal(rule: &str) -> String {
    let mut words = rule.split_whitespace().peekable();
    let mut kept: Vec<String> = Vec::new();
    while let Some(word) = words.next() {
        match word {
            // Said by `-p` already.
            "-m" if words.next_if(|name| matches!(*name, "tcp" | "udp" | "icmp" | "icmp6")).is_some() => {}
            // Written only where it is not what the rate makes of it.
            "--hashlimit-htable-expire" => drop(words.next()),
            "--hashlimit-upto" => {
                kept.push(word.to_owned());
                kept.extend(words.next().map(|rate| interval(rate).unwrap_or_else(|| rate.to_owned())));
            }
            "-p" => {
                kept.push(word.to_owned());
                let name = words.next().unwrap_or_default();
                kept.push(if name == "icmpv6" { "ipv6-icmp" } else { name }.to_owned());
            }
            _ => kept.push(word.to_owned()),
        }
    }
    kept.join(" ")
}

/// `120/min` and `2/sec` are the same to the kernel, which knows the time between two packets, in microseconds.
fn interval(rate: &str) -> Option<String> {
    let (count, unit) = rate.split_once('/')?;
    let seconds: u64 = match unit {
        "s" | "sec" | "second" => 1,
        "m" | "min" | "minute" => 60,
        "h" | "hour" => 3600,
        "day" => 86_400,
        _ => return None,
    };
    let count: u64 = count.parse().ok()?;
    Some(format!("{}us", (seconds * 1_000_000).checked_div(count)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_say_the_same_are_the_same() {
        let same = [
            (
                "-p tcp -m tcp --dport 23 -m hashlimit --hashlimit-upto 120/min --hashlimit-burst 5 --hashlimit-htable-expire 9 -j RETURN",
                "-p tcp --dport 23 -m hashlimit --hashlimit-upto 2/sec --hashlimit-burst 5 -j RETURN",
            ),
            ("-p icmpv6 -m icmp6 --icmpv6-type 133 -j RETURN", "-p ipv6-icmp --icmpv6-type 133 -j RETURN"),
        ];
        for (a, b) in same {
            assert_eq!(normal(a), normal(b));
        }
        assert_ne!(normal("-p tcp --dport 22 -j RETURN"), normal("-p tcp --dport 23 -j RETURN"));
        assert_ne!(normal("-p tcp -m multiport --dports 1,2 -j X"), normal("-p tcp --dports 1,2 -j X"));
    }

    #[test]
    fn who_gets_in_at_a_port() {
        let in_at = |rule: &str| {
            let table = Table::parse(&format!("*filter\n:POSTERN-INPUT - [0:0]\n-A POSTERN-INPUT {rule}\n"));
            table.lets_in(22)
        };
        for (rule, want) in [
            ("-p tcp -m tcp --dport 22 -j RETURN", true),
            ("-p tcp -m tcp --dport 20:30 -m hashlimit --hashlimit-upto 1/sec -j RETURN", true),
            ("-s 192.0.2.1/32 -p tcp -m tcp --dport 22 -j ACCEPT", true),
            ("-p udp -m udp --dport 22 -j RETURN", false),
            ("-p tcp -m tcp --dport 2222 -j RETURN", false),
            ("-p tcp -m tcp --dport 22 -j DROP", false),
            ("-j DROP", false),
        ] {
            assert_eq!(in_at(rule), want, "{rule}");
        }
    }

    #[test]
    fn a_jump_behind_what_lets_packets_by_is_late() {
        let table = |rules: &str| {
            Table::parse(&format!(
                "*nat\n-A INPUT -j ACCEPT\nCOMMIT\n*filter\n:INPUT ACCEPT [1:2]\n:DOCKER-USER - [0:0]\n\
                 :f2b-sshd - [0:0]\n:open - [0:0]\n:POSTERN-INPUT - [0:0]\n:POSTERN-DOCKER - [0:0]\n\
                 -A f2b-sshd -s 192.0.2.1/32 -j REJECT --reject-with icmp-port-unreachable\n\
                 -A f2b-sshd -j RETURN\n-A open -p tcp -j ACCEPT\n{rules}\nCOMMIT\n"
            ))
        };
        for (rules, want) in [
            ("", Jump::Missing),
            ("-A INPUT -s 192.0.2.1/32 -j POSTERN-INPUT", Jump::Missing),
            ("-A INPUT -j POSTERN-INPUT", Jump::Right),
            // fail2ban puts itself first, and that is where it belongs.
            ("-A INPUT -p tcp -m multiport --dports 22 -j f2b-sshd\n-A INPUT -j POSTERN-INPUT", Jump::Right),
            ("-A INPUT -j LOG --log-prefix x\n-A INPUT -j DROP\n-A INPUT -j POSTERN-INPUT", Jump::Right),
            ("-A INPUT -p tcp -j ACCEPT\n-A INPUT -j POSTERN-INPUT", Jump::Late),
            ("-A INPUT -j open\n-A INPUT -j POSTERN-INPUT", Jump::Late),
            ("-A INPUT -j UNKNOWN\n-A INPUT -j POSTERN-INPUT", Jump::Late),
            ("-A INPUT -j POSTERN-INPUT\n-A INPUT -j ACCEPT", Jump::Right),
        ] {
            assert_eq!(table(rules).jump("INPUT", "POSTERN-INPUT"), want, "{rules}");
        }
        let late = table("-A DOCKER-USER -j RETURN\n-A DOCKER-USER -j POSTERN-DOCKER");
        assert_eq!(late.jump("DOCKER-USER", "POSTERN-DOCKER"), Jump::Late);
        assert_eq!(late.foreign().collect::<Vec<_>>(), ["DOCKER-USER", "INPUT", "f2b-sshd", "open"]);
        assert_eq!((late.policy("INPUT"), late.policy("open")), ("ACCEPT", "-"));
    }
}
