//! `site backup` and `site restore` on a real host: certificates that Traefik got come back to a host that has lost them,
//! and their keys are in one file of the operator's and nowhere else. Docker's packages and Traefik are stand-ins where
//! the lab has none of the real ones, and it says so: that Traefik takes the file is not proved here.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_tests::lab::{Host, HostSpec, Image};
use postern_tests::load::Load;
use postern_tests::rig::{Rig, finish, said, wait_for};
use postern_tests::time_server::serve_time;

const LIMIT: Duration = Duration::from_secs(60);
/// Where the files lie, as Docker has them.
const DIR: &str = "/var/lib/docker/volumes/traefik-acme/_data";
const ACME: &str = "/var/lib/docker/volumes/traefik-acme/_data/cloudflare.json";
/// What must not be found.
const SECRET: &str = "LAB-PRIVATE-KEY-7c1e9f2b";

/// As Traefik writes it, as far as anybody here looks. The text stands in it often, so that a line's end hides not all.
fn acme() -> String {
    let key = SECRET.repeat(20);
    format!(
        "{{\"cloudflare\": {{\"Account\": {{\"Email\": \"ada@example.org\", \"PrivateKey\": \"{key}\"}}, \
         \"Certificates\": [{{\"domain\": {{\"main\": \"app.example.org\"}}, \"certificate\": \"eA==\", \"key\": \"{key}\"}}]}}}}"
    )
}

/// The text, and what of it is in its base64 wherever it begins.
fn traces() -> Vec<String> {
    let mut traces = vec![SECRET.to_owned()];
    for before in 0..3 {
        // Whole groups of three bytes; those at the ends depend on what stands around them.
        let encoded = STANDARD.encode(format!("{}{SECRET}", "x".repeat(before)));
        traces.push(encoded[4..encoded.len() - 4].to_owned());
    }
    traces
}

/// The same for a search that must not find itself.
fn pattern() -> String {
    let bracketed = |trace: &String| {
        let (rest, last) = trace.split_at(trace.len() - 1);
        format!("{}[{last}]", rest.replace('+', "[+]"))
    };
    traces().iter().map(bracketed).collect::<Vec<_>>().join("|")
}

/// Files of the host, of processes too, that have it in them, and lines of the journal.
fn on_host(host: &Host) -> Result<String> {
    let found = host.sh(&format!(
        "grep -rlaE '{0}' /etc /run /root /tmp /home /var /usr/local /proc/[0-9]*/cmdline /proc/[0-9]*/environ \
         2>/dev/null | sort; journalctl --no-pager | grep -cE '{0}'; true",
        pattern()
    ))?;
    Ok(found)
}

/// The same of the controller's state, and of what it shows of all runs: their output lies there compressed.
fn at_the_controller(rig: &Rig, host: &Host) -> Result<String> {
    let mut grep = Command::new("grep");
    grep.args(["-rlaE", &pattern()]).arg(rig.state_dir());
    let mut found = finish(grep, LIMIT)?.stdout;
    let runs = rig.run(&["runs", "-H", &host.name, "-n", "500", "--output", "json"])?.expect(0);
    let runs: serde_json::Value = serde_json::from_str(&runs.stdout)?;
    let runs = runs["runs"].as_array().context("no runs")?.clone();
    let mut looked = 0;
    for run in runs.iter().filter_map(|run| run["id"].as_str()) {
        for action in ["logs", "show"] {
            let shown = said(&rig.run(&["run", action, run])?);
            looked += usize::from(shown.contains("SEALED FILES"));
            if traces().iter().any(|trace| shown.contains(trace)) {
                found += &format!("run {action} {run}\n");
            }
        }
    }
    ensure!(looked > 0, "no run shows what was carried: nothing was looked at");
    Ok(found)
}

/// Looks at every process of the host, and at what its agent keeps for a moment, while something goes on.
struct Watch<'a>(&'a Host);

