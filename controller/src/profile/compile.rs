//! From the tree of a profile, and of those it includes, to resources; reports all that is wrong.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use postern_proto::ids::Address;
use postern_proto::plan::PlannedResource;

use super::About;
use super::bundle::{Bundle, MAX_INCLUDES, Names, resolve};
use super::diag::{Place, Sink, quoted};
use super::facts::Platform;
use super::holes::Secrets;
use super::template::{Site, Templates, is_template};
use super::vars::{Asker, Declared, Given, Giver, declared};
use super::yaml::{self, Entry, Node, Value};

/// A resource and where it came from.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    /// `needs` is filled in when the plan is whole.
    pub(crate) resource: PlannedResource,
    /// What it is about on the host: two resources of a kind with one target contradict each other unless
    /// they say the same.
    pub(crate) target: String,
    pub(crate) file: String,
    pub(crate) place: Place,
    /// Its `when` says so. One that is not wanted is kept for those that name it.
    pub(crate) wanted: bool,
    /// As written.
    pub(crate) needs: Option<Needed>,
    /// The innermost include around it that has `needs`: its place in [`Profile::needing`].
    pub(crate) under: Option<usize>,
    /// The late values it uses.
    pub(crate) late: Vec<(String, Place)>,
}

/// What `needs` names, as written.
pub(crate) type Needed = Vec<(String, Place)>;

/// An include with `needs`.
#[derive(Clone, Debug)]
pub(crate) struct Needing {
    /// Of the profile that has it.
    pub(crate) scope: String,
    pub(crate) file: String,
    pub(crate) needs: Needed,
    /// Such an include around it.
    pub(crate) under: Option<usize>,
}

/// One profile, compiled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Profile {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) variables: Vec<String>,
    pub(crate) resources: Vec<Placed>,
    pub(crate) needing: Vec<Needing>,
    /// Scopes of includes that are not wanted.
    pub(crate) left_out: Vec<String>,
    /// Names of the profiles that it includes, and they.
    pub(crate) includes: BTreeSet<String>,
}

const TOP_FIELDS: [&str; 4] = ["name", "description", "vars", "resources"];
const INCLUDE_FIELDS: [&str; 5] = ["include", "id", "vars", "when", "needs"];
/// The most resources of one profile with all that it includes.
const MAX_RESOURCES: usize = 10_000;

/// What a profile is compiled with.
pub(crate) struct Setting<'a> {
    pub(crate) bundle: &'a Bundle,
    pub(crate) platform: &'a Platform,
    pub(crate) secrets: &'a Arc<Secrets>,
}

/// Compiles one profile. What it yields is only to be used when `sink` is clean.
pub(crate) fn profile(setting: &Setting<'_>, given: &Given, sink: &mut Sink) -> Option<Profile> {
    let root = tree(setting.bundle, setting.bundle.file(), sink)?;
    let top = top(&root, sink)?;
    let name = name(&root, find(top, "name"), sink);
    let description = find(top, "description").and_then(|entry| constant(entry, sink)).unwrap_or_default();
    let declared = variables(top, given, Asker::User, sink);
    let mut profile =
        Profile { name: name.clone(), description, variables: declared.names.clone(), ..Profile::default() };
    let templates = Templates::new(&declared, setting.platform.values(), setting.secrets.clone());
    let mut shared =
        Shared { setting, profile: &mut profile, addresses: HashMap::new(), scopes: HashMap::new() };
    let stack = vec![setting.bundle.file().to_owned()];
    let mut compiler = Compiler {
        shared: &mut shared,
        scope: name,
        stack,
        templates: &templates,
        wanted: true,
        under: None,
        sink,
    };
    compiler.resources(&root, top);
    Some(profile)
}

