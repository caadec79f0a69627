//! A run as lines for people: one line a resource, output indented below the step it belongs to. Pure.

use std::collections::HashMap;

use postern_proto::event::{
    EventKind, LogBody, LogFrame, Outcome, RunEvent, RunState, StepEnd, StepId, Stream, WAITS_FOR,
};

use postern_proto::ids::{Address, RunId};

use super::clean::{self, Cleaner};
use super::out::{Tone, Volume};
use crate::client::{Update, UpdateKind};

/// A line of output longer than this is shown in pieces.
const MAX_LINE: usize = 4096;

/// A line whose head has a tone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) tone: Tone,
    pub(crate) head: String,
    pub(crate) rest: String,
}

impl Line {
    fn plain(text: impl Into<String>) -> Self {
        Self { tone: Tone::Plain, head: String::new(), rest: text.into() }
    }

    fn toned(tone: Tone, head: impl Into<String>, rest: impl Into<String>) -> Self {
        Self { tone, head: head.into(), rest: rest.into() }
    }
}

/// How many resources ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) unchanged: u32,
    pub(crate) changed: u32,
    pub(crate) would_change: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
    pub(crate) interrupted: u32,
}

impl Counts {
    fn of(&mut self, outcome: Outcome) -> &mut u32 {
        match outcome {
            Outcome::Unchanged => &mut self.unchanged,
            Outcome::Changed => &mut self.changed,
            Outcome::WouldChange => &mut self.would_change,
            Outcome::Failed => &mut self.failed,
            Outcome::Skipped => &mut self.skipped,
            Outcome::Interrupted => &mut self.interrupted,
        }
    }

    pub(crate) fn each(&self) -> [(&'static str, u32); 6] {
        [
            ("changed", self.changed),
            ("would change", self.would_change),
            ("unchanged", self.unchanged),
            ("failed", self.failed),
            ("interrupted", self.interrupted),
            ("skipped", self.skipped),
        ]
    }

    /// `3 changed, 1 unchanged`.
    pub(crate) fn text(&self) -> String {
        let parts: Vec<_> = self
            .each()
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(word, count)| format!("{count} {word}"))
            .collect();
        if parts.is_empty() { "nothing done".into() } else { parts.join(", ") }
    }
}

/// The word for an outcome and its tone.
pub(crate) fn outcome_word(outcome: Outcome) -> (&'static str, Tone) {
    match outcome {
        Outcome::Unchanged => ("unchanged", Tone::Faint),
        Outcome::Changed => ("changed", Tone::Change),
        Outcome::WouldChange => ("would change", Tone::Change),
        Outcome::Failed => ("failed", Tone::Bad),
        Outcome::Skipped => ("skipped", Tone::Faint),
        Outcome::Interrupted => ("interrupted", Tone::Bad),
    }
}

