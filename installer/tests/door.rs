//! The way in: ports that do not answer or do not speak SSH, host keys, logins, jump hosts.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::{Answers, Desk, Host, SSHD};
use postern_installer::{
    AgentBinaries, Code, HostKeyPolicy, Options, Overrides, SshConfig, Target, TargetError, bootstrap,
    log_in, remove,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::Zeroizing;

macro_rules! host_or_skip {
    ($make:expr) => {{
        if common::missing().is_some() {
            return;
        }
        $make
    }};
}

/// Options for a port where no host of ours is.
fn options_for(text: &str, deadline: Duration) -> Options {
    let overrides = Overrides { local_user: "x".into(), home: "/nonexistent".into(), ..Overrides::default() };
    let agent: AgentBinaries = std::sync::Arc::new(|_| None);
    let target = Target::resolve(text, &SshConfig::default(), &overrides).unwrap();
    Options { connect_deadline: deadline, ..Options::new(target, agent) }
}

async fn code_at(text: &str, deadline: Duration) -> (Code, String, Answers) {
    let console = Answers::new();
    let error = remove(options_for(text, deadline), &console).await.unwrap_err();
    assert!(!error.hint().is_empty());
    (error.code(), error.to_string(), console)
}

#[tokio::test]
async fn a_refused_port_is_tried_until_the_deadline_with_a_visible_count() {
    let port = common::free_port();
    let begun = Instant::now();
    let (code, text, console) = code_at(&format!("root@127.0.0.1:{port}"), Duration::from_secs(2)).await;
    assert_eq!(code, Code::Refused, "{text}");
    assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(6));
    let counts: Vec<_> = console.progress.lock().unwrap().iter().filter_map(|p| p.count).collect();
    assert!(counts.len() >= 3 && counts.windows(2).all(|pair| pair[1] == pair[0] + 1), "{counts:?}");
}

#[tokio::test]
async fn names_and_silence() {
    let (code, text, _) = code_at("root@no-such-name.invalid", Duration::from_secs(30)).await;
    assert_eq!(code, Code::NameNotFound, "{text}");
    // A backlog that is full drops new connections: nothing answers.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(one) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        held.push(one);
        assert!(held.len() < 10_000, "the backlog never fills");
    }
    let (code, text, _) = code_at(&format!("root@{address}"), Duration::from_secs(2)).await;
    assert_eq!(code, Code::TimedOut, "{text}");
}

