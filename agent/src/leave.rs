//! Removes what the installer put on the host (unit, binary, configuration, state) and what of it is in force.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use postern_proto::host;
use tokio::process::Command;
use tokio::time::timeout;

use crate::guard::Guards;
use crate::sys::Sys;

/// For one call of systemctl.
const SYSTEMCTL: Duration = Duration::from_secs(20);

/// Where things lie on a host.
#[derive(Clone, Debug)]
pub struct HostPaths {
    /// The agent's program.
    pub binary: PathBuf,
    /// Its configuration's directory.
    pub config_dir: PathBuf,
    /// Its unit.
    pub unit_file: PathBuf,
    /// What a temporary route left on tmpfs.
    pub runtime_dirs: Vec<PathBuf>,
    /// Its state.
    pub state_dir: PathBuf,
    /// The service manager's command.
    pub systemctl: PathBuf,
    /// The firewall's units. Without the agent's program they cannot start.
    pub firewall_units: Vec<PathBuf>,
    /// Takes the firewall out of force; the error is for people.
    pub unload_firewall: fn() -> Result<(), String>,
}

impl Default for HostPaths {
    fn default() -> Self {
        Self {
            binary: host::AGENT_BINARY.into(),
            config_dir: host::CONFIG_DIR.into(),
            unit_file: host::UNIT_FILE.into(),
            runtime_dirs: vec![host::RUN_DIR.into(), host::RUN_DROP_IN_DIR.into()],
            state_dir: host::STATE_DIR.into(),
            systemctl: "systemctl".into(),
            firewall_units: crate::resources::firewall_units().map(Into::into).to_vec(),
            unload_firewall: || crate::firewall::Loader.unload(),
        }
    }
}

/// Removes all of it and gives what could not be removed, for people. What is not there counts as removed, so
/// it is safe to repeat. With `stop`, the running service is stopped first; the service itself must not ask
/// for that.
pub async fn remove(paths: &HostPaths, stop: bool) -> Vec<String> {
    let mut left = Vec::new();
    let guards = Guards { state_dir: paths.state_dir.clone(), sys: Sys::host() };
    if let Err(error) = guards.settle("", false).await {
        // Without this program and its state nobody could take it back.
        left.push(format!(
            "a change that was not confirmed could not be taken back, so the agent stays: {error}"
        ));
        return left;
    }
    let unit = paths.unit_file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let has_unit = paths.unit_file.symlink_metadata().is_ok();
    if has_unit {
        let disable: &[&str] = if stop { &["disable", "--now", &unit] } else { &["disable", &unit] };
        if let Err(why) = systemctl(&paths.systemctl, disable).await {
            left.push(why);
        }
    }
    firewall(paths, &mut left).await;
    file(&paths.unit_file, &mut left);
    let mut overrides = paths.unit_file.clone().into_os_string();
    overrides.push(".d");
    directory(Path::new(&overrides), &mut left);
    for dir in &paths.runtime_dirs {
        directory(dir, &mut left);
    }
    if has_unit && let Err(why) = systemctl(&paths.systemctl, &["daemon-reload"]).await {
        left.push(why);
    }
    directory(&paths.config_dir, &mut left);
    file(&paths.binary, &mut left);
    // Last: until here, a failure leaves an agent that still knows who it is.
    directory(&paths.state_dir, &mut left);
    left
}

/// A firewall that nobody can change any more would be worse than none.
async fn firewall(paths: &HostPaths, left: &mut Vec<String>) {
    let there = |path: &&PathBuf| path.symlink_metadata().is_ok();
    let units: Vec<&PathBuf> = paths.firewall_units.iter().filter(there).collect();
    if units.is_empty() {
        return;
    }
    let names = units.iter().map(|unit| unit.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let words: Vec<String> = std::iter::once("disable".to_owned()).chain(names).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let Err(why) = systemctl(&paths.systemctl, &words).await {
        left.push(why);
    }
    if let Err(why) = (paths.unload_firewall)() {
        left.push(format!("the firewall is still in force: {why}"));
    }
    for unit in units {
        file(unit, left);
    }
}

async fn systemctl(program: &Path, args: &[&str]) -> Result<(), String> {
    let line = format!("systemctl {}", args.join(" "));
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    match timeout(SYSTEMCTL, output).await {
        Err(_) => Err(format!("{line}: timed out")),
        Ok(Err(error)) => Err(format!("{line}: {error}")),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = crate::link::wire::readable(String::from_utf8_lossy(&output.stderr).trim());
            Err(format!("{line}: {}: {said}", output.status))
        }
    }
}

