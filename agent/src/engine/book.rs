//! What the journal says, folded into memory: pure, the same at start and at run time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use postern_proto::event::{EventKind, RunEvent, RunState, StepId};
use postern_proto::ids::{BootId, PlanHash, RunId};
use postern_proto::plan::{Plan, Terms};
use serde::{Deserialize, Serialize};

/// Numbers above the floor that are kept one by one. A gap older than this many later dispatches is a number
/// that was refused and will not come again.
const MAX_ABOVE: usize = 1024;

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// A plan was taken.
    Accepted {
        seq: u64,
        run: RunId,
        /// The exact text; empty once the run is over.
        plan: String,
        hash: PlanHash,
        #[serde(default)]
        terms: Terms,
        boot: BootId,
    },
    /// Something happened in a run.
    Event(RunEvent),
    /// The step that began with this event runs a process; `last` says that no step follows in its attempt.
    Exec { run: RunId, seq: u64, last: bool },
    /// The step that began with this event restarts the host, which was in this boot; `last` as above.
    Reboot { run: RunId, seq: u64, boot: BootId, last: bool },
    /// A command yielded this value for those after it.
    Late { run: RunId, name: String, value: String },
    /// The run goes on in another boot.
    Boot { run: RunId, boot: BootId },
    /// An operator wants the run to end.
    Cancel { run: RunId },
    /// The controller has all of it.
    Removed { run: RunId },
    /// The highest owner epoch seen.
    Epoch(u64),
    /// Which dispatches were taken, when the records of their runs are gone.
    Numbers { floor: u64, above: Vec<u64> },
}

impl Record {
    /// Whose room in the journal it takes.
    pub(super) fn run(&self) -> Option<RunId> {
        match self {
            Self::Accepted { run, .. }
            | Self::Exec { run, .. }
            | Self::Reboot { run, .. }
            | Self::Late { run, .. }
            | Self::Boot { run, .. }
            | Self::Cancel { run }
            | Self::Removed { run } => Some(*run),
            Self::Event(event) => Some(event.run),
            Self::Epoch(_) | Self::Numbers { .. } => None,
        }
    }
}

/// Which dispatches were taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) floor: u64,
    pub(super) above: BTreeSet<u64>,
}

impl Numbers {
    pub(super) fn contains(&self, seq: u64) -> bool {
        seq <= self.floor || self.above.contains(&seq)
    }

    pub(super) fn insert(&mut self, seq: u64) {
        if seq > self.floor {
            self.above.insert(seq);
        }
        if self.above.len() > MAX_ABOVE {
            self.floor = self.above.pop_first().unwrap_or(self.floor);
        }
        while self.above.first() == self.floor.checked_add(1).as_ref() {
            self.floor += 1;
            self.above.pop_first();
        }
    }
}

/// A step of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StepBook {
    /// The event it began with; names its spool.
    pub(super) seq: u64,
    /// `Some(last)` for a process.
    pub(super) exec: Option<bool>,
    /// The boot that it was to end, and `last`, for a restart of the host.
    pub(super) reboot: Option<(BootId, bool)>,
    /// How many frames it has, once it has ended.
    pub(super) frames: Option<u64>,
    /// Raised whenever its spool may have grown; not part of the journal.
    pub(super) version: u64,
}

/// A run.
#[derive(Clone, Debug)]
pub(super) struct RunBook {
    pub(super) seq: u64,
    pub(super) plan: Arc<Plan>,
    plan_text: String,
    pub(super) hash: PlanHash,
    pub(super) terms: Terms,
    pub(super) boot: BootId,
    pub(super) cancelled: bool,
    /// All of them, from 1.
    pub(super) events: Vec<RunEvent>,
    pub(super) steps: BTreeMap<StepId, StepBook>,
    /// What its commands yielded for others.
    pub(super) late: BTreeMap<String, String>,
    /// Its final state, once it is over.
    pub(super) end: Option<RunState>,
}

