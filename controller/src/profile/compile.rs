//! From the tree of one profile to resources, each with the places of its fields; reports all that is wrong.

use std::collections::{BTreeMap, HashMap};

use postern_proto::ids::Address;
use postern_proto::plan::PlannedResource;
use postern_proto::spec::{self, Holds, KINDS, KindInfo, SpecError};
use serde_json::Value as Json;

use super::diag::{Place, Sink, quoted};
use super::template::{Templates, Var, is_template};
use super::yaml::{Entry, Node, Scalar, Value};

/// A resource and where it came from.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) resource: PlannedResource,
    /// What it is about on the host: two resources of a kind with one target contradict each other unless
    /// they say the same.
    pub(crate) target: String,
    pub(crate) place: Place,
}

/// One profile, compiled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Profile {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) variables: Vec<String>,
    pub(crate) resources: Vec<Placed>,
}

const TOP_FIELDS: [&str; 4] = ["name", "description", "vars", "resources"];

/// Compiles one profile with the values that were given for variables. What it yields is only to be used
/// when `sink` is clean.
pub(crate) fn profile(root: &Node, given: &BTreeMap<String, String>, sink: &mut Sink) -> Profile {
    let Value::Map(top) = &root.value else {
        sink.hinted(
            root.place,
            format!("a profile is a map, this is {}", root.describe()),
            "begin with name: and resources:",
        );
        return Profile::default();
    };
    for entry in top {
        if !TOP_FIELDS.contains(&entry.key.as_str()) && !is_reported(entry) {
            sink.unknown(entry.key_place, "field", &entry.key, TOP_FIELDS.into_iter());
        }
    }
    let name = name(root, find(top, "name"), sink);
    let description = find(top, "description").and_then(|entry| constant(entry, sink)).unwrap_or_default();
    let (values, variables) = match find(top, "vars") {
        Some(entry) => variables(entry, given, sink),
        None => (BTreeMap::new(), Vec::new()),
    };
    let templates = Templates::new(&values, variables.clone());
    let mut compiler = Compiler { scope: &name, templates: &templates, sink, seen: HashMap::new() };
    let resources = match find(top, "resources") {
        Some(entry) => compiler.resources(&entry.value),
        None => {
            compiler.sink.error(root.place, "resources: is missing");
            Vec::new()
        }
    };
    Profile { name, description, variables, resources }
}

fn find<'a>(entries: &'a [Entry], key: &str) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.key == key)
}

/// A key that is a map or a list was reported by the parser.
fn is_reported(entry: &Entry) -> bool {
    entry.key == "\u{0}"
}

/// A text in which no variable may stand.
fn constant(entry: &Entry, sink: &mut Sink) -> Option<String> {
    match &entry.value.value {
        Value::Scalar(scalar) if is_template(&scalar.text) => {
            sink.error(entry.value.place, format!("{} cannot have variables in it", entry.key));
            None
        }
        Value::Scalar(scalar) if !scalar.is_null() => Some(scalar.text.clone()),
        _ => {
            let what = entry.value.describe();
            sink.error(entry.value.place, format!("{} wants a text, this is {what}", entry.key));
            None
        }
    }
}

fn name(root: &Node, entry: Option<&Entry>, sink: &mut Sink) -> String {
    const STAND_IN: &str = "profile";
    let Some(entry) = entry else {
        sink.error(root.place, "name: is missing");
        return STAND_IN.into();
    };
    let Some(name) = constant(entry, sink) else { return STAND_IN.into() };
    let valid = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'));
    if valid {
        return name;
    }
    let hint = "want up to 64 lower case letters, digits, - and _";
    sink.hinted(entry.value.place, format!("{} is no name for a profile", quoted(&name)), hint);
    STAND_IN.into()
}

