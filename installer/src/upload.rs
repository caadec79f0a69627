//! The agent's program on its way: by SFTP, or through a plain channel where that is off.

use std::time::Duration;

use bytes::Bytes;
use russh::ChannelMsg;
use russh_sftp::client::{Config, SftpSession};
use russh_sftp::protocol::{FileAttributes, OpenFlags};
use tokio::io::AsyncWriteExt as _;

use crate::connect::Handle;
use crate::error::{BootstrapError, Code};
use crate::exec::{self, Input};

/// How long opening SFTP may take before the plain channel is used.
const OPEN: Duration = Duration::from_secs(10);
/// The slowest upload that is waited for, bytes a second.
const SLOWEST: u64 = 16 * 1024;

/// Opens SFTP. `None` where the server has none: then the plain channel is used.
pub(crate) async fn open(handle: &Handle) -> Option<SftpSession> {
    let opening = async {
        let mut channel = handle.channel_open_session().await.ok()?;
        channel.request_subsystem(true, "sftp").await.ok()?;
        loop {
            match channel.wait().await? {
                ChannelMsg::Success => break,
                ChannelMsg::Failure | ChannelMsg::Close | ChannelMsg::Eof => return None,
                _ => {}
            }
        }
        // Many writes in flight: on a long way, waiting for each would cost a round trip per 32 KiB.
        let config = Config { max_concurrent_writes: 128, request_timeout_secs: 120, ..Config::default() };
        SftpSession::new_with_config(channel.into_stream(), config).await.ok()
    };
    tokio::time::timeout(OPEN, opening).await.ok().flatten()
}

fn deadline(bytes: &Bytes) -> Duration {
    Duration::from_secs(60 + bytes.len() as u64 / SLOWEST)
}

fn failed(text: impl Into<String>) -> BootstrapError {
    BootstrapError::new(Code::UploadFailed, text)
}

/// Writes the bytes to `path`, 0600 from the first moment. What an interrupted upload left there goes first.
pub(crate) async fn by_sftp(sftp: &SftpSession, path: &str, bytes: &Bytes) -> Result<(), BootstrapError> {
    let writing = async {
        let mut mode = FileAttributes::empty();
        mode.permissions = Some(0o600);
        let flags = OpenFlags::CREATE | OpenFlags::TRUNCATE | OpenFlags::WRITE;
        let mut file = sftp.open_with_flags_and_attributes(path, flags, mode).await?;
        file.write_all(bytes).await?;
        file.close().await?;
        Ok::<_, russh_sftp::client::error::Error>(())
    };
    match tokio::time::timeout(deadline(bytes), writing).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(failed(format!("uploading by SFTP to {path}")).caused_by(error)),
        Err(_) => Err(failed(format!("uploading by SFTP to {path} takes too long"))),
    }
}

/// The same through a command's stdin, as root: `prefix` is what comes before on stdin (sudo's password).
pub(crate) async fn by_channel(
    handle: &Handle,
    shell: &str,
    prefix: Input,
    path: &str,
    bytes: &Bytes,
) -> Result<(), BootstrapError> {
    // The script is an argument here, since stdin is the program; nothing in it is secret.
    let command = format!("{shell} -c 'umask 077; mkdir -p /usr/local/bin; rm -f {path}; cat >{path}'");
    let what = "uploading through a channel";
    let output = exec::run(handle, &command, prefix.bytes(bytes.clone()), what, deadline(bytes)).await?;
    if output.code == Some(0) {
        return Ok(());
    }
    let complaint = output.complaint();
    let code = crate::plan::disk_code(&complaint).unwrap_or(Code::UploadFailed);
    Err(BootstrapError::new(code, format!("uploading to {path}: {complaint}")))
}
