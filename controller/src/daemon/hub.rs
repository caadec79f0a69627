//! Which sessions are up, and who is to be woken when a run or a host changes. Nothing here is durable.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postern_proto::ids::{HostId, InstanceId, RunId, SessionId};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::kinds::Kinds;
use super::session::ClaimError;
use super::wire::Reason;
use crate::ca::KeyHash;
use crate::store::Dispatch;

/// Sessions that come up at once; more are told to come back.
const OPENING: usize = 512;
/// How long a session waits for its turn to come up.
const TURN: Duration = Duration::from_secs(15);
/// How long a session has to take a command.
const COMMAND: Duration = Duration::from_secs(5);

/// What a session is told.
#[derive(Debug)]
pub(crate) enum Command {
    Dispatch(Dispatch),
    Cancel(RunId),
    Leave(oneshot::Sender<Vec<String>>),
    Probe(oneshot::Sender<()>),
    Restart,
}

/// A live session.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) session: SessionId,
    pub(crate) instance: InstanceId,
    pub(crate) key: KeyHash,
    pub(crate) peer: SocketAddr,
    pub(crate) commands: mpsc::Sender<Command>,
    /// Set once; never waits behind commands.
    pub(crate) close: Arc<watch::Sender<Option<(Reason, String)>>>,
    /// It was welcomed.
    pub(crate) up: Arc<AtomicBool>,
    /// Milliseconds since the Unix epoch.
    pub(crate) heard_ms: Arc<AtomicI64>,
    /// What its agent can take.
    pub(crate) kinds: Arc<Kinds>,
}

impl Handle {
    pub(crate) fn close(&self, reason: Reason, message: &str) {
        self.close.send_if_modified(|close| {
            let first = close.is_none();
            if first {
                *close = Some((reason, message.to_owned()));
            }
            first
        });
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    async fn send(&self, command: Command) -> bool {
        self.commands.send_timeout(command, COMMAND).await.is_ok()
    }
}

/// Held while a session comes up: no other session of that host does meanwhile.
pub(crate) struct Claim {
    _host: OwnedMutexGuard<()>,
    _turn: OwnedSemaphorePermit,
}

/// A clone was found: the session that is up must go too.
pub(crate) struct CloneFound {
    pub(crate) other: Handle,
}

/// Shared by all.
pub(crate) struct Hub {
    sessions: Mutex<HashMap<HostId, Handle>>,
    claims: Mutex<HashMap<HostId, Arc<tokio::sync::Mutex<()>>>>,
    opening: Arc<Semaphore>,
    probe: Duration,
    pub(crate) runs: Wakers<RunId>,
    pub(crate) hosts: Wakers<HostId>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) fn new(probe: Duration) -> Self {
        Self {
            sessions: Mutex::default(),
            claims: Mutex::default(),
            opening: Arc::new(Semaphore::new(OPENING)),
            probe,
            runs: Wakers::default(),
            hosts: Wakers::default(),
        }
    }

    /// The session of a host, when it is up.
    pub(crate) fn session(&self, host: HostId) -> Option<Handle> {
        lock(&self.sessions).get(&host).filter(|handle| handle.is_up()).cloned()
    }

    /// True when the host has a session, also one that is still coming up.
    pub(crate) fn is_claimed(&self, host: HostId) -> bool {
        lock(&self.sessions).contains_key(&host)
    }

    /// Makes `new` the one session of its host. One of the same instance is a half-open connection and is
    /// replaced; one of another instance is asked whether it lives.
    pub(crate) async fn claim(
        &self,
        host: HostId,
        new: Handle,
    ) -> Result<Result<Claim, CloneFound>, ClaimError> {
        // The host's gate first: one host that comes many times takes one turn, not all of them.
        let gate = Arc::clone(lock(&self.claims).entry(host).or_default());
        let Ok(guard) = tokio::time::timeout(TURN, gate.lock_owned()).await else {
            return Err(ClaimError::Shed);
        };
        let turn = tokio::time::timeout(TURN, Arc::clone(&self.opening).acquire_owned());
        let Ok(Ok(turn)) = turn.await else { return Err(ClaimError::Shed) };
        let old = lock(&self.sessions).get(&host).cloned();
        if let Some(old) = old {
            if old.instance != new.instance && self.answers(&old).await {
                return Ok(Err(CloneFound { other: old }));
            }
            old.close(Reason::Replaced, "a newer session of this agent took over");
        }
        // Registered before the store is asked what waits: what is queued from now on comes as a command.
        lock(&self.sessions).insert(host, new);
        Ok(Ok(Claim { _host: guard, _turn: turn }))
    }

    async fn answers(&self, old: &Handle) -> bool {
        let (answer, wait) = oneshot::channel();
        let asked = async { old.send(Command::Probe(answer)).await && wait.await.is_ok() };
        tokio::time::timeout(self.probe, asked).await.unwrap_or(false)
    }

