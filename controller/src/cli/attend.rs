//! A run from its first update to its last line: what `apply`, `up`, `run resume` and `run undo` show of it.

use postern_proto::event::{EventKind, RunEvent, RunState};

use super::error::CliError;
use super::follow::{Followed, Interrupt, follow};
use super::out::{Out, Tone};
use super::view::{Line, View, seconds};
use super::{Context, Exit, clean, json};
use crate::client::{Client, HostInfo, Link, RunInfo, UpdateKind, Updates};

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// What profiles say.
    Apply,
    /// Exactly what a person saw and approved.
    Reviewed,
    /// To take back what another run did.
    Undo,
    /// To open or close the port of SSH.
    SshPort,
}

/// What is said of a run around its own lines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task<'a> {
    /// Where it runs.
    pub(crate) host: &'a HostInfo,
    pub(crate) what: What,
    /// Nothing is changed, and what would change is shown.
    pub(crate) check: bool,
    /// Lines begin with the host's name: several are shown.
    pub(crate) prefixed: bool,
}

/// Said before a run is begun, where it will wait.
pub(crate) fn waits(context: &Context, host: &HostInfo) {
    if host.link != Link::Up {
        context.out.note(&format!(
            "{}: its agent is not connected; the run waits for it (Ctrl-C lets it wait alone)",
            clean::line(&host.name)
        ));
    }
}

/// Follows a run to its end and says how it ended. `on_event` sees every event.
pub(crate) async fn attend(
    context: &Context,
    client: &mut Client,
    updates: Updates,
    task: Task<'_>,
    interrupt: &mut Interrupt,
    mut on_event: impl FnMut(&RunEvent),
) -> Result<Exit, CliError> {
    let out = &context.out;
    let name = task.host.name.as_str();
    let mut view = View::new(task.prefixed.then_some(name), out.volume, task.check);
    let followed = follow(context, client, updates, interrupt, |update| {
        let lines = view.update(update);
        if out.json {
            out.document(&json::update(update, name));
        } else {
            say(out, &lines);
        }
        if let UpdateKind::Event(event) = &update.kind {
            on_event(event);
            moved(out, task, event);
        }
    })
    .await?;
    match followed {
        Followed::Over(run) => Ok(summary(context, task, &run, &view)),
        Followed::Left(run) => {
            out.end_activity();
            let name = clean::line(name);
            match run.map(|run| run.id) {
                Some(id) => out.tell(&format!(
                    "{name}: the run goes on without you; `postern run logs {id}` follows it, `postern run cancel {id}` \
                     ends it"
                )),
                None => out.tell(&format!(
                    "{name}: it is not known whether the run was started: see `postern runs`"
                )),
            }
            Ok(Exit::Failed)
        }
    }
}

/// The live line follows.
pub(crate) fn moved(out: &Out, task: Task<'_>, event: &RunEvent) {
    let Some(bar) = out.bar() else { return };
    let at = |text: &str| match task.prefixed {
        true => bar.at(&format!("{}: {text}", task.host.name)),
        false => bar.at(text),
    };
    match &event.kind {
        EventKind::Accepted { resources, .. } => bar.run_begins((*resources).into()),
        EventKind::ResourceStarted { address, .. } => at(address.as_str()),
        // One that was left for later goes on.
        EventKind::StepStarted { step, .. } => at(step.address.as_str()),
        // The first attempt at it moved the bar on.
        EventKind::ResourceFinished { attempt: 1, .. } => bar.done(),
        EventKind::Parked { why } => at(&format!("parked: {why}")),
        _ => {}
    }
}

/// Shows lines of a run, all at once.
pub(crate) fn say(out: &Out, lines: &[Line]) {
    if lines.is_empty() {
        return;
    }
    let text: String =
        lines.iter().map(|line| format!("{}{}\n", out.paint(line.tone, &line.head), line.rest)).collect();
    out.raw(text.as_bytes());
}

/// The last line of a run, and how the command ends.
fn summary(context: &Context, task: Task<'_>, run: &RunInfo, view: &View) -> Exit {
    let out = &context.out;
    let state = view.finished.as_ref().map_or(run.state, |(state, _)| *state);
    let is_ok = state == RunState::Ok && run.state == RunState::Ok;
    let exit = if is_ok { Exit::Ok } else { Exit::Failed };
    if out.json {
        let mut run = run.clone();
        run.host_name.clone_from(&task.host.name);
        if run.message.is_empty() {
            run.message = view.finished.as_ref().map(|(_, message)| message.clone()).unwrap_or_default();
        }
        let schema = match task.what {
            What::Undo => "postern/undo-result/v1",
            What::Apply | What::Reviewed | What::SshPort => "postern/apply-result/v1",
        };
        out.document(&json::result(schema, &run, &view.counts));
        return exit;
    }
    let name = clean::line(&task.host.name);
    let took = u64::try_from(run.finished_ms - run.created_ms).unwrap_or(0);
    let took = if took > 0 { format!(" in {}", seconds(took * 1_000_000)) } else { String::new() };
    let word = match (is_ok, task.check, task.what) {
        (true, true, _) => out.paint(Tone::Good, "checked"),
        (true, false, What::Undo) => out.paint(Tone::Good, "undone"),
        (true, false, _) => out.paint(Tone::Good, "ok"),
        (false, ..) => out.paint(Tone::Bad, run.state.as_str()),
    };
    out.line(&format!("{name}: {word}: {}{took}", view.counts.text()));
    if !is_ok {
        context.fail(&failure(task, run, view));
    }
    exit
}

/// Why a run did not end well, and what to do next.
fn failure(task: Task<'_>, run: &RunInfo, view: &View) -> CliError {
    let said = [
        view.failure.as_ref().map(|(address, message)| format!("{address}: {message}")),
        view.finished.as_ref().map(|(_, message)| message.clone()),
        Some(run.message.clone()),
    ];
    let why = said.into_iter().flatten().find(|text| !text.is_empty());
    let why = why.unwrap_or_else(|| "no reason was given".into());
    let message = format!("{}: {why}", task.host.name);
    let error = CliError::failed(&format!("run-{}", run.state.as_str()), message);
    let id = run.id;
    error.hint(match run.state {
        RunState::Refused => {
            "is the agent older than this program? `postern up … --bootstrap` upgrades it".to_owned()
        }
        RunState::Expired => "the host was away for too long: ask again when it is back".to_owned(),
        _ if task.check => format!("`postern run show {id}` shows it again; nothing was changed"),
        _ if task.what == What::Reviewed && view.counts.changed == 0 => {
            "nothing was done; make a new preview with --plan-out and have that reviewed".to_owned()
        }
        _ if task.what == What::SshPort => {
            format!(
                "`postern run show {id}` shows it again, `postern ssh-port status {}` how it stands",
                task.host.name
            )
        }
        _ if task.what == What::Undo => {
            format!("`postern run show {id}` shows it again; undo again to go on from here")
        }
        _ => format!(
            "`postern run resume {id}` goes on from here, `postern run undo {id}` takes back what it did"
        ),
    })
}
