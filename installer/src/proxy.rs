//! A connection that a program makes (`ProxyCommand`): what it prints comes from the host, what it is given goes there.

use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// It ends with the connection.
pub(crate) struct Proxied {
    from: ChildStdout,
    to: ChildStdin,
    complaint: Complaint,
    _child: Child,
}

/// The last line that the program wrote to its standard error.
#[derive(Clone, Default)]
pub(crate) struct Complaint(Arc<Mutex<String>>);

impl Complaint {
    pub(crate) fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Proxied {
    /// Starts it, as OpenSSH does: by a shell.
    pub(crate) fn start(command: &str) -> io::Result<Self> {
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
        let complaint = Complaint::default();
        let kept = complaint.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(errors).split(b'\n');
            while let Ok(Some(line)) = lines.next_segment().await {
                let line: String = String::from_utf8_lossy(&line).trim().chars().take(300).collect();
                if !line.is_empty() {
                    *kept.0.lock().unwrap_or_else(PoisonError::into_inner) = line;
                }
            }
        });
        Ok(Self { from, to, complaint, _child: child })
    }

    pub(crate) fn complaint(&self) -> Complaint {
        self.complaint.clone()
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
