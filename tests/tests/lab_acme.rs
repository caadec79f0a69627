//! Certificates by DNS in the lab: a real ACME client against a real ACME server, and a site of the shipped profiles that
//! really answers over HTTPS by the real Traefik. Cloudflare's API and Docker's packages are stand-ins, and it says so.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::lab::{self, Host, HostSpec, Image, Internet, Output};
use postern_tests::load::{Load, elapsed};
use postern_tests::rig::{BOOT_DEADLINE, Rig, said, wait_for, wait_for_or_tell};
use postern_tests::time_server::serve_time;

/// For a package, and for a certificate.
const SHORT: Duration = Duration::from_secs(120);
const SITE: &str = "app.lab.test";
/// Served by HTTP alone.
const PLAIN: &str = "plain.lab.test";
/// The lab's token for a search that must not find itself.
const PATTERN: &str = "lab-cloudflare-toke[n]-0123456789abcdef";

fn say_stand_ins(internet: &Internet) {
    for of in ["Let's Encrypt", "api.cloudflare.com"] {
        internet.say_stand_ins(of);
    }
}

/// What certbot says when it is asked for a certificate of this name with the token in this file.
fn certbot(host: &Host, name: &str, token: &str) -> Result<Output> {
    let line = format!(
        "certbot certonly --non-interactive --agree-tos --email lab@lab.test -d {name} --dns-cloudflare \
         --dns-cloudflare-credentials /root/{token} --dns-cloudflare-propagation-seconds 1 \
         --server https://acme-staging-v02.api.letsencrypt.org/directory 2>&1"
    );
    Ok(host.exec_with(&["sh", "-c", &line], b"", SHORT)?)
}

/// Nothing of Postern is in this: another client than Traefik's gets on with what the lab answers. It is Debian 12's, and
/// nothing in it depends on the release.
#[test]
fn a_certificate_by_dns() -> Result<()> {
    let Some(lab) = lab::require() else { return Ok(()) };
    let internet = lab.internet()?;
    say_stand_ins(&internet);
    let host = lab.make(HostSpec { internet: true, ..HostSpec::new("certbot", Image::BOOKWORM) })?;
    host.wait_booted(BOOT_DEADLINE)?;

    for name in ["acme-v02", "acme-staging-v02"] {
        let at = format!("https://{name}.api.letsencrypt.org/");
        let directory: serde_json::Value =
            serde_json::from_str(&host.sh(&format!("curl -sSf {at}directory"))?)?;
        for entry in ["newNonce", "newAccount", "newOrder"] {
            let url = directory[entry].as_str().context("no such entry")?;
            ensure!(url.starts_with(&at), "{entry} of {name} leads to {url}");
        }
    }

    let install = "export DEBIAN_FRONTEND=noninteractive; apt-get -q update && \
                   apt-get -qy install --no-install-recommends certbot python3-certbot-dns-cloudflare openssl";
    host.exec_with(&["sh", "-c", install], b"", SHORT)?.ok()?;
    for (file, token) in [("right", internet.cloudflare_token()), ("wrong", "not-the-token")] {
        host.sh(&format!("umask 077; echo 'dns_cloudflare_api_token = {token}' >/root/{file}"))?;
    }

    // Neither with another token, nor for a zone of somebody else's.
    let refused = certbot(&host, "www.lab.test", "wrong")?;
    ensure!(!refused.success() && refused.text().contains("9109 Invalid access token"), "{refused:?}");
    let refused = certbot(&host, "download.docker.com", "right")?;
    ensure!(!refused.success() && refused.text().contains("Unable to determine zone_id"), "{refused:?}");
    host.sh("! test -e /etc/letsencrypt/live")?;
    let records = |method: &str| -> Result<usize> {
        let wanted = |line: &&String| {
            line.contains(&format!(" {method} https://api.cloudflare.com/")) && line.ends_with(" 200")
        };
        Ok(internet.requests()?.iter().filter(wanted).count())
    };
    assert_eq!(records("POST")?, 0);

    let got = certbot(&host, "www.lab.test", "right")?;
    ensure!(got.success(), "{}", got.text());
    host.exec_with(&["sh", "-c", "cat >/root/root.pem"], internet.acme_root()?.as_bytes(), SHORT)?.ok()?;
    let certificate = "/etc/letsencrypt/live/www.lab.test";
    let verify = format!("openssl verify -untrusted {certificate}/chain.pem -verify_hostname");
    let whole = format!("{verify} www.lab.test -CAfile /root/root.pem {certificate}/cert.pem");
    assert_eq!(host.sh(&whole)?, format!("{certificate}/cert.pem: OK"));
    // The controls: another name, and the lab's own authority, which the host trusts.
    host.sh(&format!("! {verify} other.lab.test -CAfile /root/root.pem {certificate}/cert.pem"))?;
    host.sh(&format!("! {verify} www.lab.test {certificate}/cert.pem"))?;
    // The record came and went.
    assert_eq!((records("POST")?, records("DELETE")?), (1, 1));
    let left = internet.dig("_acme-challenge.www.lab.test", "TXT")?;
    ensure!(left.is_empty(), "the record is still there: {left:?}");
    Ok(())
}

