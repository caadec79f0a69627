//! The program itself: exit codes, JSON on stdout, text on stderr, readiness and SIGTERM.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use postern_proto::host::{AgentConfig, EnrolReport, StatusReport, exit};
use postern_proto::ids::{HostId, RunId};
use postern_proto::plan::{PLAN_SCHEMA, Plan, PlannedResource};
use postern_proto::v1::{self, agent_frame, controller_frame, run_event};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::support::*;

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern-agent"));
    command.args(args).env_clear().kill_on_drop(true);
    command
}

async fn run(args: &[&str], stdin: &str) -> Ran {
    let mut child =
        command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that does not read its stdin closes it.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes()).await;
    let output = within("the program", child.wait_with_output()).await.unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn event(session: &mut TestSession, wanted: impl Fn(&run_event::Kind) -> bool) {
    loop {
        match session.next().await {
            Some(agent_frame::Kind::Event(event)) if event.kind.as_ref().is_some_and(&wanted) => return,
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
}

async fn unfinished(state: &Path) -> u32 {
    let status = run(&["status", "--state-dir", state.to_str().unwrap()], "").await;
    assert_eq!(status.code, exit::OK, "{}", status.stderr);
    serde_json::from_str::<StatusReport>(&status.stdout).unwrap().unfinished_runs
}

fn write_config(dir: &Path, config: &AgentConfig) -> String {
    let path = dir.join("config.json");
    std::fs::write(&path, serde_json::to_vec(config).unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn version_usage_and_mistakes() {
    let version = run(&["--version"], "").await;
    assert_eq!(
        (version.code, version.stdout.as_str()),
        (0, concat!("postern-agent ", env!("CARGO_PKG_VERSION"), "\n"))
    );
    for args in [&[][..], &["fly"], &["run", "--speed=9"], &["enrol", "--config"]] {
        let ran = run(args, "").await;
        assert_eq!((ran.code, ran.stdout.as_str()), (exit::USAGE, ""), "{args:?}");
        assert!(ran.stderr.contains("usage: postern-agent"), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn enrol_probe_and_status_answer_with_one_line_of_json() {
    let controller = TestController::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (host, state) = (HostId::generate(), dir.path().join("state"));
    let state = state.to_str().unwrap();
    let config = write_config(dir.path(), &controller.config(host));

    let status = run(&["status", "--state-dir", state], "").await;
    let report: StatusReport = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!((status.code, report.host_id), (exit::NOT_ENROLLED, None));

    let probe = run(&["probe", "--config", &config], "").await;
    let report: EnrolReport = serde_json::from_str(&probe.stdout).unwrap();
    assert_eq!((probe.code, report.reached), (exit::OK, Some(controller.at.to_string())));

    let arguments = ["enrol", "--config", &config, "--state-dir", state];
    for (token, code) in [("", exit::USAGE), ("wrong", exit::REFUSED), (TOKEN, exit::OK)] {
        let enrol = run(&arguments, token).await;
        assert_eq!(enrol.stdout.lines().count(), 1);
        let report: EnrolReport = serde_json::from_str(&enrol.stdout).unwrap();
        assert_eq!((enrol.code, report.host_id.is_some()), (code, code == exit::OK), "{}", report.error);
        assert_eq!(report.error.is_empty(), code == exit::OK);
        assert!(!format!("{}{}", enrol.stdout, enrol.stderr).contains("wrong"), "the token is shown");
    }
    let status = run(&["status", "--state-dir", state], "").await;
    let report: StatusReport = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!((status.code, report.host_id), (exit::OK, Some(host)));
    assert!(report.certificate_not_after_s.unwrap() > now_s());

    let missing = run(&["enrol", "--config", "/nonexistent"], TOKEN).await;
    let report: EnrolReport = serde_json::from_str(&missing.stdout).unwrap();
    assert_eq!(missing.code, exit::USAGE);
    assert!(report.error.contains("no configuration at /nonexistent"), "{}", report.error);
}

#[tokio::test]
async fn it_says_when_it_is_ready_works_and_ends_at_once_when_told() {
    let mut controller = TestController::start().await;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let config = write_config(dir.path(), &controller.config(HostId::generate()));
    let arguments = ["--config", &config, "--state-dir", state.to_str().unwrap()];
    assert_eq!(run(&[&["enrol"], &arguments[..]].concat(), TOKEN).await.code, exit::OK);

    let socket = dir.path().join("notify");
    let listener = UnixDatagram::bind(&socket).unwrap();
    listener.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut child = command(&[&["run"], &arguments[..]].concat())
        .env("NOTIFY_SOCKET", &socket)
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut session = controller.welcomed().await;
    let mut said = [0; 32];
    let len = listener.recv(&mut said).unwrap();
    assert_eq!(&said[..len], b"READY=1");

    // A real run through the real program; `status` is asked from beside it.
    let plan = Plan {
        schema: PLAN_SCHEMA,
        resources: vec![PlannedResource {
            address: "test:command:sleep".parse().unwrap(),
            kind: "command".into(),
            schema: 1,
            spec: serde_json::json!({"argv": ["sleep", "30"]}),
            needs: None,
        }],
    };
    let ((bytes, hash), run_id) = (plan.to_bytes().unwrap(), RunId::generate().to_string());
    let dispatch = v1::Dispatch {
        seq: 1,
        run_id: run_id.clone(),
        plan: bytes.into(),
        plan_sha256: hash.as_bytes().to_vec().into(),
        epoch: 1,
        ..Default::default()
    };
    session.send(controller_frame::Kind::Dispatch(dispatch)).await;
    event(&mut session, |kind| matches!(kind, run_event::Kind::StepStarted(_))).await;
    assert_eq!(unfinished(&state).await, 1);
    session.send(controller_frame::Kind::Cancel(v1::CancelRun { run_id })).await;
    event(&mut session, |kind| matches!(kind, run_event::Kind::Finished(_))).await;
    assert_eq!(unfinished(&state).await, 0);

    let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(2), child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(exit::OK));
    assert!(session.next().await.is_none());
}
