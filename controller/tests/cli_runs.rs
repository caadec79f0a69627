//! What is shown of hosts, commands and runs, with a stand-in for the daemon behind a real socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod cli_support;

use cli_support::{FakeOperator, Shell, event, host, output, step};
use postern_proto::event::{EventKind, Outcome, RunState, StepEnd, Stream};
use postern_proto::v1::LinkState;
use serde_json::Value;

fn command(end: StepEnd, state: RunState) -> FakeOperator {
    let outcome = if state == RunState::Ok { Outcome::Changed } else { Outcome::Failed };
    FakeOperator {
        hosts: vec![host("web1", LinkState::Up), host("web2", LinkState::Up)],
        updates: vec![
            event(EventKind::StepStarted { step: step(), summary: "run x".into() }),
            output(Stream::Stdout, b"out \x1b[31m\xff\n"),
            output(Stream::Stderr, b"err\x07\n"),
            output(Stream::Stdout, b"more"),
            event(EventKind::StepFinished { step: step(), end, frames: 3 }),
            event(EventKind::ResourceFinished {
                address: step().address,
                attempt: 1,
                outcome,
                message: "ran\u{1b}]0;x\u{7}".into(),
                diff: String::new(),
                duration_ns: 1_500_000_000,
                seen: String::new(),
            }),
            event(EventKind::Finished { state, message: String::new() }),
        ],
        end: Some(state),
        ..FakeOperator::default()
    }
}

async fn shell(fake: &FakeOperator) -> Shell {
    let shell = Shell::new();
    fake.serve(&shell.state());
    shell
}

#[tokio::test]
async fn exec_on_one_host_is_byte_for_byte() {
    let fake = command(StepEnd::Exit(0), RunState::Ok);
    let shell = shell(&fake).await;
    let ended = shell.run(&["exec", "web1", "--timeout", "5m", "--", "x", "--flag", "a b"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.stdout, "out \u{1b}[31m\u{fffd}\nmore");
    assert_eq!(ended.stderr, "err\u{7}\n");
    assert_eq!(
        fake.asked(),
        ["exec {\"argv\":[\"x\",\"--flag\",\"a b\"],\"idempotent\":false,\"timeout_s\":300}"]
    );
}

#[tokio::test]
async fn trap_33_exec_on_a_terminal_obeys_no_escape_of_a_host() {
    let fake = command(StepEnd::Exit(0), RunState::Ok);
    let shell = Shell { terminal: true, ..shell(&fake).await };
    let ended = shell.run(&["exec", "web1", "--", "x"]).await;
    assert_eq!(ended.stdout, "out \\u{1b}[31m\u{fffd}\nmore");
    assert_eq!(ended.stderr, "err\\u{7}\n");
}

/// How the command ended, this command's exit code, the last line of stderr.
#[tokio::test]
async fn exec_maps_exit_codes_and_names_the_real_one() {
    for (end, state, code, last) in [
        (StepEnd::Exit(0), RunState::Ok, 0, "err\u{7}"),
        (StepEnd::Exit(7), RunState::Failed, 1, "postern: web1: exit code 7"),
        (StepEnd::Exit(2), RunState::Failed, 1, "postern: web1: exit code 2"),
        (StepEnd::Signal(9), RunState::Failed, 1, "postern: web1: ended by signal 9"),
        (
            StepEnd::Error("no such program\u{1b}".into()),
            RunState::Failed,
            1,
            "postern: web1: no such program\\u{1b}",
        ),
        (StepEnd::Exit(0), RunState::Cancelled, 1, "postern: web1: cancelled: ran\\u{1b}]0;x\\u{7}"),
    ] {
        let shell = shell(&command(end.clone(), state)).await;
        let ended = shell.run(&["-q", "exec", "web1", "--", "x"]).await;
        assert_eq!(ended.code, code, "{end:?}");
        assert_eq!(ended.stderr.lines().last(), Some(last), "{end:?}");
    }
}

#[tokio::test]
async fn exec_on_several_hosts_says_whose_line_it_is() {
    let fake = command(StepEnd::Exit(3), RunState::Failed);
    let shell = shell(&fake).await;
    let ended = shell.run(&["exec", "name=web*", "label role=web", "--", "x"]).await;
    assert_eq!(ended.code, 1);
    let mut lines: Vec<_> = ended.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["web1: more", "web1: out \\u{1b}[31m\u{fffd}", "web2: more", "web2: out \\u{1b}[31m\u{fffd}",]
    );
    let mut lines: Vec<_> = ended.stderr.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["web1: err\\u{7}", "web1: exit code 3", "web2: err\\u{7}", "web2: exit code 3"]);
}

