//! Short programs that look at the host: bounded in time and output, nothing of them is recorded.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use super::{Sys, SysError};

/// The most that is kept of each output, bytes; the rest is read and dropped.
const OUTPUT_LIMIT: usize = 1 << 20;

/// How long the outputs are read on once the program is over: what it left behind may hold them for ever.
const LINGER: Duration = Duration::from_millis(200);

/// Whom a program runs as, and where.
#[derive(Clone, Copy, Debug)]
pub struct As<'a> {
    /// root when `None`.
    pub user: Option<&'a str>,
    /// Its working directory.
    pub cwd: &'a str,
}

/// What a program said.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// True for exit code 0.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// What it said last, in one line.
    #[must_use]
    pub fn last_line(&self) -> String {
        let text = [&self.stdout[..], &self.stderr[..]].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("");
        line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
    }
}

async fn drain(from: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut part = vec![0u8; 8192];
    while let Ok(got @ 1..) = from.read(&mut part).await {
        let room = OUTPUT_LIMIT - kept.len();
        kept.extend_from_slice(&part[..got.min(room)]);
    }
}

/// Whether there is such a program, as `execvp` would look for it.
fn is_there(program: &str, path: &str, cwd: &str) -> bool {
    if program.contains('/') {
        return Path::new(cwd).join(program).is_file();
    }
    path.split(':').any(|dir| Path::new(dir).join(program).is_file())
}

impl Sys {
    /// Runs a program with a clean environment and no stdin; it is killed when its time is over, or when this
    /// is dropped.
    pub async fn run(
        &self,
        argv: &[&str],
        env: &[(&str, &str)],
        limit: Duration,
    ) -> Result<Output, SysError> {
        self.run_in("/", argv, env, limit).await
    }

    /// The same as a step would: as a user, in a directory, with the file mode mask 022.
    pub async fn run_as(
        &self,
        who: As<'_>,
        argv: &[&str],
        env: &[(&str, &str)],
        limit: Duration,
    ) -> Result<Output, SysError> {
        let program = argv.first().copied().unwrap_or_default();
        let path = env.iter().find(|(name, _)| *name == "PATH").map_or(self.path_env(), |(_, path)| path);
        // Asked beforehand: the programs in between would end with an exit status like any other.
        if !is_there(program, path, who.cwd) {
            let source = io::ErrorKind::NotFound.into();
            return Err(SysError::Start { program: program.to_owned(), source });
        }
        let user = who.user.map(|name| self.user(name)).transpose()?;
        let ids = user.as_ref().map(|user| (user.uid.to_string(), user.gid.to_string()));
        let (mut words, mut vars) = (Vec::new(), Vec::new());
        if let (Some(user), Some((uid, gid))) = (&user, &ids) {
            words.extend([
                "setpriv",
                "--reuid",
                uid,
                "--regid",
                gid,
                "--init-groups",
                "--inh-caps=-all",
                "--",
            ]);
            vars.extend([("HOME", &*user.home), ("USER", &*user.name), ("LOGNAME", &*user.name)]);
        }
        // The mask is one of the whole process: only a program in between can have another than ours.
        words.extend(["/bin/sh", "-c", "umask 022 && exec \"$@\"", "sh"]);
        words.extend(argv);
        vars.extend(env);
        self.run_in(who.cwd, &words, &vars, limit).await
    }

    async fn run_in(
        &self,
        cwd: &str,
        argv: &[&str],
        env: &[(&str, &str)],
        limit: Duration,
    ) -> Result<Output, SysError> {
        let program = argv.first().copied().unwrap_or_default();
        let mut command = Command::new(program);
        command.args(argv.get(1..).unwrap_or_default());
        command.env_clear().envs(self.base_env()).envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.current_dir(cwd).kill_on_drop(true);
        let mut child =
            command.spawn().map_err(|source| SysError::Start { program: program.to_owned(), source })?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let all = async {
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            let status = {
                let mut outputs =
                    pin!(async { tokio::join!(drain(out, &mut stdout), drain(err, &mut stderr)) });
                let over = tokio::select! {
                    biased;
                    _ = &mut outputs => None,
                    status = child.wait() => Some(status),
                };
                match over {
                    None => child.wait().await,
                    Some(status) => {
                        let _ = tokio::time::timeout(LINGER, outputs).await;
                        status
                    }
                }
            };
            (status, stdout, stderr)
        };
        match tokio::time::timeout(limit, all).await {
            Ok((Ok(status), stdout, stderr)) => Ok(Output { code: status.code(), stdout, stderr }),
            Ok((Err(source), ..)) => Err(SysError::Start { program: program.to_owned(), source }),
            Err(_) => Err(SysError::TimedOut { program: program.to_owned(), after: limit }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn programs_are_bounded() {
        let sys = Sys::host();
        let second = Duration::from_secs(20);
        let out = sys.run(&["sh", "-c", "echo a; echo b >&2; exit 3"], &[], second).await.unwrap();
        assert_eq!((out.code, &*out.stdout, &*out.stderr), (Some(3), &b"a\n"[..], &b"b\n"[..]));
        assert_eq!(out.last_line(), "b");
        let out = sys.run(&["head", "-c", "3000000", "/dev/zero"], &[], second).await.unwrap();
        assert_eq!(out.stdout.len(), OUTPUT_LIMIT);
        let began = std::time::Instant::now();
        let out = sys.run(&["sh", "-c", "echo a; sleep 30 & exit 4"], &[], second).await.unwrap();
        assert_eq!((out.code, &*out.stdout), (Some(4), &b"a\n"[..]));
        assert!(began.elapsed() < Duration::from_secs(15), "waited for what it left behind");
        let late = sys.run(&["sleep", "60"], &[], Duration::from_millis(50)).await;
        assert!(matches!(late, Err(SysError::TimedOut { .. })));
        assert!(matches!(sys.run(&["/no/such"], &[], second).await, Err(SysError::Start { .. })));
        let out = sys.run(&["env"], &[("A", "1")], second).await.unwrap();
        let mut names: Vec<_> = out.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty()).collect();
        names.sort();
        assert_eq!(names.len(), 4, "a clean environment");
    }

    #[tokio::test]
    async fn a_question_is_asked_as_its_command_would_run() {
        let sys = Sys::host();
        let second = Duration::from_secs(20);
        let who = As { user: None, cwd: "/tmp" };
        let script = "umask; pwd; echo $A $0 $1";
        let out = sys.run_as(who, &["sh", "-c", script, "x y", "$B"], &[("A", "1")], second).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "0022\n/tmp\n1 x y $B\n");
        let missing = sys.run_as(who, &["no-such-program"], &[], second).await;
        assert!(matches!(missing, Err(SysError::Start { .. })));
        let nobody = As { user: Some("ghost"), cwd: "/" };
        assert!(matches!(sys.run_as(nobody, &["id"], &[], second).await, Err(SysError::NoAccount { .. })));
        // Only root can become somebody else.
        if rustix::process::geteuid().is_root() && sys.user("nobody").is_ok() {
            let who = As { user: Some("nobody"), cwd: "/" };
            let out = sys.run_as(who, &["sh", "-c", "id -un; echo $LOGNAME"], &[], second).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&out.stdout), "nobody\nnobody\n");
        }
    }
}
