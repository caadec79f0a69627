//! The live line at the bottom of a terminal: what goes on now, and how much of it is done.

use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

use super::clean;
use super::out::Io;

/// How often the time in it moves on, and how often it is drawn at most.
const TICK: Duration = Duration::from_millis(120);
const DRAWS_A_SECOND: u8 = 20;
/// Taken for a terminal that does not say how wide it is.
const USUAL_WIDTH: u16 = 80;

/// One line for all that a command does, also on several hosts. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// Draws to stderr of these streams, which must be a terminal.
    pub(crate) fn new(io: Arc<Mutex<Io>>) -> Self {
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(Screen(io)), DRAWS_A_SECOND);
        let bar = ProgressBar::with_draw_target(Some(0), target);
        // Nothing is drawn before something goes on.
        bar.finish_and_clear();
        Self { bar }
    }

    fn begin(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        if self.bar.is_finished() {
            self.bar.reset();
            self.bar.set_length(0);
            self.bar.enable_steady_tick(TICK);
        }
    }

    /// What goes on right now, where nobody knows how much there is.
    pub(crate) fn activity(&self, text: &str) {
        self.begin("{spinner} {wide_msg} {elapsed}");
        self.bar.set_message(clean::line(text));
    }

    /// Resources of a run are to be done, besides those of other runs.
    pub(crate) fn run_begins(&self, resources: u64) {
        self.begin("[{bar:20}] {pos}/{len} {wide_msg} {elapsed}");
        self.bar.inc_length(resources);
    }

    /// What is being worked on.
    pub(crate) fn at(&self, text: &str) {
        self.bar.set_message(clean::line(text));
    }

    /// One resource is done.
    pub(crate) fn done(&self) {
        self.bar.inc(1);
    }

    /// Runs with the line out of the way.
    pub(crate) fn aside<R>(&self, work: impl FnOnce() -> R) -> R {
        if self.bar.is_finished() { work() } else { self.bar.suspend(work) }
    }

    /// Takes it away.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// stderr as the bar needs it. Through the same streams as everything else, so that both never mix.
#[derive(Debug)]
struct Screen(Arc<Mutex<Io>>);

impl Screen {
    fn write(&self, text: &str) -> io::Result<()> {
        let mut io = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        io.stderr.write_all(text.as_bytes())
    }

    fn moved(&self, by: usize, letter: char) -> io::Result<()> {
        // 0 would mean 1.
        if by == 0 { Ok(()) } else { self.write(&format!("\u{1b}[{by}{letter}")) }
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        match rustix::termios::tcgetwinsize(io::stderr()) {
            Ok(size) if size.ws_col > 0 => size.ws_col,
            _ => USUAL_WIDTH,
        }
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.moved(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.moved(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.moved(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.moved(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write(&format!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.write(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.write("\r\u{1b}[2K")
    }

    fn flush(&self) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).stderr.flush()
    }
}