#[tokio::test]
async fn a_selector_from_an_unset_variable_chooses_no_host() {
    let fake = command(StepEnd::Exit(0), RunState::Ok);
    let shell = shell(&fake).await;
    for args in [
        &["exec", "", "--", "reboot"][..],
        &["exec", "web1", " ", "--", "reboot"],
        &["apply", "hello", "-H", ""],
        &["hosts", ""],
    ] {
        let ended = shell.run(args).await;
        assert_eq!(ended.code, 2, "{args:?}: {ended:?}");
        assert!(ended.stderr.starts_with("error[empty-selector]: "), "{args:?}: {ended:?}");
    }
    assert!(fake.asked().is_empty(), "{:?}", fake.asked());
    assert_eq!(shell.run(&["-q", "exec", "all", "--", "x"]).await.code, 0);
    assert_eq!(fake.asked().len(), 2);
}

#[tokio::test]
async fn the_output_of_a_run_that_is_over_is_read_to_its_end() {
    let mut fake = command(StepEnd::Exit(0), RunState::Ok);
    fake.hosts.truncate(1);
    fake.updates.truncate(4);
    fake.slow = Some(std::time::Duration::from_millis(700));
    let shell = shell(&fake).await;
    let ended = shell.run(&["run", "logs", "beef", "--no-follow"]).await;
    assert_eq!(ended.stdout, "out \u{1b}[31m\u{fffd}\nmore", "{ended:?}");
}

#[tokio::test]
async fn exec_in_json_loses_no_byte() {
    let shell = shell(&command(StepEnd::Exit(3), RunState::Failed)).await;
    let ended = shell.run(&["--output", "json", "exec", "web1", "--", "x"]).await;
    assert_eq!(ended.code, 1);
    let documents: Vec<Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(documents.iter().all(|it| it["schema"].as_str().unwrap().ends_with("/v1")), "{documents:#?}");
    assert!(!ended.stdout.contains(['\u{1b}', '\u{7}', '\u{9b}']));
    let logs: Vec<_> = documents.iter().filter(|it| it["schema"] == "postern/run-log/v1").collect();
    assert_eq!(logs[0]["base64"], "b3V0IBtbMzFt/wo=");
    assert_eq!((&logs[1]["stream"], &logs[1]["text"]), (&"stderr".into(), &"err\u{7}\n".into()));
    let last = documents.last().unwrap();
    assert_eq!(last["schema"], "postern/exec-result/v1");
    assert_eq!(
        (&last["exit_code"], &last["state"], &last["host"]),
        (&3.into(), &"failed".into(), &"web1".into())
    );
}

