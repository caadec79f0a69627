//! The shipped profiles `swarm`, `site` and `tunnel` one after the other on real hosts: a site is added, a tunnel takes the
//! place of the open ports, and is taken back. Docker's packages, Traefik, cloudflared and Cloudflare's edge are
//! stand-ins where the lab has none of the real ones, and it says so.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::lab::{Host, HostSpec, Image};
use postern_tests::rig::{Ended, Rig, finish, said, wait_for};
use postern_tests::time_server::serve_time;

/// For a run that installs Docker.
const LONG: Duration = Duration::from_secs(900);
const TOKEN: &str = "lab-tunnel-token-0123456789abcdef";
/// The same for a search that must not find itself.
const PATTERN: &str = "lab-tunnel-toke[n]-0123456789abcdef";
/// Where tunnels are dialled to.
const EDGE_PORT: u16 = 7844;
/// Where the lab's web server passes on what is asked for by this name.
const WEB_PORT: u16 = 7845;
const NAME: &str = "app.tunnel.test";

/// The lab's own edge: takes tunnels whose token it knows, and sends requests through them.
struct Edge {
    tunnels: Arc<Mutex<Vec<TcpStream>>>,
    open: Arc<AtomicBool>,
}

impl Edge {
    fn start(rig: &Rig) -> Result<Self> {
        let listener = TcpListener::bind((rig.lab.gateway_v4(), EDGE_PORT))?;
        rig.lab.allow_port(EDGE_PORT)?;
        let edge = Self { tunnels: Arc::default(), open: Arc::new(AtomicBool::new(true)) };
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
                    tunnels.lock().unwrap().push(stream);
                }
            }
        });
        let web = TcpListener::bind((rig.lab.gateway_v4(), WEB_PORT))?;
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
        Ok(edge)
    }

    /// A request for a path, through the newest tunnel.
    fn ask(&self, path: &str) -> Result<String> {
        let head = format!("GET {path} HTTP/1.0\r\nHost: {NAME}\r\n\r\n");
        let answer = send(&self.tunnels, head.as_bytes())?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn set_open(&self, open: bool) {
        self.open.store(open, Ordering::SeqCst);
        if !open {
            self.tunnels.lock().unwrap().clear();
        }
    }
}

/// Through the newest tunnel there is.
fn send(tunnels: &Mutex<Vec<TcpStream>>, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = None;
    wait_for("a tunnel", Duration::from_secs(20), || {
        stream = tunnels.lock().unwrap().pop();
        Ok(stream.is_some())
    })?;
    let mut stream = stream.context("no tunnel")?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

fn is_open(at: IpAddr, port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::new(at, port), Duration::from_secs(3)).is_ok()
}

fn run(rig: &Rig, args: &[&str]) -> Result<Ended> {
    finish(rig.command(args), LONG)
}

fn profiles(rig: &Rig, host: &Host) -> Result<Vec<String>> {
    let shown = rig.run(&["host", "show", &host.name, "--output", "json"])?.expect(0);
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout)?;
    Ok(serde_json::from_value(shown["profiles"].clone())?)
}

fn life(name: &str, image: Image) -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let host = rig.host_with(HostSpec { docker: true, internet: true, ..HostSpec::new(name, image) })?;
    serve_time(&host)?;
    let internet = rig.lab.internet()?;
    for of in [&format!("for {}:", image.release), "traefik", "cloudflared"] {
        internet.say_stand_ins(of);
    }
    let edge = Edge::start(&rig)?;
    let key = std::fs::read_to_string(rig.lab.public_key())?;
    let (key, docker) =
        (format!("admin_key={}", key.trim()), format!("docker_key={}", internet.docker_key()));
    rig.up(&host, &[])?.expect(0);
    let name = host.name.as_str();
    let swarm = ["apply", "swarm", "-H", name, "--var", "admin=ada", "--var", &key, "--var", &docker];

    // A site needs Traefik, a certificate its secret; both are said before anything is touched.
    let image = internet.images().iter().find(|image| image.contains("traefik"));
    let image = image.context("no image that goes on running")?;
    let add = ["site", "add", name, "app.lab.test", "--image", image];
    assert!(said(&run(&rig, &add)?.expect(2)).contains("postern apply swarm -H"));
    run(&rig, &swarm)?.expect(0);
    let mut with_dns = add.to_vec();
    with_dns.extend(["--dns", "hetzner"]);
    assert!(said(&run(&rig, &with_dns)?.expect(2)).contains("postern secret set dns-hetzner"));
    run(&rig, &add)?.expect(0);
    let labels = "docker service inspect app-lab-test --format '{{json .Spec.Labels}}'";
    assert!(host.sh(labels)?.contains("Host(`app.lab.test`)"));
    let listed = run(&rig, &["site", "list", name])?.expect(0).stdout;
    assert!(listed.contains("app.lab.test"), "{listed}");
    assert_eq!(profiles(&rig, &host)?, ["swarm", "site-app-lab-test"]);
    for at in [IpAddr::from(host.v4), host.v6.into()] {
        assert!(is_open(at, 80) && is_open(at, 443) && is_open(at, 22), "{at}");
    }

    let run_id = tunnel(&rig, &host, &edge)?;
    // One that has gone is told, and comes back by itself.
    edge.set_open(false);
    let drift = run(&rig, &["drift", name])?.expect(1);
    assert!(said(&drift).contains("it runs and is not ready"), "{drift:?}");
    edge.set_open(true);
    wait_for("the tunnel is back", Duration::from_secs(60), || {
        Ok(run(&rig, &["drift", name])?.code == Some(0))
    })?;

    closed(&rig, &host)?;

    run(&rig, &["run", "undo", &run_id])?.expect(0);
    assert_eq!(profiles(&rig, &host)?, ["swarm", "site-app-lab-test"]);
    host.sh("! systemctl is-active cloudflared && ! test -e /etc/cloudflared && ! dpkg -s cloudflared 2>/dev/null")?;
    for at in [IpAddr::from(host.v4), host.v6.into()] {
        assert!(is_open(at, 80) && is_open(at, 443) && is_open(at, 22), "{at}");
    }
    run(&rig, &["drift", name])?.expect(0);

    run(&rig, &["site", "remove", name, "app.lab.test"])?.expect(0);
    host.sh("! docker service inspect app-lab-test 2>/dev/null")?;
    assert_eq!(profiles(&rig, &host)?, ["swarm"]);
    let gone = run(&rig, &["site", "remove", name, "app.lab.test"])?.expect(2);
    assert!(said(&gone).contains("it has none"), "{gone:?}");

    // What runs without a connection is not taken for a tunnel.
    rig.set_secret("tunnel-token", "not-the-token")?.expect(0);
    let cloudflare = format!("cloudflare_key={}", internet.cloudflare_key());
    let refused = run(&rig, &["apply", "tunnel", "-H", name, "--var", &cloudflare])?.expect(1);
    assert!(said(&refused).contains("tunnel:service:cloudflared: "), "{refused:?}");
    Ok(())
}