impl<'a> Watch<'a> {
    fn start(host: &'a Host) -> Result<Self> {
        host.sh(&format!(
            "rm -f /run/watch.*; setsid sh -c 'while ! test -e /run/watch.end; do echo >>/run/watch.looks
             {{ cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ
             find /var/lib/postern-agent /run/postern-agent -type f -exec cat {{}} +
             }} 2>/dev/null | grep -aqE \"{}\" && echo >>/run/watch.found
             done; echo >/run/watch.ended' >/dev/null 2>&1 </dev/null &",
            pattern()
        ))?;
        Ok(Self(host))
    }

    fn stop(self) -> Result<()> {
        self.0.sh("touch /run/watch.end; for i in $(seq 100); do test -e /run/watch.ended && break; sleep 0.1; done; test -e /run/watch.ended")?;
        let looks: u32 = self.0.sh("wc -l </run/watch.looks")?.trim().parse()?;
        ensure!(looks > 2, "only {looks} looks");
        let found = self.0.sh("cat /run/watch.found 2>/dev/null | wc -l; rm -f /run/watch.*")?;
        ensure!(found.trim() == "0", "seen on the host while it went on, in {found} of {looks} looks");
        Ok(())
    }
}

fn write(host: &Host, path: &str, content: &str) -> Result<()> {
    let put = ["sh", "-c", "umask 077; cat >\"$1\"", "sh", path];
    host.exec_with(&put, content.as_bytes(), LIMIT)?.ok()?;
    Ok(())
}

fn stat(host: &Host, path: &str) -> Result<String> {
    Ok(host.sh(&format!("stat -c '%a %u %g' {path}; sha256sum <{path}"))?)
}

fn tasks(host: &Host) -> Result<String> {
    Ok(host.sh("docker service ps traefik --filter desired-state=running -q --no-trunc")?)
}

