//! Runs the command line inside of a test, against a stand-in for the daemon where one is wanted.
#![allow(dead_code, reason = "each test file uses a part of it")]

mod archive;
pub(crate) mod volume;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use postern::cli::{Env, Io, run};
use postern_proto::event::{EventKind, LogBody, LogFrame, RunEvent, RunState, StepId, Stream};
use postern_proto::ids::RunId;
use postern_proto::v1;
use postern_proto::v1::operator_server::{Operator, OperatorServer};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: u8,
}

/// What a command has written so far.
#[derive(Clone, Default)]
pub(crate) struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// A command line with a home and a state directory of its own.
pub(crate) struct Shell {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) terminal: bool,
    /// What is piped in.
    pub(crate) stdin: String,
    pub(crate) program: PathBuf,
}

impl Shell {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        // A program that cannot be started: no test starts a daemon unless it means to.
        Self { dir, terminal: false, stdin: String::new(), program: "/nonexistent/postern".into() }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn file(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Ended {
        let (stdout, stderr) = (Buffer::default(), Buffer::default());
        let code = self.run_into(args, &stdout, &stderr).await;
        Ended { stdout: stdout.text(), stderr: stderr.text(), code }
    }

    /// The same, where what is written can be looked at while it goes on.
    pub(crate) async fn run_into(&self, args: &[&str], stdout: &Buffer, stderr: &Buffer) -> u8 {
        let io = Io {
            stdin: Box::new(std::io::Cursor::new(self.stdin.as_bytes().to_vec())),
            stdin_is_terminal: false,
            stdout: Box::new(stdout.clone()),
            stderr: Box::new(stderr.clone()),
            stdout_is_terminal: self.terminal,
            stderr_is_terminal: self.terminal,
        };
        let state = self.state();
        let home = self.dir.path().to_str().unwrap();
        let variables = [
            ("HOME", home),
            ("USER", "tester"),
            ("POSTERN_STATE_DIR", state.to_str().unwrap()),
            ("NO_COLOR", "1"),
        ];
        let env = Env::of(&variables, self.dir.path(), &self.program);
        let args = std::iter::once("postern").chain(args.iter().copied()).map(OsString::from);
        let ended = tokio::time::timeout(std::time::Duration::from_secs(60), run(args, env, io));
        ended.await.expect("the command ends").code()
    }
}

/// Stands in for the daemon: answers as it was told to, over a real socket. A test double, no daemon.
#[derive(Clone, Default)]
pub(crate) struct FakeOperator {
    pub(crate) hosts: Vec<v1::Host>,
    /// What a run sends, by host name; the run's own first and last updates are added.
    pub(crate) updates: Vec<v1::run_update::Kind>,
    /// How each run ends.
    pub(crate) end: Option<RunState>,
    pub(crate) message: String,
    /// The run that each run takes back.
    pub(crate) undoes: String,
    pub(crate) assigned: Vec<v1::AssignedProfile>,
    pub(crate) secrets: Vec<v1::SecretInfo>,
    /// What was asked for, in order.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    /// Ends the first stream of a run in the middle, as a daemon that restarts does.
    pub(crate) breaks: Arc<Mutex<bool>>,
    /// Sends the last update of a run, and an agent that was restarted is back, only once this is told.
    pub(crate) held: Option<Arc<tokio::sync::Notify>>,
    /// Waits so long before each update that follows a stream's first.
    pub(crate) slow: Option<std::time::Duration>,
    /// How an agent comes back; refused where there is nothing.
    pub(crate) back: Option<v1::RestartAgentResponse>,
    /// What is seen of ports, look by look; the last stays.
    pub(crate) looks: Arc<Mutex<Vec<v1::LookAtPortsResponse>>>,
    /// What the agents do with files of volumes; as with any command where there is nothing.
    pub(crate) volume: Option<volume::FakeVolume>,
}

pub(crate) fn host(name: &str, link: v1::LinkState) -> v1::Host {
    v1::Host {
        id: id_of(name),
        name: name.into(),
        ssh_address: format!("root@{name}.example:22"),
        labels: [("role".to_owned(), "web".to_owned())].into(),
        link: link.into(),
        agent_version: "0.1.0".into(),
        os_id: "debian".into(),
        os_version: "12".into(),
        arch: "x86_64".into(),
        hostname: name.into(),
        last_seen_unix_ms: 0,
        memory_mb: Some(980),
        swap_mb: Some(0),
        disk_free_mb: Some(9200),
        ..v1::Host::default()
    }
}

/// The same for the same name, so that goldens can have it.
pub(crate) fn id_of(name: &str) -> String {
    let sum = name.bytes().fold(0u32, |sum, byte| sum * 31 % 99_991 + u32::from(byte));
    format!("0199bbbb-0000-7000-8000-{sum:012}")
}

/// The one run there is.
pub(crate) fn run_id() -> RunId {
    "0199aaaa-0000-7000-8000-00000000beef".parse().unwrap()
}

pub(crate) fn step() -> StepId {
    StepId { address: "exec:command:x".parse().unwrap(), attempt: 1, step: 0 }
}

pub(crate) fn event(kind: EventKind) -> v1::run_update::Kind {
    v1::run_update::Kind::Event(RunEvent { run: run_id(), seq: 1, time_ns: 0, kind }.into())
}

pub(crate) fn output(stream: Stream, data: &[u8]) -> v1::run_update::Kind {
    let body = LogBody::Data(data.to_vec());
    let frame = LogFrame { run: run_id(), step: step(), frame_no: 0, stream, offset: 0, time_ns: 0, body };
    v1::run_update::Kind::Log(frame.into())
}

impl FakeOperator {
    /// Listens at the socket of this state directory until the test's runtime ends.
    pub(crate) fn serve(&self, state: &Path) {
        let listener = tokio::net::UnixListener::bind(postern::daemon::socket_path(state)).unwrap();
        let service = OperatorServer::new(self.clone());
        let server = tonic::transport::Server::builder();
        tokio::spawn(
            async move { server.serve_with_incoming(service, UnixListenerStream::new(listener)).await },
        );
    }

