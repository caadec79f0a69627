//! A real sshd in a mount namespace of its own, and stand-ins for controller, console and agent.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "test code")]

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use postern_installer::{
    AgentBinary, BoxError, Console, Controller, HostKeyQuestion, Options, Overrides, Progress, SessionUp,
    SshConfig, Target, Ticket,
};
use postern_proto::ids::HostId;
use sha2::Digest as _;
use zeroize::Zeroizing;

/// Why these tests cannot run here. CI must not pass without them.
pub(crate) fn missing() -> Option<String> {
    let why = if !cfg!(target_os = "linux") {
        Some("not Linux".to_owned())
    } else if !Path::new("/usr/sbin/sshd").exists() {
        Some("no /usr/sbin/sshd (package openssh-server)".into())
    } else if !Path::new("/usr/bin/sudo").exists() {
        Some("no sudo".into())
    } else if !Command::new("unshare")
        .args(["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        Some("no right to make mounts (root is needed)".into())
    } else {
        None
    };
    if let Some(why) = &why {
        assert!(std::env::var_os("CI").is_none(), "these tests must run in CI: {why}");
        eprintln!("SKIPPED: {why}");
    }
    why
}

/// A host: sshd on loopback, in mount and process namespaces of its own. Gone when dropped.
pub(crate) struct Host {
    child: Child,
    pub(crate) port: u16,
    dir: tempfile::TempDir,
    pub(crate) keys: tempfile::TempDir,
}

pub(crate) const SSHD: &str = "PermitRootLogin yes\nPubkeyAuthentication yes\nPasswordAuthentication yes\n\
                        KbdInteractiveAuthentication no\nUsePAM yes\nStrictModes no\nPrintMotd no\n\
                        MaxStartups 100\nSubsystem sftp internal-sftp\n";

impl Host {
    pub(crate) fn new() -> Self {
        Self::with(SSHD, "")
    }

    /// `sshd` is its configuration, `prepare` a script that runs in the host before it starts.
    pub(crate) fn with(sshd: &str, prepare: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = tempfile::tempdir().unwrap();
        let port = free_port();
        let key = keys.path().join("id_ed25519");
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
        let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
        let base = dir.path().display();
        let prepare = format!(
            "useradd -m -s /bin/bash op\nuseradd -m -s /bin/sh plain\n\
             echo 'root:root-pass' | chpasswd\necho 'op:op-pass' | chpasswd\necho 'plain:plain-pass' | chpasswd\n\
             for d in /root /home/op /home/plain; do mkdir -p $d/.ssh; echo '{public}' >$d/.ssh/authorized_keys; done\n\
             chown -R op: /home/op; chown -R plain: /home/plain\n\
             rm -f /etc/sudoers.d/*; echo 'op ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/op; chmod 0440 /etc/sudoers.d/op\n\
             cat >{base}/sshd_config <<'END'\nPort {port}\nListenAddress 127.0.0.1\nPidFile none\n\
             HostKey {base}/keys/ed25519\nHostKey {base}/keys/ecdsa\nHostKey {base}/keys/rsa\n{sshd}END\n{prepare}\n",
        );
        let mut child = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc", "sh"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/enter.sh"))
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(if std::env::var_os("SHOW_SSHD").is_some() { Stdio::inherit() } else { Stdio::null() })
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(prepare.as_bytes()).unwrap();
        let host = Self { child, port, dir, keys };
        let until = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "sshd did not start");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        host
    }

    /// The host's own tree, seen from outside.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        // unshare's child is the namespace's first process.
        let parent = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        let first = children.split_whitespace().next().expect("the host has died");
        PathBuf::from(format!("/proc/{first}/root{inside}"))
    }

    pub(crate) fn read(&self, inside: &str) -> String {
        std::fs::read_to_string(self.path(inside)).unwrap_or_default()
    }

    pub(crate) fn exists(&self, inside: &str) -> bool {
        self.path(inside).symlink_metadata().is_ok()
    }

    pub(crate) fn write(&self, inside: &str, text: &str) {
        std::fs::write(self.path(inside), text).unwrap();
    }

    pub(crate) fn delete(&self, inside: &str) {
        let _ = std::fs::remove_file(self.path(inside));
    }

    pub(crate) fn mode(&self, inside: &str) -> u32 {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(self.path(inside)).unwrap().permissions().mode() & 0o7777
    }

    /// Runs a script inside the host's namespaces, as root.
    pub(crate) fn inside(&self, script: &str) -> String {
        let parent = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        let first = children.split_whitespace().next().unwrap().to_owned();
        let output = Command::new("nsenter")
            .args(["--target", &first, "--mount", "--pid", "sh", "-c", script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn host_key(&self, kind: &str) -> String {
        let text = self.read(&format!("{}/keys/{kind}.pub", self.dir.path().display()));
        text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn known_hosts(&self) -> PathBuf {
        self.keys.path().join("known_hosts")
    }

    /// Puts the host's ed25519 key on record.
    pub(crate) fn trust(&self) {
        let line = format!("[127.0.0.1]:{} {}\n", self.port, self.host_key("ed25519"));
        std::fs::write(self.known_hosts(), line).unwrap();
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.keys.path().join("id_ed25519")
    }

    pub(crate) fn options(&self, user: &str) -> Options {
        self.options_with(user, "", "0.1.0")
    }

    /// For a user, with an ssh configuration, with an agent of this version.
    pub(crate) fn options_with(&self, user: &str, config: &str, version: &str) -> Options {
        let home = self.keys.path();
        let config = SshConfig::parse(config, home).unwrap();
        let overrides = Overrides { local_user: "nobody".into(), home: home.into(), ..Overrides::default() };
        let target =
            Target::resolve(&format!("{user}@127.0.0.1:{}", self.port), &config, &overrides).unwrap();
        let binary = agent(version);
        let mut options = Options::new(target, Arc::new(move |_| Some(binary.clone())));
        options.identity_files = vec![self.key()];
        options.host_key.known_hosts_files = vec![self.known_hosts()];
        options.connect_deadline = Duration::from_secs(5);
        options.session_deadline = Duration::from_secs(5);
        options
    }

    /// What a bootstrap that did not succeed may not leave behind.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let script = "find /usr/local/bin /etc/postern-agent /var/lib/postern-agent /run/postern-agent \
                      /etc/systemd/system /home /root -name '*postern*' -o -name .config.new 2>/dev/null; true";
        self.inside(script).lines().map(str::to_owned).collect()
    }

    pub(crate) fn temporary_files(&self) -> Vec<String> {
        let mut found = self.leftovers();
        found.retain(|path| path.contains("upload") || path.contains(".new"));
        found
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// The stand-in agent, with some weight so that an upload is more than one packet.
pub(crate) fn agent(version: &str) -> AgentBinary {
    let mut text = include_str!("agent.sh").replace("VERSION", version);
    text.push_str("exit 0\n");
    for line in 0..40_000u64 {
        text.push_str(&format!("# {:016x}\n", line.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    AgentBinary {
        gzip: Bytes::from(gzip.finish().unwrap()),
        sha256: sha2::Sha256::digest(text.as_bytes()).into(),
        version: version.into(),
    }
}

/// A console with answers prepared.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) confirm: bool,
    pub(crate) secrets: Mutex<Vec<String>>,
    pub(crate) questions: Mutex<Vec<HostKeyQuestion>>,
    pub(crate) prompts: Mutex<Vec<String>>,
    pub(crate) progress: Mutex<Vec<Progress>>,
}

impl Answers {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn yes() -> Self {
        Self { confirm: true, ..Self::default() }
    }

    pub(crate) fn secrets(secrets: &[&str]) -> Self {
        let secrets = secrets.iter().rev().map(|text| (*text).to_owned()).collect();
        Self { secrets: Mutex::new(secrets), ..Self::default() }
    }
}

#[async_trait]
impl Console for Answers {
    async fn confirm_host_key(&self, question: &HostKeyQuestion) -> bool {
        self.questions.lock().unwrap().push(question.clone());
        self.confirm
    }

    async fn secret(&self, prompt: &str) -> Option<Zeroizing<String>> {
        self.prompts.lock().unwrap().push(prompt.into());
        self.secrets.lock().unwrap().pop().map(Zeroizing::new)
    }

    fn progress(&self, progress: &Progress) {
        self.progress.lock().unwrap().push(progress.clone());
    }
}

/// A controller whose session is up when the host's stand-in for systemd started the agent.
pub(crate) struct Desk<'a> {
    pub(crate) host: &'a Host,
    pub(crate) host_id: HostId,
    pub(crate) tickets: AtomicU32,
    pub(crate) listener: Option<SocketAddr>,
    pub(crate) dead: bool,
}

pub(crate) const TOKEN: &str = "one-use-token-c0ffee";

impl<'a> Desk<'a> {
    pub(crate) fn new(host: &'a Host) -> Self {
        Self { host, host_id: HostId::generate(), tickets: AtomicU32::new(0), listener: None, dead: false }
    }
}

#[async_trait]
impl Controller for Desk<'_> {
    async fn ticket(&self) -> Result<Ticket, BoxError> {
        let number = self.tickets.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(Ticket {
            host_id: self.host_id,
            token: Zeroizing::new(format!("{TOKEN}-{number}")),
            controllers: vec!["203.0.113.1:7300".into()],
            server_name: "controller.test".into(),
            server_ca_pem: "-----BEGIN CERTIFICATE-----\nit's a test\n-----END CERTIFICATE-----\n".into(),
            proxy: None,
        })
    }

    async fn session_up(&self, deadline: Duration) -> Result<SessionUp, BoxError> {
        let until = tokio::time::Instant::now() + deadline;
        loop {
            let id = self.host.read("/var/lib/postern-agent/host_id");
            if !self.dead && self.host.exists("/run/agent-active") && id.trim() == self.host_id.to_string() {
                return Ok(SessionUp { agent_version: String::new(), peer: None });
            }
            if tokio::time::Instant::now() > until {
                return Err("no session".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn listener(&self) -> Option<SocketAddr> {
        self.listener
    }

    fn extra_addresses(&self, seen: std::net::IpAddr, local: std::net::IpAddr) -> Vec<String> {
        vec![format!("{seen}:1"), format!("{local}:2")]
    }
}
