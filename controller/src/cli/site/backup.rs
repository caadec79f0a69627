//! `postern site backup` and `postern site restore`: certificates and accounts of a host's Traefik as one file of the
//! operator's, and back. Runs and their output have cipher text only: the key is the reader's, and made for this once.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_proto::event::{RunState, StepEnd};
use postern_proto::host::AGENT_BINARY;
use postern_proto::parcel::{self, MOST_SEALED, PIECE_BYTES, Parcel, Restored, Service, Way};
use postern_proto::sealed::{PrivateKey, PublicKey};
use postern_proto::spec::CommandSpec;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{acme, kept};
use crate::cli::asked::{Answer, ask_by};
use crate::cli::error::CliError;
use crate::cli::fresh::Fresh;
use crate::cli::{Context, Exit, clean, hosts, json as documents};
use crate::client::{Client, HostInfo, Link, RunInfo};

/// As profile `swarm` has them.
const VOLUME: &str = "traefik-acme";
const SERVICE: &str = "traefik";
/// For a step that reads or writes some files, and may wait until somebody else has written one.
const SHORT_S: u64 = 60;
/// For one that restarts Traefik too.
const RESTORE_S: u64 = 300;
/// The most text that a host answers with: what is sealed in base64, by lines.
const MOST_TEXT: usize = MOST_SEALED / 2 * 3;

fn new_key() -> PrivateKey {
    PrivateKey::new(Zeroizing::new(rand::random()))
}

/// A host with its agent, for commands that have to end while somebody waits.
struct Remote<'a> {
    context: &'a Context,
    client: Client,
    host: HostInfo,
    /// What is said where something fails: the code, and what was not done.
    code: &'static str,
    what: &'static str,
    /// The command that goes on writes: where it does not tell how it ended, nobody knows how far it got.
    writes: bool,
}

impl<'a> Remote<'a> {
    async fn find(
        context: &'a Context,
        host: &str,
        code: &'static str,
        what: &'static str,
    ) -> Result<Self, CliError> {
        let mut client = context.connect().await?;
        let host = hosts::find(&mut client, host).await?;
        if host.link != Link::Up {
            let message = format!("the agent of {} is not connected: {what}", host.name);
            return Err(CliError::failed("not-connected", message).hint("`postern hosts` shows since when"));
        }
        Ok(Self { context, client, host, code, what, writes: false })
    }

    fn name(&self) -> String {
        clean::line(&self.host.name)
    }

    fn failed(&self, why: &str) -> CliError {
        CliError::failed(self.code, format!("{}: {}: {why}", self.host.name, self.what))
    }

    fn not_known(&self, code: &str, why: &str, run: Option<&RunInfo>) -> CliError {
        let message = format!("{}: it is not known how far the restore got: {why}", self.host.name);
        let name = self.name();
        let look = match run {
            Some(run) => format!("postern run show {}", run.id),
            None => format!("postern runs -H {name}"),
        };
        CliError::failed(code, message)
            .hint(format!("restore again, which finishes it; what became of this one: {look}"))
    }

    /// One command of the agent's own, to its good end.
    async fn agent(
        &mut self,
        args: &[&str],
        stdin: Option<String>,
        limit_s: u64,
    ) -> Result<Answer, CliError> {
        let argv = std::iter::once(AGENT_BINARY).chain(args.iter().copied()).map(str::to_owned).collect();
        let spec =
            CommandSpec { argv: Some(argv), stdin, timeout_s: Some(limit_s), ..CommandSpec::default() };
        let asked = ask_by(self.context, &mut self.client, &self.host, &spec, MOST_TEXT).await;
        let answer = match asked {
            Ok(Some(answer)) => answer,
            Ok(None) if self.writes => return Err(self.not_known("interrupted", "it was interrupted", None)),
            Ok(None) => {
                return Err(CliError::failed("interrupted", format!("{}: {}", self.host.name, self.what)));
            }
            Err(error) if self.writes => return Err(self.not_known(&error.code, &error.message, None)),
            Err(error) => return Err(error),
        };
        match (answer.run.state, &answer.end) {
            (RunState::Ok, Some(StepEnd::Exit(0))) => Ok(answer),
            // How an agent answers to what it has never heard of.
            (_, Some(StepEnd::Exit(2))) => {
                let why = "its agent is older than this program and does not know how";
                Err(self.failed(why).hint("`postern up … --bootstrap` upgrades it"))
            }
            _ => {
                let last = answer.said.lines().rfind(|line| !line.trim().is_empty());
                let whys = [last.unwrap_or_default(), &answer.run.message, &answer.why];
                let why = whys.into_iter().find(|why| !why.is_empty()).unwrap_or("no reason was given");
                let why = clean::line(why);
                match &answer.end {
                    // It says itself how far it got.
                    Some(StepEnd::Exit(1)) if self.writes => {
                        Err(CliError::failed(self.code, format!("{}: {why}", self.host.name)))
                    }
                    _ if self.writes => Err(self.not_known(self.code, &why, Some(&answer.run))),
                    _ => Err(self.failed(&why)),
                }
            }
        }
    }
}

