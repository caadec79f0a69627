//! Typed ids: what arrives from a peer is parsed into one of these or refused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not an id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a {what}: {why}")]
pub struct IdError {
    /// What was expected, for people.
    pub what: &'static str,
    /// The text, shortened.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
}

impl IdError {
    fn new(what: &'static str, text: &str, why: impl Into<String>) -> Self {
        Self { what, text: text.chars().take(80).collect(), why: why.into() }
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id, ordered by the time it was made (UUIDv7) and never reused.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The bare UUID.
            #[must_use]
            pub fn uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($what, " {}"), self.0.hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                // Only the one canonical form, so that an id has one spelling in paths and queries.
                match Uuid::try_parse(text) {
                    Ok(id) if !id.is_nil() && id.hyphenated().to_string() == text => Ok(Self(id)),
                    _ => Err(IdError::new($what, text, "want a UUID in lower case with hyphens")),
                }
            }
        }
    };
}

uuid_id!(
    /// One machine. Never reused; the name can change.
    HostId,
    "host id"
);
uuid_id!(
    /// One execution of one plan on one host.
    RunId,
    "run id"
);
uuid_id!(
    /// One controller and its successors: changes only when an operator makes a new one.
    ClusterId,
    "cluster id"
);
uuid_id!(
    /// One start of an agent.
    InstanceId,
    "instance id"
);
uuid_id!(
    /// One live session.
    SessionId,
    "session id"
);
uuid_id!(
    /// One boot of a host, as the kernel names it.
    BootId,
    "boot id"
);

/// The stable, unique name of a resource in a host's plan: `scope:kind:name`, where scope is the include
/// path of profiles (`base/ssh`). Never an ordinal, so that editing a profile does not rename its neighbours.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(String);

impl Address {
    /// The longest address, bytes.
    pub const MAX_LEN: usize = 512;

    /// Joins the parts; refuses what [`Address::from_str`] would.
    pub fn new(scope: &str, kind: &str, name: &str) -> Result<Self, IdError> {
        format!("{scope}:{kind}:{name}").parse()
    }

    /// The whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Scope, kind and name.
    #[must_use]
    pub fn parts(&self) -> (&str, &str, &str) {
        let mut parts = self.0.splitn(3, ':');
        (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""))
    }
}

impl FromStr for Address {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let fail = |why: &str| Err(IdError::new("resource address", text, why));
        if text.len() > Self::MAX_LEN {
            return fail("longer than 512 bytes");
        }
        if text.chars().any(char::is_control) {
            return fail("has a control character");
        }
        let mut parts = text.splitn(3, ':');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(scope), Some(kind), Some(name))
                if !scope.is_empty() && !kind.is_empty() && !name.is_empty() =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => fail("want scope:kind:name"),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// SHA-256 of the exact bytes of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlanHash([u8; 32]);

impl PlanHash {
    /// The hash of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl TryFrom<&[u8]> for PlanHash {
    type Error = IdError;

    fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| IdError::new("plan hash", "", format!("want 32 bytes, got {}", bytes.len())))
    }
}

impl fmt::Display for PlanHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PlanHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}

impl Serialize for PlanHash {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PlanHash {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let mut bytes = [0u8; 32];
        let valid = text.len() == 64 && text.is_ascii();
        for (i, byte) in bytes.iter_mut().enumerate() {
            let digits = if valid { &text[2 * i..2 * i + 2] } else { "" };
            *byte = u8::from_str_radix(digits, 16)
                .map_err(|_| serde::de::Error::custom("want a SHA-256 as 64 hex digits"))?;
        }
        Ok(Self(bytes))
    }
}

/// A reference to a secret in a spec. The value is never in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretRef {
    /// The name the operator gave it.
    pub id: String,
    /// Which of its values: they are numbered from 1.
    pub version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_spelling() {
        let id = HostId::generate();
        let text = id.to_string();
        assert_eq!(text.parse::<HostId>().unwrap(), id);
        let long = "x".repeat(2000);
        for bad in [
            text.to_uppercase().as_str(),
            &text.replace('-', ""),
            &format!("{{{text}}}"),
            "../../etc/passwd",
            "",
            "00000000-0000-0000-0000-000000000000",
            &long,
        ] {
            // A version-7 UUID may hold no letter at all, in which case upper case is the same text.
            if bad == text {
                continue;
            }
            let error = bad.parse::<HostId>().unwrap_err();
            assert!(error.text.len() <= 80, "{error}");
        }
    }

    #[test]
    fn addresses() {
        let ok = Address::new("base/ssh", "file", "/etc/ssh/sshd_config.d/00-postern.conf").unwrap();
        assert_eq!(ok.parts(), ("base/ssh", "file", "/etc/ssh/sshd_config.d/00-postern.conf"));
        assert_eq!(Address::new("a", "command", "x:y").unwrap().parts(), ("a", "command", "x:y"));
        for bad in ["", "a", "a:b", "a:b:", ":b:c", "a::c", "a:b:c\n", "a:b:\u{1b}[31m"] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?}");
        }
        assert!(format!("a:b:{}", "c".repeat(600)).parse::<Address>().is_err());
    }

    #[test]
    fn plan_hash_round_trips_as_hex() {
        let hash = PlanHash::of(b"x");
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!(json, "\"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881\"");
        assert_eq!(serde_json::from_str::<PlanHash>(&json).unwrap(), hash);
        for bad in ["\"\"", "\"zz\"", &format!("\"{}\"", "é".repeat(32)), &format!("\"{}\"", "g".repeat(64))]
        {
            assert!(serde_json::from_str::<PlanHash>(bad).is_err(), "{bad}");
        }
    }
}
