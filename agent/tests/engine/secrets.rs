//! Secrets of a run: asked for, held in memory, redacted everywhere, and on no disk of the host.

use std::path::Path;
use std::time::Duration;

use crate::support::*;
use postern_agent::engine::{Dispatch, NoSecret, Outbox, Outgoing, SecretAnswer, SecretText};
use postern_proto::event::{EventKind, Outcome, RunState, Stream};
use postern_proto::ids::{RunId, SecretRef};
use serde_json::{Value, json};

use Outcome::{Changed, Failed, Skipped, Unchanged};

const VALUE: &str = "correct-horse/battery+staple";

fn secret(id: &str) -> SecretRef {
    SecretRef { id: id.to_owned(), version: 1 }
}

fn hole(id: &str) -> Value {
    json!({"$text": [{"secret": {"id": id, "version": 1}}]})
}

fn answer(id: &str) -> SecretAnswer {
    SecretAnswer { secret: secret(id), value: Ok(SecretText::new(VALUE.to_owned())) }
}

fn outcomes(told: &Told) -> Vec<Outcome> {
    told.outcomes().into_iter().map(|(_, outcome)| outcome).collect()
}

/// Follows a run and answers what it asks with `answers`. Gives what was asked, too.
async fn follow(
    work: &Work,
    outbox: &mut Outbox,
    run: RunId,
    answers: &[SecretAnswer],
    told: &mut Told,
) -> usize {
    let mut asked = 0;
    while !told.is_over() {
        match next(outbox).await {
            Outgoing::SecretsWanted { run, .. } => {
                asked += 1;
                work.engine.secrets(run, answers.to_vec()).await;
            }
            Outgoing::Event(event) if event.run != run => {}
            Outgoing::Log(frame) if frame.run != run => {}
            other => told.take(other),
        }
    }
    asked
}

async fn run(work: &Work, dispatch: Dispatch, answers: &[SecretAnswer]) -> (Told, usize) {
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    let run = dispatch.run;
    work.engine.dispatch(dispatch).await.unwrap();
    let mut told = Told::default();
    let asked = follow(work, &mut outbox, run, answers, &mut told).await;
    (told, asked)
}

/// Every file below a directory in which some form of the value is.
fn leaks(dir: &Path) -> Vec<String> {
    leaks_of(dir, VALUE)
}

