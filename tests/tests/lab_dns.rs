//! All DNS providers of profile `swarm` with the real Traefik: each makes a certificate possible, sites answer over HTTP/3
//! too, and certificates that end soon are renewed. The providers' APIs, Let's Encrypt and Docker's packages are
//! stand-ins, and it says so.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use postern_tests::lab::{DnsApi, Host, HostSpec, Image, Internet, Output, Peer};
use postern_tests::rig::{Rig, finish, wait_for, wait_for_or_tell};
use postern_tests::time_server::serve_time;

/// For a run that installs Docker.
const LONG: Duration = Duration::from_secs(900);
/// For a certificate. Traefik looks for Linode's record every 15 s only.
const SHORT: Duration = Duration::from_secs(120);
/// The provider whose token is another one at first.
const REFUSED: &str = "vultr";
/// What the certificates are good for: Traefik renews one that ends within 30 days.
const DAYS: u32 = 20;

/// A host with `swarm` and a site for each provider.
struct Sites {
    rig: Rig,
    host: Host,
    internet: Internet,
    /// Somebody who looks at the host from outside.
    stranger: Peer,
    web: String,
}

impl Sites {
    fn addresses(&self) -> [IpAddr; 2] {
        [self.host.v4.into(), self.host.v6.into()]
    }

    fn add(&self, api: &DnsApi) -> Result<()> {
        let (host, domain) = (&self.host.name, domain(api));
        let args =
            ["site", "add", host, &domain, "--image", &self.web, "--port", "8080", "--dns", api.provider];
        finish(self.rig.command(&args), LONG)?.expect(0);
        Ok(())
    }

    fn logged(&self) -> Result<String> {
        Ok(self.host.sh("docker service logs --raw traefik 2>&1")?)
    }

    /// Traefik's tasks and last words, and what was asked of a provider.
    fn told(&self, api: &DnsApi) -> Result<String> {
        let asked: Vec<String> =
            self.internet.requests()?.into_iter().filter(|line| line.contains(api.host)).collect();
        let tasks = self.host.sh("docker service ps --no-trunc traefik")?;
        let logged = self.logged()?;
        // The last lines, of which CI shows the most.
        let lines: Vec<&str> = logged.lines().filter(|line| !line.contains(" \"GET / HTTP")).collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        Ok(format!("{tasks}\n{}\n{last}", asked.join("\n")))
    }

    /// The container that answers for a site over HTTPS, with a certificate of the ACME server for its name.
    fn served(&self, api: &DnsApi, at: IpAddr) -> Result<Output> {
        Ok(self.internet.ask(at, &format!("https://{}/", domain(api)), &["-f"])?)
    }

    fn wait_served(&self, api: &DnsApi) -> Result<()> {
        let at = self.host.v4.into();
        let what = format!("{} is served", domain(api));
        wait_for_or_tell(&what, SHORT, || Ok(self.served(api, at)?.success()), || self.told(api))
    }

    /// The serial number of the certificate that is served.
    fn serial(&self, api: &DnsApi) -> Result<String> {
        let more = ["-f", "-o", "/dev/null", "-w", "%{certs}"];
        let shown = self.internet.ask(self.host.v4.into(), &format!("https://{}/", domain(api)), &more)?;
        let line = shown.text().lines().find(|line| line.starts_with("Serial Number:")).map(str::to_owned);
        line.with_context(|| format!("no certificate: {shown:?}"))
    }

