//! Predicates and findings on the wire. What comes from a peer is checked here.

use super::{Finding, Found, MAX_FINDINGS, MAX_KEYS, MAX_PREDICATES, Predicate};
use crate::convert::WireError;
use crate::v1;
use crate::v1::guard_predicate::Kind;

/// The longest user name, bytes.
const MAX_USER: usize = 255;
/// The longest key, bytes: one of RSA with 16384 bits has 2.8 KB.
const MAX_KEY: usize = 8 * 1024;
/// The longest text of a finding, bytes.
const MAX_WHY: usize = 1024;

fn invalid(what: &'static str, why: impl Into<String>) -> WireError {
    WireError::Invalid { what, why: why.into() }
}

fn port(port: u32) -> Result<u16, WireError> {
    u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| invalid("port", "want 1 to 65535"))
}

fn user(user: String) -> Result<String, WireError> {
    let valid = !user.is_empty() && user.len() <= MAX_USER && !user.chars().any(char::is_control);
    if valid { Ok(user) } else { Err(invalid("user", "want a user name")) }
}

impl v1::GuardPredicate {
    /// The message for a predicate that is looked at from outside; `None` for the others.
    #[must_use]
    pub fn of(predicate: &Predicate) -> Option<Self> {
        let kind = match predicate {
            Predicate::Inbound { port } => Kind::Inbound(v1::InboundPort { port: u32::from(*port) }),
            Predicate::Login { port, user, keys } => {
                Kind::Login(v1::SshLogin { port: u32::from(*port), user: user.clone(), keys: keys.clone() })
            }
            Predicate::NoPassword { port, user } => {
                Kind::NoPassword(v1::SshNoPassword { port: u32::from(*port), user: user.clone() })
            }
            Predicate::Closed { port } => Kind::Closed(v1::ClosedPort { port: u32::from(*port) }),
            Predicate::Dns { .. } | Predicate::Egress { .. } => return None,
        };
        Some(Self { kind: Some(kind) })
    }
}

impl TryFrom<v1::GuardPredicate> for Predicate {
    type Error = WireError;

    fn try_from(predicate: v1::GuardPredicate) -> Result<Self, WireError> {
        Ok(match predicate.kind {
            None => return Err(WireError::Missing("predicate")),
            Some(Kind::Inbound(it)) => Self::Inbound { port: port(it.port)? },
            Some(Kind::Login(it)) => {
                if it.keys.len() > MAX_KEYS || it.keys.iter().any(|key| key.len() > MAX_KEY) {
                    return Err(invalid("keys", format!("want up to {MAX_KEYS} of up to {MAX_KEY} bytes")));
                }
                Self::Login { port: port(it.port)?, user: user(it.user)?, keys: it.keys }
            }
            Some(Kind::Closed(it)) => Self::Closed { port: port(it.port)? },
            Some(Kind::NoPassword(it)) => Self::NoPassword { port: port(it.port)?, user: user(it.user)? },
        })
    }
}

impl v1::VantageRequest {
    /// The predicates that it asks about.
    pub fn predicates(self) -> Result<Vec<Predicate>, WireError> {
        if self.predicates.len() > MAX_PREDICATES {
            return Err(invalid("predicates", format!("want up to {MAX_PREDICATES}")));
        }
        self.predicates.into_iter().map(Predicate::try_from).collect()
    }
}

impl From<Found> for v1::GuardFinding {
    fn from(found: Found) -> Self {
        let (how, why) = match found.finding {
            Finding::Holds => (v1::GuardFound::Holds, String::new()),
            Finding::Fails { why } => (v1::GuardFound::Fails, why),
            Finding::Unobservable { why } => (v1::GuardFound::Unobservable, why),
        };
        let predicate = u32::try_from(found.predicate).unwrap_or(u32::MAX);
        Self { predicate, address: found.at, found: how.into(), why }
    }
}

