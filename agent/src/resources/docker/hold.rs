//! `postern-agent hold-ports`: for a moment, who begins a connection to these ports of the host waits instead of being
//! refused.
//!
//! A port that a task has of the host itself can only go over to the next task once the first has ended; in between
//! nobody listens. So the first packet of each connection is dropped meanwhile, and TCP sends it again after a second;
//! connections that are there go on. The rule carries its own end: should nobody come back to take it away, the kernel
//! does not apply it any more. It stands in a chain of our own, before addresses are translated.

use std::io::Write;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::sys::Sys;

const CHAIN: &str = "POSTERN-HOLD";
const TABLES: [&str; 2] = ["iptables", "ip6tables"];
const LIMIT: Duration = Duration::from_secs(20);
/// What was let in before is taken in by its listener meanwhile; one that ends has nothing left in its queue.
const DRAIN: Duration = Duration::from_millis(500);
/// iptables-extensions(8), multiport.
pub(super) const MOST_PORTS: usize = 15;
/// The longest that a port is held, seconds: Linux tries a connection for about two minutes.
pub(super) const LONGEST_S: u64 = 90;
/// Docker's proxy takes a connection also where nothing is behind it, and ends it at once.
const ENDS_AT_ONCE: Duration = Duration::from_millis(150);

/// Holds these ports (`80,443`) for so many seconds, or says why not: what comes after it goes on all the same.
pub(crate) async fn hold_ports(
    sys: &Sys,
    ports: &str,
    seconds: &str,
    out: &mut (dyn Write + Send),
) -> Result<(), String> {
    let list: Vec<&str> = ports.split(',').collect();
    let plain = list.iter().all(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    let seconds = seconds.parse::<u64>().ok().filter(|seconds| (1..=LONGEST_S).contains(seconds));
    let (true, Some(seconds)) = (plain && list.len() <= MOST_PORTS, seconds) else {
        return Err(format!("want up to {MOST_PORTS} ports and 1 to {LONGEST_S} seconds"));
    };
    release(sys).await;
    let until = crate::sys::now_ns() / 1_000_000_000 + i64::try_from(seconds).unwrap_or(0);
    let until = said(sys, &["date", "-u", "-d", &format!("@{until}"), "+%FT%T"]).await?;
    for program in TABLES {
        if let Err(why) = hold(sys, program, ports, until.trim()).await {
            // Where a family is not there, nobody comes by it; all else is a moment's refusals.
            let _ = writeln!(out, "{program}: {why}: some connections may be refused for a moment");
        }
    }
    tokio::time::sleep(DRAIN).await;
    let _ = writeln!(out, "connections to {ports} wait, until {} at the latest", until.trim());
    Ok(())
}

async fn hold(sys: &Sys, program: &str, ports: &str, until: &str) -> Result<(), String> {
    let rule = [
        "-A",
        CHAIN,
        "!",
        "-i",
        "lo",
        "-p",
        "tcp",
        "--syn",
        // What is for this host itself: what containers ask of others goes through here too. Docker translates addresses
        // only after this.
        "-m",
        "addrtype",
        "--dst-type",
        "LOCAL",
        "-m",
        "multiport",
        "--dports",
        ports,
        "-m",
        "time",
        "--datestop",
        until,
        "-j",
        "DROP",
    ];
    for words in [&["-N", CHAIN][..], &rule, &["-I", "PREROUTING", "-j", CHAIN]] {
        said(sys, &[&[program, "-w", "10", "-t", "mangle"], words].concat()).await?;
    }
    Ok(())
}

/// Lets them go.
pub(super) async fn release(sys: &Sys) {
    for program in TABLES {
        let base = [program, "-w", "10", "-t", "mangle"];
        // Each fails where there is nothing of it, which is as it is to be.
        for words in [&["-D", "PREROUTING", "-j", CHAIN][..], &["-F", CHAIN], &["-X", CHAIN]] {
            let _ = said(sys, &[&base, words].concat()).await;
        }
    }
}

/// Whether somebody holds ports.
pub(super) async fn is_held(sys: &Sys) -> bool {
    for program in TABLES {
        if said(sys, &[program, "-w", "10", "-t", "mangle", "-S", CHAIN]).await.is_ok() {
            return true;
        }
    }
    false
}

async fn said(sys: &Sys, argv: &[&str]) -> Result<String, String> {
    match sys.run(argv, &[], LIMIT).await {
        Ok(said) if said.ok() => Ok(String::from_utf8_lossy(&said.stdout).into_owned()),
        Ok(said) => Err(said.last_line()),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether somebody listens on a port of this host and stays.
pub(super) async fn answers(port: u16) -> bool {
    let connect = TcpStream::connect(("127.0.0.1", port));
    let Ok(Ok(mut stream)) = timeout(Duration::from_secs(1), connect).await else { return false };
    match timeout(ENDS_AT_ONCE, stream.read(&mut [0; 1])).await {
        Err(_) => true,
        Ok(got) => got.is_ok_and(|got| got > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[tokio::test]
    async fn ports_are_held_for_a_time_that_the_kernel_knows() {
        let fake = Fake::new();
        let log = fake.dir.path().join("log");
        for program in TABLES {
            fake.program(program, &format!("echo {program} \"$@\" >>{}", log.display()));
        }
        fake.program("date", "echo 2026-11-28T00:00:30");
        let mut out = Vec::new();
        hold_ports(&fake.sys, "80,443", "30", &mut out).await.unwrap();
        let log = std::fs::read_to_string(log).unwrap();
        let rule = "-A POSTERN-HOLD ! -i lo -p tcp --syn -m addrtype --dst-type LOCAL -m multiport --dports 80,443 -m time --datestop \
                    2026-11-28T00:00:30 -j DROP";
        for program in TABLES {
            let of: Vec<&str> = log.lines().filter(|line| line.starts_with(&format!("{program} "))).collect();
            // What an earlier one left is taken away first, and the jump comes last.
            assert!(of[0].ends_with("-D PREROUTING -j POSTERN-HOLD") && of[4].ends_with(rule), "{of:#?}");
            assert!(of.last().unwrap().ends_with("-I PREROUTING -j POSTERN-HOLD"), "{of:#?}");
        }
        for (ports, seconds) in [("80,x", "30"), ("", "30"), ("80", "0"), ("80", "3600"), ("80;reboot", "30")]
        {
            assert!(hold_ports(&fake.sys, ports, seconds, &mut out).await.is_err(), "{ports} {seconds}");
        }
    }

    #[tokio::test]
    async fn who_listens_and_stays_answers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(answers(port).await, "one that waits for the other side");
        let ends = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                drop(stream);
            }
        });
        tokio::task::yield_now().await;
        assert!(!answers(port).await, "one that ends at once");
        ends.abort();
        let _ = ends.await;
        assert!(!answers(port).await, "nobody");
    }
}
