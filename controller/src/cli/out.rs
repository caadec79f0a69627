//! Where a command writes: data on stdout, words for people on stderr, and nothing harmful on a terminal.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::bar::Bar;
use super::clean;

/// A stream that a command writes to.
pub type Stream = Box<dyn Write + Send>;

/// A command's streams and what is known of them.
pub struct Io {
    /// What is piped in.
    pub stdin: Box<dyn Read + Send>,
    /// Data.
    pub stdout: Stream,
    /// Words for people.
    pub stderr: Stream,
    /// stdin is a terminal.
    pub stdin_is_terminal: bool,
    /// stdout is a terminal.
    pub stdout_is_terminal: bool,
    /// stderr is a terminal.
    pub stderr_is_terminal: bool,
}

impl Io {
    /// This process's own.
    #[must_use]
    pub fn of_process() -> Self {
        use std::io::IsTerminal as _;
        Self {
            stdin_is_terminal: io::stdin().is_terminal(),
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
            stdin: Box::new(io::stdin()),
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
        }
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io").finish_non_exhaustive()
    }
}

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Volume {
    /// Results and errors only.
    Quiet,
    Normal,
    /// Every step too.
    Verbose,
}

/// What a piece of a line stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Change,
    Bad,
    Faint,
}

impl Tone {
    fn start(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\u{1b}[32m",
            Self::Change => "\u{1b}[33m",
            Self::Bad => "\u{1b}[1;31m",
            Self::Faint => "\u{1b}[2m",
        }
    }
}

/// How a command speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// One JSON document a line instead of text.
    pub(crate) json: bool,
    pub(crate) volume: Volume,
    /// Colours are not wanted.
    pub(crate) no_color: bool,
    /// A live line at the bottom of a terminal.
    pub(crate) progress: bool,
}

/// Says things. Cheap to clone; all clones write to the same place.
#[derive(Clone)]
pub(crate) struct Out {
    io: Arc<Mutex<Io>>,
    /// One JSON document a line instead of text.
    pub(crate) json: bool,
    pub(crate) volume: Volume,
    pub(crate) stdin_is_terminal: bool,
    pub(crate) stdout_is_terminal: bool,
    pub(crate) stderr_is_terminal: bool,
    color: bool,
    bar: Option<Bar>,
    /// stdout can no longer be written to: the reader went away.
    broken: Arc<std::sync::atomic::AtomicBool>,
}

impl Out {
    pub(crate) fn new(io: Io, manner: Manner) -> Self {
        let Manner { json, volume, no_color, progress } = manner;
        let wants_bar = progress && io.stderr_is_terminal && !json && volume > Volume::Quiet;
        let (stdin_is_terminal, stdout_is_terminal, stderr_is_terminal) =
            (io.stdin_is_terminal, io.stdout_is_terminal, io.stderr_is_terminal);
        let io = Arc::new(Mutex::new(io));
        Self {
            json,
            volume,
            stdin_is_terminal,
            stdout_is_terminal,
            stderr_is_terminal,
            color: stdout_is_terminal && !json && !no_color,
            bar: wants_bar.then(|| Bar::new(io.clone())),
            io,
            broken: Arc::default(),
        }
    }

    /// Writes with the bar out of the way, where both go to the terminal.
    fn with<R>(&self, to_terminal: bool, work: impl FnOnce(&mut Io) -> R) -> R {
        // The bar's own lock comes first, here and when it draws itself. A writer that panicked left at worst
        // half a line.
        let locked = || work(&mut self.io.lock().unwrap_or_else(PoisonError::into_inner));
        match &self.bar {
            Some(bar) if to_terminal => bar.aside(locked),
            _ => locked(),
        }
    }

    fn to_stdout(&self, bytes: &[u8]) {
        let write = |io: &mut Io| io.stdout.write_all(bytes).and_then(|()| io.stdout.flush());
        if self.with(self.stdout_is_terminal, write).is_err() {
            self.broken.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// All that is piped in, at most one byte more than `limit`.
    pub(crate) fn read_stdin(&self, limit: usize) -> io::Result<zeroize::Zeroizing<Vec<u8>>> {
        // No growth, which would leave pieces of it in memory.
        let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(limit + 1));
        let mut io = self.io.lock().unwrap_or_else(PoisonError::into_inner);
        (&mut io.stdin).take(limit as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// True when nobody reads stdout any more (`| head`).
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// A piece of text in a tone; as it is where colours are not wanted.
    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        if self.color && tone != Tone::Plain {
            format!("{}{text}\u{1b}[0m", tone.start())
        } else {
            text.to_owned()
        }
    }

    /// A line of data. The caller has cleaned what came from a host.
    pub(crate) fn line(&self, text: &str) {
        self.to_stdout(format!("{text}\n").as_bytes());
    }

    /// Data as it is.
    pub(crate) fn raw(&self, bytes: &[u8]) {
        self.to_stdout(bytes);
    }

    /// As it is, to stderr.
    pub(crate) fn raw_error(&self, bytes: &[u8]) {
        self.with(self.stderr_is_terminal, |io| {
            let _ = io.stderr.write_all(bytes).and_then(|()| io.stderr.flush());
        });
    }

    /// One JSON document on a line.
    pub(crate) fn document(&self, value: &Value) {
        self.line(&clean::json(&value.to_string()));
    }

    /// A line for people, whatever the output is.
    pub(crate) fn note(&self, text: &str) {
        if self.volume > Volume::Quiet {
            self.tell(text);
        }
    }

    /// A line for people that is said even when quiet.
    pub(crate) fn tell(&self, text: &str) {
        self.raw_error(format!("{text}\n").as_bytes());
    }

    /// The live line, where there is one.
    pub(crate) fn bar(&self) -> Option<&Bar> {
        self.bar.as_ref()
    }

    /// Takes the live line away.
    pub(crate) fn end_activity(&self) {
        if let Some(bar) = &self.bar {
            bar.end();
        }
    }

    /// Runs with the terminal to itself: to ask something.
    pub(crate) fn aside<R>(&self, work: impl FnOnce() -> R) -> R {
        match &self.bar {
            Some(bar) => bar.aside(work),
            None => work(),
        }
    }
}

/// Columns that are as wide as their widest cell; the last one is not padded.
pub(crate) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
            }
            line.trim_end().to_owned()
        })
        .collect()
}