/// What a profile says of itself, as far as it can be read: name, description and variables.
pub(crate) fn about(bundle: &Bundle) -> About {
    let mut sink = Sink::new(bundle.file());
    let Some(root) = tree(bundle, bundle.file(), &mut sink) else { return About::default() };
    let Some(top) = top(&root, &mut sink) else { return About::default() };
    let text = |key| find(top, key).and_then(|entry| constant(entry, &mut Sink::new("")));
    let variables = match find(top, "vars").map(|entry| &entry.value.value) {
        Some(Value::Map(entries)) => entries.as_slice(),
        _ => &[],
    };
    let default = |entry: &Entry| match &entry.value.value {
        Value::Scalar(scalar) if !scalar.is_null() => Some(scalar.text.clone()),
        _ => None,
    };
    let variables = variables.iter().filter(|entry| !entry.is_reported());
    let variables = variables.map(|entry| (entry.key.clone(), default(entry))).collect();
    About { name: text("name"), description: text("description").unwrap_or_default(), variables }
}

/// The name that a text gives itself, where it is a profile.
pub(crate) fn name_of(text: &str) -> Option<String> {
    let mut sink = Sink::new("");
    let root = yaml::parse(text, &mut sink)?;
    let Value::Map(top) = &root.value else { return None };
    find(top, "resources")?;
    find(top, "name").and_then(|entry| constant(entry, &mut sink))
}

/// The tree of a file of the bundle.
fn tree(bundle: &Bundle, file: &str, sink: &mut Sink) -> Option<Node> {
    match bundle.get(file) {
        Ok(text) => yaml::parse(text.strip_prefix('\u{feff}').unwrap_or(text), sink),
        Err((place, message)) => {
            sink.error(place.unwrap_or(Place::START), message);
            None
        }
    }
}

/// The fields of a profile.
fn top<'a>(root: &'a Node, sink: &mut Sink) -> Option<&'a [Entry]> {
    let Value::Map(top) = &root.value else {
        let message = format!("a profile is a map, this is {}", root.describe());
        sink.hinted(root.place, message, "begin with name: and resources:");
        return None;
    };
    for entry in top.iter().filter(|entry| !TOP_FIELDS.contains(&entry.key.as_str()) && !entry.is_reported())
    {
        sink.unknown(entry.key_place, "field", &entry.key, TOP_FIELDS.into_iter());
    }
    Some(top)
}

fn variables(top: &[Entry], given: &Given, asker: Asker<'_>, sink: &mut Sink) -> Declared {
    find(top, "vars").map(|entry| declared(entry, given, asker, sink)).unwrap_or_default()
}

pub(crate) fn find<'a>(entries: &'a [Entry], key: &str) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.key == key)
}

/// A text in which no variable may stand.
pub(crate) fn constant(entry: &Entry, sink: &mut Sink) -> Option<String> {
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
    if is_scope(&name) {
        return name;
    }
    let hint = "want up to 64 lower case letters, digits, - and _";
    sink.hinted(entry.value.place, format!("{} is no name for a profile", quoted(&name)), hint);
    STAND_IN.into()
}

fn is_scope(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'))
}

/// What a profile and all it includes have in common.
pub(crate) struct Shared<'a> {
    pub(crate) setting: &'a Setting<'a>,
    pub(crate) profile: &'a mut Profile,
    /// Line of each address.
    pub(crate) addresses: HashMap<Address, usize>,
    /// Line of each include that is wanted, by scope.
    scopes: HashMap<String, usize>,
}

/// How a profile is included.
struct Inner<'a> {
    file: &'a str,
    id: Option<String>,
    given: &'a Given,
    wanted: bool,
    under: Option<usize>,
}

/// Compiles the resources of one file.
pub(crate) struct Compiler<'a, 's> {
    pub(crate) shared: &'a mut Shared<'s>,
    pub(crate) scope: String,
    /// The files that include each other, this one last.
    pub(crate) stack: Vec<String>,
    pub(crate) templates: &'a Templates,
    /// False below an include that is left out: only the form is checked.
    pub(crate) wanted: bool,
    /// See [`Placed::under`].
    pub(crate) under: Option<usize>,
    pub(crate) sink: &'a mut Sink,
}

impl Compiler<'_, '_> {
    pub(crate) fn file(&self) -> &str {
        self.stack.last().map_or("", String::as_str)
    }