    fn note(&self, text: String) {
        self.asked.lock().unwrap().push(text);
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn run_of(&self, host: &str, state: RunState, origin: &str, check: bool) -> v1::Run {
        let name = self.hosts.iter().find(|known| known.id == host).map(|known| known.name.clone());
        v1::Run {
            id: run_id().to_string(),
            host_id: host.into(),
            host_name: name.unwrap_or_default(),
            state: v1::RunState::from(state).into(),
            origin: origin.into(),
            check,
            created_unix_ms: 1_000,
            finished_unix_ms: if state.is_final() { 3_500 } else { 0 },
            plan_sha256: vec![7; 32].into(),
            message: if state.is_final() { self.message.clone() } else { String::new() },
            undoes: self.undoes.clone(),
            ..Default::default()
        }
    }

    fn stream(&self, host: &str, origin: &str, check: bool, from: u64) -> Updates {
        let (to, stream) = tokio::sync::mpsc::channel(256);
        let end = self.end.unwrap_or(RunState::Ok);
        let mut kinds = vec![v1::run_update::Kind::Run(self.run_of(host, RunState::Running, origin, check))];
        kinds.extend(self.updates.clone());
        kinds.push(v1::run_update::Kind::Run(self.run_of(host, end, origin, check)));
        let breaks = std::mem::take(&mut *self.breaks.lock().unwrap());
        let middle = kinds.len() / 2;
        if let Some(slow) = self.slow {
            // A run that is over and is read from a slow disk.
            kinds[0] = v1::run_update::Kind::Run(self.run_of(host, end, origin, check));
            tokio::spawn(async move {
                for (cursor, kind) in kinds.into_iter().enumerate() {
                    let update = v1::RunUpdate { cursor: cursor as u64, kind: Some(kind) };
                    let _ = to.send(Ok(update)).await;
                    tokio::time::sleep(slow).await;
                }
            });
            return Response::new(ReceiverStream::new(stream));
        }
        if let Some(held) = self.held.clone() {
            tokio::spawn(async move {
                let last = kinds.len() - 1;
                for (cursor, kind) in kinds.into_iter().enumerate() {
                    if cursor == last {
                        held.notified().await;
                    }
                    let _ = to.send(Ok(v1::RunUpdate { cursor: cursor as u64, kind: Some(kind) })).await;
                }
            });
            return Response::new(ReceiverStream::new(stream));
        }
        for (cursor, kind) in kinds.into_iter().enumerate() {
            if breaks && cursor == middle {
                to.try_send(Err(Status::unavailable("the controller stops"))).unwrap();
                break;
            }
            let is_run = matches!(kind, v1::run_update::Kind::Run(_));
            if cursor as u64 > from || is_run {
                to.try_send(Ok(v1::RunUpdate { cursor: cursor as u64, kind: Some(kind) })).unwrap();
            }
        }
        Response::new(ReceiverStream::new(stream))
    }
}

type Updates = Response<ReceiverStream<Result<v1::RunUpdate, Status>>>;

#[tonic::async_trait]
impl Operator for FakeOperator {
    type WatchHostStream = ReceiverStream<Result<v1::Host, Status>>;
    type ApplyStream = ReceiverStream<Result<v1::RunUpdate, Status>>;
    type ExecStream = ReceiverStream<Result<v1::RunUpdate, Status>>;
    type FollowRunStream = ReceiverStream<Result<v1::RunUpdate, Status>>;

