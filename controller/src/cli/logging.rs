//! Logging for people who look inside: to stderr, and bounded where that is a file.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::EnvFilter;

/// The largest log of a private daemon, bytes. Then it begins anew.
const MAX_LOG: u64 = 1024 * 1024;

fn filter(level: u8) -> EnvFilter {
    EnvFilter::new(match level {
        0 => "warn,postern=info",
        1 => "info,postern=debug",
        _ => "debug,h2=info,hyper=info,tower=info,rustls=info",
    })
}

/// Logs to stderr. Does nothing when logging was set up before.
pub(crate) fn to_stderr(level: u8) {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_writer(io::stderr)
        .with_ansi(false)
        .try_init();
}

/// Logs to stderr, which is the log file of a private daemon and is kept small.
pub(crate) fn to_bounded_stderr(level: u8) {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_writer(|| Bounded)
        .with_ansi(false)
        .try_init();
}

static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// stderr, emptied when too much was written. The file is open for appending, so nothing else is needed.
struct Bounded;

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = WRITTEN.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if written > MAX_LOG {
            WRITTEN.store(0, Ordering::Relaxed);
            // Fails where stderr is no file, and then nothing grows.
            let _ = rustix::fs::ftruncate(io::stderr(), 0);
        }
        io::stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