    fn resources(&mut self, root: &Node, top: &[Entry]) {
        let Some(entry) = find(top, "resources") else {
            self.sink.error(root.place, "resources: is missing");
            return;
        };
        let node = &entry.value;
        match &node.value {
            Value::List(items) if items.is_empty() => self.sink.error(node.place, "resources is empty"),
            Value::List(items) => {
                let bad = items.iter().filter(|item| self.item(item).is_none()).count();
                if bad > 0 && self.sink.is_clean() {
                    // A resource must never be left out in silence.
                    let message = "a resource could not be compiled, which is a mistake in Postern";
                    self.sink.error(node.place, message);
                }
            }
            _ => {
                let message = format!("resources wants a list, this is {}", node.describe());
                self.sink.hinted(node.place, message, "each resource begins with \"- \"");
            }
        }
    }

    /// One item of the list; `None` when it is wrong.
    fn item(&mut self, node: &Node) -> Option<()> {
        if self.shared.profile.resources.len() >= MAX_RESOURCES {
            self.sink.error(node.place, format!("more than {MAX_RESOURCES} resources"));
            return None;
        }
        match &node.value {
            Value::Map(entries) => match find(entries, "include") {
                Some(include) => self.include(entries, include),
                None => self.resource(node, entries),
            },
            _ => {
                let message = format!("a resource is a map with its kind, this is {}", node.describe());
                self.sink.hinted(node.place, message, "write it as: - package: {name: curl}");
                None
            }
        }
    }

    /// Whether what has this `when` is wanted; `None` when it cannot be told.
    pub(crate) fn wants(&mut self, when: Option<&Entry>) -> Option<bool> {
        let Some(entry) = when else { return Some(self.wanted) };
        let Value::Scalar(scalar) = &entry.value.value else {
            if !entry.value.is_bare_template() {
                let message = format!("when wants a condition, this is {}", entry.value.describe());
                self.sink.error(entry.value.place, message);
            }
            return None;
        };
        if scalar.is_null() {
            self.sink.error(entry.value.place, "when wants a condition, this is nothing");
            return None;
        }
        let site = Site::of(scalar, entry.value.place);
        match self.wanted {
            true => self.templates.condition(site, self.sink),
            // Variables may have no value below an include that is left out.
            false => self.templates.condition_form(site, self.sink).then_some(false),
        }
    }

    /// Another profile in the place of a resource.
    fn include(&mut self, entries: &[Entry], include: &Entry) -> Option<()> {
        for entry in entries.iter().filter(|entry| !entry.is_reported()) {
            if !INCLUDE_FIELDS.contains(&entry.key.as_str()) {
                self.sink.unknown(
                    entry.key_place,
                    "field of an include",
                    &entry.key,
                    INCLUDE_FIELDS.into_iter(),
                );
            }
        }
        let file = constant(include, self.sink)?;
        let id = match find(entries, "id") {
            None => None,
            Some(entry) => {
                let id = constant(entry, self.sink)?;
                if !is_scope(&id) {
                    let hint = "want up to 64 lower case letters, digits, - and _";
                    let message = format!("{} is no id for an include", quoted(&id));
                    self.sink.hinted(entry.value.place, message, hint);
                    return None;
                }
                Some(id)
            }
        };
        let wanted = self.wants(find(entries, "when"))?;
        let given = self.passed(find(entries, "vars"), wanted)?;
        let under = match find(entries, "needs") {
            None => self.under,
            Some(entry) => {
                let needs = self.needs(entry)?;
                let (scope, file) = (self.scope.clone(), self.file().to_owned());
                self.shared.profile.needing.push(Needing { scope, file, needs, under: self.under });
                self.shared.profile.needing.len().checked_sub(1)
            }
        };
        let place = include.value.place;
        let name = resolve(self.file(), Names::Profile, &file);
        if self.stack.contains(&name) {
            let way: Vec<_> = self.stack.iter().skip_while(|file| **file != name).cloned().collect();
            self.sink.error(place, format!("{name} includes itself: {} -> {name}", way.join(" -> ")));
            return None;
        }
        if self.stack.len() > MAX_INCLUDES {
            self.sink.error(place, format!("includes go more than {MAX_INCLUDES} deep"));
            return None;
        }
        if let Err((None, message)) = self.shared.setting.bundle.get(&name) {
            self.sink.error(place, format!("{name} {message}"));
            return None;
        }
        let mut sink = self.sink.beside(name.as_str());
        let inner = Inner { file: &name, id, given: &given, wanted, under };
        let done = self.included(inner, include, &mut sink);
        let clean = sink.is_clean();
        self.sink.absorb(sink);
        done.filter(|()| clean)
    }

