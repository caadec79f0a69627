//! `postern run resume` and `postern run undo`: a new run out of an old one.

use super::attend::{Task, What, attend, waits};
use super::error::CliError;
use super::follow::Interrupt;
use super::{Context, Exit, clean, runs};
use crate::client::{Client, HostInfo, RunInfo};

pub(crate) async fn resume(context: &Context, text: &str) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let (run, host) = find(&mut client, text).await?;
    let what = if run.undoes.is_some() { What::Undo } else { What::Apply };
    let task = Task { host: &host, what, check: run.check, prefixed: false };
    begin(context, task, "resuming", &run);
    let updates = client.resume(run.id).await?;
    attend(context, &mut client, updates, task, &mut Interrupt::listen(), |_| {}).await
}

pub(crate) async fn undo(context: &Context, text: &str, check: bool) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let (run, host) = find(&mut client, text).await?;
    let task = Task { host: &host, what: What::Undo, check, prefixed: false };
    begin(context, task, if check { "checking the undo of" } else { "undoing" }, &run);
    let updates = client.undo(run.id, check).await?;
    attend(context, &mut client, updates, task, &mut Interrupt::listen(), |_| {}).await
}

fn begin(context: &Context, task: Task<'_>, doing: &str, run: &RunInfo) {
    if !context.out.json {
        let (name, origin) = (clean::line(&task.host.name), clean::line(&run.origin));
        context.out.note(&format!("{name}: {doing} run {} ({origin})", run.id));
    }
    waits(context, task.host);
}

/// The run, and its host as it is now.
async fn find(client: &mut Client, text: &str) -> Result<(RunInfo, HostInfo), CliError> {
    let run = runs::look_up(client, text).await?;
    let host = client.hosts().await?.into_iter().find(|host| host.id == run.host_id);
    let host = host.ok_or_else(|| {
        let name = &run.host_name;
        CliError::usage("not-found", format!("the host of run {}, {name}, is not on record any more", run.id))
            .hint("what was done on a host that was forgotten can neither be resumed nor undone")
    })?;
    Ok((run, host))
}
