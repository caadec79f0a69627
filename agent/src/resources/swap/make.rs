//! The steps from one state of a swap file to another, forward and back. Pure.

use std::time::Duration;

use postern_proto::spec::SwapSpec;

use super::super::owned::{self, Owned};
use super::super::{Exec, Step};
use super::{ACT_LIMIT, Seen, unit_path};

/// To write the file: a disk that manages 1 MB/s writes 2 GB in less.
const WRITE_LIMIT: Duration = Duration::from_secs(3600);
/// To bring back into memory what is in it.
const OFF_LIMIT: Duration = Duration::from_secs(1800);

/// How it is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// The file's size; `None`: no file.
    pub(super) bytes: Option<u64>,
    /// The kernel swaps to it.
    pub(super) used: bool,
    /// Its unit.
    pub(super) unit: Option<Owned>,
    /// The unit is started at boot.
    pub(super) enabled: bool,
}

/// A unit as it is written.
pub(super) fn unit(text: &str) -> Owned {
    Owned { content: text.as_bytes().to_vec(), mode: 0o644, uid: 0, gid: 0 }
}

/// Whether a new file is to be written.
pub(super) fn is_made_anew(want: &Target, seen: &Seen) -> bool {
    let fits = |bytes| seen.file.as_ref().is_some_and(|file| file.bytes == bytes && file.whole);
    want.bytes.is_some_and(|bytes| !fits(bytes))
}

fn is_taken_out(want: &Target, seen: &Seen) -> bool {
    seen.used && (!want.used || want.bytes.is_none() || is_made_anew(want, seen))
}

/// Why what is in the file cannot be brought back into memory; `None` where it can, or need not.
pub(super) fn no_room_in_memory(spec: &SwapSpec, want: &Target, seen: &Seen) -> Option<String> {
    (is_taken_out(want, seen) && seen.used_kib > seen.free_kib).then(|| {
        format!(
            "{} MB are swapped out to {}, and there are only {} MB of memory and other swap for them: stop something \
             that takes memory first",
            seen.used_kib / 1024,
            spec.path,
            seen.free_kib / 1024
        )
    })
}

fn run(argv: &[&str], limit: Duration) -> Step {
    Step::Exec(Exec::new(argv, limit))
}

/// What is to be done. The file is written beside its place and put there when it is whole, so that what is cut off
/// in the middle is never taken for it.
pub(super) fn steps(spec: &SwapSpec, want: &Target, seen: &Seen) -> Vec<Step> {
    let (path, name) = (spec.path.as_str(), spec.unit());
    let new = format!("{path}.postern-new");
    let mut steps = Vec::new();
    let anew = is_made_anew(want, seen);
    if let (true, Some(bytes)) = (anew, want.bytes) {
        // Nobody else ever reads it, from the first byte.
        steps.push(run(&["install", "-m", "0600", "/dev/null", &new], ACT_LIMIT));
        if seen.btrfs {
            steps.push(run(&["chattr", "+C", &new], ACT_LIMIT));
        }
        let (to, count) = (format!("of={new}"), format!("count={}", bytes >> 20));
        steps.push(run(
            &["dd", "if=/dev/zero", &to, "bs=1M", &count, "conv=notrunc,fsync", "status=none"],
            WRITE_LIMIT,
        ));
        steps.push(run(&["mkswap", &new], ACT_LIMIT));
    }
    if seen.enabled && !want.enabled {
        // While its file is there.
        steps.push(run(&["systemctl", "disable", "--", &name], ACT_LIMIT));
    }
    if is_taken_out(want, seen) {
        steps.push(run(&["swapoff", "--", path], OFF_LIMIT));
    }
    match want.bytes {
        None if seen.file.is_some() => steps.push(Step::Remove { path: path.to_owned() }),
        Some(_) if anew => steps.push(run(&["mv", "-fT", "--", &new, path], ACT_LIMIT)),
        Some(_) if seen.file.as_ref().is_some_and(|file| !file.private) => {
            steps.push(Step::SetAttributes {
                path: path.to_owned(),
                mode: 0o600,
                uid: 0,
                gid: 0,
                seen: None,
            });
        }
        _ => {}
    }
    let unit = owned::back(&unit_path(spec), want.unit.as_ref(), seen.unit.as_ref());
    let reload = unit.is_some();
    steps.extend(unit);
    if reload {
        steps.push(run(&["systemctl", "daemon-reload"], ACT_LIMIT));
    }
    if want.enabled && !seen.enabled {
        steps.push(run(&["systemctl", "enable", "--", &name], ACT_LIMIT));
    }
    if want.used && (!seen.used || anew) {
        // Also where fstab names it: systemd has made a unit of that line.
        match want.unit.is_some() {
            true => steps.push(run(&["systemctl", "start", "--", &name], ACT_LIMIT)),
            false => steps.push(run(&["swapon", "--", path], ACT_LIMIT)),
        }
    }
    steps
}
