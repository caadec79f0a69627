//! Puts files into the directory of a volume: all of it decided before anything is written, and nothing lost that was
//! there.

use postern_proto::parcel::{File, MOST_BYTES, Parcel, RestoredFile};

use serde_json::Value;

use super::{KEPT, READ_AGAIN, READS_EMPTY, keys, told};
use crate::sys::{FileKind, Meta, NewFile, Sys};

/// Traefik takes no file that others may read.
const MODE: u32 = 0o600;
/// Versions of one file that are kept.
const MOST_KEPT: u8 = 9;

/// What is to be done for one file.
struct Change<'a> {
    file: &'a File,
    /// Nothing where this is false.
    write: bool,
    /// What is there goes here first; it is not there yet where the content is given.
    keep: Option<(String, Option<Vec<u8>>)>,
    /// What is there may be worth more than what comes: it is older than that, as often as not.
    differs: bool,
}

/// Puts them there, and looks at them again. The error says what was restored by then.
pub(super) async fn put(
    sys: &Sys,
    dir: &str,
    volume: &str,
    parcel: &Parcel,
    replace: bool,
) -> Result<Vec<RestoredFile>, String> {
    let (owner, changes) = prepare(sys, dir, volume, parcel, replace)
        .await
        .map_err(|why| format!("nothing was restored: {why}"))?;
    let mut restored: Vec<RestoredFile> = Vec::new();
    for change in changes {
        let file = write(sys, dir, &owner, change).map_err(|why| {
            let there: Vec<&str> = restored.iter().map(|file| file.name.as_str()).collect();
            match there.as_slice() {
                [] => format!("no file was restored: {why}"),
                there => format!("restored up to here: {}; then: {why}", there.join(", ")),
            }
        })?;
        restored.push(file);
    }
    Ok(restored)
}

/// All that can be known before the first file is written.
async fn prepare<'a>(
    sys: &Sys,
    dir: &str,
    volume: &str,
    parcel: &'a Parcel,
    replace: bool,
) -> Result<(Meta, Vec<Change<'a>>), String> {
    let owner = sys.meta(dir).map_err(told)?.filter(|meta| meta.kind == FileKind::Directory);
    let owner = owner.ok_or_else(|| format!("the Docker volume {volume} has no directory {dir}"))?;
    let mut changes = Vec::new();
    for file in &parcel.files {
        changes.push(decide(sys, dir, file).await?);
    }
    let differ: Vec<&str> =
        changes.iter().filter(|change| change.differs).map(|change| change.file.name.as_str()).collect();
    if !differ.is_empty() && !replace {
        return Err(format!(
            "the Docker volume {volume} has other content in {} already, which may be newer than the backup. Nothing \
             was changed; `--replace` puts the backup in its place and keeps what is there beside it",
            differ.join(", ")
        ));
    }
    if changes.iter().any(|change| change.write) {
        keys::set_unread(sys, volume, true)?;
    }
    Ok((owner, changes))
}

fn write(sys: &Sys, dir: &str, owner: &Meta, change: Change<'_>) -> Result<RestoredFile, String> {
    let Change { file, write: is_new, keep, .. } = change;
    let write = |name: &str, content: &[u8]| {
        let path = &format!("{dir}/{name}");
        let new = NewFile { path, content, mode: MODE, uid: owner.uid, gid: owner.gid };
        // There is nothing to try it with.
        sys.replace(&new, |_| Ok(())).map_err(told)?
    };
    if let Some((name, Some(old))) = &keep {
        write(name, old)?;
    }
    if is_new {
        write(&file.name, &file.content)?;
        let there = sys.read(&format!("{dir}/{}", file.name), MOST_BYTES as u64).map_err(told)?;
        if there.as_deref() != Some(&**file.content) {
            return Err(format!("{dir}/{} was changed by something else just now: restore again", file.name));
        }
    }
    let kept_as = keep.map(|(name, _)| name);
    Ok(RestoredFile { name: file.name.clone(), written: is_new, kept_as })
}

