//! Bootstraps of hosts that are not bare: an older agent, a healthy one, another controller's, one that is to go.
#![allow(clippy::print_stdout, reason = "figures for whoever runs it with --nocapture")]

mod below_cli;

use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use below_cli::{Nobody, options};
use postern::client::Client;
use postern::daemon::socket_path;
use postern_installer::{
    BootstrapError, BoxError, Code, Controller, Fault, FaultMoment, SessionUp, Step, Ticket, bootstrap,
};
use postern_proto::host::{AGENT_BINARY, AgentConfig, CONFIG_VERSION, EnrolReport, exit};
use postern_tests::lab::{Host, HostSpec, Image, Sudo, UserSpec};
use postern_tests::rig::{BOOT_DEADLINE, Rig, ssh_closed, wait_for};
use zeroize::Zeroizing;

/// How long an agent may take to be back, or its loss to be seen.
const BACK: Duration = Duration::from_secs(60);
const MAIN_PID: &str = "systemctl show -P MainPID postern-agent.service";
const ALL_OF_IT: &str = "find / -xdev \\( -path /proc -o -path /sys \\) -prune -o -iname '*postern*' -print; \
                         find /run -iname '*postern*' -print";

/// The link state that a controller shows for a host; empty where it knows none of that name.
fn link(rig: &Rig, name: &str) -> Result<String> {
    let hosts = rig.run(&["hosts", "--output", "json"])?.expect(0);
    let hosts: serde_json::Value = serde_json::from_str(&hosts.stdout)?;
    let hosts = hosts["hosts"].as_array().context("no list of hosts")?;
    let host = hosts.iter().find(|host| host["name"] == name);
    Ok(host.and_then(|host| host["link"].as_str()).unwrap_or_default().to_owned())
}

/// The controller runs a command there, or is about to be able to.
#[track_caller]
fn works(rig: &Rig, name: &str) -> Result<()> {
    wait_for(&format!("{name}'s session is up"), BACK, || Ok(link(rig, name)? == "up"))?;
    let exec = rig.run(&["exec", name, "--", "echo", "here"])?.expect(0);
    assert_eq!(exec.stdout, "here\n");
    Ok(())
}

