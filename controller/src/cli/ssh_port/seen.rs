//! What was seen of ports, and what that says of a port that is to be closed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::cli::json as documents;
use crate::client::{PortLook, PortState};

/// What is to be said of the port of SSH at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A new connection is accepted.
    Open,
    /// None is: how, and a port at the same address that answers.
    Closed(&'static str, Option<u16>),
    /// Nothing can be told from here: why.
    Unobservable(String),
}

/// One port at one address, or at no address of a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Of the host, or the name of a family.
    pub(super) address: String,
    pub(super) port: u16,
    pub(super) verdict: Verdict,
}

impl Line {
    pub(super) fn document(&self) -> Value {
        let (state, how, control) = match &self.verdict {
            Verdict::Open => ("open", "", None),
            Verdict::Closed(how, control) => ("closed", *how, *control),
            Verdict::Unobservable(why) => ("unobservable", why.as_str(), None),
        };
        json!({
            "address": self.address, "port": self.port, "state": state, "how": documents::or_null(how),
            "answers": control,
        })
    }

    /// `2001:db8::9 (dropped, 443 answers)`.
    fn text(&self, many: bool) -> String {
        let port = if many { format!(" port {}", self.port) } else { String::new() };
        let said = match &self.verdict {
            Verdict::Open => "answers".to_owned(),
            Verdict::Closed(how, Some(control)) => format!("{how}, {control} answers"),
            Verdict::Closed(how, None) => (*how).to_owned(),
            Verdict::Unobservable(why) => format!("unobservable: {why}"),
        };
        format!("{}{port} ({said})", self.address)
    }
}

/// What is said of every port of SSH. `before` is what was seen while it was open: who answered then and is silent now
/// was silenced. Without it, silence says something only beside a port that answers.
pub(super) fn judge(ssh: &BTreeSet<u16>, before: &[PortLook], now: &[PortLook]) -> Vec<Line> {
    let mut lines = Vec::new();
    for look in now.iter().filter(|look| ssh.contains(&look.port)) {
        let was_open = before
            .iter()
            .any(|was| (was.address, was.port) == (look.address, look.port) && was.state == PortState::Open);
        let control = now
            .iter()
            .find(|it| it.address == look.address && !ssh.contains(&it.port) && it.state == PortState::Open)
            .map(|it| it.port);
        let verdict = match look.state {
            PortState::Open => Verdict::Open,
            PortState::Refused => Verdict::Closed("refused", control),
            PortState::Dropped if was_open || control.is_some() => Verdict::Closed("dropped", control),
            PortState::Dropped => Verdict::Unobservable(
                "nothing answers there, at no other port that was tried either".to_owned(),
            ),
            PortState::Unobservable => Verdict::Unobservable(look.why.clone()),
        };
        lines.push(Line { address: look.address.to_string(), port: look.port, verdict });
    }
    for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
        if !now.is_empty() && !now.iter().any(|look| look.address.is_ipv4() == is_v4) {
            let why = "the host is known here by no such address".to_owned();
            let port = ssh.first().copied().unwrap_or(USUAL);
            lines.push(Line { address: family.to_owned(), port, verdict: Verdict::Unobservable(why) });
        }
    }
    lines
}

/// Where SSH is, as far as anybody knows.
pub(super) const USUAL: u16 = 22;

/// Lines as one, those that say the most first.
pub(super) fn told(lines: &[Line]) -> String {
    let many = lines.iter().map(|line| line.port).collect::<BTreeSet<_>>().len() > 1;
    let mut sorted: Vec<&Line> = lines.iter().collect();
    sorted.sort_by_key(|line| match line.verdict {
        Verdict::Open => 0,
        Verdict::Closed(..) => 1,
        Verdict::Unobservable(_) => 2,
    });
    sorted.into_iter().map(|line| line.text(many)).collect::<Vec<_>>().join(" and ")
}

/// Addresses at which some port of SSH is open.
pub(super) fn open_at(lines: &[Line]) -> Vec<&str> {
    let mut at: BTreeMap<&str, ()> = BTreeMap::new();
    at.extend(lines.iter().filter(|it| it.verdict == Verdict::Open).map(|it| (it.address.as_str(), ())));
    at.into_keys().collect()
}

/// Whether it is closed, as far as can be told: somewhere it is seen so, and nowhere otherwise.
pub(super) fn is_closed(lines: &[Line]) -> bool {
    open_at(lines).is_empty() && lines.iter().any(|line| matches!(line.verdict, Verdict::Closed(..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(address: &str, port: u16, state: PortState) -> PortLook {
        PortLook { address: address.parse().unwrap(), port, state, why: "no way".into() }
    }

    /// T24: what is called closed was seen to be.
    #[test]
    fn trap_24_silence_alone_is_no_closed_port() {
        let (v4, v6) = ("203.0.113.9", "2001:db8::9");
        let ssh = BTreeSet::from([22]);
        let open = [look(v4, 22, PortState::Open), look(v6, 22, PortState::Open)];
        let shut = [look(v4, 22, PortState::Dropped), look(v6, 22, PortState::Refused)];
        let text = |before: &[PortLook], now: &[PortLook]| told(&judge(&ssh, before, now));
        assert_eq!(text(&open, &shut), "203.0.113.9 (dropped) and 2001:db8::9 (refused)");
        assert!(is_closed(&judge(&ssh, &open, &shut)));
        // Beside a port that answers it says more.
        let beside = [&shut[..], &[look(v4, 443, PortState::Open)]].concat();
        assert_eq!(text(&open, &beside), "203.0.113.9 (dropped, 443 answers) and 2001:db8::9 (refused)");
        // Nobody answered there before either: that may be the network.
        let never = judge(&ssh, &[], &shut[..1]);
        assert!(matches!(never[0].verdict, Verdict::Unobservable(_)) && !is_closed(&never), "{never:?}");
        assert!(is_closed(&judge(&ssh, &[], &beside)));
        // One address that still answers is enough, and is named first.
        let half = [look(v4, 22, PortState::Dropped), look(v6, 22, PortState::Open)];
        let lines = judge(&ssh, &open, &half);
        assert_eq!(told(&lines), "2001:db8::9 (answers) and 203.0.113.9 (dropped)");
        assert_eq!((is_closed(&lines), open_at(&lines)), (false, vec![v6]));
        // No way there, and no address there.
        let far = [look(v4, 22, PortState::Refused), look(v6, 22, PortState::Unobservable)];
        assert_eq!(text(&[], &far), "203.0.113.9 (refused) and 2001:db8::9 (unobservable: no way)");
        let one = text(&[], &far[..1]);
        assert!(one.contains("IPv6 (unobservable: the host is known here by no such address)"), "{one}");
        assert_eq!(judge(&ssh, &[], &[]), []);
    }

    #[test]
    fn several_ports_are_told_apart() {
        let ssh = BTreeSet::from([22, 2222]);
        let now = [
            look("192.0.2.1", 22, PortState::Refused),
            look("192.0.2.1", 2222, PortState::Open),
            look("192.0.2.1", 443, PortState::Open),
        ];
        let lines = judge(&ssh, &[], &now);
        assert!(
            told(&lines).starts_with("192.0.2.1 port 2222 (answers) and 192.0.2.1 port 22 (refused, 443")
        );
        assert!(!is_closed(&lines));
    }
}
