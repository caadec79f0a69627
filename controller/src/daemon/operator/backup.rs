//! The whole state as one archive, sent while it is made.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postern_proto::v1;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::OperatorService;
use crate::backup;
use crate::daemon::authz::OperatorPeer;

/// Sent at once, bytes.
const PIECE: usize = 256 * 1024;
/// Pieces on their way.
const OUTBOUND: usize = 4;
/// Whoever takes no piece for so long does not want the rest.
const PATIENCE: Duration = Duration::from_secs(60);

type Pieces = mpsc::Sender<Result<v1::BackupPiece, Status>>;

impl OperatorService {
    pub(super) async fn archive(
        &self,
        peer: OperatorPeer,
    ) -> Result<ReceiverStream<Result<v1::BackupPiece, Status>>, Status> {
        let shared = Arc::clone(&self.0);
        let Ok(turn) = Arc::clone(&shared.backup).try_lock_owned() else {
            return Err(Status::resource_exhausted("another backup is under way: wait for it to end"));
        };
        tracing::info!(uid = peer.uid, "backup");
        let (out, stream) = mpsc::channel(OUTBOUND);
        let (runtime, stop) = (Handle::current(), shared.stop_sessions.clone());
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let mut pieces = Sender {
                out: out.clone(),
                runtime: runtime.clone(),
                stop,
                buffer: Vec::with_capacity(PIECE),
            };
            let now_ms = shared.clock.now_ms();
            let result = backup::write(&shared.store, &shared.state_dir, now_ms, &mut pieces);
            if let Err(error) = result {
                tracing::error!(%error, cause = ?std::error::Error::source(&error), "the backup failed");
                let status =
                    Status::internal(format!("the backup failed: {error}: see the controller's log"));
                let _ = runtime.block_on(tokio::time::timeout(PATIENCE, out.send(Err(status))));
            }
        });
        Ok(ReceiverStream::new(stream))
    }
}

/// Hands on what is written in pieces; waits for whoever takes them, but not for ever.
struct Sender {
    out: Pieces,
    runtime: Handle,
    stop: CancellationToken,
    buffer: Vec<u8>,
}

impl Sender {
    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = v1::BackupPiece { data: Bytes::from(std::mem::take(&mut self.buffer)) };
        let (out, stop) = (&self.out, &self.stop);
        self.runtime.block_on(async move {
            tokio::select! {
                sent = out.send_timeout(Ok(piece), PATIENCE) => sent.map_err(|error| match error {
                    mpsc::error::SendTimeoutError::Timeout(_) => io::ErrorKind::TimedOut.into(),
                    mpsc::error::SendTimeoutError::Closed(_) => io::ErrorKind::BrokenPipe.into(),
                }),
                () = stop.cancelled() => Err(io::Error::other("the controller stops")),
            }
        })
    }
}

impl Write for Sender {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = data.len().min(PIECE - self.buffer.len().min(PIECE));
        self.buffer.extend_from_slice(data.get(..count).unwrap_or_default());
        if self.buffer.len() >= PIECE {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
