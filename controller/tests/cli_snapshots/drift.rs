//! What `postern drift` says of hosts: as they are to be, not so, or not to be seen.

use postern_proto::event::{Outcome, RunState};
use postern_proto::v1::{self, LinkState};

use super::cli_support::{FakeOperator, Shell, host};
use super::scenarios::{Scenario, end, finished};

const SHOP: &str = "name: shop\nresources:\n  - package: {name: cron}\n  - file: {path: /etc/shop, content: new}\n    \
    id: conf\n  - command: {argv: [/bin/notify]}\n    id: notify\n  - command: {argv: [/bin/seed], creates: /srv/seed}\n    \
    id: seed\n";

/// Three hosts: one with a profile, one without, and one that is away.
fn shop(updates: Vec<v1::run_update::Kind>, state: RunState) -> FakeOperator {
    let mut hosts =
        vec![host("web1", LinkState::Up), host("bare", LinkState::Up), host("away", LinkState::Down)];
    for host in &mut hosts {
        if host.name != "bare" {
            host.profiles = vec!["shop".into()];
        }
    }
    let assigned = v1::AssignedProfile {
        name: "shop".into(),
        bundle: postern::profile::Bundle::new("shop.yaml", SHOP.as_bytes()).to_bytes().unwrap().into(),
        vars: Default::default(),
        assigned_unix_ms: 1_000,
        covers: Vec::new(),
    };
    FakeOperator { hosts, updates, assigned: vec![assigned], end: Some(state), ..FakeOperator::default() }
}

fn drifted() -> FakeOperator {
    let diff = "--- /etc/shop\n+++ /etc/shop\n@@ -1 +1 @@\n-old\u{1b}\n+new\n";
    let updates = vec![
        finished("shop:package:cron", Outcome::Unchanged, "", "", "11"),
        finished("shop:file:conf", Outcome::WouldChange, "content", diff, "22"),
        finished("shop:command:notify", Outcome::WouldChange, "run /bin/notify", "", "33"),
        finished("shop:command:seed", Outcome::Unchanged, "", "", "44"),
        end(RunState::Ok, "2 would change, 2 unchanged"),
    ];
    shop(updates, RunState::Ok)
}

fn clean() -> FakeOperator {
    let updates = vec![
        finished("shop:package:cron", Outcome::Unchanged, "", "", "11"),
        finished("shop:file:conf", Outcome::Unchanged, "", "", "22"),
        finished("shop:command:notify", Outcome::WouldChange, "run /bin/notify", "", "33"),
        finished("shop:command:seed", Outcome::Unchanged, "", "", "44"),
        end(RunState::Ok, ""),
    ];
    shop(updates, RunState::Ok)
}

fn unseen() -> FakeOperator {
    let updates = vec![
        finished("shop:package:cron", Outcome::Failed, "dpkg-query: exit code 2", "", ""),
        finished("shop:file:conf", Outcome::Skipped, "", "", ""),
        finished("shop:command:notify", Outcome::Skipped, "", "", ""),
        finished("shop:command:seed", Outcome::Skipped, "", "", ""),
        end(RunState::Failed, "shop:package:cron failed"),
    ];
    shop(updates, RunState::Failed)
}

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "drift",
            Some(drifted()),
            &[
                &["drift", "web1"],
                &["-v", "drift", "web1"],
                &["-q", "drift", "web1"],
                &["--output", "json", "drift", "web1"],
                &["drift", "bare"],
                &["--output", "json", "drift", "bare"],
                &["drift", "away"],
                &["--output", "json", "drift", "away"],
                &["drift", "nope"],
                &["drift", ""],
                &["drift"],
            ],
        ),
        Scenario::new(
            "drift-clean",
            Some(clean()),
            &[&["drift", "web1"], &["--output", "json", "drift", "web1"]],
        ),
        Scenario::new(
            "drift-failed",
            Some(unseen()),
            &[&["drift", "web1"], &["--output", "json", "drift", "web1"]],
        ),
    ]
}

/// One that is away does not keep the others from being looked at, and decides the exit code.
#[tokio::test]
async fn several_hosts_are_each_told_of() {
    for (fake, words, code, lines) in [
        (clean(), &["all"][..], 1, 2),
        (clean(), &["web1", "bare"], 0, 2),
        (drifted(), &["web1", "bare"], 1, 2),
    ] {
        let shell = Shell::new();
        fake.serve(&shell.state());
        let ended = shell.run(&[&["-q", "drift"], words].concat()).await;
        assert_eq!(ended.code, code, "{words:?}: {ended:?}");
        assert_eq!(ended.stdout.lines().count(), lines, "{words:?}: {ended:?}");
        assert_eq!(ended.stderr.contains("away: its agent is not connected"), words == ["all"], "{ended:?}");
        // Only the one that is there and has something assigned was asked, and nothing was assigned to it.
        assert_eq!(fake.asked(), ["apply 4 resources check=true"]);
    }
}
