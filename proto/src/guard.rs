//! What a guard watches while a change is made that could cut the host off: typed predicates and what was
//! found about them.

mod wire;

use std::fmt;

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
        matches!(self, Self::Inbound { .. } | Self::Login { .. } | Self::NoPassword { .. })
    }

    /// True where it counts only if it was seen to be so before the change.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        !matches!(self, Self::NoPassword { .. })
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inbound { port } => write!(f, "inbound {port}"),
            Self::Login { port, user, .. } => write!(f, "ssh login of {user} on port {port}"),
            Self::NoPassword { port, user } => write!(f, "ssh takes no password from {user} on port {port}"),
            Self::Dns { name } => write!(f, "dns {name}"),
            Self::Egress { host, port } => write!(f, "egress {host}:{port}"),
        }
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
