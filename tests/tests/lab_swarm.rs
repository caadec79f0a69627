//! Docker, Swarm and the shipped profiles `swarm` and `site` on real hosts. Docker's packages, its registry and Traefik
//! are stand-ins where the lab has none of the real ones, and it says so.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod contract;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use contract::{Case, Undo, keeps};
use postern_tests::lab::{Host, HostSpec, Image};
use postern_tests::load::{Load, elapsed, get};
use postern_tests::rig::{BOOT_DEADLINE, Ended, LONG, Rig, apply, finish, managed_with, said, wait_for};
use postern_tests::time_server::serve_time;

const TRAEFIK: &str = "traefik:v3.7.9";

fn spec(name: &str, image: Image) -> HostSpec {
    HostSpec { docker: true, internet: true, ..HostSpec::new(name, image) }
}

fn at(host: &Host, port: u16) -> SocketAddr {
    SocketAddr::new(host.v4.into(), port)
}

/// A host with Docker from its own repository, as the profile installs it, and nothing else of the profile.
fn with_docker(name: &str, image: Image) -> Result<Option<(Rig, Host)>> {
    let Some((rig, host)) = managed_with(spec(name, image))? else { return Ok(None) };
    let internet = rig.lab.internet()?;
    let release = image.release.to_string();
    internet.say_stand_ins(&format!("for {release}:"));
    internet.say_stand_ins("traefik");
    let packages = ["containerd.io", "docker-ce", "docker-ce-cli"];
    let packages: String = packages.iter().map(|name| format!("  - package: {{name: {name}}}\n")).collect();
    let resources = format!(
        "  - apt_repository:\n      name: docker\n      uris: ['https://download.docker.com/linux/debian']\n      \
         suites: [{release}]\n      components: [stable]\n      key_url: https://download.docker.com/linux/debian/gpg\n      \
         fingerprints: ['{}']\n{packages}",
        internet.docker_key()
    );
    apply_for(&rig, &host, &resources)?.expect(0);
    Ok(Some((rig, host)))
}

/// Applies resources with time for what comes over the network.
fn apply_for(rig: &Rig, host: &Host, resources: &str) -> Result<Ended> {
    let profile = rig.state_dir().join("lab.yaml");
    std::fs::write(&profile, format!("name: lab\nresources:\n{resources}"))?;
    finish(rig.command(&["apply", &profile.display().to_string(), "-H", &host.name]), LONG)
}

struct Shipped {
    rig: Rig,
    host: Host,
    vars: Vec<String>,
}

impl Shipped {
    fn open(name: &str, image: Image) -> Result<Option<Self>> {
        let Some(mut rig) = Rig::open() else { return Ok(None) };
        rig.serve()?;
        let host = rig.host_with(spec(name, image))?;
        serve_time(&host)?;
        let internet = rig.lab.internet()?;
        internet.say_stand_ins(&format!("for {}:", image.release));
        internet.say_stand_ins("traefik");
        let vars = rig.swarm_vars(&internet)?;
        Ok(Some(Self { rig, host, vars }))
    }

    /// `postern up … --profile swarm`, and how the run ended in its own words.
    fn up(&self) -> Result<String> {
        self.up_with(&[])?.expect(0);
        self.rig.last_message(&self.host)
    }

    fn up_with(&self, more: &[&str]) -> Result<Ended> {
        let mut args = vec!["--profile", "swarm"];
        args.extend(self.vars.iter().map(String::as_str));
        args.extend(more.iter().flat_map(|var| ["--var", *var]));
        self.rig.up_long(&self.host, &args)
    }

    /// The engine was started once, and while Traefik started, the rest of `base` was done; then it was waited for.
    fn went_on_meanwhile(&self) -> Result<()> {
        let run = self.rig.last_run(&self.host)?;
        let events = self.rig.run(&["run", "logs", &run, "--output", "json"])?.expect(0).stdout;
        let at = |words: &[&str]| {
            let found = events.lines().position(|line| words.iter().all(|word| line.contains(word)));
            found.with_context(|| format!("{words:?} in {events}"))
        };
        let made = at(&["step-started", "make the service traefik"])?;
        let banned = at(&["resource-finished", "base:fail2ban:"])?;
        let waited = at(&["step-started", "settle-service traefik"])?;
        at(&["resource-finished", "docker_daemon:daemon.json", "unchanged"])?;
        let guarded = at(&["resource-finished", "firewall:inbound", "changed"])?;
        ensure!(guarded < made && made < banned && banned < waited, "{guarded} {made} {banned} {waited}");
        Ok(())
    }

