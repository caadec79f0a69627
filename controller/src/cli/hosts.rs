//! `postern hosts` and `postern host`: what is known of hosts, and ending it.

use std::collections::BTreeMap;

use serde_json::json;

use super::args::{Forget, Hosts};
use super::error::CliError;
use super::out::{Tone, table};
use super::selector::Selector;
use super::terminal::Terminal;
use super::up::{Access, bootstrap_failed, resolve_known};
use super::{Context, Exit, clean, json as documents};
use crate::bundle::Bundle;
use crate::client::{Client, HostInfo, Link};
use crate::room::Room;

pub(crate) async fn list(context: &Context, args: Hosts) -> Result<Exit, CliError> {
    let selector = Selector::parse(&args.hosts)?;
    let hosts = selector.choose(context.connect().await?.hosts().await?)?;
    let out = &context.out;
    if out.json {
        let hosts: Vec<_> = hosts.iter().map(documents::host).collect();
        out.document(&json!({"schema": "postern/hosts/v1", "hosts": hosts}));
        return Ok(Exit::Ok);
    }
    if hosts.is_empty() {
        out.note("no host yet; `postern up root@ADDRESS` takes one over");
        return Ok(Exit::Ok);
    }
    let mut rows = vec![["NAME", "LINK", "OS", "AGENT", "LAST SEEN", "LABELS"].map(str::to_owned).to_vec()];
    rows.extend(hosts.iter().map(row));
    table(&rows).iter().for_each(|line| out.line(line));
    Ok(Exit::Ok)
}

fn dash(text: String) -> String {
    if text.trim().is_empty() { "-".into() } else { text }
}

fn row(host: &HostInfo) -> Vec<String> {
    vec![
        clean::line(&host.name),
        host.link.as_str().to_owned(),
        dash(clean::line(format!("{} {}", host.os_id, host.os_version).trim())),
        dash(clean::line(&host.agent_version)),
        seen(host),
        pairs(&host.labels),
    ]
}

/// `a=1,b=2`, or a dash.
pub(crate) fn pairs(pairs: &BTreeMap<String, String>) -> String {
    let pairs: Vec<_> = pairs.iter().map(|(key, value)| clean::line(&format!("{key}={value}"))).collect();
    dash(pairs.join(","))
}

fn seen(host: &HostInfo) -> String {
    match host.link {
        Link::Up => "now".into(),
        _ => ago(host.last_seen_ms),
    }
}

/// `3 min ago`.
pub(crate) fn ago(ms: i64) -> String {
    if ms == 0 {
        return "never".into();
    }
    let seconds = (jiff::Timestamp::now().as_millisecond() - ms).max(0) / 1000;
    match seconds {
        0..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86400),
    }
}

/// The host with this name or id.
pub(crate) async fn find(client: &mut Client, name: &str) -> Result<HostInfo, CliError> {
    let hosts = client.hosts().await?;
    hosts.into_iter().find(|host| host.name == name || host.id.to_string() == name).ok_or_else(|| {
        CliError::usage("not-found", format!("there is no host {name:?}")).hint("`postern hosts` lists them")
    })
}

pub(crate) async fn show(context: &Context, name: &str) -> Result<Exit, CliError> {
    let host = find(&mut context.connect().await?, name).await?;
    let out = &context.out;
    if out.json {
        out.document(&documents::host(&host));
        return Ok(Exit::Ok);
    }
    let link = match host.link {
        Link::Up => out.paint(Tone::Good, "up"),
        Link::Quarantined => out.paint(Tone::Bad, "quarantined"),
        link => link.as_str().to_owned(),
    };
    let rows = [
        ("name", clean::line(&host.name)),
        ("id", host.id.to_string()),
        ("link", link),
        ("from", clean::line(&host.peer)),
        ("last seen", seen(&host)),
        ("ssh address", clean::line(&host.ssh_address)),
        ("also at", clean::line(&host.also_at.join(", "))),
        ("ssh port", ssh_port(&host)),
        ("hostname", clean::line(&host.hostname)),
        ("system", clean::line(format!("{} {} {}", host.os_id, host.os_version, host.arch).trim())),
        ("memory", memory(&host.room)),
        ("disk", disk(&host.room)),
        ("agent", clean::line(&host.agent_version)),
        ("labels", pairs(&host.labels)),
        ("variables", pairs(&host.vars)),
        ("profiles", dash(clean::line(&host.profiles.join(", ")))),
        ("detail", clean::line(&host.detail)),
    ];
    let rows: Vec<_> = rows
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(key, text)| vec![key.to_owned(), text])
        .collect();
    table(&rows).iter().for_each(|line| out.line(line));
    Ok(Exit::Ok)
}

