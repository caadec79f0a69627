//! Steps under guard: armed before, watched after, and taken back unless all that held before holds again.

use std::sync::Arc;
use std::time::Duration;

use postern_proto::event::{StepEnd, StepId};
use postern_proto::guard::{Found, MAX_KEYS, MAX_PREDICATES, Predicate};
use postern_proto::plan::PlannedResource;
use tokio::time::Instant;

use super::backup::{After, Before, first_before};
use super::exec::KILL_AFTER;
use super::group::essence_of;
use super::run::{Failure, RunTask, StepResult, Stop};
use crate::guard::{Change, Ended, Guards, State, Stored, Unseen, Vantage, lacking, watched};
use crate::resources::{Depth, Protect, Step, Undo};

/// For one look from outside.
const LOOK: Duration = Duration::from_secs(30);
/// Between looks after the change, at first and at most: an SSH server takes many looks for an attack.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// The last look is over so long before the timer's time is.
const MARGIN: Duration = Duration::from_secs(5);

/// What became of steps that were to be performed.
pub(super) enum Done {
    /// They were performed, or failed.
    Steps(StepResult),
    /// Nothing was done: the controller cannot be reached, and the resource waits for it.
    Waits,
}

/// A change that may not be confirmed yet.
struct Watch {
    predicates: Vec<Predicate>,
    before: Vec<Found>,
    until: Instant,
}

/// What a step under guard keeps to.
pub(super) struct Armed<'a> {
    stored: &'a Stored,
    /// A process that runs longer is ended before the timer takes back what it did.
    until: Instant,
}

impl Armed<'_> {
    /// How long the next step may take; `None` when it may not begin any more.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        (self.stored.state() == Some(State::Armed) && !left.is_zero()).then_some(left)
    }
}

/// A resource that waits for the controller.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// When the controller is tried next.
    pub(super) until: Instant,
    /// Between the tries.
    pub(super) pause: Duration,
    /// For people.
    pub(super) why: String,
    /// What it asked the controller to look at. Asking for less would tell that the controller is there, and not
    /// that it can confirm this.
    pub(super) predicates: Vec<Predicate>,
}

impl Held {
    pub(super) const FIRST: Duration = Duration::from_secs(2);
    const LONGEST: Duration = Duration::from_secs(30);

    /// It was tried in vain.
    pub(super) fn again(&mut self, why: String) {
        self.pause = (self.pause * 2).min(Self::LONGEST);
        let jitter = self.pause.mul_f64(rand::random_range(0.5..=1.0));
        (self.until, self.why) = (Instant::now() + jitter, why);
    }
}

impl RunTask {
    /// Performs the steps of one resource, under guard where its kind asks for that.
    pub(super) async fn guarded(
        &mut self,
        index: usize,
        steps: &[Step],
        protect: Option<Protect>,
    ) -> Result<Done, Stop> {
        let Some(protect) = protect else { return Ok(Done::Steps(self.steps(index, steps).await?)) };
        let predicates = watchable(&protect.predicates);
        let before = match self.look_from_outside(&predicates).await? {
            Ok(before) => before,
            Err(unseen) if unseen.for_good => {
                let why =
                    format!("nothing was changed, since the controller cannot confirm it: {}", unseen.why);
                return Ok(Done::Steps(Err(Failure::new(why))));
            }
            Err(unseen) => {
                let (until, pause, why) = (Instant::now(), self.hold_pause, String::new());
                let mut held = Held { until, pause, why, predicates };
                held.again(unseen.why);
                self.hold_pause = held.pause;
                self.held.insert(index, held);
                return Ok(Done::Waits);
            }
        };
        self.hold_pause = Held::FIRST / 2;
        let guards = self.guards();
        let seen = watched(&predicates, &before);
        let window = self.ctx.config.limits.guard_window;
        let (earlier, lost) = self.changed_before(index, &protect).await?;
        let summary =
            format!("under guard, taken back after {} s unless confirmed: {lost}{seen}", window.as_secs());
        let id = self.pseudo_step(index, &summary).await?;
        let (address, attempt) = self.attempt_of(index);
        let name = format!("{}-{index}-{attempt}", self.run);
        let (until, margin) = (Instant::now() + window, MARGIN.min(window / 4));
        let change = Change { what: address.as_str(), steps, earlier: &earlier, protect: &protect };
        let stored = match self.patiently(guards.arm(&name, &change, window)).await? {
            Ok(stored) => stored,
            Err(error) => {
                let why = format!("nothing was changed, since the guard could not be armed: {error}");
                self.end_step(id, StepEnd::Error(why.clone()), 0);
                return Ok(Done::Steps(Err(Failure::new(why))));
            }
        };
        self.end_step(id, StepEnd::Done, 0);
        let watch = Watch { predicates, before, until: until - margin };
        let armed = Armed { stored: &stored, until: until - margin - KILL_AFTER.min(window / 4) };
        let result = match self.steps_under(index, steps, Some(&armed)).await? {
            Ok(note) => self.confirm(index, &guards, &stored, &watch).await?.map(|()| note),
            Err(failure) => {
                let why = failure.message.clone();
                let taken = self.take_back_now(index, &guards, &stored, &why).await?;
                Err(Failure { message: format!("{taken}: {}", failure.message), ..failure })
            }
        };
        guards.clear(&stored).await;
        let note = |note: String| if note.is_empty() { format!("seen after it: {seen}") } else { note };
        Ok(Done::Steps(result.map(note)))
    }

