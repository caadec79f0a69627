//! `postern unban`: lets an address in again that fail2ban shut out.

use std::net::IpAddr;

use postern_proto::event::{EventKind, LogBody, RunState, StepEnd, Stream};
use postern_proto::spec::CommandSpec;
use serde_json::json;

use super::args::Unban;
use super::error::CliError;
use super::follow::{Followed, Interrupt, follow};
use super::selector::Selector;
use super::{Context, Exit, clean};
use crate::client::UpdateKind;

/// The time fail2ban may take.
const LIMIT_S: u64 = 60;
/// The most that is kept of what it says, bytes.
const SAID: usize = 400;

pub(crate) async fn unban(context: &Context, args: Unban) -> Result<Exit, CliError> {
    let selector = Selector::parse(std::slice::from_ref(&args.host))?;
    let argv = ["fail2ban-client", "unban", &args.address.to_string()].map(str::to_owned).to_vec();
    let spec = CommandSpec { argv: Some(argv), timeout_s: Some(LIMIT_S), ..CommandSpec::default() };
    let spec = serde_json::to_vec(&spec).map_err(|error| CliError::usage("internal", error.to_string()))?;
    let mut client = context.connect().await?;
    let hosts = selector.choose(client.hosts().await?)?;
    let [host] = hosts.as_slice() else {
        return Err(CliError::usage("several-hosts", format!("{:?} is not one host", args.host))
            .hint("name the host whose address it is to forget"));
    };
    let mut interrupt = Interrupt::listen();
    let updates = client.exec(host.id, spec).await?;
    let (mut said, mut end, mut why) = (Vec::new(), None, String::new());
    let followed = follow(context, &mut client, updates, &mut interrupt, |update| match &update.kind {
        UpdateKind::Log(frame) => {
            if let LogBody::Data(data) = &frame.body
                && said.len() < SAID
                && (frame.stream == Stream::Stdout || end.is_none())
            {
                said.extend_from_slice(data);
            }
        }
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
    let name = clean::line(&host.name);
    let run = match followed {
        Followed::Over(run) => run,
        Followed::Left(run) => {
            if let Some(run) = run {
                client.cancel(run.id).await?;
            }
            return Err(CliError::failed(
                "interrupted",
                format!("{name}: whether it is unbanned is not known"),
            ));
        }
    };
    let text = String::from_utf8_lossy(&said);
    let banned = match (run.state, &end, text.trim()) {
        (RunState::Ok, Some(StepEnd::Exit(0)), "0") => false,
        (RunState::Ok, Some(StepEnd::Exit(0)), count) if count.parse::<u32>().is_ok() => true,
        _ => {
            let said = if text.trim().is_empty() { why.as_str() } else { text.trim() };
            let message = format!("{name}: fail2ban did not unban {}: {}", args.address, clean::line(said));
            return Err(CliError::failed("not-unbanned", message)
                .hint("is it installed, and does it run there? The profile base sets it up"));
        }
    };
    if context.out.json {
        context.out.document(&json!({
            "schema": "postern/unban-result/v1",
            "host": host.name, "host_id": host.id.to_string(), "run": run.id.to_string(),
            "address": args.address.to_string(), "was_banned": banned,
        }));
    } else {
        context.out.line(&said_of(args.address, &name, banned));
    }
    Ok(Exit::Ok)
}

fn said_of(address: IpAddr, host: &str, banned: bool) -> String {
    if banned {
        format!("{host}: {address} was banned, and is no longer")
    } else {
        format!("{host}: {address} was not banned")
    }
}
