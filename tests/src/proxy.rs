//! A TCP proxy that misbehaves on request: delay, cuts, half-open silence, trickle, refusal.
//!
//! What it cannot do: it acknowledges what it has read, so a peer's kernel sees a living TCP connection even when
//! [`Faults::hold_up`] keeps the bytes from the other side. Faults below TCP (lost packets) are the lab's business.
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Time to reach the target, to bind again, and for the listener to follow [`FaultProxy::set`].
const PATIENCE: Duration = Duration::from_secs(10);
const CHUNK: usize = 16 * 1024;
/// Chunks on their way in one direction: what a delayed link holds at most (1 MiB).
const IN_FLIGHT: usize = 64;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From who dialled to the target.
    Up,
    /// From the target to who dialled.
    Down,
}

/// How a connection ends, on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// An orderly end: the peers read end-of-file.
    Fin,
    /// An abort: the peers get "connection reset".
    Reset,
}

/// What is wrong with the link now. [`Faults::default`] is a link without faults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// Added to each byte's way, in each direction.
    pub delay: Duration,
    /// Bytes per second in each direction of each connection; 0 is without limit.
    pub rate: u64,
    /// Forward nothing from who dialled to the target; held bytes go on when this is taken back.
    pub hold_up: bool,
    /// Forward nothing from the target to who dialled; held bytes go on when this is taken back.
    pub hold_down: bool,
    /// The port refuses new connections; those that live go on.
    pub refuse_new: bool,
}

impl Faults {
    /// A half-open link: the sockets stay, nothing comes through, and new connections get no answer either.
    pub fn black_hole() -> Self {
        Faults { hold_up: true, hold_down: true, ..Faults::default() }
    }

    /// Everything this much later, each way.
    pub fn delay(delay: Duration) -> Self {
        Faults { delay, ..Faults::default() }
    }

    /// So many bytes per second, each way.
    pub fn trickle(rate: u64) -> Self {
        Faults { rate, ..Faults::default() }
    }

    /// No new connections.
    pub fn refuse() -> Self {
        Faults { refuse_new: true, ..Faults::default() }
    }

    fn holds(&self, direction: Direction) -> bool {
        match direction {
            Direction::Up => self.hold_up,
            Direction::Down => self.hold_down,
        }
    }
}

/// What has gone through since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections alive now.
    pub live: u64,
    /// Connections ended by [`FaultProxy::cut`] or [`FaultProxy::cut_after`].
    pub cut: u64,
    /// Bytes forwarded to the target.
    pub up: u64,
    /// Bytes forwarded to who dialled.
    pub down: u64,
}

/// A running proxy; it and all its connections die when this is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    faults: watch::Sender<Faults>,
    listening: watch::Sender<bool>,
    live: watch::Sender<u64>,
    state: Mutex<State>,
    accepted: AtomicU64,
    cut: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    next_id: u64,
    connections: HashMap<u64, oneshot::Sender<Cut>>,
    fuse: Option<Fuse>,
}

#[derive(Debug)]
struct Fuse {
    direction: Direction,
    left: u64,
    how: Cut,
}

