//! `fail2ban`: a live jail for the SSH server, whose bans are seen to block.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use postern_proto::host::CONFIG_FILE;
use postern_proto::spec::Fail2banSpec;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::diff::unified;
use super::listen::{self, property};
use super::owned::{self, Owned, Reader};
use super::{Depth, Exec, ObserveError, Resource, Step, Undo};
use crate::firewall::Table;
use crate::sys::{Output, Sys, SysError};

/// Read after every other file of fail2ban's but those of jail.d that end in .local and sort later.
const CONF: &str = "/etc/fail2ban/jail.d/postern.local";
const UNIT: &str = "fail2ban.service";
const AT_BOOT: &str = "/etc/systemd/system/multi-user.target.wants/fail2ban.service";
const PACKAGES: [&str; 2] = ["fail2ban", "python3-systemd"];
const JAIL: &str = "sshd";
const IPTABLES: &str = "/usr/sbin/iptables";
const NFT: &str = "/usr/sbin/nft";
const ASK_LIMIT: Duration = Duration::from_secs(30);
const ACT_LIMIT: Duration = Duration::from_secs(120);
/// How long it may take to be up, and to make a ban or take one back.
const SETTLE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Addresses for documentation (RFC 5737, RFC 3849): nobody has them.
const NOBODY: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

pub(super) struct Fail2ban;

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    conf: Option<Owned>,
    enabled: bool,
    running: bool,
    /// Its configuration is newer than its start.
    stale: bool,
    /// It answers for the jail.
    live: bool,
    /// How it blocks here.
    action: String,
    /// Where the SSH server listens.
    ports: BTreeSet<u16>,
    /// The controllers' addresses, as far as the agent has addresses and not names.
    controllers: Vec<IpAddr>,
}

impl Seen {
    fn reader(&self) -> Reader<'_> {
        Reader { conf: self.conf.as_ref(), running: self.running, enabled: self.enabled }
    }
}

impl Resource for Fail2ban {
    type Spec = Fail2banSpec;
    type Seen = Seen;

