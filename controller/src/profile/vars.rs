//! Variables: what a profile declares, and the values that were given for them.

use std::collections::{BTreeMap, BTreeSet};

use super::diag::{Diagnostic, Place, Sink, closest, quoted};
use super::facts::RESERVED;
use super::template::is_template;
use super::yaml::{self, Entry, Scalar, Value};

/// A variable's value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Var {
    Text(String),
    Bool(bool),
    Whole(i64),
}

impl From<&Var> for minijinja::Value {
    fn from(var: &Var) -> Self {
        match var {
            Var::Text(text) => Self::from(text.as_str()),
            Var::Bool(bool) => Self::from(*bool),
            Var::Whole(number) => Self::from(*number),
        }
    }
}

/// A file of values, as it was named and read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VarFile {
    /// What messages call it.
    pub file: String,
    /// YAML or JSON: a map of names and single values.
    pub bytes: Vec<u8>,
}

/// Who gave a value, for messages.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Giver {
    /// `--var`.
    Flag,
    /// Whoever applied the profile to this host the last time.
    Kept,
    /// A line of a file: of values, or of a profile that includes this one.
    File { file: String, place: Place },
    /// The host.
    Host,
}

/// The values that were given for a profile's variables, the strongest of each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given(BTreeMap<String, (String, Giver)>);

impl Given {
    /// Takes a value, unless a stronger one is there.
    pub(crate) fn add(&mut self, name: &str, text: &str, giver: Giver) {
        self.0.entry(name.to_owned()).or_insert_with(|| (text.to_owned(), giver));
    }

    /// Takes what was kept with an assignment: given when the profile was applied, it is stronger than what
    /// the host has for all profiles, and weaker than what is given now.
    pub(crate) fn keep(&mut self, name: &str, text: &str) {
        if self.0.get(name).is_none_or(|(_, giver)| *giver == Giver::Host) {
            self.0.insert(name.to_owned(), (text.to_owned(), Giver::Kept));
        }
    }

    fn get(&self, name: &str) -> Option<(&str, &Giver)> {
        self.0.get(name).map(|(text, giver)| (text.as_str(), giver))
    }

    /// What was given on the command line for these variables, as texts: an assignment keeps it.
    pub(crate) fn kept(&self, names: &[String]) -> BTreeMap<String, String> {
        let kept = self.0.iter().filter(|(name, (_, giver))| *giver != Giver::Host && names.contains(name));
        kept.map(|(name, (text, _))| (name.clone(), text.clone())).collect()
    }

    /// Every value must be for a variable that there is; those of a host may be for other profiles.
    pub(crate) fn unknown(&self, known: &BTreeSet<&str>, found: &mut Vec<Diagnostic>) {
        for (name, (_, giver)) in self.0.iter().filter(|(name, _)| !known.contains(name.as_str())) {
            let (file, place) = match giver {
                Giver::Host | Giver::Kept => continue,
                Giver::Flag => ("--var", Place::START),
                Giver::File { file, place } => (file.as_str(), *place),
            };
            let mut sink = Sink::new(file);
            sink.unknown(place, "variable", name, known.iter().copied());
            found.extend(sink.into_found());
        }
    }
}

/// The names and values of a file, each with its place.
pub(crate) fn parse_file(file: &VarFile, found: &mut Vec<Diagnostic>) -> Vec<(String, String, Place)> {
    let mut sink = Sink::new(&file.file);
    let mut values = Vec::new();
    match std::str::from_utf8(&file.bytes) {
        Err(_) => sink.error(Place::START, "this is not UTF-8 text"),
        Ok(text) => {
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            let root = yaml::parse_as(text, "a file of values is a map of names and values", &mut sink);
            match root.map(|root| (root.place, root.value)) {
                None => {}
                Some((_, Value::Map(entries))) => {
                    for entry in entries.iter().filter(|entry| !entry.is_reported()) {
                        match &entry.value.value {
                            Value::Scalar(scalar) if !scalar.is_null() => {
                                values.push((entry.key.clone(), scalar.text.clone(), entry.value.place));
                            }
                            _ => {
                                let (name, what) = (quoted(&entry.key), entry.value.describe());
                                let message =
                                    format!("{name} wants a text, a number or true/false, this is {what}");
                                sink.error(entry.value.place, message);
                            }
                        }
                    }
                }
                Some((place, _)) => sink.error(place, "want a map of names and values"),
            }
        }
    }
    found.extend(sink.into_found());
    values
}

/// The variables of one profile.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declared {
    /// Those that have one.
    pub(crate) values: BTreeMap<String, Var>,
    /// All.
    pub(crate) names: Vec<String>,
}

/// Who is told that a variable has no value.
#[derive(Clone, Copy)]
pub(crate) enum Asker<'a> {
    /// Whoever wrote the command.
    User,
    /// The profile that includes this one, at this place.
    Outer { file: &'a str, place: Place },
    /// Nobody: the profile is left out.
    Nobody,
}

