//! T24 and the life after it: the port of SSH is closed for good on real hosts, seen closed by somebody else with new
//! connections over IPv4 and IPv6 beside a port that answers, and opened again without any SSH.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs::DirBuilder;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::controls::{listen, listens};
use postern_tests::lab::{Host, HostSpec, Image, Peer};
use postern_tests::rig::{Ended, Rig, said, ssh_closed, wait_for};
use postern_tests::time_server::serve_time;

const OPEN: [bool; 2] = [true, true];
const SHUT: [bool; 2] = [false, false];
/// Answers, and the profile opens it: the control beside every look.
const WEB: u16 = 80;
/// Answers, and no profile opens it.
const OTHER: u16 = 8080;
/// Seconds that a change has to be confirmed here.
const WINDOW_S: u64 = 20;
const BACK: Duration = Duration::from_secs(90);

/// A host with the profile `base`, and somebody who looks at it from outside.
struct Gate {
    rig: Rig,
    host: Host,
    stranger: Peer,
    kits: tempfile::TempDir,
    vars: Vec<String>,
}

impl Gate {
    fn open(name: &str, image: Image) -> Result<Option<Self>> {
        let Some(mut rig) = Rig::open() else { return Ok(None) };
        rig.serve()?;
        let host = rig.host_with(HostSpec::new(name, image))?;
        serve_time(&host)?;
        let stranger = rig.lab.peer()?;
        let mut vars = rig.admin_vars()?;
        vars.extend(["--var", "open_ports=22/tcp; 80/tcp"].map(str::to_owned));
        let gate = Self { rig, host, stranger, kits: tempfile::tempdir()?, vars };
        gate.with_profile(&["--profile", "base"], |args| gate.rig.up(&gate.host, args))?.expect(0);
        listen(&gate.host, &[WEB, OTHER])?;
        gate.host.sh(&format!(
            "sed -i 's/^{{/{{\"limits\":{{\"guard_window_s\":{WINDOW_S}}},/' /etc/postern-agent/config.json; \
             systemctl restart postern-agent"
        ))?;
        gate.is_managed()?;
        DirBuilder::new().recursive(true).mode(0o700).create(gate.older_kit())?;
        std::fs::write(gate.older_kit().join("state.backup"), "")?;
        Ok(Some(gate))
    }

    fn with_profile(&self, first: &[&str], run: impl FnOnce(&[&str]) -> Result<Ended>) -> Result<Ended> {
        let args: Vec<&str> = first.iter().copied().chain(self.vars.iter().map(String::as_str)).collect();
        run(&args)
    }

    fn base(&self) -> Result<Ended> {
        self.with_profile(&["apply", "base", "-H", &self.host.name], |args| self.rig.run(args))
    }

    fn kit_dir(&self) -> PathBuf {
        self.kits.path().join("kits")
    }

    /// One of before.
    fn older_kit(&self) -> PathBuf {
        self.kit_dir().join("0-older")
    }

    fn close(&self, more: &[&str]) -> Result<Ended> {
        let kits = self.kit_dir().display().to_string();
        self.rig.run(&[more, &["ssh-port", "close", &self.host.name, "--kit", &kits]].concat())
    }

    fn ssh_port(&self, what: &str) -> Result<Ended> {
        self.rig.run(&["ssh-port", what, &self.host.name])
    }

    /// Whether new connections of somebody else's get in, over IPv4 and over IPv6.
    fn gets_in(&self, port: u16) -> Result<[bool; 2]> {
        let addresses: [IpAddr; 2] = [self.host.v4.into(), self.host.v6.into()];
        Ok(self.stranger.within(|| {
            addresses.map(|address| {
                TcpStream::connect_timeout(&SocketAddr::new(address, port), Duration::from_secs(2)).is_ok()
            })
        })?)
    }

    /// What is seen of the port of SSH, beside one that is open and one that is not.
    fn seen(&self, ssh: [bool; 2]) -> Result<()> {
        ensure!(
            listens(&self.host, OTHER)? && listens(&self.host, 22)?,
            "the control: somebody listens there"
        );
        let all = (self.gets_in(22)?, self.gets_in(WEB)?, self.gets_in(OTHER)?);
        ensure!(all == (ssh, OPEN, SHUT), "22, {WEB}, {OTHER}: {all:?}, wanted {ssh:?}");
        Ok(())
    }

