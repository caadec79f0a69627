//! What is seen while a run goes on.

use std::sync::Arc;
use std::time::Duration;

use postern_proto::event::{EventKind, Stream};
use tokio::sync::Notify;

use super::cli_support::{Buffer, FakeOperator, Shell, event, output, step};
use super::scenarios::changes;

/// A daemon whose run stands still before its last update.
fn held() -> (FakeOperator, Arc<Notify>) {
    let notify = Arc::new(Notify::new());
    (FakeOperator { held: Some(notify.clone()), ..changes() }, notify)
}

/// Waits until it is there, while the run goes on.
async fn seen(buffer: &Buffer, text: &str) {
    let wait = async {
        while !buffer.text().contains(text) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap_or_else(|_| panic!("{text:?} does not come: {}", buffer.text()));
}

#[tokio::test]
async fn a_line_is_printed_when_it_comes_and_not_with_the_next_or_the_end() {
    for (args, line) in [
        (&["apply", "hello", "-H", "web1"][..], "    one\n"),
        (&["run", "resume", "beef"], "    one\n"),
        (&["run", "logs", "beef"], "one\n"),
        (&["exec", "web1", "--", "x"], "one\n"),
        (&["--output", "json", "apply", "hello", "-H", "web1"], "\"text\":\"one\\n\""),
    ] {
        let (mut fake, go_on) = held();
        // The line is the last thing that comes before the run stands still.
        fake.updates = vec![
            event(EventKind::StepStarted { step: step(), summary: "run x".into() }),
            output(Stream::Stdout, b"one\n"),
        ];
        let shell = Shell::new();
        fake.serve(&shell.state());
        let (stdout, stderr) = (Buffer::default(), Buffer::default());
        // Not notified before: the command cannot have ended.
        tokio::select! {
            code = shell.run_into(args, &stdout, &stderr) => panic!("{args:?} ended with {code}: {}", stderr.text()),
            () = seen(&stdout, line) => {}
        }
        drop(go_on);
    }
}

#[tokio::test]
async fn a_bar_is_drawn_on_a_terminal_and_lines_stand_above_it() {
    let (fake, go_on) = held();
    let shell = Shell { terminal: true, ..Shell::new() };
    fake.serve(&shell.state());
    let (stdout, stderr) = (Buffer::default(), Buffer::default());
    let watch = async {
        seen(&stderr, "2/4").await;
        assert!(stderr.text().contains("exec:command:x"), "what is worked on: {}", stderr.text());
        go_on.notify_one();
    };
    let (code, ()) = tokio::join!(shell.run_into(&["apply", "hello", "-H", "web1"], &stdout, &stderr), watch);
    assert_eq!(code, 0);
    // Nothing of it is in what is data, and it is gone at the end.
    assert!(!stdout.text().contains("2/4") && stdout.text().contains("    one\n"), "{}", stdout.text());
    assert!(stderr.text().ends_with("\u{1b}[2K"), "{:?}", stderr.text());
}

#[tokio::test]
async fn no_bar_where_none_is_wanted() {
    for args in [
        &["--no-progress", "apply", "hello", "-H", "web1"][..],
        &["--quiet", "apply", "hello", "-H", "web1"],
        &["--output", "json", "apply", "hello", "-H", "web1"],
    ] {
        let shell = Shell { terminal: true, ..Shell::new() };
        changes().serve(&shell.state());
        let ended = shell.run(args).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        assert!(!ended.stderr.contains('\u{1b}'), "{args:?}: {:?}", ended.stderr);
    }
}
