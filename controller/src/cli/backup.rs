//! `postern backup` and `postern restore`: the controller's whole state as one file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::args::{Backup, Restore};
use super::error::{CliError, chain};
use super::fresh::Fresh;
use super::{Context, Exit, clean};
use crate::backup::{self, RestoreError};
use crate::client::Client;
use crate::seal::KEY_FILE_VARIABLE;

/// How long the daemon may take for a piece.
const PIECE: Duration = Duration::from_secs(60);

pub(crate) async fn backup(context: &Context, args: &Backup) -> Result<Exit, CliError> {
    let path = context.env.cwd.join(&args.file);
    let (bytes, has_key) = archive(&mut context.connect().await?, &path).await?;
    if context.out.json {
        context.out.document(
            &json!({"schema": "postern/backup/v1", "file": path, "bytes": bytes, "has_key": has_key}),
        );
    } else {
        context.out.line(&format!("{}: {bytes} bytes", path.display()));
        if !has_key {
            context.out.note(&format!(
                "the key of its secrets is not in it: the daemon uses the file that {KEY_FILE_VARIABLE} names; keep a \
                 copy of that apart from this one, nothing can be restored without it"
            ));
        }
        context.out.note("whoever has this file has the hosts: keep it where only you can read it");
    }
    Ok(Exit::Ok)
}

/// Writes the daemon's whole state to a file that does not exist yet; how many bytes, and whether the key of the secrets
/// is in it.
pub(crate) async fn archive(client: &mut Client, path: &Path) -> Result<(u64, bool), CliError> {
    let mut file = Fresh::create(path)?;
    let mut pieces = client.backup().await?;
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
    // Read back before it counts as one.
    let has_key = backup::verify(file.part()).map_err(|error| not_a_backup(&error))?;
    file.keep()?;
    Ok((bytes, has_key))
}

/// Offline: no daemon may have the state that is made.
pub(crate) fn restore(context: &Context, args: &Restore) -> Result<Exit, CliError> {
    let state_dir = context.state_dir()?.clone();
    let archive = context.env.cwd.join(&args.file);
    let key = context.env.get(KEY_FILE_VARIABLE).map(PathBuf::from);
    let now = jiff::Timestamp::now().as_millisecond();
    let restored = backup::restore(&archive, &state_dir, key.as_deref(), args.accept, now)
        .map_err(|error| not_restored(&error))?;
    let made = jiff::Timestamp::from_millisecond(restored.created_ms).map(|time| time.to_string());
    let made = made.unwrap_or_default();
    if context.out.json {
        context.out.document(&json!({
            "schema": "postern/restored/v1", "state_dir": state_dir, "cluster_id": restored.cluster,
            "generation": restored.generation, "created": made, "made_by": restored.made_by,
            "has_key": restored.has_key,
        }));
        return Ok(Exit::Ok);
    }
    context.out.line(&format!(
        "{}: controller {} as it was at {made}, generation {}",
        state_dir.display(),
        clean::line(&restored.cluster),
        restored.generation
    ));
    if !restored.has_key {
        context.out.note(&format!(
            "the key of its secrets is not in the backup: name its file with {KEY_FILE_VARIABLE} wherever the daemon \
             starts"
        ));
    }
    context.out.note("start it with `postern serve`; hosts dial it at the addresses that they know");
    Ok(Exit::Ok)
}

fn not_a_backup(error: &RestoreError) -> CliError {
    // Not where it lies on its way: it does not stay there.
    let message = match error {
        RestoreError::Corrupt { why, .. } => format!("what the daemon sent is no whole backup: {why}"),
        other => chain(other),
    };
    CliError::usage("backup-corrupt", message).hint("nothing was written; try again")
}

fn not_restored(error: &RestoreError) -> CliError {
    let message = chain(error);
    let (code, hint) = match error {
        RestoreError::NotAccepted => {
            ("not-accepted", "--accept says it; `postern restore --help` says all of it")
        }
        RestoreError::Missing(_) => ("not-found", "`postern backup FILE` writes one"),
        RestoreError::Corrupt { .. } => ("backup-corrupt", "nothing was restored: use another backup"),
        RestoreError::TooNew { .. } => ("backup-too-new", "nothing was restored"),
        RestoreError::NotEmpty(_) => (
            "state-not-empty",
            "a state is there already, perhaps with a daemon at work: end it and move the directory away, or name \
             another with --state-dir",
        ),
        RestoreError::Key(_) => ("secrets-key", "nothing was restored"),
        _ => ("state", "nothing was restored"),
    };
    CliError::usage(code, message).hint(hint)
}
