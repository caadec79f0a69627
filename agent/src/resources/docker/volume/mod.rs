//! `postern-agent seal-volume`, `volume-key`, `volume-piece` and `open-volume`: files of a Docker volume on their way to
//! the operator and back. What leaves this process is sealed to a key of the other end's, so that the output of a run
//! and its plan have cipher text only.
//!
//! Only files in the volume's own directory are taken and put: no links, and nothing below. Whoever is root in a
//! container can make these, and would have us read or write somewhere else.

mod keys;
mod put;
#[cfg(test)]
mod tests;

use std::io::{Read, Write};
use std::time::Duration;

use http::Method;
use postern_proto::parcel::{self, MOST_BYTES, MOST_FILES, Parcel, Restored, Service, Way};
use postern_proto::sealed::{PrivateKey, PublicKey};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::service::{NotRenewed, Renewed, renew};
use super::{ASK_LIMIT, SOCKET, encoded, text};
use crate::sys::{Call, CallError, FileKind, Sys};

/// Names that are looked at in a volume.
const MOST_NAMES: usize = 1024;
/// A program may be writing a file, over itself, when it is read.
const READS: usize = 20;
/// So often where it is empty, which may be all that it is to be.
const READS_EMPTY: usize = 5;
const READ_AGAIN: Duration = Duration::from_millis(100);
/// What was in a volume before files were put back is called so, with a number where there are several.
const KEPT: &str = ".before-restore";
/// For a restart of the service that reads the files, seconds.
const RESTART_S: u64 = 180;
/// A restore comes in several runs, one right after the other; one that stands still for so long was cut off.
const CUT_OFF: Duration = Duration::from_secs(15 * 60);
const LOOK_FOR_THOSE: Duration = Duration::from_secs(60);
/// The most text on standard input: a sealed piece in base64.
const MOST_INPUT: u64 = 2 << 20;

