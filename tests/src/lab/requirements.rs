//! What the machine must have for the lab to run, and what to do about each thing that is missing.
use std::fmt;
use std::path::Path;

use super::cgroup::Hierarchies;
use super::sys::SAFE_PATH;

/// Something that the lab needs and this machine lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What is missing.
    pub what: String,
    /// The Debian package that has it, when installing one is the remedy.
    pub package: Option<&'static str>,
    /// The remedy in words.
    pub remedy: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is missing ({})", self.what, self.remedy)
    }
}

/// Programs and the packages that hold them.
const PROGRAMS: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("systemd-nspawn", "systemd-container"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("ip6tables", "iptables"),
    ("iptables-save", "iptables"),
    ("iptables-restore", "iptables"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("kill", "procps"),
    ("dpkg-deb", "dpkg"),
    ("chroot", "coreutils"),
    ("cp", "coreutils"),
];

/// Files and the packages that hold them.
const FILES: &[(&str, &str)] =
    &[("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring")];

/// Everything that keeps the lab from running here; empty when it can.
pub fn requirements() -> Vec<Missing> {
    let mut missing = Vec::new();
    if !cfg!(target_os = "linux") {
        let remedy = "run the lab on a Linux machine or in a virtual one".to_owned();
        return vec![Missing { what: "Linux".to_owned(), package: None, remedy }];
    }
    let mut lacks = |what: &str, package: Option<&'static str>, remedy: String| {
        missing.push(Missing { what: what.to_owned(), package, remedy });
    };
    if !rustix::process::geteuid().is_root() {
        lacks("root", None, "run as root: hosts need namespaces, mounts and firewall rules".to_owned());
    }
    for (program, package) in PROGRAMS {
        if !on_path(program) {
            lacks(&format!("the program {program}"), Some(package), format!("apt-get install {package}"));
        }
    }
    for (file, package) in FILES {
        if !Path::new(file).exists() {
            lacks(file, Some(package), format!("apt-get install {package}"));
        }
    }
    if !Path::new("/dev/net/tun").exists() {
        lacks("/dev/net/tun", None, "modprobe tun, or pass the device into this container".to_owned());
    }
    if Hierarchies::find().is_none() {
        lacks(
            "a writable cgroup v2 hierarchy",
            None,
            "mount -t cgroup2 none /sys/fs/cgroup/unified".to_owned(),
        );
    }
    if !overlay() {
        lacks("the overlay file system", None, "modprobe overlay".to_owned());
    }
    missing
}

/// Programs that virtual machines need beside those of the lab.
const VM_PROGRAMS: &[(&str, &str)] =
    &[(QEMU, "qemu-system-x86"), ("mke2fs", "e2fsprogs"), ("debugfs", "e2fsprogs")];

/// The emulator.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// What keeps virtual machines from running where a lab can; empty when they can.
pub fn machine_requirements() -> Vec<Missing> {
    let mut missing = Vec::new();
    if !cfg!(target_arch = "x86_64") {
        let remedy = "run these tests on an x86_64 machine: the kernel of their image is for that".to_owned();
        missing.push(Missing { what: "x86_64".to_owned(), package: None, remedy });
        return missing;
    }
    let absent = VM_PROGRAMS.iter().filter(|(program, _)| !on_path(program));
    missing.extend(absent.map(|(program, package)| Missing {
        what: format!("the program {program}"),
        package: Some(package),
        remedy: format!("apt-get install {package}"),
    }));
    missing
}

/// What keeps the test that has `ssh-audit` from getting it; empty when nothing does but the network maybe.
pub fn audit_requirements() -> Vec<Missing> {
    // Debian's python3 has the module venv without what fills an environment.
    let makes = std::process::Command::new("python3")
        .args(["-c", "import ensurepip, venv"])
        .env("PATH", SAFE_PATH)
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let missing = Missing {
        what: "Python's venv".to_owned(),
        package: Some("python3-venv"),
        remedy: "apt-get install python3-venv".to_owned(),
    };
    if makes { Vec::new() } else { vec![missing] }
}

fn on_path(program: &str) -> bool {
    SAFE_PATH.split(':').any(|dir| Path::new(dir).join(program).exists())
}

fn overlay() -> bool {
    let known = || std::fs::read_to_string("/proc/filesystems").is_ok_and(|t| t.contains("\toverlay\n"));
    // A module that is not loaded yet is not in the list.
    known()
        || (std::process::Command::new("modprobe")
            .args(["-q", "overlay"])
            .status()
            .is_ok_and(|s| s.success())
            && known())
}
