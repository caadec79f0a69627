//! A run that changes nothing: 40 resources and the shipped profile `base` by `postern apply`, beside a bare
//! `ssh HOST true` and what others take.
mod verdict;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::baselines::{Ansible, Pyinfra, Tools};
use super::record::{Record, load};
use super::site::Site;
use super::stats::Samples;
use super::timed::timed;
use crate::lab::Image;
use crate::rig::Rig;
use crate::time_server::serve_time;

const PROFILE: &str = include_str!("../../../bench/no-change/forty.yaml");
const PLAYBOOK: &str = include_str!("../../../bench/no-change/playbook.yaml");
const CHECKS: &str = include_str!("../../../bench/no-change/check.sh");
/// Resources in that profile.
const RESOURCES: usize = 40;
/// The first run installs packages.
const FIRST_DEADLINE: Duration = Duration::from_secs(600);
/// A run that changes nothing, with whatever program.
const DEADLINE: Duration = Duration::from_secs(180);
/// The programs that take many seconds are sampled in one round of so many.
const SLOW_EVERY: usize = 3;

/// The ways of one round, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Ssh,
    Postern,
    Base,
    Script,
    Pyinfra,
    Ansible,
    AnsibleDefaults,
}

const WAYS: [(Way, &str); 7] = [
    (Way::Ssh, "ssh HOST true (cold login)"),
    (Way::Postern, "postern apply, `serve` running"),
    (Way::Base, "postern apply base"),
    (Way::Script, "hand-written script over ssh"),
    (Way::Pyinfra, "pyinfra"),
    (Way::Ansible, "Ansible, pipelining, no facts"),
    (Way::AnsibleDefaults, "Ansible as it comes"),
];
/// What all are compared with, and what is ours: indices into [`WAYS`].
const SSH: usize = 0;
const POSTERN: usize = 1;
const BASE: usize = 2;

impl Way {
    /// Whether it has its turn in this round.
    fn due(self, round: usize, quick: bool) -> bool {
        match self {
            Way::Ssh | Way::Postern | Way::Base | Way::Script => true,
            Way::Pyinfra | Way::Ansible => round.is_multiple_of(SLOW_EVERY),
            Way::AnsibleDefaults => !quick && round.is_multiple_of(SLOW_EVERY),
        }
    }
}

/// Applies both profiles to a host beside this machine and to one that is 50 ms away, then measures `rounds` rounds on
/// each, prints the tables, and keeps the raw samples in `dir`. `quick` leaves out what takes longest.
///
/// All of a distance happens on one host, the ways in turn. Each sample is judged by what the program says: one that
/// changed anything, or failed, ends the benchmark. The other programs get what they need beforehand: the baselines
/// are installed below `dir`, and Python is installed on the host for Ansible's sake.
pub fn no_change(image: Image, rounds: usize, quick: bool, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let tools = Tools::ready(dir, out)?;
    let rig = super::rig()?;
    let mut record = Record::new("no-change", &rig)?;
    tools.note(&mut record)?;
    for (name, milliseconds, goal) in [("bench-near", 0, 0.35), ("bench-far", 50, 0.30)] {
        let site = Site::make(&rig, name, image, Duration::from_millis(milliseconds))?;
        let bench = Bench::set_up(&rig, &tools, site)?;
        if milliseconds == 0 {
            record.version("Debian", bench.site.host.sh("cat /etc/debian_version")?.trim());
            record.version("python3 on the host", bench.site.host.sh("python3 --version")?.trim());
        }
        let names: Vec<_> = WAYS.iter().map(|(_, name)| *name).collect();
        let mut samples = Samples::new(&names);
        let mut loads = Vec::new();
        for round in 0..rounds {
            loads.push(load());
            for (index, (way, name)) in WAYS.iter().enumerate().filter(|(_, (way, _))| way.due(round, quick))
            {
                let took = bench.sample(*way).with_context(|| format!("`{name}` is no sample"))?;
                samples.add(index, took);
            }
        }
        record.part(milliseconds, &samples, &loads);
        let ratio = samples.ratio(POSTERN, SSH);
        let reached = if ratio <= goal { "reached" } else { "not reached" };
        writeln!(out, "\n{RESOURCES} resources, nothing to change, {milliseconds} ms round trip")?;
        write!(out, "{}", samples.table_beside(SSH))?;
        writeln!(out, "postern / ssh: {ratio:.2}; goal {goal:.2} or less: {reached}")?;
        writeln!(out, "postern with base / ssh: {:.2}", samples.ratio(BASE, SSH))?;
        let least = loads.iter().copied().fold(f64::INFINITY, f64::min);
        let most = loads.iter().copied().fold(0.0, f64::max);
        writeln!(out, "load of the machine meanwhile: {least:.1} to {most:.1}")?;
        bench.site.host.destroy()?;
    }
    let file = super::result_file(dir, "no-change.json")?;
    record.save(&file)?;
    writeln!(out, "\nimage {image}; {}; raw samples in {}", record.versions(), file.display())?;
    Ok(())
}

