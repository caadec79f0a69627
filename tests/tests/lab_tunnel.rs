//! The whole life of a container host, from the image that providers ship: `swarm`, a site over HTTPS, `tunnel`, the
//! port of SSH closed, opened, closed again, a restart, and the tunnel undone. Traefik is the real one; Docker's
//! packages, cloudflared, Cloudflare's edge and its API are stand-ins where the lab has none of the real ones, and it
//! says so.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::edge::{Edge, NAME, PATTERN, SSH_NAME, TOKEN};
use postern_tests::lab::{Host, HostSpec, Image, Internet, Peer};
use postern_tests::rig::{Ended, LONG, Rig, finish, said, wait_for, wait_for_or_tell};
use postern_tests::time_server::serve_time;

const BACK: Duration = Duration::from_secs(120);
const SITE: &str = "app.lab.test";
/// The profiles of the two sites: the second is served by HTTP alone, and its name leads through the tunnel.
const SITES: &[&str] = &["site-app-lab-test", "site-app-tunnel-test"];

struct Life {
    rig: Rig,
    host: Host,
    edge: Edge,
    internet: Internet,
    /// Somebody who looks at the host from outside.
    stranger: Peer,
    vars: Vec<String>,
}

impl Life {
    fn open(name: &str, image_of: Image) -> Result<Option<Self>> {
        let Some(mut rig) = Rig::open() else { return Ok(None) };
        let internet = rig.lab.internet()?;
        let Some(traefik) = internet.real_traefik() else { return Ok(None) };
        rig.serve()?;
        let host =
            rig.host_with(HostSpec { docker: true, internet: true, ..HostSpec::new(name, image_of) })?;
        serve_time(&host)?;
        for of in
            [&format!("for {}:", image_of.release), "cloudflared", "Let's Encrypt", "api.cloudflare.com"]
        {
            internet.say_stand_ins(of);
        }
        let (edge, stranger) = (Edge::start(&rig)?, rig.lab.peer()?);
        let vars = rig.traefik_vars(&internet, traefik)?;
        rig.set_secret("dns-cloudflare", internet.cloudflare_token())?.expect(0);
        Ok(Some(Self { rig, host, edge, internet, stranger, vars }))
    }

    fn run(&self, args: &[&str]) -> Result<Ended> {
        self.rig.run_long(args)
    }

    /// `postern up root@HOST --profile …`, as users say it.
    fn up(&self, profile: &str, vars: &[String]) -> Result<Ended> {
        let mut more = vec!["--profile", profile];
        more.extend(vars.iter().map(String::as_str));
        self.rig.up_long(&self.host, &more)
    }

    fn profiles(&self) -> Result<Vec<String>> {
        let shown = self.run(&["host", "show", &self.host.name, "--output", "json"])?.expect(0);
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout)?;
        Ok(serde_json::from_value(shown["profiles"].clone())?)
    }

    fn close(&self) -> Result<Ended> {
        let kit = self.rig.state_dir().join("kit").display().to_string();
        let key = self.host.private_key.display().to_string();
        let args = ["ssh-port", "close", &self.host.name, "--kit", &kit, "--identity", &key];
        let mut command = self.rig.command(&args);
        command.env("PATH", format!("{}:/usr/bin:/bin", self.edge.programs().display()));
        finish(command, LONG)
    }

    fn drift(&self) -> Result<Ended> {
        self.run(&["drift", &self.host.name])
    }

    /// What somebody else gets into by new connections, over IPv4 and IPv6.
    fn seen(&self, ssh: bool, web: bool) -> Result<()> {
        let addresses: [IpAddr; 2] = [self.host.v4.into(), self.host.v6.into()];
        self.stranger.within(|| {
            for address in addresses {
                for (port, want) in [(22, ssh), (80, web), (443, web)] {
                    let to = SocketAddr::new(address, port);
                    let open = TcpStream::connect_timeout(&to, Duration::from_secs(3)).is_ok();
                    assert_eq!(open, want, "{to}");
                }
            }
        })?;
        // The control: all three have somebody who listens.
        self.host.sh("for port in 22 80 443; do ss -Hltn \"sport = :$port\" | grep -q . || exit 1; done")?;
        Ok(())
    }

    /// A command runs there, and what comes through the tunnel reaches Traefik.
    fn in_hand(&self) -> Result<()> {
        let exec = self.run(&["exec", &self.host.name, "--", "echo", "here"])?.expect(0);
        ensure!(exec.stdout == "here\n", "{exec:?}");
        let (answer, container) = (self.edge.ask("/")?, self.container("app-tunnel-test")?);
        ensure!(answer.starts_with("HTTP/1.") && answer.trim_end().ends_with(&container), "{answer}");
        Ok(())
    }

    /// The container of a site.
    fn container(&self, site: &str) -> Result<String> {
        Ok(self.host.sh(&format!("docker ps -q --filter label=com.docker.swarm.service.name={site}"))?)
    }

    /// Over IPv4 and IPv6, with a certificate for its name that the ACME server signed; and that was asked for once.
    fn site_answers_over_https(&self) -> Result<()> {
        let container = self.container("app-lab-test")?;
        for at in [IpAddr::from(self.host.v4), self.host.v6.into()] {
            let ask = || self.internet.ask(at, &format!("https://{SITE}/"), &["-f"]);
            let logged = || Ok(self.host.sh("docker service logs --raw traefik 2>&1 | tail -n 60")?);
            wait_for_or_tell("the site answers over https", BACK, || Ok(ask()?.success()), logged)?;
            assert_eq!(ask()?.text(), container, "{at}");
        }
        let asked = self.internet.requests()?;
        let records = asked.iter().filter(|line| line.contains(" POST https://api.cloudflare.com/")).count();
        ensure!(records == 1, "{records} records were made for one certificate");
        Ok(())
    }
}

