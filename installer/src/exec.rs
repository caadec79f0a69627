//! One command on the host: its stdin fed, its output taken in bounds, its end waited for with a deadline.

use std::time::Duration;

use bytes::Bytes;
use russh::client::Msg;
use russh::{Channel, ChannelMsg};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::connect::Handle;
use crate::error::{BootstrapError, Code};

/// The most that is kept of each of stdout and stderr, bytes.
const MAX_OUTPUT: usize = 1024 * 1024;

/// What a command left.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// `None` when a signal ended it, or the connection broke before it was known.
    pub(crate) code: Option<u32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// stderr for people: what is worth showing, on one line, without control characters.
    pub(crate) fn complaint(&self) -> String {
        let lines = self.stderr.lines().map(str::trim).filter(|line| !line.is_empty());
        // sudo's prompt, which nobody sees.
        let lines = lines.filter(|line| !line.starts_with("[sudo"));
        let text: Vec<String> =
            lines.map(|line| line.chars().filter(|c| !c.is_control()).take(300).collect()).collect();
        let skip = text.len().saturating_sub(4);
        text[skip..].join("; ")
    }
}

/// What a line of output is answered with.
pub(crate) enum Answer {
    Nothing,
    Line,
}

/// A command that has been started.
pub(crate) struct Running {
    channel: Channel<Msg>,
}

fn broke(what: &str) -> BootstrapError {
    BootstrapError::new(Code::ConnectionCut, format!("the SSH connection broke while {what}"))
}

/// Opens a channel and starts a command in it. Does not wait for the command.
pub(crate) async fn start(
    handle: &Handle,
    command: &str,
    what: &str,
    deadline: Duration,
) -> Result<Running, BootstrapError> {
    let opening = async {
        let channel = handle.channel_open_session().await?;
        // No reply is waited for: it comes with the rest, and a refusal closes the channel's output.
        channel.exec(true, command).await?;
        Ok::<_, russh::Error>(channel)
    };
    match tokio::time::timeout(deadline, opening).await {
        Ok(Ok(channel)) => Ok(Running { channel }),
        Ok(Err(error @ russh::Error::ChannelOpenFailure(_))) => Err(BootstrapError::new(
            Code::Unexpected,
            format!("the server opens no channel for {what} (MaxSessions, or a restricted login?)"),
        )
        .caused_by(error)),
        Ok(Err(error)) => Err(broke(what).caused_by(error)),
        Err(_) => Err(timed_out(what, deadline)),
    }
}

fn timed_out(what: &str, deadline: Duration) -> BootstrapError {
    BootstrapError::new(
        Code::StepTimedOut,
        format!("the host took more than {} seconds over {what}", deadline.as_secs()),
    )
}

impl Running {
    /// Feeds stdin, then takes output until the command ends. `on_line` sees each line of stdout as it
    /// comes; unless `keep_stdin`, stdin is closed after the input.
    pub(crate) async fn finish(
        self,
        input: Input,
        keep_stdin: bool,
        what: &str,
        deadline: Duration,
        on_line: &mut (dyn FnMut(&str) -> Answer + Send),
    ) -> Result<Output, BootstrapError> {
        let until = Instant::now() + deadline;
        let mut output = Output::default();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut seen = 0;
        let mut refused = false;
        let (mut reader, writer) = self.channel.split();
        // Written beside reading: a command that answers before it has read everything must not block us.
        let mut feeding = Box::pin(async {
            for part in input.0 {
                writer.data_bytes(part).await?;
            }
            if !keep_stdin {
                writer.eof().await?;
            }
            Ok::<_, russh::Error>(())
        });
        let mut fed = false;
        loop {
            let message = tokio::select! {
                message = tokio::time::timeout_at(until, reader.wait()) => {
                    message.map_err(|_| timed_out(what, deadline))?
                }
                result = &mut feeding, if !fed => {
                    // A command that ends early closes its stdin: how it ended says more than that.
                    if let Err(error) = result {
                        tracing::debug!(%error, what, "stdin was closed");
                    }
                    fed = true;
                    continue;
                }
            };
            match message {
                Some(ChannelMsg::Data { data }) => {
                    let room = MAX_OUTPUT.saturating_sub(stdout.len()).min(data.len());
                    stdout.extend_from_slice(&data[..room]);
                    while let Some(end) = stdout[seen..].iter().position(|byte| *byte == b'\n') {
                        let line = String::from_utf8_lossy(&stdout[seen..seen + end]);
                        let answer = on_line(&line);
                        seen += end + 1;
                        if let Answer::Line = answer {
                            let _ = writer.data_bytes(Bytes::from_static(b"\n")).await;
                        }
                    }
                }
                Some(ChannelMsg::ExtendedData { data, .. }) => {
                    let room = MAX_OUTPUT.saturating_sub(stderr.len()).min(data.len());
                    stderr.extend_from_slice(&data[..room]);
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => output.code = Some(exit_status),
                Some(ChannelMsg::Failure) => refused = true,
                Some(ChannelMsg::Close) | None => break,
                Some(_) => {}
            }
            if refused {
                break;
            }
        }
        output.stdout = String::from_utf8_lossy(&stdout).into_owned();
        output.stderr = String::from_utf8_lossy(&stderr).into_owned();
        if refused {
            return Err(BootstrapError::new(
                Code::Unexpected,
                format!("the server does not run commands (while {what}): is this a restricted login?"),
            ));
        }
        if output.code.is_none() && output.stdout.is_empty() && output.stderr.is_empty() {
            return Err(broke(what));
        }
        Ok(output)
    }
}

/// Bytes for stdin, in order. Parts that are secret are not copied together.
#[derive(Default)]
pub(crate) struct Input(Vec<Bytes>);

impl Input {
    pub(crate) fn text(text: &str) -> Self {
        Self(vec![Bytes::copy_from_slice(text.as_bytes())])
    }

    pub(crate) fn secret(mut self, text: Zeroizing<String>) -> Self {
        self.0.push(secret_bytes(text));
        self
    }

    pub(crate) fn bytes(mut self, bytes: Bytes) -> Self {
        self.0.push(bytes);
        self
    }
}

/// Bytes that are wiped when the last reader is done with them.
fn secret_bytes(text: Zeroizing<String>) -> Bytes {
    struct Owner(Zeroizing<String>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
    Bytes::from_owner(Owner(text))
}

/// The whole of it, for commands nobody needs to talk to.
pub(crate) async fn run(
    handle: &Handle,
    command: &str,
    input: Input,
    what: &str,
    deadline: Duration,
) -> Result<Output, BootstrapError> {
    start(handle, command, what, deadline)
        .await?
        .finish(input, false, what, deadline, &mut |_| Answer::Nothing)
        .await
}
