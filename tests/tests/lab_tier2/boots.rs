//! A host that boots: closed before it is open, as it was before a change that nobody had confirmed, and the run that
//! restarted it goes on. All of it with a clock that is years off.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::lab::{Host, Release, VmSpec};
use postern_tests::rig::{Rig, VM_BOOT_DEADLINE, apply, wait_for};

use super::{Applying, BACK, cut, managed_vm, timed, undamaged};

/// It listens from early in the boot, and is allowed.
const ALLOWED: u16 = 80;
/// The same, and it is not.
const SHUT: u16 = 8080;

/// Listens before there is a network, and so before everything that a host offers. The kernel takes the connections,
/// and no process is started for them: a host that boots has enough to do.
const EARLY: &str = "for port in 80 8080; do
    printf '[Unit]\\nDefaultDependencies=no\\nBefore=network-pre.target\\nWants=network-pre.target\\n[Socket]\\nListenStream=[::]:%s\\nBindIPv6Only=both\\nBacklog=4096\\n[Install]\\nWantedBy=sysinit.target\\n' $port >/etc/systemd/system/early$port.socket
    printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >/etc/systemd/system/early$port.service
    systemctl daemon-reload; systemctl enable --quiet --now early$port.socket
done; sync";

/// Fresh connections over IPv4 and IPv6, again and again, until this is dropped.
struct Probe {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
}

/// What came of them.
#[derive(Debug, Default)]
struct Seen {
    tried: u32,
    /// Answers of any kind from the port that is shut.
    answers: Vec<String>,
}

impl Probe {
    fn start(host: &Host) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (stop, addresses) = (Arc::clone(&over), [IpAddr::from(host.v4), host.v6.into()]);
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !stop.load(Ordering::Relaxed) {
                addresses.into_iter().for_each(|address| seen.look(address));
                std::thread::park_timeout(Duration::from_millis(50));
            }
            seen
        });
        Self { over, thread: Some(thread) }
    }

    /// The port that is shut never answered.
    fn end(mut self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it ended before")?;
        let seen = thread.join().map_err(|_| anyhow::anyhow!("the probe panicked"))?;
        println!("{} looks at a port that is shut", seen.tried);
        ensure!(seen.tried > 0 && seen.answers.is_empty(), "port {SHUT} answered: {seen:?}");
        Ok(())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    fn look(&mut self, address: IpAddr) {
        self.tried += 1;
        // That it is refused says that no rule keeps the packets away.
        match dial(address, SHUT, Duration::from_millis(200)) {
            Ok(()) => self.answers.push(format!("{address} took a connection")),
            Err(ErrorKind::ConnectionRefused) => self.answers.push(format!("{address} refused a connection")),
            Err(_) => {}
        }
    }
}

fn dial(address: IpAddr, port: u16, limit: Duration) -> std::result::Result<(), ErrorKind> {
    TcpStream::connect_timeout(&SocketAddr::new(address, port), limit).map(drop).map_err(|error| error.kind())
}

/// What listens since before there was a network is reached where that is allowed, and nowhere else.
fn only_the_allowed_port_is_open(host: &Host) -> Result<()> {
    for address in [IpAddr::from(host.v4), host.v6.into()] {
        wait_for("the allowed port is open", BACK, || {
            Ok(dial(address, ALLOWED, Duration::from_secs(2)).is_ok())
        })?;
        ensure!(
            dial(address, SHUT, Duration::from_secs(2)).is_err(),
            "{address} takes connections to {SHUT}"
        );
    }
    let (early, network) = (up_at(host, "early8080.socket")?, up_at(host, "network-pre.target")?);
    ensure!(0 < early && early <= network, "it listened at {early}, the network was there at {network}");
    Ok(())
}

/// When a unit was up in this boot, microseconds.
fn up_at(host: &Host, unit: &str) -> Result<u64> {
    let stamp = host.sh(&format!("systemctl show -P ActiveEnterTimestampMonotonic {unit}"))?;
    stamp.parse().with_context(|| format!("when {unit} was up: {stamp:?}"))
}

/// Commands are run, whatever the clock says.
fn answers(rig: &Rig, host: &Host) -> Result<()> {
    wait_for("a command is run", BACK, || {
        Ok(rig.run(&["exec", &host.name, "--", "echo", "here"])?.stdout == "here\n")
    })
}

