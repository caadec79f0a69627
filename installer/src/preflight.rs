//! Whether a host can be taken: pure decisions over what the survey saw.

use std::fmt;

use crate::api::Arch;
use crate::error::Code;
use crate::survey::{CloudInit, HostFacts, Sudo};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; the bootstrap goes on.
    Warning,
    /// The bootstrap stops before anything is changed.
    Refused,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `os`, `memory`, `clock` and so on.
    pub subject: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found and what is wanted.
    pub text: String,
    /// For a refusal: its code.
    pub code: Option<Code>,
}

/// What was checked before anything was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preflight {
    /// In a fixed order.
    pub findings: Vec<Finding>,
}

impl Preflight {
    /// The findings that stop a bootstrap.
    pub fn refusals(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Refused)
    }

    /// The findings worth knowing.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Warning)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.text)
    }
}

/// More than this far from our clock is worth a warning, seconds.
const CLOCK_WARNING_S: u64 = 300;
/// More than this is refused: apt's release files and everybody's certificates stop being valid.
const CLOCK_LIMIT_S: u64 = 7 * 24 * 3600;
/// Less free than this, in KiB, and the agent or its journal does not fit.
const DISK_LIMIT_KIB: u64 = 48 * 1024;
/// Less than this is worth a warning: packages will not fit.
const DISK_WARNING_KIB: u64 = 1024 * 1024;
const INODE_LIMIT: u64 = 200;
/// Hosts with less memory and no swap die in apt or Docker (T29).
const MEMORY_WARNING_KIB: u64 = 480 * 1024;

/// Judges a surveyed host.
pub(crate) fn check(facts: &HostFacts, has_agent: &dyn Fn(Arch) -> bool, accept_clock: bool) -> Preflight {
    let findings = vec![
        root(facts),
        os(facts),
        arch(facts, has_agent),
        init(facts),
        tools(facts),
        writable(facts),
        disk(facts),
        memory(facts),
        clock(facts, accept_clock),
        cloud_init(facts),
        packages(facts),
    ];
    Preflight { findings }
}

fn ok(subject: &'static str, text: impl Into<String>) -> Finding {
    Finding { subject, severity: Severity::Ok, text: text.into(), code: None }
}

fn warning(subject: &'static str, text: impl Into<String>) -> Finding {
    Finding { subject, severity: Severity::Warning, text: text.into(), code: None }
}

fn refused(subject: &'static str, code: Code, text: impl Into<String>) -> Finding {
    Finding { subject, severity: Severity::Refused, text: text.into(), code: Some(code) }
}

fn root(facts: &HostFacts) -> Finding {
    match facts.sudo {
        Sudo::Root => ok("root", "logged in as root"),
        Sudo::Free => ok("root", "sudo without a password"),
        Sudo::Password => ok("root", "sudo with a password"),
        Sudo::Missing => {
            refused("root", Code::NoSudo, format!("user id {} is not root and there is no sudo", facts.uid))
        }
    }
}

fn os(facts: &HostFacts) -> Finding {
    let name = if facts.os_name.is_empty() { "an unknown system" } else { facts.os_name.as_str() };
    let version: Option<f64> = facts.os_version.parse().ok();
    let (tested, oldest) = match facts.os_id.as_str() {
        "debian" => (12.0, 11.0),
        "ubuntu" => (22.04, 20.04),
        _ if facts.os_like.iter().any(|like| like == "debian" || like == "ubuntu") => {
            return warning("os", format!("{name} is not tested, but it is like Debian"));
        }
        _ => {
            return refused("os", Code::UnsupportedOs, format!("{name} is neither Debian nor Ubuntu"));
        }
    };
    match version {
        Some(version) if version < oldest => refused("os", Code::UnsupportedOs, format!("{name} is too old")),
        Some(version) if version < tested => warning("os", format!("{name} is old and not tested")),
        // Debian's testing and unstable have no version.
        _ => ok("os", name),
    }
}

fn arch(facts: &HostFacts, has_agent: &dyn Fn(Arch) -> bool) -> Finding {
    match Arch::from_uname(&facts.machine) {
        Some(arch) if has_agent(arch) => ok("architecture", arch.as_str()),
        Some(arch) => {
            refused("architecture", Code::UnsupportedArch, format!("this build carries no agent for {arch}"))
        }
        None => refused(
            "architecture",
            Code::UnsupportedArch,
            format!("there is no agent for {:?}", facts.machine),
        ),
    }
}

