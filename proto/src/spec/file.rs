//! `file`: a regular file with its content, owner and mode.

use serde::{Deserialize, Serialize};

use super::{Field, Holds, PRESENCE, Presence, ResourceSpec, SpecError, check_account, check_path};

/// One regular file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Absolute. Its directory must be there; a symbolic link at the path itself is refused, not followed.
    pub path: String,
    /// The whole content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Octal, as a string; 0644 when left out.
    #[serde(default)]
    pub mode: FileMode,
    /// User name; root when left out.
    #[serde(default = "root")]
    pub owner: String,
    /// Group name; root when left out.
    #[serde(default = "root")]
    pub group: String,
    /// There with this content, or not there.
    #[serde(default)]
    pub state: Presence,
    /// A command that must exit 0 before the content is put in place; `{path}` stands for a file with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate: Option<Vec<String>>,
}

pub(super) fn root() -> String {
    "root".to_owned()
}

/// Permission bits in octal: "0644".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileMode(pub String);

impl Default for FileMode {
    fn default() -> Self {
        Self("0644".to_owned())
    }
}

impl FileMode {
    /// The bits, or `None` when this is not three or four octal digits.
    #[must_use]
    pub fn bits(&self) -> Option<u32> {
        let digits = matches!(self.0.len(), 3 | 4) && self.0.bytes().all(|b| (b'0'..=b'7').contains(&b));
        digits.then(|| u32::from_str_radix(&self.0, 8).ok()).flatten()
    }
}

impl ResourceSpec for FileSpec {
    const KIND: &'static str = "file";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required("path", Holds::Text, "Absolute; its directory must be there."),
        Field::optional("content", Holds::Text, "The whole content.").secret(),
        Field::optional("mode", Holds::Text, "Octal permission bits; 0644 when left out."),
        Field::optional("owner", Holds::Text, "User name; root when left out."),
        Field::optional("group", Holds::Text, "Group name; root when left out."),
        Field::optional("state", PRESENCE, "present or absent; present when left out."),
        Field::optional("validate", Holds::TextList, "A command that must accept the new content at {path}."),
    ];
    const DOC: &'static str = "A regular file with its content, owner and mode.";
    const CANNOT_UNDO: &'static str = "a file of more than 16 MiB that it replaced";

    fn natural_name(&self) -> String {
        self.path.clone()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        check_path("path", &self.path, &mut errors);
        if self.path == "/" {
            errors.push(SpecError::new("path", "/ is a directory"));
        }
        match (&self.content, self.state) {
            (None, Presence::Present) => errors.push(SpecError::new("content", "missing")),
            (Some(_), Presence::Absent) => {
                errors.push(SpecError::new("content", "a file that is to be absent has no content"));
            }
            _ => {}
        }
        if self.mode.bits().is_none() {
            let mode = &self.mode.0;
            errors.push(SpecError::new("mode", format!("{mode:?}: want three or four octal digits, quoted")));
        }
        check_account("owner", &self.owner, &mut errors);
        check_account("group", &self.group, &mut errors);
        if let Some(argv) = &self.validate
            && (argv.first().is_none_or(String::is_empty) || !argv.iter().any(|arg| arg.contains("{path}")))
        {
            errors.push(SpecError::new("validate", "want a command with {path} in one of its arguments"));
        }
        errors
    }
}
