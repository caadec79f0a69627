//! `site backup` and `site restore`, with the real sealing and a stand-in for the host.

use std::os::unix::fs::PermissionsExt as _;

use postern_proto::event::StepEnd;
use postern_proto::parcel::Service;
use postern_proto::v1::LinkState;

use super::cli_support::volume::{FakeVolume, SECRET};
use super::cli_support::{FakeOperator, Shell, host};
use super::scenarios::{Scenario, daemon};

fn with(volume: FakeVolume) -> Option<FakeOperator> {
    Some(FakeOperator { volume: Some(volume), ..daemon() })
}

fn serves(service: Service) -> Option<FakeOperator> {
    with(FakeVolume { service, ..FakeVolume::default() })
}

pub(crate) fn scenarios() -> Vec<Scenario> {
    let fails = |why, code| with(FakeVolume { fails: Some((why, code)), ..FakeVolume::default() });
    let both: &[&[&str]] =
        &[&["site", "backup", "web1", "web1.site"], &["site", "restore", "web1", "web1.site"]];
    vec![
        Scenario {
            files: &[("there", "mine"), ("no.site", "this is no backup")],
            ..Scenario::new(
                "site-backup",
                serves(Service::Restarted),
                &[
                    &["site", "backup", "web1", "web1.site"],
                    &["site", "backup", "web1", "web1.site"],
                    &["site", "backup", "web1", "there"],
                    &["site", "backup", "web1", "no/such/place"],
                    &["site", "backup", "nope", "other.site"],
                    &["site", "backup", "db\u{1b}1", "other.site"],
                    &["--output", "json", "site", "backup", "web1", "other.site"],
                    &["site", "restore", "web1", "web1.site"],
                    &["site", "restore", "web1", "no.site"],
                    &["site", "restore", "web1", "gone.site"],
                    &["site", "restore", "db\u{1b}1", "web1.site"],
                ],
            )
        },
        Scenario::new("site-restore-again", serves(Service::Unchanged), both),
        Scenario::new("site-restore-no-traefik", serves(Service::Absent), both),
        Scenario::new("site-restore-not-restarted", serves(Service::NotRestarted), both),
        Scenario::new("site-restore-not-known", serves(Service::Unknown), both),
        Scenario::new("site-restore-overwritten", serves(Service::Overwritten), both),
        Scenario::new(
            "site-restore-replace",
            with(FakeVolume { differs: true, service: Service::Restarted, ..FakeVolume::default() }),
            &[
                &["site", "backup", "web1", "web1.site"],
                &["site", "restore", "web1", "web1.site"],
                &["site", "restore", "web1", "web1.site", "--replace"],
            ],
        ),
        Scenario::new(
            "site-restore-ended",
            with(FakeVolume { ends: Some(StepEnd::Signal(15)), ..FakeVolume::default() }),
            both,
        ),
        Scenario::new(
            "site-backup-nothing",
            fails("there is no certificate and no account in the Docker volume traefik-acme yet\n", 1),
            &[&["site", "backup", "web1", "web1.site"]],
        ),
        Scenario::new(
            "site-backup-old-agent",
            fails("postern-agent: unknown argument \"traefik-acme\"\n", 2),
            &[&["site", "backup", "web1", "web1.site"]],
        ),
        Scenario::new(
            "site-backup-cut",
            with(FakeVolume { short: 100, ..FakeVolume::default() }),
            &[&["site", "backup", "web1", "web1.site"]],
        ),
    ]
}

fn shell(volume: &FakeVolume) -> Shell {
    let shell = Shell::new();
    FakeOperator { volume: Some(volume.clone()), hosts: vec![host("web1", LinkState::Up)], ..daemon() }
        .serve(&shell.state());
    shell
}

#[tokio::test]
async fn a_backup_comes_back_as_it_was() {
    // More than fits in one plan.
    let volume = FakeVolume { large: 1_300_000, service: Service::Restarted, ..FakeVolume::default() };
    let shell = shell(&volume);
    let ended = shell.run(&["site", "backup", "web1", "web1.site"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(!format!("{ended:?}").contains(SECRET));
    let path = shell.dir.path().join("web1.site");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Whoever has nothing but tar can have his keys.
    let bytes = std::fs::read(&path).unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let names: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names, ["postern-site-backup.json", "cloudflare.json", "large"]);

    let ended = shell.run(&["site", "restore", "web1", "web1.site"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let restored = volume.restored.lock().unwrap().take().unwrap();
    assert_eq!(restored.files[1].content.len(), 1_300_000);
    assert!(String::from_utf8_lossy(&restored.files[0].content).contains(SECRET));

    // One that was damaged is not sent.
    let mut damaged = bytes.clone();
    let at = damaged.windows(SECRET.len()).position(|part| part == SECRET.as_bytes()).unwrap();
    damaged[at] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let ended = shell.run(&["site", "restore", "web1", "web1.site"]).await;
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.stderr.contains("cloudflare.json is not what was written"), "{ended:?}");
    assert!(volume.restored.lock().unwrap().is_none());
}
