//! Throw-away VPSs on this machine: a full Debian with systemd, sshd and its own network stack in half a second.
//!
//! [`Lab::open`] makes a lab, [`Lab::make`] a host in it; both are removed when dropped, and also when the process is
//! killed (a guardian process sees to that, and every new lab sweeps up after dead ones). All calls block, none for
//! longer than its deadline; from async code use `spawn_blocking`. A lab test begins with [`require`].
//!
//! Such a host shares this machine's kernel. So it cannot have a clock or swap of its own, its memory has no limit,
//! its sysctls outside `net` reach the machine, and a power cut loses none of what it had written. For all that there
//! is [`Lab::make_vm`]: the same host as a virtual machine, with the same operations, which takes half a minute to
//! boot. A test of those begins with [`require_vm`].
//!
//! [`Lab::internet`] answers for a few public names, so that what fetches from them runs as it is.
mod cgroup;
mod error;
mod guest;
mod host;
mod image;
mod internet;
mod mirror;
mod net;
mod peer;
mod recipe;
mod requirements;
mod run;
mod spec;
mod store;
mod supervise;
mod sys;
mod tcp;
mod teardown;
mod venv;
mod vm;

use std::io::Write;
use std::path::PathBuf;

pub use error::{LabError, Result};
pub use guest::HostKey;
pub use host::Host;
pub use image::ImageInfo;
pub use internet::{DnsApi, Internet, serve};
pub use peer::Peer;
pub use requirements::{Missing, audit_requirements, machine_requirements, requirements};
pub use run::{HostInfo, Lab};
pub use spec::{FileSpec, Flavour, HostSpec, Image, Release, Sudo, UserSpec, VmSpec};
pub use supervise::{guard, guardian_log, supervise};
pub use sys::Output;
pub use tcp::{TcpConnection, TcpState};
pub use venv::{ssh_audit, venv};

/// The one gate of all lab tests: a lab, or none after a line `SKIPPED lab: …` where the machine cannot run one. With
/// `POSTERN_REQUIRE_LAB=1` that is a failure, and so is a lab that should run here but does not.
pub fn require() -> Option<Lab> {
    gate(verdict(&requirements(), is_required()))
}

/// The same for tests that need a virtual machine. A boot of one takes half a minute and more on a busy machine, so
/// they run only where `POSTERN_LAB_VMS=1` asks for them.
pub fn require_vm() -> Option<Lab> {
    let wish = std::env::var("POSTERN_LAB_VMS").ok();
    gate(vm_verdict(wish.as_deref(), &requirements(), &machine_requirements(), is_required()))
}

fn is_required() -> bool {
    std::env::var_os("POSTERN_REQUIRE_LAB").is_some_and(|v| v == "1")
}

/// What becomes of a test.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Run,
    Skip(String),
    Fail(String),
}

fn in_words(missing: &[Missing]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn verdict(missing: &[Missing], required: bool) -> Verdict {
    match (missing, required) {
        ([], _) => Verdict::Run,
        (_, true) => Verdict::Fail(format!("the lab is required but cannot run: {}", in_words(missing))),
        (_, false) => Verdict::Skip(format!("lab: {}", in_words(missing))),
    }
}

/// `wish` is what `POSTERN_LAB_VMS` says, `own` what only virtual machines lack.
fn vm_verdict(wish: Option<&str>, missing: &[Missing], own: &[Missing], required: bool) -> Verdict {
    match wish {
        Some("1") => verdict(&[missing, own].concat(), required),
        _ => Verdict::Skip("virtual machines are made where POSTERN_LAB_VMS=1 asks for them".to_owned()),
    }
}

#[expect(clippy::panic, reason = "only tests call this, and a panic is how a test fails")]
fn gate(verdict: Verdict) -> Option<Lab> {
    match verdict {
        Verdict::Run => {}
        Verdict::Fail(why) => panic!("{why}"),
        Verdict::Skip(why) => {
            // Not print!, which the test harness would swallow: a skipped test must be seen.
            let _ = writeln!(std::io::stdout(), "SKIPPED {why}");
            return None;
        }
    }
    match Lab::open() {
        Ok(lab) => Some(lab),
        Err(e) => panic!("the lab should run here but does not: {e}{}", causes(&e)),
    }
}

/// Where the journals of hosts of failed tests are kept: `POSTERN_LAB_FAILURES`, or a folder in the temporary one.
pub fn failures_dir() -> PathBuf {
    let default = || std::env::temp_dir().join("postern-lab-failures");
    std::env::var_os("POSTERN_LAB_FAILURES").map_or_else(default, PathBuf::from)
}

/// The causes of an error, each after a colon.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

/// Where nothing can be returned: a drop that failed must still be seen.
fn warn(text: &str) {
    let _ = writeln!(std::io::stderr(), "lab: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_by_table() {
        let lacks =
            |what: &str| vec![Missing { what: what.to_owned(), package: None, remedy: "get it".to_owned() }];
        let (none, root, qemu) = (Vec::new(), lacks("root"), lacks("qemu"));
        let cases = [
            (None, &none, &none, "skip virtual machines are made where POSTERN_LAB_VMS=1 asks for them"),
            (Some("0"), &none, &none, "skip virtual machines are made where POSTERN_LAB_VMS=1 asks for them"),
            (Some("1"), &none, &none, "run"),
            (Some("1"), &root, &none, "fail the lab is required but cannot run: root is missing (get it)"),
            (Some("1"), &none, &qemu, "fail the lab is required but cannot run: qemu is missing (get it)"),
        ];
        for (wish, missing, own, want) in cases {
            let got = match vm_verdict(wish, missing, own, true) {
                Verdict::Run => "run".to_owned(),
                Verdict::Skip(why) => format!("skip {why}"),
                Verdict::Fail(why) => format!("fail {why}"),
            };
            assert_eq!(got, want, "{wish:?}");
        }
        let skipped = Verdict::Skip("lab: root is missing (get it)".to_owned());
        assert_eq!(verdict(&root, false), skipped);
        assert_eq!(vm_verdict(Some("1"), &root, &none, false), skipped);
    }
}