fn life(name: &str, image: Image) -> Result<()> {
    let Some(life) = Life::open(name, image)? else { return Ok(()) };
    let (rig, host) = (&life.rig, &life.host);
    life.up("swarm", &life.vars)?.expect(0);
    a_site(&life)?;
    assert_eq!(life.profiles()?, [&["swarm"], SITES].concat());
    life.seen(true, true)?;
    life.site_answers_over_https()?;

    let made = tunnel(&life)?;
    // One that has gone is told, and comes back by itself.
    life.edge.set_open(false);
    let drift = life.drift()?.expect(1);
    assert!(said(&drift).contains("it runs and is not ready"), "{drift:?}");
    life.edge.set_open(true);
    wait_for("the tunnel is back", BACK, || Ok(life.drift()?.code == Some(0)))?;

    closed(&life)?;
    host.reboot()?;
    // Not by SSH.
    host.wait_booted(BACK)?;
    wait_for("all of it is as declared", BACK, || Ok(life.drift()?.code == Some(0)))?;
    life.in_hand()?;
    life.seen(false, false)?;
    life.up("tunnel", &[])?.expect(0);
    let message = rig.last_message(host)?;
    assert!(message.ends_with(" unchanged") && !message.contains(','), "the run after a restart: {message}");

    // The plan of that run has SSH open.
    let refused = life.run(&["run", "undo", &made])?.expect(1);
    assert!(said(&refused).contains("postern ssh-port open"), "{refused:?}");
    life.run(&["ssh-port", "open", &host.name])?.expect(0);
    life.run(&["run", "undo", &made])?.expect(0);
    assert_eq!(life.profiles()?, [&["swarm"], SITES].concat());
    host.sh("! systemctl is-active cloudflared && ! test -e /etc/cloudflared && ! dpkg -s cloudflared 2>/dev/null")?;
    life.seen(true, true)?;
    life.site_answers_over_https()?;
    life.drift()?.expect(0);

    life.run(&["site", "remove", &host.name, SITE])?.expect(0);
    host.sh("! docker service inspect app-lab-test 2>/dev/null")?;
    assert_eq!(life.profiles()?, ["swarm", SITES[1]]);
    let gone = life.run(&["site", "remove", &host.name, SITE])?.expect(2);
    assert!(said(&gone).contains("has no site app.lab.test"), "{gone:?}");

    // What runs without a connection is not taken for a tunnel.
    rig.set_secret("tunnel-token", "not-the-token")?.expect(0);
    let key = format!("cloudflare_key={}", life.internet.cloudflare_key());
    let refused = life.run(&["apply", "tunnel", "-H", &host.name, "--var", &key])?.expect(1);
    assert!(said(&refused).contains("tunnel:service:cloudflared: "), "{refused:?}");
    Ok(())
}

