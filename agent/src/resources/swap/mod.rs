//! `swap`: a swap file of a size, whole on the disk, in use now and at every boot.

mod make;

use std::time::Duration;

use postern_proto::spec::{Presence, SwapSpec};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::diff::unified;
use super::owned::{self, Owned};
use super::{Depth, ObserveError, Resource, Step, Undo};
use crate::sys::{FileKind, Sys};
use make::Target;

/// What must be left on the disk beside the file, MiB: apt's lists and packages of an upgrade, and logs.
const MARGIN_MB: u64 = 512;
/// systemd says here in which kind of container it runs.
const CONTAINER: &str = "/run/systemd/container";
const FSTAB: &str = "/etc/fstab";
const FSTAB_LIMIT: u64 = 1 << 20;
/// A page of every kernel that Debian has for our architectures; the kernel's mark ends the first one.
const PAGE: u64 = 4096;
const MARK: &[u8] = b"SWAPSPACE2";
/// statfs(2): file systems whose files the kernel can swap to. tmpfs, overlay, ZFS and NFS are none.
const EXT: u64 = 0xef53;
const XFS: u64 = 0x5846_5342;
const BTRFS: u64 = 0x9123_683e;
const KINDS: [u64; 3] = [EXT, XFS, BTRFS];
const ACT_LIMIT: Duration = Duration::from_secs(120);

pub(super) struct Swap;

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// The file.
    file: Option<File>,
    /// The kernel swaps to it.
    used: bool,
    /// How much of it is in use, KiB.
    used_kib: u64,
    /// Its unit.
    unit: Option<Owned>,
    /// The unit is started at boot.
    enabled: bool,
    /// Somebody's line in `/etc/fstab` puts it in use at boot.
    in_fstab: bool,
    /// Swap of others, KiB.
    others_kib: u64,
    /// Memory and swap of others that is free for what is in the file, KiB.
    free_kib: u64,
    /// It lies on btrfs, where only a file that is never copied can be swapped to.
    btrfs: bool,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct File {
    bytes: u64,
    /// Only root can read it: it has what was in memory.
    private: bool,
    /// All of it is on the disk.
    whole: bool,
}

impl Resource for Swap {
    type Spec = SwapSpec;
    type Seen = Seen;

    async fn observe(spec: &SwapSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let seen = look(spec, host)?;
        // Around an undo what is declared is being taken back: nothing is in its way.
        if depth != Depth::Whole
            && !Self::plan(spec, &seen).is_empty()
            && let Some(why) = obstacle(spec, &seen, host)?
        {
            return Err(ObserveError::Obstacle(why));
        }
        Ok(seen)
    }

    fn plan(spec: &SwapSpec, seen: &Seen) -> Vec<Step> {
        make::steps(spec, &wanted(spec, seen), seen)
    }

    fn diff(spec: &SwapSpec, seen: &Seen) -> String {
        let want = wanted(spec, seen);
        let size =
            |bytes: Option<u64>| bytes.map_or("not there".to_owned(), |bytes| format!("{} MB", bytes >> 20));
        let in_use = |used| if used { "in use" } else { "not in use" };
        let mut shown = String::new();
        let (now, then) = (size(seen.file.as_ref().map(|file| file.bytes)), size(want.bytes));
        if now != then {
            shown += &format!("-{}: {now}\n+{}: {then}\n", spec.path, spec.path);
        }
        if seen.used != want.used {
            shown +=
                &format!("-{}: {}\n+{}: {}\n", spec.path, in_use(seen.used), spec.path, in_use(want.used));
        }
        let old = seen.unit.as_ref().map(|there| there.content.as_slice());
        shown += &unified(&unit_path(spec), old, want.unit.as_ref().map(|there| there.content.as_slice()));
        if shown.is_empty() && !make::steps(spec, &want, seen).is_empty() {
            shown = format!("{}: mode, holes or its unit at boot are not as they are to be\n", spec.path);
        }
        shown
    }

    fn essence(_: &SwapSpec, seen: &Seen) -> serde_json::Value {
        let file = seen.file.as_ref().map(|file| json!([file.bytes, file.private, file.whole]));
        json!({"file": file, "used": seen.used, "unit": owned::essence(seen.unit.as_ref()), "enabled": seen.enabled})
    }

    fn undo(spec: &SwapSpec, before: &Seen, _: &serde_json::Value, now: &Seen) -> Undo {
        let want = Target {
            bytes: before.file.as_ref().map(|file| file.bytes),
            used: before.used,
            unit: before.unit.clone(),
            enabled: before.enabled,
        };
        if let Some(why) = make::no_room_in_memory(spec, &want, now) {
            return Undo::Cannot(why);
        }
        Undo::Steps(make::steps(spec, &want, now))
    }
}

fn unit_path(spec: &SwapSpec) -> String {
    format!("/etc/systemd/system/{}", spec.unit())
}

fn unit_text(spec: &SwapSpec) -> String {
    format!(
        "# Written by Postern: changes are overwritten.\n[Unit]\nDescription=Swap file {0}\n\n[Swap]\nWhat={0}\n\n\
         [Install]\nWantedBy=swap.target\n",
        spec.path
    )
}

