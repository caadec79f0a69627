//! Short programs that look at the host: bounded in time and output, nothing of them is recorded.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use super::{Sys, SysError};

/// The most that is kept of each output, bytes; the rest is read and dropped.
const OUTPUT_LIMIT: usize = 1 << 20;

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

async fn drain(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return kept };
    let mut part = vec![0u8; 8192];
    while let Ok(got @ 1..) = from.read(&mut part).await {
        let room = OUTPUT_LIMIT - kept.len();
        kept.extend_from_slice(&part[..got.min(room)]);
    }
    kept
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
        let program = argv.first().copied().unwrap_or_default();
        let mut command = Command::new(program);
        command.args(argv.get(1..).unwrap_or_default());
        command.env_clear().envs(self.base_env()).envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.current_dir("/").kill_on_drop(true);
        let mut child =
            command.spawn().map_err(|source| SysError::Start { program: program.to_owned(), source })?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let all = async {
            let (stdout, stderr) = tokio::join!(drain(out), drain(err));
            let status = child.wait().await;
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
        let late = sys.run(&["sleep", "60"], &[], Duration::from_millis(50)).await;
        assert!(matches!(late, Err(SysError::TimedOut { .. })));
        assert!(matches!(sys.run(&["/no/such"], &[], second).await, Err(SysError::Start { .. })));
        let out = sys.run(&["env"], &[("A", "1")], second).await.unwrap();
        let mut names: Vec<_> = out.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty()).collect();
        names.sort();
        assert_eq!(names.len(), 4, "a clean environment");
    }
}
