//! The kinds of resources: one file each, one row each in [`bind`].

mod apt;
mod apt_repository;
mod authorized_key;
pub(crate) mod base64_bytes;
mod command;
mod diff;
mod directory;
mod docker;
mod fail2ban;
mod file;
mod firewall;
#[cfg(test)]
mod fixture;
mod listen;
mod owned;
mod package;
mod preflight;
#[cfg(test)]
mod proofs;
mod protect;
mod reboot;
mod security_updates;
mod service;
mod sshd;
mod step;
mod sudoers;
mod swap;
mod sysctl;
mod time_sync;
mod user;

pub(crate) use diff::{hidden, unified};
pub(crate) use docker::{
    forget_restores, hold_ports, http_unix, open_volume, seal_volume, settle_service, volume_key,
    volume_piece,
};
pub(crate) use firewall::unit_paths as firewall_units;
pub(crate) use listen::ssh_ports;
pub use protect::Protect;
pub(crate) use sshd::reload as reload_ssh;
pub use step::{Exec, HttpUnix, Step, WriteFile};

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use postern_proto::plan::PlannedResource;
use postern_proto::spec::ResourceSpec;
use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Serialize};

use crate::sys::{Sys, SysError};

/// What one look may take: above all that a kind allows the programs it asks, and the end of the wait for a
/// file system that does not answer.
const LOOK_LIMIT: Duration = Duration::from_secs(240);

