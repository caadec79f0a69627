//! One resource: its kind, its fields as what they hold, and what its spec says of them.

use postern_proto::ids::Address;
use postern_proto::plan::PlannedResource;
use postern_proto::spec::{
    self, Field, FileSpec, Holds, KINDS, KindInfo, ResourceSpec as _, SpecError, Takes,
};
use postern_proto::text::{self, Hole, Part};
use serde_json::Value as Json;

use super::bundle::{Names, resolve};
use super::compile::{Compiler, Needed, Placed, constant, find};
use super::diag::{Place, Sink, quoted};
use super::template::{Site, is_template};
use super::yaml::{Entry, Node, Scalar, Value};

/// What a resource has beside its kind.
const BESIDE: [&str; 3] = ["id", "when", "needs"];
/// Fields of `file` in a profile that become its content.
const CONTENTS: [&str; 3] = ["content", "source", "template"];

/// What is read of one resource.
struct Reading {
    kind: &'static KindInfo,
    wanted: bool,
    spec: serde_json::Map<String, Json>,
    /// All of it could be read.
    complete: bool,
    /// It has a template, so that nothing can be said of its values while it is not wanted.
    templated: bool,
    late: Vec<(String, Place)>,
}

impl Compiler<'_, '_> {
    pub(crate) fn resource(&mut self, node: &Node, entries: &[Entry]) -> Option<()> {
        let (kind, entry) = self.kind(node, entries)?;
        let wants = self.wants(find(entries, "when"));
        let wanted = wants.unwrap_or(false);
        let (spec, late) = (serde_json::Map::new(), Vec::new());
        let mut reading = Reading { kind, wanted, spec, complete: true, templated: false, late };
        self.fields(entry, &mut reading);
        let id = match find(entries, "id") {
            None => None,
            Some(entry) => Some(constant(entry, self.sink)?),
        };
        let needs = match find(entries, "needs") {
            None => None,
            Some(entry) => Some(self.needs(entry)?),
        };
        let placed = self.place(entry, reading, id, needs);
        let wanted = wants?;
        match placed {
            Some(placed) => self.shared.profile.resources.push(placed),
            None if wanted => return None,
            None => {}
        }
        Some(())
    }