    /// How curl of the host's own release, run where the stranger is, gets on with a site: its exit code, and what was
    /// answered with status and version of HTTP behind it. `more` are arguments of curl's.
    fn asked_outside(&self, name: &str, at: IpAddr, more: &[&str]) -> Result<(Option<i32>, String)> {
        let at = if at.is_ipv6() { format!("[{at}]") } else { at.to_string() };
        let mut command = self.stranger.command("chroot");
        command.arg(&self.host.root_dir).args(["curl", "-sS", "-m", "6", "--cacert", "/root/acme.pem"]);
        command.args(["--resolve", &format!("{name}:443:{at}"), "-w", " %{http_code} %{http_version}"]);
        command.args(more).arg(format!("https://{name}/"));
        let output = command.output().context("run curl where the stranger is")?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// What of a provider's API was used, with success: calls that make something, and calls that take it away.
    fn calls(&self, api: &DnsApi) -> Result<(usize, usize)> {
        let (mut made, mut gone) = (0, 0);
        for line in self.internet.requests()? {
            let words: Vec<&str> = line.split(' ').collect();
            let [_, method, url, status] = words[..] else { continue };
            if !url.starts_with(&format!("https://{}/", api.host)) || !status.starts_with('2') {
                continue;
            }
            // Hetzner's take a record away by a POST, too.
            match (method, url.ends_with("/remove_records")) {
                ("POST" | "PUT", false) => made += 1,
                ("DELETE", _) | ("POST", true) => gone += 1,
                _ => {}
            }
        }
        Ok((made, gone))
    }
}

fn domain(api: &DnsApi) -> String {
    format!("{}.lab.test", api.provider)
}

/// The set-up with a wrong token of one provider, and HTTP/3 left out of the ports that are open.
fn set_up() -> Result<Option<Sites>> {
    let Some(mut rig) = Rig::open() else { return Ok(None) };
    let internet = rig.lab.internet_for(DAYS)?;
    let image = |start: &str| internet.images().iter().find(|image| image.starts_with(start)).cloned();
    let Some(traefik) = image("postern-lab/traefik:") else {
        // Not print!, which the test harness would swallow: a skipped test must be seen.
        let _ = writeln!(std::io::stdout(), "SKIPPED lab: the real Traefik is not to be had here");
        return Ok(None);
    };
    let web = image("postern-lab/web:").context("no image of a web server")?;
    for of in ["Let's Encrypt", "api.cloudflare.com", "api.hetzner.cloud", "for trixie:"] {
        internet.say_stand_ins(of);
    }
    rig.serve()?;
    let host =
        rig.host_with(HostSpec { docker: true, internet: true, ..HostSpec::new("dns", Image::TRIXIE) })?;
    serve_time(&host)?;
    for api in internet.dns_apis() {
        let token = if api.provider == REFUSED { "not-the-token" } else { api.token };
        rig.set_secret(&format!("dns-{}", api.provider), token)?.expect(0);
    }
    let providers: Vec<&str> = internet.dns_apis().iter().map(|api| api.provider).collect();
    let key = std::fs::read_to_string(rig.lab.public_key())?;
    let vars = [
        "admin=ada".to_owned(),
        format!("admin_key={}", key.trim()),
        format!("docker_key={}", internet.docker_key()),
        format!("traefik_image={traefik}"),
        format!("dns={}", providers.join(" ")),
        "acme_email=lab@lab.test".to_owned(),
        "acme_server=staging".to_owned(),
        "web_ports=80,443/tcp".to_owned(),
    ];
    let mut more = vec!["--profile", "swarm"];
    more.extend(vars.iter().flat_map(|var| ["--var", var]));
    rig.up(&host, &more)?.expect(0);
    let stranger = rig.lab.peer()?;
    host.exec_with(&["sh", "-c", "cat >/root/acme.pem"], internet.acme_root()?.as_bytes(), SHORT)?.ok()?;
    Ok(Some(Sites { rig, host, internet, stranger, web }))
}

/// One host for all of it, since most of the time is Docker's installation.
#[test]
fn each_provider_makes_certificates_that_are_renewed() -> Result<()> {
    let Some(sites) = set_up()? else { return Ok(()) };
    let start = Instant::now();
    let said = |what: &str| {
        let _ = writeln!(std::io::stdout(), "{what} after {:.0} s", start.elapsed().as_secs_f64());
    };
    let apis = sites.internet.dns_apis();
    let refused = apis.iter().find(|api| api.provider == REFUSED).context("no such provider")?;

    sites.add(refused)?;
    let is_refused = || Ok(sites.logged()?.contains("Invalid API token"));
    wait_for_or_tell("Traefik is refused with the wrong token", SHORT, is_refused, || sites.told(refused))?;
    ensure!(
        !sites.served(refused, sites.host.v4.into())?.success(),
        "it is served with nobody's certificate"
    );
    assert_eq!(sites.calls(refused)?, (0, 0));
    only_where_it_is_open(&sites)?;
    said("the wrong token was refused");

    // The right token, and HTTP/3 is open, in one run: one more restart of Traefik is all that it takes.
    sites.rig.set_secret(&format!("dns-{REFUSED}"), refused.token)?.expect(0);
    let apply = ["apply", "swarm", "-H", &sites.host.name, "--var", "web_ports=80,443/tcp; 443/udp"];
    finish(sites.rig.command(&apply), LONG)?.expect(0);
    for api in apis.iter().filter(|api| api.provider != REFUSED) {
        sites.add(api)?;
    }
    for api in apis {
        sites.wait_served(api)?;
        let service = domain(api).replace('.', "-");
        let container =
            sites.host.sh(&format!("docker ps -q --filter label=com.docker.swarm.service.name={service}"))?;
        for at in sites.addresses() {
            assert_eq!(sites.served(api, at)?.text(), container, "{at}: {}", api.provider);
        }
        records_went(&sites, api)?;
    }
    said("all are served");

    by_http_3(&sites, &apis[0])?;
    renewed_by_itself(&sites)?;
    said("all are renewed");
    Ok(())
}

/// The record of a provider was made once, and is away again.
fn records_went(sites: &Sites, api: &DnsApi) -> Result<()> {
    // Traefik takes it away when it has the certificate, so maybe a moment after it serves it.
    let what = format!("the record of {} is made and taken away once", api.provider);
    wait_for_or_tell(&what, SHORT, || Ok(sites.calls(api)? == (1, 1)), || sites.told(api))?;
    let left = sites.internet.dig(&format!("_acme-challenge.{}", domain(api)), "TXT")?;
    ensure!(left.is_empty(), "{} left a record: {left:?}", api.provider);
    Ok(())
}

/// Traefik listens for HTTP/3 and Docker publishes its port, but the firewall lets nobody in who asks by UDP.
fn only_where_it_is_open(sites: &Sites) -> Result<()> {
    let listens = sites.host.sh("docker service inspect -f '{{json .Endpoint.Ports}}' traefik")?;
    ensure!(listens.contains("udp"), "{listens}");
    for at in sites.addresses() {
        // Nobody's name: the answer is Traefik's own, with a certificate that none could check.
        let by_tcp = sites.asked_outside("other.lab.test", at, &["-k", "-o", "/dev/null"])?;
        assert_eq!(by_tcp, (Some(0), " 404 2".to_owned()), "{at}");
        // 28: it waited in vain. Not 2, by which a curl without HTTP/3 tells that it has none.
        let by_udp = sites.asked_outside("other.lab.test", at, &["-k", "-o", "/dev/null", "--http3-only"])?;
        assert_eq!(by_udp, (Some(28), " 000 0".to_owned()), "{at}");
    }
    Ok(())
}

/// A request over HTTP/3 and nothing else, from another network, checked like any other.
fn by_http_3(sites: &Sites, api: &DnsApi) -> Result<()> {
    let container = sites.served(api, sites.host.v4.into())?.text();
    for at in sites.addresses() {
        let (code, answer) = sites.asked_outside(&domain(api), at, &["-f", "--http3-only"])?;
        let words: Vec<&str> = answer.split_whitespace().collect();
        assert_eq!((code, &words[..]), (Some(0), &[container.as_str(), "200", "3"][..]), "{at}");
        // How browsers learn of it.
        let more = ["-f", "-o", "/dev/null", "-w", "%header{alt-svc}"];
        let (_, told) = sites.asked_outside(&domain(api), at, &more)?;
        ensure!(told.starts_with("h3=\":443\""), "{at}: {told}");
    }
    Ok(())
}

/// Traefik dies, the Swarm starts it again, and it renews what ends within 30 days: nobody gives it a command. It looks so
/// each day as well, by the same function; that it does so daily is not seen here. That a certificate of 90 days is let
/// be at a start is seen in `lab_acme`.
fn renewed_by_itself(sites: &Sites) -> Result<()> {
    let apis = sites.internet.dns_apis();
    let before = apis.iter().map(|api| sites.serial(api)).collect::<Result<Vec<_>>>()?;
    sites.host.sh("docker kill $(docker ps -q --filter label=com.docker.swarm.service.name=traefik)")?;
    for (api, before) in apis.iter().zip(before) {
        let what = format!("{} has another certificate", domain(api));
        let is_new = || Ok(sites.serial(api).is_ok_and(|now| now != before));
        wait_for_or_tell(&what, SHORT, is_new, || sites.told(api))?;
        ensure!(sites.served(api, sites.host.v4.into())?.success(), "{} is not served", domain(api));
    }
    records_of_renewal(sites)
}

/// Each was asked for one more record, by which it was renewed, and took it away. Traefik tries that once and goes on where
/// it fails, at a time when its container's network is still being set up: one of six that is left is told, and no more.
fn records_of_renewal(sites: &Sites) -> Result<()> {
    let left = || -> Result<Vec<&DnsApi>> {
        let all = sites.internet.dns_apis().iter().map(|api| Ok((api, sites.calls(api)?)));
        let all = all.collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().filter(|(_, calls)| *calls != (2, 2)).map(|(api, _)| api).collect())
    };
    let end = Instant::now() + Duration::from_secs(30);
    wait_for("the records are taken away", SHORT, || Ok(left()?.is_empty() || Instant::now() > end))?;
    let left = left()?;
    for api in &left {
        let _ =
            writeln!(std::io::stdout(), "NOT TAKEN AWAY by Traefik: {}\n{}", api.provider, sites.told(api)?);
        ensure!(sites.calls(api)?.0 == 2, "{}: {:?}", api.provider, sites.calls(api)?);
    }
    ensure!(left.len() <= 1, "{} of them left a record", left.len());
    for api in sites.internet.dns_apis() {
        let there = sites.internet.dig(&format!("_acme-challenge.{}", domain(api)), "TXT")?;
        ensure!(
            there.is_empty() || left.iter().any(|of| of.provider == api.provider),
            "{}: {there:?}",
            api.provider
        );
    }
    Ok(())
}
