//! `postern-agent reload-ssh`: has sshd read its files anew, and is over once it has.
//!
//! `systemctl reload` is over as soon as sshd was told. It then closes its ports, reads its files from the start
//! and listens again: what is written into them in between is read by halves, and a second reload is lost.

use std::time::Duration;

use super::{ACT_LIMIT, PID_FILE, SERVICE, SETTLE};
use crate::sys::Sys;

/// It takes some 20 ms.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Reloads it and waits until it listens again; the error is for people.
pub(crate) async fn reload(host: &Sys) -> Result<(), String> {
    reload_within(host, SETTLE).await
}

async fn reload_within(host: &Sys, limit: Duration) -> Result<(), String> {
    let written = || host.mtime_ns(PID_FILE).map_err(|error| error.to_string());
    let before = written()?;
    let said = host.run(&["systemctl", "reload", "--", SERVICE], &[], ACT_LIMIT).await;
    let said = said.map_err(|error| error.to_string())?;
    if !said.ok() {
        return Err(format!("systemctl reload {SERVICE} failed: {}", said.last_line()));
    }
    // Told to write none, it does not tell either when it is done.
    if before.is_none() {
        return Ok(());
    }
    let until = tokio::time::Instant::now() + limit;
    loop {
        // It removes the file, and writes it again when it listens.
        if written()?.is_some_and(|now| Some(now) != before) {
            return Ok(());
        }
        if tokio::time::Instant::now() >= until {
            return Err(format!(
                "sshd was told to read its files, and did not listen again in {} s: see `journalctl -u ssh`",
                limit.as_secs()
            ));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host whose systemctl does this, and whose sshd wrote its pid file a minute ago where it writes one.
    fn host(systemctl: &str, pid_file: bool) -> (tempfile::TempDir, Sys) {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        if pid_file {
            let minute_ago = std::time::SystemTime::now() - Duration::from_secs(60);
            let file = std::fs::File::create(dir.path().join("run/sshd.pid")).unwrap();
            file.set_modified(minute_ago).unwrap();
        }
        let program = dir.path().join("systemctl");
        let script = format!("#!/bin/sh\ncd {}\necho \"$*\" >>asked\n{systemctl}\n", dir.path().display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        let sys = Sys::rooted(dir.path().to_owned(), path);
        (dir, sys)
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn it_is_over_when_sshd_listens_again_and_not_when_it_was_told() {
        let later = "rm run/sshd.pid; (sleep 0.5; : >read; : >run/sshd.pid) </dev/null >/dev/null 2>&1 &";
        let (dir, sys) = host(later, true);
        reload_within(&sys, LONG).await.unwrap();
        assert!(dir.path().join("read").exists(), "it was not waited for");
        let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap();
        assert_eq!(asked, "reload -- ssh.service\n");
    }

    #[tokio::test]
    async fn what_does_not_come_back_is_said() {
        for (script, pid_file, want) in [
            ("rm run/sshd.pid", true, Err("sshd was told to read its files, and did not listen again")),
            (":", true, Err("sshd was told to read its files, and did not listen again")),
            ("echo bad line 3 >&2; exit 1", true, Err("systemctl reload ssh.service failed: bad line 3")),
            (":", false, Ok(())),
        ] {
            let (_dir, sys) = host(script, pid_file);
            match (reload_within(&sys, Duration::from_millis(300)).await, want) {
                (Ok(()), Ok(())) => {}
                (Err(why), Err(want)) => assert!(why.starts_with(want), "{script}: {why}"),
                (got, want) => panic!("{script}: {got:?}, wanted {want:?}"),
            }
        }
    }
}