    /// The one kind of a resource.
    fn kind<'e>(&mut self, node: &Node, entries: &'e [Entry]) -> Option<(&'static KindInfo, &'e Entry)> {
        let mut kinds =
            entries.iter().filter(|entry| !BESIDE.contains(&entry.key.as_str()) && !entry.is_reported());
        let Some(first) = kinds.next() else {
            let hint = "write it as: - package: {name: curl}";
            self.sink.hinted(node.place, "this resource has no kind", hint);
            return None;
        };
        let kind = spec::kind(&first.key);
        if kind.is_none() {
            let words = KINDS.iter().map(|kind| kind.name);
            self.sink.unknown(first.key_place, "kind of resource", &first.key, words);
        }
        for entry in kinds {
            if spec::kind(&entry.key).is_some() {
                let message = format!("a second kind, {}, in one resource", entry.key);
                self.sink.hinted(entry.key_place, message, "begin each resource with \"- \"");
            } else if kind.is_some_and(|kind| kind.fields.iter().any(|field| field.name == entry.key)) {
                let message = format!("{} belongs to {}", entry.key, first.key);
                self.sink.hinted(entry.key_place, message, "indent it further than the kind");
            } else if kind.is_some() {
                self.sink.unknown(entry.key_place, "field of a resource", &entry.key, BESIDE.into_iter());
            }
        }
        kind.map(|kind| (kind, first))
    }

    /// What `needs` of a resource or of an include names.
    pub(crate) fn needs(&mut self, entry: &Entry) -> Option<Needed> {
        let Value::List(items) = &entry.value.value else {
            let message = format!("needs wants a list of ids, this is {}", entry.value.describe());
            self.sink.hinted(entry.value.place, message, "write needs: [one, two]");
            return None;
        };
        let mut needs = Vec::new();
        for item in items {
            let scalar = match &item.value {
                Value::Scalar(scalar) if !scalar.is_null() => scalar,
                _ => {
                    self.sink.error(item.place, format!("needs wants ids, this is {}", item.describe()));
                    return None;
                }
            };
            match self.templates.render(Site::of(scalar, item.place), self.sink)?.as_slice() {
                [Part::Text(text)] => needs.push((text.clone(), item.place)),
                _ => {
                    self.sink.error(item.place, "needs cannot have a late value or a secret in it");
                    return None;
                }
            }
        }
        Some(needs)
    }

    fn fields(&mut self, entry: &Entry, reading: &mut Reading) {
        let kind = reading.kind;
        let Value::Map(fields) = &entry.value.value else {
            let first = kind.fields.first().map_or("name", |field| field.name);
            let message =
                format!("{} wants a map of its fields, this is {}", kind.name, entry.value.describe());
            self.sink.hinted(entry.value.place, message, format!("write {}: {{{first}: …}}", kind.name));
            reading.complete = false;
            return;
        };
        let contents = if kind.name == FileSpec::KIND { CONTENTS.as_slice() } else { &[] };
        for field in fields {
            let from_file = contents.contains(&field.key.as_str()) && field.key != "content";
            let known = kind.fields.iter().find(|known| known.name == field.key);
            let value = match known {
                _ if field.is_reported() => None,
                _ if from_file => self.content(field, reading).map(|value| ("content".to_owned(), value)),
                Some(known) => {
                    self.field(known, &field.value, reading).map(|value| (field.key.clone(), value))
                }
                None => {
                    let words = kind.fields.iter().map(|field| field.name);
                    let words = words.chain(contents.iter().copied().filter(|word| *word != "content"));
                    let what = format!("field of {}", kind.name);
                    self.sink.unknown(field.key_place, &what, &field.key, words);
                    None
                }
            };
            match value {
                Some((name, value)) if !reading.spec.contains_key(&name) => {
                    reading.spec.insert(name, value);
                }
                Some(_) => {
                    let message = format!("{} has one of {}", kind.name, contents.join(", "));
                    self.sink.error(field.key_place, message);
                    reading.complete = false;
                }
                None => reading.complete = false,
            }
        }
        for known in kind.fields.iter().filter(|known| known.required) {
            if find(fields, known.name).is_none() {
                self.sink.error(entry.key_place, format!("{} needs {}", kind.name, known.name));
                reading.complete = false;
            }
        }
    }

    /// The content of a file from a file beside the profile: as it is, or rendered.
    fn content(&mut self, entry: &Entry, reading: &mut Reading) -> Option<Json> {
        let wanted = constant(entry, self.sink)?;
        let name = resolve(self.file(), Names::File, &wanted);
        let text = match self.shared.setting.bundle.get(&name) {
            Ok(text) => text,
            Err((place, message)) => {
                match place {
                    None => self.sink.error(entry.value.place, format!("{name} {message}")),
                    Some(place) => {
                        let mut other = self.sink.beside(name);
                        other.error(place, message);
                        self.sink.absorb(other);
                    }
                }
                return None;
            }
        };
        if entry.key == "source" {
            return Some(Json::String(text.to_owned()));
        }
        reading.templated |= is_template(text);
        let site = Site::file(text);
        let mut other = self.sink.beside(name);
        let parts = match reading.wanted {
            true => self.templates.render(site, &mut other),
            false if !self.templates.form(site, &mut other) => None,
            false => self.templates.render(site, &mut Sink::new("")),
        };
        self.sink.absorb(other);
        let parts = parts?;
        self.late(site, &parts, entry.value.place, reading);
        Some(text::to_json(parts))
    }

    /// The value of a field. Of a resource that is not wanted, a template is only looked at for its form.
    fn field(&mut self, field: &Field, node: &Node, reading: &mut Reading) -> Option<Json> {
        let templated = node.has(&|scalar| is_template(&scalar.text));
        reading.templated |= templated;
        if reading.wanted || !templated {
            return self.value(field, node, reading);
        }
        let mut good = true;
        node.each(&mut |scalar, place| {
            good &= self.templates.form(Site::of(scalar, place), self.sink);
        });
        let scratch = self.sink.beside("");
        let sink = std::mem::replace(self.sink, scratch);
        let value = self.value(field, node, reading);
        *self.sink = sink;
        value.filter(|_| good)
    }

    /// A field's value as what the field holds.
    fn value(&mut self, field: &Field, node: &Node, reading: &mut Reading) -> Option<Json> {
        let name = field.name;
        let each = Field { holds: Holds::Text, ..*field };
        match (field.holds, &node.value) {
            _ if node.is_bare_template() => None,
            (Holds::TextList, Value::List(items)) => {
                let texts: Vec<_> = items.iter().map(|item| self.text(&each, item, reading)).collect();
                texts.into_iter().collect::<Option<Vec<_>>>().map(Json::Array)
            }
            (Holds::TextMap, Value::Map(entries)) => {
                let texts: Vec<_> = entries
                    .iter()
                    .map(|entry| Some((entry.key.clone(), self.text(&each, &entry.value, reading)?)))
                    .collect();
                texts.into_iter().collect::<Option<serde_json::Map<_, _>>>().map(Json::Object)
            }
            (Holds::TextList | Holds::TextMap, _) => {
                let (want, hint) = match field.holds {
                    Holds::TextList => ("a list", format!("write {name}: [one, two]")),
                    _ => ("a map", format!("write {name}: {{NAME: value}}")),
                };
                let message = format!("{name} wants {want} of texts, this is {}", node.describe());
                self.sink.hinted(node.place, message, hint);
                None
            }
            _ => self.text(field, node, reading),
        }
    }

    /// A scalar as what its field holds. The field decides, not the look of the value: `mode: 0644` and
    /// `version: 1.10` are the texts that were written.
    fn text(&mut self, field: &Field, node: &Node, reading: &mut Reading) -> Option<Json> {
        let name = field.name;
        let want = match field.holds {
            Holds::Bool => "true or false".to_owned(),
            Holds::Count => "a whole number".to_owned(),
            Holds::OneOf(words) => words.join(" or "),
            Holds::Text | Holds::TextList | Holds::TextMap => "a text".to_owned(),
        };
        let scalar = match &node.value {
            Value::Scalar(scalar) if !scalar.is_null() => scalar,
            _ if node.is_bare_template() => return None,
            _ => {
                self.sink.error(node.place, format!("{name} wants {want}, this is {}", node.describe()));
                return None;
            }
        };
        let site = Site::of(scalar, node.place);
        let parts = self.templates.render(site, self.sink)?;
        if let Some(hole) = parts.iter().find_map(hole) {
            if !matches!(field.holds, Holds::Text) || !self.takes(field, site, &parts, reading.kind) {
                if !matches!(field.holds, Holds::Text) {
                    let message =
                        format!("{name} wants {want} now, not a value that is filled in on the host");
                    self.sink.error(site.place_of(hole), message);
                }
                return None;
            }
            self.late(site, &parts, node.place, reading);
            return Some(text::to_json(parts));
        }
        let text: String =
            parts.iter().map(|part| if let Part::Text(text) = part { text } else { "" }).collect();
        self.plain(field, &want, scalar, node.place, text)
    }

    /// A text without holes as what its field holds.
    fn plain(
        &mut self,
        field: &Field,
        want: &str,
        scalar: &Scalar,
        place: Place,
        text: String,
    ) -> Option<Json> {
        // Quotes say that a text is meant; only a template cannot be written without them.
        let loose = scalar.is_plain() || is_template(&scalar.text);
        let value = match field.holds {
            Holds::Text | Holds::TextList | Holds::TextMap => return Some(Json::String(text)),
            Holds::Bool if loose => match text.trim() {
                "true" | "True" | "TRUE" => Some(Json::Bool(true)),
                "false" | "False" | "FALSE" => Some(Json::Bool(false)),
                _ => None,
            },
            Holds::Count if loose => text.trim().parse::<u64>().ok().map(Json::from),
            Holds::Bool | Holds::Count => None,
            Holds::OneOf(words) if words.contains(&text.as_str()) => return Some(Json::String(text)),
            Holds::OneOf(words) => {
                self.sink.unknown(place, &format!("value of {}", field.name), &text, words.iter().copied());
                return None;
            }
        };
        if value.is_none() {
            let quotes = if loose { "" } else { " in quotes" };
            let message = format!("{} wants {want}, this is {}{quotes}", field.name, quoted(&text));
            self.sink.error(place, message);
        }
        value
    }

    /// Whether a field takes these holes; says so where it does not.
    fn takes(&mut self, field: &Field, site: Site<'_>, parts: &[Part], kind: &KindInfo) -> bool {
        let mut good = true;
        for hole in parts.iter().filter_map(hole) {
            let (message, enough) = match (hole, field.takes) {
                (Hole::Late(_), Takes::Plain) => ("a late value in it".to_owned(), Takes::Late),
                (Hole::Secret(_), Takes::Plain | Takes::Late) => {
                    let why = "it would be seen by others on the host, or in logs";
                    (format!("a secret in it: {why}"), Takes::Secret)
                }
                _ => continue,
            };
            let fields =
                kind.fields.iter().filter(|field| field.takes == enough || field.takes == Takes::Secret);
            let fields: Vec<_> = fields.map(|field| field.name).collect();
            let hint = match fields.is_empty() {
                true => format!("no field of {} can", kind.name),
                false => format!("fields of {} that can: {}", kind.name, fields.join(", ")),
            };
            self.sink.hinted(site.place_of(hole), format!("{} cannot have {message}", field.name), hint);
            good = false;
        }
        good
    }

    /// Takes down which late values are used. Places in other files are those of the field that names them.
    fn late(&self, site: Site<'_>, parts: &[Part], place: Place, reading: &mut Reading) {
        for hole in parts.iter().filter_map(hole) {
            if let Hole::Late(name) = hole {
                let place = if site.is_file() { place } else { site.place_of(hole) };
                reading.late.push((name.clone(), place));
            }
        }
    }

    /// What the spec itself says about its values, each at its field; then the address.
    fn place(
        &mut self,
        entry: &Entry,
        reading: Reading,
        id: Option<String>,
        needs: Option<Needed>,
    ) -> Option<Placed> {
        let Reading { kind, wanted, spec, complete, templated, late } = reading;
        if !complete {
            return None;
        }
        let spec = Json::Object(spec);
        let errors = (kind.check)(&spec);
        for SpecError { field, message } in errors.iter().filter(|_| wanted || !templated) {
            let text = if field.is_empty() {
                format!("{}: {message}", kind.name)
            } else {
                format!("{}.{field}: {message}", kind.name)
            };
            self.sink.error(locate(entry, field), text);
        }
        let target = (kind.natural_name)(&spec).filter(|_| errors.is_empty())?;
        let name = id.unwrap_or_else(|| target.clone());
        let address = match Address::new(&self.scope, kind.name, &name) {
            Ok(address) => address,
            Err(error) => {
                if wanted {
                    self.sink.hinted(entry.key_place, error.to_string(), "give it a short name with id:");
                }
                return None;
            }
        };
        let line = entry.key_place.line;
        // One of two with opposite conditions is not here.
        if wanted && let Some(first) = self.shared.addresses.insert(address.clone(), line) {
            let message = format!("{address} is here twice, first in line {first}");
            self.sink.hinted(entry.key_place, message, "give one of them another id:");
            return None;
        }
        let resource =
            PlannedResource { address, kind: kind.name.into(), schema: kind.schema, spec, needs: None };
        let (file, place) = (self.file().to_owned(), entry.key_place);
        Some(Placed { resource, target, file, place, wanted, needs, under: self.under, late })
    }
}

fn hole(part: &Part) -> Option<&Hole> {
    match part {
        Part::Hole(hole) => Some(hole),
        Part::Text(_) => None,
    }
}

/// The place of the field that a spec's error names, as near as there is one.
fn locate(entry: &Entry, field: &str) -> Place {
    let Value::Map(fields) = &entry.value.value else { return entry.key_place };
    let (first, rest) = field.split_once('.').unwrap_or((field, ""));
    let found = find(fields, first)
        .or_else(|| CONTENTS.iter().filter(|_| first == "content").find_map(|content| find(fields, content)));
    match found {
        None => entry.key_place,
        Some(found) => match &found.value.value {
            Value::Map(inner) => find(inner, rest).map_or(found.value.place, |inner| inner.key_place),
            _ => found.value.place,
        },
    }
}