fn leaks_of(dir: &Path, value: &str) -> Vec<String> {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(value);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(leaks_of(&path, value));
        } else {
            let bytes = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            if [value, encoded.trim_end_matches('='), &value[..10]].iter().any(|form| text.contains(form)) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

/// I7, T46: environment, stdin and a file; in output, failures, summaries, diffs and records.
#[tokio::test]
async fn trap_46_a_secret_reaches_the_process_and_the_file_and_nothing_else() {
    let mut host = Host::new();
    let work = host.open();
    let (env, stdin) = (host.path("env"), host.path("stdin"));
    let mut conf = file("/etc/conf", "");
    conf["content"] = json!({"$text": ["user=a pass=", {"secret": {"id": "db", "version": 1}}, "\n"]});
    let script = format!(
        "printf %s \"$PASS\" >{env}; cat >{stdin}; echo \"out $PASS\"; echo \"err $PASS\" >&2; \
         printf %s \"$PASS\" | base64; printf '%s' x; echo \"$PASS\""
    );
    let fail = "sh -c 'echo it failed with \"$PASS\" >&2; exit 3'";
    let resources = [
        ("conf", "file", conf),
        ("use", "command", json!({"shell": script, "env": {"PASS": hole("db")}, "stdin": hole("db")})),
        ("fail", "command", json!({"shell": fail, "env": {"PASS": hole("db")}})),
    ];
    let dispatch = host.dispatch(&resources);
    let (told, asked) = run(&work, dispatch.clone(), &[answer("db")]).await;
    assert_eq!(asked, 1);
    assert_eq!(outcomes(&told), [Changed, Changed, Failed], "{:?}", told.messages());
    assert_eq!(std::fs::read_to_string(&env).unwrap(), VALUE);
    assert_eq!(std::fs::read_to_string(&stdin).unwrap(), VALUE);
    assert_eq!(
        std::fs::read_to_string(host.root().join("etc/conf")).unwrap(),
        format!("user=a pass={VALUE}\n")
    );
    let out = String::from_utf8(told.output(Stream::Stdout)).unwrap();
    assert_eq!(out, "out [redacted]\n[redacted]\nx[redacted]\n");
    assert_eq!(told.messages()[2], "exit status 3: it failed with [redacted]");
    assert!(!format!("{told:?}").contains(VALUE), "{told:?}");
    assert_eq!(leaks(&host.state()), [""; 0]);

    // Rewritten around the value: what was there before held it, and is not kept.
    let mut conf = file("/etc/conf", "");
    conf["content"] = json!({"$text": ["user=b pass=", {"secret": {"id": "db", "version": 1}}, "\n"]});
    let second = host.dispatch(&[("conf", "file", conf)]);
    let (told, _) = run(&work, second.clone(), &[answer("db")]).await;
    assert_eq!(outcomes(&told), [Changed]);
    assert!(!format!("{told:?}").contains(&VALUE[..10]), "{told:?}");
    assert_eq!(leaks(&host.state()), [""; 0]);
    let undo = host.undo(&second);
    let (told, _) = run(&work, undo, &[answer("db")]).await;
    assert_eq!((outcomes(&told), told.end().0), (vec![Skipped], RunState::Ok));
    assert!(told.messages()[0].contains("there was a secret in what it was"), "{:?}", told.messages());

    let undo = host.undo(&dispatch);
    let (told, _) = run(&work, undo, &[answer("db")]).await;
    assert_eq!(told.end().0, RunState::Failed, "it was changed since: {:?}", told.messages());
    assert!(!format!("{told:?}").contains(&VALUE[..10]), "{told:?}");
    assert_eq!(leaks(&host.state()), [""; 0]);
}

/// A late value is filled in as the command said it or not at all: one that redaction would change is refused.
#[tokio::test]
async fn trap_46_a_late_value_with_a_secret_in_it_is_refused_and_never_changed() {
    let long = "x".repeat(200);
    for (script, refused) in [
        ("echo \"token $PASS\"".to_owned(), true),
        (format!("printf %s {long}{}", &VALUE[..9]), true),
        (format!("printf %s {long}"), false),
        (format!("printf %s {}", &VALUE[..9]), false),
    ] {
        let mut host = Host::new();
        let work = host.open();
        let mut conf = file("/etc/conf", "");
        conf["content"] = json!({"$text": [{"late": "token"}, "\n"]});
        let dispatch = host.dispatch(&[
            ("late", "command", json!({"shell": script, "env": {"PASS": hole("db")}, "late": "token"})),
            ("conf", "file", conf),
        ]);
        let (told, _) = run(&work, dispatch, &[answer("db")]).await;
        let conf = std::fs::read_to_string(host.root().join("etc/conf"));
        if refused {
            assert_eq!(outcomes(&told), [Failed, Skipped], "{script}: {:?}", told.messages());
            assert!(told.messages()[0].starts_with("late.token has a secret"), "{:?}", told.messages());
            assert!(conf.is_err(), "{script}: {conf:?}");
        } else {
            assert_eq!(outcomes(&told), [Unchanged, Changed], "{script}: {:?}", told.messages());
            assert_eq!(conf.unwrap(), script["printf %s ".len()..].to_owned() + "\n");
        }
        assert!(!format!("{told:?}").contains(VALUE), "{told:?}");
    }
}

/// The value before the last `secret set` is on the host and known to nobody: what may hold it is neither kept
/// nor shown, in the run that replaces it and in those that take that back.
#[tokio::test]
async fn trap_46_an_older_value_is_not_kept_and_not_shown() {
    const OLD: &str = "wrong-pony/charger-clip";
    let mut host = Host::new();
    let work = host.open();
    let etc = host.root().join("etc");
    std::fs::write(etc.join("conf"), format!("user=a pass={OLD}\n")).unwrap();
    std::fs::write(etc.join("shadow"), format!("me:{OLD}:1::::::\n")).unwrap();
    let set = format!("sed \"s,:[^:]*:,:$(cut -d: -f2):,\" -i {}", etc.join("shadow").display());
    host.fake("chpasswd", &set);
    host.fake("getent", &format!("cat {}", etc.join("passwd").display()));
    let with_hole = |path: &str| {
        let mut spec = file(path, "");
        spec["content"] = json!({"$text": ["user=a pass=", {"secret": {"id": "db", "version": 2}}, "\n"]});
        spec
    };
    let hash = json!({"$text": [{"secret": {"id": "hash", "version": 2}}]});
    let run_of = host.dispatch(&[
        ("conf", "file", with_hole("/etc/conf")),
        ("new", "file", with_hole("/etc/new")),
        ("me", "user", json!({"name": "me", "password_hash": hash})),
        ("plain", "file", file("/etc/plain", "shown\n")),
    ]);
    let version_2 = |id: &str, value: &str| SecretAnswer {
        secret: SecretRef { id: id.to_owned(), version: 2 },
        value: Ok(SecretText::new(value.to_owned())),
    };
    let answers = [version_2("db", VALUE), version_2("hash", "$6$salt$hashhashhashhash")];
    let state = host.state();
    let silent = |told: &Told| {
        assert!(!format!("{told:?}").contains(&OLD[..10]), "{told:?}");
        assert_eq!(leaks_of(&state, OLD), [""; 0]);
    };
    let mut check = run_of.clone();
    (check.run, check.seq, check.terms.check) = (RunId::generate(), 100, true);
    silent(&run(&work, check, &answers).await.0);
    let (told, _) = run(&work, run_of.clone(), &answers).await;
    assert_eq!(outcomes(&told), [Changed; 4], "{:?}", told.messages());
    silent(&told);
    let told_text = format!("{told:?}");
    assert!(told_text.contains("content differs, 36 bytes -> 41 bytes"), "{told_text}");
    assert!(told_text.contains("+shown"), "what has no secret is shown: {told_text}");
    for (check, want) in [(true, Outcome::WouldChange), (false, Changed)] {
        let mut undo = host.undo(&run_of);
        undo.terms.check = check;
        let (told, _) = run(&work, undo, &answers).await;
        // In reverse order. What was not there held nothing, so it is taken back.
        assert_eq!(outcomes(&told), [want, Skipped, want, Skipped], "{:?}", told.messages());
        for place in [1, 3] {
            assert!(told.messages()[place].contains("older value of its secrets"), "{:?}", told.messages());
        }
        silent(&told);
    }
    assert!(!etc.join("new").exists() && etc.join("conf").exists());
}

#[tokio::test]
async fn a_refused_secret_fails_what_uses_it_with_the_reason() {
    let mut host = Host::new();
    let work = host.open();
    let dispatch = host.dispatch(&[
        ("a", "command", json!({"argv": ["true"], "env": {"P": hole("db")}})),
        ("b", "file", file("/etc/b", "b\n")),
    ]);
    let dispatch = host.needing(&dispatch, &[("b", &[])]);
    let never = NoSecret::Never("it was removed on Monday".to_owned());
    let refused = SecretAnswer { secret: secret("db"), value: Err(never) };
    let (told, _) = run(&work, dispatch, &[refused]).await;
    // Which comes first is the controller's to decide.
    assert!(outcomes(&told).len() == 2 && outcomes(&told).contains(&Changed), "{:?}", told.messages());
    let want = "there is no value of the secret db (version 1): it was removed on Monday";
    assert!(told.messages().contains(&want), "{:?}", told.messages());
    assert_eq!(told.end(), (RunState::Failed, format!("t:command:a: {want}").as_str()));
}

/// The controller's limit on questions is no answer for good: the run waits and asks again by itself.
#[tokio::test]
async fn a_secret_that_is_refused_for_now_is_asked_for_again_in_the_same_session() {
    let mut host = Host::new();
    let work = host.open();
    let dispatch = host.command(json!({"argv": ["true"], "env": {"P": hole("db")}}));
    let id = dispatch.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    let (mut told, mut asked) = (Told::default(), Vec::new());
    while !told.is_over() {
        match next(&mut outbox).await {
            Outgoing::SecretsWanted { run, .. } => {
                asked.push(std::time::Instant::now());
                let (why, after) = ("asked for too often".to_owned(), Duration::from_millis(1));
                let not_now =
                    SecretAnswer { secret: secret("db"), value: Err(NoSecret::NotNow { why, after }) };
                let answer = if asked.len() < 3 { not_now } else { answer("db") };
                work.engine.secrets(run, vec![answer]).await;
            }
            other => told.take(other),
        }
    }
    assert_eq!((told.end().0, asked.len()), (RunState::Ok, 3), "{id}: {:?}", told.messages());
    let waits: Vec<Duration> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits.iter().all(|wait| *wait >= Duration::from_secs(1)), "it does not storm: {waits:?}");
}

