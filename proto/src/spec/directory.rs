//! `directory`: a directory with its owner and mode.

use serde::{Deserialize, Serialize};

use super::file::root;
use super::{Field, FileMode, Holds, PRESENCE, Presence, ResourceSpec, SpecError, check_account, check_path};

/// One directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectorySpec {
    /// Absolute. A symbolic link at the path itself is refused, not followed.
    pub path: String,
    /// Octal, as a string; 0755 when left out.
    #[serde(default = "searchable")]
    pub mode: FileMode,
    /// User name; root when left out.
    #[serde(default = "root")]
    pub owner: String,
    /// Group name; root when left out.
    #[serde(default = "root")]
    pub group: String,
    /// There with these attributes, or not there. One that is not empty is never removed.
    #[serde(default)]
    pub state: Presence,
    /// Directories missing on the way to it are made too, as 0755 of root.
    #[serde(default)]
    pub parents: bool,
}

fn searchable() -> FileMode {
    FileMode("0755".to_owned())
}

impl ResourceSpec for DirectorySpec {
    const KIND: &'static str = "directory";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required("path", Holds::Text, "Absolute."),
        Field::optional("mode", Holds::Text, "Octal permission bits; 0755 when left out."),
        Field::optional("owner", Holds::Text, "User name; root when left out."),
        Field::optional("group", Holds::Text, "Group name; root when left out."),
        Field::optional(
            "state",
            PRESENCE,
            "present or absent; present when left out. Only an empty one is removed.",
        ),
        Field::optional(
            "parents",
            Holds::Bool,
            "Directories missing on the way to it are made too, as 0755 of root; false when left out.",
        ),
    ];
    const DOC: &'static str = "A directory with its owner and mode.";
    const CANNOT_UNDO: &'static str = "a directory it made that is not empty by now, and parents it made \
                                       that hold something else by now";

    fn natural_name(&self) -> String {
        self.path.clone()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        check_path("path", &self.path, &mut errors);
        if self.path == "/" {
            errors.push(SpecError::new("path", "/ is not a directory to make or to remove"));
        }
        if self.mode.bits().is_none() {
            let mode = &self.mode.0;
            errors.push(SpecError::new("mode", format!("{mode:?}: want three or four octal digits, quoted")));
        }
        check_account("owner", &self.owner, &mut errors);
        check_account("group", &self.group, &mut errors);
        if self.parents && self.state == Presence::Absent {
            let message = "a directory that is to be absent needs no parents";
            errors.push(SpecError::new("parents", message));
        }
        errors
    }
}
