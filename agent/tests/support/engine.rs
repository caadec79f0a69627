//! An engine on a directory of its own, driven without a controller.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use postern_agent::engine::{
    self, Dispatch, Engine, EngineConfig, EngineError, Outbox, Outgoing, SupervisorCommand,
};
use postern_agent::sys::Sys;
use postern_proto::event::{
    EventKind, LogBody, LogFrame, Outcome, RunEvent, RunOffset, RunState, StepId, Stream,
};
use postern_proto::ids::{BootId, PlanHash, RunId};
use postern_proto::plan::{PLAN_SCHEMA, Plan, PlannedResource, Terms};
use serde_json::json;
use tokio::task::JoinHandle;

pub(crate) const BOOT: &str = "0192f0c4-0000-4000-8000-000000000001";
pub(crate) const NEXT_BOOT: &str = "0192f0c4-0000-4000-8000-000000000002";
/// No test waits longer for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A host in a directory: state in `state`, what resources see in `root`.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) boot: BootId,
    pub(crate) tune: fn(&mut EngineConfig),
    next_seq: u64,
    last_run: Option<RunId>,
}

/// An engine at work.
pub(crate) struct Work {
    pub(crate) engine: Engine,
    pub(crate) driver: JoinHandle<Result<(), EngineError>>,
}