/// What does not need the secret goes on; then the run says that it waits, and until when it did.
#[tokio::test]
async fn a_run_without_its_secret_is_parked_and_goes_on_when_it_comes() {
    let mut host = Host::tuned(|config| config.limits.park_after = Duration::from_millis(100));
    let work = host.open();
    let dispatch = host.dispatch(&[
        ("a", "command", json!({"argv": ["true"], "env": {"P": hole("db")}})),
        ("b", "file", file("/etc/b", "b\n")),
        ("c", "file", file("/etc/c", "c\n")),
    ]);
    let dispatch = host.needing(&dispatch, &[("b", &[])]);
    let run = dispatch.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    let (mut told, mut asked) = (Told::default(), Vec::new());
    let parked = |told: &Told| matches!(told.events.last().map(|e| &e.kind), Some(EventKind::Parked { .. }));
    while !parked(&told) {
        match next(&mut outbox).await {
            Outgoing::SecretsWanted { secrets, .. } => asked.push(secrets),
            other => told.take(other),
        }
    }
    assert_eq!(asked, [vec![secret("db")]]);
    assert!(host.root().join("etc/b").exists() && !host.root().join("etc/c").exists());
    let Some(EventKind::Parked { why }) = told.events.last().map(|event| &event.kind) else { panic!() };
    assert!(why.contains("db (version 1)"), "{why}");

    // Other work is done meanwhile, and a new session asks anew.
    let quick = host.shell("true");
    let quick_run = quick.run;
    let mut outbox = work.engine.attach(vec![told.offset(run)], vec![]).await;
    work.engine.dispatch(quick).await.unwrap();
    let (mut of_quick, mut again) = (Told::default(), 0);
    while !of_quick.is_over() || again == 0 {
        match next(&mut outbox).await {
            Outgoing::SecretsWanted { .. } => again += 1,
            Outgoing::Event(event) if event.run == quick_run => of_quick.take(Outgoing::Event(event)),
            other => told.take(other),
        }
    }
    assert_eq!(again, 1);
    work.engine.secrets(run, vec![answer("db")]).await;
    follow(&work, &mut outbox, run, &[], &mut told).await;
    assert_eq!(told.end().0, RunState::Ok);
    let order: Vec<&str> = told
        .events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Parked { .. } => Some("parked"),
            EventKind::Unparked => Some("unparked"),
            EventKind::ResourceFinished { address, .. } => {
                Some(&address.as_str()[address.as_str().len() - 1..])
            }
            _ => None,
        })
        .collect();
    assert_eq!(order, ["b", "parked", "unparked", "a", "c"]);
}

