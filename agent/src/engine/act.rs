//! Performs the steps that run no recorded process.

use std::time::Duration;

use crate::resources::Step;
use crate::sys::{NewFile, Sys};

/// The time a validation may take.
const VALIDATE_LIMIT: Duration = Duration::from_secs(60);

/// Does it. The error is for people.
pub(super) async fn act(sys: Sys, step: Step) -> Result<(), String> {
    let handle = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || match &step {
        Step::Exec(_) => Err("a process needs a supervisor".to_owned()),
        Step::WriteFile(file) => {
            let new = NewFile {
                path: &file.path,
                content: &file.content,
                mode: file.mode,
                uid: file.uid,
                gid: file.gid,
            };
            let check = |path: &str| match &file.validate {
                None => Ok(()),
                Some(argv) => handle.block_on(validate(&sys, argv, path)),
            };
            sys.replace(&new, check).map_err(|error| error.to_string()).flatten()
        }
        Step::SetAttributes { path, mode, uid, gid } => {
            sys.set_attributes(path, *mode, *uid, *gid).map_err(|error| error.to_string())
        }
        Step::Remove { path } => sys.remove(path).map_err(|error| error.to_string()),
        Step::MakeDirectory { path, mode, uid, gid } => {
            sys.make_directory(path, *mode, *uid, *gid).map_err(|error| error.to_string())
        }
        Step::RemoveDirectory { path } => sys.remove_directory(path).map_err(|error| error.to_string()),
        Step::Symlink { path, target } => sys.symlink(path, target).map_err(|error| error.to_string()),
        Step::WriteKernel { path, value } => sys.write_kernel(path, value).map_err(|error| error.to_string()),
        Step::Reboot { .. } => Err("a restart is the engine's to do".to_owned()),
    });
    done.await.unwrap_or_else(|error| Err(format!("the step broke off: {error}")))
}

async fn validate(sys: &Sys, argv: &[String], path: &str) -> Result<(), String> {
    let real = sys.real(path);
    let argv: Vec<String> = argv.iter().map(|arg| arg.replace("{path}", &real.to_string_lossy())).collect();
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    let said = sys.run(&words, &[], VALIDATE_LIMIT).await.map_err(|error| error.to_string())?;
    if said.ok() {
        return Ok(());
    }
    let how = said.code.map_or("a signal".to_owned(), |code| format!("exit status {code}"));
    Err(format!("{} does not accept the new content ({how}): {}", argv[0], said.last_line()))
}
