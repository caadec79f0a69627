//! `postern runs` and `postern run`: what was done, and ending it.

use std::time::{Duration, Instant};

use postern_proto::event::{LogBody, RunState, Stream};
use postern_proto::ids::RunId;
use serde_json::json;

use super::args::Runs;
use super::clean::Cleaner;
use super::error::CliError;
use super::follow::{CUT, Followed, Interrupt, follow};
use super::hosts::ago;
use super::out::{Volume, table};
use super::view::{View, truncated};
use super::{Context, Exit, attend, clean, json as documents};
use crate::client::{Client, RunInfo, Update, UpdateKind, Updates};

/// Runs that are looked through for the end of an id.
const LOOKED_THROUGH: u32 = 1000;
/// Nothing came for so long: that is all there is of a run that goes on.
const PAUSE: Duration = Duration::from_millis(500);
/// A run that goes on and writes without a pause is looked at for so long.
const LOOK: Duration = Duration::from_secs(30);
/// How long the daemon may take to send what it has.
const ANSWER: Duration = Duration::from_secs(10);

pub(crate) async fn list(context: &Context, args: Runs) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let runs =
        client.runs(args.host.as_deref().unwrap_or_default(), args.limit.clamp(1, LOOKED_THROUGH)).await?;
    let out = &context.out;
    if out.json {
        let runs: Vec<_> = runs.iter().map(documents::run).collect();
        out.document(&json!({"schema": "postern/runs/v1", "runs": runs}));
        return Ok(Exit::Ok);
    }
    if runs.is_empty() {
        out.note("no runs yet");
        return Ok(Exit::Ok);
    }
    let mut rows = vec![["RUN", "HOST", "STATE", "STARTED", "WHAT"].map(str::to_owned).to_vec()];
    rows.extend(runs.iter().map(|run| {
        let what = match (run.check, run.resumes, run.undoes) {
            (true, _, Some(_)) => " (check of an undo)",
            (true, ..) => " (check)",
            (false, _, Some(_)) => " (undo)",
            (false, Some(_), None) => " (resumed)",
            (false, None, None) => "",
        };
        vec![
            short(run),
            clean::line(&run.host_name),
            run.state.as_str().to_owned(),
            ago(run.created_ms),
            format!("{}{what}", clean::line(&run.origin)),
        ]
    }));
    table(&rows).iter().for_each(|line| out.line(line));
    Ok(Exit::Ok)
}

/// The end of an id is random, its beginning the time: what tells runs apart is at the end.
fn short(run: &RunInfo) -> String {
    let id = run.id.to_string();
    id.rsplit('-').next().unwrap_or(&id).to_owned()
}

/// The run with this id, or the one whose id ends so.
async fn find(client: &mut Client, text: &str) -> Result<RunId, CliError> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let fitting = text.len() >= 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if !fitting {
        return Err(CliError::usage("usage", format!("{text:?} is no run's id, nor the end of one"))
            .hint("`postern runs` lists them"));
    }
    let runs = client.runs("", LOOKED_THROUGH).await?;
    let mut ending = runs.into_iter().map(|run| run.id).filter(|id| id.to_string().ends_with(text));
    match (ending.next(), ending.next()) {
        (Some(id), None) => Ok(id),
        (None, _) => Err(CliError::usage("not-found", format!("no run's id ends in {text}"))
            .hint("`postern runs` lists them")),
        (Some(_), Some(_)) => Err(CliError::usage("ambiguous", format!("several runs' ids end in {text}"))
            .hint("give more of the id")),
    }
}

/// The run with this id, or the one whose id ends so, as it is now.
pub(crate) async fn look_up(client: &mut Client, text: &str) -> Result<RunInfo, CliError> {
    let id = find(client, text).await?;
    let mut updates = client.follow(id, 0).await?;
    // The run itself comes first.
    match tokio::time::timeout(ANSWER, updates.next()).await {
        Ok(update) => match update? {
            Some(Update { kind: UpdateKind::Run(run), .. }) => Ok(run),
            _ => Err(CliError::usage("not-found", format!("nothing is known of run {id}"))),
        },
        Err(_) => Err(CliError::usage("deadline-exceeded", "the daemon says nothing of the run")),
    }
}

/// The next of what there is so far; `state` is the run's, once it came. A run that is over is read to the end of
/// its stream. Of one that goes on, the daemon sends at once what it has; then nothing comes for a while.
async fn so_far(
    context: &Context,
    updates: &mut Updates,
    state: Option<RunState>,
    until: Instant,
) -> Result<Option<Update>, CliError> {
    let wait = match state {
        Some(state) if !state.is_final() && Instant::now() >= until => {
            context.out.tell("warning: stopped here: the run goes on; `postern run logs` follows it");
            return Ok(None);
        }
        Some(state) if !state.is_final() => PAUSE,
        _ => ANSWER,
    };
    match tokio::time::timeout(wait, updates.next()).await {
        Ok(update) => Ok(update?),
        Err(_) => {
            match state {
                Some(state) if state.is_final() => context.out.tell(CUT),
                Some(_) => {}
                None => {
                    return Err(CliError::usage("deadline-exceeded", "the daemon says nothing of the run"));
                }
            }
            Ok(None)
        }
    }
}

