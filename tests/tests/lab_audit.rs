//! What `ssh-audit` says of a hardened SSH server. It comes from PyPI; where that cannot be reached, these tests are
//! skipped and say so.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use postern_tests::lab::{self, HostSpec, Image, UserSpec};
use postern_tests::rig::{Ended, apply, finish, managed_with};

const DEADLINE: Duration = Duration::from_secs(60);

/// Its exit code: 0 for nothing, 2 for warnings, 3 for failures, anything else where it could not look.
fn audit(program: &Path, address: IpAddr) -> Result<Ended> {
    let mut command = Command::new(program);
    command.args(["-l", "fail", "-n", &address.to_string()]);
    finish(command, DEADLINE)
}

fn no_failure(name: &str, image: Image) -> Result<()> {
    let program = match lab::ssh_audit()? {
        Ok(program) => program,
        Err(why) => {
            // Not print!, which the test harness would swallow: a skipped test must be seen.
            let _ = writeln!(std::io::stdout(), "SKIPPED ssh-audit is not to be had here: {why}");
            return Ok(());
        }
    };
    let mut spec = HostSpec::new(name, image);
    spec.users.push(UserSpec { name: "ada".to_owned(), ..UserSpec::default() });
    let Some((rig, host)) = managed_with(spec)? else { return Ok(()) };
    let before = audit(&program, host.v4.into())?;
    assert!(before.code == Some(3) && before.stdout.contains("[fail]"), "the control: {before:?}");
    apply(&rig, &host, "  - sshd: {users: [ada]}\n", &[])?.expect(0);
    for address in [IpAddr::from(host.v4), host.v6.into()] {
        let said = audit(&program, address)?;
        assert!(matches!(said.code, Some(0 | 2)) && !said.stdout.contains("[fail]"), "{address}: {said:?}");
    }
    Ok(())
}

#[test]
fn ssh_audit_finds_no_failure_on_debian_12() -> Result<()> {
    no_failure("audit-12", Image::BOOKWORM)
}

#[test]
fn ssh_audit_finds_no_failure_on_debian_13() -> Result<()> {
    no_failure("audit-13", Image::TRIXIE)
}
