//! Where a command writes: data on stdout, words for people on stderr, and nothing harmful on a terminal.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::clean;

/// A stream that a command writes to.
pub type Stream = Box<dyn Write + Send>;

/// Both streams and what is known of them.
pub struct Io {
    /// Data.
    pub stdout: Stream,
    /// Words for people.
    pub stderr: Stream,
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
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
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

/// Says things. Cheap to clone; all clones write to the same place.
#[derive(Clone)]
pub(crate) struct Out {
    io: Arc<Mutex<Io>>,
    /// One JSON document a line instead of text.
    pub(crate) json: bool,
    pub(crate) volume: Volume,
    color: bool,
    bar: Option<ProgressBar>,
    /// stdout can no longer be written to: the reader went away.
    broken: Arc<std::sync::atomic::AtomicBool>,
}

impl Out {
    pub(crate) fn new(io: Io, json: bool, volume: Volume, no_color: bool, progress: bool) -> Self {
        let bar = (progress && io.stderr_is_terminal && !json && volume > Volume::Quiet).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
                bar.set_style(style);
            }
            bar
        });
        Self {
            color: io.stdout_is_terminal && !json && !no_color,
            io: Arc::new(Mutex::new(io)),
            json,
            volume,
            bar,
            broken: Arc::default(),
        }
    }

    fn with<R>(&self, work: impl FnOnce(&mut Io) -> R) -> R {
        // A writer that panicked left at worst half a line.
        let mut io = self.io.lock().unwrap_or_else(PoisonError::into_inner);
        match &self.bar {
            Some(bar) if !bar.is_finished() => bar.suspend(|| work(&mut io)),
            _ => work(&mut io),
        }
    }

    fn to_stdout(&self, bytes: &[u8]) {
        let result = self.with(|io| io.stdout.write_all(bytes).and_then(|()| io.stdout.flush()));
        if result.is_err() {
            self.broken.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// True when nobody reads stdout any more (`| head`).
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(crate) fn stdout_is_terminal(&self) -> bool {
        self.with(|io| io.stdout_is_terminal)
    }

    pub(crate) fn stderr_is_terminal(&self) -> bool {
        self.with(|io| io.stderr_is_terminal)
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
        self.with(|io| {
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

    /// What goes on right now: in the bar on a terminal, nowhere otherwise.
    pub(crate) fn activity(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(clean::line(text));
            bar.enable_steady_tick(std::time::Duration::from_millis(120));
        }
    }

    /// Takes the bar away.
    pub(crate) fn end_activity(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    pub(crate) fn has_bar(&self) -> bool {
        self.bar.is_some()
    }

    /// Runs with the terminal to itself: to ask something.
    pub(crate) fn aside<R>(&self, work: impl FnOnce() -> R) -> R {
        match &self.bar {
            Some(bar) => bar.suspend(work),
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