    fn is_managed(&self) -> Result<()> {
        wait_for("a command runs there", BACK, || {
            let exec = self.rig.run(&["exec", &self.host.name, "--", "echo", "here"])?;
            Ok(exec.code == Some(0) && exec.stdout == "here\n")
        })
    }

    fn reboot(&self) -> Result<()> {
        self.host.reboot()?;
        // Not by SSH.
        self.host.wait_booted(BACK)?;
        self.is_managed()
    }

    /// As the record has it.
    fn declared(&self) -> Result<String> {
        let shown = self.rig.run(&["--output", "json", "host", "show", &self.host.name])?.expect(0);
        let host: serde_json::Value = serde_json::from_str(shown.stdout.trim())?;
        Ok(host["ssh_port"].as_str().context("a port")?.to_owned())
    }
}

fn contains(ended: &Ended, texts: &[&str]) -> Result<()> {
    let said = said(ended);
    for text in texts {
        ensure!(said.contains(text), "{text:?} is not said:\n{said}");
    }
    Ok(())
}

/// An SSH session that was there before: it says back what it is told.
struct Session {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Session {
    fn begin(host: &Host) -> Result<Self> {
        let mut ssh = host.ssh("ada");
        ssh.arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = ssh.spawn()?;
        let (to, from) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        let mut session = Self { child, to, from: BufReader::new(from) };
        session.lives()?;
        Ok(session)
    }

