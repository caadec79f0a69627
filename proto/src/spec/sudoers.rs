//! `sudoers`: what a user or a group may do as others.

use serde::{Deserialize, Serialize};

use super::{Field, Holds, PRESENCE, Presence, ResourceSpec, SpecError, check_account, check_path};

/// One rule of sudo, in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SudoersSpec {
    /// A user, or a group with `%` before it.
    pub user: String,
    /// Without being asked for a password.
    #[serde(default = "yes")]
    pub nopasswd: bool,
    /// `ALL`, or programs with the arguments they may be given; any where none are said.
    #[serde(default = "all_commands")]
    pub commands: Vec<String>,
    /// As whom: a user, or `ALL`.
    #[serde(default = "all")]
    pub run_as: String,
    /// There, or not there.
    #[serde(default)]
    pub state: Presence,
}

fn yes() -> bool {
    true
}

fn all() -> String {
    "ALL".to_owned()
}

fn all_commands() -> Vec<String> {
    vec![all()]
}

impl SudoersSpec {
    /// Where the rule is. sudo skips files with a dot in their name or `~` at its end, and a user's name may
    /// have a dot: all but letters, digits, `_` and `-` is written as `=` and two hex digits.
    #[must_use]
    pub fn path(&self) -> String {
        let mut path = "/etc/sudoers.d/90-postern-".to_owned();
        for byte in self.user.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') {
                path.push(char::from(byte));
            } else {
                path.push_str(&format!("={byte:02x}"));
            }
        }
        path
    }

    /// What is in that file.
    #[must_use]
    pub fn content(&self) -> String {
        // ALL as a group, too, as Debian's own rule for root has it.
        let run_as = if self.run_as == "ALL" { "ALL:ALL" } else { &self.run_as };
        let tag = if self.nopasswd { "NOPASSWD: " } else { "PASSWD: " };
        let commands: Vec<_> = self.commands.iter().map(|command| escaped(command)).collect();
        let rule = format!("{} ALL=({run_as}) {tag}{}", self.user, commands.join(", "));
        format!("# Written by Postern, which writes it again at each run.\n{rule}\n")
    }

    /// The commands as sudo writes and lists them.
    pub fn listed(&self) -> impl Iterator<Item = String> + '_ {
        self.commands.iter().map(|command| escaped(command))
    }
}

/// sudoers(5): these mean something else in a list of commands.
fn escaped(command: &str) -> String {
    let mut text = String::new();
    for c in command.chars() {
        if matches!(c, ',' | ':' | '=' | '#') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

/// What would be a pattern, a quote or a negation, and cannot be said to be none in every version of sudo.
const NO_LITERALS: [char; 9] = ['*', '?', '[', ']', '"', '\\', '!', '^', '\''];

fn check_command(command: &str, errors: &mut Vec<SpecError>) {
    if command == "ALL" {
        return;
    }
    let mut wrong = |why: &str| errors.push(SpecError::new("commands", format!("{command:?}: {why}")));
    if command.chars().any(char::is_control) {
        wrong("has a control character");
    } else if command.contains(NO_LITERALS) {
        wrong("has a pattern, quote, backslash or ! in it: name each command in full");
    } else if command.contains("  ") || command.trim() != command {
        wrong("want one space between words, and none at the ends");
    } else {
        let program = command.split(' ').next().unwrap_or_default();
        check_path("commands", program, errors);
    }
}

/// A name that sudo could take for one of its aliases.
fn check_name(field: &str, name: &str, errors: &mut Vec<SpecError>) {
    let before = errors.len();
    check_account(field, name, errors);
    let alias = name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    if alias && errors.len() == before {
        errors.push(SpecError::new(field, format!("{name:?}: sudo takes a name in capitals for an alias")));
    }
}

impl ResourceSpec for SudoersSpec {
    const KIND: &'static str = "sudoers";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required("user", Holds::Text, "A user, or a group with % before it."),
        Field::optional("nopasswd", Holds::Bool, "Without being asked for a password; true when left out."),
        Field::optional("commands", Holds::TextList, "Programs with their arguments; ALL when left out."),
        Field::optional("run_as", Holds::Text, "As whom; ALL when left out."),
        Field::optional("state", PRESENCE, "present or absent; present when left out."),
    ];
    const DOC: &'static str = "What a user or a group may do with sudo.";
    const CANNOT_UNDO: &'static str = "";

    fn natural_name(&self) -> String {
        self.user.clone()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        check_name("user", self.user.strip_prefix('%').unwrap_or(&self.user), &mut errors);
        if self.run_as != "ALL" {
            check_name("run_as", &self.run_as, &mut errors);
        }
        if self.commands.is_empty() {
            errors.push(SpecError::new("commands", "is empty: want ALL, or programs"));
        }
        for command in &self.commands {
            check_command(command, &mut errors);
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T13: no name of an account makes a file that sudo skips, and no two the same one.
    #[test]
    fn trap_13_the_name_of_the_file_is_one_that_sudo_reads() {
        let path = |user: &str| {
            let spec: SudoersSpec = serde_json::from_value(serde_json::json!({"user": user})).unwrap();
            spec.path().strip_prefix("/etc/sudoers.d/90-postern-").unwrap().to_owned()
        };
        for (user, want) in
            [("ada", "ada"), ("ada.l", "ada=2el"), ("%sudo", "=25sudo"), ("a_b-c", "a_b-c"), ("a~", "a=7e")]
        {
            assert_eq!(path(user), want);
        }
        assert_ne!(path("a.b"), path("a_2eb"));
    }

    #[test]
    fn contents_by_table() {
        let rule = |json| {
            let spec: SudoersSpec = serde_json::from_value(json).unwrap();
            assert_eq!(spec.validate(), []);
            spec.content().lines().nth(1).unwrap().to_owned()
        };
        use serde_json::json;
        assert_eq!(rule(json!({"user": "ada.l"})), "ada.l ALL=(ALL:ALL) NOPASSWD: ALL");
        assert_eq!(
            rule(json!({"user": "%ops", "nopasswd": false, "run_as": "www-data",
                        "commands": ["/usr/bin/id", "/usr/bin/rsync a:b,c=d #e"]})),
            "%ops ALL=(www-data) PASSWD: /usr/bin/id, /usr/bin/rsync a\\:b\\,c\\=d \\#e"
        );
    }
}