    fn in_force(&self) -> Result<()> {
        let host = &self.host;
        assert_eq!(
            host.sh("docker info --format '{{.LoggingDriver}} {{.Swarm.LocalNodeState}}'")?,
            "json-file active"
        );
        assert_eq!(host.sh("docker node ls --format '{{.Status}} {{.ManagerStatus}}'")?, "Ready Leader");
        let mtu = host.sh(
            "docker network inspect proxy --format '{{index .Options \"com.docker.network.driver.mtu\"}}'",
        )?;
        // Docker takes 50 off what it is told.
        assert_eq!(mtu, "1500");
        let inside = "docker exec $(docker ps -q --filter label=com.docker.swarm.service.name=traefik) cat /sys/class/net/eth0/mtu";
        assert_eq!(host.sh(inside)?, "1450");
        let config = get(at(host, 80), "/config")?;
        assert!(
            config.contains("exposedByDefault: false") && !config.contains("forwardedHeaders"),
            "{config}"
        );
        assert_eq!(get(at(host, 443), "/config")?, config);
        let shown = host.sh("docker service inspect traefik --format '{{json .Spec}}'")?;
        assert!(
            shown.contains("\"Source\":\"/run/docker.sock\"") && shown.contains("\"ReadOnly\":true"),
            "{shown}"
        );
        // Engines from 25 on ask a service that starts each second.
        let asks = host.sh("docker version --format '{{.Server.APIVersion}}'")?.as_str() >= "1.44";
        assert_eq!(shown.contains("\"StartInterval\":1000000000"), asks, "{shown}");
        host.sh("getent group docker && ! id -nG ada | grep -qw docker")?;
        Ok(())
    }

    fn unchanged(&self, when: &str) -> Result<()> {
        let message = self.up()?;
        ensure!(message.ends_with(" unchanged") && !message.contains(','), "{when}: {message}");
        Ok(())
    }
}

fn swarm_on(name: &str, image: Image) -> Result<()> {
    let Some(mut shipped) = Shipped::open(name, image)? else { return Ok(()) };
    let good = format!("traefik_image={TRAEFIK}");
    let first_without = image == Image::TRIXIE_SHIPPED;
    if first_without {
        without_its_image_the_rest_is_done(&shipped)?;
        shipped.vars.extend(["--var".to_owned(), good]);
    }
    let first = shipped.up()?;
    assert!(first.contains("changed"), "{first}");
    if !first_without {
        shipped.went_on_meanwhile()?;
    }
    shipped.in_force()?;
    shipped.unchanged("the second run")?;

    let host = &shipped.host;
    host.reboot()?;
    host.wait_ssh(BOOT_DEADLINE)?;
    wait_for("Traefik answers after the restart", Duration::from_secs(120), || {
        Ok(get(at(host, 80), "/config").is_ok() && get(at(host, 443), "/config").is_ok())
    })?;
    wait_for("the clock is right again", Duration::from_secs(60), || {
        Ok(host.sh("chronyc -n tracking || true")?.contains(": Normal"))
    })?;
    wait_for("Docker says that Traefik is well", Duration::from_secs(120), || {
        Ok(host.sh("docker service ls --format '{{.Name}} {{.Replicas}}'")? == "traefik 1/1")
    })?;
    shipped.in_force()?;
    shipped.unchanged("the run after a restart")?;
    a_site_comes_and_goes(&shipped)?;
    trap_17_a_newer_major_is_taken_when_it_is_asked_for(&shipped)
}

