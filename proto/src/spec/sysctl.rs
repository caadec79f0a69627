//! `sysctl`: a setting of the kernel, now and at every boot.

use serde::{Deserialize, Serialize};

use super::{Field, Holds, PRESENCE, Presence, ResourceSpec, SpecError};

/// One setting of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SysctlSpec {
    /// As sysctl(8) takes it: `net.ipv4.ip_forward`. A dot within a part is a slash, or the parts are
    /// separated by slashes: `net.ipv4.conf.eth0/1.rp_filter` is `net/ipv4/conf/eth0.1/rp_filter`.
    pub name: String,
    /// Its value; the kind of white space in it does not matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Set now and at boot, or not set at boot by us. What is in force now stays when it becomes absent.
    #[serde(default)]
    pub state: Presence,
}

/// The longest value, bytes: the kernel takes less than a page at once.
const VALUE_LIMIT: usize = 2048;

impl SysctlSpec {
    /// Where it lies below `/proc/sys`, parts separated by slashes, as sysctl.d(5) reads names.
    #[must_use]
    pub fn key(&self) -> String {
        sysctl_key(&self.name)
    }

    /// Its name with dots, whichever way it was written.
    #[must_use]
    pub fn dotted(&self) -> String {
        swap(&self.key())
    }
}

/// A setting's name as a path below `/proc/sys`: the first separator in it says which one separates.
#[must_use]
pub fn sysctl_key(name: &str) -> String {
    let key = match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('.') => swap(name),
        _ => name.to_owned(),
    };
    key.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

/// Dots for slashes and slashes for dots.
fn swap(name: &str) -> String {
    let other = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    name.chars().map(other).collect()
}

impl ResourceSpec for SysctlSpec {
    const KIND: &'static str = "sysctl";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required("name", Holds::Text, "As sysctl(8) takes it: net.ipv4.ip_forward."),
        Field::optional("value", Holds::Text, "Its value now and at every boot.").late(),
        Field::optional(
            "state",
            PRESENCE,
            "present or absent; present when left out. absent: no longer set at boot; the value that is in \
             force stays until then.",
        ),
    ];
    const DOC: &'static str = "A setting of the kernel, in a file of its own in /etc/sysctl.d and in force.";
    const CANNOT_UNDO: &'static str = "other settings that the kernel changed along with it \
                                       (net.ipv4.ip_forward and the conf.all ones do so)";

    fn natural_name(&self) -> String {
        self.dotted()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        if let Some(why) = wrong_name(&self.name) {
            errors.push(SpecError::new("name", format!("{:?}: {why}", self.name)));
        }
        match (&self.value, self.state) {
            (None, Presence::Present) => errors.push(SpecError::new("value", "missing")),
            (Some(_), Presence::Absent) => {
                errors.push(SpecError::new("value", "a setting that is to be absent has no value"));
            }
            (Some(value), Presence::Present) if value.chars().any(|c| c.is_control() && c != '\t') => {
                errors.push(SpecError::new("value", "has a control character"));
            }
            (Some(value), Presence::Present) if value.len() > VALUE_LIMIT => {
                errors.push(SpecError::new("value", format!("longer than {VALUE_LIMIT} bytes")));
            }
            _ => {}
        }
        errors
    }
}

/// What is wrong with a name; the name of a network interface may be a part of it.
fn wrong_name(name: &str) -> Option<&'static str> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "_-.:@+".contains(c);
    let key = sysctl_key(name);
    let parts: Vec<&str> = key.split('/').collect();
    if name.len() > 200 {
        Some("longer than 200 bytes")
    } else if parts.len() < 2 || key.len() != name.len() {
        Some("want parts separated by dots, like net.ipv4.ip_forward")
    } else if parts.iter().any(|part| !part.chars().all(valid) || part.starts_with('-')) {
        Some("want letters, digits and _ - . : @ + in its parts")
    } else if parts.iter().any(|part| part.chars().all(|c| c == '.')) || parts[0].contains('.') {
        Some("has a part of dots, or a dot in its first part")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_table() {
        for (name, key, dotted) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward", "net.ipv4.ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward", "net.ipv4.ip_forward"),
            ("net.ipv4.conf.eth0/1.x", "net/ipv4/conf/eth0.1/x", "net.ipv4.conf.eth0/1.x"),
            ("net/ipv4/conf/eth0.1/x", "net/ipv4/conf/eth0.1/x", "net.ipv4.conf.eth0/1.x"),
        ] {
            let spec = SysctlSpec { name: name.into(), value: None, state: Presence::Absent };
            assert_eq!((spec.key().as_str(), spec.dotted().as_str()), (key, dotted), "{name}");
            assert_eq!(spec.validate(), [], "{name}");
        }
    }
}
