//! Profiles: YAML documents that say what should be on a host, compiled to a plan. `docs/profiles.md` tells
//! people all of it.
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

mod bundle;
mod compile;
mod compose;
mod diag;
mod facts;
mod holes;
mod resource;
mod schema;
mod shipped;
mod template;
mod vars;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use postern_proto::plan::Plan;

pub use bundle::{Bundle, BundleError, MAX_BUNDLE_BYTES, MAX_PROFILE_BYTES};
pub use diag::{Diagnostic, Place};
pub use facts::Facts;
pub use schema::schema;
pub use shipped::{SHIPPED, Shipped};
pub use vars::VarFile;

use compile::{Profile, Setting};
use diag::{MAX_TOLD, Sink};
use facts::Platform;
use holes::Secrets;
use vars::{Given, Giver};

/// The most profiles that make one plan.
const MAX_PROFILES: usize = 64;

/// What profiles are compiled with.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// From `--var`. The strongest.
    pub vars: BTreeMap<String, String>,
    /// From `--var-file`, in the order of the command; the last one is the strongest of them.
    pub var_files: Vec<VarFile>,
    /// Values that are kept with the host. Profiles' own defaults are the only weaker ones.
    pub host_vars: BTreeMap<String, String>,
    /// The host; each supported platform in turn while there is none.
    pub facts: Option<Facts>,
    /// The newest version of every secret there is; any name will do while that is not known.
    pub secrets: Option<BTreeMap<String, u32>>,
}

/// A profile that a host is to have already.
#[derive(Clone, Debug)]
pub struct Assigned {
    /// Its name.
    pub name: String,
    /// What compiles it again.
    pub bundle: Bundle,
    /// Given when it was applied: [`Part::vars`].
    pub vars: BTreeMap<String, String>,
}

/// Profiles that could be compiled.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// All resources of all profiles. For the first supported platform when no host was known.
    pub plan: Plan,
    /// The profiles in the order in which they compose.
    pub parts: Vec<Part>,
}

/// One profile of a plan.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// In its own words.
    pub description: String,
    /// Names of its variables.
    pub variables: Vec<String>,
    /// What was given on the command line for them, now or when it was assigned: to be kept with the
    /// assignment.
    pub vars: BTreeMap<String, String>,
    /// Which of the bundles that [`compile`] was given; `None` for one that the host has already.
    pub bundle: Option<usize>,
    /// Profiles that the host has and that this one includes: it takes their place.
    pub covers: Vec<String>,
}

impl Compiled {
    /// Where the plan came from, for people.
    #[must_use]
    pub fn origin(&self) -> String {
        self.parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join(" + ")
    }
}

/// What a profile says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Its name, where it has one.
    pub name: Option<String>,
    /// In its own words.
    pub description: String,
    /// Its variables with their defaults as written; one without must be given.
    pub variables: Vec<(String, Option<String>)>,
}

/// Reads what a profile says of itself, without compiling it.
#[must_use]
pub fn about(bundle: &Bundle) -> About {
    compile::about(bundle)
}

/// Finds a profile by what a user wrote: a path when it has a slash or ends in `.yaml` or `.yml`, otherwise
/// the name of a shipped one. Relative paths are relative to `cwd`. The files it names come with it.
pub fn load(name: &str, cwd: &Path) -> Result<Bundle, Diagnostic> {
    Bundle::read(name, cwd)
}

/// Compiles profiles, together with those that the host is to have already, to one plan, or says everything
/// that is wrong with all of them. A profile replaces the assigned one of its name in its place, and those that it
/// includes: their resources are among its own.
pub fn compile(
    bundles: &[Bundle],
    assigned: &[Assigned],
    inputs: &Inputs,
) -> Result<Compiled, Vec<Diagnostic>> {
    let mut found = Vec::new();
    if let Some(bundle) = bundles.get(MAX_PROFILES) {
        let message = format!("more than {MAX_PROFILES} profiles");
        return Err(vec![Diagnostic::new(bundle.file(), Place::START, message)]);
    }
    let given = given(inputs, &mut found);
    let secrets = Arc::new(inputs.secrets.clone());
    let platforms = Platform::all(inputs.facts.as_ref());
    let mut compiled = Vec::new();
    let mut told = Vec::new();
    for platform in &platforms {
        let mut found = Vec::new();
        let request = Request { bundles, assigned, inputs, given: &given, platform, secrets: &secrets };
        compiled.push(request.compile(&mut found));
        told.push((platform.name.as_str(), found));
    }
    found.extend(merge(told));
    match compiled.into_iter().next() {
        Some(compiled) if found.is_empty() => Ok(compiled),
        _ => Err(shorten(found)),
    }
}

fn given(inputs: &Inputs, found: &mut Vec<Diagnostic>) -> Given {
    let mut given = Given::default();
    inputs.vars.iter().for_each(|(name, text)| given.add(name, text, Giver::Flag));
    for file in inputs.var_files.iter().rev() {
        for (name, text, place) in vars::parse_file(file, found) {
            given.add(&name, &text, Giver::File { file: file.file.clone(), place });
        }
    }
    inputs.host_vars.iter().for_each(|(name, text)| given.add(name, text, Giver::Host));
    given
}

