//! Takes back what a run did: from what was kept of each resource before and after, against what is there now.
//!
//! Each resource is judged by itself, in the reverse order of that run. One that somebody else has changed
//! since is left alone, and so is one whose records cannot be read.

use std::time::{Duration, Instant};

use postern_proto::event::Outcome;
use postern_proto::ids::RunId;
use serde_json::Value;

use super::backup::{After, Before, Head, Kept};
use super::group::essence_of;
use super::guarded::Done;
use super::others::Others;
use super::run::{End, RunTask, Stop, summary_of};
use crate::resources::{Depth, Protect, Step, Undo, hidden, unified};
use crate::sys::{FileKind, Sys};

/// The longest file that is shown in a diff, bytes.
const SHOWN: u64 = 1 << 20;

/// What an undo does with one resource.
enum Way {
    /// It is as it was before that run.
    There,
    /// It is left alone; why.
    Refused(String),
    /// There is no way back; why.
    None(String),
    /// These steps, and what is to be said about them.
    Back { steps: Vec<Step>, note: String, now: Value },
}

/// What is known of a resource when its way back is looked for.
struct Known<'a> {
    before: &'a Value,
    after: Option<After>,
    now: &'a Value,
    /// This run has begun to take it back.
    begun: bool,
    /// Its looks say nothing about its state.
    blind: bool,
    /// It puts in force what the others have brought back, so it is asked also where it is as it was.
    last: bool,
}

impl RunTask {
    pub(super) async fn undo(&mut self) -> Result<(), Stop> {
        let Some(of) = self.terms.undo_of else { return Ok(()) };
        let kept = Kept::of(&self.ctx.backup_dir, of);
        let head = match self.head(&kept, of).await {
            Ok(head) => head,
            Err(why) => return self.bar(why),
        };
        self.keeps = !self.terms.check;
        let mut order: Vec<usize> = (0..self.past.len()).collect();
        if head.undid.is_none() {
            order.reverse();
        }
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for index in order {
            if self.comes_last(index, &kept).await { last.push(index) } else { first.push((index, false)) }
        }
        last.sort_unstable();
        let last = last.into_iter().map(|index| (index, true));
        for (index, last) in first.into_iter().chain(last) {
            if self.past[index].outcome.is_some() {
                self.recount(index);
                continue;
            }
            if self.is_cancelled() {
                self.skip_rest();
                return Ok(());
            }
            self.undo_one(index, &kept, last).await?;
        }
        Ok(())
    }

    /// See [`crate::resources::Resource::undo_last`]. What cannot be read is said in its turn.
    async fn comes_last(&mut self, index: usize, kept: &Kept) -> bool {
        let kept = kept.clone();
        let read = tokio::task::spawn_blocking(move || kept.before(index));
        let Ok(Ok(Some(before))) = read.await else { return false };
        let Ok(bound) = self.bind(index) else { return false };
        bound.undo_last(&before.seen).unwrap_or(false)
    }

    /// An outcome from before a restart counts like the others.
    fn recount(&mut self, index: usize) {
        let Some((outcome, message)) = self.past[index].outcome.clone() else { return };
        self.beyond_undo += usize::from(outcome == Outcome::Skipped);
        self.mind(index, outcome, &message);
    }

    async fn head(&self, kept: &Kept, of: RunId) -> Result<Head, String> {
        let (kept, plan) = (kept.clone(), self.hash);
        let limit = self.ctx.config.limits.backup_bytes >> 20;
        let read = tokio::task::spawn_blocking(move || kept.head().map_err(|error| error.to_string()));
        match read.await.unwrap_or_else(|error| Err(error.to_string()))? {
            None => Err(format!(
                "nothing is kept of the run {of} on this host: it changed nothing here, or its records were removed \
                 to keep within {limit} MiB"
            )),
            Some(head) if head.plan != plan => {
                Err(format!("the run {of} had another plan: undo it with the plan that it had"))
            }
            Some(head) => Ok(head),
        }
    }