impl FaultProxy {
    /// Listens on a free port of 127.0.0.1 and forwards to `target`.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into(), target).await
    }

    /// Listens on `listen` and forwards to `target`.
    pub async fn start_on(listen: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let addr = listener.local_addr()?;
        let state = State { target, next_id: 0, connections: HashMap::new(), fuse: None };
        let shared = Arc::new(Shared {
            faults: watch::Sender::new(Faults::default()),
            listening: watch::Sender::new(true),
            live: watch::Sender::new(0),
            state: Mutex::new(state),
            accepted: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
        });
        let acceptor = tokio::spawn(accept(addr, Some(listener), shared.clone()));
        Ok(FaultProxy { addr, shared, acceptor })
    }

    /// Where to dial.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// New connections go there; those that live stay where they are.
    pub fn retarget(&self, target: SocketAddr) {
        self.shared.state().target = target;
    }

    /// Replaces the faults. When it returns, the port refuses or accepts as told.
    pub async fn set(&self, faults: Faults) -> io::Result<()> {
        let refuse = faults.refuse_new;
        self.shared.faults.send_replace(faults);
        let mut listening = self.shared.listening.subscribe();
        match timeout(PATIENCE, listening.wait_for(|on| *on != refuse)).await {
            Ok(Ok(_)) => Ok(()),
            _ => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("cannot listen on {} again", self.addr)))
            }
        }
    }

    /// A link without faults again.
    pub async fn heal(&self) -> io::Result<()> {
        self.shared.state().fuse = None;
        self.set(Faults::default()).await
    }

    /// Cuts every connection that lives now; says how many there were. New ones are not affected.
    pub fn cut(&self, how: Cut) -> usize {
        self.shared.cut(how)
    }

    /// Counting from now over all connections, also those to come: once `bytes` have been forwarded in
    /// `direction`, not one more goes through and every live connection is cut. Works once, then is off again.
    pub fn cut_after(&self, direction: Direction, bytes: u64, how: Cut) {
        self.shared.state().fuse = Some(Fuse { direction, left: bytes, how });
    }

    /// What has gone through.
    pub fn counters(&self) -> Counters {
        let s = &self.shared;
        Counters {
            accepted: s.accepted.load(Ordering::Relaxed),
            live: *s.live.borrow(),
            cut: s.cut.load(Ordering::Relaxed),
            up: s.up.load(Ordering::Relaxed),
            down: s.down.load(Ordering::Relaxed),
        }
    }

    /// Waits until exactly `count` connections are alive.
    pub async fn wait_live(&self, count: u64, deadline: Duration) -> io::Result<()> {
        match timeout(deadline, self.shared.live.subscribe().wait_for(|live| *live == count)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{} connections alive after {deadline:?}, not {count}", *self.shared.live.borrow()),
            )),
        }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self, how: Cut) -> usize {
        let connections: Vec<_> = self.state().connections.drain().collect();
        let hit = connections.into_iter().filter_map(|(_, end)| end.send(how).ok()).count();
        self.cut.fetch_add(hit as u64, Ordering::Relaxed);
        hit
    }

    /// How many of `wanted` bytes may still go, and the cut that is due after them.
    fn burn(&self, direction: Direction, wanted: usize) -> (usize, Option<Cut>) {
        let mut state = self.state();
        let Some(fuse) = state.fuse.as_mut().filter(|fuse| fuse.direction == direction) else {
            return (wanted, None);
        };
        let allowed = wanted.min(usize::try_from(fuse.left).unwrap_or(usize::MAX));
        fuse.left -= allowed as u64;
        if fuse.left > 0 {
            return (allowed, None);
        }
        let how = fuse.how;
        state.fuse = None;
        (allowed, Some(how))
    }

    fn count(&self, direction: Direction, bytes: usize) {
        let counter = match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        };
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// One live connection in the books; taken out when dropped, however its task ends.
struct Entry {
    id: u64,
    shared: Arc<Shared>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.state().connections.remove(&self.id);
        self.shared.live.send_modify(|live| *live -= 1);
    }
}

async fn accept(addr: SocketAddr, mut listener: Option<TcpListener>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    let mut faults = shared.faults.subscribe();
    loop {
        let refuse = faults.borrow_and_update().refuse_new;
        if refuse {
            // Closing the listener is what makes the kernel refuse; not accepting would only let callers queue.
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(addr).await.ok();
        }
        shared.listening.send_replace(listener.is_some());
        tokio::select! {
            Some(_) = connections.join_next() => {}
            _ = faults.changed() => {}
            () = sleep(Duration::from_millis(50)), if listener.is_none() && !refuse => {}
            Some((client, end, entry)) = admit(listener.as_ref(), &shared) => {
                connections.spawn(serve(client, end, entry));
            }
        }
    }
}

async fn admit(
    listener: Option<&TcpListener>,
    shared: &Arc<Shared>,
) -> Option<(TcpStream, oneshot::Receiver<Cut>, Entry)> {
    let (client, _) = listener?.accept().await.ok()?;
    let (tx, rx) = oneshot::channel();
    let mut state = shared.state();
    let id = state.next_id;
    state.next_id += 1;
    state.connections.insert(id, tx);
    shared.accepted.fetch_add(1, Ordering::Relaxed);
    shared.live.send_modify(|live| *live += 1);
    Some((client, rx, Entry { id, shared: shared.clone() }))
}

