//! What a caller can ask for: the image, and the host made from it.
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{LabError, Result};

/// A Debian release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Release {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

/// How much of a provider's set-up is in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// systemd, sshd and the basics; no Python, no cloud-init.
    Plain,
    /// As providers ship it: cloud-init runs at first boot and holds the apt lock for some seconds, Python is
    /// there, sshd takes passwords, and the user `debian` may use sudo.
    Shipped,
    /// Plain, with a kernel of its own: what a virtual machine boots from.
    Kernel,
    /// Plain, with the servers of the lab's small internet.
    Servers,
}

/// A base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The release.
    pub release: Release,
    /// Plain or as shipped.
    pub flavour: Flavour,
}

impl Image {
    /// Debian 12, plain.
    pub const BOOKWORM: Image = Image { release: Release::Bookworm, flavour: Flavour::Plain };
    /// Debian 12 as shipped.
    pub const BOOKWORM_SHIPPED: Image = Image { release: Release::Bookworm, flavour: Flavour::Shipped };
    /// Debian 13, plain.
    pub const TRIXIE: Image = Image { release: Release::Trixie, flavour: Flavour::Plain };
    /// Debian 13 as shipped.
    pub const TRIXIE_SHIPPED: Image = Image { release: Release::Trixie, flavour: Flavour::Shipped };
    /// Debian 12 for virtual machines.
    pub const BOOKWORM_KERNEL: Image = Image { release: Release::Bookworm, flavour: Flavour::Kernel };
    /// Debian 13 for virtual machines.
    pub const TRIXIE_KERNEL: Image = Image { release: Release::Trixie, flavour: Flavour::Kernel };
    /// What the lab's small internet runs in.
    pub const SERVERS: Image = Image { release: Release::Bookworm, flavour: Flavour::Servers };
    /// Those of virtual machines.
    pub const OF_MACHINES: [Image; 2] = [Self::BOOKWORM_KERNEL, Self::TRIXIE_KERNEL];
    /// Those of hosts that share this machine's kernel.
    pub const ALL: [Image; 4] = [Self::BOOKWORM, Self::BOOKWORM_SHIPPED, Self::TRIXIE, Self::TRIXIE_SHIPPED];
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Release::Bookworm => "bookworm",
            Release::Trixie => "trixie",
        })
    }
}

impl FromStr for Release {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "bookworm" | "debian12" | "12" => Ok(Release::Bookworm),
            "trixie" | "debian13" | "13" => Ok(Release::Trixie),
            other => Err(format!("no release `{other}` in the lab: use bookworm or trixie")),
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flavour = match self.flavour {
            Flavour::Plain => "plain",
            Flavour::Shipped => "shipped",
            Flavour::Kernel => "kernel",
            Flavour::Servers => "servers",
        };
        write!(f, "{}-{flavour}", self.release)
    }
}

/// Whether and how a user may become root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sudo {
    /// Not at all.
    #[default]
    None,
    /// After giving the own password.
    WithPassword,
    /// Without being asked.
    NoPassword,
}

/// A user to be made beside root.
#[derive(Debug, Clone, Default)]
pub struct UserSpec {
    /// Login name.
    pub name: String,
    /// Password; without one, only keys let the user in.
    pub password: Option<String>,
    /// Right to sudo.
    pub sudo: Sudo,
    /// Public keys, one line each; the lab's own key is always added.
    pub keys: Vec<String>,
}

