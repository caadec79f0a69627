//! What a host must have is asked for before anything is installed on it, and all that is lacking is told at once
//! (T29), on real hosts.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use anyhow::Result;
use postern_tests::fingerprint::{changes, fingerprint};
use postern_tests::lab::{Host, HostSpec, Image};
use postern_tests::rig::{Ended, Rig, apply, managed, said};

/// More than any machine has, MiB.
const TOO_MUCH: &str = "60000000";

/// What a run says that a preflight ends, before the package after it.
#[track_caller]
fn lacks(rig: &Rig, host: &Host, preflight: &str) -> Result<String> {
    let resources = format!("  - preflight: {{name: lab, {preflight}}}\n  - package: {{name: tree}}\n");
    let check = apply(rig, host, &resources, &["--check"])?.expect(1);
    assert!(check.stdout.contains("failed       lab:preflight:lab"), "{check:?}");
    let ended = apply(rig, host, &resources, &[])?.expect(1);
    assert!(ended.stdout.contains("failed       lab:preflight:lab"), "{ended:?}");
    host.sh("! dpkg -s tree 2>/dev/null | grep -q '^Status: install ok installed'")?;
    Ok(said(&ended))
}

#[track_caller]
fn has(rig: &Rig, host: &Host, preflight: &str) -> Result<Ended> {
    let ended = apply(rig, host, &format!("  - preflight: {{name: lab, {preflight}}}\n"), &[])?.expect(0);
    assert!(ended.stdout.contains("1 unchanged"), "{ended:?}");
    Ok(ended)
}

#[test]
fn trap_29_all_that_a_host_lacks_is_told_at_once() -> Result<()> {
    let Some((rig, host)) = managed("lacks", Image::BOOKWORM)? else { return Ok(()) };
    // A port where nobody answers, beside one that is shut.
    host.sh(
        "iptables -I INPUT -p tcp --dport 4444 -j DROP; iptables -I INPUT -i lo -p tcp --dport 4444 -j DROP",
    )?;
    host.sh("printf '127.0.0.1 here.test\\n2001:db8::7 here.test\\n' >>/etc/hosts")?;
    let before = fingerprint(&host)?;
    let why = lacks(
        &rig,
        &host,
        &format!(
            "memory_mb: {TOO_MUCH}, disk_free_mb: {TOO_MUCH}, var_free_mb: {TOO_MUCH}, clock_s: 60, resolves: \
             [no-such-name.invalid], reaches: [apt, 'here.test:22', 'here.test:4443', 'here.test:4444']"
        ),
    )?;
    let free = host.sh("df -Pm / | awk 'NR == 2 { print $4 }'")?;
    let memory = host.sh("awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo")?;
    for want in [
        "5 things are lacking, and nothing was installed: (1) memory: the host has",
        &format!("the host has {memory} MB and"),
        &format!("together {TOO_MUCH} MB are wanted: give it swap, `swap: {{size_mb: "),
        "(2) disk: / and /var are one file system with",
        "60000000 + 60000000 = 120000000 MB are wanted: make room",
        "(3) name: no-such-name.invalid: it has no address",
        "server: here.test:4443: ",
        "Connection refused",
        "server: here.test:4444: no answer within 10 s",
    ] {
        assert!(why.contains(want), "{want} is not in\n{why}");
    }
    // What it says of the disk is what df says, give or take what others write meanwhile.
    let said_free: u64 =
        why.split("one file system with ").nth(1).unwrap().split(' ').next().unwrap().parse()?;
    assert!(said_free.abs_diff(free.parse()?) < 200, "{said_free} {free}");
    // One of two families leads there, and apt's mirrors are reached as they are.
    assert!(!why.contains("here.test:22") && !why.contains("apt: "), "{why}");
    assert_eq!(changes(&before, &fingerprint(&host)?), Vec::<String>::new());

    has(
        &rig,
        &host,
        "memory_mb: 64, disk_free_mb: 1, clock_s: 60, resolves: [here.test], reaches: [apt, 'here.test:22']",
    )?;
    // What the room is for is there: nothing is asked any more.
    let wanted = format!("memory_mb: {TOO_MUCH}, reaches: ['here.test:4443'], packages: [openssh-server]");
    has(&rig, &host, &wanted)?;
    let facts = rig.run(&["host", "show", &host.name])?.expect(0);
    assert!(facts.stdout.contains(&format!("{memory} MB")), "{facts:?}");
    assert!(facts.stdout.contains("MB free on /, "), "{facts:?}");
    let json = rig.run(&["--output", "json", "host", "show", &host.name])?.expect(0);
    let json: serde_json::Value = serde_json::from_str(json.stdout.trim())?;
    assert_eq!(json["memory_mb"], serde_json::json!(memory.parse::<u64>()?));
    for fact in ["swap_mb", "disk_free_mb", "var_free_mb"] {
        assert!(json[fact].is_u64(), "{fact}: {json}");
    }
    // And they are facts of profiles.
    let by_fact = "  - file: {path: /etc/lab-fact, content: \"{{ memory_mb }} {{ host.swap_mb }}\"}\n    \
                   when: host.disk_free_mb > 1 and host.var_free_mb > 1\n";
    apply(&rig, &host, by_fact, &[])?.expect(0);
    assert!(host.sh("cat /etc/lab-fact")?.starts_with(&format!("{memory} ")));
    Ok(())
}

