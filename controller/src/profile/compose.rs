//! Several profiles become one plan: shared resources are taken once, contradictions are told, and what
//! names another resource is resolved.

use std::collections::{BTreeSet, HashMap, HashSet};

use postern_proto::ids::Address;
use postern_proto::plan::{PLAN_SCHEMA, Plan};
use postern_proto::spec::{self, CommandSpec, ResourceSpec as _};

use super::compile::{Needing, Placed, Profile};
use super::diag::{Diagnostic, Place, Sink, closest, quoted};

/// A resource of the plan and the name of its profile.
#[derive(Clone, Copy)]
struct Kept<'a> {
    profile: &'a str,
    placed: &'a Placed,
}

/// All resources in order. A resource that two profiles share is taken once; two that contradict each other
/// are an error.
pub(crate) fn compose(profiles: &[Profile], found: &mut Vec<Diagnostic>) -> Plan {
    let (kept, positions) = keep(profiles, found);
    late_values(profiles, &kept, found);
    let index = Index::new(profiles, &positions);
    let mut plan = Plan { schema: PLAN_SCHEMA, resources: Vec::new() };
    plan.resources.extend(kept.iter().map(|kept| kept.placed.resource.clone()));
    for profile in profiles {
        needs(profile, &kept, &index, &mut plan, found);
    }
    plan
}

/// What holds for the resources below an include with `needs`.
#[derive(Default)]
struct Below {
    /// What it names, and what such includes around it name; `None` before its first resource.
    named: Option<Vec<usize>>,
    /// What a resource without `needs` of its own waits for: together with what these wait for, all before it here.
    before: Vec<usize>,
}

/// Fills in what the resources of a profile wait for. An include with `needs` waits for those it names alone; within it,
/// the order is as written, and the first failure of its own ends it.
fn needs(
    profile: &Profile,
    kept: &[Kept<'_>],
    index: &Index<'_>,
    plan: &mut Plan,
    found: &mut Vec<Diagnostic>,
) {
    let mut includes: HashMap<usize, Below> = HashMap::new();
    for placed in profile.resources.iter().filter(|placed| placed.wanted) {
        let address = &placed.resource.address;
        let Some(position) = index.positions.get(address).copied() else { continue };
        let around: Vec<usize> =
            std::iter::successors(placed.under, |at| profile.needing.get(*at)?.under).collect();
        // One that was taken once already waits for what it waits for there.
        if kept.get(position).is_some_and(|kept| std::ptr::eq(kept.placed, placed)) {
            for at in around.iter().rev() {
                let Some(include) = profile.needing.get(*at) else { continue };
                if includes.get(at).is_some_and(|below| below.named.is_some()) {
                    continue;
                }
                let outer = include.under.and_then(|outer| includes.get(&outer)?.named.clone());
                let mut named = outer.unwrap_or_default();
                named.extend(named_by(include, index, position, found));
                let below = includes.entry(*at).or_default();
                below.before.extend(&named);
                below.named = Some(named);
            }
            let below = placed.under.and_then(|at| includes.get_mut(&at));
            let own = placed.needs.as_ref().map(|needs| {
                let mut own = Vec::new();
                for (text, place) in needs {
                    match index.resolve(address.parts().0, Some(address), text, position) {
                        Ok(positions) => own.extend(positions),
                        Err((message, hint)) => found.push(at(placed, *place, message, hint)),
                    }
                }
                own
            });
            let on = match (own, below) {
                (own, None) => own,
                (Some(own), Some(below)) => Some([below.named.clone().unwrap_or_default(), own].concat()),
                (None, Some(below)) => Some(std::mem::take(&mut below.before)),
            };
            if let Some(resource) = plan.resources.get_mut(position) {
                resource.needs = on.map(|on| {
                    let mut addresses: Vec<Address> = Vec::new();
                    for address in on.iter().filter_map(|at| Some(&kept.get(*at)?.placed.resource.address)) {
                        if !addresses.contains(address) {
                            addresses.push(address.clone());
                        }
                    }
                    addresses
                });
            }
        }
        for at in around {
            includes.entry(at).or_default().before.push(position);
        }
    }
    // Where all of an include stands elsewhere nothing waits for it; a name that is none is told all the same.
    for (at, include) in profile.needing.iter().enumerate() {
        if includes.get(&at).is_none_or(|below| below.named.is_some()) {
            continue;
        }
        named_by(include, index, kept.len(), found);
    }
}

/// The positions that an include names in its `needs`, whose first resource is at `position`; what is none is told.
fn named_by(
    include: &Needing,
    index: &Index<'_>,
    position: usize,
    found: &mut Vec<Diagnostic>,
) -> Vec<usize> {
    let mut named = Vec::new();
    for (text, place) in &include.needs {
        match index.resolve(&include.scope, None, text, position) {
            Ok(positions) => named.extend(positions),
            Err((message, hint)) => {
                found.push(Diagnostic::new(include.file.as_str(), *place, message).hint(hint));
            }
        }
    }
    named
}

fn at(placed: &Placed, place: Place, message: String, hint: String) -> Diagnostic {
    Diagnostic::new(placed.file.as_str(), place, message).hint(hint)
}

/// The resources of the plan, and where in it each address is: that of a resource which was merged into
/// another one too.
fn keep<'a>(
    profiles: &'a [Profile],
    found: &mut Vec<Diagnostic>,
) -> (Vec<Kept<'a>>, HashMap<&'a Address, usize>) {
    let mut kept: Vec<Kept<'a>> = Vec::new();
    let mut positions: HashMap<&Address, usize> = HashMap::new();
    let mut by_target: HashMap<(&str, &str), usize> = HashMap::new();
    for profile in profiles {
        for placed in profile.resources.iter().filter(|placed| placed.wanted) {
            let resource = &placed.resource;
            // A command is an action, not a thing on the host: the same one may be wanted twice.
            let target = (resource.kind != CommandSpec::KIND)
                .then_some((resource.kind.as_str(), placed.target.as_str()));
            let earlier = positions.get(&resource.address);
            let earlier = earlier.or_else(|| target.and_then(|target| by_target.get(&target))).copied();
            let position = match earlier.and_then(|at| kept.get(at).map(|first| (at, *first))) {
                None => {
                    kept.push(Kept { profile: &profile.name, placed });
                    kept.len() - 1
                }
                Some((at, first)) if first.placed.resource.spec == resource.spec => at,
                Some((at, first)) => {
                    found.push(contradiction(profile, placed, first));
                    at
                }
            };
            positions.entry(&resource.address).or_insert(position);
            if let Some(target) = target {
                by_target.entry(target).or_insert(position);
            }
        }
    }
    (kept, positions)
}

