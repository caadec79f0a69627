//! `postern backup` and `postern restore`: the controller's whole state as one file.

use std::time::Duration;

use serde_json::json;

use super::args::Backup;
use super::error::CliError;
use super::fresh::Fresh;
use super::{Context, Exit};

/// How long the daemon may take for a piece.
const PIECE: Duration = Duration::from_secs(60);

pub(crate) async fn backup(context: &Context, args: &Backup) -> Result<Exit, CliError> {
    let path = context.env.cwd.join(&args.file);
    let mut file = Fresh::create(&path)?;
    let mut pieces = context.connect().await?.backup().await?;
    let mut bytes = 0;
    loop {
        let piece = tokio::time::timeout(PIECE, pieces.next()).await.map_err(|_| {
            CliError::usage("deadline-exceeded", "the daemon sends nothing more of the backup")
        })?;
        let Some(piece) = piece? else { break };
        file.write(&piece)?;
        bytes += piece.len() as u64;
    }
    if bytes == 0 {
        return Err(CliError::usage("daemon-answer", "the daemon's backup is empty"));
    }
    file.keep()?;
    if context.out.json {
        context.out.document(&json!({"schema": "postern/backup/v1", "file": path, "bytes": bytes}));
    } else {
        context.out.line(&format!("{}: {bytes} bytes", path.display()));
        context.out.note("whoever has this file has the hosts: keep it where only you can read it");
    }
    Ok(Exit::Ok)
}