    async fn undo_one(&mut self, index: usize, kept: &Kept, last: bool) -> Result<(), Stop> {
        let began = Instant::now();
        let records = {
            let kept = kept.clone();
            let read = tokio::task::spawn_blocking(move || {
                let said = |error: super::backup::RecordError| error.to_string();
                Ok((kept.before(index).map_err(said)?, kept.after(index).map_err(said)?))
            });
            read.await.unwrap_or_else(|error| Err(error.to_string()))
        };
        let (before, after) = match records {
            Err(why) => return self.ended(index, Outcome::Failed, why, began),
            // That run did not touch it.
            Ok((None, _)) => return self.ended(index, Outcome::Unchanged, String::new(), began),
            Ok((Some(before), after)) => (before, after),
        };
        if let Some(why) = self.not_of_this(index, &before) {
            return self.ended(index, Outcome::Failed, why, began);
        }
        if let Some(why) = before.withheld {
            self.beyond_undo += 1;
            return self.ended(index, Outcome::Skipped, why, began);
        }
        self.wait_for(&[index]).await?;
        if self.is_cancelled() {
            return Ok(());
        }
        self.late.extend(before.late);
        // One that waited for the controller goes on with the attempt that it waited in.
        if !self.past[index].open {
            self.begin(index);
        }
        let bound = match self.bind(index) {
            Ok(bound) => bound,
            Err(unseen) => return self.ended(index, Outcome::Failed, unseen.why, began),
        };
        let ctx = std::sync::Arc::clone(&self.ctx);
        let until = tokio::time::Instant::now() + ctx.config.limits.lock_wait;
        let mut tries = 0;
        loop {
            let (way, protect) = loop {
                let view = match self.patiently(bound.view(&ctx.config.sys, Depth::Whole)).await? {
                    Ok(view) => view,
                    Err(error) => {
                        let why = format!("what is there now cannot be looked at: {error}");
                        return self.ended(index, Outcome::Failed, why, began);
                    }
                };
                let known = Known {
                    before: &before.seen,
                    after: after.clone(),
                    now: &view.seen,
                    begun: self.past[index].acted,
                    blind: bound.foreseen().is_some(),
                    last,
                };
                let way = way(bound.as_ref(), known);
                let Way::Back { steps, .. } = &way else { break (way, None) };
                let steps: Vec<&Step> = steps.iter().collect();
                match self.others(index, &steps, tries, until).await? {
                    Others::None => break (way, view.protect),
                    Others::Done => tries += 1,
                    Others::Still(failure) => {
                        self.give_up(index, &failure, began);
                        return Ok(());
                    }
                }
            };
            return match way {
                Way::There if self.past[index].acted => {
                    let why = "an earlier attempt, which was cut off, took it back".to_owned();
                    self.ended(index, Outcome::Changed, why, began)
                }
                Way::There => self.ended(index, Outcome::Unchanged, String::new(), began),
                Way::Refused(why) => self.ended(index, Outcome::Failed, why, began),
                Way::None(why) => {
                    self.beyond_undo += 1;
                    self.ended(index, Outcome::Skipped, why, began)
                }
                Way::Back { steps, note, now } => {
                    if self.take_back(index, &before.seen, steps, protect, &note, now, began).await? {
                        return Ok(());
                    }
                    // Much may have happened while it waited: it is looked at anew.
                    self.wait_for(&[index]).await?;
                    if self.is_cancelled() {
                        return Ok(());
                    }
                    continue;
                }
            };
        }
    }

    /// False when it has to wait for the controller, and nothing was done.
    #[allow(clippy::too_many_arguments)] // All of it was found out by its one caller.
    async fn take_back(
        &mut self,
        index: usize,
        before: &Value,
        steps: Vec<Step>,
        protect: Option<Protect>,
        note: &str,
        now: Value,
        began: Instant,
    ) -> Result<bool, Stop> {
        let done = format!("{}{note}", summary_of(&steps));
        let (sys, shown) = (self.ctx.config.sys.clone(), steps.clone());
        let secret = !postern_proto::text::secrets(&self.plan.resources[index].spec).is_empty();
        let diff = tokio::task::spawn_blocking(move || diff(&sys, &shown, secret)).await.unwrap_or_default();
        if self.terms.check {
            self.finish(index, End::new(Outcome::WouldChange, done, began.elapsed()).diff(diff));
            return Ok(true);
        }
        if let Err(why) = self.keep(vec![(index, now)]).await? {
            return self.ended(index, Outcome::Failed, why, began).map(|()| true);
        }
        let result = match self.guarded(index, &steps, protect).await? {
            Done::Steps(result) => result,
            Done::Waits => return Ok(false),
        };
        let bound = match self.bind(index) {
            Ok(bound) => bound,
            Err(unseen) => return self.ended(index, Outcome::Failed, unseen.why, began).map(|()| true),
        };
        let ctx = std::sync::Arc::clone(&self.ctx);
        let view = self.patiently(bound.view(&ctx.config.sys, Depth::Whole)).await?;
        if let Ok(view) = &view {
            self.keep_after(index, &bound, view).await;
        }
        let wanted = bound.essence(before);
        let (outcome, message) = match (result, view) {
            (Err(failure), _) if failure.cancelled => {
                self.is_cancelled();
                (Outcome::Failed, format!("cancelled by an operator: {}", failure.message))
            }
            (Err(failure), _) => (Outcome::Failed, failure.message),
            (Ok(_), Err(error)) => (Outcome::Failed, format!("the result could not be observed: {error}")),
            (Ok(_), Ok(view)) if Ok(&view.essence) == wanted.as_ref() => (Outcome::Changed, done),
            (Ok(_), Ok(_)) => {
                (Outcome::Failed, format!("it is not as it was before that run, after: {done}"))
            }
        };
        self.finish(index, End::new(outcome, message, began.elapsed()).diff(diff));
        Ok(true)
    }

