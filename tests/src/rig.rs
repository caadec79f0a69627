//! The real `postern` against lab hosts: a state directory of its own, its daemon, and every command run to its end.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::lab::{self, Host, HostSpec, Image, Internet, Lab, TcpState, VmSpec};

/// How long a command may take before the test gives it up.
const COMMAND_DEADLINE: Duration = Duration::from_secs(240);
/// The same for one whose run may install Docker.
pub const LONG: Duration = Duration::from_secs(900);
/// How long the daemon may take to say where it listens.
const DAEMON_DEADLINE: Duration = Duration::from_secs(20);
/// How long a fresh host may take to answer SSH.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(60);
/// How long a virtual machine may take, which boots in 20 s where nothing else runs.
pub const VM_BOOT_DEADLINE: Duration = Duration::from_secs(240);

/// A lab, the binaries under test and a state directory. All of it ends when this is dropped.
pub struct Rig {
    /// Where hosts are made.
    pub lab: Lab,
    state: tempfile::TempDir,
    postern: PathBuf,
    agent: PathBuf,
    port: u16,
    daemon: Option<Child>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Ended {
    /// Fails the test with all that was printed unless the exit code is this one.
    #[track_caller]
    #[expect(clippy::panic, reason = "only tests call this, and a panic is how a test fails")]
    pub fn expect(self, code: i32) -> Self {
        if self.code != Some(code) {
            panic!(
                "want exit code {code}, got {:?}\n--- stdout\n{}\n--- stderr\n{}",
                self.code, self.stdout, self.stderr
            );
        }
        self
    }

    /// Fails the test unless standard error has this text.
    #[track_caller]
    #[expect(clippy::panic, reason = "only tests call this, and a panic is how a test fails")]
    pub fn says(self, text: &str) -> Self {
        if !self.stderr.contains(text) {
            panic!("want {text:?} on stderr\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        }
        self
    }
}

impl Rig {
    /// The gate of tests that need the lab and the built programs: `None` after a line that says why not.
    pub fn open() -> Option<Self> {
        Self::open_in(lab::require()?)
    }

    /// The same for tests that need a virtual machine.
    pub fn open_vm() -> Option<Self> {
        Self::open_in(lab::require_vm()?)
    }

    #[expect(clippy::panic, reason = "only tests call this, and a panic is how a test fails")]
    fn open_in(lab: Lab) -> Option<Self> {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let (Some(postern), Some(agent)) = (path("POSTERN_TEST_BIN"), path("POSTERN_TEST_AGENT")) else {
            let why = "POSTERN_TEST_BIN and POSTERN_TEST_AGENT do not name the built programs: run `cargo xtask test`";
            if std::env::var_os("POSTERN_REQUIRE_LAB").is_some_and(|v| v == "1") {
                panic!("{why}");
            }
            use std::io::Write as _;
            let _ = writeln!(std::io::stdout(), "SKIPPED lab: {why}");
            return None;
        };
        match Self::with(lab, postern, agent) {
            Ok(rig) => Some(rig),
            Err(error) => panic!("the rig cannot be set up: {error:#}"),
        }
    }

    /// A rig over these programs; its daemon is not started.
    pub fn with(lab: Lab, postern: PathBuf, agent: PathBuf) -> Result<Self> {
        let port = 17300 + u16::from(lab.run());
        lab.allow_port(port).context("open the controller's port to the lab")?;
        // postern refuses a state directory that others can enter.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let state = tempfile::Builder::new()
            .prefix("postern-rig-")
            .permissions(private)
            .tempdir()
            .context("make a state directory")?;
        Ok(Self { lab, state, postern, agent, port, daemon: None })
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// The port agents dial.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The agent program under test.
    pub fn agent(&self) -> &Path {
        &self.agent
    }

    /// Starts `postern serve` and waits until it answers.
    pub fn serve(&mut self) -> Result<()> {
        let log =
            std::fs::File::create(self.state.path().join("serve.log")).context("make the daemon's log")?;
        let listen = format!("0.0.0.0:{}", self.port);
        let child = self
            .command(&["serve", "--listen", &listen])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start postern serve")?;
        self.daemon = Some(child);
        let end = Instant::now() + DAEMON_DEADLINE;
        // Not by a command: one that finds no daemon would start its own.
        while std::os::unix::net::UnixStream::connect(self.state.path().join("postern.sock")).is_err() {
            if Instant::now() > end {
                let log = std::fs::read_to_string(self.state.path().join("serve.log")).unwrap_or_default();
                bail!("postern serve does not answer:\n{log}");
            }
            pause();
        }
        Ok(())
    }

    /// Kills the daemon with SIGKILL, as a crash would.
    pub fn kill_daemon(&mut self) -> Result<()> {
        let mut child = self.daemon.take().context("no daemon runs")?;
        child.kill().context("kill the daemon")?;
        child.wait().context("wait for the daemon")?;
        Ok(())
    }

    /// Ends the daemons that commands of this rig started for themselves.
    pub fn stop_private_daemon(&self) -> Result<()> {
        let state = format!("POSTERN_STATE_DIR={}", self.state.path().display());
        for entry in std::fs::read_dir("/proc").context("list processes")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if !environ.split(|byte| *byte == 0).any(|var| var == state.as_bytes()) {
                continue;
            }
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                // It may have ended by itself since it was listed.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            wait_for("the private daemon ends", DAEMON_DEADLINE, || Ok(!entry.path().join("exe").exists()))?;
        }
        Ok(())
    }

    /// `postern` with this rig's state directory and agent; nothing of the caller's own ssh set-up is seen.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.postern);
        command.env_clear();
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.state.path())
            .env("LANG", "C.UTF-8");
        command.env("POSTERN_STATE_DIR", self.state.path()).env("POSTERN_AGENT_BINARY", &self.agent);
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Runs `postern` to its end.
    pub fn run(&self, args: &[&str]) -> Result<Ended> {
        finish(self.command(args), COMMAND_DEADLINE)
    }

    /// The same with time to install Docker.
    pub fn run_long(&self, args: &[&str]) -> Result<Ended> {
        finish(self.command(args), LONG)
    }

    /// Gives a secret a value, which lies in a file for that moment only.
    pub fn set_secret(&self, name: &str, value: &str) -> Result<Ended> {
        let file = self.secret_file("value", value)?;
        let mut command = self.command(&["secret", "set", name]);
        command.stdin(std::fs::File::open(&file)?);
        let ended = finish(command, COMMAND_DEADLINE)?;
        std::fs::remove_file(file)?;
        Ok(ended)
    }

    /// The id of a host's newest run.
    pub fn last_run(&self, host: &Host) -> Result<String> {
        self.of_last_run(host, "id")
    }

    /// How a host's newest run ended, in its own words.
    pub fn last_message(&self, host: &Host) -> Result<String> {
        self.of_last_run(host, "message")
    }

    fn of_last_run(&self, host: &Host, field: &str) -> Result<String> {
        let runs = self.run(&["runs", "-H", &host.name, "--output", "json"])?.expect(0);
        let value: serde_json::Value = serde_json::from_str(&runs.stdout)?;
        let run = value["runs"].get(0).context("no run")?;
        Ok(run[field].as_str().with_context(|| format!("no {field} in {run}"))?.to_owned())
    }

    /// Who administers a host, as the shipped profiles ask for it: what follows a command, whose key the lab has.
    pub fn admin_vars(&self) -> Result<Vec<String>> {
        let key = std::fs::read_to_string(self.lab.public_key())?;
        Ok(vars(["admin=ada".to_owned(), format!("admin_key={}", key.trim())]))
    }

    /// What profile `swarm` has to be told in the lab.
    pub fn swarm_vars(&self, internet: &Internet) -> Result<Vec<String>> {
        let docker = vars([format!("docker_key={}", internet.docker_key())]);
        Ok([self.admin_vars()?, docker].concat())
    }

    /// The same with this image as Traefik, which gets its certificates by DNS from the lab's ACME server.
    pub fn traefik_vars(&self, internet: &Internet, image: &str) -> Result<Vec<String>> {
        let image = format!("traefik_image={image}");
        let more = [&image, "dns=cloudflare", "acme_email=lab@lab.test", "acme_server=staging"];
        Ok([self.swarm_vars(internet)?, vars(more.map(str::to_owned))].concat())
    }

    /// A file that only we can read, with this on its first line.
    pub fn secret_file(&self, name: &str, secret: &str) -> Result<PathBuf> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.state.path().join(name);
        let mut file =
            std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&path)?;
        writeln!(file, "{secret}").context("write a secret")?;
        Ok(path)
    }