/// Traefik cannot be had: that is told, and the host is none the less one that only its administrator gets into.
fn without_its_image_the_rest_is_done(shipped: &Shipped) -> Result<()> {
    let failed = shipped.up_with(&["traefik_image=traefik:nosuch"])?.expect(1);
    assert!(said(&failed).contains("traefik:nosuch"), "{failed:?}");
    let host = &shipped.host;
    host.sh("docker info --format '{{.Swarm.LocalNodeState}}' | grep -qx active && test -z \"$(docker service ls -q)\"")?;
    host.sh("sudo -u ada sudo -n true && sshd -T | grep -qx 'passwordauthentication no'")?;
    host.sh("iptables -w -S POSTERN-INPUT | grep -q 443 && fail2ban-client status sshd | grep -q 'File list\\|Journal'")?;
    Ok(())
}

/// Profile `site`, in the form of its command.
fn a_site_comes_and_goes(shipped: &Shipped) -> Result<()> {
    let (rig, host) = (&shipped.rig, &shipped.host);
    let image = format!("image={TRAEFIK}");
    let site = |more: &[&str]| {
        let mut args =
            vec!["apply", "site", "-H", &host.name, "--var", "domain=www.example.org", "--var", &image];
        args.extend(more);
        finish(rig.command(&args), LONG)
    };
    site(&[])?.expect(0);
    let labels = host.sh("docker service inspect www-example-org --format '{{json .Spec.Labels}}'")?;
    assert!(
        labels.contains("Host(`www.example.org`)") && labels.contains("\"traefik.swarm.network\":\"proxy\""),
        "{labels}"
    );
    assert_eq!(host.sh("docker service ls --filter name=www --format '{{.Replicas}}'")?, "1/1");
    site(&["--var", "state=absent"])?.expect(0);
    assert_eq!(host.sh("docker service ls --format '{{.Name}}'")?, "traefik");
    Ok(())
}

/// A repository that has Docker 30, too: it is not taken, until the profile is told to.
fn trap_17_a_newer_major_is_taken_when_it_is_asked_for(shipped: &Shipped) -> Result<()> {
    let (rig, host) = (&shipped.rig, &shipped.host);
    // The very packages of before under another version.
    let make = r"mkdir -p /srv/newer; cd /srv/newer
        apt-get -q download docker-ce docker-ce-cli >/dev/null
        for deb in *.deb; do
            dpkg-deb -R $deb x; sed -i 's/^Version: 5:29/Version: 5:30/' x/DEBIAN/control
            rm $deb; dpkg-deb -Znone -b x $deb >/dev/null; rm -r x
            { dpkg-deb -f $deb; echo Filename: ./$deb; echo Size: $(stat -c %s $deb); echo SHA256: $(sha256sum $deb | cut -d ' ' -f 1); echo; } >>Packages
        done
        echo 'deb [trusted=yes] file:/srv/newer ./' >/etc/apt/sources.list.d/newer.list
        apt-get update -q >/dev/null";
    host.exec_with(&["sh", "-ec", make], b"", Duration::from_secs(120))?.ok()?;
    let would = || host.sh("apt-get -s dist-upgrade | grep -c '^Inst docker-ce ' || true");
    assert_eq!(would()?, "0", "Docker 30 would be installed");
    // The control: without the file, apt takes it.
    host.sh("mv /etc/apt/preferences.d/postern-docker /root/")?;
    assert_eq!(would()?, "1");
    host.sh("mv /root/postern-docker /etc/apt/preferences.d/")?;

    let raised = ["--var", "docker_major=30", "--var", "docker_users=ada"];
    let apply = [&["apply", "swarm", "-H", &host.name][..], &raised].concat();
    finish(rig.command(&apply), LONG)?.expect(0);
    for package in ["docker-ce", "docker-ce-cli"] {
        let version = host.sh(&format!("dpkg-query -W -f '${{Version}}' {package}"))?;
        assert!(version.starts_with("5:30."), "{package} {version}");
    }
    host.sh("id -nG ada | grep -qw docker")?;
    wait_for("Traefik answers under the new engine", Duration::from_secs(120), || {
        Ok(get(at(host, 80), "/config").is_ok())
    })?;
    let again = finish(rig.command(&apply), LONG)?.expect(0);
    assert!(!said(&again).contains(" changed"), "{again:?}");
    Ok(())
}

#[test]
fn trap_17_swarm_on_debian_12_as_shipped() -> Result<()> {
    swarm_on("swarm-12", Image::BOOKWORM_SHIPPED)
}

#[test]
fn trap_17_swarm_on_debian_13_as_shipped() -> Result<()> {
    swarm_on("swarm-13", Image::TRIXIE_SHIPPED)
}

