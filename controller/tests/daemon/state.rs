//! State on disk: in use, missing, corrupt and too new are different answers, and none is a first start.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use postern::ca::CaError;
use postern::daemon::{self, StartError};
use postern::store::StoreError;
use postern_proto::v1;

use crate::support::Rig;

/// A state that was used, and what starting on it says after something happened to it.
async fn after(damage: impl FnOnce(&Path)) -> StartError {
    let mut rig = Rig::start().await;
    rig.prepare("one").await;
    rig.stop().await;
    damage(rig.state_dir());
    let before = listing(rig.state_dir());
    let error = match daemon::start(rig.config.clone()).await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    };
    assert_eq!(listing(rig.state_dir()), before, "nothing was made or removed");
    error
}

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm"))
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn one_daemon_for_one_state() {
    let mut rig = Rig::start().await;
    let Err(StartError::InUse { holder, .. }) = daemon::start(rig.config.clone()).await else { panic!() };
    assert!(holder.contains(&format!("process {}", std::process::id())), "{holder}");
    rig.operator().await;
    rig.restart().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_corrupt_and_too_new() {
    let database = |dir: &Path| dir.join("postern.db");
    let error = after(|dir| fs::remove_file(database(dir)).unwrap()).await;
    assert!(matches!(error, StartError::Store(StoreError::Missing(_))), "{error}");
    let error = after(|dir| fs::write(database(dir), "").unwrap()).await;
    assert!(matches!(error, StartError::Store(StoreError::Corrupt { .. })), "{error}");
    let error = after(|dir| fs::write(database(dir), "rubbish ".repeat(999)).unwrap()).await;
    assert!(matches!(error, StartError::Store(StoreError::Corrupt { .. })), "{error}");
    let error = after(|dir| {
        let db = rusqlite::Connection::open(database(dir)).unwrap();
        db.pragma_update(None, "user_version", 99).unwrap();
    })
    .await;
    assert!(matches!(error, StartError::Store(StoreError::TooNew { found: 99, .. })), "{error}");

    let error = after(|dir| fs::remove_dir_all(dir.join("ca")).unwrap()).await;
    assert!(matches!(error, StartError::Authority(CaError::Missing(_))), "{error}");
    let error = after(|dir| fs::remove_file(dir.join("ca/agents.key")).unwrap()).await;
    assert!(matches!(error, StartError::Authority(CaError::Corrupt { .. })), "{error}");
    let error = after(|dir| fs::write(dir.join("ca/root.crt"), "rubbish").unwrap()).await;
    assert!(matches!(error, StartError::Authority(CaError::Corrupt { .. })), "{error}");
    let error = after(|dir| fs::write(dir.join("ca/format"), "3\n").unwrap()).await;
    assert!(matches!(error, StartError::Authority(CaError::TooNew { .. })), "{error}");

    // Someone else's authority beside this database.
    let mut other = Rig::start().await;
    other.stop().await;
    let error = after(|dir| {
        for name in ["ca", "secrets.key"] {
            fs::rename(dir.join(name), dir.join(format!("old-{name}"))).unwrap();
            fs::rename(other.state_dir().join(name), dir.join(name)).unwrap();
        }
    })
    .await;
    assert!(matches!(error, StartError::Store(StoreError::Mismatch { .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_that_was_cut_off_is_made_anew() {
    let mut rig = Rig::start().await;
    rig.stop().await;
    fs::remove_file(rig.state_dir().join("ca/agents.key")).unwrap();
    fs::write(rig.state_dir().join("first-start"), "").unwrap();
    rig.restart().await;
    rig.agent("one").await;
    assert!(!rig.state_dir().join("first-start").exists());
}

/// T48: nobody else can read or enter what is kept.
#[tokio::test(flavor = "multi_thread")]
async fn trap_48_state_is_for_its_owner_only() {
    let rig = Rig::start().await;
    rig.prepare("one").await;
    let mut pending = vec![rig.state_dir().to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        assert_eq!(meta.permissions().mode() & 0o077, 0, "{}", path.display());
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    let mut open = Rig::start().await;
    open.stop().await;
    fs::set_permissions(open.state_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let error = daemon::start(open.config.clone()).await.err().unwrap();
    assert!(matches!(error, StartError::Unsafe { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_said() {
    let rig = Rig::start().await;
    let mut other = Rig::start().await;
    other.stop().await;
    other.config.listen = rig.daemon().local_addr();
    let error = daemon::start(other.config.clone()).await.err().unwrap();
    assert!(matches!(error, StartError::Listen { .. }), "{error}");
    // The state is free again after that.
    other.config.listen = ([127, 0, 0, 1], 0).into();
    other.restart().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_path_that_is_too_long_is_said_before_anything_is_made() {
    let mut rig = Rig::start().await;
    rig.stop().await;
    let mut config = rig.config.clone();
    config.state_dir = rig.state_dir().join("d".repeat(100));
    let error = daemon::start(config.clone()).await.err().unwrap();
    assert!(matches!(error, StartError::SocketPath { .. }), "{error}");
    assert!(!config.state_dir.exists());
}

/// A backup that was restored over a first start that was cut off: the marker does not make it rubbish.
#[tokio::test(flavor = "multi_thread")]
async fn a_marker_beside_a_state_with_hosts_removes_nothing() {
    let mut rig = Rig::start().await;
    let (host, _) = rig.prepare("one").await;
    let root = rig.root_pem().await;
    rig.stop().await;
    fs::write(rig.state_dir().join("first-start"), "").unwrap();
    rig.restart().await;
    assert_eq!(rig.host(&host).await.name, "one");
    assert_eq!(rig.root_pem().await, root);
    assert!(!rig.state_dir().join("first-start").exists());
}

/// The same where the key is not there: nothing is known of the state, so nothing of it is removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_marker_beside_a_state_without_its_key_removes_nothing() {
    let mut rig = Rig::start().await;
    rig.prepare("one").await;
    rig.stop().await;
    fs::write(rig.state_dir().join("first-start"), "").unwrap();
    let file = rig.state_dir().join("secrets.key");
    let key = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    for _ in 0..2 {
        let error = daemon::start(rig.config.clone()).await.err().unwrap();
        assert!(matches!(error, StartError::Key(_)), "{error}");
        // Nor with another key.
        let _ = fs::remove_file(&file);
        postern::seal::SealKey::create(&file).unwrap();
    }
    fs::write(&file, key).unwrap();
    rig.restart().await;
    rig.operator().await;
    assert!(!rig.state_dir().join("first-start").exists());
}

/// The same where the database cannot be read: whether it is used is not known.
#[tokio::test(flavor = "multi_thread")]
async fn a_marker_beside_a_state_that_cannot_be_read_removes_nothing() {
    let mut rig = Rig::start().await;
    let (host, _) = rig.prepare("one").await;
    rig.stop().await;
    let (dir, database) = (rig.state_dir().to_owned(), rig.state_dir().join("postern.db"));
    fs::write(dir.join("first-start"), "").unwrap();
    let (good, before) = (fs::read(&database).unwrap(), listing(&dir));
    let root = fs::read(dir.join("ca/root.crt")).unwrap();
    let mut torn = good.clone();
    torn[4096..].iter_mut().for_each(|byte| *byte ^= 0x5a);
    let mut newer = good.clone();
    newer[63] = 99;
    for (what, bytes) in [("rubbish", b"rubbish ".repeat(999)), ("torn", torn), ("newer", newer)] {
        fs::write(&database, &bytes).unwrap();
        let error = daemon::start(rig.config.clone()).await.err().unwrap();
        assert!(matches!(error, StartError::Store(_)), "{what}: {error}");
        assert_eq!(fs::read(&database).unwrap(), bytes, "{what}");
        assert_eq!(listing(&dir), before, "{what}");
    }
    // The disk would not: a link that leads to itself can be looked at and not read.
    fs::remove_file(&database).unwrap();
    std::os::unix::fs::symlink("postern.db", &database).unwrap();
    let error = daemon::start(rig.config.clone()).await.err().unwrap();
    assert!(matches!(error, StartError::Store(StoreError::Io { .. })), "{error}");
    assert_eq!(listing(&dir), before);
    fs::remove_file(&database).unwrap();

    fs::write(&database, good).unwrap();
    rig.restart().await;
    assert_eq!(rig.host(&host).await.name, "one");
    assert_eq!(fs::read(dir.join("ca/root.crt")).unwrap(), root);
}

/// A secret is as good a sign of use as a host; a database that was only begun is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_marker_beside_a_secret_removes_nothing() {
    let mut rig = Rig::start().await;
    let request = v1::SetSecretRequest { name: "db".to_owned(), value: b"hunter2".to_vec().into() };
    rig.operator().await.set_secret(request).await.unwrap();
    rig.stop().await;
    fs::write(rig.state_dir().join("first-start"), "").unwrap();
    rig.restart().await;
    let listed = rig.operator().await.list_secrets(v1::ListSecretsRequest {}).await.unwrap();
    assert_eq!(listed.into_inner().secrets.len(), 1);

    // Cut off before the tables were made, and before SQLite wrote anything.
    for tables in [true, false] {
        let mut rig = Rig::start().await;
        rig.stop().await;
        let database = rig.state_dir().join("postern.db");
        fs::write(&database, "").unwrap();
        if tables {
            rusqlite::Connection::open(&database).unwrap().pragma_update(None, "application_id", 7).unwrap();
        }
        fs::write(rig.state_dir().join("first-start"), "").unwrap();
        rig.restart().await;
        rig.agent("one").await;
    }
}

/// A state as version 0.1.0 left it: private keys in clear and no key of secrets.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_in_clear_is_encrypted_at_its_next_start() {
    let mut rig = Rig::start().await;
    let mut agent = rig.agent("one").await;
    rig.stop().await;
    let (ca, file) = (rig.state_dir().join("ca"), rig.state_dir().join("secrets.key"));
    let key = postern::seal::SealKey::read(&file).unwrap().unwrap();
    for name in ["root.key", "servers.key", "agents.key"] {
        let sealed = fs::read_to_string(ca.join(name)).unwrap();
        fs::write(ca.join(name), &**key.open_text(&format!("ca/{name}"), &sealed).unwrap()).unwrap();
    }
    fs::write(ca.join("format"), "1\n").unwrap();
    fs::remove_file(&file).unwrap();
    let db = rusqlite::Connection::open(rig.state_dir().join("postern.db")).unwrap();
    db.execute("DELETE FROM meta WHERE key = 'secrets_key'", []).unwrap();
    drop(db);
    rig.restart().await;
    for name in ["root.key", "servers.key", "agents.key"] {
        assert!(!fs::read_to_string(ca.join(name)).unwrap().contains("PRIVATE"), "{name}");
    }
    agent.session(&rig).await;
    rig.restart().await;
}