/// Who the host is: the identity's key and host id, without what changes from start to start.
fn identity(host: &Host) -> Result<(String, String)> {
    // The second line is the first one's checksum.
    let text = host.sh("head -n 1 /var/lib/postern-agent/identity/identity.json")?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let field = |name: &str| json[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
    Ok((field("host_id")?, field("key_pem")?))
}

fn action(ended: &postern_tests::rig::Ended) -> Result<String> {
    let document = ended.stdout.lines().find(|line| line.contains("bootstrap-result"));
    let document: serde_json::Value = serde_json::from_str(document.context("no bootstrap result")?)?;
    Ok(document["action"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn an_older_agent_is_upgraded_a_healthy_one_left_alone_and_a_killed_one_comes_back() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let host = rig.host("older", Image::BOOKWORM)?;
    rig.up(&host, &[])?.expect(0);
    let (before, ours) = (identity(&host)?, host.sh(&format!("sha256sum <{AGENT_BINARY}"))?);

    // Other bytes that still run, as an older build would be.
    host.sh(&format!(
        "systemctl stop postern-agent && cp {AGENT_BINARY} /root/old && echo older >>/root/old && \
         mv /root/old {AGENT_BINARY}"
    ))?;
    let up = rig.up(&host, &["--output", "json"])?.expect(0);
    println!("upgrade took {:?}", up.took);
    assert_eq!(action(&up)?, "upgraded");
    assert_eq!(host.sh(&format!("sha256sum <{AGENT_BINARY}"))?, ours);
    assert_eq!(identity(&host)?, before, "the same host with the same key");
    works(&rig, "older")?;
    ssh_closed(&host)?;

    // And one that runs while it is replaced.
    host.sh(&format!(
        "cp {AGENT_BINARY} /root/old && echo older >>/root/old && mv /root/old {AGENT_BINARY} && \
         systemctl restart postern-agent"
    ))?;
    let up = rig.up(&host, &["--bootstrap", "--output", "json"])?.expect(0);
    assert_eq!(action(&up)?, "upgraded");
    assert_eq!(host.sh("sha256sum </proc/$(systemctl show -P MainPID postern-agent)/exe")?, ours);
    assert_eq!(identity(&host)?, before);

    // A healthy one is left alone: the same process, and nothing uploaded.
    works(&rig, "older")?;
    let look = format!("{MAIN_PID}; stat -c '%i %Y' {AGENT_BINARY} /etc/postern-agent/config.json");
    let healthy = host.sh(&look)?;
    let up = rig.up(&host, &["--bootstrap", "--output", "json"])?.expect(0);
    println!("a healthy one was left alone in {:?}", up.took);
    assert_eq!(action(&up)?, "left-alone");
    assert_eq!(host.sh(&look)?, healthy);

    // Killed, it is back by itself.
    let killed = host.sh(MAIN_PID)?;
    host.sh(&format!("kill -KILL {killed}"))?;
    wait_for("another process runs", BACK, || {
        let now = host.sh(MAIN_PID)?;
        Ok(now != "0" && now != killed)
    })?;
    works(&rig, "older")
}

/// No SFTP: the program goes through a plain channel.
#[test]
fn with_the_sftp_subsystem_off() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let host = rig.host("nosftp", Image::TRIXIE)?;
    host.sh("sed -i '/^Subsystem/d' /etc/ssh/sshd_config && systemctl restart ssh.service")?;
    host.wait_ssh(BOOT_DEADLINE)?;
    assert_eq!(
        host.sh("all=$(sshd -T) && { echo \"$all\" | grep -i ^subsystem || true; }")?,
        "",
        "SFTP is off"
    );
    let up = rig.up(&host, &[])?.expect(0);
    println!("without SFTP: {:?}", up.took);
    works(&rig, "nosftp")
}

/// T11: cloud-init holds the apt lock while `up` begins; it is waited for, and apt works afterwards. As the
/// image's own user, with sudo.
#[test]
fn trap_11_as_a_sudo_user_while_cloud_init_runs() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let host = rig.lab.make(HostSpec::new("cloudy", Image::TRIXIE_SHIPPED))?;
    assert_eq!(host.sh("ls /run/cloud-init/result.json 2>/dev/null || true")?, "", "first boot is not over");
    let up = rig.up_as("debian", &host, &["--profile", "hello", "--verbose"])?.expect(0);
    println!("as debian, while cloud-init ran: {:?}", up.took);
    // Nothing was written before cloud-init had ended.
    let ended = host.sh("stat -Lc %.9Y /run/cloud-init/result.json")?.parse::<f64>()?;
    let written = host.sh("stat -c %.9W /etc/postern-agent")?.parse::<f64>()?;
    assert!(written > ended, "the agent's directory was made at {written}, cloud-init ended at {ended}");
    assert!(up.stderr.contains("cloud-init"), "{}", up.stderr);
    assert_eq!(
        host.sh("stat -c '%U %a' /usr/local/bin/postern-agent /var/lib/postern-agent")?,
        "root 755\nroot 700"
    );
    assert_eq!(host.sh("ls -A /home/debian | grep -i postern || true")?, "", "upload leftovers");
    works(&rig, "cloudy")
}

#[test]
fn forgetting_a_host_whose_session_is_down() -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let host = rig.host("leaver", Image::BOOKWORM)?;
    rig.up(&host, &[])?.expect(0);
    host.sh("systemctl stop postern-agent")?;
    wait_for("its session is down", BACK, || Ok(link(&rig, "leaver")? == "down"))?;

    rig.run(&["host", "forget", "leaver"])?
        .expect(1)
        .says("error[not-connected]")
        .says("--ssh")
        .says("--force");
    assert_eq!(link(&rig, "leaver")?, "down", "it is still known");

    // Over SSH, everything goes.
    let key = host.private_key.display().to_string();
    let fingerprint = host.fingerprint("ssh-ed25519").context("a fingerprint")?;
    let over_ssh = ["host", "forget", "leaver", "--ssh", "--identity", &key, "--host-key", fingerprint];
    let ended = rig.run(&over_ssh)?.expect(0);
    println!("forgotten over SSH in {:?}", ended.took);
    assert_eq!(host.sh(ALL_OF_IT)?, "");
    assert_eq!(host.sh("systemctl show -P LoadState postern-agent.service")?, "not-found");
    assert_eq!(link(&rig, "leaver")?, "");

    // By force, only the record; what is still there is refused, and gives up for good.
    rig.up(&host, &[])?.expect(0);
    host.sh("systemctl stop postern-agent")?;
    wait_for("its session is down", BACK, || Ok(link(&rig, "leaver")? == "down"))?;
    rig.run(&["host", "forget", "leaver", "--force"])?.expect(0);
    assert_eq!(link(&rig, "leaver")?, "");
    assert_eq!(host.sh(&format!("test -x {AGENT_BINARY} && echo there"))?, "there");
    host.sh("systemctl start --no-block postern-agent")?;
    wait_for("the agent is told that it is revoked", BACK, || {
        Ok(host.sh("journalctl --no-pager -u postern-agent | grep -c revoked || true")? != "0")
    })?;
    // Taken over again, it is a new host.
    rig.up(&host, &[])?.expect(0);
    works(&rig, "leaver")
}

