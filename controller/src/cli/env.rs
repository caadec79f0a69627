//! What a command takes from around it: environment, home, user. Read once, so that tests can give their own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The surroundings of a command.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: HashMap<String, String>,
    /// The directory that paths are relative to.
    pub cwd: PathBuf,
    /// Runs as root.
    pub root: bool,
    /// This program, to start a daemon from.
    pub program: PathBuf,
}

impl Env {
    /// This process's own.
    pub fn of_process() -> std::io::Result<Self> {
        Ok(Self {
            variables: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            cwd: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            root: rustix::process::geteuid().is_root(),
            program: std::env::current_exe()?,
        })
    }

    /// For tests: these variables and nothing else.
    #[must_use]
    pub fn of(variables: &[(&str, &str)], cwd: &Path, program: &Path) -> Self {
        Self {
            variables: variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            cwd: cwd.to_owned(),
            root: false,
            program: program.to_owned(),
        }
    }

    /// A variable that is there and not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Where `~` is.
    #[must_use]
    pub fn home(&self) -> Option<PathBuf> {
        self.get("HOME").map(PathBuf::from).or_else(|| self.root.then(|| PathBuf::from("/root")))
    }

    /// The state directory, absolute: as named, or this user's.
    #[must_use]
    pub fn state_dir(&self, named: Option<&Path>) -> Option<PathBuf> {
        let named = named.map(Path::to_owned).or_else(|| self.get("POSTERN_STATE_DIR").map(PathBuf::from));
        let dir = match named {
            Some(dir) => dir,
            None if self.root => PathBuf::from("/var/lib/postern"),
            None => match self.get("XDG_STATE_HOME") {
                // The XDG specification has relative ones ignored.
                Some(dir) if dir.starts_with('/') => Path::new(dir).join("postern"),
                _ => self.home()?.join(".local/state/postern"),
            },
        };
        Some(self.cwd.join(dir))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_directory_by_table() {
        let dir = |root, variables: &[(&str, &str)], named: Option<&str>| {
            let env = Env { root, ..Env::of(variables, Path::new("/cwd"), Path::new("/p")) };
            env.state_dir(named.map(Path::new)).map(|dir| dir.display().to_string()).unwrap_or_default()
        };
        let home = ("HOME", "/home/u");
        assert_eq!(dir(false, &[home], None), "/home/u/.local/state/postern");
        assert_eq!(dir(false, &[home, ("XDG_STATE_HOME", "/s")], None), "/s/postern");
        assert_eq!(dir(false, &[home, ("XDG_STATE_HOME", "s")], None), "/home/u/.local/state/postern");
        assert_eq!(dir(false, &[home, ("POSTERN_STATE_DIR", "rel")], None), "/cwd/rel");
        assert_eq!(dir(false, &[home, ("POSTERN_STATE_DIR", "rel")], Some("/x")), "/x");
        assert_eq!(dir(true, &[home], None), "/var/lib/postern");
        assert_eq!(dir(false, &[], None), "");
    }
}