/// A file to be put on the host before its first boot.
#[derive(Debug, Clone)]
pub struct FileSpec {
    /// Absolute path in the guest.
    pub path: PathBuf,
    /// Content.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// What a host is to be like.
#[derive(Debug, Clone)]
pub struct HostSpec {
    /// Name within this lab, and the guest's host name: lower-case letters, digits and `-`, at most 30.
    pub name: String,
    /// The image.
    pub image: Image,
    /// Public keys that let root in, one line each; the lab's own key is always added.
    pub authorized_keys: Vec<String>,
    /// Password of root; when given, sshd is told to take it.
    pub root_password: Option<String>,
    /// More users.
    pub users: Vec<UserSpec>,
    /// Text for `/etc/ssh/sshd_config.d/40-lab.conf`.
    pub sshd_extra: Option<String>,
    /// Boots a bare sshd under a trivial first process: `/run/systemd/system` is absent.
    pub no_systemd: bool,
    /// The root file system cannot be written.
    pub read_only_root: bool,
    /// Bytes that can be written before the disk is full (held in memory, so keep it small).
    pub disk_limit: Option<u64>,
    /// Gives the guest folders of its own for Docker and containerd, as their storage does not work on an overlay.
    pub docker: bool,
    /// Leads the host to the lab's small internet (see [`super::Lab::internet`]), whose authority it trusts.
    pub internet: bool,
    /// More files, written last.
    pub files: Vec<FileSpec>,
    /// Paths taken away from the image, for example `/usr/bin/sudo`.
    pub remove: Vec<PathBuf>,
    /// As-shipped images only: seconds for which first boot holds the apt lock.
    pub first_boot_lock_seconds: u32,
}

impl HostSpec {
    /// A host with the usual settings: root logs in with the lab's key.
    pub fn new(name: impl Into<String>, image: Image) -> Self {
        HostSpec {
            name: name.into(),
            image,
            authorized_keys: Vec::new(),
            root_password: None,
            users: Vec::new(),
            sshd_extra: None,
            no_systemd: false,
            read_only_root: false,
            disk_limit: None,
            docker: false,
            internet: false,
            files: Vec::new(),
            remove: Vec::new(),
            first_boot_lock_seconds: 8,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let bad = |why: String| Err(LabError::Invalid(why));
        check_name(&self.name)?;
        for user in &self.users {
            let text = user.name.as_str();
            if text.is_empty() || text == "root" || text.starts_with('-') || text.contains([':', '/', '\n']) {
                return bad(format!("`{text}` cannot be the name of a user"));
            }
        }
        if self.no_systemd && self.image.flavour == Flavour::Shipped {
            return bad(
                "an image as shipped runs cloud-init, which needs systemd: use a plain one".to_owned()
            );
        }
        let given = self.files.iter().map(|f| &f.path).chain(&self.remove);
        for path in given {
            if !path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
                return bad(format!("{} is not an absolute path in the guest", path.display()));
            }
        }
        Ok(())
    }
}

/// What a virtual machine is to be like: a host with a kernel, a disk and a clock of its own, and far slower.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Name, users, keys and files. What only a host without a kernel can have is refused.
    pub host: HostSpec,
    /// Its memory.
    pub memory_mb: u32,
    /// Its processors.
    pub cpus: u8,
    /// The size of its disk, which takes no more room here than what is written to it.
    pub disk_mb: u32,
    /// What its hardware clock says when it is switched on, `2024-02-29T12:00:00`; the machine's time when left out.
    pub clock: Option<String>,
}

impl VmSpec {
    /// A virtual machine with the usual settings: root logs in with the lab's key.
    pub fn new(name: impl Into<String>, release: Release) -> Self {
        let host = HostSpec::new(name, Image { release, flavour: Flavour::Kernel });
        VmSpec { host, memory_mb: 1024, cpus: 2, disk_mb: 3072, clock: None }
    }

    pub(super) fn check(&self) -> Result<()> {
        let bad = |why: &str| Err(LabError::Invalid(why.to_owned()));
        self.host.check()?;
        let HostSpec { no_systemd, read_only_root, disk_limit, docker, image, .. } = &self.host;
        if image.flavour != Flavour::Kernel {
            return bad("a virtual machine needs an image with a kernel");
        }
        if *no_systemd || *read_only_root || disk_limit.is_some() || *docker {
            return bad("no_systemd, read_only_root, disk_limit and docker are for hosts without a kernel");
        }
        if self.memory_mb < 256 || self.cpus == 0 || self.disk_mb < 1024 {
            return bad("a virtual machine needs 256 MB of memory, a processor and a disk of 1 GB");
        }
        let plain = |c: char| c.is_ascii_digit() || matches!(c, '-' | 'T' | ':');
        if self.clock.as_ref().is_some_and(|clock| clock.is_empty() || !clock.chars().all(plain)) {
            return bad("a clock is written like 2024-02-29T12:00:00");
        }
        Ok(())
    }
}

/// Host names become parts of paths, of control groups and of namespace names.
pub(super) fn check_name(name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = |c: Option<char>| c.is_some_and(|c| c != '-');
    if name.len() > 30 || !name.chars().all(fine) || !edge(name.chars().next()) || !edge(name.chars().last())
    {
        return Err(LabError::Invalid(format!(
            "`{name}` cannot be the name of a host: lower-case letters, digits and - inside, at most 30"
        )));
    }
    Ok(())
}