/// New randomness for one key.
fn new_key() -> PrivateKey {
    PrivateKey::new(Zeroizing::new(rand::random()))
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Writes the files of a volume to `out`, sealed to this key. The error is for people.
pub(crate) async fn seal_volume(
    sys: &Sys,
    volume: &str,
    key: &str,
    out: &mut (dyn Write + Send),
) -> Result<(), String> {
    let to: PublicKey = key.parse().map_err(told)?;
    let dir = find(sys, volume).await?.ok_or_else(|| {
        format!("there is no Docker volume {volume}: nothing on this host has asked for a certificate yet")
    })?;
    let parcel = take(sys, &dir).await?;
    if parcel.files.is_empty() {
        let others = match parcel.left_out.as_slice() {
            [] => String::new(),
            others => format!(" ({})", others.join(", ")),
        };
        return Err(format!(
            "there is no certificate and no account in the Docker volume {volume} yet{others}"
        ));
    }
    let sealed = parcel.seal(Way::Backup, volume, &to, &new_key()).map_err(told)?;
    out.write_all(parcel::to_text(&sealed).as_bytes()).and_then(|()| out.flush()).map_err(told)
}

/// Makes the key that files for a restore are sealed to, and writes its public half to `out`.
pub(crate) fn volume_key(sys: &Sys, out: &mut (dyn Write + Send)) -> Result<(), String> {
    let _lock = keys::lock(sys)?;
    let key = new_key();
    keys::keep(sys, &key)?;
    writeln!(out, "{}", key.public()).and_then(|()| out.flush()).map_err(told)
}

/// Takes away what a restore leaves that is cut off before its key was used: all of it when an agent starts, later what
/// nobody has come back to. It does not end.
pub(crate) async fn forget_restores(sys: Sys) {
    let mut idle = Duration::ZERO;
    loop {
        let at = sys.clone();
        let done = tokio::task::spawn_blocking(move || keys::forget(&at, idle));
        match done.await.unwrap_or_else(|error| Err(told(error))) {
            Ok(true) => tracing::info!("the key of a restore that was cut off is removed"),
            Ok(false) => {}
            Err(error) => tracing::warn!(error, "the key of a restore that was cut off may still be there"),
        }
        idle = CUT_OFF;
        tokio::time::sleep(LOOK_FOR_THOSE).await;
    }
}

/// Takes in a piece of what is too long for one plan. `offset` is what came before it, bytes.
pub(crate) fn volume_piece(sys: &Sys, offset: &str, input: &mut (dyn Read + Send)) -> Result<(), String> {
    let offset = offset.parse().map_err(|_| "want the offset of the piece".to_owned())?;
    let piece = read_piece(input)?;
    let _lock = keys::lock(sys)?;
    keys::add(sys, offset, &piece)
}

fn read_piece(input: &mut (dyn Read + Send)) -> Result<Vec<u8>, String> {
    use base64::Engine as _;
    let mut text = String::new();
    input
        .take(MOST_INPUT)
        .read_to_string(&mut text)
        .map_err(|error| format!("cannot read the piece: {error}"))?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(text.trim_ascii());
    decoded.map_err(|error| format!("the piece is not as it was sent: {error}"))
}

/// Puts the files that were sealed to the key of [`volume_key`] into a volume, and has the service that reads them
/// restarted where something is new to it. Nothing is written before all of it was verified, and nothing over other
/// files that are there unless `replace` says so.
pub(crate) async fn open_volume(
    sys: &Sys,
    (volume, service, replace): (&str, &str, bool),
    input: &mut (dyn Read + Send),
    out: &mut (dyn Write + Send),
    progress: &mut (dyn Write + Send),
) -> Result<(), String> {
    let nothing = |why: String| format!("nothing was restored: {why}");
    let _lock = keys::lock(sys).map_err(nothing)?;
    let (dir, parcel) = opened(sys, volume, input).await.map_err(nothing)?;
    let files = put::put(sys, &dir, volume, &parcel, replace).await?;
    let (service, trouble) = have_read(sys, volume, &dir, &parcel, service, progress).await;
    let line = serde_json::to_string(&Restored { files, service, trouble }).map_err(told)?;
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(told)
}

/// What was sent, and the directory that it is for.
async fn opened(sys: &Sys, volume: &str, input: &mut (dyn Read + Send)) -> Result<(String, Parcel), String> {
    let (key, mut sealed) = keys::take(sys)?;
    sealed.extend(read_piece(input)?);
    let parcel = Parcel::open(Way::Restore, volume, &key, &sealed).map_err(told)?;
    let dir = match find(sys, volume).await? {
        Some(dir) => dir,
        None => make(sys, volume).await?,
    };
    Ok((dir, parcel))
}

/// Has the service read what is new to it. The files are there whatever comes of this, so there is no error: what is
/// wrong is told for people.
async fn have_read(
    sys: &Sys,
    volume: &str,
    dir: &str,
    parcel: &Parcel,
    service: &str,
    progress: &mut (dyn Write + Send),
) -> (Service, String) {
    match keys::is_unread(sys, volume) {
        Ok(true) => {}
        Ok(false) => return (Service::Unchanged, String::new()),
        Err(why) => return (Service::Unknown, why),
    }
    let became = match renew(sys, service, RESTART_S, progress).await {
        Ok(Renewed::Restarted) => Service::Restarted,
        Ok(Renewed::Absent) => Service::Absent,
        Err(NotRenewed { why, as_before: true }) => return (Service::NotRestarted, why),
        Err(NotRenewed { why, as_before: false }) => return (Service::Unknown, why),
    };
    // Whoever had them in memory may have written that down once more before its end.
    let lost = put::lost(sys, dir, parcel).await;
    if !lost.is_empty() {
        let why = format!("{} was written over meanwhile", lost.join(", "));
        return (Service::Overwritten, why);
    }
    match keys::set_unread(sys, volume, false) {
        Ok(()) => (became, String::new()),
        Err(why) => (Service::Unknown, why),
    }
}

fn no_engine(error: &CallError) -> String {
    match error {
        CallError::Away { .. } => {
            format!("Docker's engine does not run here: {error} (apply the profile swarm first)")
        }
        _ => error.to_string(),
    }
}

/// The directory of a volume, where there is one.
async fn find(sys: &Sys, volume: &str) -> Result<Option<String>, String> {
    let path = format!("/volumes/{}", encoded(volume));
    match sys.ask(SOCKET, &path, ASK_LIMIT).await {
        Ok(Some(found)) => directory(volume, &found).map(Some),
        Ok(None) => Ok(None),
        Err(error) => Err(no_engine(&error)),
    }
}

/// Of what the engine says of a volume. Others than its own local ones have their files somewhere else, or only while
/// something uses them.
fn directory(volume: &str, said: &Value) -> Result<String, String> {
    let plain =
        text(said, "/Driver") == "local" && said["Options"].as_object().is_none_or(serde_json::Map::is_empty);
    let dir = text(said, "/Mountpoint").trim_end_matches('/');
    if !plain || !dir.starts_with('/') {
        return Err(format!(
            "the Docker volume {volume} is no plain directory of this host (driver {:?}): its files are not for us to read",
            text(said, "/Driver")
        ));
    }
    Ok(dir.to_owned())
}

async fn make(sys: &Sys, volume: &str) -> Result<String, String> {
    let body = json!({"Name": volume}).to_string();
    let call = Call { method: Method::POST, path: "/volumes/create", header: None, body, limit: ASK_LIMIT };
    let answer = call.make(&sys.real(SOCKET), None).await.map_err(|error| no_engine(&error))?;
    if !answer.status.is_success() {
        return Err(call.refused(&answer).to_string());
    }
    directory(volume, &serde_json::from_slice(&answer.body).unwrap_or_default())
}

/// What was kept of a restore of before.
fn is_kept(name: &str) -> bool {
    name.split_once(KEPT).is_some_and(|(_, number)| {
        number.is_empty() || number.strip_prefix('.').is_some_and(|number| number.parse::<u8>().is_ok())
    })
}

/// Reads the files of a directory.
async fn take(sys: &Sys, dir: &str) -> Result<Parcel, String> {
    let mut names = sys.entries(dir, MOST_NAMES).map_err(told)?;
    if names.len() == MOST_NAMES {
        return Err(format!("{dir} has {MOST_NAMES} files or more: that is no directory of certificates"));
    }
    names.sort();
    let mut parcel = Parcel::default();
    for name in names.into_iter().filter(|name| !is_kept(name)) {
        let path = format!("{dir}/{name}");
        let Some(meta) = sys.meta(&path).map_err(told)? else { continue };
        let shown: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).take(60).collect();
        if meta.kind != FileKind::File {
            parcel.left_out.push(format!("{shown} is {}", meta.kind.as_str()));
            continue;
        }
        if !parcel::is_name(&name) {
            parcel.left_out.push(format!("{shown} has a name that is not carried"));
            continue;
        }
        let room = MOST_BYTES.saturating_sub(parcel.bytes()) as u64;
        let content = read_whole(sys, &path, &name, room).await?;
        // One is made, empty, for each provider that is named, before anything is asked of it.
        if content.is_empty() {
            parcel.left_out.push(format!("{shown} is empty"));
            continue;
        }
        parcel.files.push(parcel::File { name, content });
        if parcel.files.len() > MOST_FILES {
            return Err(format!("{dir} has more than {MOST_FILES} files"));
        }
    }
    Ok(parcel)
}

async fn read_whole(sys: &Sys, path: &str, name: &str, room: u64) -> Result<Zeroizing<Vec<u8>>, String> {
    for count in 1..=READS {
        let read =
            sys.read_owned(path, room).map_err(|error| format!("{error} (of {MOST_BYTES} for all files)"))?;
        let Some((meta, content)) = read else { return Ok(Zeroizing::default()) };
        let content = Zeroizing::new(content);
        // It may be another one than the one that was looked at.
        if meta.kind != FileKind::File {
            return Err(format!("{path} is {}", meta.kind.as_str()));
        }
        // Traefik empties a file before it writes it.
        let may_come = content.is_empty() && name.ends_with(".json") && count < READS_EMPTY;
        if !may_come && !parcel::is_broken(name, &content) {
            return Ok(content);
        }
        tokio::time::sleep(READ_AGAIN).await;
    }
    Err(format!("{path} is no whole JSON: is something writing it? Try again"))
}
