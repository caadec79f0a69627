//! Secrets: versions, who gets them, and that their values lie nowhere in clear.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use postern::ca::Authority;
use postern::daemon::{self, StartError};
use postern::seal::{KeyError, SealKey};
use postern::store::{OpError, Store, StoreError};
use postern_proto::ids::SecretRef;
use postern_proto::v1;
use postern_proto::v1::agent_frame::Kind as Up;
use postern_proto::v1::controller_frame::Kind as Down;
use tonic::Code;

use crate::support::{Line, Rig, Script, begun};

const VALUE: &[u8] = b"correct-horse-battery-staple";

async fn set(rig: &Rig, name: &str, value: &[u8]) -> Result<u32, tonic::Status> {
    let request = v1::SetSecretRequest { name: name.to_owned(), value: value.to_vec().into() };
    Ok(rig.operator().await.set_secret(request).await?.into_inner().version)
}

async fn list(rig: &Rig) -> Vec<v1::SecretInfo> {
    rig.operator().await.list_secrets(v1::ListSecretsRequest {}).await.unwrap().into_inner().secrets
}

async fn remove(rig: &Rig, name: &str) -> Result<(), tonic::Status> {
    let request = v1::RemoveSecretRequest { name: name.to_owned() };
    rig.operator().await.remove_secret(request).await.map(drop)
}

/// A plan whose one file has these secrets in it.
fn plan(secrets: &[(&str, u32)]) -> Vec<u8> {
    let holes: Vec<_> = secrets
        .iter()
        .map(|(id, version)| serde_json::json!({"secret": {"id": id, "version": version}}))
        .collect();
    let spec = serde_json::json!({"path": "/etc/x", "content": {"$text": holes}});
    let resource = serde_json::json!({"address": "a:file:x", "kind": "file", "schema": 1, "spec": spec});
    serde_json::to_vec(&serde_json::json!({"schema": 1, "resources": [resource]})).unwrap()
}

async fn apply(rig: &Rig, host: &str, secrets: &[(&str, u32)]) -> Result<v1::Run, tonic::Status> {
    let request = v1::ApplyRequest {
        host: host.to_owned(),
        plan: plan(secrets).into(),
        origin: "test".to_owned(),
        ..Default::default()
    };
    begun(rig.operator().await.apply(request).await).await.map(|(run, _)| run)
}

