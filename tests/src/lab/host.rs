//! One host: reaching into it, rebooting it, cutting its power, watching its network.
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cgroup::{Hierarchies, guest_init};
use super::error::{LabError, Result};
use super::guest::HostKey;
use super::net::{self, Net};
use super::run::{Inner, key_path, write_known_hosts};
use super::spec::Image;
use super::store::{HostRecord, Places, SupervisorRecord, load};
use super::supervise;
use super::sys::{Cmd, Output, make_dir, read_text, remove, wait_until, write_file};
use super::tcp::{TcpConnection, parse_table};
use super::teardown;
use super::vm;

/// A throw-away host. Dropping one that a [`super::Lab`] made destroys it; one from [`super::Lab::find`] is left
/// alone.
#[derive(Debug)]
pub struct Host {
    /// Name, also the guest's host name.
    pub name: String,
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address (ULA; leads to the gateway only).
    pub v6: Ipv6Addr,
    /// Where its sshd listens.
    pub ssh_port: u16,
    /// Its root file system as seen from the machine; of a virtual machine nothing is seen there.
    pub root_dir: PathBuf,
    /// Name of its network namespace, for `ip netns exec`; a virtual machine has none that is seen from outside.
    pub netns: String,
    /// A private key that root and all users accept.
    pub private_key: PathBuf,
    /// Its host keys with their fingerprints.
    pub host_keys: Vec<HostKey>,
    /// A `known_hosts` file that holds these keys.
    pub known_hosts: PathBuf,
    /// The image it was made from.
    pub image: Image,
    record: HostRecord,
    places: Places,
    owner: Option<Arc<Inner>>,
}

/// How long a guest may take to answer `exec` with its first process.
const INIT_DEADLINE: Duration = Duration::from_secs(20);
/// How long a host may take from its supervisor's start to its first process: there is work before that.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Default deadline of [`Host::exec`].
const EXEC_DEADLINE: Duration = Duration::from_secs(60);
/// The same for a virtual machine, which shares a busy machine's cores with others and is far slower as it is.
const VM_EXEC_DEADLINE: Duration = Duration::from_secs(300);
/// What is kept of the agent when a test failed.
const FOLDERS: [&str; 2] = ["var/lib/postern-agent", "etc/postern-agent"];

impl Host {
    /// The port of sshd.
    pub const SSH_PORT: u16 = 22;

    pub(super) fn attach(
        owner: Option<Arc<Inner>>,
        places: Places,
        record: HostRecord,
        host_keys: Vec<HostKey>,
    ) -> Result<Host> {
        let dir = places.host(record.run, &record.name);
        let known_hosts = dir.join("known_hosts");
        if !host_keys.is_empty() && !known_hosts.exists() {
            write_known_hosts(&known_hosts, &record, &host_keys)?;
        }
        Ok(Host {
            name: record.name.clone(),
            v4: record.v4,
            v6: record.v6,
            ssh_port: Self::SSH_PORT,
            root_dir: dir.join("root"),
            netns: Net { run: record.run }.unique(&record.name),
            private_key: key_path(&places, record.run),
            host_keys,
            known_hosts,
            image: record.image,
            record,
            places,
            owner,
        })
    }

    fn dir(&self) -> PathBuf {
        self.places.host(self.record.run, &self.name)
    }