    /// The steps back from what this run, and those since what is changed has read them, did before to these files;
    /// and what is to be said of those to which there is no way back.
    async fn changed_before(&mut self, index: usize, protect: &Protect) -> Result<(Vec<Step>, String), Stop> {
        let (mut back, mut lost, reads) = (Vec::new(), String::new(), &protect.reads);
        let read = |it: &PlannedResource| {
            let path = it.spec.get("path").and_then(serde_json::Value::as_str);
            path.filter(|path| reads.iter().any(|read| read == path)).map(str::to_owned)
        };
        let others: Vec<(usize, String)> = (0..self.plan.resources.len())
            .filter(|other| *other != index)
            .filter_map(|other| Some((other, read(&self.plan.resources[other])?)))
            .collect();
        for (other, path) in others {
            let (dir, run, since) = (self.ctx.backup_dir.clone(), self.run, protect.reads_since_ns);
            let address = self.address(other).clone();
            let found = tokio::task::spawn_blocking(move || {
                first_before(&dir, run, since, &address).map_err(|error| error.to_string())
            });
            let found = match found.await.unwrap_or_else(|error| Err(error.to_string())) {
                // No run has touched it since then.
                Ok(None) => continue,
                Ok(Some((Before { withheld: None, seen, .. }, after))) => Ok((seen, after)),
                Ok(Some((Before { withheld: Some(why), .. }, _))) | Err(why) => Err(why),
            };
            match self.way_back(other, found).await? {
                Ok(steps) => back.extend(steps),
                Err(why) => lost += &format!("{path} would stay as it is now ({why}); "),
            }
        }
        Ok((back, lost))
    }

    async fn way_back(
        &mut self,
        index: usize,
        found: Result<(serde_json::Value, Option<After>), String>,
    ) -> Result<Result<Vec<Step>, String>, Stop> {
        let (before, after, bound) = match (found, self.bind(index)) {
            (Err(why), _) | (_, Err(super::look::Unseen { why, .. })) => return Ok(Err(why)),
            (Ok((before, after)), Ok(bound)) => (before, after, bound),
        };
        let ctx = Arc::clone(&self.ctx);
        let now = match self.patiently(bound.view(&ctx.config.sys, Depth::Whole)).await? {
            Ok(view) if after.is_some_and(|it| it.essence != essence_of(&view.essence)) => {
                return Ok(Err("somebody has changed it since".to_owned()));
            }
            Ok(view) => view.seen,
            Err(error) => return Ok(Err(error.to_string())),
        };
        if bound.essence(&before) == bound.essence(&now) {
            return Ok(Ok(Vec::new()));
        }
        Ok(match bound.undo(&before, &serde_json::Value::Null, &now) {
            Ok(Undo::Steps(steps)) => Ok(steps),
            Ok(Undo::Cannot(why)) | Err(why) => Err(why),
        })
    }

    fn guards(&self) -> Guards {
        let config = &self.ctx.config;
        Guards { state_dir: config.state_dir.clone(), sys: config.sys.clone() }
    }

    async fn look_from_outside(
        &mut self,
        predicates: &[Predicate],
    ) -> Result<Result<Vec<Found>, Unseen>, Stop> {
        let vantage = self.ctx.config.vantage.clone();
        self.patiently(look_once(vantage.as_deref(), predicates)).await
    }

    /// What the guard does stands in the log like a step.
    async fn pseudo_step(&mut self, index: usize, summary: &str) -> Result<StepId, Stop> {
        let id = self.next_step(index);
        self.started(&id, summary);
        self.commit().await?;
        Ok(id)
    }

