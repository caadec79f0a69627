//! `preflight`: what a host must have before anything is installed on it.

use serde::{Deserialize, Serialize};

use super::{Field, Holds, ResourceSpec, SpecError};

/// The word among [`PreflightSpec::reaches`] for every server that the host's own apt sources name.
const APT: &str = "apt";
/// The most names and servers of one resource: each is a probe of its own.
const MOST: usize = 32;
/// The most that can be asked for, in MB: 64 TiB.
const MOST_MB: u64 = 64 << 20;

/// What a host must have. It changes nothing; all that is lacking is told at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreflightSpec {
    /// What people call it: each profile has its own.
    pub name: String,
    /// Memory and swap together, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// Free on the file system of `/`, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_free_mb: Option<u64>,
    /// Free on the file system of `/var`, MiB. Where that is the one of `/`, both must fit there together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub var_free_mb: Option<u64>,
    /// The most that the host's clock may differ from the controller's, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_s: Option<u64>,
    /// Names that must have an address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resolves: Vec<String>,
    /// `host:port` that must accept a connection, or the word `apt`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reaches: Vec<String>,
    /// What all this is for: where every one of these packages is installed, nothing is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
}

/// What must be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Every server that the host's own apt sources name.
    Apt,
    /// One server.
    Server {
        /// A name, or an address without brackets.
        host: String,
        /// TCP.
        port: u16,
    },
}

impl Reach {
    /// Reads one. The error is for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == APT {
            return Ok(Self::Apt);
        }
        let wrong = || format!("{text:?}: want host:port, or the word {APT}");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(address) if address.parse::<std::net::Ipv6Addr>().is_ok() => address,
            None if is_name(host) => host,
            _ => return Err(wrong()),
        };
        Ok(Self::Server { host: host.to_owned(), port })
    }
}

impl PreflightSpec {
    /// What must be reached; what cannot be read is left out.
    #[must_use]
    pub fn targets(&self) -> Vec<Reach> {
        self.reaches.iter().filter_map(|text| Reach::parse(text).ok()).collect()
    }
}

fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !text.is_empty() && text.len() <= 253 && !text.starts_with(['-', '.']) && text.chars().all(plain)
}

impl ResourceSpec for PreflightSpec {
    const KIND: &'static str = "preflight";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required("name", Holds::Text, "What people call it: each profile has its own."),
        Field::optional(
            "memory_mb",
            Holds::Count,
            "The least memory in MiB; swap counts. Not asked for when left out.",
        ),
        Field::optional(
            "disk_free_mb",
            Holds::Count,
            "The least that must be free on the file system of /, in MiB. Not asked for when left out.",
        ),
        Field::optional(
            "var_free_mb",
            Holds::Count,
            "The same for the file system of /var; where that is the one of /, both must fit there together.",
        ),
        Field::optional(
            "clock_s",
            Holds::Count,
            "The most that the host's clock may differ from the controller's, in seconds. Not asked for when \
             left out.",
        ),
        Field::optional("resolves", Holds::TextList, "Names that must have an address on the host."),
        Field::optional(
            "reaches",
            Holds::TextList,
            "host:port that must accept a connection from the host, maybe through its proxy; or the word apt: \
             every server that the host's own apt sources name, or the proxy that apt asks for it.",
        ),
        Field::optional(
            "packages",
            Holds::TextList,
            "What all this is for: where every one of these packages is installed, nothing is asked for.",
        ),
    ];
    const DOC: &'static str = "What a host must have before anything is installed: all that is lacking is told \
                               at once, and nothing is changed.";
    const CANNOT_UNDO: &'static str = "";

    fn natural_name(&self) -> String {
        self.name.clone()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        let mut wrong = |field: &str, message: String| errors.push(SpecError::new(field, message));
        if self.name.trim().is_empty() || self.name.len() > 100 || self.name.chars().any(char::is_control) {
            wrong("name", "want one line of at most 100 bytes".to_owned());
        }
        let sizes = [
            ("memory_mb", self.memory_mb),
            ("disk_free_mb", self.disk_free_mb),
            ("var_free_mb", self.var_free_mb),
        ];
        for (field, size) in sizes {
            if size.is_some_and(|size| size == 0 || size > MOST_MB) {
                wrong(field, format!("want 1 to {MOST_MB}"));
            }
        }
        // The time that a connection takes is not told from a wrong clock.
        if self.clock_s.is_some_and(|seconds| seconds < 10) {
            wrong("clock_s", "want at least 10".to_owned());
        }
        for name in self.resolves.iter().filter(|name| !is_name(name)) {
            wrong("resolves", format!("{name:?}: want a host name"));
        }
        for text in &self.reaches {
            if let Err(why) = Reach::parse(text) {
                wrong("reaches", why);
            }
        }
        for (field, list) in [("resolves", &self.resolves), ("reaches", &self.reaches)] {
            if list.len() > MOST {
                wrong(field, format!("more than {MOST}"));
            }
        }
        for name in self.packages.iter().filter(|name| name.is_empty() || name.contains(char::is_whitespace))
        {
            wrong("packages", format!("{name:?}: want the name of a package"));
        }
        let asks = sizes.iter().any(|(_, size)| size.is_some()) || self.clock_s.is_some();
        if !asks && self.resolves.is_empty() && self.reaches.is_empty() {
            wrong("", "asks for nothing: want memory_mb, disk_free_mb, reaches or another".to_owned());
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_by_table() {
        let server = |host: &str, port| Ok(Reach::Server { host: host.to_owned(), port });
        for (text, want) in [
            ("apt", Ok(Reach::Apt)),
            ("a.example:443", server("a.example", 443)),
            ("192.0.2.1:80", server("192.0.2.1", 80)),
            ("[2001:db8::1]:80", server("2001:db8::1", 80)),
        ] {
            assert_eq!(Reach::parse(text), want, "{text}");
        }
        for bad in
            ["", "a", "a:", "a:0", "a:65536", ":1", "2001:db8::1:80", "[a]:1", "a b:1", "-a:1", "http://a:1"]
        {
            assert!(Reach::parse(bad).is_err(), "{bad}");
        }
    }
}
