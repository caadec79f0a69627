//! Profiles: YAML documents that say what should be on a host, compiled to a plan.
//!
//! ```yaml
//! name: hello                 # the first part of every address
//! description: A first profile
//! vars:                       # text, whole numbers, true/false; empty: must be given with --var
//!   greeting: Hello
//! resources:                  # in this order; the first failure ends the run
//!   - package: {name: jq}
//!   - file: {path: /etc/motd, content: "{{ greeting }}\n", mode: 0644}
//!     id: motd                # the last part of the address; the path, package… when left out
//! ```
//!
//! The text is parsed first; then variables are filled into single scalars, so that no value can add
//! structure. **What a field holds decides what its scalar means**: a field for text takes it exactly as it
//! was written (`0644`, `1.10` and `no` stay what they are), a field for true/false or a number refuses what
//! is none, and a quoted `"true"` is a text. A rendered template counts as if it had been written without
//! quotes. An empty value is an error everywhere but in `vars:`.

mod compile;
mod diag;
mod shipped;
mod template;
mod yaml;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use postern_proto::ids::Address;
use postern_proto::plan::{PLAN_SCHEMA, Plan};
use postern_proto::spec::{CommandSpec, ResourceSpec as _};

pub use diag::{Diagnostic, Place};
pub use shipped::{SHIPPED, Shipped};

use compile::{Placed, Profile};
use diag::{Sink, closest, quoted};

/// The largest profile, bytes.
pub const MAX_PROFILE_BYTES: usize = 1024 * 1024;
/// The most profiles that make one plan.
const MAX_PROFILES: usize = 64;

/// The text of a profile and what to call it in messages.
#[derive(Clone, Debug)]
pub struct Source {
    /// The path as it was given, or the name of a shipped profile.
    pub file: String,
    /// As read; need not be UTF-8.
    pub bytes: Vec<u8>,
}

/// Profiles that could be compiled.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// All resources of all profiles.
    pub plan: Plan,
    /// The profiles' names, in order.
    pub names: Vec<String>,
    /// The first profile's description.
    pub description: String,
    /// All variables of all profiles.
    pub variables: Vec<String>,
}

impl Compiled {
    /// Where the plan came from, for people.
    #[must_use]
    pub fn origin(&self) -> String {
        self.names.join(" + ")
    }
}

/// Finds a profile by what a user wrote: a path when it has a slash or ends in `.yaml` or `.yml`, otherwise
/// the name of a shipped one. Relative paths are relative to `cwd`.
pub fn load(name: &str, cwd: &Path) -> Result<Source, Diagnostic> {
    let is_path = name.contains('/') || name.ends_with(".yaml") || name.ends_with(".yml");
    let fail = |message: String, hint: Option<String>| {
        Err(Diagnostic { file: name.to_owned(), place: Place::START, message, hint })
    };
    if is_path {
        return match read_bounded(&cwd.join(name)) {
            Ok(bytes) => Ok(Source { file: name.to_owned(), bytes }),
            Err(error) => fail(format!("cannot be read: {error}"), None),
        };
    }
    match SHIPPED.iter().find(|shipped| shipped.name == name) {
        Some(shipped) => {
            Ok(Source { file: shipped.name.to_owned(), bytes: shipped.text.as_bytes().to_vec() })
        }
        None => {
            let hint = if cwd.join(name).is_file() {
                format!("for the file of that name, write ./{name}")
            } else if let Some(close) = closest(name, SHIPPED.iter().map(|shipped| shipped.name)) {
                format!("did you mean {close}?")
            } else {
                "a file is named with a slash or with .yaml; `postern profile list` shows what is shipped"
                    .into()
            };
            fail("there is no shipped profile of this name".into(), Some(hint))
        }
    }
}

