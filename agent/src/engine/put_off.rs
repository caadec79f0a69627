//! What was begun and only has to be waited for: what does not need it is worked on before its wait.
//!
//! Nothing is done at the same time. The attempt stays open, and its last steps are performed when nothing else can go
//! on: by then most of what they wait for has come about by itself.

use std::time::Instant;

use super::run::{Failure, RunTask, Stop, refusal, summary_of};
use crate::resources::Step;

/// An attempt that only has its waits before it.
pub(super) struct PutOff {
    /// The waits.
    steps: Vec<Step>,
    /// What was changed.
    diff: String,
    /// What was done, the waits with it.
    done: String,
    began: Instant,
}

impl RunTask {
    /// Performs these steps up to the last `waits`, which are left for later.
    pub(super) async fn put_off(
        &mut self,
        index: usize,
        mut steps: Vec<Step>,
        waits: usize,
        diff: String,
        began: Instant,
    ) -> Result<(), Stop> {
        let (address, done) = (self.address(index).clone(), summary_of(&steps));
        // For the waits as well: no later step of another resource takes their room.
        if let Err(error) = self.room_for_steps(&address, &steps, false).await {
            let refused = Err(Failure::new(refusal(error).message));
            return self.conclude(&[index], vec![diff], refused, &done, began).await;
        }
        let later = steps.split_off(steps.len().saturating_sub(waits));
        match self.perform(index, &steps, None, true).await? {
            Ok(_) => drop(self.put_off.insert(index, PutOff { steps: later, diff, done, began })),
            failed => self.conclude(&[index], vec![diff], failed, &done, began).await?,
        }
        Ok(())
    }

    /// Its waits, and what is in force after them.
    pub(super) async fn finish_put_off(&mut self, index: usize) -> Result<(), Stop> {
        let Some(PutOff { steps, diff, done, began }) = self.put_off.remove(&index) else { return Ok(()) };
        let result = self.perform(index, &steps, None, false).await?;
        self.conclude(&[index], vec![diff], result, &done, began).await
    }

    /// An operator has ended the run: nothing is waited for any more. They have acted, so what they are now is kept
    /// for their undo.
    pub(super) async fn cancel_put_off(&mut self) -> Result<(), Stop> {
        while let Some((index, PutOff { steps, diff, done, began })) = self.put_off.pop_first() {
            let result = Err(not_waited_for(&summary_of(&steps)));
            self.conclude(&[index], vec![diff], result, &done, began).await?;
        }
        // Also those that were to be looked at again after a restart.
        for index in 0..self.past.len() {
            if self.past[index].acted && self.past[index].outcome.is_none() {
                let begun = Failure::new("an earlier attempt, which was cut off, had begun it".to_owned());
                let result = Err(Failure { cancelled: true, ..begun });
                self.conclude(&[index], vec![], result, "", Instant::now()).await?;
            }
        }
        Ok(())
    }

    /// Those that an earlier agent had put off are looked at again, which shows whether there is still something to
    /// wait for.
    pub(super) async fn recover_put_off(
        &mut self,
        indices: &[usize],
        why: &str,
        began: Instant,
    ) -> Result<(), Stop> {
        for index in indices {
            if *self.cancel.borrow() {
                self.resume(&[*index], Err(not_waited_for("what it had begun")), began).await?;
            } else {
                self.retry_or_tell(&[*index], why, began);
            }
        }
        Ok(())
    }
}

fn not_waited_for(what: &str) -> Failure {
    Failure { cancelled: true, ..Failure::new(format!("before {what}, which was left for later")) }
}
