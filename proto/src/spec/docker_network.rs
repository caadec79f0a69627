//! `docker_network`: a network of Docker's with the MTU that its way has.

use serde::{Deserialize, Serialize};

use super::{Field, Holds, PRESENCE, Presence, ResourceSpec, SpecError};

/// One network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DockerNetworkSpec {
    /// Its name.
    pub name: String,
    /// Over all nodes of a Swarm, or of this host alone.
    #[serde(default)]
    pub driver: NetworkDriver,
    /// Containers that are no tasks of a service may join it.
    #[serde(default)]
    pub attachable: bool,
    /// Nothing leads out of it.
    #[serde(default)]
    pub internal: bool,
    /// Its MTU; derived from the host's own networks when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// There or not.
    #[serde(default)]
    pub state: Presence,
}

/// What carries a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkDriver {
    /// VXLAN between the nodes of a Swarm.
    #[default]
    Overlay,
    /// A bridge on the host.
    Bridge,
}

impl NetworkDriver {
    /// Docker's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Bridge => "bridge",
        }
    }
}

/// Names of networks, services, configs and secrets: letters, digits, - _ and ., a letter or digit at each end. A
/// Swarm takes 63 characters of a service's name; what is shorter leaves room for what we add to it.
pub(crate) fn check_name(field: &str, name: &str, errors: &mut Vec<SpecError>) {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if name.len() > 63 || !inner || !edge(name.chars().next()) || !edge(name.chars().last()) {
        let message = format!(
            "{name:?}: want up to 63 letters, digits, -, _ and ., with a letter or digit at each end"
        );
        errors.push(SpecError::new(field, message));
    }
}

impl ResourceSpec for DockerNetworkSpec {
    const KIND: &'static str = "docker_network";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required("name", Holds::Text, "Its name."),
        Field::optional(
            "driver",
            Holds::OneOf(&["overlay", "bridge"]),
            "overlay, over all nodes of a Swarm, or bridge, of this host alone; overlay when left out.",
        ),
        Field::optional("attachable", Holds::Bool, "Containers that are no tasks of a service may join it."),
        Field::optional("internal", Holds::Bool, "Nothing leads out of it."),
        Field::optional(
            "mtu",
            Holds::Count,
            "Its MTU; when left out that of the interface of the default route, less what an overlay adds to packets.",
        ),
        Field::optional("state", PRESENCE, "present or absent; present when left out."),
    ];
    const DOC: &'static str = "A network of Docker's whose MTU fits the network that carries it.";
    const CANNOT_UNDO: &'static str = "the addresses of a network that is made anew";

    fn natural_name(&self) -> String {
        self.name.clone()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        check_name("name", &self.name, &mut errors);
        // What a Swarm and an engine make themselves.
        if ["ingress", "bridge", "host", "none", "docker_gwbridge"].contains(&self.name.as_str()) {
            errors.push(SpecError::new("name", format!("{:?} is Docker's own", self.name)));
        }
        // RFC 8200 wants 1280 for IPv6, RFC 791 576 for IPv4; a packet has 65535 bytes at most.
        if self.mtu.is_some_and(|mtu| !(576..=65_535).contains(&mtu)) {
            errors.push(SpecError::new("mtu", "want 576 to 65535"));
        }
        errors
    }
}