    fn included(&mut self, inner: Inner<'_>, include: &Entry, sink: &mut Sink) -> Option<()> {
        let Inner { file, id, given, wanted, under } = inner;
        let root = tree(self.shared.setting.bundle, file, sink)?;
        let top = top(&root, sink)?;
        let own = name(&root, find(top, "name"), sink);
        if wanted {
            self.shared.profile.includes.insert(own.clone());
        }
        let scope = format!("{}/{}", self.scope, id.unwrap_or(own));
        let line = include.key_place.line;
        if !wanted {
            self.shared.profile.left_out.push(scope.clone());
        } else if let Some(first) = self.shared.scopes.insert(scope.clone(), line) {
            let message = format!("{scope} is here twice, first in line {first}");
            self.sink.hinted(include.key_place, message, "give one of them another id:");
            return None;
        }
        let outer = self.file().to_owned();
        let asker = match wanted {
            true => Asker::Outer { file: &outer, place: include.key_place },
            false => Asker::Nobody,
        };
        let declared = variables(top, given, asker, sink);
        let mut unknown = Vec::new();
        given.unknown(&declared.names.iter().map(String::as_str).collect(), &mut unknown);
        for diagnostic in unknown {
            self.sink.hinted(diagnostic.place, diagnostic.message, diagnostic.hint.unwrap_or_default());
        }
        let setting = self.shared.setting;
        let templates = Templates::new(&declared, setting.platform.values(), setting.secrets.clone());
        let mut stack = self.stack.clone();
        stack.push(file.to_owned());
        let mut inner =
            Compiler { shared: &mut *self.shared, scope, stack, templates: &templates, wanted, under, sink };
        inner.resources(&root, top);
        Some(())
    }

    /// The values that an include passes on.
    fn passed(&mut self, vars: Option<&Entry>, wanted: bool) -> Option<Given> {
        let mut given = Given::default();
        let Some(entry) = vars else { return Some(given) };
        let Value::Map(entries) = &entry.value.value else {
            let what = entry.value.describe();
            self.sink
                .error(entry.value.place, format!("vars wants a map of names and values, this is {what}"));
            return None;
        };
        let mut good = true;
        for entry in entries {
            let place = entry.value.place;
            let scalar = match &entry.value.value {
                Value::Scalar(scalar) if !scalar.is_null() && !entry.is_reported() => scalar,
                _ if entry.is_reported() || entry.value.is_bare_template() => {
                    good = false;
                    continue;
                }
                _ => {
                    let what = entry.value.describe();
                    let message = format!(
                        "{} wants a text, a number or true/false, this is {what}",
                        quoted(&entry.key)
                    );
                    self.sink.error(place, message);
                    good = false;
                    continue;
                }
            };
            let site = Site::of(scalar, place);
            if !wanted {
                good &= self.templates.form(site, self.sink);
                continue;
            }
            match self.templates.render(site, self.sink).as_deref() {
                Some([]) => given.add(&entry.key, "", self.giver(place)),
                Some([postern_proto::text::Part::Text(text)]) => {
                    given.add(&entry.key, text, self.giver(place))
                }
                Some(_) => {
                    let hint = "pass the secret's name, and write secret(name) there";
                    let message = "a value that is filled in on the host cannot be passed on";
                    self.sink.hinted(place, message, hint);
                    good = false;
                }
                None => good = false,
            }
        }
        good.then_some(given)
    }

    fn giver(&self, place: Place) -> Giver {
        Giver::File { file: self.file().to_owned(), place }
    }
}
