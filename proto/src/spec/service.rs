//! `service`: a systemd unit.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Field, Holds, ResourceSpec, SpecError, check_path};

/// One systemd unit: whether it runs and whether it starts at boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Unit name; `.service` is understood.
    pub name: String,
    /// Left alone when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Running>,
    /// Started at boot or not; left alone when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Files it reads at start: it is restarted when one is newer than its start. Derived from what is on
    /// the host, so that the need survives a failed run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart_on: Vec<String>,
    /// Where it says by HTTP whether it is ready, on the loopback interface: `http://127.0.0.1:20241/ready`. Any
    /// status of 200 to 299 says that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// Seconds that it may take from its start until it is; a minute when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_s: Option<u64>,
}

/// Whether a unit is to be active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Running {
    /// Active.
    Running,
    /// Not active.
    Stopped,
}

impl ServiceSpec {
    /// Seconds that it may take until it is ready.
    #[must_use]
    pub fn ready_within_s(&self) -> u64 {
        self.ready_s.unwrap_or(60)
    }

    /// Where and for what is asked; the error is for people.
    pub fn ready_at(url: &str) -> Result<(SocketAddr, &str), String> {
        let bad = || format!("{url:?}: want one like http://127.0.0.1:8080/ready, on this host itself");
        let rest = url.strip_prefix("http://").ok_or_else(bad)?;
        let (at, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let at: SocketAddr = at.parse().map_err(|_| bad())?;
        let plain = path.bytes().all(|byte| byte.is_ascii_graphic());
        if !at.ip().is_loopback() || at.port() == 0 || !plain {
            return Err(bad());
        }
        Ok((at, if path.is_empty() { "/" } else { path }))
    }

    /// The unit's full name.
    #[must_use]
    pub fn unit(&self) -> String {
        const SUFFIXES: [&str; 8] =
            [".service", ".socket", ".timer", ".target", ".path", ".mount", ".slice", ".automount"];
        if SUFFIXES.iter().any(|suffix| self.name.ends_with(suffix)) {
            self.name.clone()
        } else {
            format!("{}.service", self.name)
        }
    }
}

impl ResourceSpec for ServiceSpec {
    const KIND: &'static str = "service";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required("name", Holds::Text, "The unit; .service when it has no suffix."),
        Field::optional(
            "state",
            Holds::OneOf(&["running", "stopped"]),
            "Whether it runs; left alone when left out.",
        ),
        Field::optional("enabled", Holds::Bool, "Whether it is started at boot; left alone when left out."),
        Field::optional(
            "restart_on",
            Holds::TextList,
            "It is restarted when one of these files is newer than its start.",
        ),
        Field::optional(
            "ready",
            Holds::Text,
            "Where it says by HTTP whether it is ready, on the host itself: http://127.0.0.1:20241/ready. One that runs \
             and says no is restarted, and waited for.",
        ),
        Field::optional("ready_s", Holds::Count, "Seconds that it may take until it is ready; 60."),
    ];
    const DOC: &'static str = "A systemd unit.";
    const CANNOT_UNDO: &'static str = "what the service did while it ran";

    fn natural_name(&self) -> String {
        self.name.clone()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        // systemd.unit(5): ASCII letters, digits and : - _ . \ and @, at most 255 characters.
        let valid = !self.name.is_empty()
            && self.name.len() <= 240
            && !self.name.starts_with('-')
            && self.name.chars().all(|c| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c));
        if !valid {
            errors.push(SpecError::new("name", format!("{:?}: not a unit name", self.name)));
        }
        if self.state.is_none() && self.enabled.is_none() {
            errors.push(SpecError::new("", "says nothing: want state, enabled or both"));
        }
        if !self.restart_on.is_empty() && self.state != Some(Running::Running) {
            errors.push(SpecError::new("restart_on", "only a service with state: running is restarted"));
        }
        for path in &self.restart_on {
            check_path("restart_on", path, &mut errors);
        }
        if let Some(Err(why)) = self.ready.as_deref().map(Self::ready_at) {
            errors.push(SpecError::new("ready", why));
        }
        if self.ready.is_some() && self.state != Some(Running::Running) {
            errors.push(SpecError::new("ready", "only a service with state: running can be ready"));
        }
        if !self.ready_s.is_none_or(|seconds| (1..=600).contains(&seconds)) {
            errors.push(SpecError::new("ready_s", "want 1 to 600 seconds"));
        }
        errors
    }
}