/// T16: what others set stays, what cannot be is refused, and nothing is put in place that the engine does not take.
#[test]
fn trap_16_daemon_json_is_merged() -> Result<()> {
    let Some((rig, host)) = with_docker("daemon", Image::TRIXIE)? else { return Ok(()) };
    host.sh("mkdir -p /etc/docker; echo '{\"mtu\": 1400, \"log-driver\": \"local\"}' >/etc/docker/daemon.json; systemctl reset-failed docker; systemctl restart docker")?;
    let daemon = |more: &str| {
        format!(
            "  - docker_daemon: {{log_driver: json-file, log_opts: {{max-size: 10m, max-file: '3'}}{more}}}\n"
        )
    };
    apply(&rig, &host, &daemon(""), &[])?.expect(0);
    let run = rig.last_run(&host)?;
    assert_eq!(host.sh("docker info --format '{{.LoggingDriver}}'")?, "json-file");
    host.sh("grep -q '\"mtu\": 1400' /etc/docker/daemon.json")?;
    // Refused before it is in place: the engine that runs goes on with what it has.
    let started = host.sh("systemctl show -p ExecMainStartTimestampMonotonic docker")?;
    let before = host.sh("sha256sum /etc/docker/daemon.json")?;
    let refused = apply(&rig, &host, &daemon(", settings: {no-such-key: 'true'}"), &[])?.expect(1);
    assert!(said(&refused).contains("does not accept the new content"), "{refused:?}");
    assert_eq!(host.sh("sha256sum /etc/docker/daemon.json")?, before);
    // Somebody's own key comes in between; an undo takes back only ours.
    host.sh("sed -i 's/\"mtu\": 1400/\"mtu\": 1400, \"debug\": true/' /etc/docker/daemon.json")?;
    rig.run(&["run", "undo", &run])?.expect(0);
    let back = host.sh("cat /etc/docker/daemon.json")?;
    assert!(back.contains("\"local\"") && back.contains("debug") && !back.contains("max-size"), "{back}");
    assert_eq!(host.sh("docker info --format '{{.LoggingDriver}}'")?, "local");
    assert_ne!(host.sh("systemctl show -p ExecMainStartTimestampMonotonic docker")?, started);

    apply(&rig, &host, "  - docker_daemon: {settings: {live-restore: 'true'}}\n", &[])?.expect(0);
    let refused = apply(&rig, &host, "  - swarm: {}\n", &[])?.expect(1);
    assert!(said(&refused).contains("live-restore on, which cannot be together with Swarm"), "{refused:?}");
    Ok(())
}

/// T18 and T19: several addresses, none of IPv4 that counts, and a network whose packets are smaller.
#[test]
fn trap_18_and_19_a_swarm_on_the_hosts_own_networks() -> Result<()> {
    let Some((rig, host)) = with_docker("networks", Image::BOOKWORM)? else { return Ok(()) };
    let node = "docker info --format '{{.Swarm.NodeAddr}}'";
    let swarm = "  - swarm: {}\n";
    // The lab's address is private and of the default route; this one is lower, and of neither.
    host.sh("ip link add other type veth peer name other-end; ip link set other up; ip addr add 10.0.0.1/24 dev other")?;
    apply(&rig, &host, swarm, &[])?.expect(0);
    assert_eq!(host.sh(node)?, host.v4.to_string());
    let run = rig.last_run(&host)?;
    rig.run(&["run", "undo", &run])?.expect(0);
    assert_eq!(host.sh("docker info --format '{{.Swarm.LocalNodeState}}'")?, "inactive");

    // A host that has only IPv6 for others: its IPv4 address goes on carrying the link, and no more.
    host.sh("ip link del other")?;
    host.sh(&format!("ip addr del {0}/24 dev eth0; ip addr add {0}/24 dev eth0 scope link", host.v4))?;
    host.sh("ip link set eth0 mtu 1400")?;
    let network = "  - docker_network: {name: proxy, attachable: true}\n";
    apply(&rig, &host, &format!("{swarm}{network}"), &[])?.expect(0);
    assert_eq!(host.sh(node)?, host.v6.to_string());
    let again = apply(&rig, &host, &format!("{swarm}{network}"), &[])?.expect(0);
    assert!(again.stdout.contains("2 unchanged"), "{again:?}");
    // 70 bytes less over IPv6; and so it is inside of a container.
    let service =
        format!("  - swarm_service: {{name: web, image: '{TRAEFIK}', networks: [proxy], ports: ['80']}}\n");
    apply_for(&rig, &host, &format!("{swarm}{network}{service}"))?.expect(0);
    let inside = "docker exec $(docker ps -q --filter label=com.docker.swarm.service.name=web) cat /sys/class/net/eth0/mtu";
    assert_eq!(host.sh(inside)?, "1330");
    // Another MTU cannot be had while somebody is in it, and that is said.
    let other = format!("{swarm}  - docker_network: {{name: proxy, attachable: true, mtu: 1300}}\n{service}");
    let refused = apply(&rig, &host, &other, &[])?.expect(1);
    assert!(said(&refused).contains("has the MTU 1330 and not 1300, which cannot be changed"), "{refused:?}");
    Ok(())
}