#[tokio::test]
async fn a_parked_run_can_be_cancelled() {
    let mut host = Host::tuned(|config| config.limits.park_after = Duration::from_millis(50));
    let work = host.open();
    let dispatch = host.dispatch(&[
        ("a", "command", json!({"argv": ["true"], "env": {"P": hole("db")}})),
        ("c", "file", file("/etc/c", "c\n")),
    ]);
    let run = dispatch.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    let mut told = Told::default();
    while !matches!(told.events.last().map(|event| &event.kind), Some(EventKind::Parked { .. })) {
        match next(&mut outbox).await {
            Outgoing::SecretsWanted { .. } => {}
            other => told.take(other),
        }
    }
    work.engine.cancel(run).await;
    follow(&work, &mut outbox, run, &[], &mut told).await;
    assert_eq!(told.end(), (RunState::Cancelled, "cancelled by an operator"));
    assert_eq!(outcomes(&told), [Skipped, Skipped]);
}

/// A restart forgets the values; they are asked for again, also for what the run has already put on the host:
/// its output is redacted.
#[tokio::test]
async fn after_a_restart_secrets_are_asked_for_again() {
    let mut host = Host::tuned(|config| config.limits.park_after = Duration::from_millis(50));
    let work = host.open();
    let go = host.path("go");
    let mut conf = file("/etc/conf", "");
    conf["content"] = hole("db");
    let wait = format!("while ! test -e {go}; do sleep 0.01; done");
    let show = format!("cat {}", host.root().join("etc/conf").display());
    let dispatch = host.dispatch(&[
        ("conf", "file", conf),
        ("wait", "command", json!({"shell": wait, "idempotent": true})),
        ("show", "command", json!({"shell": show})),
    ]);
    let id = dispatch.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    let mut told = Told::default();
    while told.steps_started() < 2 {
        match next(&mut outbox).await {
            Outgoing::SecretsWanted { run, .. } => work.engine.secrets(run, vec![answer("db")]).await,
            other => told.take(other),
        }
    }
    drop(outbox);
    work.kill().await;
    assert_eq!(leaks(&host.state()), [""; 0]);
    let work = host.open();
    std::fs::write(&go, "").unwrap();
    let mut outbox = work.engine.attach(vec![told.offset(id)], vec![]).await;
    // The value is slow to come: nothing may begin whose output could show what is on the host already.
    let (mut asked, mut parked) = (0, false);
    while !told.is_over() {
        match next(&mut outbox).await {
            Outgoing::SecretsWanted { .. } => asked += 1,
            other => told.take(other),
        }
        if !parked && matches!(told.events.last().map(|event| &event.kind), Some(EventKind::Parked { .. })) {
            parked = true;
            work.engine.secrets(id, vec![answer("db")]).await;
        }
    }
    assert_eq!((asked, parked), (1, true), "asked again, and waited");
    assert_eq!(told.end().0, RunState::Ok, "{:?}", told.messages());
    assert_eq!(told.output(Stream::Stdout), b"[redacted]");
    assert_eq!(leaks(&host.state()), [""; 0]);
}

