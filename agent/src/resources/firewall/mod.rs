//! `firewall`: what may come in, in chains of its own, now and at every boot.

mod foreign;
mod ssh;
mod units;

use std::collections::BTreeSet;
use std::time::Duration;

use postern_proto::guard::Predicate;
use postern_proto::host::AGENT_BINARY;
use postern_proto::spec::{FirewallSpec, Protocol, SshPort};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::apt;
use super::diff::unified;
use super::listen;
use super::owned::{self, Owned};
use super::{Depth, Exec, ObserveError, Protect, Resource, Step, Undo};
use crate::firewall::{DOCKER_CHAIN, Family, Jump, Place, Table, has_docker, hooks, text};
use crate::sys::{Sys, SysError};
use ssh::{closes_ssh, opens_ssh, shut};

const ASK_LIMIT: Duration = Duration::from_secs(30);
const ACT_LIMIT: Duration = Duration::from_secs(120);
const RESTORE: &str = "/usr/sbin/iptables-restore";
const HAS_V6: &str = "/proc/net/if_inet6";
/// The most ports that a guard tries from outside.
const WATCHED: usize = 20;

pub(super) struct Firewall;

/// Where the units that load the rules lie.
pub(crate) fn unit_paths() -> [&'static str; 2] {
    units::ALL.map(|(path, _)| path)
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// The rules files, v4 and v6.
    files: [Option<Owned>; 2],
    /// The units that load them.
    units: [Option<Owned>; 2],
    /// Both are started at boot.
    enabled: bool,
    /// Our chains and their rules as the kernel has them, v4 and v6.
    live: [Vec<String>; 2],
    /// What is not as declared in a family, for people.
    wrong: Vec<String>,
    /// Other firewalls that are to be switched off.
    others: Vec<String>,
    /// Those that are there and are switched off.
    #[serde(default)]
    off: Vec<String>,
    /// Where SSH is served.
    ssh: BTreeSet<u16>,
    /// Ports of SSH that are let in by no rule.
    #[serde(default)]
    shut: BTreeSet<u16>,
    /// Where the host gets its packages, name and port: it must still get there.
    mirror: Option<(String, u16)>,
}

impl Resource for Firewall {
    type Spec = FirewallSpec;
    type Seen = Seen;

    async fn observe(spec: &FirewallSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let obstacle = |why: String| Err(ObserveError::Obstacle(why));
        if !host.exists(RESTORE)? {
            return obstacle("the package iptables is not installed: declare it before this".to_owned());
        }
        let names: Vec<&str> = listen::SSH_UNITS.into_iter().chain(foreign::UNITS).collect();
        let (states, ssh) = listen::served(host, listen::SSH_PROPERTIES, &names).await?;
        let mut seen = Seen { ssh: ssh.ports, mirror: mirror(host)?, ..Seen::default() };
        let docker = has_docker(|path| host.exists(path))?;
        let mut tables = Vec::new();
        for (at, family) in Family::ALL.into_iter().enumerate() {
            seen.files[at] = Owned::look(host, family.path())?;
        }
        seen.shut = shut(spec, &seen);
        for (at, family) in Family::ALL.into_iter().enumerate() {
            if family == Family::V6 && !host.exists(HAS_V6)? {
                continue;
            }
            let said = host.run(&[family.save(), "-t", "filter"], &[], ASK_LIMIT).await?;
            if !said.ok() {
                let (program, why) = (family.save(), said.last_line());
                return obstacle(format!("{program} failed: {why}"));
            }
            let table = Table::parse(&String::from_utf8_lossy(&said.stdout));
            seen.wrong.extend(differs(spec, &seen.shut, Place { family, docker }, &table));
            seen.live[at] = table.ours();
            tables.push(table);
        }
        for (at, (path, _)) in units::ALL.iter().enumerate() {
            seen.units[at] = Owned::look(host, path)?;
        }
        seen.enabled = host.exists(units::AT_BOOT)? && host.exists(units::WITH_DOCKER)?;
        let found = foreign::look(spec, host, &states, &tables).await?;
        (seen.others, seen.off) = (found.switchable, found.off);
        // Around an undo what is declared is being taken back: nothing is in its way.
        if depth != Depth::Whole {
            if let Some(why) = found.obstacle {
                return obstacle(why);
            }
            if let Some(why) = closes_ssh(spec, &seen.ssh) {
                return obstacle(why);
            }
            if let Some(why) = bridge_outside(spec, host)? {
                return obstacle(why);
            }
        }
        Ok(seen)
    }