pub(super) async fn backup(context: &Context, host: &str, file: &Path) -> Result<Exit, CliError> {
    let path = context.env.cwd.join(file);
    // Before the host is asked for anything: what cannot be written is not fetched.
    let mut fresh = Fresh::create(&path)?;
    let mut remote = Remote::find(context, host, "not-backed-up", "nothing was written").await?;
    let key = new_key();
    let answer = remote.agent(&["seal-volume", VOLUME, &key.public().to_string()], None, SHORT_S).await?;
    let parcel = received(&answer, &key).map_err(|why| remote.failed(&why).hint("try again"))?;
    let (name, id) = (&remote.host.name, remote.host.id.to_string());
    let bytes = kept::write(name, &id, jiff::Timestamp::now().as_millisecond(), &parcel)
        .map_err(|error| CliError::usage("internal", error.to_string()))?;
    fresh.write(&bytes)?;
    // Read back before it counts as one.
    let (_, back) = kept::read(fresh.part())?;
    if back.files != parcel.files {
        return Err(CliError::usage("file", format!("{} is not what was written to it", path.display())));
    }
    fresh.keep()?;
    let files: Vec<_> = parcel.files.iter().map(|file| (file, acme::about(&file.content))).collect();
    if context.out.json {
        let one = |(file, about): &(&parcel::File, acme::About)| {
            json!({
                "name": file.name, "bytes": file.content.len(), "accounts": about.accounts,
                "certificates": about.document(),
            })
        };
        context.out.document(&json!({
            "schema": "postern/site-backup/v1", "host": name, "host_id": id, "run": answer.run.id.to_string(),
            "file": path, "bytes": bytes.len(), "files": files.iter().map(one).collect::<Vec<Value>>(),
            "left_out": parcel.left_out,
        }));
        return Ok(Exit::Ok);
    }
    context.out.line(&format!("{}: {} bytes, from {}", path.display(), bytes.len(), remote.name()));
    for (file, about) in &files {
        context.out.line(&line(file, about));
    }
    for left in &parcel.left_out {
        context.out.note(&clean::line(&format!("not in it: {left}")));
    }
    context.out.note("whoever has this file can pass for these domains: keep it where only you can read it");
    Ok(Exit::Ok)
}

/// A file and what is in it, for people.
fn line(file: &parcel::File, about: &acme::About) -> String {
    let text = about.text(jiff::Timestamp::now());
    let text = if text.is_empty() { format!("{} bytes", file.content.len()) } else { text };
    clean::line(&format!("  {}: {text}", file.name))
}

/// What a host sealed to this key.
fn received(answer: &Answer, key: &PrivateKey) -> Result<Parcel, String> {
    if answer.cut {
        return Err("the host's answer is not all here".to_owned());
    }
    let sealed = parcel::from_text(&String::from_utf8_lossy(&answer.stdout))
        .map_err(|error| format!("the host's answer is not all here: {error}"))?;
    Parcel::open(Way::Backup, VOLUME, key, &sealed).map_err(|error| format!("the host's answer: {error}"))
}

