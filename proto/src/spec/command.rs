//! `command`: an action, with what makes it repeatable.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::guard::{MAX_PREDICATES, Predicate};

use super::{Field, Holds, ResourceSpec, SpecError, check_account, check_path};

/// One command. It has no state of its own to observe: `creates` and `unless` say when it is not needed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandSpec {
    /// Program and arguments; no shell comes near them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// A script for `/bin/sh`, where one is really wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Not needed when this path exists, and expected to make it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creates: Option<String>,
    /// Not needed when this command exits 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unless: Option<Vec<String>>,
    /// May be run again after it was cut off.
    #[serde(default)]
    pub idempotent: bool,
    /// It changes nothing, is run at each look, and what it prints, trimmed, is the late value of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<String>,
    /// root when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory; `/` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Added to a clean environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What it reads; nothing when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// It could cut the host off, so it is run under guard; this program takes it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revert: Option<Vec<String>>,
    /// What must be as before once it was run, beside the link: see [`Predicate`]'s words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watch: Vec<String>,
    /// Seconds until it is ended (TERM, then KILL); one hour when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
}

/// What a [`CommandSpec`] runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run<'a> {
    /// Program and arguments.
    Argv(&'a [String]),
    /// A script.
    Shell(&'a str),
}

impl CommandSpec {
    /// Seconds a command may take when its spec does not say.
    pub const DEFAULT_TIMEOUT_S: u64 = 3600;

    /// What it runs; `None` for a spec that [`ResourceSpec::validate`] refuses.
    #[must_use]
    pub fn run(&self) -> Option<Run<'_>> {
        match (&self.argv, &self.shell) {
            (Some(argv), None) => Some(Run::Argv(argv)),
            (None, Some(script)) => Some(Run::Shell(script)),
            _ => None,
        }
    }

    /// True when it may be run again after it was cut off.
    #[must_use]
    pub fn repeatable(&self) -> bool {
        self.idempotent || self.late.is_some() || self.creates.is_some() || self.unless.is_some()
    }
}

fn check_argv(field: &str, argv: &[String], errors: &mut Vec<SpecError>) {
    if argv.first().is_none_or(String::is_empty) {
        errors.push(SpecError::new(field, "want a program and its arguments"));
    } else if argv.iter().any(|arg| arg.contains('\0')) {
        errors.push(SpecError::new(field, "has a NUL byte"));
    }
}

impl ResourceSpec for CommandSpec {
    const KIND: &'static str = "command";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::optional("argv", Holds::TextList, "The program and its arguments; no shell.").late(),
        Field::optional("shell", Holds::Text, "A script for /bin/sh, where a shell is wanted.").late(),
        Field::optional("creates", Holds::Text, "It is not needed where this path is."),
        Field::optional("unless", Holds::TextList, "It is not needed where this command exits 0.").late(),
        Field::optional("idempotent", Holds::Bool, "It may be run again after it was cut off."),
        Field::optional("late", Holds::Text, "It changes nothing; what it prints is late.NAME from here on."),
        Field::optional("user", Holds::Text, "Whom it runs as; root when left out."),
        Field::optional("cwd", Holds::Text, "Where it runs; / when left out."),
        Field::optional("env", Holds::TextMap, "Added to a clean environment.").secret(),
        Field::optional("stdin", Holds::Text, "What it reads; nothing when left out.").secret(),
        Field::optional(
            "revert",
            Holds::TextList,
            "It could cut the host off: it is run under guard, and this command takes it back.",
        )
        .late(),
        Field::optional(
            "watch",
            Holds::TextList,
            "Under guard, what must still be so afterwards: \"inbound PORT\", \"dns NAME\", \"egress HOST:PORT\".",
        ),
        Field::optional("timeout_s", Holds::Count, "Seconds until it is ended; 3600 when left out."),
    ];
    const DOC: &'static str = "An action, run where nothing says that it is not needed.";
    const CANNOT_UNDO: &'static str = "what the command did";

    fn yields(&self) -> Option<&str> {
        self.late.as_deref()
    }

    fn natural_name(&self) -> String {
        let text = match self.run() {
            Some(Run::Argv(argv)) => argv.join(" "),
            Some(Run::Shell(script)) => script.to_owned(),
            None => String::new(),
        };
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(60).collect();
        let line = line.trim();
        if line.is_empty() { "command".to_owned() } else { line.to_owned() }
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        match (&self.argv, &self.shell) {
            (Some(argv), None) => check_argv("argv", argv, &mut errors),
            (None, Some(script)) if script.trim().is_empty() => {
                errors.push(SpecError::new("shell", "is empty"))
            }
            (None, Some(script)) if script.contains('\0') => {
                errors.push(SpecError::new("shell", "has a NUL byte"));
            }
            (None, Some(_)) => {}
            _ => errors.push(SpecError::new("", "want one of argv and shell")),
        }
        if let Some(path) = &self.creates {
            check_path("creates", path, &mut errors);
        }
        if let Some(argv) = &self.unless {
            check_argv("unless", argv, &mut errors);
        }
        if let Some(argv) = &self.revert {
            check_argv("revert", argv, &mut errors);
            if self.late.is_some() {
                let message = "a command that yields a late value changes nothing: leave revert out";
                errors.push(SpecError::new("revert", message));
            }
        }
        if !self.watch.is_empty() && self.revert.is_none() {
            errors.push(SpecError::new("watch", "is for a command that can be taken back: add revert"));
        }
        if self.watch.len() > MAX_PREDICATES {
            errors.push(SpecError::new("watch", format!("want up to {MAX_PREDICATES}")));
        }
        for (place, text) in self.watch.iter().enumerate() {
            if let Err(error) = text.parse::<Predicate>() {
                errors.push(SpecError::new(format!("watch[{place}]"), error.to_string()));
            }
        }
        if let Some(user) = &self.user {
            check_account("user", user, &mut errors);
        }
        if let Some(path) = &self.cwd {
            check_path("cwd", path, &mut errors);
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                errors.push(SpecError::new(format!("env.{name}"), "not a name and value of the environment"));
            }
        }
        if let Some(name) = &self.late {
            let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.len() <= 64
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !valid {
                errors.push(SpecError::new("late", format!("{name:?}: want letters, digits and _")));
            } else if self.creates.is_some() || self.unless.is_some() {
                let message =
                    "a command that yields a late value is always run: leave creates and unless out";
                errors.push(SpecError::new("late", message));
            } else if self.stdin.is_some() {
                let message = "a command that yields a late value reads nothing: leave stdin out";
                errors.push(SpecError::new("late", message));
            }
        }
        if self.timeout_s == Some(0) {
            errors.push(SpecError::new("timeout_s", "want at least one second"));
        }
        errors
    }
}