pub(crate) async fn show(context: &Context, text: &str) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let id = find(&mut client, text).await?;
    let mut updates = client.follow(id, 0).await?;
    let out = &context.out;
    let mut view = View::new(None, out.volume, out.volume > Volume::Quiet);
    let mut run: Option<RunInfo> = None;
    let until = Instant::now() + LOOK;
    while let Some(update) = so_far(context, &mut updates, run.as_ref().map(|run| run.state), until).await? {
        if let UpdateKind::Run(info) = &update.kind {
            if run.is_none() && !out.json {
                head(info).iter().for_each(|line| out.line(line));
            }
            run = Some(info.clone());
        }
        let name = run.as_ref().map(|run| run.host_name.clone()).unwrap_or_default();
        if out.json {
            out.document(&documents::update(&update, &name));
        } else {
            attend::say(out, &view.update(&update));
        }
        if out.is_broken() {
            break;
        }
    }
    let Some(run) = run else {
        return Err(CliError::usage("not-found", format!("nothing is known of run {id}")));
    };
    if !out.json {
        let why = match (&view.parked, run.state) {
            (Some(why), RunState::Parked) => why,
            _ => &run.message,
        };
        let why = if why.is_empty() { String::new() } else { format!(": {}", clean::line(why)) };
        out.line(&format!("{}: {}{why}", run.state.as_str(), view.counts.text()));
        if let Some(next) = next(&run) {
            out.note(&next);
        }
    }
    Ok(Exit::Ok)
}

/// What the run is.
fn head(run: &RunInfo) -> Vec<String> {
    let check = if run.check { " (check)" } else { "" };
    let (name, origin) = (clean::line(&run.host_name), clean::line(&run.origin));
    let started = ago(run.created_ms);
    let mut lines = vec![format!("run {} on {name}: {origin}{check}, started {started}", run.id)];
    lines.extend(run.plan.map(|plan| format!("plan {plan}")));
    lines.extend(run.resumes.map(|other| format!("resumes run {other}")));
    lines.extend(run.undoes.map(|other| format!("takes back what run {other} did")));
    lines
}

/// What can be done with a run that is where it is. Of one that is parked it was said where it parked.
fn next(run: &RunInfo) -> Option<String> {
    let id = run.id;
    match run.state {
        RunState::Queued | RunState::Running => {
            Some(format!("hint: it goes on; `postern run logs {id}` follows it"))
        }
        RunState::Failed | RunState::Interrupted | RunState::Cancelled
            if !run.check && run.undoes.is_none() =>
        {
            Some(format!(
                "hint: `postern run resume {id}` goes on from there, `postern run undo {id}` takes back what it did"
            ))
        }
        _ => None,
    }
}

pub(crate) async fn logs(context: &Context, text: &str, no_follow: bool) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let id = find(&mut client, text).await?;
    let mut updates = client.follow(id, 0).await?;
    let out = &context.out;
    let mut cleaners: [Cleaner; 2] = Default::default();
    let mut show = |kind: &UpdateKind| {
        let UpdateKind::Log(frame) = kind else { return };
        if out.json {
            return;
        }
        let [stdout, stderr] = &mut cleaners;
        match (&frame.body, frame.stream) {
            (LogBody::Truncated { bytes, .. }, _) => out.tell(&truncated(*bytes)),
            (LogBody::Data(data), Stream::Stdout) if !out.stdout_is_terminal => out.raw(data),
            (LogBody::Data(data), Stream::Stderr) if !out.stderr_is_terminal => out.raw_error(data),
            (LogBody::Data(data), Stream::Stdout) => out.raw(stdout.push(data).as_bytes()),
            (LogBody::Data(data), Stream::Stderr) => out.raw_error(stderr.push(data).as_bytes()),
        }
    };
    let mut host = String::new();
    let mut each = |update: &Update| {
        if let UpdateKind::Run(info) = &update.kind {
            host.clone_from(&info.host_name);
        }
        if out.json {
            out.document(&documents::update(update, &host));
        }
        show(&update.kind);
    };
    if no_follow {
        let (mut state, until) = (None, Instant::now() + LOOK);
        while let Some(update) = so_far(context, &mut updates, state, until).await? {
            if let UpdateKind::Run(info) = &update.kind {
                state = Some(info.state);
            }
            each(&update);
            if out.is_broken() {
                break;
            }
        }
        return Ok(Exit::Ok);
    }
    let mut interrupt = Interrupt::listen();
    match follow(context, &mut client, updates, &mut interrupt, each).await? {
        Followed::Over(run) if run.state != RunState::Ok => {
            out.note(&format!("the run is {}", run.state.as_str()));
            Ok(Exit::Failed)
        }
        _ => Ok(Exit::Ok),
    }
}

pub(crate) async fn cancel(context: &Context, text: &str) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let id = find(&mut client, text).await?;
    client.cancel(id).await?;
    if context.out.json {
        context.out.document(&json!({"schema": "postern/run-cancel/v1", "run": id.to_string()}));
    } else {
        context.out.line(&format!("run {id}: cancellation asked for"));
    }
    Ok(Exit::Ok)
}
