//! The SSH connection is cut before and after each step of a bootstrap on a real host; repeated, it converges.
#![allow(clippy::print_stdout, reason = "figures for whoever runs it with --nocapture")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use postern::client::Client;
use postern::daemon::socket_path;
use postern_installer::{
    AgentBinary, BoxError, Console, Controller, Fault, FaultMoment, HostKeyPolicy, HostKeyQuestion, Options,
    Overrides, Progress, SessionUp, SshConfig, Step, Target, Ticket, bootstrap,
};
use postern_tests::lab::{Host, Image};
use postern_tests::rig::{Rig, ssh_closed, wait_for};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

/// Nobody at the terminal.
struct Nobody;

#[async_trait]
impl Console for Nobody {
    async fn confirm_host_key(&self, _: &HostKeyQuestion) -> bool {
        false
    }

    async fn secret(&self, _: &str) -> Option<Zeroizing<String>> {
        None
    }

    fn progress(&self, _: &Progress) {}
}

/// The real daemon, as `postern up` uses it.
struct Daemon {
    client: Mutex<Client>,
    ssh_address: String,
    agents_dial: String,
}

#[async_trait]
impl Controller for Daemon {
    async fn ticket(&self) -> Result<Ticket, BoxError> {
        let mut client = self.client.lock().await;
        let info = client.info().await?;
        let (host, token) = client.prepare_host(self.ssh_address.clone(), Some("cut".into()), vec![]).await?;
        Ok(Ticket {
            host_id: host.id,
            token,
            controllers: vec![self.agents_dial.clone()],
            server_name: info.server_name,
            server_ca_pem: info.server_ca_pem,
            proxy: None,
        })
    }

    async fn session_up(&self, deadline: Duration) -> Result<SessionUp, BoxError> {
        let mut client = self.client.lock().await;
        let hosts = client.hosts().await?;
        let host = hosts.iter().find(|host| host.ssh_address == self.ssh_address).ok_or("no such host")?;
        match client.wait_for_session(host.id, deadline).await? {
            Ok(host) => Ok(SessionUp { agent_version: host.agent_version, peer: Some(host.peer) }),
            Err(last) => Err(format!("the session did not come up: {last:?}").into()),
        }
    }
}

fn agent(path: PathBuf) -> Result<AgentBinary> {
    use sha2::Digest as _;
    use std::io::Write as _;
    let program = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&program)?;
    let version = std::process::Command::new(&path).arg("--version").output()?;
    let version = String::from_utf8(version.stdout)?;
    let version = version.split_whitespace().last().context("the agent's version")?.to_owned();
    Ok(AgentBinary {
        gzip: Bytes::from(gzip.finish()?),
        sha256: sha2::Sha256::digest(&program).into(),
        version,
    })
}

fn options(rig: &Rig, host: &Host, agent: &AgentBinary, fault: Option<Fault>) -> Result<Options> {
    let config = SshConfig::parse("", std::path::Path::new("/nonexistent"))?;
    let overrides =
        Overrides { local_user: "root".into(), home: "/nonexistent".into(), ..Overrides::default() };
    let target = Target::resolve(&format!("root@{}", host.v4), &config, &overrides)?;
    let agent = agent.clone();
    let mut options = Options::new(target, Arc::new(move |_| Some(agent.clone())));
    options.identity_files = vec![host.private_key.clone()];
    options.password_login = false;
    // A record of its own: addresses of the lab come back with other keys.
    let fingerprint = host.fingerprint("ssh-ed25519").context("a fingerprint")?;
    options.host_key = HostKeyPolicy {
        known_hosts_files: vec![rig.state_dir().join("known_hosts")],
        fingerprint: Some(fingerprint.into()),
    };
    options.connect_deadline = Duration::from_secs(30);
    options.fault = fault;
    Ok(options)
}

/// What is on the host after a bootstrap that went through: one agent, no leftovers, nothing others can read.
fn in_order(host: &Host) -> Result<()> {
    let strays = host.sh(
        "find / -xdev \\( -path /proc -o -path /sys -o -path /run \\) -prune -o -iname '*postern*' -print | sort",
    )?;
    let want = "/etc/postern-agent\n/etc/systemd/system/multi-user.target.wants/postern-agent.service\n\
                /etc/systemd/system/postern-agent.service\n/usr/local/bin/postern-agent\n/var/lib/postern-agent";
    assert_eq!(strays, want);
    assert_eq!(host.sh("find /var/lib/postern-agent /etc/postern-agent -perm /077")?, "");
    assert_eq!(host.sh("pgrep -xc postern-agent")?, "1", "one agent runs");
    Ok(())
}

fn cut_at_each(image: Image, moment: FaultMoment) -> Result<()> {
    let Some(mut rig) = Rig::open() else { return Ok(()) };
    rig.serve()?;
    let host = rig.host("cut", image)?;
    let agent = agent(rig.agent().to_owned())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut seen = Vec::new();
    for step in Step::ALL {
        let daemon = Daemon {
            client: Mutex::new(runtime.block_on(Client::connect(&socket_path(rig.state_dir())))?),
            ssh_address: format!("root@{}:22", host.v4),
            agents_dial: format!("{}:{}", rig.lab.gateway_v4(), rig.port()),
        };
        let cut = options(&rig, &host, &agent, Some(Fault { step, moment }))?;
        match runtime.block_on(bootstrap(cut, &Nobody, &daemon)) {
            // Once the session is up, a lost SSH connection is no loss.
            Ok(_) if step >= Step::Session => seen.push(format!("{step}: ok")),
            Ok(_) => bail!("cut {moment:?} step {step}, and nothing was noticed"),
            Err(error) => seen.push(format!("{step}: {}", error.code().as_str())),
        }
        ssh_closed(&host)?;
        let report = runtime
            .block_on(bootstrap(options(&rig, &host, &agent, None)?, &Nobody, &daemon))
            .with_context(|| format!("repeated after a cut {moment:?} step {step}"))?;
        assert!(!report.temporary_route && report.guard.is_none());
        ssh_closed(&host)?;
        in_order(&host).with_context(|| format!("after a cut {moment:?} step {step}"))?;
        let exec = rig.run(&["exec", "cut", "--", "echo", "here"])?.expect(0);
        assert_eq!(exec.stdout, "here\n");
        rig.run(&["host", "forget", "cut"])?.expect(0);
        wait_for("the agent has left", Duration::from_secs(20), || {
            Ok(host.sh("systemctl is-active postern-agent; ls /usr/local/bin || true")? == "inactive")
        })?;
    }
    println!("cut {moment:?} each step of {image}: {seen:#?}");
    Ok(())
}

#[test]
fn cut_before_each_step() -> Result<()> {
    cut_at_each(Image::BOOKWORM, FaultMoment::Before)
}

#[test]
fn cut_after_each_step() -> Result<()> {
    cut_at_each(Image::TRIXIE, FaultMoment::After)
}