#[test]
fn trap_04_and_trap_49_what_a_boot_leads_to() -> Result<()> {
    let mut spec = VmSpec::new("boots", Release::Trixie);
    spec.clock = Some("2036-11-12T13:14:15".to_owned());
    let Some((rig, host)) = managed_vm(spec, &["--accept-clock"])? else { return Ok(()) };
    answers(&rig, &host)?;
    ensure!(host.sh("date +%Y")? == "2036");
    host.sh(EARLY)?;
    apply(&rig, &host, "  - firewall: {allow: [22/tcp, 80/tcp]}\n", &[])?.expect(0);
    a_restart_is_a_step(&rig, &host)?;
    power_is_cut_before_a_change_is_confirmed(&rig, &host)?;
    the_clock_jumps(&rig, &host)?;
    undamaged(&host)
}

/// The run goes on after it, in another boot; and the rules are there before the network is.
fn a_restart_is_a_step(rig: &Rig, host: &Host) -> Result<()> {
    let before = host.boot_id()?;
    let probe = Probe::start(host);
    let applying = Applying::start(
        rig,
        host,
        "  - command: {shell: 'cat /proc/sys/kernel/random/boot_id >/root/first; touch /run/reboot-required'}
  - reboot: {name: restart}
  - command: {shell: 'cat /proc/sys/kernel/random/boot_id >>/root/second'}
",
    )?;
    let ended = timed("a run with a restart in it", || applying.end())?;
    host.wait_ssh(VM_BOOT_DEADLINE)?;
    wait_for("sshd is up", BACK, || Ok(host.sh("systemctl is-active ssh.service || true")? == "active"))?;
    probe.end()?;
    only_the_allowed_port_is_open(host)?;
    ended.is_whole();
    ensure!(ended.state() == "ok" && ended.outcomes("restart") == ["changed"], "{}", ended.state());
    let after = host.boot_id()?;
    ensure!(before != after && host.sh("cat /root/first /root/second")? == format!("{before}\n{after}"));

    let (ours, network) = (up_at(host, "postern-firewall.service")?, up_at(host, "network-pre.target")?);
    let opened = [up_at(host, "systemd-networkd.service")?, up_at(host, "ssh.service")?];
    println!("rules at {ours} us, network-pre at {network}, then {opened:?}");
    ensure!(0 < ours && ours <= network && opened.iter().all(|at| network <= *at));
    Ok(())
}

/// A change that is on the disk and shuts SSH from the next boot on: the boot takes it back before sshd starts.
fn power_is_cut_before_a_change_is_confirmed(rig: &Rig, host: &Host) -> Result<()> {
    let gateway = rig.lab.gateway_v4();
    let rule = format!("OUTPUT -d {gateway} -m conntrack --ctstate NEW -j DROP");
    let conf = "/etc/ssh/sshd_config.d/00-cut.conf";
    // Nothing new reaches the controller, so nothing is confirmed.
    let change = format!(
        "echo ListenAddress 127.0.0.1 >{conf}; echo x >>/root/guarded; iptables -I {rule}; sync; touch /run/changed"
    );
    let mut applying = Applying::start(
        rig,
        host,
        &format!(
            "  - command: {{shell: '{change}', revert: [sh, -c, 'rm -f {conf}; iptables -D {rule} || true'], timeout_s: 60}}\n"
        ),
    )?;
    applying
        .until("the change is made", |_| Ok(!host.sh("ls /run/changed 2>/dev/null || true")?.is_empty()))?;
    ensure!(host.sh(&format!("cat {conf}"))? == "ListenAddress 127.0.0.1");
    let probe = Probe::start(host);
    cut(host)?;
    let ended = applying.end()?;
    probe.end()?;
    only_the_allowed_port_is_open(host)?;
    ended.is_whole();
    ensure!(ended.state() == "interrupted", "{}", ended.state());
    ensure!(host.sh(&format!("cat /root/guarded; ls {conf} 2>/dev/null || true"))? == "x");
    let order = host.sh(
        "journalctl -b -o cat --no-pager | grep -o -e 'the guard is over' -e 'Server listening' | uniq",
    )?;
    ensure!(order == "the guard is over\nServer listening", "{order}");
    let left = host.sh(
        "ls -A /var/lib/postern-agent/guard 2>/dev/null; find /etc/systemd/system -name 'postern-guard-*'",
    )?;
    ensure!(left.is_empty(), "the guard left: {left}");
    Ok(())
}

/// Back and forth, with a session up and over a new one.
fn the_clock_jumps(rig: &Rig, host: &Host) -> Result<()> {
    for to in ["2016-02-03", "2046-02-03"] {
        host.sh(&format!("date -s {to} >/dev/null"))?;
        answers(rig, host)?;
        host.sh("systemctl restart postern-agent")?;
        answers(rig, host)?;
        ensure!(host.sh("date +%F")? == to);
    }
    Ok(())
}
