//! `postern apply`: profiles to hosts that were taken over, several at once.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use postern_proto::event::RunState;

use super::args::Apply;
use super::error::CliError;
use super::follow::{Followed, Interrupt, follow};
use super::out::{Out, Tone};
use super::selector::Selector;
use super::view::{Line, View};
use super::{Context, Exit, clean, compile, json};
use crate::client::{Client, HostInfo, Link, Order, RunInfo, UpdateKind};
use crate::profile::Compiled;

/// Hosts that are worked on at once.
pub(crate) const AT_ONCE: usize = 64;

pub(crate) async fn apply(context: &Context, args: Apply) -> Result<Exit, CliError> {
    let selector = Selector::parse(&args.hosts)?;
    let compiled = Arc::new(compile(context, &args.profiles, &args.values)?);
    let mut client = context.connect().await?;
    let hosts = selector.choose(client.hosts().await?)?;
    let mut interrupt = Interrupt::listen();
    if let [host] = hosts.as_slice() {
        return one(context, &mut client, host, &compiled, args.check, false, &mut interrupt).await;
    }
    let check = args.check;
    let pressed = interrupt.clone_handle();
    on_each(context, hosts, pressed, move |context, host| {
        let (mut client, compiled) = (client.clone(), compiled.clone());
        let mut interrupt = interrupt.clone_handle();
        async move { one(&context, &mut client, &host, &compiled, check, true, &mut interrupt).await }
    })
    .await
}

/// Does something on every host, bounded; says each failure; the worst exit wins. Nothing is begun any more
/// once Ctrl-C was pressed.
pub(crate) async fn on_each<F, W>(
    context: &Context,
    hosts: Vec<HostInfo>,
    interrupt: Interrupt,
    work: F,
) -> Result<Exit, CliError>
where
    F: Fn(Context, HostInfo) -> W,
    W: Future<Output = Result<Exit, CliError>> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for host in hosts {
        let (slots, name) = (slots.clone(), host.name.clone());
        let work = work(context.clone(), host);
        let interrupt = interrupt.clone_handle();
        tasks.spawn(async move {
            let _slot = slots.acquire_owned().await;
            if interrupt.is_pressed() {
                return (name, Err(CliError::failed("interrupted", "not started")));
            }
            (name, work.await)
        });
    }
    let mut exit = Exit::Ok;
    while let Some(done) = tasks.join_next().await {
        let this = match done {
            Ok((_, Ok(exit))) => exit,
            Ok((name, Err(mut error))) => {
                error.message = format!("{name}: {}", error.message);
                context.fail(&error);
                error.exit
            }
            Err(error) => {
                context.fail(&CliError::usage("internal", error.to_string()));
                Exit::Usage
            }
        };
        if this.code() > exit.code() {
            exit = this;
        }
    }
    Ok(exit)
}

/// Applies to one host and follows to the end.
pub(crate) async fn one(
    context: &Context,
    client: &mut Client,
    host: &HostInfo,
    compiled: &Compiled,
    check: bool,
    prefixed: bool,
    interrupt: &mut Interrupt,
) -> Result<Exit, CliError> {
    let out = &context.out;
    let (plan, _) = compiled.plan.to_bytes().map_err(|error| CliError::usage("plan", error.to_string()))?;
    let name = clean::line(&host.name);
    let count = compiled.plan.resources.len();
    let resources = if count == 1 { "one resource".to_owned() } else { format!("{count} resources") };
    let doing = if check { "checking" } else { "applying" };
    if !out.json {
        out.note(&format!("{name}: {doing} {} ({resources})", compiled.origin()));
    }
    if host.link != Link::Up {
        out.note(&format!(
            "{name}: its agent is not connected; the run waits for it (Ctrl-C lets it wait alone)"
        ));
    }
    let order = Order { check, origin: compiled.origin(), ..Order::default() };
    let updates = client.apply(host.id, plan, order).await?;
    let mut view = View::new(prefixed.then_some(host.name.as_str()), out.volume, check);
    let followed = follow(context, client, updates, interrupt, |update| {
        if out.json {
            out.document(&json::update(update, &host.name));
        } else {
            say(out, view.update(update));
        }
        if let UpdateKind::Event(_) = update.kind {
            // The view counts whatever is shown.
            if out.json {
                view.update(update);
            }
        }
    })
    .await?;
    match followed {
        Followed::Over(run) => Ok(summary(context, host, &run, &view, check)),
        Followed::Left(run) => {
            let id = run.map(|run| run.id.to_string()).unwrap_or_default();
            out.tell(&format!(
                "{name}: the run goes on without you; `postern run logs {id}` follows it, `postern run cancel {id}` ends it"
            ));
            Ok(Exit::Failed)
        }
    }
}

