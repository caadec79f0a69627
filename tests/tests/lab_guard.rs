//! Changes that cut a real host off from its controller: under guard the host comes back by itself every time;
//! without it, the same changes lose it. `POSTERN_GUARD_ROUNDS` says how often each is made.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::lab::{Host, Image};
use postern_tests::rig::{Ended, Rig, apply, managed, said, wait_for};

/// Seconds that a change has to be confirmed here: the least there is.
const WINDOW_S: u64 = 15;
/// By then a change is taken back, and the session is up again.
const BACK: Duration = Duration::from_secs(90);

fn rounds(most: u32) -> u32 {
    std::env::var("POSTERN_GUARD_ROUNDS").ok().and_then(|it| it.parse().ok()).unwrap_or(1).min(most)
}

/// A change that cuts the host off, and its way back.
struct Cut {
    name: &'static str,
    change: String,
    back: String,
}

/// What the agent's packets need, broken in each way that a mistake breaks it.
fn cuts(rig: &Rig) -> Vec<Cut> {
    let gateway = rig.lab.gateway_v4();
    let cut = |name, change: &str, back: &str| Cut { name, change: change.to_owned(), back: back.to_owned() };
    vec![
        cut("egress dropped", "iptables -I OUTPUT -j DROP", "iptables -D OUTPUT -j DROP"),
        cut(
            "new flows dropped",
            "iptables -I OUTPUT -m conntrack --ctstate NEW -j DROP",
            "iptables -D OUTPUT -m conntrack --ctstate NEW -j DROP",
        ),
        cut(
            "route broken",
            &format!("ip route add blackhole {gateway}/32"),
            &format!("ip route del blackhole {gateway}/32"),
        ),
        cut(
            "name of the controller lost",
            "sed -i /controller.lab/d /etc/hosts",
            "cp /root/hosts /etc/hosts",
        ),
    ]
}

/// A host whose agent dials the controller by name, and takes back after the shortest time.
fn prepared(name: &str, image: Image) -> Result<Option<(Rig, Host)>> {
    let Some((rig, host)) = managed(name, image)? else { return Ok(None) };
    let gateway = rig.lab.gateway_v4();
    let config = "/etc/postern-agent/config.json";
    host.sh(&format!("echo '{gateway} controller.lab' >>/etc/hosts; cp /etc/hosts /root/hosts"))?;
    host.sh(&format!(
        "sed -i 's/^{{/{{\"limits\":{{\"guard_window_s\":{WINDOW_S}}},/; s/\"controllers\":\\[[^]]*\\]/\
         \"controllers\":[\"controller.lab:{}\"]/' {config}; systemctl restart postern-agent",
        rig.port()
    ))?;
    wait_for("the session is up by name", BACK, || is_up(&rig, &host))?;
    Ok(Some((rig, host)))
}

fn is_up(rig: &Rig, host: &Host) -> Result<bool> {
    let shown = rig.run(&["--output", "json", "hosts"])?.expect(0);
    let hosts: serde_json::Value = serde_json::from_str(shown.stdout.trim()).context("hosts as JSON")?;
    let hosts = hosts["hosts"].as_array().context("a list of hosts")?;
    Ok(hosts.iter().any(|it| it["name"] == host.name.as_str() && it["link"] == "up"))
}

/// Over a new connection: the one that is up may be established and nothing more.
fn dials_anew(rig: &Rig, host: &Host) -> Result<()> {
    host.sh("systemctl restart postern-agent")?;
    wait_for("the agent is connected anew", BACK, || {
        Ok(rig.run(&["exec", &host.name, "--", "true"])?.code == Some(0))
    })
}

fn guarded(change: &str, back: &str) -> String {
    format!(
        "  - command: {{shell: '{change}; touch /root/changed', revert: [sh, -c, '{back}; rm -f /root/changed'], timeout_s: 20}}\n"
    )
}

