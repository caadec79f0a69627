//! The systemd units of a guard: a timer that takes the change back when its time is over, and a service that
//! does it, also at the next boot. They lie on the disk, since a transient timer is gone after a restart.

use std::path::PathBuf;
use std::time::Duration;

use super::GuardError;
use super::store::failed;
use crate::sys::{NewFile, Sys};

/// Where units lie.
const DIR: &str = "/etc/systemd/system";
/// What takes the boot's service into a boot, and the timer.
const WANTS: [(&str, &str); 2] =
    [("multi-user.target.wants", "-boot.service"), ("timers.target.wants", ".timer")];
/// All of them.
const ALL: [&str; 3] = [".service", "-boot.service", ".timer"];
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

/// The text of the service that the timer starts. It is ordered before and after nothing: what it reloads and
/// restarts would wait for its end, and it for them.
fn service(program: &str, state_dir: &str, name: &str, what: &str) -> String {
    format!(
        "# Written by Postern for one change, and removed with it.\n\
         [Unit]\n\
         Description=Takes back a change that was not confirmed: {what}\n\
         RequiresMountsFor={state_dir}\n\
         # It is not given up.\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart={program} guard-revert {name} --state-dir {state_dir}\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         TimeoutStartSec=300\n\
         UMask=0077\n"
    )
}

/// The text of the service for a boot: before what the change is about starts, so that it starts as it was before.
/// What it puts in force waits for its end, so it waits for none of that (see `guard::Moment`).
fn boot_service(program: &str, state_dir: &str, name: &str, what: &str) -> String {
    format!(
        "# Written by Postern for one change, and removed with it.\n\
         [Unit]\n\
         Description=Takes back a change that was not confirmed before the host restarted: {what}\n\
         RequiresMountsFor={state_dir}\n\
         DefaultDependencies=no\n\
         After=local-fs.target\n\
         Wants=network-pre.target\n\
         Before=network-pre.target postern-firewall.service ssh.service ssh.socket ufw.service\n\
         Before=netfilter-persistent.service nftables.service firewalld.service\n\
         Conflicts=shutdown.target\n\
         Before=shutdown.target\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart={program} guard-revert-boot {name} --state-dir {state_dir}\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         TimeoutStartSec=300\n\
         UMask=0077\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

/// The text of the timer. The first of its two moments counts: that after its own start is put off on systemd 252
/// whenever anybody makes it read its units anew; that after systemd's start (`since` is how long ago that was) is
/// not. In the next boot the other service has been there before.
fn timer(name: &str, since: Option<Duration>, window: Duration) -> String {
    let fixed =
        since.map_or_else(String::new, |since| format!("OnStartupSec={}ms\n", (since + window).as_millis()));
    format!(
        "# Written by Postern for one change, and removed with it.\n\
         [Unit]\n\
         Description=The time that the change {name} has to be confirmed\n\
         \n\
         [Timer]\n\
         OnActiveSec={}ms\n\
         {fixed}AccuracySec=100ms\n\
         \n\
         [Install]\n\
         WantedBy=timers.target\n",
        window.as_millis()
    )
}

impl Units<'_> {
    fn unit(&self, kind: &str) -> String {
        format!("postern-guard-{}{kind}", self.name)
    }

    fn path(&self, kind: &str) -> String {
        format!("{DIR}/{}", self.unit(kind))
    }

    fn links(&self) -> impl Iterator<Item = (String, String)> + '_ {
        WANTS.iter().map(|(dir, kind)| (format!("{DIR}/{dir}/{}", self.unit(kind)), self.path(kind)))
    }

    /// Writes them and enables what is to be, durable on return; systemd does not know them yet.
    pub(super) fn write(
        &self,
        program: &str,
        state_dir: &str,
        what: &str,
        since: Option<Duration>,
        window: Duration,
    ) -> Result<(), GuardError> {
        let what = plain(what);
        let texts = [
            (".service", service(program, state_dir, self.name, &what)),
            ("-boot.service", boot_service(program, state_dir, self.name, &what)),
            (".timer", timer(self.name, since, window)),
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

    /// How long ago systemd was started; `None` where it does not say.
    pub(super) async fn since_start(sys: &Sys) -> Option<Duration> {
        let said =
            sys.run(&["systemctl", "show", "-P", "UserspaceTimestampMonotonic"], &[], LIMIT).await.ok()?;
        let began: u64 = std::str::from_utf8(&said.stdout).ok()?.trim().parse().ok().filter(|it| *it > 0)?;
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = Duration::new(u64::try_from(now.tv_sec).ok()?, u32::try_from(now.tv_nsec).ok()?);
        now.checked_sub(Duration::from_micros(began))
    }

    /// Lets the service go on with it, now.
    pub(super) async fn go_on(&self) -> Result<(), GuardError> {
        self.systemctl(&["start", "--no-block", "--", &self.unit(".service")]).await
    }

    /// Starts the timer, and sees it run.
    pub(super) async fn start(&self) -> Result<(), GuardError> {
        let timer = self.unit(".timer");
        self.systemctl(&["daemon-reload"]).await?;
        self.systemctl(&["start", "--", &timer]).await?;
        self.systemctl(&["is-active", "--quiet", "--", &timer]).await
    }

    /// Whether anybody would take the change back without the agent.
    pub(super) fn are_there(&self) -> Result<bool, GuardError> {
        Ok(self.sys.exists(&self.path(".service"))?)
    }

    /// Stops the timer and removes the units. What is not there is fine. A service of theirs that runs goes on.
    pub(super) async fn remove(&self) -> Result<(), GuardError> {
        let timer = self.unit(".timer");
        let stopped = self.systemctl(&["stop", "--no-block", "--", &timer]).await;
        for (link, _) in self.links() {
            self.sys.remove(&link)?;
        }
        let there = self.sys.meta(&self.path(".timer"))?.is_some();
        for kind in ALL {
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
        let of = |text: fn(&str, &str, &str, &str) -> String| {
            text("/usr/local/bin/postern-agent", "/var/lib/postern-agent", "a-1", "firewall")
        };
        let (service, boot) = (of(service), of(boot_service));
        for (text, line) in [
            (
                &service,
                "ExecStart=/usr/local/bin/postern-agent guard-revert a-1 --state-dir /var/lib/postern-agent",
            ),
            (
                &boot,
                "ExecStart=/usr/local/bin/postern-agent guard-revert-boot a-1 --state-dir /var/lib/postern-agent",
            ),
            (&boot, "WantedBy=multi-user.target"),
            (&boot, "Wants=network-pre.target"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
        for line in
            ["RequiresMountsFor=/var/lib/postern-agent", "Restart=on-failure", "StartLimitIntervalSec=0"]
        {
            assert!([&service, &boot].iter().all(|text| text.lines().any(|found| found == line)), "{line}");
        }
        // Ordered before what it restarts, it would wait for itself.
        assert!(!service.contains("Before=") && !service.contains("DefaultDependencies"), "{service}");
        let timer = timer("a-1", Some(Duration::from_secs(100)), Duration::from_millis(61500));
        assert!(timer.contains("\nOnActiveSec=61500ms\nOnStartupSec=161500ms\n"), "{timer}");
        for text in [service, boot, timer] {
            assert!(text.lines().all(|line| !line.contains('#') || line.starts_with('#')), "{text}");
        }
    }

    #[test]
    fn nothing_in_what_is_changed_becomes_an_instruction() {
        assert_eq!(plain("x\n[Service]\nExecStart=/bin/evil %n\\"), "x[Service]ExecStart=/bin/evil n");
    }
}