    fn lives(&mut self) -> Result<()> {
        self.to.write_all(b"still here\n")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        ensure!(line == "still here\n", "{line:?}");
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a closing that did not come about has written is gone, and what was there before is not.
fn only_the_older_kit(gate: &Gate) -> Result<()> {
    let all: Vec<_> = std::fs::read_dir(gate.kit_dir())?.collect::<Result<_, _>>()?;
    let older = gate.older_kit();
    ensure!(all.len() == 1 && older.join("state.backup").exists(), "{all:?}");
    Ok(())
}

/// Whatever is missing is named, all of it is tried, and nothing is changed.
fn what_is_missing_keeps_it_open(gate: &Gate) -> Result<()> {
    let host = &gate.host;
    // A kit that cannot be written.
    let file = gate.kits.path().join("taken");
    std::fs::write(&file, "")?;
    let kits = file.join("kits").display().to_string();
    let refused = gate.rig.run(&["ssh-port", "close", &host.name, "--kit", &kits])?.expect(1);
    contains(
        &refused,
        &[
            "NO   a recovery kit is written",
            "yes  the agent comes back",
            "yes  its way here",
            "yes  the port is seen",
            "port-stays-open",
        ],
    )?;
    // Work that goes on: it is named, and not cut short.
    let name = host.name.clone();
    let busy = std::thread::scope(|scope| {
        let work = scope.spawn(|| gate.rig.run(&["exec", &name, "--", "sleep", "12"]));
        wait_for("the work goes on", BACK, || Ok(!host.sh("pgrep -x sleep || true")?.is_empty()))?;
        let busy = gate.close(&[])?.expect(1);
        work.join().map_err(|_| anyhow::anyhow!("the work panicked"))??.expect(0);
        Ok::<_, anyhow::Error>(busy)
    })?;
    contains(&busy, &["NO   the agent comes back", "is not over", "exec sleep", "NO   its way here"])?;
    // An agent that nobody starts again.
    let drop_in = "/etc/systemd/system/postern-agent.service.d";
    host.sh(&format!(
        "mkdir -p {drop_in}; printf '[Service]\\nRestart=no\\n' >{drop_in}/no.conf; systemctl daemon-reload"
    ))?;
    let gone = gate.close(&[])?.expect(1);
    contains(&gone, &["NO   the agent comes back", "no new process of the agent called within 60 s"])?;
    host.sh(&format!("rm -r {drop_in}; systemctl daemon-reload; systemctl start postern-agent"))?;
    gate.is_managed()?;
    gate.seen(OPEN)?;
    ensure!(gate.declared()? == "open");
    contains(&gone, &["the recovery kit was removed again"])?;
    only_the_older_kit(gate)
}

/// T24: somebody else's firewall, on one family alone, keeps the port open: it is not called closed, it is taken back,
/// and the address is named.
fn another_firewall_keeps_it_open(gate: &Gate) -> Result<()> {
    let host = &gate.host;
    host.sh(
        "systemd-run --quiet --unit by-hand sh -c 'while :; do ip6tables -S INPUT 1 | grep -q \"dport 22 -j ACCEPT\" || \
         ip6tables -I INPUT 1 -p tcp --dport 22 -j ACCEPT; sleep 0.1; done'",
    )?;
    let failed = gate.close(&[])?.expect(1);
    let at = format!("closed 22 at {}: it still answers", host.v6);
    contains(&failed, &["the change was taken back", &at])?;
    let v4 = format!("closed 22 at {}", host.v4);
    ensure!(!said(&failed).contains(&v4), "{failed:?}");
    gate.seen(OPEN)?;
    ensure!(gate.declared()? == "open");
    host.sh("systemctl stop by-hand; while ip6tables -D INPUT -p tcp --dport 22 -j ACCEPT 2>/dev/null; do :; done")?;
    gate.base()?.expect(0);
    only_the_older_kit(gate)
}

fn is_private(path: &Path, mode: u32) -> Result<()> {
    let found = std::fs::metadata(path)?.permissions().mode() & 0o777;
    ensure!(found == mode, "{}: {found:o}", path.display());
    Ok(())
}

fn kit_is_whole(gate: &Gate) -> Result<()> {
    let all: Vec<_> = std::fs::read_dir(gate.kit_dir())?.collect::<Result<_, _>>()?;
    let kit = all.iter().map(std::fs::DirEntry::path).max().context("a kit")?;
    is_private(&gate.kit_dir(), 0o700)?;
    is_private(&kit, 0o700)?;
    for file in ["state.backup", "controller-ca.pem", "host.json", "README.txt"] {
        is_private(&kit.join(file), 0o600)?;
    }
    let text = std::fs::read_to_string(kit.join("README.txt"))?;
    ensure!(text.contains("/usr/local/bin/postern-agent ssh-port open"), "{text}");
    ensure!(text.contains("Nothing in here is encrypted"), "{text}");
    // It is what a controller can be made from.
    let state = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o700)).tempdir()?;
    let made = state.path().join("state").display().to_string();
    let backup = kit.join("state.backup").display().to_string();
    gate.rig.run(&["--state-dir", &made, "restore", &backup, "--accept"])?.expect(0);
    Ok(())
}

/// Closed, and everything works without it.
fn closed_for_good(gate: &Gate) -> Result<()> {
    let host = &gate.host;
    let mut session = Session::begin(host)?;
    let closed = gate.close(&[])?.expect(0);
    let seen = format!(
        "closed: seen from here on {} (dropped, 80 answers) and {} (dropped, 80 answers)",
        host.v4, host.v6
    );
    contains(
        &closed,
        &[&seen, "closed 22", "connections that are open were not cut", "postern-agent ssh-port open"],
    )?;
    let closing = gate.rig.last_run(&gate.host)?;
    gate.seen(SHUT)?;
    session.lives().context("a connection that was open is not cut")?;
    drop(session);
    ssh_closed(host)?;
    kit_is_whole(gate)?;
    ensure!(gate.declared()? == "closed");

    gate.is_managed()?;
    let again = gate.base()?.expect(0);
    ensure!(again.stdout.contains(" unchanged") && !again.stdout.contains(" changed"), "{again:?}");
    gate.rig.run(&["drift", &host.name])?.expect(0);
    gate.close(&[])?
        .expect(0)
        .says("")
        .stdout
        .contains("closed already")
        .then_some(())
        .context("closed already")?;
    // Another port, while it is closed.
    let more =
        gate.rig.run(&["apply", "base", "-H", &host.name, "--var", "open_ports=22/tcp; 80/tcp; 8080/tcp"])?;
    more.expect(0);
    ensure!((gate.gets_in(22)?, gate.gets_in(OTHER)?) == (SHUT, OPEN));
    let run = gate.rig.last_run(&gate.host)?;
    gate.rig.run(&["run", "undo", &run])?.expect(0);
    gate.base()?.expect(0);
    gate.seen(SHUT)?;
    gate.reboot()?;
    gate.seen(SHUT).context("after a restart")?;
    contains(&gate.ssh_port("status")?.expect(0), &["declared closed", &closing, "dropped, 80 answers"])?;

    // What cannot be done any more says what can.
    let undo = gate.rig.run(&["run", "undo", &closing])?.expect(1);
    contains(&undo, &["`postern ssh-port open HOST`"])?;
    let up = gate.rig.up(host, &["--bootstrap"])?.expect(1);
    contains(&up, &["error[ssh-port-closed]", "postern ssh-port open", "postern-agent ssh-port open"])?;
    gate.seen(SHUT)
}

/// Opened with an sshd that nobody could reach, and which is not even there at first.
fn opened_without_ssh(gate: &Gate) -> Result<()> {
    let host = &gate.host;
    host.sh("systemctl stop ssh.service")?;
    let opened = gate.ssh_port("open")?.expect(1);
    contains(&opened, &["error[port-not-seen]", "does sshd run there"])?;
    ensure!(gate.declared()? == "open");
    host.sh("systemctl start ssh.service")?;
    contains(&gate.ssh_port("open")?.expect(0), &["open: seen from here on"])?;
    gate.seen(OPEN)?;
    let again = gate.base()?.expect(0);
    ensure!(!again.stdout.contains(" changed"), "{again:?}");
    Ok(())
}

/// No controller, and somebody at the provider's console.
fn the_last_resort(gate: &mut Gate) -> Result<()> {
    gate.close(&[])?.expect(0);
    gate.seen(SHUT)?;
    gate.rig.kill_daemon()?;
    let said_there = gate.host.sh("/usr/local/bin/postern-agent ssh-port open")?;
    ensure!(said_there.contains("SSH is let in at port 22"), "{said_there}");
    gate.seen(OPEN)?;
    // Once more does no harm.
    gate.host.sh("/usr/local/bin/postern-agent ssh-port open")?;
    gate.host.reboot()?;
    gate.host.wait_booted(BACK)?;
    wait_for("sshd listens", BACK, || listens(&gate.host, 22))?;
    gate.seen(OPEN).context("after a restart")?;
    gate.rig.serve()?;
    gate.is_managed()?;
    // It is not what is declared, and is told as that, with the way to keep it.
    let status = gate.ssh_port("status")?.expect(1);
    contains(&status, &["declared closed", "answers", "error[port-not-closed]", "postern ssh-port open"])?;
    let drift = gate.rig.run(&["drift", &gate.host.name])?.expect(1);
    contains(&drift, &["SSH is let in at port 22, and is declared closed", "postern ssh-port open"])?;
    gate.base()?.expect(0);
    gate.seen(SHUT).context("the next run closes it again")?;
    // What that run changed cannot be taken back to an open port.
    let run = gate.rig.last_run(&gate.host)?;
    let undo = gate.rig.run(&["run", "undo", &run])?;
    contains(&undo, &["which is declared closed"])?;
    gate.seen(SHUT)?;
    // A host that is away is looked at all the same.
    gate.host.sh("systemctl stop postern-agent")?;
    wait_for("the session is over", BACK, || {
        let status = gate.ssh_port("status")?;
        Ok(said(&status).contains("its agent is down") && status.code == Some(1))
    })?;
    contains(&gate.ssh_port("status")?, &["dropped, 80 answers"])?;
    gate.host.sh("systemctl start postern-agent")?;
    gate.is_managed()?;
    gate.ssh_port("open")?.expect(0);
    gate.seen(OPEN)
}

fn all_of_it(name: &str, image: Image) -> Result<()> {
    let Some(mut gate) = Gate::open(name, image)? else { return Ok(()) };
    gate.seen(OPEN)?;
    contains(&gate.ssh_port("status")?.expect(0), &["declared open", "answers"])?;
    another_firewall_keeps_it_open(&gate)?;
    closed_for_good(&gate)?;
    opened_without_ssh(&gate)?;
    the_last_resort(&mut gate)
}

#[test]
fn trap_24_the_port_of_ssh_is_closed_for_good_on_debian_12() -> Result<()> {
    all_of_it("gate-12", Image::BOOKWORM)
}

#[test]
fn trap_24_the_port_of_ssh_is_closed_for_good_on_debian_13() -> Result<()> {
    all_of_it("gate-13", Image::TRIXIE)
}

#[test]
fn what_is_missing_keeps_the_port_open() -> Result<()> {
    let Some(gate) = Gate::open("gate-missing", Image::BOOKWORM)? else { return Ok(()) };
    what_is_missing_keeps_it_open(&gate)
}