    /// The session is over; another one of the host stays.
    pub(crate) fn release(&self, host: HostId, session: SessionId) {
        let mut sessions = lock(&self.sessions);
        if sessions.get(&host).is_some_and(|handle| handle.session == session) {
            sessions.remove(&host);
        }
        drop(sessions);
        // Nobody waits at the gate when only the map holds it.
        let mut claims = lock(&self.claims);
        if claims.get(&host).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            claims.remove(&host);
        }
        drop(claims);
        self.hosts.wake(host);
    }

    /// Ends the session of a host, if it has one and `which` wants it.
    pub(crate) fn close(&self, host: HostId, reason: Reason, message: &str, which: impl Fn(&Handle) -> bool) {
        let handle = lock(&self.sessions).get(&host).filter(|handle| which(handle)).cloned();
        if let Some(handle) = handle {
            handle.close(reason, message);
        }
    }

    /// Hands a command to the session of a host. False when there is none that takes it: what the store
    /// holds is then sent when the next one comes up.
    pub(crate) async fn tell(&self, host: HostId, command: Command) -> bool {
        let handle = lock(&self.sessions).get(&host).cloned();
        let Some(handle) = handle else { return false };
        let taken = handle.send(command).await;
        if !taken {
            handle.close(Reason::Shed, "the session does not take commands");
        }
        taken
    }
}

/// Wakes who waits for a change of something.
pub(crate) struct Wakers<K>(Arc<Mutex<HashMap<K, watch::Sender<()>>>>);

impl<K> Default for Wakers<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Gives back its place when dropped.
pub(crate) struct Subscription<K: Copy + Eq + Hash> {
    key: K,
    changes: Option<watch::Receiver<()>>,
    all: Arc<Mutex<HashMap<K, watch::Sender<()>>>>,
}

impl<K: Copy + Eq + Hash> Wakers<K> {
    pub(crate) fn subscribe(&self, key: K) -> Subscription<K> {
        let changes = lock(&self.0).entry(key).or_insert_with(|| watch::Sender::new(())).subscribe();
        Subscription { key, changes: Some(changes), all: Arc::clone(&self.0) }
    }

    pub(crate) fn wake(&self, key: K) {
        if let Some(sender) = lock(&self.0).get(&key) {
            sender.send_replace(());
        }
    }
}

impl<K: Copy + Eq + Hash> Subscription<K> {
    /// Waits for a change since the last call, or since it was subscribed.
    pub(crate) async fn changed(&mut self) {
        if let Some(changes) = &mut self.changes {
            // The sender is in the map as long as this is.
            let _ = changes.changed().await;
        }
    }
}

impl<K: Copy + Eq + Hash> Drop for Subscription<K> {
    fn drop(&mut self) {
        let mut all = lock(&self.all);
        self.changes = None;
        if all.get(&self.key).is_some_and(|sender| sender.receiver_count() == 0) {
            all.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle() -> (Handle, mpsc::Receiver<Command>) {
        let (commands, receive) = mpsc::channel(4);
        let handle = Handle {
            session: SessionId::generate(),
            instance: InstanceId::generate(),
            key: KeyHash::of(b"key"),
            peer: ([127, 0, 0, 1], 1).into(),
            commands,
            close: Arc::new(watch::Sender::new(None)),
            up: Arc::default(),
            heard_ms: Arc::default(),
            kinds: Arc::default(),
        };
        (handle, receive)
    }

    /// What is written down while a session comes up, after it has asked the store, is told to it.
    #[tokio::test]
    async fn a_session_that_comes_up_takes_commands() {
        let hub = Hub::new(Duration::from_millis(10));
        let host = HostId::generate();
        assert!(!hub.is_claimed(host));
        let (handle, mut commands) = handle();
        let session = handle.session;
        let claim = hub.claim(host, handle).await.unwrap().ok().unwrap();
        assert!(hub.session(host).is_none() && hub.is_claimed(host));
        assert!(hub.tell(host, Command::Cancel(RunId::generate())).await);
        assert!(matches!(commands.recv().await, Some(Command::Cancel(_))));
        drop(claim);
        hub.release(host, session);
        assert!(!hub.is_claimed(host));
    }

    /// A host that comes again and again while its first session comes up takes no turn from others.
    #[tokio::test(start_paused = true)]
    async fn who_waits_at_a_hosts_gate_holds_no_turn() {
        let hub = Arc::new(Hub::new(Duration::from_millis(10)));
        let host = HostId::generate();
        let _claim = hub.claim(host, handle().0).await.unwrap().ok().unwrap();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let hub = Arc::clone(&hub);
                tokio::spawn(async move { hub.claim(host, handle().0).await.is_err() })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(hub.opening.available_permits(), OPENING - 1);
        for shed in waiting {
            assert!(shed.await.unwrap());
        }
    }

    #[tokio::test]
    async fn subscriptions_wake_and_leave_nothing() {
        let wakers = Wakers::<u32>::default();
        let mut one = wakers.subscribe(1);
        let two = wakers.subscribe(1);
        wakers.wake(1);
        tokio::time::timeout(Duration::from_secs(1), one.changed()).await.unwrap();
        drop(two);
        assert_eq!(lock(&wakers.0).len(), 1);
        drop(one);
        assert!(lock(&wakers.0).is_empty());
        wakers.wake(1);
    }
}
