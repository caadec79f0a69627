//! The programs that are measured beside: installed once, in an environment of their own, and told about the host.
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::record::{Record, first_line};
use super::site::{Site, write_known_hosts};
use super::timed::timed;
use crate::lab::{Host, venv};

const ANSIBLE: &str = "2.19.14";
const PYINFRA: &str = "3.10.0";
const DEPLOY: &str = include_str!("../../bench/no-change/deploy.py");
/// Python and what it needs is fetched.
const INSTALL_DEADLINE: Duration = Duration::from_secs(900);
const SHORT: Duration = Duration::from_secs(30);

/// Ansible and pyinfra in a virtual environment.
#[derive(Clone)]
pub(super) struct Tools {
    bin: PathBuf,
}

impl Tools {
    /// Makes the environment below `dir`, unless it is there with these versions.
    pub(super) fn ready(dir: &Path, out: &mut dyn Write) -> Result<Tools> {
        writeln!(out, "ansible-core {ANSIBLE} and pyinfra {PYINFRA} are looked for in {}", dir.display())?;
        let packages = [format!("ansible-core=={ANSIBLE}"), format!("pyinfra=={PYINFRA}")];
        let bin = venv(dir, "baselines", &packages.each_ref().map(String::as_str))
            .context("Python's venv is needed (Debian: python3-venv)")?
            .map_err(anyhow::Error::msg)?;
        Ok(Tools { bin })
    }

    /// Notes their versions, as they say them.
    pub(super) fn note(&self, record: &mut Record) -> Result<()> {
        for (name, program) in [("ansible-core", "ansible"), ("pyinfra", "pyinfra"), ("python3", "python3")] {
            let mut command = Command::new(self.bin.join(program));
            command.arg("--version");
            record.version(name, &first_line(command)?);
        }
        Ok(())
    }

    /// One of the programs in `work`, its home as well: it sees no settings of the caller's.
    fn command(&self, program: &str, work: &Path) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LANG", "C.UTF-8");
        command.env("HOME", work).current_dir(work);
        command
    }
}

/// `ansible-playbook` for one host.
pub(super) struct Ansible {
    tools: Tools,
    work: PathBuf,
}

impl Ansible {
    /// Writes the playbook and an inventory of the site's host.
    pub(super) fn at(tools: &Tools, site: &Site, playbook: &str) -> Result<Ansible> {
        Self::new(tools, &site.host, site.ssh_address, &site.work, playbook, &json!({}))
    }

    /// Writes the playbook and an inventory of a host at this address into `work`; `vars` are an object.
    pub(super) fn new(
        tools: &Tools,
        host: &Host,
        address: SocketAddr,
        work: &Path,
        playbook: &str,
        vars: &Value,
    ) -> Result<Ansible> {
        let known_hosts = work.join("known_hosts");
        write_known_hosts(&known_hosts, host, address)?;
        let options =
            format!("-F none -o IdentitiesOnly=yes -o UserKnownHostsFile={}", known_hosts.display());
        let target = json!({
            "ansible_host": address.ip().to_string(),
            "ansible_port": address.port(),
            "ansible_user": "root",
            "ansible_ssh_private_key_file": host.private_key,
            "ansible_ssh_common_args": options,
        });
        let inventory = json!({"all": {"hosts": {"target": target}, "vars": vars}});
        write(work, "hosts.json", &inventory.to_string())?;
        write(work, "playbook.yaml", playbook)?;
        Ok(Ansible { tools: tools.clone(), work: work.to_owned() })
    }

    /// Gives the host what Ansible's modules need there.
    pub(super) fn prepare_host(&self, site: &Site) -> Result<()> {
        let mut ssh = site.host.ssh("root");
        ssh.arg(
            "DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=60 \
             install --no-install-recommends python3 python3-apt",
        );
        run(ssh, INSTALL_DEADLINE).context("Python for Ansible could not be installed on the host")
    }

    /// The playbook, with pipelining and without facts; or all as it is by default.
    pub(super) fn command(&self, defaults: bool) -> Command {
        let mut command = self.tools.command("ansible-playbook", &self.work);
        command.env("ANSIBLE_PIPELINING", if defaults { "0" } else { "1" });
        command.args(["-i", "hosts.json", "playbook.yaml"]);
        if defaults {
            command.args(["--extra-vars", "facts=true"]);
        }
        command
    }

    /// Ends the connections that it keeps open for its next run, which is to be as cold as the others.
    pub(super) fn end_masters(&self, host: &Host) -> Result<()> {
        let folder = self.work.join(".ansible/cp");
        let sockets =
            std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for socket in sockets {
            let path = socket.with_context(|| format!("cannot list {}", folder.display()))?.path();
            let mut ssh = host.ssh_with("root", &[&format!("ControlPath={}", path.display())]);
            ssh.args(["-O", "exit"]);
            run(ssh, SHORT)?;
        }
        Ok(())
    }
}

/// `pyinfra` for one host.
pub(super) struct Pyinfra {
    tools: Tools,
    work: PathBuf,
}

impl Pyinfra {
    /// Writes the deploy and an inventory of the site's host.
    pub(super) fn new(tools: &Tools, site: &Site) -> Result<Pyinfra> {
        let address = json!(site.ssh_address.ip().to_string());
        let data = json!({
            "ssh_user": "root",
            "ssh_port": site.ssh_address.port(),
            "ssh_key": site.host.private_key,
            "ssh_known_hosts_file": site.known_hosts,
            "ssh_strict_host_key_checking": "yes",
            "ssh_config_file": "/dev/null",
        });
        // Texts and numbers are the same in JSON and Python.
        write(&site.work, "inventory.py", &format!("hosts = [({address}, {data})]\n"))?;
        write(&site.work, "deploy.py", DEPLOY)?;
        Ok(Pyinfra { tools: tools.clone(), work: site.work.clone() })
    }

    /// The deploy, without the look beforehand that only asks whether to go on.
    pub(super) fn command(&self) -> Command {
        let mut command = self.tools.command("pyinfra", &self.work);
        command.args(["-y", "inventory.py", "deploy.py"]);
        command
    }
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn run(command: Command, deadline: Duration) -> Result<()> {
    let shown = format!("{command:?}");
    let ended = timed(command, deadline)?;
    ensure!(ended.code == Some(0), "{shown} ended with {:?}: {}{}", ended.code, ended.stdout, ended.stderr);
    Ok(())
}