/// Everything the agent has written down.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    pub(super) epoch: u64,
    pub(super) numbers: Numbers,
    pub(super) runs: BTreeMap<RunId, RunBook>,
}

impl Book {
    /// Takes one record in. The error says what does not fit; at start that is a corrupt journal.
    pub(super) fn apply(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Epoch(epoch) => self.epoch = self.epoch.max(epoch),
            Record::Numbers { floor, above } => {
                self.numbers.floor = self.numbers.floor.max(floor);
                above.into_iter().for_each(|seq| self.numbers.insert(seq));
            }
            Record::Accepted { seq, run, plan: plan_text, hash, terms, boot } => {
                let plan = if plan_text.is_empty() {
                    Plan { schema: postern_proto::plan::PLAN_SCHEMA, resources: Vec::new() }
                } else {
                    Plan::from_bytes(plan_text.as_bytes())
                        .map_err(|error| format!("plan of {run}: {error}"))?
                };
                if self.runs.contains_key(&run) {
                    return Err(format!("{run} was accepted twice"));
                }
                self.numbers.insert(seq);
                let book = RunBook {
                    seq,
                    plan: Arc::new(plan),
                    plan_text,
                    hash,
                    terms,
                    boot,
                    cancelled: false,
                    events: Vec::new(),
                    steps: BTreeMap::new(),
                    late: BTreeMap::new(),
                    end: None,
                };
                self.runs.insert(run, book);
            }
            Record::Event(event) => self.of(event.run)?.event(event)?,
            Record::Exec { run, seq, last } => self.of(run)?.step(run, seq)?.exec = Some(last),
            Record::Reboot { run, seq, boot, last } => {
                self.of(run)?.step(run, seq)?.reboot = Some((boot, last));
            }
            Record::Late { run, name, value } => {
                self.of(run)?.late.insert(name, value);
            }
            Record::Boot { run, boot } => self.of(run)?.boot = boot,
            Record::Cancel { run } => self.of(run)?.cancelled = true,
            Record::Removed { run } => {
                self.of(run)?;
                self.runs.remove(&run);
            }
        }
        Ok(())
    }

    /// The runs that are not over.
    pub(super) fn unfinished(&self) -> BTreeSet<RunId> {
        self.runs.iter().filter(|(_, book)| book.end.is_none()).map(|(run, _)| *run).collect()
    }

    fn of(&mut self, run: RunId) -> Result<&mut RunBook, String> {
        self.runs.get_mut(&run).ok_or_else(|| format!("{run} is not known"))
    }

    /// The fewest records that say the same.
    pub(super) fn records(&self) -> Vec<Record> {
        let above = self.numbers.above.iter().copied().collect();
        let mut records =
            vec![Record::Epoch(self.epoch), Record::Numbers { floor: self.numbers.floor, above }];
        for (run, book) in &self.runs {
            let (run, plan, hash) = (*run, book.plan_text.clone(), book.hash);
            records.push(Record::Accepted {
                seq: book.seq,
                run,
                plan,
                hash,
                terms: book.terms.clone(),
                boot: book.boot,
            });
            for event in &book.events {
                records.push(Record::Event(event.clone()));
                let EventKind::StepStarted { step, .. } = &event.kind else { continue };
                let (seq, step) = (event.seq, book.steps.get(step));
                if let Some(last) = step.and_then(|step| step.exec) {
                    records.push(Record::Exec { run, seq, last });
                }
                if let Some((boot, last)) = step.and_then(|step| step.reboot) {
                    records.push(Record::Reboot { run, seq, boot, last });
                }
            }
            let late = book.late.iter().map(|(name, value)| (name.clone(), value.clone()));
            records.extend(late.map(|(name, value)| Record::Late { run, name, value }));
            if book.cancelled {
                records.push(Record::Cancel { run });
            }
        }
        records
    }
}