impl Host {
    pub(crate) fn new() -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        for path in ["etc", "tmp"] {
            std::fs::create_dir_all(root.join(path)).unwrap();
        }
        let meta = std::fs::metadata(&root).unwrap();
        std::fs::write(root.join("etc/passwd"), format!("me:x:{}:{}::/:/bin/sh\n", meta.uid(), meta.gid()))
            .unwrap();
        std::fs::write(root.join("etc/group"), format!("us:x:{}:\n", meta.gid())).unwrap();
        Self { dir, boot: BOOT.parse().unwrap(), tune: |_| {}, next_seq: 1, last_run: None }
    }

    pub(crate) fn tuned(tune: fn(&mut EngineConfig)) -> Self {
        Self { tune, ..Self::new() }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A path outside of the root, for commands, which see the real file system.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn config(&self) -> EngineConfig {
        let supervisor = SupervisorCommand::of(PathBuf::from(supervisor()));
        let mut config = EngineConfig::new(self.state(), self.boot, supervisor);
        let path = format!("{}:{}", self.path("bin"), Sys::host().path_env());
        config.sys = Sys::rooted(self.root(), path);
        (self.tune)(&mut config);
        config
    }

    pub(crate) fn open(&self) -> Work {
        let (engine, driver) = engine::open(self.config()).unwrap();
        Work { engine, driver: tokio::spawn(driver) }
    }

    pub(crate) fn dispatch(&mut self, resources: &[(&str, &str, serde_json::Value)]) -> Dispatch {
        let resources = resources
            .iter()
            .map(|(name, kind, spec)| PlannedResource {
                address: format!("t:{kind}:{name}").parse().unwrap(),
                kind: (*kind).to_owned(),
                schema: 1,
                spec: spec.clone(),
                needs: None,
            })
            .collect();
        let (plan, hash) = Plan { schema: PLAN_SCHEMA, resources }.to_bytes().unwrap();
        let seq = self.next_seq;
        self.next_seq += 1;
        let run = RunId::generate();
        self.last_run = Some(run);
        Dispatch {
            seq,
            run,
            plan: Bytes::from(plan),
            hash,
            epoch: 0,
            terms: Default::default(),
            expired: false,
        }
    }

    /// Puts a script in the place of one of the host's programs.
    pub(crate) fn fake(&self, program: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path(&format!("bin/{program}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The same plan as another run.
    pub(crate) fn again(&mut self, of: &Dispatch, terms: Terms) -> Dispatch {
        let seq = self.next_seq;
        self.next_seq += 1;
        let run = RunId::generate();
        self.last_run = Some(run);
        Dispatch { seq, run, terms, ..of.clone() }
    }

    /// A run that takes back what another did.
    pub(crate) fn undo(&mut self, of: &Dispatch) -> Dispatch {
        self.again(of, Terms { undo_of: Some(of.run), ..Terms::default() })
    }

    /// The same with other needs, by the names of the resources.
    pub(crate) fn needing(&mut self, of: &Dispatch, needs: &[(&str, &[&str])]) -> Dispatch {
        let mut plan: Plan = serde_json::from_slice(&of.plan).unwrap();
        let named = |plan: &Plan, name: &str| {
            let all = plan.resources.iter().map(|planned| planned.address.clone());
            all.clone().find(|address| address.as_str().ends_with(&format!(":{name}"))).unwrap()
        };
        for (name, on) in needs {
            let (address, on) = (named(&plan, name), on.iter().map(|on| named(&plan, on)).collect());
            plan.resources.iter_mut().find(|planned| planned.address == address).unwrap().needs = Some(on);
        }
        let (bytes, hash) = plan.to_bytes().unwrap();
        Dispatch { plan: Bytes::from(bytes), hash, ..of.clone() }
    }

    /// The run of the dispatch that was made last.
    pub(crate) fn last_run(&self) -> RunId {
        self.last_run.unwrap()
    }

    pub(crate) fn command(&mut self, spec: serde_json::Value) -> Dispatch {
        self.dispatch(&[("c", "command", spec)])
    }

    pub(crate) fn shell(&mut self, script: &str) -> Dispatch {
        self.command(json!({ "shell": script }))
    }
}

pub(crate) fn file(path: &str, content: &str) -> serde_json::Value {
    json!({"path": path, "content": content, "owner": "me", "group": "us"})
}

impl Work {
    /// Ends the engine as a crash would: nothing is told to anyone.
    pub(crate) async fn kill(self) {
        self.driver.abort();
        let _ = self.driver.await;
        drop(self.engine);
        // The runs' tasks end at their next wait.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What one run sent, as a controller would have it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) events: Vec<RunEvent>,
    pub(crate) frames: Vec<LogFrame>,
}

impl Told {
    pub(crate) fn take(&mut self, outgoing: Outgoing) {
        match outgoing {
            Outgoing::Event(event) => {
                // Contiguous, and no step ends before all of its output is there.
                assert_eq!(event.seq, self.events.last().map_or(1, |last| last.seq + 1), "{event:?}");
                if let EventKind::StepFinished { step, frames, .. } = &event.kind {
                    assert_eq!(self.next_frame(step), *frames, "frames of {step:?} before its end");
                }
                self.events.push(event);
            }
            Outgoing::Log(frame) => {
                assert_eq!(frame.frame_no, self.next_frame(&frame.step), "frames are contiguous");
                let before: u64 =
                    self.stream_frames(&frame.step, frame.stream).map(|f| f.body.stream_bytes()).sum();
                assert_eq!(frame.offset, before, "offsets are contiguous");
                self.frames.push(frame);
            }
            Outgoing::SecretsWanted { run, secrets } => panic!("{run} wants {secrets:?}"),
        }
    }

    pub(crate) fn next_frame(&self, step: &StepId) -> u64 {
        self.frames.iter().filter(|frame| frame.step == *step).count() as u64
    }

    fn stream_frames(&self, step: &StepId, stream: Stream) -> impl Iterator<Item = &LogFrame> {
        self.frames.iter().filter(move |frame| frame.step == *step && frame.stream == stream)
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.events.last().map(|event| &event.kind), Some(EventKind::Finished { .. }))
    }

    pub(crate) fn end(&self) -> (RunState, &str) {
        match self.events.last().map(|event| &event.kind) {
            Some(EventKind::Finished { state, message }) => (*state, message),
            other => panic!("not over: {other:?}"),
        }
    }

    pub(crate) fn outcomes(&self) -> Vec<(u32, Outcome)> {
        let of = |event: &RunEvent| match &event.kind {
            EventKind::ResourceFinished { attempt, outcome, .. } => Some((*attempt, *outcome)),
            _ => None,
        };
        self.events.iter().filter_map(of).collect()
    }

    pub(crate) fn messages(&self) -> Vec<&str> {
        let of = |event: &'_ RunEvent| matches!(event.kind, EventKind::ResourceFinished { .. });
        self.events
            .iter()
            .filter(|event| of(event))
            .map(|event| match &event.kind {
                EventKind::ResourceFinished { message, .. } => message.as_str(),
                _ => "",
            })
            .collect()
    }

    pub(crate) fn steps_started(&self) -> usize {
        self.events.iter().filter(|event| matches!(event.kind, EventKind::StepStarted { .. })).count()
    }

    pub(crate) fn output(&self, stream: Stream) -> Vec<u8> {
        let data = |frame: &LogFrame| match &frame.body {
            LogBody::Data(data) => data.clone(),
            LogBody::Truncated { .. } => Vec::new(),
        };
        self.frames.iter().filter(|frame| frame.stream == stream).flat_map(data).collect()
    }

    pub(crate) fn offset(&self, run: RunId) -> RunOffset {
        let mut logs: Vec<(StepId, u64)> = Vec::new();
        for frame in &self.frames {
            match logs.iter_mut().find(|(step, _)| *step == frame.step) {
                Some((_, next)) => *next = frame.frame_no + 1,
                None => logs.push((frame.step.clone(), frame.frame_no + 1)),
            }
        }
        RunOffset { run, event_seq: self.events.len() as u64, logs }
    }
}

pub(crate) async fn next(outbox: &mut Outbox) -> Outgoing {
    tokio::time::timeout(LIMIT, outbox.next())
        .await
        .expect("something to send in time")
        .expect("a live session")
}

fn run_of(outgoing: &Outgoing) -> RunId {
    match outgoing {
        Outgoing::Event(event) => event.run,
        Outgoing::Log(frame) => frame.run,
        Outgoing::SecretsWanted { run, .. } => *run,
    }
}

/// Receives until the run is over, acking everything at once.
pub(crate) async fn to_the_end(engine: &Engine, outbox: &mut Outbox, run: RunId, told: &mut Told) {
    while !told.is_over() {
        let outgoing = next(outbox).await;
        if run_of(&outgoing) == run {
            told.take(outgoing);
            engine.acked(told.offset(run)).await;
        }
    }
}

/// Dispatches and receives all of it.
pub(crate) async fn complete(work: &Work, dispatch: Dispatch) -> Told {
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    let run = dispatch.run;
    work.engine.dispatch(dispatch).await.unwrap();
    let mut told = Told::default();
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
    told
}

/// Everything about a run, from the first event on, as a controller that has nothing would get it.
pub(crate) async fn whole(work: &Work, run: RunId) -> Told {
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    let mut told = Told::default();
    while !told.is_over() {
        let outgoing = next(&mut outbox).await;
        if run_of(&outgoing) == run {
            told.take(outgoing);
        }
    }
    told
}

/// Dispatches and receives all of it, and acks nothing.
pub(crate) async fn complete_unacked(work: &Work, dispatch: Dispatch) -> Told {
    let run = dispatch.run;
    work.engine.dispatch(dispatch).await.unwrap();
    whole(work, run).await
}

/// Rewrites the journal so that it ends after the last record that `keep` is true for: as if the power had
/// gone at that border.
pub(crate) fn cut_after(state: &Path, keep: impl Fn(&str) -> bool) {
    use postern_agent::journal::{Journal, file_disk};
    let path = state.join("journal");
    let (mut journal, payloads) = Journal::open(&path, 1 << 20, file_disk).unwrap();
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for payload in payloads {
        let records: Vec<serde_json::Value> = serde_json::from_slice(&payload).unwrap();
        let records: Vec<_> = records.into_iter().take_while(|record| keep(&record.to_string())).collect();
        if records.is_empty() {
            break;
        }
        kept.push(serde_json::to_vec(&records).unwrap());
    }
    journal.rewrite(&kept, 0).unwrap();
}

/// Waits for a state, not for a duration.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + LIMIT;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn lines(path: impl AsRef<Path>) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

pub(crate) fn hash_of(bytes: &[u8]) -> String {
    PlanHash::of(bytes).to_string()
}

/// The program that supervises; `POSTERN_SUPERVISOR` puts a release build in its place for measurements.
pub(crate) fn supervisor() -> String {
    std::env::var("POSTERN_SUPERVISOR").unwrap_or_else(|_| env!("CARGO_BIN_EXE_postern-agent").to_owned())
}