/// A service like the profile's Traefik, with a token.
fn traefik() -> String {
    format!(
        "  - swarm: {{}}\n  - docker_network: {{name: proxy, attachable: true}}\n  - swarm_service:\n      name: traefik\n      \
         image: '{TRAEFIK}'\n      networks: [proxy]\n      ports: ['80', '443', 443/udp]\n      \
         mounts: ['/run/docker.sock:/var/run/docker.sock:ro', 'traefik-acme:/acme']\n      \
         health: [traefik, healthcheck]\n      env: {{CF_DNS_API_TOKEN_FILE: /run/secrets/dns-cloudflare}}\n      \
         secrets: {{/run/secrets/dns-cloudflare: \"{{{{ secret('dns-cloudflare') }}}}\"}}\n      \
         configs: {{/etc/traefik/traefik.yml: \"providers: {{}}\\n\"}}\n"
    )
}

/// T20: 220 requests a second for a minute and more, and the token changes in between: not one is lost, the new token is
/// there, and nothing of the old one is left.
#[test]
fn trap_20_and_22_a_token_is_changed_without_a_lost_request() -> Result<()> {
    let Some((rig, host)) = with_docker("rotate", Image::BOOKWORM)? else { return Ok(()) };
    let (old, new) = ("first-cloudflare-token", "second-cloudflare-token");
    rig.set_secret("dns-cloudflare", old)?.expect(0);
    apply_for(&rig, &host, &traefik())?.expect(0);
    let logs = rig.run(&["run", "logs", &rig.last_run(&host)?])?.expect(0);
    assert!(said(&logs).contains("Pull complete"), "a pull tells how far it is: {logs:?}");
    let token = || get(at(&host, 80), "/secrets/dns-cloudflare").map(|text| text.trim().to_owned());
    assert_eq!(token()?, old);
    let names = || host.sh("docker secret ls --format '{{.Name}}'");
    let before = names()?;

    let load = Load::start(at(&host, 80), "http://lab/config", "providers", 220);
    wait_for("the load has gone on for ten seconds", Duration::from_secs(20), elapsed(10))?;
    rig.set_secret("dns-cloudflare", new)?.expect(0);
    let rotated = apply_for(&rig, &host, &traefik())?.expect(0);
    assert!(rotated.stdout.contains("1 changed"), "{rotated:?}");
    wait_for("the load goes on after it", Duration::from_secs(60), elapsed(45))?;
    let outcome = load.stop()?;
    use std::io::Write as _;
    writeln!(std::io::stdout(), "T20: {outcome:?}")?;
    assert_eq!(outcome.failed, 0, "{outcome:?}");
    let (lasted, rate) =
        (outcome.lasted.as_secs_f64(), outcome.answered as f64 / outcome.lasted.as_secs_f64());
    assert!(lasted >= 60.0 && rate >= 200.0, "{rate:.0} a second for {lasted:.0} s: {outcome:?}");
    assert_eq!(token()?, new);
    let after = names()?;
    assert!(after.lines().count() == 1 && after != before, "{before} {after}");
    host.sh("! iptables -w -t mangle -S POSTERN-HOLD && ! ip6tables -w -t mangle -S POSTERN-HOLD")?;

    // Neither value is anywhere: arguments, the service, what the agent keeps, what it logged.
    for value in [old, new] {
        let shown = host.sh(
            "docker service inspect traefik && docker secret ls && docker secret inspect $(docker secret ls -q)",
        )?;
        assert!(!shown.contains(value), "{shown}");
        // Also in the form in which it is sent to the engine.
        let sent = host.sh(&format!("printf %s {value} | base64 -w0 | cut -c1-24"))?;
        host.sh(&format!("! grep -rqsF {sent} /var/lib/postern-agent && all=$(journalctl) && ! printf %s \"$all\" | grep -qF {sent}"))?;
        host.sh(&format!(
            "! grep -rqsF {value} /var/lib/postern-agent /etc/postern-agent && all=$(journalctl) && ! printf %s \"$all\" | grep -qF {value}"
        ))?;
    }
    // The control: the same load notices an update that holds nobody.
    let load = Load::start(at(&host, 80), "http://lab/config", "providers", 220);
    host.exec_with(
        &["docker", "service", "update", "--force", "--quiet", "traefik"],
        b"",
        Duration::from_secs(120),
    )?
    .ok()?;
    let outcome = load.stop()?;
    assert!(outcome.failed > 0, "the control: {outcome:?}");

    a_failed_update_is_told(&rig, &host)
}

