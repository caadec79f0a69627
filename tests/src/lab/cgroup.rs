//! Control groups of hosts: one group each, below `postern-lab`, in every hierarchy that nspawn looks at.
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{LabError, Result};
use super::sys::{read_text, unescape, wait_until};

/// The group that holds all hosts of all labs of this machine.
const PARENT: &str = "postern-lab";

/// Where the hierarchies are mounted. Pure v2 machines have the unified one only; hybrid ones also have
/// `name=systemd`, and there nspawn wants a group of its own as well.
#[derive(Debug, Clone)]
pub(super) struct Hierarchies {
    unified: PathBuf,
    named: Option<PathBuf>,
}

impl Hierarchies {
    pub(super) fn find() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo").ok()?)
    }

    fn parse(mountinfo: &str) -> Option<Self> {
        let (mut unified, mut named) = (None, None);
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut left = left.split(' ').skip(4);
            let (Some(point), Some(options)) = (left.next(), left.next()) else { continue };
            let mut right = right.split(' ');
            let (kind, super_options) = (right.next(), right.nth(1).unwrap_or_default());
            if options.split(',').any(|o| o == "ro") {
                continue;
            }
            match kind {
                Some("cgroup2") if unified.is_none() => unified = Some(unescape(point)),
                Some("cgroup") if super_options.split(',').any(|o| o == "name=systemd") => {
                    named = Some(unescape(point));
                }
                _ => {}
            }
        }
        unified.map(|unified| Hierarchies { unified, named })
    }

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.unified).chain(&self.named)
    }

    /// Makes the group and moves the calling process into it; children follow.
    pub(super) fn enter(&self, group: &str) -> Result<()> {
        for root in self.roots() {
            let dir = root.join(PARENT).join(group);
            // The lab that just lost its last host may remove the parent between our two steps.
            let mut made = fs::create_dir_all(&dir);
            for _ in 0..10 {
                match made {
                    Err(ref e) if e.kind() == std::io::ErrorKind::NotFound => made = fs::create_dir_all(&dir),
                    _ => break,
                }
            }
            made.map_err(LabError::io("make the control group", &dir))?;
            let procs = dir.join("cgroup.procs");
            fs::write(&procs, "0").map_err(LabError::io("enter the control group", &procs))?;
        }
        Ok(())
    }

    /// All processes in the group and below it.
    pub(super) fn processes(&self, group: &str) -> Vec<i32> {
        let mut found = Vec::new();
        collect(&self.unified.join(PARENT).join(group), &mut found);
        found
    }

    /// The groups that exist and whose name starts so.
    pub(super) fn groups(&self, prefix: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .roots()
            .filter_map(|root| fs::read_dir(root.join(PARENT)).ok())
            .flatten()
            .flatten()
            .filter(|e| e.path().is_dir())
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|n| n.starts_with(prefix))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Kills everything in the group, waits until it is empty, and removes it.
    pub(super) fn destroy(&self, group: &str) -> Result<()> {
        let me = i32::try_from(std::process::id()).unwrap_or_default();
        wait_until(format!("the processes of {group} end"), Duration::from_secs(15), || {
            let alive: Vec<i32> = self.processes(group).into_iter().filter(|pid| *pid != me).collect();
            for pid in &alive {
                if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
                    // Gone in the meantime is what we want.
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            Ok(alive.is_empty().then_some(()))
        })?;
        for root in self.roots() {
            let parent = root.join(PARENT);
            let dir = parent.join(group);
            // A zombie that is not reaped yet keeps its group busy for a moment.
            wait_until(format!("{} is removed", dir.display()), Duration::from_secs(10), || {
                remove_tree(&dir);
                Ok((!dir.exists()).then_some(()))
            })?;
            // Fails while other hosts are in it, as it should.
            let _ = fs::remove_dir(&parent);
        }
        Ok(())
    }
}

fn collect(dir: &Path, found: &mut Vec<i32>) {
    let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) else { return };
    found.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        collect(&entry.path(), found);
    }
}

fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        remove_tree(&entry.path());
    }
    let _ = fs::remove_dir(dir);
}

/// The first process of a guest: process 1 of a namespace directly below ours.
pub(super) fn guest_init(processes: &[i32]) -> Option<i32> {
    processes.iter().copied().find(|pid| {
        read_text(format!("/proc/{pid}/status")).is_ok_and(|status| {
            let running = !status.lines().any(|l| l.starts_with("State:\tZ"));
            let ids = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap_or_default();
            let ids: Vec<&str> = ids.split_whitespace().collect();
            running && ids.len() == 2 && ids[1] == "1"
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_both_layouts() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup/systemd rw shared:5 - cgroup cgroup rw,xattr,name=systemd\n\
                      31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::parse(hybrid).unwrap();
        assert_eq!(found.unified, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(found.named.as_deref(), Some(Path::new("/sys/fs/cgroup/systemd")));

        let pure = "24 20 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Hierarchies::parse(pure).unwrap();
        assert_eq!(found.unified, Path::new("/sys/fs/cgroup"));
        assert_eq!(found.named, None);

        assert!(Hierarchies::parse("24 20 0:22 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n").is_none());
    }
}
