//! Calling cargo and reading what it built.
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The project's top folder.
pub(crate) fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.parent().map(Path::to_path_buf).unwrap_or(here)
}

/// A cargo command in the project's top folder, the same cargo that runs us.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).arg(subcommand).stdin(Stdio::null());
    // `cargo run` describes this program in our environment. Build scripts would see the difference to a cargo
    // called from a shell, and dependencies such as ring would be built again and again.
    for (name, _) in std::env::vars_os() {
        if describes_package(&name) {
            command.env_remove(name);
        }
    }
    command
}

fn describes_package(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_MANIFEST_")
        || matches!(name, "CARGO_BIN_NAME" | "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE")
}

/// Something that cargo built and that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Executable {
    /// The package's name.
    pub(crate) package: String,
    /// The target's name.
    pub(crate) target: String,
    /// `lib`, `bin` or `test`.
    pub(crate) kind: String,
    /// A test harness, not the program itself.
    pub(crate) harness: bool,
    /// The file.
    pub(crate) path: PathBuf,
    /// The folder of the package's `Cargo.toml`.
    pub(crate) dir: PathBuf,
    /// The target's root source file.
    pub(crate) source: PathBuf,
}

/// Runs a building cargo command, its progress shown, and returns what can be run.
pub(crate) fn build(mut command: Command) -> Result<Vec<Executable>> {
    let shown = show(&command);
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped()).stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({})", output.status);
    }
    let text =
        String::from_utf8(output.stdout).with_context(|| format!("`{shown}` wrote what is not text"))?;
    Ok(text.lines().filter_map(executable).collect())
}

/// One line of cargo's messages, when it is about an executable.
fn executable(line: &str) -> Option<Executable> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    Some(Executable {
        package: package_name(message["package_id"].as_str()?),
        target: message["target"]["name"].as_str()?.to_owned(),
        kind: message["target"]["kind"][0].as_str()?.to_owned(),
        harness: message["profile"]["test"].as_bool()?,
        path: message["executable"].as_str()?.into(),
        dir: manifest.parent()?.to_path_buf(),
        source: message["target"]["src_path"].as_str()?.into(),
    })
}

/// The name in a package id: `path+file:///x/agent#postern-agent@0.1.0`, or without a name when the folder has it.
fn package_name(id: &str) -> String {
    let (url, fragment) = id.rsplit_once('#').unwrap_or((id, ""));
    match fragment.split_once('@') {
        Some((name, _)) => name.to_owned(),
        None => url.rsplit('/').next().unwrap_or(url).to_owned(),
    }
}

/// The folder cargo builds in.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let mut command = cargo("metadata");
    command.args(["--no-deps", "--format-version=1"]).stderr(Stdio::inherit());
    let output = command.output().context("cannot start cargo")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cannot read `cargo metadata`")?;
    Ok(metadata["target_directory"].as_str().context("`cargo metadata` names no target directory")?.into())
}

/// Replaces this process, so that signals reach the program itself. Returns only when that failed.
pub(crate) fn exec(mut command: Command) -> anyhow::Error {
    let shown = show(&command);
    #[cfg(unix)]
    let error = std::os::unix::process::CommandExt::exec(&mut command);
    #[cfg(not(unix))]
    let error = match command.status() {
        Ok(status) => std::process::exit(status.code().unwrap_or(1)),
        Err(error) => error,
    };
    anyhow::Error::from(error).context(format!("cannot start `{shown}`"))
}

/// The command line, for people.
pub(crate) fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    std::iter::once(program)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether a program is on `PATH`.
pub(crate) fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///x/agent#postern-agent@0.1.0",
            "manifest_path":"/x/agent/Cargo.toml","target":{"kind":["bin"],"name":"postern-agent","src_path":"/x/agent/src/main.rs"},
            "profile":{"test":false},"executable":"/x/target/debug/postern-agent"}"#;
        let found = executable(line).unwrap();
        assert_eq!((found.package.as_str(), found.kind.as_str()), ("postern-agent", "bin"));
        assert_eq!((found.harness, found.dir.as_path()), (false, Path::new("/x/agent")));
        assert_eq!(executable(&line.replace("\"/x/target/debug/postern-agent\"", "null")), None);
        assert_eq!(executable("{\"reason\":\"build-finished\",\"success\":true}"), None);
        assert_eq!(executable("not json"), None);
    }

    #[test]
    fn package_ids_come_in_two_forms() {
        assert_eq!(package_name("path+file:///x/controller#postern@0.1.0"), "postern");
        assert_eq!(package_name("path+file:///x/xtask#0.1.0"), "xtask");
    }

    #[test]
    fn only_the_description_of_this_package_is_hidden_from_cargo() {
        for name in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_BIN_NAME"] {
            assert!(describes_package(OsStr::new(name)), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_NET_OFFLINE", "RUSTFLAGS", "CARGO"] {
            assert!(!describes_package(OsStr::new(name)), "{name}");
        }
    }
}