impl TryFrom<v1::GuardFinding> for Found {
    type Error = WireError;

    fn try_from(message: v1::GuardFinding) -> Result<Self, WireError> {
        if message.address.len() > MAX_WHY || message.why.len() > MAX_WHY {
            return Err(invalid("finding", format!("a text has more than {MAX_WHY} bytes")));
        }
        let why = message.why;
        let finding = match v1::GuardFound::try_from(message.found) {
            Ok(v1::GuardFound::Holds) => Finding::Holds,
            Ok(v1::GuardFound::Fails) => Finding::Fails { why },
            Ok(v1::GuardFound::Unobservable) => Finding::Unobservable { why },
            Ok(v1::GuardFound::Unspecified) | Err(_) => return Err(WireError::Missing("found")),
        };
        let predicate = usize::try_from(message.predicate)
            .ok()
            .filter(|place| *place < MAX_PREDICATES)
            .ok_or_else(|| invalid("predicate", "there is no such one"))?;
        Ok(Self { predicate, at: message.address, finding })
    }
}

impl v1::VantageResponse {
    /// What was found, for a request with this nonce.
    pub fn findings(self, nonce: u64) -> Result<Vec<Found>, WireError> {
        if self.nonce != nonce {
            return Err(invalid("nonce", "it is not the answer to this request"));
        }
        if self.findings.len() > MAX_FINDINGS {
            return Err(invalid("findings", format!("want up to {MAX_FINDINGS}")));
        }
        self.findings.into_iter().map(Found::try_from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predicates_come_back_as_they_were_sent() {
        for predicate in [
            Predicate::Inbound { port: 22 },
            Predicate::Login { port: 2222, user: "ada".into(), keys: vec!["ssh-ed25519 AAAA".into()] },
            Predicate::NoPassword { port: 22, user: "root".into() },
            Predicate::Closed { port: 22 },
        ] {
            let message = v1::GuardPredicate::of(&predicate).unwrap();
            assert_eq!(Predicate::try_from(message), Ok(predicate));
        }
        assert_eq!(v1::GuardPredicate::of(&Predicate::Dns { name: "a".into() }), None);
        for finding in [Finding::Holds, Finding::fails("refused"), Finding::unobservable("no IPv6 here")] {
            let found = Found { predicate: 3, at: "192.0.2.1".into(), finding };
            assert_eq!(Found::try_from(v1::GuardFinding::from(found.clone())), Ok(found));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let of = |kind| Predicate::try_from(v1::GuardPredicate { kind: Some(kind) });
        for port in [0, 65536] {
            assert!(of(Kind::Inbound(v1::InboundPort { port })).is_err(), "{port}");
            assert!(of(Kind::Closed(v1::ClosedPort { port })).is_err(), "{port}");
        }
        assert!(of(Kind::NoPassword(v1::SshNoPassword { port: 22, user: "a\nb".into() })).is_err());
        let keys = vec![String::new(); MAX_KEYS + 1];
        assert!(of(Kind::Login(v1::SshLogin { port: 22, user: "a".into(), keys })).is_err());
        assert!(Predicate::try_from(v1::GuardPredicate { kind: None }).is_err());
        let one = v1::GuardPredicate { kind: Some(Kind::Inbound(v1::InboundPort { port: 1 })) };
        let many = v1::VantageRequest { nonce: 1, predicates: vec![one; MAX_PREDICATES + 1] };
        assert!(many.predicates().is_err());
        let answer = v1::VantageResponse { nonce: 1, findings: Vec::new() };
        assert!(answer.clone().findings(1).is_ok() && answer.findings(2).is_err());
        let found = v1::GuardFinding { predicate: 0, address: String::new(), found: 0, why: String::new() };
        assert!(Found::try_from(found.clone()).is_err());
        assert!(Found::try_from(v1::GuardFinding { predicate: u32::MAX, found: 1, ..found }).is_err());
    }
}
