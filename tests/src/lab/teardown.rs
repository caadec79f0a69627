//! Removing hosts and runs from what is on disk and in the kernel alone. Everything here can be repeated, and works
//! on a run that was only half made.
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::cgroup::Hierarchies;
use super::error::{LabError, Result};
use super::net::{self, Net};
use super::store::{HostRecord, Places, RunRecord, load};
use super::sys::{remove, unmount_and_remove, unmount_below};

/// Ends one host and removes all that belongs to it.
pub(super) fn host(places: &Places, run: u8, name: &str) -> Result<()> {
    let net = Net { run };
    let dir = places.host(run, name);
    stop(run, name)?;
    if let Some(record) = load::<HostRecord>(&dir.join("host.json"))? {
        net::remove_host(net, record.slot, name)?;
    }
    forget_machine(&net.unique(name), &dir.join("root"))?;
    unmount_and_remove(&dir)
}

/// Kills everything that runs for a host: supervisor, nspawn and guest.
pub(super) fn stop(run: u8, name: &str) -> Result<()> {
    match Hierarchies::find() {
        Some(groups) => groups.destroy(&Net { run }.unique(name)),
        None => Err(LabError::Invalid("cgroup v2 is not mounted: hosts cannot be found".to_owned())),
    }
}

/// nspawn clears these away itself, unless it was killed.
fn forget_machine(machine: &str, root: &Path) -> Result<()> {
    if let Ok(meta) = std::fs::metadata(root) {
        remove(format!("/run/systemd/nspawn/locks/inode-{}:{}", meta.dev(), meta.ino()))?;
    }
    for base in ["propagate", "unix-export"] {
        let dir = Path::new("/run/systemd/nspawn").join(base).join(machine);
        if dir.exists() {
            unmount_below(&dir)?;
            remove(&dir)?;
        }
    }
    Ok(())
}

/// Removes a run with all its hosts. The caller holds the run's lock.
pub(super) fn run(places: &Places, index: u8) -> Result<()> {
    let net = Net { run: index };
    // By control group first: a host whose folder is damaged must die as well.
    if let Some(groups) = Hierarchies::find() {
        for group in groups.groups(&net.prefix()) {
            groups.destroy(&group)?;
        }
    }
    for name in places.hosts(index) {
        let dir = places.host(index, &name);
        forget_machine(&net.unique(&name), &dir.join("root"))?;
        unmount_and_remove(&dir)?;
    }
    net::destroy(net)?;
    // The folder is the claim on the index, so it goes last.
    unmount_and_remove(&places.run(index))?;
    net::forward_restore(places)
}

/// The same for a run whose owner was killed. A program that the owner had started last, a mount say, may end a
/// moment after its owner and make something behind our back, and nothing tells us that it is still there: so look
/// again, with the lock held all the while.
pub(super) fn run_of_dead(places: &Places, index: u8) -> Result<()> {
    let first = run(places, index);
    std::thread::park_timeout(SETTLE);
    let second = run(places, index);
    // What the first look could not remove, the second may have.
    if second.is_ok() { Ok(()) } else { first.and(second) }
}

/// Far longer than any of the lab's small programs takes.
const SETTLE: Duration = Duration::from_millis(500);

/// Removes all runs whose owner is dead; says which.
pub(super) fn sweep(places: &Places) -> Result<Vec<u8>> {
    let mut swept = Vec::new();
    for index in places.indexes() {
        // Held: its owner is making it, or someone else is clearing it up.
        let Some(_lock) = places.try_lock_run(index)? else { continue };
        if !places.run(index).exists() {
            continue;
        }
        let dead = match load::<RunRecord>(&places.run(index).join("run.json"))? {
            // Its maker died before it had written down who it was.
            None => true,
            Some(record) => !record.kept && !record.owner.alive()?,
        };
        if dead {
            run_of_dead(places, index)?;
            swept.push(index);
        }
    }
    Ok(swept)
}
