//! `postern exec`: one command on one host as if it ran here, or on many with their names before each line.

use std::collections::HashMap;
use std::sync::Arc;

use postern_proto::event::{EventKind, LogBody, LogFrame, RunState, StepEnd, Stream};
use postern_proto::spec::{CommandSpec, ResourceSpec as _};
use serde_json::json;

use super::args::Exec;
use super::clean::{self, Cleaner};
use super::error::CliError;
use super::follow::{Followed, Interrupt, follow};
use super::out::Out;
use super::selector::Selector;
use super::view::truncated;
use super::{Context, Exit, apply, json as documents};
use crate::client::{Client, HostInfo, Link, RunInfo, Update, UpdateKind};

pub(crate) async fn exec(context: &Context, args: Exec) -> Result<Exit, CliError> {
    let selector = Selector::parse(&args.hosts)?;
    let spec = CommandSpec {
        argv: Some(args.command),
        user: args.user,
        timeout_s: args.timeout.map(|time| time.as_secs()),
        ..CommandSpec::default()
    };
    if let Some(error) = spec.validate().first() {
        return Err(CliError::usage("usage", format!("the command: {error}")));
    }
    let spec = serde_json::to_vec(&spec).map_err(|error| CliError::usage("internal", error.to_string()))?;
    let mut client = context.connect().await?;
    let hosts = selector.choose(client.hosts().await?)?;
    let mut interrupt = Interrupt::listen();
    match hosts.as_slice() {
        [host] if selector.is_one_name() => {
            one(context, &mut client, host, spec, false, &mut interrupt).await
        }
        _ => {
            let spec = Arc::new(spec);
            let pressed = interrupt.clone_handle();
            apply::on_each(context, hosts, pressed, move |context, host| {
                let (mut client, spec) = (client.clone(), spec.clone());
                let mut interrupt = interrupt.clone_handle();
                async move { one(&context, &mut client, &host, spec.to_vec(), true, &mut interrupt).await }
            })
            .await
        }
    }
}

async fn one(
    context: &Context,
    client: &mut Client,
    host: &HostInfo,
    spec: Vec<u8>,
    prefixed: bool,
    interrupt: &mut Interrupt,
) -> Result<Exit, CliError> {
    let out = &context.out;
    if host.link != Link::Up {
        let name = clean::line(&host.name);
        out.note(&format!(
            "{name}: its agent is not connected; the command waits for it (Ctrl-C cancels it)"
        ));
    }
    let updates = client.exec(host.id, spec).await?;
    let mut shown = Shown::new(out.clone(), prefixed.then_some(host.name.as_str()));
    let mut end = End::default();
    let followed = follow(context, client, updates, interrupt, |update| {
        end.take(update);
        if out.json {
            out.document(&documents::update(update, &host.name));
        } else if let UpdateKind::Log(frame) = &update.kind {
            shown.frame(frame);
        }
    })
    .await?;
    shown.finish();
    match followed {
        Followed::Over(run) => Ok(ended(context, host, &run, &end, prefixed)),
        Followed::Left(run) => {
            // Nobody waits for it any more: as with ssh, it ends with us.
            if let Some(run) = run {
                client.cancel(run.id).await?;
                out.tell(&format!("{}: cancelled", clean::line(&host.name)));
            } else {
                out.tell(&format!(
                    "{}: it is not known whether the command was started: see `postern runs`",
                    clean::line(&host.name)
                ));
            }
            Ok(Exit::Failed)
        }
    }
}

/// How the command ended.
#[derive(Debug, Default)]
struct End {
    step: Option<StepEnd>,
    /// What the resource or the run said of a failure.
    message: String,
}

impl End {
    fn take(&mut self, update: &Update) {
        if let UpdateKind::Event(event) = &update.kind {
            match &event.kind {
                EventKind::StepFinished { end, .. } => self.step = Some(end.clone()),
                EventKind::ResourceFinished { message, .. } | EventKind::Finished { message, .. }
                    if !message.is_empty() && self.message.is_empty() =>
                {
                    self.message.clone_from(message);
                }
                _ => {}
            }
        }
    }
}