/// How closely a resource is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Before a change: files, units, one call.
    Cheap,
    /// Around an undo: all that a way back needs, also where nothing is to be done. No proof of what is
    /// declared, which is what is being taken back.
    Whole,
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
    /// What is there. It is kept while a change can be undone, so it holds what the way back needs.
    type Seen: Serialize + DeserializeOwned + Send + Sync + 'static;

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

    /// The same for a spec that has secrets in it: nothing that may hold a value of one, for an older value is
    /// known to nobody and so not redacted.
    fn hidden_diff(_spec: &Self::Spec, _seen: &Self::Seen) -> String {
        String::new()
    }

    /// Whether what was seen may hold a value, an older one too, of a secret in the spec. Asked only for a spec
    /// that has some. What may is not kept.
    fn may_hold_secrets(_seen: &Self::Seen) -> bool {
        true
    }

    /// What identifies the state that was seen: two looks with the same essence found the same. Leave out
    /// what changes by itself (process ids, times). A preview and an undo are refused where it differs.
    fn essence(_spec: &Self::Spec, seen: &Self::Seen) -> serde_json::Value {
        serde_json::to_value(seen).unwrap_or_default()
    }

    /// What the way back has to know of the change beyond the state before it.
    fn trace(_spec: &Self::Spec, _before: &Self::Seen, _after: &Self::Seen) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// The way back from `now` to `before`. Asked only where the essence of `now` is that of the state the
    /// change led to, and not that of `before`.
    fn undo(spec: &Self::Spec, before: &Self::Seen, trace: &serde_json::Value, now: &Self::Seen) -> Undo;

    /// What its way back leaves as the change made it, and why, for people.
    fn spared(_spec: &Self::Spec, _trace: &serde_json::Value, _now: &Self::Seen) -> Option<String> {
        None
    }

    /// Its way back comes after those of all others, in the order of the plan, and is asked for also where its
    /// essence is that of before: it puts in force what they have brought back.
    fn undo_last(_spec: &Self::Spec, _before: &Self::Seen) -> bool {
        false
    }

    /// The value it yields for others (see [`ResourceSpec::yields`]), once it was observed.
    fn late(_spec: &Self::Spec, _seen: &Self::Seen) -> Option<String> {
        None
    }

    /// True when it may be tried again after it was cut off: what is observed says what is still to be done.
    fn repeatable(_spec: &Self::Spec) -> bool {
        true
    }

    /// True when it may be looked at before its turn, and in vain: the look runs nothing that an operator wrote.
    fn ahead(_spec: &Self::Spec) -> bool {
        true
    }

    /// What a guard is to watch while the steps from `seen` are made; `None` where they cannot cut the host off.
    /// Asked also for the way back from `seen`.
    fn protect(_spec: &Self::Spec, _seen: &Self::Seen) -> Option<Protect> {
        None
    }

    /// How many of the last steps from `seen` only wait for what those before them have begun: what does not need
    /// this resource may be worked on before they are performed.
    fn waits(_spec: &Self::Spec, _seen: &Self::Seen) -> usize {
        0
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

/// The way back from a change.
#[derive(Debug, PartialEq, Eq)]
pub enum Undo {
    /// These steps.
    Steps(Vec<Step>),
    /// There is none; why, for people.
    Cannot(String),
}

/// What one look at a resource says.
#[derive(Debug, Default)]
pub struct View {
    /// What is to be done; nothing when it is in its declared state.
    pub steps: Vec<Step>,
    /// See [`Resource::diff`].
    pub diff: String,
    /// What was seen.
    pub seen: serde_json::Value,
    /// See [`Resource::essence`].
    pub essence: serde_json::Value,
    /// See [`Resource::late`].
    pub late: Option<String>,
    /// See [`Resource::protect`].
    pub protect: Option<Protect>,
    /// See [`Resource::waits`].
    pub waits: usize,
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
    /// See [`Resource::ahead`].
    fn ahead(&self) -> bool;
    /// See [`Resource::merge_key`]; with the kind's name before it.
    fn merge_key(&self) -> Option<String>;
    /// See [`Resource::merge`].
    fn merge(&self, plans: Vec<Vec<Step>>) -> Vec<Step>;
    /// See [`Resource::trace`]; what was seen before and after as [`View::seen`] has it.
    fn trace(
        &self,
        before: &serde_json::Value,
        after: &serde_json::Value,
    ) -> Result<serde_json::Value, String>;
    /// See [`Resource::essence`].
    fn essence(&self, seen: &serde_json::Value) -> Result<serde_json::Value, String>;
    /// False where what was seen holds no value of a secret in the spec, for certain.
    fn may_hold_secrets(&self, seen: &serde_json::Value) -> bool;
    /// See [`Resource::undo`].
    fn undo(
        &self,
        before: &serde_json::Value,
        trace: &serde_json::Value,
        now: &serde_json::Value,
    ) -> Result<Undo, String>;
    /// See [`Resource::spared`].
    fn spared(&self, trace: &serde_json::Value, now: &serde_json::Value) -> Result<Option<String>, String>;
    /// See [`Resource::undo_last`].
    fn undo_last(&self, before: &serde_json::Value) -> Result<bool, String>;
}

struct Adapter<R: Resource> {
    spec: Arc<R::Spec>,
    /// The spec has secrets in it.
    secret: bool,
}

impl<R: Resource> Adapter<R> {
    fn look(spec: &R::Spec, seen: &R::Seen, secret: bool) -> View {
        let steps = R::plan(spec, seen);
        let diff = match (steps.is_empty(), secret) {
            (true, _) => String::new(),
            (false, true) => R::hidden_diff(spec, seen),
            (false, false) => R::diff(spec, seen),
        };
        let essence = R::essence(spec, seen);
        let late = R::late(spec, seen);
        let (protect, waits) = (R::protect(spec, seen), R::waits(spec, seen));
        let seen = serde_json::to_value(seen).unwrap_or_default();
        View { steps, diff, seen, essence, late, protect, waits }
    }

    /// What was kept as it was seen; the error is for people.
    fn again(seen: &serde_json::Value) -> Result<R::Seen, String> {
        let kind = R::Spec::KIND;
        R::Seen::deserialize(seen)
            .map_err(|error| format!("what was kept of a {kind} cannot be read: {error}"))
    }
}

impl<R: Resource> Bound for Adapter<R> {
    fn view<'a>(&'a self, host: &'a Sys, depth: Depth) -> Boxed<'a, Result<View, ObserveError>> {
        let (spec, host) = (Arc::clone(&self.spec), host.clone());
        let secret = self.secret;
        Box::pin(off_thread(LOOK_LIMIT, async move {
            let seen = R::observe(&spec, &host, depth).await?;
            Ok(Self::look(&spec, &seen, secret))
        }))
    }

    fn foreseen(&self) -> Option<View> {
        R::foreseen(&self.spec).map(|seen| Self::look(&self.spec, &seen, self.secret))
    }

    fn repeatable(&self) -> bool {
        R::repeatable(&self.spec)
    }

    fn ahead(&self) -> bool {
        R::ahead(&self.spec)
    }

    fn merge_key(&self) -> Option<String> {
        R::merge_key(&self.spec).map(|key| format!("{}/{key}", R::Spec::KIND))
    }

    fn merge(&self, plans: Vec<Vec<Step>>) -> Vec<Step> {
        R::merge(plans)
    }

    fn trace(
        &self,
        before: &serde_json::Value,
        after: &serde_json::Value,
    ) -> Result<serde_json::Value, String> {
        Ok(R::trace(&self.spec, &Self::again(before)?, &Self::again(after)?))
    }

    fn essence(&self, seen: &serde_json::Value) -> Result<serde_json::Value, String> {
        Ok(R::essence(&self.spec, &Self::again(seen)?))
    }

    fn may_hold_secrets(&self, seen: &serde_json::Value) -> bool {
        self.secret && Self::again(seen).map_or(true, |seen| R::may_hold_secrets(&seen))
    }

    fn undo(
        &self,
        before: &serde_json::Value,
        trace: &serde_json::Value,
        now: &serde_json::Value,
    ) -> Result<Undo, String> {
        Ok(R::undo(&self.spec, &Self::again(before)?, trace, &Self::again(now)?))
    }

    fn spared(&self, trace: &serde_json::Value, now: &serde_json::Value) -> Result<Option<String>, String> {
        Ok(R::spared(&self.spec, trace, &Self::again(now)?))
    }

    fn undo_last(&self, before: &serde_json::Value) -> Result<bool, String> {
        Ok(R::undo_last(&self.spec, &Self::again(before)?))
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

fn adapt<R: Resource>(spec: &serde_json::Value, secret: bool) -> Result<Box<dyn Bound>, serde_json::Error> {
    let spec: R::Spec = serde::Deserialize::deserialize(spec)?;
    Ok(Box::new(Adapter::<R> { spec: Arc::new(spec), secret }))
}

type Row = (&'static str, fn(&serde_json::Value, bool) -> Result<Box<dyn Bound>, serde_json::Error>);

/// One row a kind.
const KINDS: &[Row] = &[
    ("apt_repository", adapt::<apt_repository::AptRepository>),
    ("authorized_key", adapt::<authorized_key::AuthorizedKey>),
    ("command", adapt::<command::Command>),
    ("directory", adapt::<directory::Directory>),
    ("docker_daemon", adapt::<docker::daemon::DockerDaemon>),
    ("docker_network", adapt::<docker::network::DockerNetwork>),
    ("fail2ban", adapt::<fail2ban::Fail2ban>),
    ("file", adapt::<file::File>),
    ("firewall", adapt::<firewall::Firewall>),
    ("package", adapt::<package::Package>),
    ("preflight", adapt::<preflight::Preflight>),
    ("reboot", adapt::<reboot::Reboot>),
    ("security_updates", adapt::<security_updates::SecurityUpdates>),
    ("service", adapt::<service::Service>),
    ("sshd", adapt::<sshd::Sshd>),
    ("sudoers", adapt::<sudoers::Sudoers>),
    ("swap", adapt::<swap::Swap>),
    ("swarm", adapt::<docker::swarm::Swarm>),
    ("swarm_service", adapt::<docker::service::SwarmService>),
    ("sysctl", adapt::<sysctl::Sysctl>),
    ("time_sync", adapt::<time_sync::TimeSync>),
    ("user", adapt::<user::User>),
];

/// A planned resource, ready to be worked on. The error is for people; a plan that was validated has none.
pub fn bind(planned: &PlannedResource) -> Result<Box<dyn Bound>, String> {
    bind_filled(planned, &planned.spec)
}

/// The same for one with holes: `filled` is its spec with values in them.
pub fn bind_filled(planned: &PlannedResource, filled: &serde_json::Value) -> Result<Box<dyn Bound>, String> {
    let row = KINDS.iter().find(|(name, _)| *name == planned.kind);
    let (_, adapt) = row.ok_or_else(|| format!("unknown kind of resource: {}", planned.kind))?;
    let secret = !postern_proto::text::secrets(&planned.spec).is_empty();
    adapt(filled, secret).map_err(|error| format!("{}: {error}", planned.address))
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

    /// What is kept of a resource whose spec has a secret is what certainly holds none.
    #[test]
    fn what_may_hold_secrets_by_table() {
        use serde_json::json;
        let hole = json!({"$text": [{"secret": {"id": "a", "version": 1}}]});
        let meta = json!({"kind": "file", "mode": 420, "uid": 0, "gid": 0, "len": 1, "mtime_ns": 0});
        let file = |content: serde_json::Value| json!({"there": [meta, content], "uid": 0, "gid": 0});
        let user = |password: Option<&str>| {
            let row = json!({
                "uid": 7, "gid": 7, "group": null, "comment": "", "home": "/", "shell": "", "groups": [],
                "password": password, "ageing": [],
            });
            json!({"there": row, "namesake": null, "home_there": true})
        };
        let cases = [
            ("file", "content", json!({"there": null, "uid": 0, "gid": 0}), false),
            ("file", "content", file(json!({"bytes": "eA=="})), true),
            ("file", "content", file(json!({"bytes": ""})), false),
            ("file", "content", file(json!("too_long")), false),
            ("file", "content", json!("of another format"), true),
            ("user", "password_hash", json!({"there": null, "namesake": null, "home_there": false}), false),
            ("user", "password_hash", user(Some("$6$a$b")), true),
            ("user", "password_hash", user(Some("!$6$a$b")), true),
            ("user", "password_hash", user(Some("!")), false),
            ("user", "password_hash", user(Some("*")), false),
            ("user", "password_hash", user(None), false),
            ("command", "stdin", json!("needed"), false),
            ("command", "stdin", json!({"said": "x"}), true),
        ];
        for (kind, field, seen, want) in cases {
            let mut spec = match kind {
                "file" => json!({"path": "/a", "content": ""}),
                "user" => json!({"name": "a"}),
                _ => json!({"argv": ["true"]}),
            };
            for secret in [true, false] {
                spec[field] = if secret { hole.clone() } else { json!("x") };
                let address = format!("t:{kind}:a").parse().unwrap();
                let (kind, schema) = (kind.to_owned(), 1);
                let planned = PlannedResource { address, kind, schema, spec: spec.clone(), needs: None };
                let bound = bind_filled(&planned, &postern_proto::text::stand_in(&spec)).unwrap();
                assert_eq!(bound.may_hold_secrets(&seen), want && secret, "{planned:?} {seen}");
            }
        }
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
