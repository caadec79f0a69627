//! Hosts that are all alike: as shipped, first boot over, with the same lists and packages of apt lying there.
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{Flavour, Host, HostSpec, Image, Release};
use crate::rig::{BOOT_DEADLINE, Rig, finish, wait_for};
use crate::time_server::serve_time;

const ARCHIVES: &str = "var/cache/apt/archives";
const LISTS: &str = "var/lib/apt/lists";
/// Cloud-init's first boot, apt included.
const FIRST_BOOT: Duration = Duration::from_secs(120);
/// Fetching lists and packages, on the host that is made for that.
const FETCH: Duration = Duration::from_secs(600);
const COPY: Duration = Duration::from_secs(120);

/// What Debian's own cloud images have and the lab's does not: apt's library for Python, without which Ansible would
/// have to install it first. The end state has it anyway, below unattended-upgrades.
const PYTHON_APT: &str = "DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=60 \
                          install --no-install-recommends python3-apt";
/// Lists of yesterday and before: whoever asks whether there are newer ones is told that there are none, and whoever
/// only looks at their age sees that they are to be asked for.
const AGE: &str =
    "rm -rf /var/lib/apt/periodic; touch -d '2 days ago' /var/lib/apt/lists/partial /var/lib/apt/lists";

/// What is common to all hosts of a benchmark.
pub(super) struct Hosts {
    image: Image,
    debian: String,
    /// Packages and lists, as apt keeps them.
    cache: PathBuf,
    packages: BTreeSet<OsString>,
}

impl Hosts {
    /// Makes one host that fetches everything, as `provision` does it, and keeps what apt kept there.
    pub(super) fn prepare(
        rig: &Rig,
        release: Release,
        provision: impl FnOnce(&Host) -> Result<()>,
    ) -> Result<Hosts> {
        let image = Image { release, flavour: Flavour::Shipped };
        let cache = rig.state_dir().join("apt");
        for folder in ["archives", "lists"] {
            std::fs::create_dir_all(cache.join(folder)).context("cannot make a folder for packages")?;
        }
        let host = boot(rig, "bench-beforehand", image)?;
        let debian = host.sh("cat /etc/debian_version")?.trim().to_owned();
        host.exec_with(&["sh", "-c", &format!("apt-get -qq update && {PYTHON_APT}")], b"", FETCH)?.ok()?;
        provision(&host).context("the host that is provisioned beforehand")?;
        copy(&host.root_dir.join(ARCHIVES), &cache.join("archives"))?;
        copy(&host.root_dir.join(LISTS), &cache.join("lists"))?;
        // Docker's are of a repository that a fresh host does not have.
        remove(&cache.join("lists"), |name| name.contains("docker") || name == "lock")?;
        host.destroy()?;
        let packages = packages(&cache.join("archives"))?;
        ensure!(!packages.is_empty(), "apt kept no packages on the host that was provisioned beforehand");
        Ok(Hosts { image, debian, cache, packages })
    }

    pub(super) fn image(&self) -> Image {
        self.image
    }

    pub(super) fn debian(&self) -> &str {
        &self.debian
    }

    /// A fresh host, ready for its sample.
    pub(super) fn make(&self, rig: &Rig, name: &str) -> Result<Host> {
        let host = boot(rig, name, self.image)?;
        copy(&self.cache.join("archives"), &host.root_dir.join(ARCHIVES))?;
        copy(&self.cache.join("lists"), &host.root_dir.join(LISTS))?;
        host.exec_with(&["sh", "-c", &format!("{PYTHON_APT} && {AGE}")], b"", FETCH)?.ok()?;
        Ok(host)
    }

    /// An error when a host has packages that did not lie there before: their download would have been measured.
    pub(super) fn nothing_fetched(&self, host: &Host) -> Result<()> {
        let now = packages(&host.root_dir.join(ARCHIVES))?;
        let new: Vec<_> = now.difference(&self.packages).map(|name| name.display().to_string()).collect();
        ensure!(new.is_empty(), "packages were downloaded: {}", new.join(" "));
        Ok(())
    }
}

/// A host whose first boot is over, with a time server.
fn boot(rig: &Rig, name: &str, image: Image) -> Result<Host> {
    let spec =
        HostSpec { docker: true, internet: true, first_boot_lock_seconds: 0, ..HostSpec::new(name, image) };
    let host = rig.host_with(spec)?;
    host.wait_booted(BOOT_DEADLINE)?;
    wait_for("first boot is over", FIRST_BOOT, || {
        let over = "test -e /var/lib/cloud/instance/boot-finished && test -e /var/lib/provider-guest-agent.finished && \
                    ! pidof apt-get dpkg >/dev/null";
        Ok(host.exec(&["sh", "-c", over])?.success())
    })?;
    // From here on systemd says that it is starting, until there is a chronyd.
    serve_time(&host)?;
    Ok(host)
}

/// What is in a folder into another one, with times and owners.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.arg("-a").arg(from.join(".")).arg(to);
    let ended = finish(command, COPY)?;
    if ended.code != Some(0) {
        bail!("cannot copy {} to {}: {}", from.display(), to.display(), ended.stderr);
    }
    Ok(())
}

fn remove(dir: &Path, unwanted: impl Fn(&str) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(&unwanted) {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn packages(dir: &Path) -> Result<BTreeSet<OsString>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.extension().is_some_and(|end| end == "deb") {
            found.extend(path.file_name().map(OsString::from));
        }
    }
    Ok(found)
}
