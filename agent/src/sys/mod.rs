//! The host: the only place of the agent that touches its files and starts its programs.

use std::path::PathBuf;

/// A host, or a directory that stands for one in tests.
#[derive(Clone, Debug)]
pub struct Sys {
    root: PathBuf,
    path_env: String,
}

impl Sys {
    /// The machine this program runs on.
    #[must_use]
    pub fn host() -> Self {
        Self {
            root: PathBuf::from("/"),
            path_env: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        }
    }

    /// A directory that stands for a host's root; programs are looked for in `path_env`.
    #[must_use]
    pub fn rooted(root: PathBuf, path_env: String) -> Self {
        Self { root, path_env }
    }
}