pub(super) async fn restore(
    context: &Context,
    host: &str,
    file: &Path,
    replace: bool,
) -> Result<Exit, CliError> {
    let path = context.env.cwd.join(file);
    // All of it is verified before the host is asked for anything.
    let (about, parcel) = kept::read(&path)?;
    let mut remote = Remote::find(context, host, "not-restored", "nothing was restored").await?;
    // Before anything is sent: whoever has taken the wrong one can still end this.
    context.out.note(&format!(
        "a backup of {}, made {}:",
        clean::line(&about.host),
        hosts::ago(about.created_ms)
    ));
    for file in &parcel.files {
        context.out.note(&line(file, &acme::about(&file.content)));
    }
    let answer = remote.agent(&["volume-key"], None, SHORT_S).await?;
    let key: PublicKey = String::from_utf8_lossy(&answer.stdout)
        .trim()
        .parse()
        .map_err(|error| remote.failed(&format!("the host's key: {error}")))?;
    let sealed = parcel
        .seal(Way::Restore, VOLUME, &key, &new_key())
        .map_err(|error| remote.failed(&error.to_string()))?;
    let mut pieces: Vec<&[u8]> = sealed.chunks(PIECE_BYTES).collect();
    let last = pieces.pop().unwrap_or_default();
    for (at, piece) in pieces.into_iter().enumerate() {
        let offset = (at * PIECE_BYTES).to_string();
        remote.agent(&["volume-piece", &offset], Some(STANDARD.encode(piece)), SHORT_S).await?;
    }
    let mut open = vec!["open-volume", VOLUME, SERVICE];
    open.extend(replace.then_some("replace"));
    remote.writes = true;
    let answer = remote.agent(&open, Some(STANDARD.encode(last)), RESTORE_S).await?;
    let said = String::from_utf8_lossy(&answer.stdout);
    let restored: Restored =
        serde_json::from_str(said.lines().last().unwrap_or_default()).map_err(|error| {
            let why = format!("the host's answer cannot be read: {error}");
            remote.not_known(remote.code, &why, Some(&answer.run))
        })?;
    let name = remote.name();
    if context.out.json {
        context.out.document(&json!({
            "schema": "postern/site-restore/v1", "host": remote.host.name, "host_id": remote.host.id.to_string(),
            "run": answer.run.id.to_string(), "file": path, "made": documents::time_ms(about.created_ms),
            "made_of": about.host, "files": restored.files, "service": restored.service,
        }));
    } else {
        tell(context, &name, &restored);
    }
    let (host, why) = (&remote.host.name, &restored.trouble);
    let again = "restore again, which restarts it";
    Err(match restored.service {
        Service::Unchanged | Service::Absent | Service::Restarted => return Ok(Exit::Ok),
        Service::NotRestarted => {
            let message = format!("{host}: restored, and Traefik goes on without them: {why}");
            CliError::failed("not-restarted", message).hint(format!(
                "{again}, or by hand: postern exec {name} -- docker service update --force {SERVICE}"
            ))
        }
        Service::Unknown => {
            let message = format!("{host}: restored; whether Traefik runs with them is not known: {why}");
            CliError::failed("not-restarted", message).hint(format!(
                "see how it is: postern exec {name} -- docker service ps {SERVICE}; then {again}"
            ))
        }
        Service::Overwritten => {
            let message = format!("{host}: Traefik wrote over what was restored: {why}");
            CliError::failed("not-restarted", message)
                .hint("restore again, with --replace: what it wrote stays beside it")
        }
    })
}

/// What was done, for people.
fn tell(context: &Context, name: &str, restored: &Restored) {
    let out = &context.out;
    for file in &restored.files {
        let what = match (file.written, &file.kept_as) {
            (false, _) => "is there already".to_owned(),
            (true, None) => "written".to_owned(),
            (true, Some(kept)) => format!("written; what was there is {kept} now"),
        };
        out.line(&clean::line(&format!("{name}: {}: {what}", file.name)));
    }
    match restored.service {
        Service::Restarted => out.line(&format!("{name}: Traefik was restarted, and runs with them")),
        Service::Absent => out.note(&format!(
            "{name}: Traefik does not run there; it reads them when it starts: postern apply swarm -H {name}"
        )),
        // The first has nothing to say, the others are errors.
        Service::Unchanged | Service::NotRestarted | Service::Unknown | Service::Overwritten => {}
    }
}
