//! One service of a Swarm, with nothing else of the profile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::lab::{Host, Image};
use postern_tests::load::{Load, elapsed, get};
use postern_tests::rig::{Rig, said, wait_for};

use super::{TRAEFIK, apply_for, at, with_docker};

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