fn a_site(life: &Life) -> Result<()> {
    let name = life.host.name.as_str();
    let web = life.internet.image("web").context("no image of a web server")?;
    let add = |domain: &str, dns: &str| {
        life.run(&["site", "add", name, domain, "--image", web, "--port", "8080", "--dns", dns])
    };
    // A certificate needs its secret, which is said before anything is touched.
    let refused = add(SITE, "hetzner")?.expect(2);
    assert!(said(&refused).contains("postern secret set dns-hetzner"), "{refused:?}");
    add(SITE, "cloudflare")?.expect(0);
    add(NAME, "none")?.expect(0);
    let listed = life.run(&["site", "list", name])?.expect(0).stdout;
    assert!(listed.contains(SITE) && listed.contains(NAME), "{listed}");
    Ok(())
}

/// The last port is closed only when a request came through the tunnel; and again after it was opened.
fn closed(life: &Life) -> Result<()> {
    let (host, name) = (&life.host, life.host.name.as_str());
    // The site's name leads nowhere.
    let refused = life.close()?.expect(1);
    let no = format!("NO   the tunnel carries what comes for this host: {SITE}");
    assert!(said(&refused).contains(&no), "{refused:?}");
    life.seen(true, false)?;
    // One that leads to the host itself proves nothing.
    host.sh(&format!("echo '127.0.0.1 {NAME}' >>/etc/hosts"))?;
    life.run(&["host", "set", name, &format!("hostnames={NAME}")])?.expect(0);
    let refused = life.close()?.expect(1);
    assert!(said(&refused).contains(NAME), "{refused:?}");
    life.seen(true, false)?;
    host.sh(&format!("sed -i '/{NAME}/d' /etc/hosts"))?;
    // A way in for SSH that leads nowhere.
    life.run(&["host", "set", name, "ssh_hostname=elsewhere.tunnel.test"])?.expect(0);
    let refused = life.close()?.expect(1);
    let no = "NO   SSH through the tunnel gives a login: ada@elsewhere.tunnel.test: ";
    assert!(said(&refused).contains(no) && said(&refused).contains("no tunnel for: access"), "{refused:?}");
    life.seen(true, false)?;
    life.run(&["host", "set", name, &format!("ssh_hostname={SSH_NAME}")])?.expect(0);
    let done = life.close()?.expect(0);
    assert!(said(&done).contains(&format!("a request came through it for {NAME}")), "{done:?}");
    let login = format!("yes  SSH through the tunnel gives a login: ada@{SSH_NAME}");
    assert!(said(&done).contains(&login), "{done:?}");
    life.seen(false, false)?;
    life.in_hand()?;
    life.run(&["ssh-port", "open", name])?.expect(0);
    life.seen(true, false)?;
    life.close()?.expect(0);
    life.seen(false, false)
}

/// T23 and T25: the token is in one file, and nothing of the web can be reached but through the tunnel. The run that
/// made it so.
fn tunnel(life: &Life) -> Result<String> {
    let (rig, host) = (&life.rig, &life.host);
    let key = format!("cloudflare_key={}", life.internet.cloudflare_key());
    let apply = ["apply", "tunnel", "-H", &host.name, "--var", &key];
    let without = life.run(&apply)?.expect(2);
    assert!(said(&without).contains("tunnel-token"), "{without:?}");
    rig.set_secret("tunnel-token", TOKEN)?.expect(0);
    // What `swarm` was given is not asked for again, though its key is the lab's own.
    life.run(&apply)?.expect(0);
    let applied = rig.last_run(host)?;
    assert_eq!(life.profiles()?, [&["tunnel"], SITES].concat());
    let again = life.run(&apply)?.expect(0);
    assert!(!said(&again).contains(" changed"), "{again:?}");
    life.seen(true, false)?;
    life.in_hand()?;

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
fn trap_23_and_trap_25_a_container_host_from_its_image_to_no_open_port_on_debian_12() -> Result<()> {
    life("life-12", Image::BOOKWORM_SHIPPED)
}

#[test]
fn trap_23_and_trap_25_a_container_host_from_its_image_to_no_open_port_on_debian_13() -> Result<()> {
    life("life-13", Image::TRIXIE_SHIPPED)
}