/// The names of files that have no longer what was put there.
pub(super) async fn lost(sys: &Sys, dir: &str, parcel: &Parcel) -> Vec<String> {
    let mut lost = Vec::new();
    for file in &parcel.files {
        let path = format!("{dir}/{}", file.name);
        let there = super::read_whole(sys, &path, &file.name, MOST_BYTES as u64).await;
        if !there.is_ok_and(|there| holds(&there, &file.content)) {
            lost.push(file.name.clone());
        }
    }
    lost
}

/// Whether all that was put there is there yet: the accounts, and a certificate for the same domains. Traefik writes a
/// file anew as soon as it has got one more.
fn holds(there: &[u8], put: &[u8]) -> bool {
    type Resolvers = serde_json::Map<String, Value>;
    if there == put {
        return true;
    }
    let read = |content| serde_json::from_slice::<Resolvers>(content);
    let (Ok(there), Ok(put)) = (read(there), read(put)) else { return false };
    let certificates = |resolver: &Value| -> Vec<Value> {
        let list = resolver["Certificates"].as_array();
        list.into_iter().flatten().map(|it| it["domain"].clone()).collect()
    };
    put.iter().all(|(name, put)| {
        let Some(there) = there.get(name) else { return false };
        let key = &put["Account"]["PrivateKey"];
        let domains = certificates(there);
        let known = !key.is_null() && there["Account"]["PrivateKey"] == *key;
        there == put || (known && certificates(put).iter().all(|domain| domains.contains(domain)))
    })
}

/// Nothing that anybody was given: a file that is there before the first answer.
fn is_blank(content: &[u8]) -> bool {
    fn blank(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(all) => all.iter().all(blank),
            Value::Object(all) => all.values().all(blank),
            _ => false,
        }
    }
    content.is_empty() || serde_json::from_slice(content).is_ok_and(|value| blank(&value))
}

async fn decide<'a>(sys: &Sys, dir: &str, file: &'a File) -> Result<Change<'a>, String> {
    let path = format!("{dir}/{}", file.name);
    let change = |write, keep| Change { file, write, keep, differs: false };
    let Some(meta) = sys.meta(&path).map_err(told)? else { return Ok(change(true, None)) };
    if meta.kind != FileKind::File {
        return Err(format!("{path} is {}: move it away", meta.kind.as_str()));
    }
    let mut looks = 0;
    let (meta, there) = loop {
        let Some((meta, there)) = sys.read_owned(&path, MOST_BYTES as u64).map_err(told)? else {
            return Ok(change(true, None));
        };
        looks += 1;
        // It may be emptied only to be written.
        if !there.is_empty() || !file.name.ends_with(".json") || looks == READS_EMPTY {
            break (meta, there);
        }
        tokio::time::sleep(READ_AGAIN).await;
    };
    if there == **file.content {
        return Ok(change(meta.mode != MODE, None));
    }
    if there.is_empty() {
        return Ok(change(true, None));
    }
    let differs = !is_blank(&there);
    let change = |keep| Change { file, write: true, keep: Some(keep), differs };
    for number in 1..=MOST_KEPT {
        let number = if number == 1 { String::new() } else { format!(".{number}") };
        let name = format!("{}{KEPT}{number}", file.name);
        let kept = format!("{dir}/{name}");
        match sys.meta(&kept).map_err(told)? {
            None => return Ok(change((name, Some(there)))),
            Some(meta) if meta.kind == FileKind::File => {
                if sys.read(&kept, MOST_BYTES as u64).map_err(told)?.as_ref() == Some(&there) {
                    return Ok(change((name, None)));
                }
            }
            Some(_) => {}
        }
    }
    Err(format!(
        "{path} was kept {MOST_KEPT} times already, as {}{KEPT} and so on: remove those first",
        file.name
    ))
}