fn contradiction(profile: &Profile, placed: &Placed, first: Kept<'_>) -> Diagnostic {
    let resource = &placed.resource;
    let what = if first.placed.resource.address == resource.address {
        resource.address.to_string()
    } else {
        format!("{} {}", resource.kind, quoted(&placed.target))
    };
    let (file, line) = (&first.placed.file, first.placed.place.line);
    let message = if profile.name == first.profile {
        format!("{what} contradicts {file}:{line}")
    } else {
        format!("{what} of profile {} contradicts profile {}, {file}:{line}", profile.name, first.profile)
    };
    at(placed, placed.place, message, "one plan cannot want two things of one resource".into())
}

/// Every late value that is used must be yielded before, and by one command alone.
fn late_values(profiles: &[Profile], kept: &[Kept<'_>], found: &mut Vec<Diagnostic>) {
    let yields = |placed: &Placed| {
        let resource = &placed.resource;
        spec::kind(&resource.kind).and_then(|kind| (kind.yields)(&resource.spec))
    };
    let all = profiles.iter().flat_map(|profile| &profile.resources);
    let left_out: HashSet<_> = all.filter(|placed| !placed.wanted).filter_map(yields).collect();
    let later: BTreeSet<_> = kept.iter().filter_map(|kept| yields(kept.placed)).collect();
    let mut yielded: HashMap<String, &Placed> = HashMap::new();
    for Kept { placed, .. } in kept {
        for (name, place) in placed.late.iter().filter(|(name, _)| !yielded.contains_key(name)) {
            let hint = if later.contains(name) {
                "its command stands after this: move it up".to_owned()
            } else if left_out.contains(name) {
                "its command is left out by its when:".to_owned()
            } else if let Some(close) = closest(name, later.iter().map(String::as_str)) {
                format!("did you mean late.{close}?")
            } else {
                format!("a command before it yields it with late: {name}")
            };
            found.push(at(placed, *place, format!("no value is called late.{name} here"), hint));
        }
        let Some(name) = yields(placed) else { continue };
        match yielded.get(&name) {
            None => {
                yielded.insert(name, placed);
            }
            Some(first) => {
                let message =
                    format!("late.{name} is here twice, first in {}:{}", first.file, first.place.line);
                found.push(at(placed, placed.place, message, "give one of them another name".into()));
            }
        }
    }
}

/// What `needs` can name.
struct Index<'a> {
    positions: &'a HashMap<&'a Address, usize>,
    /// Scope and name, or scope and `kind:name`.
    named: HashMap<(&'a str, String), Vec<&'a Placed>>,
    /// Scope and id of an include: all resources below it.
    below: HashMap<(&'a str, &'a str), Vec<&'a Placed>>,
    addresses: HashMap<&'a str, &'a Placed>,
    /// Scopes that are left out.
    left_out: HashSet<&'a str>,
}

impl<'a> Index<'a> {
    fn new(profiles: &'a [Profile], positions: &'a HashMap<&'a Address, usize>) -> Self {
        let (mut named, mut below): (HashMap<_, Vec<_>>, HashMap<_, Vec<_>>) = Default::default();
        let mut addresses = HashMap::new();
        for placed in profiles.iter().flat_map(|profile| &profile.resources) {
            let address = &placed.resource.address;
            let (mut scope, kind, name) = address.parts();
            named.entry((scope, name.to_owned())).or_default().push(placed);
            named.entry((scope, format!("{kind}:{name}"))).or_default().push(placed);
            if placed.wanted || !addresses.contains_key(address.as_str()) {
                addresses.insert(address.as_str(), placed);
            }
            while let Some((outer, id)) = scope.rsplit_once('/') {
                below.entry((outer, id)).or_default().push(placed);
                scope = outer;
            }
        }
        let left_out = profiles.iter().flat_map(|profile| &profile.left_out).map(String::as_str).collect();
        Self { positions, named, below, addresses, left_out }
    }

    /// The positions that a text in `needs` means, in a profile of this scope, of the resource `of` or of an include
    /// whose first one is at `position`; none for what is left out.
    fn resolve(
        &self,
        scope: &str,
        of: Option<&Address>,
        text: &str,
        position: usize,
    ) -> Result<Vec<usize>, (String, String)> {
        let other = |placed: &&&Placed| Some(&placed.resource.address) != of;
        let one = self.addresses.get(text).copied();
        let named = self.named.get(&(scope, text.to_owned())).map(Vec::as_slice).unwrap_or_default();
        let below = self.below.get(&(scope, text)).map(Vec::as_slice).unwrap_or_default();
        let mut found: Vec<&Placed> = one.iter().chain(named).filter(other).copied().collect();
        let wanted = |found: &[&'a Placed]| -> Vec<&'a Placed> {
            found.iter().filter(|placed| placed.wanted).copied().collect()
        };
        let known = !found.is_empty() || !below.is_empty() || self.is_left_out(scope, text);
        found.retain(|placed| placed.wanted);
        let mut several: Vec<_> = found.iter().map(|placed| placed.resource.address.as_str()).collect();
        several.sort_unstable();
        several.dedup();
        if several.len() > 1 || (!several.is_empty() && !below.is_empty()) {
            several.extend((!below.is_empty()).then_some("an include"));
            let hint = "write kind:name, or give one of them another id:";
            return Err((format!("{} can be {}", quoted(text), several.join(" or ")), hint.into()));
        }
        found.extend(wanted(below));
        if !known {
            let itself = one.is_some() || !named.is_empty();
            return Err(if itself {
                ("a resource cannot need itself".into(), "leave it out".into())
            } else {
                self.unknown(scope, text)
            });
        }
        let positions: Vec<_> =
            found.iter().filter_map(|placed| self.positions.get(&placed.resource.address).copied()).collect();
        if positions.iter().any(|at| *at >= position) {
            let message = format!("{} does not stand before this", quoted(text));
            return Err((message, "move it up: what is needed stands first".into()));
        }
        Ok(positions)
    }

    fn is_left_out(&self, scope: &str, text: &str) -> bool {
        self.left_out.contains(format!("{scope}/{text}").as_str())
    }

    fn unknown(&self, scope: &str, text: &str) -> (String, String) {
        let names = self.named.keys().filter(|(of, name)| *of == scope && !name.contains(':'));
        let mut known: Vec<&str> = names.map(|(_, name)| name.as_str()).collect();
        known.extend(self.below.keys().filter(|(of, _)| *of == scope).map(|(_, id)| *id));
        if text.contains(':') {
            known.extend(self.addresses.keys());
        }
        known.sort_unstable();
        let mut sink = Sink::new("");
        sink.unknown(Place::START, "id in needs", text, known.into_iter());
        let told = sink.into_found().pop();
        told.map(|told| (told.message, told.hint.unwrap_or_default())).unwrap_or_default()
    }
}