/// `closed 3 min ago by run …`; empty where no run has said anything.
fn ssh_port(host: &HostInfo) -> String {
    host.ssh.declared.as_ref().map_or_else(String::new, |said| {
        format!("{} {} by run {}", said.port.as_str(), ago(said.at_ms), said.run)
    })
}

/// `980 MB, 1024 MB of swap`; empty where nothing is known.
fn memory(room: &Room) -> String {
    let swap = |mb| if mb == 0 { "no swap".to_owned() } else { format!("{mb} MB of swap") };
    let parts = [room.memory_mb.map(|mb| format!("{mb} MB")), room.swap_mb.map(swap)];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// `9200 MB free on /, 9200 MB free on /var`; empty where nothing is known.
fn disk(room: &Room) -> String {
    let on = |mb: Option<u64>, path: &str| mb.map(|mb| format!("{mb} MB free on {path}"));
    let parts = [on(room.disk_free_mb, "/"), on(room.var_free_mb, "/var")];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

pub(crate) async fn forget(context: &Context, args: Forget) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let host = find(&mut client, &args.host).await?;
    let name = clean::line(&host.name);
    let mut removed = Vec::new();
    if args.over_ssh {
        let target = resolve_known(context, &host.ssh_address)?;
        let access = Access { ssh: &args.ssh, agent_binary: None };
        let options = access.options_with(context, target, Bundle::empty())?;
        let console = Terminal::new(context.out.clone());
        let report =
            postern_installer::remove(options, &console).await.map_err(|error| bootstrap_failed(&error))?;
        removed = report.removed;
    } else if !args.force && host.link != Link::Up {
        return Err(CliError::failed(
            "not-connected",
            format!("the agent of {} is not connected", host.name),
        )
        .hint("wait for it, remove it over SSH (--ssh), or drop the record only (--force)"));
    }
    let record_only = args.force || args.over_ssh;
    if host.ssh.is_closed() {
        context.out.tell(&format!(
            "warning: the port of SSH of {name} is closed for good, and stays so: without its agent, the provider's console \
             is the only way in"
        ));
    }
    let left = client.forget(host.id, record_only).await?;
    if context.out.json {
        context.out.document(&json!({
            "schema": "postern/host-forgotten/v1", "host": host.name, "host_id": host.id.to_string(),
            "record_only": args.force, "removed": removed, "left_behind": left,
        }));
    } else {
        let what = match args.force {
            true => "its record is dropped; an agent that is still there is refused from now on",
            false => "agent, unit and state are removed; what was provisioned stays",
        };
        context.out.line(&format!("{name}: {what}"));
        for left in &left {
            context.out.tell(&format!("{name}: left behind: {}", clean::line(left)));
        }
    }
    Ok(if left.is_empty() { Exit::Ok } else { Exit::Failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_has_by_table() {
        let room = |memory_mb, swap_mb, disk_free_mb, var_free_mb| Room {
            memory_mb,
            swap_mb,
            disk_free_mb,
            var_free_mb,
        };
        for (room, want) in [
            (room(None, None, None, None), ("", "")),
            (room(Some(980), None, Some(7), None), ("980 MB", "7 MB free on /")),
            (room(Some(980), Some(0), None, Some(8)), ("980 MB, no swap", "8 MB free on /var")),
            (
                room(Some(980), Some(512), Some(7), Some(8)),
                ("980 MB, 512 MB of swap", "7 MB free on /, 8 MB free on /var"),
            ),
        ] {
            assert_eq!((memory(&room).as_str(), disk(&room).as_str()), want);
        }
    }
}
