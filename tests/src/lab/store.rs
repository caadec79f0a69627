//! What the lab writes down about itself: who owns a run, which hosts it has, and how each is booted.
use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{LabError, Result};
use super::spec::Image;
use super::sys::{make_dir, read_text, wait_until, write_file};

/// Runs on one machine at a time; each has an address range of its own.
pub(super) const MAX_RUNS: u8 = 120;

/// The folders of the lab.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) state: PathBuf,
    pub(super) cache: PathBuf,
}

impl Places {
    /// `POSTERN_LAB_STATE` (hosts; needs a file system that an overlay can lie on) and `POSTERN_LAB_CACHE` (images).
    pub(super) fn from_env() -> Self {
        let dir =
            |var: &str, default: &str| PathBuf::from(std::env::var_os(var).unwrap_or_else(|| default.into()));
        Places {
            state: dir("POSTERN_LAB_STATE", "/var/lib/postern-lab"),
            cache: dir("POSTERN_LAB_CACHE", "/var/cache/postern-lab"),
        }
    }

    pub(super) fn runs(&self) -> PathBuf {
        self.state.join("runs")
    }

    pub(super) fn run(&self, index: u8) -> PathBuf {
        self.runs().join(index.to_string())
    }

    pub(super) fn host(&self, index: u8, name: &str) -> PathBuf {
        self.run(index).join("hosts").join(name)
    }

    /// Folder of a run's small internet.
    pub(super) fn internet(&self, index: u8) -> PathBuf {
        self.run(index).join("internet")
    }

    /// Indexes of all runs that have a folder.
    pub(super) fn indexes(&self) -> Vec<u8> {
        let mut found: Vec<u8> = names_in(&self.runs()).iter().filter_map(|n| n.parse().ok()).collect();
        found.sort_unstable();
        found
    }

    pub(super) fn hosts(&self, index: u8) -> Vec<String> {
        names_in(&self.run(index).join("hosts"))
    }

    /// Held while a run is made or torn down, so that an index is not reused half-way. Lock files stay.
    pub(super) fn lock_run(&self, index: u8) -> Result<Lock> {
        Lock::wait(&self.state.join("locks").join(format!("{index}.lock")), Duration::from_secs(60))
    }

    pub(super) fn try_lock_run(&self, index: u8) -> Result<Option<Lock>> {
        Lock::attempt(&self.state.join("locks").join(format!("{index}.lock")))
    }

    /// Guards what all runs share: the forwarding switch of the machine.
    pub(super) fn lock_shared(&self) -> Result<Lock> {
        Lock::wait(&self.state.join("locks").join("shared.lock"), Duration::from_secs(60))
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// An exclusive file lock; the kernel lets go of it when its holder dies.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn attempt(path: &Path) -> Result<Option<Lock>> {
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(LabError::io("open", path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(None),
            Err(e) => Err(LabError::io("lock", path)(e.into())),
        }
    }

    pub(super) fn wait(path: &Path, deadline: Duration) -> Result<Lock> {
        wait_until(format!("the lock {} is free", path.display()), deadline, || Lock::attempt(path))
    }
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) pid: u32,
    /// Clock ticks after boot at which it started.
    pub(super) start: u64,
    /// The boot of the machine.
    pub(super) boot: String,
}

impl Owner {
    pub(super) fn me() -> Result<Self> {
        let pid = std::process::id();
        let start = start_time(pid).unwrap_or_default();
        Ok(Owner { pid, start, boot: machine_boot()? })
    }

    pub(super) fn alive(&self) -> Result<bool> {
        Ok(machine_boot()? == self.boot && start_time(self.pid) == Some(self.start))
    }
}

fn machine_boot() -> Result<String> {
    Ok(read_text("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// When a process started; none for one that is gone or is a zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in brackets and can hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// One lab: the hosts of one process, or of one `lab make`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RunRecord {
    pub(super) version: u32,
    pub(super) index: u8,
    /// Tells this run from a later one with the same index.
    pub(super) nonce: u64,
    pub(super) owner: Owner,
    /// Made by the command: stays when its maker ends.
    pub(super) kept: bool,
}

/// A host: what its supervisor needs to boot it, again and again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct HostRecord {
    pub(super) version: u32,
    pub(super) run: u8,
    pub(super) slot: u8,
    pub(super) name: String,
    pub(super) image: Image,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
    pub(super) no_systemd: bool,
    pub(super) read_only_root: bool,
    pub(super) docker: bool,
    /// For a virtual machine.
    #[serde(default)]
    pub(super) vm: Option<VmRecord>,
}

/// The hardware of a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VmRecord {
    pub(super) memory_mb: u32,
    pub(super) cpus: u8,
    /// What the hardware clock says when it is switched on.
    pub(super) clock: Option<String>,
    /// Kernel and initial file system, in the cache.
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

/// The version of both records above.
pub(super) const RECORD_VERSION: u32 = 1;

/// What the supervisor says about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SupervisorRecord {
    pub(super) owner: Owner,
    /// Boots begun so far.
    pub(super) boots: u32,
    /// How the guest ended, once it has ended for good.
    pub(super) ended: Option<String>,
}

pub(super) fn save<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let corrupt = |source| LabError::Corrupt { path: path.to_path_buf(), source };
    write_file(path, serde_json::to_vec_pretty(value).map_err(corrupt)?, 0o600)
}

/// None when there is no such file; a file that cannot be understood is an error.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(LabError::io("read", path)(e)),
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| LabError::Corrupt { path: path.to_path_buf(), source }),
    }
}