/// A host's own view of a controller, for `enrol` by hand.
fn config_for(
    rig: &Rig,
    runtime: &tokio::runtime::Runtime,
    dial: u16,
) -> Result<(AgentConfig, Zeroizing<String>)> {
    runtime.block_on(async {
        let mut client = Client::connect(&socket_path(rig.state_dir())).await?;
        let info = client.info().await?;
        let (host, token) =
            client.prepare_host("root@192.0.2.1:22".into(), Some("by-hand".into()), vec![]).await?;
        let config = AgentConfig {
            version: CONFIG_VERSION,
            host_id: host.id,
            controllers: vec![format!("{}:{dial}", rig.lab.gateway_v4())],
            server_name: info.server_name,
            server_ca_pem: info.server_ca_pem,
            proxy: None,
            temporary_route: None,
            limits: Default::default(),
        };
        Ok((config, token))
    })
}

/// `postern-agent enrol` on the host with this configuration; its exit code and report.
fn enrol(host: &Host, config: &AgentConfig, state: &str, token: &str) -> Result<(Option<i32>, EnrolReport)> {
    let write = ["sh", "-c", "umask 077; cat >/root/config.json"];
    host.exec_with(&write, serde_json::to_string(config)?.as_bytes(), BACK)?.ok()?;
    let command = ["/root/agent", "enrol", "--config", "/root/config.json", "--state-dir", state];
    let output = host.exec_with(&command, format!("{token}\n").as_bytes(), BACK)?;
    let report = serde_json::from_str(&output.text()).with_context(|| output.error_text())?;
    Ok((output.status.code(), report))
}