fn is_changed(host: &Host) -> Result<bool> {
    Ok(host.sh("test -e /root/changed && echo yes || echo no")? == "yes")
}

/// The guard's own traces.
fn nothing_left(host: &Host) -> Result<()> {
    let left = host.sh(
        "ls -A /var/lib/postern-agent/guard 2>/dev/null; find /etc/systemd/system -name 'postern-guard-*'; \
         systemctl list-units --all --plain --no-legend 'postern-guard-*'",
    )?;
    ensure!(left.is_empty(), "the guard left: {left}");
    Ok(())
}

fn ran(ended: Ended, what: &str) -> Result<String> {
    let text = said(&ended);
    ensure!(ended.code == Some(1), "{what}: exit code {:?}\n{text}", ended.code);
    Ok(text)
}

/// Whatever it is that cuts the host off: it is taken back, the host comes back, and the run says so.
fn every_cut_is_taken_back(image: Image) -> Result<()> {
    let Some((rig, host)) = prepared("guard-cuts", image)? else { return Ok(()) };
    for cut in cuts(&rig) {
        for round in 0..rounds(20) {
            let text = ran(apply(&rig, &host, &guarded(&cut.change, &cut.back), &[])?, cut.name)?;
            ensure!(text.contains("the change was taken back"), "{}, round {round}: {text}", cut.name);
            ensure!(!is_changed(&host)?, "{}, round {round}", cut.name);
            wait_for("the session is back", BACK, || is_up(&rig, &host))?;
        }
        dials_anew(&rig, &host)?;
        nothing_left(&host)?;
    }
    // What cuts nothing off stays.
    let ended = apply(&rig, &host, &guarded("true", "true"), &[])?.expect(0);
    ensure!(ended.stdout.contains("seen after it: link"), "{}", said(&ended));
    ensure!(is_changed(&host)?);
    nothing_left(&host)
}

#[test]
fn every_cut_is_taken_back_on_debian_12() -> Result<()> {
    every_cut_is_taken_back(Image::BOOKWORM)
}

#[test]
fn every_cut_is_taken_back_on_debian_13() -> Result<()> {
    every_cut_is_taken_back(Image::TRIXIE)
}

/// The same without a guard: each of them loses the host, so there is something that the guard saves it from.
#[test]
fn without_a_guard_every_cut_loses_the_host() -> Result<()> {
    let Some((rig, host)) = prepared("guard-off", Image::BOOKWORM)? else { return Ok(()) };
    for cut in cuts(&rig) {
        // Not by the link, which may be gone before the answer.
        host.sh(&cut.change)?;
        host.sh("systemctl restart postern-agent")?;
        let end = std::time::Instant::now() + Duration::from_secs(WINDOW_S + 10);
        wait_for("the session is lost", BACK, || Ok(!is_up(&rig, &host)?))?;
        while std::time::Instant::now() < end {
            ensure!(!is_up(&rig, &host)?, "{}: the host came back by itself", cut.name);
        }
        host.sh(&cut.back)?;
        dials_anew(&rig, &host)?;
    }
    Ok(())
}

/// Starts an apply that changes the host and is then held up before it can be confirmed, does this to the host in
/// the middle, and gives what the apply said.
fn in_the_window(rig: &Rig, host: &Host, then: impl FnOnce() -> Result<()>) -> Result<Ended> {
    let hold = format!("iptables -I OUTPUT -d {} -m conntrack --ctstate NEW -j DROP", rig.lab.gateway_v4());
    let open =
        format!("iptables -D OUTPUT -d {} -m conntrack --ctstate NEW -j DROP || true", rig.lab.gateway_v4());
    std::thread::scope(|scope| {
        let run = scope.spawn(|| apply(rig, host, &guarded(&hold, &open), &[]));
        wait_for("the change is made", BACK, || is_changed(host))?;
        then()?;
        run.join().map_err(|_| anyhow::anyhow!("the apply panicked"))?
    })
}

