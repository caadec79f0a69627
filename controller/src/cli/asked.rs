//! One command on one host, whose output is read here instead of being shown.

use postern_proto::event::{EventKind, LogBody, StepEnd, Stream};
use postern_proto::spec::CommandSpec;

use super::Context;
use super::error::CliError;
use super::follow::{Followed, Interrupt, follow};
use crate::client::{Client, HostInfo, RunInfo, UpdateKind};

/// The most that is kept of what a command says for people, bytes.
const SAID: usize = 4096;

/// What came of it.
pub(crate) struct Answer {
    pub(crate) run: RunInfo,
    pub(crate) end: Option<StepEnd>,
    /// What it printed, both streams together, up to a limit.
    pub(crate) said: String,
    /// What it wrote to its standard output, up to a limit.
    pub(crate) stdout: Vec<u8>,
    /// Some of its output is missing from that.
    pub(crate) cut: bool,
    /// In the agent's words, where there are any.
    pub(crate) why: String,
}

/// Runs it and waits for its end, or for Ctrl-C, which cancels it: `None`.
pub(crate) async fn ask(
    context: &Context,
    client: &mut Client,
    host: &HostInfo,
    argv: Vec<String>,
    limit_s: u64,
    most: usize,
) -> Result<Option<Answer>, CliError> {
    let spec = CommandSpec { argv: Some(argv), timeout_s: Some(limit_s), ..CommandSpec::default() };
    ask_by(context, client, host, &spec, most).await
}

/// The same with all that can be said of a command.
pub(crate) async fn ask_by(
    context: &Context,
    client: &mut Client,
    host: &HostInfo,
    spec: &CommandSpec,
    most: usize,
) -> Result<Option<Answer>, CliError> {
    let spec = serde_json::to_vec(spec).map_err(|error| CliError::usage("internal", error.to_string()))?;
    let mut interrupt = Interrupt::listen();
    let updates = client.exec(host.id, spec).await?;
    let (mut said, mut end, mut why) = (Vec::new(), None, String::new());
    let (mut stdout, mut cut) = (Vec::new(), false);
    let followed = follow(context, client, updates, &mut interrupt, |update| match &update.kind {
        UpdateKind::Log(frame) => match &frame.body {
            LogBody::Data(data) => {
                if said.len() < most.min(SAID) {
                    said.extend_from_slice(data);
                }
                if frame.stream == Stream::Stdout {
                    let room = most.saturating_sub(stdout.len());
                    stdout.extend_from_slice(data.get(..room).unwrap_or(data));
                    cut |= data.len() > room;
                }
            }
            LogBody::Truncated { .. } => cut = true,
        },
        UpdateKind::Event(event) => match &event.kind {
            EventKind::StepFinished { end: step, .. } => end = Some(step.clone()),
            EventKind::ResourceFinished { message, .. } | EventKind::Finished { message, .. }
                if why.is_empty() =>
            {
                why.clone_from(message);
            }
            _ => {}
        },
        _ => {}
    })
    .await?;
    match followed {
        Followed::Over(run) => {
            let said = String::from_utf8_lossy(&said).into_owned();
            Ok(Some(Answer { run, end, said, stdout, cut, why }))
        }
        Followed::Left(run) => {
            if let Some(run) = run {
                client.cancel(run.id).await?;
            }
            Ok(None)
        }
    }
}
