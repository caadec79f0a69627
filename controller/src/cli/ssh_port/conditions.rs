//! What must be so before the port of SSH is closed for good, each with what was seen of it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::kit::Kit;
use super::seen::{self, Verdict};
use crate::cli::clean;
use crate::cli::error::CliError;
use crate::client::{AgentBack, Client, HostInfo, PortLook, PortLooks, PortState};

/// One condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// What is needed when all else is lost lies on the disk.
    Kit,
    /// The agent calls again by itself.
    Restart,
    /// Its way here does not lead over SSH.
    Route,
    /// The port is seen open, or its closing could not be seen.
    Visible,
    /// The tunnel, where one is assigned, carries real connections.
    Tunnel,
    /// SSH through the tunnel, where a name for it is given, leads to the host.
    Login,
}

impl Condition {
    /// Stable: the word in documents.
    fn as_str(self) -> &'static str {
        match self {
            Self::Kit => "recovery-kit",
            Self::Restart => "agent-restart",
            Self::Route => "route",
            Self::Visible => "visible",
            Self::Tunnel => "tunnel",
            Self::Login => "tunnel-login",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Kit => "a recovery kit is written",
            Self::Restart => "the agent comes back by itself",
            Self::Route => "its way here does not lead over SSH",
            Self::Visible => "the port is seen from here",
            Self::Tunnel => "the tunnel carries what comes for this host",
            Self::Login => "SSH through the tunnel gives a login",
        }
    }
}

/// How it is with one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Checked {
    condition: Condition,
    pub(super) met: bool,
    /// What was seen, or what is missing.
    evidence: String,
}

impl Checked {
    pub(super) fn new(condition: Condition, met: bool, evidence: impl Into<String>) -> Self {
        Self { condition, met, evidence: evidence.into() }
    }

    fn of<T>(condition: Condition, result: &Result<T, CliError>, met: impl Fn(&T) -> String) -> Self {
        match result {
            Ok(found) => Self::new(condition, true, met(found)),
            Err(error) => Self::new(condition, false, error.message.clone()),
        }
    }

    pub(super) fn line(&self) -> String {
        let mark = if self.met { "yes" } else { "NO " };
        clean::line(&format!("  {mark}  {}: {}", self.condition.text(), self.evidence))
    }

    pub(super) fn document(&self) -> Value {
        json!({"condition": self.condition.as_str(), "met": self.met, "evidence": self.evidence})
    }
}

/// All of them, and what was found on the way.
pub(super) struct Checks {
    pub(super) all: Vec<Checked>,
    /// Where sshd listens.
    pub(super) ssh: BTreeSet<u16>,
    /// What was seen of ports while that of SSH was open.
    pub(super) before: Vec<PortLook>,
}

impl Checks {
    pub(super) fn all_met(&self) -> bool {
        self.all.iter().all(|checked| checked.met)
    }
}

/// Tries every one of them, also when one is missing. `controls` gives other ports to look at beside those of SSH.
pub(super) async fn check(
    client: &mut Client,
    host: &HostInfo,
    kit: &Result<Kit, CliError>,
    controls: impl Fn(&BTreeSet<u16>) -> BTreeSet<u16>,
) -> Checks {
    let back = client.restart_agent(host.id).await.map_err(CliError::from);
    let said = back.as_ref().map(|back| back.ssh_ports.clone()).unwrap_or_default();
    let ssh = [said, super::ssh_ports(host)].into_iter().find(|ports| !ports.is_empty()).unwrap_or_default();
    let looked = client.look_at_ports(host.id, ssh.union(&controls(&ssh)).copied().collect()).await;
    let looked = looked.map_err(CliError::from);
    let all = vec![
        Checked::of(Condition::Kit, kit, Kit::evidence),
        Checked::of(Condition::Restart, &back, |back| {
            format!("a new process, with a session of its own after {:.1} s", back.took_ms as f64 / 1000.0)
        }),
        route(&back),
        visible(&ssh, &looked),
    ];
    let before = looked.map(|looked| looked.seen).unwrap_or_default();
    Checks { all, ssh, before }
}

