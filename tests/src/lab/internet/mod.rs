//! The lab's small internet: servers at a lab's gateway address that answer for a few public names.
//!
//! They are Debian's own bind, nginx, docker-registry and pebble, run from an image in namespaces and a control group
//! of their own, with no program installed on the machine. What they serve is made once by the scripts in `build/`; what
//! only a run has is in `serve/`. A private key of the authority or of a repository lies in the lab's cache alone, and no
//! host or server sees it.
mod config;
mod content;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::cgroup::Hierarchies;
use super::error::{LabError, Result};
use super::net::{self, Net};
use super::spec::Image;
use super::store::Places;
use super::sys::{Cmd, Output, SAFE_PATH, make_dir, read_text, unmount_and_remove, wait_until, write_file};
use super::{guest, image, supervise};
pub use config::DnsApi;
use config::Gateway;
use content::Content;

/// How long the servers may take until they answer.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long the ACME server's certificates are good for, as Let's Encrypt's are.
pub(super) const DAYS: u32 = 90;
/// Opened to the lab's hosts.
const PORTS: [(&str, u16); 3] = [("udp", 53), ("tcp", 53), ("tcp", 443)];
/// No host's name has a dot in it, so no host's control group has this name.
const GROUP: &str = ".internet";

/// The small internet of one lab. Clones are the same; it ends with the lab.
#[derive(Debug, Clone)]
pub struct Internet {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    net: Net,
    ca: String,
    /// `NAME FINGERPRINT`, in the order of their making.
    keys: Vec<String>,
    images: Vec<String>,
    stand_ins: Vec<String>,
}

impl Internet {
    /// The ACME server's certificates are good for so many days.
    pub(super) fn start(places: &Places, net: Net, days: u32) -> Result<Internet> {
        let content = Content::ensure(places)?;
        let dir = places.internet(net.run);
        let inner = Inner {
            dir: dir.clone(),
            net,
            ca: content.ca()?,
            keys: content.lines("keys")?,
            images: content.lines("images")?,
            stand_ins: content.lines("stand-ins")?,
        };
        let internet = Internet { inner: Arc::new(inner) };
        internet.serve(places, &content, days).inspect_err(|_| {
            let stopped = Hierarchies::find().map_or(Ok(()), |groups| groups.destroy(&net.unique(GROUP)));
            if let Err(e) = stopped.and_then(|()| unmount_and_remove(&dir)) {
                super::warn(&format!("clearing up after servers that did not start: {e}"));
            }
        })?;
        Ok(internet)
    }

    fn serve(&self, places: &Places, content: &Content, days: u32) -> Result<()> {
        let Inner { dir, net, .. } = &*self.inner;
        make_dir(dir)?;
        guest::mount(dir, &[&content.root(), &image::ensure(places, Image::SERVERS)?], None)?;
        let at = Gateway { v4: net.gateway_v4(), v6: net.gateway_v6() };
        let resolvers = config::resolvers(&read_text("/etc/resolv.conf")?);
        let etc = self.root().join("etc/lab");
        write_file(etc.join("named.conf"), config::named(at, &resolvers), 0o644)?;
        write_file(etc.join("names.zone"), config::zone(at), 0o644)?;
        write_file(etc.join("nginx.conf"), config::nginx(at), 0o644)?;
        write_file(etc.join("registry.yml"), config::REGISTRY_YML, 0o644)?;
        let (user, password) = config::REGISTRY_LOGIN;
        write_file(etc.join("registry-users"), format!("{user}:{{PLAIN}}{password}\n"), 0o644)?;
        write_file(etc.join("pebble.json"), config::pebble(at, days), 0o644)?;
        write_file(etc.join("dns-apis.pl"), config::DNS_APIS_PL, 0o644)?;
        write_file(etc.join("dns-tokens"), config::dns_tokens(), 0o600)?;
        write_file(etc.join("start"), config::start(at), 0o755)?;
        let zone = self.root().join("var/cache/bind").join(config::ZONE);
        write_file(zone, config::own_zone(at), 0o644)?;
        for (protocol, port) in PORTS {
            net::open_port(*net, protocol, port, true)?;
        }

        let log = dir.join("servers.log");
        let file = std::fs::File::create(&log).map_err(LabError::io("make", &log))?;
        let run = net.run.to_string();
        let mut child = supervise::spawn(places, &["serve", &run], Some(file), Stdio::null())?;
        let mut silent = "all";
        let answering = wait_until("the small internet answers", START_DEADLINE, || {
            if let Ok(Some(status)) = child.try_wait() {
                let output = read_text(&log)?;
                let argv = format!("lab serve {run}");
                return Err(LabError::Failed { argv, status: status.to_string(), output });
            }
            silent = self.silent()?;
            Ok(silent.is_empty().then_some(()))
        });
        // Someone must collect its exit status, or it stays a zombie for as long as we live.
        std::thread::spawn(move || child.wait());
        match answering {
            Err(LabError::Deadline { what, after, .. }) => {
                let detail = format!("{}\nno answer from: {silent}", read_text(&log)?);
                Err(LabError::Deadline { what, after, detail })
            }
            other => other,
        }
    }