/// At most one byte more than the limit, so that [`compile`] says that it is too large.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_PROFILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Compiles profiles to one plan, or says everything that is wrong with all of them.
pub fn compile(sources: &[Source], given: &BTreeMap<String, String>) -> Result<Compiled, Vec<Diagnostic>> {
    let mut found = Vec::new();
    let mut profiles = Vec::new();
    for source in sources.iter().take(MAX_PROFILES) {
        let mut sink = Sink::new(&source.file);
        let profile = compile_one(source, given, &mut sink);
        if let Some(profile) = profile {
            profiles.push((source.file.as_str(), profile));
        }
        found.extend(sink.into_found());
    }
    if let Some(source) = sources.get(MAX_PROFILES) {
        let message = format!("more than {MAX_PROFILES} profiles");
        found.push(Diagnostic { file: source.file.clone(), place: Place::START, message, hint: None });
    }
    unknown_variables(&profiles, given, sources.len(), &mut found);
    let plan = compose(&profiles, &mut found);
    if found.is_empty()
        && let Err(error) = plan.to_bytes().and_then(|_| plan.validate())
    {
        let file = sources.first().map_or_else(String::new, |source| source.file.clone());
        found.push(Diagnostic { file, place: Place::START, message: error.to_string(), hint: None });
    }
    if !found.is_empty() {
        return Err(found);
    }
    let mut variables: Vec<_> = profiles.iter().flat_map(|(_, profile)| profile.variables.clone()).collect();
    variables.sort();
    variables.dedup();
    Ok(Compiled {
        plan,
        names: profiles.iter().map(|(_, profile)| profile.name.clone()).collect(),
        description: profiles.first().map(|(_, profile)| profile.description.clone()).unwrap_or_default(),
        variables,
    })
}

fn compile_one(source: &Source, given: &BTreeMap<String, String>, sink: &mut Sink) -> Option<Profile> {
    if source.bytes.len() > MAX_PROFILE_BYTES {
        sink.error(Place::START, format!("larger than {MAX_PROFILE_BYTES} bytes"));
        return None;
    }
    let text = match std::str::from_utf8(&source.bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let before = source.bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
            let column = 1 + String::from_utf8_lossy(before.get(start..).unwrap_or_default()).chars().count();
            sink.error(Place { line, column }, "this is not UTF-8 text");
            return None;
        }
    };
    let root = yaml::parse(text, sink)?;
    Some(compile::profile(&root, given, sink))
}

/// Every value that was given must be for a variable of some profile.
fn unknown_variables(
    profiles: &[(&str, Profile)],
    given: &BTreeMap<String, String>,
    wanted: usize,
    found: &mut Vec<Diagnostic>,
) {
    // A profile that did not parse may have the variable.
    if profiles.len() < wanted {
        return;
    }
    let known = || profiles.iter().flat_map(|(_, profile)| profile.variables.iter().map(String::as_str));
    for name in given.keys().filter(|name| !known().any(|known| known == name.as_str())) {
        let mut sink = Sink::new("--var");
        sink.unknown(Place::START, "variable", name, known());
        found.extend(sink.into_found());
    }
}

/// All resources in order. A resource that two profiles share is taken once; two that contradict each other
/// are an error.
fn compose(profiles: &[(&str, Profile)], found: &mut Vec<Diagnostic>) -> Plan {
    let mut by_address: HashMap<&Address, (&str, &Placed)> = HashMap::new();
    let mut by_target: HashMap<(&str, &str), (&str, &Placed)> = HashMap::new();
    let mut plan = Plan { schema: PLAN_SCHEMA, resources: Vec::new() };
    for (file, profile) in profiles {
        for placed in &profile.resources {
            let resource = &placed.resource;
            // A command is an action, not a thing on the host: the same one may be wanted twice.
            let target = (resource.kind != CommandSpec::KIND)
                .then_some((resource.kind.as_str(), placed.target.as_str()));
            let earlier = by_address.get(&resource.address);
            let earlier = earlier.or_else(|| target.and_then(|target| by_target.get(&target))).copied();
            match earlier {
                None => plan.resources.push(resource.clone()),
                Some((_, first)) if first.resource.spec == resource.spec => {}
                Some((other, first)) => {
                    let what = if first.resource.address == resource.address {
                        resource.address.to_string()
                    } else {
                        format!("{} {}", resource.kind, quoted(&placed.target))
                    };
                    found.push(Diagnostic {
                        file: (*file).to_owned(),
                        place: placed.place,
                        message: format!("{what} contradicts {other}:{}", first.place.line),
                        hint: Some("one plan cannot want two things of one resource".into()),
                    });
                }
            }
            by_address.entry(&resource.address).or_insert((file, placed));
            if let Some(target) = target {
                by_target.entry(target).or_insert((file, placed));
            }
        }
    }
    plan
}
