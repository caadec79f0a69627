//! What a guard watches while a change is made that could cut the host off: typed predicates and what was
//! found about them.

mod wire;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most predicates of one guard.
pub const MAX_PREDICATES: usize = 64;
/// The most keys of one predicate.
pub const MAX_KEYS: usize = 64;
/// The most findings about the predicates of one guard.
pub const MAX_FINDINGS: usize = 1024;

/// One thing that must be as it was before the change. That the controller can be reached over a fresh
/// connection is watched always, and has no predicate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Predicate {
    /// The controller reaches this TCP port of the host with a fresh connection.
    Inbound {
        /// TCP.
        port: u16,
    },
    /// An SSH server that the controller reaches takes this user's key.
    Login {
        /// TCP.
        port: u16,
        /// The account.
        user: String,
        /// Public keys, one of which the server must take, as in an `authorized_keys` file.
        keys: Vec<String>,
    },
    /// An SSH server that the controller reaches takes no password from this user. It is what a change is to
    /// bring about, so it need not be so before.
    NoPassword {
        /// TCP.
        port: u16,
        /// The account.
        user: String,
    },
    /// No fresh connection of the controller's to this TCP port is accepted, at any address. It is what a change is
    /// to bring about, so it need not be so before.
    Closed {
        /// TCP.
        port: u16,
    },
    /// The host finds the addresses of this name.
    Dns {
        /// A host name.
        name: String,
    },
    /// The host reaches this TCP port elsewhere with a fresh connection.
    Egress {
        /// A name or an address.
        host: String,
        /// TCP.
        port: u16,
    },
}

impl Predicate {
    /// True where the controller has to look; the host sees to the others itself.
    #[must_use]
    pub fn is_from_outside(&self) -> bool {
        matches!(
            self,
            Self::Inbound { .. } | Self::Login { .. } | Self::NoPassword { .. } | Self::Closed { .. }
        )
    }

    /// True where it counts only if it was seen to be so before the change.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        !matches!(self, Self::NoPassword { .. } | Self::Closed { .. })
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inbound { port } => write!(f, "inbound {port}"),
            Self::Login { port, user, .. } => write!(f, "ssh login of {user} on port {port}"),
            Self::NoPassword { port, user } => write!(f, "ssh takes no password from {user} on port {port}"),
            Self::Closed { port } => write!(f, "closed {port}"),
            Self::Dns { name } => write!(f, "dns {name}"),
            Self::Egress { host, port } => write!(f, "egress {host}:{port}"),
        }
    }
}

/// Why a text names nothing to watch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is nothing to watch: want \"inbound PORT\", \"dns NAME\" or \"egress HOST:PORT\"")]
pub struct NoPredicate {
    text: String,
}

impl FromStr for Predicate {
    type Err = NoPredicate;

    /// The words of [`fmt::Display`], of those that a person can write: logins need keys.
    fn from_str(text: &str) -> Result<Self, NoPredicate> {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
        let name = |text: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:[]".contains(c);
            (!text.is_empty() && text.len() <= 255 && text.chars().all(plain)).then(|| text.to_owned())
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let predicate = match words.as_slice() {
            ["inbound", at] => port(at).map(|port| Self::Inbound { port }),
            ["dns", of] => name(of).map(|name| Self::Dns { name }),
            ["egress", to] => to.rsplit_once(':').and_then(|(host, at)| {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                Some(Self::Egress { host: name(host)?, port: port(at)? })
            }),
            _ => None,
        };
        predicate.ok_or_else(|| NoPredicate { text: text.chars().take(80).collect() })
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "found", rename_all = "snake_case")]
pub enum Finding {
    /// It is so.
    Holds,
    /// It is not so; why, for people.
    Fails {
        /// One line.
        why: String,
    },
    /// It cannot be told from here (no IPv6 at the controller, say): neither for nor against the change.
    Unobservable {
        /// One line.
        why: String,
    },
}

impl Finding {
    /// A failure.
    pub fn fails(why: impl Into<String>) -> Self {
        Self::Fails { why: why.into() }
    }

    /// Something that cannot be told.
    pub fn unobservable(why: impl Into<String>) -> Self {
        Self::Unobservable { why: why.into() }
    }
}

/// What was found about one predicate at one place: an address of the host, or the host itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Place of the predicate in what was asked.
    pub predicate: usize,
    /// Where it was looked from or at, for people; the same place has the same name before and after.
    pub at: String,
    /// What was found.
    pub finding: Finding,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_watched_by_its_words() {
        for text in ["inbound 22", "dns deb.debian.org", "egress deb.debian.org:80", "egress 2001:db8::1:443"]
        {
            assert_eq!(text.parse::<Predicate>().unwrap().to_string(), text);
        }
        let bracketed = Predicate::Egress { host: "2001:db8::1".to_owned(), port: 443 };
        assert_eq!("egress  [2001:db8::1]:443".parse(), Ok(bracketed));
        for text in [
            "",
            "inbound",
            "inbound 0",
            "inbound 65536",
            "inbound ssh",
            "dns",
            "dns a b",
            "dns a/b",
            "egress a",
            "egress :80",
            "link",
        ] {
            let error = text.parse::<Predicate>().unwrap_err().to_string();
            assert!(error.contains("want \"inbound PORT\""), "{text}: {error}");
        }
    }
}