    async fn observe(spec: &Fail2banSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        let dpkg = host.dpkg()?;
        for package in PACKAGES {
            if dpkg.as_ref().is_none_or(|dpkg| dpkg.installed(package).is_none()) {
                return Err(ObserveError::Obstacle(format!(
                    "the package {package} is not installed: declare it before this"
                )));
            }
        }
        let mut seen = look(host).await?;
        if depth != Depth::Proof || !set_up(spec, &seen) {
            return Ok(seen);
        }
        let until = tokio::time::Instant::now() + SETTLE;
        while !seen.live {
            if tokio::time::Instant::now() >= until {
                return Err(ObserveError::Obstacle(format!(
                    "fail2ban runs, and has no jail {JAIL} after {} s: see `journalctl -u fail2ban`",
                    SETTLE.as_secs()
                )));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            seen = look(host).await?;
        }
        if let Some(why) = overridden(spec, &seen, host).await? {
            return Err(ObserveError::Obstacle(why));
        }
        for address in NOBODY.into_iter().filter(|address| has_family(host, address)) {
            if let Some(why) = blocks(&seen, address, &ports(spec, &seen), host).await? {
                return Err(ObserveError::Obstacle(why));
            }
        }
        Ok(seen)
    }

    fn plan(spec: &Fail2banSpec, seen: &Seen) -> Vec<Step> {
        let mut steps = Vec::new();
        let content = text(spec, seen).into_bytes();
        let right = owned::is(seen.conf.as_ref(), Some(&content));
        if !right {
            steps.push(owned::put(CONF, content));
        }
        if !seen.enabled {
            steps.push(systemctl("enable"));
        }
        if !right || !seen.running || seen.stale || !seen.live {
            // It starts what is not running; bans that are in its database live on.
            steps.push(systemctl("restart"));
        }
        steps
    }

    fn diff(spec: &Fail2banSpec, seen: &Seen) -> String {
        let old = seen.conf.as_ref().map(|there| there.content.as_slice());
        let mut shown = unified(CONF, old, Some(text(spec, seen).as_bytes()));
        let mut line = |so: bool, what: &str| shown.extend(so.then(|| format!("{UNIT}: {what}\n")));
        line(!seen.enabled, "not at boot");
        line(!seen.running, "not running");
        line(seen.stale, "its configuration is newer than its start");
        line(seen.running && !seen.live, "has no jail for sshd");
        if shown.is_empty() && !Self::plan(spec, seen).is_empty() {
            shown = format!("{CONF}: owner and mode\n");
        }
        shown
    }

    fn essence(_: &Fail2banSpec, seen: &Seen) -> serde_json::Value {
        json!({"conf": owned::essence(seen.conf.as_ref()), "enabled": seen.enabled, "running": seen.running})
    }

    fn undo(_: &Fail2banSpec, before: &Seen, _: &serde_json::Value, now: &Seen) -> Undo {
        Undo::Steps(owned::back_with_reader(CONF, before.reader(), now.reader(), systemctl))
    }
}

fn systemctl(verb: &str) -> Step {
    Step::Exec(Exec::new(&["systemctl", verb, "--", UNIT], ACT_LIMIT))
}

/// What never is banned.
fn ignored(spec: &Fail2banSpec, seen: &Seen) -> Vec<String> {
    let usual = ["127.0.0.0/8", "::1"].map(str::to_owned);
    let controllers = seen.controllers.iter().map(IpAddr::to_string);
    let declared = spec.ignored().into_iter().map(|network| {
        let whole = network.prefix == if network.is_v4() { 32 } else { 128 };
        if whole { network.address.to_string() } else { network.to_string() }
    });
    let mut all: Vec<String> = Vec::new();
    for one in usual.into_iter().chain(controllers).chain(declared) {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

fn ports(spec: &Fail2banSpec, seen: &Seen) -> Vec<u16> {
    if !spec.ports.is_empty() {
        return spec.ports.iter().filter_map(|port| port.parse().ok()).collect();
    }
    // One that does not run now is banned from where it would listen.
    if seen.ports.is_empty() { vec![22] } else { seen.ports.iter().copied().take(15).collect() }
}

fn text(spec: &Fail2banSpec, seen: &Seen) -> String {
    let ports: Vec<String> = ports(spec, seen).iter().map(u16::to_string).collect();
    // Debian 12 and later keep no auth.log. The unit's name is Debian's; OpenSSH 9.8 and later log as sshd-session.
    format!(
        "# Written by Postern, which writes it again at each run.\n\
         [DEFAULT]\n\
         ignoreip = {}\n\
         \n\
         [{JAIL}]\n\
         enabled = true\n\
         backend = systemd\n\
         journalmatch = _SYSTEMD_UNIT=ssh.service + _COMM=sshd + _COMM=sshd-session\n\
         port = {}\n\
         banaction = {}\n\
         bantime = {}\n\
         findtime = {}\n\
         maxretry = {}\n",
        ignored(spec, seen).join(" "),
        ports.join(","),
        seen.action,
        spec.ban_s,
        spec.within_s,
        spec.tries
    )
}

/// All but the jail itself.
fn set_up(spec: &Fail2banSpec, seen: &Seen) -> bool {
    let conf = owned::is(seen.conf.as_ref(), Some(text(spec, seen).as_bytes()));
    conf && seen.enabled && seen.running && !seen.stale
}

async fn look(host: &Sys) -> Result<Seen, ObserveError> {
    // With iptables there, its bans stand beside all other rules; with nft alone, its own action works.
    let action = if host.exists(IPTABLES)? {
        "iptables-multiport"
    } else if host.exists(NFT)? {
        "nftables-multiport"
    } else {
        return Err(ObserveError::Obstacle(
            "nothing here can block an address: declare the package iptables before this".to_owned(),
        ));
    };
    let properties = format!("{},ExecMainStartTimestampMonotonic", listen::SSH_PROPERTIES);
    let names = [listen::SSH_UNITS[0], listen::SSH_UNITS[1], UNIT];
    let (units, ssh) = listen::served(host, &properties, &names).await?;
    let running = property(&units, UNIT, "ActiveState") == "active";
    let started = property(&units, UNIT, "ExecMainStartTimestampMonotonic").parse::<i128>();
    let started = started.map_or(0, |micros| micros * 1000 + crate::sys::boot_ns());
    let conf = Owned::look(host, CONF)?;
    let changed = host.ctime_ns(CONF)?.filter(|changed| *changed <= i128::from(crate::sys::now_ns()));
    let stale = running && changed.is_some_and(|changed| changed > started);
    let live = running && host.run(&["fail2ban-client", "status", JAIL], &[], ASK_LIMIT).await?.ok();
    Ok(Seen {
        conf,
        enabled: host.exists(AT_BOOT)?,
        running,
        stale,
        live,
        action: action.to_owned(),
        ports: ssh.ports,
        controllers: controllers(host)?,
    })
}

/// The addresses among the routes that the agent dials: a controller that looks after its hosts makes logins too.
fn controllers(host: &Sys) -> Result<Vec<IpAddr>, SysError> {
    let bytes = host.read(CONFIG_FILE, 1 << 20)?.unwrap_or_default();
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let routes = json["controllers"].as_array().into_iter().flatten().filter_map(|route| route.as_str());
    let address = |route: &str| {
        let host = route.rsplit_once(':').map_or(route, |(host, _)| host);
        host.trim_matches(['[', ']']).parse().ok()
    };
    Ok(routes.filter_map(address).collect())
}

fn has_family(host: &Sys, address: &str) -> bool {
    !address.contains(':') || host.exists("/proc/net/if_inet6").unwrap_or(false)
}

/// Which setting of the live jail is another file's; `None` where all are ours.
async fn overridden(spec: &Fail2banSpec, seen: &Seen, host: &Sys) -> Result<Option<String>, ObserveError> {
    for (name, want) in [("bantime", spec.ban_s), ("findtime", spec.within_s), ("maxretry", spec.tries)] {
        let said = host.run(&["fail2ban-client", "get", JAIL, name], &[], ASK_LIMIT).await?;
        let is = said.last_line();
        if is != want.to_string() {
            return Ok(Some(format!(
                "{name} of the jail {JAIL} is {is} in spite of {CONF}: another .local file in /etc/fail2ban/jail.d \
                 comes after it"
            )));
        }
    }
    let said = host.run(&["fail2ban-client", "get", JAIL, "ignoreip"], &[], ASK_LIMIT).await?;
    let text = String::from_utf8_lossy(&said.stdout);
    Ok(not_ignored(&ignored(spec, seen), &text).map(|address| {
        format!(
            "the jail {JAIL} does not ignore {address} in spite of {CONF}: another file in /etc/fail2ban does"
        )
    }))
}

/// The first of these addresses that fail2ban's answer, one a line after `|- `, lacks.
fn not_ignored<'a>(wanted: &'a [String], answer: &str) -> Option<&'a str> {
    let has: Vec<&str> = answer.lines().filter_map(|line| line.split_whitespace().last()).collect();
    wanted.iter().map(String::as_str).find(|address| !has.contains(address))
}

/// Bans an address that nobody has, looks what that does, and takes the ban back. Why it blocks nothing; `None`
/// when it does.
async fn blocks(
    seen: &Seen,
    address: &str,
    ports: &[u16],
    host: &Sys,
) -> Result<Option<String>, ObserveError> {
    let said = jail(host, "banip", address).await?;
    let mut why = (!said.ok()).then(|| format!("a ban fails: {}", said.last_line()));
    let until = tokio::time::Instant::now() + SETTLE;
    while why.is_none() {
        match blocked(seen, address, ports, host).await {
            Ok(true) => break,
            Ok(false) if tokio::time::Instant::now() < until => tokio::time::sleep(LOOK_AGAIN).await,
            Ok(false) => {
                why = Some(format!(
                    "fail2ban bans {address} by {}, and no rule of INPUT blocks it: see `journalctl -u fail2ban`",
                    seen.action
                ));
            }
            Err(error) => why = Some(error.to_string()),
        }
    }
    // Whatever was found.
    let back = jail(host, "unbanip", address).await?;
    Ok(why.or_else(|| (!back.ok()).then(|| format!("a ban cannot be taken back: {}", back.last_line()))))
}

async fn jail(host: &Sys, verb: &str, address: &str) -> Result<Output, SysError> {
    host.run(&["fail2ban-client", "set", JAIL, verb, address], &[], ASK_LIMIT).await
}

async fn blocked(seen: &Seen, address: &str, ports: &[u16], host: &Sys) -> Result<bool, ObserveError> {
    let program = match (seen.action.starts_with("iptables"), address.contains(':')) {
        (true, false) => vec!["iptables-save", "-t", "filter"],
        (true, true) => vec!["ip6tables-save", "-t", "filter"],
        (false, _) => vec!["nft", "list", "ruleset"],
    };
    let said = host.run(&program, &[], ASK_LIMIT).await?;
    let text = String::from_utf8_lossy(&said.stdout);
    if seen.action.starts_with("iptables") {
        return Ok(ports.iter().all(|port| table_blocks(&Table::parse(&text), address, *port)));
    }
    Ok(nft_blocks(&text, address))
}

/// Whether a rule that INPUT leads to, for this TCP port, drops or rejects what comes from an address.
fn table_blocks(table: &Table, address: &str, port: u16) -> bool {
    let ends = |rule: &String| {
        let words: Vec<&str> = rule.split(' ').collect();
        let source =
            words.windows(2).any(|pair| pair[0] == "-s" && pair[1].split('/').next() == Some(address));
        source && (rule.contains("-j REJECT") || rule.contains("-j DROP"))
    };
    let mut rules = table.rules("INPUT").iter();
    rules.any(|rule| {
        let words: Vec<&str> = rule.split(' ').collect();
        let after = |flag: &str| words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1));
        let listed = after("--dports").or(after("--dport"));
        let for_port = listed.is_none_or(|list| list.split(',').any(|one| one == port.to_string()));
        let chain = after("-j").filter(|chain| table.has(chain));
        for_port && (ends(rule) || chain.is_some_and(|chain| table.rules(chain).iter().any(ends)))
    })
}

