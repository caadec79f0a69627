//! The lab's small internet: names, trust, Docker's packages and images on both releases, and nothing left of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use postern_tests::lab::{self, Host, HostSpec, Image, Internet, Lab};

const BOOT: Duration = Duration::from_secs(60);
const INSTALL: Duration = Duration::from_secs(180);

fn up(lab: &Lab, name: &str, image: Image) -> Host {
    let mut spec = HostSpec::new(name, image);
    spec.internet = true;
    spec.docker = true;
    let host = lab.make(spec).unwrap();
    host.wait_booted(BOOT).unwrap();
    host
}

fn install(host: &Host, line: &str) -> String {
    let line = format!("export DEBIAN_FRONTEND=noninteractive; {line}");
    host.exec_with(&["sh", "-ec", &line], b"", INSTALL).unwrap().ok().unwrap().text()
}

/// The addresses a name has on a host, or none.
fn addresses(host: &Host, name: &str) -> Vec<String> {
    let out = host.exec(&["getent", "ahostsv4", name]).unwrap().text();
    let mut found: Vec<String> =
        out.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect();
    found.sort();
    found.dedup();
    found
}

fn names_lead_here(host: &Host, internet: &Internet) {
    let here = internet.name_server().to_string();
    for name in internet.names() {
        assert_eq!(addresses(host, name), [here.as_str()], "{name}");
        // Trusted, for this name, and on both protocols.
        for protocol in ["-4", "-6"] {
            let url = format!("https://{name}/nothing-there");
            let code = host
                .sh(&format!("curl -sS {protocol} -m 10 -o /dev/null -w '%{{http_code}}' {url}"))
                .unwrap();
            let want = match *name {
                // What is passed on has nobody behind it here.
                name if name == internet.tunnel() => "502",
                name if name == internet.private_registry() => "401",
                _ => "404",
            };
            assert_eq!(code, want, "{name} {protocol}");
        }
    }
}

/// All that a user does to have Docker from Docker, word for word but for the fingerprint.
fn docker_from_docker(name: &str, image: Image) {
    let Some(lab) = lab::require() else { return };
    let internet = lab.internet().unwrap();
    let host = up(&lab, name, image);
    names_lead_here(&host, &internet);

    let release = image.release.to_string();
    let key = internet.docker_key();
    internet.say_stand_ins(&format!("for {release}:"));
    install(&host, &format!(
        "install -m 0755 -d /etc/apt/keyrings
         curl -fsSL https://download.docker.com/linux/debian/gpg -o /etc/apt/keyrings/docker.asc
         chmod a+r /etc/apt/keyrings/docker.asc
         echo \"deb [arch=$(dpkg --print-architecture) signed-by=/etc/apt/keyrings/docker.asc] https://download.docker.com/linux/debian {release} stable\" >/etc/apt/sources.list.d/docker.list
         apt-get -q update"
    ));
    assert_eq!(key.len(), 40, "{key}");
    let policy = host.sh("apt-cache policy docker-ce").unwrap();
    let version = format!("5:29.0.0-1~debian.{}~{release}", if release == "bookworm" { 12 } else { 13 });
    assert!(policy.contains(&format!("Candidate: {version}")), "{policy}");
    install(
        &host,
        "apt-get -q -y install --no-install-recommends docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin",
    );
    let installed = host.sh("dpkg-query -W -f '${Package} ${db:Status-Status}\\n' docker.io containerd runc docker-ce 2>/dev/null | grep ' installed$'").unwrap();
    assert_eq!(
        installed, "docker-ce installed",
        "the engine is Docker's by name, with none of Debian's beside it"
    );
    // Debian's own cannot be had without giving Docker's up, as outside.
    let other = host.sh("apt-get -s install docker.io").unwrap();
    assert!(other.contains("Remv docker-ce "), "{other}");

    let server = host.sh("docker version --format '{{.Server.Version}}'").unwrap();
    let engine = if release == "bookworm" { "20.10." } else { "26.1." };
    assert!(server.starts_with(engine), "{server}");
    assert_eq!(
        host.sh("systemctl is-enabled docker.service docker.socket containerd.service").unwrap(),
        "enabled\nenabled\nenabled"
    );

    let image = internet.image("hello").unwrap();
    host.sh(&format!("docker pull -q {image}")).unwrap();
    assert_eq!(host.sh(&format!("docker run --rm {image}")).unwrap(), "hello from the lab");
    let asked = internet.requests().unwrap();
    let manifest = " GET https://registry-1.docker.io/v2/postern-lab/hello/manifests/";
    let from_it =
        |line: &str| line.starts_with(&format!("{} ", host.v4)) || line.starts_with(&format!("{} ", host.v6));
    let served = |line: &&String| from_it(line) && line.contains(manifest) && line.ends_with(" 200");
    assert!(asked.iter().any(|line| served(&line)), "{asked:#?}");
    let missing = host.exec(&["docker", "pull", "postern-lab/other:1"]).unwrap();
    assert!(!missing.success(), "an image that nobody put in");
}

#[test]
fn docker_from_docker_on_debian_12() {
    docker_from_docker("net-12", Image::BOOKWORM);
}

