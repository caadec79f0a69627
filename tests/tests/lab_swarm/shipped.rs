//! The shipped profiles `swarm` and `site` on hosts made as shipped.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::lab::{Host, Image};
use postern_tests::load::get;
use postern_tests::rig::{BOOT_DEADLINE, Ended, LONG, Rig, finish, said, wait_for};
use postern_tests::time_server::serve_time;

use super::{TRAEFIK, at, spec};

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
        ensure!(!events.contains("restart docker.service"), "{events}");
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
        // Debian's own, which goes, and leaves a unit that is masked.
        let debians = "DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 update && \
                       DEBIAN_FRONTEND=noninteractive apt-get -qqy -o DPkg::Lock::Timeout=300 install --no-install-recommends docker.io";
        shipped.host.exec_with(&["sh", "-c", debians], b"", LONG)?.ok()?;
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

/// A whole run is undone: nothing of Docker is left, root gets in as before, and the firewall is gone. Undone in turn, all
/// of it is there again.
#[test]
fn a_whole_run_is_undone() -> Result<()> {
    let Some(shipped) = Shipped::open("swarm-undo", Image::BOOKWORM_SHIPPED)? else { return Ok(()) };
    let (rig, host) = (&shipped.rig, &shipped.host);
    shipped.up()?;
    let run = rig.last_run(host)?;
    rig.run_long(&["run", "undo", &run])?.expect(0);
    let undo = rig.last_run(host)?;
    // By the agent, as whether root may log in is a part of it.
    host.sh("! dpkg-query -W -f '${db:Status-Status}\\n' docker-ce containerd.io | grep -qx installed && ! test -e /etc/docker/daemon.json")?;
    host.sh("! iptables -w -S POSTERN-INPUT 2>/dev/null && ! test -e /etc/ssh/sshd_config.d/00-postern.conf && ! id ada 2>/dev/null")?;
    host.wait_ssh(BOOT_DEADLINE)?;
    rig.run_long(&["run", "undo", &undo])?.expect(0);
    shipped.in_force()?;
    shipped.unchanged("the run after an undone undo")
}

/// Somebody's daemon.json that is none: that is told and nothing is written to it, and the host is none the less one that
/// only its administrator gets into.
#[test]
fn what_docker_lacks_keeps_nobody_out_of_base() -> Result<()> {
    let Some(shipped) = Shipped::open("swarm-json", Image::TRIXIE_SHIPPED)? else { return Ok(()) };
    let host = &shipped.host;
    host.sh("mkdir /etc/docker && echo '{\"mtu\": 1400' >/etc/docker/daemon.json")?;
    let failed = shipped.up_with(&[])?.expect(1);
    ensure!(said(&failed).contains("/etc/docker/daemon.json is not JSON"), "{failed:?}");
    host.sh("grep -q 1400 /etc/docker/daemon.json && sshd -T | grep -qx 'passwordauthentication no' && sudo -u ada sudo -n true")?;
    host.sh("iptables -w -S POSTERN-INPUT | grep -q 443")?;
    host.sh("echo '{\"mtu\": 1400}' >/etc/docker/daemon.json")?;
    shipped.up()?;
    shipped.in_force()?;
    host.sh("grep -q 1400 /etc/docker/daemon.json")?;
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
