//! The smallest change a resource makes: a closed set, journaled one by one.

use std::time::Duration;

use postern_proto::openpgp::Fingerprint;
use serde::{Deserialize, Serialize};

use crate::sys::FileId;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Runs a program under a supervisor. What it does has no general inverse.
    Exec(Exec),
    /// Puts a file in place. Its inverse is the file that was there.
    WriteFile(WriteFile),
    /// Sets owner and mode of a file. Its inverse are those it had.
    SetAttributes {
        /// Which file.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// What was looked at; anything else there is left alone. Needed where others than root may write the
        /// directory.
        seen: Option<FileId>,
    },
    /// Removes a file or a symbolic link.
    Remove {
        /// Which file.
        path: String,
    },
    /// Makes a directory; its parent must be there.
    MakeDirectory {
        /// Which.
        path: String,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Removes a directory that must be empty.
    RemoveDirectory {
        /// Which.
        path: String,
    },
    /// Puts a symbolic link in place.
    Symlink {
        /// Where.
        path: String,
        /// What it leads to.
        target: String,
    },
    /// Writes a value into the kernel: a file below `/proc/sys`, in place.
    WriteKernel {
        /// Which file.
        path: String,
        /// Without a newline.
        value: String,
    },
    /// Puts keys in place that were fetched before, in the binary form, once every primary key among them was
    /// seen to be one of these. What was fetched is removed, whatever it was.
    InstallKey {
        /// Where they were fetched to.
        from: String,
        /// Where they go.
        path: String,
        /// The keys that are trusted.
        pinned: Vec<Fingerprint>,
    },
    /// Makes a call to a program that listens on a Unix socket, under a supervisor. It has no general inverse.
    HttpUnix(HttpUnix),
    /// Restarts the host. The run goes on after it.
    Reboot {
        /// Why, for people.
        why: String,
    },
}

/// A program to run.
#[derive(Clone, PartialEq, Eq)]
pub struct Exec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to a clean environment.
    pub env: Vec<(String, String)>,
    /// What it reads; nothing when `None`. May be secret, unlike its arguments.
    pub stdin: Option<String>,
    /// Working directory.
    pub cwd: String,
    /// Whom it runs as; root when `None`.
    pub user: Option<String>,
    /// Until it is ended.
    pub timeout: Duration,
    /// Files that others lock while they do the same: the holder is named in messages, never ended.
    pub waits_for: Vec<String>,
}

impl Exec {
    /// A program as root, in `/`, with nothing added to the environment.
    #[must_use]
    pub fn new(argv: &[&str], timeout: Duration) -> Self {
        Self {
            argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
            env: Vec::new(),
            stdin: None,
            cwd: "/".to_owned(),
            user: None,
            timeout,
            waits_for: Vec::new(),
        }
    }
}

impl std::fmt::Debug for Exec {
    /// Without what may be secret: the environment's values and what it reads.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exec")
            .field("argv", &self.argv)
            .field("env", &self.env.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("cwd", &self.cwd)
            .field("user", &self.user)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// A call to a program that listens on a Unix socket: what `postern-agent http-unix` reads.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpUnix {
    /// What it is about, for people.
    pub what: String,
    /// The socket.
    pub socket: String,
    /// `POST`, `PUT`, `DELETE`.
    pub method: String,
    /// Path and query; not secret.
    pub path: String,
    /// How the engine logs in to a registry, as it wants it in a header of its own; none when empty. Secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub registry_auth: String,
    /// The request. May be secret. Where it has `{"$id": PATH}`, what stands at that path is asked for its `ID` first,
    /// which takes that place: a step does not know what those before it have made.
    pub body: serde_json::Value,
    /// The answer is lines of JSON that tell of progress.
    pub progress: bool,
    /// Answers beside those of success that say that it is as it is to be.
    pub fine: Vec<u16>,
    /// For all of it, seconds.
    pub limit_s: u64,
}

impl std::fmt::Debug for HttpUnix {
    /// Without what may be secret: the request and the login.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HttpUnix({}: {} {})", self.what, self.method, self.path)
    }
}

impl HttpUnix {
    /// The process that makes the call: the agent's own program, which reads it from stdin. So the call has the
    /// journal, the deadline and the redaction of every process.
    #[must_use]
    pub fn as_exec(&self, program: &str) -> Exec {
        // The call ends itself; the process is ended only where it does not.
        let mut exec = Exec::new(&[program, "http-unix"], Duration::from_secs(self.limit_s + 15));
        exec.stdin = Some(serde_json::to_string(self).unwrap_or_default());
        exec
    }
}

/// A file to put in place.
#[derive(Clone, PartialEq, Eq)]
pub struct WriteFile {
    /// Where.
    pub path: String,
    /// What is in it.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// A command that must exit 0 first; `{path}` stands for the file.
    pub validate: Option<Vec<String>>,
}

impl std::fmt::Debug for WriteFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WriteFile({}, {} bytes, {:04o})", self.path, self.content.len(), self.mode)
    }
}

/// The longest line about a step, characters.
const SUMMARY: usize = 200;

impl Step {
    /// One line for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let text = match self {
            Self::Exec(exec) => shown(&exec.argv),
            Self::WriteFile(file) => format!("write {}", file.path),
            Self::SetAttributes { path, mode, .. } => format!("set owner and mode {mode:04o} of {path}"),
            Self::Remove { path } => format!("remove {path}"),
            Self::MakeDirectory { path, mode, .. } => format!("make the directory {path} ({mode:04o})"),
            Self::RemoveDirectory { path } => format!("remove the directory {path}"),
            Self::Symlink { path, target } => format!("link {path} to {target}"),
            Self::WriteKernel { path, value } => {
                let name = path.trim_start_matches("/proc/sys/").replace('/', ".");
                format!("set {name} to {value}")
            }
            Self::InstallKey { path, .. } => format!("check the key and write {path}"),
            Self::HttpUnix(call) => call.what.clone(),
            Self::Reboot { why } => format!("restart the host: {why}"),
        };
        let mut line: String =
            text.chars().take(SUMMARY).map(|c| if c.is_control() { ' ' } else { c }).collect();
        if text.chars().nth(SUMMARY).is_some() {
            line.push('…');
        }
        line
    }
}

/// An argument vector as one would type it; options that only tune apt are left out.
fn shown(argv: &[String]) -> String {
    let mut words = Vec::new();
    let mut args = argv.iter();
    while let Some(arg) = args.next() {
        if arg == "-o" && argv.first().is_some_and(|program| program == "apt-get") {
            args.next();
        } else if arg.is_empty() || arg.contains([' ', '\t', '\n', '"', '\'', '$', '\\']) {
            words.push(format!("'{}'", arg.replace('\'', "'\\''")));
        } else {
            words.push(arg.clone());
        }
    }
    words.join(" ")
}
