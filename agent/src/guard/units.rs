//! The systemd units of a guard: a timer that takes the change back when its time is over, and a service that
//! does it, also at the next boot. They lie on the disk, since a transient timer is gone after a restart.

use std::path::PathBuf;
use std::time::Duration;

use super::GuardError;
use super::store::failed;
use crate::sys::{NewFile, Sys};

/// Where units lie.
const DIR: &str = "/etc/systemd/system";
/// What takes the service into a boot, and the timer.
const WANTS: [(&str, &str); 2] = [("multi-user.target.wants", "service"), ("timers.target.wants", "timer")];
/// For one call of systemctl.
const LIMIT: Duration = Duration::from_secs(60);

/// The units of the guard with this name.
pub(super) struct Units<'a> {
    pub(super) sys: &'a Sys,
    pub(super) name: &'a str,
}

/// In a unit a line of its own would be an instruction, and % and \ are not themselves.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && !"%\\".contains(*c)).collect()
}

/// The text of the service.
fn service(program: &str, state_dir: &str, name: &str, what: &str) -> String {
    format!(
        "# Written by Postern for one change, and removed with it.\n\
         [Unit]\n\
         Description=Takes back a change that was not confirmed: {what}\n\
         RequiresMountsFor={state_dir}\n\
         # In a boot: before what the change is about starts, so that it starts as it was before.\n\
         DefaultDependencies=no\n\
         After=local-fs.target\n\
         Before=network-pre.target postern-firewall.service ssh.service ssh.socket\n\
         Conflicts=shutdown.target\n\
         Before=shutdown.target\n\
         # It is not given up.\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart={program} guard-revert {name} --state-dir {state_dir}\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         TimeoutStartSec=300\n\
         UMask=0077\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

/// The text of the timer. It counts from when it is started, also after a boot.
fn timer(name: &str, window: Duration) -> String {
    format!(
        "# Written by Postern for one change, and removed with it.\n\
         [Unit]\n\
         Description=The time that the change {name} has to be confirmed\n\
         \n\
         [Timer]\n\
         OnActiveSec={}ms\n\
         AccuracySec=100ms\n\
         \n\
         [Install]\n\
         WantedBy=timers.target\n",
        window.as_millis()
    )
}

impl Units<'_> {
    fn unit(&self, kind: &str) -> String {
        format!("postern-guard-{}.{kind}", self.name)
    }

    fn path(&self, kind: &str) -> String {
        format!("{DIR}/{}", self.unit(kind))
    }

    fn links(&self) -> impl Iterator<Item = (String, String)> + '_ {
        WANTS.iter().map(|(dir, kind)| (format!("{DIR}/{dir}/{}", self.unit(kind)), self.path(kind)))
    }

    /// Writes both and enables them, durable on return; systemd does not know them yet.
    pub(super) fn write(
        &self,
        program: &str,
        state_dir: &str,
        what: &str,
        window: Duration,
    ) -> Result<(), GuardError> {
        let texts = [
            ("service", service(program, state_dir, self.name, &plain(what))),
            ("timer", timer(self.name, window)),
        ];
        // root's, but in tests.
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        for (kind, text) in texts {
            let path = self.path(kind);
            let new = NewFile { path: &path, content: text.as_bytes(), mode: 0o644, uid, gid };
            self.sys.replace(&new, |_| Ok(()))?.map_err(GuardError::Systemd)?;
        }
        for (link, target) in self.links() {
            let dir = link.rsplit_once('/').map_or("/", |(dir, _)| dir);
            if self.sys.meta(dir)?.is_none() {
                self.sys.make_directory(dir, 0o755, uid, gid)?;
            }
            self.sys.symlink(&link, &target)?;
        }
        Ok(())
    }

    async fn systemctl(&self, args: &[&str]) -> Result<(), GuardError> {
        let argv = [&["systemctl"], args].concat();
        let said = self.sys.run(&argv, &[], LIMIT).await?;
        if said.ok() {
            return Ok(());
        }
        Err(GuardError::Systemd(format!("systemctl {}: {}", args.join(" "), said.last_line())))
    }

    /// Starts the timer, and sees it run.
    pub(super) async fn start(&self) -> Result<(), GuardError> {
        let timer = self.unit("timer");
        self.systemctl(&["daemon-reload"]).await?;
        self.systemctl(&["start", "--", &timer]).await?;
        self.systemctl(&["is-active", "--quiet", "--", &timer]).await
    }

    /// Stops the timer and removes both units. What is not there is fine. A service of theirs that runs goes on.
    pub(super) async fn remove(&self) -> Result<(), GuardError> {
        let timer = self.unit("timer");
        let stopped = self.systemctl(&["stop", "--no-block", "--", &timer]).await;
        for (link, _) in self.links() {
            self.sys.remove(&link)?;
        }
        let there = self.sys.meta(&self.path("timer"))?.is_some();
        for kind in ["timer", "service"] {
            self.sys.remove(&self.path(kind))?;
        }
        if there {
            stopped?;
            self.systemctl(&["daemon-reload"]).await?;
        }
        Ok(())
    }
}

/// This program, as a unit names it.
pub(super) fn this_program() -> Result<String, GuardError> {
    let path: PathBuf = std::env::current_exe().map_err(failed("find", "/proc/self/exe".as_ref()))?;
    // After an update the kernel names the old file so.
    Ok(path.to_string_lossy().trim_end_matches(" (deleted)").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_units_say_what_a_revert_needs() {
        let service = service("/usr/local/bin/postern-agent", "/var/lib/postern-agent", "a-1", "firewall");
        for line in [
            "ExecStart=/usr/local/bin/postern-agent guard-revert a-1 --state-dir /var/lib/postern-agent",
            "RequiresMountsFor=/var/lib/postern-agent",
            "Restart=on-failure",
            "StartLimitIntervalSec=0",
            "WantedBy=multi-user.target",
        ] {
            assert!(service.lines().any(|found| found == line), "{line}");
        }
        let timer = timer("a-1", Duration::from_millis(61500));
        assert!(timer.contains("\nOnActiveSec=61500ms\n"), "{timer}");
        for text in [service, timer] {
            assert!(text.lines().all(|line| !line.contains('#') || line.starts_with('#')), "{text}");
        }
    }

    #[test]
    fn nothing_in_what_is_changed_becomes_an_instruction() {
        assert_eq!(plain("x\n[Service]\nExecStart=/bin/evil %n\\"), "x[Service]ExecStart=/bin/evil n");
    }
}
