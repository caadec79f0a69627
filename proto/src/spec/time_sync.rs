//! `time_sync`: the host's clock follows time servers.

use serde::{Deserialize, Serialize};

use super::{Field, Holds, ResourceSpec, SpecError};

/// A clock that chrony keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeSyncSpec {
    /// Asked beside, and preferred to, those that the host has already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// The most that the clock may be wrong.
    #[serde(default = "second")]
    pub max_offset_ms: u64,
}

fn second() -> u64 {
    1000
}

impl ResourceSpec for TimeSyncSpec {
    const KIND: &'static str = "time_sync";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::optional(
            "servers",
            Holds::TextList,
            "Time servers that are preferred to those the host has already; none when left out.",
        ),
        Field::optional(
            "max_offset_ms",
            Holds::Count,
            "The most that the clock may be wrong, in milliseconds; 1000 when left out.",
        ),
    ];
    const DOC: &'static str = "The clock follows time servers; needs the package chrony.";
    const CANNOT_UNDO: &'static str = "corrections of the clock";

    fn natural_name(&self) -> String {
        "chrony".to_owned()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
        for server in &self.servers {
            if server.is_empty()
                || server.len() > 253
                || server.starts_with('-')
                || !server.chars().all(plain)
            {
                errors.push(SpecError::new("servers", format!("{server:?}: want a host name or an address")));
            }
        }
        if !(1..=3_600_000).contains(&self.max_offset_ms) {
            errors.push(SpecError::new("max_offset_ms", "want 1 to 3600000"));
        }
        errors
    }
}
