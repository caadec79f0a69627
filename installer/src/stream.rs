//! What SSH runs over: a TCP connection, one through a jump host, or one that a program makes (`ProxyCommand`).

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

/// For what a program says last.
const LINGER: Duration = Duration::from_secs(1);

/// Passes everything on, and keeps what came first.
pub(crate) struct Stream {
    inner: Box<dyn Duplex>,
    heard: Heard,
    /// It ended before anything came over it.
    over: Arc<AtomicBool>,
    /// The program that makes the connection, which ends with it.
    program: Option<Child>,
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The first bytes a server sent.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<u8>>>);

impl Heard {
    const LIMIT: usize = 512;

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().map(|bytes| bytes.clone()).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.0.lock().is_ok_and(|bytes| bytes.is_empty())
    }

    fn note(&self, new: &[u8]) {
        if let Ok(mut heard) = self.0.lock() {
            let room = (Self::LIMIT - heard.len()).min(new.len());
            heard.extend_from_slice(&new[..room]);
        }
    }
}

/// Cuts a TCP connection, as a network would. For fault tests.
#[derive(Clone, Default)]
pub(crate) struct Cut(Arc<Mutex<Option<std::net::TcpStream>>>);

impl Cut {
    pub(crate) fn cut(&self) {
        if let Ok(socket) = self.0.lock()
            && let Some(socket) = socket.as_ref()
        {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// The last line that a program wrote to its standard error.
#[derive(Default)]
pub(crate) struct Complaint {
    over: Arc<AtomicBool>,
    line: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Complaint {
    /// It ended before anything came from the host: it has given up, and knows more of the way there than we do.
    pub(crate) fn gave_up(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// It may still be on its way when the connection is over.
    pub(crate) async fn text(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            let _ = tokio::time::timeout(LINGER, reader).await;
        }
        self.line.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Stream {
    /// A connection to the host itself, of which a second handle is kept for [`Cut`].
    pub(crate) fn direct(tcp: TcpStream, cut: &Cut) -> io::Result<Self> {
        let std = tcp.into_std()?;
        if let Ok(mut kept) = cut.0.lock() {
            *kept = Some(std.try_clone()?);
        }
        Ok(Self::over(TcpStream::from_std(std)?))
    }

    /// Any other connection.
    pub(crate) fn over(inner: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { inner: Box::new(inner), heard: Heard::default(), over: Arc::default(), program: None }
    }

    /// Starts a program, as OpenSSH does: by a shell. What it prints comes from the host, what it is given goes there.
    pub(crate) fn by_program(command: &str) -> io::Result<(Self, Complaint)> {
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
        let stream = Self { program: Some(child), ..Self::over(tokio::io::join(from, to)) };
        let complaint = Complaint { over: Arc::clone(&stream.over), line, reader: Some(reader) };
        Ok((stream, complaint))
    }

    pub(crate) fn heard(&self) -> Heard {
        self.heard.clone()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.heard.note(&buf.filled()[before..]);
        let is_end =
            matches!(result, Poll::Ready(Ok(()))) && buf.filled().len() == before && buf.remaining() > 0;
        if is_end && self.heard.is_empty() {
            self.over.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Err(error)) = &result
            && error.kind() == io::ErrorKind::BrokenPipe
            && self.program.is_some()
        {
            // A program that has ended may have said something before: that is still to be read, and says more.
            return Poll::Ready(Ok(buf.len()));
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
