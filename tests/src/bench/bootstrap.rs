//! From the first SSH packet to the first task's result: `postern up` beside the same by hand, on fresh hosts.
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::stats::Samples;
use crate::lab::{Host, HostSpec, Image};
use crate::rig::{BOOT_DEADLINE, Rig, finish};

const DEADLINE: Duration = Duration::from_secs(120);
/// The task: as small as can be, so that the way to it is what is measured.
const PROFILE: &str =
    "name: first-task\nresources:\n  - command:\n      argv: [\"true\"]\n    id: first-task\n";
const UNIT: &str = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n";

/// Runs `rounds` of each way in turn, prints the table, and keeps the raw samples in `dir`.
///
/// `postern up` is measured from the start of its process to its end, which is a little more than the goal asks for;
/// the controller runs already, as on any but the first host. By hand is what a person types: `scp`, then `ssh` to
/// install, then `ssh` to start the unit and run the task. `tar` is the best a script can do over one connection.
pub fn bootstrap(image: Image, rounds: usize, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let rig = super::rig()?;
    let profile = rig.state_dir().join("first-task.yaml");
    std::fs::write(&profile, PROFILE).context("cannot write the profile")?;
    let profile = profile.display().to_string();
    let mut samples = Samples::new(&["postern up", "scp + ssh install + ssh systemctl", "tar over one ssh"]);
    for round in 0..rounds {
        for way in 0..3 {
            let host = rig.lab.make(HostSpec::new(format!("bench-{round}-{way}"), image))?;
            host.wait_ssh(BOOT_DEADLINE)?;
            host.wait_booted(BOOT_DEADLINE)?;
            let start = Instant::now();
            match way {
                0 => super::up(&rig, &host, &["--profile", &profile])?,
                1 => by_hand(&rig, &host)?,
                _ => tar(&rig, &host)?,
            }
            samples.add(way, start.elapsed());
            host.destroy()?;
        }
        writeln!(out, "round {} of {rounds}", round + 1)?;
    }
    let file = super::result_file(dir, "bootstrap.csv")?;
    samples.save(&file)?;
    write!(out, "\n{}", samples.table())?;
    writeln!(out, "postern up / by hand: {:.2} (goal 0.8 or less)", samples.ratio(0, 1))?;
    writeln!(out, "postern up / tar over one ssh: {:.2}", samples.ratio(0, 2))?;
    writeln!(out, "agent {} bytes; image {image}; raw samples in {}", size(rig.agent())?, file.display())?;
    Ok(())
}

fn size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.len())
}

fn by_hand(rig: &Rig, host: &Host) -> Result<()> {
    let mut scp = Command::new("scp");
    // The options of ssh apply; its last two arguments are -p PORT and the target, which scp spells differently.
    let ssh = host.ssh("root");
    let options: Vec<_> = ssh.get_args().collect();
    let until = options.iter().position(|arg| *arg == "-p").context("no port among the options of ssh")?;
    scp.args(&options[..until]).arg("-q").arg("-P").arg(host.ssh_port.to_string());
    scp.arg(rig.agent()).arg(format!("root@{}:/tmp/agent", host.v4)).stdin(Stdio::null());
    run(scp)?;
    let mut install = host.ssh("root");
    install.arg(format!(
        "install -m 0755 /tmp/agent /usr/local/bin/agent && rm /tmp/agent && \
         printf '{}' > /etc/systemd/system/agent.service",
        UNIT.replace('\n', "\\n")
    ));
    run(install)?;
    let mut start = host.ssh("root");
    start.arg("systemctl daemon-reload && systemctl enable -q --now agent.service && true");
    run(start)
}

fn tar(rig: &Rig, host: &Host) -> Result<()> {
    let folder = rig.state_dir().join("tar");
    let file = |path: &str| -> Result<PathBuf> {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(&folder)).context("cannot make a folder")?;
        Ok(path)
    };
    std::fs::copy(rig.agent(), file("usr/local/bin/agent")?).context("cannot copy the agent")?;
    std::fs::write(file("etc/systemd/system/agent.service")?, UNIT).context("cannot write the unit")?;
    let mut pack = Command::new("tar");
    pack.arg("-C").arg(&folder).args(["-c", "--owner=0", "--group=0", "usr", "etc"]);
    let mut pack = pack.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start tar")?;
    let mut ssh = host.ssh("root");
    ssh.arg("tar -C / -x --no-same-permissions && systemctl daemon-reload && systemctl enable -q --now agent.service && true");
    ssh.stdin(pack.stdout.take().context("tar has no output")?);
    let result = run(ssh);
    ensure!(pack.wait().context("cannot wait for tar")?.success(), "tar failed");
    result
}

fn run(command: Command) -> Result<()> {
    let shown = format!("{command:?}");
    let ended = finish(command, DEADLINE)?;
    ensure!(ended.code == Some(0), "{shown} ended with {:?}: {}", ended.code, ended.stderr);
    Ok(())
}