/// A port that answers everybody with these bytes.
async fn says(bytes: &'static [u8], then_close: bool) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(bytes).await;
                if !then_close {
                    let mut sink = [0; 1024];
                    while stream.read(&mut sink).await.is_ok_and(|n| n > 0) {}
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn garbage_on_the_port_is_final_at_once() {
    let garbage: &'static [u8] = &[0xff; 4096];
    for (bytes, close) in [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".as_slice(), true),
        (b"220 mail.example.com ESMTP\r\n", true),
        (b"\x15\x03\x01\x00\x02\x02\x46", true),
        (garbage, false),
        (b"SSH-1.5-old\r\n", true),
    ] {
        let port = says(bytes, close).await;
        let begun = Instant::now();
        let (code, text, _) = code_at(&format!("root@127.0.0.1:{port}"), Duration::from_secs(60)).await;
        assert_eq!(code, Code::NotSsh, "{text}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{text}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
    // Speaks SSH and then nonsense; full; closes at once.
    for (bytes, want) in [
        (b"SSH-2.0-x\r\nnonsense nonsense nonsense nonsense nonsense\r\n".as_slice(), Code::HandshakeFailed),
        (b"Exceeded MaxStartups\r\n", Code::HandshakeFailed),
        (b"", Code::HandshakeFailed),
    ] {
        let port = says(bytes, true).await;
        let (code, text, _) = code_at(&format!("root@127.0.0.1:{port}"), Duration::from_secs(1)).await;
        assert_eq!(code, want, "{text}");
    }
}

#[tokio::test]
async fn host_keys() {
    let host = host_or_skip!(Host::new());
    let desk = Desk::new(&host);
    let attempt = async |options: Options, console: &Answers| remove(options, console).await;

    // Unknown: asked; no is no; nobody but the person decides, and nothing is written.
    let console = Answers::new();
    let error = attempt(host.options("root"), &console).await.unwrap_err();
    assert_eq!(error.code(), Code::HostKeyUnknown, "{error}");
    assert_eq!(console.questions.lock().unwrap().len(), 1);
    assert!(console.questions.lock().unwrap()[0].fingerprint.starts_with("SHA256:"));
    assert!(!host.known_hosts().exists());
    // Strict: not even asked.
    let strict = host.options_with("root", "StrictHostKeyChecking yes", "0.1.0");
    let console = Answers::yes();
    assert_eq!(attempt(strict, &console).await.unwrap_err().code(), Code::HostKeyUnknown);
    assert!(console.questions.lock().unwrap().is_empty());
    // accept-new accepts nothing unseen.
    let new = host.options_with("root", "StrictHostKeyChecking accept-new", "0.1.0");
    let console = Answers::new();
    assert_eq!(attempt(new, &console).await.unwrap_err().code(), Code::HostKeyUnknown);
    assert_eq!(console.questions.lock().unwrap().len(), 1);

    // Yes: put on record, 0600, and not asked again.
    let console = Answers::yes();
    attempt(host.options("root"), &console).await.unwrap();
    let mode = std::fs::metadata(host.known_hosts()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let console = Answers::new();
    attempt(host.options("root"), &console).await.unwrap();
    assert!(console.questions.lock().unwrap().is_empty());
    // OpenSSH understands the record.
    let find = Command::new("ssh-keygen")
        .args(["-F", &format!("[127.0.0.1]:{}", host.port), "-f", host.known_hosts().to_str().unwrap()])
        .output()
        .unwrap();
    assert!(find.status.success());

    // Only another of its keys on record: that one is asked for, so nothing has changed.
    for kind in ["ecdsa", "rsa"] {
        let line = format!("[127.0.0.1]:{} {}\n", host.port, host.host_key(kind));
        std::fs::write(host.known_hosts(), line).unwrap();
        attempt(host.options("root"), &Answers::new())
            .await
            .unwrap_or_else(|error| panic!("{kind}: {error}"));
    }

    // Changed: final, nobody is asked, and no secret leaves.
    let other = Host::new();
    let line = format!("[127.0.0.1]:{} {}\n", host.port, other.host_key("ed25519"));
    std::fs::write(host.known_hosts(), &line).unwrap();
    let mut options = host.options("root");
    options.password = Some(Zeroizing::new("root-pass".into()));
    let console = Answers::yes();
    let error = bootstrap(options, &console, &desk).await.unwrap_err();
    assert_eq!(error.code(), Code::HostKeyChanged, "{error}");
    assert!(error.to_string().contains("known_hosts:1"), "{error}");
    assert!(console.questions.lock().unwrap().is_empty() && console.prompts.lock().unwrap().is_empty());
    // Neither does a fingerprint talk it round, nor is a revoked key taken.
    let fingerprint = fingerprint(&host, "ed25519");
    let mut options = host.options("root");
    options.host_key.fingerprint = Some(fingerprint.clone());
    assert_eq!(attempt(options, &Answers::yes()).await.unwrap_err().code(), Code::HostKeyChanged);
    std::fs::write(host.known_hosts(), format!("@revoked * {}\n", host.host_key("ed25519"))).unwrap();
    assert_eq!(
        attempt(host.options("root"), &Answers::yes()).await.unwrap_err().code(),
        Code::HostKeyChanged
    );

    // A fingerprint on the command line: of any of its keys; of none; not one.
    for kind in ["ed25519", "ecdsa", "rsa"] {
        std::fs::write(host.known_hosts(), "").unwrap();
        let mut options = host.options("root");
        options.host_key.fingerprint = Some(self::fingerprint(&host, kind));
        attempt(options, &Answers::new()).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert!(std::fs::read_to_string(host.known_hosts()).unwrap().contains(&host.host_key(kind)));
    }
    std::fs::write(host.known_hosts(), "").unwrap();
    let mut options = host.options("root");
    options.host_key.fingerprint = Some(self::fingerprint(&other, "ed25519"));
    assert_eq!(attempt(options, &Answers::yes()).await.unwrap_err().code(), Code::FingerprintMismatch);
    assert_eq!(std::fs::read_to_string(host.known_hosts()).unwrap(), "");
    let mut options = host.options("root");
    options.host_key.fingerprint = Some("MD5:00".into());
    assert_eq!(attempt(options, &Answers::yes()).await.unwrap_err().code(), Code::Usage);
}

fn fingerprint(host: &Host, kind: &str) -> String {
    use base64::Engine as _;
    use sha2::Digest as _;
    let key = host.host_key(kind);
    let blob = base64::engine::general_purpose::STANDARD.decode(key.split(' ').nth(1).unwrap()).unwrap();
    let hash = sha2::Sha256::digest(blob);
    format!("SHA256:{}", base64::engine::general_purpose::STANDARD_NO_PAD.encode(hash))
}

fn make_key(host: &Host, name: &str, kind: &str, passphrase: &str) -> PathBuf {
    let path = host.keys.path().join(name);
    common::run("ssh-keygen", &["-q", "-t", kind, "-N", passphrase, "-f", path.to_str().unwrap()]);
    let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
    let mut all = host.read("/root/.ssh/authorized_keys");
    all.push_str(&public);
    host.write("/root/.ssh/authorized_keys", &all);
    path
}

#[tokio::test]
async fn trap_27_keys_are_used_where_they_lie_and_passphrases_work() {
    let host = host_or_skip!(Host::new());
    host.trust();
    for kind in ["rsa", "ecdsa", "ed25519"] {
        let key = make_key(&host, &format!("k-{kind}"), kind, "secret phrase");
        let mut options = host.options("root");
        options.identity_files = vec![key];
        let console = Answers::secrets(&["wrong", "secret phrase"]);
        remove(options, &console).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!(console.prompts.lock().unwrap().len(), 2);
    }
    // A key the host does not take: its passphrase is not even asked for.
    let stranger = host.keys.path().join("stranger");
    common::run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "p", "-f", stranger.to_str().unwrap()]);
    let mut options = host.options("root");
    options.identity_files = vec![stranger];
    options.password_login = false;
    let console = Answers::secrets(&["p"]);
    let error = remove(options.clone(), &console).await.unwrap_err();
    assert_eq!(error.code(), Code::AuthenticationFailed, "{error}");
    assert!(error.to_string().contains("stranger") && error.to_string().contains("publickey"), "{error}");
    assert!(console.prompts.lock().unwrap().is_empty());
    // A key that was named and is not there, or is none.
    options.identity_files = vec!["/nonexistent/key".into()];
    assert_eq!(remove(options.clone(), &Answers::new()).await.unwrap_err().code(), Code::KeyUnusable);
    let none = host.keys.path().join("none");
    std::fs::write(&none, "hello").unwrap();
    options.identity_files = vec![none];
    assert_eq!(remove(options, &Answers::new()).await.unwrap_err().code(), Code::KeyUnusable);
    // Named by the configuration instead of the command line.
    let config = format!("IdentityFile {}", host.key().display());
    let mut options = host.options_with("root", &config, "0.1.0");
    options.identity_files.clear();
    remove(options, &Answers::new()).await.unwrap();
}

#[tokio::test]
async fn passwords() {
    let host = host_or_skip!(Host::new());
    host.trust();
    let mut options = host.options("root");
    options.identity_files.clear();
    let console = Answers::secrets(&["wrong", "root-pass"]);
    remove(options.clone(), &console).await.unwrap();
    assert_eq!(console.prompts.lock().unwrap().len(), 2);
    options.password = Some(Zeroizing::new("root-pass".into()));
    remove(options.clone(), &Answers::new()).await.unwrap();
    options.password = Some(Zeroizing::new("wrong".into()));
    let console = Answers::secrets(&["root-pass"]);
    let error = remove(options.clone(), &console).await.unwrap_err();
    assert_eq!(error.code(), Code::AuthenticationFailed, "{error}");
    assert!(console.prompts.lock().unwrap().is_empty());
    assert!(!error.to_string().contains("wrong"), "{error}");
    options.password_login = false;
    let error = remove(options, &Answers::secrets(&["root-pass"])).await.unwrap_err();
    assert_eq!(error.code(), Code::AuthenticationFailed, "{error}");
    assert!(error.to_string().contains("nothing to try") || error.to_string().contains("no authentication"));
}

#[tokio::test]
async fn keyboard_interactive() {
    let sshd = SSHD
        .replace("PasswordAuthentication yes", "PasswordAuthentication no")
        .replace("KbdInteractiveAuthentication no", "KbdInteractiveAuthentication yes");
    let host = host_or_skip!(Host::with(&sshd, ""));
    host.trust();
    let mut options = host.options("root");
    options.identity_files.clear();
    let console = Answers::secrets(&["wrong", "root-pass"]);
    remove(options.clone(), &console).await.unwrap();
    assert!(console.prompts.lock().unwrap().iter().all(|prompt| prompt.contains("root@")));
    options.password = Some(Zeroizing::new("root-pass".into()));
    remove(options, &Answers::new()).await.unwrap();
}

#[tokio::test]
async fn two_factors() {
    let sshd = format!("AuthenticationMethods publickey,password\n{SSHD}");
    let host = host_or_skip!(Host::with(&sshd, ""));
    host.trust();
    remove(host.options("root"), &Answers::secrets(&["root-pass"])).await.unwrap();
    let error = remove(host.options("root"), &Answers::new()).await.unwrap_err();
    assert!(error.to_string().contains("accepted, more is wanted"), "{error}");
}

struct SshAgent {
    child: Child,
    socket: PathBuf,
}

impl SshAgent {
    fn new(host: &Host, keys: &[PathBuf]) -> Self {
        let socket = host.keys.path().join("agent.sock");
        let child = Command::new("ssh-agent")
            .args(["-D", "-a", socket.to_str().unwrap()])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            assert!(Instant::now() < until);
            std::thread::park_timeout(Duration::from_millis(20));
        }
        for key in keys {
            let status =
                Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &socket).status().unwrap();
            assert!(status.success());
        }
        Self { child, socket }
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn the_ssh_agent() {
    let host = host_or_skip!(Host::new());
    host.trust();
    let rsa = make_key(&host, "agent-rsa", "rsa", "");
    let mut strangers = Vec::new();
    for number in 0..7 {
        let path = host.keys.path().join(format!("s{number}"));
        common::run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", path.to_str().unwrap()]);
        strangers.push(path);
    }
    let few = SshAgent::new(&host, &[strangers[0].clone(), rsa.clone()]);
    let mut options = host.options("root");
    options.identity_files.clear();
    options.password_login = false;
    options.agent_socket = Some(few.socket.clone());
    remove(options.clone(), &Answers::new()).await.unwrap();
    // `IdentityAgent none` wins.
    let mut none = host.options_with("root", "IdentityAgent none", "0.1.0");
    none.identity_files.clear();
    none.password_login = false;
    none.agent_socket = Some(few.socket.clone());
    assert_eq!(remove(none, &Answers::new()).await.unwrap_err().code(), Code::AuthenticationFailed);
    drop(few);
    let _ = std::fs::remove_file(host.keys.path().join("agent.sock"));

    // More keys than the server has patience (MaxAuthTries 6): the named one goes first, by its public half.
    let mut all = strangers.clone();
    all.push(rsa.clone());
    let many = SshAgent::new(&host, &all);
    options.agent_socket = Some(many.socket.clone());
    let error = remove(options.clone(), &Answers::new()).await.unwrap_err();
    assert_eq!(error.code(), Code::AuthenticationFailed, "{error}");
    assert!(error.to_string().contains("closed the connection"), "{error}");
    assert!(error.hint().contains("IdentitiesOnly"));
    options.identity_files = vec![rsa.with_extension("pub")];
    remove(options.clone(), &Answers::new()).await.unwrap();
    options.identity_files = vec![host.key()];
    remove(options.clone(), &Answers::new()).await.unwrap();
    // A broken agent is a note, not the end.
    options.agent_socket = Some("/nonexistent/agent".into());
    remove(options, &Answers::new()).await.unwrap();
}

#[tokio::test]
async fn jump_hosts() {
    let edge = host_or_skip!(Host::new());
    let inner = Host::new();
    let config = |jump: &str| {
        SshConfig::parse(
            &format!(
                "Host inner\nHostName 127.0.0.1\nPort {}\nUser root\nProxyJump {jump}\n\
                 Host edge\nHostName 127.0.0.1\nPort {}\nUser op\nHost *\nIdentityFile {}\n",
                inner.port,
                edge.port,
                edge.key().display()
            ),
            edge.keys.path(),
        )
        .unwrap()
    };
    inner.write("/root/.ssh/authorized_keys", &edge.read("/root/.ssh/authorized_keys"));
    let known = edge.keys.path().join("known_hosts");
    let lines: String = [&edge, &inner]
        .iter()
        .map(|host| format!("[127.0.0.1]:{} {}\n", host.port, host.host_key("ed25519")))
        .collect();
    std::fs::write(&known, &lines).unwrap();
    let overrides =
        Overrides { local_user: "x".into(), home: edge.keys.path().into(), ..Overrides::default() };
    let options = |jump: &str| {
        let target = Target::resolve("inner", &config(jump), &overrides).unwrap();
        let binary = common::agent("0.1.0");
        let agent: AgentBinaries = std::sync::Arc::new(move |_| Some(binary.clone()));
        Options {
            host_key: HostKeyPolicy { known_hosts_files: vec![known.clone()], fingerprint: None },
            connect_deadline: Duration::from_secs(5),
            ..Options::new(target, agent)
        }
    };
    let desk = Desk::new(&inner);
    bootstrap(options("edge"), &Answers::new(), &desk).await.unwrap();
    // Neither end of the inner connection is ours, so no address is made of them.
    assert!(!inner.read("/etc/postern-agent/config.json").contains("127.0.0.1:1"));
    assert!(!edge.exists("/usr/local/bin/postern-agent"));
    remove(options("edge"), &Answers::new()).await.unwrap();
    // Two of them, the second reached through the first.
    remove(options(&format!("edge,root@127.0.0.1:{}", inner.port)), &Answers::new()).await.unwrap();
    // A password that was given is the target's: the jump host, whose own it would even be, is not told it.
    edge.write("/home/op/.ssh/authorized_keys", "");
    let with_password = Options { password: Some(Zeroizing::new("op-pass".into())), ..options("edge") };
    let error = remove(with_password, &Answers::new()).await.unwrap_err();
    assert_eq!(error.code(), Code::AuthenticationFailed, "{error}");
    // The jump host's key counts as much.
    std::fs::write(&known, lines.lines().nth(1).unwrap()).unwrap();
    let console = Answers::new();
    let error = remove(options("edge"), &console).await.unwrap_err();
    assert_eq!(error.code(), Code::HostKeyUnknown, "{error}");
    assert!(console.questions.lock().unwrap()[0].jump);
}

#[tokio::test]
async fn a_login_through_a_command() {
    let host = host_or_skip!(Host::new());
    let config = SshConfig::parse(
        &format!(
            "Host there.invalid\nUser root\nPort {}\nIdentityFile {}\n",
            host.port,
            host.key().display()
        ),
        host.keys.path(),
    )
    .unwrap();
    let options = |command: &str, fingerprint: String| {
        let overrides = Overrides {
            local_user: "x".into(),
            home: host.keys.path().into(),
            proxy_command: Some(command.to_owned()),
            ..Overrides::default()
        };
        let target = Target::resolve("there.invalid", &config, &overrides).unwrap();
        let known_hosts_files = vec![host.keys.path().join("none")];
        Options {
            host_key: HostKeyPolicy { known_hosts_files, fingerprint: Some(fingerprint) },
            connect_deadline: Duration::from_secs(30),
            ..Options::new(target, std::sync::Arc::new(|_| None))
        }
    };
    // Its name has no address: only the command knows the way.
    let way = "bash -c 'exec 3<>/dev/tcp/127.0.0.1/%p; cat <&3 & exec cat >&3'";
    let from = log_in(options(way, fingerprint(&host, "ed25519")), &Answers::new()).await.unwrap();
    assert!(from.is_loopback(), "{from}");
    // It leads to this host, or nowhere.
    let other = format!("SHA256:{}", "A".repeat(43));
    let error = log_in(options(way, other), &Answers::new()).await.unwrap_err();
    assert_eq!(error.code(), Code::FingerprintMismatch, "{error}");
    // What the command says is why there is no connection, and one that has given up is not asked again.
    for (broken, says) in [
        ("sh -c 'echo no tunnel for %h >&2; exit 1'", "says: no tunnel for there.invalid"),
        ("true", "ends before anything comes over it"),
    ] {
        let (begun, console) = (Instant::now(), Answers::new());
        let error = log_in(options(broken, fingerprint(&host, "ed25519")), &console).await.unwrap_err();
        assert_eq!(error.code(), Code::JumpFailed, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        let counts = console.progress.lock().unwrap().iter().filter_map(|p| p.count).max();
        assert_eq!(counts, Some(1), "{error} after {:?}", begun.elapsed());
    }
    // A name is a name, whatever a shell makes of it.
    let overrides = Overrides { proxy_command: Some("true %h".into()), ..Overrides::default() };
    for name in ["a;reboot", "$(reboot)@a", "`a`"] {
        let error = Target::resolve(name, &SshConfig::default(), &overrides).unwrap_err();
        assert!(matches!(error, TargetError::NotPlain { .. }), "{name}: {error}");
    }
}