/// `0.03 s`, `12.3 s`, `2 min 05 s`.
pub(crate) fn seconds(nanoseconds: u64) -> String {
    let seconds = nanoseconds as f64 / 1e9;
    if seconds < 9.995 {
        format!("{seconds:.2} s")
    } else if seconds < 119.95 {
        format!("{seconds:.1} s")
    } else {
        let whole = seconds.round() as u64;
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

/// One stream of a step: what was shown of it, and the line that is not over.
#[derive(Debug, Default)]
struct Tail {
    cleaner: Cleaner,
    line: String,
}

#[derive(Debug, Default)]
struct StepView {
    summary: String,
    announced: bool,
    tails: [Tail; 2],
}

/// A run as lines.
#[derive(Debug)]
pub(crate) struct View {
    prefix: String,
    volume: Volume,
    diffs: bool,
    steps: HashMap<StepId, StepView>,
    /// How the last attempt at each resource ended.
    outcomes: HashMap<Address, Outcome>,
    /// What the run did.
    pub(crate) counts: Counts,
    /// How it ended, from its last event.
    pub(crate) finished: Option<(RunState, String)>,
    /// How the last step ended.
    pub(crate) last_end: Option<StepEnd>,
    /// What the last resource that failed said.
    pub(crate) failure: Option<(String, String)>,
    /// What it waits for right now.
    pub(crate) parked: Option<String>,
}

impl View {
    /// `prefix` begins each line where several hosts are shown. `diffs` shows what changes.
    pub(crate) fn new(prefix: Option<&str>, volume: Volume, diffs: bool) -> Self {
        Self {
            prefix: prefix.map(|name| format!("{}: ", clean::line(name))).unwrap_or_default(),
            volume,
            diffs,
            steps: HashMap::new(),
            outcomes: HashMap::new(),
            counts: Counts::default(),
            finished: None,
            last_end: None,
            failure: None,
            parked: None,
        }
    }

    /// A resource is counted once, however many attempts there were.
    fn count(&mut self, address: &Address, outcome: Outcome) {
        if let Some(earlier) = self.outcomes.insert(address.clone(), outcome) {
            let count = self.counts.of(earlier);
            *count = count.saturating_sub(1);
        }
        *self.counts.of(outcome) += 1;
    }

    /// What there is to show of an update.
    pub(crate) fn update(&mut self, update: &Update) -> Vec<Line> {
        let mut lines = Vec::new();
        match &update.kind {
            UpdateKind::Run(_) => {}
            UpdateKind::Event(event) => self.event(event, &mut lines),
            UpdateKind::Log(frame) => self.frame(frame, &mut lines),
        }
        if !self.prefix.is_empty() {
            for line in &mut lines {
                line.head.insert_str(0, &self.prefix);
            }
        }
        lines
    }

    fn event(&mut self, event: &RunEvent, lines: &mut Vec<Line>) {
        match &event.kind {
            EventKind::Accepted { .. } | EventKind::ResourceStarted { .. } => {}
            EventKind::StepStarted { step, summary } => {
                let view = self.steps.entry(step.clone()).or_default();
                view.summary = clean::line(summary);
                // A wait has no output, and may be long: whom it is for is said while it lasts.
                let waits = self.volume == Volume::Normal && summary.contains(WAITS_FOR);
                if waits || self.volume == Volume::Verbose {
                    view.announced = true;
                    lines.push(header(step, &view.summary));
                }
            }
            EventKind::StepFinished { step, end, .. } => {
                if let Some(mut view) = self.steps.remove(step) {
                    for tail in &mut view.tails {
                        let rest = tail.cleaner.finish();
                        tail.line.push_str(&rest);
                        if !tail.line.is_empty() {
                            lines.push(output(&tail.line));
                        }
                    }
                }
                self.last_end = Some(end.clone());
            }
            EventKind::ResourceFinished { address, outcome, message, diff, duration_ns, .. } => {
                self.count(address, *outcome);
                if matches!(outcome, Outcome::Failed | Outcome::Interrupted) {
                    self.failure = Some((address.to_string(), message.clone()));
                }
                let (word, tone) = outcome_word(*outcome);
                let quiet = self.volume == Volume::Quiet
                    && !matches!(outcome, Outcome::Failed | Outcome::Interrupted);
                if quiet {
                    return;
                }
                let mut rest = format!(" {}", clean::line(address.as_str()));
                if *outcome != Outcome::Skipped {
                    rest.push_str(&format!("  {}", seconds(*duration_ns)));
                }
                if !message.is_empty() {
                    rest.push_str(&format!("  {}", clean::line(message)));
                }
                lines.push(Line::toned(tone, format!("{word:<12}"), rest));
                if self.diffs || self.volume == Volume::Verbose {
                    lines.extend(diff.lines().map(diff_line));
                }
            }
            EventKind::Parked { why } => {
                self.parked = Some(why.clone());
                lines.push(Line::toned(Tone::Change, "parked      ", format!(" {}", clean::line(why))));
                lines.push(Line::plain(format!("    {}", parked_hint(event.run))));
            }
            EventKind::Unparked => {
                self.parked = None;
                lines.push(Line::toned(Tone::Faint, "goes on", ""));
            }
            EventKind::Finished { state, message } => self.finished = Some((*state, message.clone())),
        }
    }

    fn frame(&mut self, frame: &LogFrame, lines: &mut Vec<Line>) {
        if self.volume == Volume::Quiet {
            return;
        }
        let view = self.steps.entry(frame.step.clone()).or_default();
        if !view.announced {
            view.announced = true;
            lines.push(header(&frame.step, &view.summary));
        }
        let [stdout, stderr] = &mut view.tails;
        let tail = match frame.stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        };
        match &frame.body {
            LogBody::Data(data) => {
                let text = tail.cleaner.push(data);
                tail.line.push_str(&text);
                while let Some((line, rest)) = tail.line.split_once('\n') {
                    lines.push(output(line));
                    tail.line = rest.to_owned();
                }
                if tail.line.len() > MAX_LINE {
                    lines.push(output(&tail.line));
                    tail.line.clear();
                }
            }
            LogBody::Truncated { bytes, .. } => lines.push(output(&truncated(*bytes))),
        }
    }
}

/// What to do about a run that waits.
fn parked_hint(run: RunId) -> String {
    format!(
        "what does not need it has gone on; the rest follows by itself as soon as it is there, and \
         `postern run cancel {run}` ends the waiting"
    )
}

/// What stands where output had to be dropped.
pub(crate) fn truncated(bytes: u64) -> String {
    format!("[{bytes} bytes were dropped here: the host ran out of room for output]")
}

fn header(step: &StepId, summary: &str) -> Line {
    let address = clean::line(step.address.as_str());
    let colon = if summary.is_empty() { "" } else { ": " };
    Line::toned(Tone::Faint, format!("  {address}{colon}{summary}"), "")
}

fn output(line: &str) -> Line {
    Line::plain(format!("    {line}"))
}

fn diff_line(line: &str) -> Line {
    let tone = match line.as_bytes().first() {
        Some(b'+') => Tone::Good,
        Some(b'-') => Tone::Bad,
        _ => Tone::Plain,
    };
    Line::toned(tone, format!("    {}", clean::line(line)), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> StepId {
        StepId { address: "p:command:x".parse().unwrap(), attempt: 1, step: 0 }
    }

    fn event(kind: EventKind) -> Update {
        Update {
            cursor: 1,
            kind: UpdateKind::Event(RunEvent { run: RunId::generate(), seq: 1, time_ns: 0, kind }),
        }
    }

    fn log(stream: Stream, data: &[u8]) -> Update {
        let frame = LogFrame {
            run: RunId::generate(),
            step: step(),
            frame_no: 0,
            stream,
            offset: 0,
            time_ns: 0,
            body: LogBody::Data(data.to_vec()),
        };
        Update { cursor: 1, kind: UpdateKind::Log(frame) }
    }

    fn show(view: &mut View, updates: &[Update]) -> String {
        let lines = updates.iter().flat_map(|update| view.update(update)).collect::<Vec<_>>();
        lines.iter().map(|line| format!("{}{}\n", line.head, line.rest)).collect()
    }

    fn updates() -> Vec<Update> {
        vec![
            event(EventKind::StepStarted { step: step(), summary: "run x".into() }),
            log(Stream::Stdout, b"one\ntw"),
            log(Stream::Stderr, b"\x1b[2Jbad"),
            log(Stream::Stdout, b"o\nthree"),
            event(EventKind::StepFinished { step: step(), end: StepEnd::Exit(0), frames: 3 }),
            event(EventKind::ResourceFinished {
                address: step().address,
                attempt: 1,
                outcome: Outcome::Changed,
                message: "ran x\u{1b}[31m".into(),
                diff: "-a\n+b\u{9b}".into(),
                duration_ns: 1_234_000_000,
                seen: String::new(),
            }),
        ]
    }

    #[test]
    fn trap_33_escapes_of_a_host_are_shown_and_not_obeyed() {
        let mut view = View::new(Some("w\u{1b}eb"), Volume::Normal, true);
        let text = show(&mut view, &updates());
        assert_eq!(
            text,
            "w\\u{1b}eb:   p:command:x: run x\n\
             w\\u{1b}eb:     one\n\
             w\\u{1b}eb:     two\n\
             w\\u{1b}eb:     three\n\
             w\\u{1b}eb:     \\u{1b}[2Jbad\n\
             w\\u{1b}eb: changed      p:command:x  1.23 s  ran x\\u{1b}[31m\n\
             w\\u{1b}eb:     -a\n\
             w\\u{1b}eb:     +b\\u{9b}\n"
        );
        assert_eq!(view.counts.text(), "1 changed");
        assert_eq!(view.last_end, Some(StepEnd::Exit(0)));
    }

    /// One that only has to be waited for ends after others that began later.
    #[test]
    fn resources_that_overlap_are_shown_and_counted_each() {
        let step_of = |name: &str, step| {
            let address: postern_proto::ids::Address = format!("p:command:{name}").parse().unwrap();
            StepId { address, attempt: 1, step }
        };
        let begins = |name: &str, step| {
            event(EventKind::StepStarted { step: step_of(name, step), summary: format!("{name} {step}") })
        };
        let ends = |name: &str, step| {
            event(EventKind::StepFinished { step: step_of(name, step), end: StepEnd::Exit(0), frames: 0 })
        };
        let over = |name: &str| {
            event(EventKind::ResourceFinished {
                address: step_of(name, 0).address,
                attempt: 1,
                outcome: Outcome::Changed,
                message: String::new(),
                diff: String::new(),
                duration_ns: 1_000_000_000,
                seen: String::new(),
            })
        };
        let mut view = View::new(None, Volume::Verbose, false);
        let updates = [
            begins("a", 0),
            ends("a", 0),
            begins("b", 0),
            ends("b", 0),
            over("b"),
            begins("a", 1),
            ends("a", 1),
            over("a"),
        ];
        assert_eq!(
            show(&mut view, &updates),
            "  p:command:a: a 0\n  p:command:b: b 0\nchanged      p:command:b  1.00 s\n  p:command:a: a 1\nchanged      \
             p:command:a  1.00 s\n"
        );
        assert_eq!(view.counts.text(), "2 changed");
    }

    #[test]
    fn quiet_says_failures_only() {
        let mut view = View::new(None, Volume::Quiet, true);
        assert_eq!(show(&mut view, &updates()), "");
        let failed = event(EventKind::ResourceFinished {
            address: step().address,
            attempt: 1,
            outcome: Outcome::Failed,
            message: "exit code 3".into(),
            diff: String::new(),
            duration_ns: 130_000_000_000,
            seen: String::new(),
        });
        assert_eq!(show(&mut view, &[failed]), "failed       p:command:x  2 min 10 s  exit code 3\n");
        assert_eq!(view.counts.text(), "1 failed", "the attempt that failed was the last one at it");
    }

    #[test]
    fn a_parked_run_says_why_and_what_to_do() {
        let mut view = View::new(None, Volume::Quiet, false);
        let parked = event(EventKind::Parked { why: "it waits for secret db\u{1b}".into() });
        let text = show(&mut view, std::slice::from_ref(&parked));
        assert!(
            text.starts_with("parked       it waits for secret db\\u{1b}\n    what does not need it"),
            "{text}"
        );
        assert!(text.contains("`postern run cancel "), "{text}");
        assert!(view.parked.is_some());
        show(&mut view, &[event(EventKind::Unparked)]);
        assert_eq!(view.parked, None);
    }

    /// T11: a wait says nothing of itself for as long as it lasts.
    #[test]
    fn trap_11_whom_a_step_waits_for_is_shown_at_once() {
        let started =
            |summary: &str| event(EventKind::StepStarted { step: step(), summary: summary.to_owned() });
        let own = started("waits for 7 (apt) to be done with /lock");
        let before = started("apt-get -y install x (waits for 7 (apt) to be done)");
        for (volume, shown) in [(Volume::Quiet, false), (Volume::Normal, true), (Volume::Verbose, true)] {
            for wait in [&own, &before] {
                let text = show(&mut View::new(None, volume, false), std::slice::from_ref(wait));
                assert_eq!(text.contains("waits for 7 (apt)"), shown, "{volume:?}: {text}");
            }
        }
        let plain = show(&mut View::new(None, Volume::Normal, false), &[started("apt-get -y install x")]);
        assert_eq!(plain, "");
    }

    #[test]
    fn a_line_without_end_is_shown_in_pieces() {
        let mut view = View::new(None, Volume::Normal, false);
        let endless: Vec<_> = (0..10).map(|_| log(Stream::Stdout, &[b'x'; 1000])).collect();
        let text = show(&mut view, &endless);
        assert_eq!(text.lines().count(), 3, "the header and two pieces");
    }
}