    /// Which of the servers does not answer yet; empty when all do.
    fn silent(&self) -> Result<&'static str> {
        for (what, socket) in [("the registry", "registry"), ("the APIs of DNS providers", "dns-apis")] {
            if UnixStream::connect(self.root().join(format!("run/lab/{socket}.sock"))).is_err() {
                return Ok(what);
            }
        }
        let [clients, own] = config::ACME_PORTS;
        for (what, port) in [("the web server", 443), ("the ACME server", clients), ("the ACME server", own)]
        {
            if TcpStream::connect((self.name_server(), port)).is_err() {
                return Ok(what);
            }
        }
        let ours = self.dig(config::DOCKER, "A")? == [self.name_server().to_string()];
        Ok(if ours { "" } else { "the name server" })
    }

    fn root(&self) -> PathBuf {
        self.inner.dir.join("root")
    }

    /// What the name server answers: one line a record, none while it does not.
    pub fn dig(&self, name: &str, kind: &str) -> Result<Vec<String>> {
        let at = format!("@{}", self.name_server());
        let argv = ["dig", "+short", "+time=2", "+tries=1", &at, name, kind];
        let output = self.chroot(&argv).output()?;
        Ok(if output.success() { output.text().lines().map(str::to_owned).collect() } else { Vec::new() })
    }

    /// Sets the only TXT record of a name in the zone [`Internet::zone`]; none takes it away.
    pub fn set_txt(&self, name: &str, value: Option<&str>) -> Result<()> {
        let add = value.map(|text| format!("update add {name}. 1 TXT \"{text}\"\n")).unwrap_or_default();
        let request = format!("server {}\nupdate delete {name}. TXT\n{add}send\n", self.name_server());
        self.chroot(&["nsupdate"]).input(request).run().map(drop)
    }

    fn chroot(&self, argv: &[&str]) -> Cmd {
        let root = self.root();
        let head = ["chroot".as_ref(), root.as_os_str()];
        Cmd::new(head.into_iter().chain(argv.iter().map(AsRef::as_ref))).clean_env(&[])
    }

    /// The zone of the lab, in which records can be set.
    pub fn zone(&self) -> &'static str {
        config::ZONE
    }

    /// The public names that lead here.
    pub fn names(&self) -> &'static [&'static str] {
        &config::NAMES
    }

    /// The one of them for which requests are passed on to whoever listens at the gateway's port 7845.
    pub fn tunnel(&self) -> &'static str {
        config::TUNNEL
    }

    /// Where the name server and all else listens.
    pub fn name_server(&self) -> Ipv4Addr {
        self.inner.net.gateway_v4()
    }

    /// The certificate of the authority that signed for all names, in PEM.
    pub fn ca_certificate(&self) -> &str {
        &self.inner.ca
    }

    /// The certificate of the ACME server's own root, in PEM. It is another one in each run, and nobody trusts it.
    pub fn acme_root(&self) -> Result<String> {
        let ([_, port], server) = (config::ACME_PORTS, self.name_server());
        let to = format!("{}:{port}:{server}", config::ACME);
        let url = format!("https://{}:{port}/roots/0", config::ACME);
        let argv = ["curl", "-sSf", "-m", "10", "--cacert", "/srv/lab/ca.crt", "--resolve", &to, &url];
        Ok(self.chroot(&argv).run()?.text())
    }

    /// The only token that is good for Cloudflare's API, and so for records in the zone [`Internet::zone`].
    pub fn cloudflare_token(&self) -> &'static str {
        config::DNS_APIS[0].token
    }

    /// The APIs of DNS providers, of which each is good for records in the zone [`Internet::zone`].
    pub fn dns_apis(&self) -> &'static [DnsApi] {
        &config::DNS_APIS
    }

    /// Asks a host for what another name leads to outside, as somebody who trusts the ACME server's root and no other:
    /// how curl ended. `more` are arguments of curl's.
    pub fn ask(&self, host: IpAddr, url: &str, more: &[&str]) -> Result<Output> {
        let root = self.acme_root()?;
        write_file(self.root().join("run/lab/acme.pem"), root, 0o644)?;
        let to = if host.is_ipv6() { format!("::[{host}]:") } else { format!("::{host}:") };
        let argv = ["curl", "-sS", "-m", "10", "--cacert", "/run/lab/acme.pem", "--connect-to", &to, url];
        self.chroot(&[&argv, more].concat()).output()
    }

    /// The full fingerprint of the key of Docker's packages.
    pub fn docker_key(&self) -> &str {
        self.key("docker@")
    }

    /// The full fingerprint of the key of Cloudflare's packages.
    pub fn cloudflare_key(&self) -> &str {
        self.key("cloudflare@")
    }

    fn key(&self, of: &str) -> &str {
        let line = self.inner.keys.iter().find(|line| line.starts_with(of));
        line.and_then(|line| line.split_once(' ')).map_or("", |(_, fingerprint)| fingerprint)
    }

    /// The registry that wants a login.
    pub fn private_registry(&self) -> &'static str {
        config::PRIVATE_REGISTRY
    }

    /// User and password for it.
    pub fn registry_login(&self) -> (&'static str, &'static str) {
        config::REGISTRY_LOGIN
    }

    /// The images in the registry, as `docker pull` takes them.
    pub fn images(&self) -> &[String] {
        &self.inner.images
    }

    /// The lab's own image of this name, with its tag; none where it could not be had.
    pub fn image(&self, name: &str) -> Option<&str> {
        let start = format!("postern-lab/{name}:");
        self.images().iter().find(|image| image.starts_with(&start)).map(String::as_str)
    }

    /// The image of the real Traefik, for tests that a stand-in says nothing to: none after a line that says why not.
    pub fn real_traefik(&self) -> Option<&str> {
        let image = self.image("traefik");
        if image.is_none() {
            // Not print!, which the test harness would swallow: a skipped test must be seen.
            let _ = writeln!(std::io::stdout(), "SKIPPED lab: the real Traefik is not to be had here");
        }
        image
    }

    /// What is served in the place of something real: `name: what it does not prove`.
    pub fn stand_ins(&self) -> &[String] {
        &self.inner.stand_ins
    }

    /// Says for the summary of a test run that a test used stand-ins; `of` chooses those whose text has it.
    pub fn say_stand_ins(&self, of: &str) {
        for line in self.stand_ins().iter().filter(|line| line.contains(of)) {
            let _ = writeln!(std::io::stdout(), "STAND-IN: {line}");
        }
    }

    /// What was asked of the web server so far: `ADDRESS METHOD https://NAME/PATH STATUS`.
    pub fn requests(&self) -> Result<Vec<String>> {
        let text = read_text(self.root().join("var/log/nginx/asked"))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The ids of all its processes.
    pub fn processes(&self) -> Vec<i32> {
        Hierarchies::find().map_or_else(Vec::new, |g| g.processes(&self.inner.net.unique(GROUP)))
    }
}

