//! How a run comes to know a resource: fills the holes of its spec, looks at it, takes what it yields.

use std::sync::Arc;

use postern_proto::event::Outcome;
use postern_proto::ids::SecretRef;
use postern_proto::plan::PlannedResource;
use postern_proto::text::{self, Hole};
use postern_proto::{ids::Address, spec};

use super::book::Record;
use super::run::{RunTask, Stop};
use crate::resources::{Bound, Depth, View, bind, bind_filled};
use crate::supervise::Redact;

/// Why a resource could not be looked at.
pub(super) struct Unseen {
    /// For people.
    pub(super) why: String,
    /// Once what comes before it was applied, it can be.
    pub(super) after_apply: bool,
}

impl RunTask {
    /// Binds what has no holes.
    pub(super) fn bind_whole(&mut self) -> Result<(), String> {
        let whole = |planned: &PlannedResource| {
            if text::holes(&planned.spec).is_empty() {
                bind(planned).map(|it| Some(Arc::from(it)))
            } else {
                Ok(None)
            }
        };
        let resources = &self.plan.resources;
        self.bound = resources.iter().map(whole).collect::<Result<_, _>>()?;
        let blind = |it: &Option<Arc<dyn Bound>>| it.as_ref().is_some_and(|it| it.foreseen().is_some());
        // A run of nothing but actions has no state to go back to.
        self.keeps = !self.terms.check && !self.bound.iter().all(blind);
        Ok(())
    }

    /// A resource with its holes filled in.
    pub(super) fn bind(&mut self, index: usize) -> Result<Arc<dyn Bound>, Unseen> {
        if let Some(bound) = self.bound.get(index).and_then(Option::as_ref) {
            return Ok(Arc::clone(bound));
        }
        let planned = &self.plan.resources[index];
        for secret in text::secrets(&planned.spec) {
            let value = self.secrets.as_ref().and_then(|secrets| secrets.value(&secret));
            let SecretRef { id, version } = &secret;
            let why = match value {
                Some(Ok(_)) => continue,
                Some(Err(why)) => format!("there is no value of the secret {id} (version {version}): {why}"),
                None => format!("the value of the secret {id} (version {version}) is not here"),
            };
            return Err(Unseen { why, after_apply: false });
        }
        let value_of = |hole: &Hole| match hole {
            Hole::Late(name) => self.late.get(name).cloned(),
            Hole::Secret(secret) => {
                let value = self.secrets.as_ref()?.value(secret)?.ok()?;
                Some(value.expose().to_owned())
            }
        };
        let filled = text::fill(&planned.spec, &value_of).map_err(|hole| {
            let why = match hole {
                Hole::Late(name) => format!("late.{name} is not known yet"),
                Hole::Secret(secret) => format!("the value of the secret {} is not here", secret.id),
            };
            Unseen { why, after_apply: self.terms.check || self.looks_only() }
        })?;
        // What was filled in can be what the field does not take.
        let errors = spec::kind(&planned.kind).map_or_else(Vec::new, |kind| (kind.check)(&filled));
        if let Some(error) = errors.first() {
            return Err(Unseen { why: format!("with its values filled in: {error}"), after_apply: false });
        }
        let bound: Arc<dyn Bound> =
            bind_filled(planned, &filled).map(Arc::from).map_err(|why| Unseen { why, after_apply: false })?;
        self.bound[index] = Some(Arc::clone(&bound));
        Ok(bound)
    }

    /// Looks at a resource before its change.
    pub(super) async fn look(&mut self, index: usize) -> Result<Result<View, Unseen>, Stop> {
        let bound = match self.bind(index) {
            Ok(bound) => bound,
            Err(unseen) => return Ok(Err(unseen)),
        };
        if let Some(view) = bound.foreseen() {
            return Ok(Ok(view));
        }
        if !self.acted {
            self.look_ahead(index);
        }
        let view = match self.ahead.take(index) {
            Some(looking) => self.patiently(looking).await?,
            None => {
                let ctx = Arc::clone(&self.ctx);
                self.patiently(bound.view(&ctx.config.sys, Depth::Cheap)).await?
            }
        };
        Ok(match view {
            Ok(view) => match self.take_late(index, &view) {
                Ok(()) => Ok(view),
                Err(why) => Err(Unseen { why, after_apply: false }),
            },
            Err(error) => {
                let after_apply = self.would_change_before(index);
                Err(Unseen { why: error.to_string(), after_apply })
            }
        })
    }

    /// Takes what a resource yields for others. It goes into the journal, which no secret reaches; and it is
    /// taken as it is or not at all, for it may be what a file is filled with.
    fn take_late(&mut self, index: usize, view: &View) -> Result<(), String> {
        let planned = &self.plan.resources[index];
        let name = spec::kind(&planned.kind).and_then(|kind| (kind.yields)(&planned.spec));
        let (Some(name), Some(value)) = (name, &view.late) else { return Ok(()) };
        if self.redact.finds(value) {
            return Err(format!(
                "late.{name} has a secret of this run in it, or ends as one begins: late values are written down, \
                 secrets never are, so it is not taken; let the command print something else"
            ));
        }
        if self.late.get(&name) != Some(value) {
            self.pending.push(Record::Late { run: self.run, name: name.clone(), value: value.clone() });
            self.late.insert(name, value.clone());
        }
        Ok(())
    }

    /// In a check, something before this is still to be brought about.
    pub(super) fn would_change_before(&self, index: usize) -> bool {
        let would = |past: &super::past::Past| matches!(past.outcome, Some((Outcome::WouldChange, _)));
        self.terms.check && self.past[..index].iter().any(would)
    }

    /// Nothing was acted on yet, and may not be: the look before an approved run.
    fn looks_only(&self) -> bool {
        !self.terms.approved.is_empty() && !self.past.iter().any(|past| past.attempts > 0)
    }

    /// Takes up what the controller has answered.
    pub(super) fn learn(&mut self) {
        let Some(secrets) = &self.secrets else { return };
        let answered = secrets.answered();
        if answered == self.known {
            return;
        }
        let values = secrets.values();
        self.redact = Redact::new(values.iter().map(|value| value.expose()));
        self.known = answered;
    }

    /// The secrets that a resource waits for: its own, and those of whatever this run has begun before it. What
    /// was put on the host before a restart of the agent could come out again in any output, and is redacted
    /// only once it is known.
    pub(super) fn lacks(&self, index: usize) -> Vec<SecretRef> {
        let Some(secrets) = &self.secrets else { return Vec::new() };
        let begun = (0..self.past.len()).filter(|i| *i == index || self.past[*i].attempts > 0);
        let wanted = begun.flat_map(|i| text::secrets(&self.plan.resources[i].spec)).collect();
        secrets.lacking(&wanted)
    }

    /// True when it waits for no secret, and for no controller to confirm it.
    pub(super) fn is_ready(&self, index: usize) -> bool {
        !self.held.contains_key(&index) && self.lacks(index).is_empty()
    }

    pub(super) fn address(&self, index: usize) -> &Address {
        &self.plan.resources[index].address
    }
}