    /// A host that answers SSH.
    pub fn host(&self, name: &str, image: Image) -> Result<Host> {
        self.host_with(HostSpec::new(name, image))
    }

    /// The same with more to say about it.
    pub fn host_with(&self, spec: HostSpec) -> Result<Host> {
        let host = self.lab.make(spec)?;
        host.wait_ssh(BOOT_DEADLINE)?;
        Ok(host)
    }

    /// A virtual machine that answers SSH.
    pub fn vm_with(&self, spec: VmSpec) -> Result<Host> {
        let host = self.lab.make_vm(spec)?;
        host.wait_ssh(VM_BOOT_DEADLINE)?;
        Ok(host)
    }

    /// `postern up root@HOST` with the lab's key and the host's own fingerprint, and these arguments.
    pub fn up(&self, host: &Host, more: &[&str]) -> Result<Ended> {
        self.up_as("root", host, more)
    }

    /// The same with time to install Docker.
    pub fn up_long(&self, host: &Host, more: &[&str]) -> Result<Ended> {
        finish(self.up_command("root", host, more)?, LONG)
    }

    /// The same as another user.
    pub fn up_as(&self, user: &str, host: &Host, more: &[&str]) -> Result<Ended> {
        finish(self.up_command(user, host, more)?, COMMAND_DEADLINE)
    }