/// The values of all variables that have one, and the names of all.
fn variables(
    entry: &Entry,
    given: &BTreeMap<String, String>,
    sink: &mut Sink,
) -> (BTreeMap<String, Var>, Vec<String>) {
    let entries = match &entry.value.value {
        Value::Map(entries) => entries.as_slice(),
        Value::Scalar(scalar) if scalar.is_null() => &[],
        _ => {
            let what = entry.value.describe();
            sink.error(entry.value.place, format!("vars wants a map of names and values, this is {what}"));
            &[]
        }
    };
    let (mut values, mut names) = (BTreeMap::new(), Vec::new());
    for variable in entries.iter().filter(|entry| !is_reported(entry)) {
        let (name, place) = (&variable.key, variable.value.place);
        let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.len() <= 64
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !valid {
            let hint = "want a letter and then letters, digits and _";
            sink.hinted(variable.key_place, format!("{} is no name for a variable", quoted(name)), hint);
            continue;
        }
        names.push(name.clone());
        let default = match &variable.value.value {
            Value::Scalar(scalar) if is_template(&scalar.text) => {
                sink.hinted(
                    place,
                    format!("the value of variable {name} has a template in it"),
                    "variables are filled into resources only",
                );
                continue;
            }
            Value::Scalar(scalar) if scalar.is_null() => None,
            Value::Scalar(scalar) => Some(core_schema(scalar)),
            _ => {
                let what = variable.value.describe();
                sink.error(
                    place,
                    format!("variable {name} wants a text, a number or true/false, this is {what}"),
                );
                continue;
            }
        };
        let value = match (given.get(name), default) {
            (Some(text), default) => like(default.as_ref(), text).or_else(|| {
                let want =
                    if matches!(default, Some(Var::Bool(_))) { "true or false" } else { "a whole number" };
                let text = quoted(text);
                sink.error(variable.key_place, format!("variable {name} wants {want}, --var gives {text}"));
                None
            }),
            (None, Some(default)) => Some(default),
            (None, None) => {
                let hint = format!("give it one with --var {name}=VALUE");
                sink.hinted(variable.key_place, format!("variable {name} has no value"), hint);
                None
            }
        };
        values.extend(value.map(|value| (name.clone(), value)));
    }
    (values, names)
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

/// A text from the command line as a value like the default.
fn like(default: Option<&Var>, text: &str) -> Option<Var> {
    match default {
        Some(Var::Bool(_)) => text.parse().ok().map(Var::Bool),
        Some(Var::Whole(_)) => text.parse().ok().map(Var::Whole),
        Some(Var::Text(_)) | None => Some(Var::Text(text.to_owned())),
    }
}

struct Compiler<'a> {
    scope: &'a str,
    templates: &'a Templates,
    sink: &'a mut Sink,
    /// Line of each address.
    seen: HashMap<Address, usize>,
}

