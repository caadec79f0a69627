//! The kinds of resources: one file each, one row each in [`bind`].

mod command;
mod diff;
mod file;
mod package;
mod service;
mod step;

pub use step::{Exec, Step, WriteFile};

use std::future::Future;
use std::pin::Pin;

use postern_proto::plan::PlannedResource;
use postern_proto::spec::ResourceSpec;

use crate::sys::{Sys, SysError};

/// How closely a resource is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Before a change: files, units, one call.
    Cheap,
    /// After a change: what is really in force.
    Proof,
}

/// Why a resource could not be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The host.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// What is there cannot be what is declared, and a step would not change that.
    #[error("{0}")]
    Obstacle(String),
}

/// What every kind is. `observe` looks and never changes; `plan` decides and never looks.
pub trait Resource: Send + Sync + 'static {
    /// What is declared.
    type Spec: ResourceSpec + Send + Sync;
    /// What is there.
    type Seen: Send + Sync;

    /// Looks at the host.
    fn observe(
        spec: &Self::Spec,
        host: &Sys,
        depth: Depth,
    ) -> impl Future<Output = Result<Self::Seen, ObserveError>> + Send;

    /// The steps from what is there to what is declared; none when it is there already.
    fn plan(spec: &Self::Spec, seen: &Self::Seen) -> Vec<Step>;

    /// What a first observation would say, where that is known without looking at the host.
    fn foreseen(_spec: &Self::Spec) -> Option<Self::Seen> {
        None
    }

    /// A unified diff of what the steps change; empty where there is nothing to show.
    fn diff(_spec: &Self::Spec, _seen: &Self::Seen) -> String {
        String::new()
    }

    /// True when it may be tried again after it was cut off: what is observed says what is still to be done.
    fn repeatable(_spec: &Self::Spec) -> bool {
        true
    }

    /// Adjacent resources of one kind with the same key are brought about together.
    fn merge_key(_spec: &Self::Spec) -> Option<&'static str> {
        None
    }

    /// One list of steps that does what these lists do.
    fn merge(plans: Vec<Vec<Step>>) -> Vec<Step> {
        plans.concat()
    }
}

/// What one look at a resource says.
#[derive(Debug)]
pub struct View {
    /// What is to be done; nothing when it is in its declared state.
    pub steps: Vec<Step>,
    /// See [`Resource::diff`].
    pub diff: String,
}

/// A future on the heap.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A resource of a plan, whatever its kind.
pub trait Bound: Send + Sync {
    /// Looks and plans.
    fn view<'a>(&'a self, host: &'a Sys, depth: Depth) -> Boxed<'a, Result<View, ObserveError>>;
    /// See [`Resource::foreseen`].
    fn foreseen(&self) -> Option<View>;
    /// See [`Resource::repeatable`].
    fn repeatable(&self) -> bool;
    /// See [`Resource::merge_key`]; with the kind's name before it.
    fn merge_key(&self) -> Option<String>;
    /// See [`Resource::merge`].
    fn merge(&self, plans: Vec<Vec<Step>>) -> Vec<Step>;
}

struct Adapter<R: Resource>(R::Spec);

impl<R: Resource> Adapter<R> {
    fn look(&self, seen: &R::Seen) -> View {
        let steps = R::plan(&self.0, seen);
        let diff = if steps.is_empty() { String::new() } else { R::diff(&self.0, seen) };
        View { steps, diff }
    }
}

impl<R: Resource> Bound for Adapter<R> {
    fn view<'a>(&'a self, host: &'a Sys, depth: Depth) -> Boxed<'a, Result<View, ObserveError>> {
        Box::pin(async move { Ok(self.look(&R::observe(&self.0, host, depth).await?)) })
    }

    fn foreseen(&self) -> Option<View> {
        R::foreseen(&self.0).map(|seen| self.look(&seen))
    }

    fn repeatable(&self) -> bool {
        R::repeatable(&self.0)
    }

    fn merge_key(&self) -> Option<String> {
        R::merge_key(&self.0).map(|key| format!("{}/{key}", R::Spec::KIND))
    }

    fn merge(&self, plans: Vec<Vec<Step>>) -> Vec<Step> {
        R::merge(plans)
    }
}

fn adapt<R: Resource>(spec: &serde_json::Value) -> Result<Box<dyn Bound>, serde_json::Error> {
    let spec: R::Spec = serde::Deserialize::deserialize(spec)?;
    Ok(Box::new(Adapter::<R>(spec)))
}

type Row = (&'static str, fn(&serde_json::Value) -> Result<Box<dyn Bound>, serde_json::Error>);

/// One row a kind.
const KINDS: &[Row] = &[
    ("command", adapt::<command::Command>),
    ("file", adapt::<file::File>),
    ("package", adapt::<package::Package>),
    ("service", adapt::<service::Service>),
];

/// A planned resource, ready to be worked on. The error is for people; a plan that was validated has none.
pub fn bind(planned: &PlannedResource) -> Result<Box<dyn Bound>, String> {
    let row = KINDS.iter().find(|(name, _)| *name == planned.kind);
    let (_, adapt) = row.ok_or_else(|| format!("unknown kind of resource: {}", planned.kind))?;
    adapt(&planned.spec).map_err(|error| format!("{}: {error}", planned.address))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_kind_of_the_contract_has_its_row() {
        let mut ours: Vec<_> = super::KINDS.iter().map(|(name, _)| *name).collect();
        let mut theirs: Vec<_> = postern_proto::spec::KINDS.iter().map(|kind| kind.name).collect();
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
    }
}