    type ResumeRunStream = ReceiverStream<Result<v1::RunUpdate, Status>>;
    type UndoRunStream = ReceiverStream<Result<v1::RunUpdate, Status>>;
    type BackupStream = ReceiverStream<Result<v1::BackupPiece, Status>>;

    async fn resume_run(&self, request: Request<v1::ResumeRunRequest>) -> Result<Updates, Status> {
        let run = request.into_inner().run_id;
        self.note(format!("resume {run}"));
        if self.end == Some(RunState::Ok) && self.message == "refuse" {
            return Err(Status::failed_precondition("the run is ok: there is nothing to resume"));
        }
        let host = self.hosts.first().map(|host| host.id.clone()).unwrap_or_default();
        Ok(self.stream(&host, "hello", false, 0))
    }

    async fn undo_run(&self, request: Request<v1::UndoRunRequest>) -> Result<Updates, Status> {
        let request = request.into_inner();
        self.note(format!("undo {} check={}", request.run_id, request.check));
        let host = self.hosts.first().map(|host| host.id.clone()).unwrap_or_default();
        Ok(self.stream(&host, "hello", request.check, 0))
    }

    async fn update_host(
        &self,
        request: Request<v1::UpdateHostRequest>,
    ) -> Result<Response<v1::UpdateHostResponse>, Status> {
        let change = request.into_inner();
        let mut host = self.hosts.iter().find(|host| host.id == change.host).cloned().unwrap_or_default();
        if !change.name.is_empty() {
            if self.hosts.iter().any(|host| host.name == change.name) {
                return Err(Status::already_exists(format!("another host is called {}", change.name)));
            }
            self.note(format!("rename {} {}", host.name, change.name));
            host.name = change.name;
        }
        for (what, have, set, remove) in [
            ("label", &mut host.labels, change.set_labels, change.remove_labels),
            ("set", &mut host.vars, change.set_vars, change.remove_vars),
        ] {
            if !set.is_empty() || !remove.is_empty() {
                let sorted: BTreeMap<_, _> = set.iter().collect();
                self.note(format!("{what} {sorted:?} remove {remove:?}"));
            }
            have.extend(set);
            have.retain(|key, _| !remove.contains(key));
        }
        Ok(Response::new(v1::UpdateHostResponse { host: Some(host) }))
    }

    async fn list_assigned(
        &self,
        _: Request<v1::ListAssignedRequest>,
    ) -> Result<Response<v1::ListAssignedResponse>, Status> {
        Ok(Response::new(v1::ListAssignedResponse { profiles: self.assigned.clone() }))
    }

    async fn unassign(
        &self,
        request: Request<v1::UnassignRequest>,
    ) -> Result<Response<v1::UnassignResponse>, Status> {
        self.note(format!("unassign {}", request.into_inner().profile));
        Ok(Response::new(v1::UnassignResponse {}))
    }

    async fn restart_agent(
        &self,
        _: Request<v1::RestartAgentRequest>,
    ) -> Result<Response<v1::RestartAgentResponse>, Status> {
        self.note("restart".into());
        if let Some(held) = self.held.clone() {
            held.notified().await;
        }
        match self.back.clone() {
            Some(back) => Ok(Response::new(back)),
            None => Err(Status::failed_precondition("web1: run 0199 (hello) is not over")),
        }
    }

    async fn look_at_ports(
        &self,
        request: Request<v1::LookAtPortsRequest>,
    ) -> Result<Response<v1::LookAtPortsResponse>, Status> {
        self.note(format!("look at {:?}", request.into_inner().ports));
        let mut looks = self.looks.lock().unwrap();
        let look = if looks.len() > 1 { looks.remove(0) } else { looks.first().cloned().unwrap_or_default() };
        Ok(Response::new(look))
    }

    async fn set_secret(
        &self,
        request: Request<v1::SetSecretRequest>,
    ) -> Result<Response<v1::SetSecretResponse>, Status> {
        let request = request.into_inner();
        // A test double may show what the program must not.
        self.note(format!("secret {} {:?}", request.name, String::from_utf8_lossy(&request.value)));
        Ok(Response::new(v1::SetSecretResponse { version: 3 }))
    }

    async fn list_secrets(
        &self,
        _: Request<v1::ListSecretsRequest>,
    ) -> Result<Response<v1::ListSecretsResponse>, Status> {
        Ok(Response::new(v1::ListSecretsResponse { secrets: self.secrets.clone() }))
    }

    async fn remove_secret(
        &self,
        request: Request<v1::RemoveSecretRequest>,
    ) -> Result<Response<v1::RemoveSecretResponse>, Status> {
        let name = request.into_inner().name;
        if !self.secrets.iter().any(|secret| secret.name == name) {
            return Err(Status::not_found(format!("there is no secret {name}")));
        }
        self.note(format!("remove secret {name}"));
        Ok(Response::new(v1::RemoveSecretResponse {}))
    }

