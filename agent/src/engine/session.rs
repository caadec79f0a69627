//! How far one session has sent each run, and what may be sent next: pure.
//!
//! Within a run everything goes in order: events by number, and all frames of a step before the event that
//! ends it. Between runs, events go before output. Output waits while its window is full.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

use postern_proto::event::{EventKind, RunEvent, RunOffset, StepId};
use postern_proto::ids::RunId;

use super::book::{Book, RunBook};

/// What a frame costs beside its data, bytes: a flood of tiny frames is a flood, too.
const FRAME_COST: usize = 64;

/// Windows over un-acked output, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Windows {
    pub(super) run: usize,
    pub(super) agent: usize,
}

/// One session.
pub(super) struct Session {
    windows: Windows,
    hold: HashSet<RunId>,
    runs: HashMap<RunId, Sent>,
    in_flight: usize,
    /// Runs that may have something to send.
    active: BTreeSet<RunId>,
    /// Runs that wait for a window.
    blocked: BTreeSet<RunId>,
    /// The run whose output was sent last: the next one is served next.
    cursor: Option<RunId>,
}

/// How far a run was sent and acked.
#[derive(Default)]
struct Sent {
    next_event: u64,
    acked_event: u64,
    flows: HashMap<StepId, Flow>,
    /// Steps whose end was acked before all of their output: that comes first.
    backlog: VecDeque<StepId>,
    /// The step whose beginning was sent last.
    current: Option<StepId>,
    in_flight: usize,
}

/// How far the output of a step was sent and acked.
#[derive(Default)]
struct Flow {
    next: u64,
    acked: u64,
    /// Number and cost of what was sent and is not acked.
    pending: VecDeque<(u64, usize)>,
    /// The version of its spool that was read to the end.
    read: Option<u64>,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Event(Box<RunEvent>),
    Frames(Read),
    Nothing,
}

/// Frames to read from a spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) run: RunId,
    pub(super) step: StepId,
    /// The event its spool is named after.
    pub(super) seq: u64,
    pub(super) from: u64,
    /// How many there are, when that is known.
    pub(super) until: Option<u64>,
    /// As many as cost no more than this.
    pub(super) budget: usize,
    /// At least one, whatever it costs: nothing is on its way whose ack would open the window.
    pub(super) must: bool,
    version: u64,
}

/// What a frame of this many bytes takes of a window.
pub(super) fn cost(bytes: usize) -> usize {
    bytes + FRAME_COST
}

impl Session {
    pub(super) fn new(book: &Book, windows: Windows, acked: Vec<RunOffset>, hold: Vec<RunId>) -> Self {
        let mut session = Self {
            windows,
            hold: hold.into_iter().collect(),
            runs: HashMap::new(),
            in_flight: 0,
            active: book.runs.keys().copied().collect(),
            blocked: BTreeSet::new(),
            cursor: None,
        };
        for offset in acked {
            if let Some(run) = book.runs.get(&offset.run) {
                session.runs.insert(offset.run, Sent::after(run, offset));
            }
        }
        session
    }

    /// True for a run that the controller does not know.
    pub(super) fn holds(&self, run: RunId) -> bool {
        self.hold.contains(&run)
    }

    pub(super) fn touch(&mut self, run: RunId, known: bool) {
        if known {
            self.active.insert(run);
        } else if let Some(sent) = self.runs.remove(&run) {
            self.in_flight = self.in_flight.saturating_sub(sent.in_flight);
            self.active.remove(&run);
            self.blocked.remove(&run);
        }
    }

    /// What may be sent next; `busy` is a run with frames that were read and not handed out yet.
    pub(super) fn next(&mut self, book: &Book, busy: Option<RunId>) -> Next {
        self.next_event(book, busy).unwrap_or_else(|| {
            if busy.is_some() {
                Next::Nothing
            } else {
                self.next_frames(book).map_or(Next::Nothing, Next::Frames)
            }
        })
    }

    fn next_event(&mut self, book: &Book, busy: Option<RunId>) -> Option<Next> {
        let runs: Vec<RunId> = self.active.iter().copied().collect();
        for id in runs {
            let Some(run) = book.runs.get(&id).filter(|_| !self.hold.contains(&id)) else {
                self.active.remove(&id);
                continue;
            };
            if busy == Some(id) {
                continue;
            }
            let sent = self.runs.entry(id).or_insert_with(Sent::fresh);
            if let Some(event) = sent.event(run) {
                return Some(Next::Event(Box::new(event)));
            }
            if sent.source(run).is_none() {
                self.active.remove(&id);
            }
        }
        None
    }

    fn next_frames(&mut self, book: &Book) -> Option<Read> {
        let after = self.cursor.map_or(Unbounded, Excluded);
        let later = self.active.range((after, Unbounded)).copied();
        let order: Vec<RunId> = later.chain(self.active.iter().copied()).collect();
        for id in order {
            let (Some(run), Some(sent)) = (book.runs.get(&id), self.runs.get(&id)) else { continue };
            let Some(step) = sent.source(run) else { continue };
            let (step, Some(book)) = (step.clone(), run.steps.get(step)) else { continue };
            let of_run = self.windows.run.saturating_sub(sent.in_flight);
            let budget = of_run.min(self.windows.agent.saturating_sub(self.in_flight));
            let must = self.in_flight == 0;
            if budget <= FRAME_COST && !must {
                self.active.remove(&id);
                self.blocked.insert(id);
                continue;
            }
            self.cursor = Some(id);
            let from = sent.flows.get(&step).map_or(0, |flow| flow.next);
            let (seq, until, version) = (book.seq, book.frames, book.version);
            return Some(Read { run: id, step, seq, from, until, budget, must, version });
        }
        None
    }

