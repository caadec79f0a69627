//! A connection that a program makes (`ProxyCommand`): what it prints comes from the host, what it is given goes there.

use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

/// For what it says last.
const LINGER: Duration = Duration::from_secs(1);

/// It ends with the connection.
pub(crate) struct Proxied {
    from: ChildStdout,
    to: ChildStdin,
    _child: Child,
}

/// The last line that the program wrote to its standard error.
#[derive(Default)]
pub(crate) struct Complaint {
    line: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Complaint {
    /// It may still be on its way when the connection is over.
    pub(crate) async fn text(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let _ = tokio::time::timeout(LINGER, reader).await;
        }
        self.line.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Proxied {
    /// Starts it, as OpenSSH does: by a shell.
    pub(crate) fn start(command: &str) -> io::Result<(Self, Complaint)> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("exec {command}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(to), Some(from), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("it has no standard input or output"));
        };
        let line = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&line);
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(errors).split(b'\n');
            while let Ok(Some(line)) = lines.next_segment().await {
                let line: String = String::from_utf8_lossy(&line).trim().chars().take(300).collect();
                if !line.is_empty() {
                    *kept.lock().unwrap_or_else(PoisonError::into_inner) = line;
                }
            }
        });
        let complaint = Complaint { line, reader: Some(reader) };
        Ok((Self { from, to, _child: child }, complaint))
    }
}

impl AsyncRead for Proxied {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.from).poll_read(cx, buf)
    }
}

impl AsyncWrite for Proxied {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.to).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(cx)
    }
}