/// The values of all variables that have one, and the names of all.
pub(crate) fn declared(entry: &Entry, given: &Given, asker: Asker<'_>, sink: &mut Sink) -> Declared {
    let entries = match &entry.value.value {
        Value::Map(entries) => entries.as_slice(),
        Value::Scalar(scalar) if scalar.is_null() => &[],
        _ => {
            let what = entry.value.describe();
            sink.error(entry.value.place, format!("vars wants a map of names and values, this is {what}"));
            &[]
        }
    };
    let mut declared = Declared::default();
    for variable in entries.iter().filter(|entry| !entry.is_reported()) {
        let name = &variable.key;
        if !is_name(name) {
            let hint = "want a letter and then letters, digits and _";
            sink.hinted(variable.key_place, format!("{} is no name for a variable", quoted(name)), hint);
            continue;
        }
        if RESERVED.contains(&name.as_str()) {
            let hint = "it would hide what is known of the host";
            sink.hinted(variable.key_place, format!("a variable cannot be called {name}"), hint);
            continue;
        }
        declared.names.push(name.clone());
        if let Some(value) = value(variable, given, asker, sink) {
            declared.values.insert(name.clone(), value);
        }
    }
    declared
}

fn value(variable: &Entry, given: &Given, asker: Asker<'_>, sink: &mut Sink) -> Option<Var> {
    let (name, place) = (&variable.key, variable.value.place);
    let default = match &variable.value.value {
        Value::Scalar(scalar) if is_template(&scalar.text) => {
            let message = format!("the value of variable {name} has a template in it");
            sink.hinted(place, message, "variables are filled into resources only");
            return None;
        }
        Value::Scalar(scalar) if scalar.is_null() => None,
        Value::Scalar(scalar) => Some(core_schema(scalar)),
        _ => {
            let what = variable.value.describe();
            let message = format!("variable {name} wants a text, a number or true/false, this is {what}");
            sink.error(place, message);
            return None;
        }
    };
    let Some((text, giver)) = given.get(name) else {
        if default.is_none() {
            missing(variable, asker, sink);
        }
        return default;
    };
    let value = like(default.as_ref(), text);
    if value.is_none() {
        let want = if matches!(default, Some(Var::Bool(_))) { "true or false" } else { "a whole number" };
        let (message, text) = (format!("variable {name} wants {want}"), quoted(text));
        match giver {
            Giver::Flag => sink.error(variable.key_place, format!("{message}, --var gives {text}")),
            Giver::Kept => {
                sink.error(
                    variable.key_place,
                    format!("{message}, it was applied with {text}: give another"),
                );
            }
            Giver::Host => sink.error(variable.key_place, format!("{message}, the host's value is {text}")),
            Giver::File { file, place } => {
                let mut other = sink.beside(file);
                other.error(*place, format!("{message}, this is {text}"));
                sink.absorb(other);
            }
        }
    }
    value
}

fn missing(variable: &Entry, asker: Asker<'_>, sink: &mut Sink) {
    let name = &variable.key;
    let message = format!("variable {name} has no value");
    match asker {
        Asker::Nobody => {}
        Asker::User => {
            sink.hinted(variable.key_place, message, format!("give it one with --var {name}=VALUE"));
        }
        Asker::Outer { file, place } => {
            let mut other = sink.beside(file);
            other.hinted(place, message, format!("give it one here: vars: {{{name}: …}}"));
            sink.absorb(other);
        }
    }
}

/// True for what can be the name of a variable.
pub(crate) fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.len() <= 64
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// What to do about a variable that is not declared.
pub(crate) fn undeclared_hint(name: &str, known: &[String]) -> String {
    let known = known.iter().map(String::as_str).chain(RESERVED);
    match closest(name, known) {
        Some(close) => format!("did you mean {close}?"),
        None => format!("declare it: vars: {{{name}: …}}"),
    }
}

/// YAML 1.2's core schema, without floats: those stay as they are written.
fn core_schema(scalar: &Scalar) -> Var {
    match scalar.text.as_str() {
        "true" | "True" | "TRUE" if scalar.is_plain() => Var::Bool(true),
        "false" | "False" | "FALSE" if scalar.is_plain() => Var::Bool(false),
        text => match text.parse() {
            // Only what prints as it was written is a number: 0644 and +1 stay texts.
            Ok(number) if scalar.is_plain() && i64::to_string(&number) == text => Var::Whole(number),
            _ => Var::Text(text.to_owned()),
        },
    }
}

/// A text that was given as a value like the default.
fn like(default: Option<&Var>, text: &str) -> Option<Var> {
    match default {
        // As the core schema has them: a template writes True and False, and an include may pass one on.
        Some(Var::Bool(_)) => match text {
            "true" | "True" | "TRUE" => Some(Var::Bool(true)),
            "false" | "False" | "FALSE" => Some(Var::Bool(false)),
            _ => None,
        },
        Some(Var::Whole(_)) => text.parse().ok().map(Var::Whole),
        Some(Var::Text(_)) | None => Some(Var::Text(text.to_owned())),
    }
}
