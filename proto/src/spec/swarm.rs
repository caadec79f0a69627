//! `swarm`: this host as a Swarm of one node.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Field, Holds, PRESENCE, Presence, ResourceSpec, SpecError};

/// A manager of a Swarm, and at first its only node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwarmSpec {
    /// The address that other nodes would reach it at, or `auto`.
    #[serde(default = "auto")]
    pub advertise: String,
    /// In a Swarm, or in none.
    #[serde(default)]
    pub state: Presence,
}

fn auto() -> String {
    "auto".to_owned()
}

impl SwarmSpec {
    /// The address that was asked for; `None` is `auto`.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.advertise.parse().ok()
    }
}

impl ResourceSpec for SwarmSpec {
    const KIND: &'static str = "swarm";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::optional(
            "advertise",
            Holds::Text,
            "The address that other nodes would reach this one at; auto, when left out: one of the host's own, a \
             private one first. Nobody outside is asked.",
        ),
        Field::optional("state", PRESENCE, "present or absent; present when left out."),
    ];
    const DOC: &'static str =
        "This host is a Swarm of one node; a manager of another Swarm is left as it is.";
    const CANNOT_UNDO: &'static str =
        "what the Swarm held when it was left: services, networks, configs, secrets";

    fn natural_name(&self) -> String {
        "swarm".to_owned()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        let unusable =
            |address: IpAddr| address.is_loopback() || address.is_unspecified() || address.is_multicast();
        if self.advertise != "auto" && self.address().is_none_or(unusable) {
            let text = &self.advertise;
            errors
                .push(SpecError::new("advertise", format!("{text:?}: want auto or an address of this host")));
        }
        errors
    }
}
