//! `reboot`: a restart of the host, where something on it calls for one.

use serde::{Deserialize, Serialize};

use super::{Field, Holds, ResourceSpec, SpecError, check_path};

/// A restart when one is due. That is derived from what is on the host, so a second run finds nothing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebootSpec {
    /// What people call it.
    pub name: String,
    /// Due when a package asked for it: `/run/reboot-required` is there.
    #[serde(default = "yes")]
    pub if_required: bool,
    /// Due when one of these files is newer than the boot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub if_newer: Vec<String>,
}

fn yes() -> bool {
    true
}

impl ResourceSpec for RebootSpec {
    const KIND: &'static str = "reboot";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required("name", Holds::Text, "What people call it."),
        Field::optional(
            "if_required",
            Holds::Bool,
            "Restart when a package asked for it (/run/reboot-required); true when left out.",
        ),
        Field::optional(
            "if_newer",
            Holds::TextList,
            "Restart when one of these files is newer than the boot.",
        ),
    ];
    const DOC: &'static str = "A restart of the host where one is due; the run goes on after it.";
    const CANNOT_UNDO: &'static str = "the restart";

    fn natural_name(&self) -> String {
        self.name.clone()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        if self.name.trim().is_empty() || self.name.len() > 100 || self.name.chars().any(char::is_control) {
            errors.push(SpecError::new("name", "want one line of at most 100 bytes"));
        }
        if !self.if_required && self.if_newer.is_empty() {
            errors.push(SpecError::new("", "never restarts: want if_required, if_newer or both"));
        }
        for path in &self.if_newer {
            check_path("if_newer", path, &mut errors);
        }
        errors
    }
}
