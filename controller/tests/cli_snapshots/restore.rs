//! A backup that becomes a state again, with a real daemon behind it.

use std::os::unix::fs::PermissionsExt;

use postern::daemon::{self, DaemonConfig};
use serde_json::Value;

use super::cli_support::Shell;

#[tokio::test]
async fn a_backup_is_restored_to_the_same_controller() {
    let shell = Shell { stdin: "hunter2\n".into(), ..Shell::new() };
    let state = shell.state();
    std::fs::set_permissions(&state, PermissionsExt::from_mode(0o700)).unwrap();
    let listen = "127.0.0.1:0".parse().unwrap();
    let old = daemon::start(DaemonConfig::new(&state, listen)).await.unwrap();
    let ended = shell.run(&["secret", "set", "db"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let ended = shell.run(&["backup", "state.backup"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let backup = shell.dir.path().join("state.backup");
    assert_eq!(std::fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);

    // The state that a daemon has is not written over, with or without --accept.
    for args in [&["restore", "state.backup", "--accept"][..], &["restore", "state.backup"]] {
        let ended = shell.run(args).await;
        assert_eq!(ended.code, 2, "{ended:?}");
    }
    assert_eq!(shell.run(&["secret", "list"]).await.code, 0);
    old.shutdown().await;

    let new = ["--output", "json", "--state-dir", "new", "restore", "state.backup", "--accept"];
    let ended = shell.run(&new).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let document: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&document["schema"], &document["generation"]), (&"postern/restored/v1".into(), &2.into()));
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/output.md")).unwrap();
    let section = docs.split("\n## `postern/restored/v1`").nth(1).unwrap().split("\n## ").next().unwrap();
    for field in document.as_object().unwrap().keys().filter(|field| *field != "schema") {
        assert!(section.contains(&format!("`{field}`")), "{field} is not documented");
    }

    let restored = shell.dir.path().join("new");
    let again = daemon::start(DaemonConfig::new(&restored, listen)).await.unwrap();
    let ended = shell.run(&["--state-dir", "new", "secret", "list"]).await;
    assert!(ended.stdout.contains("\ndb    1 "), "{ended:?}");
    again.shutdown().await;
}
