//! What the events of a run say about each of its resources: where to go on. Pure.

use postern_proto::event::{EventKind, Outcome, StepEnd, StepId};
use postern_proto::ids::Address;

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
    /// A step has begun in some attempt.
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
            EventKind::StepStarted { step, .. } => {
                let Some(past) = place(&step.address).and_then(|i| all.get_mut(i)) else { continue };
                let exec = book.steps.get(step).and_then(|book| book.exec);
                past.acted = true;
                past.step = Some(PastStep { id: step.clone(), seq: event.seq, exec, end: None });
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
                past.outcome = Some((*outcome, message.clone()));
            }
            EventKind::Accepted { .. } | EventKind::Finished { .. } => {}
        }
    }
    all
}