/// With a tunnel, the last port is closed only when a request came through it; and opened again for what follows.
fn closed(rig: &Rig, host: &Host) -> Result<()> {
    let name = host.name.as_str();
    let kit = rig.state_dir().join("kit");
    let close = ["ssh-port", "close", name, "--kit", &kit.display().to_string()].map(str::to_owned);
    let close: Vec<&str> = close.iter().map(String::as_str).collect();
    // The site's name leads nowhere.
    let refused = run(rig, &close)?.expect(1);
    assert!(
        said(&refused).contains("NO   the tunnel carries what comes for this host: app.lab.test"),
        "{refused:?}"
    );
    assert!(is_open(host.v4.into(), 22));
    // One that leads to the host itself proves nothing.
    host.sh(&format!("echo '127.0.0.1 {NAME}' >>/etc/hosts"))?;
    run(rig, &["host", "set", name, &format!("hostnames={NAME}")])?.expect(0);
    let refused = run(rig, &close)?.expect(1);
    assert!(said(&refused).contains(NAME), "{refused:?}");
    assert!(is_open(host.v4.into(), 22));
    host.sh(&format!("sed -i '/{NAME}/d' /etc/hosts"))?;
    let done = run(rig, &close)?.expect(0);
    assert!(said(&done).contains(&format!("a request came through it for {NAME}")), "{done:?}");
    for at in [IpAddr::from(host.v4), host.v6.into()] {
        for port in [22, 80, 443] {
            assert!(!is_open(at, port), "{at} {port}");
        }
    }
    run(rig, &["exec", name, "--", "true"])?.expect(0);
    run(rig, &["ssh-port", "open", name])?.expect(0);
    assert!(is_open(host.v4.into(), 22));
    Ok(())
}

/// T23 and T25: the token is in one file, and nothing of the web can be reached but through the tunnel. The run that
/// made it so.
fn tunnel(rig: &Rig, host: &Host, edge: &Edge) -> Result<String> {
    let cloudflare = format!("cloudflare_key={}", rig.lab.internet()?.cloudflare_key());
    let apply = ["apply", "tunnel", "-H", &host.name, "--var", &cloudflare];
    let without = run(rig, &apply)?.expect(2);
    assert!(said(&without).contains("tunnel-token"), "{without:?}");
    rig.set_secret("tunnel-token", TOKEN)?.expect(0);
    // What `swarm` was given is not asked for again, though its key is the lab's own.
    run(rig, &apply)?.expect(0);
    let applied = rig.last_run(host)?;
    assert_eq!(profiles(rig, host)?, ["tunnel", "site-app-lab-test"]);
    let again = run(rig, &apply)?.expect(0);
    assert!(!said(&again).contains(" changed"), "{again:?}");

    for at in [IpAddr::from(host.v4), host.v6.into()] {
        for (port, want) in [(80, false), (443, false), (22, true)] {
            assert_eq!(is_open(at, port), want, "{at} {port}");
        }
    }
    // What Traefik answers on the host, and nobody outside gets.
    let answer = edge.ask("/config")?;
    ensure!(answer.starts_with("HTTP/1.") && answer.contains("exposedByDefault: false"), "{answer}");

    let found = host.sh(&format!(
        "grep -rlE '{PATTERN}' /etc /run /root /tmp /home /var/lib /var/log /usr/lib/systemd /proc/[0-9]*/cmdline \
         /proc/[0-9]*/environ 2>/dev/null | sort; journalctl --no-pager | grep -cE '{PATTERN}'; true"
    ))?;
    assert_eq!(found, "/etc/cloudflared/token\n/run/credentials/cloudflared.service/token\n0");
    assert_eq!(host.sh("stat -c '%a %U' /etc/cloudflared /etc/cloudflared/token")?, "700 root\n600 root");
    let user = host.sh("ps -o user= -p $(systemctl show -P MainPID cloudflared)")?;
    assert_ne!(user.trim(), "root");
    Ok(applied)
}

#[test]
fn trap_23_and_trap_25_a_tunnel_takes_the_place_of_open_ports_on_debian_12() -> Result<()> {
    life("tunnel12", Image::BOOKWORM)
}

#[test]
fn trap_23_and_trap_25_a_tunnel_takes_the_place_of_open_ports_on_debian_13() -> Result<()> {
    life("tunnel13", Image::TRIXIE)
}
