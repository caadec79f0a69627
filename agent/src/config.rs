//! Reads what the installer wrote for the agent: missing, corrupt, too new and invalid are told apart.

use std::path::{Path, PathBuf};

use postern_proto::host::{AgentConfig, CONFIG_VERSION, exit};

/// The largest configuration that is read, bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// Why there is no configuration to work with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is none.
    #[error("there is no configuration at {}", .0.display())]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not the JSON that this build knows.
    #[error("the configuration {} is corrupt", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A newer installer wrote it.
    #[error("the configuration {} has version {version}, this agent knows {CONFIG_VERSION}: update the agent", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: u64,
    },
    /// It is well-formed and says something impossible.
    #[error("the configuration {} is invalid: {why}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl ConfigError {
    /// The exit code of the commands that need a configuration.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Missing(_) | Self::Corrupt { .. } | Self::Invalid { .. } => exit::USAGE,
            Self::Unreadable { .. } => exit::DISK,
            Self::TooNew { .. } => exit::TOO_NEW,
        }
    }
}

/// Reads and checks the configuration at this path.
pub fn load(path: &Path) -> Result<AgentConfig, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.into(), source };
    let bytes = match crate::link::private_file::read(path, MAX_BYTES) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(ConfigError::Missing(path.into())),
        Err(source) => return Err(unreadable(source)),
    };
    parse(path, &bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<AgentConfig, ConfigError> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u64,
    }
    let corrupt = |source| ConfigError::Corrupt { path: path.into(), source };
    // The version first: the fields of a newer one are not ours to judge.
    let Version { version } = serde_json::from_slice(bytes).map_err(corrupt)?;
    if version > u64::from(CONFIG_VERSION) {
        return Err(ConfigError::TooNew { path: path.into(), version });
    }
    let config: AgentConfig = serde_json::from_slice(bytes).map_err(corrupt)?;
    if config.controllers.is_empty() && config.temporary_route.is_none() {
        return Err(ConfigError::Invalid { path: path.into(), why: "it names no controller".into() });
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(version: u32, more: &str) -> Vec<u8> {
        format!(
            r#"{{"version":{version},"host_id":"0192f0c1-2345-7abc-8def-0123456789ab","controllers":["c:7300"],
            "server_name":"x","server_ca_pem":"","proxy":null{more}}}"#
        )
        .into_bytes()
    }

    #[test]
    fn missing_corrupt_too_new_and_invalid_are_four_answers() {
        let path = Path::new("/x/config.json");
        assert!(parse(path, &json(1, "")).is_ok());
        assert!(matches!(
            parse(path, &json(2, r#","novel":1"#)),
            Err(ConfigError::TooNew { version: 2, .. })
        ));
        assert!(matches!(parse(path, &json(1, r#","novel":1"#)), Err(ConfigError::Corrupt { .. })));
        let limits = parse(path, &json(1, r#","limits":{"lock_wait_s":5}"#)).unwrap().limits;
        assert_eq!(limits.lock_wait_s, Some(5));
        assert!(matches!(
            parse(path, &json(1, r#","limits":{"lock_wait":5}"#)),
            Err(ConfigError::Corrupt { .. })
        ));
        assert!(matches!(parse(path, b"{\"version\":1"), Err(ConfigError::Corrupt { .. })));
        assert!(matches!(parse(path, b""), Err(ConfigError::Corrupt { .. })));
        let none = String::from_utf8(json(1, "")).unwrap().replace("\"c:7300\"", "");
        assert!(matches!(parse(path, none.as_bytes()), Err(ConfigError::Invalid { .. })));
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(load(&dir.path().join("none")), Err(ConfigError::Missing(_))));
    }
}
