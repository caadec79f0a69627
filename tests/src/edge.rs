//! The lab's own edge of Cloudflare's network: a stand-in, which takes tunnels whose token it knows and sends requests
//! through them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::rig::{Rig, wait_for};

/// Where tunnels are dialled to.
const EDGE_PORT: u16 = 7844;
/// Where the lab's web server passes on what is asked for by the name of [`NAME`].
const WEB_PORT: u16 = 7845;
/// The public name that leads to it.
pub const NAME: &str = "app.tunnel.test";
/// The name that leads to SSH, as far as an operator's cloudflared knows.
pub const SSH_NAME: &str = "ssh.tunnel.test";
/// The token that it takes.
pub const TOKEN: &str = "lab-tunnel-token-0123456789abcdef";
/// The same for a search that must not find itself.
pub const PATTERN: &str = "lab-tunnel-toke[n]-0123456789abcdef";

/// It ends with the process.
#[derive(Debug)]
pub struct Edge {
    tunnels: Tunnels,
    open: Arc<AtomicBool>,
    programs: PathBuf,
}

/// What an operator's cloudflared does for SSH, without anything of Cloudflare's.
const CLIENT: &str = r#"#!/usr/bin/perl
use strict;
use warnings;
use IO::Select;
use IO::Socket::INET;
"@ARGV" eq 'access ssh --hostname ssh.tunnel.test' or die "cloudflared: no tunnel for: @ARGV
";
my $edge = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => %PORT%) or die "cloudflared: $@
";
my $both = IO::Select->new($edge, \*STDIN);
while (my @ready = $both->can_read) {
    for my $from (@ready) {
        sysread($from, my $bytes, 65536) or exit 0;
        syswrite($from == $edge ? \*STDOUT : $edge, $bytes);
    }
}
"#;

type Tunnels = Arc<Mutex<Vec<TcpStream>>>;

impl Edge {
    /// Takes tunnels from the hosts of this lab.
    pub fn start(rig: &Rig) -> Result<Self> {
        let listener = TcpListener::bind((rig.lab.gateway_v4(), EDGE_PORT)).context("the edge's port")?;
        rig.lab.allow_port(EDGE_PORT)?;
        let edge = Self {
            tunnels: Tunnels::default(),
            open: Arc::new(AtomicBool::new(true)),
            programs: rig.state_dir().join("edge"),
        };
        let (tunnels, open) = (Arc::clone(&edge.tunnels), Arc::clone(&edge.open));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut line = String::new();
                // One byte at a time would be truer; the stand-in sends nothing after its line.
                let read = stream.try_clone().map(|clone| BufReader::new(clone).read_line(&mut line));
                let known = matches!(read, Ok(Ok(_))) && line.trim_end() == TOKEN;
                let mut stream = stream;
                let answer = if known && open.load(Ordering::SeqCst) { b"+" } else { b"-" };
                if stream.write_all(answer).is_ok() && answer == b"+" {
                    tunnels.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
                }
            }
        });
        let web = TcpListener::bind((rig.lab.gateway_v4(), WEB_PORT)).context("the edge's other port")?;
        let tunnels = Arc::clone(&edge.tunnels);
        std::thread::spawn(move || {
            for mut stream in web.incoming().flatten() {
                let mut head = [0; 8192];
                let got = stream.read(&mut head).unwrap_or_default();
                if let Ok(answer) = send(&tunnels, &head[..got]) {
                    let _ = stream.write_all(&answer);
                }
            }
        });
        let ssh = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the edge's port for SSH")?;
        let port = ssh.local_addr()?.port();
        let tunnels = Arc::clone(&edge.tunnels);
        std::thread::spawn(move || {
            for client in ssh.incoming().flatten() {
                let Ok(tunnel) = newest(&tunnels) else { continue };
                if let (Ok(from), Ok(to)) = (client.try_clone(), tunnel.try_clone()) {
                    std::thread::spawn(move || carry(from, to));
                }
                std::thread::spawn(move || carry(tunnel, client));
            }
        });
        std::fs::create_dir(&edge.programs).context("a folder for the stand-in of cloudflared")?;
        let program = edge.programs.join("cloudflared");
        std::fs::write(&program, CLIENT.replace("%PORT%", &port.to_string()))?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        Ok(edge)
    }

    /// A folder with a `cloudflared` for the operator's machine, which connects to [`SSH_NAME`] through the newest tunnel.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// The answer to a request for a path, through the newest tunnel.
    pub fn ask(&self, path: &str) -> Result<String> {
        let head = format!("GET {path} HTTP/1.0\r\nHost: {NAME}\r\n\r\n");
        let answer = send(&self.tunnels, head.as_bytes())?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Whether it takes tunnels; those that there are end where it does not.
    pub fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::SeqCst);
        if !open {
            self.tunnels.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

/// The newest tunnel there is.
fn newest(tunnels: &Tunnels) -> Result<TcpStream> {
    let mut stream = None;
    wait_for("a tunnel", Duration::from_secs(20), || {
        stream = tunnels.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Ok(stream.is_some())
    })?;
    stream.context("no tunnel")
}

/// Carries what comes from one to the other, until it ends.
fn carry(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}

fn send(tunnels: &Tunnels, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = newest(tunnels)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}
