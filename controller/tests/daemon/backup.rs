//! A backup, the end of its controller, and the same controller from the backup.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use postern::backup::{RestoreError, Restored, restore};
use postern::seal::{KeyError, SealKey};
use postern::store::StoreError;
use postern_proto::event::RunState;
use postern_proto::v1;
use tonic::Code;

use crate::support::{Line, Rig, Script, collect, ending, soon};

async fn backup(rig: &Rig) -> Vec<u8> {
    let mut pieces = rig.operator().await.backup(v1::BackupRequest {}).await.unwrap().into_inner();
    let mut archive = Vec::new();
    while let Some(piece) = soon("a piece", pieces.message()).await.unwrap() {
        archive.extend_from_slice(&piece.data);
    }
    archive
}

fn beside(rig: &Rig, name: &str) -> PathBuf {
    rig.state_dir().parent().unwrap().join(name)
}

async fn finish(line: &mut Line, run: &str) {
    let mut script = Script::new(run);
    line.event(script.accepted()).await;
    for event in script.ending() {
        line.event(event).await;
    }
    line.acked(run, 4).await;
}

async fn set(rig: &Rig, value: &[u8]) -> u32 {
    let request = v1::SetSecretRequest { name: "db".to_owned(), value: value.to_vec().into() };
    rig.operator().await.set_secret(request).await.unwrap().into_inner().version
}

/// The first real test of a backup: hosts that went on without it take the restored controller for theirs.
#[tokio::test(flavor = "multi_thread")]
async fn agents_that_are_ahead_of_a_restored_controller_work_for_it() {
    let mut rig = Rig::start().await;
    let (mut one, mut two) = (rig.agent("one").await, rig.agent("two").await);
    set(&rig, b"hunter2").await;
    let (mut line, _) = one.session(&rig).await;
    let (before, _) = rig.exec("one").await;
    line.dispatch().await;
    finish(&mut line, &before.id).await;
    let (underway, _) = rig.exec("one").await;
    line.dispatch().await;
    let mut script = Script::new(&underway.id);
    line.event(script.accepted()).await;
    line.acked(&underway.id, 1).await;
    let (waiting, _) = rig.exec("two").await;

    let archive = beside(&rig, "backup.tar");
    fs::write(&archive, backup(&rig).await).unwrap();
    assert!(!rig.state_dir().join("backup.tmp").exists());

    // What the backup does not know: a run is taken, another one ends, a third is done, the line breaks.
    let (after, _) = rig.exec("one").await;
    assert_eq!(line.dispatch().await.seq, 3);
    for event in script.ending() {
        line.event(event).await;
    }
    line.acked(&underway.id, 4).await;
    for _ in 0..5 {
        drop(line);
        line = one.session(&rig).await.0;
    }
    let (mut line_two, _) = two.session(&rig).await;
    assert_eq!(line_two.dispatch().await.run_id, waiting.id);
    finish(&mut line_two, &waiting.id).await;
    rig.agent("three").await;
    rig.stop().await;
    (one.floor, one.runs, two.floor) = (3, vec![after.id.clone()], 1);

    let new = beside(&rig, "new/state");
    let refused = restore(&archive, &new, None, false, 7);
    assert!(matches!(refused, Err(RestoreError::NotAccepted)) && !new.exists());
    let restored = restore(&archive, &new, None, true, 7).unwrap();
    let Restored { generation, has_key, created_ms, .. } = restored;
    assert_eq!((generation, has_key, created_ms > 0), (2, true, true));
    rig.config.state_dir = new.clone();
    rig.restart().await;

    let seen = one.epoch;
    let (mut line, welcome) = one.session(&rig).await;
    assert!(welcome.epoch > seen, "{welcome:?}");
    assert_eq!(welcome.unknown_runs, [after.id.as_str()]);
    let (run, updates) = rig.exec("one").await;
    let dispatch = line.dispatch().await;
    assert_eq!((dispatch.seq, &dispatch.run_id), (4, &run.id), "a number that the agent has not had");
    finish(&mut line, &run.id).await;
    assert_eq!(ending(&collect(updates).await).state(), v1::RunState::Ok);
    assert_eq!(rig.run(&before.id).await.state(), v1::RunState::Ok);
    let lost = rig.run(&underway.id).await;
    assert_eq!(lost.state(), v1::RunState::Interrupted);
    assert!(lost.message.contains("restored"), "{lost:?}");

    // I5: what waited then and was done since then is not done again.
    let (mut line_two, welcome) = two.session(&rig).await;
    assert!(welcome.unknown_runs.is_empty());
    let (run, _) = rig.exec("two").await;
    let dispatch = line_two.dispatch().await;
    assert_eq!((dispatch.seq, &dispatch.run_id), (2, &run.id));
    assert_eq!(rig.run(&waiting.id).await.state(), v1::RunState::Interrupted);

    assert_eq!(set(&rig, b"hunter2").await, 1, "the secret and its key came along");
    // Only once: from then on an agent that is ahead is one of another owner.
    one.epoch += 100;
    assert_eq!(one.dial(&rig).await.goodbye().await.reason(), v1::GoodbyeReason::Protocol);
    let again = beside(&rig, "again.tar");
    fs::write(&again, backup(&rig).await).unwrap();
    rig.stop().await;
    assert_eq!(restore(&again, &beside(&rig, "third"), None, true, 7).unwrap().generation, 3);
}

