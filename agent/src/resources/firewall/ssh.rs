//! Which ports SSH has, that nobody is locked out by mistake, and that nobody gets in where it is declared closed. Pure.

use std::collections::BTreeSet;

use postern_proto::spec::{FirewallSpec, Protocol, SshPort};

use super::{Owned, Seen};
use crate::firewall::{Table, shut_in};

/// Where SSH is, as far as anybody knows.
const USUAL: u16 = 22;

/// Why this would lock people out; `None` where it would not, or is meant to.
pub(super) fn closes_ssh(spec: &FirewallSpec, ssh: &BTreeSet<u16>) -> Option<String> {
    if spec.ssh == SshPort::Closed {
        return None;
    }
    let rules = spec.rules();
    let open = |port: u16| rules.iter().any(|rule| rule.has(Protocol::Tcp, port));
    let port = ssh.iter().find(|port| !open(**port))?;
    Some(format!(
        "this would close port {port}, where sshd listens: add \"{port}/tcp\" to `allow`, or say `ssh: closed`"
    ))
}

/// The ports of SSH that are to be let in by no rule: where sshd listens; while it does not, what was shut before, or
/// the usual one. A server that is being restarted must not be reachable afterwards.
pub(super) fn shut(spec: &FirewallSpec, seen: &Seen) -> BTreeSet<u16> {
    if spec.ssh == SshPort::Open {
        return BTreeSet::new();
    }
    if !seen.ssh.is_empty() {
        return seen.ssh.clone();
    }
    let before = seen.files.iter().flatten().flat_map(kept_out).collect::<BTreeSet<_>>();
    if before.is_empty() { BTreeSet::from([USUAL]) } else { before }
}

fn kept_out(file: &Owned) -> BTreeSet<u16> {
    shut_in(&String::from_utf8_lossy(&file.content))
}

/// Why the way back would let SSH in where it is declared to be kept out; `None` where it would not.
pub(super) fn opens_ssh(spec: &FirewallSpec, before: &Seen, now: &Seen) -> Option<String> {
    let ports: BTreeSet<u16> = now.shut.union(&now.ssh).copied().collect();
    if spec.ssh == SshPort::Open || before.live == now.live && before.files == now.files {
        return None;
    }
    let lets_in = |file: &Option<Owned>, port: u16| match file {
        None => true,
        Some(file) => Table::parse(&String::from_utf8_lossy(&file.content)).lets_in(port),
    };
    let port = ports.into_iter().find(|port| before.files.iter().any(|file| lets_in(file, *port)))?;
    Some(format!(
        "it would let SSH in at port {port}, which is declared closed: `postern ssh-port open` opens it, or a profile \
         whose firewall says `ssh: open`"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{in_force, spec};
    use super::super::{Firewall, differs};
    use super::*;
    use crate::firewall::{Family, Place, text};
    use crate::resources::{Resource as _, Undo};

    #[test]
    fn nobody_is_locked_out_by_mistake() {
        let why = |json, ports: &[u16]| closes_ssh(&spec(json), &ports.iter().copied().collect());
        assert!(why(json!({"allow": ["80/tcp"]}), &[22]).unwrap().starts_with("this would close port 22"));
        assert!(why(json!({"allow": ["22/tcp"]}), &[22, 2222]).unwrap().contains("\"2222/tcp\""));
        assert!(why(json!({"allow": ["22/udp"]}), &[22]).is_some());
        assert_eq!(why(json!({"allow": ["20-30/tcp from 192.0.2.0/24"]}), &[22]), None);
        assert_eq!(why(json!({"ssh": "closed"}), &[22]), None);
        assert_eq!(why(json!({}), &[]), None);
    }

    /// T24: what sshd listens on is let in by no rule, whatever the profile says; also while it is down.
    #[test]
    fn trap_24_a_closed_port_is_in_no_rule() {
        let closed = spec(json!({"ssh": "closed", "allow": ["22/tcp; 443/tcp", "1-100/tcp from 192.0.2.1"]}));
        let at = |ssh: &[u16], file: Option<&str>| {
            let files = [file.map(|text| Owned::new(text.as_bytes())), None];
            shut(&closed, &Seen { ssh: ssh.iter().copied().collect(), files, ..Seen::default() })
        };
        assert_eq!(at(&[22, 2222], None), [22, 2222].into());
        assert_eq!(at(&[], Some("# SSH is kept out at: 2222\n*filter\n")), [2222].into());
        assert_eq!((at(&[], Some("*filter\n")), at(&[], None)), ([22].into(), [22].into()));
        let open = FirewallSpec { ssh: SshPort::Open, ..closed.clone() };
        assert_eq!(shut(&open, &Seen { ssh: [22].into(), ..Seen::default() }), [].into());
        let seen = in_force(&closed);
        assert_eq!(Firewall::plan(&closed, &seen), []);
        let text = String::from_utf8(seen.files[0].as_ref().unwrap().content.clone()).unwrap();
        assert!(!text.contains("--dport 22 ") && text.contains("--dport 443 "), "{text}");
        assert!(text.contains("--dport 1:21 ") && text.contains("--dport 23:100 "), "{text}");
    }

    /// What somebody opened by hand is told as what it is, and how to keep it.
    #[test]
    fn a_port_that_was_opened_by_hand_is_named() {
        let closed = spec(json!({"ssh": "closed", "allow": ["22/tcp"]}));
        let shut = BTreeSet::from([22]);
        let place = Place { family: Family::V4, docker: false };
        let file = text(&closed, &shut, Family::V4).replace("COMMIT\n", "-A INPUT -j POSTERN-INPUT\n");
        assert_eq!(differs(&closed, &shut, place, &Table::parse(&file)), [""; 0]);
        let drop = "-A POSTERN-INPUT -j DROP";
        let opened =
            file.replace(drop, &format!("-A POSTERN-INPUT -p tcp -m tcp --dport 22 -j RETURN\n{drop}"));
        let wrong = differs(&closed, &shut, place, &Table::parse(&opened));
        assert!(
            wrong[0].contains("SSH is let in at port 22") && wrong[0].contains("ssh-port open"),
            "{wrong:?}"
        );
    }

    #[test]
    fn no_undo_opens_what_is_declared_closed() {
        let closed = spec(json!({"ssh": "closed", "allow": ["22/tcp", "443/tcp"]}));
        let less = FirewallSpec { allow: vec!["22/tcp".to_owned()], ..closed.clone() };
        let open = FirewallSpec { ssh: SshPort::Open, ..less.clone() };
        let now = in_force(&closed);
        let undo = |before: &Seen| Firewall::undo(&closed, before, &json!(null), &now);
        assert!(matches!(undo(&in_force(&less)), Undo::Steps(steps) if !steps.is_empty()));
        for before in [in_force(&open), Seen { ssh: [22].into(), ..Seen::default() }] {
            assert!(matches!(undo(&before), Undo::Cannot(why) if why.contains("port 22")), "{before:?}");
        }
        // Nothing was changed: there is nothing to take back.
        assert!(matches!(undo(&now), Undo::Steps(steps) if steps.is_empty()));
        // Where it is declared open, anything goes.
        let undo = Firewall::undo(&open, &Seen::default(), &json!(null), &in_force(&open));
        assert!(matches!(undo, Undo::Steps(_)));
    }
}
