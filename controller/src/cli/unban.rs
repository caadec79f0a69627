//! `postern unban`: lets an address in again that fail2ban shut out.

use std::net::IpAddr;

use postern_proto::event::{RunState, StepEnd};
use serde_json::json;

use super::args::Unban;
use super::asked::{Answer, ask};
use super::error::CliError;
use super::selector::Selector;
use super::{Context, Exit, clean};

/// The time fail2ban may take.
const LIMIT_S: u64 = 60;
/// The most that is kept of what it says, bytes.
const SAID: usize = 400;

pub(crate) async fn unban(context: &Context, args: Unban) -> Result<Exit, CliError> {
    let selector = Selector::parse(std::slice::from_ref(&args.host))?;
    let argv = ["fail2ban-client", "unban", &args.address.to_string()].map(str::to_owned).to_vec();
    let mut client = context.connect().await?;
    let hosts = selector.choose(client.hosts().await?)?;
    let [host] = hosts.as_slice() else {
        return Err(CliError::usage("several-hosts", format!("{:?} is not one host", args.host))
            .hint("name the host whose address it is to forget"));
    };
    let name = clean::line(&host.name);
    let Some(Answer { run, end, said, why, .. }) =
        ask(context, &mut client, host, argv, LIMIT_S, SAID).await?
    else {
        return Err(CliError::failed("interrupted", format!("{name}: whether it is unbanned is not known")));
    };
    let banned = match (run.state, &end, said.trim()) {
        (RunState::Ok, Some(StepEnd::Exit(0)), "0") => false,
        (RunState::Ok, Some(StepEnd::Exit(0)), count) if count.parse::<u32>().is_ok() => true,
        _ => {
            let told = if said.trim().is_empty() { why.as_str() } else { said.trim() };
            let message = format!("{name}: fail2ban did not unban {}: {}", args.address, clean::line(told));
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
