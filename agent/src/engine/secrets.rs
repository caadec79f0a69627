//! The secrets of runs: in memory only, asked for in each session that does not know yet, dropped with the run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use postern_proto::ids::{RunId, SecretRef};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::api::SecretText;
use super::shared::{Inner, Shared};
use super::{NoSecret, SecretAnswer};

/// The values of one run together, bytes: each process of the run is told all of them, to redact them, which takes
/// it up to 640 bytes for each (measured in `supervise::redact`), so 40 MiB.
const ALL: usize = 64 << 10;

/// The bounds of the wait until a question is asked again, whatever the controller says; up to a quarter more, by
/// chance, so that not all runs ask in the same moment.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// What is known of one run's secrets.
pub(super) struct Vault {
    wanted: BTreeSet<SecretRef>,
    got: BTreeMap<SecretRef, Result<SecretText, String>>,
    /// The session that was asked last.
    asked: Option<u64>,
    /// When that session is to be asked again.
    again: Option<Instant>,
    changed: Arc<Notify>,
}

impl Vault {
    fn lacking(&self) -> impl Iterator<Item = &SecretRef> {
        self.wanted.iter().filter(|secret| !self.got.contains_key(secret))
    }

    /// Takes answers to what is wanted, and no others. `random` is drawn evenly from all of `u32`.
    fn take(&mut self, answers: Vec<SecretAnswer>, now: Instant, random: u32) {
        let mut bytes: usize = self.got.values().flatten().map(|text| text.expose().len()).sum();
        for SecretAnswer { secret, value } in answers {
            if !self.wanted.contains(&secret) || matches!(self.got.get(&secret), Some(Ok(_))) {
                continue;
            }
            let value = match value {
                Ok(text) => {
                    let together = bytes + text.expose().len();
                    // One that does not fit takes no room from those that do.
                    if together > ALL {
                        Err(format!(
                            "with its {} bytes the secrets of this run would take {together} bytes together, the \
                             limit is {ALL}: use fewer in one run, or shorter ones",
                            text.expose().len()
                        ))
                    } else {
                        bytes = together;
                        Ok(text)
                    }
                }
                Err(NoSecret::Never(why)) => Err(why),
                Err(NoSecret::NotNow { why, after }) => {
                    tracing::info!(why, id = secret.id, "a secret is asked for again later");
                    let (least, most) = ASK_AGAIN;
                    let after = after.clamp(least, most);
                    let at = now + after + after / 4 * (random >> 16) / (1 << 16);
                    self.again = Some(self.again.map_or(at, |again| again.max(at)));
                    continue;
                }
            };
            self.got.insert(secret, value);
        }
        self.changed.notify_one();
    }
}

impl Inner {
    /// The next run whose secrets this session has not been asked for, or is to be asked for again.
    pub(super) fn wanted(&mut self, now: Instant) -> Option<(RunId, Vec<SecretRef>)> {
        let generation = self.generation;
        let session = self.session.as_ref()?;
        let open = |run: &RunId, vault: &Vault| {
            let due = vault.asked != Some(generation) || vault.again.is_some_and(|again| again <= now);
            due && !session.holds(*run) && vault.lacking().next().is_some()
        };
        let (run, vault) = self.vaults.iter_mut().find(|(run, vault)| open(run, vault))?;
        (vault.asked, vault.again) = (Some(generation), None);
        Some((*run, vault.lacking().cloned().collect()))
    }

    /// When the first of those questions is to be asked again.
    pub(super) fn asks_again(&self) -> Option<Instant> {
        let session = self.session.as_ref()?;
        let open = |run: &RunId, vault: &Vault| !session.holds(*run) && vault.lacking().next().is_some();
        let waits = self.vaults.iter().filter(|(run, vault)| open(run, vault));
        waits.filter_map(|(_, vault)| vault.again).min()
    }

    /// The controller's answer. Nothing happens for a run that is over.
    pub(super) fn answered(&mut self, run: RunId, answers: Vec<SecretAnswer>, now: Instant, random: u32) {
        if let Some(vault) = self.vaults.get_mut(&run) {
            vault.take(answers, now, random);
            // Whoever sends has to know until when it may sleep.
            self.wake();
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
        let changed_too = Arc::clone(&changed);
        let vault = Vault { wanted, got: BTreeMap::new(), asked: None, again: None, changed: changed_too };
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
        let now = Instant::now();
        shared.lock().answered(RunId::generate(), vec![answer("a", "x")], now, 0);
        assert_eq!(secrets.lacking(&wanted).len(), 3);
        let answers = vec![answer("a", "x"), answer("other", "y"), answer("a", "z")];
        shared.lock().answered(run, answers, now, 0);
        let never = NoSecret::Never("it was removed".to_owned());
        let refused = SecretAnswer { secret: secret("b"), value: Err(never) };
        shared.lock().answered(run, vec![refused, answer("c", &"x".repeat(ALL))], now, 0);
        assert_eq!(secrets.value(&secret("a")).unwrap().unwrap().expose(), "x");
        assert_eq!(secrets.value(&secret("b")).unwrap().unwrap_err(), "it was removed");
        let too_long = secrets.value(&secret("c")).unwrap().unwrap_err();
        assert!(too_long.contains("take 65537 bytes together, the limit is 65536"), "{too_long}");
        assert!(secrets.value(&secret("other")).is_none());
        drop(secrets);
        assert!(shared.lock().vaults.is_empty());
    }

    /// Too often is no refusal for good: the same session is asked again, later, within bounds.
    #[test]
    fn what_is_refused_for_now_is_asked_for_again() {
        use super::super::session::{Session, Windows};
        let (shared, run) = (Arc::new(Shared::default()), RunId::generate());
        let wanted: BTreeSet<_> = ["a", "b"].map(secret).into();
        let secrets = Secrets::ask(&shared, run, wanted.clone());
        let mut inner = shared.lock();
        let windows = Windows { run: 1, agent: 1 };
        inner.session = Some(Session::new(&inner.book, windows, vec![], vec![]));
        let start = Instant::now();
        let seconds = Duration::from_secs;
        for (after, random, least, most) in [
            (0, 0, 1_000, 1_000),
            (40_000, 0, 40_000, 40_000),
            (40_000, u32::MAX, 49_000, 50_000),
            (u64::MAX, u32::MAX, 374_000, 375_000),
        ] {
            assert!(inner.wanted(start).is_some() && inner.wanted(start).is_none());
            let after = Duration::from_millis(after);
            let not_now = Err(NoSecret::NotNow { why: "too often".to_owned(), after });
            inner.answered(run, vec![SecretAnswer { secret: secret("a"), value: not_now }], start, random);
            let again = inner.asks_again().unwrap() - start;
            assert!((least..=most).contains(&again.as_millis()), "{after:?}: {again:?}");
            assert!(inner.wanted(start + again - Duration::from_millis(1)).is_none());
            // A new session is asked at once.
            inner.generation += 1;
        }
        assert!(inner.wanted(start).is_some() && inner.asks_again().is_none());
        let not_now = Err(NoSecret::NotNow { why: "too often".to_owned(), after: seconds(2) });
        let answers = vec![SecretAnswer { secret: secret("a"), value: not_now }, answer("b", "x")];
        inner.answered(run, answers, start, 0);
        assert_eq!(inner.wanted(start + seconds(2)), Some((run, vec![secret("a")])), "in this session");
        drop(inner);
        assert_eq!(secrets.lacking(&wanted), [secret("a")], "and it waits for it");
    }

    #[test]
    fn a_value_is_not_printed() {
        let shown = format!("{:?}", answer("a", "hunter2"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
