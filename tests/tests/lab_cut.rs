//! The SSH connection is cut before and after each step of a bootstrap on a real host; repeated, it converges.
#![allow(clippy::print_stdout, reason = "figures for whoever runs it with --nocapture")]

mod below_cli;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use below_cli::{Nobody, options};
use postern::client::Client;
use postern::daemon::socket_path;
use postern_installer::{BoxError, Controller, Fault, FaultMoment, SessionUp, Step, Ticket, bootstrap};
use postern_tests::lab::{Host, Image};
use postern_tests::rig::{Rig, ssh_closed, wait_for};
use tokio::sync::Mutex;

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
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut seen = Vec::new();
    for step in Step::ALL {
        let daemon = Daemon {
            client: Mutex::new(runtime.block_on(Client::connect(&socket_path(rig.state_dir())))?),
            ssh_address: format!("root@{}:22", host.v4),
            agents_dial: format!("{}:{}", rig.lab.gateway_v4(), rig.port()),
        };
        let cut = options(&rig, "root", &host, Some(Fault { step, moment }))?;
        match runtime.block_on(bootstrap(cut, &Nobody, &daemon)) {
            // Once the session is up, a lost SSH connection is no loss.
            Ok(_) if step >= Step::Session => seen.push(format!("{step}: ok")),
            Ok(_) => bail!("cut {moment:?} step {step}, and nothing was noticed"),
            Err(error) => seen.push(format!("{step}: {}", error.code().as_str())),
        }
        ssh_closed(&host)?;
        let report = runtime
            .block_on(bootstrap(options(&rig, "root", &host, None)?, &Nobody, &daemon))
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