/// The agent is killed, or gone for good, before the change is confirmed.
#[test]
fn an_agent_that_dies_in_the_window() -> Result<()> {
    let Some((rig, host)) = prepared("guard-agent", Image::TRIXIE)? else { return Ok(()) };
    for round in 0..rounds(20) {
        let kill =
            || host.sh("kill -9 $(systemctl show -P MainPID postern-agent)").map(|_| ()).map_err(Into::into);
        let ended = in_the_window(&rig, &host, kill)?;
        ensure!(ended.code == Some(1), "round {round}: {}", said(&ended));
        ensure!(!is_changed(&host)?, "round {round}");
        wait_for("the session is back", BACK, || is_up(&rig, &host))?;
    }
    nothing_left(&host)?;
    for round in 0..rounds(20) {
        // No agent is there to take it back: the timer does.
        let stop = || {
            host.sh("systemctl stop postern-agent")?;
            wait_for("the timer takes it back", BACK, || Ok(!is_changed(&host)?))?;
            host.sh("systemctl start postern-agent").map(|_| ()).map_err(Into::into)
        };
        let ended = in_the_window(&rig, &host, stop)?;
        ensure!(ended.code == Some(1), "round {round}: {}", said(&ended));
        wait_for("the session is back", BACK, || is_up(&rig, &host))?;
    }
    dials_anew(&rig, &host)?;
    nothing_left(&host)
}

/// The host restarts before the change is confirmed: it comes up as it was, also where the agent does not come up.
#[test]
fn a_restart_of_the_host_in_the_window() -> Result<()> {
    let Some((rig, host)) = prepared("guard-boot", Image::BOOKWORM)? else { return Ok(()) };
    for round in 0..rounds(5) {
        let with_agent = round % 2 == 0;
        let boot = || {
            if !with_agent {
                host.sh("systemctl disable postern-agent")?;
            }
            host.reboot()?;
            host.wait_booted(BACK)?;
            wait_for("the boot takes it back", BACK, || Ok(!is_changed(&host)?))?;
            host.sh("systemctl enable --now postern-agent").map(|_| ()).map_err(Into::into)
        };
        let ended = in_the_window(&rig, &host, boot)?;
        ensure!(ended.code == Some(1), "round {round}: {}", said(&ended));
        wait_for("the session is back", BACK, || is_up(&rig, &host))?;
        nothing_left(&host)?;
    }
    Ok(())
}

/// What is put in force again is restarted by a service whose end it must not wait for: sshd's own hardening, taken
/// back by the timer with no agent there.
#[test]
fn the_timer_takes_back_what_sshd_was_told() -> Result<()> {
    let Some((rig, host)) = prepared("guard-sshd", Image::TRIXIE)? else { return Ok(()) };
    host.sh("useradd -m ada && mkdir -p /home/ada/.ssh && cp /root/.ssh/authorized_keys /home/ada/.ssh/ && chown -R ada: /home/ada")?;
    let config =
        || Ok(host.sh("test -e /etc/ssh/sshd_config.d/00-postern.conf && echo yes || echo no")? == "yes");
    // The controller cannot be reached anew once sshd was told, so nothing is confirmed.
    let gateway = rig.lab.gateway_v4();
    let ended = std::thread::scope(|scope| -> Result<Ended> {
        let run = scope.spawn(|| apply(&rig, &host, "  - sshd: {users: [ada]}\n", &[]));
        wait_for("sshd is told", BACK, config)?;
        host.sh(&format!("iptables -I OUTPUT -d {gateway} -j DROP; systemctl stop postern-agent"))?;
        wait_for("the timer takes it back", BACK, || Ok(!config()?))?;
        // It is over, and not begun again and again.
        wait_for("the guard is over", Duration::from_secs(20), || Ok(guard_units(&host)?.is_empty()))?;
        ensure!(host.sh("systemctl is-active ssh")? == "active");
        host.sh(&format!("iptables -D OUTPUT -d {gateway} -j DROP"))?;
        ensure!(host.ssh("root").arg("true").status()?.success(), "root does not get in as before");
        host.sh("systemctl start postern-agent")?;
        run.join().map_err(|_| anyhow::anyhow!("the apply panicked"))?
    })?;
    // The agent that comes back tries it again, and now it can be confirmed.
    let text = said(&ended);
    ensure!(ended.code == Some(0) && text.contains("cut off since the agent was restarted"), "{text}");
    ensure!(config()? && !host.ssh("root").arg("true").status()?.success(), "{text}");
    nothing_left(&host)
}