    fn plan(spec: &FirewallSpec, seen: &Seen) -> Vec<Step> {
        let mut steps = Vec::new();
        for (at, family) in Family::ALL.into_iter().enumerate() {
            let content = text(spec, &seen.shut, family).into_bytes();
            if !owned::is(seen.files[at].as_ref(), Some(&content)) {
                steps.push(owned::put(family.path(), content));
            }
        }
        let mut reload = false;
        for (at, (path, content)) in units::ALL.iter().enumerate() {
            if !owned::is(seen.units[at].as_ref(), Some(content.as_bytes())) {
                steps.push(owned::put(path, content.as_bytes().to_vec()));
                reload = true;
            }
        }
        steps.extend(seen.others.iter().map(|other| run(&switched(other, false))));
        // A unit is reloaded along with it.
        if !seen.enabled {
            steps.push(run(&["systemctl", "enable", "--", units::UNIT, units::DOCKER_UNIT]));
        } else if reload {
            steps.push(run(&["systemctl", "daemon-reload"]));
        }
        // Whatever was done above, the rules are put in force last.
        if !seen.wrong.is_empty() || !seen.others.is_empty() {
            steps.push(load("load"));
        }
        steps
    }

    fn diff(spec: &FirewallSpec, seen: &Seen) -> String {
        let mut shown = String::new();
        for (at, family) in Family::ALL.into_iter().enumerate() {
            let old = seen.files[at].as_ref().map(|there| there.content.as_slice());
            shown += &unified(family.path(), old, Some(text(spec, &seen.shut, family).as_bytes()));
        }
        for (at, (path, content)) in units::ALL.iter().enumerate() {
            let old = seen.units[at].as_ref().map(|there| there.content.as_slice());
            shown += &unified(path, old, Some(content.as_bytes()));
        }
        if !seen.enabled {
            shown += &format!("{} and {}: not at boot\n", units::UNIT, units::DOCKER_UNIT);
        }
        shown.extend(seen.others.iter().map(|other| format!("{other}: is switched off\n")));
        shown.extend(seen.wrong.iter().map(|why| format!("{why}\n")));
        shown
    }

    fn essence(_: &FirewallSpec, seen: &Seen) -> serde_json::Value {
        let files: Vec<_> =
            seen.files.iter().chain(&seen.units).map(|file| owned::essence(file.as_ref())).collect();
        // Where our chains are called from changes as Docker comes and goes.
        json!({"files": files, "enabled": seen.enabled, "live": seen.live, "others": seen.others})
    }

    fn undo(spec: &FirewallSpec, before: &Seen, _: &serde_json::Value, now: &Seen) -> Undo {
        if let Some(why) = opens_ssh(spec, before, now) {
            return Undo::Cannot(why);
        }
        let mut steps = Vec::new();
        let both = |seen: &Seen| seen.files.iter().chain(&seen.units).cloned().collect::<Vec<_>>();
        let paths = Family::ALL.into_iter().map(Family::path).chain(units::ALL.iter().map(|(path, _)| *path));
        let mut reload = false;
        if now.enabled && !before.enabled {
            // While its files are there.
            steps.push(run(&["systemctl", "disable", "--", units::UNIT, units::DOCKER_UNIT]));
        }
        for (at, (path, (was, is))) in paths.zip(both(before).iter().zip(&both(now))).enumerate() {
            let back = owned::back(path, was.as_ref(), is.as_ref());
            reload |= back.is_some() && at >= Family::ALL.len();
            steps.extend(back);
        }
        if before.enabled && !now.enabled {
            steps.push(run(&["systemctl", "enable", "--", units::UNIT, units::DOCKER_UNIT]));
        } else if reload {
            steps.push(run(&["systemctl", "daemon-reload"]));
        }
        if before.live != now.live {
            let there = before.live.iter().any(|chains| !chains.is_empty());
            steps.push(load(if there { "load" } else { "unload" }));
        }
        let back = before.others.iter().filter(|other| !now.others.contains(other));
        steps.extend(back.map(|other| run(&switched(other, true))));
        Undo::Steps(steps)
    }