    /// Looks until all is as it was, or the time is over.
    async fn confirm(
        &mut self,
        index: usize,
        guards: &Guards,
        stored: &Stored,
        watch: &Watch,
    ) -> Result<StepResult<()>, Stop> {
        let id = self.pseudo_step(index, "look at the host from outside").await?;
        let (mut why, mut pause) = (String::new(), PAUSE);
        loop {
            let left = watch.until.saturating_duration_since(Instant::now());
            let looked = tokio::time::timeout(left, self.look_from_outside(&watch.predicates)).await;
            why = match looked {
                // What was lacking at the look before says more.
                Err(_) if !why.is_empty() => why,
                Err(_) => "the controller could not be reached over a new connection in time".to_owned(),
                Ok(looked) => match looked? {
                    Err(unseen) => {
                        format!("the controller could not be reached over a new connection: {unseen}")
                    }
                    Ok(after) => lacking(&watch.predicates, &watch.before, &after).join("; "),
                },
            };
            if why.is_empty() {
                match guards.confirm(stored).await {
                    Ok(true) => {
                        self.end_step(id, StepEnd::Done, 0);
                        return Ok(Ok(()));
                    }
                    Ok(false) => why = "it was seen to be good too late".to_owned(),
                    Err(error) => why = error.to_string(),
                }
                break;
            }
            if *self.cancel.borrow() || Instant::now() + pause >= watch.until {
                break;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        let cancelled = *self.cancel.borrow();
        self.end_step(id, StepEnd::Error(why.clone()), 0);
        let taken = self.take_back_now(index, guards, stored, &why).await?;
        // First: what was lacking may be more than is told.
        Ok(Err(Failure { cancelled, ..Failure::new(format!("{taken}: {why}")) }))
    }

    /// Takes the change back; says how that went.
    async fn take_back_now(
        &mut self,
        index: usize,
        guards: &Guards,
        stored: &Stored,
        why: &str,
    ) -> Result<&'static str, Stop> {
        let id = self.pseudo_step(index, &format!("take the change back: {why}")).await?;
        // The timer may have been faster; what was at work then is over now.
        let revert = async {
            match stored.state() {
                Some(State::Reverted | State::GivenUp) => guards.revert_again(stored).await,
                _ => guards.revert(stored).await,
            }
        };
        Ok(match self.patiently(revert).await? {
            Ok(Ended::Confirmed) => {
                self.end_step(id, StepEnd::Error("it was confirmed already".to_owned()), 0);
                "the change stays"
            }
            Ok(Ended::Reverted | Ended::Nothing) => {
                self.end_step(id, StepEnd::Done, 0);
                "the change was taken back"
            }
            Ok(Ended::GivenUp) => {
                let end =
                    "what could not be put back is in the journal of this host: journalctl -t postern-agent";
                self.end_step(id, StepEnd::Error(end.to_owned()), 0);
                "the change was not wholly taken back, and this is not tried any more"
            }
            Err(error) => {
                self.end_step(id, StepEnd::Error(error.to_string()), 0);
                "the change was not wholly taken back yet, its guard goes on trying"
            }
        })
    }

    /// Takes back what an agent that is gone had not confirmed in this run; whether there was something.
    pub(super) async fn settle_guards(&mut self, again: bool) -> Result<bool, Stop> {
        let (guards, prefix) = (self.guards(), format!("{}-", self.run));
        match self.patiently(guards.settle(&prefix, again)).await? {
            Ok(settled) => {
                for (name, ended) in &settled {
                    tracing::warn!(guard = name, ?ended, "a guard of an earlier agent was settled");
                }
                Ok(settled.iter().any(|(_, ended)| matches!(ended, Ended::Reverted | Ended::GivenUp)))
            }
            // The units go on with it; a new guard is refused meanwhile.
            Err(error) => {
                tracing::error!(%error, "a guard of an earlier agent could not be settled");
                Ok(true)
            }
        }
    }
}

/// As much of it as one look takes.
fn watchable(predicates: &[Predicate]) -> Vec<Predicate> {
    let mut predicates: Vec<Predicate> = predicates.iter().take(MAX_PREDICATES).cloned().collect();
    for predicate in &mut predicates {
        if let Predicate::Login { keys, .. } = predicate {
            keys.truncate(MAX_KEYS);
        }
    }
    predicates
}

/// One look from outside, which comes to an end.
pub(super) async fn look_once(
    vantage: Option<&dyn Vantage>,
    predicates: &[Predicate],
) -> Result<Vec<Found>, Unseen> {
    let Some(vantage) = vantage else {
        return Err(Unseen::now("this agent has no link over which it could be confirmed"));
    };
    let looked = tokio::time::timeout(LOOK, vantage.look(predicates)).await;
    looked.unwrap_or_else(|_| Err(Unseen::now("the controller did not answer in time")))
}