fn init(facts: &HostFacts) -> Finding {
    if facts.systemd {
        ok("init", "systemd")
    } else {
        refused("init", Code::NoSystemd, format!("the init is {:?}, not systemd", facts.init))
    }
}

fn tools(facts: &HostFacts) -> Finding {
    if facts.missing_tools.is_empty() {
        ok("tools", "all there")
    } else {
        let list = facts.missing_tools.join(", ");
        // Without systemd, systemctl is missing as well; that has its own finding.
        refused("tools", Code::MissingTool, format!("missing: {list}"))
    }
}

fn writable(facts: &HostFacts) -> Finding {
    // Only root's view says that a file system, and not just a permission, is in the way.
    let closed: Vec<&str> = facts
        .disks
        .iter()
        .filter(|disk| facts.surveyed_as_root && !disk.writable && disk.path != "/tmp")
        .map(|disk| disk.path.as_str())
        .collect();
    if closed.is_empty() {
        ok("writable", "all places can be written")
    } else {
        refused("writable", Code::ReadOnly, format!("read-only: {}", closed.join(", ")))
    }
}

fn disk(facts: &HostFacts) -> Finding {
    let places =
        || facts.disks.iter().filter(|disk| disk.path != "/tmp" && disk.path != "/etc/systemd/system");
    let Some(least) = places().filter(|disk| disk.free_kib.is_some()).min_by_key(|disk| disk.free_kib) else {
        return warning("disk", "df says nothing");
    };
    let free = least.free_kib.unwrap_or_default();
    if let Some(full) = places().find(|disk| disk.free_inodes.is_some_and(|free| free < INODE_LIMIT)) {
        return refused("disk", Code::DiskFull, format!("{} has no inodes left", full.path));
    }
    // /etc takes a few KiB; the program and the journal need room.
    if let Some(full) = places().find(|disk| {
        let limit = if disk.path == "/etc" { 1024 } else { DISK_LIMIT_KIB };
        disk.free_kib.is_some_and(|free| free < limit)
    }) {
        let free = full.free_kib.unwrap_or_default() / 1024;
        let text = format!("{} has {free} MiB left, {} are needed", full.path, DISK_LIMIT_KIB / 1024);
        return refused("disk", Code::DiskFull, text);
    }
    let text = format!("{} MiB free on {}", free / 1024, least.path);
    if free < DISK_WARNING_KIB { warning("disk", text) } else { ok("disk", text) }
}

fn memory(facts: &HostFacts) -> Finding {
    let text = format!("{} MiB, swap {} MiB", facts.memory_kib / 1024, facts.swap_kib / 1024);
    if facts.memory_kib + facts.swap_kib < MEMORY_WARNING_KIB {
        warning("memory", format!("{text}: package installation may run out of it"))
    } else {
        ok("memory", text)
    }
}

fn clock(facts: &HostFacts, accept: bool) -> Finding {
    let off = facts.clock_offset_s.unsigned_abs();
    let way = if facts.clock_offset_s < 0 { "behind" } else { "ahead of" };
    let text = match off {
        0..=299 => format!("{off} s {way} ours"),
        300..=172_799 => format!("{} minutes {way} ours", off / 60),
        _ => format!("{} days {way} ours", off / 86_400),
    };
    if off > CLOCK_LIMIT_S && !accept {
        refused("clock", Code::ClockOff, format!("the host's clock is {text}"))
    } else if off > CLOCK_WARNING_S {
        warning("clock", text)
    } else {
        ok("clock", text)
    }
}

fn cloud_init(facts: &HostFacts) -> Finding {
    match &facts.cloud_init {
        CloudInit::Absent => ok("cloud-init", "not there"),
        CloudInit::Busy(what) => warning("cloud-init", format!("still at work: {what}")),
        CloudInit::Done { errors } if errors.is_empty() => ok("cloud-init", "done"),
        CloudInit::Done { errors } => {
            warning("cloud-init", format!("done, with errors: {}", errors.join("; ")))
        }
    }
}