    /// Frames were read for sending: their numbers and sizes in order. `stuck` says that the next frame is
    /// there and larger than what the window takes now.
    pub(super) fn read(&mut self, read: &Read, sizes: &[(u64, usize)], stuck: bool) {
        let Some(sent) = self.runs.get_mut(&read.run) else { return };
        let flow = sent.flows.entry(read.step.clone()).or_default();
        for (frame_no, bytes) in sizes {
            let cost = cost(*bytes);
            flow.pending.push_back((*frame_no, cost));
            flow.next = frame_no + 1;
            sent.in_flight += cost;
            self.in_flight += cost;
        }
        if stuck {
            self.active.remove(&read.run);
            self.blocked.insert(read.run);
        } else if sizes.is_empty() {
            match read.until {
                // What was there once cannot be read any more: what follows is not held up by it.
                Some(until) => flow.next = until,
                None => flow.read = Some(read.version),
            }
        }
    }

    /// The controller has committed this much. True when that is all of the run.
    pub(super) fn acked(&mut self, book: &Book, offset: &RunOffset) -> bool {
        let Some(run) = book.runs.get(&offset.run) else { return false };
        let sent = self.runs.entry(offset.run).or_insert_with(Sent::fresh);
        sent.acked_event = sent.acked_event.max(offset.event_seq.min(run.last()));
        for (step, next) in &offset.logs {
            let flow = sent.flows.entry(step.clone()).or_default();
            flow.acked = flow.acked.max(*next);
            while let Some((_, cost)) = flow.pending.front().copied().filter(|(frame_no, _)| frame_no < next)
            {
                flow.pending.pop_front();
                sent.in_flight = sent.in_flight.saturating_sub(cost);
                self.in_flight = self.in_flight.saturating_sub(cost);
            }
        }
        let done = sent.is_done(run);
        self.active.append(&mut self.blocked);
        done
    }
}

impl Sent {
    fn fresh() -> Self {
        Self { next_event: 1, ..Self::default() }
    }

    /// Where a session begins when the controller has this much.
    fn after(run: &RunBook, offset: RunOffset) -> Self {
        let acked_event = offset.event_seq.min(run.last());
        let flow = |next| Flow { next, acked: next, ..Flow::default() };
        let flows: HashMap<StepId, Flow> =
            offset.logs.into_iter().map(|(step, next)| (step, flow(next))).collect();
        let mut sent = Self { next_event: acked_event + 1, acked_event, flows, ..Self::default() };
        for event in run.events.iter().take(acked_event as usize) {
            match &event.kind {
                EventKind::StepStarted { step, .. } => sent.current = Some(step.clone()),
                EventKind::StepFinished { step, frames, .. } => {
                    if sent.flows.get(step).map_or(0, |flow| flow.next) < *frames {
                        sent.backlog.push_back(step.clone());
                    }
                    sent.current = None;
                }
                _ => {}
            }
        }
        sent
    }

    fn sent(&self, step: &StepId) -> u64 {
        self.flows.get(step).map_or(0, |flow| flow.next)
    }

    /// The next event, when its turn has come.
    fn event(&mut self, run: &RunBook) -> Option<RunEvent> {
        while let Some(step) = self.backlog.front() {
            if run.steps.get(step).and_then(|book| book.frames).is_some_and(|frames| self.sent(step) < frames)
            {
                return None;
            }
            self.backlog.pop_front();
        }
        let event = run.events.get(usize::try_from(self.next_event).ok()?.checked_sub(1)?)?;
        match &event.kind {
            EventKind::StepFinished { step, frames, .. } if self.sent(step) < *frames => return None,
            EventKind::StepFinished { .. } => self.current = None,
            EventKind::StepStarted { step, .. } => self.current = Some(step.clone()),
            _ => {}
        }
        self.next_event += 1;
        Some(event.clone())
    }

    /// The step whose output comes next, if it may have some.
    fn source(&self, run: &RunBook) -> Option<&StepId> {
        let step = self.backlog.front().or(self.current.as_ref())?;
        let book = run.steps.get(step)?;
        book.exec?;
        let may = match book.frames {
            Some(frames) => self.sent(step) < frames,
            None => self.flows.get(step).and_then(|flow| flow.read) != Some(book.version),
        };
        may.then_some(step)
    }

    fn is_done(&self, run: &RunBook) -> bool {
        let acked = |step: &StepId| self.flows.get(step).map_or(0, |flow| flow.acked);
        run.end.is_some()
            && self.acked_event == run.last()
            && run.steps.iter().all(|(step, book)| book.frames.is_none_or(|frames| acked(step) >= frames))
    }
}
