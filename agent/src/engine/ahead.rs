//! Looks at resources before their turn, several at once, while nothing has been changed: a run that finds
//! everything in place then takes as long as its slowest looks, not as long as all of them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_util::task::AbortOnDropHandle;

use super::run::RunTask;
use crate::resources::{Depth, ObserveError, View};

/// Looks that were begun and not used yet: what they saw is held in memory.
const HELD: usize = 64;

/// A look that was begun; dropping it ends it.
pub(super) struct Looking(AbortOnDropHandle<Result<View, ObserveError>>);

impl Future for Looking {
    type Output = Result<View, ObserveError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|done| done.unwrap_or_else(|error| Err(ObserveError::Broken(error))))
    }
}

/// Looks before their turn.
#[derive(Default)]
pub(super) struct Ahead(HashMap<usize, Looking>);

impl Ahead {
    pub(super) fn take(&mut self, index: usize) -> Option<Looking> {
        self.0.remove(&index)
    }

    /// Something was changed: what was seen before is not what is there now.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl RunTask {
    /// Begins looks at this resource and at those after it. The caller makes sure that nothing was changed yet.
    pub(super) fn look_ahead(&mut self, from: usize) {
        for index in from..self.past.len() {
            let under_way = self.ahead.0.values().filter(|look| !look.0.is_finished()).count();
            if under_way >= self.ctx.config.limits.look_ahead || self.ahead.0.len() >= HELD {
                return;
            }
            if self.ahead.0.contains_key(&index) || self.past[index].outcome.is_some() {
                continue;
            }
            if self.terms.done.contains(self.address(index)) {
                continue;
            }
            let Some(Some(bound)) = self.bound.get(index) else { continue };
            if bound.foreseen().is_some() || !bound.ahead() {
                continue;
            }
            let (bound, ctx) = (Arc::clone(bound), Arc::clone(&self.ctx));
            let look = tokio::spawn(async move { bound.view(&ctx.config.sys, Depth::Cheap).await });
            self.ahead.0.insert(index, Looking(AbortOnDropHandle::new(look)));
        }
    }
}