/// The whole way with the shipped profiles and the real Traefik: a token becomes a secret of the Swarm, and with the right
/// one a site gets its certificate and is served. Debian 13, whose engine is the newer one.
#[test]
fn trap_21_and_22_a_site_answers_over_https() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    let internet = rig.lab.internet()?;
    let Some(traefik) = internet.real_traefik() else { return Ok(()) };
    say_stand_ins(&internet);
    internet.say_stand_ins("for trixie:");
    rig.serve()?;
    let host =
        rig.host_with(HostSpec { docker: true, internet: true, ..HostSpec::new("https", Image::TRIXIE) })?;
    serve_time(&host)?;

    rig.set_secret("dns-cloudflare", "not-the-token")?.expect(0);
    let vars = rig.traefik_vars(&internet, traefik)?;
    let swarm: Vec<&str> =
        ["--profile", "swarm"].into_iter().chain(vars.iter().map(String::as_str)).collect();
    rig.up(&host, &swarm)?.expect(0);

    // T21: http leads to https, where nobody's site is.
    let both = [IpAddr::from(host.v4), host.v6.into()];
    for at in both {
        let head = internet.ask(
            at,
            "http://other.lab.test/x",
            &["-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"],
        )?;
        assert_eq!(head.text(), "301 https://other.lab.test/x", "{at}");
        let unknown = internet.ask(at, "https://other.lab.test/", &[])?;
        ensure!(unknown.error_text().contains("certificate"), "{at}: {unknown:?}");
    }

    let web = internet.image("web").context("no image of a web server")?;
    let add = ["site", "add", &host.name, SITE, "--image", web, "--port", "8080", "--dns", "cloudflare"];
    rig.run_long(&add)?.expect(0);
    let logged = || host.sh("docker service logs --raw traefik 2>&1 | tail -n 60");
    let is_refused = || Ok(logged()?.contains("Invalid access token"));
    wait_for_or_tell("Traefik is refused with the wrong token", SHORT, is_refused, || Ok(logged()?))?;
    let site = |at: IpAddr| internet.ask(at, &format!("https://{SITE}/"), &["-f"]);
    ensure!(!site(host.v4.into())?.success(), "it is served with a certificate of nobody's");

    let token = internet.cloudflare_token();
    trap_20_the_token_is_changed_without_a_lost_request(&rig, &host, web, token)?;
    let is_served = || Ok(site(host.v4.into())?.success());
    wait_for_or_tell("the site answers over https", SHORT, is_served, || Ok(logged()?))?;
    // The very container of the site, on both protocols, with a certificate for this name alone.
    let container = host.sh("docker ps -q --filter label=com.docker.swarm.service.name=app-lab-test")?;
    for at in both {
        assert_eq!(site(at)?.text(), container, "{at}");
        let head = internet.ask(
            at,
            &format!("http://{SITE}/x"),
            &["-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"],
        )?;
        assert_eq!(head.text(), format!("301 https://{SITE}/x"), "{at}");
    }
    ensure!(internet.dig(&format!("_acme-challenge.{SITE}"), "TXT")?.is_empty(), "the record is still there");

    only_in_the_swarm(&rig, &host, token)?;
    a_lost_certificate_comes_back(&rig, &host, &internet)?;
    let drift = rig.run_long(&["drift", &host.name])?.expect(0);
    ensure!(!said(&drift).contains(token), "{drift:?}");
    Ok(())
}

