//! Docker, Swarm and the shipped profiles `swarm` and `site` on real hosts. Docker's packages, its registry and Traefik
//! are stand-ins where the lab has none of the real ones, and it says so.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[path = "../contract/mod.rs"]
mod contract;
mod service;
mod shipped;

use std::net::SocketAddr;

use anyhow::Result;
use contract::{Case, Undo, keeps};
use postern_tests::lab::{Host, HostSpec, Image};
use postern_tests::rig::{Ended, LONG, Rig, apply, finish, managed_with, said};

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
