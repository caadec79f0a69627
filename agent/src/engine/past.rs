//! What the events of a run say about each of its resources: where to go on. Pure.

use postern_proto::event::{EventKind, Outcome, StepEnd, StepId, WAITS_FOR};
use postern_proto::ids::{Address, BootId};

use super::book::RunBook;

/// One resource of a run, as far as its events tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    /// How it ended; `None` while it is not over.
    pub(super) outcome: Option<(Outcome, String)>,
    /// The last attempt that began.
    pub(super) attempts: u32,
    /// That attempt is not over.
    pub(super) open: bool,
    /// A step that changes something has begun in some attempt.
    pub(super) acted: bool,
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
}

/// In the order of the plan.
pub(super) fn past(book: &RunBook) -> Vec<Past> {
    let mut all = vec![Past::default(); book.plan.resources.len()];
    let place =
        |address: &Address| book.plan.resources.iter().position(|planned| planned.address == *address);
    for event in &book.events {
        match &event.kind {
            EventKind::ResourceStarted { address, attempt } => {
                let Some(past) = place(address).and_then(|i| all.get_mut(i)) else { continue };
                (past.attempts, past.open, past.outcome, past.step) = (*attempt, true, None, None);
            }
            EventKind::StepStarted { step, summary } => {
                let Some(past) = place(&step.address).and_then(|i| all.get_mut(i)) else { continue };
                let (exec, reboot) =
                    book.steps.get(step).map_or((None, None), |book| (book.exec, book.reboot));
                // Of the steps that are no process, none but a wait is said in these words.
                past.acted |= exec.is_some() || !summary.starts_with(WAITS_FOR);
                past.step = Some(PastStep { id: step.clone(), seq: event.seq, exec, reboot, end: None });
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
    use postern_proto::plan::{PLAN_SCHEMA, Plan, PlannedResource};

    use super::super::book::{Book, Record};
    use super::*;

    /// Cut off a second time before the next attempt began: the resource is still to be done.
    #[test]
    fn an_interrupted_attempt_is_not_the_last_word() {
        let (run, address): (_, Address) = (RunId::generate(), "t:command:c".parse().unwrap());
        let planned = PlannedResource {
            address: address.clone(),
            kind: "command".to_owned(),
            schema: 1,
            spec: serde_json::json!({"shell": "true"}),
            needs: None,
        };
        let (plan, _) = Plan { schema: PLAN_SCHEMA, resources: vec![planned] }.to_bytes().unwrap();
        let mut book = Book::default();
        let boot = "0192f0c4-0000-7000-8000-000000000001".parse().unwrap();
        let (plan, hash) = (String::from_utf8(plan).unwrap(), PlanHash::of(b""));
        book.apply(Record::Accepted { seq: 1, run, plan, hash, terms: Default::default(), boot }).unwrap();
        let mut seq = 0;
        let mut after = |kind| {
            seq += 1;
            book.apply(Record::Event(RunEvent { run, seq, time_ns: 0, kind })).unwrap();
            past(&book.runs[&run]).remove(0)
        };
        let finished = |attempt, outcome| EventKind::ResourceFinished {
            address: address.clone(),
            attempt,
            outcome,
            message: String::new(),
            diff: String::new(),
            duration_ns: 0,
            seen: String::new(),
        };
        after(EventKind::ResourceStarted { address: address.clone(), attempt: 1 });
        let cut_off = after(finished(1, Outcome::Interrupted));
        assert_eq!((cut_off.outcome, cut_off.open, cut_off.attempts), (None, false, 1));
        after(EventKind::ResourceStarted { address: address.clone(), attempt: 2 });
        let done = after(finished(2, Outcome::Changed));
        assert_eq!(done.outcome.map(|(outcome, _)| outcome), Some(Outcome::Changed));
    }
}