#[tokio::test]
async fn apply_shows_a_line_a_resource_and_a_summary() {
    let fake = command(StepEnd::Exit(0), RunState::Ok);
    let shell = shell(&fake).await;
    let ended = shell.run(&["apply", "hello", "-H", "web1"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(
        ended.stdout,
        "  exec:command:x: run x\n    out \\u{1b}[31m\u{fffd}\n    err\\u{7}\n    more\n\
         changed      exec:command:x  1.50 s  ran\\u{1b}]0;x\\u{7}\n\
         web1: ok: 1 changed in 2.50 s\n"
    );
    assert_eq!(ended.stderr, "web1: applying hello (4 resources)\n");
    assert_eq!(fake.asked(), ["apply 4 resources check=false assign hello {}"]);

    let ended = shell.run(&["-q", "apply", "hello", "-H", "web1", "--check"]).await;
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("web1: checked: 1 changed in 2.50 s\n", ""));
    assert_eq!(fake.asked()[1], "apply 4 resources check=true");
}

#[tokio::test]
async fn a_failed_run_says_what_where_and_what_next() {
    let shell = shell(&command(StepEnd::Exit(7), RunState::Failed)).await;
    let ended = shell.run(&["-q", "apply", "hello", "-H", "web1"]).await;
    assert_eq!(ended.code, 1);
    assert_eq!(
        ended.stdout,
        "failed       exec:command:x  1.50 s  ran\\u{1b}]0;x\\u{7}\nweb1: failed: 1 failed in 2.50 s\n"
    );
    assert_eq!(
        ended.stderr,
        "error[run-failed]: web1: exec:command:x: ran\\u{1b}]0;x\\u{7}\n\
         hint: `postern run resume 0199aaaa-0000-7000-8000-00000000beef` goes on from here, `postern run undo \
         0199aaaa-0000-7000-8000-00000000beef` takes back what it did\n"
    );
}

#[tokio::test]
async fn a_daemon_that_restarts_is_followed_again_without_a_gap_or_a_repeat() {
    let fake = command(StepEnd::Exit(0), RunState::Ok);
    *fake.breaks.lock().unwrap() = true;
    let shell = shell(&fake).await;
    let ended = shell.run(&["exec", "web1", "--", "x"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.stdout, "out \u{1b}[31m\u{fffd}\nmore");
    assert_eq!(ended.stderr, "err\u{7}\nlost the daemon; the run goes on, looking for the daemon again\n");
    assert_eq!(fake.asked()[1], "follow from 3");
}

#[tokio::test]
async fn up_on_a_connected_host_needs_no_ssh() {
    let fake = command(StepEnd::Exit(0), RunState::Ok);
    let shell = shell(&fake).await;
    let ended = shell.run(&["up", "root@web1.example", "-p", "hello"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(
        ended.stderr,
        "web1: its agent is connected, no SSH needed\nweb1: applying hello (4 resources)\n"
    );
    assert!(ended.stdout.ends_with("web1: ok: 1 changed in 2.50 s\n"));
    assert_eq!(fake.asked(), ["apply 4 resources check=false assign hello {}"], "no token was made");
    // An alias of the ssh configuration is the same host.
    std::fs::create_dir(shell.dir.path().join(".ssh")).unwrap();
    shell.file(".ssh/config", "Host w\n  HostName web1.example\n  User root\n");
    let ended = shell.run(&["up", "w", "-p", "hello"]).await;
    assert!(ended.stderr.starts_with("web1: its agent is connected"), "{ended:?}");
}

#[tokio::test]
async fn up_without_an_agent_inside_says_how_to_get_one() {
    let shell = shell(&command(StepEnd::Exit(0), RunState::Ok)).await;
    let ended = shell.run(&["up", "root@new.example", "--agent-binary", "none"]).await;
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.starts_with("error[agent-binary]: reading the agent "), "{}", ended.stderr);
    assert!(ended.stderr.contains("hint: build with `cargo xtask dist`"), "{}", ended.stderr);
    let ended = shell.run(&["up", "root@new example"]).await;
    assert!(ended.code == 2 && ended.stderr.starts_with("error[target]: "), "{}", ended.stderr);
    let ended = shell.run(&["up", "root@new.example", "--controller", "a:b:c"]).await;
    assert!(
        ended.code == 2 && ended.stderr.starts_with("error[usage]: \"a:b:c\" is no address"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_refused_connection_has_its_code() {
    let shell = shell(&FakeOperator::default()).await;
    shell.file("agent", "");
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[18] = 62;
    std::fs::write(shell.dir.path().join("agent"), elf).unwrap();
    // A port that was free a moment ago: nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let target = format!("root@127.0.0.1:{port}");
    let ended = shell.run(&["up", &target, "--agent-binary", "agent", "--timeout", "1s"]).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("error[refused]: step 1 (connect): "), "{}", ended.stderr);
    assert!(ended.stderr.contains("\nhint: "), "{}", ended.stderr);
}

#[tokio::test]
async fn hosts_as_text_and_as_json() {
    let fake = FakeOperator {
        hosts: vec![host("web1", LinkState::Up), host("db\u{1b}", LinkState::Pending)],
        ..FakeOperator::default()
    };
    let shell = shell(&fake).await;
    let ended = shell.run(&["hosts"]).await;
    assert_eq!(
        ended.stdout,
        "NAME      LINK     OS         AGENT  LAST SEEN  LABELS\n\
         db\\u{1b}  pending  debian 12  0.1.0  never      role=web\n\
         web1      up       debian 12  0.1.0  now        role=web\n"
    );
    let ended = shell.run(&["hosts", "name=web*", "--output", "json"]).await;
    let document: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(document["schema"], "postern/hosts/v1");
    assert_eq!(document["hosts"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&document["hosts"][0]["link"], &document["hosts"][0]["last_seen"]),
        (&"up".into(), &Value::Null)
    );
    let ended = shell.run(&["host", "show", "web1"]).await;
    assert!(ended.stdout.starts_with("name         web1\nid           "), "{}", ended.stdout);
    let ended = shell.run(&["host", "show", "web9"]).await;
    assert_eq!(
        ended.stderr,
        "error[not-found]: there is no host \"web9\"\nhint: `postern hosts` lists them\n"
    );
    assert_eq!(ended.code, 2);
}

#[tokio::test]
async fn forget_says_what_is_left_behind() {
    let fake = FakeOperator {
        hosts: vec![host("web1", LinkState::Up), host("web2", LinkState::Down)],
        ..FakeOperator::default()
    };
    let shell = shell(&fake).await;
    let ended = shell.run(&["host", "forget", "web1"]).await;
    assert_eq!(ended.code, 1);
    assert_eq!(ended.stderr, "web1: left behind: /var/lib/x\\u{1b}[2J\n");
    let ended = shell.run(&["host", "forget", "web2"]).await;
    assert_eq!(
        ended.stderr,
        "error[not-connected]: the agent of web2 is not connected\n\
         hint: wait for it, remove it over SSH (--ssh), or drop the record only (--force)\n"
    );
    shell.run(&["host", "forget", "web2", "--force"]).await;
    assert_eq!(fake.asked(), ["forget record_only=false", "forget record_only=true"]);
}

#[tokio::test]
async fn runs_are_listed_shown_followed_and_cancelled() {
    let mut fake = command(StepEnd::Exit(0), RunState::Ok);
    fake.hosts.truncate(1);
    let shell = shell(&fake).await;
    let ended = shell.run(&["runs"]).await;
    assert!(ended.stdout.starts_with("RUN           HOST  STATE  STARTED"), "{}", ended.stdout);
    assert!(ended.stdout.contains("00000000beef  web1  ok     "), "{}", ended.stdout);
    assert!(ended.stdout.ends_with("hello (check)\n"), "{}", ended.stdout);
    // The end of an id is enough.
    let ended = shell.run(&["run", "show", "beef"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.starts_with("run 0199aaaa-0000-7000-8000-00000000beef on web1: hello, started "));
    assert!(ended.stdout.ends_with("\nok: 1 changed\n"), "{}", ended.stdout);
    let ended = shell.run(&["run", "logs", "beef"]).await;
    assert_eq!(
        (ended.stdout.as_str(), ended.stderr.as_str()),
        ("out \u{1b}[31m\u{fffd}\nmore", "err\u{7}\n")
    );
    let ended = shell.run(&["run", "cancel", "beef"]).await;
    assert_eq!(ended.stdout, "run 0199aaaa-0000-7000-8000-00000000beef: cancellation asked for\n");
    assert_eq!(fake.asked().last().unwrap(), "cancel 0199aaaa-0000-7000-8000-00000000beef");
    for (text, begins) in [
        ("dead", "error[not-found]: no run's id ends in dead\n"),
        ("x", "error[usage]: \"x\" is no run's id"),
        ("0199aaaa-0000-7000-8000-00000000dead", "error[not-found]: there is no run 0199aaaa-"),
    ] {
        let ended = shell.run(&["run", "show", text]).await;
        assert!(ended.code == 2 && ended.stderr.starts_with(begins), "{text}: {ended:?}");
    }
}

/// What no host could use is told to the one who has it, and goes no further.
#[tokio::test]
async fn a_secret_that_cannot_be_one_is_refused_with_a_way_out() {
    let fake = command(StepEnd::Exit(0), RunState::Ok);
    let shell = shell(&fake).await;
    for (name, value, message, hint) in [
        (
            "blob",
            &b"\x7fELF\xff"[..],
            "is not text: it is not UTF-8 from byte 4 on",
            "base64 -w0 FILE | postern secret set db",
        ),
        ("large", &[b'x'; 64 * 1024 + 1], "has more than 65536 bytes", "let the host fetch what is larger"),
    ] {
        std::fs::write(shell.dir.path().join(name), value).unwrap();
        let ended = shell.run(&["secret", "set", "db", "--file", name]).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{ended:?}");
        let first = format!("error[secret-value]: the value of db {message}\n");
        assert!(ended.stderr.starts_with(&first), "{ended:?}");
        assert!(ended.stderr.contains(hint), "{ended:?}");
    }
    assert!(fake.asked().is_empty(), "{:?}", fake.asked());
    std::fs::write(shell.dir.path().join("largest"), [b'x'; 64 * 1024]).unwrap();
    assert_eq!(shell.run(&["secret", "set", "db", "--file", "largest"]).await.code, 0);
}