fn guard_units(host: &Host) -> Result<String> {
    Ok(host.sh("find /etc/systemd/system -name 'postern-guard-*'")?)
}

/// The controller is gone before: nothing is begun until it is back. In the middle: it is taken back. After: it
/// stays.
#[test]
fn a_controller_that_is_gone() -> Result<()> {
    let Some((mut rig, host)) = prepared("guard-control", Image::TRIXIE)? else { return Ok(()) };
    for round in 0..rounds(20) {
        host.sh("rm -f /root/changed /root/begun /root/go")?;
        let wait =
            "  - command: {shell: 'touch /root/begun; while ! test -e /root/go; do sleep 0.1; done'}\n";
        let resources = format!("{wait}{}", guarded("true", "true"));
        let began = || Ok(host.sh("test -e /root/begun && echo yes || true")? == "yes");
        let mut applying = start(&rig, &host, &resources)?;
        wait_for("the run begins", BACK, began)?;
        alone(&mut rig, &mut applying)?;
        host.sh("touch /root/go")?;
        let end = std::time::Instant::now() + Duration::from_secs(4);
        while std::time::Instant::now() < end {
            ensure!(!is_changed(&host)?, "round {round}: changed with nobody there to confirm it");
        }
        rig.serve()?;
        wait_for("it is changed once the controller is back", BACK, || is_changed(&host))?;
        wait_for("and confirmed", BACK, || Ok(nothing_left(&host).is_ok()))?;
        ensure!(is_changed(&host)?, "round {round}");

        // In the middle.
        host.sh("rm -f /root/changed")?;
        let hold = "sleep 2";
        let mut applying = start(&rig, &host, &guarded(&format!("touch /root/changed; {hold}"), "true"))?;
        wait_for("the change is made", BACK, || is_changed(&host))?;
        alone(&mut rig, &mut applying)?;
        wait_for("it is taken back", BACK, || Ok(!is_changed(&host)?))?;
        rig.serve()?;
        wait_for("the session is back", BACK, || is_up(&rig, &host))?;

        // After.
        apply(&rig, &host, &guarded("true", "true"), &[])?.expect(0);
        rig.kill_daemon()?;
        let end = std::time::Instant::now() + Duration::from_secs(2);
        while std::time::Instant::now() < end {
            ensure!(is_changed(&host)?, "round {round}: what was confirmed was taken back");
        }
        rig.serve()?;
        wait_for("the session is back", BACK, || is_up(&rig, &host))?;
    }
    nothing_left(&host)
}

/// Neither a controller nor a command that would start one.
fn alone(rig: &mut Rig, applying: &mut std::process::Child) -> Result<()> {
    applying.kill().context("kill postern apply")?;
    applying.wait().context("wait for postern apply")?;
    rig.kill_daemon()
}

/// An apply that nobody waits for.
fn start(rig: &Rig, host: &Host, resources: &str) -> Result<std::process::Child> {
    let profile = rig.state_dir().join("lab.yaml");
    std::fs::write(&profile, format!("name: lab\nresources:\n{resources}")).context("write a profile")?;
    let profile = profile.display().to_string();
    let mut command = rig.command(&["apply", &profile, "-H", &host.name]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command.spawn().context("start postern apply")
}