fn ended(context: &Context, host: &HostInfo, run: &RunInfo, end: &End, prefixed: bool) -> Exit {
    let out = &context.out;
    let is_ok =
        run.state == RunState::Ok && matches!(end.step, Some(StepEnd::Exit(0) | StepEnd::Done) | None);
    let (exit_code, signal) = match &end.step {
        Some(StepEnd::Exit(code)) => (Some(*code), None),
        Some(StepEnd::Signal(signal)) => (None, Some(*signal)),
        _ => (None, None),
    };
    let message = if run.message.is_empty() { &end.message } else { &run.message };
    if out.json {
        out.document(&json!({
            "schema": "postern/exec-result/v1",
            "host": host.name, "host_id": host.id.to_string(), "run": run.id.to_string(),
            "state": run.state.as_str(), "exit_code": exit_code, "signal": signal,
            "message": if message.is_empty() { None } else { Some(message) },
        }));
        return if is_ok { Exit::Ok } else { Exit::Failed };
    }
    if is_ok {
        return Exit::Ok;
    }
    let name = clean::line(&host.name);
    let told = match (&end.step, run.state) {
        (Some(StepEnd::Exit(code)), RunState::Ok | RunState::Failed) if *code != 0 => {
            format!("exit code {code}")
        }
        (Some(StepEnd::Signal(signal)), RunState::Ok | RunState::Failed) => {
            format!("ended by signal {signal}")
        }
        (Some(StepEnd::Error(error)), _) => clean::line(error),
        _ if !message.is_empty() => format!("{}: {}", run.state.as_str(), clean::line(message)),
        _ => run.state.as_str().to_owned(),
    };
    // Said even when quiet: the exit code of this command does not carry it.
    if prefixed {
        out.tell(&format!("{name}: {told}"));
    } else {
        out.tell(&format!("postern: {name}: {told}"));
    }
    Exit::Failed
}

/// Output on its way to our own stdout and stderr.
struct Shown {
    out: Out,
    prefix: Option<String>,
    /// For a terminal, or with names before the lines: what came last of each stream of the command.
    cleaners: HashMap<Stream, (Cleaner, String)>,
}

impl Shown {
    fn new(out: Out, host: Option<&str>) -> Self {
        let prefix = host.map(|name| format!("{}: ", clean::line(name)));
        Self { out, prefix, cleaners: HashMap::new() }
    }

    fn write(&self, stream: Stream, bytes: &[u8]) {
        match stream {
            Stream::Stdout => self.out.raw(bytes),
            Stream::Stderr => self.out.raw_error(bytes),
        }
    }

    fn is_terminal(&self, stream: Stream) -> bool {
        match stream {
            Stream::Stdout => self.out.stdout_is_terminal,
            Stream::Stderr => self.out.stderr_is_terminal,
        }
    }

    fn frame(&mut self, frame: &LogFrame) {
        let stream = frame.stream;
        let data = match &frame.body {
            LogBody::Data(data) => data,
            LogBody::Truncated { bytes, .. } => {
                self.out.tell(&truncated(*bytes));
                return;
            }
        };
        if self.prefix.is_none() && !self.is_terminal(stream) {
            // Byte for byte: it may be a file.
            self.write(stream, data);
            return;
        }
        let (cleaner, line) = self.cleaners.entry(stream).or_default();
        let text = cleaner.push(data);
        let Some(prefix) = &self.prefix else {
            self.write(stream, text.as_bytes());
            return;
        };
        line.push_str(&text);
        let mut lines = String::new();
        while let Some((first, rest)) = line.split_once('\n') {
            lines.push_str(&format!("{prefix}{first}\n"));
            *line = rest.to_owned();
        }
        // A line without end is shown in pieces, so that it needs no memory without end.
        if line.len() > 8192 {
            lines.push_str(&format!("{prefix}{line}\n"));
            line.clear();
        }
        if !lines.is_empty() {
            self.write(stream, lines.as_bytes());
        }
    }

    fn finish(&mut self) {
        let prefix = self.prefix.clone();
        for (stream, (mut cleaner, line)) in std::mem::take(&mut self.cleaners) {
            let rest = line + &cleaner.finish();
            match &prefix {
                _ if rest.is_empty() => {}
                Some(prefix) => self.write(stream, format!("{prefix}{rest}\n").as_bytes()),
                None => self.write(stream, rest.as_bytes()),
            }
        }
    }
}