    /// Starts a host that is off. It is booting when this returns.
    pub fn start(&self) -> Result<()> {
        if self.init_pid().is_some() {
            return Err(LabError::Invalid(format!("{} runs already", self.name)));
        }
        // What is left of the last boot's group, if anything, would be taken for the new guest.
        teardown::stop(self.record.run, &self.name)?;
        let state = self.dir().join("supervisor.json");
        remove(&state)?;
        let console = self.dir().join("console.log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&console);
        let log = log.map_err(LabError::io("open", &console))?;
        let run = self.record.run.to_string();
        let mut child =
            supervise::spawn(&self.places, &["supervise", &run, &self.name], Some(log), Stdio::null())?;
        let started = wait_until(format!("{} starts", self.name), START_DEADLINE, || {
            if self.init_pid().is_some() {
                return Ok(Some(()));
            }
            if let Ok(Some(status)) = child.try_wait() {
                let text = std::fs::read_to_string(&console).unwrap_or_default();
                let argv = format!("lab supervise {run} {}", self.name);
                return Err(LabError::Failed { argv, status: status.to_string(), output: text });
            }
            Ok(None)
        });
        // Someone must collect the supervisor's exit status, or it stays a zombie for as long as we live.
        std::thread::spawn(move || child.wait());
        started
    }

    /// The process id, on the machine, of the guest's first process (of a virtual machine: of its emulator); none
    /// when the guest is off.
    pub fn init_pid(&self) -> Option<i32> {
        let processes = Hierarchies::find()?.processes(&self.netns);
        if self.is_vm() { vm::emulator(&processes) } else { guest_init(&processes) }
    }

    /// Whether this is a virtual machine. It is reached over SSH alone, so it must answer that for whatever runs a
    /// program in it.
    pub fn is_vm(&self) -> bool {
        self.record.vm.is_some()
    }

    fn running_init(&self) -> Result<i32> {
        let what = format!("{} has a first process", self.name);
        wait_until(what, INIT_DEADLINE, || Ok(self.init_pid()))
    }

    /// The command that runs a program inside the guest, not as a child of the guest's own first process.
    pub fn enter(&self, argv: &[&str]) -> Result<Command> {
        if self.is_vm() {
            let mut command = self.ssh_with("root", &["RequestTTY=auto"]);
            command.arg(vm::remote(argv)).stdin(Stdio::inherit());
            return Ok(command);
        }
        let mut command = Command::new("nsenter");
        command.env_clear().env("PATH", super::sys::SAFE_PATH).env("HOME", "/root").env("LANG", "C.UTF-8");
        command.args(self.enter_args()?).args(argv);
        Ok(command)
    }

    fn enter_args(&self) -> Result<Vec<String>> {
        let target = format!("--target={}", self.running_init()?);
        let flags = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--"];
        Ok(std::iter::once(target).chain(flags.map(str::to_owned)).collect())
    }

    /// Runs a program in the guest as root and waits for its end, a minute at most, five in a virtual machine. An
    /// exit status other than 0 is no error; see [`Output::ok`].
    pub fn exec<S: AsRef<str>>(&self, argv: &[S]) -> Result<Output> {
        self.exec_with(argv, b"", if self.is_vm() { VM_EXEC_DEADLINE } else { EXEC_DEADLINE })
    }

    /// The same with standard input and a deadline.
    pub fn exec_with<S: AsRef<str>>(&self, argv: &[S], input: &[u8], deadline: Duration) -> Result<Output> {
        if self.is_vm() {
            return vm::exec(self, argv, input, deadline);
        }
        let mut all = vec!["nsenter".to_owned()];
        all.extend(self.enter_args()?);
        all.extend(argv.iter().map(|a| a.as_ref().to_owned()));
        let vars = [("HOME", "/root"), ("LANG", "C.UTF-8")];
        Cmd::new(all).clean_env(&vars).input(input).deadline(deadline).output()
    }

    /// Runs a line of shell in the guest and returns its output; a status other than 0 is an error.
    pub fn sh(&self, line: &str) -> Result<String> {
        Ok(self.exec(&["sh", "-c", line])?.ok()?.text())
    }

    /// The real `ssh` with this host's key and host keys, as `user`; add the remote command. It reads no
    /// configuration of the caller.
    pub fn ssh(&self, user: &str) -> Command {
        self.ssh_with(user, &[])
    }

    /// The same with options (`Name=value`) that go before the usual ones, and so win over them.
    pub fn ssh_with(&self, user: &str, options: &[&str]) -> Command {
        self.ssh_to(self.v4.into(), user, options)
    }

    /// The same to one of its addresses.
    pub fn ssh_to(&self, address: IpAddr, user: &str, options: &[&str]) -> Command {
        let usual = ["BatchMode=yes", "IdentitiesOnly=yes", "ConnectTimeout=10"];
        let mut command = Command::new("ssh");
        command.args(["-F", "none"]).args(options.iter().chain(&usual).flat_map(|option| ["-o", option]));
        command.args(["-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=none"]);
        command.arg("-o").arg(format!("UserKnownHostsFile={}", self.known_hosts.display()));
        command.arg("-i").arg(&self.private_key).arg("-p").arg(self.ssh_port.to_string());
        command.arg(format!("{user}@{address}")).stdin(Stdio::null());
        command
    }

    /// The fingerprint (`SHA256:…`) of the host key of this algorithm, `ssh-ed25519` for example.
    pub fn fingerprint(&self, algorithm: &str) -> Option<&str> {
        self.host_keys.iter().find(|k| k.algorithm == algorithm).map(|k| k.fingerprint.as_str())
    }

    /// Where ssh reaches the host.
    pub fn ssh_address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.v4), self.ssh_port)
    }

    /// Waits until sshd has sent its greeting. This is traffic to port 22.
    pub fn wait_ssh(&self, deadline: Duration) -> Result<()> {
        let what = format!("{} answers SSH at {}", self.name, self.ssh_address());
        wait_until(what, deadline, || Ok(greeting(self.ssh_address()).then_some(())))
    }

    /// Waits until systemd says that the boot is over, well or with failed units.
    pub fn wait_booted(&self, deadline: Duration) -> Result<()> {
        wait_until(format!("{} has booted", self.name), deadline, || {
            let Some(pid) = self.init_pid() else { return Ok(None) };
            // Asking before systemd has its socket, or sshd listens, only gives an error.
            let answers = match self.is_vm() {
                true => greeting(self.ssh_address()),
                false => Path::new(&format!("/proc/{pid}/root/run/systemd/private")).exists(),
            };
            if !answers {
                return Ok(None);
            }
            let state = self.exec(&["systemctl", "is-system-running"])?.text();
            Ok(matches!(state.as_str(), "running" | "degraded").then_some(()))
        })
    }

    /// The guest's boot id; another after each reboot.
    pub fn boot_id(&self) -> Result<String> {
        if self.is_vm() {
            return self.sh("cat /proc/sys/kernel/random/boot_id");
        }
        let pid = self.running_init()?;
        Ok(read_text(format!("/proc/{pid}/root/proc/sys/kernel/random/boot_id"))?.trim().to_owned())
    }

    /// Reboots in good order and waits until the guest's next first process is there; a virtual machine has to answer.
    pub fn reboot(&self) -> Result<()> {
        if self.is_vm() {
            return vm::reboot(self);
        }
        let before = self.running_init()?;
        self.signal(before, "RTMIN+5")?;
        wait_until(format!("{} reboots", self.name), Duration::from_secs(90), || {
            if let Some(ended) = self.ended()? {
                return Err(LabError::Invalid(format!("{} did not come back: {ended}", self.name)));
            }
            Ok(self.init_pid().filter(|now| *now != before).map(drop))
        })
    }

    /// Powers off in good order and waits for it. [`Host::start`] switches it on again.
    pub fn poweroff(&self) -> Result<()> {
        match self.is_vm() {
            true => vm::poweroff(self),
            false => self.signal(self.running_init()?, "RTMIN+4")?,
        }
        wait_until(format!("{} powers off", self.name), Duration::from_secs(90), || {
            Ok(self.ended()?.map(drop))
        })
    }

    /// Cuts the power: nothing in the guest gets to do anything more. The disk stays as it is; a virtual machine loses
    /// what its kernel had not written to the disk yet, a container nothing.
    pub fn kill(&self) -> Result<()> {
        teardown::stop(self.record.run, &self.name)
    }

    /// How the guest ended, when it is off for another reason than [`Host::kill`].
    fn ended(&self) -> Result<Option<String>> {
        let state: Option<SupervisorRecord> = load(&self.dir().join("supervisor.json"))?;
        Ok(state.and_then(|s| s.ended))
    }

    fn signal(&self, pid: i32, signal: &str) -> Result<()> {
        Cmd::new(["kill", "-s", signal, &pid.to_string()]).run().map(drop)
    }

    /// Packets that the machine has sent to this TCP port of the guest, v4 and v6 together. Port 22 is counted from
    /// before the first boot; any other from the first call on.
    pub fn packets_to_port(&self, port: u16) -> Result<u64> {
        net::packets_to(Net { run: self.record.run }, &self.record, port)
    }

    /// The guest's TCP sockets, v4 and v6, listening ones too.
    pub fn tcp_connections(&self) -> Result<Vec<TcpConnection>> {
        if self.is_vm() {
            let tables = self.sh("cat /proc/net/tcp; tail -n +2 /proc/net/tcp6")?;
            return Ok(parse_table(&tables));
        }
        let pid = self.running_init()?;
        let mut all = Vec::new();
        for table in ["tcp", "tcp6"] {
            all.extend(parse_table(&read_text(format!("/proc/{pid}/net/{table}"))?));
        }
        Ok(all)
    }

    /// Plugs the network cable out (`false`) or in again.
    pub fn set_link(&self, up: bool) -> Result<()> {
        net::set_link(&self.record, up)
    }

    /// What the guest wrote to its console, all boots.
    pub fn console(&self) -> Result<String> {
        read_text(self.dir().join("console.log"))
    }

    /// Copies journal, console, and the agent's state and settings into a folder, for whoever looks into a failure.
    pub fn collect(&self, dir: &Path) -> Result<()> {
        make_dir(dir)?;
        write_file(dir.join("console.txt"), self.console().unwrap_or_default(), 0o600)?;
        if self.is_vm() {
            let folders = FOLDERS.map(|folder| (folder, dir.join(folder.replace('/', "-"))));
            let journal = ("var/log/journal", dir.join("journal"));
            return vm::copy_out(self, &self.dir(), &[&folders[..], &[journal]].concat());
        }
        let journal = self.root_dir.join("var/log/journal");
        let argv = ["journalctl", "--no-pager", "-o", "short-precise", "-D"].map(AsRef::as_ref);
        match Cmd::new(argv.into_iter().chain([journal.as_os_str()])).output() {
            Ok(out) if out.success() => write_file(dir.join("journal.txt"), out.stdout, 0o600)?,
            // A machine without journalctl: keep the journal as it is.
            _ if journal.exists() => copy(&journal, dir)?,
            _ => {}
        }
        for folder in FOLDERS {
            let from = self.root_dir.join(folder);
            if from.exists() {
                let to = dir.join(folder.replace('/', "-"));
                make_dir(&to)?;
                copy(&from.join("."), &to)?;
            }
        }
        Ok(())
    }

    /// Ends the host and removes all that belongs to it; says so when that fails, as dropping cannot.
    pub fn destroy(mut self) -> Result<()> {
        self.owner = None;
        teardown::host(&self.places, self.record.run, &self.name)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    Cmd::new([Path::new("cp"), Path::new("-a"), from, to]).run().map(drop)
}

fn greeting(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) else {
        return false;
    };
    if stream.set_read_timeout(Some(Duration::from_secs(2))).is_err() {
        return false;
    }
    let mut start = [0; 4];
    let until = Instant::now() + Duration::from_secs(2);
    stream.read_exact(&mut start).is_ok() && &start == b"SSH-" && Instant::now() <= until
}

impl Drop for Host {
    fn drop(&mut self) {
        let Some(owner) = self.owner.take().filter(|o| !o.kept) else { return };
        if std::thread::panicking() {
            let dir = super::failures_dir().join(format!("{}-{}", self.netns, std::process::id()));
            match self.collect(&dir) {
                Ok(()) => super::warn(&format!("what {} left behind is in {}", self.name, dir.display())),
                Err(e) => super::warn(&format!("the journal of {} could not be kept: {e}", self.name)),
            }
        }
        if let Err(e) = teardown::host(&self.places, self.record.run, &self.name) {
            super::warn(&format!("{} could not be removed: {e}", self.name));
        }
        drop(owner);
    }
}