#[test]
fn docker_from_docker_on_debian_13() {
    docker_from_docker("net-13", Image::TRIXIE);
}

/// Others are asked as before, and a host that was not led here sees nothing of it.
#[test]
fn only_what_was_asked_for_leads_here() {
    let Some(lab) = lab::require() else { return };
    let internet = lab.internet().unwrap();
    let here = internet.name_server().to_string();
    let led = up(&lab, "led", Image::TRIXIE);
    let plain = lab.make(HostSpec::new("plain", Image::TRIXIE)).unwrap();
    plain.wait_booted(BOOT).unwrap();

    let mirror = "sed -n 's|.*//\\([^/]*\\)/.*|\\1|p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n1";
    let mirror = plain.sh(mirror).unwrap();
    assert!(!addresses(&plain, &mirror).is_empty(), "{mirror} has no address");
    for name in [mirror.as_str(), "docker.com", "hub.docker.io", "nothing.invalid"] {
        let found = addresses(&led, name);
        assert!(!found.contains(&here), "{name}: {found:?}");
        assert_eq!(found.is_empty(), addresses(&plain, name).is_empty(), "{name}: {found:?}");
    }
    for name in internet.names() {
        assert!(!addresses(&plain, name).contains(&here), "{name} on a host that was not led here");
    }
    let trusts = |host: &Host| {
        let to = format!("download.docker.com:443:{here}");
        let url = "https://download.docker.com/linux/debian/gpg";
        let argv = ["curl", "-sS", "-m", "10", "--resolve", &to, "-o", "/dev/null", url];
        let out = host.exec(&argv).unwrap();
        out.success().then_some(()).ok_or_else(|| out.error_text())
    };
    assert_eq!(trusts(&led), Ok(()));
    let refused = trusts(&plain).unwrap_err();
    assert!(refused.contains("certificate"), "{refused}");

    // Records come and go in the lab's own zone, and in no other.
    let name = format!("_acme-challenge.www.{}", internet.zone());
    internet.set_txt(&name, Some("a token")).unwrap();
    assert_eq!(internet.dig(&name, "TXT").unwrap(), ["\"a token\""]);
    internet.set_txt(&name, None).unwrap();
    assert!(internet.dig(&name, "TXT").unwrap().is_empty());
    assert!(internet.set_txt("_acme-challenge.download.docker.com", Some("x")).is_err());
}

/// Cloudflare's repository, as its own page says to add it.
#[test]
fn cloudflared_from_cloudflare() {
    let Some(lab) = lab::require() else { return };
    let internet = lab.internet().unwrap();
    internet.say_stand_ins("cloudflared");
    let host = up(&lab, "tunnel", Image::BOOKWORM);
    install(&host,
        "curl -fsSL https://pkg.cloudflare.com/cloudflare-main.gpg -o /usr/share/keyrings/cloudflare-main.gpg
         echo 'deb [signed-by=/usr/share/keyrings/cloudflare-main.gpg] https://pkg.cloudflare.com/cloudflared any main' >/etc/apt/sources.list.d/cloudflared.list
         apt-get -q update
         apt-get -q -y install cloudflared"
    );
    assert!(host.sh("cloudflared --version").unwrap().starts_with("cloudflared version "));
    // The other key is not good for it.
    let other = host.exec(&["sh", "-c",
        "curl -fsSL https://download.docker.com/linux/debian/gpg -o /tmp/docker.asc
         sed -i 's|/usr/share/keyrings/cloudflare-main.gpg|/tmp/docker.asc|' /etc/apt/sources.list.d/cloudflared.list
         apt-get -q update 2>&1"]).unwrap();
    assert!(
        other.text().contains(&format!("NO_PUBKEY {}", &internet.cloudflare_key()[24..])),
        "{}",
        other.text()
    );
}

/// Its processes, its mounts, its listeners and its rules end with the lab.
#[test]
fn nothing_is_left_behind() {
    let Some(lab) = lab::require() else { return };
    let internet = lab.internet().unwrap();
    let (processes, run, at) = (internet.processes(), lab.run(), internet.name_server());
    assert!(processes.len() >= 4, "{processes:?}");
    for port in [53, 443, 14000, 15000] {
        let taken = TcpListener::bind((at, port)).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse, "{port}");
    }
    lab.destroy_all().unwrap();
    let alive = || {
        let there = |pid: &&i32| Path::new(&format!("/proc/{pid}")).exists();
        processes.iter().filter(there).collect::<Vec<_>>()
    };
    // What was killed is there until its parent has collected it.
    let end = Instant::now() + Duration::from_secs(10);
    while !alive().is_empty() {
        assert!(Instant::now() < end, "{:?}", alive());
        std::thread::park_timeout(Duration::from_millis(20));
    }
    assert_eq!(TcpListener::bind((at, 443)).unwrap_err().kind(), ErrorKind::AddrNotAvailable);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder = format!("/runs/{run}/");
    assert!(!mounts.lines().any(|line| line.contains(&folder)), "{mounts}");
    let rules = Command::new("iptables").args(["-w", "10", "-S"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&rules.stdout).contains(&format!("PLAB-{run}-")));
}
