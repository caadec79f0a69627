//! An open-loop load of HTTP requests: each begins at its time, whether those before it have been answered or not, so
//! that a server that stands still is not asked less.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, timeout};

/// For one request, its connection included: TCP tries a connection again after 1, 3, 7 and 15 seconds.
const LIMIT: Duration = Duration::from_secs(30);
/// The most that are under way at once; one that finds no room counts as failed.
const MOST: usize = 8192;
/// The most failures that are kept word for word.
const KEPT: usize = 20;

/// What became of them.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Answered as they should be.
    pub answered: u64,
    /// Not answered, or otherwise.
    pub failed: u64,
    /// Some of the failures.
    pub why: Vec<String>,
    /// The longest that an answer took.
    pub slowest: Duration,
    /// From the first request to the end of the last one's beginning.
    pub lasted: Duration,
}

/// A load that goes on until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Outcome>>,
}

impl Load {
    /// Asks for `http://HOST/PATH` so many times a second, over a new connection each time; what comes must have `holds`
    /// in it.
    #[must_use]
    pub fn start(to: SocketAddr, url: &str, holds: &str, per_second: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (host, path) = url.trim_start_matches("http://").split_once('/').unwrap_or((url, ""));
        let request = format!("GET /{path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let (holds, stopped) = (holds.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run(to, request, holds, per_second, stopped))
        });
        Self { stop, thread }
    }

    /// Begins no more, waits for those under way, and tells how it went.
    pub fn stop(self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
    }
}

async fn run(
    to: SocketAddr,
    request: String,
    holds: String,
    per_second: u32,
    stop: Arc<AtomicBool>,
) -> Result<Outcome> {
    let room = Arc::new(Semaphore::new(MOST));
    let (answered, failed, slowest) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let why = Arc::new(Mutex::new(Vec::new()));
    let request = Arc::new(request);
    let holds = Arc::new(holds);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
    // One that comes late begins at once: the rate is over all.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            failed.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let (answered, failed, slowest) = (Arc::clone(&answered), Arc::clone(&failed), Arc::clone(&slowest));
        let (request, holds, why) = (Arc::clone(&request), Arc::clone(&holds), Arc::clone(&why));
        tokio::spawn(async move {
            let (start, at) = (Instant::now(), began.elapsed());
            let done = timeout(LIMIT, one(to, &request, &holds)).await;
            let took = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
            slowest.fetch_max(took, Ordering::Relaxed);
            match done {
                Ok(Ok(())) => {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                other => {
                    failed.fetch_add(1, Ordering::Relaxed);
                    let mut why = why.lock().await;
                    if why.len() < KEPT {
                        let said = other.map_or("no answer in time".to_owned(), |it| {
                            format!("{:#}", it.err().unwrap_or_else(|| anyhow::anyhow!("?")))
                        });
                        why.push(format!("{:.1} s: {said}", at.as_secs_f64()));
                    }
                }
            }
            drop(permit);
        });
    }
    let lasted = began.elapsed();
    // All of them are over when all room is free.
    let all = u32::try_from(MOST).context("too much room")?;
    let _ = timeout(LIMIT + Duration::from_secs(5), room.acquire_many(all))
        .await
        .context("requests that never end")??;
    let why = std::mem::take(&mut *why.lock().await);
    Ok(Outcome {
        answered: answered.load(Ordering::Relaxed),
        failed: failed.load(Ordering::Relaxed),
        why,
        slowest: Duration::from_micros(slowest.load(Ordering::Relaxed)),
        lasted,
    })
}

async fn one(to: SocketAddr, request: &str, holds: &str) -> Result<()> {
    let mut stream = TcpStream::connect(to).await.context("connect")?;
    stream.write_all(request.as_bytes()).await.context("write")?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer).await.context("read")?;
    let text = String::from_utf8_lossy(&answer);
    anyhow::ensure!(text.starts_with("HTTP/1."), "no HTTP: {:.80}", text);
    anyhow::ensure!(text.split(' ').nth(1) == Some("200") && text.contains(holds), "{:.200}", text);
    Ok(())
}

/// True once so many seconds have gone by, from now on.
pub fn elapsed(seconds: u64) -> impl FnMut() -> Result<bool> {
    let end = std::time::Instant::now() + Duration::from_secs(seconds);
    move || Ok(std::time::Instant::now() >= end)
}

/// What one request is answered with; an error where there is no answer of 200.
pub fn get(to: SocketAddr, path: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).context("connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.take(1 << 20).read_to_string(&mut text).context("read")?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    anyhow::ensure!(head.split(' ').nth(1) == Some("200"), "{head}");
    Ok(body.to_owned())
}