    fn protect(spec: &FirewallSpec, seen: &Seen) -> Option<Protect> {
        // Where all is as declared, it is about to be taken back: what this opened may be shut then, and another
        // firewall on.
        let taken_back = Self::plan(spec, seen).is_empty();
        let rules = if taken_back { Vec::new() } else { spec.rules_without(&seen.shut) };
        let anywhere = rules.iter().filter(|rule| rule.protocol == Protocol::Tcp && rule.from.is_empty());
        let single = anywhere.flat_map(|rule| rule.ports.iter().filter(|(first, last)| first == last));
        let mut ports: Vec<u16> = single.map(|(port, _)| *port).collect();
        if spec.ssh == SshPort::Open {
            ports.extend(&seen.ssh);
        }
        ports.sort_unstable();
        ports.dedup();
        ports.truncate(WATCHED);
        let mut predicates: Vec<_> = ports.into_iter().map(|port| Predicate::Inbound { port }).collect();
        // Where nothing listens it cannot be told from a port that is shut.
        let shut = seen.shut.intersection(&seen.ssh).filter(|_| !taken_back);
        predicates.extend(shut.map(|port| Predicate::Closed { port: *port }));
        if let Some((host, port)) = &seen.mirror {
            predicates.push(Predicate::Dns { name: host.clone() });
            predicates.push(Predicate::Egress { host: host.clone(), port: *port });
        }
        let words = |argv: &[&str]| argv.iter().map(|word| (*word).to_owned()).collect();
        let mut reload = vec![words(&["systemctl", "daemon-reload"])];
        if taken_back && spec.takeover {
            reload.extend(seen.off.iter().map(|other| words(&switched(other, false))));
        }
        reload.push(words(&[AGENT_BINARY, "firewall", "load"]));
        // What was switched off for it is on again where it is taken back.
        reload.extend(seen.others.iter().map(|other| words(&switched(other, true))));
        // A directory after what lies in it, as they are put back backwards: the last link in one takes it along.
        let links = [units::AT_BOOT, units::WITH_DOCKER];
        let dirs = links.map(|link| link.rsplit_once('/').map_or(link, |(dir, _)| dir));
        let also = links.into_iter().chain(dirs).map(str::to_owned).collect();
        Some(Protect { predicates, also, reload, ..Protect::default() })
    }
}

/// What switches another firewall on or off, now and at boot.
fn switched(other: &str, on: bool) -> Vec<&str> {
    match (other, on) {
        ("ufw", true) => vec!["ufw", "--force", "enable"],
        ("ufw", false) => vec!["ufw", "disable"],
        (unit, true) => vec!["systemctl", "enable", "--now", "--", unit],
        (unit, false) => vec!["systemctl", "disable", "--now", "--", unit],
    }
}

fn run(argv: &[&str]) -> Step {
    Step::Exec(Exec::new(argv, ACT_LIMIT))
}

fn load(what: &str) -> Step {
    run(&[AGENT_BINARY, "firewall", what])
}

/// What of a family is not in force, for people.
fn differs(spec: &FirewallSpec, shut: &BTreeSet<u16>, place: Place, now: &Table) -> Vec<String> {
    let name = place.family.name();
    let wanted = Table::parse(&text(spec, shut, place.family));
    let (want, have) = (wanted.ours(), now.ours());
    if have.is_empty() {
        return vec![format!("{name}: our chains are not there")];
    }
    let mut wrong = Vec::new();
    wrong.extend(shut.iter().filter(|port| now.lets_in(**port)).map(|port| {
        format!(
            "{name}: SSH is let in at port {port}, and is declared closed; to keep it open, say so to the \
             controller: `postern ssh-port open`"
        )
    }));
    if want != have {
        let gone = want.iter().find(|line| !have.contains(line)).map(|line| format!("is missing: {line}"));
        let come =
            have.iter().find(|line| !want.contains(line)).map(|line| format!("is not ours to have: {line}"));
        let what = gone.or(come).unwrap_or_else(|| "their rules are in another order".to_owned());
        wrong.push(format!("{name}: our chains are not as declared: {what}"));
    }
    for (from, to) in hooks(now, place, wanted.has(DOCKER_CHAIN)) {
        match now.jump(from, to) {
            Jump::Right => {}
            Jump::Missing => wrong.push(format!("{name}: {from} does not call {to}")),
            Jump::Late => wrong.push(format!("{name}: {from} lets packets by before it calls {to}")),
        }
    }
    wrong
}

