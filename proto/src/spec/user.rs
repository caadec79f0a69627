//! `user`: an account of the host.

use serde::{Deserialize, Serialize};

use super::{Field, Holds, PRESENCE, Presence, ResourceSpec, SpecError, check_account, check_path};
use crate::text::STAND_IN;

/// One account in `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserSpec {
    /// Login name.
    pub name: String,
    /// There, or not there (its home stays).
    #[serde(default)]
    pub state: Presence,
    /// Its number. One that is there with another number is refused: its files would stay behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its primary group, which must be there; one of its own name when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Groups it is in besides, which must be there. It stays in others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// It is in no other groups than these.
    #[serde(default)]
    pub exclusive_groups: bool,
    /// Its shell, which must be there. Left alone when left out; a new user gets [`UserSpec::new_shell`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Its home. One that is there with another home is refused: a home is not moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
    /// Who it is, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// For a program: a number below 1000, no home made, no login. Only looked at when it is made.
    #[serde(default)]
    pub system: bool,
    /// Its password as `/etc/shadow` has it. Left alone when left out; a new user then has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<String>,
}

impl UserSpec {
    /// The shell a new user gets.
    #[must_use]
    pub fn new_shell(&self) -> &str {
        let usual = if self.system { "/usr/sbin/nologin" } else { "/bin/bash" };
        self.shell.as_deref().unwrap_or(usual)
    }

    /// False for a password that is not hashed: put into `/etc/shadow` it would lie there in clear.
    #[must_use]
    pub fn password_is_hashed(&self) -> bool {
        self.password_hash.as_deref().is_none_or(is_hashed)
    }
}

/// crypt(5): `$id$…`, or one of the marks that no password fits.
fn is_hashed(field: &str) -> bool {
    let hash = field.trim_start_matches('!');
    let crypt = hash.strip_prefix('$').and_then(|rest| rest.split_once('$')).is_some_and(|(id, rest)| {
        !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric()) && rest.len() >= 20
    });
    let clean = hash.chars().all(|c| c.is_ascii_alphanumeric() || "./$=,+-".contains(c));
    (crypt && clean && hash.len() <= 384) || matches!(field, "*" | "!" | "!!" | "!*")
}

impl ResourceSpec for UserSpec {
    const KIND: &'static str = "user";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required("name", Holds::Text, "Login name."),
        Field::optional("state", PRESENCE, "present or absent; present when left out. Its home stays."),
        Field::optional("uid", Holds::Count, "Its number; the next free one when left out."),
        Field::optional("group", Holds::Text, "Its primary group; one of its own name when left out."),
        Field::optional("groups", Holds::TextList, "Groups it is in besides; it stays in others."),
        Field::optional("exclusive_groups", Holds::Bool, "It is in no other groups than groups."),
        Field::optional("shell", Holds::Text, "Its shell; /bin/bash for a new one when left out."),
        Field::optional("home", Holds::Text, "Its home; /home/NAME for a new one when left out."),
        Field::optional("comment", Holds::Text, "Who it is, for people."),
        Field::optional("system", Holds::Bool, "For a program: a low number, no home made, no login."),
        Field::optional("password_hash", Holds::Text, "Its password as /etc/shadow has it (crypt).").secret(),
    ];
    const DOC: &'static str = "An account of the host.";
    const CANNOT_UNDO: &'static str = "a home that was made stays; of a user that is made again: subordinate ids, the place in /etc/passwd, rights to administer groups";

    fn natural_name(&self) -> String {
        self.name.clone()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        let mut wrong = |field: &str, message: &str| errors.push(SpecError::new(field, message));
        if self.state == Presence::Absent {
            if self.name == "root" {
                wrong("name", "root cannot be absent");
            }
            let said = [
                ("uid", self.uid.is_some()),
                ("group", self.group.is_some()),
                ("groups", !self.groups.is_empty()),
                ("exclusive_groups", self.exclusive_groups),
                ("shell", self.shell.is_some()),
                ("home", self.home.is_some()),
                ("comment", self.comment.is_some()),
                ("system", self.system),
                ("password_hash", self.password_hash.is_some()),
            ];
            for (field, _) in said.into_iter().filter(|(_, said)| *said) {
                wrong(field, "a user that is to be absent has none");
            }
        }
        if self.uid.is_some_and(|uid| uid > i32::MAX as u32) {
            wrong("uid", "want a number up to 2147483647");
        }
        if self.uid == Some(0) && self.name != "root" {
            wrong("uid", "0 is root's");
        }
        // What stands in for a secret while a spec is only checked is no hash; the host looks again.
        if self.password_hash.as_deref() != Some(STAND_IN) && !self.password_is_hashed() {
            wrong(
                "password_hash",
                "want a hash as crypt(5) has it, $6$… or $y$…, not a password: `openssl passwd -6` makes one",
            );
        }
        // /etc/passwd is divided by colons, and this field by commas for finger.
        if self.comment.as_deref().is_some_and(|text| text.contains(':') || text.contains(char::is_control)) {
            wrong("comment", "cannot have a colon or a control character in it");
        }
        check_account("name", &self.name, &mut errors);
        for group in self.group.iter() {
            check_account("group", group, &mut errors);
        }
        for group in &self.groups {
            check_account("groups", group, &mut errors);
        }
        for (field, path) in [("shell", &self.shell), ("home", &self.home)] {
            let Some(path) = path else { continue };
            check_path(field, path, &mut errors);
            if path.contains(':') {
                errors.push(SpecError::new(field, format!("{path:?}: has a colon in it")));
            }
        }
        errors
    }
}