/// What is declared, given what others have done.
fn wanted(spec: &SwapSpec, seen: &Seen) -> Target {
    let size_kib = spec.size_mb.unwrap_or(0).saturating_mul(1024);
    // A header and the rounding of a partition are not what anybody misses.
    let enough = seen.others_kib.saturating_add(1024) >= size_kib;
    if spec.state == Presence::Absent || (enough && seen.file.is_none() && seen.unit.is_none()) {
        return Target::default();
    }
    // Where somebody's line in fstab does it, a unit of ours would be one too many.
    let unit = (!seen.in_fstab).then(|| make::unit(&unit_text(spec)));
    Target { bytes: Some(size_kib.saturating_mul(1024)), used: true, enabled: unit.is_some(), unit }
}

fn look(spec: &SwapSpec, host: &Sys) -> Result<Seen, ObserveError> {
    let mut seen = Seen { unit: Owned::look(host, &unit_path(spec))?, ..Seen::default() };
    seen.enabled = host.exists(&format!("/etc/systemd/system/swap.target.wants/{}", spec.unit()))?;
    let fstab = host.read_through(FSTAB, FSTAB_LIMIT)?.unwrap_or_default();
    seen.in_fstab = in_fstab(&String::from_utf8_lossy(&fstab), &spec.path);
    let memory = host.memory()?;
    seen.free_kib = memory.available_kib + memory.swap_free_kib;
    for swap in host.swaps()? {
        if swap.path == spec.path {
            (seen.used, seen.used_kib) = (true, swap.used_kib);
            // What is free in the file itself is of no use once it is gone.
            seen.free_kib = seen.free_kib.saturating_sub(swap.size_kib.saturating_sub(swap.used_kib));
        } else {
            seen.others_kib += swap.size_kib;
        }
    }
    seen.btrfs = host.room(parent(&spec.path)).is_ok_and(|room| room.kind == BTRFS);
    let Some(meta) = host.meta(&spec.path)? else { return Ok(seen) };
    let is_swap =
        meta.kind == FileKind::File && host.peek(&spec.path, PAGE - MARK.len() as u64, MARK.len())? == MARK;
    if !seen.used && !is_swap {
        let (path, what) = (&spec.path, meta.kind.as_str());
        return Err(ObserveError::Obstacle(format!(
            "{path} is {what} and no swap file: remove it, or give another `path`"
        )));
    }
    seen.file = Some(File {
        bytes: meta.len,
        private: (meta.mode, meta.uid) == (0o600, 0),
        whole: host.is_whole(&spec.path)?,
    });
    Ok(seen)
}

fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((dir, _)) => dir,
    }
}

/// Whether a line of fstab(5) swaps to this path at boot.
fn in_fstab(text: &str, path: &str) -> bool {
    text.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let options = words.get(3).copied().unwrap_or_default();
        words.first() == Some(&path)
            && words.get(2) == Some(&"swap")
            && !options.split(',').any(|option| option == "noauto")
    })
}

/// Why what is to be done cannot be, or would do harm.
fn obstacle(spec: &SwapSpec, seen: &Seen, host: &Sys) -> Result<Option<String>, ObserveError> {
    let path = &spec.path;
    if let Some(kind) = host.read_through(CONTAINER, 256)? {
        let kind: String =
            String::from_utf8_lossy(&kind).trim().chars().filter(|c| c.is_ascii_graphic()).collect();
        return Ok(Some(format!(
            "this host is a container ({kind}), and its kernel is another machine's, which alone can add swap: give the \
             container more there, or leave swap out here"
        )));
    }
    let want = wanted(spec, seen);
    if spec.state == Presence::Absent && seen.in_fstab {
        return Ok(Some(format!(
            "a line in {FSTAB} swaps to {path}: remove that line first, it is not ours"
        )));
    }
    if let Some(why) = make::no_room_in_memory(spec, &want, seen) {
        return Ok(Some(why));
    }
    if !make::is_made_anew(&want, seen) {
        return Ok(None);
    }
    let dir = parent(path);
    let Some(meta) = host.meta(dir)?.filter(|meta| meta.kind == FileKind::Directory) else {
        return Ok(Some(format!(
            "{dir} is no directory, or a link to one: give the `path` as it is without links, which is what the kernel \
             calls it"
        )));
    };
    // Whoever can write there could put another file in its place, and read what was in memory.
    if meta.uid != 0 || meta.mode & 0o022 != 0 {
        return Ok(Some(format!("others than root can write {dir}: give a `path` in a directory of root's")));
    }
    let room = host.room(dir)?;
    if !KINDS.contains(&room.kind) {
        return Ok(Some(format!(
            "{dir} is on a file system (type {:#x}) that the kernel cannot swap to, which it can on ext4, XFS and \
             btrfs: give a `path` on one of these",
            room.kind
        )));
    }
    let (free, size) = (room.free >> 20, want.bytes.unwrap_or(0) >> 20);
    if free < size.saturating_add(MARGIN_MB) {
        return Ok(Some(format!(
            "{dir} has {free} MB free, and {size} MB of swap must leave {MARGIN_MB} MB of them: make room, or take a \
             smaller `size_mb`"
        )));
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