/// A host on which all of it has been applied, and the programs that look at it again.
struct Bench<'a> {
    rig: &'a Rig,
    site: Site,
    profile: PathBuf,
    /// What `base` is given.
    base: Vec<String>,
    ansible: Ansible,
    pyinfra: Pyinfra,
}

impl<'a> Bench<'a> {
    fn set_up(rig: &'a Rig, tools: &Tools, site: Site) -> Result<Self> {
        let profile = site.work.join("forty.yaml");
        std::fs::write(&profile, PROFILE).context("cannot write the profile")?;
        let (ansible, pyinfra) = (Ansible::at(tools, &site, PLAYBOOK)?, Pyinfra::new(tools, &site)?);
        let key = std::fs::read_to_string(rig.lab.public_key()).context("cannot read the lab's key")?;
        let base = ["base".into(), "--var".into(), "admin=ada".into(), "--var".into()];
        let base = base.into_iter().chain([format!("admin_key={}", key.trim())]).collect();
        serve_time(&site.host)?;
        let bench = Bench { rig, site, profile, base, ansible, pyinfra };
        for way in [Way::Postern, Way::Base] {
            let first = timed(bench.apply(way), FIRST_DEADLINE)?;
            verdict::succeeded(&first).context("the profile could not be applied")?;
            bench.unassign(way)?;
        }
        bench.ansible.prepare_host(&bench.site)?;
        Ok(bench)
    }

    /// One of our two ways.
    fn apply(&self, way: Way) -> Command {
        let profile = vec![self.profile.display().to_string()];
        let what = if way == Way::Base { &self.base } else { &profile };
        let mut command = self.rig.command(&["apply", "-H", &self.site.host.name]);
        command.args(what).env_remove("POSTERN_AGENT_BINARY");
        command
    }

    /// What was applied is a part of every later plan: each of our ways is to be measured alone.
    fn unassign(&self, way: Way) -> Result<()> {
        let profile = if way == Way::Base { "base" } else { "forty" };
        let command = self.rig.command(&["host", "unassign", &self.site.host.name, profile]);
        verdict::succeeded(&timed(command, DEADLINE)?).context("the profile could not be unassigned")
    }

    /// From the start of the command to its end; an error unless it says that nothing was changed.
    fn sample(&self, way: Way) -> Result<Duration> {
        let (command, judge): (Command, verdict::Judge) = match way {
            Way::Ssh => {
                let mut ssh = self.site.ssh();
                ssh.arg("true");
                (ssh, verdict::succeeded)
            }
            Way::Postern => (self.apply(way), verdict::postern),
            Way::Base => (self.apply(way), verdict::base),
            Way::Script => {
                let mut ssh = self.site.ssh();
                // As an argument, in the packet that starts the far shell: nothing is quicker.
                ssh.arg(CHECKS);
                (ssh, verdict::script)
            }
            Way::Pyinfra => (self.pyinfra.command(), verdict::pyinfra),
            Way::Ansible => (self.ansible.command(false), verdict::ansible),
            Way::AnsibleDefaults => (self.ansible.command(true), verdict::ansible),
        };
        let ended = timed(command, DEADLINE)?;
        judge(&ended)?;
        match way {
            Way::Postern | Way::Base => self.unassign(way)?,
            Way::Ansible | Way::AnsibleDefaults => self.ansible.end_masters(&self.site.host)?,
            Way::Ssh | Way::Script | Way::Pyinfra => {}
        }
        Ok(ended.took)
    }
}