/// What was found for several platforms as one: what is not wrong on all of them says where it is.
fn merge(told: Vec<(&str, Vec<Diagnostic>)>) -> Vec<Diagnostic> {
    let everywhere =
        |diagnostic: &Diagnostic| told.iter().all(|(_, found)| found.iter().any(|other| other == diagnostic));
    let mut merged: Vec<Diagnostic> = Vec::new();
    for (platform, found) in &told {
        for diagnostic in found {
            if !everywhere(diagnostic) {
                let message = format!("on {platform}: {}", diagnostic.message);
                merged.push(Diagnostic { message, ..diagnostic.clone() });
            } else if !merged.contains(diagnostic) {
                merged.push(diagnostic.clone());
            }
        }
    }
    merged
}

/// Mistakes beyond a number that can be read are counted.
fn shorten(mut found: Vec<Diagnostic>) -> Vec<Diagnostic> {
    const MOST: usize = 2 * MAX_TOLD;
    if found.len() > MOST {
        let more = found.len() - MOST;
        found.truncate(MOST);
        if let Some(last) = found.last().cloned() {
            found.push(Diagnostic::new(last.file, last.place, format!("and {more} more mistakes")));
        }
    }
    found
}

/// One compilation for one platform.
struct Request<'a> {
    bundles: &'a [Bundle],
    assigned: &'a [Assigned],
    inputs: &'a Inputs,
    given: &'a Given,
    platform: &'a Platform,
    secrets: &'a Arc<Secrets>,
}

impl Request<'_> {
    fn compile(&self, found: &mut Vec<Diagnostic>) -> Compiled {
        let given: Vec<Given> = self.bundles.iter().map(|bundle| self.given_for(bundle)).collect();
        let each = self.bundles.iter().zip(&given);
        let asked: Vec<_> = each.map(|(bundle, given)| self.profile(bundle, given, found)).collect();
        // A profile that did not parse may have the variable.
        if asked.iter().all(Option::is_some) {
            let profiles = asked.iter().flatten();
            let known: BTreeSet<_> =
                profiles.flat_map(|profile| &profile.variables).map(String::as_str).collect();
            self.given.unknown(&known, found);
        }
        let mut asked: Vec<_> = asked.into_iter().enumerate().filter_map(|(i, it)| Some((i, it?))).collect();
        let (mut profiles, mut parts) = (Vec::new(), Vec::new());
        // A profile that another one brings along is not wanted twice.
        let covered = |name: &str| {
            let mut covering = asked.iter().filter(|(_, profile)| profile.includes.contains(name));
            covering.next().map(|(bundle, _)| *bundle)
        };
        let covered: BTreeMap<&str, usize> =
            self.assigned.iter().filter_map(|it| Some((it.name.as_str(), covered(&it.name)?))).collect();
        let covers = |bundle| {
            let by = covered.iter().filter(|(_, by)| Some(**by) == bundle);
            by.map(|(name, _)| (*name).to_owned()).collect()
        };
        let mut add = |profile: Profile, given: &Given, bundle: Option<usize>| {
            parts.push(Part {
                covers: covers(bundle),
                name: profile.name.clone(),
                description: profile.description.clone(),
                variables: profile.variables.clone(),
                vars: given.kept(&profile.variables),
                bundle,
            });
            profiles.push(profile);
        };
        for assigned in self.assigned {
            let by = covered.get(assigned.name.as_str());
            let here =
                |(bundle, profile): &(usize, Profile)| profile.name == assigned.name || by == Some(bundle);
            if let Some(at) = asked.iter().position(here) {
                let (bundle, profile) = asked.remove(at);
                add(profile, &given[bundle], Some(bundle));
                continue;
            }
            // It stands in the place of an earlier one.
            if by.is_some() {
                continue;
            }
            let mut given = Given::default();
            assigned.vars.iter().for_each(|(name, text)| given.add(name, text, Giver::Kept));
            self.inputs.host_vars.iter().for_each(|(name, text)| given.add(name, text, Giver::Host));
            if let Some(profile) = self.profile(&assigned.bundle, &given, found) {
                add(profile, &given, None);
            }
        }
        for (bundle, profile) in asked {
            add(profile, &given[bundle], Some(bundle));
        }
        let plan = compose::compose(&profiles, found);
        if found.is_empty()
            && let Err(error) = plan.to_bytes().and_then(|_| plan.validate())
        {
            let file = self.bundles.first().map_or("", Bundle::file);
            found.push(Diagnostic::new(file, Place::START, error.to_string()));
        }
        Compiled { plan, parts }
    }

    /// What is given for a profile: what the host had it applied with the last time counts where nothing is
    /// said now, or a second `up` without the first one's values would be another host. The same is so for a
    /// profile that it includes.
    fn given_for(&self, bundle: &Bundle) -> Given {
        let mut given = self.given.clone();
        let own = about(bundle).name;
        let (same, others): (Vec<_>, Vec<_>) =
            self.assigned.iter().partition(|assigned| Some(&assigned.name) == own.as_ref());
        let names = bundle.names();
        for assigned in same.into_iter().chain(others.into_iter().filter(|it| names.contains(&it.name))) {
            assigned.vars.iter().for_each(|(name, text)| given.keep(name, text));
        }
        given
    }

    fn profile(&self, bundle: &Bundle, given: &Given, found: &mut Vec<Diagnostic>) -> Option<Profile> {
        let setting = Setting { bundle, platform: self.platform, secrets: self.secrets };
        let mut sink = Sink::new(bundle.file());
        let profile = compile::profile(&setting, given, &mut sink);
        found.extend(sink.into_found());
        profile
    }
}