/// Seen of the session that the agent made after its restart: what SSH carried is forwarded, and comes from this very
/// machine. A tunnel that somebody else's machine ends cannot be told from here.
fn route(back: &Result<AgentBack, CliError>) -> Checked {
    match back {
        Err(_) => Checked::new(Condition::Route, false, "not seen: the agent made no new session"),
        Ok(AgentBack { from_here: true, peer, .. }) => Checked::new(
            Condition::Route,
            false,
            format!(
                "its session comes from this machine itself ({peer}), as one does that is carried over SSH: give it \
                 an address of its own (`postern up … --controller ADDR`)"
            ),
        ),
        Ok(back) => Checked::new(Condition::Route, true, format!("its session comes from {}", back.peer)),
    }
}

fn visible(ssh: &BTreeSet<u16>, looked: &Result<PortLooks, CliError>) -> Checked {
    let no = |why: String| Checked::new(Condition::Visible, false, why);
    let looked = match looked {
        Ok(looked) if looked.seen.is_empty() => return no(looked.unobservable.clone()),
        Ok(looked) => looked,
        Err(error) => return no(error.message.clone()),
    };
    let mut parts: Vec<String> = Vec::new();
    for port in ssh {
        let at = looked.seen.iter().filter(|look| look.port == *port);
        let one = |look: &PortLook| match look.state {
            PortState::Open => format!("open at {}", look.address),
            _ => format!("not at {} ({})", look.address, look.why),
        };
        parts.push(format!("port {port} {}", at.map(one).collect::<Vec<_>>().join(", ")));
    }
    // How a family without an address is told.
    let lacking = seen::judge(ssh, &[], &looked.seen).into_iter().filter_map(|line| match line.verdict {
        Verdict::Unobservable(why) if line.address.starts_with("IPv") => {
            Some(format!("{}: {why}", line.address))
        }
        _ => None,
    });
    parts.extend(lacking);
    let open = |look: &PortLook| ssh.contains(&look.port) && look.state == PortState::Open;
    Checked::new(Condition::Visible, looked.seen.iter().any(open), parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(from_here: bool) -> Result<AgentBack, CliError> {
        Ok(AgentBack { peer: "192.0.2.7:5".into(), took_ms: 2300, from_here, ssh_ports: [22].into() })
    }

    #[test]
    fn a_route_is_judged_by_the_session_after_the_restart() {
        assert!(route(&back(false)).met);
        assert!(route(&back(false)).evidence.contains("192.0.2.7:5"));
        assert!(!route(&back(true)).met);
        let gone = Err(CliError::failed("failed-precondition", "it did not come back"));
        assert!(!route(&gone).met);
    }

    #[test]
    fn a_port_that_is_not_seen_cannot_be_seen_closing() {
        let ssh = BTreeSet::from([22]);
        let look = |address: &str, state| PortLook {
            address: address.parse().unwrap(),
            port: 22,
            state,
            why: "no answer in time".into(),
        };
        let of = |seen: Vec<PortLook>| {
            visible(&ssh, &Ok(PortLooks { seen, unobservable: "it is behind a jump host".into() }))
        };
        let both = of(vec![look("192.0.2.1", PortState::Open), look("2001:db8::1", PortState::Dropped)]);
        assert!(both.met);
        assert_eq!(both.evidence, "port 22 open at 192.0.2.1, not at 2001:db8::1 (no answer in time)");
        let one = of(vec![look("192.0.2.1", PortState::Open)]);
        assert!(
            one.met && one.evidence.contains("IPv6: the host is known here by no such address"),
            "{one:?}"
        );
        assert!(!of(vec![look("192.0.2.1", PortState::Dropped)]).met);
        let none = of(Vec::new());
        assert!(!none.met && none.evidence.contains("jump host"), "{none:?}");
    }
}