    fn not_of_this(&self, index: usize, before: &Before) -> Option<String> {
        let planned = &self.plan.resources[index];
        let same = before.address == planned.address && before.kind == planned.kind;
        (!same).then(|| format!("what was kept is of {}, not of {}", before.address, planned.address))
    }

    fn ended(&mut self, index: usize, outcome: Outcome, why: String, began: Instant) -> Result<(), Stop> {
        let took = if outcome == Outcome::Skipped { Duration::ZERO } else { began.elapsed() };
        self.finish(index, End::new(outcome, why, took));
        Ok(())
    }

    /// Every one that was left alone.
    pub(super) fn undo_failures(&self) -> String {
        let failed = self.past.iter().zip(&self.plan.resources).filter_map(|(past, planned)| {
            let (_, message) = past.outcome.as_ref().filter(|(outcome, _)| *outcome == Outcome::Failed)?;
            Some(format!("{}: {message}", planned.address))
        });
        let failed: Vec<String> = failed.collect();
        format!("{} not taken back: {}", failed.len(), failed.join("; "))
    }
}

/// The way back of one resource.
fn way(bound: &dyn crate::resources::Bound, known: Known<'_>) -> Way {
    let Known { before, after, now, begun, blind, last } = known;
    let (was, is) = match (bound.essence(before), bound.essence(now)) {
        (Ok(was), Ok(is)) => (was, is),
        (Err(why), _) | (_, Err(why)) => return Way::Refused(why),
    };
    // What only acts is always seen alike.
    if !blind && !last && was == is {
        return Way::There;
    }
    let note = match &after {
        _ if last && was == is => "",
        _ if begun => " (an earlier attempt was cut off; from whatever it left)",
        None => " (the change itself was cut off; from whatever it left)",
        Some(after) if blind || after.essence == essence_of(&is) => "",
        Some(_) => {
            let why =
                "changed since that run: it is neither as the run left it nor as it was before; left alone";
            return Way::Refused(why.to_owned());
        }
    };
    let trace = after.map_or(Value::Null, |after| after.trace);
    match bound.undo(before, &trace, now) {
        Err(why) => Way::Refused(why),
        Ok(Undo::Cannot(why)) => Way::None(why),
        Ok(Undo::Steps(steps)) if steps.is_empty() && last && was == is => Way::There,
        Ok(Undo::Steps(steps)) if steps.is_empty() => {
            Way::Refused("it differs from what it was before, and no step leads back".to_owned())
        }
        Ok(Undo::Steps(steps)) => match bound.spared(&trace, now) {
            Err(why) => Way::Refused(why),
            Ok(None) => Way::Back { steps, note: note.to_owned(), now: now.clone() },
            Ok(Some(left)) => {
                Way::Back { steps, note: format!("{note}; left alone: {left}"), now: now.clone() }
            }
        },
    }
}

/// What these steps change in files that are for everyone to read; `secret` says that there may be older values of
/// secrets in them.
fn diff(sys: &Sys, steps: &[Step], secret: bool) -> String {
    let mut text = String::new();
    for step in steps {
        let (path, new, mode) = match step {
            Step::WriteFile(file) => (&file.path, Some(file.content.as_slice()), file.mode),
            Step::Remove { path } => (path, None, 0o644),
            _ => continue,
        };
        let open = |mode: u32| mode & 0o004 != 0;
        let Ok(meta) = sys.meta(path) else { continue };
        if meta.as_ref().is_some_and(|meta| meta.kind != FileKind::File) {
            continue;
        }
        let Ok(old) = sys.read(path, SHOWN) else { continue };
        let shown = !secret && open(mode) && meta.is_none_or(|meta| open(meta.mode));
        let show = if shown { unified } else { hidden };
        text += &show(path, old.as_deref(), new);
    }
    text
}