/// An image that ends at once: the update is rolled back, the error is the task's, and what ran before answers.
fn a_failed_update_is_told(rig: &Rig, host: &Host) -> Result<()> {
    let internet = rig.lab.internet()?;
    let hello = internet.image("hello").context("no image")?;
    let broken = traefik().replace(TRAEFIK, hello).replace("      health: [traefik, healthcheck]\n", "");
    let failed = apply_for(rig, host, &broken)?.expect(1);
    assert!(said(&failed).contains("failed and was rolled back: its program ended by itself"), "{failed:?}");
    wait_for("what ran before answers again", Duration::from_secs(60), || {
        Ok(get(at(host, 80), "/config").is_ok())
    })?;
    apply_for(rig, host, &traefik())?.expect(0);
    // Somebody stops a task: Docker starts it again by itself, and a run that comes in between waits for it.
    let task = || host.sh("docker service ps -q --filter desired-state=running traefik");
    let killed = task()?;
    host.sh("docker kill $(docker ps -q --filter label=com.docker.swarm.service.name=traefik)")?;
    // Docker itself takes a moment to notice; until then nobody can know it from one that runs.
    wait_for("Docker has noticed", Duration::from_secs(60), || Ok(task()? != killed))?;
    apply_for(rig, host, &traefik())?.expect(0);
    get(at(host, 80), "/config").map(drop)
}

/// A registry that wants a login gets it, with the pull and with nothing else.
#[test]
fn an_image_from_a_registry_that_wants_a_login() -> Result<()> {
    let Some((rig, host)) = with_docker("private", Image::TRIXIE)? else { return Ok(()) };
    let internet = rig.lab.internet()?;
    let image = format!("{}/library/{TRAEFIK}", internet.private_registry());
    let (user, password) = internet.registry_login();
    let service = |login: &str| {
        format!("  - swarm: {{}}\n  - swarm_service:\n      name: private\n      image: '{image}'\n{login}")
    };
    let with =
        format!("      registry_user: {user}\n      registry_password: \"{{{{ secret('ghcr') }}}}\"\n");
    let refused = apply_for(&rig, &host, &service(""))?.expect(1);
    assert!(said(&refused).contains("no basic auth credentials"), "{refused:?}");
    let wrong = "another-registry-password-987654";
    rig.set_secret("ghcr", wrong)?.expect(0);
    let refused = apply_for(&rig, &host, &service(&with))?.expect(1);
    assert!(said(&refused).contains("unauthorized") && !said(&refused).contains(wrong), "{refused:?}");
    rig.set_secret("ghcr", password)?.expect(0);
    apply_for(&rig, &host, &service(&with))?.expect(0);
    let again = apply_for(&rig, &host, &service(&with))?.expect(0);
    assert!(again.stdout.contains("2 unchanged"), "{again:?}");

    // What Docker starts by itself needs no login: it is made of what the pull brought.
    let container = || host.sh("docker ps -q --filter label=com.docker.swarm.service.name=private");
    let first = container()?;
    host.sh("docker kill $(docker ps -q --filter label=com.docker.swarm.service.name=private)")?;
    wait_for("another container runs", Duration::from_secs(60), || {
        let now = container()?;
        Ok(!now.is_empty() && now != first)
    })?;

    for value in [wrong, password] {
        let coded = host.sh(&format!("printf %s '{{\"password\":\"{value}\"' | base64 -w0 | cut -c1-24"))?;
        let shown = host.sh(
            "docker service inspect private && docker info && { cat /root/.docker/config.json 2>/dev/null || :; }",
        )?;
        assert!(!shown.contains(value), "{shown}");
        for text in [value, &coded] {
            host.sh(&format!(
                "! grep -rqsF {text} /var/lib/postern-agent /etc /root /run/postern-agent /tmp"
            ))?;
            host.sh(&format!("all=$(journalctl) && ! printf %s \"$all\" | grep -qF {text}"))?;
        }
    }
    Ok(())
}