impl Compiler<'_> {
    fn resources(&mut self, node: &Node) -> Vec<Placed> {
        match &node.value {
            Value::List(items) if items.is_empty() => {
                self.sink.error(node.place, "resources is empty");
                Vec::new()
            }
            Value::List(items) => {
                let resources: Vec<_> = items.iter().filter_map(|item| self.resource(item)).collect();
                if resources.len() != items.len() && self.sink.is_clean() {
                    // A resource must never be left out in silence.
                    self.sink
                        .error(node.place, "a resource could not be compiled, which is a mistake in Postern");
                }
                resources
            }
            _ => {
                let message = format!("resources wants a list, this is {}", node.describe());
                self.sink.hinted(node.place, message, "each resource begins with \"- \"");
                Vec::new()
            }
        }
    }

    fn resource(&mut self, node: &Node) -> Option<Placed> {
        const HINT: &str = "write it as: - package: {name: curl}";
        let Value::Map(entries) = &node.value else {
            let message = format!("a resource is a map with its kind, this is {}", node.describe());
            self.sink.hinted(node.place, message, HINT);
            return None;
        };
        let id = find(entries, "id");
        let mut kinds = entries.iter().filter(|entry| entry.key != "id" && !is_reported(entry));
        let Some(kind_entry) = kinds.next() else {
            self.sink.hinted(node.place, "this resource has no kind", HINT);
            return None;
        };
        let kind = spec::kind(&kind_entry.key);
        if kind.is_none() {
            let words = KINDS.iter().map(|kind| kind.name);
            self.sink.unknown(kind_entry.key_place, "kind of resource", &kind_entry.key, words);
        }
        for entry in kinds {
            if spec::kind(&entry.key).is_some() {
                let message = format!("a second kind, {}, in one resource", entry.key);
                self.sink.hinted(entry.key_place, message, "begin each resource with \"- \"");
            } else if kind.is_some_and(|kind| kind.fields.iter().any(|field| field.name == entry.key)) {
                let message = format!("{} belongs to {}", entry.key, kind_entry.key);
                self.sink.hinted(entry.key_place, message, "indent it further than the kind");
            } else if kind.is_some() {
                self.sink.unknown(entry.key_place, "field of a resource", &entry.key, ["id"].into_iter());
            }
        }
        let kind = kind?;
        let (spec, complete) = self.spec(kind, kind_entry);
        let id = match id {
            None => None,
            Some(entry) => Some(constant(entry, self.sink)?),
        };
        if !complete {
            return None;
        }
        self.check(kind, kind_entry, spec, id)
    }

    /// The spec as JSON, and whether all of it could be read.
    fn spec(&mut self, kind: &KindInfo, entry: &Entry) -> (serde_json::Map<String, Json>, bool) {
        let mut spec = serde_json::Map::new();
        let Value::Map(fields) = &entry.value.value else {
            let first = kind.fields.first().map_or("name", |field| field.name);
            let message =
                format!("{} wants a map of its fields, this is {}", kind.name, entry.value.describe());
            self.sink.hinted(entry.value.place, message, format!("write {}: {{{first}: …}}", kind.name));
            return (spec, false);
        };
        let mut complete = true;
        for field in fields {
            if is_reported(field) {
                complete = false;
                continue;
            }
            let Some(known) = kind.fields.iter().find(|known| known.name == field.key) else {
                let words = kind.fields.iter().map(|field| field.name);
                self.sink.unknown(field.key_place, &format!("field of {}", kind.name), &field.key, words);
                complete = false;
                continue;
            };
            match self.value(known.name, known.holds, &field.value) {
                Some(value) => {
                    spec.insert(field.key.clone(), value);
                }
                None => complete = false,
            }
        }
        for known in kind.fields.iter().filter(|known| known.required) {
            if find(fields, known.name).is_none() {
                self.sink.error(entry.key_place, format!("{} needs {}", kind.name, known.name));
                complete = false;
            }
        }
        (spec, complete)
    }

    /// A field's value as what the field holds.
    fn value(&mut self, field: &str, holds: Holds, node: &Node) -> Option<Json> {
        match (holds, &node.value) {
            _ if node.is_bare_template() => None,
            (Holds::TextList, Value::List(items)) => {
                let texts: Vec<_> = items.iter().map(|item| self.text(field, Holds::Text, item)).collect();
                texts.into_iter().collect::<Option<Vec<_>>>().map(Json::Array)
            }
            (Holds::TextMap, Value::Map(entries)) => {
                let texts: Vec<_> = entries
                    .iter()
                    .map(|entry| Some((entry.key.clone(), self.text(field, Holds::Text, &entry.value)?)))
                    .collect();
                texts.into_iter().collect::<Option<serde_json::Map<_, _>>>().map(Json::Object)
            }
            (Holds::TextList | Holds::TextMap, _) => {
                let (want, hint) = match holds {
                    Holds::TextList => ("a list", format!("write {field}: [one, two]")),
                    _ => ("a map", format!("write {field}: {{NAME: value}}")),
                };
                let message = format!("{field} wants {want} of texts, this is {}", node.describe());
                self.sink.hinted(node.place, message, hint);
                None
            }
            (holds, _) => self.text(field, holds, node),
        }
    }

    /// A scalar as what its field holds. The field decides, not the look of the value: `mode: 0644` and
    /// `version: 1.10` are the texts that were written.
    fn text(&mut self, field: &str, holds: Holds, node: &Node) -> Option<Json> {
        let want = match holds {
            Holds::Bool => "true or false".to_owned(),
            Holds::Count => "a whole number".to_owned(),
            Holds::OneOf(words) => words.join(" or "),
            Holds::Text | Holds::TextList | Holds::TextMap => "a text".to_owned(),
        };
        let scalar = match &node.value {
            Value::Scalar(scalar) if !scalar.is_null() => scalar,
            _ if node.is_bare_template() => return None,
            _ => {
                let message = format!("{field} wants {want}, this is {}", node.describe());
                self.sink.error(node.place, message);
                return None;
            }
        };
        let text = self.templates.render(scalar, node.place, self.sink)?;
        // Quotes say that a text is meant; only a template cannot be written without them.
        let loose = scalar.is_plain() || is_template(&scalar.text);
        let value = match holds {
            Holds::Text | Holds::TextList | Holds::TextMap => Some(Json::String(text.clone())),
            Holds::Bool if loose => match text.trim() {
                "true" | "True" | "TRUE" => Some(Json::Bool(true)),
                "false" | "False" | "FALSE" => Some(Json::Bool(false)),
                _ => None,
            },
            Holds::Count if loose => text.trim().parse::<u64>().ok().map(Json::from),
            Holds::Bool | Holds::Count => None,
            Holds::OneOf(words) if words.contains(&text.as_str()) => Some(Json::String(text.clone())),
            Holds::OneOf(words) => {
                self.sink.unknown(node.place, &format!("value of {field}"), &text, words.iter().copied());
                return None;
            }
        };
        if value.is_none() {
            let quotes = if loose { "" } else { " in quotes" };
            let message = format!("{field} wants {want}, this is {}{quotes}", quoted(&text));
            self.sink.error(node.place, message);
        }
        value
    }

    /// What the spec itself says about its values, each at its field; then the address.
    fn check(
        &mut self,
        kind: &KindInfo,
        entry: &Entry,
        spec: serde_json::Map<String, Json>,
        id: Option<String>,
    ) -> Option<Placed> {
        let spec = Json::Object(spec);
        let errors = (kind.check)(&spec);
        for SpecError { field, message } in &errors {
            let place = locate(entry, field);
            let text = if field.is_empty() {
                format!("{}: {message}", kind.name)
            } else {
                format!("{}.{field}: {message}", kind.name)
            };
            self.sink.error(place, text);
        }
        let target = (kind.natural_name)(&spec).filter(|_| errors.is_empty())?;
        let name = id.unwrap_or_else(|| target.clone());
        let address = match Address::new(self.scope, kind.name, &name) {
            Ok(address) => address,
            Err(error) => {
                self.sink.hinted(entry.key_place, error.to_string(), "give it a short name with id:");
                return None;
            }
        };
        let line = entry.key_place.line;
        if let Some(first) = self.seen.insert(address.clone(), line) {
            let message = format!("{address} is here twice, first in line {first}");
            self.sink.hinted(entry.key_place, message, "give one of them another id:");
            return None;
        }
        let resource =
            PlannedResource { address, kind: kind.name.into(), schema: kind.schema, spec, needs: None };
        Some(Placed { resource, target, place: entry.key_place })
    }
}

/// The place of the field that a spec's error names, as near as there is one.
fn locate(entry: &Entry, field: &str) -> Place {
    let Value::Map(fields) = &entry.value.value else { return entry.key_place };
    let (first, rest) = field.split_once('.').unwrap_or((field, ""));
    match fields.iter().find(|candidate| candidate.key == first) {
        None => entry.key_place,
        Some(found) => match &found.value.value {
            Value::Map(inner) => find(inner, rest).map_or(found.value.place, |inner| inner.key_place),
            _ => found.value.place,
        },
    }
}
