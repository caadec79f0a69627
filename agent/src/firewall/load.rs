//! Puts the rules in force: one transaction a family, made of what is declared and of what is there.

use std::convert::Infallible;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::table::{Jump, Table};
use super::{CHAINS, DOCKER_CHAIN, Family, INPUT_CHAIN};

/// How long the lock of the tables is waited for, seconds.
const LOCK_WAIT: &str = "20";
/// How often a transaction is made anew when others changed the table in between.
const TRIES: usize = 5;
/// A kernel without IPv6 has not got this.
const HAS_V6: &str = "/proc/net/if_inet6";

/// Where Docker's program may lie.
const DOCKERD: [&str; 3] = ["/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd"];
/// Docker's chain for rules of others: it asks for what is in there before its own rules, and leaves it alone.
const DOCKER_USER: &str = "DOCKER-USER";

/// Whether Docker is on this host; `there` tells whether a file is.
pub(crate) fn has_docker<E>(mut there: impl FnMut(&str) -> Result<bool, E>) -> Result<bool, E> {
    for path in DOCKERD {
        if there(path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What decides from where our chains are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Whose table it is.
    pub(crate) family: Family,
    /// Docker is on this host.
    pub(crate) docker: bool,
}

/// From which chains ours are to be called: `(from, to)`.
pub(crate) fn hooks(table: &Table, place: Place, filtered: bool) -> Vec<(&'static str, &'static str)> {
    let mut hooks = vec![("INPUT", INPUT_CHAIN)];
    // Made before Docker starts where it is to come: it takes the chain that is there, and so no container is
    // ever open in between.
    if filtered && (place.docker || table.has(DOCKER_USER)) {
        hooks.push((DOCKER_USER, DOCKER_CHAIN));
    }
    // For IPv6 Docker may make no such chain, and may then use none.
    if filtered && place.family == Family::V6 && !calls(table, "FORWARD", DOCKER_USER) {
        hooks.push(("FORWARD", DOCKER_CHAIN));
    }
    hooks
}

fn calls(table: &Table, from: &str, to: &str) -> bool {
    table.rules(from).iter().any(|rule| rule.ends_with(&format!("-j {to}")))
}

/// Whether nobody but us has to do with Docker's chain: there is nothing else in it, and nothing leads to it.
fn is_left(table: &Table) -> bool {
    table.has(DOCKER_USER)
        && table.rules(DOCKER_USER).iter().all(|rule| *rule == format!("-j {DOCKER_CHAIN}"))
        && !table.foreign().any(|from| calls(table, from, DOCKER_USER))
}

/// What leads from this table to these rules; the error is for people. Of chains that are not ours it touches
/// jumps to ours, and nothing else.
pub(crate) fn transaction(file: &str, now: &Table, place: Place) -> Result<String, String> {
    let family = place.family;
    let mut lines = vec!["*filter".to_owned()];
    for line in file.lines().map(str::trim) {
        let ours = |rest: &str| CHAINS.contains(&rest.split(' ').next().unwrap_or_default());
        let chain = line.strip_prefix(':').or(line.strip_prefix("-A "));
        match line {
            "" | "*filter" | "COMMIT" => {}
            line if line.starts_with('#') => {}
            line if chain.is_some_and(ours) => lines.push(line.to_owned()),
            line => return Err(format!("{}: {line:?} is no line of ours", family.path())),
        }
    }
    let wanted = Table::parse(file);
    if !wanted.has(INPUT_CHAIN) {
        return Err(format!("{} has no chain {INPUT_CHAIN}", family.path()));
    }
    let hooks = hooks(now, place, wanted.has(DOCKER_CHAIN));
    let new =
        (hooks.iter().any(|(from, _)| *from == DOCKER_USER) && !now.has(DOCKER_USER)).then_some(DOCKER_USER);
    lines.extend(new.map(|chain| format!("-N {chain}")));
    for from in now.foreign().chain(new) {
        for to in CHAINS {
            let jump = format!("-j {to}");
            let there = now.rules(from).iter().filter(|rule| **rule == jump).count();
            let here = hooks.contains(&(from, to));
            if here && there == 1 && now.jump(from, to) == Jump::Right {
                continue;
            }
            lines.extend(std::iter::repeat_n(format!("-D {from} {jump}"), there));
            if here {
                lines.push(format!("-I {from} 1 {jump}"));
            }
        }
    }
    for chain in CHAINS.iter().filter(|chain| now.has(chain) && !wanted.has(chain)) {
        lines.extend([format!("-F {chain}"), format!("-X {chain}")]);
    }
    if !wanted.has(DOCKER_CHAIN) && is_left(now) {
        lines.push(format!("-X {DOCKER_USER}"));
    }
    lines.push("COMMIT\n".to_owned());
    Ok(lines.join("\n"))
}

/// What removes all of ours from this table; `None` where there is nothing of ours.
pub(crate) fn unload_transaction(now: &Table) -> Option<String> {
    let mut lines = vec!["*filter".to_owned()];
    for from in now.foreign() {
        let ours = |rule: &&String| {
            let words: Vec<&str> = rule.split(' ').collect();
            words.windows(2).any(|pair| matches!(pair[0], "-j" | "-g") && CHAINS.contains(&pair[1]))
        };
        lines.extend(now.rules(from).iter().filter(ours).map(|rule| format!("-D {from} {rule}")));
    }
    let chains = CHAINS.iter().filter(|chain| now.has(chain));
    lines.extend(chains.flat_map(|chain| [format!("-F {chain}"), format!("-X {chain}")]));
    if is_left(now) {
        lines.push(format!("-X {DOCKER_USER}"));
    }
    (lines.len() > 1).then(|| lines.join("\n") + "\nCOMMIT\n")
}

/// The real programs and files of this host.
pub(crate) struct Loader;

impl Loader {
    /// Puts the files in force, or removes what is there when there are none.
    pub(crate) fn load(&self) -> Result<(), String> {
        self.each(|family, now| match std::fs::read_to_string(family.path()) {
            Ok(file) => {
                let Ok(docker) = has_docker(|path| Ok::<_, Infallible>(Path::new(path).exists()));
                transaction(&file, now, Place { family, docker }).map(Some)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(unload_transaction(now)),
            Err(error) => Err(format!("cannot read {}: {error}", family.path())),
        })
    }

    /// Removes our chains and the jumps to them.
    pub(crate) fn unload(&self) -> Result<(), String> {
        self.each(|_, now| Ok(unload_transaction(now)))
    }

    /// Both families, also when the first fails: half a firewall is better than none.
    fn each(&self, change: impl Fn(Family, &Table) -> Result<Option<String>, String>) -> Result<(), String> {
        let mut wrong = Vec::new();
        for family in Family::ALL {
            if family == Family::V6 && !Path::new(HAS_V6).exists() {
                continue;
            }
            if let Err(why) = self.family(family, &change) {
                wrong.push(format!("{}: {why}", family.name()));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    fn family(
        &self,
        family: Family,
        change: impl Fn(Family, &Table) -> Result<Option<String>, String>,
    ) -> Result<(), String> {
        let mut tried = 0;
        loop {
            tried += 1;
            let now = Table::parse(&self.run(family.save(), &["-t", "filter"], "")?);
            let Some(text) = change(family, &now)? else { return Ok(()) };
            match self.run(family.restore(), &["--noflush", "-w", LOCK_WAIT], &text) {
                Ok(_) => return Ok(()),
                // It is all or nothing, so it can be made again from what is there now.
                Err(_) if tried < TRIES => {}
                Err(why) => return Err(why),
            }
        }
    }

    fn run(&self, program: &str, args: &[&str], input: &str) -> Result<String, String> {
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => format!("there is no {program}: install the package iptables"),
            _ => format!("cannot run {program}: {error}"),
        };
        let mut command = Command::new(program);
        command.args(args).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LANG", "C.UTF-8");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ended early says why on stderr.
            let _ = stdin.write_all(input.as_bytes());
        }
        let Output { status, stdout, stderr } = child.wait_with_output().map_err(failed)?;
        if status.success() {
            return Ok(String::from_utf8_lossy(&stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&stderr);
        let said = said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Err(format!("{program} failed ({status}): {said}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::text;
    use postern_proto::spec::FirewallSpec;
    use serde_json::json;

    fn file(json: serde_json::Value, family: Family) -> String {
        let spec: FirewallSpec = serde_json::from_value(json).unwrap();
        text(&spec, &Default::default(), family)
    }

    fn bare(family: Family) -> Place {
        Place { family, docker: false }
    }

    /// The lines of a transaction that are about chains of others.
    fn foreign(text: &str) -> Vec<&str> {
        let ours = |line: &&str| {
            let name = line.trim_start_matches(':').trim_start_matches("-A ");
            !CHAINS.iter().any(|chain| name.starts_with(chain)) && !matches!(*line, "*filter" | "COMMIT")
        };
        text.lines().filter(ours).collect()
    }

    const OTHERS: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:f2b-sshd - [0:0]\n\
                          -A INPUT -p tcp -j f2b-sshd\n";

    /// T01: of what is not ours only jumps to ours are touched, and each once.
    #[test]
    fn trap_01_a_transaction_touches_nothing_foreign() {
        let rules = file(json!({"allow": ["22/tcp"]}), Family::V4);
        let cases = [
            (OTHERS.to_owned(), vec!["-I INPUT 1 -j POSTERN-INPUT"]),
            (format!("{OTHERS}:POSTERN-INPUT - [0:0]\n-A INPUT -j POSTERN-INPUT\n"), vec![]),
            (
                format!("{OTHERS}:POSTERN-INPUT - [0:0]\n-A INPUT -j ACCEPT\n-A INPUT -j POSTERN-INPUT\n"),
                vec!["-D INPUT -j POSTERN-INPUT", "-I INPUT 1 -j POSTERN-INPUT"],
            ),
            (
                format!("{OTHERS}-A INPUT -j POSTERN-INPUT\n-A INPUT -j POSTERN-INPUT\n"),
                vec!["-D INPUT -j POSTERN-INPUT", "-D INPUT -j POSTERN-INPUT", "-I INPUT 1 -j POSTERN-INPUT"],
            ),
            (
                format!(
                    "{OTHERS}:DOCKER-USER - [0:0]\n-A DOCKER-USER -j RETURN\n-A INPUT -j POSTERN-INPUT\n"
                ),
                vec!["-I DOCKER-USER 1 -j POSTERN-DOCKER"],
            ),
        ];
        for (now, want) in cases {
            let text = transaction(&rules, &Table::parse(&now), bare(Family::V4)).unwrap();
            assert_eq!(foreign(&text), want, "{now}");
            assert!(text.contains("\n:POSTERN-INPUT - [0:0]\n") && text.ends_with("\nCOMMIT\n"));
        }
        let v6 = file(json!({}), Family::V6);
        let text = transaction(&v6, &Table::parse(OTHERS), bare(Family::V6)).unwrap();
        let want = ["-I FORWARD 1 -j POSTERN-DOCKER", "-I INPUT 1 -j POSTERN-INPUT"];
        assert_eq!(foreign(&text), want);
        // Docker no longer filtered: the chain goes after the jump to it.
        let off = file(json!({"docker": "ignored"}), Family::V6);
        let now = format!(
            "{OTHERS}:POSTERN-INPUT - [0:0]\n:POSTERN-DOCKER - [0:0]\n-A INPUT -j POSTERN-INPUT\n-A FORWARD -j POSTERN-DOCKER\n"
        );
        let text = transaction(&off, &Table::parse(&now), bare(Family::V6)).unwrap();
        assert_eq!(
            foreign(&text),
            ["-D FORWARD -j POSTERN-DOCKER", "-F POSTERN-DOCKER", "-X POSTERN-DOCKER"]
        );
    }

    /// T04: what Docker will use is there before it, and goes with us where Docker never came.
    #[test]
    fn trap_04_dockers_chain_is_made_before_docker() {
        for (family, want) in [
            (
                Family::V4,
                vec!["-N DOCKER-USER", "-I INPUT 1 -j POSTERN-INPUT", "-I DOCKER-USER 1 -j POSTERN-DOCKER"],
            ),
            (
                Family::V6,
                vec![
                    "-N DOCKER-USER",
                    "-I FORWARD 1 -j POSTERN-DOCKER",
                    "-I INPUT 1 -j POSTERN-INPUT",
                    "-I DOCKER-USER 1 -j POSTERN-DOCKER",
                ],
            ),
        ] {
            let rules = file(json!({}), family);
            let before = Table::parse(OTHERS);
            let text = transaction(&rules, &before, Place { family, docker: true }).unwrap();
            assert_eq!(foreign(&text), want);
            let after = performed(&before, &text);
            assert_eq!(
                foreign(&transaction(&rules, &after, Place { family, docker: true }).unwrap()),
                [""; 0]
            );
            let gone = performed(&after, &unload_transaction(&after).unwrap());
            assert_eq!(gone, before);
            // Docker came: its chain stays, and is enough.
            let used = Table::parse(&format!(
                "{OTHERS}:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\n"
            ));
            let text = transaction(&rules, &used, Place { family, docker: true }).unwrap();
            let want = ["-I DOCKER-USER 1 -j POSTERN-DOCKER", "-I INPUT 1 -j POSTERN-INPUT"];
            assert_eq!(foreign(&text), want);
            let gone =
                performed(&performed(&used, &text), &unload_transaction(&performed(&used, &text)).unwrap());
            assert_eq!(gone, used);
        }
    }

    #[test]
    fn what_is_not_ours_is_not_loaded() {
        let now = Table::parse(OTHERS);
        for bad in ["-A INPUT -j ACCEPT", "-F INPUT", ":INPUT DROP [0:0]", "*nat", "-P INPUT DROP"] {
            let text = format!(":POSTERN-INPUT - [0:0]\n{bad}\n");
            assert!(
                transaction(&text, &now, bare(Family::V4)).unwrap_err().contains("is no line of ours"),
                "{bad}"
            );
        }
        assert!(transaction("", &now, bare(Family::V4)).is_err());
    }

    #[test]
    fn unloading_leaves_what_others_have() {
        assert_eq!(unload_transaction(&Table::parse(OTHERS)), None);
        let now = format!(
            "{OTHERS}:POSTERN-INPUT - [0:0]\n-A INPUT -i eth0 -j POSTERN-INPUT\n-A POSTERN-INPUT -j DROP\n"
        );
        let text = unload_transaction(&Table::parse(&now)).unwrap();
        assert_eq!(
            text,
            "*filter\n-D INPUT -i eth0 -j POSTERN-INPUT\n-F POSTERN-INPUT\n-X POSTERN-INPUT\nCOMMIT\n"
        );
    }

    /// Random tables: one transaction is enough, and a second one changes nothing.
    #[test]
    fn one_transaction_is_enough_whatever_was_there() {
        let rules = file(json!({"allow": ["22/tcp"]}), Family::V4);
        let pool = [
            "-A INPUT -j POSTERN-INPUT",
            "-A INPUT -j ACCEPT",
            "-A INPUT -p tcp -j f2b-sshd",
            "-A DOCKER-USER -j POSTERN-DOCKER",
            "-A DOCKER-USER -j RETURN",
            "-A FORWARD -j POSTERN-DOCKER",
            "-A POSTERN-INPUT -j ACCEPT",
        ];
        let mut seed = 7_u64;
        for _ in 0..2000 {
            let mut now =
                format!("{OTHERS}:DOCKER-USER - [0:0]\n:POSTERN-INPUT - [0:0]\n:POSTERN-DOCKER - [0:0]\n");
            for _ in 0..6 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                now += pool[usize::try_from(seed >> 33).unwrap() % pool.len()];
                now.push('\n');
            }
            let before = Table::parse(&now);
            let after = performed(&before, &transaction(&rules, &before, bare(Family::V4)).unwrap());
            for (from, to) in hooks(&after, bare(Family::V4), true) {
                assert_eq!(after.jump(from, to), Jump::Right, "{now}");
            }
            assert_eq!(after.ours(), Table::parse(&rules).ours(), "{now}");
            assert_eq!(
                foreign(&transaction(&rules, &after, bare(Family::V4)).unwrap()),
                Vec::<&str>::new(),
                "{now}"
            );
            let others = |table: &Table| -> Vec<String> {
                let rules = table.foreign().flat_map(|chain| table.rules(chain).to_vec()).collect::<Vec<_>>();
                rules.into_iter().filter(|rule| !rule.contains("POSTERN")).collect()
            };
            assert_eq!(others(&before), others(&after), "{now}");
            let gone = performed(&after, &unload_transaction(&after).unwrap());
            assert_eq!((gone.ours(), others(&gone)), (vec![], others(&before)), "{now}");
        }
    }

    /// What iptables-restore --noflush would make of it.
    fn performed(now: &Table, text: &str) -> Table {
        let mut chains: Vec<(String, Vec<String>)> = now
            .foreign()
            .chain(CHAINS.into_iter().filter(|chain| now.has(chain)))
            .map(|chain| (chain.to_owned(), now.rules(chain).to_vec()))
            .collect();
        for line in text.lines() {
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            let name = words.get(1).copied().unwrap_or_default();
            if let Some(name) = words[0].strip_prefix(':') {
                chains.retain(|(chain, _)| chain != name);
                chains.push((name.to_owned(), Vec::new()));
                continue;
            }
            if words[0] == "-N" {
                chains.push((name.to_owned(), Vec::new()));
            }
            let Some(chain) = chains.iter_mut().find(|(chain, _)| chain == name) else { continue };
            match words[0] {
                "-A" => chain.1.push(words[2].to_owned()),
                "-I" => chain.1.insert(0, words[2].strip_prefix("1 ").unwrap().to_owned()),
                "-D" => {
                    let at = chain.1.iter().position(|rule| rule == words[2]).unwrap();
                    chain.1.remove(at);
                }
                "-N" => {}
                "-F" => chain.1.clear(),
                "-X" => chains.retain(|(chain, _)| chain != name),
                other => panic!("{other}"),
            }
        }
        let mut saved = "*filter\n".to_owned();
        for (chain, rules) in &chains {
            saved += &format!(
                ":{chain} {} [0:0]\n",
                if matches!(&**chain, "INPUT" | "FORWARD") { "ACCEPT" } else { "-" }
            );
            saved.extend(rules.iter().map(|rule| format!("-A {chain} {rule}\n")));
        }
        Table::parse(&saved)
    }
}
