//! `exec true` through the operator's API beside `ssh HOST true` over a warm ControlMaster.
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use postern::client::{Client, UpdateKind};
use postern::daemon::socket_path;
use postern_proto::event::RunState;
use postern_proto::ids::HostId;

use postern_tests::bench::{self, Samples};
use postern_tests::lab::{Host, Image};
use postern_tests::rig::{Rig, wait_for};

/// One way, then the others, in turns of so many: what the machine does meanwhile meets all alike.
const TURN: usize = 50;
const DEADLINE: Duration = Duration::from_secs(30);
/// As `postern exec HOST -- true` sends it.
const SPEC: &[u8] = br#"{"argv":["true"]}"#;

/// Runs `count` commands each way, one after the other, prints the table, and keeps the raw samples in `dir`.
///
/// Through the API means from the call on the Unix socket to the run's end as the daemon tells it, which has then
/// committed the result to disk. ssh keeps nothing; its time holds the start of its process, as does that of
/// `postern exec`.
pub(crate) fn dispatch(image: Image, count: usize, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let rig = bench::rig()?;
    let host = rig.host("bench-dispatch", image)?;
    bench::up(&rig, &host, &[])?;
    let master = Master::start(&rig, &host)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
    let mut api = runtime.block_on(Api::connect(&rig, &host))?;

    let mut samples = Samples::new(&["operator API", "ssh, warm ControlMaster", "postern exec"]);
    for done in (0..count).step_by(TURN) {
        let turn = TURN.min(count - done);
        for _ in 0..turn {
            samples.add(0, runtime.block_on(api.exec())?);
        }
        for _ in 0..turn {
            samples.add(1, timed(master.command(&host, &["true"]))?);
        }
        // The start of a program is the greater part of it: a tenth of the samples says enough.
        for _ in 0..turn.div_ceil(10) {
            let mut command = rig.command(&["exec", &host.name, "--", "true"]);
            command.env_remove("POSTERN_AGENT_BINARY");
            samples.add(2, timed(command)?);
        }
    }
    drop(master);
    let file = bench::result_file(dir, "dispatch.csv")?;
    samples.save(&file)?;
    write!(out, "{}", samples.table())?;
    writeln!(out, "goal through the API: p50 2 ms or less, p99 10 ms or less")?;
    writeln!(out, "API / ssh: {:.2}; image {image}; raw samples in {}", samples.ratio(0, 1), file.display())?;
    host.destroy()?;
    Ok(())
}

/// The operator's side of the daemon, as the command line uses it.
struct Api {
    client: Client,
    host: HostId,
}

impl Api {
    async fn connect(rig: &Rig, host: &Host) -> Result<Api> {
        let mut client = Client::connect(&socket_path(rig.state_dir())).await?;
        let hosts = client.hosts().await?;
        let id = hosts.iter().find(|known| known.name == host.name).context("the host is not known")?.id;
        Ok(Api { client, host: id })
    }

    async fn exec(&mut self) -> Result<Duration> {
        let start = Instant::now();
        let end = tokio::time::timeout(DEADLINE, async {
            let mut updates = self.client.exec(self.host, SPEC.to_vec()).await?;
            while let Some(update) = updates.next().await? {
                if let UpdateKind::Run(run) = update.kind
                    && run.state.is_final()
                {
                    return Ok((run.state, start.elapsed()));
                }
            }
            bail!("the daemon stopped telling before the run was over")
        });
        let (state, took) = end.await.context("a command did not end")??;
        ensure!(state == RunState::Ok, "`true` ended as {}", state.as_str());
        Ok(took)
    }
}

/// An open ssh connection that others use; it ends when this is dropped.
struct Master {
    process: Child,
    control: String,
}

impl Master {
    fn start(rig: &Rig, host: &Host) -> Result<Master> {
        let control = rig.state_dir().join("control").display().to_string();
        let mut command = with_options(host, &["-M", "-N", "-S", &control]);
        let process =
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start ssh")?;
        let master = Master { process, control };
        wait_for("ssh's shared connection is there", DEADLINE, || {
            let mut check = with_options(host, &["-S", &master.control, "-O", "check"]);
            let status = check.stdout(Stdio::null()).stderr(Stdio::null()).status();
            Ok(status.context("cannot start ssh")?.success())
        })?;
        Ok(master)
    }

    fn command(&self, host: &Host, argv: &[&str]) -> Command {
        let mut command = with_options(host, &["-S", &self.control]);
        command.args(argv);
        command
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The lab's ssh command with more options, which have to stand before the target.
fn with_options(host: &Host, options: &[&str]) -> Command {
    let plain = host.ssh("root");
    let mut command = Command::new(plain.get_program());
    command.args(options).args(plain.get_args()).stdin(Stdio::null());
    command
}

/// The time of a whole process that has to succeed. Waits in the kernel, not by looking again and again, which would
/// be measured too.
fn timed(mut command: Command) -> Result<Duration> {
    let start = Instant::now();
    let output =
        command.stdout(Stdio::null()).stderr(Stdio::piped()).output().context("cannot start a command")?;
    let took = start.elapsed();
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(took)
}
