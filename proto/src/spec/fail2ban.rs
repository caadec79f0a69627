//! `fail2ban`: who tries passwords is shut out.

use serde::{Deserialize, Serialize};

use super::network::Network;
use super::{Field, Holds, ResourceSpec, SpecError};

/// A live jail for the SSH server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fail2banSpec {
    /// Addresses and networks that are never banned; several in one text are separated by spaces or commas.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
    /// Seconds that a ban lasts.
    #[serde(default = "hour")]
    pub ban_s: u64,
    /// Failures within this many seconds count.
    #[serde(default = "ten_minutes")]
    pub within_s: u64,
    /// So many failures lead to a ban.
    #[serde(default = "five")]
    pub tries: u64,
    /// Ports that a banned address cannot reach; those of the SSH server when there are none here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
}

fn hour() -> u64 {
    3600
}

fn ten_minutes() -> u64 {
    600
}

fn five() -> u64 {
    5
}

impl Fail2banSpec {
    /// What is never banned, as far as it can be read.
    #[must_use]
    pub fn ignored(&self) -> Vec<Network> {
        words(&self.ignore).filter_map(|word| Network::parse(word).ok()).collect()
    }
}

fn words(texts: &[String]) -> impl Iterator<Item = &str> {
    texts.iter().flat_map(|text| text.split([',', ' '])).filter(|word| !word.is_empty())
}

impl ResourceSpec for Fail2banSpec {
    const KIND: &'static str = "fail2ban";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::optional(
            "ignore",
            Holds::TextList,
            "Addresses and networks that are never banned. The host itself never is, nor a controller whose \
             address the agent has.",
        ),
        Field::optional("ban_s", Holds::Count, "Seconds a ban lasts; 3600 when left out."),
        Field::optional(
            "within_s",
            Holds::Count,
            "Failures within so many seconds count; 600 when left out.",
        ),
        Field::optional("tries", Holds::Count, "So many failures lead to a ban; 5 when left out."),
        Field::optional(
            "ports",
            Holds::TextList,
            "Ports a banned address cannot reach; those of the SSH server when left out.",
        ),
    ];
    const DOC: &'static str = "Addresses that try to guess logins are shut out for a while; needs the packages \
                               fail2ban and python3-systemd.";
    const CANNOT_UNDO: &'static str = "bans that were made in the meantime";

    fn natural_name(&self) -> String {
        "ssh".to_owned()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        for word in words(&self.ignore) {
            if let Err(why) = Network::parse(word) {
                errors.push(SpecError::new("ignore", why));
            }
        }
        for (field, value, most) in [
            ("ban_s", self.ban_s, 365 * 24 * 3600),
            ("within_s", self.within_s, 365 * 24 * 3600),
            ("tries", self.tries, 1000),
        ] {
            if !(1..=most).contains(&value) {
                errors.push(SpecError::new(field, format!("want 1 to {most}")));
            }
        }
        for port in &self.ports {
            let plain = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            if !plain || port.parse::<u16>().is_ok_and(|port| port == 0) || port.parse::<u16>().is_err() {
                errors.push(SpecError::new("ports", format!("{port:?}: want 1 to 65535")));
            }
        }
        if self.ports.len() > 15 {
            errors.push(SpecError::new("ports", "want 15 at most"));
        }
        errors
    }
}