/// Shows lines of a run.
pub(crate) fn say(out: &Out, lines: Vec<Line>) {
    for line in lines {
        out.line(&format!("{}{}", out.paint(line.tone, &line.head), line.rest));
    }
}

/// The last line of a run, and how the command ends.
pub(crate) fn summary(context: &Context, host: &HostInfo, run: &RunInfo, view: &View, check: bool) -> Exit {
    let out = &context.out;
    let state = view.finished.as_ref().map_or(run.state, |(state, _)| *state);
    let is_ok = state == RunState::Ok && run.state == RunState::Ok;
    if out.json {
        let mut run = run.clone();
        if run.message.is_empty() {
            run.message = view.finished.as_ref().map(|(_, message)| message.clone()).unwrap_or_default();
        }
        out.document(&json::result("postern/apply-result/v1", host, &run, &view.counts));
        return if is_ok { Exit::Ok } else { Exit::Failed };
    }
    let name = clean::line(&host.name);
    let took = if run.finished_ms > run.created_ms {
        format!(
            " in {}",
            super::view::seconds(u64::try_from(run.finished_ms - run.created_ms).unwrap_or(0) * 1_000_000)
        )
    } else {
        String::new()
    };
    let word = match (is_ok, check) {
        (true, true) => out.paint(Tone::Good, "checked"),
        (true, false) => out.paint(Tone::Good, "ok"),
        (false, _) => out.paint(Tone::Bad, run.state.as_str()),
    };
    out.line(&format!("{name}: {word}: {}{took}", view.counts.text()));
    if is_ok {
        return Exit::Ok;
    }
    let said = [
        view.failure.as_ref().map(|(address, message)| format!("{address}: {message}")),
        view.finished.as_ref().map(|(_, message)| message.clone()),
        Some(run.message.clone()),
    ];
    let why = said.into_iter().flatten().find(|text| !text.is_empty());
    let why = why.unwrap_or_else(|| "no reason was given".into());
    let error = CliError::failed(&format!("run-{}", run.state.as_str()), format!("{}: {why}", host.name));
    let hint = match run.state {
        RunState::Refused => {
            "is the agent older than this program? `postern up … --bootstrap` upgrades it".to_owned()
        }
        RunState::Expired => "the host was away for too long: apply again when it is back".to_owned(),
        _ => format!("`postern run show {}` shows it again; apply again to go on from here", run.id),
    };
    context.fail(&error.hint(hint));
    Exit::Failed
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::cli::out::Volume;
    use crate::cli::{Env, Io};

    fn context() -> Context {
        let io = Io {
            stdout: Box::new(std::io::sink()),
            stderr: Box::new(std::io::sink()),
            stdout_is_terminal: false,
            stderr_is_terminal: false,
        };
        let here = std::path::Path::new("/");
        Context {
            env: Env::of(&[], here, here),
            out: Out::new(io, false, Volume::Quiet, true, false),
            state_dir: None,
        }
    }

    fn host(name: &str) -> HostInfo {
        HostInfo {
            id: postern_proto::ids::HostId::generate(),
            name: name.into(),
            ssh_address: String::new(),
            labels: Default::default(),
            link: Link::Up,
            agent_version: String::new(),
            os_id: String::new(),
            os_version: String::new(),
            arch: String::new(),
            hostname: String::new(),
            last_seen_ms: 0,
            peer: String::new(),
            detail: String::new(),
            vars: Default::default(),
            profiles: Vec::new(),
        }
    }

    #[tokio::test]
    async fn nothing_is_begun_after_ctrl_c() {
        let begun = Arc::new(AtomicUsize::new(0));
        let count = begun.clone();
        let hosts = (0..3).map(|n| host(&format!("h{n}"))).collect();
        let context = context();
        let exit = on_each(&context, hosts, Interrupt::pressed(), move |_, _| {
            let begun = count.clone();
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                Ok(Exit::Ok)
            }
        });
        assert_eq!(exit.await.unwrap(), Exit::Failed);
        assert_eq!(begun.load(Ordering::Relaxed), 0);
    }
}
