//! Secrets that an agent asks for: how often it may, and how the answer goes out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use postern_proto::ids::{RunId, SecretRef};

use super::{Effect, Effects, Now, Session};
use crate::daemon::wire::ControllerFrame;
use crate::store::{OpError, Revealed};

/// Questions of one session within [`WINDOW`]: a run asks once, and once more after each reconnect.
const MAX_ASKS: usize = 64;
const WINDOW: Duration = Duration::from_secs(60);
/// Values in one frame, bytes: a frame must fit what an agent takes, and the largest value does.
const FRAME: usize = 1024 * 1024;

/// When the last questions came.
#[derive(Default)]
pub(super) struct Asks(VecDeque<Duration>);

impl Asks {
    /// The error is when the next one is admitted, from now on: there were too many of late.
    fn admit(&mut self, now: Duration) -> Result<(), Duration> {
        while self.0.front().is_some_and(|at| *at + WINDOW <= now) {
            self.0.pop_front();
        }
        match self.0.front() {
            Some(first) if self.0.len() >= MAX_ASKS => Err((*first + WINDOW).saturating_sub(now)),
            _ => {
                self.0.push_back(now);
                Ok(())
            }
        }
    }
}

impl Session {
    /// Whether the run may have them is decided in the store, in one look at the run, its host and its plan.
    pub(super) fn wanted(&mut self, run: RunId, secrets: Vec<SecretRef>, now: Now, effects: &mut Effects) {
        let Err(wait) = self.asks.admit(now.mono) else {
            effects.push(Effect::Reveal { run, epoch: self.epoch, secrets });
            return;
        };
        let why = format!("asked for too often; ask again in {} s", wait.as_secs() + 1);
        let values = secrets.into_iter().map(|secret| Revealed { secret, value: Err(why.clone()) });
        // At least one: 0 is an answer for good.
        let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        answer(run, values.collect(), wait, effects);
    }

    pub(super) fn revealed(
        &mut self,
        run: RunId,
        result: Result<Vec<Revealed>, OpError>,
        effects: &mut Effects,
    ) {
        match result {
            Ok(values) => answer(run, values, 0, effects),
            Err(error) => self.store_failed(&error, effects),
        }
    }
}

fn answer(run: RunId, values: Vec<Revealed>, retry_after_ms: u64, effects: &mut Effects) {
    let mut withheld: BTreeMap<&str, Vec<SecretRef>> = BTreeMap::new();
    for it in &values {
        if let Err(why) = &it.value {
            withheld.entry(why).or_default().push(it.secret.clone());
        }
    }
    let withheld = withheld.into_iter();
    effects.extend(withheld.map(|(why, secrets)| Effect::Withheld { run, secrets, why: why.to_owned() }));
    let (mut frame, mut bytes) = (Vec::new(), 0);
    for value in values {
        let more = value.value.as_ref().map_or(0, |value| value.expose().len());
        if bytes + more > FRAME {
            let values = std::mem::take(&mut frame);
            effects.push(Effect::Send(ControllerFrame::Secrets { run, values, retry_after_ms }));
            bytes = 0;
        }
        bytes += more;
        frame.push(value);
    }
    effects.push(Effect::Send(ControllerFrame::Secrets { run, values: frame, retry_after_ms }));
}
