//! What the events of a run say about each of its resources: where to go on. Pure.

use postern_proto::event::{EventKind, Outcome, StepEnd, StepId, WAITS_FOR};
use postern_proto::ids::{Address, BootId};
use postern_proto::plan::PlannedResource;

use super::book::RunBook;
use crate::resources::bind;

/// One resource of a run, as far as its events tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    /// How it ended; `None` while it is not over.
    pub(super) outcome: Option<(Outcome, String)>,
    /// The last attempt that began.
    pub(super) attempts: u32,
    /// That attempt is not over.
    pub(super) open: bool,
    /// A step that changes something has begun in some attempt, its own or its group's.
    pub(super) acted: bool,
    /// The number of the next step of that attempt.
    pub(super) next_step: u32,
    /// The last step of the open attempt.
    pub(super) step: Option<PastStep>,
}

/// A step that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PastStep {
    pub(super) id: StepId,
    pub(super) seq: u64,
    /// `Some(last)` for a process.
    pub(super) exec: Option<bool>,
    /// The boot that it was to end, and `last`, for a restart of the host.
    pub(super) reboot: Option<(BootId, bool)>,
    pub(super) end: Option<StepEnd>,
    /// False for a wait for others, which changes nothing.
    pub(super) acts: bool,
}

/// In the order of the plan.
pub(super) fn past(book: &RunBook) -> Vec<Past> {
    let mut all = vec![Past::default(); book.plan.resources.len()];
    let key = |planned: &PlannedResource| bind(planned).ok()?.merge_key();
    let keys: Vec<Option<String>> = book.plan.resources.iter().map(key).collect();
    let place =
        |address: &Address| book.plan.resources.iter().position(|planned| planned.address == *address);
    for event in &book.events {
        match &event.kind {
            EventKind::ResourceStarted { address, attempt } => {
                let Some(past) = place(address).and_then(|i| all.get_mut(i)) else { continue };
                (past.attempts, past.open, past.outcome, past.step) = (*attempt, true, None, None);
                past.next_step = 0;
            }
            EventKind::StepStarted { step, summary } => {
                let Some(owner) = place(&step.address) else { continue };
                let (exec, reboot) =
                    book.steps.get(step).map_or((None, None), |book| (book.exec, book.reboot));
                // Of the steps that are no process, none but a wait is said in these words.
                let acts = exec.is_some() || !summary.starts_with(WAITS_FOR);
                // A group has its steps under its first member's address; every member's attempt is open then.
                let key = keys.get(owner).cloned().flatten();
                let open = all.iter_mut().zip(&keys).filter(|(past, other)| past.open && **other == key);
                if key.is_some() && acts {
                    open.for_each(|(past, _)| past.acted = true);
                }
                let Some(past) = all.get_mut(owner) else { continue };
                past.acted |= acts;
                past.next_step = step.step + 1;
                past.step =
                    Some(PastStep { id: step.clone(), seq: event.seq, exec, reboot, end: None, acts });
            }
            EventKind::StepFinished { step, end, .. } => {
                let Some(past) = place(&step.address).and_then(|i| all.get_mut(i)) else { continue };
                if let Some(of) = past.step.as_mut().filter(|of| of.id == *step) {
                    of.end = Some(end.clone());
                }
            }
            EventKind::ResourceFinished { address, outcome, message, .. } => {
                let Some(past) = place(address).and_then(|i| all.get_mut(i)) else { continue };
                past.open = false;
                // It is tried again: one that is the last word stands in one frame with the end of its run,
                // which is then not read for going on.
                past.outcome = (*outcome != Outcome::Interrupted).then(|| (*outcome, message.clone()));
            }
            EventKind::Accepted { .. }
            | EventKind::Parked { .. }
            | EventKind::Unparked
            | EventKind::Finished { .. } => {}
        }
    }
    all
}