/// T20: a port and then a network is taken from a service, and nothing else is changed of it: a run ends once its
/// container is so. A label alone makes no new one.
fn ports_and_networks_alone(name: &str, image: Image) -> Result<()> {
    let Some((rig, host)) = with_docker(name, image)? else { return Ok(()) };
    rig.set_secret("dns-cloudflare", "token")?.expect(0);
    let container = || host.sh("docker ps -q --filter label=com.docker.swarm.service.name=traefik");
    let shown = |what: &str| host.sh(&format!("docker inspect -f '{{{{json {what}}}}}' {}", container()?));
    let networks = "networks: [proxy, other]";
    let whole = traefik().replace("networks: [proxy]", networks).replace(
        "  - swarm_service:",
        "  - docker_network: {name: other, attachable: true}\n  - swarm_service:",
    );
    let fewer_ports = whole.replace("ports: ['80', '443', 443/udp]", "ports: ['80']");
    let fewer_networks = fewer_ports.replace(networks, "networks: [proxy]");
    apply_for(&rig, &host, &whole)?.expect(0);
    for (resources, what, gone) in [
        (&fewer_ports, ".HostConfig.PortBindings", "443/tcp"),
        (&fewer_networks, ".NetworkSettings.Networks", "\"other\""),
    ] {
        let before = container()?;
        ensure!(shown(what)?.contains(gone), "{}", shown(what)?);
        let ended = apply_for(&rig, &host, resources)?.expect(0);
        assert!(ended.stdout.contains("1 changed"), "{ended:?}");
        let (after, left) = (container()?, shown(what)?);
        assert!(!left.contains(gone) && after != before, "{before} {after}: {left}");
        get(at(&host, 80), "/config").map(drop)?;
    }
    // What the engine tells of a task is what it tells of the service, and of ports what the container has of the host.
    let ports = "docker inspect --type task -f '{{range .Status.PortStatus.Ports}}{{.PublishMode}} {{.PublishedPort}} {{end}}' \
                 $(docker service ps -q --filter desired-state=running traefik)";
    let ports = host.sh(ports)?;
    ensure!(ports.contains("host 80") && !ports.contains("443"), "{ports}");
    let now = container()?;
    let again = apply_for(&rig, &host, &fewer_networks)?.expect(0);
    assert!(!again.stdout.contains("changed,") && again.stdout.contains("unchanged"), "{again:?}");
    let labelled = fewer_networks.replace("      secrets:", "      labels: {x: y}\n      secrets:");
    let labelled = apply_for(&rig, &host, &labelled)?.expect(0);
    assert!(labelled.stdout.contains("1 changed"), "{labelled:?}");
    assert_eq!(container()?, now, "a label alone makes no new container");
    a_task_of_before_counts_as_one(&rig, &host)
}