/// A host that was enrolled after the backup is not told that it was revoked: its agent keeps what it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_came_after_the_backup_is_told_so() {
    let mut rig = Rig::start().await;
    let archive = beside(&rig, "backup.tar");
    fs::write(&archive, backup(&rig).await).unwrap();
    let agent = rig.agent("late").await;
    rig.stop().await;
    rig.config.state_dir = beside(&rig, "new");
    restore(&archive, &rig.config.state_dir, None, true, 7).unwrap();
    rig.restart().await;
    let goodbye = agent.dial(&rig).await.goodbye().await;
    assert_eq!(goodbye.reason(), v1::GoodbyeReason::Protocol);
    assert!(goodbye.message.contains("restored"), "{goodbye:?}");
}

/// A run that waited in the backup, was taken since then, and is still with its agent: what the agent says is
/// the truth.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_still_has_of_a_run_that_waited_is_taken_up() {
    let mut rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (run, _) = rig.exec("one").await;
    let archive = beside(&rig, "backup.tar");
    fs::write(&archive, backup(&rig).await).unwrap();
    let (mut line, _) = agent.session(&rig).await;
    line.dispatch().await;
    rig.stop().await;
    (agent.floor, agent.runs) = (1, vec![run.id.clone()]);
    rig.config.state_dir = beside(&rig, "new");
    restore(&archive, &rig.config.state_dir, None, true, 7).unwrap();
    rig.restart().await;
    assert_eq!(rig.run(&run.id).await.state(), v1::RunState::Interrupted);
    let (mut line, welcome) = agent.session(&rig).await;
    assert_eq!((welcome.unknown_runs.len(), welcome.acked.len()), (0, 1));
    let mut script = Script::new(&run.id);
    line.event(script.accepted()).await;
    line.acked(&run.id, 1).await;
    assert_eq!(rig.run(&run.id).await.state(), v1::RunState::Running);
    line.event(script.finished(RunState::Ok)).await;
    line.acked(&run.id, 2).await;
    assert_eq!(rig.run(&run.id).await.state(), v1::RunState::Ok);
}

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The archive with its manifest changed.
fn edited(archive: &[u8], edit: impl Fn(&str) -> String) -> Vec<u8> {
    use std::io::Read as _;
    let mut edited = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if path == Path::new("postern-backup.json") {
            content = edit(std::str::from_utf8(&content).unwrap()).into_bytes();
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        edited.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    edited.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_good_backup_is_told_apart_and_leaves_nothing_behind() {
    let mut rig = Rig::start().await;
    rig.agent("one").await;
    let good = backup(&rig).await;
    rig.stop().await;
    let (archive, new) = (beside(&rig, "backup.tar"), beside(&rig, "new"));
    let before = listing(archive.parent().unwrap());
    let attempt = |bytes: &[u8]| {
        fs::write(&archive, bytes).unwrap();
        let result = restore(&archive, &new, None, true, 7);
        fs::remove_file(&archive).unwrap();
        assert_eq!(listing(archive.parent().unwrap()), before, "nothing is left behind");
        result.unwrap_err()
    };
    assert!(matches!(restore(&archive, &new, None, true, 7), Err(RestoreError::Missing(_))));
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("rubbish", b"rubbish ".repeat(999)),
        ("half a manifest", good[..600].to_vec()),
        ("half", good[..good.len() / 2].to_vec()),
        ("another name", edited(&good, |text| text.replace("postern-backup", "other-backup"))),
        (
            "a file less",
            edited(&good, |text| text.replace("\"path\": \"ca/root.key\"", "\"path\": \"port\"")),
        ),
        ("a way out", edited(&good, |text| text.replace("ca/root.key", "../root.key"))),
        ("a file that it needs is left out", without(&good, "ca/agents.crt")),
        ("a file that is none of ours", with_file(&good, "notes.txt", b"hello")),
        ("more than it says", appended(&good, "port", b"7300")),
        ("a file twice", with_file(&good, "ca/format", b"2\n")),
        ("a file that is too large", with_file(&good, "port", &[b'7'; 64 * 1024 + 1])),
        ("a link", with_link(&good, "ca/format")),
        ("another server", edited(&good, |text| text.replace("\"server_name\": \"", "\"server_name\": \"x"))),
    ] {
        let error = attempt(&bytes);
        assert!(matches!(error, RestoreError::Corrupt { .. }), "{what}: {error}");
    }
    // Any flipped byte of a file in it; those of a header or of the padding may not matter.
    let database = good.windows(15).position(|window| window == b"SQLite format 3").unwrap();
    for at in [database + 20, database + 5000, good.len() - 2000] {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        let error = attempt(&flipped);
        assert!(matches!(error, RestoreError::Corrupt { .. }), "{at}: {error}");
    }
    let newer = edited(&good, |text| text.replace("\"version\": 1,", "\"version\": 2, \"more\": 1,"));
    assert!(matches!(attempt(&newer), RestoreError::TooNew { found: 2, .. }));
    let wrong = edited(&good, |text| {
        let at = text.find("\"secrets_key\": \"").unwrap() + 16;
        format!("{}0000000000000000{}", &text[..at], &text[at + 16..])
    });
    assert!(matches!(attempt(&wrong), RestoreError::Key(KeyError::Wrong { .. })));

    // Into nothing but an empty place.
    fs::write(&archive, &good).unwrap();
    let full = restore(&archive, rig.state_dir(), None, true, 7);
    assert!(matches!(full, Err(RestoreError::NotEmpty(_))));
    fs::create_dir(&new).unwrap();
    restore(&archive, &new, None, true, 7).unwrap();
    assert_eq!(fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o700);
    rig.config.state_dir = new;
    rig.restart().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_newer_database_is_too_new() {
    let mut rig = Rig::start().await;
    let good = backup(&rig).await;
    rig.stop().await;
    let archive = beside(&rig, "backup.tar");
    // The version stands at offset 60 of the database (SQLite file format, 1.3).
    let mut newer = good.clone();
    let database = newer.windows(15).position(|window| window == b"SQLite format 3").unwrap();
    newer[database + 63] = 99;
    let hash = |bytes: &[u8]| postern_proto::ids::PlanHash::of(bytes).to_string();
    let size = |bytes: &[u8]| {
        let header = &bytes[database - 512 + 124..database - 512 + 135];
        usize::from_str_radix(std::str::from_utf8(header).unwrap().trim_end_matches('\0'), 8).unwrap()
    };
    let size = size(&good);
    let (old, new) = (hash(&good[database..database + size]), hash(&newer[database..database + size]));
    fs::write(&archive, edited(&newer, |text| text.replace(&old, &new))).unwrap();
    let error = restore(&archive, &beside(&rig, "new"), None, true, 7).unwrap_err();
    assert!(matches!(error, RestoreError::Store(StoreError::TooNew { found: 99, .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_lies_elsewhere_stays_there() {
    let mut rig = Rig::start().await;
    set(&rig, b"hunter2").await;
    rig.stop().await;
    let elsewhere = beside(&rig, "elsewhere.key");
    fs::rename(rig.state_dir().join("secrets.key"), &elsewhere).unwrap();
    rig.config.secrets_key = Some(elsewhere.clone());
    rig.restart().await;
    let (archive, new) = (beside(&rig, "backup.tar"), beside(&rig, "new"));
    let bytes = backup(&rig).await;
    let has = |bytes: &[u8], key: &[u8]| bytes.windows(key.len()).any(|window| window == key);
    assert!(!has(&bytes, &fs::read(&elsewhere).unwrap()));
    // Nor does one come along that lies in the state and opens nothing there.
    let left = rig.state_dir().join("secrets.key");
    SealKey::create(&left).unwrap();
    let bytes = {
        let again = backup(&rig).await;
        assert!(!has(&again, &fs::read(&left).unwrap()));
        assert_eq!(entries(&again), entries(&bytes));
        again
    };
    fs::write(&archive, bytes).unwrap();
    rig.stop().await;
    let error = restore(&archive, &new, None, true, 7).unwrap_err();
    assert!(matches!(error, RestoreError::Key(KeyError::Missing { .. })), "{error}");
    assert!(!restore(&archive, &new, Some(&elsewhere), true, 7).unwrap().has_key);
    assert!(!new.join("secrets.key").exists());

    // Version 0.1.0 took it along; who names the right one gets the state all the same.
    let old = with_file(&fs::read(&archive).unwrap(), "secrets.key", &fs::read(&left).unwrap());
    fs::write(&archive, old).unwrap();
    let third = beside(&rig, "third");
    let error = restore(&archive, &third, None, true, 7).unwrap_err();
    assert!(matches!(error, RestoreError::Key(KeyError::Wrong { .. })), "{error}");
    assert!(!restore(&archive, &third, Some(&elsewhere), true, 7).unwrap().has_key);
    assert!(!third.join("secrets.key").exists());

    rig.config.state_dir = new;
    rig.restart().await;
    assert_eq!(set(&rig, b"hunter2").await, 1);
}

/// Names of the files in an archive.
fn entries(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    archive.entries().unwrap().map(|it| it.unwrap().path().unwrap().display().to_string()).collect()
}

/// The archive with one more file in it, which its manifest names.
fn with_file(archive: &[u8], name: &str, content: &[u8]) -> Vec<u8> {
    let sha256 = postern_proto::ids::PlanHash::of(content).to_string();
    let entry = serde_json::json!({"path": name, "bytes": content.len(), "sha256": sha256});
    let named = edited(archive, |text| {
        let mut manifest: serde_json::Value = serde_json::from_str(text).unwrap();
        manifest["files"].as_array_mut().unwrap().push(entry.clone());
        manifest.to_string()
    });
    appended(&named, name, content)
}

/// The archive with one more file at its end, of which its manifest says nothing.
fn appended(archive: &[u8], name: &str, content: &[u8]) -> Vec<u8> {
    // Two zero blocks end an archive: the new one takes their place.
    let mut more = tar::Builder::new(archive[..archive.len() - 1024].to_vec());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o600);
    more.append_data(&mut header, name, content).unwrap();
    more.into_inner().unwrap()
}

/// The archive without one of its files, and a manifest that agrees.
fn without(archive: &[u8], name: &str) -> Vec<u8> {
    use std::io::Read as _;
    let named = edited(archive, |text| {
        let mut manifest: serde_json::Value = serde_json::from_str(text).unwrap();
        manifest["files"].as_array_mut().unwrap().retain(|file| file["path"] != name);
        manifest.to_string()
    });
    let mut fewer = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(named.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if path != Path::new(name) {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o600);
            header.set_size(content.len() as u64);
            fewer.append_data(&mut header, path, content.as_slice()).unwrap();
        }
    }
    fewer.into_inner().unwrap()
}

/// The archive with a link in place of one of its files, and a manifest that agrees.
fn with_link(archive: &[u8], name: &str) -> Vec<u8> {
    use std::io::Read as _;
    let nothing = postern_proto::ids::PlanHash::of(b"").to_string();
    let named = edited(archive, |text| {
        let mut manifest: serde_json::Value = serde_json::from_str(text).unwrap();
        for file in manifest["files"].as_array_mut().unwrap().iter_mut().filter(|file| file["path"] == name) {
            *file = serde_json::json!({"path": name, "bytes": 0, "sha256": nothing});
        }
        manifest.to_string()
    });
    let mut linked = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(named.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        if path == Path::new(name) {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            linked.append_link(&mut header, path, "/etc/hostname").unwrap();
            continue;
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        header.set_size(content.len() as u64);
        linked.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    linked.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_backup_at_a_time_and_none_that_nobody_takes() {
    let mut rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    let (mut line, _) = agent.session(&rig).await;
    // More than fits on the way to a reader.
    for n in 0..8u8 {
        let (run, _) = rig.exec("one").await;
        let dispatch = line.dispatch().await;
        assert_eq!(dispatch.run_id, run.id);
        let mut script = Script::new(&run.id);
        line.event(script.accepted()).await;
        for part in 0..64u64 {
            // Does not compress.
            let mut seed = (u64::from(n) << 32) + part + 1;
            let data: Vec<u8> = std::iter::repeat_with(|| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                (seed >> 24) as u8
            })
            .take(32 * 1024)
            .collect();
            line.log(script.log(postern_proto::event::Stream::Stdout, &data)).await;
        }
        for event in script.ending() {
            line.event(event).await;
        }
        line.acked(&run.id, 4).await;
    }
    let mut held = rig.operator().await.backup(v1::BackupRequest {}).await.unwrap().into_inner();
    soon("a piece", held.message()).await.unwrap().unwrap();
    let error = rig.operator().await.backup(v1::BackupRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    // The daemon goes on meanwhile.
    let (run, _) = rig.exec("one").await;
    line.dispatch().await;
    finish(&mut line, &run.id).await;
    drop(held);
    let again = async {
        while rig.operator().await.backup(v1::BackupRequest {}).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    soon("the place of the one that was given up", again).await;
    rig.stop().await;
    let left = line.goodbye().await;
    assert_eq!(left.reason(), v1::GoodbyeReason::Shutdown);
}