    fn up_command(&self, user: &str, host: &Host, more: &[&str]) -> Result<Command> {
        let target = format!("{user}@{}", host.v4);
        let key = host.private_key.display().to_string();
        let fingerprint = host.fingerprint("ssh-ed25519").context("the host has no ed25519 key")?;
        let mut args =
            vec!["up", &target, "--identity", &key, "--host-key", fingerprint, "--name", &host.name];
        args.extend(more);
        Ok(self.command(&args))
    }
}

/// Values of variables as arguments.
fn vars(values: impl IntoIterator<Item = String>) -> Vec<String> {
    values.into_iter().flat_map(|value| ["--var".to_owned(), value]).collect()
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let dir = lab::failures_dir().join(format!("controller-{}", std::process::id()));
            let _ = std::fs::create_dir_all(&dir);
            for log in ["serve.log", "daemon.log"] {
                let _ = std::fs::copy(self.state.path().join(log), dir.join(log));
            }
        }
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = self.stop_private_daemon();
    }
}

/// A daemon, and one host that its agent has taken over; `None` where the lab cannot run.
pub fn managed(name: &str, image: Image) -> Result<Option<(Rig, Host)>> {
    managed_with(HostSpec::new(name, image))
}

/// The same with more to say about the host.
pub fn managed_with(spec: HostSpec) -> Result<Option<(Rig, Host)>> {
    let Some(mut rig) = Rig::open() else { return Ok(None) };
    rig.serve()?;
    let host = rig.host_with(spec)?;
    rig.up(&host, &[])?.expect(0);
    Ok(Some((rig, host)))
}

/// Applies a profile of these resources, always of one name: each replaces the one before it on the host.
pub fn apply(rig: &Rig, host: &Host, resources: &str, more: &[&str]) -> Result<Ended> {
    let profile = rig.state_dir().join("lab.yaml");
    std::fs::write(&profile, format!("name: lab\nresources:\n{resources}")).context("write a profile")?;
    let profile = profile.display().to_string();
    let mut args = vec!["apply", &profile, "-H", &host.name];
    args.extend(more);
    rig.run(&args)
}

/// All that a command printed.
#[must_use]
pub fn said(ended: &Ended) -> String {
    format!("{}{}", ended.stdout, ended.stderr)
}

/// Established connections of the guest to its own port 22.
pub fn ssh_connections(host: &Host) -> Result<usize> {
    let all = host.tcp_connections()?;
    Ok(all.iter().filter(|c| c.local.port() == 22 && c.state == TcpState::Established).count())
}

/// Waits until the guest has no SSH connection.
pub fn ssh_closed(host: &Host) -> Result<()> {
    wait_for("no SSH connection is left", Duration::from_secs(10), || Ok(ssh_connections(host)? == 0))
}

/// Runs a command to its end, or kills it at the deadline and says what it had printed.
pub fn finish(mut command: Command, deadline: Duration) -> Result<Ended> {
    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = loop {
        if let Some(status) = child.try_wait().context("wait for the command")? {
            break Some(status);
        }
        if start.elapsed() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        pause();
    };
    let took = start.elapsed();
    let (stdout, stderr) = (join(stdout), join(stderr));
    match status {
        Some(status) => Ok(Ended { code: status.code(), stdout, stderr, took }),
        None => bail!("{command:?} did not end in {deadline:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"),
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn join(thread: std::thread::JoinHandle<Vec<u8>>) -> String {
    String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned()
}

/// Waits until something is so; fails the test at the deadline, so that its hosts' journals are kept.
#[track_caller]
pub fn wait_for(what: &str, deadline: Duration, so: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for_or_tell(what, deadline, so, || Ok(String::new()))
}

/// The same, and at the deadline it is told what can be known of the reason.
#[track_caller]
#[expect(clippy::panic, reason = "only tests call this, and a panic is how a test fails")]
pub fn wait_for_or_tell(
    what: &str,
    deadline: Duration,
    mut so: impl FnMut() -> Result<bool>,
    tell: impl FnOnce() -> Result<String>,
) -> Result<()> {
    let end = Instant::now() + deadline;
    while !so()? {
        if Instant::now() > end {
            let told = tell().unwrap_or_else(|error| format!("(and that cannot be told: {error:#})"));
            panic!("waited {deadline:?} in vain: {what}\n{told}");
        }
        pause();
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "between two looks at a state, in code that blocks by design")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
