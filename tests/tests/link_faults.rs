//! A controller and agents in one process, with a faulty network between them: nothing lost, nothing doubled,
//! nothing run twice.
#![allow(clippy::print_stderr, reason = "what a failed test shows")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use postern::client::{Client, Link, UpdateKind};
use postern::daemon::{self, Daemon, DaemonConfig};
use postern_agent::engine::SupervisorCommand;
use postern_agent::link::enrol::{EnrolOptions, enrol};
use postern_agent::link::{AgentOptions, Backoff, run_agent};
use postern_proto::event::{EventKind, LogBody, RunState, Stream};
use postern_proto::host::{AgentConfig, CONFIG_VERSION, exit};
use postern_proto::ids::{BootId, HostId, RunId};
use postern_tests::proxy::{Cut, Direction, FaultProxy, Faults};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon behind a fault proxy, and agents that dial the proxy.
struct Pair {
    dir: tempfile::TempDir,
    daemon: Option<Daemon>,
    proxy: FaultProxy,
}

/// One agent; dropped, it ends as by a kill.
struct Agent {
    host: HostId,
    dir: PathBuf,
    options: AgentOptions,
    task: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The agent's program, as the tests of its own crate built it.
fn supervisor() -> Result<SupervisorCommand> {
    let named = std::env::var_os("POSTERN_TEST_AGENT").map(PathBuf::from);
    let beside = std::env::current_exe()?.ancestors().nth(2).map(|dir| dir.join("postern-agent"));
    let program = named.or(beside).context("where the agent's program is")?;
    if !program.exists() {
        bail!("{} is not there: cargo build -p postern-agent", program.display());
    }
    Ok(SupervisorCommand::of(program))
}

impl Pair {
    async fn new() -> Result<Self> {
        // Shown with a test that fails.
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_test_writer();
        let _ = log.try_init();
        let dir = tempfile::tempdir()?;
        let daemon = start(dir.path(), 0).await?;
        let proxy = FaultProxy::start(daemon.local_addr()).await?;
        Ok(Self { dir, daemon: Some(daemon), proxy })
    }

    async fn client(&self) -> Result<Client> {
        Ok(Client::connect(&daemon::socket_path(&self.dir.path().join("controller"))).await?)
    }

    /// Ends the daemon as a crash would and starts it again.
    async fn restart_daemon(&mut self) -> Result<()> {
        drop(self.daemon.take());
        self.proxy.cut(Cut::Reset);
        let daemon = start(self.dir.path(), 0).await?;
        self.proxy.retarget(daemon.local_addr());
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Enrols a host over the proxy and starts its agent.
    async fn agent(&self, name: &str) -> Result<Agent> {
        let mut client = self.client().await?;
        let info = client.info().await?;
        let (host, token) = client.prepare_host(format!("root@{name}:22"), Some(name.into()), vec![]).await?;
        let config = AgentConfig {
            version: CONFIG_VERSION,
            host_id: host.id,
            controllers: vec![self.proxy.addr().to_string()],
            server_name: info.server_name,
            server_ca_pem: info.server_ca_pem,
            proxy: None,
            temporary_route: None,
            limits: Default::default(),
        };
        let state_dir = self.dir.path().join(name);
        let boot = BootId::generate();
        let mut options = AgentOptions::new(config.clone(), state_dir.clone(), boot, supervisor()?);
        options.timing.backoff = Backoff { base: Duration::from_millis(20), cap: Duration::from_millis(200) };
        options.keep_alive.interval = Duration::from_millis(500);
        options.keep_alive.timeout = Duration::from_millis(500);
        let enrolment = EnrolOptions {
            config,
            state_dir,
            proxy_env: options.proxy_env.clone(),
            names: options.names.clone(),
            clock: options.clock.clone(),
            limits: options.dial,
        };
        let (code, report) = enrol(&enrolment, &token).await;
        if code != exit::OK {
            bail!("enrolment failed: {report:?}");
        }
        let agent = Agent::start(host.id, options);
        self.wait_up(&agent).await?;
        Ok(agent)
    }

    async fn wait_up(&self, agent: &Agent) -> Result<()> {
        match self.client().await?.wait_for_session(agent.host, PATIENCE).await? {
            Ok(_) => Ok(()),
            Err(last) => bail!("the session did not come up: {last:?}"),
        }
    }

    async fn exec(&self, agent: &Agent, script: &str) -> Result<RunId> {
        let spec = serde_json::json!({ "argv": ["sh", "-c", script] });
        let mut updates = self.client().await?.exec(agent.host, serde_json::to_vec(&spec)?).await?;
        while let Some(update) = updates.next().await? {
            if let UpdateKind::Run(run) = update.kind {
                return Ok(run.id);
            }
        }
        bail!("no run was started")
    }

    /// Everything the store has of a run once it is over, put together and checked for order.
    async fn end_of(&self, run: RunId) -> Result<Ended> {
        tokio::time::timeout(PATIENCE, self.follow_to_end(run)).await.context("the run does not end")?
    }

    async fn follow_to_end(&self, run: RunId) -> Result<Ended> {
        let mut updates = self.client().await?.follow(run, 0).await?;
        let mut ended = Ended::default();
        let (mut events, mut frames) = (0, 0);
        while let Some(update) = updates.next().await? {
            match update.kind {
                UpdateKind::Event(event) => {
                    events += 1;
                    assert_eq!(event.seq, events, "events are contiguous");
                    match event.kind {
                        EventKind::Finished { state, .. } => ended.state = Some(state),
                        EventKind::StepStarted { .. } => ended.steps += 1,
                        EventKind::StepFinished { frames: said, .. } => {
                            assert_eq!(said, frames, "frames of the step")
                        }
                        _ => {}
                    }
                }
                UpdateKind::Log(frame) => {
                    assert_eq!(frame.frame_no, frames, "frames are contiguous");
                    frames += 1;
                    let LogBody::Data(data) = frame.body else { bail!("output was dropped") };
                    let stream = match frame.stream {
                        Stream::Stdout => &mut ended.stdout,
                        Stream::Stderr => &mut ended.stderr,
                    };
                    assert_eq!(frame.offset, stream.len() as u64, "offsets are contiguous");
                    stream.extend(data);
                }
                UpdateKind::Run(_) => {}
            }
        }
        Ok(ended)
    }
}

#[derive(Default)]
struct Ended {
    state: Option<RunState>,
    steps: u32,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

async fn start(dir: &Path, port: u16) -> Result<Daemon> {
    let state = dir.join("controller");
    if !state.exists() {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().mode(0o700).create(&state)?;
    }
    let mut config = DaemonConfig::new(state, ([127, 0, 0, 1], port).into());
    config.limits.probe = Duration::from_millis(500);
    Ok(daemon::start(config).await?)
}

impl Agent {
    fn start(host: HostId, options: AgentOptions) -> Self {
        let task = spawn(options.clone());
        Self { host, dir: options.state_dir.clone(), options, task }
    }

