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
use std::sync::Arc;
use std::time::Duration;

use postern_proto::plan::PlannedResource;
use postern_proto::spec::ResourceSpec;

use crate::sys::{Sys, SysError};

/// What one look may take: above all that a kind allows the programs it asks, and the end of the wait for a
/// file system that does not answer.
const LOOK_LIMIT: Duration = Duration::from_secs(240);

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
    /// The look did not come back.
    #[error("the host did not answer within {} s: is a file system or a program stuck?", .after.as_secs())]
    Late {
        /// Its time.
        after: Duration,
    },
    /// The look itself broke.
    #[error("the look broke off: {0}")]
    Broken(#[source] tokio::task::JoinError),
}

/// What every kind is. `observe` looks and never changes; `plan` decides and never looks.
pub trait Resource: Send + Sync + 'static {
    /// What is declared.
    type Spec: ResourceSpec + Send + Sync + 'static;
    /// What is there.
    type Seen: Send + Sync + 'static;

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

struct Adapter<R: Resource>(Arc<R::Spec>);

impl<R: Resource> Adapter<R> {
    fn look(spec: &R::Spec, seen: &R::Seen) -> View {
        let steps = R::plan(spec, seen);
        let diff = if steps.is_empty() { String::new() } else { R::diff(spec, seen) };
        View { steps, diff }
    }
}

impl<R: Resource> Bound for Adapter<R> {
    fn view<'a>(&'a self, host: &'a Sys, depth: Depth) -> Boxed<'a, Result<View, ObserveError>> {
        let (spec, host) = (Arc::clone(&self.0), host.clone());
        Box::pin(off_thread(LOOK_LIMIT, async move {
            let seen = R::observe(&spec, &host, depth).await?;
            Ok(Self::look(&spec, &seen))
        }))
    }

    fn foreseen(&self) -> Option<View> {
        R::foreseen(&self.0).map(|seen| Self::look(&self.0, &seen))
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

/// Does this on a thread where calls to file systems may block: a dead mount costs one look that thread, not
/// the agent its only one. Dropping the future ends the work at its next wait.
async fn off_thread<T: Send + 'static>(
    limit: Duration,
    work: impl Future<Output = Result<T, ObserveError>> + Send + 'static,
) -> Result<T, ObserveError> {
    let runtime = tokio::runtime::Handle::current();
    let (held, dropped) = tokio::sync::oneshot::channel::<()>();
    let working = tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            tokio::select! {
                done = work => done,
                _ = dropped => Err(ObserveError::Late { after: limit }),
            }
        })
    });
    let done = tokio::time::timeout(limit, working).await;
    drop(held);
    match done {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => Err(ObserveError::Broken(error)),
        Err(_) => Err(ObserveError::Late { after: limit }),
    }
}

fn adapt<R: Resource>(spec: &serde_json::Value) -> Result<Box<dyn Bound>, serde_json::Error> {
    let spec: R::Spec = serde::Deserialize::deserialize(spec)?;
    Ok(Box::new(Adapter::<R>(Arc::new(spec))))
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
    use super::*;

    /// A call that never returns takes a thread of its own with it; the runtime's only one goes on.
    #[tokio::test]
    async fn a_file_system_that_does_not_answer_blocks_nothing_else() {
        let (release, stuck) = std::sync::mpsc::channel::<()>();
        let work = async move {
            let _ = stuck.recv();
            Ok(())
        };
        let mut look = Box::pin(off_thread(Duration::from_millis(300), work));
        let mut ticks = 0;
        let late = loop {
            tokio::select! {
                done = &mut look => break done,
                () = tokio::time::sleep(Duration::from_millis(10)) => ticks += 1,
            }
        };
        drop(release);
        assert!(matches!(late, Err(ObserveError::Late { .. })), "{late:?}");
        assert!(ticks >= 2, "the runtime stood still");
        assert_eq!(off_thread(Duration::from_secs(20), async { Ok(7) }).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_look_that_nobody_waits_for_ends() {
        let (alive, mut gone) = tokio::sync::mpsc::channel::<()>(1);
        let work = async move {
            let _alive = alive;
            std::future::pending::<Result<(), ObserveError>>().await
        };
        let look = off_thread(Duration::from_secs(3600), work);
        assert!(tokio::time::timeout(Duration::from_millis(50), look).await.is_err());
        let end = tokio::time::timeout(Duration::from_secs(20), gone.recv()).await;
        assert_eq!(end.unwrap(), None);
    }

    #[test]
    fn every_kind_of_the_contract_has_its_row() {
        let mut ours: Vec<_> = super::KINDS.iter().map(|(name, _)| *name).collect();
        let mut theirs: Vec<_> = postern_proto::spec::KINDS.iter().map(|kind| kind.name).collect();
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
    }
}
