//! `postern host rename|label|set|unassign`: what the operator says of a host.

use serde_json::json;

use super::args::{Change, Changes};
use super::error::CliError;
use super::{Context, Exit, clean, hosts, json as documents};
use crate::client::{Client, HostChange, HostInfo};

/// Makes the change and shows the host as it is then, or says it in a line.
async fn change(
    context: &Context,
    client: &mut Client,
    host: &HostInfo,
    change: HostChange,
    said: impl FnOnce(&HostInfo) -> String,
) -> Result<Exit, CliError> {
    let host = client.update_host(host.id, change).await?;
    match context.out.json {
        true => context.out.document(&documents::host(&host)),
        false => context.out.line(&said(&host)),
    }
    Ok(Exit::Ok)
}

pub(crate) async fn rename(context: &Context, host: &str, name: String) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let host = hosts::find(&mut client, host).await?;
    let wanted = HostChange { name: Some(name), ..HostChange::default() };
    change(context, &mut client, &host, wanted, |new| {
        format!("{} is now called {}", clean::line(&host.name), clean::line(&new.name))
    })
    .await
}

pub(crate) async fn label(context: &Context, args: Changes) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let host = hosts::find(&mut client, &args.host).await?;
    let (set_labels, remove_labels) = split(args.changes)?;
    let wanted = HostChange { set_labels, remove_labels, ..HostChange::default() };
    change(context, &mut client, &host, wanted, |host| {
        format!("{}: labels {}", clean::line(&host.name), hosts::pairs(&host.labels))
    })
    .await
}

pub(crate) async fn set(context: &Context, args: Changes) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let host = hosts::find(&mut client, &args.host).await?;
    let (set_vars, remove_vars) = split(args.changes)?;
    let wanted = HostChange { set_vars, remove_vars, ..HostChange::default() };
    change(context, &mut client, &host, wanted, |host| {
        format!("{}: variables {}", clean::line(&host.name), hosts::pairs(&host.vars))
    })
    .await
}

type Split = (std::collections::BTreeMap<String, String>, Vec<String>);

/// What is set and what is removed; each key once.
fn split(changes: Vec<Change>) -> Result<Split, CliError> {
    let mut split = Split::default();
    let mut seen = std::collections::HashSet::new();
    for change in changes {
        let (Change::Set(key, _) | Change::Remove(key)) = &change;
        if !seen.insert(key.clone()) {
            return Err(CliError::usage("usage", format!("{key} is given twice")));
        }
        match change {
            Change::Set(key, value) => {
                split.0.insert(key, value);
            }
            Change::Remove(key) => split.1.push(key),
        }
    }
    Ok(split)
}

pub(crate) async fn unassign(context: &Context, host: &str, profile: String) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let host = hosts::find(&mut client, host).await?;
    if !host.profiles.contains(&profile) {
        let error = CliError::usage(
            "not-assigned",
            format!("{profile:?} is no profile that {} is to have", host.name),
        );
        return Err(match host.profiles.as_slice() {
            [] => error.hint("it has none"),
            has => error.hint(format!("it has {}", has.join(", "))),
        });
    }
    client.unassign(host.id, profile.clone()).await?;
    if context.out.json {
        context.out.document(&json!({
            "schema": "postern/host-unassigned/v1", "host": host.name, "host_id": host.id.to_string(),
            "profile": profile,
        }));
    } else {
        context.out.line(&format!(
            "{}: {} is unassigned; what it made on the host stays",
            clean::line(&host.name),
            clean::line(&profile)
        ));
    }
    Ok(Exit::Ok)
}