#[test]
fn a_used_token_and_a_foreign_certificate() -> Result<()> {
    let (Some(mut rig), Some(mut other)) = (Rig::open(), Rig::open()) else { return Ok(()) };
    rig.serve()?;
    other.serve()?;
    rig.lab.allow_port(other.port())?;
    let host = rig.host("hand", Image::BOOKWORM)?;
    std::fs::copy(rig.agent(), host.root_dir.join("root/agent"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;

    let (config, token) = config_for(&rig, &runtime, rig.port())?;
    let (code, report) = enrol(&host, &config, "/root/one", &token)?;
    assert_eq!((code, report.host_id), (Some(exit::OK), Some(config.host_id)), "{report:?}");
    let (code, report) = enrol(&host, &config, "/root/two", &token)?;
    assert_eq!(code, Some(exit::REFUSED), "{report:?}");
    assert!(report.error.contains("used already"), "{report:?}");
    assert_eq!(host.sh("find /root/two -type f 2>/dev/null || true")?, "", "no identity from a refusal");
    // The same key again is the same host, whose answer may have been lost.
    assert_eq!(enrol(&host, &config, "/root/one", &token)?.0, Some(exit::OK));

    // Another controller at the address: it is not told the token.
    let (config, token) = config_for(&rig, &runtime, other.port())?;
    let (code, report) = enrol(&host, &config, "/root/three", &token)?;
    assert_eq!(code, Some(exit::NOT_THE_CONTROLLER), "{report:?}");
    let address = &config.controllers[0];
    assert!(report.tried.iter().any(|tried| &tried.address == address), "{report:?}");
    let ours = format!("{}:{}", rig.lab.gateway_v4(), rig.port());
    let ours = AgentConfig { controllers: vec![ours], ..config.clone() };
    assert_eq!(enrol(&host, &ours, "/root/three", &token)?.0, Some(exit::OK), "the token is still good");

    // The same through the command line.
    host.sh("rm -rf /root/agent /root/config.json /root/one /root/two /root/three")?;
    let foreign = rig.up(&host, &["--controller", address, "--no-temporary-route"])?;
    let foreign = foreign.expect(1).says("error[not-the-controller]").says(address).says("hint:");
    println!("{}", foreign.stderr);
    assert_eq!(host.sh(ALL_OF_IT)?, "", "left on the host");
    Ok(())
}

/// A controller whose token may be wrong and whose host is not waited for: what it comes to is seen from outside.
struct Hasty {
    ticket: AgentConfig,
    token: Zeroizing<String>,
}

#[async_trait]
impl Controller for Hasty {
    async fn ticket(&self) -> Result<Ticket, BoxError> {
        let AgentConfig { host_id, controllers, server_name, server_ca_pem, proxy, .. } = self.ticket.clone();
        Ok(Ticket { host_id, token: self.token.clone(), controllers, server_name, server_ca_pem, proxy })
    }

    async fn session_up(&self, _: Duration) -> Result<SessionUp, BoxError> {
        Err("not looked for".into())
    }
}

/// A bootstrap below the command line, which ends in an error.
fn hasty(rig: &Rig, user: &str, host: &Host, hasty: Hasty, fault: Option<Fault>) -> Result<BootstrapError> {
    let options = options(rig, user, host, fault)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(bootstrap(options, &Nobody, &hasty)).err().context("it went through")
}

/// Another controller takes a host over: the agent that runs there gives way, and is never lost on the way.
fn move_a_host(user: &str, spec: HostSpec) -> Result<()> {
    let (Some(mut first), Some(mut second)) = (Rig::open(), Rig::open()) else { return Ok(()) };
    first.serve()?;
    second.serve()?;
    let host = first.host_with(spec)?;
    let config = "cat /etc/postern-agent/config.json";
    first.up_as(user, &host, &[])?.expect(0);
    works(&first, "mover")?;
    let (pid, firsts) = (host.sh(MAIN_PID)?, host.sh(config)?);

    // The second is out of reach: found out while the agent goes on, which is not even stopped.
    let ended = second.up_as(user, &host, &["--no-temporary-route"])?.expect(1);
    ended.says("error[controller-unreachable]");
    assert_eq!((host.sh(MAIN_PID)?, host.sh(config)?), (pid.clone(), firsts.clone()));
    works(&first, "mover")?;

    first.lab.allow_port(second.port())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (mut ticket, _) = config_for(&second, &runtime, second.port())?;
    ticket.controllers = vec![format!("{}:{}", first.lab.gateway_v4(), second.port())];
    let wrong = || Hasty { ticket: ticket.clone(), token: Zeroizing::new("wrong".into()) };

    // SSH is cut before it comes to that: the agent was not touched.
    let cut = Fault { step: Step::Install, moment: FaultMoment::After };
    let error = hasty(&second, user, &host, wrong(), Some(cut))?;
    assert_eq!(error.code(), Code::ConnectionCut, "{error}");
    ssh_closed(&host)?;
    assert_eq!((host.sh(MAIN_PID)?, host.sh(config)?), (pid.clone(), firsts.clone()));

    // The second refuses: the agent had to stop for it, and is back as it was.
    let error = hasty(&second, user, &host, wrong(), None)?;
    assert_eq!((error.code(), error.step()), (Code::EnrolRefused, Some(Step::Enrol)), "{error}");
    works(&first, "mover")?;
    assert_ne!(host.sh(MAIN_PID)?, pid, "it had been stopped");
    assert_eq!(host.sh(config)?, firsts);
    second.run(&["host", "forget", "by-hand", "--force"])?.expect(0);

    // The real thing. The first sees its session go, and what it had there is set aside.
    let up = second.up_as(user, &host, &["--output", "json"])?.expect(0);
    println!("moved to the second controller in {:?}", up.took);
    assert_eq!(action(&up)?, "installed");
    works(&second, "mover")?;
    wait_for("the first sees it go", BACK, || Ok(link(&first, "mover")? == "down"))?;
    assert_ne!(host.sh(config)?, firsts);
    assert_eq!(host.sh("pgrep -xc postern-agent")?, "1", "one agent runs");
    assert_eq!(host.sh("ls -d /var/lib/postern-agent/aside-* | wc -l")?, "1");
    ssh_closed(&host)?;

    // Back again, with SSH cut once the enrolment is done: no way back is left, so the host goes on alone.
    let (ticket, token) = runtime.block_on(async {
        let mut client = Client::connect(&socket_path(first.state_dir())).await?;
        let info = client.info().await?;
        let (found, token) = client.prepare_host(format!("{user}@{}:22", host.v4), None, vec![]).await?;
        let firsts: AgentConfig = serde_json::from_str(&firsts)?;
        assert_eq!(found.id, firsts.host_id, "known by its address");
        anyhow::Ok((AgentConfig { server_ca_pem: info.server_ca_pem, ..firsts }, token))
    })?;
    let cut = Fault { step: Step::Enrol, moment: FaultMoment::After };
    let error = hasty(&first, user, &host, Hasty { ticket, token }, Some(cut))?;
    println!("cut after enrolling: {error}");
    works(&first, "mover")?;
    wait_for("the second sees it go", BACK, || Ok(link(&second, "mover")? == "down"))?;
    assert_eq!(host.sh("pgrep -xc postern-agent")?, "1", "one agent runs");
    Ok(())
}

#[test]
fn a_host_moves_to_another_controller() -> Result<()> {
    move_a_host("root", HostSpec::new("mover", Image::BOOKWORM))
}

/// sudo stands between the script and the connection, and has its own mind about signals.
#[test]
fn a_host_moves_to_another_controller_by_sudo() -> Result<()> {
    let mut spec = HostSpec::new("mover", Image::TRIXIE);
    spec.users = vec![UserSpec { name: "op".into(), sudo: Sudo::NoPassword, ..UserSpec::default() }];
    move_a_host("op", spec)
}