#[test]
fn certificates_survive_the_loss_of_their_host_and_their_keys_are_nowhere_else() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let image = Image::TRIXIE;
    let host =
        rig.host_with(HostSpec { docker: true, internet: true, ..HostSpec::new("sitebk13", image) })?;
    serve_time(&host)?;
    let internet = rig.lab.internet()?;
    internet.say_stand_ins(&format!("for {}:", image.release));
    internet.say_stand_ins("traefik");
    let vars = rig.swarm_vars(&internet)?;
    rig.up(&host, &[])?.expect(0);
    let name = host.name.as_str();
    let file = rig.state_dir().join("web.site").display().to_string();
    let (backup, restore) = (["site", "backup", name, &file], ["site", "restore", name, &file]);

    // Neither Docker, nor anything that Traefik was given: both are said, and no file is left.
    assert!(said(&rig.run(&backup)?.expect(1)).contains("Docker's engine does not run here"));
    let mut swarm = vec!["apply", "swarm", "-H", name];
    swarm.extend(vars.iter().map(String::as_str));
    rig.run_long(&swarm)?.expect(0);
    assert!(said(&rig.run(&backup)?.expect(1)).contains("no certificate and no account"));
    assert!(!Path::new(&file).exists());

    write(&host, ACME, &acme())?;
    // More than one plan can carry.
    host.sh(&format!(
        "umask 077; {{ printf '\"'; head -c 1200000 /dev/urandom | base64 -w0; printf '\"'; }} >{DIR}/large.json
         ln -s /etc/shadow {DIR}/link.json"
    ))?;
    let large = format!("{DIR}/large.json");
    let before = (stat(&host, ACME)?, stat(&host, &large)?);
    let watch = Watch::start(&host)?;
    let done = rig.run(&backup)?.expect(0);
    watch.stop()?;
    assert!(said(&done).contains("account ada@example.org; app.example.org"), "{done:?}");
    assert!(said(&done).contains("link.json is a symbolic link"), "{done:?}");
    assert!(traces().iter().all(|trace| !said(&done).contains(trace)), "{done:?}");
    assert_eq!(std::fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    // The controls: what is looked for is found where it is.
    assert_eq!(on_host(&host)?, format!("{ACME}\n0"));
    assert_eq!(at_the_controller(&rig, &host)?, format!("{file}\n"));

    // A damaged file gets as far as the command that reads it.
    let whole = std::fs::read(&file)?;
    let mut damaged = whole.clone();
    let at = whole.windows(SECRET.len()).position(|part| part == SECRET.as_bytes()).context("no key")?;
    damaged[at] ^= 1;
    std::fs::write(&file, &damaged)?;
    let last = rig.last_run(&host)?;
    assert!(said(&rig.run(&restore)?.expect(2)).contains("cloudflare.json is not what was written"));
    assert_eq!(rig.last_run(&host)?, last, "the host was not asked for anything");
    std::fs::write(&file, &whole)?;

    // Lost with Traefik in place: it is restarted, and who asks it meanwhile is answered.
    host.sh(&format!("rm {DIR}/*"))?;
    let task = tasks(&host)?;
    let load = Load::start(SocketAddr::new(host.v4.into(), 80), "http://lab/config", "providers", 50);
    let watch = Watch::start(&host)?;
    let done = rig.run(&restore)?.expect(0);
    watch.stop()?;
    let outcome = load.stop()?;
    assert!(outcome.failed == 0 && outcome.answered > 100, "{outcome:?}");
    assert!(said(&done).contains("Traefik was restarted"), "{done:?}");
    assert_eq!((stat(&host, ACME)?, stat(&host, &large)?), before);
    let restarted = tasks(&host)?;
    assert_ne!(restarted, task);
    assert_eq!(host.sh("ls -A /run/postern-agent/volumes")?, "", "no key is left, and no cipher text");

    // Again: nothing to do.
    let again = rig.run(&restore)?.expect(0);
    assert!(said(&again).contains("cloudflare.json: is there already"), "{again:?}");
    assert_eq!((tasks(&host)?, stat(&host, ACME)?), (restarted, before.0.clone()));

    // What differs may be newer: it is left alone, and replaced by order only, and then kept beside it.
    let newer = "{\"cloudflare\": {\"Account\": {\"Email\": \"new@example.org\"}}}";
    write(&host, ACME, newer)?;
    let (there, running) = (stat(&host, ACME)?, tasks(&host)?);
    let refused = rig.run(&restore)?.expect(1);
    assert!(said(&refused).contains("other content in cloudflare.json already"), "{refused:?}");
    assert!(said(&refused).contains("--replace"), "{refused:?}");
    assert_eq!((stat(&host, ACME)?, tasks(&host)?), (there, running));
    assert_eq!(
        host.sh(&format!("ls -A {DIR} /run/postern-agent/volumes | grep -c before-restore; true"))?,
        "0"
    );
    rig.run(&[&restore[..], &["--replace"]].concat())?.expect(0);
    assert_eq!(stat(&host, ACME)?, before.0);
    assert_eq!(host.sh(&format!("cat {ACME}.before-restore"))?, newer);

    // Lost as a whole: the files are there before the Traefik that reads them.
    host.sh("docker service rm traefik >/dev/null")?;
    wait_for("the volume is nobody's", Duration::from_secs(60), || {
        Ok(host.exec(&["docker", "volume", "rm", "traefik-acme"])?.success())
    })?;
    let done = rig.run(&restore)?.expect(0);
    assert!(said(&done).contains("Traefik does not run there"), "{done:?}");
    assert_eq!((stat(&host, ACME)?, stat(&host, &large)?), before);
    rig.run_long(&["apply", "swarm", "-H", name])?.expect(0);
    let inside = "docker exec $(docker ps -q --filter label=com.docker.swarm.service.name=traefik) \
                  cat /acme/cloudflare.json | sha256sum";
    assert_eq!(Some(host.sh(inside)?.as_str()), before.0.lines().nth(1));
    rig.run_long(&["drift", name])?.expect(0);

    assert_eq!(on_host(&host)?, format!("{ACME}\n0"));
    assert_eq!(at_the_controller(&rig, &host)?, format!("{file}\n"));
    Ok(())
}
