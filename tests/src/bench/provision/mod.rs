//! A fresh run of the shipped profile `swarm`, and one with bootstrap, beside a hand-written script and an Ansible
//! playbook to the same end state.
mod hosts;
mod state;
mod verdict;

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::json;

use self::hosts::Hosts;
use self::verdict::GOALS;
use super::baselines::{Ansible, Tools};
use super::record::{Record, load};
use super::stats::Samples;
use super::timed::{timed, timed_from};
use crate::lab::{Host, Release};
use crate::rig::{Ended, Rig};

const SCRIPT: &str = include_str!("../../../bench/provision/script.sh");
const PLAYBOOK: &str = include_str!("../../../bench/provision/playbook.yaml");
/// The administrator in all of them.
const ADMIN: &str = "ada";
/// One sample; the slowest takes about two minutes.
const DEADLINE: Duration = Duration::from_secs(900);

/// How a host is provisioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// `postern apply swarm` on a host that has its agent.
    Run,
    /// `postern up --profile swarm`: bootstrap and run.
    Up,
    /// The script, over one ssh.
    Script,
    /// The playbook.
    Ansible,
}

impl Way {
    const ALL: [Way; 4] = [Way::Run, Way::Up, Way::Script, Way::Ansible];

    fn name(self) -> &'static str {
        match self {
            Way::Run => "postern apply swarm",
            Way::Up => "postern up --profile swarm",
            Way::Script => "hand-written script over ssh",
            Way::Ansible => "Ansible, pipelining",
        }
    }
}

/// As part of names.
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Run => "run",
            Way::Up => "up",
            Way::Script => "script",
            Way::Ansible => "ansible",
        })
    }
}

/// Provisions `rounds` fresh hosts in each of these ways (all when there are none), in turns whose order changes from
/// round to round; prints the table and the goals, and keeps raw samples and what each program said in `dir`.
///
/// The hosts are made as shipped and their first boot is over. All have the same lists and packages of apt lying there
/// ([`Hosts`]), so that what is measured downloads images and keys from the lab alone. After its sample each host is
/// looked at by the same check, in the first round also after a restart: one that is not in the state that was to be
/// brought about ends the benchmark.
pub fn provision(
    release: Release,
    rounds: usize,
    only: &[Way],
    dir: &Path,
    out: &mut dyn Write,
) -> Result<()> {
    let ways: Vec<Way> = Way::ALL.into_iter().filter(|way| only.is_empty() || only.contains(way)).collect();
    let tools = if ways.contains(&Way::Ansible) { Some(Tools::ready(dir, out)?) } else { None };
    let rig = super::rig()?;
    let mut record = Record::new("provision", &rig)?;
    if let Some(tools) = &tools {
        tools.note(&mut record)?;
    }
    let said = dir.join("provision");
    std::fs::create_dir_all(&said).with_context(|| format!("cannot make {}", said.display()))?;
    for line in rig.lab.internet()?.stand_ins() {
        if line.contains(&format!("for {release}:")) || line.starts_with("traefik") {
            writeln!(out, "stand-in: {line}")?;
        }
    }

    // Docker has it from version 25 on; what stands in for it on Debian 12 is older.
    let health_start = if release == Release::Bookworm { "" } else { "--health-start-interval 1s" };
    let bench = Bench { rig: &rig, tools, health_start, said };
    writeln!(out, "one host is provisioned beforehand, for its packages")?;
    let hosts = Hosts::prepare(&rig, release, |host| {
        let ended = bench.run(Way::Script, host, "beforehand")?;
        verdict::went_well(&ended)?;
        state::check(host)
    })?;
    record.version("Debian", hosts.debian());

    let names = Way::ALL.map(Way::name);
    let mut samples = Samples::new(&names);
    let mut loads = Vec::new();
    for round in 0..rounds {
        for turn in 0..ways.len() {
            let way = ways[(round + turn) % ways.len()];
            loads.push(load());
            let took =
                bench.sample(way, round, &hosts).with_context(|| format!("`{}` is no sample", way.name()))?;
            samples.add(way as usize, took);
            writeln!(out, "round {} of {rounds}: {} {:.2} s", round + 1, way.name(), took.as_secs_f64())?;
        }
    }

    record.part(0, &samples, &loads);
    let file = super::result_file(dir, "provision.json")?;
    record.save(&file)?;
    writeln!(out, "\nprofile swarm on a fresh host")?;
    write!(out, "{}", samples.table_beside(Way::Script as usize))?;
    for goal in &GOALS {
        if let Some(line) = goal.judge(&samples) {
            writeln!(out, "{line}")?;
        }
    }
    let least = loads.iter().copied().fold(f64::INFINITY, f64::min);
    let most = loads.iter().copied().fold(0.0, f64::max);
    writeln!(out, "load of the machine before each sample: {least:.1} to {most:.1}")?;
    writeln!(out, "\nimage {}; {}; raw samples in {}", hosts.image(), record.versions(), file.display())?;
    Ok(())
}