async fn serve(mut client: TcpStream, end: oneshot::Receiver<Cut>, entry: Entry) {
    let shared = entry.shared.clone();
    let mut target = None;
    let how = tokio::select! {
        how = end => how.unwrap_or(Cut::Reset),
        // An error on one side is passed on as a reset of the other; both sides done is an orderly end.
        result = forward(&mut client, &mut target, &shared) => match result {
            Ok(()) => Cut::Fin,
            Err(_) => Cut::Reset,
        },
    };
    for mut stream in [Some(client), target].into_iter().flatten() {
        match how {
            Cut::Fin => drop(stream.shutdown().await),
            Cut::Reset => drop(stream.set_zero_linger()),
        }
    }
}

async fn forward(client: &mut TcpStream, target: &mut Option<TcpStream>, shared: &Shared) -> io::Result<()> {
    let mut faults = shared.faults.subscribe();
    open(&mut faults, Direction::Up).await;
    let address = shared.state().target;
    let target = target.insert(timeout(PATIENCE, TcpStream::connect(address)).await??);
    client.set_nodelay(true)?;
    target.set_nodelay(true)?;
    let (client_read, client_write) = client.split();
    let (target_read, target_write) = target.split();
    tokio::try_join!(
        pump(client_read, target_write, Direction::Up, shared),
        pump(target_read, client_write, Direction::Down, shared),
    )?;
    Ok(())
}

/// Waits while this direction is held.
async fn open(faults: &mut watch::Receiver<Faults>, direction: Direction) {
    // Fails only when the sender is gone, which ends this task too.
    let _ = faults.wait_for(|faults| !faults.holds(direction)).await;
}

async fn pump(
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    direction: Direction,
    shared: &Shared,
) -> io::Result<()> {
    let (tx, rx) = mpsc::channel(IN_FLIGHT);
    tokio::try_join!(take(from, tx, direction, shared), give(to, rx, direction, shared))?;
    Ok(())
}

async fn take(
    mut from: ReadHalf<'_>,
    tx: mpsc::Sender<(Instant, Vec<u8>)>,
    direction: Direction,
    shared: &Shared,
) -> io::Result<()> {
    let mut faults = shared.faults.subscribe();
    let mut buffer = vec![0; CHUNK];
    loop {
        open(&mut faults, direction).await;
        let count = tokio::select! {
            count = from.read(&mut buffer) => count?,
            _ = faults.changed() => continue,
        };
        let due = Instant::now() + faults.borrow().delay;
        // An empty chunk is the end of file: it waits its turn behind the data.
        if tx.send((due, buffer[..count].to_vec())).await.is_err() || count == 0 {
            return Ok(());
        }
    }
}

async fn give(
    mut to: WriteHalf<'_>,
    mut rx: mpsc::Receiver<(Instant, Vec<u8>)>,
    direction: Direction,
    shared: &Shared,
) -> io::Result<()> {
    let mut faults = shared.faults.subscribe();
    while let Some((due, chunk)) = rx.recv().await {
        sleep_until(due).await;
        open(&mut faults, direction).await;
        if chunk.is_empty() {
            to.shutdown().await?;
        }
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            open(&mut faults, direction).await;
            let rate = faults.borrow().rate;
            // Twenty pieces a second look like a slow line; a byte at a time below that.
            let piece =
                if rate == 0 { rest.len() } else { rest.len().min((rate / 20).clamp(1, 1 << 20) as usize) };
            let (piece, cut) = shared.burn(direction, piece);
            to.write_all(&rest[..piece]).await?;
            shared.count(direction, piece);
            if let Some(how) = cut {
                shared.cut(how);
                // The cut ends this task at its next wait, before anything else goes through.
                std::future::pending::<()>().await;
            }
            if rate > 0 {
                sleep(Duration::from_secs_f64(piece as f64 / rate as f64)).await;
            }
            rest = &rest[piece..];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
