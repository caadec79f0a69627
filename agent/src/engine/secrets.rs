//! The secrets of runs: in memory only, asked for in each session that does not know yet, dropped with the run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use postern_proto::ids::{RunId, SecretRef};
use tokio::sync::Notify;

use super::SecretAnswer;
use super::api::SecretText;
use super::shared::{Inner, Shared};

/// The values of one run together, bytes: each process of the run is told all of them, to redact them.
const ALL: usize = 1 << 20;

/// What is known of one run's secrets.
pub(super) struct Vault {
    wanted: BTreeSet<SecretRef>,
    got: BTreeMap<SecretRef, Result<SecretText, String>>,
    /// The session that was asked last.
    asked: Option<u64>,
    changed: Arc<Notify>,
}

impl Vault {
    fn lacking(&self) -> impl Iterator<Item = &SecretRef> {
        self.wanted.iter().filter(|secret| !self.got.contains_key(secret))
    }

    /// Takes answers to what is wanted, and no others.
    fn take(&mut self, answers: Vec<SecretAnswer>) {
        let mut bytes: usize = self.got.values().flatten().map(|text| text.expose().len()).sum();
        for SecretAnswer { secret, value } in answers {
            if !self.wanted.contains(&secret) || matches!(self.got.get(&secret), Some(Ok(_))) {
                continue;
            }
            let value = value.and_then(|text| {
                let fits = bytes + text.expose().len() <= ALL;
                // One that does not fit takes no room from those that do.
                bytes += if fits { text.expose().len() } else { 0 };
                fits.then_some(text)
                    .ok_or_else(|| format!("the secrets of one run may take {ALL} bytes together"))
            });
            self.got.insert(secret, value);
        }
        self.changed.notify_one();
    }
}

impl Inner {
    /// The next run whose secrets this session has not been asked for.
    pub(super) fn wanted(&mut self) -> Option<(RunId, Vec<SecretRef>)> {
        let generation = self.generation;
        let session = self.session.as_ref()?;
        let open = |run: &RunId, vault: &Vault| {
            vault.asked != Some(generation) && !session.holds(*run) && vault.lacking().next().is_some()
        };
        let (run, vault) = self.vaults.iter_mut().find(|(run, vault)| open(run, vault))?;
        vault.asked = Some(generation);
        Some((*run, vault.lacking().cloned().collect()))
    }

    /// The controller's answer. Nothing happens for a run that is over.
    pub(super) fn answered(&mut self, run: RunId, answers: Vec<SecretAnswer>) {
        if let Some(vault) = self.vaults.get_mut(&run) {
            vault.take(answers);
        }
    }
}

/// A run's hold on its secrets; they are gone when it is dropped.
pub(super) struct Secrets {
    shared: Arc<Shared>,
    run: RunId,
    pub(super) changed: Arc<Notify>,
}

impl Secrets {
    /// Asks for these, in this session and in later ones, until they are there.
    pub(super) fn ask(shared: &Arc<Shared>, run: RunId, wanted: BTreeSet<SecretRef>) -> Self {
        let changed = Arc::new(Notify::new());
        let vault = Vault { wanted, got: BTreeMap::new(), asked: None, changed: Arc::clone(&changed) };
        let mut inner = shared.lock();
        inner.vaults.insert(run, vault);
        inner.wake();
        drop(inner);
        Self { shared: Arc::clone(shared), run, changed }
    }

    fn with<T>(&self, look: impl FnOnce(&Vault) -> T) -> Option<T> {
        self.shared.lock().vaults.get(&self.run).map(look)
    }

    /// Those of these that were not answered yet.
    pub(super) fn lacking(&self, of: &BTreeSet<SecretRef>) -> Vec<SecretRef> {
        let lacking =
            |vault: &Vault| of.iter().filter(|secret| !vault.got.contains_key(secret)).cloned().collect();
        self.with(lacking).unwrap_or_default()
    }

    /// A value, or why there is none.
    pub(super) fn value(&self, secret: &SecretRef) -> Option<Result<SecretText, String>> {
        self.with(|vault| vault.got.get(secret).cloned()).flatten()
    }

    /// Every value that is there.
    pub(super) fn values(&self) -> Vec<SecretText> {
        self.with(|vault| vault.got.values().flatten().cloned().collect()).unwrap_or_default()
    }

    /// How many were answered.
    pub(super) fn answered(&self) -> usize {
        self.with(|vault| vault.got.len()).unwrap_or(0)
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.shared.lock().vaults.remove(&self.run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(id: &str) -> SecretRef {
        SecretRef { id: id.to_owned(), version: 1 }
    }

    fn answer(id: &str, value: &str) -> SecretAnswer {
        SecretAnswer { secret: secret(id), value: Ok(SecretText::new(value.to_owned())) }
    }

    #[test]
    fn only_what_is_wanted_is_taken_and_all_of_it_goes_with_the_run() {
        let (shared, run) = (Arc::new(Shared::default()), RunId::generate());
        let wanted: BTreeSet<_> = ["a", "b", "c"].map(secret).into();
        let secrets = Secrets::ask(&shared, run, wanted.clone());
        shared.lock().answered(RunId::generate(), vec![answer("a", "x")]);
        assert_eq!(secrets.lacking(&wanted).len(), 3);
        shared.lock().answered(run, vec![answer("a", "x"), answer("other", "y"), answer("a", "z")]);
        let refused = SecretAnswer { secret: secret("b"), value: Err("it was removed".to_owned()) };
        shared.lock().answered(run, vec![refused, answer("c", &"x".repeat(ALL))]);
        assert_eq!(secrets.value(&secret("a")).unwrap().unwrap().expose(), "x");
        assert_eq!(secrets.value(&secret("b")).unwrap().unwrap_err(), "it was removed");
        assert!(secrets.value(&secret("c")).unwrap().unwrap_err().contains("together"));
        assert!(secrets.value(&secret("other")).is_none());
        drop(secrets);
        assert!(shared.lock().vaults.is_empty());
    }

    #[test]
    fn a_value_is_not_printed() {
        let shown = format!("{:?}", answer("a", "hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