    async fn backup(&self, _: Request<v1::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        let (to, stream) = tokio::sync::mpsc::channel(4);
        let whole = archive::archive(self.message != "keyless");
        let (first, rest) = whole.split_at(1000);
        to.try_send(Ok(v1::BackupPiece { data: first.to_vec().into() })).unwrap();
        match self.message.as_str() {
            "break" => to.try_send(Err(Status::internal("the disk of the state failed"))).unwrap(),
            // The end of the stream, and not of the archive.
            "half" => {}
            _ => to.try_send(Ok(v1::BackupPiece { data: rest.to_vec().into() })).unwrap(),
        }
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn info(&self, _: Request<v1::InfoRequest>) -> Result<Response<v1::InfoResponse>, Status> {
        Ok(Response::new(v1::InfoResponse { listen: "[::]:7300".into(), ..Default::default() }))
    }

    async fn prepare_host(
        &self,
        request: Request<v1::PrepareHostRequest>,
    ) -> Result<Response<v1::PrepareHostResponse>, Status> {
        let request = request.into_inner();
        self.note(format!("prepare {} {:?}", request.ssh_address, request.name));
        let host = self.hosts.iter().find(|host| host.ssh_address == request.ssh_address).cloned();
        Ok(Response::new(v1::PrepareHostResponse { host, token: "token".into() }))
    }

    async fn list_hosts(
        &self,
        _: Request<v1::ListHostsRequest>,
    ) -> Result<Response<v1::ListHostsResponse>, Status> {
        Ok(Response::new(v1::ListHostsResponse { hosts: self.hosts.clone() }))
    }

    async fn watch_host(
        &self,
        _: Request<v1::WatchHostRequest>,
    ) -> Result<Response<Self::WatchHostStream>, Status> {
        Err(Status::unimplemented("not in this stand-in"))
    }

    async fn forget_host(
        &self,
        request: Request<v1::ForgetHostRequest>,
    ) -> Result<Response<v1::ForgetHostResponse>, Status> {
        self.note(format!("forget record_only={}", request.into_inner().record_only));
        Ok(Response::new(v1::ForgetHostResponse { left_behind: vec!["/var/lib/x\u{1b}[2J".into()] }))
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Updates, Status> {
        let request = request.into_inner();
        let plan = postern_proto::plan::Plan::from_bytes(&request.plan)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut note = format!("apply {} resources check={}", plan.resources.len(), request.check);
        if request.ssh_port() != v1::SshPort::Unspecified {
            note += &format!(" ssh_port={:?}", request.ssh_port());
        }
        for approval in &request.approved {
            note += &format!(" approved {}={}", approval.address, approval.seen);
        }
        for profile in &request.assign {
            let vars: BTreeMap<_, _> = profile.vars.iter().collect();
            note += &format!(" assign {} {vars:?}", profile.name);
        }
        self.note(note);
        Ok(self.stream(&request.host, &request.origin, request.check, 0))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Result<Updates, Status> {
        let request = request.into_inner();
        if let Some(volume) = &self.volume
            && let Some((note, updates, end)) = volume.exec(&request.command_spec)
        {
            self.note(note);
            let fake = Self { updates, end: Some(end), ..self.clone() };
            return Ok(fake.stream(&request.host, "exec x", false, 0));
        }
        self.note(format!("exec {}", String::from_utf8_lossy(&request.command_spec)));
        Ok(self.stream(&request.host, "exec x", false, 0))
    }

    async fn follow_run(&self, request: Request<v1::FollowRunRequest>) -> Result<Updates, Status> {
        let request = request.into_inner();
        self.note(format!("follow from {}", request.cursor));
        if !request.run_id.ends_with("beef") {
            return Err(Status::not_found(format!("there is no run {}", request.run_id)));
        }
        let host = self.hosts.first().map(|host| host.id.clone()).unwrap_or_default();
        Ok(self.stream(&host, "hello", false, request.cursor))
    }

    async fn cancel_run(
        &self,
        request: Request<v1::CancelRunRequest>,
    ) -> Result<Response<v1::CancelRunResponse>, Status> {
        self.note(format!("cancel {}", request.into_inner().run_id));
        Ok(Response::new(v1::CancelRunResponse {}))
    }

    async fn list_runs(
        &self,
        _: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        // The one run there is.
        let state = self.end.unwrap_or(RunState::Ok);
        let hosts = self.hosts.iter().take(1);
        let runs = hosts.map(|host| self.run_of(&host.id, state, "hello", true)).collect();
        Ok(Response::new(v1::ListRunsResponse { runs }))
    }
}