/// Docker's bridges are told by their names; one that leads outside must not have such a name.
fn bridge_outside(spec: &FirewallSpec, host: &Sys) -> Result<Option<String>, SysError> {
    if spec.docker == postern_proto::spec::DockerPorts::Ignored {
        return Ok(None);
    }
    for (table, column) in [("/proc/net/route", 0), ("/proc/net/ipv6_route", 9)] {
        let text = host.read_through(table, 4 << 20)?.unwrap_or_default();
        if let Some(name) = outside(&String::from_utf8_lossy(&text), column) {
            return Ok(Some(format!(
                "the default route is by {name}, which by its name is a bridge of Docker: name it otherwise, \
                 or say `docker: ignored`"
            )));
        }
    }
    Ok(None)
}

/// The interface of a default route that has a name as Docker's bridges have.
fn outside(table: &str, column: usize) -> Option<String> {
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let default = |row: &Vec<&str>| match column {
        0 => row.get(1) == Some(&"00000000"),
        _ => row.first().is_some_and(|to| to.bytes().all(|byte| byte == b'0')) && row.get(1) == Some(&"00"),
    };
    let mut names = rows.filter(default).filter_map(|row| row.get(column).map(|name| (*name).to_owned()));
    names.find(|name| name.starts_with("br-"))
}