fn packages(facts: &HostFacts) -> Finding {
    match &facts.package_lock {
        Some(holder) => warning("packages", format!("dpkg's lock is held by {holder}")),
        None => ok("packages", "dpkg is free"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survey::Disk;

    fn good() -> HostFacts {
        let disk = |path: &str| Disk {
            path: path.into(),
            writable: true,
            free_kib: Some(10_000_000),
            free_inodes: Some(100_000),
        };
        HostFacts {
            os_id: "debian".into(),
            os_version: "12".into(),
            os_name: "Debian 12".into(),
            machine: "x86_64".into(),
            systemd: true,
            surveyed_as_root: true,
            memory_kib: 2_000_000,
            disks: vec![disk("/usr/local/bin"), disk("/etc"), disk("/var/lib"), disk("/tmp")],
            ..HostFacts::default()
        }
    }

    #[test]
    fn a_good_host_has_nothing_against_it() {
        let preflight = check(&good(), &|_| true, false);
        assert!(preflight.findings.iter().all(|finding| finding.severity == Severity::Ok), "{preflight:?}");
    }

    #[test]
    fn refusals_and_warnings() {
        type Change = fn(&mut HostFacts);
        let table: &[(&str, Change, Option<Code>)] = &[
            ("no sudo", |f| f.sudo = Sudo::Missing, Some(Code::NoSudo)),
            ("old debian", |f| f.os_version = "10".into(), Some(Code::UnsupportedOs)),
            ("debian 11", |f| f.os_version = "11".into(), None),
            ("fedora", |f| f.os_id = "fedora".into(), Some(Code::UnsupportedOs)),
            ("nothing known", |f| f.os_id.clear(), Some(Code::UnsupportedOs)),
            (
                "ubuntu 18.04",
                |f| (f.os_id, f.os_version) = ("ubuntu".into(), "18.04".into()),
                Some(Code::UnsupportedOs),
            ),
            ("mint", |f| (f.os_id, f.os_like) = ("mint".into(), vec!["ubuntu".into()]), None),
            ("riscv", |f| f.machine = "riscv64".into(), Some(Code::UnsupportedArch)),
            ("arm without agent", |f| f.machine = "aarch64".into(), Some(Code::UnsupportedArch)),
            ("no systemd", |f| f.systemd = false, Some(Code::NoSystemd)),
            ("no gzip", |f| f.missing_tools.push("gzip".into()), Some(Code::MissingTool)),
            ("read-only", |f| f.disks[0].writable = false, Some(Code::ReadOnly)),
            ("disk full", |f| f.disks[2].free_kib = Some(1000), Some(Code::DiskFull)),
            ("no inodes", |f| f.disks[2].free_inodes = Some(3), Some(Code::DiskFull)),
            ("little disk", |f| f.disks[2].free_kib = Some(500_000), None),
            ("little memory", |f| f.memory_kib = 400_000, None),
            ("two years ahead", |f| f.clock_offset_s = 2 * 365 * 86_400, Some(Code::ClockOff)),
            ("two years behind", |f| f.clock_offset_s = -2 * 365 * 86_400, Some(Code::ClockOff)),
            ("beyond all bounds", |f| f.clock_offset_s = i64::MIN, Some(Code::ClockOff)),
            ("an hour", |f| f.clock_offset_s = 3600, None),
            ("lock", |f| f.package_lock = Some("apt (pid 1)".into()), None),
            ("cloud-init failed", |f| f.cloud_init = CloudInit::Done { errors: vec!["x".into()] }, None),
        ];
        for (name, change, want) in table {
            let mut facts = good();
            change(&mut facts);
            let preflight = check(&facts, &|arch| arch == Arch::X86_64, false);
            let got = preflight.refusals().next().and_then(|finding| finding.code);
            assert_eq!(got, *want, "{name}: {preflight:?}");
            assert_eq!(preflight.warnings().count(), usize::from(want.is_none()), "{name}: {preflight:?}");
        }
        let mut facts = good();
        facts.clock_offset_s = 2 * 365 * 86_400;
        assert_eq!(check(&facts, &|_| true, true).refusals().count(), 0);
        assert_eq!(check(&facts, &|_| true, true).warnings().count(), 1);
    }
}