/// An update whose new task finds no place: the old one goes on, and is told as what it is; and is as it should be once
/// the update is taken back.
fn a_task_of_before_counts_as_one(rig: &Rig, host: &Host) -> Result<()> {
    let nets = "  - swarm: {}\n  - docker_network: {name: proxy, attachable: true}\n  - docker_network: {name: other, \
                attachable: true}\n";
    let web = |network: &str, more: &str| {
        format!(
            "{nets}  - swarm_service: {{name: web, image: '{TRAEFIK}', networks: [{network}], update_order: start-first, \
             wait_s: 20{more}}}\n"
        )
    };
    let good = web("proxy", "");
    apply_for(rig, host, &good)?.expect(0);
    let failed = apply_for(rig, host, &web("other", ", constraints: [node.labels.lab==nowhere]"))?.expect(1);
    let says = "0 tasks run, 1 as it was before: no suitable node";
    ensure!(said(&failed).contains(says), "{failed:?}");
    let back = apply_for(rig, host, &good)?.expect(0);
    assert!(back.stdout.contains("1 changed"), "{back:?}");
    Ok(())
}

#[test]
fn trap_20_ports_and_networks_alone_on_debian_12() -> Result<()> {
    ports_and_networks_alone("ports-12", Image::BOOKWORM)
}

#[test]
fn trap_20_ports_and_networks_alone_on_debian_13() -> Result<()> {
    ports_and_networks_alone("ports-13", Image::TRIXIE)
}

fn cases() -> Vec<Case> {
    let case = |kind, before, resource, effect| Case { kind, before, resource, effect, undo: Undo::Whole };
    vec![
        case(
            "docker_daemon",
            "mkdir -p /etc/docker; printf '{\\n\"mtu\":1400}' >/etc/docker/daemon.json; systemctl reset-failed docker; systemctl restart docker",
            "docker_daemon: {log_driver: local, log_opts: {max-size: 10m}}",
            "test $(docker info --format '{{.LoggingDriver}}') = local && grep -q 1400 /etc/docker/daemon.json",
        ),
        case(
            "docker_daemon",
            "rm /etc/docker/daemon.json; systemctl reset-failed docker; systemctl restart docker",
            "docker_daemon: {log_driver: local}",
            "test $(docker info --format '{{.LoggingDriver}}') = local",
        ),
        case("swarm", ":", "swarm: {}", "test $(docker info --format '{{.Swarm.LocalNodeState}}') = active"),
        case(
            "docker_network",
            "docker swarm init >/dev/null 2>&1 || docker info | grep -q 'Is Manager: true'",
            "docker_network: {name: lab-net, attachable: true}",
            "docker network inspect lab-net --format '{{index .Options \"com.docker.network.driver.mtu\"}}' | grep -qx 1500",
        ),
        case(
            "docker_network",
            ":",
            "docker_network: {name: lab-bridge, driver: bridge, mtu: 1300}",
            "docker network inspect lab-bridge --format '{{.Driver}}' | grep -qx bridge",
        ),
        case(
            "swarm_service",
            "docker network inspect lab-net >/dev/null 2>&1 || docker network create -d overlay --attachable lab-net",
            "swarm_service: {name: web, image: 'traefik:v3.7.9', networks: [lab-net], ports: ['80'], replicas: 1, \
             configs: {/etc/traefik/traefik.yml: \"a: b\\n\"}, labels: {x: y}}",
            "curl -sf -m 5 localhost:80/config | grep -qx 'a: b'",
        ),
        case(
            "swarm_service",
            "docker service create -q --name by-hand -l postern.managed=true --network lab-net traefik:v3.7.9 >/dev/null",
            "swarm_service: {name: by-hand, state: absent}",
            "! docker service inspect by-hand >/dev/null 2>&1",
        ),
    ]
}

fn contract_on(name: &str, image: Image) -> Result<()> {
    let Some((rig, host)) = with_docker(name, image)? else { return Ok(()) };
    // What is looked at is one resource.
    rig.run(&["host", "unassign", &host.name, "lab"])?.expect(0);
    let mut broken = Vec::new();
    for (number, case) in cases().iter().enumerate() {
        if let Err(why) = keeps(&rig, &host, number, case) {
            broken.push(format!("--- {number} {}\n{why}", case.kind));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

#[test]
fn kinds_about_docker_keep_the_contract_on_debian_12() -> Result<()> {
    contract_on("docker-12", Image::BOOKWORM)
}

#[test]
fn kinds_about_docker_keep_the_contract_on_debian_13() -> Result<()> {
    contract_on("docker-13", Image::TRIXIE)
}