/// T20 with the real Traefik: 220 requests a second for a minute and more, to a site that is served by HTTP.
fn trap_20_the_token_is_changed_without_a_lost_request(
    rig: &Rig,
    host: &Host,
    web: &str,
    token: &str,
) -> Result<()> {
    let add = ["site", "add", &host.name, PLAIN, "--image", web, "--port", "8080"];
    rig.run_long(&add)?.expect(0);
    let container = host.sh("docker ps -q --filter label=com.docker.swarm.service.name=plain-lab-test")?;
    let (to, url) = (SocketAddr::new(host.v4.into(), 80), format!("http://{PLAIN}/"));
    // Until Traefik has looked at the Swarm's services again, it is sent on to https.
    let answers = || Ok(rig.lab.internet()?.ask(host.v4.into(), &url, &["-f"])?.text() == container);
    wait_for("the site answers", SHORT, answers)?;
    let load = Load::start(to, &url, &container, 220);
    let minute = elapsed(62);
    wait_for("some load", SHORT, elapsed(10))?;
    rig.set_secret("dns-cloudflare", token)?.expect(0);
    rig.run_long(&["apply", "swarm", "-H", &host.name])?.expect(0);
    wait_for("what comes after it", SHORT, elapsed(10))?;
    wait_for("a minute of load", SHORT, minute)?;
    let outcome = load.stop()?;
    let _ = writeln!(std::io::stdout(), "requests to the real Traefik: {outcome:?}");
    ensure!(outcome.failed == 0 && outcome.lasted >= Duration::from_secs(60), "{outcome:?}");
    ensure!(outcome.answered as f64 / outcome.lasted.as_secs_f64() >= 200.0, "{outcome:?}");
    Ok(())
}

/// The volume is lost and Traefik with it: what was carried away is taken again, and nobody is asked for another one.
fn a_lost_certificate_comes_back(rig: &Rig, host: &Host, internet: &Internet) -> Result<()> {
    let file = rig.state_dir().join("https.site").display().to_string();
    let done = rig.run(&["site", "backup", &host.name, &file])?.expect(0);
    ensure!(said(&done).contains(SITE), "{done:?}");
    let records = || -> Result<usize> {
        let asked = internet.requests()?;
        Ok(asked.iter().filter(|line| line.contains(" POST https://api.cloudflare.com/")).count())
    };
    let serial = || -> Result<String> {
        let shown = internet.ask(
            host.v4.into(),
            &format!("https://{SITE}/"),
            &["-f", "-o", "/dev/null", "-w", "%{certs}"],
        )?;
        let line = shown.text().lines().find(|line| line.starts_with("Serial Number:")).map(str::to_owned);
        line.with_context(|| format!("no certificate: {shown:?}"))
    };
    let before = (records()?, serial()?);
    host.sh("docker service rm traefik >/dev/null")?;
    wait_for("the volume is nobody's", SHORT, || {
        Ok(host.exec(&["docker", "volume", "rm", "traefik-acme"])?.success())
    })?;
    rig.run(&["site", "restore", &host.name, &file])?.expect(0);
    rig.run_long(&["apply", "swarm", "-H", &host.name])?.expect(0);
    wait_for("the site answers over https again", SHORT, || Ok(serial().is_ok()))?;
    assert_eq!((records()?, serial()?), before);
    Ok(())
}

/// T22: the token is a secret of the Swarm, which it keeps sealed and mounts in memory for Traefik, and nowhere else.
fn only_in_the_swarm(rig: &Rig, host: &Host, token: &str) -> Result<()> {
    let found = host.sh(&format!(
        "grep -rlE '{PATTERN}' /etc /run /root /tmp /home /var /usr/lib/systemd /proc/[0-9]*/cmdline \
         /proc/[0-9]*/environ 2>/dev/null | sort; journalctl --no-pager | grep -cE '{PATTERN}'; \
         for id in $(docker ps -aq --filter label=com.docker.swarm.service.name=traefik); do docker logs $id 2>&1; done | grep -cE '{PATTERN}'; true"
    ))?;
    let lines: Vec<&str> = found.lines().collect();
    let [mounted, "0", "0"] = lines[..] else { anyhow::bail!("{found}") };
    ensure!(
        mounted.starts_with("/var/lib/docker/containers/") && mounted.contains("/mounts/secrets/"),
        "{found}"
    );
    assert_eq!(host.sh(&format!("stat -f -c %T {mounted}"))?, "tmpfs");
    let shown = host.sh("docker service inspect traefik; docker secret inspect $(docker secret ls -q)")?;
    ensure!(!shown.contains(token), "{shown}");
    // The controller keeps it sealed.
    let kept = std::process::Command::new("grep").args(["-rlF", token]).arg(rig.state_dir()).output()?;
    assert_eq!((kept.status.code(), kept.stdout.len()), (Some(1), 0), "{kept:?}");
    Ok(())
}
