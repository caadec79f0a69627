//! `package`: a Debian package.

use serde::{Deserialize, Serialize};

use super::{Field, Holds, PRESENCE, Presence, ResourceSpec, SpecError};

/// One package of the host's own package manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageSpec {
    /// As `apt-get` takes it, without version or release.
    pub name: String,
    /// Installed, or removed (its configuration files stay).
    #[serde(default)]
    pub state: Presence,
    /// Exactly this version; any when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether upgrades leave it at its version; left alone when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<bool>,
}

impl ResourceSpec for PackageSpec {
    const KIND: &'static str = "package";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required("name", Holds::Text, "The package's name."),
        Field::optional("state", PRESENCE, "present or absent; present when left out."),
        Field::optional("version", Holds::Text, "Exactly this version; whichever apt chooses when left out."),
        Field::optional("hold", Holds::Bool, "Whether upgrades leave it alone; left as it is when left out."),
    ];
    const DOC: &'static str = "A Debian package; adjacent ones are one transaction.";
    const CANNOT_UNDO: &'static str = "accounts and files that a package's own scripts made and do not remove, and services that \
         they leave running; \
         a version that is no longer in any repository; what was changed since in configuration files of a \
         package that the run installed, and data that its own scripts delete when it is purged";

    fn natural_name(&self) -> String {
        self.name.clone()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        // Debian Policy 5.6.1: lower case letters, digits, + - and ., at least two, the first alphanumeric.
        let (name, arch) = self.name.split_once(':').unwrap_or((&self.name, "amd64"));
        let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let valid = name.len() >= 2
            && name.len() <= 128
            && name.starts_with(alnum)
            && name.chars().all(|c| alnum(c) || matches!(c, '+' | '-' | '.'))
            && !arch.is_empty()
            && arch.chars().all(|c| alnum(c) || c == '-');
        if !valid {
            errors.push(SpecError::new(
                "name",
                format!("{:?}: want a package name: lower case letters, digits, +, - and .", self.name),
            ));
        }
        if let Some(version) = &self.version {
            // Debian Policy 5.6.12.
            let valid = !version.is_empty()
                && version.starts_with(|c: char| c.is_ascii_digit())
                && version
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '~' | ':'));
            if !valid {
                errors.push(SpecError::new("version", format!("{version:?}: not a Debian version")));
            } else if self.state == Presence::Absent {
                errors.push(SpecError::new("version", "a package that is to be absent has no version"));
            }
        }
        if self.hold.is_some() && self.state == Presence::Absent {
            errors.push(SpecError::new("hold", "a package that is to be absent is not held"));
        }
        errors
    }
}