    /// As after a kill -9: nothing is told to anybody, and a new process opens the state.
    async fn kill_and_restart(&mut self) -> Result<()> {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.task = spawn(self.options.clone());
        Ok(())
    }
}

fn spawn(options: AgentOptions) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = run_agent(options, CancellationToken::new()).await {
            // What a test then misses says the rest.
            eprintln!("an agent ended: {error:?}");
        }
    })
}

fn numbered(count: u32) -> (String, Vec<u8>) {
    let script = format!("i=0; while [ $i -lt {count} ]; do echo line $i; i=$((i+1)); done");
    (script, (0..count).flat_map(|i| format!("line {i}\n").into_bytes()).collect())
}

/// A small deterministic sequence, so that a failure can be repeated.
fn dice(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_35_37_cut_anywhere_in_either_direction_the_log_is_whole() -> Result<()> {
    let pair = Pair::new().await?;
    let agent = pair.agent("cut").await?;
    let (script, want) = numbered(20_000);
    let mut random = 7;
    // On a busy machine fewer connections come up in a round to be cut: then it takes more rounds.
    let enough = |round| round >= 12 && (pair.proxy.counters().cut > 10 || round >= 40);
    for round in (0..).take_while(|round| !enough(*round)) {
        let run = pair.exec(&agent, &script).await?;
        for _ in 0..4 {
            let (direction, most) = if dice(&mut random).is_multiple_of(2) {
                (Direction::Up, 60_000)
            } else {
                (Direction::Down, 3_000)
            };
            let how = if dice(&mut random).is_multiple_of(2) { Cut::Reset } else { Cut::Fin };
            pair.proxy.cut_after(direction, dice(&mut random) % most, how);
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        pair.proxy.heal().await?;
        tracing::info!(round, %run, "healed");
        let ended = pair.end_of(run).await.with_context(|| format!("round {round}"))?;
        assert_eq!(ended.state, Some(RunState::Ok), "round {round}");
        assert!(ended.stdout == want, "round {round}: {} bytes of {}", ended.stdout.len(), want.len());
        assert_eq!(ended.steps, 1, "round {round}: ran once");
    }
    assert!(pair.proxy.counters().cut > 10, "the proxy did cut: {:?}", pair.proxy.counters());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_41_a_half_open_link_is_noticed_and_made_anew() -> Result<()> {
    let pair = Pair::new().await?;
    let agent = pair.agent("half").await?;
    let (script, want) = numbered(5_000);
    // Busy: the run is going on when nothing comes through any more. Idle: nothing is.
    for busy in [true, false] {
        let run = if busy { Some(pair.exec(&agent, &script).await?) } else { None };
        pair.proxy.set(Faults::black_hole()).await?;
        let before = pair.proxy.counters().accepted;
        let end = tokio::time::Instant::now() + PATIENCE;
        while pair.proxy.counters().accepted == before {
            if tokio::time::Instant::now() > end {
                bail!("the agent did not notice in {PATIENCE:?} (busy: {busy})");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        pair.proxy.heal().await?;
        let run = match run {
            Some(run) => run,
            None => pair.exec(&agent, &script).await?,
        };
        let ended = pair.end_of(run).await?;
        assert!(ended.stdout == want && ended.steps == 1, "busy: {busy}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_35_the_daemon_crashes_again_and_again_in_mid_run() -> Result<()> {
    let mut pair = Pair::new().await?;
    let agent = pair.agent("crash").await?;
    let script = "i=0; while [ $i -lt 300 ]; do echo line $i; echo err $i >&2; i=$((i+1)); sleep 0.005; done";
    let run = pair.exec(&agent, script).await?;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        pair.restart_daemon().await?;
    }
    let ended = pair.end_of(run).await?;
    assert_eq!(ended.state, Some(RunState::Ok));
    let want = |word: &str| (0..300).map(|i| format!("{word} {i}\n")).collect::<String>();
    assert_eq!(String::from_utf8(ended.stdout)?, want("line"));
    assert_eq!(String::from_utf8(ended.stderr)?, want("err"));
    assert_eq!(ended.steps, 1, "ran once");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_36_38_the_agent_dies_again_and_again_in_mid_run() -> Result<()> {
    let pair = Pair::new().await?;
    let mut agent = pair.agent("dies").await?;
    let mark = agent.dir.join("mark");
    let script = format!(
        "echo x >>{}; i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.005; done",
        mark.display()
    );
    let run = pair.exec(&agent, &script).await?;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        agent.kill_and_restart().await?;
    }
    let ended = pair.end_of(run).await?;
    assert_eq!(ended.state, Some(RunState::Ok));
    let want: String = (0..300).map(|i| format!("line {i}\n")).collect();
    assert_eq!(String::from_utf8(ended.stdout)?, want);
    assert_eq!(std::fs::read_to_string(mark)?, "x\n", "ran once");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_44_a_command_for_a_host_that_is_away_waits_for_it() -> Result<()> {
    let pair = Pair::new().await?;
    let agent = pair.agent("away").await?;
    pair.proxy.set(Faults::refuse()).await?;
    pair.proxy.cut(Cut::Reset);
    let run = pair.exec(&agent, "echo here").await?;
    pair.proxy.heal().await?;
    let ended = pair.end_of(run).await?;
    assert_eq!((ended.stdout.as_slice(), ended.steps), (&b"here\n"[..], 1));
    Ok(())
}

/// A copied disk: two agents with one identity at once. Neither may pass for the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_43_a_clone_quarantines_both() -> Result<()> {
    let pair = Pair::new().await?;
    let agent = pair.agent("twin").await?;
    let copy = pair.dir.path().join("copy");
    let status = std::process::Command::new("cp").arg("-a").arg(&agent.dir).arg(&copy).status()?;
    assert!(status.success());
    let mut options =
        AgentOptions::new(agent.options.config.clone(), copy, BootId::generate(), supervisor()?);
    options.timing = agent.options.timing;
    let _twin = Agent::start(agent.host, options);
    let mut client = pair.client().await?;
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let hosts = client.hosts().await?;
        let host = hosts.iter().find(|host| host.id == agent.host).context("the host")?;
        if host.link == Link::Quarantined {
            break;
        }
        if tokio::time::Instant::now() > end {
            bail!("not quarantined: {host:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // And nothing is run on either.
    let run = pair.exec(&agent, "echo which one").await;
    if let Ok(run) = run {
        let ended = tokio::time::timeout(Duration::from_secs(2), pair.follow_to_end(run)).await;
        assert!(ended.is_err() || ended.is_ok_and(|ended| ended.is_ok_and(|ended| ended.steps == 0)));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_agents_at_once() -> Result<()> {
    let pair = Pair::new().await?;
    let mut agents = Vec::new();
    for n in 0..20 {
        agents.push(pair.agent(&format!("many-{n}")).await?);
    }
    let mut runs = Vec::new();
    for agent in &agents {
        runs.push(pair.exec(agent, &format!("echo {}", agent.host)).await?);
    }
    for (agent, run) in agents.iter().zip(runs) {
        let ended = pair.end_of(run).await?;
        assert_eq!(String::from_utf8(ended.stdout)?, format!("{}\n", agent.host));
    }
    Ok(())
}