/// Where that lies in the cache which is served, and whether it has been made.
pub(super) fn info(places: &Places) -> Result<(PathBuf, bool)> {
    let dir = content::place(places)?;
    let made = dir.try_exists().map_err(LabError::io("look at", &dir))?;
    Ok((dir, made))
}

/// Makes what is served, when it is not in the cache.
pub(super) fn prepare(places: &Places) -> Result<()> {
    Content::ensure(places).map(drop)
}

/// The words that run a program with a root folder, a mount table and processes of its own; `more` are for `unshare`.
fn namespace(root: &Path, more: &[&str]) -> Vec<String> {
    let mut argv: Vec<String> =
        ["unshare", "--mount", "--pid", "--fork", "--kill-child"].map(str::to_owned).into();
    argv.extend(more.iter().map(|word| (*word).to_owned()));
    argv.push(format!("--mount-proc={}", root.join("proc").display()));
    argv.extend(["chroot".to_owned(), root.display().to_string()]);
    argv
}

/// Becomes the servers of a run's small internet; returns only what kept it from that. They end with their control
/// group.
pub fn serve(run: u8) -> Result<LabError> {
    let places = Places::from_env();
    let root = places.internet(run).join("root");
    // Under the lock, so that whoever removes the run either finds our control group or has left us nothing to serve.
    let lock = places.lock_run(run)?;
    if !root.join("etc/lab/start").exists() {
        return Err(LabError::Invalid(format!("there is nothing to serve at {}", root.display())));
    }
    let groups =
        Hierarchies::find().ok_or_else(|| LabError::Invalid("cgroup v2 is not mounted".to_owned()))?;
    groups.enter(&Net { run }.unique(GROUP))?;
    drop(lock);
    let argv = namespace(&root, &[]);
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).arg("/etc/lab/start").env_clear().env("PATH", SAFE_PATH).stdin(Stdio::null());
    Ok(LabError::Start { argv: argv.join(" "), source: command.exec() })
}
