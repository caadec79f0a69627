//! `security_updates`: the host installs security updates by itself.

use serde::{Deserialize, Serialize};

use super::{Field, Holds, ResourceSpec, SpecError};

/// Unattended upgrades from the distribution's security repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecurityUpdatesSpec {
    /// `never`, or the time of day at which the host restarts when an update asks for it.
    #[serde(default = "never")]
    pub reboot: String,
    /// More origins whose upgrades are installed, as unattended-upgrades has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<String>,
}

fn never() -> String {
    "never".to_owned()
}

impl SecurityUpdatesSpec {
    /// When the host may restart, as `HH:MM`.
    #[must_use]
    pub fn reboot_time(&self) -> Option<&str> {
        (self.reboot != "never").then_some(&self.reboot)
    }
}

impl ResourceSpec for SecurityUpdatesSpec {
    const KIND: &'static str = "security_updates";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::optional(
            "reboot",
            Holds::Text,
            "never, or when the host restarts if an update asks for it: \"04:30\"; never when left out.",
        ),
        Field::optional(
            "origins",
            Holds::TextList,
            "More origins to upgrade from, such as \"origin=Docker,label=Docker CE\".",
        ),
    ];
    const DOC: &'static str =
        "Security updates are installed every day; needs the package unattended-upgrades.";
    const CANNOT_UNDO: &'static str = "updates that were installed meanwhile";

    fn natural_name(&self) -> String {
        "apt".to_owned()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        let time = |text: &str| {
            let (hours, minutes) = text.split_once(':')?;
            let two = |part: &str, below: u8| {
                let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
                part.parse::<u8>().ok().filter(|number| digits && *number < below)
            };
            two(hours, 24).zip(two(minutes, 60))
        };
        if self.reboot_time().is_some_and(|text| time(text).is_none()) {
            let text = &self.reboot;
            errors
                .push(SpecError::new("reboot", format!("{text:?}: want never or a time such as \"04:30\"")));
        }
        const KEYS: [&str; 12] =
            ["o", "origin", "l", "label", "a", "suite", "archive", "c", "component", "site", "n", "codename"];
        for origin in &self.origins {
            let pair = |part: &str| {
                part.split_once('=')
                    .is_some_and(|(key, value)| KEYS.contains(&key.trim()) && !value.is_empty())
            };
            let quoted = origin.chars().any(|c| c.is_control() || matches!(c, '"' | '\\' | ';'));
            if quoted || !origin.split(',').all(pair) {
                errors.push(SpecError::new(
                    "origins",
                    format!("{origin:?}: want KEY=VALUE,… with the keys origin, label, suite, codename, component or site"),
                ));
            }
        }
        errors
    }
}