/// The same in nftables' words: a set of fail2ban's own table has the address, and a chain for what comes in
/// refers to that set.
fn nft_blocks(ruleset: &str, address: &str) -> bool {
    let table = ruleset.split("\ntable ").find(|table| table.contains("f2b-table"));
    table.is_some_and(|table| {
        let word = |c: char| c.is_whitespace() || matches!(c, ',' | '{' | '}');
        table.contains("hook input") && table.contains("@addr") && table.split(word).any(|one| one == address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> Fail2banSpec {
        serde_json::from_value(json).unwrap()
    }

    fn lines(steps: &[Step]) -> Vec<String> {
        steps.iter().map(Step::summary).collect()
    }

    #[test]
    fn plans_and_ways_back_by_table() {
        let plain = spec(json!({}));
        let bare = Seen { action: "iptables-multiport".into(), ports: [22].into(), ..Seen::default() };
        let conf = Some(Owned::new(text(&plain, &bare).as_bytes()));
        let now = Seen { conf, enabled: true, running: true, live: true, ..bare.clone() };
        let (write, enable, restart) = (
            format!("write {CONF}"),
            "systemctl enable -- fail2ban.service",
            "systemctl restart -- fail2ban.service",
        );
        let cases = [
            (now.clone(), vec![]),
            (bare.clone(), vec![&*write, enable, restart]),
            (Seen { stale: true, ..now.clone() }, vec![restart]),
            (Seen { live: false, ..now.clone() }, vec![restart]),
            (Seen { running: false, ..now.clone() }, vec![restart]),
            (Seen { ports: [2222].into(), ..now.clone() }, vec![&*write, restart]),
        ];
        for (seen, want) in cases {
            assert_eq!(lines(&Fail2ban::plan(&plain, &seen)), want, "{seen:?}");
            assert_eq!(Fail2ban::diff(&plain, &seen).is_empty(), want.is_empty(), "{seen:?}");
        }
        let undo = |before: &Seen| match Fail2ban::undo(&plain, before, &json!(null), &now) {
            Undo::Steps(steps) => lines(&steps),
            Undo::Cannot(why) => panic!("{why}"),
        };
        let remove = format!("remove {CONF}");
        assert_eq!(undo(&Seen { conf: None, ..now.clone() }), [&*remove, restart]);
        let (stop, disable) = ("systemctl stop -- fail2ban.service", "systemctl disable -- fail2ban.service");
        assert_eq!(undo(&bare), [&*remove, stop, disable]);
        // Somebody stopped it in between, and it is to be as it was.
        let off = Seen { enabled: false, running: false, ..now.clone() };
        let Undo::Steps(steps) = Fail2ban::undo(&plain, &now, &json!(null), &off) else { panic!() };
        assert_eq!(lines(&steps), ["systemctl start -- fail2ban.service", enable]);
    }

    #[test]
    fn a_peer_is_shut_out_of_where_ssh_is_served() {
        let at = |ports: &[u16]| Seen { ports: ports.iter().copied().collect(), ..Seen::default() };
        assert_eq!(ports(&spec(json!({})), &at(&[22, 2222])), [22, 2222]);
        assert_eq!(ports(&spec(json!({})), &at(&[])), [22], "where it would listen");
        assert_eq!(ports(&spec(json!({"ports": ["2200"]})), &at(&[22])), [2200], "as declared");
    }

    /// T10: neither the host nor a controller nor who is declared.
    #[test]
    fn trap_10_who_never_is_banned() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/postern-agent")).unwrap();
        let config = r#"{"controllers": ["198.51.100.7:7300", "[2001:db8::7]:7300", "c.example:7300"]}"#;
        std::fs::write(dir.path().join("etc/postern-agent/config.json"), config).unwrap();
        let controllers = controllers(&Sys::rooted(dir.path().to_owned(), String::new())).unwrap();
        let seen = Seen { controllers, ..Seen::default() };
        let all = ignored(&spec(json!({"ignore": ["203.0.113.9 203.0.113.0/24", "198.51.100.7"]})), &seen);
        let want = ["127.0.0.0/8", "::1", "198.51.100.7", "2001:db8::7", "203.0.113.9", "203.0.113.0/24"];
        assert_eq!(all, want);
        let said = "These IP addresses/networks are ignored:\n|- 127.0.0.0/8\n`- ::1\n";
        assert_eq!(not_ignored(&all[..2], said), None);
        assert_eq!(not_ignored(&all, said), Some("198.51.100.7"));
    }

    /// T09: a ban counts where a rule blocks, and not because fail2ban says so.
    #[test]
    fn trap_09_a_ban_is_a_rule_that_blocks() {
        let table = |input: &str, chain: &str| {
            Table::parse(&format!(
                "*filter\n:INPUT ACCEPT [0:0]\n:f2b-sshd - [0:0]\n{input}\n{chain}\n-A f2b-sshd -j RETURN\nCOMMIT\n"
            ))
        };
        let jump = "-A INPUT -p tcp -m multiport --dports 22,2222 -j f2b-sshd";
        let ban = "-A f2b-sshd -s 192.0.2.1/32 -j REJECT --reject-with icmp-port-unreachable";
        for (input, chain, port, want) in [
            (jump, ban, 22, true),
            (jump, ban, 2222, true),
            (jump, ban, 80, false),
            ("", ban, 22, false),
            (jump, "", 22, false),
            (jump, &ban.replace("192.0.2.1", "192.0.2.10"), 22, false),
            (jump, "-A f2b-sshd -s 192.0.2.1/32 -j LOG", 22, false),
            ("-A INPUT -s 192.0.2.1/32 -j DROP", "", 22, true),
        ] {
            assert_eq!(table_blocks(&table(input, chain), "192.0.2.1", port), want, "{input} {chain}");
        }
        let nft = "table ip x {\n}\ntable inet f2b-table {\n\tset addr-set-sshd {\n\t\telements = { 192.0.2.1,\n192.0.2.3 }\n\t}\n\
                   \tchain f2b-chain {\n\t\ttype filter hook input priority filter - 1; policy accept;\n\
                   \t\ttcp dport 22 ip saddr @addr-set-sshd reject\n\t}\n}\n";
        assert!(
            nft_blocks(nft, "192.0.2.1") && nft_blocks(nft, "192.0.2.3") && !nft_blocks(nft, "192.0.2.2")
        );
        assert!(
            !nft_blocks(&nft.replace("hook input", "hook output"), "192.0.2.1")
                && !nft_blocks("", "192.0.2.1")
        );
    }
}
