//! A plan for an agent that is older than the controller, from the command line to the agent and back.

use std::ffi::OsString;
use std::io::Write;
use std::sync::{Arc, Mutex};

use postern::cli::{Env, Io, run};
use postern_proto::plan::PlanError;
use postern_proto::spec::KINDS;
use postern_proto::v1;
use postern_proto::v1::agent_frame::Kind as Up;

use crate::support::{Line, Rig, soon};

const PROFILE: &str = "name: site\nresources:\n  - command: {argv: [touch, /tmp/acted]}\n    id: first\n  \
                       - sysctl: {name: vm.swappiness, value: '10'}\n";

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

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
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// The command line against this daemon: exit code, stdout, stderr.
async fn postern(rig: &Rig, args: &[&str]) -> (u8, String, String) {
    let (stdout, stderr) = (Buffer::default(), Buffer::default());
    let io = Io {
        stdin: Box::new(std::io::empty()),
        stdin_is_terminal: false,
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(stderr.clone()),
        stdout_is_terminal: false,
        stderr_is_terminal: false,
    };
    let home = rig.state_dir().parent().unwrap();
    let state = rig.state_dir().to_str().unwrap();
    let env = Env::of(&[("POSTERN_STATE_DIR", state), ("NO_COLOR", "1")], home, home);
    let args = std::iter::once("postern").chain(args.iter().copied()).map(OsString::from);
    let code = soon("the end of a command", run(args, env, io)).await.code();
    (code, stdout.text(), stderr.text())
}

/// Takes a dispatch as an agent does that knows all kinds but one, and says what such an agent says.
async fn refuse(line: &mut Line, lacks: &str) {
    let dispatch = line.dispatch().await;
    let plan: serde_json::Value = serde_json::from_slice(&dispatch.plan).unwrap();
    let kinds =
        plan["resources"].as_array().unwrap().iter().map(|it| it["kind"].as_str().unwrap().to_owned());
    let unknown: Vec<_> = kinds.filter(|kind| kind == lacks).collect();
    assert!(KINDS.iter().any(|kind| kind.name == lacks) && !unknown.is_empty(), "{plan}");
    let refused = v1::DispatchRefused {
        seq: dispatch.seq,
        run_id: dispatch.run_id,
        reason: v1::RefusalReason::UnknownKind.into(),
        message: PlanError::UnknownKind(unknown).to_string(),
    };
    line.send(Up::Refused(refused)).await;
}

/// All that this build knows, but one.
fn all_but(lacks: &str) -> Vec<v1::KindSupport> {
    let kinds = KINDS.iter().filter(|kind| kind.name != lacks);
    kinds
        .map(|kind| v1::KindSupport { kind: kind.name.to_owned(), schema_min: 1, schema_max: kind.schema })
        .collect()
}

/// Not even written down: it is no part of what the host is to have.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_with_a_kind_that_the_connected_agent_lacks_is_not_sent() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    agent.kinds = all_but("sysctl");
    let (mut line, _) = agent.session(&rig).await;
    let home = rig.state_dir().parent().unwrap();
    std::fs::write(home.join("site.yaml"), PROFILE).unwrap();
    for more in [&[][..], &["--check"]] {
        let args = [&["apply", "site.yaml", "-H", "one"], more].concat();
        let (code, stdout, stderr) = postern(&rig, &args).await;
        assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
        let error = "error[failed-precondition]: the agent is too old for this plan: it does not know sysctl; nothing \
                     was sent, and `postern up … --bootstrap` upgrades it\n";
        assert!(stderr.ends_with(error), "{stderr}");
    }
    let request = v1::ListRunsRequest { host: String::new(), limit: 0 };
    assert_eq!(rig.operator().await.list_runs(request).await.unwrap().into_inner().runs, []);
    assert_eq!(rig.host(&agent.host).await.profiles, [""; 0]);
    // What it does know goes through as ever, and is the first thing that it is sent.
    let (run, _) = rig.exec("one").await;
    assert_eq!(line.dispatch().await.run_id, run.id);
}

/// One that does not say what it knows, or was away when the plan was made.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_with_a_kind_that_the_agent_lacks_is_refused_before_anything_acts() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    std::fs::write(rig.state_dir().parent().unwrap().join("site.yaml"), PROFILE).unwrap();
    for (args, json) in [
        (&["apply", "site.yaml", "-H", "one"][..], false),
        (&["apply", "site.yaml", "-H", "one", "--check"], false),
        (&["--output", "json", "apply", "site.yaml", "-H", "one"], true),
    ] {
        let ((code, stdout, stderr), ()) = tokio::join!(postern(&rig, args), refuse(&mut line, "sysctl"));
        assert_eq!(code, 1, "{stdout}{stderr}");
        let why = "refused by the agent: the agent does not know a kind of resource in it: unknown kind of resource: \
                   sysctl";
        if json {
            let last: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
            assert_eq!(
                (&last["schema"], &last["state"]),
                (&"postern/apply-result/v1".into(), &"refused".into())
            );
            assert_eq!(last["message"], why, "{last}");
            continue;
        }
        assert!(stdout.starts_with("one: refused: nothing done"), "{stdout}");
        let error = format!("error[run-refused]: one: {why}\n");
        assert!(stderr.contains(&error), "{stderr}");
        assert!(
            stderr.contains("hint: is the agent older than this program? `postern up … --bootstrap`"),
            "{stderr}"
        );
    }
    let request = v1::ListRunsRequest { host: String::new(), limit: 0 };
    let runs = rig.operator().await.list_runs(request).await.unwrap().into_inner().runs;
    let refused = runs.iter().filter(|run| run.state() == v1::RunState::Refused);
    assert_eq!((runs.len(), refused.count()), (3, 3), "each is over, and none waits to be sent again");
}