struct Bench<'a> {
    rig: &'a Rig,
    tools: Option<Tools>,
    /// How Docker's command of the release is told to look each second at a service that starts.
    health_start: &'static str,
    /// Where it is kept what each program said.
    said: PathBuf,
}

impl Bench<'_> {
    /// One fresh host, provisioned, looked at, and gone.
    fn sample(&self, way: Way, round: usize, hosts: &Hosts) -> Result<Duration> {
        let host = hosts.make(self.rig, &format!("bench-{way}-{round}"))?;
        if way == Way::Run {
            super::up(self.rig, &host, &[])?;
        }
        let ended = self.run(way, &host, &format!("{way}-{round}"))?;
        verdict::went_well(&ended)?;
        hosts.nothing_fetched(&host)?;
        state::check(&host)?;
        if round == 0 {
            host.reboot()?;
            state::check_after_restart(&host).context("after a restart of the host")?;
        }
        host.destroy()?;
        Ok(ended.took)
    }

    /// The program to its end, whatever that is; what it said is kept under this name.
    fn run(&self, way: Way, host: &Host, name: &str) -> Result<Ended> {
        let work = self.rig.state_dir().join(&host.name);
        std::fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        let ended = match way {
            Way::Run => timed(self.postern(&["apply", "-H", &host.name, "swarm"])?, DEADLINE)?,
            Way::Up => {
                let target = format!("root@{}", host.v4);
                let key = host.private_key.display().to_string();
                let fingerprint = host.fingerprint("ssh-ed25519").context("the host has no ed25519 key")?;
                let to = ["up", &target, "--identity", &key, "--host-key", fingerprint];
                let more = ["--name", &host.name, "--profile", "swarm"];
                timed(self.postern(&[&to[..], &more].concat())?, DEADLINE)?
            }
            Way::Script => {
                let path = work.join("script.sh");
                // With the time of each line, which a shell has at hand.
                let head = format!(
                    "admin={ADMIN}\nadmin_key='{}'\nhealth_start='{}'\nPS4='+ $EPOCHREALTIME '\nset -x\n",
                    self.admin_key()?,
                    self.health_start
                );
                std::fs::write(&path, head + SCRIPT).context("cannot write the script")?;
                let mut ssh = host.ssh("root");
                ssh.arg("bash -s");
                timed_from(ssh, File::open(&path).context("cannot open the script")?, DEADLINE)?
            }
            Way::Ansible => {
                let tools = self.tools.as_ref().context("Ansible is not installed")?;
                let vars = json!({
                    "admin_key": self.admin_key()?,
                    "health_start": self.health_start,
                    "ansible_python_interpreter": "/usr/bin/python3",
                });
                let ansible = Ansible::new(tools, host, host.ssh_address(), &work, PLAYBOOK, &vars)?;
                let ended = timed(ansible.command(false), DEADLINE)?;
                ansible.end_masters(host)?;
                ended
            }
        };
        let path = self.said.join(format!("{name}.log"));
        std::fs::write(&path, format!("{}{}", ended.stdout, ended.stderr))
            .with_context(|| format!("cannot write {}", path.display()))?;
        if matches!(way, Way::Run | Way::Up) {
            self.keep_run(host, name)?;
        }
        Ok(ended)
    }

    /// `postern` with what the profile is given.
    fn postern(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.rig.command(args);
        let key = self.rig.lab.internet()?.docker_key().to_owned();
        for var in [
            format!("admin={ADMIN}"),
            format!("admin_key={}", self.admin_key()?),
            format!("docker_key={key}"),
        ] {
            command.args(["--var", &var]);
        }
        // The agent is the one that is embedded, as users have it.
        command.env_remove("POSTERN_AGENT_BINARY");
        Ok(command)
    }

    fn admin_key(&self) -> Result<String> {
        let key = std::fs::read_to_string(self.rig.lab.public_key()).context("cannot read the lab's key")?;
        Ok(key.trim().to_owned())
    }

    /// All events of the run, with their times.
    fn keep_run(&self, host: &Host, name: &str) -> Result<()> {
        let run = self.rig.last_run(host)?;
        let shown = self.rig.run(&["run", "show", &run, "--output", "json"])?;
        let path = self.said.join(format!("{name}.json"));
        std::fs::write(&path, shown.stdout).with_context(|| format!("cannot write {}", path.display()))
    }
}