fn file(path: &Path, left: &mut Vec<String>) {
    note(path, std::fs::remove_file(path), left);
}

/// Follows no symbolic link, neither at the top nor below.
fn directory(path: &Path, left: &mut Vec<String>) {
    let result = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    note(path, result, left);
}

fn note(path: &Path, result: io::Result<()>, left: &mut Vec<String>) {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            left.push(format!("{}: {error}", path.display()));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn host(root: &Path) -> HostPaths {
        let paths = HostPaths {
            binary: root.join("bin/postern-agent"),
            config_dir: root.join("etc"),
            unit_file: root.join("systemd/postern-agent.service"),
            runtime_dirs: vec![root.join("run")],
            state_dir: root.join("state"),
            systemctl: root.join("systemctl"),
            firewall_units: vec![root.join("systemd/postern-firewall.service")],
            unload_firewall: || Err("busy".to_owned()),
        };
        for dir in ["bin", "etc", "run/drop-in", "systemd/postern-agent.service.d", "state/identity"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        for file in [&paths.binary, &paths.unit_file, &paths.config_dir.join("config.json")] {
            std::fs::write(file, "x").unwrap();
        }
        // A named double of systemctl: writes down how it was called.
        let log = root.join("calls");
        std::fs::write(&paths.systemctl, format!("#!/bin/sh\necho \"$@\" >>{}\n", log.display())).unwrap();
        std::fs::set_permissions(&paths.systemctl, std::fs::Permissions::from_mode(0o755)).unwrap();
        paths
    }

    #[tokio::test]
    async fn nothing_is_left_and_it_can_be_repeated() {
        let root = tempfile::tempdir().unwrap();
        let paths = host(root.path());
        assert_eq!(remove(&paths, false).await, Vec::<String>::new());
        for path in
            [&paths.binary, &paths.config_dir, &paths.unit_file, &paths.state_dir, &paths.runtime_dirs[0]]
        {
            assert!(!path.exists(), "{}", path.display());
        }
        assert_eq!(std::fs::read_dir(root.path().join("systemd")).unwrap().count(), 0);
        let calls = std::fs::read_to_string(root.path().join("calls")).unwrap();
        assert_eq!(calls, "disable postern-agent.service\ndaemon-reload\n");
        assert_eq!(remove(&paths, true).await, Vec::<String>::new());
    }

    /// I10: what stays in force after the agent could be changed by nobody.
    #[tokio::test]
    async fn the_firewall_goes_with_the_agent() {
        let root = tempfile::tempdir().unwrap();
        let mut paths = host(root.path());
        let unit = paths.firewall_units[0].clone();
        std::fs::write(&unit, "x").unwrap();
        let left = remove(&paths, false).await;
        assert_eq!(left, ["the firewall is still in force: busy"]);
        let calls = std::fs::read_to_string(root.path().join("calls")).unwrap();
        assert!(calls.contains("disable postern-firewall.service\n"), "{calls}");
        assert!(!unit.exists());
        std::fs::write(&unit, "x").unwrap();
        paths.unload_firewall = || Ok(());
        assert_eq!(remove(&paths, false).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_is_left_behind_is_said() {
        let root = tempfile::tempdir().unwrap();
        let mut paths = host(root.path());
        std::fs::write(&paths.systemctl, "#!/bin/sh\necho no bus >&2\nexit 1\n").unwrap();
        paths.binary = root.path().join("bin");
        let left = remove(&paths, true).await;
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(left[0].starts_with("systemctl disable --now postern-agent.service: exit status: 1: no bus"));
        assert!(left[2].contains("/bin: "), "{left:?}");
    }

    #[tokio::test]
    async fn trap_48_a_linked_state_directory_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let paths = host(root.path());
        let precious = root.path().join("precious");
        std::fs::create_dir(&precious).unwrap();
        std::fs::write(precious.join("f"), "x").unwrap();
        std::fs::remove_dir_all(&paths.state_dir).unwrap();
        std::os::unix::fs::symlink(&precious, &paths.state_dir).unwrap();
        assert_eq!(remove(&paths, false).await, Vec::<String>::new());
        assert!(precious.join("f").exists() && !paths.state_dir.exists());
    }
}