/// What an agent gets for what it asks.
async fn ask(line: &mut Line, run: &str, secrets: &[(&str, u32)]) -> Vec<(Vec<u8>, String)> {
    let secrets =
        secrets.iter().map(|(id, version)| v1::SecretRef { id: (*id).to_owned(), version: *version });
    line.send(Up::SecretsWanted(v1::SecretsWanted { run_id: run.to_owned(), secrets: secrets.collect() }))
        .await;
    loop {
        match line.next().await {
            Down::Secrets(answer) => {
                assert_eq!(answer.run_id, run);
                return answer.values.into_iter().map(|it| (it.value.to_vec(), it.refused)).collect();
            }
            Down::Ack(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_one_value_for_ever() {
    let mut rig = Rig::start().await;
    assert_eq!(set(&rig, "db/password", VALUE).await.unwrap(), 1);
    assert_eq!(set(&rig, "db/password", VALUE).await.unwrap(), 1, "the value it has already");
    assert_eq!(set(&rig, "db/password", b"other").await.unwrap(), 2);
    rig.restart().await;
    assert_eq!(set(&rig, "db/password", VALUE).await.unwrap(), 3, "an old value is a new version");
    assert_eq!(set(&rig, "api", "\0\u{e9}".as_bytes()).await.unwrap(), 1);
    let names: Vec<_> = list(&rig).await.into_iter().map(|it| (it.name, it.version)).collect();
    assert_eq!(names, [("api".to_owned(), 1), ("db/password".to_owned(), 3)]);
    remove(&rig, "db/password").await.unwrap();
    assert_eq!(remove(&rig, "db/password").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(list(&rig).await.len(), 1);
    assert_eq!(set(&rig, "db/password", VALUE).await.unwrap(), 4, "its numbers are not given again");
    for (name, value, why) in [
        ("", VALUE, "want up to 128"),
        ("a b", VALUE, "want up to 128"),
        ("a", b"", "is empty"),
        ("a", &[7; 64 * 1024 + 1], "more than 65536 bytes"),
        // No agent could use it.
        ("a", b"abc\xff", "not UTF-8 from byte 3 on"),
    ] {
        let error = set(&rig, name, value).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{name:?}");
        assert!(error.message().contains(why), "{error}");
    }
    assert_eq!(set(&rig, "large", &[7; 64 * 1024]).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_names_what_is_not_there_is_refused_with_all_of_it() {
    let rig = Rig::start().await;
    let agent = rig.agent("one").await;
    set(&rig, "db", VALUE).await.unwrap();
    set(&rig, "gone", VALUE).await.unwrap();
    remove(&rig, "gone").await.unwrap();
    let error = apply(&rig, "one", &[("db", 1), ("db", 2), ("gone", 1), ("none", 1)]).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    for name in ["db version 2", "gone version 1", "none version 1"] {
        assert!(error.message().contains(name), "{error}");
    }
    assert!(!error.message().contains("db version 1"), "{error}");
    assert!(list(&rig).await[0].used_by.is_empty());

    let run = apply(&rig, "one", &[("db", 1)]).await.unwrap();
    assert_eq!(list(&rig).await[0].used_by, ["one"]);
    let error = remove(&rig, "db").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains(&run.id), "{error}");
    rig.operator().await.cancel_run(v1::CancelRunRequest { run_id: run.id }).await.unwrap();
    assert!(list(&rig).await[0].used_by.is_empty());

    // An assigned profile refers to it too, and does not hold it.
    let profile = v1::AssignedProfile {
        name: "base".to_owned(),
        bundle: b"content: {{ secret('db') }}".to_vec().into(),
        ..Default::default()
    };
    let request = v1::ApplyRequest {
        host: agent.host.clone(),
        plan: plan(&[]).into(),
        assign: vec![profile],
        ..Default::default()
    };
    rig.operator().await.apply(request).await.unwrap();
    assert_eq!(list(&rig).await[0].used_by, ["one"]);
    remove(&rig, "db").await.unwrap();
}

/// I7: the values that a run's own plan refers to go to its own host, and nothing else goes anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn trap_33_an_agent_gets_the_secrets_of_its_own_open_runs_alone() {
    let rig = Rig::start().await;
    for (name, value) in [("db", VALUE), ("other", b"not yours")] {
        set(&rig, name, value).await.unwrap();
    }
    let (mut one, mut two) = (rig.agent("one").await, rig.agent("two").await);
    let (mut line_one, _) = one.session(&rig).await;
    let (mut line_two, _) = two.session(&rig).await;
    let run = apply(&rig, "one", &[("db", 1)]).await.unwrap();
    line_one.dispatch().await;
    set(&rig, "db", b"second").await.unwrap();
    apply(&rig, "two", &[("other", 1)]).await.unwrap();
    line_two.dispatch().await;

    // Its own, and of that only what its plan refers to, also of another version.
    let answer = ask(&mut line_one, &run.id, &[("db", 1), ("db", 2), ("other", 1), ("none", 1)]).await;
    assert_eq!(answer[0], (VALUE.to_vec(), String::new()));
    for (value, refused) in &answer[1..] {
        assert!(value.is_empty() && refused.contains("does not refer to it"), "{refused}");
    }
    // Another host's run gives nothing, and sounds like one that there is not.
    let answer = ask(&mut line_two, &run.id, &[("db", 1), ("other", 1)]).await;
    assert!(answer.iter().all(|(value, refused)| value.is_empty() && !refused.is_empty()), "{answer:?}");
    let nobody = postern_proto::ids::RunId::generate().to_string();
    assert_eq!(ask(&mut line_two, &nobody, &[("db", 1), ("other", 1)]).await, answer);

    // Nor does one that is over.
    let mut script = Script::new(&run.id);
    line_one.event(script.accepted()).await;
    for event in script.ending() {
        line_one.event(event).await;
    }
    line_one.acked(&run.id, 4).await;
    let answer = ask(&mut line_one, &run.id, &[("db", 1)]).await;
    assert!(answer[0].0.is_empty() && answer[0].1.contains("no unfinished run"), "{answer:?}");

    // What cannot be a question ends the session.
    let many = (0..300).map(|n| v1::SecretRef { id: format!("s{n}"), version: 1 }).collect();
    line_one.send(Up::SecretsWanted(v1::SecretsWanted { run_id: run.id.clone(), secrets: many })).await;
    assert_eq!(line_one.goodbye().await.reason(), v1::GoodbyeReason::Protocol);
    let odd = vec![v1::SecretRef { id: "../x".to_owned(), version: 1 }];
    line_two.send(Up::SecretsWanted(v1::SecretsWanted { run_id: run.id, secrets: odd })).await;
    assert_eq!(line_two.goodbye().await.reason(), v1::GoodbyeReason::Protocol);
}

/// The versions that are kept, in order.
fn kept(rig: &Rig) -> Vec<(String, u32)> {
    let db = rusqlite::Connection::open(rig.state_dir().join("postern.db")).unwrap();
    let mut statement = db.prepare("SELECT name, version FROM secrets ORDER BY name, version").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_version_goes_when_a_new_one_is_set_and_no_run_needs_it() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    for value in [b"first", b"other"] {
        set(&rig, "other", value).await.unwrap();
    }
    set(&rig, "db", b"one").await.unwrap();
    let run = apply(&rig, "one", &[("db", 1)]).await.unwrap();
    line.dispatch().await;
    for (version, value) in [(2, b"two"), (3, b"six")] {
        assert_eq!(set(&rig, "db", value).await.unwrap(), version);
    }
    let name = |name: &str, version| (name.to_owned(), version);
    assert_eq!(kept(&rig), [name("db", 1), name("db", 3), name("other", 2)]);
    assert_eq!(ask(&mut line, &run.id, &[("db", 1)]).await[0].0, b"one", "the run that needs it has it");
    // A plan of before that comes late is told what to do about it.
    let error = apply(&rig, "one", &[("db", 2)]).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("db version 2 (replaced by version 3: apply"), "{error}");

    let mut script = Script::new(&run.id);
    line.event(script.accepted()).await;
    for event in script.ending() {
        line.event(event).await;
    }
    line.acked(&run.id, 4).await;
    assert_eq!(set(&rig, "db", b"ten").await.unwrap(), 4);
    assert_eq!(kept(&rig), [name("db", 4), name("other", 2)]);
}

/// One value that does not open is one secret that a run goes without: the session stays, and with it the host.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_secret_is_refused_alone_and_can_be_set_again() {
    let rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    set(&rig, "db", VALUE).await.unwrap();
    set(&rig, "whole", b"another value").await.unwrap();
    let run = apply(&rig, "one", &[("db", 1), ("whole", 1)]).await.unwrap();
    line.dispatch().await;
    let db = rusqlite::Connection::open(rig.state_dir().join("postern.db")).unwrap();
    let damage = "UPDATE secrets SET ciphertext = zeroblob(length(ciphertext)) WHERE name = 'db'";
    assert_eq!(db.execute(damage, []).unwrap(), 1);

    for _ in 0..2 {
        let answer = ask(&mut line, &run.id, &[("db", 1), ("whole", 1)]).await;
        assert!(answer[0].0.is_empty(), "{answer:?}");
        assert!(answer[0].1.contains("is damaged; set it again"), "{answer:?}");
        assert_eq!(answer[1], (b"another value".to_vec(), String::new()));
    }
    assert_eq!(
        set(&rig, "db", VALUE).await.unwrap(),
        2,
        "the same value is a new version: the old one is lost"
    );
    let again = apply(&rig, "one", &[("db", 2)]).await.unwrap();
    assert_eq!(line.dispatch().await.run_id, again.id);
    assert_eq!(ask(&mut line, &again.id, &[("db", 2)]).await[0].0, VALUE);

    // Nor does a plan that cannot be read end it.
    db.execute("UPDATE runs SET plan = x'7b' WHERE id = $1", [&again.id]).unwrap();
    let answer = ask(&mut line, &again.id, &[("db", 2)]).await;
    assert!(answer[0].0.is_empty() && answer[0].1.contains("plan of the run is damaged"), "{answer:?}");
}

/// A session that was replaced gets no value any more, also when its question was on its way.
#[tokio::test(flavor = "multi_thread")]
async fn trap_34_the_owner_of_before_gets_no_secret() {
    let mut rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    set(&rig, "db", VALUE).await.unwrap();
    let run = apply(&rig, "one", &[("db", 1)]).await.unwrap();
    line.dispatch().await;
    let epoch = agent.epoch;
    rig.stop().await;
    let key = Arc::new(SealKey::read(&rig.state_dir().join("secrets.key")).unwrap().unwrap());
    let authority = Authority::open(rig.state_dir(), &key).unwrap().fingerprint();
    let store = Store::open(rig.state_dir(), &authority, key).unwrap();
    let ask = async |epoch| {
        let wanted = vec![SecretRef { id: "db".to_owned(), version: 1 }];
        store.reveal(agent.host.parse().unwrap(), epoch, run.id.parse().unwrap(), wanted).await
    };
    assert_eq!(ask(epoch).await.unwrap()[0].value.as_ref().unwrap().expose(), VALUE);
    for other in [epoch - 1, epoch + 1] {
        assert!(matches!(ask(other).await, Err(OpError::Fenced)), "epoch {other}");
    }
    store.close().await;
}

/// Every file of the state that has these bytes in it.
fn files_with(dir: &Path, bytes: &[u8]) -> Vec<String> {
    let (mut found, mut read) = (Vec::new(), 0);
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.is_file() {
            let content = fs::read(&path).unwrap();
            read += 1;
            if content.windows(bytes.len()).any(|window| window == bytes) {
                found.push(path.display().to_string());
            }
        }
    }
    assert!(read > 5, "the files are there");
    found
}

/// I7: no value in clear in any file of the state, also not in the write-ahead log of a daemon that runs.
#[tokio::test(flavor = "multi_thread")]
async fn trap_46_no_value_lies_in_the_state_in_clear() {
    let mut rig = Rig::start().await;
    let mut agent = rig.agent("needle-in-the-state").await;
    let (mut line, _) = agent.session(&rig).await;
    set(&rig, "db", VALUE).await.unwrap();
    let run = apply(&rig, &agent.host, &[("db", 1)]).await.unwrap();
    line.dispatch().await;
    assert_eq!(ask(&mut line, &run.id, &[("db", 1)]).await[0].0, VALUE);
    let state = rig.state_dir().to_owned();
    assert!(state.join("postern.db-wal").exists());
    assert_ne!(files_with(&state, b"needle-in-the-state"), [""; 0], "what lies there in clear is found");
    assert_eq!(files_with(&state, VALUE), [""; 0]);
    assert_eq!(files_with(&state, b"PRIVATE KEY"), [""; 0], "nor does a key of the authority");
    rig.stop().await;
    assert_eq!(files_with(&state, VALUE), [""; 0]);
}

async fn start_error(rig: &Rig) -> StartError {
    match daemon::start(rig.config.clone()).await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

fn key_error(error: StartError) -> KeyError {
    match error {
        StartError::Key(error)
        | StartError::Store(StoreError::Key(error))
        | StartError::Authority(postern::ca::CaError::Key(error)) => error,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_a_corrupt_and_a_wrong_key_differ_and_none_is_made() {
    let mut rig = Rig::start().await;
    set(&rig, "db", VALUE).await.unwrap();
    rig.stop().await;
    let file = rig.state_dir().join("secrets.key");
    let good = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    assert!(matches!(key_error(start_error(&rig).await), KeyError::Missing { .. }));
    assert!(!file.exists(), "no new key is made where something is encrypted with an old one");
    let other = SealKey::create(&file).unwrap();
    match key_error(start_error(&rig).await) {
        KeyError::Wrong { found, .. } => assert_eq!(found, other.id()),
        error => panic!("{error}"),
    }
    fs::write(&file, "rubbish").unwrap();
    assert!(matches!(key_error(start_error(&rig).await), KeyError::Corrupt { .. }));

    // The same key in another place will do, and is never made there.
    fs::remove_file(&file).unwrap();
    let elsewhere = rig.state_dir().parent().unwrap().join("elsewhere.key");
    rig.config.secrets_key = Some(elsewhere.clone());
    assert!(matches!(key_error(start_error(&rig).await), KeyError::Missing { .. }));
    assert!(!elsewhere.exists());
    SealKey::create(&elsewhere).unwrap();
    assert!(matches!(key_error(start_error(&rig).await), KeyError::Wrong { .. }));
    fs::write(&elsewhere, good).unwrap();
    rig.restart().await;
    assert_eq!(set(&rig, "db", VALUE).await.unwrap(), 1, "it can be read");
    assert!(!file.exists());
}
