//! Following a run to its end: over a daemon that restarts, and until the user has seen enough.

use std::time::Duration;

use postern_proto::event::RunState;
use postern_proto::ids::RunId;
use tokio::time::Instant;

use super::Context;
use super::error::CliError;
use crate::client::{Client, ClientError, RunInfo, Update, UpdateKind, Updates};

/// How long a daemon that went away may stay away.
const AWAY: Duration = Duration::from_secs(60);
/// How long the rest of a run that is over may take to arrive.
const REST: Duration = Duration::from_secs(10);

/// Said when it did not arrive.
pub(crate) const CUT: &str = "warning: cut off here: the rest of this run's output has not arrived; \
                              `postern run logs` shows it later";

/// How following ended.
#[derive(Debug)]
pub(crate) enum Followed {
    /// The run is over.
    Over(RunInfo),
    /// The user pressed Ctrl-C, or nobody reads what is written: the run goes on.
    Left(Option<RunInfo>),
}

/// Follows until the run is over. Each update comes once and in order.
pub(crate) async fn follow(
    context: &Context,
    client: &mut Client,
    mut updates: Updates,
    interrupt: &mut Interrupt,
    mut on_update: impl FnMut(&Update),
) -> Result<Followed, CliError> {
    let mut run: Option<RunInfo> = None;
    let mut state: Option<RunState> = None;
    let mut cursor = 0;
    loop {
        let is_over = state.is_some_and(RunState::is_final);
        let next = tokio::select! {
            next = next(context, &mut updates, is_over) => next,
            () = interrupt.wait() => {
                if run.is_none() {
                    run = first(&mut updates).await;
                }
                return Ok(Followed::Left(run));
            }
        };
        match next {
            Ok(Some(update)) => {
                // After a reconnect: what was seen is not shown again.
                if update.cursor <= cursor && cursor != 0 && !matches!(update.kind, UpdateKind::Run(_)) {
                    continue;
                }
                cursor = cursor.max(update.cursor);
                if let UpdateKind::Run(info) = &update.kind {
                    state = Some(info.state);
                    run = Some(info.clone());
                }
                on_update(&update);
                if context.out.is_broken() {
                    return Ok(Followed::Left(run));
                }
            }
            Ok(None) => match run {
                Some(run) if is_over => return Ok(Followed::Over(run)),
                Some(ref info) => updates = again(context, client, info.id, cursor).await?,
                None => return Err(ClientError::Answer("a run without any update".into()).into()),
            },
            Err(error) if error.is_connection_lost() => match &run {
                Some(info) => updates = again(context, client, info.id, cursor).await?,
                None => {
                    return Err(CliError::from(error)
                        .hint("it is not known whether the run was started: see `postern runs`"));
                }
            },
            Err(error) => return Err(error.into()),
        }
    }
}

/// The run itself, which comes first: who leaves must be able to cancel it, or to say its name.
async fn first(updates: &mut Updates) -> Option<RunInfo> {
    match tokio::time::timeout(REST, updates.next()).await {
        Ok(Ok(Some(Update { kind: UpdateKind::Run(run), .. }))) => Some(run),
        _ => None,
    }
}

async fn next(
    context: &Context,
    updates: &mut Updates,
    is_over: bool,
) -> Result<Option<Update>, ClientError> {
    if !is_over {
        return updates.next().await;
    }
    match tokio::time::timeout(REST, updates.next()).await {
        Ok(update) => update,
        Err(_) => {
            context.out.tell(CUT);
            Ok(None)
        }
    }
}

/// Finds the daemon again, or starts one, and goes on behind the cursor.
async fn again(context: &Context, client: &mut Client, run: RunId, cursor: u64) -> Result<Updates, CliError> {
    let end = Instant::now() + AWAY;
    context.out.note("lost the daemon; the run goes on, looking for the daemon again");
    let mut pause = Duration::from_millis(50);
    loop {
        let attempt = async {
            let mut fresh = context.connect().await?;
            let updates = fresh.follow(run, cursor).await?;
            Ok::<_, CliError>((fresh, updates))
        };
        match attempt.await {
            Ok((fresh, updates)) => {
                *client = fresh;
                return Ok(updates);
            }
            Err(error) if Instant::now() >= end => {
                return Err(error.hint(format!("the run goes on: `postern run show {run}` later")));
            }
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// Ctrl-C, for one command. The first one is a wish; the second ends the process.
pub(crate) struct Interrupt {
    pressed: tokio::sync::watch::Receiver<bool>,
}

impl Interrupt {
    /// Begins to listen.
    pub(crate) fn listen() -> Self {
        let (to, pressed) = tokio::sync::watch::channel(false);
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                let _ = to.send(true);
                if tokio::signal::ctrl_c().await.is_ok() {
                    std::process::exit(130);
                }
            }
        });
        Self { pressed }
    }

    /// A handle for another task.
    pub(crate) fn clone_handle(&self) -> Self {
        Self { pressed: self.pressed.clone() }
    }

    /// Whether it was pressed.
    pub(crate) fn is_pressed(&self) -> bool {
        *self.pressed.borrow()
    }

    /// Returns when it was pressed.
    pub(crate) async fn wait(&mut self) {
        if self.pressed.wait_for(|pressed| *pressed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Interrupt {
        /// One that was pressed already.
        pub(crate) fn pressed() -> Self {
            Self { pressed: tokio::sync::watch::channel(true).1 }
        }
    }
}