/// An HTTP proxy on the lab's own machine that says yes to every CONNECT.
fn proxy(rig: &Rig) -> Result<String> {
    let listener = TcpListener::bind((rig.lab.gateway_v4(), 0))?;
    let at = listener.local_addr()?;
    rig.lab.allow_port(at.port())?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 1024];
            if stream.read(&mut head).is_ok_and(|got| head[..got].starts_with(b"CONNECT far.test:443 ")) {
                let _ = stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n");
            }
        }
    });
    Ok(at.to_string())
}

#[test]
fn trap_29_a_host_behind_a_proxy_lacks_nothing() -> Result<()> {
    let Some((rig, host)) = managed("proxied", Image::TRIXIE)? else { return Ok(()) };
    let at = proxy(&rig)?;
    let (machine, _) = at.split_once(':').unwrap();
    // Nothing goes out but to the lab's own machine: no mirror, and no server.
    host.sh(&format!(
        "printf '192.0.2.7 far.test\\n' >>/etc/hosts
         iptables -A OUTPUT -o lo -j ACCEPT; iptables -A OUTPUT -d {machine} -j ACCEPT
         iptables -A OUTPUT -p tcp --syn -j REJECT; ip6tables -A OUTPUT -p tcp --syn -j REJECT
         rm -f /etc/apt/apt.conf.d/*proxy*; printf '127.0.0.1 m.test\\n' >>/etc/hosts
         sed -i 's|//[^/]*/|//m.test/|' $(ls /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null)
         echo 'Acquire::http::Proxy \"DIRECT\"; Acquire::https::Proxy \"DIRECT\";' >/etc/apt/apt.conf.d/99lab"
    ))?;
    let wanted = "reaches: [apt, 'far.test:443']";
    let why = lacks(&rig, &host, wanted)?;
    assert!(why.contains("2 things are lacking") && why.contains("apt: m.test:"), "{why}");
    assert!(why.contains("far.test:443: 192.0.2.7: Connection refused"), "{why}");
    host.sh(&format!(
        "echo 'Acquire::http::Proxy \"http://u:secret@{at}\"; Acquire::https::Proxy \"http://u:secret@{at}\";' \
         >/etc/apt/apt.conf.d/99lab"
    ))?;
    has(&rig, &host, wanted)?;
    // The environment's counts for servers, and not for apt.
    host.sh(&format!("rm /etc/apt/apt.conf.d/99lab; echo 'https_proxy=http://{at}' >>/etc/environment"))?;
    has(&rig, &host, "reaches: ['far.test:443']")?;
    let why = lacks(&rig, &host, "reaches: ['other.test:443', 'far.test:443']")?;
    assert!(
        why.contains("one thing is lacking") && why.contains("server: other.test:443: it has no address"),
        "{why}"
    );
    Ok(())
}

/// The shipped profile says what a host lacks, and leaves it as it was.
#[test]
fn trap_29_base_on_a_small_disk_installs_nothing() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let mut spec = HostSpec::new("small", Image::BOOKWORM);
    spec.disk_limit = Some(200 << 20);
    let host = rig.host_with(spec)?;
    rig.up(&host, &[])?.expect(0);
    let before = fingerprint(&host)?;
    let key = std::fs::read_to_string(rig.lab.public_key())?;
    let key = format!("admin_key={}", key.trim());
    let base = |more: &[&str]| {
        let mut args = vec!["apply", "base", "-H", &host.name, "--var", &key];
        args.extend(more);
        rig.run(&args)
    };
    let ended = base(&[])?.expect(1);
    let why = said(&ended);
    assert!(
        why.contains("base:preflight:base") && why.contains("disk: / and /var are one file system"),
        "{why}"
    );
    assert!(!why.contains("memory: ") && !why.contains("apt: "), "{why}");
    // A swap file was asked for by nobody; where somebody does, this host says what is in the way.
    assert!(!why.contains("base:swap"), "{why}");
    let ended = base(&["--var", "swap_mb=64"])?.expect(1);
    assert!(said(&ended).contains("this host is a container (systemd-nspawn)"), "{ended:?}");
    assert_eq!(changes(&before, &fingerprint(&host)?), Vec::<String>::new());
    Ok(())
}