impl RunBook {
    fn step(&mut self, run: RunId, seq: u64) -> Result<&mut StepBook, String> {
        let step = self.steps.values_mut().find(|step| step.seq == seq);
        step.ok_or_else(|| format!("{run} has no step that began with event {seq}"))
    }

    fn event(&mut self, event: RunEvent) -> Result<(), String> {
        let expected = self.events.len() as u64 + 1;
        if event.seq != expected || self.end.is_some() {
            return Err(format!("event {} of {} stands where {expected} belongs", event.seq, event.run));
        }
        match &event.kind {
            EventKind::StepStarted { step, .. } => {
                let book = StepBook { seq: event.seq, exec: None, reboot: None, frames: None, version: 0 };
                if self.steps.insert(step.clone(), book).is_some() {
                    return Err(format!("a step of {} began twice", event.run));
                }
            }
            EventKind::StepFinished { step, frames, .. } => match self.steps.get_mut(step) {
                Some(book) if book.frames.is_none() => book.frames = Some(*frames),
                _ => return Err(format!("a step of {} ended that had not begun", event.run)),
            },
            EventKind::Finished { state, .. } => {
                self.end = Some(*state);
                // Only the hash is needed from here on, to know a duplicate.
                self.plan_text = String::new();
                self.plan = Arc::new(Plan { schema: self.plan.schema, resources: Vec::new() });
                self.late.clear();
            }
            _ => {}
        }
        self.events.push(event);
        Ok(())
    }

    /// The last event there is.
    pub(super) fn last(&self) -> u64 {
        self.events.len() as u64
    }
}

/// The name of a step's spool.
pub(super) fn slot(run: RunId, seq: u64) -> String {
    format!("{run}.{seq}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // Whatever the order and however often: every number that came is contained, and no other.
        #[test]
        fn numbers_say_what_came(order in proptest::collection::vec(1..60u64, 0..80)) {
            let mut numbers = Numbers::default();
            order.iter().for_each(|seq| numbers.insert(*seq));
            for seq in 1..60 {
                prop_assert_eq!(numbers.contains(seq), order.contains(&seq), "{}", seq);
            }
            prop_assert!(numbers.above.first().is_none_or(|first| *first > numbers.floor + 1));
            let mut again = Book::default();
            let above = numbers.above.iter().copied().collect();
            again.apply(Record::Numbers { floor: numbers.floor, above }).unwrap();
            prop_assert_eq!(again.numbers, numbers);
        }
    }

    #[test]
    fn gaps_are_bounded() {
        let mut numbers = Numbers::default();
        (1..5000).map(|seq| 2 * seq).for_each(|seq| numbers.insert(seq));
        assert!(numbers.above.len() <= MAX_ABOVE);
        assert!(numbers.contains(9998) && !numbers.contains(9997) && numbers.contains(3));
    }

    #[test]
    fn records_out_of_order_do_not_fit() {
        let mut book = Book::default();
        let run = RunId::generate();
        let event = |seq| RunEvent {
            run,
            seq,
            time_ns: 0,
            kind: EventKind::Finished { state: RunState::Ok, message: String::new() },
        };
        assert!(book.apply(Record::Event(event(1))).is_err());
        let boot = "0192f0c4-0000-7000-8000-000000000001".parse().unwrap();
        let accepted = Record::Accepted {
            seq: 1,
            run,
            plan: String::new(),
            hash: PlanHash::of(b""),
            terms: Terms::default(),
            boot,
        };
        book.apply(accepted.clone()).unwrap();
        assert!(book.apply(accepted).is_err());
        assert!(book.apply(Record::Event(event(2))).is_err());
        book.apply(Record::Event(event(1))).unwrap();
        assert!(book.apply(Record::Event(event(2))).is_err());
        let mut again = Book::default();
        book.records().into_iter().for_each(|record| again.apply(record).unwrap());
        assert_eq!(again.records(), book.records());
    }
}