/// True when the run waited for the controller when it was cut off.
pub(super) fn parked(book: &RunBook) -> bool {
    let kinds = book.events.iter().rev().map(|event| &event.kind);
    kinds
        .filter_map(|kind| match kind {
            EventKind::Parked { .. } => Some(true),
            EventKind::Unparked => Some(false),
            _ => None,
        })
        .next()
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use postern_proto::event::RunEvent;
    use postern_proto::ids::{PlanHash, RunId};
    use postern_proto::plan::{PLAN_SCHEMA, Plan};

    use super::super::book::{Book, Record};
    use super::*;

    /// A book with one run of a command `c` and of packages with the other names.
    fn book_of(run: RunId, names: &[&str]) -> Book {
        let planned = |name: &&str| PlannedResource {
            address: address(name),
            kind: if *name == "c" { "command" } else { "package" }.to_owned(),
            schema: 1,
            spec: if *name == "c" {
                serde_json::json!({"shell": "true"})
            } else {
                serde_json::json!({"name": name})
            },
            needs: None,
        };
        let resources = names.iter().map(planned).collect();
        let (plan, _) = Plan { schema: PLAN_SCHEMA, resources }.to_bytes().unwrap();
        let mut book = Book::default();
        let boot = "0192f0c4-0000-7000-8000-000000000001".parse().unwrap();
        let (plan, hash) = (String::from_utf8(plan).unwrap(), PlanHash::of(b""));
        book.apply(Record::Accepted { seq: 1, run, plan, hash, terms: Default::default(), boot }).unwrap();
        book
    }

    fn address(name: &str) -> Address {
        format!("t:x:{name}").parse().unwrap()
    }

    fn finished(name: &str, attempt: u32, outcome: Outcome) -> EventKind {
        EventKind::ResourceFinished {
            address: address(name),
            attempt,
            outcome,
            message: String::new(),
            diff: String::new(),
            duration_ns: 0,
            seen: String::new(),
        }
    }

    /// Steps run under the first member's address only. Which members they were for shows in what was open.
    #[test]
    fn a_step_of_a_group_is_a_step_of_each_of_its_members() {
        let run = RunId::generate();
        let mut book = book_of(run, &["c", "before", "first", "there", "third", "later"]);
        let mut seq = 0;
        let mut tell = |kind| {
            seq += 1;
            book.apply(Record::Event(RunEvent { run, seq, time_ns: 0, kind })).unwrap();
            past(&book.runs[&run]).iter().map(|past| past.acted).collect::<Vec<_>>()
        };
        let started = |name: &str| EventKind::ResourceStarted { address: address(name), attempt: 1 };
        // It waits in its attempt, and nothing is done for it.
        tell(started("c"));
        tell(started("before"));
        tell(finished("before", 1, Outcome::Unchanged));
        for name in ["first", "there", "third"] {
            tell(started(name));
        }
        tell(finished("there", 1, Outcome::Unchanged));
        let step = StepId { address: address("first"), attempt: 1, step: 0 };
        let acted = tell(EventKind::StepStarted { step, summary: String::new() });
        assert_eq!(acted, [false, false, true, false, true, false]);
        tell(finished("first", 1, Outcome::Interrupted));
        let acted = tell(finished("third", 1, Outcome::Interrupted));
        assert_eq!(acted, [false, false, true, false, true, false], "it stays so for the next attempt");
        let acted = tell(started("later"));
        assert_eq!(acted, [false, false, true, false, true, false]);
    }

    /// Cut off a second time before the next attempt began: the resource is still to be done.
    #[test]
    fn an_interrupted_attempt_is_not_the_last_word() {
        let run = RunId::generate();
        let (mut book, address) = (book_of(run, &["c"]), address("c"));
        let mut seq = 0;
        let mut after = |kind| {
            seq += 1;
            book.apply(Record::Event(RunEvent { run, seq, time_ns: 0, kind })).unwrap();
            past(&book.runs[&run]).remove(0)
        };
        let finished = |attempt, outcome| finished("c", attempt, outcome);
        after(EventKind::ResourceStarted { address: address.clone(), attempt: 1 });
        let step = StepId { address: address.clone(), attempt: 1, step: 4 };
        let told = after(EventKind::StepStarted { step, summary: String::new() });
        assert_eq!(told.next_step, 5, "an attempt that goes on has no step twice");
        let cut_off = after(finished(1, Outcome::Interrupted));
        assert_eq!((cut_off.outcome, cut_off.open, cut_off.attempts), (None, false, 1));
        let again = after(EventKind::ResourceStarted { address: address.clone(), attempt: 2 });
        assert_eq!(again.next_step, 0);
        let done = after(finished(2, Outcome::Changed));
        assert_eq!(done.outcome.map(|(outcome, _)| outcome), Some(Outcome::Changed));
    }
}
