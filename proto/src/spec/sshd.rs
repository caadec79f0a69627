//! `sshd`: who gets in over SSH, and how.

use serde::{Deserialize, Serialize};

use super::{Field, Holds, ResourceSpec, SpecError, check_account};

/// An SSH server that takes keys only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SshdSpec {
    /// Who must be able to log in with a key afterwards.
    pub users: Vec<String>,
    /// Whether root gets in.
    #[serde(default)]
    pub root_login: RootLogin,
    /// TCP ports; left as they are when there are none here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// Keys that a client may try on one connection.
    #[serde(default = "tries")]
    pub max_auth_tries: u64,
    /// Seconds that a login may take.
    #[serde(default = "grace")]
    pub login_grace_s: u64,
}

/// Whether root gets in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootLogin {
    /// Not at all.
    #[default]
    No,
    /// With a key.
    ProhibitPassword,
}

impl RootLogin {
    /// As sshd_config has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::ProhibitPassword => "prohibit-password",
        }
    }
}

/// A client with an agent offers some keys before the right one.
fn tries() -> u64 {
    4
}

fn grace() -> u64 {
    30
}

impl SshdSpec {
    /// The ports that are declared.
    #[must_use]
    pub fn port_numbers(&self) -> Vec<u16> {
        self.ports.iter().filter_map(|port| number(port)).collect()
    }
}

fn number(port: &str) -> Option<u16> {
    let plain = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    port.parse().ok().filter(|port| plain && *port > 0)
}

impl ResourceSpec for SshdSpec {
    const KIND: &'static str = "sshd";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required(
            "users",
            Holds::TextList,
            "Who must be able to log in with a key; refused where none of them has one.",
        ),
        Field::optional(
            "root_login",
            Holds::OneOf(&["no", "prohibit-password"]),
            "no, or prohibit-password for root with a key; no when left out.",
        ),
        Field::optional("ports", Holds::TextList, "TCP ports it listens on; left as they are when left out."),
        Field::optional(
            "max_auth_tries",
            Holds::Count,
            "Keys that a client may try on one connection; 4 when left out.",
        ),
        Field::optional("login_grace_s", Holds::Count, "Seconds a login may take; 30 when left out."),
    ];
    const DOC: &'static str = "An SSH server that takes keys only, with algorithms that are sound today.";
    const CANNOT_UNDO: &'static str = "sessions that were opened in the meantime";

    fn natural_name(&self) -> String {
        "ssh".to_owned()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        if self.users.is_empty() {
            errors.push(SpecError::new("users", "is empty: nobody could log in any more"));
        }
        for user in &self.users {
            check_account("users", user, &mut errors);
        }
        if self.root_login == RootLogin::No && self.users.iter().all(|user| user == "root") {
            let message = "only root, who does not get in: name another user, or say \
                           `root_login: prohibit-password`";
            errors.extend((!self.users.is_empty()).then(|| SpecError::new("users", message)));
        }
        for port in self.ports.iter().filter(|port| number(port).is_none()) {
            errors.push(SpecError::new("ports", format!("{port:?}: want 1 to 65535")));
        }
        if self.ports.len() > 16 {
            errors.push(SpecError::new("ports", "want 16 at most"));
        }
        if !(1..=20).contains(&self.max_auth_tries) {
            errors.push(SpecError::new("max_auth_tries", "want 1 to 20"));
        }
        if !(5..=600).contains(&self.login_grace_s) {
            errors.push(SpecError::new("login_grace_s", "want 5 to 600"));
        }
        errors
    }
}
