//! Puts files into the directory of a volume: all of it decided before anything is written, and nothing lost that was
//! there.

use postern_proto::parcel::{File, MOST_BYTES, Parcel, RestoredFile};

use super::{KEPT, keys, told};
use crate::sys::{FileKind, NewFile, Sys};

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
}

/// Puts them there, and looks at them again.
pub(super) fn put(sys: &Sys, dir: &str, volume: &str, parcel: &Parcel) -> Result<Vec<RestoredFile>, String> {
    let owner = sys.meta(dir).map_err(told)?.filter(|meta| meta.kind == FileKind::Directory);
    let owner = owner.ok_or_else(|| format!("the Docker volume {volume} has no directory {dir}"))?;
    let mut changes = Vec::new();
    for file in &parcel.files {
        changes.push(decide(sys, dir, file).map_err(|why| format!("nothing was restored: {why}"))?);
    }
    if changes.iter().any(|change| change.write) {
        keys::set_unread(sys, volume, true)?;
    }
    let write = |name: &str, content: &[u8]| {
        let path = &format!("{dir}/{name}");
        let new = NewFile { path, content, mode: MODE, uid: owner.uid, gid: owner.gid };
        // There is nothing to try it with.
        sys.replace(&new, |_| Ok(())).map_err(told)?
    };
    let mut restored = Vec::new();
    for Change { file, write: is_new, keep } in changes {
        if let Some((name, Some(old))) = &keep {
            write(name, old)?;
        }
        if is_new {
            write(&file.name, &file.content)?;
            let there = sys.read(&format!("{dir}/{}", file.name), MOST_BYTES as u64).map_err(told)?;
            if there.as_deref() != Some(&**file.content) {
                return Err(format!(
                    "{dir}/{} was changed by something else just now: restore again",
                    file.name
                ));
            }
        }
        let kept_as = keep.map(|(name, _)| name);
        restored.push(RestoredFile { name: file.name.clone(), written: is_new, kept_as });
    }
    Ok(restored)
}

fn decide<'a>(sys: &Sys, dir: &str, file: &'a File) -> Result<Change<'a>, String> {
    let path = format!("{dir}/{}", file.name);
    let change = |write, keep| Change { file, write, keep };
    let Some(meta) = sys.meta(&path).map_err(told)? else { return Ok(change(true, None)) };
    if meta.kind != FileKind::File {
        return Err(format!("{path} is {}: move it away", meta.kind.as_str()));
    }
    let Some((meta, there)) = sys.read_owned(&path, MOST_BYTES as u64).map_err(told)? else {
        return Ok(change(true, None));
    };
    if there == **file.content {
        return Ok(change(meta.mode != MODE, None));
    }
    if there.is_empty() {
        return Ok(change(true, None));
    }
    for number in 1..=MOST_KEPT {
        let number = if number == 1 { String::new() } else { format!(".{number}") };
        let name = format!("{}{KEPT}{number}", file.name);
        let kept = format!("{dir}/{name}");
        match sys.meta(&kept).map_err(told)? {
            None => return Ok(change(true, Some((name, Some(there))))),
            Some(meta) if meta.kind == FileKind::File => {
                if sys.read(&kept, MOST_BYTES as u64).map_err(told)?.as_ref() == Some(&there) {
                    return Ok(change(true, Some((name, None))));
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