/// Where apt gets packages from: the first server that has a name.
fn mirror(host: &Sys) -> Result<Option<(String, u16)>, SysError> {
    let mut servers = apt::servers::servers(host)?.into_iter().flatten();
    Ok(servers.find(|server| !server.host.contains(':')).map(|server| (server.host, server.port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn spec(json: serde_json::Value) -> FirewallSpec {
        serde_json::from_value(json).unwrap()
    }

    fn shown(steps: &[Step]) -> Vec<String> {
        steps.iter().map(Step::summary).collect()
    }

    /// The host as it is once this is in force.
    pub(super) fn in_force(spec: &FirewallSpec) -> Seen {
        let shut = if spec.ssh == SshPort::Closed { BTreeSet::from([22]) } else { BTreeSet::new() };
        let file = |family| Some(Owned::new(text(spec, &shut, family).as_bytes()));
        let live = |family| Table::parse(&text(spec, &shut, family)).ours();
        Seen {
            files: Family::ALL.map(file),
            units: units::ALL.map(|(_, content)| Some(Owned::new(content.as_bytes()))),
            enabled: true,
            live: Family::ALL.map(live),
            ssh: [22].into(),
            shut: shut.clone(),
            ..Seen::default()
        }
    }

    #[test]
    fn plans_and_ways_back_by_table() {
        let spec = spec(json!({"allow": ["22/tcp", "80,443/tcp"]}));
        let now = in_force(&spec);
        let (v4, v6) = (Family::V4.path(), Family::V6.path());
        let write = |path: &str| format!("write {path}");
        let loads = |what: &str| format!("{AGENT_BINARY} firewall {what}");
        let enable = "systemctl enable -- postern-firewall.service postern-firewall-docker.service";
        let unit = units::ALL.map(|(path, _)| write(path));
        let wrong = |seen: Seen| Seen { wrong: vec!["x".to_owned()], ..seen };
        let bare = wrong(Seen { ssh: [22].into(), ..Seen::default() });
        let drifted =
            wrong(Seen { live: [vec!["POSTERN-INPUT".into()], now.live[1].clone()], ..now.clone() });
        let ufw = Seen { others: vec!["ufw".to_owned()], ..bare.clone() };
        let cases = [
            (now.clone(), vec![]),
            (
                bare.clone(),
                vec![
                    write(v4),
                    write(v6),
                    unit[0].clone(),
                    unit[1].clone(),
                    enable.to_owned(),
                    loads("load"),
                ],
            ),
            (drifted.clone(), vec![loads("load")]),
            (Seen { enabled: false, ..now.clone() }, vec![enable.to_owned()]),
            // All is in force, and so is another's: what he takes along at his end is put in force again.
            (
                Seen { others: vec!["ufw".to_owned()], ..now.clone() },
                vec!["ufw disable".to_owned(), loads("load")],
            ),
            (
                Seen { units: [None, now.units[1].clone()], ..now.clone() },
                vec![unit[0].clone(), "systemctl daemon-reload".to_owned()],
            ),
            (
                ufw.clone(),
                vec![
                    write(v4),
                    write(v6),
                    unit[0].clone(),
                    unit[1].clone(),
                    "ufw disable".to_owned(),
                    enable.to_owned(),
                    loads("load"),
                ],
            ),
        ];
        for (seen, want) in cases {
            assert_eq!(shown(&Firewall::plan(&spec, &seen)), want, "{seen:?}");
            assert_eq!(Firewall::diff(&spec, &seen).is_empty(), want.is_empty(), "{seen:?}");
            let same = Firewall::essence(&spec, &seen) == Firewall::essence(&spec, &now);
            assert_eq!(same, want.is_empty(), "{seen:?}");
        }
        let undo = |before: &Seen| match Firewall::undo(&spec, before, &json!(null), &now) {
            Undo::Steps(steps) => shown(&steps),
            Undo::Cannot(why) => panic!("{why}"),
        };
        let remove = |path: &str| format!("remove {path}");
        let mut back = vec![enable.replace("enable", "disable"), remove(v4), remove(v6)];
        back.extend(units::ALL.map(|(path, _)| remove(path)));
        back.extend(["systemctl daemon-reload".to_owned(), loads("unload")]);
        assert_eq!(undo(&bare), back);
        back.push("ufw --force enable".to_owned());
        assert_eq!(undo(&ufw), back);
        assert_eq!(undo(&drifted), [loads("load")]);
        let off = Seen { enabled: false, ..now.clone() };
        let Undo::Steps(steps) = Firewall::undo(&spec, &now, &json!(null), &off) else { panic!() };
        assert_eq!(shown(&steps), [enable]);
    }

    /// T01 and T02: what is not as declared is found, wherever in the table.
    #[test]
    fn drift_is_found() {
        let spec = spec(json!({"allow": ["22/tcp"]}));
        let right = |family| {
            let file = text(&spec, &BTreeSet::new(), family).replace("COMMIT\n", "");
            format!("{file}:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n-A INPUT -j POSTERN-INPUT\n")
        };
        let wrong = |family, table: &str| {
            differs(&spec, &BTreeSet::new(), Place { family, docker: false }, &Table::parse(table))
        };
        let (v4, v6) = (right(Family::V4), right(Family::V6) + "-A FORWARD -j POSTERN-DOCKER\n");
        assert_eq!((wrong(Family::V4, &v4), wrong(Family::V6, &v6)), (vec![], vec![]));
        let one = |family, table: &str| wrong(family, table).pop().unwrap();
        assert!(one(Family::V6, &right(Family::V6)).contains("FORWARD does not call POSTERN-DOCKER"));
        assert!(
            one(Family::V4, &format!("{v4}:DOCKER-USER - [0:0]\n")).contains("DOCKER-USER does not call")
        );
        assert!(
            one(Family::V4, &v4.replace("--dport 22", "--dport 23")).contains("is missing: POSTERN-INPUT")
        );
        let added = format!("{v4}-A POSTERN-INPUT -j RETURN\n");
        assert!(one(Family::V4, &added).contains("is not ours to have: POSTERN-INPUT -j RETURN"));
        let late = v4.replace("-A INPUT -j P", "-A INPUT -j ACCEPT\n-A INPUT -j P");
        assert!(one(Family::V4, &late).contains("INPUT lets packets by before"));
        assert!(one(Family::V4, "*filter\n:INPUT ACCEPT [0:0]\n").contains("our chains are not there"));
    }

    #[test]
    fn a_guard_watches_what_is_to_stay_open() {
        let spec =
            spec(json!({"allow": ["80,443/tcp", "22/tcp", "53/udp", "5432/tcp from 192.0.2.1", "1-9/tcp"]}));
        let seen = Seen { ssh: [22].into(), mirror: Some(("deb.debian.org".into(), 80)), ..Seen::default() };
        let load = format!("{AGENT_BINARY} firewall load");
        let protect = Firewall::protect(&spec, &seen).unwrap();
        let watched: Vec<_> = protect.predicates.iter().map(Predicate::to_string).collect();
        let want =
            ["inbound 22", "inbound 80", "inbound 443", "dns deb.debian.org", "egress deb.debian.org:80"];
        assert_eq!(watched, want);
        assert_eq!(lines(&protect.reload), ["systemctl daemon-reload", &load]);
        // A range, another protocol and what is not for everybody: not seen from there. Never more than one look takes.
        let many: Vec<String> = (1..60).map(|port| format!("{port}/tcp")).collect();
        let many = Firewall::protect(&self::spec(json!({"allow": many})), &seen).unwrap();
        assert_eq!(many.predicates.len(), WATCHED + 2);
        // Meant to be shut, and seen to be.
        let closed = self::spec(json!({"ssh": "closed", "allow": ["22/tcp", "443/tcp"]}));
        let seen = Seen { shut: [22].into(), ..seen };
        let protect = Firewall::protect(&closed, &seen).unwrap();
        let watched: Vec<_> = protect.predicates.iter().map(Predicate::to_string).collect();
        let want = ["inbound 443", "closed 22", "dns deb.debian.org", "egress deb.debian.org:80"];
        assert_eq!(watched, want);
        // No server: nothing can be told of its port.
        let down = Seen { ssh: BTreeSet::new(), ..seen };
        assert_eq!(Firewall::protect(&closed, &down).unwrap().predicates.len(), 3);
    }

    fn lines(programs: &[Vec<String>]) -> Vec<String> {
        programs.iter().map(|argv| argv.join(" ")).collect()
    }

    /// T30b: a change that is not confirmed leaves the other firewall as it was, whichever way it went.
    #[test]
    fn trap_30b_a_guard_switches_others_back() {
        let load = format!("{AGENT_BINARY} firewall load");
        let over = spec(json!({"allow": ["22/tcp", "80/tcp"], "takeover": true}));
        let two = vec!["ufw".to_owned(), "firewalld".to_owned()];
        let bare = Seen { ssh: [22].into(), wrong: vec!["x".to_owned()], ..Seen::default() };
        let to_off = Firewall::protect(&over, &Seen { others: two.clone(), ..bare.clone() }).unwrap();
        let on = ["ufw --force enable", "systemctl enable --now -- firewalld"];
        assert_eq!(lines(&to_off.reload), ["systemctl daemon-reload", &load, on[0], on[1]]);
        // Ours is undone, and theirs is on after it: where that is taken back, they are off again before ours is loaded.
        let ours = Seen { off: two, ..in_force(&over) };
        let to_on = Firewall::protect(&over, &ours).unwrap();
        let off = ["ufw disable", "systemctl disable --now -- firewalld"];
        assert_eq!(lines(&to_on.reload), ["systemctl daemon-reload", off[0], off[1], &load]);
        // What only this opened may be shut then.
        let watched: Vec<_> = to_on.predicates.iter().map(Predicate::to_string).collect();
        assert_eq!(watched, ["inbound 22"]);
        let beside = spec(json!({"allow": ["22/tcp", "80/tcp"]}));
        let left = Firewall::protect(&beside, &Seen { off: ours.off.clone(), ..in_force(&beside) }).unwrap();
        assert_eq!(lines(&left.reload), ["systemctl daemon-reload", &load], "somebody else's choice");
        // What `systemctl disable` takes along comes back before what lies in it.
        let at = |path: &str| to_on.also.iter().position(|it| it == path);
        assert!(at("/etc/systemd/system/docker.service.wants") > at(units::WITH_DOCKER));
        assert!(
            at(units::AT_BOOT).is_some()
                && at("/etc/systemd/system/sysinit.target.wants") > at(units::AT_BOOT)
        );
    }

    #[test]
    fn routes_by_table() {
        let route = "Iface\tDestination\tGateway\nbr-lan\t00000000\t0101A8C0\neth0\t0001A8C0\t0\n";
        assert_eq!(outside(route, 0).as_deref(), Some("br-lan"));
        assert_eq!(outside(&route.replace("br-lan", "eth0"), 0), None);
        let zero = "0".repeat(32);
        let v6 = format!("{zero} 00 {zero} 00 fe80 0 0 0 3   br-wan\n");
        assert_eq!(outside(&v6, 9).as_deref(), Some("br-wan"));
    }
}