/// A session whose controller does not know the run is not asked for what belongs to it.
#[tokio::test]
async fn a_run_that_is_held_back_asks_for_nothing() {
    let mut host = Host::new();
    let work = host.open();
    let dispatch = host.command(json!({"argv": ["true"], "env": {"P": hole("db")}}));
    let id = dispatch.run;
    let mut outbox = work.engine.attach(vec![], vec![id]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), outbox.next()).await.is_err());
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    let mut told = Told::default();
    assert_eq!(follow(&work, &mut outbox, id, &[answer("db")], &mut told).await, 1);
    assert_eq!(told.end().0, RunState::Ok);
}

/// A process that writes much before it reads, one that reads nothing, and one that reads all of it.
#[tokio::test]
async fn stdin_never_blocks() {
    let mut host = Host::new();
    let work = host.open();
    let long = "x".repeat(300_000);
    for (script, want) in [
        ("head -c 200000 /dev/zero; wc -c", 200_000 + 7),
        ("true", 0),
        ("exec <&-; sleep 0.1; echo done", 5),
        ("cat", 300_000),
    ] {
        let told = complete(&work, host.command(json!({"shell": script, "stdin": long}))).await;
        assert_eq!(told.end().0, RunState::Ok, "{script}");
        assert_eq!(told.output(Stream::Stdout).len(), want, "{script}");
    }
}
